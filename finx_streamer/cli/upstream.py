"""`--upstream`: another FinX server as the market of `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import ConfigurationError, Endpoint
from .. import demo as demo_market
from .connecting import key_for, without_password
from .history import parse_since
from .options import WireName

if TYPE_CHECKING:
    from ..relay import RelayMarket

UpstreamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream",
        help="Relay this server's pairs: production, beta or a URL. Needs its API key. Can be repeated, as --endpoint.",
        metavar="ENDPOINT",
    ),
]
UpstreamWireOption = Annotated[
    WireName | None,
    typer.Option("--wire", help="How to ask --upstream for streams. Default: subscribe, all on one connection."),
]


def choose_relay(
    upstream: list[str] | None,
    symbols: list[str] | None,
    wire: WireName | None,
    key_file: Path | None,
    proxy: str | None,
    since: str | None,
    allow_insecure: bool,
    **others: object,
) -> RelayMarket | None:
    """Return the market that the options ask for; None without `--upstream`. With it, no other market may be chosen.

    Raises:
        ConfigurationError: The options contradict each other, or there is no API key.
    """
    if not upstream:
        given: dict[str, object] = {"wire": wire, "api-key-file": key_file, "proxy": proxy, "since": since}
        for name, value in given.items():
            if value is not None:
                where = "--upstream or --from" if name == "since" else "--upstream"
                raise ConfigurationError(f"--{name} can only be used with {where}; add it, or remove --{name}")
        return None
    for name, value in others.items():
        if value:
            raise ConfigurationError(f"--{name} can't be used with --upstream; remove one of them")
    if not symbols:
        raise ConfigurationError("--upstream needs pairs, as in --upstream production BTC:USDC ETH:USDC")
    from ..relay import RelayMarket

    # First: from then on, errors about other options hide a misplaced key.
    key = key_for(upstream, key_file)
    try:
        servers = [_with_wire(each, wire or WireName.SUBSCRIBE) for each in upstream]
        return RelayMarket(
            *symbols,
            endpoint=servers[0] if len(servers) == 1 else servers,
            api_key=key,
            since=parse_since(since),
            proxy=without_password(proxy),
            allow_insecure=allow_insecure,
        )
    except ConfigurationError as error:
        raise ConfigurationError(error.message.replace("endpoint: ", "--upstream: ", 1)) from None


def _with_wire(endpoint: str, wire: WireName) -> str | Endpoint:
    return endpoint if endpoint == demo_market.NAME else Endpoint(Endpoint.of(endpoint).url, wire=wire.value)
