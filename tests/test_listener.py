"""`StreamListener`: its arguments, its life from start to end, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finx_streamer import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailed,
    ReconnectPolicy,
    State,
    StreamListener,
    StreamNotFound,
    Tick,
)
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.peers import (
    PAIR,
    PATIENCE,
    QUICK,
    Caller,
    Peer,
    Seen,
    close_frame,
    frame,
    free_port,
    refuse,
    stay,
    tick,
    ticks,
)
from tests.support.program import Program, run_program

SLOW = ReconnectPolicy(initial=30.0, maximum=30.0, jitter=False)
#: The bound for fast operations, in seconds, on a busy machine.
AT_ONCE = 4.0


def hang(caller: Caller) -> None:
    """A server that reads the request and doesn't answer."""
    caller.read_request()
    caller.wait_until_left()


# Arguments.


@pytest.mark.parametrize(
    "settings",
    [
        {"connect_timeout": 0},
        {"connect_timeout": None},
        {"connect_timeout": float("inf")},
        {"connect_timeout": 10**400},
        {"ping_interval": 0},
        {"ping_interval": "20"},
        {"ping_timeout": -1},
        {"stale_after": 0},
        {"keep_alive": True},
        {"queue_size": 0},
        {"queue_size": 1.5},
        {"queue_size": 2**64},
        {"max_message_size": 0},
        {"allow_insecure": "false"},
        {"overflow": "drop"},
        {"dispatch": "process"},
        {"reconnect": 3},
        {"parse_price": "float"},
        {"exchanges": "BINANCE"},
        {"exchanges": []},
        {"exchanges": [1]},
        {"exchanges": 5},
        {"ssl_context": True},
        {"name": ""},
        {"name": 7},
        {"api_key": 7},
        {"api_key": ""},
        {"endpoint": "ws://example.com/"},
        {"endpoint": "productoin"},
        {"on_tick": 7},
        {"on_error": "print"},
        {"on_gap": 3},
        {"backfill": 1},
        {"proxy": "ftp://x"},
        {"proxy": False},
        {"proxy": "http://proxy.example:3128", "endpoint": "ws://127.0.0.1:9/"},
    ],
)
def test_the_constructor_refuses_a_wrong_argument(settings: dict[str, Any]) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        StreamListener(PAIR, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"queue_size": 0}, "queue_size: 0 is not allowed; expected an int >= 1"),
        ({"queue_size": 2**64}, f"queue_size: {2**64} is not allowed; expected an int <= {sys.maxsize}"),
        ({"reconnect": False}, "reconnect: False is not allowed; expected a ReconnectPolicy or None (None: no retry)"),
    ],
)
def test_a_refusal_names_the_exceeded_bound(settings: dict[str, Any], text: str) -> None:
    """The error names only the bound that the value exceeds."""
    with pytest.raises(ConfigurationError) as caught:
        StreamListener(PAIR, **settings)
    assert text == str(caught.value)


def test_a_decorator_with_empty_parentheses_is_refused() -> None:
    """The error about `@listener.on_tick()` says how to write it."""
    with pytest.raises(ConfigurationError, match=r"write @listener\.on_tick, without parentheses"):
        StreamListener(PAIR).on_tick()  # type: ignore[call-overload]


def test_representations_and_errors_do_not_show_the_key() -> None:
    """A key that is also passed as another argument is masked there."""
    key = "listener-Key-1"
    assert key not in repr(StreamListener(PAIR, api_key=key, endpoint=f"wss://ws.finx.io/{key}/"))
    with pytest.raises(ConfigurationError, match="parse_price") as caught:
        StreamListener(PAIR, api_key=key, parse_price=key)  # type: ignore[arg-type]
    assert key not in str(caught.value)


def test_an_unknown_argument_is_a_type_error() -> None:
    """A misspelled argument raises TypeError, as for any function."""
    with pytest.raises(TypeError, match="on_tik"):
        StreamListener(PAIR, on_tik=print)


