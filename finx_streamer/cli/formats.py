"""A tick as one line of JSON or CSV. Prices and times are written exactly as they were received."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any

import attrs

from .. import Tick
from ..errors import make_printable


@attrs.frozen
class LineFormat:
    """How a tick becomes a line, and the line that precedes all ticks."""

    format_tick: Callable[[Tick], str]
    header: str = ""


to_json = json.JSONEncoder(separators=(",", ":")).encode


def json_line(tick: Tick) -> str:
    """Return a line of JSON. It is pure ASCII, so no control character reaches a terminal."""
    return to_json({**tick, "timestamp": tick["timestamp"].isoformat()}) + "\n"


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


JSON = LineFormat(json_line)
CSV = LineFormat(csv_line, "pair,date,time,exchange,price,timestamp,received_ns,backfilled\n")
