"""Open the socket of an attempt: DNS, TCP, a tunnel through a proxy, and TLS."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
from collections.abc import Callable, Iterator

from ..clock import monotonic
from ..config.proxy import Proxy
from ..errors import ConnectionFailed
from .attempt import Attempt, ConnectionConfig
from .failures import translate
from .race import Address, race, take_turns
from .tunnel import open_tunnel


def connect(config: ConnectionConfig, attempt: Attempt) -> socket.socket:
    """Return a socket to the server, through a proxy if one is configured, after the TLS handshake."""
    endpoint = config.endpoint
    proxy = config.proxies.choose(endpoint)
    if proxy is None:
        sock = dial(endpoint.host, endpoint.port, attempt, config.families, attempt.remaining)
    else:
        attempt.proxy = proxy.where
        sock = dial_through(proxy, config, attempt)
    return _secure(sock, config, attempt) if endpoint.secure else sock


def dial(
    host: str, port: int, attempt: Attempt, families: dict[str, int], remaining: Callable[[], float]
) -> socket.socket:
    """Return a TCP connection to the first of the host's addresses that answers.

    Args:
        host: The name or address to connect to.
        port: Its port.
        attempt: The attempt, which may be cancelled.
        families: The address family that last worked, by host. Updated.
        remaining: Returns the seconds left, or raises `TimeoutError`.
    """
    sock, family = race(resolve(host, port, families, remaining), attempt, remaining)
    families[host] = family
    return sock


def resolve(host: str, port: int, families: dict[str, int], remaining: Callable[[], float]) -> list[Address]:
    """Return the host's addresses in the order in which to try them."""
    remaining()
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    return take_turns([Address(*entry) for entry in found], families.get(host))


@contextlib.contextmanager
def closed_on_error(sock: socket.socket) -> Iterator[None]:
    """Close the socket if the block raises."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


def dial_through(proxy: Proxy, config: ConnectionConfig, attempt: Attempt) -> socket.socket:
    """Return a connection to a proxy that has connected to the server."""
    endpoint = config.endpoint
    families = config.families
    hosts: dict[str, int | None] = {endpoint.host: None}
    if not proxy.resolves_names:
        found = resolve(endpoint.host, endpoint.port, families, attempt.remaining)
        hosts = {str(address.where[0]): address.family for address in found}
    failure = ConnectionFailed("the host has no address")
    # The proxy may not support IPv6, or not reach one of the addresses: try each, with a share of the time.
    for untried, (host, family) in zip(range(len(hosts), 0, -1), hosts.items(), strict=True):
        remaining = functools.partial(attempt.remaining, monotonic() + attempt.remaining() / untried)
        try:
            sock = dial(proxy.host, proxy.port, attempt, families, remaining)
            with closed_on_error(sock):
                open_tunnel(proxy, sock, host, endpoint.port, remaining)
        except (ConnectionFailed, OSError) as cause:
            failure = translate(cause, f"the proxy {proxy.where}")
        else:
            if family is not None:
                families[endpoint.host] = family
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
