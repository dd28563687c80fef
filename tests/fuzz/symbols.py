"""Fuzz the text that users pass in: symbols, endpoints, keys, proxies, times and exchanges.

The first byte of an input selects which. The rest is the text in UTF-8, where lone surrogates are allowed, as on a
command line. `{key}` and `{password}` stand for secrets.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from unittest import mock

from finx_streamer.config import checks, redaction
from finx_streamer.config.api_key import ApiKey, KeySource
from finx_streamer.config.checks import moment
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.config.proxy import Proxy, from_environment
from finx_streamer.config.redaction import MASK, SHORTEST_MASKED
from finx_streamer.config.symbols import Option, Pair, Symbol, parse_symbol
from finx_streamer.errors import ConfigurationError, ConnectionFailed
from finx_streamer.server.protocol import Kind, check_symbol, parse_path
from tests.fuzz.fake_server import KEY, check_secrecy, contains_key

_LETTERS = "FGHJKMNQUVXZ"
_HOME = Endpoint("ws://127.0.0.1:1/")
_PASSWORD = "zass-w0rd"


def run(data: bytes) -> None:
    """Try one input."""
    if contains_key(data):
        return
    text = data[1:].decode("utf-8", "surrogatepass" if _is_utf8(data[1:]) else "replace")
    _CHECKS[(data[0] if data else 0) % len(_CHECKS)](text.replace("{key}", KEY))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _check_error(error: ConfigurationError, text: str) -> None:
    """Check that the error is printable, not too long, and shows no key."""
    check_secrecy(str(error))
    assert str(error).isprintable()
    assert 0 < len(error.message) < 1_000 + 10 * len(text)


def _check_symbol(text: str) -> None:
    try:
        symbol = checks.symbol(text)
    except ConfigurationError as error:
        assert not _is_pair(text)
        assert not _is_option(text)
        _check_error(error, "")
        return
    assert (_is_pair(text), _is_option(text)) == (isinstance(symbol, Pair), isinstance(symbol, Option))
    assert str(symbol) == text
    assert parse_symbol(symbol) == symbol
    _check_url_round_trip(symbol, KEY)


def _is_pair(text: str) -> bool:
    """Return whether it's a pair, by the categories of its characters."""
    base, colon, quote = text.partition(":")
    return bool(colon) and text == text.upper() and all(map(_is_part, (base, quote)))


def _is_part(text: str) -> bool:
    return 0 < len(text) <= 32 and all(unicodedata.category(c)[0] not in "CZ" and c not in ":/?#%\\" for c in text)


def _is_option(text: str) -> bool:
    head, letter, digit, year, month = text[:-8], text[-8:-7], text[-7:-6], text[-6:-2], text[-2:]
    if not (0 < len(head) <= 32 and all(map(_is_plain, text))):
        return False
    if not all(character in "0123456789" for character in digit + year + month) or letter not in _LETTERS:
        return False
    return 1 <= int(month) <= 12 and letter == _LETTERS[int(month) - 1] and digit == year[-1]


def _is_plain(character: str) -> bool:
    return "A" <= character <= "Z" or "0" <= character <= "9"


def _check_url_round_trip(symbol: Symbol, key: str) -> None:
    """Check that the local server reads the client's URL correctly."""
    url = _HOME.stream_url(symbol, ApiKey(key))
    assert re.fullmatch(r"[!-~]+", url)
    path = url.removeprefix("ws://127.0.0.1:1")
    if len(path) > 2_048:
        return
    route = parse_path(path)
    kind = Kind.GREEKS if isinstance(symbol, Option) else Kind.TICKS
    assert (route.kind, route.key, route.symbol) == (kind, key, str(symbol))
    check_symbol(route, {str(symbol)})


def _check_endpoint(text: str) -> None:
    try:
        endpoint = Endpoint.of(text)
        endpoint.check_secrecy(False)
    except ConfigurationError as error:
        _check_error(error, text)
        return
    check_secrecy(repr(endpoint))
    assert endpoint.url.startswith(("ws://", "wss://"))
    assert endpoint.url.endswith("/")
    assert endpoint.host
    assert 1 <= endpoint.port <= 65_535
    assert Endpoint(endpoint.url) == endpoint
    assert endpoint.secure or endpoint.is_loopback


def _check_key(text: str) -> None:
    """Check that a valid key reaches the server and is masked, and that an invalid one isn't shown."""
    before = dict(redaction._keys)
    redaction._keys.clear()
    try:
        try:
            source = KeySource.from_argument(text)
        except ConfigurationError as error:
            assert len(str(error)) < 200
            assert len(text) < 8 or text not in str(error)
            return
        assert source.current() == ApiKey(text)
        if text != "greeks":  # that key can't be told from the path of a Greeks stream
            _check_url_round_trip(Pair("BTC", "USDC"), text)
        if len(text) >= SHORTEST_MASKED:
            _check_masked(text)
    finally:
        redaction._keys.clear()
        redaction._keys.update(before)


