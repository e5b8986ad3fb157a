"""Which of some papers are about a topic: a search that knows where to stop."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from datetime import date
from typing import Protocol

from anabranch.hub.catalogue import Entry
from anabranch.hub.meaning import MeaningIndex
from anabranch.hub.search import Hit, Ranker, explained

LEAST_SCORE = 0.3  # by meaning
LEAST_SHARE = 0.5  # by words: of the weight of the topic's words


class Words(Ranker, Protocol):
    """A ranker by words that also says how much of a query a document has (:meth:`TextIndex.shares`)."""

    def shares(self, query: str) -> dict[int, float]: ...


def fitting(
    entries: Sequence[Entry], topic: str, among: Sequence[int], k: int, *, ranker: MeaningIndex | Words
) -> list[Hit]:
    """The at most ``k`` papers that are about ``topic``, best first, ties to the newer.

    Only the papers at the positions ``among`` are looked at, however many others would fit better; sentences are sought for
    those ``k`` only. By meaning a paper fits from a score of 0.3; by words when it has half the weight of the topic's words,
    of which rare ones weigh more.

    Args:
        entries: the whole catalogue, over which ``ranker`` was built.
    """
    if isinstance(ranker, MeaningIndex):
        scores = {i: score for i, score in ranker.scores_among(topic, among).items() if score >= LEAST_SCORE}
    else:
        all_scores, shares = ranker.scores(topic), ranker.shares(topic)
        scores = {i: all_scores[i] for i in among if i in all_scores and shares.get(i, 0.0) >= LEAST_SHARE}
    newest = {i: -(entries[i].published or date.min).toordinal() for i in scores}
    best = heapq.nsmallest(k, scores, key=lambda i: (-scores[i], newest[i], i))
    return explained(entries, topic, best, scores, ranker)
