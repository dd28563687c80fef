"""The wire protocol as the server speaks it: text in, text out. No socket, clock or thread in it.

The sources of what is spoken (docs/protocol.md): S is FinX's first description, D was documented later, O is our own
choice.
"""

from __future__ import annotations

import enum
import ipaddress
import json
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Literal
from urllib.parse import unquote, urlsplit

import attrs

from ..config.symbols import Option, Pair
from ..errors import ConfigurationError
from .ticks import Tick, epoch

#: Source: S for `streaming`, D for `streamer`.
PREFIXES = ("streaming", "streamer")
#: The longest path that is looked at, in characters. Source: O.
PATH_LIMIT = 2_048
#: Source: S, until the vendor releases the stream.
GREEKS_PLACEHOLDER = '{"feature":"scheduled for future release"}'
#: Source: D.
KEEP_ALIVE = '{"keepAlive":true}'

Form = Literal["enveloped", "flat"]

_compact = json.JSONEncoder(separators=(",", ":")).encode
_TEXT, _BINARY = 0x81, 0x82


class Kind(enum.Enum):
    """What a connection is for."""

    TICKS = "ticks"
    GREEKS = "greeks"
    FUNCTIONS = "functions"


@attrs.frozen
class Route:
    """What a path asks for. `symbol` is not yet checked, and empty for functions."""

    kind: Kind
    key: str = attrs.field(repr=False)
    symbol: str = ""


class Refused(Exception):
    """A handshake is refused with this HTTP status. The text goes to the client and never holds a key."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})

    @property
    def body(self) -> str:
        """The response's body, a JSON object. Source: O."""
        return error_text(self.text)


def parse_path(path: str) -> Route:
    """Read a request's path: `streaming/[key]/[pair]`, `streaming/greeks/[key]/[option]` (S), `streamer/[key]` (D).

    The last is for functions. Both prefixes mean the same (O). Segments may be percent-encoded; a query is ignored.
    Raises `Refused`: 414 if it is too long, 404 if it has another shape.
    """
    if len(path) > PATH_LIMIT:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"the path is longer than {PATH_LIMIT} characters")
    # Split before decoding: a key may hold an encoded slash.
    match [_decoded(part) for part in path.partition("?")[0].split("/")]:
        case ["", "streaming" | "streamer", key, symbol]:
            return Route(Kind.TICKS, key, symbol)
        case ["", "streaming" | "streamer", "greeks", key, symbol]:
            return Route(Kind.GREEKS, key, symbol)
        case ["", "streaming" | "streamer", key]:
            return Route(Kind.FUNCTIONS, key)
    raise Refused(
        HTTPStatus.NOT_FOUND,
        "no such path; expected streaming/[API key]/[pair], streaming/greeks/[API key]/[option] or streamer/[API key]",
    )


def check_symbol(route: Route, pairs: Collection[str]) -> None:
    """Raise `Refused` (404) unless the route's symbol is well formed and, if a pair, one of `pairs`.

    The refusal repeats the symbol, unless that is the key, or holds it, or a part of it.
    """
    try:
        if route.kind is Kind.TICKS:
            Pair.parse(route.symbol)
        elif route.kind is Kind.GREEKS:
            Option.parse(route.symbol)
        if route.kind is Kind.TICKS and route.symbol not in pairs:
            raise ConfigurationError(f"unknown pair {route.symbol}")
    except ConfigurationError as error:
        expected = "a pair, as in BTC:USDC" if route.kind is Kind.TICKS else "an option, as in BTCN2202207"
        hidden = f"the API key stands where {expected}, is expected"
        raise Refused(HTTPStatus.NOT_FOUND, hidden if of_a_key(route.symbol, route.key) else str(error)) from None


def of_a_key(text: str, *keys: str) -> bool:
    """Whether a text from a client is a key, or holds one, or a part of one."""
    folded = text.casefold()
    # A short key is in many a text by chance, and no secret. A long text may hold a part of a long key.
    return any(
        key == folded or (len(key) >= 8 and key in folded) or (len(folded) >= 8 and folded in key)
        for key in map(str.casefold, keys)
    )


def check_origin(origins: Sequence[str], hosts: Sequence[str], listening: str) -> None:
    """Raise `Refused` (403) for a handshake from a web page of another host. Source: O.

    `origins` and `hosts` are the request's headers of these names, `listening` is the host that the server was told to
    listen on. Any page that a browser shows may connect to any server on the machine, and only the Origin header tells;
    programs send none, or, as `websocket-client` does, one that names the server. A page whose own host name was made
    to lead here (DNS rebinding) looks like that, too; so on loopback that name has to be an address or known.
    """
    if not origins:
        return
    origin = _hostname(origins[0]) if len(origins) == 1 else None
    host = _hostname(f"//{hosts[0]}") if len(hosts) == 1 else None
    local = host is not None and is_loopback(host)
    same = origin is not None and (origin == host or (local and is_loopback(origin)))
    known = local or host == listening.casefold() or _address(host or "") is not None or not is_loopback(listening)
    if not (same and known):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            "the Origin header names another host than this server's: web pages from elsewhere may not connect; a "
            "program sends no Origin, or connects to an address such as 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether a host, an address or `localhost`, can be reached from this machine alone."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def encoder(form: Form) -> Callable[[Tick], str]:
    """The function that turns a tick into its message. Raises `ConfigurationError` for an unknown form."""
    if form == "enveloped":
        return enveloped
    if form == "flat":
        return flat
    raise ConfigurationError(f"form is {form!r}; expected 'enveloped' or 'flat'")


def enveloped(tick: Tick) -> str:
    """A tick's message with its envelope. Source: S."""
    return _compact({"results": "streaming", "resultData": tick})


def flat(tick: Tick) -> str:
    """A tick's message in the vendor's later form: no envelope, `unixDate` in whole seconds. Source: D."""
    return _compact(
        {
            "pair": tick["pair"],
            "unixDate": int(epoch(tick) // 1),
            "UTCDate": f"{tick['date']}T{tick['time']}",
            "exchange": tick["exchange"],
            "price": tick["price"],
        }
    )


def frame(message: str | bytes) -> bytes:
    """A whole message as one unmasked websocket frame, text or binary: the same bytes for every client. RFC 6455."""
    payload = message.encode() if isinstance(message, str) else message
    head = _TEXT if isinstance(message, str) else _BINARY
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", head, size) + payload
    if size < 65_536:
        return struct.pack("!BBH", head, 126, size) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


def error_text(text: str) -> str:
    """A message that reports an error. Source: O."""
    return _compact({"error": text})


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _hostname(url: str) -> str | None:
    """The host in a URL, in lower case; None where there is none, as in the `null` of a page without an origin."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _decoded(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise Refused(HTTPStatus.NOT_FOUND, "the path is not percent-encoded UTF-8") from None
