"""Ways through a proxy: HTTP CONNECT (RFC 9110) and SOCKS5 (RFC 1928, with the password of RFC 1929).

`ProxyChoice` says which proxy an attempt goes through. `Proxy.open_tunnel` has it make a way to the server; what comes
after that, TLS included, is between us and the server. Of what a proxy says only numbers are shown: it knows the
password, and might quote it.
"""

from __future__ import annotations

import base64
import http
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

import attrs

from .._version import __version__
from ..connection.http_response import HttpAnswer
from ..errors import ConfigurationError, ConnectionFailed, ProtocolError
from .api_key import ApiKey
from .endpoint import Endpoint, is_loopback

#: Bytes of the answer to CONNECT.
MAX_ANSWER = 16_384
_DEFAULT_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080}
#: How errors about the argument begin.
_ARGUMENT = "proxy: "
_EXPECTED = "expected http://, socks5:// or socks5h://[user:password@]host[:port]"
_NO_AUTHENTICATION, _PASSWORD, _NOTHING_ACCEPTED = 0, 2, 0xFF
#: The replies of RFC 1928, and whether trying again can't mend them.
_REPLIES = {
    1: ("general failure", False),
    2: ("not allowed by its rules", True),
    3: ("network unreachable", False),
    4: ("host unreachable", False),
    5: ("connection refused", False),
    6: ("TTL expired", False),
    7: ("it knows no CONNECT", True),
    8: ("it knows no such kind of address", True),
}


