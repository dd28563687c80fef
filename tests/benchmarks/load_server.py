"""A WebSocket server for benchmarks: `python load_server.py SETTINGS` (JSON with the fields of `Settings`).

It encodes its frames in advance, and later only puts in times. It has one thread, and another one for answers to pings.
It prints its port, "open" each time all clients are connected, and at the end its figures as JSON. The command "drop
SECONDS" on standard input closes all connections and refuses new ones for that long.
"""

from __future__ import annotations

import array
import base64
import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import selectors
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ticks

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
#: From the last handshake to the first paced tick, in seconds.
_SETTLE = 0.5
_PR_SET_TIMERSLACK = 29
_PONG = 0xA
#: The last ping is sent this long before the last tick, after which the client ends. In nanoseconds.
_LAST_PING = 500_000_000
#: A burst of mixed pairs repeats after this many times the distinct ticks.
_MIXED = 10


class Settings(NamedTuple):
    """The settings of the server."""

    #: "burst" sends as fast as possible, "paced" at a fixed rate, "quiet" nothing.
    mode: str = "burst"
    clients: int = 1
    #: Burst: ticks per connection, 0 for endless. Paced: total ticks.
    count: int = 0
    #: Paced: total ticks per second.
    rate: float = 0.0
    #: Paced: send what is due together, once per this many seconds, as a server with an event loop does. 0: each tick
    #: when it is due.
    turn: float = 0.0
    #: Paced: send a ping after each tick whose number this divides. 0: send none.
    ping_every: int = 0
    #: Speak FinX's second wire: the only client requests this many pairs by message. 0: speak the first wire.
    pairs: int = 0
    #: Seconds from a handshake request to its response, to simulate a distant server.
    handshake: float = 0.0
    certificate: str = ""


class Backlog:
    """The bytes of a burst: one second of market time after another, forever."""

    def __init__(self, blocks: Iterable[bytes], second_text: Callable[[int], str]) -> None:
        """The blocks have the frames of the first seconds. Later, they take turns, with other times."""
        self._blocks = list(blocks)
        #: The parts of blocks around their times. A block that is sent once needs none.
        self._parts: dict[int, list[bytes]] = {}
        self._second_text = second_text
        self._second = 0

    def next_block(self) -> bytes:
        """Return the frames of the next second."""
        turn, number = divmod(self._second, len(self._blocks))
        if turn == 1:
            self._parts[number] = self._blocks[number].split(self._text(number))
        block = self._text(self._second).join(self._parts[number]) if turn else self._blocks[number]
        self._second += 1
        return block

    def _text(self, second: int) -> bytes:
        return self._second_text(second).encode()


class Peer:
    """One connection."""

    __slots__ = (
        "accepted",
        "backlog",
        "is_open",
        "left",
        "name",
        "pairs",
        "request",
        "socket",
        "unread",
        "unsent",
        "view",
    )

    backlog: Backlog

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.accepted = time.monotonic()
        self.request = b""
        self.is_open = False
        self.name = b""
        # Burst: what is left of the current block, and the number of bytes left to send.
        self.view = memoryview(b"")
        self.left = 0
        # Paced: bytes that did not fit into the socket's buffer.
        self.unsent = b""
        # Second wire: the end of what was read, and the pairs that were requested.
        self.unread = b""
        self.pairs: list[str] = []


