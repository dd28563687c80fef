"""`FaultControls`: the methods of a server that cause faults on demand, for tests of clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from ..errors import ConfigurationError
from .connection import Connection
from .faults import check_close
from .protocol import encode_frame
from .service import Only, ServerState, Service
from .thread import ServerThread


class FaultControls:
    """Causes faults on demand. All methods are thread-safe and take effect before they return."""

    _state: ServerState
    _thread: ServerThread

    def refuse_next(
        self,
        count: int | None,
        status: int,
        retry_after: float | datetime | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse the next handshakes. A later call replaces an earlier one.

        Args:
            count (int | None): The number of handshakes. `None` refuses all of them, 0 stops refusing.
            status (int): The HTTP status, 200 or above.
            retry_after (float | datetime | str | None): The Retry-After header: seconds, rounded up; a datetime with a
                time zone, sent as an HTTP date; or the text itself.
            headers (Mapping[str, str] | None): Further headers, such as `{"Location": …}`.
        """
        faults = self._state.handshake_faults
        self._thread.call(lambda service: faults.refuse(count, status, retry_after, headers or {}))

    def stall_next(self, count: int) -> None:
        """Leave the next handshakes unanswered until `resume()`, at most for `open_timeout` seconds.

        Args:
            count (int): The number of handshakes.
        """
        self._thread.call(lambda service: self._state.handshake_faults.stall(count))

    def drop_connections(self, symbol: str | None = None, *, reset: bool = False, only: Only | None = None) -> int:
        """End TCP connections without a close frame.

        Args:
            symbol (str | None): Only connections with a stream of this symbol.
            reset (bool): Whether to end them with RST instead of FIN.
            only (str | None): Only `"streams"` or only `"functions"`.

        Returns:
            int: The number of connections dropped.
        """
        return self._apply(symbol, only, lambda connection: connection.drop(reset=reset))

    def close_connections(
        self, code: int = 1000, reason: str = "", symbol: str | None = None, *, only: Only | None = None
    ) -> int:
        """Send a close frame, without waiting for the answer.

        Args:
            code (int): The close code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason (str): The reason, at most 123 bytes.
            symbol (str | None): Only to connections with a stream of this symbol.
            only (str | None): Only to `"streams"` or only to `"functions"`.

        Returns:
            int: The number of connections closed.
        """
        check_close(code, reason)
        return self._apply(symbol, only, lambda connection: connection.begin_close(code, reason))

    def go_silent(self, symbol: str | None = None, *, only: Only | None = None) -> int:
        """Stop reading from and sending to the open connections, pongs included. TCP stays open.

        The market plays on, and ticks are queued. A client with too many of them is closed with 1013 at `resume()`.
        Data that is already in the kernel's buffer still arrives. New connections work normally.

        Args:
            symbol (str | None): Only connections with a stream of this symbol.
            only (str | None): Only `"streams"` or only `"functions"`.

        Returns:
            int: The number of connections silenced.
        """
        return self._apply(symbol, only, lambda connection: connection.freeze())

    def resume(self) -> int:
        """Undo `go_silent()`, and answer the stalled handshakes and function calls.

        Stalls that haven't occurred yet remain in effect.

        Returns:
            int: The number of connections that were silent.
        """
        return self._thread.call(lambda service: 0 if service is None else service.resume())

    def send_message(self, message: str | bytes, symbol: str | None = None, *, only: Only | None = None) -> int:
        """Send any message, valid or not.

        Args:
            message (str | bytes): A str is sent as a text frame, bytes as a binary frame.
            symbol (str | None): Only to connections with a stream of this symbol.
            only (str | None): Only to `"streams"` or only to `"functions"`.

        Returns:
            int: The number of connections that it was sent to.
        """
        data = encode_frame(message)

        def send(connection: Connection) -> None:
            connection.enqueue(data)
            connection.flush()

        return self._apply(symbol, only, send)

    def fail_functions(
        self, count: int | None, message: str = "failed on demand", *, function: str | None = None
    ) -> None:
        """Answer the next calls on function connections with an error.

        Args:
            count (int | None): The number of calls. `None` fails all of them, 0 stops failing.
            message (str): The error.
            function (str | None): Only calls of this function. `None`: of all functions except `keepAlive`.
        """
        self._thread.call(lambda service: self._state.call_faults.fail(count, message, function))

    def stall_functions(self, count: int | None, *, function: str | None = None) -> None:
        """Leave the next calls on function connections unanswered until `resume()`.

        The late answers include ticks played meanwhile. Later calls on the same connection wait for their turn.

        Args:
            count (int | None): The number of calls. `None` stalls all of them, 0 stops stalling.
            function (str | None): Only calls of this function. `None`: of all functions except `keepAlive`.
        """
        self._thread.call(lambda service: self._state.call_faults.stall(count, function))

    def drop_functions(self, count: int | None, *, function: str | None = None, reset: bool = False) -> None:
        """Drop the connection at each of the next calls on function connections.

        Args:
            count (int | None): The number of calls. `None` drops at all of them, 0 stops dropping.
            function (str | None): Only calls of this function. `None`: of all functions except `keepAlive`.
            reset (bool): Whether to end the connection with RST instead of FIN.
        """
        self._thread.call(lambda service: self._state.call_faults.drop(count, function, reset))

    def _apply(self, symbol: str | None, only: Only | None, action: Callable[[Connection], None]) -> int:
        if only not in {None, "streams", "functions"}:
            raise ConfigurationError(f"only is {only!r}; expected 'streams', 'functions' or None for both")

        def act(service: Service | None) -> int:
            connections = [] if service is None else service.select(symbol, only)
            for connection in connections:
                action(connection)
            return len(connections)

        return self._thread.call(act)
