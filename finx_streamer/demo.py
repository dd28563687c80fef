"""`endpoint="demo"`: a simulated market in this process, without a key. Needs the extra `server`.

All listeners and clients of a process share one market. It starts with the first of them and stops after the last.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from .config.endpoint import Endpoint
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .server import LocalServer

NAME = "demo"
#: The market accepts any key. This one is too short to be masked, because it isn't secret.
_KEY = "any"

_E = TypeVar("_E", bound=str | Endpoint | Sequence[str | Endpoint])
_K = TypeVar("_K")


def connection_arguments(
    user: object, endpoint: _E, api_key: _K, proxy: str | None
) -> tuple[_E | str, _K | str, str | None]:
    """Return the endpoint, key and proxy to connect with. The demo's market lives at least as long as `user`.

    Raises:
        ConfigurationError: The extra `server` isn't installed.
    """
    if endpoint != NAME:
        return endpoint, api_key, proxy
    global _market
    if _market.pid != os.getpid():
        _market = _Market()  # this is a forked process: the server's thread belongs to its parent
    return _market.join(user), _KEY if api_key is None else api_key, ""


class _Market:
    """The server and the number of objects that use it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._users = 0
        self._server: LocalServer | None = None
        # Reentrant: the garbage collector may call `_leave` inside `join`.
        self._lock = threading.RLock()

    def join(self, user: object) -> str:
        """Return the server's URL. Count `user` until it is garbage."""
        with self._lock:
            weakref.finalize(user, self._leave).atexit = False
            self._users += 1
            if self._server is None:
                self._server = _start()
            return self._server.url

    def _leave(self) -> None:
        if self.pid != os.getpid():
            return
        with self._lock:
            self._users -= 1
            if not self._users and self._server is not None:
                server, self._server = self._server, None
                # On another thread: this may be any thread, even the server's own. None can start at the very end.
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=server.stop, name="finx-demo-stop", daemon=True).start()


def _start() -> LocalServer:
    try:
        from .server.demo import start_demo
    except ImportError as error:
        raise ConfigurationError(
            'endpoint="demo" runs a local server, which needs an extra: pip install "finx-streamer[server]"'
        ) from error
    return start_demo()


_market = _Market()