class Server:
    """Accepts connections and sends ticks, in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4_096)
        self._listening.setblocking(False)
        self._context = self._tls()
        self._peers: set[Peer] = set()
        self._held: deque[tuple[float, Peer]] = deque()
        self._open = 0
        self._paced = False
        self._refuse_until = 0.0
        self._block = b"".join(map(ticks.frame, range(ticks.DISTINCT)))
        #: For each connection: when it was accepted, when it was answered, and the HTTP status (0 if none).
        self._attempts: list[tuple[float, float, int]] = []
        self._handshakes = self._most_at_once = 0
        self._figures: dict[str, Any] = {}

    def run(self) -> None:
        """Serve until standard input is closed."""
        self._selector.register(self._listening, _READ, self._accept)
        self._selector.register(sys.stdin.buffer.raw, _READ, self._command)  # type: ignore[attr-defined]
        _print(self._listening.getsockname()[1])
        with contextlib.suppress(EOFError):
            while True:
                wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
                for key, mask in self._selector.select(wait):
                    if isinstance(key.data, Peer):
                        self._serve(key.data, mask)
                    else:
                        key.data()
                while self._held and self._held[0][0] <= time.monotonic():
                    self._answer(self._held.popleft()[1])
        totals = {"attempts": self._attempts, "most_at_once": self._most_at_once, "cpu": time.process_time()}
        _print(json.dumps(self._figures | totals))

    def _tls(self) -> ssl.SSLContext | None:
        if not self._settings.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._settings.certificate)
        return context

    def _command(self) -> None:
        words = os.read(0, 4_096).decode().split()
        if not words:
            raise EOFError
        _, seconds = words
        self._figures.setdefault("drops", []).append(time.monotonic())
        self._refuse_until = time.monotonic() + float(seconds)
        for peer in list(self._peers):
            self._forget(peer)

    # HandshakePool.

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listening.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context is not None:
                    # Blocks, which is fine: with TLS there is only one client.
                    sock = self._context.wrap_socket(sock, server_side=True)
                sock.setblocking(False)
                peer = Peer(sock)
                self._peers.add(peer)
                self._handshakes += 1
                self._most_at_once = max(self._most_at_once, self._handshakes)
                self._selector.register(sock, _READ, peer)

    def _serve(self, peer: Peer, mask: int) -> None:
        try:
            if mask & _READ:
                data = peer.socket.recv(65_536)
                if not data:
                    raise ConnectionResetError
                # On the first wire, ignore what open connections send: pings and close frames.
                if peer.is_open:
                    if self._settings.pairs:
                        self._read_requests(peer, data)
                else:
                    peer.request += data
                    if b"\r\n\r\n" in peer.request:
                        self._held.append((time.monotonic() + self._settings.handshake, peer))
            if mask & _WRITE:
                self._burst(peer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._forget(peer)

    def _answer(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        refused = time.monotonic() < self._refuse_until
        self._end_handshake(peer, 503 if refused else 101)
        try:
            if refused:
                peer.socket.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self._forget(peer)
            else:
                self._accept_handshake(peer)
        except OSError:
            self._forget(peer)

    def _end_handshake(self, peer: Peer, status: int) -> None:
        self._handshakes -= 1
        self._attempts.append((peer.accepted, time.monotonic(), status))

    def _accept_handshake(self, peer: Peer) -> None:
        lines = peer.request.split(b"\r\n\r\n")[0].split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
        accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + _GUID).digest())
        peer.socket.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        peer.is_open = True
        peer.name = lines[0].split()[1].rpartition(b"/")[2]
        self._open += 1
        if self._settings.pairs:
            return  # it starts with the last request
        if self._settings.mode == "burst":
            block = self._block.replace(ticks.pair(0).encode(), peer.name)
            peer.backlog = Backlog([block], ticks.second_text)
            ends = [len(ticks.frame(number)) for number in range(self._settings.count % ticks.DISTINCT)]
            peer.left = self._settings.count // ticks.DISTINCT * len(block) + sum(ends) or 1 << 62
        if self._open == self._settings.clients:
            _print("open")
            self._start_sending()

    def _read_requests(self, peer: Peer, data: bytes) -> None:
        """Confirm each requested pair. Start with the last one."""
        peer.unread += data
        while (frame := _take_frame(peer)) is not None:
            _, payload = frame
            if payload.startswith(b"{"):
                pair = json.loads(payload)["pair"]
                peer.pairs.append(pair)
                blocked = _send(peer, ticks.text_frame(f'{{"subscribed":"{pair}"}}'))
                assert not blocked, "the client doesn't read the confirmations"
                if len(peer.pairs) == self._settings.pairs:
                    self._figures["subscribed_after"] = time.monotonic() - self._attempts[-1][1]
                    _print("open")
                    if self._settings.mode == "burst":
                        peer.backlog, peer.left = _mixed(peer.pairs), 1 << 62
                    self._start_sending()

    def _start_sending(self) -> None:
        if self._settings.mode == "burst":
            for peer in self._peers:
                self._selector.modify(peer.socket, _READ | _WRITE, peer)
        elif self._settings.mode == "paced" and not self._paced:
            self._paced = True
            self._pace()

    def _forget(self, peer: Peer) -> None:
        if peer in self._peers:
            self._peers.discard(peer)
            if peer.is_open:
                self._open -= 1
            elif peer.request == b"" or any(peer is other for _, other in self._held):
                self._end_handshake(peer, 0)
            self._selector.unregister(peer.socket)
            peer.socket.close()

    # Sending.

    def _burst(self, peer: Peer) -> None:
        if not peer.view:
            peer.view = memoryview(peer.backlog.next_block())[: peer.left]
        sent = peer.socket.send(peer.view)
        peer.view = peer.view[sent:]
        peer.left -= sent
        if not peer.left:
            self._selector.modify(peer.socket, _READ, peer)

    def _pace(self) -> None:
        """Send each tick when it's due, to one connection after another.

        Its time is when it is due, on the market's clock. Its price is when it is sent, on this machine's clock.
        """
        peers = sorted(self._peers, key=lambda peer: peer.name)
        # Whom to send to, and the pair.
        targets = [(peer, peer.name) for peer in peers]
        frame_of, second_text = ticks.frame, ticks.second_text
        if self._settings.pairs:
            targets = [(peers[0], name.encode()) for name in peers[0].pairs]
            frame_of, second_text = ticks.flat_frame, ticks.flat_second_text
        forms = [_cut(number, frame_of, second_text) for number in range(ticks.DISTINCT)]
        count, step = self._settings.count, int(1e9 / self._settings.rate)
        at_once = max(1, int(self._settings.turn * self._settings.rate))
        last_second = count * step // 1_000_000_000
        moments = [
            f"{text}{thousandth:03}".encode()
            for text in map(second_text, range(last_second + 1))
            for thousandth in range(1_000)
        ]
        late = array.array("q", bytes(8 * count))
        stamps = 0
        sending = array.array("q")
        pings = Pings(peers[0].socket) if self._settings.ping_every else None
        # Without this, a sleep takes 50 us longer.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
        clock, thread_clock, cpu = time.monotonic_ns, time.thread_time_ns, time.process_time()
        start = clock() + int(_SETTLE * 1e9)
        blocked = 0
        for first in range(0, count, at_once):
            due = start + first * step
            now = clock()
            while now < due:
                time.sleep((due - now) / 1e9)
                now = clock()
            stamp = ticks.stamp(now)
            waiting: dict[Peer, list[bytes]] = {}
            for number in range(first, min(first + at_once, count)):
                peer, name = targets[number % len(targets)]
                # Not always the same exchange for a pair.
                head, before, middle, tail = forms[(number + number // ticks.DISTINCT) % ticks.DISTINCT]
                moment = moments[number * step // 1_000_000]
                waiting.setdefault(peer, []).extend((head, name, before, moment, middle, stamp, tail))
                late[number] = now - due
                stamps += now
            for peer, parts in waiting.items():
                data = b"".join(parts)
                # Without the time for which the client, which this wakes up, takes over this processor.
                begin = thread_clock()
                blocked += _send(peer, data)
                sending.append(thread_clock() - begin)
            if pings and not first % self._settings.ping_every and (count - first) * step > _LAST_PING:
                pings.send(peers[0])
        seconds = (clock() - start) / 1e9
        for peer in peers:
            peer.socket.setblocking(True)
            peer.socket.sendall(peer.unsent)
            peer.socket.setblocking(False)
        self._figures |= {
            "late_p50": _percentile(late, 50) / 1e3,
            "late_p99": _percentile(late, 99) / 1e3,
            "late_max": max(late) / 1e3,
            "stamps": stamps,
            "sending_p50": _percentile(sending, 50) / 1e3,
            "sent_per_second": count / seconds,
            "blocked": blocked,
            "busy": (time.process_time() - cpu) / (seconds + _SETTLE),
        }
        if pings:
            self._figures |= pings.figures()


class Pings:
    """Sends pings, and measures on another thread how long their answers take."""

    def __init__(self, sock: socket.socket) -> None:
        self._reader = Peer(sock)
        self._sent: dict[bytes, int] = {}
        self._took: list[int] = []
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, peer: Peer) -> None:
        payload = b"%08d" % len(self._sent)
        self._sent[payload] = time.monotonic_ns()
        _send(peer, bytes((0x89, len(payload))) + payload)

    def figures(self) -> dict[str, Any]:
        """Return the times of the answers, in milliseconds."""
        took = list(self._took)
        return {
            "pings": len(self._sent),
            "lost": len(self._sent) - len(took),
            "pong_p50": _percentile(took, 50) / 1e6,
            "pong_p99": _percentile(took, 99) / 1e6,
            "pong_p99.9": _percentile(took, 99.9) / 1e6,
            "pong_max": max(took) / 1e6,
        }

    def _read(self) -> None:
        reader = self._reader
        while select.select([reader.socket], [], []):
            try:
                data = reader.socket.recv(65_536)
            except OSError:
                return
            now = time.monotonic_ns()
            if not data:
                return
            reader.unread += data
            while (frame := _take_frame(reader)) is not None:
                opcode, payload = frame
                if opcode == _PONG:
                    self._took.append(now - self._sent[payload])


def _cut(
    number: int, frame_of: Callable[[int, str], bytes], second_text: Callable[[int], str]
) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the parts of a tick's frame around its pair, time and price."""
    stamp = ticks.stamp(0)
    head, _, rest = frame_of(number, stamp.decode()).partition(ticks.pair(0).encode())
    before, _, rest = rest.partition(f"{second_text(0)}{ticks.milliseconds(number):03}".encode())
    middle, _, tail = rest.partition(stamp)
    return head, before, middle, tail


