"""Fuzz the input of the local server: request paths, function calls, and lines of a tape.

The first byte of an input selects which. `{key}` stands for the key that the server accepts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import functions, ticks
from finx_streamer.server.functions import CallError
from finx_streamer.server.protocol import (
    HandshakeRefused,
    Kind,
    check_symbol,
    encode_enveloped,
    encode_flat,
    parse_path,
)
from finx_streamer.server.store import TickStore
from tests.fuzz.fake_server import KEY, check_secrecy, contains_key

_PAIRS = frozenset({"BTC:USDC", "ETH:BTC"})
_DAY = "2022-07-02"
_ROWS = [("BTC:USDC", _DAY, f"15:30:{n:02}.{n}Z", name, f"{n}.5") for n in range(5) for name in ("A", 'B"\\')]


def _ask(query: functions.Query) -> str:
    """Ask a store in memory that has a few ticks."""
    store = TickStore()
    with store.opened():
        store.write(_ROWS)
        return query(store)


def run(data: bytes) -> None:
    """Try one input."""
    if contains_key(data):
        return
    body = data[1:].replace(b"{key}", KEY.encode())
    _CHECKS[(data[0] if data else 0) % len(_CHECKS)](body)


def _check_path(body: bytes) -> None:
    path = body.decode("latin-1")
    try:
        route = parse_path(path)
        assert route.kind in Kind
        check_symbol(route, _PAIRS)
    except HandshakeRefused as refused:
        assert refused.status in (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_URI_TOO_LONG)
        assert json.loads(refused.body) == {"error": refused.text}
        assert len(refused.text) < 500
    else:
        assert route.kind is not Kind.TICKS or route.symbol in _PAIRS


def _check_call(body: bytes, strict: bool) -> None:
    # The WebSocket library rejects text that isn't UTF-8.
    message = body.decode("utf-8", "replace")
    try:
        call = functions.read_call(message, KEY, KEY.__eq__, strict=strict)
        if call is None:
            assert not strict
            return
        assert call.name in functions.FUNCTIONS
        check_secrecy(repr(call))
        answer = functions.prepare(call, _PAIRS)
        text = answer if isinstance(answer, str) else _ask(answer)
    except CallError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 500
        check_secrecy(str(error))
    else:
        assert isinstance(json.loads(text), dict)


def _check_tick(body: bytes) -> None:
    """Check one line of a tape."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        return
    try:
        tick = ticks.parse_tick(raw)
    except ValueError as error:
        assert isinstance(error, ConfigurationError) or type(error) is ValueError
        return
    assert 0 <= ticks.epoch_seconds(tick) - ticks.day_start(tick["date"]) <= 86_401
    seconds, _ = ticks.exact_time(tick["date"], tick["time"])
    assert seconds == int(ticks.epoch_seconds(tick) // 1)
    sent: Any = json.loads(encode_enveloped(tick))["resultData"]
    assert sent == tick
    assert json.loads(encode_flat(tick))["price"] == tick["price"]


_CHECKS: tuple[Callable[[bytes], None], ...] = (
    _check_path,
    lambda body: _check_call(body, True),
    lambda body: _check_call(body, False),
    _check_tick,
)


def _call(name: str, **arguments: object) -> bytes:
    return json.dumps({"APIKey": "{key}", "functionName": name, **arguments}).encode()


_WHEN = {"pair": "BTC:USDC", "date": _DAY, "time": "15:30:01.5Z"}
_TICK = {**_WHEN, "exchange": "A", "price": "1.5"}
_CALLS = (
    _call("authenticate"),
    _call("keepAlive"),
    _call("tickHistory", **_WHEN),
    _call("tickHistory", **_WHEN, exchange='B"\\'),
    _call("tickHistory", pair="{key}", date=_DAY, time="00:00"),
    _call("tickHistory", pair="ETH:BTC", date=_DAY, time="00:00"),
    _call("tickSnap", **_WHEN | {"time": "23:59:60"}),
    _call("tickSnap", **_WHEN | {"date": "2022-13-01"}),
    _call("tickSnap", **_WHEN | {"exchange": 1}),
    _call("referenceData", securityId="BTC"),
    _call("referenceData", securityId="{key}"),
    _call("greeksHistory"),
    _call("{key}"),
    b'{"functionName":"authenticate","APIKey":"x"}',
    b'{"functionName":"authenticate"}',
    b'{"keepAlive":true}',
    b"[" * 3_000,
    b"",
)
_PATHS = (
    b"/streaming/{key}/BTC:USDC",
    b"/streaming/{key}/BTC%3AUSDC?x",
    b"/streaming/greeks/{key}/BTCN2202207",
    b"/streamer/{key}",
    b"/streaming/%ff/A:B",
    b"//",
)
SEEDS = [
    *(b"\0" + path for path in _PATHS),
    *(b"\1" + call for call in _CALLS),
    *(b"\2" + call for call in _CALLS[-4:]),
    *(
        b"\3" + json.dumps(_TICK | odd).encode()
        for odd in ({}, {"time": "23:59:60.5"}, {"price": "1e5"}, {"date": "0"})
    ),
]
WORDS = [
    b'{"APIKey":"{key}","functionName":',
    *(f'"{name}"'.encode() for name in functions.FUNCTIONS),
    *(b'"%s":' % name for name in (b"pair", b"date", b"time", b"exchange", b"price", b"securityId")),
    b'"BTC:USDC"',
    b'"ETH:BTC"',
    b'"2022-07-02"',
    b'"15:30"',
    b"{key}",
    b"streaming/",
    b"streamer/",
    b"greeks/",
    b"%3A",
    b"%ff",
    b"\\u0000",
    b"\\ud800",
]
