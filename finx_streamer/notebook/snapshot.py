"""A listener's current state as static HTML: no scripts, no requests, all text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..delivery.frontend import ListenerView
from ..delivery.recent import Recent
from ..delivery.stats import ListenerStats, StreamStats, reason
from ..values import Greeks, State
from .chains import CALLS, PUTS, Chains, complete, is_option
from .text import digits_of_pairs, escaped, price_text

#: The highest number of streams shown. For the rest, only their number.
ROWS = 50

#: Readable on white and on black backgrounds.
_COLOURS = {
    State.STREAMING: "#2e9e4f",
    State.CONNECTING: "#c98a00",
    State.RECONNECTING: "#c98a00",
    State.FAILED: "#d9423a",
    State.STOPPED: "#808080",
    State.IDLE: "#808080",
}
_CELL = "padding:2px 10px;text-align:{};border:none;border-bottom:1px solid rgba(128,128,128,.35)"
_HEADINGS = ("stream", "state", "price", "exchange", "age", "ticks/s", "ticks", "gaps")
_TEXTS = ("stream", "state", "exchange")
#: Minimum widths in em. With them, most columns keep their width when the table is replaced.
_WIDTHS = {"state": 6, "price": 6, "exchange": 7, "age": 4, "ticks/s": 4, "ticks": 4}
#: The row of the strike nearest the forward.
_AT_THE_MONEY = "background:rgba(76,141,214,.2)"
#: The highest number of recent ticks that determine the decimals of the prices.
_TICKS_READ = 5_000

#: The points of a sparkline by stream. Both coordinates are from 0 to 1.
Lines = Mapping[str, Sequence[tuple[float, float]]]


def snapshot_of(listener: ListenerView, recent: Recent | None) -> str:
    """Return the snapshot of a listener without a live view. `recent` is None if the listener keeps no ticks."""
    return snapshot(listener, digits_of_pairs(recent.last(_TICKS_READ)) if recent is not None else {})


def snapshot(
    listener: ListenerView, digits: Mapping[str, int], lines: Lines | None = None, expiry: str | None = None
) -> str:
    """Return HTML with the listener's state, a row for each stream, the chain of options and the current time.

    The prices of a stream have at least as many decimals as `digits` says. `expiry` is the chain's; None for the first.
    """
    stats = listener.stats
    now = datetime.now(UTC)
    streams = list(stats.streams.items())
    newest = complete(listener.greeks())
    last = {symbol: stream.last_tick for symbol, stream in streams} | _last_quotes(newest)
    rows = "".join(
        _row(symbol, stream, last[symbol], now, digits.get(symbol, 0), lines) for symbol, stream in streams[:ROWS]
    )
    if len(streams) > ROWS:
        rows += f'<tr><td colspan="9" style="{_style("more")}">and {len(streams) - ROWS} more streams</td></tr>'
    headings = (*_HEADINGS, "recent") if lines is not None else _HEADINGS
    head = "".join(f'<th scope="col" style="{_style(name)};opacity:.75">{name}</th>' for name in headings)
    return (
        '<div style="font-size:90%;line-height:1.5" role="group" aria-label="finx-streamer listener">'
        f"<div><b>{escaped(listener.name)}</b> {_light(stats.state)}{_reason(stats)}</div>"
        '<table style="border-collapse:collapse;border:none;font-variant-numeric:tabular-nums;background:none">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{_options(newest, expiry) if any(is_option(symbol) for symbol, _ in streams) else ''}"
        f'<div style="opacity:.75">{_totals(stats)}<br>'
        f"as of {now:%Y-%m-%d %H:%M:%S} UTC</div></div>"
    )


def _last_quotes(newest: Mapping[str, Greeks]) -> dict[str, dict[str, Any]]:
    """Return what a row shows of the last Greeks of each contract, and of each month, which has no price."""
    last: dict[str, dict[str, Any]] = {}
    for name, greeks in sorted(newest.items(), key=lambda item: item[1]["received_ns"]):
        quote = {"price": "-", "exchange": greeks["exchange"], "received_ns": greeks["received_ns"]}
        last[greeks["symbol"]] = quote
        price = greeks["mark_price"]
        last[name] = {**quote, "price": "-" if price is None else price}
    return last


def _row(
    symbol: str, stream: StreamStats, tick: Mapping[str, Any] | None, now: datetime, digits: int, lines: Lines | None
) -> str:
    cells = {
        "stream": f"<b>{escaped(symbol)}</b>",
        "state": _light(stream.state),
        "price": escaped(price_text(tick["price"], digits)) if tick else "-",
        "exchange": escaped(tick["exchange"]) if tick else "-",
        "age": age((now.timestamp() * 1e9 - tick["received_ns"]) / 1e9) if tick else "-",
        "ticks/s": f"{stream.rate:,.1f}",
        "ticks": f"{stream.ticks:,}",
        "gaps": f"{stream.gaps:,}",
    }
    if lines is not None:
        cells["recent"] = _line(lines.get(symbol, ()))
    return "<tr>" + "".join(f'<td style="{_style(name)}">{cell}</td>' for name, cell in cells.items()) + "</tr>"


def _options(newest: Mapping[str, Greeks], expiry: str | None) -> str:
    """Return a table of the chain of one expiry, and the volatilities at the money of all."""
    chains = Chains(newest)
    if expiry is not None:
        chains.choose(expiry)
    chain = chains.chosen
    if chain is None:
        return '<div style="margin-top:8px">no options yet</div>'
    sides = "".join(
        f'<th scope="colgroup" colspan="{len(columns)}" style="{_CELL.format("center")};opacity:.75">{side}</th>'
        for side, columns in (("calls", CALLS), ("", ("strike",)), ("puts", PUTS))
    )
    head = "".join(
        f'<th scope="col" style="{_style(name)};opacity:.75">{name}</th>' for name in (*CALLS, "strike", *PUTS)
    )
    backgrounds = {chain.at_the_money(ROWS): _AT_THE_MONEY}
    body = "".join(
        f'<tr style="{backgrounds.get(i, "background:none")}">{_chain_row(strike, row, chain.digits)}</tr>'
        for i, (strike, row) in enumerate(chain.rows(ROWS).items())
    )
    if more := chain.more(ROWS):
        body += f'<tr><td colspan="9" style="{_style("more")}">and {more} more strikes</td></tr>'
    levels = " · ".join(
        f"{escaped(name)} {'-' if level is None else f'{level:,.1f} %'}" for name, level in chains.levels().items()
    )
    return (
        f'<div style="margin-top:8px"><b>{escaped(chain.name)}</b> forward {chain.forward_text} · '
        f"prices in {escaped(chain.unit)}</div>"
        '<table style="border-collapse:collapse;border:none;font-variant-numeric:tabular-nums;background:none" '
        f'aria-label="options of {escaped(chain.name)}"><thead><tr>{sides}</tr><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
        f"<div>implied volatility at the money: {levels}</div>"
    )


def _chain_row(strike: float, row: Sequence[float | None], digits: int) -> str:
    texts = [_quote(name, value, digits) for name, value in zip(CALLS + PUTS, row, strict=True)]
    texts.insert(len(CALLS), f"<b>{price_text(strike)}</b>")
    return "".join(f'<td style="{_CELL.format("right")}">{text}</td>' for text in texts)


def _quote(name: str, value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    decimals = {"IV %": 1, "delta": 2}.get(name)
    return price_text(value, digits) if decimals is None else f"{value:,.{decimals}f}"


def _style(name: str) -> str:
    width = f";min-width:{_WIDTHS[name]}em" if name in _WIDTHS else ""
    return _CELL.format("left" if name in _TEXTS else "right") + width


def _light(state: State) -> str:
    return f'<span style="color:{_COLOURS[state]}" aria-hidden="true">●</span> {state.value}'


def _reason(stats: ListenerStats) -> str:
    text = reason(stats)
    return f": {escaped(text)}" if text else ""


def _totals(stats: ListenerStats) -> str:
    errors = stats.callback_errors + stats.decode_errors
    return (
        f"{stats.ticks:,} ticks · {stats.rate:,.1f}/s · {stats.dropped:,} dropped · {stats.reconnects:,} reconnects · "
        f"{stats.gaps:,} gaps · {errors:,} errors"
    )


def _line(points: Sequence[tuple[float, float]]) -> str:
    """Return a sparkline as SVG."""
    if len(points) < 2:
        return ""
    path = " ".join(f"{2 + x * 96:.1f},{18 - y * 16:.1f}" for x, y in points)
    return (
        '<svg width="100" height="20" role="img" aria-label="recent prices">'
        f'<polyline fill="none" stroke="#4c8dd6" stroke-width="1.2" points="{path}"/></svg>'
    )


def age(seconds: float) -> str:
    """Format a duration in seconds as short text."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min"
