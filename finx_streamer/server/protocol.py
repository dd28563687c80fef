"""The server's side of the wire protocol: paths, origins and messages. Pure functions, no I/O.

The grades S, D and O in the docstrings are explained in docs/protocol.md.
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
from .contracts import ContractTicker, months_of, parse_instrument
from .ticks import Tick, exact_time

#: The longest accepted path, in characters. Source: O.
PATH_LIMIT = 2_048
#: The only message of a Greeks stream on a server without options. Source: S.
GREEKS_PLACEHOLDER = '{"feature":"scheduled for future release"}'
#: The exchange of all contracts. Source: O.
OPTIONS_EXCHANGE = "DERIBIT"
#: The answer to keepAlive. Source: D.
KEEP_ALIVE = '{"keepAlive":true}'

Form = Literal["enveloped", "flat"]

#: Encodes a message, or a part of one, without spaces.
to_json = json.JSONEncoder(separators=(",", ":")).encode
_FINAL_TEXT, _FINAL_BINARY = 0x81, 0x82


class Kind(enum.Enum):
    """The purpose of a connection."""

    TICKS = "ticks"
    GREEKS = "greeks"
    FUNCTIONS = "functions"


class Wire(enum.Enum):
    """How a client asks for a stream."""

    #: In the URL. Source: S.
    URL = "url"
    #: By message, over a connection for many streams. Source: D.
    SUBSCRIBE = "subscribe"


@attrs.frozen
class Route:
    """A parsed path. `symbol` is not validated yet, and empty for functions."""

    kind: Kind
    key: str = attrs.field(repr=False)
    symbol: str = ""


class HandshakeRefused(Exception):
    """A handshake is refused with an HTTP status. The text is sent to the client and never contains a key."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})

    @property
    def body(self) -> str:
        """The body of the response: a JSON object. Source: O."""
        return error_message(self.text)


