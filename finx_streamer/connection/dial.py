"""Open the socket of an attempt: DNS, TCP, a tunnel through a proxy, and TLS."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator

from ..config.endpoint import Endpoint
from ..config.proxy import Proxy
from ..errors import ConnectionFailed
from .attempt import Attempt, ConnectionConfig
from .failures import translate
from .tunnel import open_tunnel


def connect(config: ConnectionConfig, attempt: Attempt) -> socket.socket:
    """Return a socket to the server, through a proxy if one is configured, after the TLS handshake."""
    endpoint = config.endpoint
    proxy = config.proxies.choose(endpoint)
    if proxy is None:
        sock = dial(endpoint.host, endpoint.port, attempt, attempt.remaining)
    else:
        attempt.proxy = proxy.where
        sock = _dial_through(proxy, endpoint, attempt)
    return _secure(sock, config, attempt) if endpoint.secure else sock


def dial(host: str, port: int, attempt: Attempt, remaining: Callable[[], float]) -> socket.socket:
    """Return a TCP connection to the first of the host's addresses that answers.

    `remaining` returns the seconds left, or raises `TimeoutError`.
    """
    remaining()
    addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    failure = OSError("the host has no address")
    for untried, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            # Fails without IPv6 in the system: then only the IPv4 addresses can be reached.
            sock = socket.socket(family, kind, protocol)
            with closed_on_error(sock):
                attempt.watch(sock)
                # A share for each address: one that never answers must not use up the time of the others.
                sock.settimeout(remaining() / untried)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            failure = error
            continue
        return sock
    raise failure


@contextlib.contextmanager
def closed_on_error(sock: socket.socket) -> Iterator[None]:
    """Close the socket if the block raises."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _dial_through(proxy: Proxy, endpoint: Endpoint, attempt: Attempt) -> socket.socket:
    """Return a connection to a proxy that has connected to the server."""
    hosts = [endpoint.host]
    if not proxy.resolves_names:
        attempt.remaining()
        found = socket.getaddrinfo(endpoint.host, endpoint.port, 0, socket.SOCK_STREAM)
        hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
    failure = ConnectionFailed("the host has no address")
    # The proxy may not support IPv6, or not reach one of the addresses: try each, with a share of the time.
    for untried, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
        remaining = functools.partial(attempt.remaining, time.monotonic() + attempt.remaining() / untried)
        try:
            sock = dial(proxy.host, proxy.port, attempt, remaining)
            with closed_on_error(sock):
                open_tunnel(proxy, sock, host, endpoint.port, remaining)
        except (ConnectionFailed, OSError) as cause:
            failure = translate(cause, f"the proxy {proxy.where}")
        else:
            return sock
    raise failure


def _secure(sock: socket.socket, config: ConnectionConfig, attempt: Attempt) -> ssl.SSLSocket:
    with closed_on_error(sock):
        context = config.ssl_context()
        secured = context.wrap_socket(sock, server_hostname=config.endpoint.host, do_handshake_on_connect=False)
    with closed_on_error(secured):
        attempt.watch(secured)
        secured.settimeout(attempt.remaining())
        try:
            secured.do_handshake()
        except ssl.SSLError:
            # Without a free descriptor OpenSSL can't read the CA files, and blames the certificate. This raises then.
            os.close(os.dup(secured.fileno()))
            raise
    return secured
