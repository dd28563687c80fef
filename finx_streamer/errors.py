"""All errors that `finx_streamer` raises or passes to `on_error`::

    FinxStreamerError
    ├── ConfigurationError (also a ValueError)   an argument is wrong; nothing was started
    ├── ConnectionFailed                         an attempt failed or a connection was lost
    │   ├── AuthenticationError                  the key was rejected (401, 403, close code 1008)
    │   ├── StreamNotFound                       the server has no such stream (404)
    │   ├── RateLimited                          too many requests (429)
    │   └── ProtocolError                        the peer broke RFC 6455, or is no WebSocket server
    ├── DecodeError                              a message could not be decoded
    ├── ServerError                              a message in which the server reports an error
    ├── CallbackError                            one of your callbacks raised
    ├── TicksDropped                             the overflow policy, or the end, dropped ticks
    ├── SlowConsumer                             the queue stays nearly full
    ├── StaleStream                              nothing was received for `stale_after` seconds
    ├── GapNotFilled                             ticks were missed and history could not supply them
    ├── RecordingError                           the disk has a problem with `record`
    ├── PublishError                             ticks can't be published to NATS now, or are lost
    ├── BarError                                 a tick is too late for its bar, or its price can't be compared
    ├── FunctionError                            a function call was answered with an error
    │   ├── CallTimeout                          a function call was not answered in time
    │   └── IncompleteHistory                    a part of tick history can't be requested
    └── NotAvailable                             FinX has not released this yet

An error keeps its facts as attributes and formats its text when it's printed. No error contains an API key.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import attrs

#: How much of a message a `DecodeError` keeps, in characters.
PAYLOAD_LIMIT = 1_000
#: How much of a message an error's text shows, in characters.
_SHOWN = 120


@attrs.define(slots=False, eq=False, repr=False, str=False)
class FinxStreamerError(Exception):
    """The base of all errors of this package.

    Attributes:
        symbol (str | None): The stream that the error belongs to, if any.
    """

    symbol: str | None = attrs.field(default=None, kw_only=True)

    def _text(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        text = make_printable(self._text())
        return f"{self.symbol}: {text}" if self.symbol else text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # `__init__` has keyword-only parameters, which the default can't pass.
        state = {**self.__dict__, "__cause__": _picklable(self.__cause__)}
        return type(self).__new__, (type(self), *self.args), state


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ConfigurationError(FinxStreamerError, ValueError):
    """An argument is wrong. The text names the argument, the value (never a key) and what is expected.

    Attributes:
        message (str): The text.
    """

    message: str

    def _text(self) -> str:
        return self.message


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ConnectionFailed(FinxStreamerError):
    """A connection attempt failed, or a connection was lost.

    Attributes:
        reason (str): What happened.
        status (int | None): HTTP status of the refused handshake.
        close_code (int | None): WebSocket close code.
        retry_after (float | None): The wait in seconds that the server asked for.
        permanent (bool): True if another attempt can't help, e.g. because the certificate is invalid.
        attempt (int): Number of the attempt since the last stable connection, from 1. 0 means that a stable connection
            was lost.
        will_retry (bool): Whether another attempt follows.
        retry_in (float | None): Seconds until the next attempt.
    """

    reason: str
    status: int | None = attrs.field(default=None, kw_only=True)
    close_code: int | None = attrs.field(default=None, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    permanent: bool = attrs.field(default=False, kw_only=True)
    attempt: int = attrs.field(default=0, kw_only=True)
    will_retry: bool = attrs.field(default=False, kw_only=True)
    retry_in: float | None = attrs.field(default=None, kw_only=True)

    def _text(self) -> str:
        attempt = f"attempt {self.attempt}, " if self.attempt else ""
        plan = f"next attempt in {self.retry_in or 0.0:.1f} s" if self.will_retry else "no further attempt"
        return f"{self.reason} ({attempt}{plan})"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class AuthenticationError(ConnectionFailed):
    """The API key is missing or was rejected (HTTP 401 or 403, close code 1008). Keys rotate every 24 hours."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: one line, because the fault isn't in the code."""
        return [f"{type(self).__name__}: {self}"]


