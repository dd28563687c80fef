"""Faults on real sockets: what the user hears of them, and that the stream continues.

`test_faults_connecting` has connecting and certificates, `test_faults_resources` has threads, memory and exits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from finx_streamer import (
    AuthenticationError,
    CallbackError,
    ConfigurationError,
    ConnectionFailed,
    ProtocolError,
    ReconnectPolicy,
    SlowConsumer,
    StaleStream,
    State,
    StreamListener,
    TicksDropped,
)
from tests.support.peers import (
    CLOSE,
    PAIR,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    Caller,
    Peer,
    Script,
    Seen,
    close_frame,
    frame,
    refuse,
    stay,
    tick,
    tick_text,
    ticks,
)


class Answering:
    """A peer's side of a connection that answers every ping, even while another thread sends."""

    def __init__(self, caller: Caller) -> None:
        self.pings = 0
        self.pongs: list[bytes] = []
        self._caller = caller
        self._lock = threading.Lock()
        self._changed = threading.Condition()

    def send(self, *data: bytes) -> None:
        with self._lock:
            self._caller.send(*data)

    def read(self) -> None:
        """Answer until the client leaves."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                opcode, payload = self._caller.read_frame()
                if opcode == PING:
                    self.send(frame(payload, PONG))
                with self._changed:
                    self.pings += opcode == PING
                    if opcode == PONG:
                        self.pongs.append(payload)
                    self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), (self.pings, len(self.pongs))


# A peer that sends nothing, too much, or something wrong.


def test_a_stale_stream_can_be_reconnected(seen: Seen) -> None:
    """With `stale_reconnect`, a connection without messages is reported and replaced although it answers pings."""

    def mute(caller: Caller) -> None:
        caller.welcome(tick(1))
        Answering(caller).read()

    with (
        Peer(mute, stay(tick(2))) as peer,
        seen.listener(peer.url, stale_after=0.3, stale_reconnect=True, ping_interval=0.05, ping_timeout=PATIENCE),
    ):
        seen.wait_for(lambda: 2 in seen.prices)
        assert peer.accepted >= 2
    assert [type(error) for error in seen.errors[:2]] == [StaleStream, ConnectionFailed]
    assert "no tick for 0.3 s" in str(seen.errors[1])
    assert seen.errors[1].will_retry  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "settings", [{"stale_reconnect": True}, {"stale_reconnect": 1, "stale_after": 1.0}, {"stale_reconnect": None}]
)
def test_stale_reconnect_needs_stale_after(settings: dict[str, Any]) -> None:
    """`stale_reconnect` is a bool, and refused without `stale_after`."""
    with pytest.raises(ConfigurationError, match="stale_reconnect"):
        StreamListener(PAIR, api_key="some-key", **settings)


def test_silence_after_half_a_message_is_detected(seen: Seen) -> None:
    """If the rest of a message never arrives, the missing pong ends the connection, and no tick is delivered."""
    text = tick_text(7).encode()
    half = frame(text[:30], fin=False) + frame(text[30:50], 0, fin=False)
    silent: Script = lambda caller: (caller.welcome(tick(1), half), caller.wait_until_left())  # noqa: E731
    with Peer(silent, stay(tick(2))) as peer, seen.listener(peer.url, ping_interval=0.1, ping_timeout=0.5):
        seen.wait_for(lambda: 2 in seen.prices)
    assert seen.prices[:2] == [1, 2]
    assert "no answer to a ping within 0.5 s" in str(seen.errors[0])


def test_a_message_in_20000_fragments_arrives(seen: Seen, dispatch: str) -> None:
    """20,000 fragments are one tick, and every ping between them is answered."""
    text = tick_text(7).encode() + b" " * 20_000
    parts = [frame(text[at : at + 1], 0 if at else TEXT, fin=False) for at in range(20_000)]
    for at in range(1_000, 20_000, 1_000):
        parts[at] = frame(b"%d" % at, PING) + parts[at]
    answering: list[Answering] = []

    def script(caller: Caller) -> None:
        caller.welcome()
        answering.append(Answering(caller))
        answering[0].send(*[b"".join(parts), frame(text[20_000:], 0)])
        answering[0].read()

    with Peer(script) as peer, seen.listener(peer.url, dispatch=dispatch, ping_interval=0.1):
        seen.wait_ticks(1)
        answering[0].wait_for(lambda: len(answering[0].pongs) == 19)
        assert peer.accepted == 1
    assert seen.prices == [7]
    assert answering[0].pongs == [b"%d" % at for at in range(1_000, 20_000, 1_000)]
    assert seen.errors == []


@pytest.mark.parametrize("total", [40_000, pytest.param(120_000, marks=pytest.mark.slow)])
def test_a_burst_misses_no_pong(seen: Seen, dispatch: str, total: int) -> None:
    """In a burst at full speed, with pings in both directions, every ping is answered and every tick arrives."""
    batch = 2_000
    answering: list[Answering] = []

    def script(caller: Caller) -> None:
        caller.welcome()
        here = Answering(caller)
        answering.append(here)
        reader = threading.Thread(target=here.read, daemon=True)
        reader.start()
        for first in range(0, total, batch):
            here.send(frame(b"%d" % first, PING), ticks(first, first + batch - 1))
        reader.join()

    count = 0
    last = threading.Event()

    def on_tick(tick: Any) -> None:
        nonlocal count
        assert tick["price"] == count
        count += 1
        if count == total:
            last.set()

    with (
        Peer(script) as peer,
        seen.listener(
            peer.url, on_tick=on_tick, parse_price=int, dispatch=dispatch, ping_interval=0.02, ping_timeout=5.0
        ) as listener,
    ):
        assert last.wait(2 * PATIENCE), count
        answering[0].wait_for(lambda: len(answering[0].pongs) == total // batch)
        answering[0].wait_for(lambda: answering[0].pings > 0)
        assert listener.stats.reconnects == 0
        assert peer.accepted == 1
    assert [b"%d" % first for first in range(0, total, batch)] == answering[0].pongs
    assert seen.errors == []


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "latest"])
def test_a_stuck_callback_does_not_cost_the_connection(seen: Seen, overflow: str) -> None:
    """While a callback hangs, pings are sent and answered, and the queue stays within its size."""
    total, size = 500, 50
    gate, begun = threading.Event(), threading.Event()
    answering: SimpleQueue[Answering] = SimpleQueue()

    def script(caller: Caller) -> None:
        caller.welcome(tick(0))
        here = Answering(caller)
        answering.put(here)
        assert begun.wait(PATIENCE)
        here.send(ticks(1, total))
        here.read()

    def stuck(tick: Any) -> None:
        begun.set()
        assert gate.wait(PATIENCE)
        seen.on_tick(tick)

    with Peer(script) as peer:
        listener = seen.listener(
            peer.url,
            on_tick=stuck,
            overflow=overflow,
            queue_size=size,
            ping_interval=0.05,
            ping_timeout=2.0,
            parse_price=int,
        ).start()
        assert begun.wait(PATIENCE)
        # This takes longer than interval and timeout together.
        there = answering.get(timeout=PATIENCE)
        there.wait_for(lambda: there.pings >= 50)
        assert listener.stats.reconnects == 0
        stats = listener.stats.streams[PAIR]
        assert listener.state is State.STREAMING
        assert peer.accepted == 1
        assert stats.queue_depth <= size
        assert stats.lag is not None
        assert stats.lag > 0
        gate.set()
        seen.wait_for(lambda: total in seen.prices)
        after = listener.stats
        assert listener.stop()
    if overflow == "block":
        assert seen.prices == list(range(total + 1))
        assert size // 2 <= stats.queue_depth
        assert after.dropped == 0
    else:
        kept = total - size + 1 if overflow == "drop_oldest" else total
        assert seen.prices == [0, *range(kept, total + 1)]
        assert total + 1 - len(seen.prices) == after.dropped == sum(e.count for e in seen.of_type(TicksDropped))
        assert stats.last_tick["price"] == total  # type: ignore[index]
    assert {TicksDropped, SlowConsumer} >= {type(error) for error in seen.errors}


# Callbacks that misbehave.


def _raise(error: BaseException) -> None:
    raise error


#: Everything that a callback does with its listener.
DEEDS: dict[str, Callable[[StreamListener], object]] = {
    "raise": lambda listener: _raise(ValueError("of the callback's own")),
    "SystemExit": lambda listener: _raise(SystemExit(3)),
    "KeyboardInterrupt": lambda listener: _raise(KeyboardInterrupt()),
    "stop": lambda listener: listener.stop(),
    "stop without drain": lambda listener: listener.stop(0.0, drain=False),
    "add": lambda listener: listener.add("ETH:USDC"),
    "remove": lambda listener: listener.remove(PAIR) if PAIR in listener.symbols else None,
    "join": lambda listener: listener.join(),
    "start": lambda listener: listener.start(),
    "loop": lambda listener: next(iter(listener)),
    "stats": lambda listener: repr((listener.stats, listener)),
    "with": lambda listener: listener.__exit__(None, None, None),
}


@pytest.mark.parametrize("event", ["tick", "error", "notice", "state", "gap"])
@pytest.mark.parametrize("deed", DEEDS)
def test_no_callback_can_hang_a_listener(seen: Seen, dispatch: str, event: str, deed: str) -> None:
    """Anything that a callback does returns or raises, and the listener can be stopped and leaves no thread."""
    done = threading.Event()
    raised: list[BaseException] = []

    def do(*arguments: object) -> None:
        try:
            DEEDS[deed](listener)
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            done.set()

    first: Script = lambda caller: (  # noqa: E731
        caller.welcome(tick(1), frame("no json"), frame('{"keepAlive":true}')),
        caller.leave(),
    )
    with Peer(first, stay(tick(2), tick(3))) as peer:
        listener = StreamListener(
            PAIR,
            api_key="some-key",
            endpoint=peer.url,
            dispatch=dispatch,
            backfill=False,
            reconnect=ReconnectPolicy(initial=0.001, jitter=False),
            **{f"on_{event}": do},
        )
        listener.start()
        assert done.wait(PATIENCE)
        assert listener.stop(PATIENCE)
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            assert listener.join(PATIENCE)
    for thread in threading.enumerate():
        # A handshake that was in progress may need a moment to end.
        if thread.name.startswith(listener.name + "-"):
            thread.join(PATIENCE)
            assert not thread.is_alive()
    if deed in ("join", "loop"):
        assert isinstance(raised[0], ConfigurationError)
        assert "would wait for itself" in str(raised[0])


def test_on_error_is_not_called_for_its_own_error(seen: Seen, dispatch: str, caplog: pytest.LogCaptureFixture) -> None:
    """If a callback and `on_error` both raise for each tick, all ticks arrive. The log has the 1st, 10th … error."""
    errors: list[Exception] = []

    def broken(tick: Any) -> None:
        raise ValueError("the tick callback's")

    def worse(error: Any) -> None:
        errors.append(error)
        raise RuntimeError("the error callback's")

    with Peer(stay(ticks(1, 5))) as peer:
        listener = seen.listener(peer.url, on_tick=broken, on_error=worse, dispatch=dispatch)
        listener.on_tick(seen.on_tick)
        with listener:
            seen.wait_ticks(5)
    assert seen.prices == [1, 2, 3, 4, 5]
    assert [type(error) for error in errors] == [CallbackError] * 5
    assert caplog.text.count("RuntimeError: the error callback's") == 1
    assert listener.stats.callback_errors == 10


# Ends of connections.


def broken_off(*sent: bytes, reset: bool) -> Script:
    """A script that sends a tick and these bytes, then ends TCP."""

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        caller.send(*sent)
        if reset:
            caller.reset()
        else:
            caller.leave()

    return script


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize(
    "sent",
    [
        tick(2)[:1],
        tick(2)[:2],
        tick(2)[:3],
        tick(2)[:50],
        tick(2)[:-1],
        frame(tick_text(2).encode()[:50], fin=False),
        frame(tick_text(2).encode(), fin=False),
        close_frame(1000)[:3],
        frame(b"ping", PING)[:3],
    ],
    ids=["1 byte", "header", "3 bytes", "half", "all but 1", "fragment", "all but FIN", "half a close", "half a ping"],
)
def test_an_incomplete_frame_is_not_delivered(seen: Seen, sent: bytes, reset: bool) -> None:
    """An incomplete frame causes no tick and no other error, and the stream continues on a new connection."""
    with Peer(broken_off(sent, reset=reset), stay(tick(3))) as peer, seen.listener(peer.url):
        seen.wait_for(lambda: 3 in seen.prices)
    # A reset may drop data that was sent before it.
    assert seen.prices in ([1, 3], [3])
    assert [type(error) for error in seen.errors] == [ConnectionFailed]


@pytest.mark.parametrize("dispatch_", ["thread", "inline"])
def test_data_after_a_close_is_ignored(seen: Seen, dispatch_: str) -> None:
    """Ticks before a close frame are delivered, ticks after it aren't."""
    with (
        Peer(stay(tick(1), close_frame(1012), tick(2), frame("x", rsv=3)), stay(tick(3))) as peer,
        seen.listener(peer.url, dispatch=dispatch_),
    ):
        seen.wait_for(lambda: 3 in seen.prices)
    assert seen.prices == [1, 3]
    assert [error.close_code for error in seen.errors] == [1012]  # type: ignore[attr-defined]


