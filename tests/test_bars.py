"""Bars of ticks in any order equal those of the sorted ticks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import Bar, BarError, ConfigurationError, Tick, bars, bars_to_pandas
from finx_streamer.bars import KEPT, MOST_EMPTY, BarBuilder, parse_interval

#: The beginning of an hour.
START = datetime(2022, 7, 2, 15, tzinfo=UTC)
FIVE = timedelta(seconds=5)
Key = tuple[str, str | None, datetime]


def at(seconds: float) -> datetime:
    """A moment, in seconds after the start."""
    return START + timedelta(seconds=seconds)


def tick(seconds: float, price: Any, exchange: str = "BINANCE", pair: str = "BTC:USDC") -> Tick:
    """A tick of this moment."""
    moment = at(seconds)
    return {
        "pair": pair,
        "date": f"{moment:%Y-%m-%d}",
        "time": f"{moment:%H:%M:%S.%f}Z",
        "exchange": exchange,
        "price": price,
        "timestamp": moment,
        "received_ns": 0,
        "backfilled": False,
    }


def values(bar: Bar) -> tuple[Any, ...]:
    """What a bar says, without its revision."""
    return bar["end"], bar["open"], bar["high"], bar["low"], bar["close"], bar["ticks"]


def shown(found: Iterable[Bar]) -> list[tuple[Any, ...]]:
    """The start in seconds, the four prices, the number of ticks, `final` and `revision` of each bar."""
    names = ("open", "high", "low", "close", "ticks", "final", "revision")
    return [((bar["start"] - START).total_seconds(), *(bar[name] for name in names)) for bar in found]  # type: ignore[literal-required]


def brute_force(ticks: Iterable[Tick], by_exchange: bool, interval: timedelta = FIVE) -> dict[Key, tuple[Any, ...]]:
    """The bars of the ticks, computed from those of each interval in order of time, then of arrival."""
    groups: dict[Key, list[Any]] = {}
    for each in sorted(ticks, key=lambda tick: tick["timestamp"]):
        midnight = each["timestamp"].replace(hour=0, minute=0, second=0, microsecond=0)
        start = midnight + (each["timestamp"] - midnight) // interval * interval
        exchange = each["exchange"] if by_exchange else None
        groups.setdefault((each["pair"], exchange, start), []).append(each["price"])
    return {
        key: (key[2] + interval, prices[0], max(prices), min(prices), prices[-1], len(prices))
        for key, prices in groups.items()
    }


def last_revisions(found: Iterable[Bar]) -> dict[Key, Bar]:
    """The last revision of each bar. Checks that the revisions of each count from 0."""
    last: dict[Key, Bar] = {}
    for bar in found:
        key = bar["pair"], bar["exchange"], bar["start"]
        assert bar["revision"] == (last[key]["revision"] + 1 if key in last else 0)
        last[key] = bar
    return last


PRICES = st.one_of(st.integers(1, 9), st.floats(1, 9), st.decimals(1, 9, allow_nan=False, places=2))
TICKS = st.lists(
    st.builds(
        tick,
        # Many of equal times, and many at the edges of bars.
        st.one_of(st.integers(0, 40), st.floats(0, 60).map(lambda s: round(s, 6))),
        PRICES,
        st.sampled_from(["BINANCE", "KRAKEN"]),
        st.sampled_from(["BTC:USDC", "ETH:USDC"]),
    ),
    max_size=60,
)


@given(
    ticks=TICKS, by_exchange=st.booleans(), empty=st.booleans(), hold=st.sampled_from([0, 1, 7, 100]), data=st.data()
)
def test_ticks_in_any_order(ticks: list[Tick], by_exchange: bool, empty: bool, hold: int, data: st.DataObject) -> None:
    """The last revision of each bar is that of the sorted ticks, however ticks and time are interleaved."""
    builder = BarBuilder(FIVE, by_exchange=by_exchange, empty=empty, hold=timedelta(seconds=hold))
    found: list[Bar] = []
    for each in ticks:
        if data.draw(st.booleans()):
            found += builder.pass_time(at(data.draw(st.integers(0, 60))))
        found += builder.add(each)
    found += builder.finish(at(60))
    last = last_revisions(found)
    assert {key: values(bar) for key, bar in last.items() if bar["ticks"]} == brute_force(ticks, by_exchange)
    assert all(bar["final"] == (bar["end"] <= at(60)) for bar in last.values())
    # Empty bars fill the pauses from the first tick on.
    for series in {key[:2] for key in last}:
        starts = sorted(key[2] for key in last if key[:2] == series)
        assert empty or all(last[*series, start]["ticks"] for start in starts)
        first = next(t for t in ticks if (t["pair"], t["exchange"] if by_exchange else None) == series)["timestamp"]
        later = [start for start in starts if start + FIVE > first]
        assert not empty or later == [later[0] + n * FIVE for n in range(len(later))]
        assert not empty or later[-1] >= at(55)


@given(ticks=TICKS, by_exchange=st.booleans(), lateness=st.sampled_from([0, 0.5, 100]))
def test_bars_of_an_iterable(ticks: list[Tick], by_exchange: bool, lateness: float) -> None:
    """`bars` yields the same, each bar once if no tick is too late, and in order."""
    found = list(bars(iter(ticks), "5s", by_exchange=by_exchange, lateness=lateness))
    last = last_revisions(found)
    assert {key: values(bar) for key, bar in last.items()} == brute_force(ticks, by_exchange)
    newest = max((each["timestamp"] for each in ticks), default=START)
    assert all(bar["final"] == (bar["end"] <= newest) for bar in found if bar["revision"] == 0)
    if lateness == 100:
        assert len(found) == len(last)
        for series in {key[:2] for key in last}:
            starts = [key[2] for key in last if key[:2] == series]
            assert starts == sorted(starts)


@given(ticks=TICKS)
def test_live_and_sorted_ticks_give_the_same_bars(ticks: list[Tick]) -> None:
    """An archive has the ticks in order of time; those of equal times in their order of arrival."""
    live = last_revisions(bars(ticks, "5s", lateness=0))
    archived = last_revisions(bars(sorted(ticks, key=lambda tick: tick["timestamp"]), "5s", lateness=0))
    assert {key: values(bar) for key, bar in live.items()} == {key: values(bar) for key, bar in archived.items()}


def test_a_bar_is_yielded_when_a_tick_of_a_later_interval_arrives() -> None:
    """With `lateness=0`, at once. By default one second later."""
    ticks = [tick(0, 5), tick(1, 7), tick(4.999999, 6), tick(5, 4), tick(6, 3)]
    taken: list[Tick] = []

    def noting() -> Iterable[Tick]:
        for each in ticks:
            taken.append(each)
            yield each

    (first,) = shown([next(bars(noting(), "5s", lateness=0))])
    assert first == (0, 5, 7, 5, 6, 3, True, 0)
    assert len(taken) == 4
    taken.clear()
    assert shown([next(bars(noting(), "5s"))]) == [first]
    assert len(taken) == 5


def test_the_last_bar_is_not_final() -> None:
    """No tick shows that its interval is over."""
    assert shown(bars([tick(0, 1), tick(7, 2)], "5s")) == [(0, 1, 1, 1, 1, 1, True, 0), (5, 2, 2, 2, 2, 1, False, 0)]


def test_the_bar_of_a_quiet_pair_is_final_when_another_pair_is_later() -> None:
    """Time is the same for all pairs."""
    found = list(bars([tick(0, 1), tick(9, 2, pair="ETH:USDC")], "5s"))
    assert [(bar["pair"], bar["final"]) for bar in found] == [("BTC:USDC", True), ("ETH:USDC", False)]


def test_late_and_equal_ticks() -> None:
    """A late tick is the new open if it's earlier than all others, and the new close if it isn't."""
    builder = BarBuilder(FIVE)
    found = [bar for each in (tick(2, 20), tick(3, 30), tick(5, 1)) for bar in builder.add(each)]
    assert shown(found) == [(0, 20, 30, 20, 30, 2, True, 0)]
    assert shown(builder.add(tick(3, 31))) == [(0, 20, 31, 20, 31, 3, True, 1)]
    assert shown(builder.add(tick(2, 21))) == [(0, 20, 31, 20, 31, 4, True, 2)]
    assert shown(builder.add(tick(1, 10))) == [(0, 10, 31, 10, 31, 5, True, 3)]


def test_time_emits_bars_once() -> None:
    """Afterwards, a tick of the same bar changes it."""
    builder = BarBuilder(FIVE)
    assert shown(builder.add(tick(1, 1))) == []
    assert shown(builder.pass_time(at(4.9))) == []
    assert shown(builder.pass_time(at(5))) == [(0, 1, 1, 1, 1, 1, True, 0)]
    assert shown(builder.pass_time(at(12))) == []
    assert shown(builder.add(tick(4, 2))) == [(0, 1, 2, 1, 2, 2, True, 1)]
    # Ticks of a gap, after time has passed: each of their bars comes once.
    assert shown(bar for each in (tick(5, 3), tick(6, 4), tick(11, 5)) for bar in builder.add(each)) == [
        (5, 3, 4, 3, 4, 2, True, 0)
    ]


def test_a_stop_and_a_start_continue_a_bar() -> None:
    """The bar of the stop isn't final, and comes again."""
    builder = BarBuilder(FIVE)
    builder.add(tick(1, 1))
    assert shown(builder.finish(at(2))) == [(0, 1, 1, 1, 1, 1, False, 0)]
    assert shown(builder.finish(at(3))) == []
    builder.add(tick(4, 2))
    assert shown(builder.finish(at(5))) == [(0, 1, 2, 1, 2, 2, True, 1)]


