"""The buffer of recent ticks, and what a listener makes of it."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConfigurationError, StreamListener, Tick
from finx_streamer.delivery.recent import _CHUNK, Recent
from tests.support.peers import PAIR, Peer, Seen, stay, ticks

PAIRS = ("BTC:USDC", "ETH:USDC")
shapes = st.lists(st.tuples(st.sampled_from(PAIRS), st.integers(1, 9)), max_size=30)


def batches(shape: list[tuple[str, int]]) -> list[list[Tick]]:
    """Batches of numbered ticks, each of one pair."""
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
def test_ticks_that_a_callback_damaged_are_left_out(change: Callable[[Any], object]) -> None:
    """Tables and views need every field of a tick."""
    recent = Recent(10)
    batch = [a_tick(PAIR, number) for number in range(3)]
    recent.extend(batch)
    change(batch[1])
    assert [tick["price"] for tick in recent.last(10)] == [0, 2]
    assert [tick["price"] for tick in recent.last(10, PAIR)] == [0, 2]
    assert ([tick["price"] for tick in recent.since(0, 10)[0]], recent.total) == ([0, 2], 3)


@given(shapes, st.integers(1, 20), st.integers(0, 25), st.sampled_from([None, *PAIRS]))
def test_last_returns_the_newest_ticks(shape: list[tuple[str, int]], size: int, count: int, pair: str | None) -> None:
    """The batches don't matter: it returns the last `count` ticks of the pair among the last `size`, oldest first."""
    recent = Recent(size)
    everything: list[Tick] = []
    for batch in batches(shape):
        recent.extend(batch)
        everything += batch
    kept = [tick for tick in everything[-size:] if pair in (None, tick["pair"])]
    assert recent.last(count, pair) == kept[max(0, len(kept) - count) :]


@given(shapes, st.integers(1, 20), st.integers(1, 12))
def test_repeated_calls_of_since_return_each_tick_once(shape: list[tuple[str, int]], size: int, limit: int) -> None:
    """Ticks come in order, and only the last `limit` of those added between two calls."""
    recent = Recent(size)
    position = 0
    for batch in batches(shape):
        recent.extend(batch)
        found, position = recent.since(position, limit)
        assert found == batch[-limit:]
        assert recent.since(position, limit) == ([], position)


@given(st.lists(st.one_of(st.integers(1, 3), st.integers(_CHUNK - 2, 3 * _CHUNK)), max_size=40), st.integers(1, 1_000))
def test_chunks_hold_the_last_ticks_and_little_else(lengths: list[int], size: int) -> None:
    """Single ticks, short batches and long ones are kept in order, and removed once later ones are enough."""
    recent = Recent(size)
    everything: list[Tick] = []
    one = a_tick(PAIR, 0)
    position = 0
    for length in lengths:
        # Equal ticks, except for their price.
        batch: list[Tick] = [{**one, "price": len(everything) + number} for number in range(length)]
        everything += batch
        if length == 1:
            recent.append(batch[0])
        else:
            recent.extend(batch)
        assert recent.total == len(everything)
        found, position = recent.since(position, 1_000_000)
        assert (found, position) == (batch, len(everything))
        assert recent.last(size) == everything[-size:]
    stored = sum(map(len, recent._published[1]))
    assert stored <= size + max(lengths, default=0) + 2 * _CHUNK


def test_ticks_and_their_count_belong_together_at_any_moment() -> None:
    """A thread that reads during writes sees each tick once and in order, with the position that belongs to it."""
    recent, size, count = Recent(500), 500, 60_000
    everything = [a_tick(PAIR, number) for number in range(count)]
    done = threading.Event()
    faults: list[object] = []

    def read() -> None:
        position, ended = 0, False
        while not ended and not faults:
            ended = done.is_set()
            total = recent.total
            last = [tick["price"] for tick in recent.last(size)]
            found, end = recent.since(position, count)
            prices = [tick["price"] for tick in found]
            # All that came since, or at least the last `size` of it, up to the position.
            if prices != list(range(end - len(prices), end)) or len(prices) < min(size, end - position) or end < total:
                faults.append((position, end, total, prices[:1], prices[-1:]))
            if last and (last != list(range(last[0], last[-1] + 1)) or last[-1] >= end or len(last) > size):
                faults.append((last[0], last[-1], end))
            position = end
        if position != count:
            faults.append(position)

    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reader.start()
        at = 0
        for length in itertools.cycle([1, 1, 2, 1, 200, 1, 1, 1, 7]):
            if length == 1:
                recent.append(everything[at])
            else:
                recent.extend(everything[at : at + length])
            at += length
            if at >= count:
                break
        done.set()
        reader.join()
    finally:
        sys.setswitchinterval(interval)
    assert not faults


def test_a_listener_keeps_recent_ticks(seen: Seen, dispatch: str) -> None:
    """It keeps the last ticks of all pairs or of one, even after it has ended."""
    with Peer(stay(ticks(1, 50))) as peer, seen.listener(peer.url, dispatch=dispatch, keep=20) as listener:
        seen.wait_ticks(50)
    assert [tick["price"] for tick in listener.recent()] == list(range(31, 51))
    assert [tick["price"] for tick in listener.recent(2, PAIR)] == [49, 50]
    assert listener.recent(0) == []
    assert listener.recent(pair="ETH:USDC") == []


def test_tables_of_recent_ticks(seen: Seen) -> None:
    """`to_pandas` and `to_polars` have the same rows as `recent`."""
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    with Peer(stay(ticks(1, 50))) as peer, seen.listener(peer.url) as listener:
        seen.wait_ticks(50)
    assert listener.to_pandas(10)["price"].tolist() == [float(n) for n in range(41, 51)]
    assert listener.to_polars(1, PAIR)["price"].to_list() == [50.0]


def test_keep_zero_keeps_no_ticks() -> None:
    """Methods that need recent ticks say what to change."""
    listener = StreamListener(PAIR, keep=0)
    for ask in (listener.recent, listener.to_pandas, listener.to_polars, listener.live):
        with pytest.raises(ConfigurationError, match=r"\(\): the listener keeps no ticks"):
            ask()


@pytest.mark.parametrize("value", [-1, 1.5, True, "10"])
def test_rejects_an_invalid_keep(value: Any) -> None:
    """The constructor raises, and the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^keep: "):
        StreamListener(PAIR, keep=value)


@pytest.mark.parametrize("value", [-1, 1.5, True, "10"])
def test_rejects_an_invalid_number_of_ticks(value: Any) -> None:
    """`recent` raises, and the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^n: "):
        StreamListener(PAIR).recent(value)


@pytest.mark.parametrize("value", [0.5, 31, "15", True, None])
def test_rejects_an_invalid_rate(value: Any) -> None:
    """`live` raises, and the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^rate: "):
        StreamListener(PAIR).live(rate=value)


@pytest.mark.parametrize("value", ["", "5", "7min", 5])
def test_rejects_an_invalid_interval(value: Any) -> None:
    """`live` raises, and the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^bars: "):
        StreamListener(PAIR).live(bars=value)