@attrs.frozen
class Proxy:
    """One proxy. Its `repr` does not show user and password."""

    scheme: str
    host: str
    port: int
    #: User and password, decoded; bytes are kept as Latin-1.
    credentials: tuple[ApiKey, ApiKey] | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Raises `ConfigurationError`, which says what is wrong without showing the URL: it may hold a password."""
        if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
            raise _fault("white space, control or non-ASCII characters; in a password they are percent-encoded")
        split = _split(url)
        if split is None:
            raise _fault("a host or port that can't be one; in a password :/?#[]@ are percent-encoded")
        parts, port = split
        if "://" not in url or parts.scheme not in _DEFAULT_PORTS:
            scheme = f"the scheme {parts.scheme!r}" if "://" in url else "no scheme"
            raise _fault(f"{scheme}; {_EXPECTED}")
        if not parts.hostname or port == 0:
            raise _fault(f"no host, or port 0; {_EXPECTED}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise _fault(f"something behind the port; {_EXPECTED}; in a password :/?#[]@ are percent-encoded")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], _credentials(parts))

    @property
    def where(self) -> str:
        """Host and port, as errors name it."""
        return _joined(self.host, self.port)

    @property
    def resolves(self) -> bool:
        """Whether it is given names, and finds their addresses itself."""
        return self.scheme != "socks5"

    def open_tunnel(self, sock: socket.socket, host: str, port: int, remaining: Callable[[], float]) -> None:
        """Have the proxy at the other end of `sock` connect to a server. Nothing is read beyond its answer.

        `remaining` gives the seconds left, and raises where there are none. Raises `ConnectionFailed` where the proxy
        does not do it, and `OSError`.
        """
        talk = _Talk(sock, self.where, remaining)
        if self.scheme == "http":
            self._open_by_http(talk, _joined(host, port))
        else:
            self._open_by_socks(talk, host, port)

    def _open_by_http(self, talk: _Talk, destination: str) -> None:
        lines = [f"CONNECT {destination} HTTP/1.1", f"Host: {destination}", f"User-Agent: finx-streamer/{__version__}"]
        if self.credentials is not None:
            user, password = self.credentials
            both = f"{user.reveal()}:{password.reveal()}".encode("latin-1")
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(both).decode()}")
        talk.send("\r\n".join([*lines, "", ""]).encode())
        answer = HttpAnswer.parse(talk.read_head())
        if answer is None:
            raise talk.nonsense("no HTTP status line")
        if not 200 <= answer.status < 300:
            raise _refused_by_http(self, answer)

    def _open_by_socks(self, talk: _Talk, host: str, port: int) -> None:
        methods = [_NO_AUTHENTICATION] if self.credentials is None else [_NO_AUTHENTICATION, _PASSWORD]
        talk.send(bytes([5, len(methods), *methods]))
        version, method = talk.read(2)
        if version != 5:
            raise talk.nonsense("an answer that is not of SOCKS5")
        if method == _PASSWORD and self.credentials is not None:
            self._show_password(talk, *self.credentials)
        elif method == _NOTHING_ACCEPTED:
            raise ConnectionFailed(
                f"the proxy {self.where} wants "
                + ("another way to log in than a password" if self.credentials else "a user and password")
                + ": see proxy=",
                permanent=True,
            )
        elif method != _NO_AUTHENTICATION:
            raise talk.nonsense("a way to log in that was not offered")
        talk.send(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"))
        self._read_reply(talk)

    def _show_password(self, talk: _Talk, user: ApiKey, password: ApiKey) -> None:
        fields = (field.reveal().encode("latin-1") for field in (user, password))
        talk.send(b"\x01" + b"".join(bytes([len(field)]) + field for field in fields))
        if talk.read(2)[1] != 0:
            raise ConnectionFailed(f"the proxy {self.where} refused the user or password of proxy=", permanent=True)

    def _read_reply(self, talk: _Talk) -> None:
        version, reply, _, kind = talk.read(4)
        if version != 5:
            raise talk.nonsense("a reply that is not of SOCKS5")
        if reply != 0:
            # What is behind a refusal is of no use, and not always sent.
            meaning, permanent = _REPLIES.get(reply, ("for a reason that RFC 1928 does not know", False))
            raise ConnectionFailed(f"the proxy {self.where} did not connect: {meaning} ({reply})", permanent=permanent)
        if kind not in (1, 3, 4):
            raise talk.nonsense("a reply with an address of no known kind")
        talk.read((4 if kind == 1 else 16 if kind == 4 else talk.read(1)[0]) + 2)


class _Talk:
    """A conversation with a proxy, within the time of the attempt."""

    def __init__(self, sock: socket.socket, where: str, remaining: Callable[[], float]) -> None:
        self._sock, self._where, self._remaining = sock, where, remaining

    def send(self, data: bytes) -> None:
        self._sock.settimeout(self._remaining())
        self._sock.sendall(data)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < size:
            data += self._more(size - len(data))
        return data

    def read_head(self) -> bytes:
        """Up to the empty line, and not a byte more: what is behind it is the server's."""
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            if len(head) > MAX_ANSWER:
                raise self.nonsense(f"a header of over {MAX_ANSWER} bytes")
            seen = self._more(4_096, socket.MSG_PEEK)
            end = (head + seen).find(b"\r\n\r\n")
            head += self.read(len(seen) if end < 0 else end + 4 - len(head))
            if not b"HTTP/".startswith(head[:5]):
                raise self.nonsense("something else than HTTP")
        return bytes(head)

    def nonsense(self, what: str) -> ProtocolError:
        return ProtocolError(f"the proxy {self._where} answered with {what}: check proxy=", permanent=True)

    def _more(self, size: int, flags: int = 0) -> bytes:
        self._sock.settimeout(self._remaining())
        data = self._sock.recv(size, flags)
        if not data:
            raise ConnectionFailed(f"the proxy {self._where} closed the connection before it had answered")
        return data


