"""`--live` of `serve` and `demo`, with exchanges on loopback. No test reaches a real exchange."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.support.cli import run, running
from tests.support.exchanges import LoopbackExchanges

PAIR = "BTC:USDT"


@pytest.fixture
def exchanges() -> Iterator[LoopbackExchanges]:
    with LoopbackExchanges((PAIR,)) as running_exchanges:
        yield running_exchanges


def urls(exchanges: LoopbackExchanges) -> list[str]:
    """The options that lead to exchanges on loopback."""
    return [f"--exchange-url={name}={url}" for name, url in exchanges.base_urls.items()]


def test_the_demo_shows_live_ticks(exchanges: LoopbackExchanges) -> None:
    exchanges.set_rate(200)
    done = run("demo", "--live", PAIR, "--limit", "30", "--format", "json", *urls(exchanges))
    assert (done.returncode, done.stderr) == (0, "")
    ticks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ticks) == 30
    assert {each["pair"] for each in ticks} == {PAIR}
    assert {each["exchange"] for each in ticks} <= set(exchanges.exchanges)


def test_the_demo_without_a_network() -> None:
    """One line per exchange says why."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    names = ["BINANCE", "KRAKEN", "OKX"]
    options = [f"--exchange-url={name}=http://127.0.0.1:{port}" for name in names]
    done = run("demo", "--live", PAIR, "--exchanges", ",".join(names), *options)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.split(":")[1].strip() for line in lines] == [*names, "error"]
    assert all(line.endswith("REST: connection refused") for line in lines[:-1])
    assert lines[-1] == "finx-streamer: error: no exchange can be used"


def test_the_demo_of_a_pair_that_no_exchange_lists(exchanges: LoopbackExchanges) -> None:
    done = run("demo", "--live", "ETH:USDT", *urls(exchanges))
    assert done.returncode == 1
    assert done.stderr.count("lists nothing of what is wanted") == len(exchanges.exchanges)


def test_the_server_shows_its_exchanges(exchanges: LoopbackExchanges) -> None:
    """A line each, when one connects, goes away and comes back."""
    options = ["--exchanges", "okx,kraken", "--port", "0", "--log-level", "error", *urls(exchanges)]
    with running("serve", "--live", PAIR, *options) as command:
        assert command.stdout.readline().startswith("serving: ws://")
        assert command.stdout.readline() == f"pairs:   {PAIR}\n"
        shown = sorted(command.stderr.readline().partition(";")[0] for _ in range(2))
        assert shown == ["finx-streamer: KRAKEN: connected", "finx-streamer: OKX: connected"]
        exchanges["OKX"].refuse = 503
        exchanges.call(exchanges["OKX"].drop, "fin")
        assert command.stderr.readline().startswith("finx-streamer: OKX: away: ")
        exchanges["OKX"].refuse = None
        assert command.stderr.readline().startswith("finx-streamer: OKX: connected; 0 trades, 1 reconnect, ")
        command.send_signal()
        code, _, err = command.finish()
    assert (code, err) == (0, "finx-streamer: stopped\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--live"], "--live needs pairs, as in --live BTC:USDT ETH:USDT"),
        (["serve", PAIR], "pairs can only be used with --live; add it, as in --live BTC:USDT"),
        (["demo", "--exchanges", "OKX"], "--exchanges can only be used with --live; add it, as in --live BTC:USDT"),
        (["serve", "--live", PAIR, "--rate", "5"], "--rate can't be used with --live; remove one of them"),
        (["serve", "--live", PAIR, "--tape", "x"], "--tape can't be used with --live; remove one of them"),
        (["serve", "--live", PAIR, "--speed", "2"], "--speed can't be used with --live; remove one of them"),
        (["serve", "--live", PAIR, "--loop"], "--loop can't be used with --live; remove one of them"),
        (["demo", "--live", PAIR, "--options"], "--options can't be used with --live; remove one of them"),
        (
            ["serve", "--live", PAIR, "--exchange-url", "OKX"],
            "--exchange-url: expected NAME=URL, as in OKX=http://127.0.0.1:9000/okx",
        ),
        (
            ["demo", "--live", PAIR, "--exchanges", "FTX"],
            "exchanges has 'FTX'; expected some of BINANCE, BITSTAMP, BYBIT, COINBASE, KRAKEN, OKX",
        ),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"finx-streamer: error: {message}\n")
