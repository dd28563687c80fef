"""A WebSocket client on a plain socket, which can send anything."""

from __future__ import annotations

import socket
import struct

from finx_streamer.server import LocalServer

#: The longest wait for the server, in seconds.
TIMEOUT = 20.0


def handshake(path: str = "/streaming/demo/BTC:USDC", *, host: str = "x", headers: str = "") -> bytes:
    """A handshake request. Each of the additional headers ends with CRLF."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def open_socket(server: LocalServer) -> socket.socket:
    """Connect to the server, without a handshake."""
    return socket.create_connection((server.host, server.port), timeout=TIMEOUT)


def open_websocket(server: LocalServer, path: str) -> socket.socket:
    """Connect to the server and complete the handshake."""
    sock = open_socket(server)
    sock.sendall(handshake(path))
    response = b""
    while b"\r\n\r\n" not in response:
        response += sock.recv(4_096)
    assert response.startswith(b"HTTP/1.1 101 ")
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Read until the server ends TCP."""
    return b"".join(iter(lambda: sock.recv(65_536), b""))


def close_socket(sock: socket.socket, *, reset: bool = False) -> None:
    """End TCP with FIN or RST."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def masked_frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, announced: int | None = None) -> bytes:
    """A client's frame. The announced length may be false."""
    size = len(payload) if announced is None else announced
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + b"\0\0\0\0" + payload
