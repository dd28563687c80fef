"""One websocket connection. The only module that imports `websocket`.

A handshake blocks, so `open_connection` runs in a worker thread: it resolves, connects, shakes hands (TLS, then HTTP)
and returns a `Connection`, all within one deadline and open to `Attempt.cancel` from another thread. From then on
nothing blocks: the network thread calls `fill` when the socket is readable, `messages` for what is complete, `flush`
when it is writable.

`Wire` is what the library believes to be its socket. During the handshake it waits, up to the deadline; afterwards it
gives out buffered bytes, and raises `_NeedMore` where the library would have blocked inside a frame. The library's
frame buffer can be resumed after that, so half a frame costs nothing but memory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import attrs
import websocket
from websocket import ABNF, WebSocketApp

from ._version import __version__
from .endpoint import Endpoint, redact
from .errors import AuthenticationError, ConnectionFailed, ProtocolError, RateLimited, StreamNotFound
from .frames import LONGEST_QUICK, Fragments, FrameError, check_next, text_frames, too_large
from .http_answers import HttpAnswer, without_cookies
from .keys import KeySource, Secret
from .proxies import DIRECT, Proxy, ProxyChoice
from .symbols import Symbol

logger = logging.getLogger("finx_streamer")

#: Larger reads make malloc map and unmap memory at every call.
READ_SIZE = 65_536
MAX_HEADER = 65_536
MAX_MESSAGE = 16 * 1024 * 1024
#: A peer that makes us answer but does not read has to be given up at some point.
MAX_UNSENT = 1024 * 1024
#: What the ping carries that asks whether everything sent before has arrived.
_PROBE = b"seam"
#: How much of a refusal's body is shown, and of what should be a status line: in characters.
_BODY_SHOWN, _LINE_SHOWN = 200, 80


_hushed = threading.local()


@contextlib.contextmanager
def _hush() -> Iterator[None]:
    """Within it the library does not log the end of a connection, which it calls an error though it be our own stop.

    What there is to tell is told once, by an error of ours.
    """
    _hushed.here = True
    try:
        yield
    finally:
        _hushed.here = False


def _is_news(record: logging.LogRecord) -> bool:
    return not (getattr(_hushed, "here", False) and record.getMessage().endswith(" - goodbye"))


logging.getLogger("websocket").addFilter(_is_news)


class _NeedMore(Exception):
    """The bytes received so far end within a frame."""


class _Refused(Exception):
    """The server answered the handshake with something else than a switch of protocols."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@attrs.frozen
class Target:
    """All that a connection needs, the key left out: that is asked for when the attempt begins."""

    endpoint: Endpoint
    #: None: a connection for function calls.
    symbol: Symbol | None
    keys: KeySource
    connect_timeout: float
    ssl_context: Callable[[], ssl.SSLContext]
    max_message: int = MAX_MESSAGE
    proxies: ProxyChoice = DIRECT

    def url(self, key: Secret) -> str:
        """It holds the key."""
        if self.symbol is None:
            return self.endpoint.functions_url(key)
        return self.endpoint.stream_url(self.symbol, key)


class Attempt:
    """A handshake under way. `cancel` may be called from any thread, at any time."""

    def __init__(self, refused_key: Secret | None = None, key: Secret | None = None) -> None:
        #: A key that is not worth another try.
        self.refused_key = refused_key
        #: The key to use, where it is known beforehand; else, once it is known, the one that was used.
        self.key = key
        #: A key that was asked for when this attempt's was refused, for the next one.
        self.next_key: Secret | None = None
        #: Host and port of the proxy that it goes through, once that is known.
        self.proxy: str | None = None
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None

    def begin(self, timeout: float) -> None:
        """The time runs from here."""
        self._deadline = time.monotonic() + timeout

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._socket is not None:
                # Wakes a thread that is blocked on it; closing would not.
                # (The plain socket's way: that of a TLS socket would take its state from under that thread.)
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def remaining(self) -> float:
        """Seconds left; raises when there are none, or when nobody wants the connection any more."""
        left = self._deadline - time.monotonic()
        if self._cancelled or left <= 0:
            raise TimeoutError("timed out")
        return left

    def watch(self, sock: socket.socket) -> None:
        """Make `sock` the one that `cancel` interrupts."""
        with self._lock:
            self._socket = sock
        self.remaining()