@attrs.frozen
class ProxyChoice:
    """Which proxy an attempt goes through: the one that was given, none, or that of the environment."""

    _given: Proxy | None = None
    _ask_environment: bool = False

    @classmethod
    def from_argument(cls, proxy: object) -> ProxyChoice:
        """Check what the user gave: a URL; "" for none; None for the environment, read at every attempt.

        Raises `ConfigurationError`, which never shows a password.
        """
        if proxy is None:
            return cls(ask_environment=True)
        if not isinstance(proxy, str):
            raise ConfigurationError(
                f"proxy: expected a URL as str, '' for none or None for the environment, not {type(proxy).__name__}"
            )
        return cls(Proxy.parse(proxy) if proxy else None)

    def check_secrecy(self, endpoint: Endpoint, allow_insecure: bool) -> None:
        """Refuse to have the key carried in clear by a proxy elsewhere. Raises `ConfigurationError`."""
        proxy = self._given
        if proxy is None or endpoint.secure or allow_insecure or is_loopback(proxy.host):
            return
        raise ConfigurationError(
            f"proxy: {proxy.where} would get the API key in clear text; use wss://, proxy='' for no proxy, or pass "
            "allow_insecure=True if every hop to that host is yours"
        )

    def choose(self, endpoint: Endpoint) -> Proxy | None:
        """The proxy of this moment. Raises `ConnectionFailed` where the environment names one that can't be."""
        if not self._ask_environment:
            return self._given
        return from_environment(endpoint, os.environ)


#: Straight to the server.
DIRECT = ProxyChoice()


def from_environment(endpoint: Endpoint, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment's variables name for a server. Never one for loopback.

    For wss it is https_proxy, for ws http_proxy, else all_proxy; in lower case first, then in upper case, but no
    HTTP_PROXY in a CGI script, where it is a header of a request. no_proxy lists exceptions.
    """
    if endpoint.is_loopback or _is_exempt(endpoint, environment):
        return None
    names = ["https_proxy", "HTTPS_PROXY"] if endpoint.secure else ["http_proxy", "HTTP_PROXY"]
    if "REQUEST_METHOD" in environment and not endpoint.secure:
        names.remove("HTTP_PROXY")
    for name in (*names, "all_proxy", "ALL_PROXY"):
        url = environment.get(name, "").strip()
        if url:
            try:
                return Proxy.parse(url if "://" in url else f"http://{url}")
            except ConfigurationError as error:
                fault = error.message.removeprefix(_ARGUMENT)
                raise ConnectionFailed(
                    f"the environment variable {name}: {fault}; proxy='' is for no proxy", permanent=True
                ) from None
    return None


def _is_exempt(endpoint: Endpoint, environment: Mapping[str, str]) -> bool:
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return any(_matches(entry, endpoint.host, endpoint.port) for entry in listed.replace(",", " ").lower().split())


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether an entry of no_proxy is about a host: `*`, a name and those below it, an address, or a network."""
    if entry == "*":
        return True
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.endswith("]")):
        if int(number[:6]) != port:
            return False
        entry = name
    host, entry = host.rstrip("."), entry.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        domain = entry.removeprefix("*").strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _fault(what: str) -> ConfigurationError:
    return ConfigurationError(f"{_ARGUMENT}the URL has {what}")


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    """The URL's parts and its port; None where it is none. The error would show a part, and hang on to ours."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        return None


def _credentials(parts: SplitResult) -> tuple[ApiKey, ApiKey] | None:
    if parts.username is None:
        return None
    user, password = unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")
    if not 1 <= len(user) <= 255 or len(password) > 255:
        raise _fault("an empty user, or a user or password of over 255 bytes")
    if parts.scheme == "http" and b":" in user:
        raise _fault("a colon in the user, which an HTTP proxy would take for its end")
    return ApiKey(user.decode("latin-1")), ApiKey(password.decode("latin-1"))


def _refused_by_http(proxy: Proxy, answer: HttpAnswer) -> ConnectionFailed:
    try:
        phrase = f" {http.HTTPStatus(answer.status).phrase}"
    except ValueError:
        phrase = ""
    hint = ""
    if answer.status == 407:
        hint = (
            ": it did not accept the user and password of its URL"
            if proxy.credentials
            else ": it wants a user and password, as in proxy='http://user:password@host:port'"
        )
    return ConnectionFailed(
        f"the proxy {proxy.where} answered {answer.status}{phrase}{hint}",
        status=answer.status,
        retry_after=answer.retry_after,
    )


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        if len(name) > 255:
            raise ConnectionFailed("the server's name is too long for SOCKS5: over 255 bytes", permanent=True) from None
        return bytes([3, len(name)]) + name
    return bytes([1 if address.version == 4 else 4]) + address.packed


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
