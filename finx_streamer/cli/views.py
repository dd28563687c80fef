"""Choose how ticks are shown: as a table, or as lines in a format."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from .. import ConfigurationError
from ..config import checks as check
from .formats import CSV, JSON, TEXT
from .listening import View
from .options import ViewName
from .output import Output
from .terminal import can_draw_table

LINE_FORMATS = {"json": JSON, "csv": CSV, "line": TEXT}


def view_format(name: ViewName | None, output: Path | None = None) -> ViewName:
    """Return the format that was asked for, or the default."""
    if output is not None:
        if name is ViewName.TABLE:
            raise ConfigurationError("--format table can't be used with --output; use json, csv or line")
        return name or ViewName.JSON
    if sys.stdout is None:
        raise ConfigurationError("standard output is closed")
    if name is ViewName.TABLE and not can_draw_table():
        raise ConfigurationError("--format table needs a terminal; use json, csv or line")
    return name or (ViewName.TABLE if can_draw_table() else ViewName.JSON)


def new_view(
    name: ViewName, output: Output, title: str, greeks: bool, expiry: str | None, symbols: Iterable[str]
) -> View:
    """Return the view of a format. `expiry` and `symbols`: which options its table shows."""
    if expiry is not None and not (greeks and name is ViewName.TABLE):
        raise ConfigurationError("--expiry is only for a table of options in a terminal; remove it")
    if name is not ViewName.TABLE:
        from .line_view import LineView

        return LineView(LINE_FORMATS[name], output.open_now(), output.encoding, output.packed, greeks)
    if greeks:
        from .chain_view import ChainView, parse_expiry

        return ChainView(title, None if expiry is None else parse_expiry(expiry, map(check.symbol, symbols)))
    from .table_view import TableView

    return TableView(title)
