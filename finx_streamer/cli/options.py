"""The arguments and options of the commands."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from .terminal import LogLevel


class LineFormatName(enum.StrEnum):
    """The formats of past ticks."""

    JSON = "json"
    CSV = "csv"
    LINE = "line"


class WireName(enum.StrEnum):
    """How a server is asked for streams. See `Endpoint`."""

    URL = "url"
    SUBSCRIBE = "subscribe"


class ViewName(enum.StrEnum):
    """The formats of live ticks."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    LINE = "line"


SymbolsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Pairs, such as BTC:USDC. Or option months such as BTCN2202207, and contracts such as BTC-PERPETUAL.",
        metavar="SYMBOL...",
    ),
]
PairArgument = Annotated[str, typer.Argument(help="The pair, such as BTC:USDC.", metavar="PAIR")]
ArchiveArgument = Annotated[Path, typer.Argument(help="An archive.", metavar="DIR", show_default=False)]
ReplayedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Only these pairs; or only these months or contracts. Default: all pairs.", metavar="SYMBOL..."
    ),
]
ReceivedFromOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="Begin with what was received then: such as 2026-11-01, 2026-11-01T15:30, yesterday, or 1h for an hour "
        "ago. UTC, unless it has an offset.",
        metavar="TIME",
    ),
]
ReceivedUntilOption = Annotated[
    str | None, typer.Option("--end", help="End before what was received then; as for --start.", metavar="TIME")
]
ReplaySpeedOption = Annotated[
    float | None,
    typer.Option("--speed", help="1 is real time, 10 ten times as fast. Default: no pauses.", metavar="FACTOR"),
]
PauseOption = Annotated[
    float | None, typer.Option("--max-pause", help="The longest pause with --speed.", metavar="SECONDS")
]
ViewOption = Annotated[
    ViewName | None,
    typer.Option("--format", help="line is for people. Default: table in a terminal, json in a pipe or file."),
]
LineFormatOption = Annotated[LineFormatName, typer.Option("--format", help="The output format. line is for people.")]
WireOption = Annotated[
    WireName,
    typer.Option(help="url: a connection for each symbol. subscribe: all symbols on one, as FinX documented later."),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--prefix", help="The first part of a stream's path: streaming, the default, or streamer.", metavar="NAME"
    ),
]
KeepAliveOption = Annotated[
    float | None,
    typer.Option(
        "--keep-alive",
        help="Send keepAlive messages at this interval. FinX may close a stream after 300 s without one; use 270. "
        "Default: 270 with --wire subscribe, otherwise none.",
        metavar="SECONDS",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        help="Deliver history from this time on first: such as 2026-11-01, yesterday, or 1h for an hour ago. UTC, "
        "unless it has an offset.",
        metavar="TIME",
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Stop after this many ticks or updates.", metavar="N")]
DurationOption = Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.", metavar="SECONDS")]
EndpointOption = Annotated[
    list[str],
    typer.Option(
        "--endpoint",
        help="production, beta, demo or a URL. Can be repeated: servers of the same service, tried in turn.",
        metavar="ENDPOINT",
    ),
]
#: The default of `--endpoint`.
PRODUCTION = ["production"]
OneEndpointOption = Annotated[
    str, typer.Option("--endpoint", help="production, beta, demo or a URL.", metavar="ENDPOINT")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="Read the API key from this file, at each connection attempt. Default: the variable FINX_API_KEY.",
        metavar="FILE",
    ),
]
ProxyOption = Annotated[
    str | None,
    typer.Option(
        "--proxy",
        help="Connect through http://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT; '' connects directly. "
        "Default: the proxy of the environment, such as https_proxy.",
        metavar="URL",
    ),
]
ExpiryOption = Annotated[
    str | None,
    typer.Option(
        help="The expiry to show in a table of options, such as 26AUG22. Default: the nearest.", metavar="DAY"
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--allow-insecure", help="Allow ws:// to other machines. Everyone on the way can then read your API key."
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65_535,
        help="Serve metrics for Prometheus on this port of 127.0.0.1. 0 picks a free one. Needs the extra metrics.",
        metavar="PORT",
    ),
]
LogLevelOption = Annotated[LogLevel, typer.Option("--log-level", help="The least important log records to print.")]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, help="Longest wait for one answer, reconnects included.", metavar="SECONDS")
]
RetryOption = Annotated[
    bool,
    typer.Option(
        "--retry", help="If the server can't be reached, keep trying for --timeout instead of failing at once."
    ),
]
#: Options of `serve`.
TlsCertOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        help="Serve wss:// with the certificate chain in this PEM file. SIGHUP reloads it.",
        metavar="FILE",
    ),
]
TlsKeyOption = Annotated[
    Path | None, typer.Option("--tls-key", help="The certificate's private key, in a PEM file.", metavar="FILE")
]
ExposeOption = Annotated[
    bool,
    typer.Option(
        "--allow-insecure",
        help="Allow ws:// to and from other machines. Everyone on the way can then read the API keys.",
    ),
]
KeysFileOption = Annotated[
    Path | None,
    typer.Option(
        "--keys-file",
        help="Accept the API keys in this file, one per line. SIGHUP reloads it. Default: the key demo.",
        metavar="FILE",
    ),
]
ConnectionsOption = Annotated[
    int, typer.Option("--max-connections", min=1, help="How many connections may be open.", metavar="N")
]
KeyConnectionsOption = Annotated[
    int, typer.Option("--max-connections-per-key", min=1, help="The same for each API key.", metavar="N")
]
AddressConnectionsOption = Annotated[
    int,
    typer.Option(
        "--max-connections-per-address",
        min=1,
        help="The same for each client's address, or /64 network of IPv6.",
        metavar="N",
    ),
]
RequestLogOption = Annotated[
    str | None,
    typer.Option(
        "--request-log",
        help="Append a line of JSON for each handshake, page and ended connection to this file; - is standard output. "
        "SIGHUP reopens it.",
        metavar="FILE",
    ),
]
StoreAgeOption = Annotated[
    str | None,
    typer.Option("--store-age", help="Remove ticks that were stored longer ago, such as 7d.", metavar="DURATION"),
]
StoreSizeOption = Annotated[
    str | None,
    typer.Option("--store-size", help="Remove the oldest ticks beyond this size, such as 2GB.", metavar="SIZE"),
]
#: Options of `publish` and `serve --to`.
PublishToOption = Annotated[
    str,
    typer.Option(
        "--to",
        help="A NATS server with JetStream, such as nats://10.0.0.1; several of a cluster separated by commas.",
        metavar="URL",
    ),
]
AlsoPublishToOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        help="Also publish the ticks of --live to this NATS server with JetStream; several of a cluster separated by "
        "commas.",
        metavar="URL",
    ),
]
NatsStreamOption = Annotated[
    str, typer.Option("--stream", help="The JetStream stream. It's created if it doesn't exist.", metavar="NAME")
]
ReplicasOption = Annotated[
    int | None,
    typer.Option("--replicas", min=1, help="On how many servers a new stream is kept. Default: 1.", metavar="N"),
]
StreamAgeOption = Annotated[
    str | None,
    typer.Option("--max-age", help="How long a new stream keeps ticks, such as 7d. Default: 1d.", metavar="DURATION"),
]
StreamSizeOption = Annotated[
    str | None,
    typer.Option("--max-bytes", help="How much a new stream keeps, such as 20GB. Default: no limit.", metavar="SIZE"),
]