@pytest.mark.parametrize("symbol", ["btc:usdc", "BTC-USDC", "", 7, None, "BTCN2202208"])
def test_a_wrong_symbol_is_refused(symbol: Any) -> None:
    """The constructor and add() check symbols."""
    with pytest.raises(ConfigurationError):
        StreamListener(symbol)
    with pytest.raises(ConfigurationError):
        StreamListener().add(symbol)


def test_a_new_listener_is_idle() -> None:
    """Before start(), nothing runs, and all properties work."""
    listener = StreamListener("BTC:USDC", "BTCN2202207", "BTC:USDC", name="mine")
    assert listener.symbols == ("BTC:USDC", "BTCN2202207")
    assert listener.state is State.IDLE
    assert listener.stats.state is State.IDLE
    assert set(listener.stats.streams) == {"BTC:USDC", "BTCN2202207"}
    assert repr(listener) == "<StreamListener mine idle: BTC:USDC, BTCN2202207 at wss://ws.finx.io/>"
    assert listener.stop()
    assert listener.join()


# Callbacks.


def test_callbacks_are_called_in_order_of_registration(seen: Seen, dispatch: str) -> None:
    """The constructor's callback comes first, then the registered ones, each as often as it was registered."""
    order: list[str] = []
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, on_tick=lambda tick: order.append("first"), dispatch=dispatch)

        @listener.on_tick
        def second(tick: Tick) -> None:
            order.append("second")

        listener.on_tick(second)
        listener.on_tick(lambda tick: order.append("last"))
        listener.on_tick(seen.on_tick)
        with listener:
            seen.wait_ticks(1)
    assert order == ["first", "second", "second", "last"]


def test_decorators_return_the_callback_unchanged() -> None:
    """Each registration returns the function itself."""
    listener = StreamListener(PAIR)

    def callback(*_: object) -> None:
        """Do nothing."""

    for register in (listener.on_tick, listener.on_error, listener.on_notice, listener.on_state):
        assert callback is register(callback)
    assert callback is listener.on_tick(pair=PAIR)(callback)
    assert callback is listener.on_tick(callback, pair=PAIR)


def test_a_tick_callback_can_be_limited_to_a_pair(seen: Seen, dispatch: str) -> None:
    """`@listener.on_tick(pair=...)` gets only that pair's ticks."""
    eth_ticks: list[str] = []

    def script(caller: Caller) -> None:
        pair = caller.read_request().split()[1].decode().rpartition("/")[2]
        caller.welcome(ticks(1, 3, pair))
        caller.wait_until_left()

    with Peer(script) as peer:
        listener = seen.listener(peer.url, "BTC:USDC", "ETH:USDC", dispatch=dispatch)

        @listener.on_tick(pair="ETH:USDC")
        def eth(tick: Tick) -> None:
            eth_ticks.append(tick["pair"])

        with listener:
            seen.wait_ticks(6)
    assert eth_ticks == ["ETH:USDC"] * 3


@pytest.mark.parametrize("pair", ["BTCN2202207", "btc:usdc", 7])
def test_a_tick_callback_can_be_limited_to_nothing_else(pair: Any) -> None:
    """Only a pair has ticks."""
    with pytest.raises(ConfigurationError):
        StreamListener(PAIR).on_tick(pair=pair)


def test_a_removed_callback_is_not_called_again(seen: Seen, dispatch: str) -> None:
    """remove_callback() works for every event, even in the callback; an unregistered callback is an error."""
    once: list[Tick] = []

    def first_only(tick: Tick) -> None:
        once.append(tick)
        listener.remove_callback(first_only)

    with Peer(stay(ticks(1, 3))) as peer:
        listener = seen.listener(peer.url, on_tick=first_only, dispatch=dispatch)
        listener.on_tick(seen.on_tick)
        listener.on_state(seen.on_state)
        listener.remove_callback(seen.on_state)
        with listener:
            seen.wait_ticks(3)
    assert [tick["price"] for tick in once] == [1]
    assert seen.states == []
    with pytest.raises(ConfigurationError, match="not registered"):
        listener.remove_callback(first_only)


