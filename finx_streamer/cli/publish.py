"""The command `publish`."""

from __future__ import annotations

import typer

from .connecting import errors_as_exit_codes, key_for, metrics_exposed, new_listener
from .options import (
    PRODUCTION,
    EndpointOption,
    InsecureOption,
    KeepAliveOption,
    KeyFileOption,
    MetricsPortOption,
    NatsStreamOption,
    PrefixOption,
    ProxyOption,
    PublishToOption,
    ReplicasOption,
    StreamAgeOption,
    StreamSizeOption,
    SymbolsArgument,
    WireName,
    WireOption,
)


def publish(
    symbols: SymbolsArgument,
    to: PublishToOption,
    endpoint: EndpointOption = PRODUCTION,
    stream: NatsStreamOption = "FINX",
    replicas: ReplicasOption = None,
    max_age: StreamAgeOption = None,
    max_bytes: StreamSizeOption = None,
    api_key_file: KeyFileOption = None,
    proxy: ProxyOption = None,
    allow_insecure: InsecureOption = False,
    prefix: PrefixOption = None,
    wire: WireOption = WireName.URL,
    keep_alive: KeepAliveOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Publish every tick to NATS JetStream, once.

    Any number of publishers may publish the same symbols. One that starts again goes on where the log ends. Users,
    passwords and other credentials come from the environment: NATS_USER and NATS_PASSWORD, NATS_NKEY or NATS_CREDS;
    for TLS: NATS_CA, NATS_CERT and NATS_KEY. Ctrl-C and SIGTERM send what waits.

    Exit codes: 0 success or Ctrl-C; 1 fatal error; 2 wrong usage, or a stream that can't be used.

    Example: finx-streamer publish BTC:USDC ETH:USDC --to nats://10.0.0.1,nats://10.0.0.2
    """
    with errors_as_exit_codes():
        from .publishing import PublishRun, open_publisher

        # First: from then on, errors about symbols hide a misplaced key.
        key = key_for(endpoint, api_key_file)
        connection = (endpoint, key, proxy, allow_insecure, prefix, wire, keep_alive)
        listener = new_listener(symbols, *connection, parse_price=str, keep=0)
        publishing = open_publisher(to, stream, replicas, max_age, max_bytes)
        with metrics_exposed(metrics_port):
            raise typer.Exit(PublishRun(publishing).run(listener))