def test_empty_bars() -> None:
    """They fill the pauses between ticks, and a late tick changes them."""
    builder = BarBuilder(FIVE, empty=True)
    builder.add(tick(1, 1))
    assert shown(builder.add(tick(16, 2))) == [
        (0, 1, 1, 1, 1, 1, True, 0),
        (5, None, None, None, None, 0, True, 0),
        (10, None, None, None, None, 0, True, 0),
    ]
    assert shown(builder.add(tick(7, 9))) == [(5, 9, 9, 9, 9, 1, True, 1)]
    assert [bar["ticks"] for bar in builder.pass_time(at(26))] == [1, 0]


def test_a_time_without_a_listener_has_no_empty_bars() -> None:
    """Ticks may have been missed in it. The open bar of the stop still becomes final."""
    builder = BarBuilder(FIVE, empty=True)
    builder.add(tick(1, 1))
    assert shown(builder.finish(at(2))) == [(0, 1, 1, 1, 1, 1, False, 0)]
    assert shown(builder.add(tick(21, 2))) == [(0, 1, 1, 1, 1, 1, True, 1)]
    assert shown(builder.pass_time(at(30))) == [
        (20, 2, 2, 2, 2, 1, True, 0),
        (25, None, None, None, None, 0, True, 0),
    ]


