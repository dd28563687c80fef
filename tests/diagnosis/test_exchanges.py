"""`doctor(live=…)`: one line per exchange, in the situations that users meet."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from finx_streamer import ConfigurationError, doctor
from finx_streamer.diagnosis import exchanges as exchange_checks
from tests.support.cli import run
from tests.support.exchanges import EXCHANGES, LoopbackExchanges, RestFault
from tests.support.peers import free_port

PAIRS = ["BTC:USDT", "ETH:USDT"]


@pytest.fixture
def exchanges() -> Iterator[LoopbackExchanges]:
    """Each lists both pairs, except Kraken."""
    with LoopbackExchanges(PAIRS, listed={"KRAKEN": PAIRS[:1]}) as exchanges:
        exchanges.set_rate(200.0)
        yield exchanges


def findings(exchanges: LoopbackExchanges, *pairs: str) -> dict[str, tuple[str, str]]:
    """Verdict and text by exchange."""
    report = doctor(live=pairs or PAIRS, base_urls=exchanges.base_urls)
    return {check.name: (check.verdict.value, check.found) for check in report.checks}


def test_all_exchanges_answer(exchanges: LoopbackExchanges) -> None:
    found = findings(exchanges)
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(EXCHANGES, "ok")
    for name, (_, text) in found.items():
        assert "a trade after" in text
        assert "late" in text
        assert ("lists BTC:USDT, not ETH:USDT" if name == "KRAKEN" else "lists BTC:USDT, ETH:USDT") in text


def test_an_exchange_without_a_listing_and_one_without_a_connection(exchanges: LoopbackExchanges) -> None:
    exchanges["OKX"].rest_fault = RestFault(451, times=99, trades=False)
    exchanges["BYBIT"].refuse = 403
    found = findings(exchanges)
    assert found.pop("OKX") == ("failed", "REST: HTTP status 451")
    verdict, text = found.pop("BYBIT")
    assert verdict == "failed"
    assert text.endswith("WebSocket: HTTP status 403")
    assert {verdict for verdict, _ in found.values()} == {"ok"}


def test_pairs_that_no_exchange_lists(exchanges: LoopbackExchanges) -> None:
    found = findings(exchanges, "NO:SUCH")
    assert {verdict for verdict, _ in found.values()} == {"note"}
    assert all(text.endswith("lists none of the pairs") for _, text in found.values())


def test_no_trades_and_no_answers(exchanges: LoopbackExchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    """One exchange sends heartbeats but no trades, one sends nothing, and one doesn't answer REST requests."""
    monkeypatch.setattr(exchange_checks, "LIMIT", 1.5)
    exchanges.set_rate(0.0)
    exchanges["OKX"].silent = True
    exchanges.call(exchanges["BINANCE"].hold_rest)
    found = findings(exchanges)
    assert found["BINANCE"] == ("failed", "no answer within 1.5 s")
    assert found["OKX"][0] == "failed"
    assert found["OKX"][1].endswith("WebSocket: no answer within 1.5 s")
    assert found["KRAKEN"][0] == "note"
    assert found["KRAKEN"][1].endswith("no trade within 1.5 s")


def test_some_exchanges(exchanges: LoopbackExchanges) -> None:
    """One that is blocked where you are can be left out."""
    exchanges["BINANCE"].rest_fault = RestFault(451, times=99, trades=False)
    report = doctor(live=PAIRS, exchanges=["OKX", "KRAKEN"], base_urls=exchanges.base_urls)
    assert report.ok
    assert {check.name for check in report.checks} == {"KRAKEN", "OKX"}


def test_a_trade_that_is_late(exchanges: LoopbackExchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_checks, "_LATE", 0.25)
    exchanges["OKX"].lag = 0.5
    found = findings(exchanges)
    assert found["OKX"][0] == "note"


def test_nothing_answers() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    report = doctor(live=["BTC:USDT"], base_urls=dict.fromkeys(EXCHANGES, nowhere))
    assert not report.ok
    assert {check.name for check in report.checks} == set(EXCHANGES)


@pytest.mark.parametrize(
    "arguments",
    [
        {"live": ["BTC"]},
        {"live": []},
        {"live": ["BTC:USDT"], "base_urls": {"OKX": "x"}},
        {"live": ["BTC:USDT"], "exchanges": ["FTX"]},
        {"live": ["BTC:USDT"], "exchanges": []},
        {"live": ["BTC:USDT"], "exchanges": "OKX"},
    ],
)
def test_wrong_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        doctor(**arguments)  # type: ignore[arg-type]


def test_the_command(exchanges: LoopbackExchanges) -> None:
    urls = [part for name in EXCHANGES for part in ("--exchange-url", f"{name}={exchanges.base_urls[name]}")]
    result = run("doctor", "--live", *PAIRS, *urls)
    assert result.returncode == 0, result.stderr
    *lines, empty, summary = result.stdout.splitlines()
    assert {line.split()[1] for line in lines if not line.startswith(" ")} == set(EXCHANGES)
    assert (empty, summary) == ("", "all is well")
    as_json = json.loads(run("doctor", "--live", "--json", *urls).stdout)
    assert as_json["ok"]
    assert len(as_json["checks"]) == 6
    some = run("doctor", "--live", "--exchanges", "okx,kraken", *urls)
    assert some.returncode == 0, some.stderr
    assert {line.split()[1] for line in some.stdout.splitlines() if line.startswith("ok")} == {"KRAKEN", "OKX"}


def test_wrong_usage_of_the_command() -> None:
    assert run("doctor", *PAIRS).returncode == 2
    assert run("doctor", "--exchanges", "OKX").returncode == 2
    assert run("doctor", "--live", "--exchanges", "FTX").returncode == 2
    assert run("doctor", "--exchange-url", "OKX=http://127.0.0.1:9/").returncode == 2
    assert run("doctor", "--live", "--exchange-url", "OKX").returncode == 2
