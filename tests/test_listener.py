"""`StreamListener`: its arguments, callbacks and streams, and the `with` statement."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from finx_streamer import AuthenticationError, ConfigurationError, ConnectionFailed, State, StreamListener, Tick
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.peers import (
    PAIR,
    PATIENCE,
    QUICK,
    Caller,
    Peer,
    Seen,
    close_frame,
    free_port,
    hang,
    refuse,
    stay,
    tick,
    ticks,
)

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
    assert str(caught.value) == text


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


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_an_overflow_without_a_queue_is_refused(overflow: str) -> None:
    """Inline dispatch has no queue, so nothing can be dropped."""
    with pytest.raises(ConfigurationError, match="dispatch='inline'"):
        StreamListener("BTC:USDC", api_key="some-key", dispatch="inline", overflow=overflow)


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
        assert register(callback) is callback
    assert listener.on_tick(pair=PAIR)(callback) is callback
    assert listener.on_tick(callback, pair=PAIR) is callback


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


# Callbacks in the wrong place.

CALLBACK_NAMES = ["on_tick", "on_error", "on_notice", "on_state", "on_gap", "on_greeks"]


@pytest.mark.parametrize("name", CALLBACK_NAMES)
def test_refuses_a_callback_that_is_assigned(name: str) -> None:
    """KiteTicker and WebSocketApp work like that. The error shows the line to write."""

    def handle(*_: object) -> None: ...

    listener = StreamListener(PAIR)
    with pytest.raises(ConfigurationError, match=rf"^{name}: .* write listener\.{name}\(handle\)$"):
        setattr(listener, name, handle)


def test_refuses_a_callback_of_an_unknown_event() -> None:
    """Nothing would ever call it."""
    with pytest.raises(ConfigurationError, match=r"^on_message: a listener has no such event; it has on_tick, "):
        StreamListener(PAIR).on_message = print  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CALLBACK_NAMES)
@pytest.mark.parametrize("mixed_in", [None, "before", "after"])
def test_refuses_a_subclass_with_a_callback_method(name: str, mixed_in: str | None) -> None:
    """At the definition of the class. The error shows the line to write."""
    body = {name: lambda self, *_: None}
    bases: tuple[type, ...] = (StreamListener,)
    if mixed_in:
        mixin = type("Mixin", (), body)
        bases, body = (mixin, StreamListener) if mixed_in == "before" else (StreamListener, mixin), {}
    event = name.removeprefix("on_")
    with pytest.raises(ConfigurationError, match=rf"^Bot\.{name}: .*{name}=self\.handle_{event}\)$"):
        type("Bot", bases, body)


def test_accepts_a_subclass_with_other_methods(seen: Seen) -> None:
    """It registers them by itself."""

    class Bot(StreamListener):
        def __init__(self, url: str) -> None:
            self.prices: list[float] = []
            super().__init__(PAIR, endpoint=url, api_key="demo", on_tick=self.handle_tick)

        def handle_tick(self, tick: Tick) -> None:
            self.prices.append(tick["price"])
            seen.on_tick(tick)

    with Peer(stay(ticks(1, 3))) as peer, Bot(peer.url) as bot:
        seen.wait_ticks(3)
        assert bot.prices == [1, 2, 3]


def test_a_pair_is_no_callback() -> None:
    """The error hints at `pair=`."""
    with pytest.raises(ConfigurationError, match=r'@listener\.on_tick\(pair="BTC:USDC"\)$'):
        StreamListener(PAIR).on_tick(PAIR)  # type: ignore[call-overload]


# The newest ticks.


def test_latest_returns_the_newest_tick_of_each_pair(seen: Seen) -> None:
    """Pairs without a tick are missing."""
    pairs = ["BTC:USDC", "ETH:USDC", "SOL:USDC"]

    def script(caller: Caller) -> None:
        pair = next(pair for pair in pairs if pair.encode() in caller.read_request())
        caller.welcome(*([] if pair == pairs[2] else [ticks(1, 3, pair)]))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, *pairs) as listener:
        seen.wait_ticks(6)
        assert {pair: tick["price"] for pair, tick in listener.latest().items()} == {pairs[0]: 3, pairs[1]: 3}
    assert StreamListener(PAIR).latest() == {}


# Errors.


def test_connection_failures_do_not_end_a_listener(seen: Seen) -> None:
    """By default, a listener tries to connect forever."""
    with seen.listener(f"ws://127.0.0.1:{free_port()}/", reconnect=QUICK) as listener:
        seen.wait_errors(10)
        assert listener.state is State.CONNECTING
    assert {type(error) for error in seen.errors} == {ConnectionFailed}


def test_an_error_is_reported_once(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """An error that `on_error` gets isn't logged, and a stop isn't an error."""
    with Peer(refuse("503 Later"), stay(close_frame(1001)), hang) as peer:
        listener = seen.listener(peer.url).start()
        peer.wait_accepted(3)
        assert listener.stop()
    assert [error.status for error in seen.errors] == [503, None]
    assert caplog.text == ""