def test_a_callback_can_be_registered_while_running(seen: Seen, dispatch: str) -> None:
    """A callback gets the ticks that arrive after its registration."""
    late = Seen()
    go_on = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        assert go_on.wait(PATIENCE)
        caller.send(tick(2))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        seen.wait_ticks(1)
        listener.on_tick(late.on_tick)
        go_on.set()
        late.wait_ticks(1)
    assert late.prices == [2]


# Start, stop, join.


def test_start_returns_the_listener_and_is_idempotent(seen: Seen, dispatch: str) -> None:
    """start() can be chained, and does nothing while the listener runs."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        assert listener is listener.start()
        seen.wait_ticks(1)
        assert listener is listener.start()
        assert listener.state is State.STREAMING
        assert listener.stop()
        assert peer.accepted == 1


def test_start_does_not_wait_for_the_server(seen: Seen) -> None:
    """start() returns while the handshake hangs."""
    with Peer(hang) as peer:
        listener = seen.listener(peer.url).start()
        assert listener.state in (State.IDLE, State.CONNECTING)
        peer.wait_accepted(1)
        assert listener.state is State.CONNECTING
        assert listener.stop()


def test_a_stopped_listener_can_be_started_again(seen: Seen, dispatch: str) -> None:
    """start() works again after stop() and after a failure."""
    with Peer(stay(tick(1)), refuse("404 Not Found"), stay(tick(2))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(1)
        assert listener.stop()
        assert listener.state is State.STOPPED
        with pytest.raises(StreamNotFound):
            listener.start().join(PATIENCE)
        with listener:
            seen.wait_ticks(2)
    assert seen.prices == [1, 2]


def test_stop_is_idempotent(seen: Seen, dispatch: str) -> None:
    """stop() can be called any number of times."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(1)
        assert [listener.stop(timeout=timeout) for timeout in (5.0, 5.0, 0.0, 5.0)] == [True] * 4
        assert listener.join(0.0)
    assert [state for _, state in seen.states] == [State.CONNECTING, State.STREAMING, State.STOPPED]


@pytest.mark.parametrize("drain", [True, False])
def test_no_callback_runs_after_stop(seen: Seen, dispatch: str, drain: bool) -> None:
    """Once stop() has returned, no callback is called, however fast ticks arrive."""

    def flood(caller: Caller) -> None:
        caller.welcome()
        number = 0
        while True:
            caller.send(ticks(number, number + 99))
            number += 100

    with Peer(flood) as peer:
        for _ in range(5):
            fresh = Seen()
            listener = fresh.listener(peer.url, dispatch=dispatch, queue_size=50).start()
            fresh.wait_ticks(500)
            assert listener.stop(drain=drain)
            count, states = len(fresh.ticks), list(fresh.states)
            assert listener.join(PATIENCE)
            threading.Event().wait(0.05)
            assert (count, states) == (len(fresh.ticks), fresh.states)
            assert fresh.prices == list(range(count))


def gated(seen: Seen) -> tuple[Callable[[Tick], None], threading.Event, threading.Event]:
    """A callback whose first call blocks, an event that is set when it does, and the event that releases it."""
    entered, free = threading.Event(), threading.Event()

    def callback(tick: Tick) -> None:
        entered.set()
        assert free.wait(PATIENCE)
        seen.on_tick(tick)

    return callback, entered, free


@pytest.mark.parametrize(("drain", "expected"), [(True, list(range(1, 101))), (False, [1])])
def test_drain_decides_about_received_ticks(seen: Seen, drain: bool, expected: list[int]) -> None:
    """With drain, stop() delivers the ticks in the queue before it returns. Without, it discards them."""
    callback, entered, free = gated(seen)
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=callback).start()
        assert entered.wait(PATIENCE)
        while listener.stats.ticks < 100:
            time.sleep(0.005)  # counters have no event
        stopped: list[bool] = []
        stopper = threading.Thread(target=lambda: stopped.append(listener.stop(PATIENCE, drain)))
        stopper.start()
        while listener.state is not State.STOPPED:
            time.sleep(0.005)  # stop() has no event for its start
        # Right after that, stop() drains or discards the queue. The callback returns later.
        time.sleep(0.3)
        free.set()
        stopper.join(PATIENCE)
    assert stopped == [True]
    assert seen.prices == expected