class Wire:
    """The library's socket: blocking up to a deadline at first, a pair of buffers after `go_live`."""

    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        self.socket = sock
        self.secure = isinstance(sock, ssl.SSLSocket)
        self.received_ns = 0
        self.bytes_received = 0
        self._attempt: Attempt | None = attempt
        #: What was read, and up to where it was taken.
        self.buffer = b""
        self.at = 0
        #: How many bytes the library may take: those of the frame that was checked. The next is checked first.
        self.granted = 0
        #: What could not be sent yet.
        self.unsent = bytearray()

    # What the library calls. It asks for a timeout of 0 to find out that there is nothing to wait for.

    _closed = False

    def gettimeout(self) -> float:
        return 0.0

    def settimeout(self, timeout: float | None) -> None:
        """Deadlines are ours."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def shutdown(self, how: int) -> None:
        """The connection is closed by its owner, who may still have to flush."""

    def close(self) -> None:
        """The connection is closed by its owner, who may still have to flush."""

    def recv(self, size: int) -> bytes:
        if self._attempt is not None:
            if self.at == len(self.buffer):
                self._wait_for_response(self._attempt)
        else:
            size = min(size, self.granted)
            if not size or self.at == len(self.buffer):
                raise _NeedMore
        data = self.buffer[self.at : self.at + size]
        self.at += len(data)
        self.granted -= len(data)
        return data

    def send(self, data: bytes) -> int:
        if self._attempt is not None:
            self.socket.settimeout(self._attempt.remaining())
            self.socket.sendall(_without_cookie(data))
        else:
            self.unsent += data
            self.flush()
        return len(data)

    # What the handshake and the network thread call.

    def go_live(self) -> None:
        """From here on nothing blocks."""
        self._attempt = None
        self.granted = 0
        self.socket.setblocking(False)

    def fill(self) -> int:
        """Read what has arrived, up to about `READ_SIZE`; the number of bytes. Raises OSError; EOFError at the end."""
        try:
            data = self.socket.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        if not data:
            raise EOFError
        if self.secure:
            data = self._with_read_ahead(data)
        self.received_ns = time.time_ns()
        self.bytes_received += len(data)
        self.buffer = data if self.at == len(self.buffer) else self.buffer[self.at :] + data
        self.at = 0
        return len(data)

    def _with_read_ahead(self, data: bytes) -> bytes:
        """TLS gives out one record of 16 KiB at most, and no poller sees what it has read besides."""
        parts, size = [data], len(data)
        # Whatever ends the connection here ends it again at the next read.
        with contextlib.suppress(OSError):
            while size < READ_SIZE and data:
                data = self.socket.recv(READ_SIZE - size)
                parts.append(data)
                size += len(data)
            if rest := self.socket.pending():  # type: ignore[attr-defined]
                parts.append(self.socket.recv(rest))
        return b"".join(parts)

    def flush(self) -> None:
        """Send what can be sent without waiting. Raises OSError where the peer has left too much of it unread."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:
                # The peer takes no more, but what it said before is still to be read, and the end of it all behind.
                self.unsent.clear()
                break
            del self.unsent[:sent]
        if len(self.unsent) > MAX_UNSENT:
            raise OSError("the peer does not read what it asks for")

    def _wait_for_response(self, attempt: Attempt) -> None:
        """The server's answer to the handshake, whole: read byte by byte it would cost a system call each."""
        if self.buffer:
            raise EOFError  # the answer was all there, and the library asks for more
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            if len(answer) > MAX_HEADER:
                raise ProtocolError(
                    f"the answer to the handshake has a header of over {MAX_HEADER} bytes", permanent=True
                )
            self.socket.settimeout(attempt.remaining())
            data = self.socket.recv(4_096)
            if not data:
                raise EOFError
            answer += data
            if not b"HTTP/".startswith(answer[:5]):
                raise ProtocolError("the server does not speak HTTP, and so no websocket", permanent=True)
        # Frames may lie behind the answer already.
        self.received_ns = time.time_ns()
        self.bytes_received = len(answer)
        self.buffer = without_cookies(bytes(answer))
        _check_answer(self.buffer)


