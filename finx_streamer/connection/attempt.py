"""One attempt to open a connection, and what it needs."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs

from ..clock import monotonic
from ..config import checks as check
from ..config.api_key import ApiKey, KeySource
from ..config.endpoint import Endpoint
from ..config.proxy import DIRECT, ProxyChoice
from ..config.redaction import redact
from ..config.servers import Servers
from ..config.symbols import Symbol
from ..errors import ConnectionFailed

#: In bytes.
MAX_MESSAGE = 16 * 1024 * 1024
#: Environment variables that name a file or a directory of trusted CAs.
OPENSSL_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
#: As in `requests`.
CA_BUNDLE = "REQUESTS_CA_BUNDLE"


@attrs.frozen
class ConnectionConfig:
    """Everything that an attempt needs, except the key: that is requested for each attempt."""

    #: The server to connect to.
    endpoint: Endpoint
    #: None: a connection for function calls, or for the streams of the second wire if it is `shared`.
    symbol: Symbol | None
    keys: KeySource
    connect_timeout: float
    ssl_context: Callable[[], ssl.SSLContext]
    max_message: int = MAX_MESSAGE
    proxies: ProxyChoice = DIRECT
    shared: bool = False
    #: The address family that last worked, by host. All connections of a listener or client share it.
    families: dict[str, int] = attrs.field(factory=dict, eq=False, repr=False)
    #: The endpoint and those to try in its place. All connections of a listener or client share it.
    servers: Servers = attrs.field(
        default=attrs.Factory(lambda self: Servers((self.endpoint,)), takes_self=True), eq=False, repr=False
    )

    @classmethod
    def from_arguments(
        cls,
        *,
        api_key: object,
        endpoint: object,
        proxy: object,
        allow_insecure: object,
        ssl_context: object,
        connect_timeout: object,
        max_message: object = MAX_MESSAGE,
    ) -> ConnectionConfig:
        """Check the arguments of a listener or a function client. Raises `ConfigurationError`."""
        # The key first: from then on, errors about the other arguments mask it.
        keys = KeySource.from_argument(api_key)
        proxies = ProxyChoice.from_argument(proxy)
        servers = Servers.from_argument(endpoint)
        insecure = check.boolean("allow_insecure", allow_insecure)
        for each in servers.endpoints:
            each.check_secrecy(insecure)
            proxies.check_secrecy(each, insecure)
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            raise check.refusal("ssl_context", ssl_context, "an ssl.SSLContext or None")
        return cls(
            servers.preferred,
            None,
            keys,
            check.seconds("connect_timeout", connect_timeout),
            _context_source(ssl_context),
            check.integer("max_message_size", max_message, 1),
            proxies,
            servers=servers,
        )

    def at(self, endpoint: Endpoint | None) -> ConnectionConfig:
        """Return the same for another server; None is the preferred one."""
        wanted = endpoint or self.servers.preferred
        return self if wanted is self.endpoint else attrs.evolve(self, endpoint=wanted)

    def url(self, key: ApiKey) -> str:
        """Return the URL, which holds the key."""
        if self.shared:
            return self.endpoint.shared_url(key)
        if self.symbol is None:
            return self.endpoint.functions_url(key)
        return self.endpoint.stream_url(self.symbol, key)


def _context_source(given: ssl.SSLContext | None) -> Callable[[], ssl.SSLContext]:
    """Return a function that returns the given context, or a default one. It takes 20 ms to create: do that once."""
    if given is not None:
        return lambda: given
    create, lock = functools.cache(_default_context), threading.Lock()

    def context() -> ssl.SSLContext:
        # Without a free descriptor, OpenSSL would silently load no CA, and `open` raises.
        with lock, open(os.devnull, "rb"):
            return create()

    return context


def describe_authorities(given: ssl.SSLContext | None) -> str:
    """Say where a context gets the CAs that it trusts. `given`: the user's own context, if any."""
    if given is not None:
        return "ssl_context"
    paths = ssl.get_default_verify_paths()
    return _ca_bundle() or paths.cafile or paths.capath or "the system"


def _ca_bundle() -> str | None:
    """The file or directory in REQUESTS_CA_BUNDLE. None if it isn't set, or a variable of OpenSSL is."""
    return None if any(map(os.environ.get, OPENSSL_VARIABLES)) else os.environ.get(CA_BUNDLE) or None


def _default_context() -> ssl.SSLContext:
    """Return a context that verifies certificates.

    It trusts the CAs in SSL_CERT_FILE or SSL_CERT_DIR, which OpenSSL reads itself. Without these, it trusts the file or
    directory in REQUESTS_CA_BUNDLE, and without that, the system's CAs.
    """
    bundle = _ca_bundle()
    if bundle is None:
        return ssl.create_default_context()
    try:
        if os.path.isdir(bundle):
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except (FileNotFoundError, PermissionError, ssl.SSLError) as cause:
        fault = "it holds no certificate" if isinstance(cause, ssl.SSLError) else str(cause.strerror).lower()
        raise ConnectionFailed(
            f"the environment variable {CA_BUNDLE} names {redact(bundle)!r}, which can't be used: {fault}; "
            "expected a PEM file or a directory of CA certificates",
            permanent=True,
        ) from None


class Attempt:
    """A handshake in progress. Any thread may call `cancel`, at any time.

    Args:
        refused_key: A key that the server has refused: don't try it again.
        key: The key to use, if it is known already.
        headers: Headers for the handshake.
    """

    def __init__(
        self,
        refused_key: ApiKey | None = None,
        key: ApiKey | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.refused_key = refused_key
        self.headers = headers
        #: The key in use, once it is known.
        self.key = key
        #: A key for the next attempt, requested because the server refused this attempt's key.
        self.next_key: ApiKey | None = None
        #: Host and port of the proxy in use, once it is known.
        self.proxy: str | None = None
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._cancelled = False
        self._sockets: tuple[socket.socket, ...] = ()

    def begin(self, timeout: float) -> None:
        """Start the clock."""
        self._deadline = monotonic() + timeout

    def cancel(self) -> None:
        """End the attempt, also if a thread is blocked on its sockets."""
        with self._lock:
            self._cancelled = True
            for sock in self._sockets:
                # `close` wouldn't wake the thread. SSLSocket.shutdown would reset the TLS state that the thread uses.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def remaining(self, until: float = math.inf) -> float:
        """Return the seconds left, to `until` at most. Raises `TimeoutError` if there are none, or after `cancel`."""
        left = min(self._deadline, until) - monotonic()
        if self._cancelled or left <= 0:
            raise TimeoutError("timed out")
        return left

    def watch(self, *sockets: socket.socket) -> None:
        """Let `cancel` interrupt these sockets, and no others, from now on."""
        with self._lock:
            self._sockets = sockets
        self.remaining()
