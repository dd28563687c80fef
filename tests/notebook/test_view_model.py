"""The state of a live view, for any number of ticks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from queue import Queue
from typing import Any

import pytest

from finx_streamer import StreamListener, Tick
from finx_streamer.delivery.recent import Recent
from finx_streamer.notebook.candles import CANDLES_KEPT
from finx_streamer.notebook.view_model import CHARTS, ROWS, Chart, ViewModel, first_charted
from finx_streamer.server import LocalServer
from tests.support.contracts import CALL, MONTH, PERPETUAL, PUT, played_by_hand, ticker
from tests.support.peers import PATIENCE

PAIR, OTHER = "BTC:USDC", "ETH:USDC"
SECOND = 1_000_000_000


def a_tick(
    price: Any,
    received_ns: int,
    pair: str = PAIR,
    exchange: str = "BINANCE",
    timestamp: datetime = datetime(2022, 7, 2, 15, 30, tzinfo=UTC),
) -> Tick:
    return {
        "pair": pair,
        "date": "2022-07-02",
        "time": "15:30:00.0Z",
        "exchange": exchange,
        "price": price,
        "timestamp": timestamp,
        "received_ns": received_ns,
        "backfilled": False,
    }


class Stage:
    """The view model of a listener that isn't running, and a way to add ticks."""

    def __init__(self, *charts: str) -> None:
        self.listener = StreamListener(PAIR, OTHER)
        self.recent = Recent(20_000)
        self.view_model = ViewModel(self.listener, self.recent, charts)
        self.now = 0

    def tick(self, price: Any, pair: str = PAIR, exchange: str = "BINANCE", after: float = 0.1) -> None:
        self.now += int(after * SECOND)
        self.recent.extend([a_tick(price, self.now, pair, exchange)])
        self.view_model.update()


@pytest.fixture
def stage() -> Stage:
    return Stage(PAIR)


def test_a_frame_has_the_changes_since_the_last_one(stage: Stage) -> None:
    """Only the last price of each stream counts."""
    stage.view_model.full()
    for price in (1.0, 2.0, 3.5):
        stage.tick(price)
    frame = stage.view_model.frame()
    assert frame is not None
    assert frame["rows"] == {0: ["3.5", 3.5, "BINANCE", stage.now / 1e9, 1]}
    assert frame["points"] == {PAIR: {"exchanges": ["BINANCE"], "digits": 1, "y": {0: 3.5}}}


def test_without_changes_there_is_no_frame(stage: Stage) -> None:
    """There is nothing to send."""
    stage.tick(1.0)
    stage.view_model.full()
    assert stage.view_model.frame() is None


def test_the_full_state_has_the_history_of_its_charts(stage: Stage) -> None:
    """Each exchange has a line over a common time axis, with None where it had no price."""
    stage.tick(1.0)
    stage.tick(5.0, exchange="KRAKEN", after=1.0)
    stage.tick(2.0, after=1.0)
    full = stage.view_model.full()
    chart = full["charts"][PAIR]
    assert (chart["exchanges"], chart["x"]) == (["BINANCE", "KRAKEN"], [0.1, 1.1, 2.1])
    assert chart["y"] == [[1.0, None, 2.0], [None, 5.0, None]]
    assert full["sparks"] == [[1.0, 5.0, 2.0], []]
    json.dumps(full, allow_nan=False)


def test_a_chart_chosen_later_has_a_history(stage: Stage) -> None:
    """It is made of the listener's recent ticks."""
    for price in (1.0, 2.0):
        stage.tick(price, pair=OTHER, after=1.0)
    stage.view_model.choose([OTHER])
    assert stage.view_model.full()["charts"][OTHER]["y"] == [[1.0, 2.0]]
    assert stage.view_model.charts == (OTHER,)


def test_a_choice_sends_only_the_new_charts(stage: Stage) -> None:
    """The charts that remain aren't loaded again, and no point is sent twice."""
    stage.tick(1.0)
    stage.tick(2.0, pair=OTHER)
    stage.view_model.full()
    stage.tick(1.5)
    stage.view_model.choose([PAIR, OTHER])
    stage.tick(2.5, pair=OTHER)
    frame = stage.view_model.frame()
    assert frame is not None
    assert (frame["kind"], frame["pairs"]) == ("frame", [PAIR, OTHER])
    assert {pair: chart["y"] for pair, chart in frame["new_charts"].items()} == {OTHER: [[2.5]]}
    assert list(frame["points"]) == [PAIR]
    stage.view_model.choose([OTHER])
    frame = stage.view_model.frame()
    assert frame is not None
    assert (frame["pairs"], frame["new_charts"]) == ([OTHER], {})
    assert stage.view_model.frame() is None


