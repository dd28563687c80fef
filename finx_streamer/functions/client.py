"""`FunctionClient`: calls FinX's functions, such as tick history, and waits for the answers."""

from __future__ import annotations

import itertools
import json
import numbers
import ssl
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self

from .. import demo
from ..config import checks as check
from ..config.checks import Moment, moment
from ..config.endpoint import Endpoint
from ..config.reconnect import ReconnectPolicy, checked_policy
from ..config.redaction import hides_arguments, redact
from ..config.symbols import Pair
from ..connection.attempt import ConnectionConfig
from ..errors import AuthenticationError, ConfigurationError, DecodeError, NotAvailable
from ..values import Greeks, Tick
from .bad_ticks import BadTicks
from .call_pool import CallPool
from .call_scheduler import PoolSettings
from .contracts import matrix_arguments, read_matrix, read_names
from .history import with_progress_bar
from .tick_reader import TickReader

_names = itertools.count(1)
#: The client adds these.
_RESERVED = ("APIKey", "functionName")


class FunctionClient:
    """Calls FinX's functions, such as tick history, and waits for the answers::

        from finx_streamer import FunctionClient

        with FunctionClient(endpoint="demo") as client:
            print(client.tick_snap("BTC:USDC"))

    Any number of threads can share a client. Connections open when they are needed, stay alive while they are idle, and
    are replaced when they are lost.

    Every method except `close` raises `ConnectionFailed` or a subclass of it if there is no connection, `FunctionError`
    if the server answers with an error or the client is closed, `CallTimeout` if no answer comes in time, and
    `DecodeError` if the answer can't be decoded.

    Args:
        api_key: Your API key, as for `StreamListener`. A callable is asked for it at every connection attempt. None
            reads FINX_API_KEY.
        endpoint (str | Endpoint | Sequence[str | Endpoint]): "production", "beta", "demo", a base URL, an `Endpoint` or
            a list of servers, as for `StreamListener`.
        timeout: Seconds until a call is sent, including waiting for a free connection, connecting, and retries; and
            then for its answer. History takes one call per page, and a second one if the server is silent.
        connections: The maximum number of connections. Each has one call in flight (source: O); further calls wait.
        parse_price: Converts the decimal string that was sent to a price, e.g. `float`, `decimal.Decimal` or `str`. It
            must be thread-safe.
        reconnect: When to retry a call whose connection failed, because all functions only read. None: never.
        connect_timeout: Seconds for one connection attempt.
        ssl_context: TLS settings, as for `StreamListener`.
        proxy: As for `StreamListener`. None reads the environment's proxy, and "" uses none.
        allow_insecure: True permits `ws://` to other machines. Everyone on the way can then read your API key.
        name: Prefix of the thread names, shown in `repr`. None generates one.
        on_bad: What to do about a tick of history that can't be read, such as one with the price "NaN". "skip" leaves
            it out, with a warning in the log. "raise" raises its `DecodeError`. A callable gets the error, and the tick
            is left out unless it raises. `bad_ticks` counts them.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    #: Whether a server that can't be reached at first fails a call at once. The command line does that.
    _fail_fast = False

    @hides_arguments
    def __init__(
        self,
        api_key: str | Callable[[], str | None] | None = None,
        endpoint: str | Endpoint | Sequence[str | Endpoint] = "production",
        timeout: float = 10.0,
        *,
        connections: int = 4,
        parse_price: Callable[[str], Any] = float,
        reconnect: ReconnectPolicy | None = ReconnectPolicy(),  # noqa: B008 (frozen)
        connect_timeout: float = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
        name: str | None = None,
        on_bad: Literal["skip", "raise"] | Callable[[DecodeError], object] = "skip",
    ) -> None:
        if endpoint == "production" and api_key in ("production", "beta", demo.NAME):
            raise ConfigurationError(f"api_key: {api_key!r} is an endpoint, not a key; pass it as endpoint=")
        endpoint, api_key, proxy = demo.connection_arguments(self, endpoint, api_key, proxy)
        config = ConnectionConfig.from_arguments(
            api_key=api_key,
            endpoint=endpoint,
            proxy=proxy,
            allow_insecure=allow_insecure,
            ssl_context=ssl_context,
            connect_timeout=connect_timeout,
        )
        self._timeout = check.seconds("timeout", timeout)
        size = check.integer("connections", connections, 1)
        price_parser = check.price_parser(parse_price)
        policy = checked_policy(reconnect)
        self._bad_ticks = BadTicks(on_bad)
        given = check.text_or_none("name", name)
        self._name = given or f"finx-streamer-functions-{next(_names)}"
        self._where = str(config.servers)
        self._calls = CallPool(PoolSettings(config, policy, size, self._name, fail_fast=self._fail_fast))
        self._ticks = TickReader(self._calls, self._timeout, price_parser)
        # Closes forgotten clients too, and all clients when the interpreter exits.
        weakref.finalize(self, self._calls.close)

    # Functions.

    def authenticate(self) -> bool:
        """Return whether the server accepts the API key.

        Raises:
            AuthenticationError: There is no key.
        """
        try:
            return self._call("authenticate", {}).get("isAuth") is True
        except AuthenticationError as refusal:
            if refusal.status is None and refusal.close_code is None:
                raise
            return False

    @hides_arguments
    def tick_snap(self, pair: str | Pair, at: Moment | None = None) -> Tick:
        """Return the last tick of a pair at or before a time. Its `backfilled` is True. (Source: D.)

        Args:
            pair: Such as "BTC:USDC".
            at (datetime | date | str | None): An aware datetime, a date (midnight UTC), or ISO text (UTC unless it has
                an offset), to the millisecond. None is now, by this machine's clock.

        Raises:
            ConfigurationError: An argument is wrong.
            FunctionError: There is no such tick.
        """
        name = str(check.pair(pair))
        when = moment("at", at) if at is not None else datetime.now(UTC)
        return self._ticks.snap(name, when.date().isoformat(), when.time().isoformat("milliseconds"))

    @hides_arguments
    def tick_history(
        self,
        pair: str | Pair,
        start: Moment,
        end: Moment | None = None,
        exchange: str | None = None,
        progress: bool = False,
    ) -> list[Tick]:
        """Return all ticks with `start` <= time < `end`, sorted by time. Their `backfilled` is True. (Source: D.)

        Equal ticks are different trades. Ticks with the same time come in any order. The server knows at most one tick
        at exactly midnight UTC.

        Args:
            pair: Such as "BTC:USDC".
            start (datetime | date | str): A time, as for `tick_snap`.
            end (datetime | date | str | None): A time; None is now.
            exchange: Only the ticks of this exchange (source: S).
            progress: Show a progress bar on stderr. Needs the extra `[progress]`.

        Raises:
            ConfigurationError: An argument is wrong.
            DecodeError: A tick can't be read, and `on_bad` is "raise".
            IncompleteHistory: More ticks share a millisecond than one answer can hold.
        """
        return list(self.iter_tick_history(pair, start, end, exchange, progress))

    @hides_arguments
    def iter_tick_history(
        self,
        pair: str | Pair,
        start: Moment,
        end: Moment | None = None,
        exchange: str | None = None,
        progress: bool = False,
    ) -> Iterator[Tick]:
        """Yield what `tick_history` returns. While you use a page, the next one is requested.

        Args:
            pair: Such as "BTC:USDC".
            start (datetime | date | str): A time, as for `tick_snap`.
            end (datetime | date | str | None): A time; None is now.
            exchange: Only the ticks of this exchange (source: S).
            progress: Show a progress bar on stderr. Needs the extra `[progress]`.

        Raises:
            ConfigurationError: An argument is wrong.
            DecodeError: A tick can't be read, and `on_bad` is "raise".
            IncompleteHistory: More ticks share a millisecond than one answer can hold.
        """
        name = str(check.pair(pair))
        since = moment("start", start)
        until = moment("end", end) if end is not None else datetime.now(UTC)
        if until < since:
            raise ConfigurationError(f"end: {until.isoformat()} is before start, {since.isoformat()}")
        if exchange is not None:
            check.exchange("exchange", exchange)
        check.boolean("progress", progress)
        found = self._ticks.history_pages(name, since, until, exchange, on_bad=self._bad_ticks.report)
        if progress:
            found = with_progress_bar(found, name, since, until)
        return itertools.chain.from_iterable(self._stay_open(found))

    def _stay_open(self, pages: Iterator[list[Tick]]) -> Iterator[list[Tick]]:
        """The same pages. The client closes when it is forgotten, and this keeps it in use."""
        yield from pages

    @hides_arguments
    def reference_data(self, security_id: str) -> dict[str, Any]:
        """Return facts about a security, as FinX's JSON object. (Source: D.)

        Args:
            security_id: Such as "BTC".

        Raises:
            ConfigurationError: It isn't text.
            FunctionError: The server doesn't know it.
        """
        check.text("security_id", security_id, "a str such as 'BTC'")
        return self._call("referenceData", {"securityId": security_id})

    def list_contracts(self) -> list[str]:
        """Return the names of the contracts that are listed now: options, futures and perpetuals. (Source: D.)

        Raises:
            DecodeError: The answer isn't a list of names.
        """
        found, _ = self._calls.call_for_list("listDeribitContracts", {}, self._timeout)
        return read_names(found)

    @hides_arguments
    def five_minute_matrix(self, underlying: str, at: Moment | Literal["latest"] = "latest") -> list[Greeks]:
        """Return what each contract of an underlying was worth at a five-minute point. (Source: D; its form: O.)

        Args:
            underlying: "BTC", "ETH", "SOL" or "USDC".
            at (datetime | date | str): A time, as for `tick_snap`: the five-minute point at or before it. "latest" is
                the last one.

        Returns:
            The Greeks of each contract. Their `symbol` is their instrument. Those that can't be read are left out, or
            treated as `on_bad` says.

        Raises:
            ConfigurationError: An argument is wrong.
            DecodeError: The answer isn't a list of tickers of the underlying.
        """
        arguments = matrix_arguments(underlying, at)
        found, received_ns = self._calls.call_for_list("getFiveMinMatrix", arguments, self._timeout)
        return read_matrix(underlying, found, received_ns, self._bad_ticks)

    def greeks_history(self, *arguments: Any, **more: Any) -> list[Any]:
        """Raise `NotAvailable`: FinX has announced the history of Greeks for a future release (source: S).

        Args:
            *arguments: Not used yet.
            **more: Not used yet.
        """
        raise NotAvailable("Greeks history: FinX has announced it for a future release")

    @hides_arguments
    def call(self, function_name: str, /, **arguments: Any) -> dict[str, Any]:
        """Call any function by its name on the wire: `client.call("referenceData", securityId="BTC")`.

        Args:
            function_name: The name on the wire.
            **arguments: Its arguments. The client adds the key.

        Returns:
            The answer as FinX sent it.

        Raises:
            ConfigurationError: The arguments can't be JSON.
        """
        check.text("function_name", function_name, "a str such as 'referenceData'")
        for name in _RESERVED:
            if name in arguments:
                raise ConfigurationError(f"{name}: remove it, because the client adds it to each call")
        try:
            arguments = json.loads(json.dumps(arguments, allow_nan=False, default=_plain_number))
        except (TypeError, ValueError, RecursionError) as cause:
            raise ConfigurationError(f"{function_name}: the arguments can't be JSON: {redact(str(cause))}") from None
        return self._call(function_name, arguments)

    def _call(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._calls.call(function, arguments, self._timeout).message

    @property
    def bad_ticks(self) -> int:
        """How many ticks of history couldn't be read so far."""
        return self._bad_ticks.count

    # Life.

    def close(self) -> None:
        """Close all connections at once. Calls in progress raise `FunctionError`. Works from any thread. Idempotent."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not hasattr(self, "_calls"):
            # A traceback of the constructor may show locals.
            return "<FunctionClient (incomplete)>"
        state = "closed" if self._calls.closed else f"{self._calls.connections} connected"
        return f"<FunctionClient {self._name} {state} at {self._where}>"


def _plain_number(value: object) -> int | float:
    """Convert a number that `json` doesn't know, such as NumPy's. Raises `TypeError` for anything else."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")
