"""`on_bar`: bars of live ticks, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finx_streamer import Bar, BarError, CallbackError, ConfigurationError, StreamListener, Tick, bars
from finx_streamer.delivery.bar_feed import BarRequest, BarTimer
from finx_streamer.server import LocalServer
from finx_streamer.values import NEVER, Event, TimePassed
from tests.support.market import BEGIN, Market, begin, outage, send
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, frame, stay
from tests.support.peers import tick as tick_frame


class SeenBars(Seen):
    """Records bars, too."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[Bar] = []
        #: The prices of ticks and the bars, in the order in which callbacks got them.
        self.order: list[Any] = []

    def on_tick(self, tick: Tick) -> None:
        self.order.append(tick["price"])
        super().on_tick(tick)

    def on_bar(self, bar: Bar) -> None:
        self.order.append((bar["start"].second, bar["ticks"], bar["revision"]))
        self._keep(self.bars, bar)

    def wait_bars(self, count: int) -> None:
        self.wait_for(lambda: len(self.bars) >= count)


def tick_at(moment: datetime, price: object, exchange: str = "BINANCE", pair: str = PAIR) -> bytes:
    """The frame of a tick of a moment."""
    data = {"pair": pair, "date": f"{moment:%Y-%m-%d}", "time": f"{moment:%H:%M:%S.%f}Z", "exchange": exchange}
    return frame(json.dumps({"results": "streaming", "resultData": {**data, "price": f"{price}"}}))


def after(seconds: float, price: object, exchange: str = "BINANCE", pair: str = PAIR) -> bytes:
    """The frame of a tick of long ago."""
    return tick_at(BEGIN + timedelta(seconds=seconds), price, exchange, pair)


def last_values(found: Iterable[Bar]) -> dict[Any, Any]:
    """What the last revision of each bar says."""
    last = {(bar["pair"], bar["exchange"], bar["start"]): bar for bar in found}
    return {key: {**bar, "revision": 0, "final": True} for key, bar in last.items()}


