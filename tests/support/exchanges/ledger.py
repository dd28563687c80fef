"""Compare the trades that loopback exchanges made with the ticks that a client received."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import attrs

from .exchange import Exchange, Trade

#: One price of a pair on an exchange. All trades have their own, except those that are alike or sent as one.
Key = tuple[str, str, Decimal]


@attrs.define
class Comparison:
    """What became of the trades.

    Attributes:
        made (int): The trades that should have arrived.
        received (int): The ticks that came.
        missing (Counter[Key]): Trades that didn't arrive.
        repeated (Counter[Key]): Ticks of trades that had arrived before.
        unknown (list[Any]): Ticks that belong to no trade, or have other digits than it.
        disordered (int): Ticks that came after one with a greater ID.
    """

    made: int = 0
    received: int = 0
    missing: Counter[Key] = attrs.field(factory=Counter)
    repeated: Counter[Key] = attrs.field(factory=Counter)
    unknown: list[Any] = attrs.field(factory=list)
    disordered: int = 0

    @property
    def complete(self) -> bool:
        """Whether each trade arrived once, with its digits, in any order."""
        return not (self.missing or self.repeated or self.unknown)

    @property
    def faultless(self) -> bool:
        """Whether each trade arrived once, with its digits, in order."""
        return self.complete and not self.disordered

    def __str__(self) -> str:
        return (
            f"{self.made} trades made, {self.received} ticks received, {self.missing.total()} missing, "
            f"{self.repeated.total()} twice, {len(self.unknown)} unknown, {self.disordered} out of order"
        )


def compare(
    exchanges: Iterable[Exchange], made: Mapping[tuple[str, str], Sequence[Trade]], ticks: Iterable[Any]
) -> Comparison:
    """Compare trades and ticks.

    Args:
        exchanges (Iterable[Exchange]): Where the trades were made.
        made (Mapping[tuple[str, str], Sequence[Trade]]): The trades by exchange and pair.
        ticks (Iterable[Tick]): What a `StreamListener` with `parse_price=str` received.
    """
    result = Comparison()
    by_name = {each.name: each for each in exchanges}
    trades: dict[Key, list[Trade]] = defaultdict(list)
    for (name, pair), some in made.items():
        for trade in some:
            trades[name, pair, Decimal(trade.price)].append(trade)
    received: Counter[Key] = Counter()
    used: set[tuple[Key, int]] = set()
    newest: dict[tuple[str, str], int] = {}
    for tick in ticks:
        result.received += 1
        series = tick["exchange"], tick["pair"]
        key: Key = (*series, Decimal(tick["price"]))
        matching = [each for each in trades.get(key, ()) if by_name[series[0]].is_tick_of(each, tick)]
        if not matching:
            result.unknown.append(tick)
            continue
        trade = next((each for each in matching if (key, each.id) not in used), matching[-1])
        used.add((key, trade.id))
        received[key] += 1
        result.disordered += trade.id < newest.get(series, 0)
        newest[series] = max(trade.id, newest.get(series, 0))
    for key, some in trades.items():
        merged = len({each.last for each in some}) if by_name[key[0]].merges else len(some)
        result.made += merged
        if received[key] < merged:
            result.missing[key] = merged - received[key]
        elif received[key] > len(some):
            result.repeated[key] = received[key] - len(some)
    return result
