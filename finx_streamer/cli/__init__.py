"""The command line: `finx-streamer listen`, `history`, `snap`, `serve`, `demo`. Needs the extra `[cli]`.

Exit codes: 0 done (a limit or duration reached, Ctrl-C, a closed pipe), 1 a fatal error, 2 bad usage; 130 Ctrl-C before
what was asked for is complete.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .. import ConfigurationError, Endpoint, FinxStreamerError, FunctionClient, StreamListener
from .._version import __version__
from ..config.symbols import Pair
from .follow import Following, View, api_key, is_terminal
from .text import brief, say

#: What `demo` plays and listens to.
DEMO_PAIRS = ("BTC:USDC", "ETH:USDC", "SOL:USDC", "ADA:USDC", "ETH:BTC")


class Format(enum.StrEnum):
    """How ticks are shown."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class LineFormat(enum.StrEnum):
    """How past ticks are written."""

    JSON = "json"
    CSV = "csv"


# Locals are never shown: one of them may be the API key.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Live crypto ticks from FinX."
)

Pairs = Annotated[list[str], typer.Argument(help="Such as BTC:USDC.", metavar="PAIR...")]
Formats = Annotated[Format | None, typer.Option("--format", help="The default: table in a terminal, else json.")]
Limit = Annotated[int | None, typer.Option(min=1, help="End after this many ticks.")]
Duration = Annotated[float | None, typer.Option(min=0, help="End after this many seconds.")]

Endpoints = Annotated[str, typer.Option("--endpoint", help="production, beta, or a URL.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="Holds the API key; read at each connection attempt.", metavar="FILE"),
]


ProxyUrl = Annotated[
    str | None,
    typer.Option(
        "--proxy",
        help="http://, socks5:// or socks5h://host:port; '' for none. Else what the environment says (https_proxy, …).",
        metavar="URL",
    ),
]


Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds in which an answer has to begin, or to go on.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"finx-streamer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def listen(
    pairs: Pairs,
    exchange: Annotated[list[str] | None, typer.Option(help="Only this exchange; may be repeated.")] = None,
    limit: Limit = None,
    duration: Duration = None,
    format: Formats = None,
    endpoint: Annotated[str, typer.Option(help="production, beta, or a URL.")] = "production",
    api_key_file: Annotated[
        Path | None, typer.Option(help="Holds the API key; read at each connection attempt.", metavar="FILE")
    ] = None,
    proxy: ProxyUrl = None,
) -> None:
    """Show live ticks: a table in a terminal, JSON Lines in a pipe.

    The API key is read from the environment variable FINX_API_KEY, or from a file. Ctrl-C ends with a summary.

    In CSV, an exchange that a spreadsheet would take for a formula gets an apostrophe in front.
    A semicolon in its name is written as \\x3b.

    Exit codes: 0 done, Ctrl-C and a closed pipe included; 1 a fatal error; 2 bad usage.
    """
    with _exit_codes():
        view = _view(format, f"{endpoint}, Ctrl-C ends")
        listener = _listener(pairs, endpoint, api_key(api_key_file), exchange, _checked(proxy))
        raise typer.Exit(Following(view, limit, duration).run(listener))


@app.command()
def history(
    pair: Annotated[str, typer.Argument(help="Such as BTC:USDC.")],
    start: Annotated[str, typer.Option(help="From this time on: 2022-07-02, or 2022-07-02T15:30:55.817Z.")],
    end: Annotated[str | None, typer.Option(help="Up to this time, itself not included; else now.")] = None,
    exchange: Annotated[str | None, typer.Option(help="Only this exchange.")] = None,
    format: Annotated[LineFormat, typer.Option("--format", help="How ticks are written.")] = LineFormat.JSON,
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file, which appears when it is complete; or to a pipe.", metavar="FILE"),
    ] = None,
    endpoint: Endpoints = "production",
    api_key_file: KeyFile = None,
    proxy: ProxyUrl = None,
    timeout: Timeout = 10.0,
) -> None:
    """Write a pair's past ticks, sorted by time. Times without an offset are in UTC.

    A bar on standard error shows how far it has come, where that is a terminal and the ticks go elsewhere.

    Exit codes: 0 done, a closed pipe included; 1 a fatal error; 2 bad usage; 130 Ctrl-C, with no file left.
    """
    with _exit_codes():
        from .history import fetch

        with _client(endpoint, api_key_file, _checked(proxy), timeout) as client:
            raise typer.Exit(fetch(client, pair, start, end, exchange, format.value, output))


