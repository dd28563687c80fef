"""The decoder: both tick forms give one dict, all else is a notice, a server error or one `DecodeError`."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.errors import PAYLOAD_LIMIT, DecodeError, ServerError
from finx_streamer.values import Notice, Tick
from finx_streamer.wire import decoder as messages
from finx_streamer.wire import json_codec
from finx_streamer.wire.decoder import MAX_DEPTH, MAX_FIELD, MAX_MESSAGE, MAX_NOTICE, Decoder
from finx_streamer.wire.frames import Binary
from finx_streamer.wire.json_codec import loads_stdlib
from tests.support.effort import examples

PAIR = "BTC:USDC"
NOW_NS = 1_656_775_855_900_000_000
FLAT = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55.817Z", "exchange": "BINANCE", "price": "19200.84"}
LATER = {
    "pair": PAIR,
    "unixDate": 1659897295,
    "UTCDate": "2022-08-07T18:34:55.000Z",
    "exchange": "BINANCE",
    "price": "23233.684999999998",
}
FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "enveloped": lambda tick: {"results": "streaming", "resultData": tick},
    "flat": lambda tick: tick,
}


def loaders() -> dict[str, Callable[[bytes], Any]]:
    """The readers of JSON that there are: the fallback always, `msgspec` where it is installed."""
    found: dict[str, Callable[[bytes], Any]] = {"json": loads_stdlib}
    if json_codec.msgspec is not None:
        found["msgspec"] = json_codec.msgspec.json.Decoder().decode
    return found


@pytest.fixture(params=["json", "msgspec"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test that asks for it runs with either reader of JSON."""
    if request.param not in loaders():
        pytest.skip("msgspec is not installed")
    monkeypatch.setattr(messages, "loads", loaders()[request.param])
    return str(request.param)


def decode(message: object, **options: Any) -> messages.Message:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return Decoder(PAIR, PAIR, **options).decode(payload, NOW_NS)


def refused(message: object, **options: Any) -> DecodeError:
    error = decode(message, **options)
    assert isinstance(error, DecodeError)
    return error


def ticked(message: object, **options: Any) -> Tick:
    """The decoded message, which has to be a tick."""
    tick = decode(message, **options)
    assert type(tick) is dict
    return tick


