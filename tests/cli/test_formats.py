"""A tick as one line of JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import Tick
from finx_streamer.cli.formats import CSV, TEXT, csv_line, json_line, text_line


def tick_of(exchange: str) -> Tick:
    return {
        "pair": "BTC:USDC",
        "date": "2022-07-02",
        "time": "15:30:55.817Z",
        "exchange": exchange,
        "price": "21865.010000000002",
        "timestamp": datetime(2022, 7, 2, 15, 30, 55, 817_000, UTC),
        "received_ns": 1,
        "backfilled": False,
    }


def exchange_cell(exchange: str) -> str:
    """Return the exchange as a CSV reader sees it."""
    (row,) = csv.reader(io.StringIO(csv_line(tick_of(exchange))))
    return row[3]


@given(st.text().filter(str.isprintable))
def test_csv_cells_are_written_as_they_came(exchange: str) -> None:
    """A CSV reader finds the exchange's name unchanged, whichever characters need quotes."""
    assert exchange_cell(exchange) == exchange


@pytest.mark.parametrize("exchange", ["", "BINANCE", "=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", "a;=1", "'x"])
def test_a_name_that_looks_like_a_formula_is_not_changed(exchange: str) -> None:
    """The cell gets no apostrophe and no escapes: the data stays what the server sent."""
    assert exchange_cell(exchange) == exchange
    assert csv_line(tick_of(exchange)).split(",")[3] == exchange


@pytest.mark.parametrize(("exchange", "quoted"), [("x, y", '"x, y"'), ('x"y', '"x""y"')])
def test_csv_uses_standard_quotes(exchange: str, quoted: str) -> None:
    """A comma or a quote puts the cell into quotes."""
    assert f",{quoted}," in csv_line(tick_of(exchange))


@given(st.text())
def test_a_csv_line_has_no_control_character(exchange: str) -> None:
    """Control characters are escaped, so a line stays one line and can't act on a terminal."""
    line = csv_line(tick_of(exchange))
    assert line[:-1].isprintable()
    assert line[-1] == "\n"


@given(st.text())
def test_a_json_line_is_ascii_and_keeps_the_name(exchange: str) -> None:
    """JSON escapes what isn't ASCII, and loses nothing."""
    line = json_line(tick_of(exchange))
    assert line.isascii()
    assert line[:-1].isprintable()
    assert json.loads(line)["exchange"] == exchange


@given(st.text())
def test_a_line_for_people_is_one_line(exchange: str) -> None:
    """No control character of the server acts on the terminal, and an ordinary name is shown as it came."""
    line = text_line(tick_of(exchange))
    assert line[:-1].isprintable()
    assert line[-1] == "\n"
    assert not exchange.isprintable() or line.endswith(f" 21865.010000000002  {exchange}\n")


@given(st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31)), st.text())
def test_the_time_of_a_line_for_people_can_be_read(moment: datetime, exchange: str) -> None:
    """An interrupted command needs it to continue."""
    moment = moment.replace(tzinfo=UTC)
    assert TEXT.time_of(text_line({**tick_of(exchange), "timestamp": moment})) == moment


def test_pandas_recognises_the_times_of_csv() -> None:
    """Some ticks are on a whole second."""
    pandas = pytest.importorskip("pandas")
    ticks = [tick_of("BINANCE") for _ in range(2)]
    ticks[0]["timestamp"] = ticks[0]["timestamp"].replace(microsecond=0)
    text = CSV.header + "".join(map(csv_line, ticks))
    column = pandas.read_csv(io.StringIO(text), parse_dates=["timestamp"])["timestamp"]
    assert list(column) == [tick["timestamp"] for tick in ticks]
