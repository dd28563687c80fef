"""A part of the system that `jetstream` measures, in a process of its own: `python jetstream_part.py JOB`.

Each part prints a line of JSON when it's ready. To each line of its input, it answers with its counters.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import ticks

#: How many bytes may wait for a client: enough that none is disconnected.
_QUEUE = 1 << 28
#: The pair that is sent, and another one.
PAIR, OTHER = ticks.pair(0), ticks.pair(1)
_EXCHANGE = "BINANCE"
_REQUEST = (
    "GET /streaming/bench/{} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def backlog_tick(number: int) -> dict[str, str]:
    """Return a tick of a backlog. All have the same length."""
    seconds, milliseconds = divmod(number // 50, 1_000)
    time_of_day = f"15:{seconds // 60:02}:{seconds % 60:02}.{milliseconds:03}Z"
    return _tick("2022-07-02", time_of_day, ticks.price(number))


def stamped_tick() -> dict[str, str]:
    """Return a tick of this moment. Its price says when it was made."""
    date, time_of_day = datetime.now(UTC).isoformat("T", "milliseconds")[:23].split("T")
    return _tick(date, f"{time_of_day}Z", ticks.stamp(time.monotonic_ns()).decode())


def _tick(date: str, time_of_day: str, price: str) -> dict[str, str]:
    return {"pair": PAIR, "date": date, "time": time_of_day, "exchange": _EXCHANGE, "price": price}


class Backlog:
    """Ticks that are sent as fast as the clients read them, after `go`."""

    pairs = frozenset({PAIR, OTHER})
    paced = False

    def __init__(self, count: int) -> None:
        self.going = False
        self._count = count

    @property
    def wait_for(self) -> int:
        """More streams than there will ever be, until `go`."""
        return 0 if self.going else 1 << 30

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        """Yield the ticks."""
        for number in range(self._count):
            yield 0.0, backlog_tick(number)


class Steady:
    """Ticks at a steady rate, after `go`. Each is made when it's due."""

    pairs = frozenset({PAIR, OTHER})

    def __init__(self, count: int, rate: float) -> None:
        self.going = False
        self._count, self._rate = count, rate

    async def run(self, outlet: Any) -> None:
        """Send the ticks."""
        while not self.going:
            await asyncio.sleep(0.01)
        start = time.monotonic()
        for number in range(self._count):
            while (wait := start + number / self._rate - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await outlet.publish([stamped_tick()])


def serve(job: dict[str, Any]) -> None:
    """Serve a market, or a log in NATS."""
    from finx_streamer.server import LocalServer

    market: Any
    if "nats" in job:
        from finx_streamer.server import JetStreamMarket

        market = JetStreamMarket(job["nats"])
    else:
        market = Steady(job["count"], job["rate"]) if job["rate"] else Backlog(job["count"])
    with LocalServer(market, queue_bytes=_QUEUE) as server:
        _print(port=server.port)
        for line in sys.stdin:
            if line.strip() == "warm up":
                server.emit(stamped_tick())
            if line.strip() == "go":
                market.going = True
                # The server looks again when a stream is connected.
                _connect(server.port, OTHER)
            stats = server.stats
            ready = stats.log is not None and stats.log.connected
            _print(streams=stats.streams, played=stats.ticks_played, ready=ready, cpu=time.process_time())


def publish(job: dict[str, Any]) -> None:
    """Publish what a server sends."""
    from finx_streamer import StreamListener
    from finx_streamer.jetstream import JetStreamPublisher

    url = f"ws://127.0.0.1:{job['port']}/"
    listener = StreamListener(PAIR, api_key="bench", endpoint=url, parse_price=str)
    with JetStreamPublisher(job["nats"], replicas=job["replicas"]) as publisher:
        publisher.attach(listener)
        with listener:
            _print()
            for _ in sys.stdin:
                _print(cpu=time.process_time())


def flood(job: dict[str, Any]) -> None:
    """Store ticks in NATS as fast as it takes them, without acknowledgements."""
    from finx_streamer.jetstream.subjects import tick_subject

    subject = tick_subject(_EXCHANGE, PAIR)
    data = bytearray()
    for number in range(job["count"]):
        payload = json.dumps(backlog_tick(number), separators=(",", ":"))
        data += f"PUB {subject} {len(payload)}\r\n{payload}\r\n".encode()
    with socket.create_connection(("127.0.0.1", job["nats_port"])) as sock, sock.makefile("rb") as reader:
        reader.readline()
        sock.sendall(b'CONNECT {"verbose":false}\r\n')
        _print()
        sys.stdin.readline()
        sock.sendall(data + b"PING\r\n")
        while reader.readline() != b"PONG\r\n":
            pass
        _print()
        sys.stdin.read()


def drain(job: dict[str, Any]) -> None:
    """Receive streams without reading them. Answers with the messages, and the times of the first and last ones."""
    selector = selectors.DefaultSelector()
    buffer = bytearray(1 << 18)
    for _ in range(job["clients"]):
        sock = _connect(job["port"], PAIR)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    message = {"results": "streaming", "resultData": backlog_tick(0)}
    size = len(ticks.text_frame(json.dumps(message, separators=(",", ":"))))
    received, first, last = 0, 0.0, 0.0

    def answer() -> None:
        for _ in sys.stdin:
            _print(messages=received / size, first=first, last=last)

    threading.Thread(target=answer, daemon=True).start()
    _print()
    while True:
        for key, _ in selector.select():
            received += key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
        last = time.monotonic()
        first = first or last


def _connect(port: int, pair: str) -> socket.socket:
    """Subscribe to a pair. Returns when the handshake is complete."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(_REQUEST.format(pair).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise RuntimeError(f"the server refused a stream: {answer.decode()}")
        answer += byte
    _SOCKETS.append(sock)
    return sock


_SOCKETS: list[socket.socket] = []


def _print(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    {"serve": serve, "publish": publish, "flood": flood, "drain": drain}[given.pop("part")](given)
