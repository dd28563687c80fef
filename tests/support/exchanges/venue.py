"""What all loopback exchanges share: connections, faults on demand, and a log of requests. No wire format."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
from aiohttp import WSMsgType, web

#: The most bytes that wait in front of the kernel's buffer.
_MOST_BUFFERED = 65_536

#: Answers a REST request: the query's parameters in, the JSON value out, or its text.
Answer = Callable[[Mapping[str, str]], Any]


class RestError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


@attrs.define
class RestFault:
    """What goes wrong with the next REST requests.

    Attributes:
        status (int): The status to answer with. 200 answers as usual.
        headers (Mapping[str, str]): Headers to add, such as `Retry-After` or `Location`.
        body (str | None): The body, instead of the right one.
        times (int): The number of requests that this concerns.
        trades (bool): Whether only requests for trades are concerned, so that the listing still works.
    """

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: str | None = None
    times: int = 1
    trades: bool = True


class Connection:
    """One WebSocket connection to an exchange. A task of its own writes to it, in order."""

    def __init__(self, venue: Venue, socket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self.subscriptions: set[str] = set()
        self._venue = venue
        self._socket = socket
        self._transport = transport
        self._queue: deque[tuple[float, str | bytes]] = deque()
        self._queued = asyncio.Event()

    @property
    def waiting(self) -> int:
        """The number of messages that aren't written yet, because the client doesn't read."""
        return len(self._queue)

    def send(self, data: str | bytes | dict[str, Any]) -> None:
        """Send a message, unless the exchange is silent now."""
        if not self._venue.silent:
            due = asyncio.get_running_loop().time() + self._venue.lag
            self._queue.append((due, json.dumps(data) if isinstance(data, dict) else data))
            self._queued.set()

    def drop(self, how: str) -> None:
        """End the connection: "close" with a close frame, "fin" without one, or "rst" with a reset."""
        if self._transport.is_closing():
            return
        if how == "close":
            self._tasks = asyncio.ensure_future(self._socket.close(code=1001))
            return
        if how == "rst":
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    async def run(self) -> None:
        writer = asyncio.ensure_future(self._write())
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    self._venue.received.append(message.data)
                    self._venue.on_text(self, message.data)
                elif message.type is WSMsgType.PING and not self._venue.silent:
                    await self._socket.pong(message.data)
                self._venue.changed()
        finally:
            writer.cancel()

    async def _write(self) -> None:
        """Write all messages that are due with one system call, so that many exchanges fit on one core."""
        loop, queue, transport = asyncio.get_running_loop(), self._queue, self._transport
        while not transport.is_closing():
            if not queue:
                self._queued.clear()
                await self._queued.wait()
            elif (wait := queue[0][0] - loop.time()) > 0:
                await asyncio.sleep(wait)
            elif transport.get_write_buffer_size() > _MOST_BUFFERED:
                # The client doesn't read.
                await asyncio.sleep(0.005)
            else:
                now, frames, size = loop.time(), [], 0
                while queue and queue[0][0] <= now and size <= _MOST_BUFFERED:
                    frames.append(_frame(queue.popleft()[1]))
                    size += len(frames[-1])
                transport.write(b"".join(frames))
                await asyncio.sleep(0)


def _frame(data: str | bytes) -> bytes:
    """A message as a frame. Servers don't mask them."""
    payload = data.encode() if isinstance(data, str) else data
    first, size = 0x81 if isinstance(data, str) else 0x82, len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


