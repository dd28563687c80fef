"""A tick as a line: JSON, CSV, or text for people. JSON and CSV have prices and times exactly as they were received."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from .. import Tick
from ..errors import make_printable


@attrs.frozen
class LineFormat:
    """How a tick becomes a line, how its timestamp is read from there, and the line that precedes all ticks."""

    name: str
    format_tick: Callable[[Tick], str]
    #: Raises ValueError, TypeError or LookupError if the line isn't one of a tick.
    time_of: Callable[[str], datetime]
    header: str = ""


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
            tick["timestamp"].isoformat(),
            tick["received_ns"],
            "true" if tick["backfilled"] else "false",
        )
    )
    return line


def _time_in_csv(line: str) -> datetime:
    return datetime.fromisoformat(next(csv.reader([line]))[5])


def text_line(tick: Tick) -> str:
    """Return a line for people: time in UTC, pair, price and exchange, aligned unless they are unusually long."""
    when = tick["timestamp"].replace(tzinfo=None)
    shown = when.isoformat(" ", "microseconds" if when.microsecond % 1_000 else "milliseconds")
    return f"{shown}Z  {tick['pair']:<10} {tick['price']:>18}  {make_printable(tick['exchange'])}\n"


def _time_in_text(line: str) -> datetime:
    return datetime.fromisoformat(" ".join(line.split(" ", 2)[:2]))


JSON = LineFormat("json", json_line, _time_in_json)
CSV = LineFormat("csv", csv_line, _time_in_csv, "pair,date,time,exchange,price,timestamp,received_ns,backfilled\n")
TEXT = LineFormat("line", text_line, _time_in_text)
