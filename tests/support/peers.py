"""A server on a raw socket that sends exactly the test's bytes, and a recorder of a listener's callbacks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from finx_streamer import FinxStreamerError, Gap, Greeks, Notice, ReconnectPolicy, State, StreamListener, Tick

#: The bound for everything that a test waits for, in seconds. No test passes because of it.
PATIENCE = 20.0
#: Reconnects at once, without a backoff.
QUICK = ReconnectPolicy(initial=0.01, factor=1.0, jitter=False)

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
PAIR = "BTC:USDC"


def frame(
    payload: bytes | str, opcode: int = TEXT, *, fin: bool = True, rsv: int = 0, announced: int | None = None
) -> bytes:
    """A server's frame. `announced` is a length for the header that may be wrong."""
    data = payload.encode() if isinstance(payload, str) else payload
    length = len(data) if announced is None else announced
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if length < 126:
        return head + bytes([length]) + data
    if length < 1 << 16:
        return head + b"\x7e" + struct.pack("!H", length) + data
    return head + b"\x7f" + struct.pack("!Q", length) + data


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(struct.pack("!H", code) + reason, CLOSE)


def tick_text(number: int, pair: str = PAIR, exchange: str = "BINANCE") -> str:
    """The message of a tick. Its price is its number."""
    data = {"pair": pair, "date": "2022-07-02", "time": "15:30:55.817Z", "exchange": exchange, "price": f"{number}"}
    return json.dumps({"results": "streaming", "resultData": data})


def tick(number: int, pair: str = PAIR, exchange: str = "BINANCE") -> bytes:
    """The frame of a tick. Its price is its number."""
    return frame(tick_text(number, pair, exchange))


def ticks(first: int, last: int, pair: str = PAIR) -> bytes:
    """The frames of the ticks from `first` to `last`, both included."""
    return b"".join(tick(number, pair) for number in range(first, last + 1))


def raw_tick(number: int) -> dict[str, str]:
    """A tick of a tape. Its price is its number and ten cents. Even numbers are BINANCE's, odd ones KRAKEN's."""
    return {
        "pair": PAIR,
        "date": "2022-07-02",
        "time": "15:30:55.817Z",
        "exchange": ("BINANCE", "KRAKEN")[number % 2],
        "price": f"{number}.10",
    }


class Caller:
    """The server's side of one connection. An I/O error ends its script silently, because the client left."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        #: 0 for the first connection that the peer accepted.
        self.number = number
        self.request = b""
        self._read = b""

    @property
    def path(self) -> str:
        return self.request.split(b" ", 2)[1].decode()

    def send(self, *data: bytes) -> None:
        """Send all of it in one call."""
        self.sock.sendall(b"".join(data))

    def read_request(self) -> bytes:
        """The client's half of the handshake. Can be called again."""
        if self.request:
            return self.request
        while b"\r\n\r\n" not in self._read:
            self._read += self._more()
        self.request, _, self._read = self._read.partition(b"\r\n\r\n")
        return self.request

    def welcome(self, *glued: bytes) -> None:
        """Complete the handshake, with frames in the same segment."""
        self.send(self.acceptance(), *glued)

    def acceptance(self, *headers: str) -> bytes:
        """The server's half of the handshake."""
        found = re.search(rb"Sec-WebSocket-Key: (\S+)", self.read_request())
        assert found, self.request
        digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accept = base64.b64encode(digest).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Accept: {accept}", *headers, "", ""]
        return "\r\n".join(lines).encode()

    def refuse(self, status: str, headers: str = "", body: str = "") -> None:
        """Answer the handshake with another status, such as "401 Unauthorized"."""
        self.read_request()
        self.send(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    def read_frame(self) -> tuple[int, bytes]:
        """The client's next frame, unmasked: its opcode and payload."""
        first, second = self._exactly(2)
        assert second & 0x80, "a client's frame must be masked"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._exactly(8))
        mask = self._exactly(4)
        return first & 0xF, bytes(byte ^ mask[at % 4] for at, byte in enumerate(self._exactly(length)))

    def wait_until_left(self) -> None:
        """Read until the client is gone."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                self._more()

    def leave(self) -> None:
        """End TCP without a close frame."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def reset(self) -> None:
        """End TCP with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            self._read += self._more()
        data, self._read = self._read[:size], self._read[size:]
        return data

    def _more(self) -> bytes:
        data = self.sock.recv(65_536)
        if not data:
            raise EOFError
        return data


Script = Callable[[Caller], None]


class Peer:
    """Runs a script in a new thread for each connection: the nth for the nth connection, the last for all others."""

    def __init__(self, *scripts: Script, context: ssl.SSLContext | None = None, receive_buffer: int = 0) -> None:
        self._scripts = scripts
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        if receive_buffer:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.port = self._listening.getsockname()[1]
        self._changed = threading.Condition()
        self._callers: list[Caller] = []
        self._accepted = 0
        self._faults: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"{'wss' if self._context else 'ws'}://127.0.0.1:{self.port}/"

    @property
    def accepted(self) -> int:
        """How many connections it has accepted."""
        return self._accepted

    @property
    def requests(self) -> list[bytes]:
        """The handshakes that it has read."""
        return [caller.request for caller in list(self._callers)]

    def wait_accepted(self, count: int) -> None:
        """Wait until `count` connections were accepted."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._accepted >= count, PATIENCE), f"{self._accepted} of {count}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join(PATIENCE)
        for caller in self._callers:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(caller.sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for caller in self._callers:
            caller.sock.close()
        if self._faults and error is None:
            raise self._faults[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock, self._accepted), daemon=True)
            self._threads.append(thread)
            with self._changed:
                self._accepted += 1
                self._changed.notify_all()
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        caller = Caller(sock, number)
        self._callers.append(caller)
        try:
            if self._context is not None:
                caller.sock = self._context.wrap_socket(sock, server_side=True)
            self._scripts[min(number, len(self._scripts) - 1)](caller)
        except (OSError, EOFError):
            pass
        except BaseException as fault:
            self._faults.append(fault)


