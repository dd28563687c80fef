"""A tick as a line: JSON, CSV, or text for people. JSON and CSV have prices and times exactly as they were received.

The same for Greeks, whose JSON has the original texts in `raw`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from .. import Greeks, Tick
from ..errors import make_printable
from ..wire.contract_ticker import NUMBERS


@attrs.frozen
class LineFormat:
    """How ticks and Greeks become lines, how a tick's timestamp is read from there, and the lines before the first."""

    name: str
    format_tick: Callable[[Tick], str]
    #: Raises ValueError, TypeError or LookupError if the line isn't one of a tick.
    time_of: Callable[[str], datetime]
    format_greeks: Callable[[Greeks], str]
    header: str = ""
    greeks_header: str = ""


to_json = json.JSONEncoder(separators=(",", ":")).encode


def json_line(tick: Tick) -> str:
    """Return a line of JSON. It is pure ASCII, so no control character reaches a terminal."""
    return to_json({**tick, "timestamp": tick["timestamp"].isoformat()}) + "\n"


def _time_in_json(line: str) -> datetime:
    return datetime.fromisoformat(json.loads(line)["timestamp"])


class _ReturnWritten:
    """A file whose `write` returns the text, which turns `csv.writer` into a function from a row to a line."""

    def write(self, line: str) -> str:
        return line


_csv_row: Callable[[Any], Any] = csv.writer(_ReturnWritten(), lineterminator="\n").writerow


def csv_line(tick: Tick) -> str:
    """Return a line of CSV. Control characters in the exchange are escaped; the other fields can't have any."""
    line: str = _csv_row(
        (
            tick["pair"],
            tick["date"],
            tick["time"],
            make_printable(tick["exchange"]),
            tick["price"],
            _in_csv(tick["timestamp"]),
            tick["received_ns"],
            "true" if tick["backfilled"] else "false",
        )
    )
    return line


def _in_csv(time: datetime) -> str:
    """Write a time always in the same way: pandas doesn't recognise a column of times with and without a fraction."""
    return time.isoformat(timespec="microseconds")


def _time_in_csv(line: str) -> datetime:
    return datetime.fromisoformat(next(csv.reader([line]))[5])


def text_line(tick: Tick) -> str:
    """Return a line for people: time in UTC, pair, price and exchange, aligned unless they are unusually long."""
    return f"{_moment(tick['timestamp'])}  {tick['pair']:<10} {tick['price']:>18}  {make_printable(tick['exchange'])}\n"


def _time_in_text(line: str) -> datetime:
    return datetime.fromisoformat(" ".join(line.split(" ", 2)[:2]))


def json_greeks(greeks: Greeks) -> str:
    """Return a line of JSON, as `json_line` does."""
    expiry = greeks["expiry"]
    times = {"expiry": expiry and expiry.isoformat(), "timestamp": greeks["timestamp"].isoformat()}
    return to_json({**greeks, **times}) + "\n"


_GREEKS_COLUMNS = ("symbol", "instrument", "exchange", "underlying", "kind", "strike", "expiry", "timestamp")


def csv_greeks(greeks: Greeks) -> str:
    """Return a line of CSV. A value that isn't known is empty."""
    values: dict[str, Any] = {**greeks, "exchange": make_printable(greeks["exchange"])}
    expiry = greeks["expiry"]
    values |= {"expiry": expiry and expiry.isoformat(), "timestamp": _in_csv(greeks["timestamp"])}
    line: str = _csv_row([values[name] for name in (*_GREEKS_COLUMNS, "received_ns", *NUMBERS)])
    return line


def text_greeks(greeks: Greeks) -> str:
    """Return a line for people: time in UTC, contract, and the values that are known."""
    names = {"mark_iv": "iv", "delta": "delta", "best_bid_price": "bid", "best_ask_price": "ask"}
    values: dict[str, Any] = {**greeks}
    shown = [f"{label} {values[name]:>9.7g}" for name, label in names.items() if values[name] is not None]
    return f"{_moment(greeks['timestamp'])}  {greeks['instrument']:<22} {'  '.join(shown)}\n"


def _moment(when: datetime) -> str:
    return (
        when.replace(tzinfo=None).isoformat(" ", "microseconds" if when.microsecond % 1_000 else "milliseconds") + "Z"
    )


JSON = LineFormat("json", json_line, _time_in_json, json_greeks)
CSV = LineFormat(
    "csv",
    csv_line,
    _time_in_csv,
    csv_greeks,
    "pair,date,time,exchange,price,timestamp,received_ns,backfilled\n",
    f"{','.join((*_GREEKS_COLUMNS, 'received_ns', *NUMBERS))}\n",
)
TEXT = LineFormat("line", text_line, _time_in_text, text_greeks)
