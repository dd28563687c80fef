"""connection.dial"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import time
from collections.abc import Callable

from ..config.endpoint import Endpoint
from ..config.proxy import Proxy
from ..errors import ConnectionFailed
from .attempt import Attempt, ConnectionConfig
from .failures import (
    _is_of_certificate,
    translate,
)


def _connect(target: ConnectionConfig, attempt: Attempt) -> socket.socket:
    """A socket to the server, through a proxy where there is one; TLS is done."""
    endpoint = target.endpoint
    proxy = target.proxies.choose(endpoint)
    if proxy is None:
        sock = _dial(endpoint.host, endpoint.port, attempt, attempt.remaining)
    else:
        attempt.proxy = proxy.where
        sock = _dial_through(proxy, endpoint, attempt)
    return _secured(sock, target, attempt) if endpoint.secure else sock


def _dial(host: str, port: int, attempt: Attempt, remaining: Callable[[], float]) -> socket.socket:
    """A socket to the first of the host's addresses that answers. `remaining` as that of the attempt, or less."""
    remaining()
    addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    failure = OSError("the host has no address")
    for untried, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            # This alone fails where the system has no IPv6 and the name has addresses of both kinds.
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            failure = error
            continue
        try:
            attempt.watch(sock)
            # One address that swallows everything must not use up the time of the others.
            sock.settimeout(remaining() / untried)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    raise failure


def _dial_through(proxy: Proxy, endpoint: Endpoint, attempt: Attempt) -> socket.socket:
    """A socket to a proxy that has connected to the server."""
    hosts = [endpoint.host]
    if not proxy.resolves:
        attempt.remaining()
        found = socket.getaddrinfo(endpoint.host, endpoint.port, 0, socket.SOCK_STREAM)
        hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
    failure = ConnectionFailed("the host has no address")
    for untried, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
        # The proxy may know no IPv6, or fail for other reasons of one address: a tunnel for each is tried.
        until = time.monotonic() + attempt.remaining() / untried
        try:
            return _tunnel(proxy, host, endpoint.port, attempt, functools.partial(_left, attempt, until))
        except ConnectionFailed as error:
            failure = error
    raise failure


def _left(attempt: Attempt, until: float) -> float:
    """Seconds up to a moment within the attempt's time."""
    left = min(attempt.remaining(), until - time.monotonic())
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _tunnel(proxy: Proxy, host: str, port: int, attempt: Attempt, remaining: Callable[[], float]) -> socket.socket:
    try:
        sock = _dial(proxy.host, proxy.port, attempt, remaining)
        try:
            proxy.open_tunnel(sock, host, port, remaining)
        except BaseException:
            sock.close()
            raise
    except OSError as cause:
        raise translate(cause, f"the proxy {proxy.where}") from None
    return sock


def _secured(sock: socket.socket, target: ConnectionConfig, attempt: Attempt) -> ssl.SSLSocket:
    try:
        context = target.ssl_context()
        secured = context.wrap_socket(sock, server_hostname=target.endpoint.host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        attempt.watch(secured)
        secured.settimeout(attempt.remaining())
        _shake_hands(secured)
    except BaseException:
        secured.close()
        raise
    return secured


def _shake_hands(secured: ssl.SSLSocket) -> None:
    try:
        secured.do_handshake()
    except ssl.SSLError as cause:
        if not _is_of_certificate(cause):
            raise
        # Where no file can be opened, that of the authority can't be either, and the certificate is not to blame.
        os.close(os.dup(secured.fileno()))
        raise
