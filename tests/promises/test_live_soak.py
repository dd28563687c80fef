"""Short versions of `make soak-live`."""

from __future__ import annotations

import pytest

from tests.support.exchanges import LoopbackExchanges
from tests.support.live_soak import PAIRS, Ledger, soak


def test_the_ledger_counts_each_kind_of_fault() -> None:
    with LoopbackExchanges(PAIRS) as exchanges:
        ledger = Ledger(exchanges)
        trades = exchanges.make("BINANCE", PAIRS[0], 6)
        before, down = ledger.position(), exchanges.make("BINANCE", PAIRS[0], 2)
        ledger.excuse("down", before, ledger.position())
        for trade in [*trades[1:4], trades[3], trades[5], down[0]]:
            ledger.take(f"BINANCE {PAIRS[0]} {trade.price}")
        assert ledger.result() == {"made": 8, "missing": 2, "twice": 1, "down": 1, "unwritten": 0}
        assert ledger.received == 6


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("minutes", "faults"), [(0.1, 2), pytest.param(1.0, 12, marks=pytest.mark.slow)])
def test_a_short_soak(minutes: float, faults: int) -> None:
    """No trade is missing, and none comes twice. Only a long run can judge memory."""
    report = soak(minutes, rate=600.0, seed=3, every=2.0)
    print(report)
    assert report.counts["missing"] == 0
    assert report.counts["twice"] == 0
    assert report.received
    assert sum(report.faults.values()) >= faults
