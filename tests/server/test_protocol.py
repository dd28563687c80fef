"""The server's side of the wire protocol."""

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
    HandshakeRefused,
    Kind,
    Route,
    check_origin,
    check_symbol,
    encode_enveloped,
    encode_flat,
    encode_frame,
    parse_path,
    tick_encoder,
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
def test_parses_paths(path: str, route: Route) -> None:
    """Valid paths are parsed as the protocol defines them."""
    assert parse_path(path) == route


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
def test_refuses_unknown_paths(path: str) -> None:
    """A path of another shape is refused with 404."""
    with pytest.raises(HandshakeRefused) as caught:
        parse_path(path)
    assert caught.value.status == 404


def test_refuses_long_paths() -> None:
    """A path beyond the limit is refused with 414."""
    with pytest.raises(HandshakeRefused) as caught:
        parse_path("/streaming/" + "k" * 2_048 + "/BTC:USDC")
    assert caught.value.status == 414


@given(KEYS, st.sampled_from(["streaming", "streamer"]))
def test_any_key_survives_percent_encoding(key: str, prefix: str) -> None:
    """Percent-encoding can carry any key."""
    assert parse_path(f"/{prefix}/{quote(key, safe='')}/BTC:USDC") == Route(Kind.TICKS, key, "BTC:USDC")


@given(st.text(max_size=200))
def test_any_path_is_parsed_or_refused(path: str) -> None:
    """A path raises nothing but a refusal with a JSON body."""
    refused = None
    try:
        check_symbol(parse_path(path), {"BTC:USDC"})
    except HandshakeRefused as caught:
        refused = caught
    if refused is not None:
        assert refused.status in {404, 414}
        assert json.loads(refused.body) == {"error": refused.text}


def test_route_repr_hides_the_key() -> None:
    """The repr of a route contains no key."""
    assert "secret" not in repr(Route(Kind.TICKS, "secret", "BTC:USDC"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/streaming/k/btc-usdc", "did you mean 'BTC:USDC'"),
        ("/streaming/k/BTCN2202207", "not a pair"),
        ("/streaming/k/DOGE:USDC", "unknown pair DOGE:USDC"),
        ("/streaming/k/%E5%B8%81%E5%AE%89:USDC", "unknown pair 币安:USDC"),
        ("/streaming/k/BTCUSDC", r"\(did you mean 'BTC:USDC'\?\)"),
        ("/streaming/greeks/k/BTC:USDC", "not an option"),
        ("/streaming/greeks/k/BTCN2202208", "does not agree"),
    ],
)
def test_refusal_explains_the_symbol(path: str, message: str) -> None:
    """The refusal of a symbol says what is wrong with it."""
    with pytest.raises(HandshakeRefused, match=message) as caught:
        check_symbol(parse_path(path), {"BTC:USDC"})
    assert caught.value.status == 404


@pytest.mark.parametrize("kind", [Kind.TICKS, Kind.GREEKS])
@pytest.mark.parametrize(
    "symbol", ["secret-key-0123456789", "SECRET-KEY-0123456789", "secret-key-0123456789:X", "secret-key-0"]
)
def test_misplaced_key_is_not_quoted(kind: Kind, symbol: str) -> None:
    """The error quotes no part of a key in any spelling."""
    with pytest.raises(HandshakeRefused, match="the path has the API key in place of the symbol") as caught:
        check_symbol(Route(kind, "secret-key-0123456789", symbol), {"BTC:USDC"})
    assert caught.value.status == 404
    assert "secret" not in caught.value.body.casefold()


@pytest.mark.parametrize("symbol", ["A" * 40 + ":B", "B" * 70])
def test_long_misplaced_key_is_not_quoted(symbol: str) -> None:
    """The error doesn't quote a truncated key either."""
    with pytest.raises(HandshakeRefused, match="the path has the API key in place of the symbol"):
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
def test_accepts_programs_and_local_pages(origin: str | None, host: str | None, listening: str) -> None:
    """Programs send no Origin or one that names the server, and pages of the server's own host are accepted."""
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
def test_refuses_web_pages_of_other_hosts(origins: list[str], hosts: list[str], listening: str) -> None:
    """Pages of other hosts are refused, including those that use DNS rebinding."""
    with pytest.raises(HandshakeRefused, match="the Origin header names another host") as caught:
        check_origin(origins, hosts, listening)
    assert caught.value.status == 403


@given(st.lists(st.text(max_size=40), min_size=1, max_size=2), st.lists(st.text(max_size=40), max_size=2))
def test_any_origin_is_accepted_or_refused(origins: list[str], hosts: list[str]) -> None:
    """Headers raise nothing but a refusal."""
    with contextlib.suppress(HandshakeRefused):
        check_origin(origins, hosts, "127.0.0.1")


def test_encodes_the_documented_message() -> None:
    """The enveloped message is the documented one, without spaces."""
    expected = (
        '{"results":"streaming","resultData":{"pair":"BTC:USDC","date":"2022-07-02","time":"15:30:55.817Z",'
        '"exchange":"BINANCE","price":"19200.84"}}'
    )
    assert encode_enveloped(TICK) == expected


def test_encodes_the_later_message() -> None:
    """The flat message has the vendor's later names."""
    tick = TICK | {"date": "2022-08-07", "time": "18:34:55.000Z", "price": "23233.684999999998"}
    expected = (
        '{"pair":"BTC:USDC","unixDate":1659897295,"UTCDate":"2022-08-07T18:34:55.000Z","exchange":"BINANCE",'
        '"price":"23233.684999999998"}'
    )
    assert encode_flat(tick) == expected


def test_rejects_unknown_form() -> None:
    """Only two forms exist."""
    with pytest.raises(ConfigurationError, match="enveloped"):
        tick_encoder("round")


@given(st.fixed_dictionaries({name: st.text() for name in TICK}))
def test_fields_are_encoded_unchanged(tick: dict[str, str]) -> None:
    """Any strings survive encoding."""
    assert json.loads(encode_enveloped(tick)) == {"results": "streaming", "resultData": tick}


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
def test_frames_match_an_independent_parser(message: str | bytes) -> None:
    """Another implementation of RFC 6455 parses the frames."""
    check_frame(message)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_all_length_encodings_of_frames(size: int) -> None:
    """The three encodings of a length are used in the right ranges."""
    check_frame(b"x" * size)


def check_frame(message: str | bytes) -> None:
    """Parse the encoded message with `websockets`."""
    reader = StreamReader()
    reader.feed_data(encode_frame(message))
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as caught:
        next(parsing)
    text = isinstance(message, str)
    expected = Frame(Opcode.TEXT if text else Opcode.BINARY, message.encode() if text else message)
    assert caught.value.value == expected
    assert reader.buffer == b""
