"""The reader of an answer of tick history, compared with the decoder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer import DecodeError, ServerError
from finx_streamer.values import Notice
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import Binary
from finx_streamer.wire.tick_list import SHORTEST, BadTick, TickList, decode_tick, read_tick_list

PAIR, DAY = "BTC:USDC", "2022-07-02"
#: How many ordinary ticks make an answer long enough for the expression, in either form.
MANY = 180
STYLES = [{"separators": (",", ":")}, {}, {"separators": (",", ": ")}, {"indent": 1}]

RawTick = dict[str, Any]


def enveloped(number: int) -> RawTick:
    """An ordinary tick."""
    time = f"12:{number // 60 % 60:02}:{number % 60:02}.{number % 1_000:03}Z"
    return {"pair": PAIR, "date": DAY, "time": time, "exchange": f"X{number % 3}", "price": f"{number}.50"}


def flat(raw: RawTick) -> RawTick:
    """The same tick in the vendor's later form."""
    moment = {"pair": raw["pair"], "unixDate": 1_656_763_200, "UTCDate": f"{raw['date']}T{raw['time']}"}
    return {**moment, "exchange": raw["exchange"], "price": raw["price"]}


def refuse_sevens(text: str) -> str:
    """A `parse_price` that refuses some prices."""
    if "7" in text:
        raise KeyError(text)
    return text


PARSERS: list[Callable[[str], Any]] = [float, Decimal, str, refuse_sevens]


def thoroughly(payload: bytes | Binary, decoder: Decoder, received_ns: int) -> Any:
    """Read an answer with the decoder only."""
    message = Decoder("tickHistory", None, bounded=False, redact_notices=False).decode(payload, 0)
    if not isinstance(message, Notice):
        return message
    results = [decode_tick(raw, decoder, received_ns) for raw in message.message.values()]
    errors = [result for result in results if isinstance(result, DecodeError)]
    if errors:
        return errors[0]
    bad = [result for result in results if isinstance(result, BadTick)]
    ticks = [result for result in results if type(result) is dict]
    times = [each.timestamp for each in bad if each.timestamp] + [each["timestamp"] for each in ticks]
    return TickList(len(results), max(times, default=None), lambda: (ticks, bad))


def facts(result: Any) -> Any:
    """Everything that can be compared."""
    if isinstance(result, BadTick):
        return facts(result.error), result.timestamp
    if isinstance(result, DecodeError):
        return result.reason, result.payload, result.symbol
    if isinstance(result, ServerError):
        return result.message
    ticks, bad = result.read()
    ordered = [[(key, type(value), value) for key, value in tick.items()] for tick in ticks]
    return result.size, result.reached, ordered, [*map(facts, bad)]


def check_same(payload: bytes | Binary, parse_price: Callable[[str], Any] = float) -> Any:
    """Check that both readers return the same, and return it."""
    decoder = Decoder(PAIR, PAIR, parse_price)
    result = read_tick_list(payload, decoder, DAY, 5)
    assert facts(result) == facts(thoroughly(payload, decoder, 5))
    return result


def encode(raws: list[Any], keys: list[str] | None = None, **style: Any) -> bytes:
    """An answer with these values."""
    return json.dumps(dict(zip(keys or map(str, range(len(raws))), raws, strict=True)), **style).encode(
        "utf-8", "surrogatepass"
    )