def test_a_close_within_a_fragmented_message_drops_it(seen: Seen) -> None:
    """A close frame between fragments ends the message, and nothing of it is delivered."""
    text = tick_text(2).encode()
    cut = frame(text[:50], fin=False) + close_frame(1001) + frame(text[50:], 0)
    with Peer(stay(tick(1), cut), stay(tick(3))) as peer, seen.listener(peer.url):
        seen.wait_for(lambda: 3 in seen.prices)
    assert seen.prices == [1, 3]
    assert [error.close_code for error in seen.errors] == [1001]  # type: ignore[attr-defined]


#: Codes that may not be sent: RFC 6455, section 7.4.
RESERVED_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2999, 5000, 65_535)
TRANSIENT = (1000, 1001, 1002, 1003, 1007, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4000, 4001, 4321, 4999)


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_transient_close_is_followed_by_a_reconnect(seen: Seen, code: int) -> None:
    """The error has the code and the reason."""
    with Peer(stay(tick(1), close_frame(code, b"why")), stay(tick(2))) as peer, seen.listener(peer.url):
        seen.wait_for(lambda: 2 in seen.prices)
    assert seen.prices == [1, 2]
    (error,) = seen.errors
    assert (ConnectionFailed, code) == (type(error), error.close_code)  # type: ignore[attr-defined]
    assert f"({code}" in str(error)
    assert "'why'" in str(error)