def _without_cookie(request: bytes) -> bytes:
    """A handshake without what the library's jar, which all of the process share, would have us send."""
    ours, cookie, _ = request.partition(b"\r\nCookie: ")
    # It comes last, and may hold line breaks.
    return ours + b"\r\n\r\n" if cookie else request


class _Doorstep:
    """The library's dispatcher: takes note of how to read a frame, and leaves the waiting to the network thread."""

    def __init__(self) -> None:
        self.read_frame: Callable[[], bool] | None = None

    def read(self, sock: Wire, read_callback: Callable[[], bool], check_callback: Callable[[], bool]) -> None:
        sock.go_live()
        self.read_frame = read_callback

    def send(self, sock: Wire, data: bytes) -> int:
        return sock.send(data)


@attrs.frozen
class Binary:
    """A binary message, which FinX does not send."""

    payload: bytes


class Connection(WebSocketApp):  # type: ignore[misc, unused-ignore]
    """A `WebSocketApp` whose frames are read when the network thread says so."""

    def __init__(self, url: str, wire: Wire, key: Secret, max_message: int) -> None:
        super().__init__(
            url,
            header={"User-Agent": f"finx-streamer/{__version__}"},
            socket=wire,  # type: ignore[arg-type]
            on_data=_on_data,
            on_error=_on_error,
            on_close=_on_close,
            on_pong=_on_pong,
        )
        self.wire = wire
        self.key = key
        self.failure: BaseException | None = None
        #: Whether the ping that was to probe the connection has been answered; None: there was none.
        self.probe_answered: bool | None = None
        #: How the connection ended, once its end has been read.
        self.ended: ConnectionFailed | None = None
        self._doorstep = _Doorstep()
        self._max_message = max_message
        self._fragments = Fragments()
        self._received: list[bytes | Binary] = []

    def create_dispatcher(
        self, ping_timeout: object, dispatcher: Any = None, is_ssl: bool = False, handleDisconnect: object = None
    ) -> Any:
        return dispatcher

    def shake_hands(self) -> None:
        """The HTTP part of the handshake. Raises whatever went wrong."""
        with _hush():
            self.run_forever(dispatcher=self._doorstep, skip_utf8_validation=True, suppress_origin=True)
        # The URL has served its purpose; what does not hold the key can't show it.
        self.url = redact(self.url)
        if self._doorstep.read_frame is None or self.sock is None:
            raise self.failure or EOFError()
        self.sock.cont_frame = self._fragments  # type: ignore[assignment]
        # It checks messages in Python, a byte at a time, and so is told not to; but the reason of a close frame may be.
        self.sock.frame_buffer.skip_utf8_validation = False

    @property
    def before_message(self) -> bool:
        """Whether what is read next begins a message, and is not within one, or behind the end."""
        return not self.wire.granted and self._fragments.begun is None and self.ended is None

    def messages(self, limit: int) -> list[bytes | Binary]:
        """Up to `limit` messages of what has been read, in order. Sets `ended` where the stream's end is among them."""
        received: list[bytes | Binary] = []
        self._received = received
        try:
            while len(received) < limit and self.ended is None and self._take_frames(limit - len(received)):
                pass
        except FrameError as fault:
            self.fail(fault.error(), fault.code)
        except websocket.WebSocketException as fault:
            self.fail(FrameError(redact(str(fault))).error(), 1002)
        except OSError as fault:
            self.ended = translate(fault)
        return received

    @property
    def between_messages(self) -> bool:
        """Whether it is open, and all that has been read was taken: nothing of a further message."""
        return self.before_message and self.wire.at == len(self.wire.buffer)

    def _take_frames(self, limit: int) -> bool:
        """Read a run of plain text frames, or one frame of another kind by way of the library. False: out of bytes."""
        wire = self.wire
        if not wire.granted:
            if self._fragments.begun is None:
                payloads, wire.at = text_frames(wire.buffer, wire.at, limit)
                if payloads:
                    self._take_texts(payloads)
                    return wire.at < len(wire.buffer)
            wire.granted = check_next(wire.buffer, wire.at, self._fragments.begun, self._max_message)
            if not wire.granted:
                return False
        self._read_frame()
        return not wire.granted

    def _read_frame(self) -> None:
        """Have the library read the frame that was checked, as far as it is there."""
        read_frame = self._doorstep.read_frame
        assert read_frame is not None
        # It asks for more at the end of a fragment too, where it wants the next one.
        with contextlib.suppress(_NeedMore), _hush():
            if not read_frame() and self.ended is None:
                self.ended = closed(None, None)

    def _take_texts(self, payloads: list[bytes]) -> None:
        if self._max_message < LONGEST_QUICK and max(map(len, payloads), default=0) > self._max_message:
            # The quick reader knows of no such bound.
            self._take_texts([*takewhile(lambda payload: len(payload) <= self._max_message, payloads)])
            raise too_large(self._max_message)
        if not all(map(bytes.isascii, payloads)):
            for number, payload in enumerate(payloads):
                try:
                    payload.decode("utf-8")
                except UnicodeDecodeError:
                    self._received += payloads[:number]
                    raise FrameError("a text message that is not UTF-8", 1007) from None
        self._received += payloads

    def fail(self, error: ConnectionFailed, code: int) -> None:
        """End the connection for a fault of the peer's, and tell it so."""
        self.ended = error
        self.say_goodbye(code)

    def say_goodbye(self, code: int = 1000) -> None:
        """Send a close frame, as far as that goes without waiting."""
        with contextlib.suppress(Exception):
            if self.sock is not None and self.sock.connected:
                self.sock.send_close(code)

    def send_ping(self) -> None:
        """Raises OSError where the connection is lost."""
        if self.sock is not None:
            self.sock.ping()

    def send_probe(self) -> None:
        """A ping whose answer is noted in `probe_answered`. Raises OSError where the connection is lost."""
        self.probe_answered = False
        if self.sock is not None:
            self.sock.ping(_PROBE)

    def send_keep_alive(self) -> None:
        """FinX's own keepAlive (source: D). Raises OSError where the connection is lost."""
        self.send_request({"functionName": "keepAlive"})

    def send_request(self, request: dict[str, Any]) -> None:
        """A function call (source: D), to which the key is added. Raises OSError where the connection is lost."""
        if self.sock is not None:
            self.sock.send_text(json.dumps({"APIKey": self.key.reveal(), **request}))

    def dispose(self) -> None:
        """Close the socket at once, and let go of what refers back to here."""
        sock = self.wire.socket
        with contextlib.suppress(OSError):
            self.wire.flush()
        if isinstance(sock, ssl.SSLSocket):
            # Tells the peer that nothing was cut off; it does not wait for the answer.
            with contextlib.suppress(OSError, ValueError):
                sock.unwrap()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        self.sock = None
        self._doorstep.read_frame = None

    def leave(self) -> None:
        """Say goodbye, and close."""
        self.say_goodbye()
        self.dispose()

    def take_data(self, payload: bytes, opcode: int) -> None:
        """One whole message, from the library."""
        if opcode == ABNF.OPCODE_BINARY:
            self._received.append(Binary(payload))
            return
        try:
            self._take_texts([payload])
        except FrameError as fault:
            # The library would swallow it.
            self.fail(fault.error(), fault.code)

    def take_close(self, code: int | None, reason: str | None) -> None:
        """The end of the connection, from the library."""
        if self._doorstep.read_frame is not None and self.ended is None:
            self.ended = closed(code, reason)


