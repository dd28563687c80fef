"""A websocket server that sends ticks as fast as they are taken: `python load_server.py COUNT`.

The frames are encoded before the first connection and go out in large pieces, so that this process costs next to
nothing a tick and the client is what is measured. It prints its port, serves one connection after another, each with
the same COUNT ticks, and ends when its standard input is closed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import struct
import sys
import threading

DISTINCT = 5_000
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_EXCHANGES = ("BINANCE", "COINBASE", "KRAKEN", "FTX", "BITSTAMP", "GEMINI")


def message(number: int) -> bytes:
    """The text of the tick with this number, in the form of the protocol's example."""
    number %= DISTINCT
    minutes, milliseconds = divmod(number * 37, 60_000)
    seconds, milliseconds = divmod(milliseconds, 1_000)
    return (
        '{"results":"streaming","resultData":{"pair":"BTC:USDC","date":"2022-07-02",'
        f'"time":"15:{minutes:02}:{seconds:02}.{milliseconds:03}Z","exchange":"{_EXCHANGES[number % 6]}",'
        f'"price":"{price(number)}"}}}}'
    ).encode()


def price(number: int) -> str:
    return f"{19_000 + number % DISTINCT * 0.01:.2f}"


def frames(count: int) -> list[bytes]:
    """Pieces that hold `count` unmasked text frames in all."""
    encoded = [_frame(message(number)) for number in range(min(count, DISTINCT))]
    whole, rest = divmod(count, len(encoded))
    block = b"".join(encoded)
    return [block] * whole + [b"".join(encoded[:rest])]


def _frame(payload: bytes) -> bytes:
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, len(payload)) + payload
    return struct.pack("!BBH", 0x81, 126, len(payload)) + payload


def serve(listening: socket.socket, pieces: list[bytes]) -> None:
    while True:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(ConnectionError):
            _shake_hands(connection)
            for piece in pieces:
                connection.sendall(piece)
            # Until the client leaves; what it says (a close frame) does not matter.
            while connection.recv(4_096):
                pass


def _shake_hands(connection: socket.socket) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        received = connection.recv(4_096)
        if not received:
            raise ConnectionResetError
        request += received
    headers = dict(line.split(b": ", 1) for line in request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])
    key = {name.lower(): value for name, value in headers.items()}[b"sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    pieces = frames(int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    serve(listening, pieces)
