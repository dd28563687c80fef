"""`--live`: real exchanges as the market of `serve` and `demo`."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from .. import ConfigurationError, StreamListener
from ..clock import monotonic
from .listening import ListenRun, View
from .terminal import LogLevel, count, say, signals_as_ctrl_c

if TYPE_CHECKING:
    from ..server import ExchangeMarket, ExchangeStats, LocalServer

#: Seconds.
_LONGEST_START = 8.0
_LOOK_EVERY, _REPORT_EVERY = 1.0, 60.0

LivePairsArgument = Annotated[
    list[str] | None, typer.Argument(help="The pairs of --live, --upstream or --from.", metavar="[PAIR...]")
]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Show the live trades of real exchanges. Needs a network, but no key.")
]
CheckedPairsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="The pair to ask for. Default: BTC:USDC. With --live, one or more.", metavar="[PAIR...]"),
]
CheckOption = Annotated[bool, typer.Option("--live", help="Check the exchanges of serve --live instead.")]
ExchangesOption = Annotated[
    str | None,
    typer.Option("--exchanges", help="The exchanges of --live, such as BINANCE,KRAKEN. Default: all.", metavar="NAMES"),
]
CoinsOption = Annotated[
    str | None,
    typer.Option(
        "--options", help="Coins whose options on Deribit are part of --live, such as BTC,ETH.", metavar="COINS"
    ),
]
ExchangeUrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exchange-url",
        help="Another address of an exchange of --live, such as OKX=http://127.0.0.1:9000/okx. Can be repeated.",
        metavar="NAME=URL",
    ),
]


def choose(
    live: bool,
    pairs: list[str] | None,
    exchanges: str | None,
    urls: list[str] | None,
    coins: str | None = None,
    **others: object,
) -> ExchangeMarket | None:
    """Return the market that the options ask for; None without `--live`. With it, none of the `others` may be given.

    Raises:
        ConfigurationError: The options contradict each other.
        ImportError: The extra `live` isn't installed.
    """
    if not live:
        given = {"pairs": pairs, "--exchanges": exchanges, "--exchange-url": urls, "--options": coins}
        for name, found in given.items():
            if found:
                raise ConfigurationError(f"{name} can only be used with --live; add it, as in --live BTC:USDT")
        return None
    for name, value in others.items():
        if value:
            raise ConfigurationError(f"--{name} can't be used with --live; remove one of them")
    if not pairs:
        raise ConfigurationError("--live needs pairs, as in --live BTC:USDT ETH:USDT")
    from ..server import ExchangeMarket
    from ..server.exchanges.market import EXCHANGES

    names = parse_names(exchanges)
    return ExchangeMarket(pairs, EXCHANGES if names is None else names, _split(coins or ""), parse_urls(urls))


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip().upper() for name in names.split(",") if name.strip())


def parse_names(exchanges: str | None) -> tuple[str, ...] | None:
    """Return the exchanges that `--exchanges` names; None if it isn't given."""
    return None if exchanges is None else _split(exchanges)


def parse_urls(urls: list[str] | None) -> dict[str, str]:
    """Return the addresses of exchanges that `--exchange-url` names.

    Raises:
        ConfigurationError: One isn't `NAME=URL`.
    """
    return dict(map(_parse_url, urls or ()))


def _parse_url(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not url:
        raise ConfigurationError("--exchange-url: expected NAME=URL, as in OKX=http://127.0.0.1:9000/okx")
    return name.upper(), url


def run_demo(market: ExchangeMarket, view: View, limit: int | None, duration: float | None, log_level: LogLevel) -> int:
    """Show the market's ticks, from a server in this process. Return the exit code: 1 if no exchange can be used."""
    from ..server import LocalServer

    if log_level is LogLevel.WARNING:
        # Lines of our own say the same.
        logging.getLogger("finx_streamer.server.exchanges").setLevel(logging.ERROR)
    pairs = sorted(market.pairs)
    with (
        contextlib.suppress(KeyboardInterrupt),
        signals_as_ctrl_c(),
        LocalServer(market, max_connections=100) as server,
    ):
        if not _wait_for_exchange(server):
            for name, stats in server.stats.exchanges.items():
                say(f"{name}: {stats.error or f'no answer within {_LONGEST_START:g} s'}")
            say("error: no exchange can be used")
            return 1
        listener = StreamListener(*pairs, parse_price=str, api_key="demo", endpoint=server.url)
        return ListenRun(view, limit, duration).run(listener)
    return 0


def _wait_for_exchange(server: LocalServer) -> bool:
    """Wait until an exchange sends, or none can. Returns whether one does."""

    def is_decided(exchanges: Iterable[ExchangeStats]) -> bool:
        found = list(exchanges)
        return any(each.connected for each in found) or all(each.error is not None for each in found)

    with contextlib.suppress(TimeoutError):
        server.wait_until(lambda stats: is_decided(stats.exchanges.values()), timeout=_LONGEST_START)
    return any(each.connected for each in server.stats.exchanges.values())


def exchanges_reported(server: LocalServer) -> AbstractContextManager[None]:
    """Print a line per exchange whenever it goes away or comes back, and every minute."""
    return reporting(_report, server, "finx-exchanges") if server.stats.exchanges else contextlib.nullcontext()


@contextlib.contextmanager
def reporting(
    report: Callable[[LocalServer, threading.Event], None], server: LocalServer, thread_name: str
) -> Iterator[None]:
    """Run `report` on a thread of its own. Set its event at the end."""
    done = threading.Event()
    thread = threading.Thread(target=report, args=(server, done), name=thread_name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _report(server: LocalServer, done: threading.Event) -> None:
    shown: dict[str, bool] = {}
    due = monotonic() + _REPORT_EVERY
    while not done.wait(_LOOK_EVERY):
        is_due = monotonic() >= due
        if is_due:
            due = monotonic() + _REPORT_EVERY
        for name, stats in server.stats.exchanges.items():
            is_known = stats.connected or stats.error is not None
            if is_known and (is_due or shown.get(name) is not stats.connected):
                shown[name] = stats.connected
                say(f"{name}: {describe(stats)}")


def describe(stats: ExchangeStats) -> str:
    """Return the counters of an exchange as one line."""
    state = "connected" if stats.connected else f"away: {stats.error}"
    lag = "" if stats.lag is None else f", lag {stats.lag:,.3f} s"
    return (
        f"{state}; {count(stats.trades, 'trade')}, {count(stats.reconnects, 'reconnect')}, "
        f"{count(stats.gaps, 'gap')} ({stats.unfilled:,} unfilled), {stats.filled:,} filled, {stats.lost:,} lost{lag}"
    )