# Ticks.


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize("form", FORMS)
def test_the_seeds_tick_is_decoded(form: str) -> None:
    """With and without its envelope it gives the wire's own text, a price, and when it was."""
    assert decode(FORMS[form](FLAT)) == {
        **FLAT,
        "price": 19200.84,
        "timestamp": datetime(2022, 7, 2, 15, 30, 55, 817_000, UTC),
        "received_ns": NOW_NS,
        "backfilled": False,
    }


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize("form", FORMS)
def test_the_vendors_later_tick_gives_the_same_form(form: str) -> None:
    """`UTCDate` becomes `date` and `time`; nothing else is handed on."""
    assert decode(FORMS[form](LATER)) == {
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
    """`Tick` names what there is, in both forms."""
    for form in (FLAT, LATER):
        assert set(ticked(form)) == set(Tick.__annotations__)


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
def test_a_time_has_any_number_of_fraction_digits(digits: str, microseconds: int, zone: str) -> None:
    """They are cut to microseconds, never rounded into the future; the wire's text is kept."""
    tick = ticked(FLAT | {"time": f"15:30:55{digits}{zone}"})
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
def test_a_price_is_any_decimal_string(price: str) -> None:
    """All spellings that were seen are read as float, as Decimal, and as the text itself."""
    assert float(price) == ticked(FLAT | {"price": price})["price"]
    assert ticked(FLAT | {"price": price}, parse_price=Decimal)["price"] == Decimal(price)
    assert price == ticked(FLAT | {"price": price}, parse_price=str)["price"]


def test_further_fields_of_a_tick_are_ignored() -> None:
    """A field that the vendor adds one day breaks nothing."""
    assert ticked(FLAT) == ticked(FLAT | {"volume": [1, {"a": None}], "error": None, "backfilled": True})


def test_the_later_form_does_without_its_unix_date() -> None:
    """`UTCDate` says it all."""
    without = {name: value for name, value in LATER.items() if name != "unixDate"}
    assert ticked(LATER) == ticked(without)
    assert ticked(LATER) == ticked(LATER | {"unixDate": 1659897295.5})


@pytest.mark.usefixtures("loader")
def test_every_recorded_tick_is_decoded(shared_data: Path) -> None:
    """Each real trade gives its own text, its price and its time."""
    lines = gzip.decompress((shared_data / "tape.jsonl.gz").read_bytes()).splitlines()
    lines += (shared_data / "tape-small.jsonl").read_bytes().splitlines()
    for line in lines:
        wire = json.loads(line)
        tick = Decoder(wire["pair"], wire["pair"], Decimal).decode(line, NOW_NS)
        assert type(tick) is dict
        assert [wire["date"], wire["time"], wire["exchange"]] == [tick["date"], tick["time"], tick["exchange"]]
        assert tick["price"] == Decimal(wire["price"])
        assert tick["timestamp"].isoformat().startswith(f"{wire['date']}T{wire['time'][:8]}")


@pytest.mark.usefixtures("loader")
def test_every_odd_value_is_decoded(shared_data: Path) -> None:
    """Exponents, integers, tiny and huge prices, long names: whatever really occurred, and what other fields had."""
    seen = 0
    for row in map(json.loads, (shared_data / "odd.jsonl").read_text().splitlines()):
        wire = row.get("line") or FLAT | {"price": row["token"]}
        for form in FORMS.values():
            payload = json.dumps(form(wire)).encode()
            tick = Decoder(wire["pair"], wire["pair"]).decode(payload, NOW_NS)
            assert type(tick) is dict
            assert float(wire["price"]) == tick["price"]
            assert wire["price"] == Decoder(wire["pair"], wire["pair"], str).decode(payload, NOW_NS)["price"]  # type: ignore[index]
        seen += 1
    assert seen == 1_153


# What is no tick.


@pytest.mark.usefixtures("loader")
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
def test_an_object_that_is_no_tick_is_a_notice(message: dict[str, Any]) -> None:
    """Nothing is dropped in silence."""
    assert decode(message) == Notice(PAIR, message, NOW_NS)


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("message", "says"),
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
def test_an_object_that_reports_an_error_is_a_server_error(message: dict[str, Any], says: str) -> None:
    """It carries the text, the whole object and the stream."""
    error = decode(message)
    assert isinstance(error, ServerError)
    assert (says, message, PAIR) == (error.message, error.payload, error.symbol)


def test_a_stream_without_ticks_gives_notices() -> None:
    """What a Greeks stream sends is handed on as it is, ticks included."""
    decoder = Decoder("BTCN2202207", None)
    for message in ({"feature": "scheduled for future release"}, FLAT, FORMS["enveloped"](FLAT)):
        assert decoder.decode(json.dumps(message).encode(), 1) == Notice("BTCN2202207", message, 1)


# What is refused.


@pytest.mark.usefixtures("loader")
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
def test_what_is_not_json_is_refused(payload: bytes) -> None:
    """Broken, cut off, not UTF-8, or what only some readers would take: one `DecodeError`, with the payload."""
    error = refused(payload, bounded=False)
    assert "not JSON" in error.reason
    assert payload.decode("utf-8", "replace")[:PAYLOAD_LIMIT] == error.payload
    assert error.symbol == PAIR


@pytest.mark.usefixtures("loader")
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
def test_json_that_is_no_object_is_refused(payload: bytes, is_a: str) -> None:
    """The refusal says what it is."""
    assert refused(payload).reason == f"expected a JSON object, not {is_a}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", FLAT)
def test_a_tick_with_a_field_missing_is_refused(form: str, field: str) -> None:
    """The refusal names the field."""
    broken = {name: value for name, value in FLAT.items() if name != field}
    assert refused(FORMS[form](broken)).reason == f"field {field!r} is missing"


