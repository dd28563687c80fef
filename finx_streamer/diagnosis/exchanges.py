"""Checks of the exchanges that can feed an `ExchangeMarket`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, as_completed
from functools import partial
from typing import TYPE_CHECKING

from .limits import LIMIT, start
from .report import Check, Verdict

if TYPE_CHECKING:
    from ..server.exchanges.probe import Finding

#: Seconds. Later trades are worth a note.
_LATE = 2.0


def exchange_checks(
    pairs: Iterable[str], exchanges: Iterable[str] | None = None, base_urls: Mapping[str, str] | None = None
) -> Iterator[Check]:
    """Check exchanges, by default all, at the same time. Yield one check for each, as soon as it is done.

    Raises:
        ConfigurationError: A pair or an address is malformed, or an exchange isn't supported.
        ImportError: The extra `live` isn't installed.
    """
    # Imported late: most reports don't need the server.
    from ..server.exchanges.probe import checked, probe

    names, pairs, urls = checked(pairs, exchanges, base_urls)
    running: dict[Future[Finding], str] = {}
    for name in names:
        running[start(partial(asyncio.run, probe(name, pairs, urls.get(name), LIMIT)))] = name
    for future in as_completed(running):
        yield _check(running[future], future.result(), pairs)


def _check(name: str, found: Finding, pairs: tuple[str, ...]) -> Check:
    listed = [pair for pair in pairs if pair in (found.listed or ())]
    parts = []
    if found.listing_ms is not None:
        missing = [pair for pair in pairs if pair not in listed]
        parts.append(f"REST in {found.listing_ms:.0f} ms: lists {', '.join(listed) or 'none of the pairs'}")
        if listed and missing:
            parts.append(f"not {', '.join(missing)}")
    if found.open_ms is not None:
        parts.append(f"WebSocket in {found.open_ms:.0f} ms")
    if found.error is not None:
        step = "WebSocket: " if found.listing_ms is not None and not found.error.startswith("REST") else ""
        advice = "It may be blocked where you are, or by your network. --exchanges selects the others."
        return Check(name, Verdict.FAILED, ", ".join([*parts, f"{step}{found.error}"]), advice)
    if not listed:
        return Check(name, Verdict.NOTE, parts[0], "The other exchanges may list them.")
    if found.trade_ms is None or found.lag is None:
        return Check(name, Verdict.NOTE, f"{', '.join(parts)}, no trade within {LIMIT:g} s", "The pairs may be quiet.")
    text = f"{', '.join(parts)}, a trade after {found.trade_ms:.0f} ms, {found.lag:.2f} s late"
    if abs(found.lag) > _LATE:
        advice = "Either this machine's clock is off, or the network is slow."
        return Check(name, Verdict.NOTE, text, advice)
    return Check(name, Verdict.OK, text)