def _check_masked(key: str) -> None:
    assert redaction.redact(f"\n{key}\n") == f"\n{MASK}\n"
    if any(mark in key for mark in "\\%&"):
        return  # such a key may itself look like an escape
    for spelled in (key.swapcase(), _HOME.stream_url(Pair("A", "B"), ApiKey(key)), ascii(key)[1:-1]):
        assert MASK in redaction.redact(spelled), spelled
    escaped = "".join(f"\\u{ord(character):04X}" for character in key)
    quoted = "".join(f"%25{ord(character):02x}" for character in key)
    for spelled in (escaped, quoted):
        # Surround it with a character that no key has: others could be taken for a part of it.
        assert redaction.redact(f"\n{spelled}\n") == f"\n{MASK}\n", spelled


def _check_proxy(text: str) -> None:
    text = text.replace("{password}", _PASSWORD)
    proxy = None
    try:
        proxy = Proxy.parse(text)
    except ConfigurationError as error:
        _check_error(error, text)
        # A password in place of the scheme may be shown.
        assert _PASSWORD not in str(error) or _PASSWORD in text.partition("://")[0].casefold()
    if proxy is not None:
        assert 1 <= proxy.port <= 65_535
        assert proxy.host
        assert proxy.scheme in ("http", "socks5", "socks5h")
        if proxy.credentials is not None:
            assert proxy.credentials.user
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        return  # an environment variable can't contain these
    try:
        _proxy_from_environment("wss://ws.finx.io:8443/", https_proxy=text)
    except ConnectionFailed as error:
        assert str(error).isprintable()
    for url in ("wss://ws.finx.io:8443/", "wss://[fe80::1]/"):
        assert _proxy_from_environment(url, all_proxy="http://10.0.0.1:1", no_proxy=text) in (None, _PROXY)


def _proxy_from_environment(url: str, **variables: str) -> Proxy | None:
    with mock.patch.dict(os.environ, variables, clear=True):
        return from_environment(Endpoint(url))


_PROXY = Proxy.parse("http://10.0.0.1:1")


def _check_time(text: str) -> None:
    try:
        found = moment("at", text)
    except ConfigurationError as error:
        _check_error(error, "")
    else:
        assert found.tzinfo is UTC
        assert 1970 <= found.year <= 9998
        assert moment("at", found.isoformat()) == found
        assert moment("at", datetime.fromisoformat(found.isoformat())) == found


def _check_exchange(text: str) -> None:
    try:
        found = checks.exchange("exchanges", text)
    except ConfigurationError as error:
        _check_error(error, "")
    else:
        assert found == text == text.upper() != ""


_CHECKS: tuple[Callable[[str], None], ...] = (
    _check_symbol,
    _check_symbol,
    _check_endpoint,
    _check_key,
    _check_proxy,
    _check_time,
    _check_exchange,
)

_TEXTS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (
        0,
        (
            "BTC:USDC",
            "1INCH:USDT",
            "btc-usdc",
            "BTC:",
            ":",
            "BTCN2202207",
            "BTCN2202208",
            "FF0200001",
            "FZ9999912",
            "BTCN2202213",
            "A" * 32 + ":" + "B" * 33,
            "\u0391:B",
            "\u03b1:B",
            "$TRUMP:USDC",
            "\u5e01\u5b89\u4eba\u751f:USDT",
            "btcusdc",
            "A\u200b:B",
            "A:B\n",
            "A\uff11:B",
            "{key}",
            "x" * 55 + "{key}",
        ),
    ),
    (
        2,
        (
            "production",
            "beta",
            "ws://127.0.0.1:8765",
            "wss://ws.finx.io/a/b/",
            "wss://u:p@h/",
            "wss://[::1]:1/",
            "wss://h:0/",
            "wss://h/?q#{key}",
            "{key}",
            "https://{key}/",
            "wss://h:x/",
            "ws://[",
        ),
    ),
    (3, ("demo-key", "k/e+y%25", "a\\b\\\\c", "%%%%", "uuuu", "kéy", "k y", "greeks", "\\u0041\\u0041")),
    (
        4,
        (
            "http://proxy:3128",
            "socks5h://user:{password}@h",
            "socks5://u:p%40@[::1]:9",
            "http://:x@h/",
            "ftp://h",
            "h:1",
            "http://h/{password}",
            "*, .finx.io 10.0.0.0/8",
            "ws.finx.io:8443",
            "[fe80::]/10",
        ),
    ),
    (
        5,
        (
            "2022-07-02",
            "2022-07-02T15:30:55.817Z",
            "9999-12-31T23:59:59-12:00",
            "2022-W26-6",
            "20220702T153055,5+01",
            "x{key}" * 4,
        ),
    ),
    (6, ("BINANCE", "binance", "{key}" * 9, "", "ß", "ŉ")),
)
SEEDS = [bytes([which]) + text.encode() for which, texts in _TEXTS for text in texts]
WORDS = [
    *(letter.encode() for letter in _LETTERS),
    b"202207",
    b"wss://",
    b"ws://",
    b"http://",
    b"socks5://",
    b"socks5h://",
    b"127.0.0.1",
    b"localhost",
    b"[::1]",
    b"{key}",
    b"{password}",
    b"%2F",
    b"%25",
    b"\\u00",
    b"\\x",
    b"T00:00:00",
    b"+23:59",
    b"\xef\xbc\x91",
    b"\xed\xa0\x80",
    b"\xc3\x9f",
]