def _percentile(values: Sequence[int], percent: float) -> int:
    return sorted(values)[int(len(values) * percent / 100)]


def _mixed(pairs: list[str]) -> Backlog:
    """Return ticks of these pairs in random order, the same number of each."""
    order = pairs * (_MIXED * ticks.DISTINCT // len(pairs))
    random.Random(1).shuffle(order)
    frames = [ticks.flat_frame(number, of=pair) for number, pair in enumerate(order)]
    starts = range(0, len(frames), ticks.DISTINCT)
    return Backlog((b"".join(frames[at : at + ticks.DISTINCT]) for at in starts), ticks.flat_second_text)


def _take_frame(peer: Peer) -> tuple[int, bytes] | None:
    """Take the next frame: its opcode and payload. All frames of clients are masked, and here short."""
    data = peer.unread
    if len(data) < 2:
        return None
    size, head = data[1] & 0x7F, 6
    if size == 126:
        size, head = int.from_bytes(data[2:4], "big"), 8
    if len(data) < head + size:
        return None
    mask = data[head - 4 : head]
    peer.unread = data[head + size :]
    return data[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(data[head : head + size]))


def _send(peer: Peer, data: bytes) -> bool:
    """Send without waiting. Return whether some bytes did not fit into the socket's buffer."""
    if peer.unsent:
        data = peer.unsent + data
    try:
        peer.unsent = data[peer.socket.send(data) :]
    except (BlockingIOError, ssl.SSLWantWriteError):
        peer.unsent = data
    return bool(peer.unsent)


def _print(value: object) -> None:
    print(value, flush=True)


if __name__ == "__main__":
    Server(Settings(**json.loads(sys.argv[1]))).run()