def test_all_prices_of_a_pair_have_the_same_decimals(stage: Stage) -> None:
    """Their number never decreases, and it includes the history of a chart."""
    shown = []
    for price in (9_750_000, 9_750_000.25, 9_750_001.0):
        stage.tick(price)
        shown.append(stage.view_model.full()["rows"][0][0])
    assert shown == ["9,750,000", "9,750,000.25", "9,750,001.00"]
    assert stage.view_model.full()["charts"][PAIR]["digits"] == 2
    assert stage.view_model.digits() == {PAIR: 2}


def test_candles() -> None:
    """The full state has the bars of the recent ticks. Frames have those that changed, whenever their ticks come."""
    recent = Recent(20_000)
    start = datetime(2022, 7, 2, 15, 30, tzinfo=UTC)

    def put(*ticks: tuple[float, float]) -> None:
        recent.extend([a_tick(price, SECOND, timestamp=start + timedelta(seconds=at)) for at, price in ticks])

    put((1, 10.0), (2, 12.25), (6, 11.0))
    view_model = ViewModel(StreamListener(PAIR, PERPETUAL), recent, [PAIR, PERPETUAL], timedelta(seconds=5))
    view_model.update()
    begin = start.timestamp()
    charts = view_model.full()["charts"]
    assert charts[PAIR] == {
        "seconds": 5.0,
        "candles": [[begin, 10.0, 12.25, 10.0, 12.25], [begin + 5, 11.0, 11.0, 11.0, 11.0]],
        "digits": 2,
    }
    assert charts[PERPETUAL]["y"] == []
    put((7, 9.0), (3, 13.0))
    view_model.update()
    frame = view_model.frame()
    assert frame is not None
    assert frame["points"][PAIR]["candles"] == [[begin, 10.0, 13.0, 10.0, 13.0], [begin + 5, 11.0, 11.0, 9.0, 9.0]]
    # All ticks count, and only the last candles are kept.
    put(*((n, float(n)) for n in range(5 * (CANDLES_KEPT + 1))))
    view_model.update()
    candles = view_model.full()["charts"][PAIR]["candles"]
    assert len(candles) == CANDLES_KEPT
    last = 5.0 * CANDLES_KEPT
    assert candles[-1] == [begin + last, last, last + 4, last, last + 4]
    put((0, 1.0), (10, float("nan")))
    view_model.update()
    assert (view_model.frame() or {"points": {}})["points"] == {}


def test_ignores_pairs_that_can_not_be_charted(stage: Stage) -> None:
    """Unknown pairs, duplicates and too many pairs are left out."""
    stage.view_model.choose(["XXX:YYY", PAIR, PAIR])
    assert stage.view_model.charts == (PAIR,)
    stage.listener.add(*(f"A{n}:USDC" for n in range(9)))
    stage.view_model.choose(stage.listener.symbols)
    assert len(stage.view_model.charts) == CHARTS


@pytest.mark.parametrize("price", ["one", None, float("nan"), float("inf"), 10**400, object()])
def test_prices_that_are_not_numbers_are_shown_but_not_drawn(stage: Stage, price: Any) -> None:
    """`parse_price` may return any type."""
    stage.tick(1.0)
    stage.tick(price)
    full = stage.view_model.full()
    assert full["charts"][PAIR]["y"] == [[1.0]]
    assert full["rows"][0][0] != "1"
    json.dumps(full, allow_nan=False)


def test_a_change_of_symbols_causes_a_full_state(stage: Stage) -> None:
    """The page must rebuild its rows."""
    stage.view_model.full()
    stage.listener.add("SOL:USDC")
    frame = stage.view_model.frame()
    assert frame is not None
    assert (frame["kind"], frame["symbols"]) == ("full", [PAIR, OTHER, "SOL:USDC"])


def test_shows_a_limited_number_of_streams() -> None:
    """For the others, the state has only their number."""
    listener = StreamListener(*(f"A{number}:USDC" for number in range(ROWS + 7)))
    full = ViewModel(listener, Recent(1), []).full()
    assert (len(full["rows"]), len(full["streams"]), full["more"]) == (ROWS, ROWS, 7)


