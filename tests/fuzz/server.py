"""Fuzz the input of the local server: request paths, function calls and subscriptions, and lines of a tape.

The first byte of an input selects which. `{key}` stands for the key that the server accepts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import contracts, functions, ticks
from finx_streamer.server.functions import CallError
from finx_streamer.server.protocol import (
    HandshakeRefused,
    Kind,
    check_symbol,
    encode_contract,
    encode_contract_enveloped,
    encode_enveloped,
    encode_flat,
    error_message,
    parse_path,
)
from finx_streamer.server.store import TickStore
from finx_streamer.server.tick_log import Position
from tests.fuzz.fake_server import KEY, check_secrecy, contains_key

_PAIRS = frozenset({"BTC:USDC", "ETH:BTC"})
_CONTRACTS = frozenset({"BTC-26AUG22-20000-C", "BTC-26AUG22", "BTC-PERPETUAL", "ETH-7OCT22-0d5-P"})
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
        check_symbol(route, _PAIRS, _CONTRACTS)
    except HandshakeRefused as refused:
        assert refused.status in (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_URI_TOO_LONG)
        assert json.loads(refused.body) == {"error": refused.text}
        assert len(refused.text) < 500
    else:
        assert route.kind is not Kind.TICKS or route.symbol in _PAIRS
        assert route.kind is not Kind.GREEKS or route.symbol in _CONTRACTS | contracts.months_of(_CONTRACTS)


def _check_call(body: bytes, strict: bool) -> None:
    # The WebSocket library rejects text that isn't UTF-8.
    message = body.decode("utf-8", "replace")
    call = None
    try:
        call = functions.read_call(message, KEY, KEY.__eq__, strict=strict)
        if call is None:
            assert not strict
            return
        assert call.name in functions.FUNCTIONS
        check_secrecy(repr(call))
        answer = functions.prepare(call, _PAIRS, _CONTRACTS)
        assert isinstance(answer, functions.Subscription) == (call.name in functions.SUBSCRIBING)
        if isinstance(answer, functions.Subscription):
            _check_subscription(call, answer)
            return
        text = answer if isinstance(answer, str) else _ask(answer)
    except CallError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 500
        sent = error_message(str(error), None if call is None else call.subject)
        check_secrecy(sent)
        assert set(json.loads(sent)) <= {"error", "pair", "instrumentName"}
    else:
        assert isinstance(json.loads(text), dict | list)


def _check_subscription(call: functions.Call, found: functions.Subscription) -> None:
    assert found.begins == (call.name != "unsubscribe")
    if found.begins:
        assert found.symbol in _PAIRS | _CONTRACTS
        assert (found.answer is not None) == ("resume" in call.request)
    if found.answer is not None:
        assert found.answer == {"subscribed" if found.begins else "unsubscribed": found.symbol}


def _check_position(body: bytes) -> None:
    """Check the header of a client that resumes."""
    text = body.decode("latin-1")
    position = Position.parse(text)
    if position is None:
        return
    check_secrecy(text)
    assert str(position).rpartition(":")[0] == text.rpartition(":")[0]
    store = TickStore()
    with store.opened():
        store.write(_ROWS, logged=1)
        for log in (position.log, store.log_name):
            page = store.resume("BTC:USDC", Position(log, position.number), len(_ROWS), 3)
            assert (page is not None) == (log == store.log_name and position.number <= len(_ROWS))
            assert page is None or position.number <= page.until <= len(_ROWS)


def _check_tick(body: bytes) -> None:
    """Check one line of a tape."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        return
    try:
        tick = contracts.parse_played(raw)
    except ValueError as error:
        assert isinstance(error, ConfigurationError) or type(error) is ValueError
        return
    if isinstance(tick, contracts.ContractTicker):
        _check_ticker(tick)
        return
    assert 0 <= ticks.epoch_seconds(tick) - ticks.day_start(tick["date"]) <= 86_401
    seconds, _ = ticks.exact_time(tick["date"], tick["time"])
    assert seconds == int(ticks.epoch_seconds(tick) // 1)
    sent: Any = json.loads(encode_enveloped(tick))["resultData"]
    assert sent == tick
    assert json.loads(encode_flat(tick))["price"] == tick["price"]


def _check_ticker(ticker: contracts.ContractTicker) -> None:
    assert contracts.parse_ticker(json.loads(encode_contract(ticker))) == ticker
    sent = json.loads(encode_contract_enveloped(ticker))["resultData"]
    assert sent == {**ticker.values, "exchange": "DERIBIT"}
    assert list(ticker.values) == list(contracts.KEYS)
    assert set(map(type, ticker.values.values())) == {str}
    later = contracts.moved(ticker, 1.5)
    assert contracts.seconds_of(later) == 1.5
    store = TickStore()
    with store.opened():
        store.write([], None, [ticker, later])
        found = json.loads(store.matrix(ticker.instrument.base, None))
    expiry = ticker.instrument.expiry
    newest = max(ticker, later, key=lambda each: each.timestamp)
    is_over = expiry is not None and expiry < newest.timestamp // 1_000
    assert found == ([] if is_over else [newest.values])


_CHECKS: tuple[Callable[[bytes], None], ...] = (
    _check_path,
    lambda body: _check_call(body, True),
    lambda body: _check_call(body, False),
    _check_tick,
    _check_position,
)


def _call(name: str, **arguments: object) -> bytes:
    return json.dumps({"APIKey": "{key}", "functionName": name, **arguments}).encode()


_WHEN = {"pair": "BTC:USDC", "date": _DAY, "time": "15:30:01.5Z"}
_TICK = {**_WHEN, "exchange": "A", "price": "1.5"}
_TICKER = {"instrument_name": "BTC-26AUG22-20000-C", "timestamp": "1659760300724", "mark_iv": "72.12", "delta": "0.8"}
_DERIBIT = {
    "params": {
        "data": {**_TICKER, "timestamp": 1_659_760_300_724, "greeks": {"vega": 1e-06}, "stats": {"low": None}},
    }
}
_CALLS = (
    _call("getSpotRates", pair="BTC:USDC"),
    _call("getSpotRates", pair="XYZ:USDC", resume="ask"),
    _call("getSpotRates", pair="BTC:USDC", resume="a:5"),
    _call("getSpotRates", pair="BTC:USDC", resume={"{key}": 1.5}),
    _call("getSpotRates", pair="{key}"),
    _call("getDeribitContractStream", instrumentName="BTC-26AUG22", resume="ask"),
    _call("getDeribitContractStream", instrumentName="{key}"),
    _call("unsubscribe", pair="BTC:USDC"),
    _call("unsubscribe", instrumentName="BTC-1JAN99-0d5-P"),
    _call("unsubscribe", pair="{key}"),
    _call("listDeribitContracts"),
    _call("getFiveMinMatrix", baseInstrument="BTC", fiveMinuteDateTime="2022-08-04T04:05"),
    _call("getFiveMinMatrix", baseInstrument="USDC", fiveMinuteDateTime="latest"),
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
    b"/streaming/greeks/{key}/BTCQ2202208",
    b"/streaming/greeks/{key}/BTC-26AUG22-20000-C",
    b"/streamer/{key}",
    b"/streaming/%ff/A:B",
    b"//",
)
SEEDS = [
    *(b"\0" + path for path in _PATHS),
    *(b"\1" + call for call in _CALLS),
    *(b"\4" + position for position in (b"a:5", b"a_-9:0010", b"ask", b"a:5\n", b"a:\xb2", b"a:" + b"9" * 18)),
    *(b"\2" + call for call in _CALLS[-4:]),
    *(
        b"\3" + json.dumps(_TICK | odd).encode()
        for odd in ({}, {"time": "23:59:60.5"}, {"price": "1e5"}, {"date": "0"})
    ),
    *(b"\3" + json.dumps(each).encode() for each in (_TICKER, _DERIBIT)),
]
WORDS = [
    b'{"APIKey":"{key}","functionName":',
    *(f'"{name}"'.encode() for name in functions.FUNCTIONS),
    *(b'"%s":' % name for name in (b"pair", b"date", b"time", b"exchange", b"price", b"securityId")),
    *(b'"%s":' % name for name in (b"instrumentName", b"baseInstrument", b"fiveMinuteDateTime", b"resume")),
    *(b'"%s":' % name for name in (b"instrument_name", b"timestamp", b"params", b"data", b"greeks", b"stats")),
    b"BTC-26AUG22-20000-C",
    b"BTC-PERPETUAL",
    b"latest",
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
