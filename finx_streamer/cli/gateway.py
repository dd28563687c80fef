"""`serve --from`: the ticks of a NATS JetStream stream as the market of `serve`."""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from .. import ConfigurationError
from .history import parse_since
from .live_market import reporting
from .terminal import count, say

if TYPE_CHECKING:
    from ..server import JetStreamMarket, LocalServer, LogStats

_LOOK_EVERY = 0.5
_SINCE = timedelta(hours=1)

FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Serve what publishers sent to NATS JetStream: nats://HOST, or several of a cluster, separated by commas.",
        metavar="URL",
    ),
]
FilledSinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        help="From when on --from or --upstream fills tick history, such as 24h or 2026-11-01. Default: 1h for --from.",
        metavar="TIME",
    ),
]


def choose_gateway(
    url: str | None, stream: str, since: str | None, pairs: list[str] | None, **others: object
) -> JetStreamMarket | None:
    """Return the market that the options ask for; None without `--from`. With it, none of the `others` may be given.

    Raises:
        ConfigurationError: The options contradict each other, or one is malformed.
        ImportError: The extra `jetstream` isn't installed.
    """
    if url is None:
        return None
    for name, value in others.items():
        if value:
            raise ConfigurationError(f"--{name.replace('_', '-')} can't be used with --from; remove one of them")
    from ..server import JetStreamMarket

    return JetStreamMarket(url, stream, pairs=pairs or None, since=parse_since(since) or _SINCE)


def log_reported(server: LocalServer) -> AbstractContextManager[None]:
    """Print a line when NATS goes away or comes back, when the store is filled, and when entries were lost."""
    return contextlib.nullcontext() if server.stats.log is None else reporting(_report, server, "finx-log")


def _report(server: LocalServer, done: threading.Event) -> None:
    shown: LogStats | None = None
    while not done.wait(_LOOK_EVERY):
        stats = server.stats.log
        if stats is None:
            return
        if stats.error is not None and (shown is None or shown.error is None):
            say(f"NATS: away: {stats.error}")
        if stats.connected and (shown is None or not shown.connected):
            say(f"NATS: connected; the log is at {stats.newest:,}")
        if stats.filling_done and (shown is None or not shown.filling_done):
            say(f"the store is filled; it begins {describe_beginning(stats)}")
        if stats.lost > (0 if shown is None else shown.lost):
            say(f"NATS: {count(stats.lost, 'entry').replace('entrys', 'entries')} expired before they were read")
        if stats.resets > (0 if shown is None else shown.resets):
            say("NATS: has lost entries that were read; the store is filled again")
        shown = stats


def describe_beginning(stats: LogStats) -> str:
    """Return where the store begins."""
    when = "" if stats.store_from is None else f" ({stats.store_from:%Y-%m-%d %H:%M:%S} UTC)"
    return f"at {stats.first:,}{when}, after reading {stats.filled:,} earlier entries"
