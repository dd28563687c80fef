"""The clients that are compared. To add one, write a function with `@contender("its name")`.

A contender gets a `Feed` and a callback. It connects to every pair of the feed, turns each tick into the same dict of
eight keys, and passes it to the callback. It runs until the callback ends the process.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import child
import ticks

OnTick = Callable[[dict[str, Any]], None]
Contender = Callable[["Feed", OnTick], None]
CONTENDERS: dict[str, Contender] = {}

DRAIN = "drain (bytes, unread)"
PLAIN = "WebSocketApp, json"
UNCHECKED = "WebSocketApp unchecked, orjson"
WEBSOCKETS = "websockets, msgspec"
AIOHTTP = "aiohttp, msgspec"
PICOWS = "picows, msgspec"
PICOWS_UVLOOP = "picows, msgspec, uvloop"
THREAD = "StreamListener thread"
INLINE = "StreamListener inline"
LOOP = "StreamListener, for tick in listener"
RECORDING = "StreamListener thread, recording"
THREAD_SHARED = "StreamListener thread, one connection"
INLINE_SHARED = "StreamListener inline, one connection"
#: How many handshakes asyncio clients run at once: as many as StreamListener.
MAX_HANDSHAKES = 8


class Feed:
    """What to connect to, and for how long."""

    def __init__(self, port: int, pairs: int, authority: str, seconds: float, count: int) -> None:
        self.pairs = [ticks.pair(number) for number in range(pairs)]
        self.base = f"{'wss' if authority else 'ws'}://127.0.0.1:{port}/"
        self.port = port
        self.context = ssl.create_default_context(cafile=authority) if authority else None
        self.seconds = seconds
        #: Ticks per pair. 0 means endless.
        self.count = count
        #: For meters that read the statistics of a `StreamListener`.
        self.listener: Any = None

    def url(self, pair: str) -> str:
        """Return the URL of a pair's stream."""
        return f"{self.base}streaming/bench/{pair}"


def contender(name: str) -> Callable[[Contender], Contender]:
    """Register a contender under this name."""

    def register(function: Contender) -> Contender:
        CONTENDERS[name] = function
        return function

    return register


