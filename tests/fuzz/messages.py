"""Messages: the quick ways to read ticks beside the thorough one, with either reader of JSON, and what errors show.

An input's first byte says what the rest is: payloads, one a line, or the five values of a tick, one a line, put into
its message as they are. The second byte says by what prices are parsed. `{key}` stands for the API key, `{escaped}` for
its JSON escapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from finx_streamer.errors import PAYLOAD_LIMIT, DecodeError, ServerError
from finx_streamer.values import NO_BOUND, Notice
from finx_streamer.wire import decoder as messages
from finx_streamer.wire import json_codec
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import read_text_frames
from finx_streamer.wire.json_codec import ENVELOPED, ENVELOPED_STDLIB, FLAT, FLAT_STDLIB, TickForm
from tests.fuzz.near import KEY, PAIR, check_secrecy, holds_traces
from tests.support.peers import frame

SYMBOL = str(PAIR)
_ESCAPED = "".join(f"\\u{ord(character):04X}" for character in KEY).encode()
NOW_NS = 1_656_775_855_900_000_000
_READERS = (json_codec.loads, json_codec.loads_stdlib)
_FORMS = (ENVELOPED, FLAT, ENVELOPED_STDLIB, FLAT_STDLIB)
_VALUES, _SPACED, _LATER, _MANY = 0x01, 0x02, 0x04, 0xF0
#: How often a payload is repeated within itself, to see that its cost does not grow faster than its size.
_REPEATS = 200


def _picky(text: str) -> float:
    """Raises what nobody would expect of it, now and then."""
    if text.endswith("7"):
        raise ZeroDivisionError(text)
    return float(text)


_PRICES: tuple[Callable[[str], Any], ...] = (float, Decimal, str, _picky)


def run(data: bytes) -> None:
    """One input."""
    if holds_traces(data):
        return
    if len(data) < 2:
        return
    parse_price = _PRICES[data[1] % len(_PRICES)]
    body = data[2:].replace(b"{key}", KEY.encode()).replace(b"{escaped}", _ESCAPED)
    if data[0] & _VALUES:
        payloads = [_message(body.split(b"\n"), bool(data[0] & _SPACED), bool(data[0] & _LATER))]
    else:
        payloads = body.split(b"\n")
    if data[0] & _MANY == _MANY:
        payloads = [payloads[0].replace(b"~", payloads[0]), payloads[0] * _REPEATS]
    expected = [_thorough(payload, parse_price) for payload in payloads]
    for form in _FORMS:
        assert _in_runs(payloads, form, parse_price) == expected
    _compare_templates(payloads, parse_price)
    for payload in payloads:
        _check_answers(payload, parse_price)


def _message(values: list[bytes], spaced: bool, later: bool) -> bytes:
    """The message of a tick, whatever its values; the last of them may bring anything along."""
    pair, date, time, exchange, price = (values + [b""] * 5)[:5]
    names = ["pair", "UTCDate", "exchange", "price"] if later else ["pair", "date", "time", "exchange", "price"]
    parts = [pair, date + b"T" + time, exchange, price] if later else [pair, date, time, exchange, price]
    colon, comma = (b": ", b", ") if spaced else (b":", b",")
    fields = [b'"%s"%s"%s"' % (name.encode(), colon, part) for name, part in zip(names, parts, strict=True)]
    if later:
        fields.insert(1, b'"unixDate"' + colon + b"1659897295")
    tick = b"{" + comma.join(fields) + b"}"
    envelope = b'{"results"' + colon + b'"streaming"' + comma + b'"resultData"' + colon
    return tick if later else envelope + tick + b"}"


def _thorough(payload: bytes, parse_price: Callable[[str], Any]) -> str:
    """What `decode` makes of a payload, the same whatever reads the JSON: as text, for 1 and 1.0 and True to differ."""
    found = []
    for loads in _READERS:
        before, messages.loads = messages.loads, loads
        try:
            found.append(_shown(_decode(Decoder(SYMBOL, SYMBOL, parse_price), payload)))
        finally:
            messages.loads = before
    assert len(set(found)) == 1, found
    return found[0]


def _decode(decoder: Decoder, payload: bytes) -> Any:
    message = decoder.decode(payload, NOW_NS)
    if isinstance(message, DecodeError):
        _check_error(message)
    return message


def _shown(message: Any) -> str:
    """Errors of the two readers say what was wrong in words of their own."""
    if isinstance(message, DecodeError):
        return f"error {message.payload!r}"
    if isinstance(message, ServerError):
        return f"{message!r} {message.payload!r}"
    return repr(message)


def _check_error(error: DecodeError) -> None:
    assert len(error.payload) <= PAYLOAD_LIMIT
    assert str(error).isprintable()
    assert len(str(error)) < 10_000
    # The standard library's exception would hold the whole payload.
    assert not isinstance(error.__cause__, json.JSONDecodeError)


def _in_runs(payloads: list[bytes], form: TickForm, parse_price: Callable[[str], Any]) -> list[str]:
    """As the network side does: runs by the quick way, and what ends a run by the thorough one."""
    decoder, found = Decoder(SYMBOL, SYMBOL, parse_price), list[str]()
    decoder._form = form
    while len(found) < len(payloads):
        found += map(repr, decoder.decode_ticks(payloads, len(found), NOW_NS))
        if len(found) < len(payloads):
            found.append(_shown(_decode(decoder, payloads[len(found)])))
    return found


def _compare_templates(payloads: list[bytes], parse_price: Callable[[str], Any]) -> None:
    """What is taken out of a buffer at once are the ticks that its frames hold."""
    buffer = b"".join(frame(payload) for payload in payloads)
    text = buffer.decode("latin-1")
    for taught in (*_TAUGHT, payloads[0]):
        decoder = Decoder(SYMBOL, SYMBOL, parse_price)
        decoder.decode_ticks([taught], 0, NOW_NS)
        ticks, end = decoder.match_ticks(text, 0, NO_BOUND, NOW_NS)
        taken, same_end = read_text_frames(buffer, 0, len(ticks))
        assert (len(ticks), end) == (len(taken), same_end)
        assert [_thorough(payload, parse_price) for payload in taken] == [*map(repr, ticks)]


def _check_answers(payload: bytes, parse_price: Callable[[str], Any]) -> None:
    """As the answer to a function call. Nothing of it shows the key, but for what was asked for as data."""
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return  # the transport lets no such text pass
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
    # A notice on a stream.
    clean = _decode(Decoder(SYMBOL, None), payload)
    if isinstance(clean, Notice):
        check_secrecy(repr(clean.message))


_FIELDS = (SYMBOL.encode(), b"2022-07-02", b"15:30:55.817Z", b"BINANCE", b"19200.84")
_TAUGHT = (_message([*_FIELDS], False, False), _message([*_FIELDS], True, False))


def _bent(place: int, value: bytes) -> bytes:
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
    _TAUGHT[0] + b"\n" + _TAUGHT[1] + b"\n" + _message([*_FIELDS], False, True) + b"\n" + _TAUGHT[0],
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
    *(bytes([how, price]) + b"\n".join(_FIELDS) for how in (1, 3, 5, 7) for price in range(4)),
    *(bytes([1, price]) + _bent(*odd) for price, odd in enumerate(_ODD_VALUES)),
    *(bytes([5, price]) + _bent(*odd) for price, odd in enumerate(_ODD_VALUES)),
    *(b"\0\0" + payload for payload in _PAYLOADS),
    *(b"\xf0\0" + payload for payload in (b'{"a":~}', b"\\u00", b"[", b'"\\', b"1", b" ")),
    b"\xf1\0" + _bent(4, b"1" * 20),
]
WORDS = [
    _TAUGHT[0],
    *(b'"%s":' % name for name in (b"pair", b"date", b"time", b"exchange", b"price", b"UTCDate", b"unixDate")),
    *(b'"%s":' % name for name in (b"results", b"resultData", b"error", b"errors", b"0")),
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
