"""Which proxy a connection goes through: the one of `proxy=`, the one of the environment, or none."""

from __future__ import annotations

import importlib.util
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

import attrs

from ..errors import ConfigurationError, ConnectionFailed
from .endpoint import Endpoint, is_loopback, join_host_port

_DEFAULT_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080}
_ARGUMENT = "proxy: "
_EXPECTED = "expected http://, socks5:// or socks5h://[user:password@]host[:port]"
#: In bytes, by RFC 1929.
_LONGEST_CREDENTIAL = 255


@attrs.frozen
class Credentials:
    """The user and password for a proxy, decoded; each byte is a Latin-1 character. Not shown by `repr`."""

    user: str = attrs.field(repr=False)
    password: str = attrs.field(repr=False)


@attrs.frozen
class Proxy:
    """One proxy. Its `repr` shows no user and no password."""

    scheme: str
    host: str
    port: int
    credentials: Credentials | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read a proxy's URL. Raises `ConfigurationError`, which never shows the URL: it may hold a password."""
        if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
            raise _fault("white space, control or non-ASCII characters; percent-encode them in a password")
        split = _split(url)
        if split is None:
            raise _fault("an impossible host or port; in a password, percent-encode :/?#[]@")
        parts, port = split
        if "://" not in url or parts.scheme not in _DEFAULT_PORTS:
            scheme = f"the scheme {parts.scheme!r}" if "://" in url else "no scheme"
            raise _fault(f"{scheme}; {_EXPECTED}")
        if not parts.hostname or port == 0:
            raise _fault(f"no host, or port 0; {_EXPECTED}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise _fault(f"something behind the port; {_EXPECTED}; in a password, percent-encode :/?#[]@")
        proxy = cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], _credentials(parts))
        if proxy.is_socks and importlib.util.find_spec("python_socks") is None:
            raise ConfigurationError(
                f"{_ARGUMENT}{proxy.scheme}:// needs the package python-socks: pip install 'finx-streamer[proxy]'"
            )
        return proxy

    @property
    def where(self) -> str:
        """Host and port, for error messages."""
        return join_host_port(self.host, self.port)

    @property
    def is_socks(self) -> bool:
        return self.scheme != "http"

    @property
    def resolves_names(self) -> bool:
        """Whether the proxy resolves the server's name."""
        return self.scheme != "socks5"


@attrs.frozen
class ProxyChoice:
    """Chooses the proxy for each connection attempt."""

    _given: Proxy | None = None
    _ask_environment: bool = False

    @classmethod
    def from_argument(cls, proxy: object) -> ProxyChoice:
        """Check the user's `proxy`: a URL, "" for none, or None for the environment. Raises `ConfigurationError`."""
        if proxy is None:
            return cls(ask_environment=True)
        if not isinstance(proxy, str):
            raise ConfigurationError(
                f"proxy: expected a URL as str, '' for none or None for the environment, not {type(proxy).__name__}"
            )
        return cls(Proxy.parse(proxy) if proxy else None)

    def check_secrecy(self, endpoint: Endpoint, allow_insecure: bool) -> None:
        """Refuse to show the key to a proxy on another machine. Raises `ConfigurationError`."""
        proxy = self._given
        if proxy is None or endpoint.secure or allow_insecure or is_loopback(proxy.host):
            return
        raise ConfigurationError(
            f"proxy: {proxy.where} would get the API key in clear text; use wss://, proxy='' for no proxy, or pass "
            "allow_insecure=True if every hop to that host is yours"
        )

    def choose(self, endpoint: Endpoint) -> Proxy | None:
        """Return the proxy to use now. Raises `ConnectionFailed` if the environment's can't be used."""
        return from_environment(endpoint) if self._ask_environment else self._given


#: No proxy.
DIRECT = ProxyChoice()


def from_environment(endpoint: Endpoint) -> Proxy | None:
    """Return the proxy of the environment by the rules of `urllib.request`; never one for loopback.

    `https_proxy` is for wss, `http_proxy` for ws, `all_proxy` for both; `no_proxy` lists exceptions.
    """
    import urllib.request  # here, because it takes 5 ms to import

    if endpoint.is_loopback:
        return None
    variables = urllib.request.getproxies_environment()
    where = join_host_port(endpoint.host, endpoint.port)
    if urllib.request.proxy_bypass_environment(where, variables):  # type: ignore[attr-defined]
        return None
    for name in ("https" if endpoint.secure else "http", "all"):
        if url := variables.get(name, "").strip():
            try:
                return Proxy.parse(url if "://" in url else f"http://{url}")
            except ConfigurationError as error:
                fault = error.message.removeprefix(_ARGUMENT)
                raise ConnectionFailed(
                    f"the environment variable {name}_proxy or {name.upper()}_PROXY: {fault}; pass proxy='' for no "
                    "proxy",
                    permanent=True,
                ) from None
    return None


def _fault(what: str) -> ConfigurationError:
    return ConfigurationError(f"{_ARGUMENT}the URL has {what}")


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    """The URL's parts and its port. None instead of an error, which would show a part of the URL."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        return None


def _credentials(parts: SplitResult) -> Credentials | None:
    if parts.username is None:
        return None
    user, password = unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")
    if not user or max(len(user), len(password)) > _LONGEST_CREDENTIAL:
        raise _fault(f"an empty user, or a user or password of over {_LONGEST_CREDENTIAL} bytes")
    if parts.scheme == "http" and b":" in user:
        raise _fault("a colon in the user, where an HTTP proxy would end it")
    if parts.scheme != "http" and not (password and user.isascii() and password.isascii()):
        raise _fault("no password, or a user or password that isn't ASCII, which SOCKS5 doesn't take")
    return Credentials(user.decode("latin-1"), password.decode("latin-1"))