SENT = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 12), st.floats(0, 12).map(lambda s: round(s, 3))),
        st.integers(1, 9),
        st.sampled_from(["BINANCE", "KRAKEN"]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(sent=SENT, by_exchange=st.booleans(), empty=st.booleans(), dispatch=st.sampled_from(["thread", "inline"]))
def test_live_bars_equal_those_of_the_ticks(
    sent: list[tuple[float, int, str]], by_exchange: bool, empty: bool, dispatch: str
) -> None:
    """The last revisions are those of `bars`, in any order of the ticks and although time passes."""
    seen = SeenBars()
    with Peer(stay(*(after(*each) for each in sent))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        listener.on_bar("1s", seen.on_bar, by_exchange=by_exchange, empty=empty)
        with listener:
            seen.wait_ticks(len(sent))
    found = last_values(bar for bar in seen.bars if bar["ticks"])
    assert found == last_values(bars(seen.ticks, "1s", by_exchange=by_exchange))
    assert seen.errors == []


@pytest.mark.parametrize(
    ("dispatch", "overflow"),
    [("inline", "block"), ("thread", "block"), ("thread", "drop_oldest"), ("thread", "latest")],
)
def test_bars_come_in_order_with_ticks(dispatch: str, overflow: str) -> None:
    """A bar comes with the tick of the next interval, and again with each late tick."""
    seen = SeenBars()
    go = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        for number, sent in enumerate((after(0, 1), after(1, 2), after(60, 3), after(2, 4), after(120, 5)), 1):
            caller.send(sent)
            seen.wait_ticks(number)  # the policy "latest" would drop it
        go.set()
        caller.wait_until_left()

    with Peer(script) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, overflow=overflow)
        assert listener.on_bar("1min", seen.on_bar, grace=1e6) == seen.on_bar
        with listener:
            assert go.wait(PATIENCE)
    assert seen.order == [1, 2, 3, (0, 2, 0), 4, (0, 3, 1), 5, (0, 1, 0), (0, 1, 0)]
    assert [bar["final"] for bar in seen.bars] == [True] * 4
    assert seen.bars[1] == {
        "pair": PAIR,
        "exchange": None,
        "start": BEGIN,
        "end": BEGIN + timedelta(minutes=1),
        "open": 1.0,
        "high": 4.0,
        "low": 1.0,
        "close": 4.0,
        "ticks": 3,
        "final": True,
        "revision": 1,
    }


@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_a_bar_comes_although_no_tick_does(dispatch: str) -> None:
    """A deadline of the loop emits it, on the thread of the callbacks. Empty bars follow."""
    seen = SeenBars()
    threads = set()
    with Peer(stay(tick_at(datetime.now(UTC), 7))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        listener.on_tick(lambda tick: threads.add(threading.current_thread()))

        @listener.on_bar("1s", grace=0.1, empty=True)
        def show(bar: Bar) -> None:
            threads.add(threading.current_thread())
            seen.on_bar(bar)

        with listener:
            seen.wait_bars(3)
    assert len(threads) == 1
    assert [(bar["ticks"], bar["close"], bar["final"]) for bar in seen.bars[:3]] == [
        (1, 7.0, True),
        (0, None, True),
        (0, None, True),
    ]


def test_the_open_bar_of_a_stop_is_not_final() -> None:
    """After a new start, the same bar goes on."""
    seen = SeenBars()
    moment = datetime.now(UTC)
    with Peer(stay(tick_at(moment, 7)), stay(tick_at(moment, 9))) as peer:
        listener = seen.listener(peer.url)
        listener.on_bar("1d", seen.on_bar)
        with listener:
            seen.wait_ticks(1)
        with listener:
            seen.wait_ticks(2)
    found = [(bar["open"], bar["close"], bar["ticks"], bar["final"], bar["revision"]) for bar in seen.bars]
    assert found == [(7, 7, 1, False, 0), (7, 9, 2, False, 1)]


def test_a_discarding_stop_emits_no_bars() -> None:
    """It begins no further call."""
    seen = SeenBars()
    with Peer(stay(tick_at(datetime.now(UTC), 7))) as peer:
        listener = seen.listener(peer.url)
        listener.on_bar("1d", seen.on_bar)
        listener.start()
        seen.wait_ticks(1)
        listener.stop(drain=False)
    assert seen.bars == []


@pytest.mark.parametrize("resumable", [True, False], ids=["resumed", "from history"])
def test_missed_ticks_change_their_bars(resumable: bool) -> None:
    """A bar that time has completed comes again with the ticks of the gap."""
    seen = SeenBars()
    with LocalServer(Market(), resumable=resumable) as server:
        listener = seen.listener(server.url, backfill=True)
        listener.on_bar("1s", seen.on_bar, grace=0)
        with listener:
            begin(server, seen)
            seen.wait_bars(1)
            with outage(server, seen):
                send(server, 2, 3)
            send(server, 200)
            seen.wait_ticks(4)
    assert [tick["backfilled"] for tick in seen.ticks] == [False, True, True, False]
    assert [(bar["ticks"], bar["revision"]) for bar in seen.bars] == [(1, 0), (2, 1), (3, 2), (1, 0)]
    assert last_values(seen.bars) == last_values(bars(seen.ticks, "1s"))


# Registration.


def test_callbacks_for_pairs_and_exchanges() -> None:
    """Each gets its own bars."""
    seen, other, each = SeenBars(), SeenBars(), SeenBars()
    with (
        LocalServer(Market(PAIR, "ETH:USDC")) as server,
        seen.listener(server.url, PAIR, "ETH:USDC") as listener,
    ):
        listener.on_bar("1h", seen.on_bar, pair="ETH:USDC")
        listener.on_bar("1h", by_exchange=True)(each.on_bar)
        listener.on_bar("1d", other.on_bar)
        server.wait_connected(2)
        send(server, 1)
        send(server, 2, pair="ETH:USDC")
        seen.wait_ticks(2)
    assert [bar["pair"] for bar in seen.bars] == ["ETH:USDC"]
    assert [(bar["pair"], bar["exchange"]) for bar in each.bars] == [(PAIR, "BINANCE"), ("ETH:USDC", "BINANCE")]
    assert [(bar["pair"], bar["exchange"]) for bar in other.bars] == [(PAIR, None), ("ETH:USDC", None)]


def test_a_callback_that_comes_during_a_run() -> None:
    """Time emits its bars, too."""
    seen, registered = SeenBars(), threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        assert registered.wait(PATIENCE)
        caller.send(tick_at(datetime.now(UTC), 7))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url) as listener:
        listener.on_bar("1s", seen.on_bar, grace=0.1)
        registered.set()
        seen.wait_bars(1)
        assert seen.bars[0]["final"]


def test_removal() -> None:
    """A removed callback gets no bars, not even the open one."""
    seen = SeenBars()
    with Peer(stay(after(0, 1))) as peer, seen.listener(peer.url) as listener:
        listener.on_bar("1h", seen.on_bar)
        seen.wait_ticks(1)
        listener.remove_callback(seen.on_bar)
        with pytest.raises(ConfigurationError, match="not registered"):
            listener.remove_callback(seen.on_bar)
    assert seen.bars == []


@pytest.mark.parametrize("others", [0, 1])
def test_an_exception_is_reported(others: int) -> None:
    """The error has the callback and the bar. The other bars still come."""
    seen = SeenBars()

    def fails(bar: Bar) -> None:
        seen.on_bar(bar)
        raise ValueError("no")

    with Peer(stay(after(0, 1), after(1, 2), after(2, 3))) as peer:
        listener = StreamListener(PAIR, endpoint=peer.url, api_key="demo", on_error=seen.on_error, backfill=False)
        for _ in range(others):
            listener.on_tick(seen.on_tick)
        listener.on_bar("1s", fails)
        with listener:
            seen.wait_errors(2)
    assert len(seen.bars) == 3
    for error, bar in zip(seen.errors, seen.bars, strict=True):
        assert isinstance(error, CallbackError)
        assert (error.callback, error.argument, str(error.__cause__)) == (fails, bar, "no")
    assert listener.stats.callback_errors == 3


def test_prices_that_cannot_be_compared_are_reported() -> None:
    """Text has no order of numbers."""
    seen = SeenBars()
    with Peer(stay(after(0, 1))) as peer:
        listener = seen.listener(peer.url, parse_price=str)
        listener.on_bar("1s", seen.on_bar)
        with listener:
            seen.wait_errors(1)
    (error,) = seen.errors
    assert isinstance(error, BarError)
    assert str(error).endswith("its price '1' can't be compared; use parse_price=float or decimal.Decimal")
    assert seen.bars == []


def test_system_exit_in_the_last_bar_ends_the_listener() -> None:
    """As in any callback: `stop` ends, and `join` raises it."""
    seen = SeenBars()

    def leave(bar: Bar) -> None:
        raise SystemExit(3)

    with Peer(stay(tick_frame(1))) as peer:
        listener = seen.listener(peer.url)
        listener.on_bar("1d", leave, grace=1e6)
        listener.start()
        seen.wait_ticks(1)
        assert listener.stop()
        with pytest.raises(SystemExit, match="3"):
            listener.join(PATIENCE)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"interval": print}, r'no interval given; write @listener.on_bar\("1min"\)'),
        ({"interval": "1m"}, "interval: '1m' is not allowed"),
        ({"interval": "1s", "callback": 5}, "on_bar: int is not callable; expected a plain function: def on_bar"),
        ({"interval": "1s", "callback": lambda: None}, "can't be called with"),
        ({"interval": "1s", "grace": -1}, "grace"),
        ({"interval": "1s", "empty": "no"}, "empty"),
        ({"interval": "1s", "by_exchange": 1}, "by_exchange"),
        ({"interval": "1s", "pair": "BTC"}, "BTC"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    """They are refused when you register the callback."""
    with pytest.raises(ConfigurationError, match=text):
        StreamListener(PAIR, endpoint="ws://127.0.0.1:9/").on_bar(**arguments)


def test_assigned_callbacks_and_methods_are_refused() -> None:
    """Nothing would call it."""
    listener: Any = StreamListener(PAIR, endpoint="ws://127.0.0.1:9/")
    with pytest.raises(
        ConfigurationError, match=r'an assigned callback isn\'t called; write listener.on_bar\("1min", print'
    ):
        listener.on_bar = print
    with pytest.raises(ConfigurationError, match=r'write self.on_bar\("1min", self.handle_bar\)'):

        class Mine(StreamListener):
            def on_bar(self, bar: Bar) -> None:  # type: ignore[override]
                pass


# The timer.


class Events:
    """Takes what the timer puts."""

    def __init__(self) -> None:
        self.passed: list[TimePassed] = []

    def put_event(self, event: Event) -> None:
        assert isinstance(event.payload, TimePassed)
        self.passed.append(event.payload)


class Loop:
    """Takes what the timer schedules."""

    def schedule(self, timed: BarTimer) -> None:
        self.deadline = timed.deadline


def test_the_timer_follows_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock may be set forward and back. While an event waits, no other follows."""
    wall = 1_000.0
    monkeypatch.setattr("finx_streamer.delivery.bar_feed.time.time", lambda: wall)
    feeds = [BarRequest("1min", None, False, 2.0, False).feed(print)]
    events, loop = Events(), Loop()
    timer: Any = BarTimer(lambda: feeds, events)  # type: ignore[arg-type]
    timer.start(loop)  # bars are due at 1022, 1082, …
    assert loop.deadline < NEVER
    timer.wake(0.0)
    assert (events.passed, timer.deadline) == ([], 1.0)
    wall = 1_021.5
    timer.wake(10.0)
    assert (events.passed, timer.deadline) == ([], 10.5)
    wall = 1_022.0
    timer.wake(11.0)
    assert [passed.now.timestamp() for passed in events.passed] == [1_022.0]
    wall = 5_000.0
    timer.wake(12.0)
    assert len(events.passed) == 1
    assert timer.deadline == 12.1
    events.passed[0].handled = True
    timer.wake(12.1)
    assert [passed.now.timestamp() for passed in events.passed] == [1_022.0, 5_000.0]
    events.passed[1].handled = True
    wall = 1_030.0
    timer.wake(13.0)
    wall = 1_082.0
    timer.wake(14.0)
    assert [passed.now.timestamp() for passed in events.passed] == [1_022.0, 5_000.0, 1_082.0]
    feeds.clear()
    timer.wake(15.0)
    assert timer.deadline == NEVER