ODD_TIMES = [
    "23:59:60.5Z",
    "23:59:60Z",
    "12:00:0.5Z",
    "12:00:00,5Z",
    "120000.5Z",
    "12:00:00.5+01:00Z",
    "",
    "12:00:00.Z",
]
ODD_TIMES += ["12:00:00Z", "12:00:00", "12:00:00.5", "12:00:00.123456789Z", "24:00:00.0Z", "25:00:00.0Z", "12:30:550Z"]
ODD_TIMES += [f"12:00:00.{'5' * count}Z" for count in (99, 100, 4_085, 4_086, 4_087)]
ODD_PRICES = [
    "NaN",
    "inf",
    "-1",
    "+1",
    "1_0",
    " 1",
    "1" * 31,
    "9" * 30 + "e99",
    "1e999",
    "1e9999",
    "1e00001",
    "1" * 400,
]
ODD_PRICES += ["1e-07", "1E5", "٣", ".5", "5.", ".", "", "1.2.3", "1+5", "1e", "1e+", "e5", "0x1", "7"]
ODD_EXCHANGES = ["", "{", "}", "},", "\\", '"', "é", "\x7f", "\n", "A" * 4_096, "A" * 4_097, "a,b", "[", "\ud800"]
_TIMES = st.one_of(
    st.from_regex(r"[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,12})?Z?", fullmatch=True),
    st.sampled_from(ODD_TIMES),
    st.text("0123456789:.Z", max_size=14),
)
_PRICES = st.one_of(
    st.from_regex(r"[+-]?[0-9.]{0,4}([eE][+-]?[0-9]{0,6})?", fullmatch=True),
    st.sampled_from(ODD_PRICES),
    st.floats().map(repr),
)
_EXCHANGES = st.one_of(st.text(max_size=4), st.sampled_from(ODD_EXCHANGES))
_DAYS = st.sampled_from([DAY, DAY, DAY, "2022-07-01", "2022-7-2", "", "2022-07-02T"])
#: A change of one tick.
_CHANGES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda value: {"time": value}, _TIMES),
    st.builds(lambda value: {"price": value}, _PRICES),
    st.builds(lambda value: {"exchange": value}, _EXCHANGES),
    st.builds(lambda value: {"date": value}, _DAYS),
    st.builds(lambda time, price: {"time": time, "price": price}, _TIMES, _PRICES),
    st.sampled_from([{"price": 1.5}, {"time": None}, {"exchange": 5}, {"id": 7}, {"more": {"a": [1]}}, {"date": []}]),
)


@pytest.mark.parametrize("parse_price", PARSERS)
@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize(
    ("field", "values"), [("time", ODD_TIMES), ("price", ODD_PRICES), ("exchange", ODD_EXCHANGES)], ids=str
)
def test_odd_values_are_read_as_the_decoder_does(
    field: str, values: list[str], ensure_ascii: bool, parse_price: Callable[[str], Any]
) -> None:
    """One value in an ordinary answer, in both forms."""
    for value in values:
        raws = [enveloped(number) for number in range(MANY)]
        raws[50] = {**raws[50], field: value}
        for form in (raws, list(map(flat, raws))):
            text = json.dumps(dict(enumerate(form)), separators=(",", ":"), ensure_ascii=ensure_ascii)
            check_same(text.encode("utf-8", "surrogatepass"), parse_price)


@pytest.mark.parametrize("end", ["", "}", "}}", ",", "},", ",}", "},}", "}}}", "}},", "}} ", "}]"])
def test_any_end_is_read_as_the_decoder_does(end: str) -> None:
    """Only one end is valid JSON."""
    payload = encode([enveloped(number) for number in range(MANY)], separators=(",", ":"))
    check_same(payload.removesuffix(b"}}") + end.encode())


@given(
    st.lists(st.tuples(st.integers(0, MANY), _CHANGES), max_size=4),
    st.sampled_from(STYLES),
    st.booleans(),
    st.booleans(),
    st.sampled_from(PARSERS),
    st.randoms(use_true_random=False),
)
def test_any_ticks_are_read_as_the_decoder_does(
    changes: list[tuple[int, dict[str, Any]]],
    style: dict[str, Any],
    is_flat: bool,
    ensure_ascii: bool,
    parse_price: Callable[[str], Any],
    rng: random.Random,
) -> None:
    """The same ticks, bad ticks, order, size and times, in both forms and all styles of JSON."""
    raws = [enveloped(number) for number in range(MANY)]
    rng.shuffle(raws)
    for place, change in changes:
        raws.insert(place, {**enveloped(place), **change})
    if is_flat:
        raws = [flat(raw) if set(raw) == set(enveloped(0)) else raw for raw in raws]
    check_same(encode(raws, **style, ensure_ascii=ensure_ascii), parse_price)


