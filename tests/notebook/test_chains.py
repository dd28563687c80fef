"""The chain and the smiles of a view, for any Greeks."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import Greeks
from finx_streamer.config.symbols import parse_symbol
from finx_streamer.notebook.chains import LINES, STRIKES, Chains, is_option
from finx_streamer.wire.contract_ticker import read_greeks
from tests.support.contracts import CALL, FUTURE, PERPETUAL, PUT, ticker

#: The expiry of `CALL` and `PUT`.
EXPIRY = "BTC-26AUG22"
_received = count(1)


def greeks(name: str, **values: str) -> Greeks:
    """The Greeks of a contract, received now."""
    return read_greeks(ticker(name, **values), parse_symbol(name), next(_received))  # type: ignore[arg-type]


def newest(*names: str, **values: str) -> dict[str, Greeks]:
    """Greeks with these values for each contract."""
    return {name: greeks(name, **values) for name in names}


class Page:
    """What a page makes of the messages."""

    def __init__(self, chains: Chains) -> None:
        self.chains = chains
        self.state = self._read(chains.full())
        self.now = 0.0

    def receive(self, after: float = 1.0) -> dict[str, Any] | None:
        """Receive the changes, if there are any."""
        self.now += after
        message = self.chains.changes(self.now)
        if message is None:
            return None
        message = self._read(message)
        if "expiries" in message:
            self.state = message
        else:
            merged = {key: {**self.state[key], **message[key]} for key in ("rows", "smiles")}
            self.state = {**self.state, **message, **merged}
        return message

    @staticmethod
    def _read(message: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(message, allow_nan=False))  # type: ignore[no-any-return]


def test_calls_are_on_the_left_and_puts_on_the_right() -> None:
    """Each has its volatility and its delta outside, and its quotes next to the strike."""
    chains = Chains()
    sides = {
        CALL: {"mark_iv": "72.12", "delta": "0.83341", "best_bid_price": "0.125", "best_ask_price": "0.19"},
        PUT: {"mark_iv": "72.5", "delta": "-0.16659", "best_bid_price": "0", "best_ask_price": "0.0155"},
    }
    chains.update({name: greeks(name, underlying_price="23227.53", **values) for name, values in sides.items()})
    full = chains.full()
    assert (full["expiries"], full["chosen"], full["strikes"]) == ([EXPIRY], EXPIRY, ["20,000"])
    assert full["rows"] == {0: [72.12, 0.8334, 0.125, 0.19, None, 0.0155, -0.1666, 72.5]}
    assert (full["forward_text"], full["unit"], full["digits"], full["atm"]) == ("23,227.53", "BTC", 4, 0)


def test_a_strike_with_one_side_has_a_row() -> None:
    """The other side is empty."""
    assert Chains(newest(PUT, mark_iv="70")).full()["rows"] == {0: [None] * 7 + [70.0]}


def test_expiries_are_in_order() -> None:
    """By underlying, and then by time. The first one is shown."""
    names = ("ETH-2SEP22-1500-C", "BTC-30SEP22-9-C", "BTC-9DEC22-9-C", "BTC-2SEP22-9-P", FUTURE, PERPETUAL)
    full = Chains(newest(*names)).full()
    assert full["expiries"] == ["BTC-2SEP22", "BTC-30SEP22", "BTC-9DEC22", "ETH-2SEP22"]
    assert full["chosen"] == "BTC-2SEP22"
    assert list(full["smiles"]) == full["expiries"][:3]


def test_only_changes_are_sent() -> None:
    """The changed rows of the chain, and the changed smiles."""
    names = [f"{EXPIRY}-{strike}-C" for strike in (1, 2, 3)]
    later = "BTC-30SEP22-1-C"
    page = Page(Chains(newest(*names, later, mark_iv="50")))
    assert page.receive() is None
    page.chains.update(newest(names[1], mark_iv="51"))
    message = page.receive()
    assert message is not None
    assert (list(message["rows"]), list(message["smiles"])) == (["1"], [EXPIRY])
    page.chains.update(newest(later, mark_iv="52"))
    message = page.receive()
    assert message is not None
    assert (message["rows"], list(message["smiles"])) == ({}, ["BTC-30SEP22"])
    assert page.receive() is None


def test_the_same_greeks_are_no_change() -> None:
    """A view passes in the newest of all contracts each time."""
    values = newest(CALL, FUTURE)
    chains = Chains()
    assert chains.update(values) == values
    assert chains.update(values) == {}


def test_changes_are_limited_to_four_a_second() -> None:
    """A choice is answered at once."""
    page = Page(Chains(newest(CALL, "BTC-30SEP22-1-C")))
    sent = 0
    for _ in range(100):
        page.chains.update(newest(CALL))
        sent += page.receive(after=0.01) is not None
    assert 4 <= sent <= 5
    page.chains.choose("BTC-30SEP22")
    message = page.receive(after=0.0)
    assert message is not None
    assert message["chosen"] == "BTC-30SEP22"


def test_the_cost_is_bounded() -> None:
    """If all of 500 options change, the message has less than 60 bytes for each."""
    names = [f"{EXPIRY}-{strike}-{side}" for strike in range(20_000, 45_000, 100) for side in "CP"]
    page = Page(Chains(newest(*names)))
    quotes = {"best_bid_price": "0.0125", "best_ask_price": "0.0135", "underlying_price": "31234.56"}
    page.chains.update(newest(*names, mark_iv="71.25", delta="-0.12345", **quotes))
    message = page.receive()
    assert message is not None
    assert (len(names), len(message["rows"])) == (500, 250)
    assert len(json.dumps(message, separators=(",", ":"))) < 60 * 500


def test_an_unknown_expiry_is_ignored() -> None:
    """A page may send anything."""
    page = Page(Chains(newest(CALL)))
    page.chains.choose("XXX")
    assert page.receive() is None


def test_there_may_be_no_options_yet() -> None:
    """Futures and perpetuals are none."""
    page = Page(Chains(newest(FUTURE, PERPETUAL)))
    assert page.state == {"expiries": []}
    assert page.receive() is None
    page.chains.update(newest(CALL))
    page.receive()
    assert page.state["expiries"] == [EXPIRY]


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=STRIKES + 20, unique=True),
    st.floats(1, 10**6),
)
def test_the_marked_strike_is_the_nearest_to_the_forward(strikes: list[int], forward: float) -> None:
    """Rows are in order. If there are too many strikes, those around the forward remain."""
    chains = Chains(newest(*(f"{EXPIRY}-{strike}-P" for strike in strikes), underlying_price=f"{forward:.6f}"))
    full = chains.full()
    shown = [int(text.replace(",", "")) for text in full["strikes"]]
    assert shown == sorted(shown)
    assert (len(shown), full["more"]) == (min(len(strikes), STRIKES), max(0, len(strikes) - STRIKES))
    nearest = min(abs(strike - full["forward"]) for strike in strikes)
    assert abs(shown[full["atm"]] - full["forward"]) == nearest


def test_a_smile_has_the_options_out_of_the_money() -> None:
    """Puts below the forward and calls from there on; the other side if one has no volatility."""
    given = {"10-P": "90", "10-C": "91", "20-P": "80", "20-C": "81", "30-P": "70", "30-C": "", "5-C": "99"}
    values = {f"{EXPIRY}-{key}": iv for key, iv in given.items()}
    chains = Chains({name: greeks(name, mark_iv=iv, underlying_price="20") for name, iv in values.items()})
    smile = chains.full()["smiles"][EXPIRY]
    assert smile == {"x": [5.0, 10.0, 20.0, 30.0], "y": [99.0, 90.0, 81.0, 70.0], "atm": 2}
    assert chains.levels() == {EXPIRY: 81.0}


def test_the_number_of_smiles_is_limited() -> None:
    """The chosen one is among them."""
    names = [f"BTC-{day}AUG22" for day in range(1, 32)]
    chains = Chains(newest(*(f"{name}-9-C" for name in names)))
    chains.choose(names[-1])
    full = chains.full()
    assert full["expiries"] == names
    assert list(full["smiles"]) == [*names[: LINES - 1], names[-1]]


def test_the_forward_is_the_newest() -> None:
    """Whichever contract it came with."""
    first, second = greeks(CALL, underlying_price="1"), greeks(PUT, underlying_price="2")
    assert Chains({PUT: second, CALL: first}).full()["forward"] == 2.0


def test_quotes_keep_their_decimals() -> None:
    """Their number never decreases. Those of linear contracts are in dollars."""
    name = "XRP_USDC-30JUN23-0d525-C"
    chains = Chains(newest(name, best_bid_price="0.0125"))
    chains.update(newest(name, best_bid_price="1"))
    full = chains.full()
    assert (full["digits"], full["unit"], full["strikes"]) == (4, "USDC", ["0.525"])


@pytest.mark.parametrize("value", [None, "text", float("nan"), 10**400, [], {}])
def test_callbacks_may_have_changed_the_greeks(value: Any) -> None:
    """What isn't a number is left out, and Greeks without some of their keys are ignored."""
    changed: Any = greeks(CALL)
    for key in ("mark_iv", "delta", "best_bid_price", "best_ask_price", "underlying_price"):
        changed[key] = value
    incomplete: Any = greeks(PUT)
    del incomplete["delta"]
    assert Page(Chains({CALL: changed, PUT: incomplete})).state["rows"] == {"0": [None] * 8}


