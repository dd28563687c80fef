"""One WebSocket connection on an event loop, from the handshake to the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from ..config.api_key import ApiKey
from ..errors import AuthenticationError, ConnectionFailed
from ..values import NEVER
from .attempt import Attempt, ConnectionConfig
from .failures import translate
from .handshake_pool import Handshake, HandshakePool
from .loop import EventLoop, SocketOwner
from .websocket import WOULD_BLOCK, Connection


class WebSocketChannel(ABC):
    """Opens, watches and closes a connection. Subclasses decide what it is for. Lives on the loop's thread."""

    __slots__ = (
        "_handshakes",
        "_next_key",
        "_refused_key",
        "_watched",
        "config",
        "handshake",
        "loop",
        "paused",
        "scheduled",
        "websocket",
    )

    def __init__(self, loop: EventLoop, handshakes: HandshakePool, config: ConnectionConfig) -> None:
        self.loop = loop
        self.config = config
        #: The attempt under way, and the open connection: at most one of them.
        self.handshake: Handshake | None = None
        self.websocket: Connection | None = None
        #: Reading is suspended, because there is no room for more ticks.
        self.paused = False
        #: For the loop: see `Timed`.
        self.scheduled = NEVER
        self._handshakes = handshakes
        #: The events that the poller watches for.
        self._watched = 0
        #: The key of the last attempt, if it was refused, and another one to use, if it is known.
        self._refused_key: ApiKey | None = None
        self._next_key: ApiKey | None = None

    # For subclasses to define.

    @abstractmethod
    def opened(self, websocket: Connection) -> None:
        """The handshake succeeded."""

    @abstractmethod
    def lost(self, error: ConnectionFailed) -> None:
        """The handshake failed, or the connection was lost. Calls `disconnect`."""

    @abstractmethod
    def on_readable(self) -> None:
        """There may be something to read."""

    def handshake_headers(self) -> Mapping[str, str]:
        """Return headers for the next handshake."""
        return {}

    @property
    def reader(self) -> SocketOwner:
        """What the loop calls when the open connection can be read or written."""
        return self

    # For subclasses to use.

    def connect(self) -> None:
        """Begin a handshake, when its turn comes."""
        attempt = Attempt(self._refused_key, self._next_key, self.handshake_headers())
        self._next_key = None
        self.handshake = Handshake(self.config, attempt, self)
        self._handshakes.request(self.handshake)

    def disconnect(self) -> None:
        """Close the connection, or give up the handshake. Does nothing if there is neither."""
        handshake, self.handshake = self.handshake, None
        if handshake is not None:
            self._refused_key = None
            self._handshakes.cancel(handshake)
        websocket = self.websocket
        if websocket is not None:
            self._watch(websocket, 0)
            self.websocket = None
            self.paused = False
            websocket.disconnect()

    def send(self, send: Callable[[Connection], None]) -> None:
        """Send something, as far as the connection takes it now; the rest follows when it can."""
        if self.websocket is None:
            return
        try:
            send(self.websocket)
        except (OSError, EOFError) as cause:
            self.lost(translate(cause))
        else:
            self.update_watch()

    def fill(self, websocket: Connection) -> int:
        """Read what has arrived. Returns the number of bytes: 0 if there are none, or the connection was lost."""
        try:
            return websocket.wire.fill()
        except (OSError, EOFError, MemoryError) as cause:
            self.read_failed(cause)
            return 0

    def read_failed(self, error: BaseException) -> None:
        """Handle what a read has raised."""
        if not isinstance(error, WOULD_BLOCK):
            self.lost(translate(error))

    def note_refusal(self, outcome: object, key: ApiKey | None) -> None:
        """Remember whether the server refused the key: the next attempt needs another one then."""
        self._refused_key = key if isinstance(outcome, AuthenticationError) else None

    def update_watch(self) -> None:
        """Watch for what the connection can use now."""
        websocket = self.websocket
        if websocket is None:
            return
        poller = self.loop.poller
        wanted = (0 if self.paused else poller.READ) | (poller.WRITE if websocket.wire.unsent else 0)
        if wanted != self._watched:
            self._watch(websocket, wanted)

    # For the loop and the handshake pool.

    def on_writable(self) -> None:
        self.send(_flush)

    def handshake_ended(self, handshake: Handshake, outcome: Connection | ConnectionFailed) -> None:
        self.handshake = None
        self._next_key = handshake.attempt.next_key
        self.note_refusal(outcome, handshake.attempt.key)
        if isinstance(outcome, ConnectionFailed):
            self.config.servers.leave(self.config.endpoint)
            self.lost(outcome)
        else:
            self.websocket = outcome
            self.config.servers.preferred = self.config.endpoint
            self.opened(outcome)

    def _watch(self, websocket: Connection, wanted: int) -> None:
        if wanted != self._watched:
            self.loop.watch(websocket.wire.fileno(), self.reader, wanted, self._watched)
            self._watched = wanted


def _flush(websocket: Connection) -> None:
    websocket.wire.flush()
