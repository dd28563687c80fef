"""Where the server is. Only `Endpoint` joins a key into a URL."""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar, Literal
from urllib.parse import SplitResult, quote, urlsplit

import attrs

from ..errors import ConfigurationError
from .api_key import ApiKey
from .redaction import redact
from .symbols import Pair, Symbol

#: The default path prefix of each wire.
_PREFIXES = {"url": "streaming", "subscribe": "streamer"}
_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_NAME = re.compile(r"([a-z.-]{1,63}|[\d.]{7,15})(:\d{1,5})?/?", re.IGNORECASE)
_PREFIX = re.compile(r"[A-Za-z0-9_-]+")


@attrs.frozen
class Endpoint:
    """A server's base URL, the path prefix of its streams, and how you ask it for streams::

        from finx_streamer import Endpoint, StreamListener

        second_wire = Endpoint("wss://ws.finx.io/", wire="subscribe")
        listener = StreamListener("BTC:USDC", "ETH:USDC", endpoint=second_wire)

    `Endpoint.PRODUCTION` and `Endpoint.BETA` are FinX's servers.

    Args:
        url: `wss://host[:port][/path]`, or `ws://`.
        prefix: `streaming` (source: S), or FinX's later name, `streamer` (source: D). None takes the one that belongs
            to the wire.
        wire: "url": a connection for each stream, which its URL names (source: S). "subscribe": all streams of a
            listener on one connection, each requested by a message (source: D).

    Raises:
        ConfigurationError: The URL, the prefix or the wire is wrong.
    """

    PRODUCTION: ClassVar[Endpoint]
    BETA: ClassVar[Endpoint]

    # Redacted, in case of a misplaced key.
    url: str = attrs.field(repr=lambda url: repr(redact(url)))
    prefix: str | None = None
    wire: Literal["url", "subscribe"] = "url"

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.wire, str) or self.wire not in _PREFIXES:
            raise ConfigurationError(f"wire: {redact(repr(self.wire))} is unknown; expected 'url' or 'subscribe'")
        object.__setattr__(self, "prefix", _PREFIXES[self.wire] if self.prefix is None else self.prefix)
        _check_prefix(self.prefix)
        object.__setattr__(self, "url", _normalized(self.url))

    @classmethod
    def of(cls, given: object) -> Endpoint:
        """Return the endpoint for a name or a URL.

        Args:
            given (str | Endpoint): "production", "beta", a base URL or an `Endpoint`.

        Raises:
            ConfigurationError: It is none of them.
        """
        if isinstance(given, Endpoint):
            return given
        if not isinstance(given, str):
            raise ConfigurationError(f"endpoint: expected a str or an Endpoint, not {type(given).__name__}")
        named = {"production": cls.PRODUCTION, "beta": cls.BETA}.get(given)
        if named is None and "://" not in given:
            # Show only what looks like a name or a host: it may be a misplaced key that isn't remembered yet.
            shown = repr(redact(given)) if _NAME.fullmatch(given) else "the given text"
            raise ConfigurationError(
                f"endpoint: {shown} is unknown; expected 'production', 'beta', 'demo' or a URL such as 'wss://ws.finx.io/'"
            )
        return named or cls(given)

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.url.startswith("wss:")

    @property
    def host(self) -> str:
        """The name or address in lower case; an IPv6 address without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port in the URL, or the default port of its scheme, 443 or 80."""
        parts = urlsplit(self.url)
        return parts.port or _DEFAULT_PORTS[parts.scheme]

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine. No name is resolved."""
        return is_loopback(self.host)

    def check_secrecy(self, allow_insecure: bool) -> None:
        """Refuse to send the key in clear text over a network. Raises `ConfigurationError`. Source: O."""
        if not (self.secure or self.is_loopback or allow_insecure):
            raise ConfigurationError(
                f"endpoint: {redact(self.url)!r} would send the API key in clear text; use wss://, or pass "
                "allow_insecure=True if every hop to that host is yours"
            )

    def stream_url(self, symbol: Symbol, key: ApiKey) -> str:
        """Return the URL of a stream, which holds the key. Source: S."""
        kind = self.prefix if isinstance(symbol, Pair) else f"{self.prefix}/greeks"
        return f"{self.url}{kind}/{quote(key.reveal(), safe='')}/{quote(str(symbol), safe=':')}"

    def shared_url(self, key: ApiKey) -> str:
        """Return the URL of a connection with several streams, which holds the key. Source: D."""
        return f"{self.url}{self.prefix}/{quote(key.reveal(), safe='')}"

    def functions_url(self, key: ApiKey) -> str:
        """Return the URL for function calls, which holds the key. It doesn't depend on the prefix. Source: D."""
        return f"{self.url}streamer/{quote(key.reveal(), safe='')}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: a name in lower case, or an address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def join_host_port(host: str, port: int) -> str:
    """Join a host and a port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _normalized(url: str) -> str:
    if not isinstance(url, str):
        raise ConfigurationError(f"endpoint: expected a URL as str, not {type(url).__name__}")
    if url == "demo":
        raise ConfigurationError(
            "endpoint: 'demo' isn't a URL, and has no wire or prefix to choose; to try those on your machine, run "
            "finx_streamer.server.LocalServer or `finx-streamer serve`, and use its URL"
        )
    try:
        parts = urlsplit(url)
        if parts.port == 0:  # raises for an impossible port
            raise ValueError("port 0 can't be connected to")
    except ValueError as cause:
        raise ConfigurationError(f"endpoint: {redact(url)!r} is not a URL: {redact(str(cause))}") from None
    _check_parts(parts, url)
    netloc = parts.netloc.lower()
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{netloc}{path}/"


def _check_parts(parts: SplitResult, url: str) -> None:
    if parts.username is not None or parts.password is not None:
        # Don't show the URL: it holds a password.
        raise ConfigurationError("endpoint: a URL with a user name or password in it is not supported")
    if parts.scheme not in _DEFAULT_PORTS:
        hint = {"http": "; use ws://", "https": "; use wss://"}.get(parts.scheme, "")
        raise ConfigurationError(f"endpoint: {redact(url)!r} has scheme {parts.scheme!r}; expected wss or ws{hint}")
    if not parts.hostname:
        raise ConfigurationError(f"endpoint: {redact(url)!r} names no host")
    if parts.query or parts.fragment:
        raise ConfigurationError(
            f"endpoint: {parts.scheme}://{redact(parts.netloc)} has a query or fragment; expected a base URL"
        )
    if not url.isascii() or any(c.isspace() or ord(c) < 0x20 for c in url):
        raise ConfigurationError(f"endpoint: {redact(url)!r} has white space, control or non-ASCII characters")


def _check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"prefix: {redact(repr(prefix))} is not one path segment such as 'streaming' or 'streamer'; "
            "expected letters, digits, - and _"
        )


Endpoint.PRODUCTION = Endpoint("wss://ws.finx.io/")
Endpoint.BETA = Endpoint("wss://beta.finx.io/")
