"""Tunnels through a proxy: HTTP CONNECT (RFC 9110) by our own code, SOCKS5 (RFC 1928) by `python-socks`.

Of what a proxy sends, errors show only numbers: it knows the password, and might quote it.
"""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .._version import __version__
from ..config.endpoint import join_host_port
from ..config.proxy import Credentials, Proxy
from ..errors import ConnectionFailed, ProtocolError
from .http_response import HttpResponse

#: In bytes, for the answer to CONNECT.
MAX_ANSWER = 16_384
_NO_METHOD_ACCEPTED, _PASSWORD = b"\x05\xff", b"\x05\x02"
#: The replies of RFC 1928, and whether another attempt is pointless.
_REPLIES = {
    1: ("general failure", False),
    2: ("not allowed by its rules", True),
    3: ("network unreachable", False),
    4: ("host unreachable", False),
    5: ("connection refused", False),
    6: ("TTL expired", False),
    7: ("it doesn't support CONNECT", True),
    8: ("it doesn't support this kind of address", True),
}


def open_tunnel(proxy: Proxy, sock: socket.socket, host: str, port: int, remaining: Callable[[], float]) -> None:
    """Make the proxy connect to a server. Reads nothing beyond the proxy's answer.

    Args:
        proxy: The proxy.
        sock: The connection to it.
        host: The server's name or address.
        port: The server's port.
        remaining: Returns the seconds left, or raises `TimeoutError`.

    Raises:
        ConnectionFailed: The proxy refused, or sent nonsense.
        OSError: The connection failed, or the time is up.
    """
    link = _ProxyLink(sock, proxy.where, remaining)
    (_open_by_socks if proxy.is_socks else _open_by_http)(link, proxy, host, port)


class _ProxyLink:
    """The connection to a proxy: the part of a socket that `python-socks` needs, within a deadline."""

    def __init__(self, sock: socket.socket, where: str, remaining: Callable[[], float]) -> None:
        self._sock, self._where, self._remaining = sock, where, remaining
        self.received = bytearray()

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._remaining())
        self._sock.sendall(data)

    def recv(self, size: int) -> bytes:
        self._sock.settimeout(self._remaining())
        data = self._sock.recv(size)
        if not data:
            raise ConnectionFailed(f"the proxy {self._where} closed the connection before it answered")
        self.received += data
        return data

    def close(self) -> None:
        """The caller closes the socket."""


def _open_by_http(link: _ProxyLink, proxy: Proxy, host: str, port: int) -> None:
    destination = join_host_port(host, port)
    lines = [f"CONNECT {destination} HTTP/1.1", f"Host: {destination}", f"User-Agent: finx-streamer/{__version__}"]
    if proxy.credentials is not None:
        lines.append(f"Proxy-Authorization: Basic {_basic(proxy.credentials)}")
    link.sendall("\r\n".join([*lines, "", ""]).encode())
    # Byte by byte: everything behind the empty line is the server's.
    while not link.received.endswith(b"\r\n\r\n"):
        if len(link.received) > MAX_ANSWER:
            raise _nonsense(proxy, f"a header of over {MAX_ANSWER} bytes")
        link.recv(1)
        if not b"HTTP/".startswith(link.received[:5]):
            raise _nonsense(proxy, "something other than HTTP")
    response = HttpResponse.parse(bytes(link.received))
    if response is None:
        raise _nonsense(proxy, "no HTTP status line")
    if not 200 <= response.status < 300:
        raise _refused_by_http(proxy, response)


def _basic(credentials: Credentials) -> str:
    return base64.b64encode(f"{credentials.user}:{credentials.password}".encode("latin-1")).decode()


def _refused_by_http(proxy: Proxy, response: HttpResponse) -> ConnectionFailed:
    # Not the proxy's own phrase, which might quote the password.
    answer = f"{response.status} {http.client.responses.get(response.status, '')}".rstrip()
    hint = ""
    if response.status == 407:
        hint = (
            ": it refused the user and password of its URL"
            if proxy.credentials
            else ": it wants a user and password, as in proxy='http://user:password@host:port'"
        )
    return ConnectionFailed(
        f"the proxy {proxy.where} answered {answer}{hint}", status=response.status, retry_after=response.retry_after
    )


def _open_by_socks(link: _ProxyLink, proxy: Proxy, host: str, port: int) -> None:
    from python_socks import ProxyError, ProxyType
    from python_socks.sync import Proxy as SocksProxy

    login = proxy.credentials or SimpleNamespace(user=None, password=None)
    # It asks a proxy before this one, if there is one, for a connection to this one: so we open it, and may cancel it.
    before: Any = SimpleNamespace(connect=lambda **_: link)
    socks = SocksProxy(ProxyType.SOCKS5, proxy.host, proxy.port, login.user, login.password, forward=before)
    try:
        socks.connect(host, port)
    except (ProxyError, ValueError):
        failure = _refused_by_socks(proxy, bytes(link.received))
    else:
        return
    raise failure


def _refused_by_socks(proxy: Proxy, received: bytes) -> ConnectionFailed:
    method, rest = received[:2], received[2:]
    if method == _NO_METHOD_ACCEPTED:
        wanted = "another way to log in than a password" if proxy.credentials else "a user and password"
        return ConnectionFailed(f"the proxy {proxy.where} wants {wanted}: see proxy=", permanent=True)
    if method == _PASSWORD and proxy.credentials:
        accepted, rest = rest[1:2] == b"\x00", rest[2:]
        if not accepted:
            return ConnectionFailed(f"the proxy {proxy.where} refused the user or password of proxy=", permanent=True)
    if rest[:1] != b"\x05" or rest[1:2] in (b"", b"\x00"):
        return _nonsense(proxy, "something other than SOCKS5")
    meaning, permanent = _REPLIES.get(rest[1], ("for a reason that RFC 1928 doesn't define", False))
    return ConnectionFailed(f"the proxy {proxy.where} didn't connect: {meaning} ({rest[1]})", permanent=permanent)


def _nonsense(proxy: Proxy, what: str) -> ProtocolError:
    return ProtocolError(f"the proxy {proxy.where} sent {what}; check proxy=", permanent=True)
