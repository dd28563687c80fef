"""The decoder: both tick formats give one dict; anything else is a notice, a `ServerError` or a `DecodeError`."""

from __future__ import annotations

import gzip
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.config import redaction
from finx_streamer.errors import PAYLOAD_LIMIT, DecodeError, ServerError
from finx_streamer.values import Notice, Tick
from finx_streamer.wire import decoder as decoder_module
from finx_streamer.wire.decoder import MAX_DEPTH, MAX_FIELD, MAX_NOTICE, MAX_TICK_MESSAGE, Decoder
from finx_streamer.wire.frames import Binary
from finx_streamer.wire.json_codec import loads
from tests.support.effort import examples

PAIR = "BTC:USDC"
NOW_NS = 1_656_775_855_900_000_000
TICK = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55.817Z", "exchange": "BINANCE", "price": "19200.84"}
FLAT_TICK = {
    "pair": PAIR,
    "unixDate": 1659897295,
    "UTCDate": "2022-08-07T18:34:55.000Z",
    "exchange": "BINANCE",
    "price": "23233.684999999998",
}
FORMATS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "enveloped": lambda tick: {"results": "streaming", "resultData": tick},
    "flat": lambda tick: tick,
}


def decode(message: object, **options: Any) -> decoder_module.Message:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return Decoder(PAIR, PAIR, **options).decode(payload, NOW_NS)


def decode_error(message: object, **options: Any) -> DecodeError:
    error = decode(message, **options)
    assert isinstance(error, DecodeError)
    return error


def decode_tick(message: object, **options: Any) -> Tick:
    """Decode a message, which must be a tick."""
    tick = decode(message, **options)
    assert type(tick) is dict
    return tick


# Ticks.


def test_a_leap_second_is_the_second_that_follows() -> None:
    """In both formats. The texts stay as they are."""
    tick = {"pair": PAIR, "date": "2016-12-31", "time": "23:59:60.5Z", "exchange": "BINANCE", "price": "1"}
    flat = {"pair": PAIR, "unixDate": 1483228800, "UTCDate": "2016-12-31T23:59:60.5Z", "exchange": "B", "price": "1"}
    for message in ({"results": "streaming", "resultData": tick}, flat):
        found = decode_tick(message)
        assert found["timestamp"] == datetime(2017, 1, 1, 0, 0, 0, 500_000, UTC)
        assert (found["date"], found["time"]) == ("2016-12-31", "23:59:60.5Z")


@pytest.mark.parametrize(("date", "time"), [("2016-12-31", "12:00:60.5Z"), ("9999-12-31", "23:59:60Z")])
def test_only_the_last_second_of_a_day_can_be_a_leap_second(date: str, time: str) -> None:
    """Of any day that has a next one."""
    error = decode_error({"results": "streaming", "resultData": {**TICK, "date": date, "time": time}})
    assert "is not a date and time" in error.reason


@pytest.mark.parametrize("tick_format", FORMATS)
def test_the_documented_tick_is_decoded(tick_format: str) -> None:
    """It keeps the fields as sent and adds a price and a timestamp, with and without an envelope."""
    assert decode(FORMATS[tick_format](TICK)) == {
        **TICK,
        "price": 19200.84,
        "timestamp": datetime(2022, 7, 2, 15, 30, 55, 817_000, UTC),
        "received_ns": NOW_NS,
        "backfilled": False,
    }


@pytest.mark.parametrize("tick_format", FORMATS)
def test_a_flat_tick_gives_the_same_dict(tick_format: str) -> None:
    """`UTCDate` becomes `date` and `time`, and `unixDate` is dropped."""
    assert decode(FORMATS[tick_format](FLAT_TICK)) == {
        "pair": PAIR,
        "date": "2022-08-07",
        "time": "18:34:55.000Z",
        "exchange": "BINANCE",
        "price": 23233.684999999998,
        "timestamp": datetime(2022, 8, 7, 18, 34, 55, 0, UTC),
        "received_ns": NOW_NS,
        "backfilled": False,
    }


