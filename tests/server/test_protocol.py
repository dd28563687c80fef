"""The server's half of the wire protocol, without a wire."""

from __future__ import annotations

import contextlib
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from finx_streamer.errors import ConfigurationError
from finx_streamer.server.protocol import (
    Kind,
    Refused,
    Route,
    check_origin,
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
        ("/streaming/k", Route(Kind.FUNCTIONS, "k")),
        ("/streaming/greeks", Route(Kind.FUNCTIONS, "greeks")),
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
    assert caught.value.status == 404


def test_a_long_path_is_not_looked_at() -> None:
    """A path over the limit is refused for its length."""
    with pytest.raises(Refused) as caught:
        parse_path("/streaming/" + "k" * 2_048 + "/BTC:USDC")
    assert caught.value.status == 414


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
    assert caught.value.status == 404


@pytest.mark.parametrize("kind", [Kind.TICKS, Kind.GREEKS])
@pytest.mark.parametrize(
    "symbol", ["secret-key-0123456789", "SECRET-KEY-0123456789", "secret-key-0123456789:X", "secret-key-0"]
)
def test_a_key_in_the_symbols_place_is_not_repeated(kind: Kind, symbol: str) -> None:
    """Nor is it suggested in another spelling, nor a part of it."""
    with pytest.raises(Refused, match="the API key stands where") as caught:
        check_symbol(Route(kind, "secret-key-0123456789", symbol), {"BTC:USDC"})
    assert caught.value.status == 404
    assert "secret" not in caught.value.body.casefold()


@pytest.mark.parametrize("symbol", ["A" * 40 + ":B", "B" * 70])
def test_a_long_key_is_not_repeated_in_part(symbol: str) -> None:
    """Long symbols are cut where they are shown, and so might be the key."""
    with pytest.raises(Refused, match="the API key stands where"):
        check_symbol(Route(Kind.TICKS, symbol, symbol), {"BTC:USDC"})


@pytest.mark.parametrize(
    ("origin", "host", "listening"),
    [
        (None, "evil.example", "127.0.0.1"),
        (None, None, "127.0.0.1"),
        ("http://127.0.0.1:8765", "127.0.0.1:8765", "127.0.0.1"),
        ("https://127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("http://localhost:3000", "127.0.0.1:8765", "127.0.0.1"),
        ("http://[::1]:8765", "[::1]:8765", "::1"),
        ("http://localhost:8765", "LOCALHOST:8765", "localhost"),
        ("http://ticks.test:8765", "ticks.test:8765", "ticks.test"),
        ("http://192.0.2.7:8765", "192.0.2.7:8765", "127.0.0.1"),
        ("http://192.0.2.7", "192.0.2.7:8765", "0.0.0.0"),
        ("http://box.lan:8765", "box.lan:8765", "0.0.0.0"),
    ],
)
def test_who_may_connect(origin: str | None, host: str | None, listening: str) -> None:
    """Programs, which send no Origin or one that names the server, and pages of the server's own host."""
    check_origin([origin] if origin is not None else [], [host] if host is not None else [], listening)


@pytest.mark.parametrize(
    ("origins", "hosts", "listening"),
    [
        (["https://evil.example"], ["127.0.0.1:8765"], "127.0.0.1"),
        (["https://evil.example"], ["evil.example:8765"], "127.0.0.1"),
        (["http://evil.example:8765"], ["evil.example:8765"], "127.0.0.1"),
        (["https://127.0.0.1.evil.example"], ["127.0.0.1:8765"], "127.0.0.1"),
        (["https://127.0.0.1@evil.example"], ["127.0.0.1:8765"], "127.0.0.1"),
        (["http://192.0.2.8"], ["192.0.2.7:8765"], "0.0.0.0"),
        (["https://evil.example"], ["box.lan:8765"], "0.0.0.0"),
        (["http://localhost"], ["box.lan:8765"], "0.0.0.0"),
        (["null"], ["127.0.0.1:8765"], "127.0.0.1"),
        (["null"], [], "127.0.0.1"),
        ([""], [""], ""),
        (["http://[::1"], ["[::1"], "127.0.0.1"),
        (["http://127.0.0.1", "https://evil.example"], ["127.0.0.1"], "127.0.0.1"),
        (["http://127.0.0.1"], ["127.0.0.1", "evil.example"], "127.0.0.1"),
    ],
)
def test_web_pages_of_other_hosts_may_not_connect(origins: list[str], hosts: list[str], listening: str) -> None:
    """Nor one whose name was made to lead to this machine."""
    with pytest.raises(Refused, match="the Origin header names another host") as caught:
        check_origin(origins, hosts, listening)
    assert caught.value.status == 403


@given(st.lists(st.text(max_size=40), min_size=1, max_size=2), st.lists(st.text(max_size=40), max_size=2))
def test_any_origin_is_taken_or_refused(origins: list[str], hosts: list[str]) -> None:
    """No header raises anything but a refusal."""
    with contextlib.suppress(Refused):
        check_origin(origins, hosts, "127.0.0.1")


def test_the_documented_tick_message() -> None:
    """A tick's message is that of FinX's first description, compact."""
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
    assert reader.buffer == b""
