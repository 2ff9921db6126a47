"""Counting: by many threads at once, with looks between, and from the start again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from qwen_mfa.tally import Tally


def test_looking_does_not_count() -> None:
    tally = Tally()
    assert tally.read() == 0
    for number in range(1, 5):
        tally.add()
        assert [tally.read(), tally.read()] == [number, number]


def test_it_begins_anew() -> None:
    tally = Tally()
    for number in (3, 0, 5):
        for _ in range(number):
            tally.add()
        assert tally.read() == number
        tally.clear()
        assert tally.read() == 0


def test_no_thread_loses_a_count() -> None:
    tally = Tally()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [tally.add() for _ in range(20_000)], range(8)))
    assert tally.read() == 160_000
