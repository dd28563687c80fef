"""What a server has counted."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class ServerStats:
    """A snapshot of a server's counters.

    Counts of now: `connections` (of all kinds, handshake done), `streams` (those for ticks or Greeks), `symbols` (how
    many streams of each symbol) and `ticks_stored` (what the store holds; ticks on their way into it do not count).
    Counts since the server was made, over restarts: `connections_total`, `refused` (handshakes), `ticks_played` (by the
    source), `ticks_sent` (tick messages handed to connections, one for each client), `slow_clients` (disconnected with
    1013) and `calls` (of functions, on all connections, whatever the answer). `started` tells whether the source has
    begun, `finished` whether it has come to its end.
    """

    connections: int = 0
    connections_total: int = 0
    streams: int = 0
    symbols: Mapping[str, int] = attrs.field(factory=dict)
    refused: int = 0
    ticks_played: int = 0
    ticks_sent: int = 0
    slow_clients: int = 0
    calls: int = 0
    ticks_stored: int = 0
    started: bool = False
    finished: bool = False


@attrs.define
class Counters:
    """The counts that only grow. Written by the server's thread alone."""

    connections_total: int = 0
    refused: int = 0
    ticks_played: int = 0
    ticks_sent: int = 0
    slow_clients: int = 0
    calls: int = 0