@pytest.mark.parametrize("code", RESERVED_CODES)
def test_a_close_with_a_reserved_code_is_a_protocol_error(seen: Seen, code: int) -> None:
    """A reserved code is a `ProtocolError`, which the server gets as code 1002, and the stream continues."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        caller.welcome(tick(1), close_frame(code))
        answers.append(caller.read_frame())

    with Peer(script, stay(tick(2))) as peer, seen.listener(peer.url):
        seen.wait_for(lambda: 2 in seen.prices)
    assert seen.prices == [1, 2]
    assert [type(error) for error in seen.errors] == [ProtocolError]
    assert [(CLOSE, (1002).to_bytes(2, "big"))] == answers


def test_a_close_without_a_code_is_followed_by_a_reconnect(seen: Seen) -> None:
    """A close frame without a code is a loss like any other."""
    with Peer(stay(tick(1), frame(b"", CLOSE)), stay(tick(2))) as peer, seen.listener(peer.url):
        seen.wait_for(lambda: 2 in seen.prices)
    assert "without a code" in str(seen.errors[0])


def test_a_policy_close_ends_the_listener(seen: Seen) -> None:
    """With a fixed key, code 1008 ends the listener, and join() raises the error."""
    with Peer(stay(tick(1), close_frame(1008, b"revoked"))) as peer:
        listener = seen.listener(peer.url).start()
        with pytest.raises(AuthenticationError, match="1008"):
            listener.join(PATIENCE)
        assert listener.state is State.FAILED
        assert peer.accepted == 1


# Keys that are revoked during a stream.


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda: None, "returned no key"),
        (lambda: "", "returned no key"),
        (lambda: 5, "is a int, not a str"),
        (lambda: "with space", "white space"),
    ],
)
def test_a_key_callable_without_a_new_key_ends_the_listener(seen: Seen, answer: Callable[[], Any], text: str) -> None:
    """After a revoked key, the error says what the callable returned, and the old key isn't tried again."""
    answers = iter([lambda: "first-key"])
    with Peer(stay(tick(1), close_frame(1008)), refuse("401 No")) as peer:
        listener = seen.listener(peer.url, api_key=lambda: next(answers, answer)()).start()
        with pytest.raises(AuthenticationError, match=text):
            listener.join(PATIENCE)
        assert peer.accepted == 1


