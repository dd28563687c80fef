"""The commands and their options.

Exit codes: 0 success (also Ctrl-C in an endless command, and a closed pipe), 1 fatal error, 2 wrong usage, 130 Ctrl-C
before the result is complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from .. import ConfigurationError, FunctionClient, Instrument, Option, Pair, StreamListener
from .. import demo as demo_market
from .._version import __version__
from ..config import checks as check
from . import live_market
from .connecting import (
    errors_as_exit_codes,
    function_client,
    key_for,
    metrics_exposed,
    new_listener,
    one_with_wire,
    without_password,
)
from .listening import ListenRun
from .options import (
    PRODUCTION,
    ArchiveArgument,
    DurationOption,
    EndpointOption,
    ExpiryOption,
    InsecureOption,
    KeepAliveOption,
    KeyFileOption,
    LimitOption,
    LineFormatName,
    LineFormatOption,
    LogLevelOption,
    MetricsPortOption,
    OneEndpointOption,
    PairArgument,
    PauseOption,
    PrefixOption,
    ProxyOption,
    ReceivedFromOption,
    ReceivedUntilOption,
    ReplayedArgument,
    ReplaySpeedOption,
    RetryOption,
    SinceOption,
    SymbolsArgument,
    TimeoutOption,
    ViewOption,
    WireName,
    WireOption,
)
from .output import Output
from .publish import publish
from .quantities import parse_run_time
from .serve import serve
from .terminal import LogLevel, show_log
from .views import LINE_FORMATS, new_view, view_format

#: What `demo` listens to: some of the simulated market's pairs.
DEMO_PAIRS = ("BTC:USDC", "ETH:USDC", "BTC:USDT", "SOL:USDC", "ETH:BTC")


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Plain text: no boxes around the help, and one style for all errors.
    rich_markup_mode=None,
    # Tracebacks with locals could show the API key.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Stream live crypto ticks from FinX, read tick history, or run a local server.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"finx-streamer {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def listen(
    symbols: SymbolsArgument,
    exchange: Annotated[
        list[str] | None,
        typer.Option(help="Show only ticks of this exchange. Can be repeated.", metavar="NAME"),
    ] = None,
    since: SinceOption = None,
    limit: LimitOption = None,
    duration: DurationOption = None,
    format: ViewOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file as ticks arrive, json unless --format says otherwise. An existing file is "
            "overwritten. A name ending in .gz is compressed. Default: standard output.",
            metavar="FILE",
        ),
    ] = None,
    endpoint: EndpointOption = PRODUCTION,
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    allow_insecure: InsecureOption = False,
    prefix: PrefixOption = None,
    wire: WireOption = WireName.URL,
    keep_alive: KeepAliveOption = None,
    expiry: ExpiryOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Show live ticks, or the values of options, futures and perpetuals.

    In a terminal you get a live table, in a pipe or file JSON Lines. Ctrl-C and the end of --duration print a summary.

    Exit codes: 0 success, Ctrl-C or a closed pipe; 1 fatal error; 2 wrong usage.

    Example: finx-streamer listen BTC:USDC ETH:USDC --format csv > ticks.csv
    """
    with errors_as_exit_codes():
        from .history import parse_since

        target = Output(output)
        view_name = view_format(format, output)
        # First: from then on, errors about symbols hide a misplaced key.
        key = key_for(endpoint, api_key_file)
        names, greeks = _symbols(symbols)
        if greeks and (exchange or since):
            raise ConfigurationError("--exchange and --since are only for pairs; remove them")
        connection = (endpoint, key, proxy, allow_insecure, prefix, wire, keep_alive)
        listener = new_listener(
            names, *connection, parse_price=str, exchanges=exchange or None, since=parse_since(since)
        )
        view = new_view(view_name, target, f"{', '.join(endpoint)} · Ctrl-C stops", greeks, expiry, names)
        with metrics_exposed(metrics_port):
            raise typer.Exit(ListenRun(view, limit, duration, "update" if greeks else "tick").run(listener))


