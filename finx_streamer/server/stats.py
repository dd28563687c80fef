"""Counters of a server, and a snapshot of them for users."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs


@attrs.frozen
class ExchangeStats:
    """A snapshot of the counters of one exchange that feeds an `ExchangeMarket`. Totals count from the server's start.

    Attributes:
        connected (bool): Whether the exchange sends trades now.
        trades (int): Total trades of this exchange that became ticks.
        reconnects (int): Total connections that were lost and opened again.
        gaps (int): Total gaps in the trades of a pair: each lost connection and each jump of IDs.
        filled (int): Total missed trades that the exchange's REST interface returned.
        unfilled (int): Total gaps that weren't filled in full.
        lost (int): Total trades that are known to be missing. Exact where the exchange's IDs are consecutive.
        lag (float | None): Seconds from the newest trade's own time to its arrival. `None` before the first one.
        error (str | None): Why the exchange sends no trades now. `None` if it does, or if the first attempt isn't over.
    """

    connected: bool = False
    trades: int = 0
    reconnects: int = 0
    gaps: int = 0
    filled: int = 0
    unfilled: int = 0
    lost: int = 0
    lag: float | None = None
    error: str | None = None


@attrs.frozen
class LogStats:
    """A snapshot of where a `JetStreamMarket` is in its log. Totals count from the creation of the market.

    Attributes:
        connected (bool): Whether NATS sends the log now.
        newest (int): The number of the newest entry that was read. This is also the newest ID for clients.
        behind (int): How many newer entries NATS has.
        lag (float | None): Seconds from the storing of the newest entry in NATS to its arrival. `None` before the first
            one.
        first (int): The number of the first entry from which on the store has all ticks. Clients can resume from there.
        store_from (datetime | None): The time of the first tick from there, in whole seconds. `None` without a tick.
        filled (int): Total earlier entries that were read.
        filling_done (bool): Whether the store reaches as far back as it is meant to.
        foreign (int): Total messages that were skipped because they are no valid tick or ticker of their subject.
        lost (int): Total entries that had expired in NATS before they were read.
        resets (int): How often NATS had lost entries that were read, so that the store was filled again.
        reconnects (int): Total connections to NATS that were lost and opened again.
        error (str | None): Why the log isn't read now. `None` if it is, or if the first attempt isn't over.
    """

    connected: bool = False
    newest: int = 0
    behind: int = 0
    lag: float | None = None
    first: int = 0
    store_from: datetime | None = None
    filled: int = 0
    filling_done: bool = False
    foreign: int = 0
    lost: int = 0
    resets: int = 0
    reconnects: int = 0
    error: str | None = None


@attrs.frozen
class ServerStats:
    """A snapshot of a server's counters::

        from finx_streamer.server import LocalServer, SimulatedMarket

        with LocalServer(SimulatedMarket()) as server:
            print(server.stats.ticks_played, "ticks,", server.stats.streams, "streams")

    Totals count from the creation of the server object and continue across restarts.

    Attributes:
        connections (int): Open connections of all kinds. The handshake is complete.
        connections_total (int): Total connections of all kinds.
        streams (int): Subscriptions of open connections, to ticks or Greeks. On the first wire, each connection has
            one.
        symbols (Mapping[str, int]): The number of subscriptions to each symbol.
        refused (int): Total handshakes refused.
        ticks_played (int): Total ticks played by the source or sent with `emit()`.
        ticks_sent (int): Total tick messages sent. A tick sent to two clients counts twice.
        greeks_played (int): Total contract tickers played by the source or sent with `emit()`.
        greeks_sent (int): Total contract tickers sent, those for new subscribers included.
        slow_clients (int): Total clients disconnected with 1013 because they were too slow.
        calls (int): Total function calls on all connections, failed ones included. Subscribing isn't a call.
        ticks_stored (int): Ticks in the store now. Ticks in a batch that is not yet written don't count.
        exchanges (Mapping[str, ExchangeStats]): The counters of each exchange that feeds the source.
        log (LogStats | None): Where a `JetStreamMarket` is in its log. `None` for other sources.
        store_error (str | None): Why the store can't be written now, as on a full disk. `None` if it can.
        started (bool): Whether the source has started.
        finished (bool): Whether the source has ended.
    """

    connections: int = 0
    connections_total: int = 0
    streams: int = 0
    symbols: Mapping[str, int] = attrs.field(factory=dict)
    refused: int = 0
    ticks_played: int = 0
    ticks_sent: int = 0
    greeks_played: int = 0
    greeks_sent: int = 0
    slow_clients: int = 0
    calls: int = 0
    ticks_stored: int = 0
    exchanges: Mapping[str, ExchangeStats] = attrs.field(factory=dict)
    log: LogStats | None = None
    store_error: str | None = None
    started: bool = False
    finished: bool = False


@attrs.define
class Counters:
    """The totals. Only the server's thread writes them."""

    connections_total: int = 0
    refused: int = 0
    ticks_played: int = 0
    ticks_sent: int = 0
    greeks_played: int = 0
    greeks_sent: int = 0
    slow_clients: int = 0
    calls: int = 0
