"""The static HTML of a listener, in which no text from the server can do harm."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import State, StreamListener
from finx_streamer.notebook.snapshot import age, snapshot
from finx_streamer.notebook.text import escaped, plain, price_digits, price_text
from finx_streamer.notebook.view_model import ViewModel
from finx_streamer.server import LocalServer
from tests.support.contracts import CALL, MONTH, PUT, played_by_hand, ticker
from tests.support.market import outage
from tests.support.peers import PAIR, Peer, Seen, frame, stay, tick, tick_text, ticks

EVIL = "<img src=x onerror=alert(1)>\"'&\x1b[31m\x00\u202e</td><script>alert(2)</script>"


class Reader(HTMLParser):
    """Collects all tags, attributes and text of an HTML fragment."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attributes)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def assert_harmless(html: str) -> Reader:
    """Check that there is only a table, and nothing that runs or loads."""
    read = Reader(html)
    assert read.open == []
    assert read.tags <= {"div", "b", "span", "table", "thead", "tbody", "tr", "th", "td", "br", "svg", "polyline"}
    assert read.attributes <= {
        "style", "role", "aria-label", "aria-hidden", "scope", "colspan", "width", "height", "fill", "stroke",
        "stroke-width", "points",
    }  # fmt: skip
    assert not {c for c in html if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u200f\u2028"}
    return read


@given(st.text())
def test_text_becomes_one_harmless_line(text: str) -> None:
    """It is printable, bounded and free of HTML."""
    shown = plain(text)
    assert shown.isprintable() or all(c.isprintable() or c.isspace() for c in shown)
    assert "\n" not in shown
    assert len(shown) <= 60 * 6
    assert not set("<>\"'") & set(escaped(text))


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        (21865.010000000002, "21,865.01"),
        (0.480451, "0.480451"),
        (0.00001234, "0.00001234"),
        (9750000.0, "9,750,000"),
        (9.2e-07, "0.00000092"),
        (-1234.5, "-1,234.5"),
        (Decimal("21865.010000000002"), "21,865.010000000002"),
        ("1.50", "1.5"),
        (7, "7"),
        (float("nan"), "nan"),
        (Decimal("1e999999"), "1E+999999"),
        ("one", "one"),
    ],
)
def test_formats_prices(price: object, shown: str) -> None:
    """Floats lose the rounding noise of their last digits. A text that isn't a number stays as it is."""
    assert price_text(price) == shown


@given(st.lists(st.floats(1e-9, 1e9), min_size=1))
def test_prices_with_the_same_decimals(prices: list[float]) -> None:
    """None of them is rounded further than to 12 digits."""
    digits = max(map(price_digits, prices))
    shown = [price_text(price, digits) for price in prices]
    assert all(re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d+)?", text) for text in shown)
    assert {len(text.partition(".")[2]) for text in shown} == {digits}
    assert [float(text.replace(",", "")) for text in shown] == [
        pytest.approx(float(f"{price:.12g}"), abs=1e-20, rel=1e-15) for price in prices
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0 ms"), (0.0123, "12 ms"), (0.9996, "1.0 s"), (59.96, "60.0 s"), (7_200, "120 min")]
)
def test_formats_ages(seconds: float, shown: str) -> None:
    """The unit depends on the size."""
    assert age(seconds) == shown


def test_a_listener_that_was_never_started() -> None:
    """The snapshot shows its state and its streams without values."""
    read = assert_harmless(StreamListener(PAIR, "ETH:USDC", name="mine")._repr_html_())
    for text in ("mine", "idle", PAIR, "ETH:USDC", "0 ticks"):
        assert text in read.text


def test_a_listener_without_symbols() -> None:
    """The snapshot is valid."""
    assert_harmless(StreamListener()._repr_html_())