def test_memory_is_bounded(stage: Stage) -> None:
    """Neither time nor the number of exchanges makes it grow beyond its limits."""
    chart = Chart()
    for number in range(5_000):
        chart.add(float(number), datetime.now(UTC), f"E{number % 50}", 1.0)
    full = chart.full()
    assert len(full["x"]) <= 1_200
    assert len(full["exchanges"]) <= 12
    for number in range(200):
        stage.tick(float(number), after=1.0)
    assert len(stage.view_model.full()["sparks"][0]) == 60


def test_only_the_end_of_a_burst_is_processed(stage: Stage) -> None:
    """The last price is right all the same."""
    stage.view_model.full()
    stage.recent.extend([a_tick(float(n), n, exchange="X") for n in range(50_000)])
    stage.view_model.update()
    frame = stage.view_model.frame()
    assert frame is not None
    assert frame["rows"][0][0] == "49,999"


class OptionStage:
    """The view model of a listener to a month of options and a perpetual, and a market that the test plays."""

    def __init__(self, server: LocalServer, listener: StreamListener) -> None:
        self.server, self.listener = server, listener
        self.view_model = ViewModel(listener, Recent(9), [PERPETUAL])
        self.received: Queue[str] = Queue()
        listener.on_greeks(lambda greeks: self.received.put(greeks["instrument"]))

    def play(self, name: str, **values: str) -> None:
        """Send a ticker of a contract, wait until the listener has it, and update the view model."""
        self.server.emit(ticker(name, **values))
        assert self.received.get(timeout=PATIENCE) == name
        self.view_model.update()


@pytest.fixture
def options() -> Iterator[OptionStage]:
    market = played_by_hand(CALL, PUT, PERPETUAL)
    with (
        LocalServer(market, keys={"demo"}) as server,
        StreamListener(MONTH, PERPETUAL, endpoint=server.url, api_key="demo") as listener,
    ):
        stage = OptionStage(server, listener)
        server.wait_connected(2)
        yield stage


def test_a_month_has_a_row_without_a_price(options: OptionStage) -> None:
    """A perpetual has its mark price, and may have a chart."""
    options.view_model.full()
    options.play(CALL, mark_price="0.155")
    options.play(PERPETUAL, mark_price="23200.5")
    frame = options.view_model.frame()
    assert frame is not None
    rows = {i: row[:3] for i, row in frame["rows"].items()}
    assert rows == {0: ["-", None, "DERIBIT"], 1: ["23,200.5", 23200.5, "DERIBIT"]}
    assert frame["points"] == {PERPETUAL: {"exchanges": ["DERIBIT"], "digits": 1, "y": {0: 23200.5}}}
    assert options.view_model.full()["uncharted"] == [0]


def test_options_have_no_chart(options: OptionStage) -> None:
    """By default, the first pair, future or perpetual has one."""
    options.view_model.choose([MONTH, PERPETUAL])
    assert options.view_model.charts == (PERPETUAL,)
    assert first_charted(options.listener.symbols) == [PERPETUAL]
    assert first_charted([MONTH]) == []


def test_a_single_option_has_a_row_and_a_chain(options: OptionStage) -> None:
    """Its Greeks may come with its month, too."""
    options.listener.add(CALL)
    options.server.wait_connected(3)
    options.server.emit(ticker(CALL, mark_price="0.155"))
    for _ in range(2):
        assert options.received.get(timeout=PATIENCE) == CALL
    options.view_model.update()
    full = options.view_model.full()
    assert (full["symbols"], full["rows"][2][0]) == ([MONTH, PERPETUAL, CALL], "0.155")
    assert full["options"]["chosen"] == "BTC-26AUG22"


def test_the_chain_comes_with_the_full_state_and_with_frames(options: OptionStage) -> None:
    """Also when it was empty before."""
    assert options.view_model.full()["options"] == {"expiries": []}
    options.play(CALL, mark_iv="72.12")
    frame = options.view_model.frame()
    assert frame is not None
    assert frame["options"]["rows"] == {0: [72.12, *[None] * 7]}
    options.play(PUT, mark_iv="72.5")
    assert options.view_model.full()["options"]["rows"] == {0: [72.12, *[None] * 6, 72.5]}
    assert options.view_model.expiry == "BTC-26AUG22"


def test_a_listener_with_only_pairs_has_no_options(stage: Stage) -> None:
    """Neither the full state nor a frame mentions them. Options that are added later appear."""
    full = stage.view_model.full()
    assert ("options" in full, full["uncharted"]) == (False, [])
    stage.tick(1.0)
    frame = stage.view_model.frame()
    assert frame is not None
    assert "options" not in frame
    stage.listener.add(MONTH)
    frame = stage.view_model.frame()
    assert frame is not None
    assert frame["options"] == {"expiries": []}
