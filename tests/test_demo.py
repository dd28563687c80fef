"""`endpoint="demo"`: the simulated market in this process."""

from __future__ import annotations

import gc
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from finx_streamer import FunctionClient, StreamListener
from finx_streamer.server.contract_table import point_of
from finx_streamer.server.contracts import ContractTicker, seconds_of
from finx_streamer.server.demo import MarketWithPast
from finx_streamer.values import Tick
from tests.support.calls import wait_until
from tests.support.program import run_program

PAIR = "BTC:USDC"


def servers() -> int:
    """How many local servers run in this process."""
    return sum(thread.name == "finx-local-server" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_key_and_a_useless_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The demo needs no key, and no proxy reaches it."""
    monkeypatch.delenv("FINX_API_KEY", raising=False)
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    yield
    gc.collect()
    wait_until(lambda: not servers())


def test_listeners_and_clients_share_one_market() -> None:
    """A listener's first tick is in the client's history, which begins an hour earlier."""
    seen: list[Tick] = []
    listener = StreamListener(PAIR, endpoint="demo", on_tick=seen.append)
    with FunctionClient(endpoint="demo") as client, listener:
        assert servers() == 1
        wait_until(lambda: seen)
        end = seen[0]["timestamp"] + timedelta(milliseconds=1)
        history = client.tick_history(PAIR, end - timedelta(hours=2), end)
    fields = ("pair", "date", "time", "exchange", "price")
    assert [seen[0][name] for name in fields] in [[tick[name] for name in fields] for tick in history]
    assert timedelta(minutes=59) < end - history[0]["timestamp"] < timedelta(minutes=61)


def test_the_market_ends_with_its_last_user_and_starts_again() -> None:
    """A listener that is stopped may start again, so the market lives as long as it does."""
    first, second = (StreamListener(PAIR, endpoint="demo") for _ in range(2))
    del first
    gc.collect()
    assert servers() == 1
    with second:
        pass
    assert servers() == 1
    del second
    gc.collect()
    wait_until(lambda: not servers())
    with FunctionClient(endpoint="demo") as client:
        assert client.tick_snap(PAIR)["pair"] == PAIR


def test_live_ticks_go_on_where_the_past_ends() -> None:
    """Time and price have no seam."""
    market = MarketWithPast()
    now = datetime.now(UTC)
    past = list(market.take_past())
    live = list(itertools.islice(market.play(now.timestamp), 1_000))
    everything = [*past, *(played for _, played in live)]
    times = [seconds_of(played) for played in everything]
    assert times == sorted(times)
    assert [due for due, _ in live] == sorted(due for due, _ in live)
    prices = [float(tick["price"]) for tick in everything if isinstance(tick, dict) and tick["pair"] == PAIR]
    assert max(abs(after / before - 1) for before, after in itertools.pairwise(prices)) < 0.01


def test_the_past_has_contracts_at_each_five_minute_point() -> None:
    """A matrix can be asked for at any of them."""
    points = Counter(point_of(each) for each in MarketWithPast().take_past() if isinstance(each, ContractTicker))
    assert len([point for point, count in points.items() if count > 200]) in {11, 12}


def test_a_forked_process_gets_a_market_of_its_own() -> None:
    """The server's thread stays in the parent process."""
    assert run_program("demo", "fork").stdout == "0\n"


def test_without_the_extra_one_line_says_what_to_install() -> None:
    """It is a `ConfigurationError`, like any wrong argument."""
    run = run_program("demo", "without_extra")
    assert run.stdout == (
        'endpoint="demo" runs a local server, which needs an extra: pip install "finx-streamer[server]"\n'
    )