@attrs.define(slots=False, eq=False, repr=False, str=False)
class StreamNotFound(ConnectionFailed):
    """The server has no such stream (HTTP 404). Check the pair and the endpoint's path prefix."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class RateLimited(ConnectionFailed):
    """Too many requests (HTTP 429). The next attempt waits for the server's Retry-After."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ProtocolError(ConnectionFailed):
    """The peer broke the WebSocket protocol, or doesn't speak it."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class DecodeError(FinxStreamerError):
    """A message could not be decoded.

    Attributes:
        reason (str): What is wrong.
        payload (str | bytes): The first 1,000 characters of the message; bytes if it was a binary message.
    """

    reason: str
    payload: str | bytes = attrs.field(default="")

    def _text(self) -> str:
        return f"{self.reason}: {_quote(self.payload)}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ServerError(FinxStreamerError):
    """The server sent a message that reports an error.

    Attributes:
        message (str): The server's text.
        payload (dict): The decoded JSON object.
    """

    message: str
    payload: dict[str, Any] = attrs.field(factory=dict)

    def _text(self) -> str:
        return f"the server reports: {_quote(self.message)}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class CallbackError(FinxStreamerError):
    """A callback raised. Its exception is the `__cause__`.

    Attributes:
        callback (Callable): The callback that raised.
        argument (object): What it was called with.
    """

    callback: Callable[..., object]
    argument: object = None

    def _text(self) -> str:
        name = getattr(self.callback, "__qualname__", None) or type(self.callback).__name__
        return f"callback {name} raised {type(self.__cause__).__name__}: {self.__cause__}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class TicksDropped(FinxStreamerError):
    """Ticks of `symbol` were dropped: by the overflow policy, or because the listener ended before their callbacks.

    Attributes:
        count (int): Number of dropped ticks since the last such error.
        at_end (bool): Whether the end of the listener dropped them.
    """

    count: int
    at_end: bool = False

    def _text(self) -> str:
        ticks = "1 tick" if self.count == 1 else f"{self.count} ticks"
        if self.at_end:
            return f"{ticks} dropped: the listener ended before your callbacks had handled them"
        return f"{ticks} dropped: callbacks are slower than the stream"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class SlowConsumer(FinxStreamerError):
    """The queue stays more than 80 % full.

    Attributes:
        depth (int): Number of ticks in the queue.
        size (int): Capacity of the queue, in ticks.
    """

    depth: int
    size: int

    def _text(self) -> str:
        return f"callbacks fall behind: the queue holds {self.depth} of at most {self.size} ticks"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class StaleStream(FinxStreamerError):
    """No tick for `stale_after` seconds, although the connection works. (Without ticks: no notice.)

    Attributes:
        seconds (float): Seconds since the last tick.
    """

    seconds: float

    def _text(self) -> str:
        return f"no tick for {self.seconds:g} s"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class GapNotFilled(FinxStreamerError):
    """Ticks were missed and tick history could not supply them.

    Attributes:
        reason (str): Why not.
    """

    reason: str

    def _text(self) -> str:
        return f"gap not filled: {self.reason}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class RecordingError(FinxStreamerError):
    """Recording has a problem: the disk is full or gone, or a crash had cut off the recording. The stream goes on.

    Attributes:
        reason (str): What is wrong.
    """

    reason: str

    def _text(self) -> str:
        return f"recording: {self.reason}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class PublishError(FinxStreamerError):
    """Publishing to NATS has a problem: NATS is away, or ticks are lost. Or such a problem is over.

    Attributes:
        reason (str): What is wrong.
        lost (int): How many ticks are lost.
    """

    reason: str
    lost: int = 0

    def _text(self) -> str:
        return f"publishing: {self.reason}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class BarError(FinxStreamerError):
    """A tick isn't part of its bar: it came too late, or its price can't be compared.

    Attributes:
        reason (str): Why not.
        tick (dict): The tick.
    """

    reason: str
    tick: Any

    def _text(self) -> str:
        return f"the tick of {self.tick['timestamp']} isn't part of a bar: {self.reason}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class FunctionError(FinxStreamerError):
    """A function call was answered with an error.

    Attributes:
        function (str): Name of the function, e.g. "tickHistory".
        arguments (dict): Arguments of the call, without the API key.
        message (str): What went wrong.
    """

    function: str
    arguments: dict[str, Any] = attrs.field(factory=dict)
    message: str = ""

    def _text(self) -> str:
        return f"{self.function}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())}): {self.message}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class CallTimeout(FunctionError):
    """A function call was not answered in time."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class IncompleteHistory(FunctionError):
    """A part of history can't be requested.

    Either more ticks share one millisecond than an answer holds, or too many days in a row have no tick.
    """


@attrs.define(slots=False, eq=False, repr=False, str=False)
class NotAvailable(FinxStreamerError):
    """FinX has not released this yet.

    Attributes:
        message (str): What is missing.
    """

    message: str

    def _text(self) -> str:
        return self.message


def is_power_of_ten(count: int) -> bool:
    """Whether it is 1, 10, 100 …: the counts at which a repeated error is logged."""
    return str(count).rstrip("0") == "1"


def make_printable(text: str, *, keep_newlines: bool = False) -> str:
    """Escape control and other invisible characters, because errors are printed to terminals."""
    if text.isprintable():
        return text
    keep = "\n" if keep_newlines else ""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _quote(payload: str | bytes) -> str:
    text = repr(payload)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _picklable(cause: BaseException | None) -> BaseException | None:
    """Replace a cause that doesn't survive pickling by its text. A callback may raise anything."""
    try:
        pickle.loads(pickle.dumps(cause))
    except Exception:
        return RuntimeError(f"{type(cause).__name__}: {cause}")
    return cause