def test_a_tick_has_the_fields_of_its_typed_dict() -> None:
    """`Tick` lists the fields of both formats."""
    for tick_format in (TICK, FLAT_TICK):
        assert set(decode_tick(tick_format)) == set(Tick.__annotations__)


@pytest.mark.parametrize(
    ("digits", "microseconds"),
    [
        ("", 0),
        (".8", 800_000),
        (".81", 810_000),
        (".817", 817_000),
        (".8174", 817_400),
        (".81742", 817_420),
        (".817425", 817_425),
        (".8174259", 817_425),
        (".81742599", 817_425),
        (".817425999", 817_425),
    ],
)
@pytest.mark.parametrize("zone", ["Z", ""])
def test_a_time_may_have_any_number_of_fraction_digits(digits: str, microseconds: int, zone: str) -> None:
    """They are truncated to microseconds, never rounded into the future. The text stays as sent."""
    tick = decode_tick(TICK | {"time": f"15:30:55{digits}{zone}"})
    assert tick["timestamp"] == datetime(2022, 7, 2, 15, 30, 55, microseconds, UTC)
    assert tick["time"] == f"15:30:55{digits}{zone}"


@pytest.mark.parametrize(
    "price",
    [
        "21865.010000000002",
        "9.2E-7",
        "9.2e-7",
        "1e+3",
        "0",
        "42",
        "-3.5e-7",
        "+1.5",
        ".5",
        "5.",
        "0.00000000397",
        "00.10",
    ],
)
def test_a_price_may_be_any_decimal_string(price: str) -> None:
    """Each price that was observed can be parsed as float, Decimal and str."""
    assert decode_tick(TICK | {"price": price})["price"] == float(price)
    assert decode_tick(TICK | {"price": price}, parse_price=Decimal)["price"] == Decimal(price)
    assert decode_tick(TICK | {"price": price}, parse_price=str)["price"] == price


def test_unknown_fields_of_a_tick_are_ignored() -> None:
    """The vendor may add fields."""
    assert decode_tick(TICK | {"volume": [1, {"a": None}], "error": None, "backfilled": True}) == decode_tick(TICK)


def test_a_flat_tick_needs_no_unix_date() -> None:
    """`UTCDate` is sufficient."""
    without = {name: value for name, value in FLAT_TICK.items() if name != "unixDate"}
    assert decode_tick(without) == decode_tick(FLAT_TICK)
    assert decode_tick(FLAT_TICK | {"unixDate": 1659897295.5}) == decode_tick(FLAT_TICK)


def test_every_recorded_tick_is_decoded(shared_data: Path) -> None:
    """Each recorded trade gives its own fields, price and time."""
    lines = gzip.decompress((shared_data / "tape.jsonl.gz").read_bytes()).splitlines()
    lines += (shared_data / "tape-small.jsonl").read_bytes().splitlines()
    for line in lines:
        wire = json.loads(line)
        tick = Decoder(wire["pair"], wire["pair"], Decimal).decode(line, NOW_NS)
        assert type(tick) is dict
        assert [tick["date"], tick["time"], tick["exchange"]] == [wire["date"], wire["time"], wire["exchange"]]
        assert tick["price"] == Decimal(wire["price"])
        assert tick["timestamp"].isoformat().startswith(f"{wire['date']}T{wire['time'][:8]}")


def test_every_unusual_value_is_decoded(shared_data: Path) -> None:
    """Exponents, integers, tiny and huge prices, and long names have occurred."""
    seen = 0
    for row in map(json.loads, (shared_data / "odd.jsonl").read_text().splitlines()):
        wire = row.get("line") or TICK | {"price": row["token"]}
        for tick_format in FORMATS.values():
            payload = json.dumps(tick_format(wire)).encode()
            tick = Decoder(wire["pair"], wire["pair"]).decode(payload, NOW_NS)
            assert type(tick) is dict
            assert tick["price"] == float(wire["price"])
            assert Decoder(wire["pair"], wire["pair"], str).decode(payload, NOW_NS)["price"] == wire["price"]  # type: ignore[index]
        seen += 1
    assert seen == 1_153


