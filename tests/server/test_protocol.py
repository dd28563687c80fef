"""The server's half of the wire protocol, without a wire."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from finx_streamer.errors import ConfigurationError
from finx_streamer.server.protocol import (
    BASIC_FUNCTIONS,
    KEEP_ALIVE,
    Kind,
    Refused,
    Route,
    answer,
    check_symbol,
    encoder,
    enveloped,
    flat,
    frame,
    parse_path,
)

TICK = {
    "pair": "BTC:USDC",
    "date": "2022-07-02",
    "time": "15:30:55.817Z",
    "exchange": "BINANCE",
    "price": "19200.84",
}
KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)


def say(message: str | bytes, key: str = "demo", keys: tuple[str, ...] = ("demo",)) -> str | None:
    return answer(message, key, keys.__contains__, BASIC_FUNCTIONS)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/streaming/k/BTC:USDC", Route(Kind.TICKS, "k", "BTC:USDC")),
        ("/streaming/k/BTC%3AUSDC", Route(Kind.TICKS, "k", "BTC:USDC")),
        ("/streaming/k/BTC%3aUSDC?since=now", Route(Kind.TICKS, "k", "BTC:USDC")),
        ("/streamer/k/BTC:USDC", Route(Kind.TICKS, "k", "BTC:USDC")),
        ("/streaming/a%2Fb%20c/BTC:USDC", Route(Kind.TICKS, "a/b c", "BTC:USDC")),
        ("/streaming//BTC:USDC", Route(Kind.TICKS, "", "BTC:USDC")),
        ("/streaming/greeks/k/BTCN2202207", Route(Kind.GREEKS, "k", "BTCN2202207")),
        ("/streamer/greeks/k/BTCN2202207", Route(Kind.GREEKS, "k", "BTCN2202207")),
        ("/streaming/greeks/BTC:USDC", Route(Kind.TICKS, "greeks", "BTC:USDC")),
        ("/streamer/k", Route(Kind.FUNCTIONS, "k")),
    ],
)
def test_paths_that_ask_for_something(path: str, route: Route) -> None:
    """A path is read as the protocol has it."""
    assert route == parse_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/streaming",
        "/streaming/k",
        "/streamer",
        "/stream/k/BTC:USDC",
        "//streaming/k/BTC:USDC",
        "/streaming/k/BTC:USDC/",
        "/streaming/k/BTC:USDC/more",
        "/streaming/gamma/k/BTCN2202207",
        "/streaming/k/%ff",
        "http://other/streaming/k/BTC:USDC",
    ],
)
def test_paths_of_another_shape(path: str) -> None:
    """A path of another shape is unknown."""
    with pytest.raises(Refused) as caught:
        parse_path(path)
    assert 404 == caught.value.status


def test_a_long_path_is_not_looked_at() -> None:
    """A path over the limit is refused for its length."""
    with pytest.raises(Refused) as caught:
        parse_path("/streaming/" + "k" * 2_048 + "/BTC:USDC")
    assert 414 == caught.value.status


@given(KEYS, st.sampled_from(["streaming", "streamer"]))
def test_any_key_survives_its_way_through_the_path(key: str, prefix: str) -> None:
    """Whatever is in a key, percent-encoding carries it."""
    assert Route(Kind.TICKS, key, "BTC:USDC") == parse_path(f"/{prefix}/{quote(key, safe='')}/BTC:USDC")


@given(st.text(max_size=200))
def test_any_path_is_read_or_refused(path: str) -> None:
    """No path raises anything but a refusal, and its body is JSON."""
    refused = None
    try:
        check_symbol(parse_path(path), {"BTC:USDC"})
    except Refused as caught:
        refused = caught
    if refused is not None:
        assert refused.status in {404, 414}
        assert {"error": refused.text} == json.loads(refused.body)


def test_a_route_does_not_show_its_key() -> None:
    """A key is not printed by accident."""
    assert "secret" not in repr(Route(Kind.TICKS, "secret", "BTC:USDC"))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/streaming/k/btc-usdc", "did you mean 'BTC:USDC'"),
        ("/streaming/k/BTCN2202207", "not a pair"),
        ("/streaming/k/DOGE:USDC", "unknown pair DOGE:USDC"),
        ("/streaming/greeks/k/BTC:USDC", "not an option"),
        ("/streaming/greeks/k/BTCN2202208", "does not agree"),
    ],
)
def test_symbols_that_are_refused(path: str, says: str) -> None:
    """The refusal of a symbol says what is wrong with it."""
    with pytest.raises(Refused, match=says) as caught:
        check_symbol(parse_path(path), {"BTC:USDC"})
    assert 404 == caught.value.status


def test_the_documented_tick_message() -> None:
    """A tick's message is the seed document's, compact."""
    expected = (
        '{"results":"streaming","resultData":{"pair":"BTC:USDC","date":"2022-07-02","time":"15:30:55.817Z",'
        '"exchange":"BINANCE","price":"19200.84"}}'
    )
    assert expected == enveloped(TICK)


def test_the_vendors_later_tick_message() -> None:
    """The flat form has the vendor's later names."""
    tick = TICK | {"date": "2022-08-07", "time": "18:34:55.000Z", "price": "23233.684999999998"}
    expected = (
        '{"pair":"BTC:USDC","unixDate":1659897295,"UTCDate":"2022-08-07T18:34:55.000Z","exchange":"BINANCE",'
        '"price":"23233.684999999998"}'
    )
    assert expected == flat(tick)