@pytest.mark.parametrize("fields", [("pair", "price"), ("date", "time"), ("pair", "UTCDate"), ("unixDate", "price")])
def test_two_fields_of_a_tick_make_a_broken_tick(fields: tuple[str, str]) -> None:
    """A tick that lost the rest is not taken for some unknown notice."""
    assert "is missing" in refused({name: (FLAT | LATER)[name] for name in fields}).reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", FLAT)
@pytest.mark.parametrize(
    ("value", "is_a"),
    [(None, "null"), (5, "a number"), (1.5, "a number"), (True, "a boolean"), ([], "a list"), ({}, "an object")],
)
def test_a_tick_with_a_field_of_another_type_is_refused(form: str, field: str, value: object, is_a: str) -> None:
    """The refusal names the field and what it is; a price that is a JSON number has lost digits already."""
    assert refused(FORMS[form](FLAT | {field: value})).reason == f"field {field!r} is {is_a}; expected a string"


@pytest.mark.parametrize("value", [None, True, "1659897295", [], {}])
def test_a_later_tick_with_a_unix_date_that_is_no_number_is_refused(value: object) -> None:
    """`unixDate` is not used, but a broken one makes a broken tick."""
    assert "field 'unixDate'" in refused(LATER | {"unixDate": value}).reason


@pytest.mark.parametrize("value", [None, 5, "text", True, [FLAT], []])
def test_result_data_that_is_no_object_is_refused(value: object) -> None:
    """An envelope has one tick in it."""
    assert "expected a tick object, not " in refused({"results": "streaming", "resultData": value}).reason


@pytest.mark.parametrize("other", ["ETH:USDC", "btc:usdc", "", "BTC:USDC ", "X" * 4_096])
def test_a_tick_of_another_pair_is_refused(other: str) -> None:
    """A stream carries one pair; the refusal names both, and stays short."""
    reason = refused(FLAT | {"pair": other}).reason
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
def test_a_date_that_is_none_is_refused(date: str) -> None:
    """In both forms, and without any other exception."""
    assert "date" in refused(FLAT | {"date": date}).reason
    assert "date" in refused(LATER | {"UTCDate": f"{date}T18:34:55.000Z"}).reason.lower()