def test_a_wrong_date_makes_no_flood_of_empty_bars() -> None:
    """A pause of years has no empty bars."""
    builder = BarBuilder(FIVE, empty=True)
    builder.add(tick(1, 1))
    assert len(list(builder.add(tick(5.0 * MOST_EMPTY, 2)))) == MOST_EMPTY
    assert len(list(builder.add(tick(1e9, 3)))) == 1


def test_what_is_too_late_is_reported() -> None:
    """The last bars with ticks can change. Memory is bounded by them."""
    ticks = [tick(5.0 * n, n) for n in range(KEPT + 1)]
    builder = BarBuilder(FIVE)
    for each in ticks:
        list(builder.add(each))
    assert shown(builder.add(tick(6, 0))) == [(5, 1, 1, 0, 0, 2, True, 1)]
    with pytest.raises(BarError, match=r"BTC:USDC: the tick of .* came too late: only the last 300 bars") as raised:
        builder.add(tick(4, 0))
    assert raised.value.tick == tick(4, 0)
    with pytest.raises(BarError, match="too late"):
        list(bars([*ticks, tick(4, 0)], "5s"))
    # Before the first bar, too, because room for it would be that of a later one.
    with pytest.raises(BarError, match="too late"):
        builder.add(tick(-100, 0))


@pytest.mark.parametrize("price", ["1.5", b"1", None, float("nan"), Decimal("NaN"), 1j, {"a": 1}])
def test_a_price_without_an_order_is_reported(price: Any) -> None:
    """Text would be compared letter by letter. The tick changes nothing."""
    builder = BarBuilder(FIVE)
    builder.add(tick(0, 1))
    with pytest.raises(BarError, match="can't be compared"):
        builder.add(tick(1, price))
    assert shown(builder.finish(at(5))) == [(0, 1, 1, 1, 1, 1, True, 0)]


