"""A test proxy for HTTP CONNECT and SOCKS5 that records what its clients send."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
import traceback
from collections.abc import Iterator, Mapping

import attrs

from tests.support.peers import Caller

LOGIN = "trader:p@ss:w/rd%"
#: As in a URL.
USERINFO = "trader:p%40ss:w%2Frd%25@"
#: No resolver knows this name.
NAME = "ticks.example"
HTTP_OK = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n"
_SOCKS_OK = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
_SOCKS_REFUSED = b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"


@attrs.define
class Proxying:
    """A script that proxies a connection. Its first byte shows the protocol."""

    #: "user:password"; None: no login needed.
    login: str | None = None
    #: Names that only this proxy resolves, with their ports on 127.0.0.1.
    hosts: Mapping[str, int] = attrs.field(factory=dict)
    #: The requested destinations, as "host:port".
    asked: list[str] = attrs.field(factory=list)
    #: Every byte that clients sent.
    seen: bytearray = attrs.field(factory=bytearray)

    def __call__(self, caller: Caller) -> None:
        client = caller.sock
        by_http = client.recv(1, socket.MSG_PEEK) == b"C"
        destination = self._http(client) if by_http else self._socks(client)
        if destination is None:
            return
        host, port = destination
        self.asked.append(f"{host}:{port}")
        if host in self.hosts:
            host, port = "127.0.0.1", self.hosts[host]
        try:
            server = socket.create_connection((host, port), timeout=20)
        except OSError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n" if by_http else _SOCKS_REFUSED)
            return
        with server:
            server.settimeout(None)
            client.sendall(HTTP_OK if by_http else _SOCKS_OK)
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server, self.seen)
            # The client is gone. Don't wait for a server that stays.
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _http(self, client: socket.socket) -> tuple[str, int] | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._read(client, 1)
        first, *headers = head.decode("latin-1").split("\r\n")
        method, where, version = first.split(" ")
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        assert f"Host: {where}" in headers
        if self.login is not None:
            proof = base64.b64encode(self.login.encode()).decode()
            if f"Proxy-Authorization: Basic {proof}" not in headers:
                # Quote the request, like a careless proxy.
                client.sendall(f"HTTP/1.1 407 {headers}\r\n\r\n{headers}".encode())
                return None
        host, _, port = where.rpartition(":")
        return host.strip("[]"), int(port)

    def _socks(self, client: socket.socket) -> tuple[str, int] | None:
        version, count = self._read(client, 2)
        assert version == 5
        methods = self._read(client, count)
        wanted = 0 if self.login is None else 2
        if wanted not in methods:
            client.sendall(b"\x05\xff")
            return None
        client.sendall(bytes([5, wanted]))
        if self.login is not None:
            _, length = self._read(client, 2)
            user = self._read(client, length)
            password = self._read(client, self._read(client, 1)[0])
            good = user + b":" + password == self.login.encode()
            client.sendall(b"\x01" + (b"\x00" if good else b"\x01"))
            if not good:
                return None
        version, command, reserved, kind = self._read(client, 4)
        assert (version, command, reserved) == (5, 1, 0)
        if kind == 3:
            host = self._read(client, self._read(client, 1)[0]).decode()
        else:
            family, size = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, self._read(client, size))
        return host, struct.unpack("!H", self._read(client, 2))[0]

    def _read(self, client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = client.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        self.seen += data
        return data


def assert_no_secret(error: BaseException, *secrets: str) -> None:
    """Check the error's texts, its causes, and the local variables of this package's frames."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in shown.stack if "finx_streamer" in frame.filename and "tests" not in frame.filename]
    texts = [str([frame.locals for frame in ours]), str(error), repr(error), repr(vars(error)), repr(error.__cause__)]
    for secret in secrets:
        assert secret not in "\n".join(texts)
    for further in (error.__cause__, error.__context__):
        if further is not None:
            assert_no_secret(further, *secrets)


def _pump(source: socket.socket, sink: socket.socket, seen: bytearray | None = None) -> None:
    with contextlib.suppress(OSError):
        for data in _received(source):
            if seen is not None:
                seen += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _received(source: socket.socket) -> Iterator[bytes]:
    return iter(lambda: source.recv(65_536), b"")