def test_a_blocking_key_callable_is_bounded(seen: Seen) -> None:
    """After a revoked key, a callable that blocks is reported after `connect_timeout` and called again."""
    release = threading.Event()
    asked = 0

    def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            release.wait(PATIENCE)
        return f"key-number-{asked}"

    with Peer(stay(tick(1), close_frame(1008)), stay(tick(2))) as peer:
        try:
            with seen.listener(peer.url, api_key=ask, connect_timeout=1.0):
                seen.wait_for(lambda: 2 in seen.prices)
        finally:
            release.set()
    assert not any(b"/key-number-2/" in request for request in peer.requests)
    # On a busy machine, a later attempt may take more than a second as well.
    assert [type(error) for error in seen.errors[:2]] == [AuthenticationError, ConnectionFailed]
    assert "no connection within 1 s" in str(seen.errors[1])


# Clocks.


@pytest.mark.parametrize("step", [-3_600.0, 3_600.0, -1e9])
def test_a_step_of_the_clock_has_no_effect(seen: Seen, monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """Pings, deadlines, staleness and backoff use the monotonic clock, so setting the system clock changes nothing."""
    answering: list[Answering] = []

    def script(caller: Caller) -> None:
        # Before the tick, because the test uses it as soon as the tick arrives.
        answering.append(Answering(caller))
        caller.welcome(tick(1))
        answering[0].read()

    real, real_ns = time.time, time.time_ns
    settings = {"ping_interval": 0.05, "ping_timeout": PATIENCE, "stale_after": 600.0, "connect_timeout": 600.0}
    with Peer(script, stay(tick(2))) as peer, seen.listener(peer.url, **settings) as listener:
        seen.wait_ticks(1)
        monkeypatch.setattr(time, "time", lambda: real() + step)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(step * 1e9))
        before = answering[0].pings
        answering[0].wait_for(lambda: answering[0].pings >= before + 5)
        assert seen.errors == []
        # A loss after the step is reconnected as fast as before.
        answering[0].send(close_frame(1012))
        seen.wait_for(lambda: 2 in seen.prices)
        assert listener.stats.reconnects == 1
    assert [error.close_code for error in seen.errors] == [1012]  # type: ignore[attr-defined]


# Arguments with which no tick would ever arrive.


@pytest.mark.parametrize("exchanges", [["binance"], ["BINANCE", "Kraken"], {"gemini"}])
def test_misspelled_exchanges_are_refused(exchanges: Any) -> None:
    """Exchanges in lower case would match no tick, so the error names the right spelling."""
    with pytest.raises(ConfigurationError, match=r"BINANCE|KRAKEN|GEMINI"):
        StreamListener(PAIR, api_key="some-key", exchanges=exchanges)


@pytest.mark.parametrize("running", [False, True])
def test_a_loop_without_symbols_is_refused(seen: Seen, running: bool) -> None:
    """A loop without symbols would wait forever, so it raises an error and starts nothing."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url)
        listener.remove(PAIR)
        if running:
            listener.start()
        with pytest.raises(ConfigurationError, match=r"no symbols.*add\(\)"):
            next(iter(listener))
        assert listener.stop()
        listener.add(PAIR)
        for received in listener:
            assert received["price"] == 1.0
            break