def test_a_running_listener(seen: Seen) -> None:
    """The snapshot shows state, last price, exchange, totals and the current time."""
    with Peer(stay(ticks(1, 7))) as peer, seen.listener(peer.url) as listener:
        seen.wait_ticks(7)
        read = assert_harmless(listener._repr_html_())
        now = f"{datetime.now(UTC):%Y-%m-%d}"
        text = repr(listener)
    for part in ("streaming", "7", "BINANCE", "7 ticks", "0 dropped", "0 reconnects", "0 gaps", "0 errors", now, "UTC"):
        assert part in read.text
    assert "streaming: BTC:USDC" in text
    assert "; 7 ticks, " in text
    assert "0 dropped, 0 reconnects, 0 gaps, 0 errors>" in text
    assert "\n" not in text


def test_all_prices_of_a_pair_have_the_same_decimals(seen: Seen) -> None:
    """The recent ticks determine their number, as in the live view."""
    prices = ("9750000.25", "9750001")
    frames = [frame(tick_text(1).replace('"price": "1"', f'"price": "{price}"')) for price in prices]
    with Peer(stay(*frames)) as peer, seen.listener(peer.url) as listener:
        seen.wait_ticks(2)
        assert "9,750,001.00\n" in assert_harmless(listener._repr_html_()).text


def test_an_evil_exchange_is_shown_as_text(seen: Seen) -> None:
    """This holds for the snapshot, with and without sparklines, and for messages to the page."""
    data = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55.817Z", "exchange": EVIL, "price": "1.5"}
    evil = frame(json.dumps({"results": "streaming", "resultData": data}))
    with Peer(stay(tick(1), evil)) as peer, seen.listener(peer.url, name=EVIL) as listener:
        seen.wait_ticks(2)
        assert_harmless(listener._repr_html_())
        view_model = ViewModel(listener, listener._kept(""), [PAIR])
        view_model.update()
        assert_harmless(snapshot(listener, view_model.digits(), view_model.sparklines()))
        sent = json.dumps([view_model.full(), view_model.frame()], ensure_ascii=False)
    assert sent.isprintable()
    assert listener.state is State.STOPPED


def test_the_key_is_not_shown(seen: Seen) -> None:
    """Neither the snapshot nor messages to the page contain it."""
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key="very-secret") as listener:
        seen.wait_ticks(1)
        view_model = ViewModel(listener, listener._kept(""), [PAIR])
        assert "very-secret" not in listener._repr_html_() + repr(listener) + json.dumps(view_model.full())


def test_shows_a_limited_number_of_streams() -> None:
    """For the others, the snapshot shows only their number."""
    listener = StreamListener(*(f"A{number}:USDC" for number in range(60)))
    read = assert_harmless(listener._repr_html_())
    assert "A49:USDC" in read.text
    assert "A50:USDC" not in read.text
    assert "and 10 more streams" in read.text


def greeks_text(name: str, exchange: str = "DERIBIT", **values: str) -> bytes:
    """The message of a stream of Greeks."""
    return frame(json.dumps({"results": "streaming", "resultData": {**ticker(name, **values), "exchange": exchange}}))


def chain_of(read: Reader) -> list[str]:
    """The texts of the chain's table, from its first heading."""
    texts = read.text.splitlines()
    return texts[texts.index("calls") :]


def test_options_have_a_chain(seen: Seen) -> None:
    """The snapshot shows it as a table below the streams, which have no price of a month."""
    call = {"mark_iv": "72.12", "delta": "0.83341", "best_bid_price": "0.125", "best_ask_price": "0.19"}
    sent = (
        greeks_text(CALL, underlying_price="23227.53", **call),
        greeks_text(PUT, best_bid_price="0"),
        greeks_text("BTC-31AUG22-1-C", mark_iv="60"),
    )
    with Peer(stay(*sent)) as peer, seen.listener(peer.url, MONTH) as listener:
        seen.wait_greeks(3)
        read = assert_harmless(listener._repr_html_())
    assert "BTC-26AUG22\n forward 23,227.53 · prices in BTC" in read.text
    heads = ["IV %", "delta", "bid", "ask", "strike", "bid", "ask", "delta", "IV %"]
    row = ["72.1", "0.83", "0.125", "0.190", "20,000", "-", "-", "-", "-"]
    assert chain_of(read)[:20] == ["calls", "puts", *heads, *row]
    assert "implied volatility at the money: BTC-26AUG22 72.1 % · BTC-31AUG22 60.0 %" in read.text
    assert "DERIBIT" in read.text


