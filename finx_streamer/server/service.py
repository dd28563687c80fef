"""The server within its thread: who is let in, what is answered, and what is done to those who are connected."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import sqlite3
import ssl
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Literal, cast

import attrs
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from .connection import CHUNK, Connection, Limits
from .faults import CallFaults, Refusals
from .functions import Call, CallError, prepare, read_call, refusal
from .hub import Hub
from .keys import KeyRing
from .player import play
from .protocol import (
    GREEKS_PLACEHOLDER,
    KEEP_ALIVE,
    Form,
    Kind,
    Refused,
    Route,
    check_origin,
    check_symbol,
    encoder,
    error_text,
    parse_path,
)
from .recorder import Recorder, StoreFailed
from .source import Source
from .stats import Counters

log = logging.getLogger("finx_streamer.server")
# websockets logs request lines at DEBUG, and a request line holds the API key. It gets no chance to.
_wire_log = logging.getLogger("finx_streamer.server.wire")
_wire_log.setLevel(logging.WARNING)

#: The longest message that a client may send, in bytes. Source: O. More is answered with close code 1009.
MESSAGE_LIMIT = 16_384
GOING_AWAY = 1001
#: How many turns of the loop it takes to make a transport, or to close it.
_TURNS = 4

#: What kind of connections a fault is meant for.
Only = Literal["streams", "functions"]


@attrs.frozen
class Settings:
    """What a server is told once. Times in seconds."""

    source: Source
    host: str
    limits: Limits
    form: Form
    ssl_context: ssl.SSLContext | None
    max_connections: int
    max_connections_per_key: int
    idle_limit: float | None
    open_timeout: float
    ping_interval: float | None
    ping_timeout: float | None


class Service:
    """One run of the server. Everything here is called in the server's thread, `__init__` excepted."""

    def __init__(
        self,
        settings: Settings,
        keys: KeyRing,
        refusals: Refusals,
        faults: CallFaults,
        recorder: Recorder,
        counters: Counters,
        notify: Callable[[], None],
    ) -> None:
        self.hub = Hub(counters, encoder(settings.form), recorder, notify, settings.max_connections)
        self.loop: asyncio.AbstractEventLoop
        self.started = False
        self.finished = False
        #: What ended the source, if it was an error.
        self.error: BaseException | None = None
        self._settings = settings
        self._keys = keys
        self._refusals = refusals
        self._faults = faults
        self._recorder = recorder
        self._counters = counters
        self._notify = notify
        self._resumed = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self, listener: socket.socket, ready: Future[None]) -> None:
        """Serve until `stop()`; `ready` is told when clients can connect."""
        self.loop = asyncio.get_running_loop()
        self._recorder.start(self.loop, self._written)
        server = await self._serve(listener)
        player = self.loop.create_task(self._play())
        try:
            ready.set_result(None)
            await self._stopping.wait()
        finally:
            player.cancel()
            await self._stop_accepting(listener)
            await self._close(server)

    def stop(self) -> None:
        """Let `run()` come to its end, with a close frame for everybody."""
        self._stopping.set()

    def having(self, symbol: str | None, only: Only | None) -> list[Connection]:
        """The connections: all, or those of one symbol's streams; of streams or of functions only."""
        return [
            each
            for each in self.hub.connections
            if each.route is not None
            and (symbol is None or each.route.symbol == symbol)
            and (only is None or (only == "functions") == (each.route.kind is Kind.FUNCTIONS))
        ]

    def with_key(self, key: str) -> list[Connection]:
        """The connections that were made with this key."""
        return [each for each in self.hub.connections if each.route is not None and each.route.key == key]

    def resume(self) -> int:
        """Thaw the silent connections, answer the stalled handshakes and calls. Returns how many were silent."""
        silent = [each for each in self.hub.connections if each.silent]
        for connection in silent:
            connection.thaw()
        self._resumed.set()
        self._resumed.clear()
        self.hub.has_room()
        return len(silent)

    async def _serve(self, listener: socket.socket) -> Server:
        settings = self._settings
        return await serve(
            self._handle,
            sock=listener,
            ssl=settings.ssl_context,
            process_request=self._admit,
            compression=None,
            open_timeout=settings.open_timeout,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            close_timeout=settings.limits.close_timeout,
            max_size=MESSAGE_LIMIT,
            write_limit=CHUNK,
            logger=_wire_log,
            server_header="finx-streamer",
            create_connection=cast(
                type[ServerConnection], functools.partial(Connection, limits=settings.limits, watcher=self.hub)
            ),
        )

    async def _play(self) -> None:
        try:
            await play(self._settings.source, self.hub, self._begin)
        except Exception as error:
            log.exception("the market source failed")
            self.error = error
        self.finished = True
        self._notify()

    def _begin(self) -> None:
        self.started = True
        self._notify()

    def _written(self) -> None:
        """A batch of ticks is in the store."""
        self.hub.has_room()
        self._notify()

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request for a handshake: None lets it in."""
        client = cast(Connection, connection)
        try:
            # First of all: a web page is to learn nothing, and to use up no fault that is meant for others.
            check_origin(request.headers.get_all("Origin"), request.headers.get_all("Host"), self._settings.host)
            if self._refusals.stalls():
                await self._resumed.wait()
            client.route = self._checked(request.path)
            self.hub.admit(client)
        except Refused as refused:
            self._counters.refused += 1
            log.info("handshake refused: %d", refused.status)
            return _response(connection, refused)
        return None

    def _checked(self, path: str) -> Route:
        self._refusals.check()
        route = parse_path(path)
        # The key comes before the symbol: a stranger learns nothing of what there is.
        if not self._keys.accepts(route.key):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the API key is missing or not accepted")
        check_symbol(route, self._settings.source.pairs)
        if len(self.hub.admitted) >= self._settings.max_connections:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many connections", {"Retry-After": "1"})
        if self.hub.keys[route.key] >= self._settings.max_connections_per_key:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many connections with this key", {"Retry-After": "1"})
        return route

    async def _handle(self, connection: ServerConnection) -> None:
        client = cast(Connection, connection)
        self.hub.join(client)
        try:
            if client.route is None or not self._keys.accepts(client.route.key):
                # It was revoked after the connection was let in, and before it was among those to be closed.
                client.shut(1008, "the API key was revoked")
            if client.route is not None and client.route.kind is Kind.GREEKS:
                client.say(GREEKS_PLACEHOLDER)
            await self._converse(client)
        except ConnectionClosed:
            pass
        finally:
            self.hub.leave(client)

    async def _converse(self, client: Connection) -> None:
        """Answer messages until the connection ends, or was without a keepAlive for too long."""
        deadline = self._idle_deadline()
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await client.recv()
            except TimeoutError:
                deadline = self._idle_deadline()
                if not client.silent:
                    client.shut(1000, "no keepAlive in time")
                continue
            if await self._reply(client, message) == KEEP_ALIVE:
                deadline = self._idle_deadline()

    def _idle_deadline(self) -> float | None:
        limit = self._settings.idle_limit
        return None if limit is None else self.loop.time() + limit

    async def _reply(self, client: Connection, message: str | bytes) -> str | None:
        """Answer a message. Returns the answer, once there is room for the next one.

        A connection's messages are answered one after another, and not even read while an answer waits for its
        client: so each connection holds one answer, a few messages and one question to the store at the most.
        """
        reply = await self._answer(client, message)
        if reply is not None:
            client.say(reply)
            # If TCP is gone meanwhile, that is for `recv()` to tell.
            with contextlib.suppress(ConnectionError):
                await client.drain()
        return reply

    async def _answer(self, client: Connection, message: str | bytes) -> str | None:
        assert client.route is not None
        functions = client.route.kind is Kind.FUNCTIONS
        try:
            call = read_call(message, client.route.key, self._keys.accepts, strict=functions)
            if call is None:
                return None
            self._counters.calls += 1
            self._notify()
            if functions and (failure := await self._misfortune(client, call)) is not None:
                return error_text(failure)
            prepared = prepare(call, self._settings.source.pairs)
            return prepared if isinstance(prepared, str) else await self._recorder.ask(prepared)
        except CallError as error:
            return refusal(error)
        except StoreFailed as error:
            return error_text(str(error))
        except sqlite3.Error as error:
            log.error("the tick store cannot be read: %s", error)
            return error_text("the tick store cannot be read")

    async def _misfortune(self, client: Connection, call: Call) -> str | None:
        """Let go wrong what is to go wrong with this call. Returns the error that it is to be answered with, if any."""
        if self._faults.drops(call.name):
            client.drop(reset=self._faults.resets)
            return "dropped"
        if self._faults.stalls(call.name):
            await self._resumed_or_gone(client)
        return self._faults.failure(call.name)

    async def _resumed_or_gone(self, client: Connection) -> None:
        waits = [self.loop.create_task(self._resumed.wait()), self.loop.create_task(client.wait_closed())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _stop_accepting(self, listener: socket.socket) -> None:
        """Let those that were just accepted become connections: asyncio forgets the socket of one that finds its server
        closed (gh-109564)."""
        with contextlib.suppress(NotImplementedError):
            self.loop.remove_reader(listener)
        await self._some_turns()

    async def _some_turns(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def _close(self, server: Server) -> None:
        server.close(close_connections=False)
        leaving = list(self.hub.connections)
        for connection in leaving:
            connection.shut(GOING_AWAY, "the server stops")
        if leaving:
            closed = [self.loop.create_task(connection.wait_closed()) for connection in leaving]
            await asyncio.wait(closed, timeout=self._settings.limits.close_timeout)
        self._abort_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await server.wait_closed()
        await self._end_newcomers()

    def _abort_all(self) -> None:
        for connection in list(self.hub.transports):
            connection.transport.abort()

    async def _end_newcomers(self) -> None:
        """End those that were accepted in this very moment, or are within TLS's handshake: the hub knows them late.

        Cancelled before its first steps, a task would leave the socket it was made for; so it gets to make them.
        """
        patience_ends = self.loop.time() + 1.0
        while self.loop.time() < patience_ends:
            await self._some_turns()
            self._abort_all()
            newcomers = asyncio.all_tasks() - {asyncio.current_task()}
            if not newcomers and not self.hub.transports:
                break
            for task in newcomers:
                task.cancel()


def _response(connection: ServerConnection, refused: Refused) -> Response:
    response = connection.respond(HTTPStatus(refused.status), refused.body)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    for name, value in refused.headers.items():
        response.headers[name] = value
    return response