def test_stop_is_bounded_by_its_timeout(seen: Seen, dispatch: str, caplog: pytest.LogCaptureFixture) -> None:
    """If a callback doesn't return within the timeout, stop() returns False, and no callback follows."""
    callback, entered, free = gated(seen)
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=callback, dispatch=dispatch).start()
        assert entered.wait(PATIENCE)
        started = time.monotonic()
        assert not listener.stop(timeout=0.2)
        assert time.monotonic() - started < AT_ONCE
        assert "still running" in caplog.text
        with pytest.raises(ConfigurationError, match="still stopping"):
            listener.start()
        free.set()
        assert listener.join(PATIENCE)
    assert seen.prices == [1]


def test_stop_in_a_callback_is_the_last_call(seen: Seen) -> None:
    """stop() in a callback returns at once, and the callbacks registered after it aren't called."""
    calls: list[str] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=lambda tick: calls.append(f"stop {listener.stop()}"))
        listener.on_tick(lambda tick: calls.append("after"))
        listener.start()
        assert listener.join(PATIENCE)
    assert calls == ["stop True"]
    assert listener.state is State.STOPPED


@pytest.mark.parametrize("event", ["error", "state", "notice"])
def test_stop_in_any_callback(seen: Seen, dispatch: str, event: str) -> None:
    """stop() works in callbacks for every event."""
    with Peer(stay(frame("bad"), frame("{}"), tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, **{f"on_{event}": lambda *_: listener.stop()})
        listener.start()
        assert listener.join(PATIENCE)
    assert seen.ticks == []


def test_join_in_a_callback_is_an_error(seen: Seen, dispatch: str) -> None:
    """join() in a callback would wait for itself."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, on_tick=lambda tick: listener.join(), dispatch=dispatch)
        with listener:
            seen.wait_errors(1)
    assert isinstance(seen.errors[0].__cause__, ConfigurationError)


def test_start_in_the_last_callback_is_an_error(seen: Seen, dispatch: str) -> None:
    """A listener that is about to end can't start yet, and raises an error."""
    refused: list[object] = []

    def restart(symbol: str, state: State) -> None:
        if state is State.FAILED:
            with pytest.raises(ConfigurationError, match="still stopping"):
                listener.start()
            refused.append(state)

    with Peer(refuse("404 Not Found")) as peer:
        listener = seen.listener(peer.url, on_state=restart, dispatch=dispatch)
        with pytest.raises(StreamNotFound):
            listener.start().join(PATIENCE)
    assert refused == [State.FAILED]


def test_join_has_a_timeout(seen: Seen, dispatch: str) -> None:
    """join(timeout) returns False if the listener still runs."""
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        seen.wait_ticks(1)
        assert not listener.join(0.01)
    assert listener.join(0.0)


@pytest.mark.parametrize("method", ["stop", "join"])
@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5"])
def test_an_invalid_timeout_is_refused(method: str, timeout: Any) -> None:
    """A timeout is a finite number of seconds, 0 or more."""
    with pytest.raises(ConfigurationError, match="timeout"):
        getattr(StreamListener(PAIR), method)(timeout)


def test_stop_interrupts_a_backoff(seen: Seen, dispatch: str) -> None:
    """stop() doesn't wait for the next attempt."""
    listener = seen.listener(f"ws://127.0.0.1:{free_port()}/", reconnect=SLOW, dispatch=dispatch).start()
    seen.wait_errors(1)
    assert listener.state is State.RECONNECTING
    started = time.monotonic()
    assert listener.stop()
    assert time.monotonic() - started < AT_ONCE


def test_stop_interrupts_a_hanging_handshake(seen: Seen, dispatch: str) -> None:
    """stop() ends a handshake quickly: the server sees the client leave, and no connection follows."""
    begun, left, may_answer = threading.Event(), threading.Event(), threading.Event()

    def late(caller: Caller) -> None:
        answer = caller.acceptance()
        begun.set()
        assert may_answer.wait(PATIENCE)
        try:
            caller.send(answer, tick(1))
        finally:
            caller.wait_until_left()
            left.set()

    with Peer(late) as peer:
        listener = seen.listener(peer.url, connect_timeout=3_600.0, dispatch=dispatch).start()
        assert begun.wait(PATIENCE)
        start = time.monotonic()
        assert listener.stop()
        assert time.monotonic() - start < AT_ONCE
        may_answer.set()
        assert left.wait(PATIENCE)
        assert peer.accepted == 1
    assert seen.ticks == []
    assert State.STREAMING not in [state for _, state in seen.states]


def test_stop_does_not_wait_for_key_callables(seen: Seen) -> None:
    """stop() is quick although a key callable hangs for each of many streams."""
    free, asked = threading.Event(), threading.Semaphore(0)

    def key() -> str:
        asked.release()
        free.wait(PATIENCE)
        return "demo"

    with Peer(stay()) as peer:
        listener = seen.listener(peer.url, *(f"P{n}:USD" for n in range(8)), api_key=key, connect_timeout=3_600.0)
        listener.start()
        try:
            for _ in range(8):
                assert asked.acquire(timeout=PATIENCE)
            started = time.monotonic()
            assert listener.stop()
            assert time.monotonic() - started < 1.2
        finally:
            free.set()
        assert peer.accepted == 0


def test_stop_from_several_threads(seen: Seen, dispatch: str) -> None:
    """stop() returns in all threads, and the listener has ended in each."""
    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(10)
        outcomes: list[tuple[bool, bool]] = []
        stoppers = [
            threading.Thread(target=lambda n=n: outcomes.append((listener.stop(drain=n % 2 == 0), listener.join(0.0))))
            for n in range(6)
        ]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join(PATIENCE)
    assert outcomes == [(True, True)] * 6


def test_start_and_stop_race(seen: Seen, dispatch: str) -> None:
    """stop() while start() runs either ends the listener, or a later stop() does."""

    def stop_at_once(listener: StreamListener, drain: bool) -> None:
        while listener.state is State.IDLE:
            pass
        listener.stop(drain=drain)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Peer(stay(ticks(1, 5))) as peer:
            for number in range(100):
                listener = seen.listener(peer.url, dispatch=dispatch)
                stopper = threading.Thread(target=stop_at_once, args=(listener, number % 4 == 0))
                stopper.start()
                listener.start()
                stopper.join(PATIENCE)
                assert not stopper.is_alive()
                assert listener.stop()
                assert listener.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)


