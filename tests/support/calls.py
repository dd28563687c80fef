"""A server that answers function calls, and what tests of calls share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.support.peers import CLOSE, TEXT, Caller, Script, frame

#: Turns a request into the bytes to send.
Handler = Callable[[dict[str, Any]], bytes]


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
