"""`Service`: one run of the server in its event loop. Admits connections, answers messages and shuts down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from typing import Literal, cast

import attrs
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ..errors import FinxStreamerError
from .connection import CHUNK, TRY_AGAIN, Connection
from .descriptors import ExhaustionReporter
from .faults import CallFaults, HandshakeFaults
from .functions import SUBSCRIBING, Call, CallError, Subscription, prepare, read_call
from .hub import Hub
from .keys import KeyRing
from .pages import Page, health_page, welcome_page
from .player import play_source
from .protocol import (
    GREEKS_PLACEHOLDER,
    KEEP_ALIVE,
    HandshakeRefused,
    Kind,
    Route,
    Wire,
    check_origin,
    check_symbol,
    error_message,
    parse_path,
    to_json,
    unavailable,
)
from .recorder import Recorder, StoreFailed
from .request_log import RequestLog
from .resumer import Resumer
from .resuming import RESUME
from .settings import Settings
from .source import as_log
from .stats import Counters
from .tape import Tape

log = logging.getLogger("finx_streamer.server")
# At DEBUG, websockets logs request lines, which contain the API key.
_wire_log = logging.getLogger("finx_streamer.server.wire")
_wire_log.setLevel(logging.WARNING)
# Some versions log a traceback for each client that sends something else than a handshake, as port scans do.
_wire_log.addFilter(lambda record: record.msg != "opening handshake failed")

#: The longest message that a client may send, in bytes. Longer ones are answered with close code 1009. Source: O.
MESSAGE_LIMIT = 16_384
#: The most subscriptions of a connection. Source: O.
SUBSCRIPTION_LIMIT = 10_000
GOING_AWAY = 1001
#: The longest wait for a source to know its pairs, in seconds. Then the server starts, and refuses clients for now.
_KNOWN_TIMEOUT = 10.0
#: The number of loop iterations that asyncio needs to create or close a transport.
_TRANSPORT_ITERATIONS = 4

#: The kind of connections that a fault applies to.
Only = Literal["streams", "functions"]


@attrs.frozen
class ServerState:
    """The parts of a server that persist across restarts."""

    keys: KeyRing
    recorder: Recorder
    handshake_faults: HandshakeFaults = attrs.field(factory=HandshakeFaults)
    call_faults: CallFaults = attrs.field(factory=CallFaults)
    counters: Counters = attrs.field(factory=Counters)


class Service:
    """One run of the server. Everything except `__init__` runs on the server's thread."""

    def __init__(
        self,
        settings: Settings,
        state: ServerState,
        notify: Callable[[], None],
        request_log: RequestLog | None = None,
    ) -> None:
        self.hub = Hub(settings, state.counters, state.recorder, notify, request_log)
        self.request_log = request_log
        self.loop: asyncio.AbstractEventLoop
        self.started = False
        self.finished = False
        #: The error that ended the source, if any.
        self.error: BaseException | None = None
        self._settings = settings
        self._state = state
        self._notify = notify
        self._resumer = Resumer(settings, state.recorder, self.hub, state.counters)
        self._resumed = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self, listener: socket.socket, ready: Future[None]) -> None:
        """Serve until `stop()`. `ready` is set when clients can connect."""
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(ExhaustionReporter().handle)
        source = self._settings.source
        self._state.recorder.start(self.loop, self._on_stored, source.recording if isinstance(source, Tape) else None)
        server = await self._serve(listener)
        player = self.loop.create_task(self._play())
        try:
            await self._wait_until_known(player)
            ready.set_result(None)
            await self._stopping.wait()
        finally:
            player.cancel()
            await self._stop_accepting(listener)
            # A live source closes its connections. Another cancellation meanwhile would leak their sockets.
            await asyncio.wait([player], timeout=self._settings.close_timeout)
            await self._close(server)

    @property
    def _is_known(self) -> bool:
        """Whether the source knows its pairs."""
        log_source = as_log(self._settings.source)
        return log_source is None or log_source.ready

    async def _wait_until_known(self, player: asyncio.Task[None]) -> None:
        """Wait for the source to know its pairs, but not for long. Raises the error that ended it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KNOWN_TIMEOUT):
                while not self._is_known and not player.done():
                    await asyncio.sleep(0.02)
        if self.error is not None and not self._is_known:
            raise self.error

    def stop(self) -> None:
        """Make `run()` close all connections and return."""
        self._stopping.set()

    def select(self, symbol: str | None, only: Only | None) -> list[Connection]:
        """The connections with a symbol (None: all) and of a kind (None: both). With subscriptions, it is a stream."""
        return [
            each
            for each, subscriptions in self.hub.connections.items()
            if (symbol is None or symbol in subscriptions)
            and (only is None or (only == "streams") == bool(subscriptions))
        ]

    def close_revoked(self) -> int:
        """Close the connections whose key is no longer accepted. Returns how many these are."""
        keys = {each: each.route.key for each in self.hub.connections if each.route is not None}
        refused = {key for key in set(keys.values()) if not self._state.keys.accepts(key)}
        revoked = [connection for connection, key in keys.items() if key in refused]
        for connection in revoked:
            connection.begin_close(1008, "the API key was revoked")
        return len(revoked)

    def reopen_request_log(self) -> None:
        """See `RequestLog.reopen`."""
        if self.request_log is not None:
            self.request_log.reopen()

    def resume(self) -> int:
        """Thaw the frozen connections, and answer the stalled handshakes and calls. Returns how many were frozen."""
        frozen = [each for each in self.hub.connections if each.frozen]
        for connection in frozen:
            connection.thaw()
        self._resumed.set()
        self._resumed.clear()
        self.hub.on_room()
        return len(frozen)

    async def _serve(self, listener: socket.socket) -> Server:
        settings = self._settings
        return await serve(
            self._handle,
            sock=listener,
            ssl=settings.ssl_context,
            ssl_handshake_timeout=settings.open_timeout if settings.ssl_context else None,
            process_request=self._admit,
            process_response=_add_headers,
            compression=None,
            open_timeout=settings.open_timeout,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            close_timeout=settings.close_timeout,
            max_size=MESSAGE_LIMIT,
            write_limit=CHUNK,
            logger=_wire_log,
            server_header="finx-streamer",
            create_connection=cast(type[ServerConnection], partial(Connection, settings=settings, observer=self.hub)),
        )

    async def _play(self) -> None:
        try:
            await play_source(self._settings.source, self.hub, self._on_started)
        except Exception as error:
            # Our own errors say enough without a traceback.
            log.error("the market source failed: %s", error, exc_info=not isinstance(error, FinxStreamerError))
            self.error = error
        self.finished = True
        self._notify()

    def _on_started(self) -> None:
        self.started = True
        self._notify()

    def _on_stored(self) -> None:
        self.hub.on_room()
        self._notify()

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a handshake: with a refusal, or None to continue it."""
        client = cast(Connection, connection)
        # Before the faults and counters, which are for clients.
        if (page := self._find_page(request)) is not None:
            client.page = page
            return _response(connection, page.status, page.content_type, page.body, page.headers)
        try:
            # First, so that a web page learns nothing and uses up no fault.
            check_origin(request.headers.get_all("Origin"), request.headers.get_all("Host"), self._settings.host)
            if self._state.handshake_faults.take_stall():
                await self._resumed.wait()
            route = self._check_request(client, request.path)
            self.hub.admit(client)
            if route.kind is Kind.TICKS and (wanted := request.headers.get_all(RESUME)):
                client.start = await self._resumer.find_start(route.symbol, wanted[0])
        except HandshakeRefused as refused:
            self._state.counters.refused += 1
            log.info("handshake refused: %d", refused.status)
            return _response(connection, refused.status, "application/json", refused.body, refused.headers)
        return None

    def _find_page(self, request: Request) -> Page | None:
        """The page that a browser or a probe asks for; None for a WebSocket client."""
        if request.headers.get_all("Upgrade"):
            return None
        match request.path.partition("?")[0]:
            case "/health":
                return health_page(
                    store_works=self._state.recorder.error is None, source_works=self.error is None and self._is_known
                )
            case "/":
                scheme = "ws" if self._settings.ssl_context is None else "wss"
                hosts = request.headers.get_all("Host")
                return welcome_page(f"{scheme}://{hosts[0] if hosts else 'HOST'}/")
        return None

    def _check_request(self, client: Connection, path: str) -> Route:
        self._state.handshake_faults.raise_refusal()
        client.route = route = parse_path(path)
        # The key before the symbol, so that strangers don't learn which symbols exist.
        if not self._state.keys.accepts(route.key):
            raise HandshakeRefused(HTTPStatus.UNAUTHORIZED, "the API key is missing or not accepted")
        client.key_number = self._state.keys.number_of(route.key)
        if not self._is_known:
            raise unavailable("the market isn't known yet")
        contracts = self._settings.contracts
        check_symbol(route, self._settings.source.pairs, contracts)
        if route.kind is Kind.TICKS or (route.kind is Kind.GREEKS and contracts):
            client.listed_symbol = route.symbol
        self._check_limits(client, route.key)
        return route

    def _check_limits(self, client: Connection, key: str) -> None:
        settings, hub = self._settings, self.hub
        for what, count, limit in (
            ("to this server", len(hub.admitted), settings.max_connections),
            ("with this key", hub.admitted_per_key[key], settings.max_connections_per_key),
            ("from this address", hub.admitted_per_network[client.network], settings.max_connections_per_address),
        ):
            if count >= limit:
                text = f"too many connections {what}; the limit is {limit:,}"
                raise HandshakeRefused(HTTPStatus.TOO_MANY_REQUESTS, text, {"Retry-After": "1"})

    async def _handle(self, connection: ServerConnection) -> None:
        client = cast(Connection, connection)
        self.hub.register(client)
        try:
            if client.route is None or not self._state.keys.accepts(client.route.key):
                # The key was revoked during the handshake.
                client.begin_close(1008, "the API key was revoked")
            elif client.route.kind is not Kind.FUNCTIONS:
                await self._begin_stream(client, client.route)
            await self._answer_messages(client)
        except ConnectionClosed:
            pass
        finally:
            self.hub.on_closing(client)

    async def _begin_stream(self, client: Connection, route: Route) -> None:
        """Begin the stream of the URL."""
        if client.start is not None:
            start, client.start = client.start, None
            await self._resumer.resume(client, route.symbol, Wire.URL, start)
            return
        is_played = route.kind is Kind.TICKS or bool(self._settings.contracts)
        if self.hub.subscribe(client, route.symbol, Wire.URL, is_played=is_played):
            self.hub.send_newest(client, route.symbol)
        if not is_played:
            client.reply(GREEKS_PLACEHOLDER)

    async def _answer_messages(self, client: Connection) -> None:
        """Answer messages until the connection ends. Close it if no keepAlive arrives in time."""
        deadline = self._idle_deadline()
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await client.recv()
            except TimeoutError:
                deadline = self._idle_deadline()
                if not client.frozen:
                    client.begin_close(1000, "no keepAlive in time")
                continue
            if await self._reply(client, message) == KEEP_ALIVE:
                deadline = self._idle_deadline()

    def _idle_deadline(self) -> float | None:
        limit = self._settings.idle_limit
        return None if limit is None else self.loop.time() + limit

    async def _reply(self, client: Connection, message: str | bytes) -> str | None:
        """Answer a message. Returns the answer, once the client has accepted it.

        Until then, no further messages are read. Each connection thus holds at most one answer, a few messages and one
        query.
        """
        reply = await self._answer(client, message)
        if reply is not None:
            client.reply(reply)
        # If TCP has ended, recv() reports it.
        with contextlib.suppress(ConnectionError):
            await client.drain()
        return reply

    async def _answer(self, client: Connection, message: str | bytes) -> str | None:
        assert client.route is not None
        functions = client.route.kind is Kind.FUNCTIONS
        call: Call | None = None
        try:
            call = read_call(message, client.route.key, self._state.keys.accepts, strict=functions)
            if call is None:
                return None
            if call.name not in SUBSCRIBING:
                self._state.counters.calls += 1
                self._notify()
            if functions and (failure := await self._apply_faults(client, call)) is not None:
                raise CallError(failure)
            prepared = prepare(call, self._settings.source.pairs, self._settings.contracts)
            if isinstance(prepared, Subscription):
                await self._change_subscription(client, prepared)
                return None
            return prepared if isinstance(prepared, str) else await self._state.recorder.query(prepared)
        except (CallError, StoreFailed) as error:
            return error_message(str(error), None if call is None else call.subject)
        except sqlite3.Error as error:
            log.error("cannot read the tick store: %s", error)
            return error_message("the tick store cannot be read")

    async def _change_subscription(self, client: Connection, change: Subscription) -> None:
        """Begin or end a subscription, and answer."""
        if not change.begins:
            self.hub.unsubscribe(client, change.symbol)
            _answer(client, change.answer)
            return
        subscriptions = self.hub.connections.get(client, {})
        if change.symbol in subscriptions:
            _answer(client, change.answer)
            return
        if len(subscriptions) >= SUBSCRIPTION_LIMIT:
            raise CallError(
                f"this connection has {SUBSCRIPTION_LIMIT:,} subscriptions, the most that are possible; "
                "use another connection for further ones"
            )
        try:
            start = None if change.resume is None else await self._resumer.find_start(change.symbol, change.resume)
        except HandshakeRefused as refused:
            # An error would end this stream for good. So the client connects again, here or elsewhere.
            client.begin_close(TRY_AGAIN, refused.text)
            return
        if start is not None and change.answer is not None:
            _answer(client, {**change.answer, **start.members})
            await self._resumer.resume(client, change.symbol, Wire.SUBSCRIBE, start)
            return
        # In force before the answer. Nothing is published in between.
        self.hub.subscribe(client, change.symbol, Wire.SUBSCRIBE)
        _answer(client, change.answer)
        self.hub.send_newest(client, change.symbol)

    async def _apply_faults(self, client: Connection, call: Call) -> str | None:
        """Drop, stall or fail the call as requested. Returns the error to answer with, if any."""
        if self._state.call_faults.take_drop(call.name):
            client.drop(reset=self._state.call_faults.reset)
            return "dropped"
        if self._state.call_faults.take_stall(call.name):
            await self._wait_resumed_or_closed(client)
        return self._state.call_faults.take_failure(call.name)

    async def _wait_resumed_or_closed(self, client: Connection) -> None:
        waits = [self.loop.create_task(self._resumed.wait()), self.loop.create_task(client.wait_closed())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _stop_accepting(self, listener: socket.socket) -> None:
        """Stop accepting, and let the sockets just accepted become transports: else asyncio leaks them (gh-109564)."""
        with contextlib.suppress(NotImplementedError):
            self.loop.remove_reader(listener)
        await self._yield_to_loop()

    async def _yield_to_loop(self) -> None:
        for _ in range(_TRANSPORT_ITERATIONS):
            await asyncio.sleep(0)

    async def _close(self, server: Server) -> None:
        server.close(close_connections=False)
        leaving = list(self.hub.connections)
        for connection in leaving:
            connection.begin_close(GOING_AWAY, "the server is stopping")
        if leaving:
            closed = [self.loop.create_task(connection.wait_closed()) for connection in leaving]
            await asyncio.wait(closed, timeout=self._settings.close_timeout)
        self._abort_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await server.wait_closed()
        await self._abort_latecomers()

    def _abort_all(self) -> None:
        for connection in list(self.hub.transports):
            connection.transport.abort()

    async def _abort_latecomers(self) -> None:
        """Abort connections accepted just now or still in the TLS handshake. The hub doesn't know them yet.

        Let each task take its first steps before cancelling it. Otherwise it leaks its socket.
        """
        deadline = self.loop.time() + 1.0
        while self.loop.time() < deadline:
            await self._yield_to_loop()
            self._abort_all()
            latecomers = asyncio.all_tasks() - {asyncio.current_task()}
            if not latecomers and not self.hub.transports:
                break
            for task in latecomers:
                task.cancel()


def _answer(client: Connection, answer: Mapping[str, str] | None) -> None:
    if answer is not None:
        client.reply(to_json(answer))


def _add_headers(connection: ServerConnection, request: Request, response: Response) -> None:
    """Tell a client that can resume where its stream starts."""
    client = cast(Connection, connection)
    if client.start is not None:
        for name, value in client.start.headers.items():
            response.headers[name] = value


def _response(
    connection: ServerConnection, status: int, content_type: str, body: str, headers: Mapping[str, str]
) -> Response:
    response = connection.respond(HTTPStatus(status), body)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    for name, value in headers.items():
        response.headers[name] = value
    return response
