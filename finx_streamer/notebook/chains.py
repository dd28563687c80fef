"""The options of a view: one expiry's chain by strike, and the volatility smiles of its underlying. Without Jupyter.

A page gets the full state once, then changes, both as JSON. Names of contracts have only letters, digits, `_` and `-`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from ..config.symbols import Instrument, Option, instrument, parse_symbol
from ..values import Greeks
from .text import finite, price_digits, price_text

#: The highest number of strikes of a chain and of a smile: those nearest the forward.
STRIKES = 300
#: The highest number of smiles.
LINES = 12
#: The least time between two changes, in seconds. No one reads a table faster.
_EVERY = 0.25
_FIELDS = frozenset(Greeks.__annotations__)
#: The columns of the calls and of the puts, from left to right. IV: implied volatility.
CALLS = ("IV %", "delta", "bid", "ask")
PUTS = CALLS[2:] + CALLS[1::-1]


def is_option(symbol: str) -> bool:
    """Whether a listener's symbol is a month of options or one option, and not a pair, future or perpetual."""
    parsed = parse_symbol(symbol)
    return isinstance(parsed, Option) or (isinstance(parsed, Instrument) and parsed.strike is not None)


def complete(newest: Mapping[str, Greeks]) -> dict[str, Greeks]:
    """Return those with all keys. Callbacks may change the Greeks they get."""
    return {name: greeks for name, greeks in newest.items() if greeks.keys() >= _FIELDS}


