"""Every part of a system with JetStream is killed and stopped at random: nothing is lost in silence, nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer.server import LocalServer
from tests.support.chaos import Market, Verdict, Witness, chaos, judge, wait_until_complete


class FaultyMarket(Market):
    """Makes one mistake with tick 500: what it sends differs from what it keeps."""

    fault = ""

    def send(self, due: float, number: int) -> Iterator[tuple[float, Any]]:
        right = super().send(due, number)
        if number != 500 or number in self.sent:
            yield from right
        elif self.fault == "lost":
            self.sent.append(number)
        elif self.fault == "doubled":
            yield from right
            yield due, {**self.ticks[number], "price": str(number)}
        elif self.fault == "changed":
            yield due, {**self.ticks[number], "price": str(number), "exchange": "OTHER"}
            self.sent.append(number)
        elif self.fault == "disordered":
            self.late = number
        if self.fault == "disordered" and number == 600:
            yield from super().send(due, 500)


def verdict_on(fault: str) -> Verdict:
    """Play a market to a listener, without anything in between."""
    market = FaultyMarket(3, 5_000.0, 1)
    market.fault = fault
    with LocalServer(market) as server:
        witness = Witness(market, [server.url])
        with witness.listener:
            assert witness.begun.wait(20.0)
            market.counting = True
            server.wait_until(lambda stats: len(market.sent) > 2_000)
            market.ended = True
            server.wait_finished()
            wait_until_complete(market, [witness], calm=2.0)
    return judge(market, witness)


def test_a_correct_system_passes() -> None:
    verdict = verdict_on("")
    assert verdict.got > 2_000
    assert (verdict.lost, verdict.doubled, verdict.changed, verdict.disordered) == ([], [], 0, 0)


@pytest.mark.parametrize("fault", ["lost", "doubled", "changed", "disordered"])
def test_the_verdict_finds_each_fault(fault: str) -> None:
    verdict = verdict_on(fault)
    expected = {"lost": [], "doubled": [], "changed": 0, "disordered": 0}
    expected |= {fault: [500] if fault in ("lost", "doubled") else 1}
    assert {name: getattr(verdict, name) for name in expected} == expected


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("minutes", "trouble"), [(0.3, 3), pytest.param(0.8, 7, marks=pytest.mark.slow)])
def test_a_short_chaos(tmp_path: Path, minutes: float, trouble: int) -> None:
    """`make chaos` runs a long one."""
    outcome = chaos(tmp_path, minutes, seed=4, rate=300.0, every=2.5)
    print(outcome)
    assert outcome.mistakes() == []
    assert outcome.trouble.total() >= trouble
    assert min(verdict.got for verdict in outcome.verdicts) + outcome.reported >= outcome.sent > 0