@app.command()
def snap(
    pair: Annotated[str, typer.Argument(help="Such as BTC:USDC.")],
    at: Annotated[str | None, typer.Argument(help="A time such as 2022-07-02T15:30:55.817Z; else now.")] = None,
    format: Annotated[LineFormat, typer.Option("--format", help="How the tick is written.")] = LineFormat.JSON,
    endpoint: Endpoints = "production",
    api_key_file: KeyFile = None,
    proxy: ProxyUrl = None,
    timeout: Timeout = 10.0,
) -> None:
    """Write the last tick of a pair at or before a time.

    Exit codes: 0 done; 1 a fatal error, no such tick included; 2 bad usage; 130 Ctrl-C.
    """
    with _exit_codes():
        from .history import show

        with _client(endpoint, api_key_file, _checked(proxy), timeout) as client:
            raise typer.Exit(show(client, pair, at, format.value))


@app.command()
def demo(limit: Limit = None, duration: Duration = None, format: Formats = None) -> None:
    """Show live ticks of a simulated market. No API key and no network are needed."""
    with _exit_codes():
        from ..server import LocalServer, SimulatedMarket

        view = _view(format, "a simulated market, Ctrl-C ends")
        with LocalServer(SimulatedMarket(DEMO_PAIRS), keys={"demo"}) as server:
            listener = _listener(DEMO_PAIRS, server.url, "demo", None)
            code = Following(view, limit, duration).run(listener)
        raise typer.Exit(code)


@app.command()
def serve(
    tape: Annotated[Path | None, typer.Option(help="Play this recording: a tick a line, .jsonl or .jsonl.gz.")] = None,
    speed: Annotated[str | None, typer.Option(help="How fast the tape plays: 1, 10, … or max.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Play the tape again and again.")] = False,
    rate: Annotated[float | None, typer.Option(help="Ticks a second of the simulated market.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 is any free port.")] = 8765,
    keys_file: Annotated[
        Path | None, typer.Option(help="The API keys to accept, one a line; else it is demo.", metavar="FILE")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Keep all ticks in this file, for tick history; else in memory.", metavar="FILE"),
    ] = None,
    imported: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Store this recording without playing it; may be repeated.", metavar="TAPE"),
    ] = None,
) -> None:
    """Run a local server that plays a simulated market, or a recorded tape. Ctrl-C ends it."""
    with _exit_codes():
        from ..server import LocalServer
        from .serving import keys, source, until_interrupted

        played = source(tape, speed, loop, rate)
        server = LocalServer(played, keys=keys(keys_file), host=host, port=port, store=store)
        until_interrupted(server, imported or [], sorted(played.pairs), keys_file)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors of this package as one line and an exit code."""
    try:
        yield
    except ConfigurationError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from None
    except FinxStreamerError as error:
        say(brief(f"error: {error}"))
        raise typer.Exit(1) from None
    except (ImportError, OSError) as error:
        say(f"error: {error}")
        raise typer.Exit(2 if isinstance(error, ImportError) else 1) from None


def _listener(
    pairs: list[str] | tuple[str, ...],
    endpoint: str,
    key: str | Callable[[], str],
    exchanges: list[str] | None,
    proxy: str | None = None,
) -> StreamListener:
    # Options have no ticks, so a listener would take them and nothing would ever be shown.
    symbols = [str(Pair.parse(pair)) for pair in pairs]
    return StreamListener(
        *symbols,
        api_key=key,
        endpoint=Endpoint.of(endpoint),
        exchanges=exchanges or None,
        parse_price=str,
        proxy=proxy,
    )


def _client(endpoint: str, key_file: Path | None, proxy: str | None, timeout: float) -> FunctionClient:
    where = Endpoint.of(endpoint)
    return FunctionClient(api_key(key_file), where, parse_price=str, proxy=proxy, timeout=timeout)


def _checked(proxy: str | None) -> str | None:
    """Refuse a password among the arguments, where others on the machine can see it."""
    if proxy and "@" in proxy:
        raise ConfigurationError(
            "--proxy: a user and password are not given in an argument, which others on this machine can see; "
            "set the environment variable https_proxy instead"
        )
    return proxy


def _view(format: Format | None, title: str) -> View:
    if sys.stdout is None:
        raise ConfigurationError("standard output is closed")
    if format is None:
        format = Format.TABLE if is_terminal() else Format.JSON
    if format is Format.TABLE:
        if not is_terminal():
            raise ConfigurationError("--format table needs a terminal; use json or csv")
        from .table import LiveTable

        return LiveTable(title)
    from .lines import CSV_HEADER, Lines, csv_line, json_line

    stdout = sys.stdout.fileno()
    return Lines(json_line, stdout) if format is Format.JSON else Lines(csv_line, stdout, CSV_HEADER)