# Notices and server errors.


@pytest.mark.parametrize(
    "message",
    [
        {"keepAlive": True},
        {"isAuth": True},
        {},
        {"feature": "scheduled for future release"},
        {"results": "streaming"},
        {"results": ["streaming"], "resultData": 1},
        {"pair": PAIR},
        {"error": None},
        {"error": ""},
        {"error": False, "message": "fine"},
    ],
)
def test_an_unknown_object_is_a_notice(message: dict[str, Any]) -> None:
    """No message is dropped silently."""
    assert decode(message) == Notice(PAIR, message, NOW_NS)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"error": "no such pair"}, "no such pair"),
        ({"error": "no such pair", "pair": PAIR, "date": "2022-07-02"}, "no such pair"),
        ({"error": {"code": 5}}, '{"code": 5}'),
        ({"errors": ["one", "two"]}, '["one", "two"]'),
        ({"error": True}, "true"),
        ({"error": 17}, "17"),
        ({"results": "error", "resultData": "bad key"}, "bad key"),
        ({"results": "error"}, "error"),
    ],
)
def test_an_object_that_reports_an_error_is_a_server_error(message: dict[str, Any], text: str) -> None:
    """It has the text, the whole object and the stream."""
    error = decode(message)
    assert isinstance(error, ServerError)
    assert (error.message, error.payload, error.symbol) == (text, message, PAIR)


def test_all_messages_of_a_stream_without_ticks_are_notices() -> None:
    """A Greeks stream's messages stay as they are, even if they look like ticks."""
    decoder = Decoder("BTCN2202207", None)
    for message in ({"feature": "scheduled for future release"}, TICK, FORMATS["enveloped"](TICK)):
        assert decoder.decode(json.dumps(message).encode(), 1) == Notice("BTCN2202207", message, 1)


# Decode errors.


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b'{"pair":"BTC:USDC"',
        b"BTC:USDC 19200.84",
        b"{'pair': 1}",
        b'{"a":1}{"b":2}',
        b'{"a":1,}',
        b'{"price":NaN}',
        b'{"price":Infinity}',
        b'{"price":-Infinity}',
        b'{"price":1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\ud800","a":1}',
        b'{"a":"\n"}',
        b'\xef\xbb\xbf{"a":1}',
        b"\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5_000 + b"}",
    ],
    ids=lambda payload: repr(payload[:20]),
)
def test_invalid_json_is_an_error(payload: bytes) -> None:
    """Broken or incomplete JSON, invalid UTF-8, and JSON that only some parsers accept give a `DecodeError`."""
    error = decode_error(payload, bounded=False)
    assert "not JSON" in error.reason
    assert error.payload == payload.decode("utf-8", "replace")[:PAYLOAD_LIMIT]
    assert error.symbol == PAIR


@pytest.mark.parametrize(
    ("payload", "is_a"),
    [
        (b"[]", "a list"),
        (b"[{}]", "a list"),
        (b'"tick"', "a string"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b"true", "a boolean"),
        (b"null", "null"),
    ],
)
def test_json_other_than_an_object_is_an_error(payload: bytes, is_a: str) -> None:
    """The error names the type."""
    assert decode_error(payload).reason == f"expected a JSON object, not {is_a}"


@pytest.mark.parametrize("tick_format", FORMATS)
@pytest.mark.parametrize("field", TICK)
def test_a_missing_field_is_an_error(tick_format: str, field: str) -> None:
    """The error names the field."""
    broken = {name: value for name, value in TICK.items() if name != field}
    assert decode_error(FORMATS[tick_format](broken)).reason == f"field {field!r} is missing"