class Chain:
    """The options of one expiry."""

    def __init__(self, contract: Instrument) -> None:
        #: Such as BTC-26AUG22. A future of this expiry has the same name.
        self.name = contract.name.rsplit("-", 2)[0]
        self.underlying, self.expiry = contract.underlying, contract.expiry
        #: What the prices are in: the coin, or USDC for a BTC_USDC.
        self.unit = self.underlying.partition("_")[2] or self.underlying
        self.forward: float | None = None
        #: The number of decimals of the quotes. It never decreases.
        self.digits = 0
        #: By strike, the values of the columns of the call and of the put.
        self._rows: dict[float, list[float | None]] = {}
        self._strikes: list[float] = []
        self._forward_from = -1

    def update(self, strike: float, kind: str, greeks: Greeks) -> None:
        """Take in the newest values of one option."""
        row = self._rows.get(strike)
        if row is None:
            row = self._rows[strike] = [None] * 8
            self._strikes = sorted(self._rows)
        volatility, delta = _rounded(greeks["mark_iv"], 2), _rounded(greeks["delta"], 4)
        # An empty side of the book has the price 0.
        bid, ask = finite(greeks["best_bid_price"]) or None, finite(greeks["best_ask_price"]) or None
        self.digits = max(self.digits, *(price_digits(price) for price in (bid, ask) if price), 0)
        if kind == "call":
            row[:4] = volatility, delta, bid, ask
        else:
            row[4:] = bid, ask, delta, volatility
        forward = finite(greeks["underlying_price"])
        if forward is not None and greeks["received_ns"] >= self._forward_from:
            self.forward, self._forward_from = forward, greeks["received_ns"]

    def rows(self, limit: int = STRIKES) -> dict[float, list[float | None]]:
        """Return the rows by strike, in order: at most `limit`, nearest the forward."""
        at = self._nearest(self._strikes)
        first = max(0, min(at - limit // 2, len(self._strikes) - limit))
        return {strike: self._rows[strike] for strike in self._strikes[first : first + limit]}

    def at_the_money(self, limit: int = STRIKES) -> int:
        """Return the index of the strike nearest the forward in `rows`."""
        return self._nearest(list(self.rows(limit)))

    def more(self, limit: int = STRIKES) -> int:
        """Return the number of strikes that `rows` leaves out."""
        return max(0, len(self._strikes) - limit)

    def smile(self) -> dict[str, Any]:
        """Return the volatilities by strike: those of puts below the forward and of calls from there on."""
        forward = self.forward or 0.0
        rows = self.rows()
        volatilities = []
        for strike, row in rows.items():
            call, put = row[0], row[7]
            first, second = (put, call) if strike < forward else (call, put)
            volatilities.append(second if first is None else first)
        return {"x": list(rows), "y": volatilities, "atm": self._nearest(list(rows))}

    @property
    def forward_text(self) -> str:
        return "-" if self.forward is None else price_text(self.forward, 2)

    def _nearest(self, strikes: list[float]) -> int:
        """Return the index of the strike nearest the forward. Without a forward, of the middle one."""
        if self.forward is None:
            return len(strikes) // 2
        above = bisect_left(strikes, self.forward)
        around = [i for i in (above - 1, above) if 0 <= i < len(strikes)]
        return min(around, key=lambda i: abs(strikes[i] - (self.forward or 0.0)), default=0)


class Chains:
    """The options of one view. Not thread-safe."""

    def __init__(self, newest: Mapping[str, Greeks] | None = None) -> None:
        #: By name, in order of underlying and expiry.
        self._chains: dict[str, Chain] = {}
        self._newest: dict[str, Greeks] = {}
        self._chosen: str | None = None
        #: The chains and the strikes of the chosen one that changed since the last changes, and what the page has.
        self._changed: set[str] = set()
        self._changed_strikes: set[float] = set()
        self._sent: tuple[Any, ...] = ()
        self._sent_at = -math.inf
        self.update(newest or {})

    def update(self, newest: Mapping[str, Greeks]) -> dict[str, Greeks]:
        """Take in the newest Greeks of each contract. Return those that are new, of futures and perpetuals too."""
        new = complete({name: each for name, each in newest.items() if self._newest.get(name) is not each})
        self._newest.update(new)
        for name, greeks in new.items():
            contract = instrument(name)
            if contract.strike is not None:
                chain = self._chain_of(contract)
                chain.update(contract.strike, contract.kind, greeks)
                self._changed.add(chain.name)
                if chain is self.chosen:
                    self._changed_strikes.add(contract.strike)
        return new

    def _chain_of(self, contract: Instrument) -> Chain:
        name = contract.name.rsplit("-", 2)[0]
        if name not in self._chains:
            self._chains[name] = Chain(contract)
            self._chains = dict(sorted(self._chains.items(), key=lambda item: (item[1].underlying, item[1].expiry)))
        return self._chains[name]

    def choose(self, name: str) -> None:
        """Choose the expiry whose chain is shown. Ignores one without options."""
        if name in self._chains:
            self._chosen = name

    @property
    def chosen(self) -> Chain | None:
        """The chain that is shown: the first one by default."""
        return self._chains.get(self._chosen or "") or next(iter(self._chains.values()), None)

    def full(self) -> dict[str, Any]:
        """Return the full state. The next changes are those since then."""
        chain = self.chosen
        self._changed.clear()
        self._changed_strikes.clear()
        self._sent = self._structure()
        if chain is None:
            return {"expiries": []}
        rows = chain.rows()
        return {
            "expiries": list(self._chains),
            "chosen": chain.name,
            "underlying": chain.underlying,
            "unit": chain.unit,
            "strikes": [price_text(strike) for strike in rows],
            "more": chain.more(),
            "rows": dict(enumerate(rows.values())),
            "smiles": {each.name: each.smile() for each in self._lines()},
            **_forward_fields(chain),
        }

    def changes(self, now: float) -> dict[str, Any] | None:
        """Return the changes since the last ones. None without changes, or too soon after the last ones.

        `now` is in monotonic seconds. The full state comes instead if the page needs other rows or lines, at once after
        a choice.
        """
        chain = self.chosen
        if not self._changed and self._sent == self._structure():
            return None
        was_chosen = self._sent[:1] == (chain and chain.name,)
        if chain is None or (was_chosen and now - self._sent_at < _EVERY):
            return None
        self._sent_at = now
        if self._sent != self._structure():
            return self.full()
        rows = {i: row for i, (strike, row) in enumerate(chain.rows().items()) if strike in self._changed_strikes}
        smiles = {each.name: each.smile() for each in self._lines() if each.name in self._changed}
        self._changed.clear()
        self._changed_strikes.clear()
        return {"rows": rows, "smiles": smiles, **_forward_fields(chain)}

    def levels(self) -> dict[str, float | None]:
        """Return the volatility at the money by expiry, for the chosen underlying."""
        smiles = {chain.name: chain.smile() for chain in self._lines()}
        return {name: smile["y"][smile["atm"]] for name, smile in smiles.items()}

    def _lines(self) -> list[Chain]:
        """The chains whose smiles are shown: those of the chosen underlying."""
        chosen = self.chosen
        if chosen is None:
            return []
        chains = [chain for chain in self._chains.values() if chain.underlying == chosen.underlying]
        return chains[:LINES] if chosen in chains[:LINES] else [*chains[: LINES - 1], chosen]

    def _structure(self) -> tuple[Any, ...]:
        """What decides which rows and lines there are."""
        chain = self.chosen
        return () if chain is None else (chain.name, tuple(self._chains), tuple(chain.rows()))


def _forward_fields(chain: Chain) -> dict[str, Any]:
    return {
        "forward": chain.forward,
        "forward_text": chain.forward_text,
        "atm": chain.at_the_money(),
        "digits": chain.digits,
    }


def _rounded(value: Any, digits: int) -> float | None:
    number = finite(value)
    return None if number is None else round(number, digits)