def stay(*sent: bytes) -> Script:
    """A script that completes the handshake, sends these bytes, and stays until the client leaves."""

    def script(caller: Caller) -> None:
        caller.welcome(*sent)
        caller.wait_until_left()

    return script


def leave_after(*sent: bytes) -> Script:
    """A script that completes the handshake, sends these bytes, and ends TCP."""

    def script(caller: Caller) -> None:
        caller.welcome(*sent)
        caller.leave()

    return script


def hang(caller: Caller) -> None:
    """A script that reads the request and doesn't answer."""
    caller.read_request()
    caller.wait_until_left()


def watched(script: Script) -> tuple[Script, threading.Event, threading.Event]:
    """The script, an event for the client's first byte, and an event for the script's end."""
    begun, left = threading.Event(), threading.Event()

    def noting(caller: Caller) -> None:
        caller.sock.recv(1, socket.MSG_PEEK)
        begun.set()
        try:
            script(caller)
        finally:
            left.set()

    return noting, begun, left


def refuse(status: str, headers: str = "", body: str = "") -> Script:
    """A script that refuses the handshake."""
    return lambda caller: caller.refuse(status, headers, body)


def free_port() -> int:
    """A port of 127.0.0.1 that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Seen:
    """Records a listener's callbacks, and lets a test wait for them."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.greeks: list[Greeks] = []
        self.errors: list[FinxStreamerError] = []
        self.notices: list[Notice] = []
        self.states: list[tuple[str, State]] = []
        self.gaps: list[Gap] = []
        self._changed = threading.Condition()

    def listener(self, endpoint: str, *symbols: str, **settings: Any) -> StreamListener:
        """A listener with these callbacks. By default: one pair, fast reconnects, and no backfill, which peers lack."""
        defaults = {"api_key": "demo", "reconnect": QUICK, "on_tick": self.on_tick, "on_error": self.on_error}
        defaults |= {"on_notice": self.on_notice, "on_state": self.on_state}
        defaults |= {"on_gap": self.on_gap, "on_greeks": self.on_greeks, "backfill": False}
        return StreamListener(*(symbols or (PAIR,)), endpoint=endpoint, **defaults | settings)

    def on_tick(self, tick: Tick) -> None:
        self._keep(self.ticks, tick)

    def on_greeks(self, greeks: Greeks) -> None:
        self._keep(self.greeks, greeks)

    def on_error(self, error: FinxStreamerError) -> None:
        self._keep(self.errors, error)

    def on_gap(self, gap: Gap) -> None:
        self._keep(self.gaps, gap)

    def on_notice(self, notice: Notice) -> None:
        self._keep(self.notices, notice)

    def on_state(self, symbol: str, state: State) -> None:
        self._keep(self.states, (symbol, state))

    @property
    def prices(self) -> list[int]:
        """The ticks' prices: their numbers."""
        return [int(tick["price"]) for tick in list(self.ticks)]

    def of_type(self, kind: type[FinxStreamerError]) -> list[Any]:
        """The errors of exactly this type."""
        return [error for error in list(self.errors) if type(error) is kind]

    def wait_for(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait for a condition that callbacks make true."""
        with self._changed:
            assert self._changed.wait_for(condition, patience), self

    def wait_ticks(self, count: int) -> None:
        self.wait_for(lambda: len(self.ticks) >= count)

    def wait_greeks(self, count: int) -> None:
        self.wait_for(lambda: len(self.greeks) >= count)

    def wait_errors(self, count: int) -> None:
        self.wait_for(lambda: len(self.errors) >= count)

    def __repr__(self) -> str:
        errors = f"{len(self.errors)} errors {self.errors[:9]}"
        return f"{len(self.ticks)} ticks, {errors}, notices {self.notices[:9]}, {self.states[:9]}"

    def _keep(self, where: list[Any], what: object) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()