# The library's callbacks. Bound methods would make a reference cycle, and keep a dead connection until a collection.


def _on_data(connection: Any, payload: bytes, opcode: int, _final: bool) -> None:
    connection.take_data(payload, opcode)


def _on_error(connection: Any, error: BaseException) -> None:
    connection.failure = error


def _on_pong(connection: Any, payload: bytes) -> None:
    if payload == _PROBE and connection.probe_answered is False:
        connection.probe_answered = True


def _on_close(connection: Any, code: int | None, reason: str | None) -> None:
    connection.take_close(code, reason)


def open_connection(target: Target, attempt: Attempt) -> Connection:
    """Connect and shake hands, within the attempt's deadline. Raises `ConnectionFailed`, with no key in it."""
    attempt.begin(target.connect_timeout)
    try:
        return _open(target, attempt)
    except ConnectionFailed as error:
        error.__context__ = None
        raise error.with_traceback(None) from error.__cause__
    except Exception as cause:
        way = f" (through the proxy {attempt.proxy})" if attempt.proxy else ""
        failure = translate(cause, f"{target.endpoint.host}:{target.endpoint.port}{way}")
    # Outside of the handler, for the library's exception holds frames whose locals hold the URL.
    raise failure


def outcome_of(target: Target, attempt: Attempt) -> Connection | ConnectionFailed:
    """What came of an attempt, whatever that is: for a thread that has to give its place back."""
    try:
        return open_connection(target, attempt)
    except ConnectionFailed as error:
        return error
    except BaseException as crash:
        # SystemExit in the user's key callable.
        return translate(crash)


