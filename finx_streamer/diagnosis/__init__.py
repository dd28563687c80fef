"""`doctor`: finds out why there are no ticks, step by step."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ..config.endpoint import Endpoint
from ..config.redaction import hides_arguments
from ..config.symbols import Pair

if TYPE_CHECKING:
    from .report import Report


@hides_arguments
def doctor(
    pair: str | Pair = "BTC:USDC",
    endpoint: str | Endpoint = "production",
    *,
    api_key: str | Callable[[], str | None] | None = None,
    proxy: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    allow_insecure: bool = False,
    live: Iterable[str] | None = None,
    exchanges: Iterable[str] | None = None,
    base_urls: Mapping[str, str] | None = None,
) -> Report:
    """Check this machine, the way to the server, and the server::

        import finx_streamer

        print(finx_streamer.doctor(endpoint="demo"))

    This takes a few seconds. No step waits longer than 5 s. With `live=["BTC:USDT"]`, the exchanges of an
    `ExchangeMarket` are checked instead, all at the same time.

    Args:
        pair: The pair to ask for.
        endpoint: "production", "beta", "demo", a base URL or an `Endpoint`.
        api_key: None reads FINX_API_KEY. The report says where the key was found, and never shows it.
        proxy: None reads the proxy variables of the environment.
        ssl_context: TLS settings. None trusts the same CAs as a `StreamListener` without one.
        allow_insecure: Permit `ws://` to other machines.
        live: Check the exchanges with these pairs, and nothing else. Needs the extra `live`.
        exchanges: With `live`, the names of the exchanges to check. None checks all.
        base_urls: Other addresses of exchanges, as `ExchangeMarket` takes them.

    Returns:
        The report: print it, or use its `ok`, `checks` and `to_json()`.

    Raises:
        ConfigurationError: An argument is wrong.
        ImportError: `live` needs a package that isn't installed.
    """
    # Imported late: most programs never call this.
    if live is not None:
        from .exchanges import exchange_checks
        from .report import Report

        return Report(tuple(exchange_checks(live, exchanges, base_urls)))
    from .checkup import Doctor

    return Doctor(pair, endpoint, api_key, proxy, ssl_context, allow_insecure).report()
