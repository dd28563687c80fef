"""Entries as Arrow tables, and tables as ticks.

A tick's date and time are kept as a timestamp and a number of digits, from which the texts can be made again. A time
that can't be made again that way (seven digits, a leap second) is kept as text, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from ..values import Tick
from ..wire.decoder import Decoder, read_id
from .journal import FIELDS, Entry, Ticks, entry_line
from .layout import EPOCH

TICKS = pa.schema(
    [
        ("pair", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("ordinal", pa.int64()),
        ("exchange", pa.string()),
        ("price_text", pa.string()),
        ("digits", pa.int8()),
        ("time_text", pa.string()),
        ("received_ns", pa.int64()),
        ("backfilled", pa.bool_()),
        ("id", pa.int64()),
    ]
)
EVENTS = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("received_ns", pa.int64()),
        ("kind", pa.string()),
        ("symbol", pa.string()),
        ("line", pa.string()),
    ]
)
_RAW = pa.struct([(name, pa.string()) for name in FIELDS])
_WIRE = pa.schema(
    [("results", pa.string()), ("resultData", _RAW), ("id", pa.int64())]
    + [(name, pa.string()) for name in ("pair", "UTCDate", "exchange", "price")]
)
#: What is parsed at once, in bytes. It bounds the memory.
_BATCH = 8 << 20
#: A date and time that `_texts` makes again, and a price that every parser reads in the same way.
_REGULAR_TIME = (
    r"^(19[7-9]|[2-9][0-9]{2})[0-9]-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z$"
)
_REGULAR_PRICE = r"^[0-9]{1,40}(?:\.[0-9]{1,40})?$"
_MICROSECOND = timedelta(microseconds=1)
#: In microseconds.
_SECOND = 1_000_000


def tables(entries: Iterable[Ticks | Entry], ordinal: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Return the ticks and the other entries, as tables of bounded size. `ordinal` is the number of the first entry.

    A line among the ticks that the client would refuse becomes a message.
    """
    runs: list[Ticks] = []
    places: list[int] = []
    others: list[tuple[int, Entry]] = []
    size = 0
    for entry in entries:
        if isinstance(entry, Ticks):
            runs.append(entry)
            places.append(ordinal)
            ordinal += entry.count
            size += len(entry.text)
        else:
            others.append((ordinal, entry))
            ordinal += 1
            size += len(entry.line)
        if size >= _BATCH:
            yield _tables(runs, places, others)
            runs, places, others, size = [], [], [], 0
    if size:
        yield _tables(runs, places, others)


def _tables(runs: list[Ticks], places: list[int], others: list[tuple[int, Entry]]) -> tuple[pa.Table, pa.Table]:
    ticks = _regular(runs, places)
    if ticks is None:
        halves = len(runs) // 2
        if halves:  # look for the lines that aren't regular
            first, events = _tables(runs[:halves], places[:halves], others)
            second, more = _tables(runs[halves:], places[halves:], [])
            return pa.concat_tables([first, second]), pa.concat_tables([events, more])
        ticks, refused = _irregular(runs[0], places[0])
        others = sorted(others + refused, key=lambda other: other[0])
    rows = [(place, entry.at, entry.kind, entry.symbol, entry.line) for place, entry in others]
    columns = list(zip(*rows, strict=True)) or [()] * len(EVENTS)
    return ticks, pa.table([pa.array(each, kind) for each, kind in zip(columns, EVENTS.types, strict=True)], EVENTS)


def _regular(runs: list[Ticks], places: list[int]) -> pa.Table | None:
    """Parse ticks outside Python. None if a line isn't a regular tick."""
    if not runs:
        return TICKS.empty_table()
    text = b"".join(run.text for run in runs)
    count = sum(run.count for run in runs)
    try:
        wire = pyarrow.json.read_json(
            pa.BufferReader(text),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            pyarrow.json.ParseOptions(explicit_schema=_WIRE, unexpected_field_behavior="ignore"),
        )
        if wire.num_rows != count:
            return None
        raw = wire["resultData"]
        pair, exchange, price = (
            pc.coalesce(pc.struct_field(raw, name), wire[name]) for name in ("pair", "exchange", "price")
        )
        parts = pc.binary_join_element_wise(pc.struct_field(raw, "date"), pc.struct_field(raw, "time"), "T")
        moment = pc.coalesce(parts, wire["UTCDate"])
        enveloped = pc.and_(pc.equal(wire["results"], "streaming"), pc.is_valid(raw))
        flat = pc.and_(pc.is_null(wire["results"]), pc.is_null(raw))
        good = pc.and_(pc.match_substring_regex(moment, _REGULAR_TIME), pc.match_substring_regex(price, _REGULAR_PRICE))
        good = pc.and_(good, pc.and_(pc.is_valid(pair), pc.is_valid(exchange)))
        good = pc.and_(good, pc.or_(pc.fill_null(enveloped, False), flat))
        number = wire["id"]
        good = pc.and_(good, pc.fill_null(pc.and_(pc.greater(number, 0), pc.less(number, 10**18)), True))
        if not pc.all(pc.fill_null(good, False)).as_py():
            return None
        timestamp = moment.cast(TICKS.field("timestamp").type)
    except pa.ArrowInvalid:
        return None
    length = pc.utf8_length(moment)
    digits = pc.if_else(pc.equal(length, 20), 0, pc.subtract(length, 21)).cast(pa.int8())
    ordinals = [place for run, start in zip(runs, places, strict=True) for place in range(start, start + run.count)]
    columns = {
        "pair": pair,
        "timestamp": timestamp,
        "ordinal": pa.array(ordinals, pa.int64()),
        "exchange": exchange,
        "price_text": price,
        "digits": digits,
        "time_text": pa.nulls(count, pa.string()),
        "received_ns": _repeated(runs, [run.at for run in runs], pa.int64()),
        "backfilled": _repeated(runs, [run.backfilled for run in runs], pa.bool_()),
        "id": number,
    }
    return pa.table(columns, schema=TICKS)


