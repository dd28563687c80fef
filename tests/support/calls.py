"""A server that answers function calls, and what tests of calls share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from finx_streamer import FunctionClient
from tests.support.peers import CLOSE, PATIENCE, TEXT, Caller, Script, frame

#: Turns a request into the bytes to send.
Handler = Callable[[dict[str, Any]], bytes]
#: Creates clients of a peer; see the fixture `make_client`.
ClientFactory = Callable[..., FunctionClient]


def echo(request: dict[str, Any]) -> bytes:
    """Answer with the number in the request."""
    return frame(json.dumps({"echo": request.get("number")}))


def answer(handler: Handler = echo, count: int | None = None) -> Script:
    """A script that answers up to `count` calls and ignores further ones."""

    def script(caller: Caller) -> None:
        caller.welcome()
        answer_calls(caller, handler, count)

    return script


def answer_calls(caller: Caller, handler: Handler = echo, count: int | None = None) -> None:
    """Answer up to `count` calls on an open connection, until the client closes it."""
    answered = 0
    while True:
        opcode, payload = caller.read_frame()
        if opcode == CLOSE:
            return
        if opcode == TEXT and (count is None or answered < count):
            answered += 1
            caller.send(handler(json.loads(payload)))


def answer_one(caller: Caller) -> None:
    """Complete the handshake and answer one call."""
    caller.welcome()
    caller.send(echo(json.loads(caller.read_frame()[1])))


def call_echo(client: FunctionClient, number: int) -> Any:
    """Send a number to a peer that echoes it. Return the number in the answer."""
    return client.call("echo", number=number)["echo"]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that has no event."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def threads_of(name: str) -> list[str]:
    """The running threads of the clients whose names begin with `name`."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]
