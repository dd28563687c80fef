"""The servers of one service, and which of them a connection tries next."""

from __future__ import annotations

from ..errors import ConfigurationError, ConnectionFailed
from .endpoint import Endpoint, join_host_port
from .reconnect import retry_delay
from .redaction import redact


class Servers:
    """One server or more. All connections of a listener or client share it. No clock: `now` is in monotonic seconds."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints
        #: Where a new connection begins: the first one, or the one that has answered last.
        self.preferred = endpoints[0]
        #: When a server may be tried that has sent a Retry-After.
        self._free_at: dict[Endpoint, float] = {}

    @classmethod
    def from_argument(cls, given: object) -> Servers:
        """Check the argument `endpoint`: what `Endpoint.of` takes, or a list of it. Raises `ConfigurationError`."""
        if not isinstance(given, list | tuple):
            return cls((Endpoint.of(given),))
        if not given:
            raise ConfigurationError("endpoint: the list is empty; expected the URL of at least one server")
        if "demo" in given:
            raise ConfigurationError(
                "endpoint: 'demo' can't be in a list; pass endpoint='demo', or the URLs of servers"
            )
        endpoints = tuple(map(Endpoint.of, given))
        if len({endpoint.wire for endpoint in endpoints}) > 1:
            raise ConfigurationError("endpoint: the servers have different wires; expected one wire for all of them")
        if len(set(endpoints)) < len(endpoints):
            raise ConfigurationError("endpoint: a server is in the list twice; expected each of them once")
        return cls(endpoints)

    def __str__(self) -> str:
        return ", ".join(redact(endpoint.url) for endpoint in self.endpoints)

    def leave(self, endpoint: Endpoint) -> None:
        """Let new connections begin at another server than one that doesn't answer."""
        if self.preferred == endpoint:
            self.preferred = self._after(endpoint)[0]

    def after(self, endpoint: Endpoint, error: ConnectionFailed, drawn: float, now: float) -> tuple[Endpoint, float]:
        """Return which server to try after an error of another one, and how many seconds to wait before.

        It is the next one in turn. If that has asked to wait for longer than the `drawn` delay, it is skipped.
        """
        if error.retry_after:
            self._free_at[endpoint] = now + retry_delay(error, drawn)
        if len(self.endpoints) == 1:
            return endpoint, retry_delay(error, drawn)
        self.leave(endpoint)
        in_turn = self._after(endpoint)
        free_at = {each: self._free_at.get(each, now) for each in in_turn}
        following = next((each for each in in_turn if free_at[each] <= now + drawn), None)
        following = following or min(in_turn, key=lambda each: free_at[each])
        return following, max(drawn, free_at[following] - now)

    def _after(self, endpoint: Endpoint) -> tuple[Endpoint, ...]:
        """Return all servers in turn, this one last."""
        position = self.endpoints.index(endpoint) + 1
        return self.endpoints[position:] + self.endpoints[:position]

    def name_in(self, error: ConnectionFailed, endpoint: Endpoint) -> None:
        """Let an error say which of several servers it is about."""
        where = join_host_port(endpoint.host, endpoint.port)
        if len(self.endpoints) > 1 and where not in error.reason:
            error.reason = f"{where}: {error.reason}"