def unavailable(text: str) -> HandshakeRefused:
    """The refusal of what works a moment later, or on another server. Source: O."""
    return HandshakeRefused(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": "1"})


def parse_path(path: str) -> Route:
    """Parse the path of a request.

    Streams use `streaming/[key]/[pair]` and `streaming/greeks/[key]/[option]` (S), functions use `streamer/[key]` (D).
    Both prefixes are accepted everywhere (O). Segments may be percent-encoded. A query is ignored.

    Raises `HandshakeRefused`: 414 if the path is too long, 404 if it has another shape.
    """
    if len(path) > PATH_LIMIT:
        raise HandshakeRefused(HTTPStatus.REQUEST_URI_TOO_LONG, f"the path is longer than {PATH_LIMIT} characters")
    # Split before decoding, because a key may contain an encoded slash.
    match [_decode_segment(part) for part in path.partition("?")[0].split("/")]:
        case ["", "streaming" | "streamer", key, symbol]:
            return Route(Kind.TICKS, key, symbol)
        case ["", "streaming" | "streamer", "greeks", key, symbol]:
            return Route(Kind.GREEKS, key, symbol)
        case ["", "streaming" | "streamer", key]:
            return Route(Kind.FUNCTIONS, key)
    raise HandshakeRefused(
        HTTPStatus.NOT_FOUND,
        "unknown path; expected streaming/[API key]/[pair], streaming/greeks/[API key]/[option] or streamer/[API key]",
    )


def check_symbol(route: Route, pairs: Collection[str], contracts: frozenset[str] = frozenset()) -> None:
    """Raise `HandshakeRefused` (404) unless the route's symbol is valid and, if something can be known, known.

    Ticks need one of `pairs`. Greeks need one of `contracts`, or the month of one of these, unless there are none. The
    error doesn't quote a symbol that may be a misplaced key.
    """
    try:
        if route.kind is Kind.TICKS:
            Pair.parse(route.symbol)
            if route.symbol not in pairs:
                raise ConfigurationError(f"unknown pair {route.symbol}")
        elif route.kind is Kind.GREEKS:
            _check_greeks(route.symbol, contracts)
    except ConfigurationError as error:
        expected = (
            "a pair, as in BTC:USDC"
            if route.kind is Kind.TICKS
            else "an option, as in BTCN2202207, or a contract's name"
        )
        redacted = f"the path has the API key in place of the symbol; expected {expected}"
        text = redacted if reveals_key(route.symbol, route.key) else str(error)
        raise HandshakeRefused(HTTPStatus.NOT_FOUND, text) from None


def _check_greeks(symbol: str, contracts: frozenset[str]) -> None:
    if symbol in contracts or symbol in months_of(contracts):
        return
    if "-" in symbol:
        parse_instrument(symbol)
        problem = f"unknown contract {symbol}"
    else:
        Option.parse(symbol)
        problem = f"unknown option {symbol}: no contract that is listed expires in that month"
    if contracts:
        raise ConfigurationError(problem)


def reveals_key(text: str, *keys: str) -> bool:
    """Whether text from a client equals a key, contains one or is part of one."""
    folded = text.casefold()
    # Ignore partial matches below 8 characters: they occur by chance.
    return any(
        key == folded or (len(key) >= 8 and key in folded) or (len(folded) >= 8 and folded in key)
        for key in map(str.casefold, keys)
    )


def check_origin(origins: Sequence[str], hosts: Sequence[str], listening: str) -> None:
    """Raise `HandshakeRefused` (403) for a handshake from a web page of another host. Source: O.

    Any web page in a browser can connect to servers on the same machine, and only its Origin header reveals it.
    Programs send no Origin or, like `websocket-client`, one that names the server. A page that uses DNS rebinding also
    sends one that names the server. On loopback, the Host must therefore be an address, `localhost` or `listening`.

    `origins` and `hosts` are the values of these headers. `listening` is the host that the server listens on.
    """
    if not origins:
        return
    origin = _parse_hostname(origins[0]) if len(origins) == 1 else None
    host = _parse_hostname(f"//{hosts[0]}") if len(hosts) == 1 else None
    local = host is not None and is_loopback(host)
    same_host = origin is not None and (origin == host or (local and is_loopback(origin)))
    known_host = (
        local or host == listening.casefold() or _parse_address(host or "") is not None or not is_loopback(listening)
    )
    if not (same_host and known_host):
        raise HandshakeRefused(
            HTTPStatus.FORBIDDEN,
            "the Origin header names another host than this server's, and web pages of other hosts may not connect; "
            "in a program, send no Origin header or connect to an address such as 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether the host is `localhost` or a loopback address."""
    address = _parse_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def tick_encoder(form: Form) -> Callable[[Tick], str]:
    """The function that encodes ticks in this form. Raises `ConfigurationError` for an unknown form."""
    if form == "enveloped":
        return encode_enveloped
    if form == "flat":
        return encode_flat
    raise ConfigurationError(f"form is {form!r}; expected 'enveloped' or 'flat'")


def encode_contract(ticker: ContractTicker) -> str:
    """Encode a contract's ticker for the second wire. Source: D."""
    return to_json(ticker.values)


def encode_contract_enveloped(ticker: ContractTicker) -> str:
    """Encode a contract's ticker for a stream of Greeks. Source: O, in the envelope of ticks (S)."""
    return to_json({"results": "streaming", "resultData": {**ticker.values, "exchange": OPTIONS_EXCHANGE}})


def encode_enveloped(tick: Tick) -> str:
    """Encode a tick with its envelope. Source: S."""
    return to_json({"results": "streaming", "resultData": tick})


def encode_flat(tick: Tick) -> str:
    """Encode a tick in the vendor's later form: without an envelope, `unixDate` in whole seconds. Source: D."""
    return to_json(
        {
            "pair": tick["pair"],
            "unixDate": exact_time(tick["date"], tick["time"])[0],
            "UTCDate": f"{tick['date']}T{tick['time']}",
            "exchange": tick["exchange"],
            "price": tick["price"],
        }
    )


def with_id(message: str, number: int) -> str:
    """Add a tick's ID in the log to its message, in either form. Source: O."""
    return f'{message[:-1]},"id":{number}}}'


def encode_frame(message: str | bytes) -> bytes:
    """Encode a message as one unmasked frame, the same for every client: text for str, else binary."""
    payload = message.encode() if isinstance(message, str) else message
    head = _FINAL_TEXT if isinstance(message, str) else _FINAL_BINARY
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", head, size) + payload
    if size < 65_536:
        return struct.pack("!BBH", head, 126, size) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


def error_message(text: str, subject: Mapping[str, str] | None = None) -> str:
    """A message that reports an error to the client. `subject` names the subscription that it is about. Source: O."""
    return to_json({"error": text, **(subject or {})})


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _parse_hostname(url: str) -> str | None:
    """The host in a URL, in lower case; None without one, as in a page's Origin `null`."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _decode_segment(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise HandshakeRefused(HTTPStatus.NOT_FOUND, "the path is malformed; expected percent-encoded UTF-8") from None