class Venue:
    """A loopback exchange. Set the attributes from any thread. Methods run in the event loop of the exchanges.

    Attributes:
        silent (bool): Whether it sends nothing at all: no trades, heartbeats, answers or pongs.
        lag (float): Seconds by which it sends late.
        refuse (int | None): The status with which it refuses WebSocket handshakes.
        rest_fault (RestFault | None): What goes wrong with the next REST requests.
        page (int | None): The most trades in a REST answer, if fewer than the real exchange gives.
        requests (list[str]): The path and query of each REST request, in order.
        received (list[str]): Each text message that it received, in order.
        handshakes (int): Total WebSocket connections.
    """

    name: ClassVar[str]
    #: The path of the WebSocket.
    path: ClassVar[str]
    #: Seconds between heartbeats.
    heartbeat_seconds: ClassVar[float] = 1.0
    #: Seconds between WebSocket pings. None sends none.
    ping_seconds: ClassVar[float | None] = None

    def __init__(self) -> None:
        self.silent = False
        self.lag = 0.0
        self.refuse: int | None = None
        self.rest_fault: RestFault | None = None
        self.page: int | None = None
        self.requests: list[str] = []
        self.received: deque[str] = deque(maxlen=1_000)
        self.handshakes = 0
        self.connections: list[Connection] = []
        self.changed: Callable[[], None] = lambda: None
        #: Closed while REST answers are held back.
        self._rest_open = asyncio.Event()
        self._rest_open.set()

    def on_connect(self, connection: Connection) -> None:
        """Greet a new connection."""

    def on_text(self, connection: Connection, text: str) -> None:
        """Answer a message of the client."""

    def beat(self, connection: Connection) -> None:
        """Send a heartbeat."""

    def answers(self) -> Mapping[str, Answer]:
        """The REST requests by path, with `{parameters}` as aiohttp writes them."""
        return {}

    @property
    def waiting(self) -> int:
        """The number of messages that clients don't read now."""
        return sum(each.waiting for each in self.connections)

    def drop(self, how: str = "fin") -> int:
        """End all connections. See `Connection.drop`. Returns how many there were."""
        for each in list(self.connections):
            each.drop(how)
        return len(self.connections)

    def send_raw(self, *messages: str | bytes) -> None:
        """Send messages as they are to each connection."""
        for connection in self.connections:
            for each in messages:
                connection.send(each)

    def hold_rest(self) -> None:
        """Answer no REST request until `release_rest()`."""
        self._rest_open.clear()

    def release_rest(self) -> None:
        """Answer held requests and later ones."""
        self._rest_open.set()

    def routes(self, prefix: str) -> list[web.AbstractRouteDef]:
        routes = [web.get(prefix + path, self._rest(path, answer)) for path, answer in self.answers().items()]
        paths = {self.path, ""} if self.path == "/" else {self.path}
        return [*routes, *(web.get(prefix + path, self._websocket) for path in sorted(paths))]

    def _rest(self, path: str, answer: Answer) -> Callable[[web.Request], Any]:
        for_trades = "rade" in path or "transactions" in path

        async def handle(request: web.Request) -> web.Response:
            self.requests.append(request.path_qs)
            self.changed()
            await self._rest_open.wait()
            fault = self.rest_fault
            status, headers, text = 200, {}, None
            if fault is not None and fault.times > 0 and (for_trades or not fault.trades):
                fault.times -= 1
                status, headers, text = fault.status, dict(fault.headers), fault.body
            if text is None:
                try:
                    value = answer({**request.query, **request.match_info}) if status == 200 else {}
                    text = value if isinstance(value, str) else json.dumps(value)
                except RestError as error:
                    status, text = error.status, json.dumps(error.body)
            return web.Response(status=status, headers=headers, text=text, content_type="application/json")

        return handle

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if self.refuse is not None:
            return web.Response(status=self.refuse)
        websocket = web.WebSocketResponse(autoping=False, heartbeat=None, compress=False)
        await websocket.prepare(request)
        transport = request.transport
        assert transport is not None
        connection = Connection(self, websocket, transport)
        self.connections.append(connection)
        self.handshakes += 1
        beats = asyncio.ensure_future(self._beat(connection, websocket))
        self.on_connect(connection)
        self.changed()
        try:
            await connection.run()
        finally:
            beats.cancel()
            self.connections.remove(connection)
            self.changed()
        return websocket

    async def _beat(self, connection: Connection, websocket: web.WebSocketResponse) -> None:
        elapsed = 0.0
        while True:
            await asyncio.sleep(self.heartbeat_seconds)
            elapsed += self.heartbeat_seconds
            self.beat(connection)
            if self.ping_seconds is not None and elapsed >= self.ping_seconds and not self.silent:
                elapsed = 0.0
                await websocket.ping()