def test_the_snapshot_shows_the_chosen_expiry(seen: Seen) -> None:
    """A live view remembers it."""
    with (
        Peer(stay(greeks_text(CALL), greeks_text("BTC-31AUG22-1-C"))) as peer,
        seen.listener(peer.url, MONTH) as listener,
    ):
        seen.wait_greeks(2)
        view_model = ViewModel(listener, listener._kept(""), [])
        view_model.update()
        view_model.choose_expiry("BTC-31AUG22")
        read = assert_harmless(snapshot(listener, {}, {}, view_model.expiry))
    assert "BTC-31AUG22\n forward -" in read.text


def test_a_chain_shows_a_limited_number_of_strikes(seen: Seen) -> None:
    """Those nearest the forward. For the others, the snapshot shows only their number."""
    sent = [greeks_text(f"BTC-26AUG22-{strike}-C", underlying_price="30") for strike in range(1, 61)]
    with Peer(stay(*sent)) as peer, seen.listener(peer.url, MONTH) as listener:
        seen.wait_greeks(60)
        texts = chain_of(assert_harmless(listener._repr_html_()))
    assert ("4" in texts, "5" in texts, "54" in texts, "55" in texts) == (False, True, True, False)
    assert "and 10 more strikes" in texts


def test_options_without_greeks(seen: Seen) -> None:
    """The snapshot says so. FinX's notice, that they come later, is no error."""
    with (
        Peer(stay(frame('{"feature":"scheduled for future release"}'))) as peer,
        seen.listener(peer.url, MONTH) as listener,
    ):
        seen.wait_for(lambda: seen.notices)
        read = assert_harmless(listener._repr_html_())
    assert "no options yet" in read.text
    assert "0 errors" in read.text


def test_an_evil_exchange_of_options_is_shown_as_text(seen: Seen) -> None:
    """A server may send any name."""
    with Peer(stay(greeks_text(CALL, EVIL))) as peer, seen.listener(peer.url, CALL) as listener:
        seen.wait_greeks(1)
        assert_harmless(listener._repr_html_())
        view_model = ViewModel(listener, listener._kept(""), [])
        view_model.update()
        assert_harmless(snapshot(listener, view_model.digits(), view_model.sparklines(), EVIL))
        assert json.dumps([view_model.full(), view_model.frame()], ensure_ascii=False).isprintable()


def test_callbacks_may_change_the_greeks(seen: Seen) -> None:
    """The snapshot leaves out those without some of their keys."""
    with Peer(stay(greeks_text(CALL))) as peer, seen.listener(peer.url, MONTH) as listener:
        seen.wait_greeks(1)
        seen.greeks[0].clear()  # type: ignore[attr-defined]
        assert "no options yet" in assert_harmless(listener._repr_html_()).text


def test_a_gap_and_an_error_of_options_are_shown(seen: Seen) -> None:
    """As those of pairs: in the row of the stream and in the totals."""
    market = played_by_hand(CALL)
    with LocalServer(market, keys={"demo"}) as server, seen.listener(server.url, MONTH, "BTC-26AUG22-1-P") as listener:
        seen.wait_errors(1)
        server.wait_connected(1)
        server.emit(ticker(CALL))
        seen.wait_greeks(1)
        with outage(server, seen, MONTH):
            pass
        server.emit(ticker(CALL))
        seen.wait_for(lambda: seen.gaps)
        read = assert_harmless(listener._repr_html_())
        view_model = ViewModel(listener, listener._kept(""), [])
        full = view_model.full()
    assert {"failed", "streaming"} <= set(re.findall(r"\w+", read.text))
    assert "1 reconnects · 1 gaps" in read.text
    assert [(stream[0], stream[4]) for stream in full["streams"]] == [("streaming", 1), ("failed", 0)]
    assert full["totals"]["gaps"] == 1