def test_prices_of_types_that_do_not_mix_are_reported() -> None:
    """The tick changes nothing."""
    builder = BarBuilder(FIVE)
    builder.add(tick(0, 1))
    with pytest.raises(BarError, match="can't be compared with others"):
        builder.add(tick(1, timedelta(1)))
    assert shown(builder.finish(at(5))) == [(0, 1, 1, 1, 1, 1, True, 0)]


@pytest.mark.parametrize("moment", [datetime(1969, 12, 31, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)])
def test_an_impossible_date_is_reported(moment: datetime) -> None:
    """It has no interval."""
    with pytest.raises(BarError, match="1970"):
        list(bars([{**tick(0, 1), "timestamp": moment}], "1d"))


@pytest.mark.parametrize(
    ("interval", "seconds"), [("1s", 1), ("90s", 90), ("1min", 60), ("15min", 900), ("4h", 14_400), ("1d", 86_400)]
)
def test_intervals(interval: str, seconds: int) -> None:
    """A number and a unit."""
    assert parse_interval(interval) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "interval", ["", "5", "s", "0s", "-5s", "5 s", "5m", "7min", "2d", "1w", "1.5h", "5S", 5, None, "5s\n"]
)
def test_other_intervals_are_refused(interval: Any) -> None:
    """Those that don't divide a day would begin at another time each day."""
    with pytest.raises(
        ConfigurationError, match=r"interval: .* is not allowed; expected a divisor of a day, such as '5s'"
    ):
        bars([], interval)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"ticks": 5}, "ticks: int is not iterable"),
        ({"by_exchange": 1}, "by_exchange"),
        ({"empty": None}, "empty"),
        ({"lateness": -1}, "lateness"),
        ({"lateness": 1e9}, "lateness"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    """They are refused at once."""
    with pytest.raises(ConfigurationError, match=text):
        bars(**{"ticks": [], "interval": "5s"} | arguments)


@pytest.mark.parametrize("wrong", [5, {}, {**tick(0, 1), "timestamp": datetime(2022, 7, 2)}])
def test_what_is_no_tick_is_refused(wrong: Any) -> None:
    """The error says what is expected."""
    with pytest.raises(ConfigurationError, match="expected tick dicts"):
        list(bars([tick(0, 1), wrong], "5s"))


# Tables.

PANDAS = {
    "start": "datetime64[us, UTC]",
    "end": "datetime64[us, UTC]",
    "pair": "category",
    "exchange": "category",
    "open": "float64",
    "high": "float64",
    "low": "float64",
    "close": "float64",
    "ticks": "int64",
    "final": "bool",
    "revision": "int64",
}


@pytest.mark.parametrize("ticks", [[tick(0, 1.5), tick(12, 2)], []], ids=["some", "none"])
def test_a_table_of_bars(ticks: list[Tick]) -> None:
    """The columns have the documented types, also without bars. Empty bars have NaN."""
    frame = bars_to_pandas(bars(ticks, "5s", empty=True))
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == PANDAS
    assert frame["open"].isna().tolist() == [False, True, False][: 3 if ticks else 0]
    assert frame["exchange"].isna().all()


def test_decimals_stay_decimals() -> None:
    """An empty bar has None."""
    frame = bars_to_pandas(bars([tick(0, Decimal("1.50")), tick(12, Decimal(2))], "5s", by_exchange=True, empty=True))
    assert frame["close"].tolist() == [Decimal("1.50"), None, Decimal(2)]
    assert frame["exchange"].tolist() == ["BINANCE"] * 3
    assert frame["start"].tolist() == [pd.Timestamp(at(s)) for s in (0, 5, 10)]


@pytest.mark.parametrize("wrong", [5, [5], [{"pair": "BTC:USDC"}]])
def test_what_is_no_bar_is_refused(wrong: Any) -> None:
    """The error says what is expected."""
    with pytest.raises(ConfigurationError, match=r"bars: .*; expected bar dicts"):
        bars_to_pandas(wrong)