@pytest.mark.parametrize("fields", [("pair", "price"), ("date", "time"), ("pair", "UTCDate"), ("unixDate", "price")])
def test_two_fields_make_an_incomplete_tick(fields: tuple[str, str]) -> None:
    """An incomplete tick is an error, not an unknown notice."""
    assert "is missing" in decode_error({name: (TICK | FLAT_TICK)[name] for name in fields}).reason


@pytest.mark.parametrize("tick_format", FORMATS)
@pytest.mark.parametrize("field", TICK)
@pytest.mark.parametrize(
    ("value", "is_a"),
    [(None, "null"), (5, "a number"), (1.5, "a number"), (True, "a boolean"), ([], "a list"), ({}, "an object")],
)
def test_a_field_of_another_type_is_an_error(tick_format: str, field: str, value: object, is_a: str) -> None:
    """The error names the field and its type. A price that is a JSON number may have lost digits."""
    assert (
        decode_error(FORMATS[tick_format](TICK | {field: value})).reason
        == f"field {field!r} is {is_a}; expected a string"
    )


@pytest.mark.parametrize("value", [None, True, "1659897295", [], {}])
def test_an_invalid_unix_date_is_an_error(value: object) -> None:
    """`unixDate` must be a number, although it isn't used."""
    assert "field 'unixDate'" in decode_error(FLAT_TICK | {"unixDate": value}).reason


@pytest.mark.parametrize("value", [None, 5, "text", True, [TICK], []])
def test_an_envelope_without_an_object_is_an_error(value: object) -> None:
    """An envelope must contain one tick."""
    assert "expected a tick object, not " in decode_error({"results": "streaming", "resultData": value}).reason


@pytest.mark.parametrize("other", ["ETH:USDC", "btc:usdc", "", "BTC:USDC ", "X" * 4_096])
def test_a_tick_of_another_pair_is_an_error(other: str) -> None:
    """The error names both pairs and is short."""
    reason = decode_error(TICK | {"pair": other}).reason
    assert f"on the stream of {PAIR}" in reason
    assert len(reason) < 200


BAD_DATES = [
    "",
    "2022-7-2",
    "2022-02-30",
    "2022-13-01",
    "2022-00-10",
    "0000-01-01",
    "20220702",
    "2022-07-02 ",
    "\uff12022-07-02",
]
BAD_TIMES = [
    "",
    "15:30",
    "25:00:00Z",
    "15:60:00Z",
    "15:30:60Z",
    "15:30:55.8Z ",
    "15:30:55,8Z",
    "15:30:55+02:00",
    "15:30:55ZZ",
]


@pytest.mark.parametrize("date", BAD_DATES)
def test_an_invalid_date_is_an_error(date: str) -> None:
    """Both formats give a `DecodeError` and no other exception."""
    assert "date" in decode_error(TICK | {"date": date}).reason
    assert "date" in decode_error(FLAT_TICK | {"UTCDate": f"{date}T18:34:55.000Z"}).reason.lower()


@pytest.mark.parametrize("time", [*BAD_TIMES, "15:30:55.,Z", "15:30:55z", "1\uff15:30:55Z", "T15:30:55Z"])
def test_an_invalid_time_is_an_error(time: str) -> None:
    """Both formats give a `DecodeError` and no other exception."""
    assert "time" in decode_error(TICK | {"time": time}).reason
    assert "time" in decode_error(FLAT_TICK | {"UTCDate": f"2022-08-07T{time}"}).reason


@pytest.mark.parametrize("value", ["2022-08-07", "2022-08-07 18:34:55.000Z", "", "now"])
def test_an_invalid_utc_date_is_an_error(value: str) -> None:
    """A T must separate date and time."""
    assert "UTCDate" in decode_error(FLAT_TICK | {"UTCDate": value}).reason


