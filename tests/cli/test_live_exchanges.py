"""`demo --live` and `serve --live` with loopback exchanges, and without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.cli import COMMAND, TIMEOUT, environment, run
from tests.support.exchanges import EXCHANGES, LoopbackExchanges
from tests.support.peers import free_port

PAIR = "BTC:USDT"


@pytest.fixture
def exchanges() -> Iterator[LoopbackExchanges]:
    """Exchanges with 600 trades per second."""
    with LoopbackExchanges([PAIR]) as exchanges:
        exchanges.set_rate(600.0)
        yield exchanges


def urls(base_urls: dict[str, str]) -> list[str]:
    return [part for name in EXCHANGES for part in ("--exchange-url", f"{name}={base_urls[name]}")]


def subjects(errors: str) -> list[str]:
    """What each line on standard error is about."""
    return [line.removeprefix("finx-streamer: ").partition(":")[0] for line in errors.splitlines()]


@pytest.mark.parametrize("duration", ["3", pytest.param("20", marks=pytest.mark.slow)])
def test_demo(exchanges: LoopbackExchanges, duration: str) -> None:
    """Trades of all six exchanges, with their digits."""
    result = run("demo", "--live", PAIR, "--duration", duration, "--format", "json", *urls(exchanges.base_urls))
    assert result.returncode == 0, result.stderr
    ticks = [json.loads(line) for line in result.stdout.splitlines()]
    counts = Counter(each["exchange"] for each in ticks)
    assert set(counts) == set(EXCHANGES)
    made = {(each.name, trade.price) for each in exchanges for trade in each.books[PAIR].trades}
    assert {(each["exchange"], each["price"]) for each in ticks} <= made
    assert len({(each["exchange"], each["price"]) for each in ticks}) == len(ticks)


def test_demo_without_a_network() -> None:
    """One line per exchange, and exit code 1, long before the 10 s."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    result = run("demo", "--live", PAIR, "--duration", "20", *urls(dict.fromkeys(EXCHANGES, nowhere)))
    assert result.returncode == 1
    assert result.stdout == ""
    assert subjects(result.stderr) == [*EXCHANGES, "error"]
    assert result.stderr.endswith("error: no exchange can be used\n")


def test_demo_on_a_machine_without_a_network() -> None:
    """With the exchanges' own addresses, in a network namespace that has no way out."""
    alone = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("unshare can't make a network namespace on this machine")
    command = [*alone, *COMMAND, "demo", "--live", PAIR, "--duration", "20"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 1
    assert subjects(result.stderr) == [*EXCHANGES, "error"]


def test_demo_with_one_exchange_of_six(exchanges: LoopbackExchanges) -> None:
    """The others are away. That ends nothing."""
    nowhere = dict.fromkeys(EXCHANGES, f"http://127.0.0.1:{free_port()}")
    addresses = {**nowhere, "OKX": exchanges.base_urls["OKX"]}
    result = run("demo", "--live", PAIR, "--limit", "3", "--format", "json", *urls(addresses))
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["exchange"] for line in result.stdout.splitlines()] == ["OKX"] * 3


def test_a_pair_that_no_exchange_lists(exchanges: LoopbackExchanges) -> None:
    result = run("demo", "--live", "NO:SUCH", *urls(exchanges.base_urls))
    assert result.returncode == 1
    assert subjects(result.stderr) == [*EXCHANGES, "error"]
