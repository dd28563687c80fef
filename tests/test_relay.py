"""A relay: a server whose market is another server."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from finx_streamer import AuthenticationError, ConfigurationError, Endpoint, FunctionClient, StreamNotFound
from finx_streamer.relay import RelayMarket
from finx_streamer.server import LocalServer
from tests.support.contracts import BEGIN, CALL, FUTURE, MONTH, PUT, played_by_hand, ticker
from tests.support.market import OTHER, PAIR, Market, prices, send, tick
from tests.support.peers import QUICK, Seen, free_port

KEY = "the-key-of-the-firm"
WIRES = pytest.mark.parametrize("wire", ["url", "subscribe"])
Wire = Literal["url", "subscribe"]


@pytest.fixture
def upstream() -> Iterator[LocalServer]:
    with LocalServer(Market(PAIR, OTHER), keys={KEY}, close_timeout=0.2) as server:
        yield server


def relay_of(upstream: LocalServer, *symbols: str, **settings: Any) -> RelayMarket:
    defaults = {"endpoint": upstream.url, "api_key": KEY, "reconnect": QUICK}
    return RelayMarket(*(symbols or (PAIR, OTHER)), **defaults | settings)


def serving(market: Any, **settings: Any) -> LocalServer:
    return LocalServer(market, keys={"demo"}, close_timeout=0.2, **settings)


def texts(seen: Seen) -> list[dict[str, str]]:
    """The five strings of each tick, as they were sent."""
    return [{name: each[name] for name in tick(0)} for each in seen.ticks]  # type: ignore[literal-required]


@WIRES
@pytest.mark.parametrize("upstream_wire", ["url", "subscribe"])
def test_two_clients_get_what_the_upstream_sends(upstream: LocalServer, wire: Wire, upstream_wire: Wire) -> None:
    """In its order, and with every character as it was sent. The upstream has one connection, or one per pair."""
    ticks = [tick(number, (PAIR, OTHER)[number % 2]) for number in range(1, 1_000)]
    ticks[5:5] = [tick(4) | {"time": "15:30:00.04Z", "price": "21865.010000000002"}, tick(4) | {"time": "15:30:00Z"}]
    market = relay_of(upstream, endpoint=Endpoint(upstream.url, wire=upstream_wire))
    with serving(market) as server:
        upstream.wait_connected(2)
        assert upstream.stats.connections == (1 if upstream_wire == "subscribe" else 2)
        seen = [Seen(), Seen()]
        endpoint: Any = Endpoint(server.url, wire=wire)
        with (
            seen[0].listener(endpoint, PAIR, OTHER, parse_price=str),
            seen[1].listener(endpoint, PAIR, OTHER, parse_price=str),
        ):
            server.wait_connected(4)
            upstream.emit(*ticks)
            for each in seen:
                each.wait_ticks(len(ticks))
                if upstream_wire == wire == "subscribe":
                    assert texts(each) == ticks
                for pair in (PAIR, OTHER):
                    assert [found for found in texts(each) if found["pair"] == pair] == [
                        sent for sent in ticks if sent["pair"] == pair
                    ]
                assert each.errors == []


def test_by_default_all_pairs_share_one_connection(upstream: LocalServer) -> None:
    with serving(relay_of(upstream)):
        upstream.wait_connected(2)
        assert upstream.stats.connections == 1


@WIRES
@pytest.mark.parametrize("resumable", [True, False])
def test_an_outage_of_the_upstream_costs_no_tick(seen: Seen, wire: Wire, resumable: bool) -> None:
    """The clients get what was missed in order, and notice nothing. The upstream stops and starts."""
    upstream = LocalServer(Market(PAIR), keys={KEY}, close_timeout=0.2, port=free_port(), resumable=resumable)
    with upstream, serving(relay_of(upstream, PAIR)) as server:
        endpoint: Any = Endpoint(server.url, wire=wire)
        with seen.listener(endpoint):
            server.wait_connected()
            for number in range(0, 30, 10):
                upstream.wait_connected()
                send(upstream, *range(number + 1, number + 6))
                seen.wait_ticks(number + 5)
                upstream.stop()
                upstream.import_ticks([tick(each) for each in range(number + 6, number + 10)] if not resumable else [])
                upstream.start()
                upstream.wait_connected()
                send(upstream, *(range(number + 6, number + 11) if resumable else [number + 10]))
                seen.wait_ticks(number + 10)
            assert prices(seen) == list(range(1, 31))
        assert seen.errors == []


@WIRES
def test_clients_hear_of_a_gap_that_cannot_be_filled(seen: Seen, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """As a notice of the pair, before the next tick. The log says why. The upstream's key is in neither."""
    market = Market(PAIR, OTHER)
    with LocalServer(market, keys={KEY}, close_timeout=0.2, resumable=False) as upstream:
        upstream.fail_functions(None, f"no history for {KEY}", function="tickHistory")
        with serving(relay_of(upstream)) as server, seen.listener(Endpoint(server.url, wire=wire), PAIR, OTHER):  # type: ignore[arg-type]
            server.wait_connected(2)
            upstream.wait_connected(2)
            send(upstream, 1)
            seen.wait_ticks(1)
            upstream.drop_connections()
            upstream.wait_connected(2)
            send(upstream, 3)
            seen.wait_ticks(2)
            [notice] = seen.notices
    assert notice.symbol == PAIR
    assert notice.message == {
        "notice": "gap not filled",
        "since": "2022-07-02T15:30:00.010000+00:00",
        "until": "2022-07-02T15:30:00.030000+00:00",
        "pair": PAIR,
    }
    assert any("gap not filled: " in record.getMessage() for record in caplog.records)
    assert KEY not in caplog.text + repr(seen.notices) + repr(seen.errors)