# With.


def test_with_starts_and_stops(seen: Seen, dispatch: str) -> None:
    """The listener runs in the block and has ended after it."""
    with Peer(stay(tick(1))) as peer:
        with seen.listener(peer.url, dispatch=dispatch) as listener:
            seen.wait_ticks(1)
        assert listener.state is State.STOPPED
        assert listener.join(0.0)


def test_with_raises_an_unhandled_error(seen: Seen) -> None:
    """Without on_error, the block raises the error that ended the listener."""
    with Peer(refuse("401 Unauthorized")) as peer:
        listener = seen.listener(peer.url, on_error=None)
        failed = threading.Event()
        listener.on_state(lambda symbol, state: failed.set() if state is State.FAILED else None)
        with pytest.raises(AuthenticationError), listener:
            assert failed.wait(PATIENCE)
        with seen.listener(peer.url):
            seen.wait_errors(1)


def test_with_keeps_the_error_of_its_body(seen: Seen, dispatch: str) -> None:
    """An exception in the block stops the listener and isn't replaced."""

    def body(listener: StreamListener) -> None:
        with listener:
            seen.wait_ticks(1)
            raise ZeroDivisionError

    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        with pytest.raises(ZeroDivisionError):
            body(listener)
    assert listener.state is State.STOPPED


