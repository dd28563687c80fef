"""Connect to a name that only a silent name server on this machine could resolve. Print the error, then "stopped"."""

from __future__ import annotations

import socket
import threading

from finx_streamer import FinxStreamerError, ReconnectPolicy, StreamListener

PATIENCE = 20.0

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
failed = threading.Event()
errors: list[FinxStreamerError] = []


def on_error(error: FinxStreamerError) -> None:
    errors.append(error)
    failed.set()


listener = StreamListener(
    "BTC:USDC",
    api_key="demo",
    endpoint="wss://ticks.example/",
    connect_timeout=0.5,
    proxy="",
    reconnect=ReconnectPolicy(initial=3600.0, maximum=3600.0, jitter=False),
    on_error=on_error,
)
listener.start()
assert b"ticks" in server.recv(4096)
assert failed.wait(PATIENCE)
print(errors[0])
assert listener.start().stop()
print("stopped")
