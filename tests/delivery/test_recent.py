"""The ticks that were received last."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConfigurationError, StreamListener, Tick
from finx_streamer.delivery.recent import Recent
from tests.support.peers import PAIR, Peer, Seen, stay, ticks

PAIRS = ("BTC:USDC", "ETH:USDC")
runs = st.lists(st.tuples(st.sampled_from(PAIRS), st.integers(1, 9)), max_size=30)


def made(shape: list[tuple[str, int]]) -> list[list[Tick]]:
    """Runs of numbered ticks, each of one pair."""
    numbers = iter(range(1_000))
    return [[a_tick(pair, next(numbers)) for _ in range(length)] for pair, length in shape]


def a_tick(pair: str, price: int) -> Tick:
    moment = datetime(2022, 7, 2, 15, 30, tzinfo=UTC)
    return {
        "pair": pair,
        "date": "2022-07-02",
        "time": "15:30:00.0Z",
        "exchange": "BINANCE",
        "price": price,
        "timestamp": moment,
        "received_ns": 0,
        "backfilled": False,
    }


@pytest.mark.parametrize("change", [dict.clear, lambda tick: tick.pop("timestamp"), lambda tick: tick.pop("pair")])
def test_what_a_callback_made_of_a_tick_is_no_tick_any_more(change: Callable[[Any], object]) -> None:
    """It is left out: tables and pictures are made of whole ticks."""
    recent = Recent(10)
    run = [a_tick(PAIR, number) for number in range(3)]
    recent.extend(run)
    change(run[1])
    assert [tick["price"] for tick in recent.last(10)] == [0, 2]
    assert [tick["price"] for tick in recent.last(10, PAIR)] == [0, 2]
    assert ([tick["price"] for tick in recent.since(0, 10)[0]], recent.total) == ([0, 2], 3)


@given(runs, st.integers(1, 20), st.integers(0, 25), st.sampled_from([None, *PAIRS]))
def test_the_last_ones_are_those_that_came_last(
    shape: list[tuple[str, int]], size: int, count: int, pair: str | None
) -> None:
    """Whatever runs they came in: of the last `size` ticks, the last `count` of the pair, oldest first."""
    recent = Recent(size)
    everything: list[Tick] = []
    for run in made(shape):
        recent.extend(run)
        everything += run
    kept = [tick for tick in everything[-size:] if pair in (None, tick["pair"])]
    assert kept[max(0, len(kept) - count) :] == recent.last(count, pair)


@given(runs, st.integers(1, 20), st.integers(1, 12))
def test_who_asks_again_and_again_gets_each_tick_once(shape: list[tuple[str, int]], size: int, limit: int) -> None:
    """In order; of more than the limit between two questions, the last."""
    recent = Recent(size)
    position = 0
    for run in made(shape):
        recent.extend(run)
        found, position = recent.since(position, limit)
        assert run[-limit:] == found
        assert ([], position) == recent.since(position, limit)


@given(runs)
def test_memory_is_bounded_by_the_size_and_one_run(shape: list[tuple[str, int]]) -> None:
    """A run goes when those behind it are enough."""
    recent = Recent(10)
    for run in made(shape):
        recent.extend(run)
    assert sum(len(run) for _, run in recent._runs) < 10 + 9


def test_a_listener_remembers(seen: Seen, dispatch: str) -> None:
    """The last ticks of all pairs or of one, and over its end."""
    with Peer(stay(ticks(1, 50))) as peer, seen.listener(peer.url, dispatch=dispatch, keep=20) as listener:
        seen.wait_ticks(50)
    assert list(range(31, 51)) == [tick["price"] for tick in listener.recent()]
    assert [tick["price"] for tick in listener.recent(2, PAIR)] == [49, 50]
    assert listener.recent(0) == []
    assert listener.recent(pair="ETH:USDC") == []


def test_tables_of_what_is_remembered(seen: Seen) -> None:
    """`to_pandas` and `to_polars` have the rows of `recent`."""
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    with Peer(stay(ticks(1, 50))) as peer, seen.listener(peer.url) as listener:
        seen.wait_ticks(50)
    assert [float(n) for n in range(41, 51)] == listener.to_pandas(10)["price"].tolist()
    assert listener.to_polars(1, PAIR)["price"].to_list() == [50.0]


def test_nothing_is_remembered_where_that_is_wanted() -> None:
    """And who asks is told what to change."""
    listener = StreamListener(PAIR, keep=0)
    for ask in (listener.recent, listener.to_pandas, listener.to_polars, listener.live):
        with pytest.raises(ConfigurationError, match=r"\(\): with keep=0 no tick is kept"):
            ask()


@pytest.mark.parametrize("value", [-1, 1.5, True, "10"])
def test_a_wrong_keep_is_refused(value: Any) -> None:
    """At once, and with what is allowed."""
    with pytest.raises(ConfigurationError, match=r"^keep: "):
        StreamListener(PAIR, keep=value)


@pytest.mark.parametrize("value", [-1, 1.5, True, "10"])
def test_a_wrong_number_is_refused(value: Any) -> None:
    """At once, and with what is allowed."""
    with pytest.raises(ConfigurationError, match=r"^n: "):
        StreamListener(PAIR).recent(value)


@pytest.mark.parametrize("value", [0.5, 31, "15", True, None])
def test_a_wrong_rate_is_refused(value: Any) -> None:
    """At once, and with what is allowed."""
    with pytest.raises(ConfigurationError, match=r"^rate: "):
        StreamListener(PAIR).live(rate=value)
