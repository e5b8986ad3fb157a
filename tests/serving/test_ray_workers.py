"""Messages to actors of Ray, whose calls run side by side."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from anabranch.serving._ray_workers import InOrder


def test_messages_are_given_on_by_their_numbers() -> None:
    for order in itertools.permutations(range(5)):
        given: list[Any] = []
        numbered = InOrder(given.append)
        for number in order:
            numbered.put(number, ("message", number))
            assert given == [("message", i) for i in range(len(given))]
            assert len(given) == next(i for i in range(6) if i not in order[: order.index(number) + 1])
        assert len(given) == 5


def test_threads_may_bring_them() -> None:
    given: list[Any] = []
    numbered = InOrder(given.append)
    threads = [
        threading.Thread(target=lambda first=first: [numbered.put(i, ("message", i)) for i in range(first, 400, 8)])
        for first in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == [("message", i) for i in range(400)]