def _repeated(runs: list[Ticks], values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return a value per tick from a value per run."""
    ends, end = [], 0
    for run in runs:
        ends.append(end := end + run.count)
    return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values, kind)))


def _irregular(run: Ticks, ordinal: int) -> tuple[pa.Table, list[tuple[int, Entry]]]:
    """Read ticks as the client does. Return also those that it refuses."""
    rows = []
    refused = []
    for place, line in enumerate(run.text[:-1].split(b"\n"), ordinal):
        tick, raw = _decoded(line, run.at)
        if tick is None:
            text = line.decode("utf-8", "surrogateescape")
            fields = {"text": text, "backfilled": True} if run.backfilled else {"text": text}
            refused.append((place, Entry.parse(entry_line(run.at, "message", None, fields)[:-1])))
            continue
        text = f"{tick['date']}T{tick['time']}"
        digits = max(len(tick["time"]) - 10, 0) if tick["time"][-1] == "Z" else 0
        time_text = None
        if digits > 6 or tick["timestamp"] < EPOCH or _text(tick["timestamp"], digits) != text:
            digits, time_text = 0, text
        name, timestamp, exchange, price = tick["pair"], tick["timestamp"], tick["exchange"], tick["price"]
        row = (name, timestamp, place, exchange, price, digits, time_text, run.at, run.backfilled, read_id(raw))
        rows.append(row)
    columns = list(zip(*rows, strict=True)) or [()] * len(TICKS)
    return pa.table([pa.array(each, kind) for each, kind in zip(columns, TICKS.types, strict=True)], TICKS), refused


def _decoded(line: bytes, at: int) -> tuple[Tick | None, dict[str, Any]]:
    """Return a tick, and its message."""
    try:
        message = json.loads(line)
        pair = message.get("resultData", message)["pair"]
        found = Decoder(None, pair, str).decode(line, at)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, {}
    return (cast("Tick", found), message) if isinstance(found, dict) else (None, message)


def _text(timestamp: datetime, digits: int) -> str:
    text = timestamp.replace(tzinfo=None).isoformat("T", "microseconds")
    return (text[: 20 + digits] if digits else text[:19]) + "Z"


def _texts(batch: pa.RecordBatch) -> pa.Array:
    """Return each tick's date and time as it was sent, with a T in between."""
    us = batch["timestamp"].cast(TICKS.field("timestamp").type).cast(pa.int64())
    seconds = pc.divide(us, _SECOND)
    fraction = pc.utf8_lpad(pc.subtract(us, pc.multiply(seconds, _SECOND)).cast(pa.string()), 6, "0")
    # Many ticks share a second, and formatting is slow.
    coded = seconds.dictionary_encode()
    moments = pc.strftime(coded.dictionary.cast(pa.timestamp("s", "UTC")), "%Y-%m-%dT%H:%M:%S").take(coded.indices)
    texts = batch["time_text"]
    digits = batch["digits"]
    for number in pc.unique(digits).to_pylist():
        parts = (moments, ".", pc.utf8_slice_codeunits(fraction, 0, number)) if number else (moments,)
        made = pc.binary_join_element_wise(*parts, "Z", "")
        texts = pc.coalesce(texts, pc.if_else(pc.equal(digits, number), made, None))
    return texts


def ticks_of(batch: pa.RecordBatch, parse_price: Callable[[str], Any] = float) -> list[Tick]:
    """Return the rows as tick dicts. Equal prices of a batch are parsed once."""
    texts = _texts(batch).to_pylist()
    try:
        times = list(map(datetime.fromisoformat, texts)) if batch["time_text"].null_count == len(batch) else []
    except ValueError:
        times = []
    if not times:
        times = [EPOCH + us * _MICROSECOND for us in integers(batch["timestamp"])]
    return [
        {
            "pair": pair,
            "date": text[:10],
            "time": text[11:],
            "exchange": exchange,
            "price": price,
            "timestamp": timestamp,
            "received_ns": received_ns,
            "backfilled": backfilled,
        }
        for pair, text, exchange, price, timestamp, received_ns, backfilled in zip(
            _looked_up(batch["pair"], str),
            texts,
            _looked_up(batch["exchange"], str),
            _looked_up(batch["price_text"], parse_price),
            times,
            integers(batch["received_ns"]),
            batch["backfilled"].to_pylist(),
            strict=True,
        )
    ]


def _looked_up(column: pa.Array, convert: Callable[[str], Any]) -> Iterator[Any]:
    """Return the converted texts of a column with many equal ones."""
    coded = column.dictionary_encode()
    values = list(map(convert, coded.dictionary.to_pylist()))
    return map(values.__getitem__, integers(coded.indices.cast(pa.int64())))


def integers(column: pa.Array) -> list[int]:
    """Return the 64-bit integers of a column without nulls, faster than `to_pylist`."""
    start = 8 * column.offset
    return memoryview(column.buffers()[1])[start : start + 8 * len(column)].cast("q").tolist()