@pytest.mark.parametrize(
    "price",
    [
        "",
        " ",
        "abc",
        "NaN",
        "nan",
        "Infinity",
        "-inf",
        "1_000",
        "1,5",
        "0x10",
        " 1",
        "1\n",
        "1e",
        ".",
        "e5",
        "--1",
        "1٢",
        "1.2.3",
    ],
)
@pytest.mark.parametrize("parse_price", [float, Decimal, str])
def test_a_price_that_is_not_a_decimal_number_is_an_error(price: str, parse_price: Callable[[str], Any]) -> None:
    """The check comes before `parse_price`: float accepts NaN, underscores and the digits of other scripts."""
    assert "is not a decimal number" in decode_error(TICK | {"price": price}, parse_price=parse_price).reason


@pytest.mark.parametrize("field", ["exchange", "price", "time"])
@pytest.mark.parametrize("tick_format", FORMATS)
def test_the_length_of_a_field_is_limited(tick_format: str, field: str) -> None:
    """A queue holds many thousands of ticks."""
    value = TICK[field].removesuffix("Z")
    last = "Z" if field == "time" else ""
    longest = {**TICK, field: f"{value:0<{MAX_FIELD - len(last)}}{last}"}
    assert decode_tick(FORMATS[tick_format](longest), parse_price=str)[field] == longest[field]
    longer = {**TICK, field: f"{value:0<{MAX_FIELD + 1 - len(last)}}{last}"}
    assert f"field {field!r} has 4,097 characters" in decode_error(FORMATS[tick_format](longer)).reason


@pytest.mark.parametrize("size", [MAX_NOTICE, MAX_NOTICE + 1, MAX_TICK_MESSAGE, MAX_TICK_MESSAGE + 1])
def test_the_length_of_a_message_is_limited(size: int) -> None:
    """Ticks may be longer than other messages. With `bounded=False` there is no limit."""
    note = f'{{"note":"{"x" * (size - 11)}"}}'.encode()
    tick = json.dumps({**TICK, "more": ""}).encode()
    tick = tick.replace(b'"more": ""', b'"more": "%s"' % (b"x" * (size - len(tick))))
    assert size == len(note) == len(tick)
    if size == MAX_NOTICE:
        assert isinstance(decode(note), Notice)
    else:
        assert f"a message of {size:,} bytes" in decode_error(note).reason
    if size <= MAX_TICK_MESSAGE:
        assert decode_tick(tick)["exchange"] == TICK["exchange"]
    else:
        assert f"a message of {size:,} bytes" in decode_error(tick).reason
    assert isinstance(decode(note, bounded=False), Notice)


def test_an_exponent_has_at_most_four_digits() -> None:
    """An exact number type would need hours and gigabytes for more."""
    assert decode_tick(TICK | {"price": "1e9999"}, parse_price=Fraction)["price"] == Fraction(10) ** 9_999
    assert "is not a decimal number" in decode_error(TICK | {"price": "1e10000"}, parse_price=Fraction).reason


def test_an_infinite_price_is_an_error() -> None:
    """A price may be too large for a float, but not for a Decimal."""
    assert "parse_price returned inf for '1e400'" in decode_error(TICK | {"price": "1e400"}).reason
    assert decode_tick(TICK | {"price": "1e400"}, parse_price=Decimal)["price"] == Decimal("1e400")


@pytest.mark.parametrize(
    "text", ["1" * 1_000_000 + "x", "1" * 1_000_000 + ".", "." + "1" * 1_000_000 + "e", "1e" * 500_000]
)
def test_a_hostile_price_is_rejected_decode_fast(text: str) -> None:
    """The check takes linear time; otherwise, this test would time out."""
    assert len(decode_error(TICK | {"price": text + "x"}).reason) < 300


@pytest.mark.parametrize("raised", [ValueError("too cheap"), KeyError("x"), RecursionError(), ZeroDivisionError()])
def test_an_exception_of_parse_price_is_the_cause(raised: Exception) -> None:
    """`parse_price` may raise any exception."""

    def parse_price(text: str) -> float:
        raise raised

    error = decode_error(TICK, parse_price=parse_price)
    assert error.reason == f"parse_price refused '19200.84' ({type(raised).__name__}: {raised})"
    assert error.__cause__ is raised