@app.command()
def record(
    symbols: SymbolsArgument,
    to: Annotated[Path, typer.Option(help="The archive's directory. It's created if it doesn't exist.", metavar="DIR")],
    run_time: Annotated[
        str | None, typer.Option("--for", help="Stop after this time, such as 8h, 30m or 90s.", metavar="DURATION")
    ] = None,
    endpoint: EndpointOption = PRODUCTION,
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    allow_insecure: InsecureOption = False,
    prefix: PrefixOption = None,
    wire: WireOption = WireName.URL,
    keep_alive: KeepAliveOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Record every tick into an archive.

    A recording that was interrupted continues: what it missed is fetched. Ctrl-C, SIGTERM and the end of --for finish
    what waits to be written.

    Exit codes: 0 success or Ctrl-C; 1 fatal error; 2 wrong usage, or another process records into DIR.

    Example: finx-streamer record BTC:USDC ETH:USDC --to ticks --for 8h
    """
    with errors_as_exit_codes():
        from .recording import RecordRun

        # First: from then on, errors about symbols hide a misplaced key.
        key = key_for(endpoint, api_key_file)
        connection = (endpoint, key, proxy, allow_insecure, prefix, wire, keep_alive)
        listener = new_listener(symbols, *connection, record=to)
        with metrics_exposed(metrics_port):
            raise typer.Exit(RecordRun(to, parse_run_time(run_time)).run(listener))


app.command()(publish)


@app.command()
def history(
    pair: PairArgument,
    start: Annotated[
        str,
        typer.Option(
            help="Start time, such as 2022-07-02, 2022-07-02T15:30:55.817Z, yesterday, today, or 1h for an hour ago. "
            "UTC, unless it has an offset.",
            metavar="TIME",
        ),
    ],
    end: Annotated[
        str | None, typer.Option(help="End time, not included; as for --start. Default: now.", metavar="TIME")
    ] = None,
    exchange: Annotated[str | None, typer.Option(help="Only ticks of this exchange.", metavar="NAME")] = None,
    format: LineFormatOption = LineFormatName.JSON,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file, which appears when it is complete; or to a pipe. A name ending in .gz is "
            "compressed. Default: standard output.",
            metavar="FILE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run with the same options from its FILE.part.")
    ] = False,
    archive: Annotated[
        Path | None, typer.Option("--from", help="Read this archive instead of FinX's history.", metavar="DIR")
    ] = None,
    endpoint: EndpointOption = PRODUCTION,
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    allow_insecure: InsecureOption = False,
    timeout: TimeoutOption = 10.0,
    retry: RetryOption = False,
) -> None:
    """Write past ticks, sorted by time.

    A progress bar appears on standard error, if that is a terminal and the ticks go elsewhere.

    Exit codes: 0 success or a closed pipe; 1 fatal error; 2 wrong usage; 130 Ctrl-C. Codes 1 and 130 leave no FILE,
    but FILE.part with the ticks so far.

    Example: finx-streamer history BTC:USDC --start 2022-07-02 > ticks.jsonl
    """
    with errors_as_exit_codes():
        from .history import write_history

        if archive is not None:
            from .archives import ArchivedHistory

            stored = ArchivedHistory(archive)
            raise typer.Exit(write_history(stored, pair, start, end, exchange, LINE_FORMATS[format], output, resume))
        with function_client(endpoint, api_key_file, proxy, allow_insecure, timeout, retry) as client:
            raise typer.Exit(write_history(client, pair, start, end, exchange, LINE_FORMATS[format], output, resume))


@app.command()
def verify(directory: ArchiveArgument) -> None:
    """Check every file of an archive, and show what is damaged or missing.

    Exit codes: 0 everything is complete; 1 something is damaged or missing; 2 not an archive.
    """
    with errors_as_exit_codes():
        from .archives import verify as verify_archive

        raise typer.Exit(verify_archive(directory))


@app.command()
def replay(
    directory: ArchiveArgument,
    symbols: ReplayedArgument = None,
    start: ReceivedFromOption = None,
    end: ReceivedUntilOption = None,
    speed: ReplaySpeedOption = None,
    max_pause: PauseOption = None,
    limit: LimitOption = None,
    format: ViewOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Show what was recorded, as listen showed it: ticks, gaps and errors, in the same order.

    Exit codes: 0 success, Ctrl-C or a closed pipe; 1 the archive can't be read; 2 wrong usage.

    Example: finx-streamer replay ticks BTC:USDC --start 2h --speed 10
    """
    with errors_as_exit_codes():
        from .replaying import ReplayRun, open_replay

        names, greeks = _symbols(symbols or [])
        listener = open_replay(directory, names, start, end, speed, max_pause)
        view = new_view(view_format(format), Output(None), f"{directory} · Ctrl-C stops", greeks, None, names)
        with metrics_exposed(metrics_port):
            raise typer.Exit(ReplayRun(view, limit, greeks).run(listener))


@app.command()
def snap(
    pair: PairArgument,
    time: Annotated[
        str | None, typer.Argument(help="A time, as for history --start. Default: now.", metavar="TIME")
    ] = None,
    format: LineFormatOption = LineFormatName.JSON,
    endpoint: EndpointOption = PRODUCTION,
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    allow_insecure: InsecureOption = False,
    timeout: TimeoutOption = 10.0,
    retry: RetryOption = False,
) -> None:
    """Write the last tick at or before a time.

    Exit codes: 0 success; 1 fatal error, or no such tick; 2 wrong usage; 130 Ctrl-C.

    Example: finx-streamer snap BTC:USDC 2022-07-02T15:30
    """
    with errors_as_exit_codes():
        from .history import write_snap

        with function_client(endpoint, api_key_file, proxy, allow_insecure, timeout, retry) as client:
            raise typer.Exit(write_snap(client, pair, time, LINE_FORMATS[format]))


@app.command()
def demo(
    pairs: live_market.LivePairsArgument = None,
    live: live_market.LiveOption = False,
    exchanges: live_market.ExchangesOption = None,
    exchange_url: live_market.ExchangeUrlOption = None,
    limit: LimitOption = None,
    duration: DurationOption = None,
    format: ViewOption = None,
    options: Annotated[bool, typer.Option("--options", help="Show the options on BTC of the next month.")] = False,
    expiry: ExpiryOption = None,
    log_level: LogLevelOption = LogLevel.WARNING,
) -> None:
    """Show live ticks of a simulated market, or with --live those of real exchanges.

    You need no API key, and without --live no network. Ctrl-C stops.

    Exit codes: 0 success or Ctrl-C; 1 fatal error, or no exchange can be used; 2 wrong usage.

    Example: finx-streamer demo --live BTC:USDT
    """
    with errors_as_exit_codes():
        show_log(log_level)
        market = live_market.choose(live, pairs, exchanges, exchange_url, options=options, expiry=expiry)
        if market is not None:
            view = new_view(
                view_format(format), Output(None), "live exchanges · Ctrl-C stops", False, None, market.pairs
            )
            raise typer.Exit(live_market.run_demo(market, view, limit, duration, log_level))
        symbols = [str(_nearest_month("BTC"))] if options else DEMO_PAIRS
        view = new_view(view_format(format), Output(None), "simulated market · Ctrl-C stops", options, expiry, symbols)
        listener = StreamListener(*symbols, parse_price=str, endpoint="demo")
        raise typer.Exit(ListenRun(view, limit, duration, "update" if options else "tick").run(listener))


@app.command()
def doctor(
    pairs: live_market.CheckedPairsArgument = None,
    endpoint: OneEndpointOption = "production",
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    allow_insecure: InsecureOption = False,
    wire: WireOption = WireName.URL,
    live: live_market.CheckOption = False,
    exchanges: live_market.ExchangesOption = None,
    exchange_url: live_market.ExchangeUrlOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Find out why there are no ticks.

    Checks this machine, the way to the server, and the server; with --live, the exchanges. No step takes over 5 s.
    Exit codes: 0 all is well; 1 something is wrong; 2 wrong usage.

    Example: finx-streamer doctor --endpoint demo
    """
    with errors_as_exit_codes():
        from .doctor import examine

        target, proxy = one_with_wire(endpoint, None, wire), without_password(proxy)
        raise typer.Exit(
            examine(pairs, live, exchanges, exchange_url, target, api_key_file, proxy, allow_insecure, as_json)
        )


app.command()(serve)


def _symbols(given: Iterable[str]) -> tuple[list[str], bool]:
    """Return the symbols, and whether they are contracts. One table or file has either these or pairs."""
    symbols = [check.symbol(text) for text in given]
    pairs = [isinstance(symbol, Pair) for symbol in symbols]
    if any(pairs) and not all(pairs):
        raise ConfigurationError("pairs and options can't be shown together; run the command once for each")
    return list(map(str, symbols)), bool(symbols) and not any(pairs)


def _nearest_month(underlying: str) -> Option:
    """Return the next month of the demo in which options expire."""
    with FunctionClient(endpoint=demo_market.NAME) as client:
        contracts = map(Instrument.parse, client.list_contracts())
        months = {Option.of(each) for each in contracts if each.underlying == underlying and each.strike is not None}
    return min(months, key=lambda month: (month.year, month.month))
