"""What the live view shows, of any number of ticks."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from finx_streamer import StreamListener, Tick
from finx_streamer.delivery.recent import Recent
from finx_streamer.notebook.view_model import CHARTS, ROWS, Chart, ViewModel

PAIR, OTHER = "BTC:USDC", "ETH:USDC"
SECOND = 1_000_000_000


def a_tick(price: Any, received_ns: int, pair: str = PAIR, exchange: str = "BINANCE") -> Tick:
    return {
        "pair": pair,
        "date": "2022-07-02",
        "time": "15:30:00.0Z",
        "exchange": exchange,
        "price": price,
        "timestamp": datetime(2022, 7, 2, 15, 30, tzinfo=UTC),
        "received_ns": received_ns,
        "backfilled": False,
    }


class Stage:
    """A picture of a listener that does not run, and ticks from nowhere."""

    def __init__(self, *charts: str) -> None:
        self.listener = StreamListener(PAIR, OTHER)
        self.recent = Recent(20_000)
        self.picture = ViewModel(self.listener, self.recent, charts)
        self.now = 0

    def tick(self, price: Any, pair: str = PAIR, exchange: str = "BINANCE", after: float = 0.1) -> None:
        self.now += int(after * SECOND)
        made = a_tick(price, self.now, pair, exchange)
        self.recent.extend([made])
        self.picture.look()


@pytest.fixture
def stage() -> Stage:
    return Stage(PAIR)


def test_a_frame_tells_what_has_changed_since_the_last(stage: Stage) -> None:
    """Whatever came in between counts for nothing: the last price does."""
    stage.picture.full()
    for price in (1.0, 2.0, 3.5):
        stage.tick(price)
    frame = stage.picture.frame()
    assert frame is not None
    assert {0: ["3.5", "BINANCE", stage.now / 1e9, 1]} == frame["rows"]
    assert frame["points"] == {PAIR: {"exchanges": ["BINANCE"], "y": {0: 3.5}}}


def test_no_change_no_frame(stage: Stage) -> None:
    """There is nothing to send then."""
    stage.tick(1.0)
    stage.picture.full()
    assert stage.picture.frame() is None


def test_the_full_picture_has_the_history_of_its_charts(stage: Stage) -> None:
    """A line for each exchange over a common time, and gaps where one had no price."""
    stage.tick(1.0)
    stage.tick(5.0, exchange="KRAKEN", after=1.0)
    stage.tick(2.0, after=1.0)
    full = stage.picture.full()
    chart = full["charts"][PAIR]
    assert (chart["exchanges"], chart["x"]) == (["BINANCE", "KRAKEN"], [0.1, 1.1, 2.1])
    assert chart["y"] == [[1.0, None, 2.0], [None, 5.0, None]]
    assert full["sparks"] == [[1.0, 5.0, 2.0], []]
    json.dumps(full, allow_nan=False)


def test_a_chart_that_is_chosen_later_has_a_past(stage: Stage) -> None:
    """As far as the listener remembers."""
    for price in (1.0, 2.0):
        stage.tick(price, pair=OTHER, after=1.0)
    stage.picture.choose([OTHER])
    assert stage.picture.full()["charts"][OTHER]["y"] == [[1.0, 2.0]]
    assert stage.picture.charts == (OTHER,)


def test_what_can_not_be_charted_is_left_out(stage: Stage) -> None:
    """A pair that is not listened to; the same twice; more than can be looked at."""
    stage.picture.choose(["XXX:YYY", PAIR, PAIR])
    assert stage.picture.charts == (PAIR,)
    stage.listener.add(*(f"A{n}:USDC" for n in range(9)))
    stage.picture.choose(stage.listener.symbols)
    assert len(stage.picture.charts) == CHARTS


@pytest.mark.parametrize("price", ["one", None, float("nan"), float("inf"), 10**400, object()])
def test_prices_that_are_no_numbers_are_shown_and_not_drawn(stage: Stage, price: Any) -> None:
    """`parse_price` may make anything."""
    stage.tick(1.0)
    stage.tick(price)
    full = stage.picture.full()
    assert full["charts"][PAIR]["y"] == [[1.0]]
    assert full["rows"][0][0] != "1"
    json.dumps(full, allow_nan=False)


def test_symbols_that_come_and_go_make_a_full_picture(stage: Stage) -> None:
    """A page has to make its rows anew."""
    stage.picture.full()
    stage.listener.add("SOL:USDC")
    frame = stage.picture.frame()
    assert frame is not None
    assert (frame["kind"], frame["symbols"]) == ("full", [PAIR, OTHER, "SOL:USDC"])


def test_of_very_many_streams_the_first_are_shown() -> None:
    """And how many more there are."""
    listener = StreamListener(*(f"A{number}:USDC" for number in range(ROWS + 7)))
    full = ViewModel(listener, Recent(1), []).full()
    assert (len(full["rows"]), len(full["streams"]), full["more"]) == (ROWS, ROWS, 7)


def test_memory_is_bounded(stage: Stage) -> None:
    """However long it goes on, and however many exchanges there are."""
    chart = Chart()
    for number in range(5_000):
        chart.add(float(number), f"E{number % 50}", 1.0)
    full = chart.full()
    assert len(full["x"]) <= 1_200
    assert len(full["exchanges"]) <= 12
    for number in range(200):
        stage.tick(float(number), after=1.0)
    assert len(stage.picture.full()["sparks"][0]) == 60


def test_a_burst_between_two_frames_costs_no_more_than_its_end(stage: Stage) -> None:
    """The last ticks are looked at, and the last price is right."""
    stage.picture.full()
    stage.recent.extend([a_tick(float(n), n, exchange="X") for n in range(50_000)])
    stage.picture.look()
    frame = stage.picture.frame()
    assert frame is not None
    assert frame["rows"][0][0] == "49999"
