"""Who takes part: `python contenders.py NAME PORT COUNT` receives COUNT ticks and prints what it took as JSON.

Each contender runs in a process of its own. It gets a port and a `Meter`, and calls the meter with every tick; all
but `drain` build the same tick: a dict of eight keys. To add one, write a function with `@contender("name")`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import load_server

Contender = Callable[[int, "Meter"], None]
CONTENDERS: dict[str, Contender] = {}
FIELDS = {"pair", "date", "time", "exchange", "price", "timestamp", "received_ns", "backfilled"}
PATH = "streaming/bench/BTC:USDC"


def contender(name: str) -> Callable[[Contender], Contender]:
    """Enter a contender under this name."""

    def enter(function: Contender) -> Contender:
        CONTENDERS[name] = function
        return function

    return enter


class Meter:
    """Counts ticks, adds up their prices, and ends the process with a report at the last one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._expected = sum(float(load_server.price(number)) for number in range(count))
        self._left = count
        self._total = 0.0
        self._started = self._cpu = 0.0

    def start(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self, tick: dict[str, Any]) -> None:
        if not self._started:
            self.start()
        self._total += tick["price"]
        self._left -= 1
        if not self._left:
            self._check(tick)
            self.report()

    def _check(self, tick: dict[str, Any]) -> None:
        right = (
            set(tick) == FIELDS
            and isinstance(tick["timestamp"], datetime)
            and tick["timestamp"].utcoffset() is not None
            and abs(self._total - self._expected) < 1e-6 * self._expected
        )
        if not right:
            fail(f"wrong ticks: prices add up to {self._total}, not {self._expected}; the last is {tick}")

    def report(self) -> None:
        taken, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        os.write(1, json.dumps({"seconds": taken, "cpu": cpu}).encode())
        # At once: how long a client takes to close is not what is measured here.
        os._exit(0)


def fail(reason: str) -> None:
    os.write(2, f"{reason}\n".encode())
    os._exit(1)


@contender("drain (raw socket)")
def drain(port: int, meter: Meter) -> None:
    """Receives the bytes and looks at none of them: the most that the load server can do."""
    expected = sum(map(len, load_server.frames(meter.count)))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        buffer = bytearray(1 << 20)
        meter.start()
        connection.sendall(f"GET /{PATH} HTTP/1.1\r\nHost: localhost\r\n{key}\r\n\r\n".encode())
        received = connection.recv_into(buffer)
        received -= buffer.index(b"\r\n\r\n") + 4
        while received < expected:
            received += connection.recv_into(buffer)
        meter.report()


@contender("plain WebSocketApp")
def plain(port: int, meter: Meter) -> None:
    """What one writes without this package: the other contenders are compared with it."""
    import websocket

    def on_message(app: object, text: str) -> None:
        data = json.loads(text)["resultData"]
        meter(
            {
                "pair": data["pair"],
                "date": data["date"],
                "time": data["time"],
                "exchange": data["exchange"],
                "price": float(data["price"]),
                "timestamp": datetime.fromisoformat(f"{data['date']}T{data['time']}"),
                "received_ns": time.time_ns(),
                "backfilled": False,
            }
        )

    def on_error(app: object, error: Exception) -> None:
        fail(repr(error))

    websocket.WebSocketApp(f"ws://127.0.0.1:{port}/{PATH}", on_message=on_message, on_error=on_error).run_forever()


def _listen(port: int, meter: Meter, **options: Any) -> None:
    from finx_streamer import StreamListener

    def on_error(error: Exception) -> None:
        fail(repr(error))

    StreamListener(
        "BTC:USDC",
        api_key="bench",
        endpoint=f"ws://127.0.0.1:{port}/",
        on_tick=meter,
        on_error=on_error,
        reconnect=None,
        **options,
    ).start().join()


@contender("StreamListener, thread")
def thread(port: int, meter: Meter) -> None:
    _listen(port, meter, dispatch="thread")


@contender("StreamListener, inline")
def inline(port: int, meter: Meter) -> None:
    _listen(port, meter, dispatch="inline")


@contender("StreamListener, thread, no msgspec")
def thread_without_msgspec(port: int, meter: Meter) -> None:
    sys.modules["msgspec"] = None  # type: ignore[assignment]
    _listen(port, meter, dispatch="thread")


@contender("StreamListener, inline, no msgspec")
def inline_without_msgspec(port: int, meter: Meter) -> None:
    sys.modules["msgspec"] = None  # type: ignore[assignment]
    _listen(port, meter, dispatch="inline")


if __name__ == "__main__":
    name, port, count = sys.argv[1:]
    CONTENDERS[name](int(port), Meter(int(count)))
    fail(f"{name}: ended before the last tick")