@pytest.mark.parametrize(("depth", "good"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (980, False), (990, False)])
@pytest.mark.parametrize("field", ["note", "error"])
def test_the_nesting_of_a_message_is_limited(depth: int, good: bool, field: str) -> None:
    """Both JSON parsers have the same limit."""
    inner = depth - 1  # the object around it is the first level
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        value = opening * (inner - 1) + b"[]" + closing * (inner - 1)
        payload = b'{"' + field.encode() + b'":' + value + b', "padding": "' + b"x" * 2 * MAX_DEPTH + b'"}'
        if good:
            assert isinstance(decode(payload), (ServerError, Notice))
        else:
            assert "deep" in decode_error(payload).reason or "recursion" in decode_error(payload).reason


@pytest.mark.parametrize("length", [PAYLOAD_LIMIT, PAYLOAD_LIMIT + 1, 1_000_000])
def test_the_payload_of_an_error_is_truncated(length: int) -> None:
    """An error keeps the beginning of the message, and its text is short."""
    error = decode_error(b"x" * length, bounded=False)
    assert error.payload == "x" * PAYLOAD_LIMIT
    assert len(str(error)) < 300


def test_no_cause_of_an_error_keeps_the_whole_payload() -> None:
    """The standard library's exception would keep it."""
    error = decode_error(b"x" * 1_000_000, bounded=False)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("length", [0, 5, PAYLOAD_LIMIT, 1_000_000])
def test_a_binary_message_is_an_error(length: int) -> None:
    """FinX sends only text. The error keeps the first bytes."""
    error = Decoder(PAIR, PAIR).decode(Binary(b"\x00" * length), NOW_NS)
    assert isinstance(error, DecodeError)
    assert error.payload == b"\x00" * min(length, PAYLOAD_LIMIT)
    assert "binary" in error.reason
    assert error.symbol == PAIR


# Redaction.

KEY = "s3cret-key"