# Streams.


def test_streams_can_be_added_and_removed(seen: Seen, dispatch: str) -> None:
    """add() and remove() work while the listener runs, and last beyond a restart."""
    market = SimulatedMarket(["BTC:USDC", "ETH:USDC", "SOL:USDC"], rate=300.0, seed=1)
    with LocalServer(market, keys={"demo"}) as server, seen.listener(server.url, dispatch=dispatch) as listener:
        seen.wait_ticks(1)
        listener.add("ETH:USDC", "BTC:USDC", "SOL:USDC")
        assert listener.symbols == ("BTC:USDC", "ETH:USDC", "SOL:USDC")
        server.wait_connected(3)
        seen.wait_for(lambda: {tick["pair"] for tick in seen.ticks[-100:]} == {"BTC:USDC", "ETH:USDC", "SOL:USDC"})
        listener.remove("BTC:USDC", "SOL:USDC")
        assert listener.symbols == ("ETH:USDC",)
        assert set(listener.stats.streams) == {"ETH:USDC"}
        seen.wait_for(lambda: ("SOL:USDC", State.STOPPED) in seen.states)
        assert ("BTC:USDC", State.STOPPED) in seen.states
        server.wait_until(lambda stats: stats.connections == 1)
        with pytest.raises(ConfigurationError, match="not listening to"):
            listener.remove("ETH:USDC", "BTC:USDC")
        assert listener.symbols == ("ETH:USDC",)
        listener.add("BTC:USDC")
        server.wait_connected(2)
        assert listener.stop()
        server.wait_until(lambda stats: stats.connections == 0)
        listener.start()
        server.wait_connected(2)


def test_streams_can_be_changed_in_a_callback(seen: Seen, dispatch: str) -> None:
    """add() and remove() work in callbacks."""

    def swap(tick: Tick) -> None:
        if listener.symbols == ("BTC:USDC",):
            listener.add("ETH:USDC")
            listener.remove("BTC:USDC")
        seen.on_tick(tick)

    def script(caller: Caller) -> None:
        pair = caller.read_request().split()[1].decode().rpartition("/")[2]
        caller.welcome(tick(1, pair))
        caller.wait_until_left()

    with Peer(script) as peer:
        listener = seen.listener(peer.url, "BTC:USDC", on_tick=swap, dispatch=dispatch)
        with listener:
            seen.wait_for(lambda: "ETH:USDC" in [tick["pair"] for tick in seen.ticks])
        assert listener.symbols == ("ETH:USDC",)


def test_a_listener_can_start_without_symbols(seen: Seen) -> None:
    """Symbols can be added later."""
    with Peer(stay(tick(1))) as peer:
        listener = StreamListener(api_key="demo", endpoint=peer.url, on_tick=seen.on_tick)
        with listener:
            assert listener.symbols == ()
            listener.add(PAIR)
            seen.wait_ticks(1)


def test_stats_count_events(seen: Seen) -> None:
    """The snapshot has totals and the counters of each stream, and is frozen."""
    with Peer(stay(ticks(1, 10))) as peer, seen.listener(peer.url) as listener:
        seen.wait_ticks(10)
        stats = listener.stats
        stream = stats.streams[PAIR]
        assert (stats.state, stream.state) == (State.STREAMING, State.STREAMING)
        assert (stream.messages, stream.ticks, stream.dropped, stream.reconnects) == (10, 10, 0, 0)
        assert stream.bytes > len(ticks(1, 10)) - 1
        assert stats.ticks == 10
        assert stream.last_tick["price"] == 10.0  # type: ignore[index]
        assert stream.connected_since is not None
        assert stream.rate > 0
        with pytest.raises(AttributeError):
            stats.ticks = 0  # type: ignore[misc]
    assert listener.stats.streams[PAIR].connected_since is None