def test_an_unknown_form_is_an_error() -> None:
    """There are two forms."""
    with pytest.raises(ConfigurationError, match="enveloped"):
        encoder("round")


@given(st.fixed_dictionaries({name: st.text() for name in TICK}))
def test_fields_go_out_as_they_are(tick: dict[str, str]) -> None:
    """No field is changed on its way, whatever is in it."""
    assert {"results": "streaming", "resultData": tick} == json.loads(enveloped(tick))


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
def test_frames_are_read_by_an_independent_parser(message: str | bytes) -> None:
    """A frame is what RFC 6455 says."""
    _check_frame(message)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frames_of_every_length_encoding(size: int) -> None:
    """The three encodings of a length meet without a gap."""
    _check_frame(b"x" * size)


def _check_frame(message: str | bytes) -> None:
    reader = StreamReader()
    reader.feed_data(frame(message))
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as caught:
        next(parsing)
    text = isinstance(message, str)
    expected = Frame(Opcode.TEXT if text else Opcode.BINARY, message.encode() if text else message)
    assert expected == caught.value.value
    assert b"" == reader.buffer


def test_basic_functions() -> None:
    """keepAlive and authenticate are answered as documented."""
    assert KEEP_ALIVE == say('{"functionName":"keepAlive","APIKey":"demo"}')
    assert '{"isAuth":true}' == say('{"APIKey":"demo","functionName":"authenticate"}')


@pytest.mark.parametrize("message", ["{}", '{"message":"message","APIKey":"demo"}', '{"message":{"pair":"BTC:USDC"}}'])
def test_objects_without_a_function_are_ignored(message: str) -> None:
    """The vendor's client polls with such objects and takes the next tick for the answer."""
    assert say(message) is None


@pytest.mark.parametrize("message", ["", "{", "[1]", '"text"', "null", "[" * 100_000, b"{}", b"\xff"])
def test_what_is_no_object_is_an_error(message: str | bytes) -> None:
    """A message that is no JSON object in a text frame is answered with an error."""
    assert ["error"] == list(json.loads(say(message)))


@pytest.mark.parametrize("rest", ["", ',"APIKey":""', ',"APIKey":"demos"', ',"APIKey":null', ',"APIKey":["demo"]'])
@pytest.mark.parametrize("name", ["keepAlive", "authenticate", "other"])
def test_a_call_needs_the_key(name: str, rest: str) -> None:
    """Without its key a call is an error, known or not."""
    assert '{"error":"APIKey is missing or not accepted"}' == say(f'{{"functionName":"{name}"{rest}}}')


def test_other_functions_are_named() -> None:
    """The error for a function that is not there names it."""
    assert "'tickHistory'" in say('{"functionName":"tickHistory","APIKey":"demo"}')


@pytest.mark.parametrize(
    "name", ['"secret-key"', '"secretkey9"', '"x_secretkey9"', "7", "[]", '""', '"\\u0000"', "null"]
)
def test_odd_function_names_are_not_repeated(name: str) -> None:
    """An error repeats no name that may be a key, or is none."""
    reply = say(f'{{"functionName":{name},"APIKey":"secretkey9"}}', key="secretkey9", keys=("secretkey9",))
    assert '{"error":"function of that name is not available on this connection"}' == reply


@given(st.text())
def test_any_message_is_answered_with_json_or_silence(message: str) -> None:
    """No message raises."""
    reply = say(message)
    assert reply is None or isinstance(json.loads(reply), dict)
