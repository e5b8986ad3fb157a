"""Search by meaning, on exact vectors without a model, and with the real encoder where it is here."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from anabranch.hub import Document, Entry, TextIndex, document, search
from anabranch.hub.meaning import MeaningIndex, Remembering, VectorStore, nearest
from anabranch.lab import papers

from .test_search import DEVELOPMENT, HELD_OUT


class Letters:
    """Texts as normalized counts of letters: an embedder whose answers are known."""

    name, calls = "letters", 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += len(texts)
        counts = np.array([[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
        return (counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def test_nearest_equals_a_full_sort_with_ties_by_position() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (300, 6)).astype(np.float32)  # many ties
    for _ in range(1000):
        query = rng.integers(-2, 3, 6).astype(np.float32)
        wanted = sorted(range(300), key=lambda i: (-float(vectors[i] @ query), i))[:10]
        assert nearest(vectors, query, 10).tolist() == wanted


def test_the_score_is_the_stated_mixture() -> None:
    docs = [Document("abba", "abc abd. Cab bab."), Document("zzz", "zebra."), Document("xx", "")]
    embed, words = Letters(), TextIndex(docs)
    index = MeaningIndex(docs, words, embed, VectorStore(embed))
    query = "cab abba"
    vector, by_words = embed([query])[0], words.scores(query)
    scores = index.scores(query)
    parts = embed(["abba", "abc abd.", "Cab bab."])
    whole = embed(["abba. abc abd. Cab bab."])[0]
    cosine = (float(whole @ vector) + float((parts @ vector).max())) / 2
    assert scores[0] == pytest.approx(0.7 * cosine + 0.3 * by_words[0] / max(by_words.values()), abs=2e-3)
    assert 2 not in scores  # neither a common word nor a near meaning
    assert index.best_sentence(query, 0) == "Cab bab."
    assert index.best_sentence(query, 2) == ""


def test_many_documents_are_ranked_as_if_all_were_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghij"))
    docs = [
        Document("".join(rng.choice(letters, 8)), " ".join("".join(rng.choice(letters, 5)) for _ in range(6)))
        for _ in range(900)
    ]
    embed = Letters()
    store, words = VectorStore(embed), TextIndex(docs)
    few = MeaningIndex(docs, words, embed, store).scores("abcde")
    monkeypatch.setattr("anabranch.hub.meaning._CANDIDATES", 900)
    every = MeaningIndex(docs, words, embed, store).scores("abcde")
    best = sorted(every, key=lambda i: -every[i])[:20]
    assert sorted(few, key=lambda i: -few[i])[:20] == best


def test_texts_are_embedded_once_and_kept(tmp_path: Path) -> None:
    embed, path = Letters(), tmp_path / "kept.sqlite"
    first = VectorStore(embed, path).get(["a b", "c", "a b"])
    assert embed.calls == 2
    again = VectorStore(embed, path).get(["c", "a b"])
    assert embed.calls == 2
    assert np.array_equal(first[[1, 0]], again)
    assert VectorStore(embed, path).get([]).shape[0] == 0


def test_similar_papers_leave_the_paper_itself_out() -> None:
    docs = [Document("aaa", ""), Document("aab", ""), Document("zzz", "")]
    embed = Letters()
    index = MeaningIndex(docs, TextIndex(docs), embed, VectorStore(embed))
    assert [i for i, _ in index.similar(0, 2)] == [1, 2]


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> object:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from anabranch.language import SentenceEmbedder

    return SentenceEmbedder(minilm)


def test_vectors_do_not_depend_on_their_company(encoder) -> None:
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "x", "a much longer text " * 30]
    together = encoder([*texts, "", "one more", "two", "three"])
    alone = np.concatenate([encoder([text]) for text in texts])
    assert np.abs(together[:4] - alone).max() <= 1e-5
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() <= 1e-6
    assert float(together[0] @ together[1]) == pytest.approx(0.7554, abs=2e-3)  # the value on the model's own card


@pytest.mark.parametrize("queries", [DEVELOPMENT, HELD_OUT], ids=["development", "held out"])
def test_every_question_finds_its_paper_among_three(encoder, queries: Mapping[str, str]) -> None:
    own = [Entry.of(paper) for paper in papers() if paper.slug in DEVELOPMENT]
    docs = [document(entry) for entry in own]
    index = MeaningIndex(docs, TextIndex(docs), encoder, VectorStore(encoder))
    ranks = []
    for slug, query in queries.items():
        slugs = [hit.entry.slug for hit in search(own, query, len(own), ranker=index)]
        ranks.append(slugs.index(slug) + 1 if slug in slugs else math.inf)
    assert max(ranks) <= 3  # measured: all first; one third of the held-out ones
    assert sum(1 / rank for rank in ranks) / len(ranks) >= 0.94


def test_the_order_of_the_saved_page_is_near(encoder, shared_data: Path) -> None:
    from scipy.stats import spearmanr

    from anabranch.hub import parse_saved_page

    page = parse_saved_page((shared_data / "daily-papers-flow-splitting.txt").read_text())
    docs = [document(entry) for entry in page]
    index = MeaningIndex(docs, TextIndex(docs), encoder, VectorStore(encoder))
    order = [page.index(hit.entry) for hit in search(page, "flow splitting", len(page), ranker=index)]
    order += [i for i in range(len(page)) if i not in order]
    assert len({*order[:10]} & {*range(10)}) >= 7  # measured: 7 and 0.63
    assert spearmanr([order.index(i) for i in range(len(page))], range(len(page))).statistic >= 0.60


def test_without_the_encoder_words_are_searched(home: Path) -> None:
    from anabranch.hub import views

    rows = views.find("Jacobi iterations")
    assert rows[0].entry.slug == "gs-jacobi"


def test_an_interrupted_embedding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.hub.meaning._AT_ONCE", 10)
    texts = ["x" * i for i in range(1, 41)]

    class Tired(Letters):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            if self.calls >= 20:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        VectorStore(Tired(), tmp_path / "kept.sqlite").get(texts)
    rested, told = Letters(), []
    got = VectorStore(rested, tmp_path / "kept.sqlite").get(texts, lambda done, of: told.append((done, of)))
    assert rested.calls == 20
    assert told == [(0, 20), (10, 20), (20, 20)]
    assert np.array_equal(got, rested(texts).astype(np.float16))


def test_the_fast_way_stays_within_its_tolerance_and_ranks_the_same(minilm: Path, encoder) -> None:
    """In bfloat16 where the processor has it; elsewhere both are the same."""
    from anabranch.language import SentenceEmbedder

    own = [Entry.of(paper) for paper in papers() if paper.slug in DEVELOPMENT]
    docs = [document(entry) for entry in own]
    fast = SentenceEmbedder(minilm, fast=True)
    slow_store, fast_store = VectorStore(encoder), VectorStore(fast)
    slow, quick = (MeaningIndex(docs, TextIndex(docs), e, s) for e, s in ((encoder, slow_store), (fast, fast_store)))
    queries = [*DEVELOPMENT.values(), *HELD_OUT.values()]
    asked = np.concatenate([encoder([query]) for query in queries])
    assert np.abs(asked @ (slow._whole - quick._whole).T).max() <= 0.005  # measured: 0.0021
    parts = slow._parts.astype(np.float32) - quick._parts.astype(np.float32)
    assert np.abs(asked @ parts.T).max() <= 0.005
    for slug, query in [*DEVELOPMENT.items(), *HELD_OUT.items()]:
        ranks = [[hit.entry.slug for hit in search(own, query, 3, ranker=index)].index(slug) for index in (slow, quick)]
        assert ranks[0] == ranks[1], query


def test_queries_keep_single_precision(minilm: Path, encoder) -> None:
    from anabranch.language import SentenceEmbedder

    fast = SentenceEmbedder(minilm, fast=True)
    assert np.abs(fast(["rivers that split"]) - encoder(["rivers that split"])).max() <= 1e-6


def test_many_texts_are_embedded_in_a_process_of_their_own(
    minilm: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """With odd ones: lone surrogates cannot be written as UTF-8."""
    from anabranch.hub.embedding_apart import Apart
    from anabranch.hub.meaning import load_embedder, vectors_path
    from anabranch.hub.site import Site

    monkeypatch.setenv("ANABRANCH_DATA", str(minilm.parent))
    told: list[tuple[int, int]] = []
    embedder = load_embedder()
    texts = [*(f"river {i}" for i in range(30)), "河 \ud800"]
    Apart().fill(texts, vectors_path(embedder), lambda done, of: told.append((done, of)))
    assert told == [(0, 31), (31, 31)]
    asleep = Letters()
    kept = VectorStore(asleep, vectors_path(embedder))
    assert kept.missing([*texts, "another", "another"]) == ["another"]
    assert np.abs(kept.get(texts).astype(float) - embedder(texts)).max() <= 0.005
    assert asleep.calls == 0

    site, apart = Site(), []
    monkeypatch.setattr("anabranch.hub.meaning_builder.MANY", 1)
    true = Apart.fill
    monkeypatch.setattr(
        Apart, "fill", lambda self, *given, **more: (apart.append(len(given[0])), true(self, *given, **more))[1]
    )
    site.build_meaning()
    assert apart[0] > 200
    assert site.ranker_name() == "meaning"
    assert site.search("one network path per flow")[0].entry.slug == "flow-splitting"
    assert site.builder.progress is None
    site.close()


def test_threads_that_search_at_once_do_not_take_each_others_queries() -> None:
    """Eight, each with a query of its own; every query is embedded once."""
    rng = np.random.default_rng(2)
    docs = [Document("".join(rng.choice(list("abcdef"), 6)), "Fed bad. Cab dab. Face a bee.") for _ in range(40)]
    queries = ["a bad cab", "dab", "face", "bee", "fed a bee", "cab face", "bad bee", "dab fed"]
    embed = Letters()
    words = _OneAtATime(TextIndex(docs))

    def ask(index: MeaningIndex, query: str) -> tuple[object, list[str]]:
        return dict(index.scores(query)), [index.best_sentence(query, i) for i in range(len(docs))]

    alone = MeaningIndex(docs, words, embed, VectorStore(embed))
    wanted = [ask(alone, query) for query in queries]
    index = MeaningIndex(docs, words, embed, VectorStore(embed))
    before, barrier = embed.calls, threading.Barrier(8)

    def many(query: str) -> list[object]:
        barrier.wait()
        return [ask(index, query) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(many, queries), wanted, strict=True):
            assert all(each == right for each in found)
    assert embed.calls - before == 8


class _OneAtATime:
    def __init__(self, inner: TextIndex) -> None:
        self.inner, self.lock = inner, threading.Lock()

    def scores(self, query: str) -> Mapping[int, float]:
        with self.lock:
            return self.inner.scores(query)


def test_the_latest_queries_are_remembered() -> None:
    embed = Letters()
    remembering = Remembering(embed, most=2)
    for text in ("a", "b", "a", "c", "a", "b"):  # b was the oldest when c came
        assert np.array_equal(remembering.query(text), Letters()([text])[0])
    assert embed.calls == 4


def test_a_failed_build_says_why_and_is_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch.hub.site import Site

    now, tries = [1000.0], []

    def broken(encoder: object) -> object:
        tries.append(1)
        raise sqlite3.OperationalError("disk I/O error") if len(tries) == 1 else RuntimeError("no memory")

    monkeypatch.setattr("anabranch.hub.meaning_builder.has_model", lambda: True)
    monkeypatch.setattr("anabranch.hub.meaning.load_embedder", broken)
    monkeypatch.setattr("anabranch.hub.meaning_builder.time.monotonic", lambda: now[0])
    site = Site()
    for fault in ("OperationalError: disk I/O error", "RuntimeError: no memory"):
        site.build_meaning()
        site.build_meaning()  # not at once
        assert site.builder.fault == fault
        assert not site.known().building
        assert site.search("flow splitting")  # by words
        now[0] += 601
    assert len(tries) == 2
    monkeypatch.setattr("anabranch.hub.meaning.load_embedder", lambda encoder: Letters())
    site.build_meaning()
    assert site.builder.fault == ""
    assert site.ranker_name() == "meaning"
    site.close()


def test_topics_are_judged_by_meaning_from_the_first_issue(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight after the start, with the index still to be built."""
    from anabranch.hub.config import HubConfig
    from anabranch.hub.digest import Digest
    from anabranch.hub.outbox import Outbox
    from anabranch.hub.site import Site
    from anabranch.hub.subscriptions import Subscriptions

    monkeypatch.setattr("anabranch.hub.meaning_builder.has_model", lambda: True)
    monkeypatch.setattr("anabranch.hub.meaning.load_embedder", lambda encoder: Letters())
    monkeypatch.setattr("anabranch.hub.meaning_builder.MANY", 10**9)
    site = Site()
    digest = Digest(site, Subscriptions(site.db, b"s" * 32), Outbox(site.db), HubConfig("http://hub.example"))
    now = datetime(2026, 11, 27, 9, tzinfo=UTC)
    for topic in ("", "rivers"):
        asked = digest.subscriptions.ask("a@b.c", topic=topic, now=now)
        digest.subscriptions.confirm(digest.subscriptions.token(asked, "confirm"))
        digest.queue_due(now)
        assert site.ranker_name() == ("meaning" if topic else "words")
    site.close()