def _open(target: Target, attempt: Attempt) -> Connection:
    key = attempt.key = attempt.key or target.keys.ask()
    if key == attempt.refused_key:
        raise AuthenticationError("the API key was refused, and there is no other", permanent=True)
    sock = _connect(target, attempt)
    try:
        connection = Connection(target.url(key), Wire(sock, attempt), key, target.max_message)
        try:
            connection.shake_hands()
        except _Refused as refusal:
            raise _refusal(refusal.answer, target, attempt) from None
        return connection
    except BaseException:
        sock.close()
        raise


def _connect(target: Target, attempt: Attempt) -> socket.socket:
    """A socket to the server, through a proxy where there is one; TLS is done."""
    endpoint = target.endpoint
    proxy = target.proxies.choose(endpoint)
    if proxy is None:
        sock = _dial(endpoint.host, endpoint.port, attempt, attempt.remaining)
    else:
        attempt.proxy = proxy.where
        sock = _dial_through(proxy, endpoint, attempt)
    return _secured(sock, target, attempt) if endpoint.secure else sock


def _dial(host: str, port: int, attempt: Attempt, remaining: Callable[[], float]) -> socket.socket:
    """A socket to the first of the host's addresses that answers. `remaining` as that of the attempt, or less."""
    remaining()
    addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    failure = OSError("the host has no address")
    for untried, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            # This alone fails where the system has no IPv6 and the name has addresses of both kinds.
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            failure = error
            continue
        try:
            attempt.watch(sock)
            # One address that swallows everything must not use up the time of the others.
            sock.settimeout(remaining() / untried)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    raise failure


def _dial_through(proxy: Proxy, endpoint: Endpoint, attempt: Attempt) -> socket.socket:
    """A socket to a proxy that has connected to the server."""
    hosts = [endpoint.host]
    if not proxy.resolves:
        attempt.remaining()
        found = socket.getaddrinfo(endpoint.host, endpoint.port, 0, socket.SOCK_STREAM)
        hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
    failure = ConnectionFailed("the host has no address")
    for untried, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
        # The proxy may know no IPv6, or fail for other reasons of one address: a tunnel for each is tried.
        until = time.monotonic() + attempt.remaining() / untried
        try:
            return _tunnel(proxy, host, endpoint.port, attempt, functools.partial(_left, attempt, until))
        except ConnectionFailed as error:
            failure = error
    raise failure


