"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import live_market
from .connecting import errors_as_exit_codes, metrics_exposed
from .gateway import FilledSinceOption, FromOption, choose_gateway
from .options import (
    AddressConnectionsOption,
    AlsoPublishToOption,
    ConnectionsOption,
    ExposeOption,
    KeyConnectionsOption,
    KeyFileOption,
    KeysFileOption,
    LogLevelOption,
    MetricsPortOption,
    NatsStreamOption,
    ProxyOption,
    RequestLogOption,
    StoreAgeOption,
    StoreSizeOption,
    TlsCertOption,
    TlsKeyOption,
)
from .quantities import parse_age, parse_size
from .terminal import LogLevel, show_log
from .tls_files import load_tls
from .upstream import UpstreamOption, UpstreamWireOption, choose_relay


def serve(
    pairs: live_market.LivePairsArgument = None,
    live: live_market.LiveOption = False,
    exchanges: live_market.ExchangesOption = None,
    coins: live_market.CoinsOption = None,
    exchange_url: live_market.ExchangeUrlOption = None,
    source_url: FromOption = None,
    upstream: UpstreamOption = None,
    wire: UpstreamWireOption = None,
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    since: FilledSinceOption = None,
    tape: Annotated[
        Path | None,
        typer.Option(help="Play this recording: .jsonl or .jsonl.gz, one tick per line.", metavar="FILE"),
    ] = None,
    speed: Annotated[
        str | None, typer.Option(help="How fast to play the tape: 1 is real time, max is unlimited.", metavar="FACTOR")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Repeat the tape.")] = False,
    rate: Annotated[float | None, typer.Option(help="Ticks per second of the simulated market.", metavar="N")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port to listen on. 0 picks a free one.", metavar="PORT")
    ] = 8765,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    allow_insecure: ExposeOption = False,
    keys_file: KeysFileOption = None,
    max_connections: ConnectionsOption = 4_096,
    max_connections_per_key: KeyConnectionsOption = 2_048,
    max_connections_per_address: AddressConnectionsOption = 2_048,
    request_log: RequestLogOption = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep tick history in this file. Default: in memory.", metavar="FILE")
    ] = None,
    store_age: StoreAgeOption = None,
    store_size: StoreSizeOption = None,
    imported: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Add this recording to tick history. Can be repeated.", metavar="FILE"),
    ] = None,
    to: AlsoPublishToOption = None,
    stream: NatsStreamOption = "FINX",
    metrics_port: MetricsPortOption = None,
    log_level: LogLevelOption = LogLevel.WARNING,
) -> None:
    """Run a local FinX server.

    It plays a simulated market, a recorded tape, the live trades of real exchanges, what another server sends, or
    what publishers sent to NATS, until you press Ctrl-C. SIGHUP reloads keys and certificates.

    Exit codes: 0 Ctrl-C; 1 fatal error, such as a port in use, or a market that has failed; 2 wrong usage.

    Example: finx-streamer serve --tape ticks.jsonl --speed 10
    """
    with errors_as_exit_codes():
        from ..server import LocalServer
        from .serving import Reloading, also_published, check_exposure, choose_source, serve_until_ctrl_c

        show_log(log_level)
        others = {"live": live, "tape": tape, "speed": speed, "loop": loop, "rate": rate}
        of_live = {"exchanges": exchanges, "exchange-url": exchange_url, "options": coins}
        market = choose_gateway(source_url, stream, since, pairs, upstream=upstream, to=to, **others, **of_live)
        relay = choose_relay(
            upstream, pairs, wire, api_key_file, proxy, None if market else since, allow_insecure, **others, **of_live
        )
        del others["live"]
        source = (
            market
            or relay
            or live_market.choose(live, pairs, exchanges, exchange_url, coins, **others)
            or choose_source(tape, speed, loop, rate)
        )
        files = Reloading(keys_file, load_tls(tls_cert, tls_key), request_log)
        check_exposure(host, files, allow_insecure)
        with also_published(source, to, stream) as played, metrics_exposed(metrics_port):
            server = LocalServer(
                played,
                keys=files.keys,
                host=host,
                port=port,
                ssl_context=files.ssl_context,
                max_connections=max_connections,
                max_connections_per_key=max_connections_per_key,
                max_connections_per_address=max_connections_per_address,
                request_log=request_log,
                store=store,
                store_age=parse_age("--store-age", store_age),
                store_bytes=parse_size("--store-size", store_size),
            )
            serve_until_ctrl_c(server, imported or [], source, files)
