"""Everything that `finx_streamer` raises or hands to `on_error`::

    FinxStreamerError
    ├── ConfigurationError (also a ValueError)   an argument is wrong; nothing was started
    ├── ConnectionFailed                         an attempt failed or a connection was lost
    │   ├── AuthenticationError                  the key was refused (401, 403, close 1008)
    │   ├── StreamNotFound                       the server has no such stream (404)
    │   ├── RateLimited                          too many requests (429)
    │   └── ProtocolError                        the peer broke RFC 6455, or is no websocket server
    ├── DecodeError                              a message could not be understood
    ├── ServerError                              a message in which the server reports an error
    ├── CallbackError                            one of your callbacks raised
    ├── TicksDropped                             the overflow policy you chose dropped ticks
    ├── SlowConsumer                             the queue stays nearly full
    ├── StaleStream                              nothing was received for `stale_after` seconds
    ├── GapNotFilled                             ticks were missed and history could not supply them
    ├── FunctionError                            a function call was answered with an error
    │   ├── CallTimeout                          a function call was not answered in time
    │   └── IncompleteHistory                    a part of tick history can't be asked for
    └── NotAvailable                             FinX has not released this yet

An error carries its facts as attributes and composes its text only when it is printed. No error ever
holds an API key: text from outside is scrubbed before it gets here.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Self

import attrs

#: How much of an offending payload an error keeps, in characters.
PAYLOAD_LIMIT = 1_000


def _rebuild(
    cls: type[FinxStreamerError],
    args: tuple[Any, ...],
    state: dict[str, Any],
    cause: BaseException | None,
    context: BaseException | None,
    suppress_context: bool,
) -> FinxStreamerError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    error.__cause__, error.__context__ = cause, context
    error.__suppress_context__ = suppress_context
    return error


def _portable(cause: BaseException | None) -> BaseException | None:
    """The cause as it can be pickled: as it is, or else what it says. A callback may raise anything."""
    try:
        pickle.loads(pickle.dumps(cause))
    except Exception:
        return RuntimeError(f"{type(cause).__name__}: {cause}")
    return cause


@attrs.define(slots=False, eq=False, repr=False, str=False)
class FinxStreamerError(Exception):
    """The base of all errors of this package. `symbol` names the stream concerned, if there is one."""

    symbol: str | None = attrs.field(default=None, kw_only=True)

    def _text(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        text = make_printable(self._text())
        return f"{self.symbol}: {text}" if self.symbol else text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"

    def __copy__(self) -> Self:
        chain = self.__cause__, self.__context__, self.__suppress_context__
        twin = _rebuild(type(self), self.args, dict(self.__dict__), *chain)
        assert isinstance(twin, type(self))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        cause, context = _portable(self.__cause__), _portable(self.__context__)
        return _rebuild, (type(self), self.args, dict(self.__dict__), cause, context, self.__suppress_context__)


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ConfigurationError(FinxStreamerError, ValueError):
    """An argument is wrong. The text names the argument, the value (never a key) and what is allowed."""

    message: str

    def _text(self) -> str:
        return self.message


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ConnectionFailed(FinxStreamerError):
    """A connection attempt failed, or an established connection was lost.

    `attempt` counts connection attempts since the last stable connection (1 is the first; 0 is the loss of a
    connection that had been stable). `will_retry` says whether another attempt follows, `retry_in` after how many
    seconds. `status` is the HTTP status of a refused handshake, `close_code` the websocket close code,
    `retry_after` the wait in seconds that the server asked for.
    """

    reason: str
    status: int | None = attrs.field(default=None, kw_only=True)
    close_code: int | None = attrs.field(default=None, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    #: Whether trying again could not help, e.g. a certificate that is refused.
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
    """The API key is missing or was refused (HTTP 401 or 403, close code 1008). Keys rotate every 24 hours."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class StreamNotFound(ConnectionFailed):
    """The server knows no such stream (HTTP 404): check the pair, and the endpoint's path prefix."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class RateLimited(ConnectionFailed):
    """The server asked for fewer requests (HTTP 429). It is retried after the server's Retry-After."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ProtocolError(ConnectionFailed):
    """The peer broke the websocket protocol, or does not speak it."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class DecodeError(FinxStreamerError):
    """A message could not be understood. `payload` is what was received, cut at `PAYLOAD_LIMIT` characters."""

    reason: str
    payload: str | bytes = attrs.field(default="")

    def _text(self) -> str:
        return f"{self.reason}: {_shown(self.payload)}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class ServerError(FinxStreamerError):
    """The server sent a message that reports an error. `payload` is the decoded object."""

    message: str
    payload: dict[str, Any] = attrs.field(factory=dict)

    def _text(self) -> str:
        return f"the server reports: {_shown(self.message)}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class CallbackError(FinxStreamerError):
    """A callback raised. `callback` was called with `argument`; the cause is in `__cause__`."""

    callback: Callable[..., object]
    argument: object = None

    def _text(self) -> str:
        name = getattr(self.callback, "__qualname__", None) or type(self.callback).__name__
        cause = self.__cause__
        return f"callback {name} raised {type(cause).__name__}: {cause}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class TicksDropped(FinxStreamerError):
    """The overflow policy dropped `count` ticks of `symbol` since the last such report."""

    count: int

    def _text(self) -> str:
        return f"{self.count} ticks dropped: callbacks are slower than the stream"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class SlowConsumer(FinxStreamerError):
    """The queue has stayed over 80 % full. `depth` ticks of at most `size` wait."""

    depth: int
    size: int

    def _text(self) -> str:
        return f"callbacks fall behind: {self.depth} of at most {self.size} ticks wait"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class StaleStream(FinxStreamerError):
    """Nothing was received for `seconds`, though the connection answers."""

    seconds: float

    def _text(self) -> str:
        return f"no message for {self.seconds:g} s"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class GapNotFilled(FinxStreamerError):
    """Ticks were missed and tick history could not supply them."""

    reason: str

    def _text(self) -> str:
        return f"gap not filled: {self.reason}"


@attrs.define(slots=False, eq=False, repr=False, str=False)
class FunctionError(FinxStreamerError):
    """A function call was answered with an error. `arguments` never hold the key."""

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
    """More ticks share a millisecond than one answer holds, so that the rest of them can't be asked for."""


@attrs.define(slots=False, eq=False, repr=False, str=False)
class NotAvailable(FinxStreamerError):
    """FinX has not released this yet."""

    message: str

    def _text(self) -> str:
        return self.message


def truncate(payload: str | bytes) -> str | bytes:
    """The payload as an error may keep it: whole if short, else its first `PAYLOAD_LIMIT` characters."""
    return payload if len(payload) <= PAYLOAD_LIMIT else payload[:PAYLOAD_LIMIT]


def make_printable(text: str, *, keep_newlines: bool = False) -> str:
    """Escape invisible characters: errors are printed to terminals."""
    if text.isprintable():
        return text
    keep = "\n" if keep_newlines else ""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _shown(payload: str | bytes, limit: int = 120) -> str:
    # repr, because a hostile payload may hold control characters, and errors are printed to terminals.
    text = repr(payload)
    return text if len(text) <= limit else text[:limit] + "…"