def test_a_rejected_key_ends_the_source(
    upstream: LocalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients can see that the source has failed, and nothing of the key."""
    log = tmp_path / "requests.jsonl"
    wrong = "the-wrong-key-of-the-firm"
    with serving(relay_of(upstream, api_key=wrong), request_log=log) as server:
        with pytest.raises(AuthenticationError, match="the upstream: the API key was refused") as caught:
            server.wait_finished()
        with pytest.raises(urllib.error.HTTPError) as health:
            urllib.request.urlopen(server.url.replace("ws:", "http:") + "health")
        assert health.value.code == 503
        answer = health.value.read().decode()
        assert json.loads(answer)["source"] != "ok"
        health.value.close()
    assert wrong not in answer + log.read_text() + caplog.text + str(caught.value)


def test_a_key_that_is_revoked_ends_the_source(upstream: LocalServer) -> None:
    with serving(relay_of(upstream)) as server:
        upstream.wait_connected(2)
        upstream.revoke_key(KEY)
        with pytest.raises(AuthenticationError, match="the upstream"):
            server.wait_finished()


def test_a_pair_that_the_upstream_does_not_know_is_unknown(upstream: LocalServer, seen: Seen) -> None:
    """The others go on."""
    market = relay_of(upstream, PAIR, "NO:WAY")
    with serving(market) as server:
        upstream.wait_connected()
        server.wait_until(lambda stats: "NO:WAY" not in market.pairs or None)  # type: ignore[arg-type, return-value]
        with seen.listener(server.url, PAIR, "NO:WAY"):
            seen.wait_for(lambda: seen.of_type(StreamNotFound))
            send(upstream, 1)
            seen.wait_ticks(1)


@WIRES
def test_greeks_have_the_texts_of_the_upstream(seen: Seen, wire: Wire) -> None:
    """For a month and for a contract. A client can subscribe before the first ticker."""
    tickers = [ticker(CALL, delta="0.83341", vega="13.62974"), ticker(PUT, BEGIN + 1, mark_iv="72.120"), ticker(FUTURE)]
    with LocalServer(played_by_hand(CALL, PUT, FUTURE), keys={KEY}) as upstream:
        market = relay_of(upstream, MONTH, FUTURE)
        with serving(market) as server:
            upstream.wait_connected(3)  # both contracts of the month, on the second wire
            with FunctionClient("demo", server.url) as client:
                while client.list_contracts() != sorted([CALL, PUT, FUTURE]):
                    assert not market.contracts - {CALL, PUT, FUTURE}
            with seen.listener(Endpoint(server.url, wire=wire), MONTH, FUTURE):  # type: ignore[arg-type]
                server.wait_connected(2 if wire == "url" else 3)
                upstream.emit(*tickers)
                seen.wait_greeks(3)
    assert sorted((each["instrument"], each["symbol"]) for each in seen.greeks) == sorted(
        [(CALL, MONTH), (PUT, MONTH), (FUTURE, FUTURE)]
    )
    found = {each["instrument"]: each["raw"] for each in seen.greeks}
    assert [{name: found[sent["instrument_name"]][name] for name in sent} for sent in tickers] == tickers


def test_the_store_is_filled_from_a_time_on(upstream: LocalServer) -> None:
    send(upstream, *range(1, 2_001))
    market = relay_of(upstream, PAIR, since="2022-07-02T15:30:10Z")
    with serving(market) as server:
        upstream.wait_connected()
        server.wait_until(lambda stats: stats.ticks_stored >= 1_001)
        with FunctionClient("demo", server.url, parse_price=str) as client:
            found = client.tick_history(PAIR, "2022-07-02")
    assert [each["price"] for each in found] == [tick(number)["price"] for number in range(1_000, 2_001)]


def test_the_server_can_be_started_again(upstream: LocalServer, seen: Seen) -> None:
    server = serving(relay_of(upstream, PAIR))
    for number in (1, 2):
        with server, seen.listener(server.url):
            server.wait_connected()
            upstream.wait_connected()
            send(upstream, number)
            seen.wait_ticks(number)
        upstream.wait_until(lambda stats: stats.connections == 0)


class FullStore:
    """An outlet that has no room until the test says so."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.prices: list[str] = []

    async def publish(self, played: Any) -> None:
        await self.room.wait()
        self.prices += [each["price"] for each in played]

    def notify(self, pairs: Any, notice: Any) -> None:
        raise AssertionError(notice)


def test_the_upstream_is_not_read_while_the_store_has_no_room() -> None:
    """So it disconnects the relay as a slow client. Afterwards, the ticks follow without a loss."""

    async def relay(upstream: LocalServer) -> tuple[int, list[str]]:
        outlet, count = FullStore(), 0
        running = asyncio.create_task(relay_of(upstream, PAIR).run(outlet))
        await asyncio.to_thread(upstream.wait_connected)
        while not upstream.stats.slow_clients:
            assert count < 900_000
            ticks = [tick(1) | {"price": str(each)} for each in range(count, count + 10_000)]
            count += await asyncio.to_thread(upstream.emit, *ticks)
        assert outlet.prices == []
        outlet.room.set()
        while len(outlet.prices) < count and not running.done():
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])
        return count, outlet.prices

    with LocalServer(Market(PAIR), keys={KEY}, queue_bytes=100_000, slow_client_timeout=0.2) as upstream:
        count, found = asyncio.run(asyncio.wait_for(relay(upstream), 60.0))
        assert found == list(map(str, range(count)))


@pytest.mark.parametrize(
    ("symbols", "settings", "message"),
    [
        ((), {}, "a relay needs symbols"),
        (("btc-usdc",), {}, "did you mean 'BTC:USDC'"),
        ((PAIR,), {"endpoint": "gamma"}, "'gamma' is unknown"),
        ((PAIR,), {"endpoint": []}, "the list is empty"),
        ((PAIR,), {"endpoint": "ws://example.com/"}, "in clear text"),
        ((PAIR,), {"since": 5}, "since"),
        ((PAIR,), {"since": timedelta(hours=-1)}, "since"),
    ],
)
def test_malformed_arguments_are_refused(symbols: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RelayMarket(*symbols, api_key=KEY, **settings)