@pytest.mark.parametrize("time", [*BAD_TIMES, "15:30:55.,Z", "15:30:55z", "1\uff15:30:55Z", "T15:30:55Z"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    """In both forms, and without any other exception."""
    assert "time" in refused(FLAT | {"time": time}).reason
    assert "time" in refused(LATER | {"UTCDate": f"2022-08-07T{time}"}).reason


@pytest.mark.parametrize("value", ["2022-08-07", "2022-08-07 18:34:55.000Z", "", "now"])
def test_a_utc_date_without_its_two_parts_is_refused(value: str) -> None:
    """Date and time are parted by a T."""
    assert "UTCDate" in refused(LATER | {"UTCDate": value}).reason


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
def test_a_price_that_is_no_decimal_number_is_refused(price: str, parse_price: Callable[[str], Any]) -> None:
    """Whatever `parse_price` would make of it: float takes NaN, underscores and other scripts' digits."""
    assert "is not a decimal number" in refused(FLAT | {"price": price}, parse_price=parse_price).reason


@pytest.mark.parametrize("field", ["exchange", "price", "time"])
@pytest.mark.parametrize("form", FORMS)
def test_a_field_has_a_longest_length(form: str, field: str) -> None:
    """Ticks wait by the ten thousand, and so the server must not choose their size; the quick ways agree."""
    value = FLAT[field].removesuffix("Z")
    last = "Z" if field == "time" else ""
    longest = {**FLAT, field: f"{value:0<{MAX_FIELD - len(last)}}{last}"}
    assert longest[field] == ticked(FORMS[form](longest), parse_price=str)[field]
    longer = {**FLAT, field: f"{value:0<{MAX_FIELD + 1 - len(last)}}{last}"}
    assert f"field {field!r} has 4,097 characters" in refused(FORMS[form](longer)).reason
    for payload in (json.dumps(FORMS[form](longer)), json.dumps(FORMS[form](longer), separators=(",", ":"))):
        assert not any(quickly([payload.encode()], reader) for reader in TICK_FORMS.values())


@pytest.mark.parametrize("size", [MAX_NOTICE, MAX_NOTICE + 1, MAX_MESSAGE, MAX_MESSAGE + 1])
def test_a_message_has_a_longest_length(size: int) -> None:
    """A tick may have more about it than anything else, which is kept whole; answers of functions have no bound."""
    note = f'{{"note":"{"x" * (size - 11)}"}}'.encode()
    tick = json.dumps({**FLAT, "more": ""}).encode()
    tick = tick.replace(b'"more": ""', b'"more": "%s"' % (b"x" * (size - len(tick))))
    assert size == len(note) == len(tick)
    if size == MAX_NOTICE:
        assert isinstance(decode(note), Notice)
    else:
        assert f"a message of {size:,} bytes" in refused(note).reason
    if size <= MAX_MESSAGE:
        assert FLAT["exchange"] == ticked(tick)["exchange"]
    else:
        assert f"a message of {size:,} bytes" in refused(tick).reason
    assert isinstance(decode(note, bounded=False), Notice)


def test_an_exponent_has_four_digits_at_most() -> None:
    """A type of number that is exact would take hours and gigabytes over more."""
    assert ticked(FLAT | {"price": "1e9999"}, parse_price=Fraction)["price"] == Fraction(10) ** 9_999
    assert "is not a decimal number" in refused(FLAT | {"price": "1e10000"}, parse_price=Fraction).reason


def test_a_price_beyond_a_float_is_refused() -> None:
    """It would be infinite; as a Decimal it is a price."""
    assert "parse_price returned inf for '1e400'" in refused(FLAT | {"price": "1e400"}).reason
    assert ticked(FLAT | {"price": "1e400"}, parse_price=Decimal)["price"] == Decimal("1e400")


@pytest.mark.parametrize(
    "text", ["1" * 1_000_000 + "x", "1" * 1_000_000 + ".", "." + "1" * 1_000_000 + "e", "1e" * 500_000]
)
def test_a_hostile_price_is_refused_in_reasonable_time(text: str) -> None:
    """No price takes the square of its length: the test's time limit would strike."""
    assert len(refused(FLAT | {"price": text + "x"}).reason) < 300


@pytest.mark.parametrize("raised", [ValueError("too cheap"), KeyError("x"), RecursionError(), ZeroDivisionError()])
def test_a_price_that_parse_price_refuses_is_refused_with_the_cause(raised: Exception) -> None:
    """The user's function may raise what it likes; it stays the cause."""

    def parse_price(text: str) -> float:
        raise raised

    error = refused(FLAT, parse_price=parse_price)
    assert error.reason == f"parse_price refused '19200.84' ({type(raised).__name__}: {raised})"
    assert raised is error.__cause__


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(("depth", "good"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (980, False), (990, False)])
@pytest.mark.parametrize("field", ["note", "error"])
def test_a_message_is_nested_to_a_limit_and_no_deeper(depth: int, good: bool, field: str) -> None:
    """The limit is the same for every reader of JSON, and far from that of Python's stack."""
    inner = depth - 1  # the object around it is the first level
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        value = opening * (inner - 1) + b"[]" + closing * (inner - 1)
        payload = b'{"' + field.encode() + b'":' + value + b', "padding": "' + b"x" * 2 * MAX_DEPTH + b'"}'
        if good:
            assert isinstance(decode(payload), (ServerError, Notice))
        else:
            assert "deep" in refused(payload).reason or "recursion" in refused(payload).reason


@pytest.mark.parametrize("length", [PAYLOAD_LIMIT, PAYLOAD_LIMIT + 1, 1_000_000])
def test_the_payload_of_a_refusal_is_cut(length: int) -> None:
    """An error keeps the beginning of what was received, and its text is short."""
    error = refused(b"x" * length, bounded=False)
    assert error.payload == "x" * PAYLOAD_LIMIT
    assert len(str(error)) < 300


@pytest.mark.usefixtures("loader")
def test_nothing_behind_a_refusal_keeps_the_whole_payload() -> None:
    """What the standard library raises holds all of it, and so is no part of the chain."""
    error = refused(b"x" * 1_000_000, bounded=False)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("length", [0, 5, PAYLOAD_LIMIT, 1_000_000])
def test_a_binary_message_is_refused(length: int) -> None:
    """FinX sends text alone; the bytes are kept, to the same limit."""
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
    monkeypatch.setattr(messages, "redact", lambda text: text.replace(KEY, "***"))


@pytest.mark.usefixtures("masked_key")
@pytest.mark.parametrize(
    "payload",
    [
        f"no JSON: {KEY}".encode(),
        json.dumps([KEY]).encode(),
        json.dumps(FLAT | {"pair": KEY}).encode(),
        json.dumps(FLAT | {"price": KEY}).encode(),
        json.dumps({"error": f"bad key {KEY}"}).encode(),
        json.dumps({"request": {KEY: [KEY]}}).encode(),
        json.dumps({"request": KEY, "padding": "x" * MAX_NOTICE}).encode(),
        json.dumps({"request": KEY, "padding": "x" * MAX_MESSAGE}).encode(),
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
    assert ticked(FLAT | {"exchange": KEY})["exchange"] == KEY
    assert Decoder(PAIR, PAIR).decode_tick(FLAT | {"exchange": KEY}, NOW_NS)["exchange"] == KEY  # type: ignore[index]


@pytest.mark.usefixtures("masked_key")
def test_an_answer_that_is_data_is_not_redacted_but_its_error_is() -> None:
    """With `redact_notices=False`, only errors are redacted."""
    decoder = Decoder("call", None, redact_notices=False)
    assert decoder.decode(json.dumps({"a": KEY}).encode(), NOW_NS) == Notice("call", {"a": KEY}, NOW_NS)
    error = decoder.decode(json.dumps({"error": KEY}).encode(), NOW_NS)
    assert isinstance(error, ServerError)
    assert error.message == "***"


@pytest.mark.usefixtures("masked_key")
@pytest.mark.parametrize("raw", [KEY, [KEY], {KEY: 1}, FLAT | {"pair": KEY}, FLAT | {"price": KEY}, {"pair": [KEY]}])
def test_the_error_of_a_tick_within_an_answer_is_redacted(raw: object) -> None:
    """It says what is wrong and shows the redacted tick."""
    error = Decoder(PAIR, PAIR).decode_tick(raw, NOW_NS)
    assert isinstance(error, DecodeError)
    assert KEY not in f"{error} {vars(error)!r}"
    assert error.payload == json.dumps(raw).replace(KEY, "***")
    assert error.__traceback__ is None
    assert error.__context__ is None


def test_a_tick_that_only_redaction_repairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is too long only because it holds the key doesn't make a tick."""
    monkeypatch.setattr(messages, "redact", lambda text: text.replace("x" * 5_000, "***"))
    error = Decoder(PAIR, PAIR).decode_tick(FLAT | {"exchange": "x" * 5_000}, NOW_NS)
    assert isinstance(error, DecodeError)
    assert error.reason == "not a tick: it contains the API key"
    # The mask may break the JSON, too.
    monkeypatch.setattr(messages, "redact", lambda text: text.replace('"pair"', "***"))
    error = Decoder(PAIR, PAIR).decode_tick(FLAT | {"price": 1}, NOW_NS)
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
    """A document of which some bytes were changed, cut out or put in."""
    payload = bytearray(draw(documents).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(payload)))
        payload[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(payload)


payloads = st.one_of(
    documents.map(lambda text: text.encode("utf-8", "surrogatepass")), broken(), st.binary(max_size=40)
)


def outcome(load: Callable[[bytes], Any], payload: bytes) -> str:
    """The value, types and signs of zeros included, or that there is none."""
    try:
        return repr(load(payload))
    except (ValueError, RecursionError):
        return "refused"


@pytest.mark.skipif(json_codec.msgspec is None, reason="msgspec is not installed")
@given(payloads)
@examples(1_500)
@example(b'{"a":"\\ud800","a":1}')
@example(b"-" + b"9" * 4_300)
@example(b'"\xed\xa0\x80"')
@example(b"\xef\xbb\xbf1")
def test_both_readers_of_json_agree(payload: bytes) -> None:
    """The fallback and `msgspec` give the same value for the same bytes, or both refuse them."""
    assert outcome(json_codec.msgspec.json.Decoder().decode, payload) == outcome(loads_stdlib, payload)


def test_msgspec_is_used_where_it_is_installed() -> None:
    """The faster reader is the one that decodes."""
    assert (loads_stdlib is messages.loads) == (json_codec.msgspec is None)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_are_read_exactly(number: float) -> None:
    """No digit of a number is lost by either reader."""
    for name, load in loaders().items():
        assert repr(number) == repr(load(repr(number).encode())), name


mostly_ticks = st.one_of(
    st.dictionaries(
        st.sampled_from([*FLAT, *LATER, "error", "errors", "results", "resultData"]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(max_size=8),
        )
        | st.sampled_from([*FLAT.values(), "streaming", "error", "2022-08-07T18:34:55.000Z"])
        | st.just(FLAT),
        max_size=7,
    ),
    st.dictionaries(st.sampled_from(list(FLAT)), st.text(max_size=12)).map(lambda wrong: FLAT | wrong),
    st.dictionaries(st.sampled_from(list(LATER)), st.text(max_size=12)).map(lambda wrong: LATER | wrong),
).map(lambda message: json.dumps(message).encode())


@pytest.mark.parametrize("name", ["json", "msgspec"])
@given(
    payload=st.one_of(
        payloads, mostly_ticks, mostly_ticks.map(lambda tick: b'{"results":"streaming","resultData":' + tick + b"}")
    )
)
@examples(700)
@example(payload=b'{"error":' + b"[" * 985 + b"]" * 985 + b"}")
@example(payload=b'{"error":' + b"[" * 990 + b"]" * 990 + b"}")
def test_whatever_comes_is_one_message_or_one_decode_error(name: str, payload: bytes) -> None:
    """A well-formed tick, a notice, a server error, or a `DecodeError` with the payload: nothing else, ever."""
    if name not in loaders():
        pytest.skip("msgspec is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "loads", loaders()[name])
        message = Decoder(PAIR, PAIR).decode(payload, NOW_NS)
    if isinstance(message, DecodeError):
        assert payload.decode("utf-8", "replace")[:PAYLOAD_LIMIT] == message.payload
        assert str(message).isprintable()
    elif type(message) is dict:
        assert set(message) == set(Tick.__annotations__)
        assert message["pair"] == PAIR
        assert math.isfinite(message["price"])
        assert message["timestamp"].tzinfo is UTC
    else:
        assert isinstance(message, (Notice, ServerError))
        assert str(message)


# The quick way.

TICK_FORMS = {
    "enveloped": json_codec.ENVELOPED,
    "flat": json_codec.FLAT,
    "enveloped, json": json_codec.ENVELOPED_STDLIB,
    "flat, json": json_codec.FLAT_STDLIB,
}


def quickly(payloads: list[bytes], form: json_codec.TickForm, **options: Any) -> list[Tick]:
    """The ticks that the quick way makes."""
    decoder = Decoder(PAIR, PAIR, **options)
    decoder._form = form
    return decoder.decode_ticks(payloads, 0, NOW_NS)


@pytest.mark.parametrize("form", TICK_FORMS)
@pytest.mark.parametrize("parse_price", [float, Decimal, str])
def test_the_quick_way_takes_what_is_documented(form: str, parse_price: Callable[[str], Any]) -> None:
    """A run of ordinary ticks is decoded to its end, and to what the longer way makes of them."""
    message = LATER if form.startswith("flat") else FORMS["enveloped"](FLAT)
    payload = json.dumps(message).encode()
    expected = decode(message, parse_price=parse_price)
    assert quickly([payload] * 3, TICK_FORMS[form], parse_price=parse_price) == [expected] * 3


def altered(value: str) -> st.SearchStrategy[Any]:
    """A field as it should be, mostly; or with something about it."""
    pieces = st.sampled_from(
        [
            "",
            " ",
            "Z",
            "T",
            ".",
            ",",
            ":",
            "+00:00",
            "_",
            "e5",
            "E400",
            "nan",
            "-",
            "\u0661",
            "\\",
            "0" * 230,
            "X" * 270,
        ]
    )
    bent = st.builds(
        lambda at, cut, put: value[:at] + put + value[at + cut :], st.integers(0, 30), st.integers(0, 3), pieces
    )
    return st.one_of(
        st.just(value), st.just(value), st.just(value), bent, st.sampled_from([None, 1, 1.5, True, [], {}])
    )


@st.composite
def nearly_ticks(draw: st.DrawFn) -> bytes:
    """A tick of either form, of which something may be wrong."""
    later = draw(st.booleans())
    tick = {
        key: draw(altered(value)) if isinstance(value, str) else value
        for key, value in (LATER if later else FLAT).items()
    }
    if draw(st.integers(0, 5)) == 0:
        tick.pop(draw(st.sampled_from(sorted(tick))))
    if draw(st.integers(0, 5)) == 0:
        tick["error" if draw(st.booleans()) else "more"] = draw(st.sampled_from([None, "x", {"a": [1]}]))
    message = tick if later else {"results": draw(altered("streaming")), "resultData": tick}
    return json.dumps(message, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@given(nearly_ticks(), st.sampled_from([float, Decimal, str]))
@examples(1_500)
@example(json.dumps(FORMS["enveloped"]({**FLAT, "time": "15:30:55.817+00:00"})).encode(), float)
@example(json.dumps(FORMS["enveloped"]({**FLAT, "price": "1e999"})).encode(), float)
@example(json.dumps(FORMS["enveloped"]({**FLAT, "price": "9" * 400})).encode(), float)
@example(json.dumps(FORMS["enveloped"]({**FLAT, "date": "2022-W26-6"})).encode(), float)
def test_the_quick_way_never_makes_another_tick(payload: bytes, parse_price: Callable[[str], Any]) -> None:
    """What the quick way takes, in any of its forms, is what the longer way makes of it; else it leaves it alone."""
    expected = Decoder(PAIR, PAIR, parse_price=parse_price).decode(payload, NOW_NS)
    for form in TICK_FORMS.values():
        assert quickly([payload], form, parse_price=parse_price) in ([], [expected])


def test_the_quick_way_stops_at_what_needs_a_closer_look() -> None:
    """What stands before the first message that is no ordinary tick is decoded."""
    good = json.dumps(FORMS["enveloped"](FLAT)).encode()
    for odd in (b"{}", b"nonsense", good.replace(b"BTC:USDC", b"ETH:USDC"), good.replace(b"19200.84", b"9.2E-7")):
        assert len(quickly([good, good, odd, good], json_codec.ENVELOPED)) == 2


def test_a_tick_of_the_other_form_changes_the_quick_way() -> None:
    """After a tick of the vendor's later form, ticks of that form are read quickly; and back."""
    decoder = Decoder(PAIR, PAIR)
    later, first = json.dumps(LATER).encode(), json.dumps(FORMS["enveloped"](FLAT)).encode()
    for payload, other in ((later, first), (first, later)):
        decoder.decode(payload, NOW_NS)
        assert len(decoder.decode_ticks([payload, other], 0, NOW_NS)) == 1


def test_a_date_that_changes_in_a_run_is_checked() -> None:
    """The date is remembered from tick to tick, and looked at anew where it is another."""
    run = [
        json.dumps(FORMS["enveloped"]({**FLAT, "date": date})).encode()
        for date in ("2022-07-02", "2022-07-03", "2022-7-4")
    ]
    assert [tick["timestamp"].day for tick in quickly(run, json_codec.ENVELOPED)] == [2, 3]


def test_a_stream_without_ticks_has_no_quick_way() -> None:
    """An option's stream carries no ticks, whatever the message looks like."""
    assert Decoder("BTCN2202207", None).decode_ticks([json.dumps(FLAT).encode()], 0, NOW_NS) == []
