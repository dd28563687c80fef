"""`FunctionClient`: what FinX answers when it is asked, over the websocket: snaps, history, reference data."""

from __future__ import annotations

import itertools
import json
import ssl
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from ..config import checks as check
from ..config.api_key import KeySource
from ..config.checks import Moment, moment
from ..config.endpoint import Endpoint
from ..config.proxy import ProxyChoice
from ..config.reconnect import ReconnectPolicy
from ..config.redaction import hides_arguments, redact
from ..config.symbols import Pair
from ..connection.attempt import ConnectionConfig
from ..errors import AuthenticationError, ConfigurationError, NotAvailable
from ..values import Tick
from .call_pool import CallPool
from .call_scheduler import PoolSettings
from .history import with_progress_bar
from .tick_reader import TickReader

_names = itertools.count(1)
#: Added by the client itself.
_RESERVED = ("APIKey", "functionName")


class FunctionClient:
    """Calls FinX's functions over a few websocket connections, and waits for the answers::

        with FunctionClient() as client:
            client.tick_snap("BTC:USDC")
            client.tick_history("BTC:USDC", "2022-07-02T15:00", "2022-07-02T16:00")

    For any thread, and for many at once. Connections are made when they are needed, kept alive while they are not, and
    made anew when they are lost. Arguments that are wrong raise `ConfigurationError`.

    - `api_key`, `endpoint`, `parse_price`, `ssl_context`, `proxy`, `allow_insecure`: as with `StreamListener`. The key
      is asked for at each connection attempt.
    - `timeout`: seconds for one call, connecting, waiting for a connection and trying again included (`CallTimeout`).
      A fetch of history takes as many calls as there are pages.
    - `connections`: how many there are at most. Each has one call in flight (O); further calls wait for one.
    - `reconnect`: a `ReconnectPolicy`: what was not answered because a connection failed is asked again, for all
      functions only read. None: no second try.
    - `connect_timeout`: seconds for one connection attempt.
    - `name`: of the threads, and in `repr`.

    All methods but `close` raise `ConnectionFailed` (or one of its kinds) where there is no connection to be had,
    `FunctionError` where the server answers with an error, or the client is closed; `CallTimeout`; `DecodeError` for
    an answer that can't be understood.
    """

    @hides_arguments
    def __init__(
        self,
        api_key: str | Callable[[], str | None] | None = None,
        endpoint: str | Endpoint = "production",
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
    ) -> None:
        # The key first: from then on, errors about the other arguments mask it.
        keys = KeySource.from_argument(api_key)
        proxies = ProxyChoice.from_argument(proxy)
        where = Endpoint.of(endpoint)
        where.check_secrecy(check.instance("allow_insecure", allow_insecure, "True or False", check.is_bool))
        proxies.check_secrecy(where, allow_insecure)
        context = check.instance("ssl_context", ssl_context, "an ssl.SSLContext or None", check.is_context)
        config = ConnectionConfig(
            where,
            None,
            keys,
            check.seconds("connect_timeout", connect_timeout),
            check.context_factory(context),
            proxies=proxies,
        )
        self._timeout = check.seconds("timeout", timeout)
        size = check.positive_int("connections", connections)
        price_parser = check.instance(
            "parse_price", parse_price, "a callable such as float or decimal.Decimal", callable
        )
        policy = check.instance("reconnect", reconnect, "a ReconnectPolicy or None (None: no retry)", check.is_policy)
        given = check.instance("name", name, "a str or None", check.is_name)
        self._name = given or f"finx-streamer-functions-{next(_names)}"
        self._where = redact(config.endpoint.url)
        self._calls = CallPool(PoolSettings(config, policy, size, self._name))
        self._ticks = TickReader(self._calls, self._timeout, price_parser)
        # Also closes a client that is forgotten, and at the end of the interpreter.
        weakref.finalize(self, self._calls.close)

    # Functions.

    def authenticate(self) -> bool:
        """Whether the server takes the API key. Raises `AuthenticationError` where there is none to show."""
        try:
            return self._call("authenticate", {}).get("isAuth") is True
        except AuthenticationError as refusal:
            if refusal.status is None and refusal.close_code is None:
                raise
            return False

    @hides_arguments
    def tick_snap(self, pair: str | Pair, at: Moment | None = None) -> Tick:
        """The last tick of a pair at or before a time, to the millisecond; None: now, by this machine's clock.

        `at`: an aware datetime, a date (its midnight, UTC) or ISO text (in UTC where it has no offset). `backfilled` is
        True. Raises `ConfigurationError` for what is no pair or no time, and `FunctionError` where there is no such
        tick; else as all methods do. Source: D.
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
        """All ticks of `start` <= time < `end`, sorted by time; `backfilled` is True.

        Times as in `tick_snap`; `end` None is now. `exchange`: that network's ticks alone (S: network-specific series).
        `progress`: show a bar on stderr; needs the extra `progress`. Equal ticks are different trades; the order among
        ticks of the same time is not known. Raises `IncompleteHistory` where more ticks than an answer can hold share a
        millisecond. Of ticks at exactly midnight UTC the server tells one at most.
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
        """As `tick_history`, a page at a time: the next one is fetched when the ticks of the last are used up."""
        name = str(check.pair(pair))
        since = moment("start", start)
        until = moment("end", end) if end is not None else datetime.now(UTC)
        if until < since:
            raise ConfigurationError(f"end: {until.isoformat()} is before start, which is {since.isoformat()}")
        if exchange is not None:
            check.exchange("exchange", exchange)
        check.instance("progress", progress, "True or False", check.is_bool)
        found = self._ticks.history_pages(name, since, until, exchange)
        if progress:
            found = with_progress_bar(found, name, since, until)
        return itertools.chain.from_iterable(found)

    @hides_arguments
    def reference_data(self, security_id: str) -> dict[str, Any]:
        """Facts about a security such as "BTC", as the decoded JSON object; which ones is up to FinX (D).

        Raises `ConfigurationError` for what is no text, and `FunctionError` where the server does not know it; else as
        all methods do.
        """
        check.instance("security_id", security_id, "a str such as 'BTC'", _is_text)
        return self._call("referenceData", {"securityId": security_id})

    def greeks_history(self, *arguments: Any, **more: Any) -> list[Any]:
        """Not yet: FinX has announced it for a future release (S). Raises `NotAvailable`."""
        raise NotAvailable("Greeks history: FinX has announced it for a future release")

    @hides_arguments
    def call(self, function_name: str, /, **arguments: Any) -> dict[str, Any]:
        """Any function of FinX's, by the wire's own names: `client.call("referenceData", securityId="BTC")`.

        The key is added here. Returns the answer as it came. Raises `ConfigurationError` for what is no JSON.
        """
        check.instance("function_name", function_name, "a str such as 'referenceData'", _is_text)
        for name in _RESERVED:
            if name in arguments:
                raise ConfigurationError(f"{name}: not an argument of a call; the client adds it")
        try:
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as cause:
            raise ConfigurationError(f"{function_name}: the arguments are no JSON: {redact(str(cause))}") from None
        return self._call(function_name, arguments)

    # Within.

    def _call(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._calls.call(function, arguments, self._timeout).message

    # Life.

    def close(self) -> None:
        """End at once: close the connections; calls under way raise `FunctionError`. Idempotent, from any thread."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not hasattr(self, "_calls"):
            # In a traceback of the constructor's, which may show locals.
            return "<FunctionClient, not made>"
        state = "closed" if self._calls.closed else f"{self._calls.connections} connected"
        return f"<FunctionClient {self._name} {state} at {self._where}>"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