def _left(attempt: Attempt, until: float) -> float:
    """Seconds up to a moment within the attempt's time."""
    left = min(attempt.remaining(), until - time.monotonic())
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _tunnel(proxy: Proxy, host: str, port: int, attempt: Attempt, remaining: Callable[[], float]) -> socket.socket:
    try:
        sock = _dial(proxy.host, proxy.port, attempt, remaining)
        try:
            proxy.open_tunnel(sock, host, port, remaining)
        except BaseException:
            sock.close()
            raise
    except OSError as cause:
        raise translate(cause, f"the proxy {proxy.where}") from None
    return sock


def _secured(sock: socket.socket, target: Target, attempt: Attempt) -> ssl.SSLSocket:
    try:
        context = target.ssl_context()
        secured = context.wrap_socket(sock, server_hostname=target.endpoint.host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        attempt.watch(secured)
        secured.settimeout(attempt.remaining())
        _shake_hands(secured)
    except BaseException:
        secured.close()
        raise
    return secured


def _shake_hands(secured: ssl.SSLSocket) -> None:
    try:
        secured.do_handshake()
    except ssl.SSLError as cause:
        if not _is_of_certificate(cause):
            raise
        # Where no file can be opened, that of the authority can't be either, and the certificate is not to blame.
        os.close(os.dup(secured.fileno()))
        raise


def _is_of_certificate(cause: BaseException) -> bool:
    """Whether a certificate was refused. For Python 3.11.2 it may be a plain SSLError, where descriptors are short."""
    told = getattr(cause, "reason", "") == "CERTIFICATE_VERIFY_FAILED"
    return told or isinstance(cause, ssl.SSLCertVerificationError)


def _check_answer(response: bytes) -> None:
    """Let a switch to the protocol we asked for pass; raise `_Refused` for any other answer, redirects included."""
    answer = HttpAnswer.parse(response)
    if answer is None:
        status_line = response.partition(b"\r\n")[0]
        raise ProtocolError(f"the server's status line is {redact(repr(status_line))[:_LINE_SHOWN]}", permanent=True)
    if answer.status != 101:
        raise _Refused(answer)
    if answer.unasked is not None:
        raise ProtocolError(f"the server uses what was not offered to it: {answer.unasked}", permanent=True)


def _refusal(refused: HttpAnswer, target: Target, attempt: Attempt) -> ConnectionFailed:
    """The typed error for an HTTP answer. Source: the refusals of docs/protocol.md, O."""
    status = refused.status
    answer = f"the server answered {status} {redact(refused.phrase)}".rstrip()
    if body := _shown_body(refused):
        answer += f", {body!r}"
    if status in (401, 403):
        final = not _ask_for_another(target.keys, attempt)
        advice = "; keys rotate every 24 hours: get a new one" if final else ""
        return AuthenticationError(f"the API key was refused: {answer}{advice}", status=status, permanent=final)
    if status == 404 and target.symbol is None:
        return StreamNotFound(f"no functions there: {answer}; check the endpoint", status=status)
    if status == 404:
        return StreamNotFound(f"no such stream: {answer}; check the pair, and the endpoint's prefix", status=status)
    if status == 429:
        return RateLimited(f"too many requests: {answer}", status=status, retry_after=refused.retry_after)
    if 300 <= status < 400:
        where = redact(refused.headers.get("Location", "nowhere"))
        return ConnectionFailed(
            f"{answer}: a redirect to {where!r} is not followed: a login page on the way, or a wrong endpoint=",
            status=status,
        )
    if status < 300:
        return ProtocolError(f"{answer}: it is no websocket server at this address", status=status, permanent=True)
    return ConnectionFailed(answer, status=status, retry_after=refused.retry_after)


def _shown_body(refused: HttpAnswer) -> str:
    """The body as far as it has come, without the key; and without its last word, where that may be a part of one."""
    text, length = redact(refused.body.decode("utf-8", "replace")), refused.headers.get("Content-Length", "").strip()
    complete = length.isdecimal() and len(refused.body) >= int(length[:12])
    if text and not complete and not text[-1].isspace():
        text = text.removesuffix(text.rsplit(None, 1)[-1]) + "…"
    shown = text.strip()[:_BODY_SHOWN]
    # A page for browsers begins with what says nothing.
    return "" if shown.startswith("<") else shown


def _ask_for_another(keys: KeySource, attempt: Attempt) -> bool:
    """Whether another key may do what the refused one did not. One that is found is kept for the next attempt."""
    if not keys.can_change:
        return False
    try:
        another = keys.ask()
    except ConnectionFailed:
        # The next attempt asks again, and says what is wrong with the answer.
        return True
    attempt.next_key = another if another != attempt.key else None
    return attempt.next_key is not None


_CLOSE_CODES = {
    1000: ", normally",
    1001: ", going away",
    1011: ", server error",
    1012: ", restart",
    1013: ", try again later",
}


def closed(code: int | None, reason: str | None) -> ConnectionFailed:
    """The typed error for a close frame. Source: the close codes of docs/protocol.md, O."""
    said = f": {redact(reason)!r}" if reason else ""
    if code == 1008:
        return AuthenticationError(f"closed by the server for policy, e.g. a revoked key (1008){said}", close_code=code)
    if code is None:
        return ConnectionFailed(f"closed by the server without a code{said}")
    meaning = _CLOSE_CODES.get(code, "")
    return ConnectionFailed(f"closed by the server ({code}{meaning}){said}", close_code=code)


def translate(cause: BaseException, where: str = "the server") -> ConnectionFailed:
    """The typed error for an exception of the library's or the system's, with a cause reduced to its text."""
    if isinstance(cause, ConnectionFailed):
        return cause
    error = _translated(cause, where)
    error.__cause__ = _without_frames(cause)
    return error


#: How the end of a connection is told; which of `ssl`'s two it is depends on the version of Python.
_ENDS = (EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


def _translated(cause: BaseException, where: str) -> ConnectionFailed:
    text = redact(str(cause))
    if _is_of_certificate(cause):
        why = getattr(cause, "verify_message", "it can't be verified")
        return ConnectionFailed(f"the certificate of {where} is refused: {why}", permanent=True)
    if isinstance(cause, (*_ENDS, websocket.WebSocketConnectionClosedException)):
        return ConnectionFailed(f"{where} closed the connection without a close frame")
    if isinstance(cause, TimeoutError | websocket.WebSocketTimeoutException):
        return ConnectionFailed(f"{where} did not answer in time")
    if isinstance(cause, ssl.SSLError):
        return ConnectionFailed(f"TLS with {where} failed: {cause.reason or text}", permanent=True)
    if isinstance(cause, socket.gaierror | UnicodeError):
        return ConnectionFailed(f"the name of {where} can't be resolved: {text}")
    if isinstance(cause, OSError):
        return ConnectionFailed(f"{where}: {(cause.strerror or text or type(cause).__name__).lower()}")
    if isinstance(cause, MemoryError):
        return ConnectionFailed(f"out of memory while reading from {where}")
    if isinstance(cause, websocket.WebSocketException):
        return ProtocolError(f"{where} does not complete the websocket handshake: {text}", permanent=True)
    logger.error("unexpected %s while connecting to %s: %s", type(cause).__name__, where, text)
    return ConnectionFailed(f"{where}: {type(cause).__name__}: {text}")


def _without_frames(cause: BaseException) -> BaseException | None:
    """A copy of an OSError without the frames that it passed, whose locals hold the key; None for anything else."""
    if not isinstance(cause, OSError):
        return None
    copy = type(cause).__new__(type(cause), *cause.args)
    copy.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in cause.args)
    for name in ("reason", "verify_code", "verify_message"):
        if hasattr(cause, name):
            setattr(copy, name, getattr(cause, name))
    return copy