_NAMES = st.sampled_from(
    [f"{coin}-26AUG22-{k}-{side}" for coin in ("BTC", "ETH") for k in (10, 20, 30) for side in "CP"]
)
_TEXTS = st.sampled_from(["", "0", "0.5", "1.25", "25"])
_STEPS = st.lists(
    st.tuples(_NAMES, _TEXTS, _TEXTS)
    | st.sampled_from(["BTC-26AUG22", "ETH-26AUG22"])
    | st.floats(0, 1, allow_subnormal=False),
    max_size=30,
)


@given(_STEPS)
def test_the_changes_lead_to_the_full_state(steps: list[Any]) -> None:
    """A page that applies them shows what a page sees that opens now."""
    page = Page(Chains())
    for step in steps:
        match step:
            case str():
                page.chains.choose(step)
            case float():
                page.receive(step)
            case name, iv, price:
                page.chains.update(newest(name, mark_iv=iv, best_bid_price=price, underlying_price=price))
    page.receive()
    assert page.state == Page(page.chains).state


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [("BTC:USDC", False), ("BTCQ2202208", True), (CALL, True), (FUTURE, False), (PERPETUAL, False)],
)
def test_what_is_an_option(symbol: str, expected: bool) -> None:
    """Months and single options have a chain. The others have charts."""
    assert is_option(symbol) is expected