@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3))
def test_a_damaged_answer_is_read_as_the_decoder_does(damages: list[tuple[float, bytes, int]]) -> None:
    """Bytes that are replaced, added or missing have the same result, usually an error."""
    payload = encode([enveloped(number) for number in range(MANY)], separators=(",", ":"))
    for part, new, removed in damages:
        at = round(part * len(payload))
        payload = payload[:at] + new + payload[at + removed :]
    check_same(payload)


@example(50, "}", -1)
@example(50, "{", -1)
@given(
    st.integers(0, MANY - 1),
    st.sampled_from([",", "}", "{", '"', ":", '{"a":1}', "null", '"0":', "\\", "\x00", "é", " ", "[", "1"]),
    st.integers(-3, 3),
)
def test_a_damaged_seam_is_read_as_the_decoder_does(place: int, new: str, offset: int) -> None:
    """The same near the beginning of a tick, where the expression passes from one match to the next."""
    payload = encode([enveloped(number) for number in range(MANY)], separators=(",", ":"))
    at = payload.index(f'"{place}":{{'.encode()) + offset
    check_same(payload[:at] + new.encode() + payload[at:])
    check_same(payload[:at] + new.encode() + payload[at + 1 :])


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("style", STYLES[:2])
def test_the_expression_reads_ordinary_answers(style: dict[str, Any], is_flat: bool) -> None:
    """A long answer isn't decoded one by one: nothing else explains that `read` builds new ticks each time."""
    raws = [flat(enveloped(number)) if is_flat else enveloped(number) for number in range(MANY)]
    payload = encode(raws, **style)
    assert len(payload) > SHORTEST
    found = check_same(payload)
    assert found.size == MANY
    assert found.reached == datetime(2022, 7, 2, 12, 2, 59, 179_000, UTC)
    assert found.read()[0][0] is not found.read()[0][0]


def test_one_odd_tick_does_not_slow_down_the_others() -> None:
    """Only that tick goes to the decoder."""
    raws = [enveloped(number) for number in range(MANY)]
    raws[50] = {**raws[50], "price": "NaN"}
    found = check_same(encode(raws))
    ticks, bad = found.read()
    assert (len(ticks), len(bad)) == (MANY - 1, 1)
    assert found.read()[0][0] is not ticks[0]


@pytest.mark.parametrize("keys", [["0"] * MANY, [*map(str, range(MANY - 1)), "5"], [*map(str, reversed(range(MANY)))]])
def test_equal_keys_replace_each_other(keys: list[str]) -> None:
    """As in any JSON object, the last of two members with the same key counts."""
    members = [f'"{key}": {json.dumps(enveloped(number))}' for number, key in enumerate(keys)]
    found = check_same(f"{{{', '.join(members)}}}".encode())
    assert found.size == len(set(keys))


@pytest.mark.parametrize("count", [0, MANY])
@pytest.mark.parametrize("other", [{"pair": "ETH:USDC"}, 5, None, "text", [], {}])
def test_anything_but_ticks_of_the_pair_is_an_error(other: Any, count: int) -> None:
    """Such an answer may belong to another call."""
    raws: list[Any] = [enveloped(number) for number in range(count)]
    value = {**enveloped(0), **other} if other and isinstance(other, dict) else other
    result = check_same(encode([*raws, value]))
    # A missing pair says nothing about the call.
    assert isinstance(result, TickList if other == {} else DecodeError)


@pytest.mark.parametrize("payload", [b"{}", b"", b"[]", b"null", b'{"error":"no"}', b'{"error":"no","0":{}}', b"\xff"])
def test_other_answers_are_read_as_the_decoder_does(payload: bytes) -> None:
    """Short ones, errors, and what isn't JSON or UTF-8."""
    check_same(payload)


def test_a_binary_answer_is_an_error() -> None:
    """FinX sends only text."""
    assert isinstance(check_same(Binary(b"{}")), DecodeError)