@contender(DRAIN)
def drain(feed: Feed, on_tick: OnTick) -> None:
    """Receive bytes without reading them. This is the upper limit of the load server."""
    selector = selectors.DefaultSelector()
    for pair in feed.pairs:
        connection = socket.create_connection(("127.0.0.1", feed.port))
        if feed.context is not None:
            connection = feed.context.wrap_socket(connection, server_hostname="127.0.0.1")
        connection.sendall(f"GET /{pair} HTTP/1.1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
        selector.register(connection, selectors.EVENT_READ, connection.recv_into)
    # Handshake responses count as ticks: one or two for each connection.
    block = sum(len(ticks.frame(number)) for number in range(ticks.DISTINCT))
    expected = feed.count * len(feed.pairs) * block // ticks.DISTINCT if feed.count else 1 << 62
    buffer, received, start, cpu = bytearray(1 << 18), 0, 0.0, 0.0
    while received < expected and (feed.count or not start or time.perf_counter() - start < feed.seconds):
        for key, _ in selector.select():
            received += key.data(buffer)
        if not start and received > 1_000 * len(feed.pairs):
            start, cpu = time.perf_counter(), time.process_time()
    child.report(
        seconds=time.perf_counter() - start,
        cpu=time.process_time() - cpu,
        count=received * ticks.DISTINCT // block,
    )


def _plain(feed: Feed, on_data: Callable[[Any, Any], None], **options: Any) -> None:
    import websocket

    sslopt = {"context": feed.context} if feed.context else None

    def listen(pair: str) -> None:
        app = websocket.WebSocketApp(feed.url(pair), on_message=on_data, on_error=lambda _, error: child.fail(error))
        app.run_forever(sslopt=sslopt, **options)

    for pair in feed.pairs[1:]:
        threading.Thread(target=listen, args=(pair,), daemon=True).start()
    listen(feed.pairs[0])


@contender(PLAIN)
def plain(feed: Feed, on_tick: OnTick) -> None:
    """Use websocket-client and json directly. This is the baseline."""

    def on_message(app: object, text: str) -> None:
        data = json.loads(text)["resultData"]
        on_tick(
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

    _plain(feed, on_message)


@contender(UNCHECKED)
def unchecked(feed: Feed, on_tick: OnTick) -> None:
    """Use the fast options of websocket-client, and a fast JSON parser."""
    import orjson

    def on_message(app: object, payload: bytes) -> None:
        data = orjson.loads(payload)["resultData"]
        on_tick(
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

    _plain(feed, on_message, skip_utf8_validation=True)


def _tick_reader() -> Callable[[Any], dict[str, Any]]:
    """Return the fastest way we know to decode a tick with msgspec: into objects without garbage collection."""
    import msgspec

    names = ("pair", "date", "time", "exchange", "price")
    fields = msgspec.defstruct("Fields", [(name, str) for name in names], gc=False)
    message = msgspec.defstruct("Message", [("results", str), ("resultData", fields)], gc=False)
    decode, parse_time, clock = msgspec.json.Decoder(message).decode, datetime.fromisoformat, time.time_ns

    def read(payload: Any) -> dict[str, Any]:
        raw = decode(payload).resultData
        return {
            "pair": raw.pair,
            "date": raw.date,
            "time": raw.time,
            "exchange": raw.exchange,
            "price": float(raw.price),
            "timestamp": parse_time(f"{raw.date}T{raw.time}"),
            "received_ns": clock(),
            "backfilled": False,
        }

    return read


async def _each_pair(feed: Feed, connect: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Await `connect` for each pair's URL, a few at once."""
    slots = asyncio.Semaphore(MAX_HANDSHAKES)

    async def one(pair: str) -> None:
        async with slots:
            await connect(feed.url(pair))

    try:
        await asyncio.gather(*map(one, feed.pairs))
    except Exception as error:
        child.fail(repr(error))


async def _forever() -> None:
    await asyncio.Event().wait()


@contender(WEBSOCKETS)
def websockets(feed: Feed, on_tick: OnTick) -> None:
    """Use the asyncio client of websockets. Its C extension reads frames."""
    from websockets.asyncio.client import connect

    read = _tick_reader()

    async def main() -> None:
        tasks = set()

        async def listen(connection: Any) -> None:
            while True:
                on_tick(read(await connection.recv(decode=False)))

        async def open_stream(url: str) -> None:
            connection = await connect(url, ssl=feed.context, compression=None, proxy=None, max_queue=1_024)
            tasks.add(asyncio.create_task(listen(connection)))

        await _each_pair(feed, open_stream)
        await asyncio.gather(*tasks)

    asyncio.run(main())


@contender(AIOHTTP)
def aiohttp(feed: Feed, on_tick: OnTick) -> None:
    """Use the client of aiohttp. Its WebSocket reader is compiled; text stays bytes for the decoder."""
    import aiohttp

    read = _tick_reader()

    async def main() -> None:
        tasks = set()

        async def listen(connection: Any) -> None:
            async for message in connection:
                on_tick(read(message.data))

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def open_stream(url: str) -> None:
                connection = await session.ws_connect(url, ssl=feed.context or True, decode_text=False)
                tasks.add(asyncio.create_task(listen(connection)))

            await _each_pair(feed, open_stream)
            await asyncio.gather(*tasks)

    asyncio.run(main())


def _picows(feed: Feed, on_tick: OnTick, run: Callable[[Any], Any]) -> None:
    from picows import WSListener, WSMsgType, ws_connect

    read, text = _tick_reader(), WSMsgType.TEXT

    class Reader(WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == text:
                on_tick(read(frame.get_payload_as_bytes()))

    async def main() -> None:
        connections = []

        async def open_stream(url: str) -> None:
            connections.append(await ws_connect(Reader, url, ssl_context=feed.context))

        await _each_pair(feed, open_stream)
        await _forever()

    run(main())


@contender(PICOWS)
def picows(feed: Feed, on_tick: OnTick) -> None:
    """Use picows, which is compiled up to the event loop."""
    _picows(feed, on_tick, asyncio.run)


@contender(PICOWS_UVLOOP)
def picows_uvloop(feed: Feed, on_tick: OnTick) -> None:
    """Use picows with a compiled event loop."""
    import uvloop

    _picows(feed, on_tick, uvloop.run)


def _listener(feed: Feed, wire: Literal["url", "subscribe"] = "url", **options: Any) -> Any:
    from finx_streamer import Endpoint, SlowConsumer, StreamListener

    def on_error(error: Exception) -> None:
        # In a burst, the callback is always slower than the stream.
        if not isinstance(error, SlowConsumer):
            child.fail(repr(error))

    feed.listener = StreamListener(
        *feed.pairs,
        api_key="bench",
        endpoint=Endpoint(feed.base, wire=wire),
        on_error=on_error,
        reconnect=None,
        ssl_context=feed.context,
        **options,
    )
    return feed.listener


def _listen(feed: Feed, on_tick: OnTick, **options: Any) -> None:
    _listener(feed, on_tick=on_tick, **options).start().join()


@contender(THREAD)
def thread(feed: Feed, on_tick: OnTick) -> None:
    """Run callbacks on their own thread, the default."""
    _listen(feed, on_tick, dispatch="thread")


@contender(INLINE)
def inline(feed: Feed, on_tick: OnTick) -> None:
    """Run callbacks on the network thread."""
    _listen(feed, on_tick, dispatch="inline")


@contender(LOOP)
def loop(feed: Feed, on_tick: OnTick) -> None:
    """Iterate over the listener."""
    for tick in _listener(feed):
        on_tick(tick)


@contender(RECORDING)
def recording(feed: Feed, on_tick: OnTick) -> None:
    """Record on disk, too."""
    # The process ends without cleaning up.
    folder = Path(tempfile.gettempdir(), "finx-benchmark-recording")
    shutil.rmtree(folder, ignore_errors=True)
    _listen(feed, on_tick, dispatch="thread", record=folder)


@contender(THREAD_SHARED)
def thread_shared(feed: Feed, on_tick: OnTick) -> None:
    """Request all pairs on one connection, and run callbacks on their own thread."""
    _listen(feed, on_tick, wire="subscribe", dispatch="thread")


@contender(INLINE_SHARED)
def inline_shared(feed: Feed, on_tick: OnTick) -> None:
    """Request all pairs on one connection, and run callbacks on the network thread."""
    _listen(feed, on_tick, wire="subscribe", dispatch="inline")
