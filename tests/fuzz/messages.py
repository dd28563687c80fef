"""Fuzz the decoder: the tick pattern and the thorough decoder must agree, and errors must not show the key.

The first byte of an input selects whether its lines are payloads or the five values of one tick. The second byte
selects `parse_price`. `{key}` stands for the API key, and `{escaped}` for the key in JSON escapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from finx_streamer.errors import PAYLOAD_LIMIT, DecodeError, ServerError
from finx_streamer.values import NO_BOUND, Notice
from finx_streamer.wire.decoder import MAX_ID, Decoder
from finx_streamer.wire.frames import read_text_frames
from tests.fuzz.fake_server import KEY, PAIR, check_secrecy, contains_key
from tests.support.peers import frame

SYMBOL = str(PAIR)
_ESCAPED = "".join(f"\\u{ord(character):04X}" for character in KEY).encode()
NOW_NS = 1_656_775_855_900_000_000
_VALUES, _SPACED, _FLAT, _REPEATED = 0x01, 0x02, 0x04, 0xF0
#: How often a payload is repeated, to find costs that grow faster than the size.
_REPEATS = 200


def _unreliable(text: str) -> float:
    """Parse a price, but sometimes raise an unusual exception."""
    if text.endswith("7"):
        raise ZeroDivisionError(text)
    return float(text)


_PRICES: tuple[Callable[[str], Any], ...] = (float, Decimal, str, _unreliable)


def run(data: bytes) -> None:
    """Try one input."""
    if contains_key(data):
        return
    if len(data) < 2:
        return
    parse_price = _PRICES[data[1] % len(_PRICES)]
    body = data[2:].replace(b"{key}", KEY.encode()).replace(b"{escaped}", _ESCAPED)
    if data[0] & _VALUES:
        payloads = [_message(body.split(b"\n"), bool(data[0] & _SPACED), bool(data[0] & _FLAT))]
    else:
        payloads = body.split(b"\n")
    if data[0] & _REPEATED == _REPEATED:
        payloads = [payloads[0].replace(b"~", payloads[0]), payloads[0] * _REPEATS]
    _check_patterns(payloads, parse_price)
    for payload in payloads:
        _check_answers(payload, parse_price)


def _message(values: list[bytes], spaced: bool, flat: bool) -> bytes:
    """Return the message of a tick with these values, unescaped: a value can contain more fields."""
    pair, date, time, exchange, price = (values + [b""] * 5)[:5]
    names = ["pair", "UTCDate", "exchange", "price"] if flat else ["pair", "date", "time", "exchange", "price"]
    parts = [pair, date + b"T" + time, exchange, price] if flat else [pair, date, time, exchange, price]
    colon, comma = (b": ", b", ") if spaced else (b":", b",")
    fields = [b'"%s"%s"%s"' % (name.encode(), colon, part) for name, part in zip(names, parts, strict=True)]
    if flat:
        fields.insert(1, b'"unixDate"' + colon + b"1659897295")
    tick = b"{" + comma.join(fields) + b"}"
    envelope = b'{"results"' + colon + b'"streaming"' + comma + b'"resultData"' + colon
    return tick if flat else envelope + tick + b"}"


def _decode_slowly(payload: bytes, parse_price: Callable[[str], Any]) -> str:
    """Decode and return the result as text, so that 1, 1.0 and True differ."""
    return repr(_decode(Decoder(SYMBOL, SYMBOL, parse_price), payload))


def _decode(decoder: Decoder, payload: bytes) -> Any:
    message = decoder.decode(payload, NOW_NS)
    if isinstance(message, DecodeError):
        _check_error(message)
    return message


def _check_error(error: DecodeError) -> None:
    assert len(error.payload) <= PAYLOAD_LIMIT
    assert str(error).isprintable()
    assert len(str(error)) < 10_000
    # That exception would keep the whole payload.
    assert not isinstance(error.__cause__, json.JSONDecodeError)


def _check_patterns(payloads: list[bytes], parse_price: Callable[[str], Any]) -> None:
    """Check that the ticks matched in a buffer are those of its frames."""
    buffer = b"".join(frame(payload) for payload in payloads)
    text = buffer.decode("latin-1")
    for payload in payloads:
        _decode_slowly(payload, parse_price)
    for example in (*_EXAMPLES, payloads[0]):
        decoder = Decoder(SYMBOL, SYMBOL, parse_price)
        decoder.decode(example, NOW_NS)
        ticks, end = decoder.match_ticks(text, 0, NO_BOUND, NOW_NS)
        matched, same_end = read_text_frames(buffer, 0, len(ticks))
        assert (len(ticks), end) == (len(matched), same_end)
        assert [*map(repr, ticks)] == [_decode_slowly(payload, parse_price) for payload in matched]
        assert not ticks or decoder.number == _number(matched[-1], parse_price)


def _number(payload: bytes, parse_price: Callable[[str], Any]) -> int | None:
    decoder = Decoder(SYMBOL, SYMBOL, parse_price)
    decoder.decode(payload, NOW_NS)
    assert decoder.number is None or 0 < decoder.number <= MAX_ID
    return decoder.number


def _check_answers(payload: bytes, parse_price: Callable[[str], Any]) -> None:
    """Check that an answer to a function call doesn't show the key, unless it's data."""
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return  # the frame reader rejects such text
    for redact_notices in (True, False):
        answer = Decoder("call", None, bounded=False, redact_notices=redact_notices).decode(payload, NOW_NS)
        if isinstance(answer, ServerError | DecodeError):
            check_secrecy(f"{answer!r} {answer.__dict__!r}")
        elif redact_notices:
            check_secrecy(repr(answer))
    if not isinstance(answer, Notice):
        return
    decoder = Decoder(SYMBOL, SYMBOL, parse_price)
    for raw in (answer.message, *answer.message.values()):
        tick = decoder.decode_tick(raw, NOW_NS)
        if isinstance(tick, DecodeError):
            _check_error(tick)
            check_secrecy(f"{tick!r} {tick.__dict__!r}")
    # The same message as a notice of a stream.
    notice = _decode(Decoder(SYMBOL, None), payload)
    if isinstance(notice, Notice):
        check_secrecy(repr(notice.message))


_FIELDS = (SYMBOL.encode(), b"2022-07-02", b"15:30:55.817Z", b"BINANCE", b"19200.84")
_EXAMPLES = (
    _message([*_FIELDS], False, False),
    _message([*_FIELDS], True, False),
    _message([*_FIELDS], False, False)[:-1] + b',"id":1042}',
    _message([*_FIELDS], False, True),
    _message([*_FIELDS], True, True)[:-1] + b', "id": 1042}',
)
_IDS = (b"1042", b"0", b"-0", b"01", b"1.0", b"1e3", b"true", b"null", b'"5"', b"9" * 18, b"9" * 19, b"[1]")


def _with_value(place: int, value: bytes) -> bytes:
    return b"\n".join([*_FIELDS[:place], value, *_FIELDS[place + 1 :]])


_ODD_VALUES = (
    (0, b"ETH:USDC"),
    (1, b"2022-02-30"),
    (2, b"15:30:55Z"),
    (2, b"15:30:55.8174259999Z"),
    (2, b"24:00:00.000Z"),
    (3, b""),
    (3, b"\\u0041\\ud83d\\ude00"),
    (3, b"\xc3\x84"),
    (4, b"9.2E-7"),
    (4, b"1e999"),
    (4, b"1_0"),
    (4, b"7"),
    (4, b'1","more":"x'),
)
_PAYLOADS = (
    _EXAMPLES[0] + b"\n" + _EXAMPLES[1] + b"\n" + _message([*_FIELDS], False, True) + b"\n" + _EXAMPLES[0],
    b"\n".join(_EXAMPLES[0][:-1] + b',"id":%s}' % number for number in _IDS),
    b"\n".join(_message([*_FIELDS], True, True)[:-1] + b', "id": %s}' % number for number in _IDS),
    b'{"id":7,' + _EXAMPLES[0][1:] + b"\n" + _EXAMPLES[2][:-1] + b',"id":8}\n' + _EXAMPLES[2],
    b'{"keepAlive":true}\n{"isAuth":true}\n{"error":"no such key {key}"}\n[]\n\nnull',
    b'{"results":"error","resultData":{"{escaped}":1e5}}',
    b'{"0":' + _message([*_FIELDS], False, True) + b',"1":{"pair":"{key}","price":1}}',
    b'{"0":{"pair":"' + b"x" * 65 + b'{key}"},"1":"' + b"x" * 920 + b'{key}"}',
    b'{"a":1,"a":2,"b":[1.5,-0,1E400,NaN,"\\ud800"],"c":{"d":null}}',
    b'{"a":' + b"[" * 99 + b"]" * 99 + b"}",
    b'{"a":' + b"[" * 101 + b"]" * 101 + b"}",
    b'{"date":"x","time":"\\u0000\\n"}\n\xff\xfe\n\xef\xbb\xbf{}',
)
SEEDS = [
    *(bytes([options, price]) + b"\n".join(_FIELDS) for options in (1, 3, 5, 7) for price in range(4)),
    *(bytes([1, price]) + _with_value(*odd) for price, odd in enumerate(_ODD_VALUES)),
    *(bytes([5, price]) + _with_value(*odd) for price, odd in enumerate(_ODD_VALUES)),
    *(b"\0\0" + payload for payload in _PAYLOADS),
    *(b"\xf0\0" + payload for payload in (b'{"a":~}', b"\\u00", b"[", b'"\\', b"1", b" ")),
    b"\xf1\0" + _with_value(4, b"1" * 20),
]
WORDS = [
    _EXAMPLES[0],
    *(b'"%s":' % name for name in (b"pair", b"date", b"time", b"exchange", b"price", b"UTCDate", b"unixDate")),
    *(b'"%s":' % name for name in (b"results", b"resultData", b"id", b"error", b"errors", b"0")),
    b'"streaming"',
    b'"error"',
    b'"BTC:USDC"',
    b'"2022-07-02"',
    b'"15:30:55.817Z"',
    b'"2022-08-07T18:34:55.000Z"',
    b"{key}",
    b"{escaped}",
    b"true",
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e400",
    b"-0",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\\u0000",
    b"\\u002F",
    b"\\/",
    b'\\"',
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
]