@pytest.fixture
def masked_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask `KEY` only, without registering it in this process."""
    monkeypatch.setattr(decoder_module, "redact", lambda text: text.replace(KEY, "***"))


@pytest.mark.usefixtures("masked_key")
@pytest.mark.parametrize(
    "payload",
    [
        f"no JSON: {KEY}".encode(),
        json.dumps([KEY]).encode(),
        json.dumps(TICK | {"pair": KEY}).encode(),
        json.dumps(TICK | {"price": KEY}).encode(),
        json.dumps({"error": f"bad key {KEY}"}).encode(),
        json.dumps({"request": {KEY: [KEY]}}).encode(),
        json.dumps({"request": KEY, "padding": "x" * MAX_NOTICE}).encode(),
        json.dumps({"request": KEY, "padding": "x" * MAX_TICK_MESSAGE}).encode(),
        KEY.encode() + b"\xff",
        Binary(KEY.encode() + b"\xff"),
    ],
    ids=lambda payload: repr(payload)[:40],
)
def test_everything_except_a_tick_is_redacted(payload: bytes | Binary) -> None:
    """A server may quote the request, and with it the key."""
    message = Decoder(PAIR, PAIR).decode(payload, NOW_NS)
    facts = vars(message) if isinstance(message, Exception) else message
    assert KEY not in f"{message} {facts!r}"
    assert "***" in f"{message} {facts!r}"
    if isinstance(message, DecodeError):
        assert message.__traceback__ is None
        assert message.__context__ is None


@pytest.mark.usefixtures("masked_key")
def test_a_tick_is_never_redacted() -> None:
    """A tick is data: masking a part of it would falsify it."""
    assert decode_tick(TICK | {"exchange": KEY})["exchange"] == KEY
    assert Decoder(PAIR, PAIR).decode_tick(TICK | {"exchange": KEY}, NOW_NS)["exchange"] == KEY  # type: ignore[index]


@pytest.mark.usefixtures("masked_key")
def test_an_answer_that_is_data_is_not_redacted_but_its_error_is() -> None:
    """With `redact_notices=False`, only errors are redacted."""
    decoder = Decoder("call", None, redact_notices=False)
    assert decoder.decode(json.dumps({"a": KEY}).encode(), NOW_NS) == Notice("call", {"a": KEY}, NOW_NS)
    error = decoder.decode(json.dumps({"error": KEY}).encode(), NOW_NS)
    assert isinstance(error, ServerError)
    assert error.message == "***"


@pytest.mark.usefixtures("masked_key")
@pytest.mark.parametrize("raw", [KEY, [KEY], {KEY: 1}, TICK | {"pair": KEY}, TICK | {"price": KEY}, {"pair": [KEY]}])
def test_the_error_of_a_tick_within_an_answer_is_redacted(raw: object) -> None:
    """It says what is wrong and shows the redacted tick."""
    error = Decoder(PAIR, PAIR).decode_tick(raw, NOW_NS)
    assert isinstance(error, DecodeError)
    assert KEY not in f"{error} {vars(error)!r}"
    assert error.payload == json.dumps(raw).replace(KEY, "***")
    assert error.__traceback__ is None
    assert error.__context__ is None


def test_a_tick_that_only_redaction_repairs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is too long only because it holds the key doesn't make a tick."""
    monkeypatch.setattr(decoder_module, "redact", lambda text: text.replace("x" * 5_000, "***"))
    error = Decoder(PAIR, PAIR).decode_tick(TICK | {"exchange": "x" * 5_000}, NOW_NS)
    assert isinstance(error, DecodeError)
    assert error.reason == "not a tick: it contains the API key"
    # The mask may break the JSON, too.
    monkeypatch.setattr(decoder_module, "redact", lambda text: text.replace('"pair"', "***"))
    error = Decoder(PAIR, PAIR).decode_tick(TICK | {"price": 1}, NOW_NS)
    assert isinstance(error, DecodeError)
    assert error.reason == "not a tick"


# Properties.

numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
odd_numbers = st.one_of(
    st.sampled_from(["-0", "-0.0", "01", "1.", ".5", "+1", "-", "1e", "1E+5", "NaN", "Infinity", "-Infinity"]),
    st.sampled_from(["9007199254740993", "18446744073709551616", "-9223372036854775809"]),
    st.sampled_from(["1e400", "1e-400", "0e99999", "2.2250738585072011e-308", "5e-324"]),
    st.sampled_from(["1.7976931348623157e308", "1.7976931348623158e308", "1.7976931348623159e308"]),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "-", "0.", "-0."]),
        st.sampled_from([308, 309, 900, 4_299, 4_300, 4_301]).map(lambda digits: "9" * digits),
        st.sampled_from(["", ".5", "e5"]),
    ),
)
pieces = st.one_of(
    st.text(max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1]),
    st.text(max_size=3).map(lambda text: json.dumps(text)[1:-1]),
    st.sampled_from(
        ["\\ud83d\\ude00", "\\ud800", "\\udc00", "\\uDBFF\\uDFFF", "\\ud800\\u0041", "\\\\ud800", "\\\\\\ud800"]
    ),
    st.sampled_from(["\\/", "\\b", "\\x", "\\u12", "\\u0000", "\\", "\x00", "\x1f", "\x7f", "\t", "\n", "\u2028", '"']),
)
strings = st.lists(pieces, max_size=4).map(lambda parts: '"' + "".join(parts) + '"')
spaces = st.sampled_from(["", "", "", " ", "\n", "\t\r ", "\x0b", "\xa0"])
scalars = st.one_of(numbers, odd_numbers, strings, st.sampled_from(["true", "false", "null", "nul", "True", ""]))
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.tuples(spaces, st.lists(inner, max_size=4)).map(lambda t: "[" + t[0] + f"{t[0]},".join(t[1]) + t[0] + "]"),
        st.tuples(spaces, st.lists(st.tuples(st.one_of(strings, st.just('"a"')), inner), max_size=4)).map(
            lambda t: "{" + ",".join(f"{t[0]}{key}{t[0]}:{t[0]}{value}" for key, value in t[1]) + t[0] + "}"
        ),
        st.tuples(st.integers(1, 90), inner).map(lambda t: "[" * t[0] + t[1] + "]" * t[0]),
    ),
    max_leaves=8,
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Draw a document with some bytes changed, removed or inserted."""
    payload = bytearray(draw(documents).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(payload)))
        payload[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(payload)


payloads = st.one_of(
    documents.map(lambda text: text.encode("utf-8", "surrogatepass")), broken(), st.binary(max_size=40)
)


def outcome(load: Callable[[bytes], Any], payload: bytes) -> str:
    """Return the value as text, so that types and signed zeros differ, or "refused"."""
    try:
        return repr(load(payload))
    except (ValueError, RecursionError):
        return "refused"


@given(payloads)
@examples(1_500)
@example(b'{"a":"\\ud800","a":1}')
@example(b"-" + b"9" * 4_300)
@example(b'"\xed\xa0\x80"')
@example(b"\xef\xbb\xbf1")
def test_another_strict_parser_agrees(payload: bytes) -> None:
    """It gives the same value for the same bytes, or rejects them, too."""
    msgspec = pytest.importorskip("msgspec", reason="msgspec, from the extra dev, is not installed")
    assert outcome(loads, payload) == outcome(msgspec.json.Decoder().decode, payload)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_are_parsed_exactly(number: float) -> None:
    """The parser loses no digit."""
    assert repr(loads(repr(number).encode())) == repr(number)


mostly_ticks = st.one_of(
    st.dictionaries(
        st.sampled_from([*TICK, *FLAT_TICK, "error", "errors", "results", "resultData"]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(max_size=8),
        )
        | st.sampled_from([*TICK.values(), "streaming", "error", "2022-08-07T18:34:55.000Z"])
        | st.just(TICK),
        max_size=7,
    ),
    st.dictionaries(st.sampled_from(list(TICK)), st.text(max_size=12)).map(lambda wrong: TICK | wrong),
    st.dictionaries(st.sampled_from(list(FLAT_TICK)), st.text(max_size=12)).map(lambda wrong: FLAT_TICK | wrong),
).map(lambda message: json.dumps(message).encode())


@given(
    st.one_of(
        payloads, mostly_ticks, mostly_ticks.map(lambda tick: b'{"results":"streaming","resultData":' + tick + b"}")
    )
)
@examples(700)
@example(b'{"error":' + b"[" * 985 + b"]" * 985 + b"}")
@example(b'{"error":' + b"[" * 990 + b"]" * 990 + b"}")
def test_any_payload_is_a_message_or_a_decode_error(payload: bytes) -> None:
    """The result is a valid tick, a notice, a `ServerError` or a `DecodeError` with the payload."""
    with pytest.MonkeyPatch.context() as patch:
        # Keys of other tests would be masked in the payload.
        patch.setattr(redaction, "_keys", OrderedDict())
        message = Decoder(PAIR, PAIR).decode(payload, NOW_NS)
    if isinstance(message, DecodeError):
        assert message.payload == payload.decode("utf-8", "replace")[:PAYLOAD_LIMIT]
        assert str(message).isprintable()
    elif type(message) is dict:
        assert set(message) == set(Tick.__annotations__)
        assert message["pair"] == PAIR
        assert math.isfinite(message["price"])
        assert message["timestamp"].tzinfo is UTC
    else:
        assert isinstance(message, (Notice, ServerError))
        assert str(message)