def test_two_listeners_are_independent() -> None:
    """Stopping one listener doesn't affect the other."""
    one, two = Seen(), Seen()
    go_on = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        assert go_on.wait(PATIENCE)
        caller.send(tick(2))
        caller.wait_until_left()

    with Peer(script) as peer, one.listener(peer.url) as first, two.listener(peer.url):
        one.wait_ticks(1)
        two.wait_ticks(1)
        assert first.stop()
        go_on.set()
        two.wait_ticks(2)
    assert one.prices == [1]


# Nothing is left behind.


def our_threads() -> list[str]:
    """The running threads of all listeners."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("finx-streamer")]


def wait_until_gone() -> None:
    """Wait for the listeners' threads to end."""
    for _ in range(int(PATIENCE / 0.01)):
        if not our_threads():
            return
        time.sleep(0.01)  # the threads aren't known, so they can't be joined


@pytest.mark.parametrize("lives", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_many_lives_leave_nothing_behind(lives: int) -> None:
    """Starts and stops leave no thread and no file descriptor behind, in any stage of a connection."""

    def live(listener: StreamListener, number: int) -> None:
        listener.start()
        if number % 5 == 0:
            seen.wait_ticks(1)
            seen.ticks.clear()
        assert listener.stop(drain=number % 2 == 0)

    seen = Seen()
    with Peer(stay(tick(1))) as peer, Peer(hang) as mute:
        for number in range(10):
            live(seen.listener(peer.url), 5 * number)
        wait_until_gone()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        earlier = peer.accepted
        urls = [peer.url, peer.url, peer.url, mute.url, f"ws://127.0.0.1:{free_port()}/"]
        for number in range(lives):
            url = peer.url if number % 5 == 0 else urls[number % 5]
            seen.ticks.clear()
            live(seen.listener(url, dispatch="inline" if number % 3 else "thread", reconnect=SLOW), number)
        wait_until_gone()
        gc.collect()
        assert our_threads() == []
        # The peers' ends of those connections are still open.
        accepted = peer.accepted - earlier + mute.accepted
        assert len(os.listdir("/proc/self/fd")) <= before + accepted


# Scripts, each in its own process.


@pytest.fixture
def market() -> Iterator[LocalServer]:
    """A server whose ticks don't end."""
    with LocalServer(SimulatedMarket(["BTC:USDC"], rate=200.0, seed=1), keys={"demo"}) as server:
        yield server


def time_to_end(program: Program, *, interrupt: bool) -> tuple[int, str, str, float]:
    """Wait for a program's first tick and for its end. Return its code, output and errors, and the seconds between."""
    assert program.read_line() == "FLOWS"
    started = time.monotonic()
    if interrupt:
        program.interrupt()
    code, output, errors = program.wait()
    return code, output, errors, time.monotonic() - started


CTRL_C = ["join", "start_and_join", "inline", "loop", "loop_in_with", "join_in_with", "sleep_in_with"]


@pytest.mark.parametrize("name", CTRL_C)
def test_ctrl_c_ends_a_script(market: LocalServer, name: str) -> None:
    """Ctrl-C raises KeyboardInterrupt in the main thread at once, and nothing else is printed."""
    with Program("ctrl_c", name, market.url) as program:
        code, _, errors, seconds = time_to_end(program, interrupt=True)
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert "Exception" not in errors
    assert seconds < AT_ONCE


@pytest.mark.parametrize("name", ["join", "loop", "loop_in_with", "join_in_with", "sleep_in_with"])
def test_ctrl_c_ends_a_script_with_a_stuck_callback(market: LocalServer, name: str) -> None:
    """A callback that never returns doesn't keep a script alive."""
    with Program("ctrl_c", name, market.url, "stuck") as program:
        code, _, errors, seconds = time_to_end(program, interrupt=True)
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert seconds < AT_ONCE


@pytest.mark.parametrize("name", ["stopped", "left_loop", "sys_exit_in_with", "stuck_callback", "stop_in_callback"])
def test_a_script_exits_at_its_end(market: LocalServer, name: str) -> None:
    """A script exits promptly and prints nothing, in any state of the listener."""
    with Program("endings", name, market.url) as program:
        code, output, errors, seconds = time_to_end(program, interrupt=False)
    assert (code, output, errors) == (0, "", "")
    assert seconds < AT_ONCE


def test_a_signal_handler_can_stop_the_listener(market: LocalServer) -> None:
    """stop() in a SIGINT handler ends the loop and join() in the main thread, and the script continues."""
    with Program("ctrl_c", "signal_handler", market.url) as program:
        code, output, errors, seconds = time_to_end(program, interrupt=True)
    assert (code, output, errors) == (0, "ended True\n", "")
    assert seconds < AT_ONCE


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since Python 3.12, a fork with threads warns")
@pytest.mark.parametrize(("name", "output"), [("use_in_child", "4\n"), ("leave_loop_in_child", "0\n")])
def test_a_forked_child_does_not_hang(name: str, output: str) -> None:
    """In a child, which has no listener threads, calls raise errors, stop() returns, and a loop ends at once."""
    with Peer(stay(tick(1))) as peer, Program("forks", name, peer.url) as program:
        assert time_to_end(program, interrupt=False)[:3] == (0, output, "")


def test_connection_failures_do_not_end_a_listener(seen: Seen) -> None:
    """By default, a listener tries to connect forever."""
    with seen.listener(f"ws://127.0.0.1:{free_port()}/", reconnect=QUICK) as listener:
        seen.wait_errors(10)
        assert listener.state is State.RECONNECTING
    assert {type(error) for error in seen.errors} == {ConnectionFailed}


def test_an_error_is_reported_once(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """An error that `on_error` gets isn't logged, and a stop isn't an error."""
    with Peer(refuse("503 Later"), stay(close_frame(1001)), hang) as peer:
        listener = seen.listener(peer.url).start()
        peer.wait_accepted(3)
        assert listener.stop()
    assert [error.status for error in seen.errors] == [503, None]
    assert caplog.text == ""


def test_a_drain_delivers_undecoded_ticks() -> None:
    """stop() also delivers messages that were read while the queue was full, and not yet decoded."""
    begun, go_on = threading.Event(), threading.Event()
    seen = Seen()

    def slow(tick: Tick) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    with Peer(stay(ticks(1, 20))) as peer:
        listener = seen.listener(peer.url, queue_size=2, on_tick=slow)
        listener.on_tick(seen.on_tick)
        listener.start()
        assert begun.wait(PATIENCE)
        stopper = threading.Thread(target=listener.stop, args=(PATIENCE,))
        stopper.start()
        go_on.set()
        stopper.join(PATIENCE)
    assert seen.prices == list(range(1, 21))


@pytest.mark.parametrize("allowed", [0, 1])
def test_start_fails_without_threads(allowed: int) -> None:
    """If the system allows no more threads, start() raises and the listener has ended."""
    ended = run_program("scarcity", "no_thread_at_start", allowed)
    assert (ended.stdout, ended.stderr) == ("can't start new thread True 1\n", "")


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_an_overflow_without_a_queue_is_refused(overflow: str) -> None:
    """Inline dispatch has no queue, so nothing can be dropped."""
    with pytest.raises(ConfigurationError, match="dispatch='inline'"):
        StreamListener("BTC:USDC", api_key="some-key", dispatch="inline", overflow=overflow)


@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_all_threads_have_ended_when_stop_returns(seen: Seen, dispatch: str) -> None:
    """stop() and join() return only after the threads have ended."""
    with LocalServer(SimulatedMarket(seed=1), keys={"demo"}) as server:
        for life in range(60):
            listener = StreamListener("BTC:USDC", api_key="demo", endpoint=server.url, dispatch=dispatch).start()
            assert listener.stop()
            if life % 2:
                assert listener.join()
            names = [thread.name for thread in threading.enumerate()]
            assert [name for name in names if name.startswith(f"{listener.name}-")] == []
