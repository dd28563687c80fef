"""`ExchangeMarket` with exchanges on loopback. No test reaches a real exchange."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import ExchangeMarket, LocalServer
from finx_streamer.server.contracts import KEYS
from finx_streamer.server.exchanges import feed
from tests.support.exchanges import LoopbackExchanges, RestFault
from tests.support.program import ROOT
from tests.support.raw_client import TIMEOUT

Dial = Callable[..., ClientConnection]
BTC = "BTC:USDT"
ALL = ("BINANCE", "COINBASE", "KRAKEN", "OKX", "BYBIT", "BITSTAMP")
#: Those with consecutive IDs.
CONSECUTIVE = ALL[:-1]


@pytest.fixture
def exchanges() -> Iterator[LoopbackExchanges]:
    with LoopbackExchanges((BTC,)) as running:
        yield running


class Running:
    """A server with the market of some loopback exchanges, and a client that sees its ticks."""

    def __init__(self, exchanges: LoopbackExchanges, server: LocalServer, peer: ClientConnection) -> None:
        self.exchanges = exchanges
        self.server = server
        self._peer = peer
        self.notices: list[Any] = []

    def prices(self, count: int, name: str | None = None) -> list[float]:
        """The prices of the next ticks, of all exchanges or of one."""
        found: list[float] = []
        while len(found) < count:
            message = json.loads(self._peer.recv(timeout=TIMEOUT))
            if "resultData" not in message:
                self.notices.append(message)
            elif name in (None, message["resultData"]["exchange"]):
                found.append(float(message["resultData"]["price"]))
        return found

    def wait(self, condition: Callable[[Any], bool], name: str) -> Any:
        """Wait until a condition on the counters of one exchange holds."""
        return self.server.wait_until(lambda stats: condition(stats.exchanges[name]), TIMEOUT).exchanges[name]


@contextlib.contextmanager
def running(exchanges: LoopbackExchanges, dial: Dial, *names: str, **options: Any) -> Iterator[Running]:
    market = ExchangeMarket([BTC], names or ALL, base_urls=exchanges.base_urls, **options)
    with LocalServer(market) as server:
        exchanges.wait_subscribed(*names)
        server.wait_until(lambda stats: all(each.connected for each in stats.exchanges.values()))
        peer = dial(server, f"streaming/demo/{BTC}")
        server.wait_connected()
        yield Running(exchanges, server, peer)


def prices(trades: Iterable[Any]) -> list[float]:
    return [float(each.price) for each in trades]


@pytest.mark.parametrize("name", ALL)
def test_trades_become_ticks(name: str, exchanges: LoopbackExchanges, dial: Dial) -> None:
    """In order, each once. Those from before the start aren't sent."""
    with running(exchanges, dial, name) as run:
        made = [exchanges.make(name, BTC)[0] for _ in range(20)]
        assert run.prices(20) == prices(made)
        stats = run.wait(lambda each: each.trades == 20, name)
        assert (stats.gaps, stats.reconnects, stats.lost, stats.error) == (0, 0, 0, None)
        assert 0 <= stats.lag < TIMEOUT


@pytest.mark.parametrize("name", CONSECUTIVE)
def test_a_jump_of_ids_is_filled_in_order(name: str, exchanges: LoopbackExchanges, dial: Dial) -> None:
    """Later trades wait meanwhile."""
    with running(exchanges, dial, name) as run:
        made = exchanges.make(name, BTC, 1)
        made += exchanges.make(name, BTC, 45, send=False)
        made += exchanges.make(name, BTC, 1)
        assert run.prices(47) == prices(made)
        stats = run.wait(lambda each: each.filled == 45, name)
        assert (stats.gaps, stats.unfilled, stats.lost) == (1, 0, 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("how", ["close", "fin", "rst"])
def test_what_a_lost_connection_misses_is_filled(name: str, how: str, exchanges: LoopbackExchanges, dial: Dial) -> None:
    """Even if the pair is quiet afterwards. Clients hear about it."""
    with running(exchanges, dial, name) as run:
        made = exchanges.make(name, BTC, 1)
        assert run.prices(1) == prices(made)
        exchanges.call(exchanges[name].drop, how)
        run.wait(lambda each: not each.connected, name)
        made = exchanges.make(name, BTC, 40, send=False)
        # OKX returns them one by one, and those of one order have one price.
        assert set(run.prices(40)) == set(prices(made))
        assert run.notices == [
            {"notice": "exchange away", "source": name, "pair": BTC},
            {"notice": "exchange back", "source": name, "pair": BTC},
        ]
        stats = run.wait(lambda each: each.reconnects == 1, name)
        assert (stats.gaps, stats.lost) == (1, 0)


def test_trades_are_released_after_a_while_and_filled_late(exchanges: LoopbackExchanges, dial: Dial) -> None:
    """A REST interface that doesn't answer holds nothing back for longer than `fill_seconds`."""
    with running(exchanges, dial, "BINANCE", fill_seconds=0.3) as run:
        exchanges.call(exchanges["BINANCE"].hold_rest)
        first = exchanges.make("BINANCE", BTC)
        missed = exchanges.make("BINANCE", BTC, 3, send=False)
        later = exchanges.make("BINANCE", BTC, 2)
        assert run.prices(3) == prices(first + later)
        assert run.wait(lambda each: each.lost == 3, "BINANCE").filled == 0
        exchanges.call(exchanges["BINANCE"].release_rest)
        assert run.prices(3) == prices(missed)
        assert run.wait(lambda each: each.filled == 3, "BINANCE").lost == 0


def test_what_rest_no_longer_has_is_lost(exchanges: LoopbackExchanges, dial: Dial) -> None:
    """Bybit returns the last 60 trades. The count is exact, and nothing is held any longer."""
    with running(exchanges, dial, "BYBIT", fill_seconds=600.0) as run:
        exchanges.make("BYBIT", BTC)
        made = exchanges.make("BYBIT", BTC, 100, send=False)
        made += exchanges.make("BYBIT", BTC)
        assert run.prices(61)[1:] == prices(made[-60:])
        stats = run.wait(lambda each: each.unfilled == 1, "BYBIT")
        assert (stats.lost, stats.filled, stats.gaps) == (41, 59, 1)


@pytest.mark.parametrize("name", ["BINANCE", "COINBASE", "KRAKEN", "OKX"])
def test_long_gaps_take_several_pages(name: str, exchanges: LoopbackExchanges, dial: Dial) -> None:
    with running(exchanges, dial, name, fill_seconds=600.0) as run:
        made = exchanges.make(name, BTC)
        made += exchanges.make(name, BTC, 2_500 if name != "OKX" else 450, send=False)
        made += exchanges.make(name, BTC)
        assert run.prices(len(made)) == prices(made)


@pytest.mark.parametrize(("status", "header"), [(429, "1"), (418, "1"), (503, None)])
def test_refused_requests_are_repeated(
    status: int, header: str | None, exchanges: LoopbackExchanges, dial: Dial
) -> None:
    """Not before the exchange wants them."""
    with running(exchanges, dial, "OKX") as run:
        exchanges["OKX"].rest_fault = RestFault(status, {"Retry-After": header} if header else {})
        made = exchanges.make("OKX", BTC)
        made += exchanges.make("OKX", BTC, 3, send=False)
        made += exchanges.make("OKX", BTC)
        assert run.prices(5) == prices(made)
        assert run.wait(lambda each: each.filled == 3, "OKX").lost == 0


@pytest.mark.parametrize(
    "fault",
    [
        RestFault(302, {"Location": "/elsewhere"}),
        RestFault(body="[" * 100_000),
        RestFault(body="nonsense"),
        RestFault(body="{}"),
        RestFault(body='[{"a":1}]'),
    ],
)
def test_bad_answers_are_survived(fault: RestFault, exchanges: LoopbackExchanges, dial: Dial) -> None:
    """Redirects aren't followed."""
    with running(exchanges, dial, "BINANCE") as run:
        exchanges["BINANCE"].rest_fault = fault
        made = exchanges.make("BINANCE", BTC)
        made += exchanges.make("BINANCE", BTC, 3, send=False)
        made += exchanges.make("BINANCE", BTC)
        assert run.prices(5) == prices(made)
        assert not any("elsewhere" in path for path in exchanges["BINANCE"].requests)


GARBAGE = [
    "",
    "nonsense",
    "[" * 100_000,
    "[]",
    "null",
    "1e999",
    '{"data":{"e":"aggTrade"}}',
    '{"data":[1]}',
    '{"data":{"e":"aggTrade","s":["BTCUSDT"],"a":1,"p":"1","T":1}}',
    '{"data":{"e":"aggTrade","s":"BTCUSDT","a":1e3,"p":"1","T":1669852800000}}',
    '{"data":{"e":"aggTrade","s":"BTCUSDT","a":99999999999999999999,"p":"1","T":1669852800000}}',
    '{"data":{"e":"aggTrade","s":"BTCUSDT","a":9999999999,"p":"1e5","T":1669852800000}}',
    '{"data":{"e":"aggTrade","s":"BTCUSDT","a":9999999999,"p":"-1","T":1669852800000}}',
    '{"data":{"e":"aggTrade","s":"BTCUSDT","a":9999999999,"p":NaN,"T":1669852800000}}',
    '{"data":{"e":"aggTrade","s":"\\u001b]0;x","a":9999999999,"p":"1","T":1669852800000}}',
    b"\xff\xfe",
]


@pytest.mark.filterwarnings("default")
def test_garbage_is_rejected(exchanges: LoopbackExchanges, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    """On the same connection, and without a line for each message."""
    with running(exchanges, dial, "BINANCE") as run:
        exchanges.call(exchanges["BINANCE"].send_raw, *GARBAGE)
        made = exchanges.make("BINANCE", BTC, 3)
        assert run.prices(3) == prices(made)
        stats = run.wait(lambda each: each.trades == 3, "BINANCE")
        assert (stats.reconnects, stats.gaps) == (0, 0)
    records = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert 0 < len(records) <= 2
    assert all(each.getMessage().isprintable() for each in records)


def test_messages_are_bounded(exchanges: LoopbackExchanges, dial: Dial) -> None:
    """A longer one ends the connection, and what follows is filled."""
    with running(exchanges, dial, "BINANCE") as run:
        made = exchanges.make("BINANCE", BTC)
        exchanges.call(exchanges["BINANCE"].send_raw, '"' + "x" * 2_000_000 + '"')
        run.wait(lambda each: each.reconnects == 1, "BINANCE")
        made += exchanges.make("BINANCE", BTC)
        assert run.prices(2) == prices(made)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BITSTAMP", '{"event":"bts:request_reconnect","channel":"","data":""}'),
        ("OKX", '{"event":"error","code":"60018","msg":"no such channel"}'),
        ("COINBASE", '{"type":"error","message":"x"}'),
        ("KRAKEN", '{"method":"subscribe","success":false,"error":"Currency pair not supported"}'),
        ("BYBIT", '{"success":false,"ret_msg":"x","op":"subscribe"}'),
        ("BINANCE", '{"error":{"code":0,"msg":"x"}}'),
    ],
)
def test_a_refused_subscription_ends_the_connection(
    name: str, message: str, exchanges: LoopbackExchanges, dial: Dial
) -> None:
    """It isn't connected and silent."""
    with running(exchanges, dial, name) as run:
        exchanges.call(exchanges[name].send_raw, message)
        run.wait(lambda each: each.reconnects == 1, name)


def test_a_silent_exchange_is_left(exchanges: LoopbackExchanges, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that sends something now and then isn't."""
    monkeypatch.setattr(feed, "SILENCE", 3.0)
    with running(exchanges, dial, "BITSTAMP") as run:
        for _ in range(20):
            made = exchanges.make("BITSTAMP", BTC)
            assert run.prices(1) == prices(made)
            time.sleep(0.2)
        assert run.server.stats.exchanges["BITSTAMP"].reconnects == 0
        run.wait(lambda each: each.error == "was silent for 3 s", "BITSTAMP")
        run.wait(lambda each: each.reconnects == 1, "BITSTAMP")


def test_redirects_of_handshakes_are_not_followed() -> None:
    """An exchange can't send us elsewhere."""
    from aiohttp import web

    visited: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        visited.append(request.path)
        if request.path.endswith("exchangeInfo"):
            symbol = {"baseAsset": "BTC", "quoteAsset": "USDT", "symbol": "BTCUSDT", "status": "TRADING"}
            return web.json_response({"symbols": [symbol]})
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        market = ExchangeMarket([BTC], ["BINANCE"], base_urls={"BINANCE": f"http://127.0.0.1:{runner.addresses[0][1]}"})
        outlet = Outlet()
        task = asyncio.ensure_future(market.run(outlet))
        await asyncio.wait_for(outlet.noticed.wait(), TIMEOUT)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()
        assert market.exchange_stats["BINANCE"].error == "HTTP status 302"

    asyncio.run(main())
    assert set(visited) == {"/api/v3/exchangeInfo", "/stream"}


class Outlet:
    """Accepts ticks while it may."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.noticed = asyncio.Event()
        self.may_publish = asyncio.Event()
        self.may_publish.set()

    async def publish(self, played: Sequence[Any]) -> None:
        self.published += played
        await self.may_publish.wait()

    def notify(self, pairs: Iterable[str], notice: Mapping[str, Any]) -> None:
        if notice:
            self.noticed.set()


def test_a_store_without_room_stops_the_reading(exchanges: LoopbackExchanges) -> None:
    """The exchange feels back-pressure, nothing is lost, and no connection is given up."""

    async def main() -> list[Any]:
        outlet = Outlet()
        market = ExchangeMarket([BTC], ["BINANCE"], base_urls=exchanges.base_urls)
        task = asyncio.ensure_future(market.run(outlet))
        await asyncio.to_thread(exchanges.wait_subscribed, "BINANCE")
        outlet.may_publish.clear()
        made = await asyncio.to_thread(exchanges.make, "BINANCE", BTC, 60_000)
        await asyncio.to_thread(exchanges.wait_until, lambda: exchanges["BINANCE"].waiting > 0)
        stalled = len(outlet.published)
        outlet.may_publish.set()
        async with asyncio.timeout(TIMEOUT):
            while len(outlet.published) < len(made):
                await asyncio.sleep(0.01)
        stats = market.exchange_stats["BINANCE"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert stalled < 10_000
        assert (stats.reconnects, stats.gaps, stats.trades) == (0, 0, 60_000)
        assert [float(each["price"]) for each in outlet.published] == prices(made)
        return made

    asyncio.run(main())


def test_pairs_are_those_that_an_exchange_lists(dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    """Each that isn't listed is reported once. One that no exchange lists is refused with 404."""
    wanted = (BTC, "DOGE:USDT", "ETH:USDT")
    with LoopbackExchanges((BTC,), listed={"KRAKEN": (BTC, "DOGE:USDT")}) as exchanges:
        market = ExchangeMarket(wanted, ["KRAKEN", "OKX"], base_urls=exchanges.base_urls)
        assert market.pairs == {*wanted}
        with LocalServer(market) as server:
            server.wait_until(lambda stats: all(each.connected for each in stats.exchanges.values()))
            assert market.pairs == {BTC, "DOGE:USDT"}
            dial(server, "streaming/demo/DOGE:USDT")
            with pytest.raises(InvalidStatus, match="404"):
                dial(server, "streaming/demo/ETH:USDT")
            exchanges.call(exchanges["KRAKEN"].drop, "fin")
            server.wait_until(lambda stats: stats.exchanges["KRAKEN"].reconnects == 1)
        assert sorted(each.getMessage() for each in caplog.records if "list" in each.getMessage()) == [
            "KRAKEN: doesn't list ETH:USDT",
            "OKX: doesn't list DOGE:USDT, ETH:USDT",
        ]


def test_pairs_of_an_exchange_without_a_listing_stay(exchanges: LoopbackExchanges) -> None:
    """It may list them. It is asked again."""
    exchanges["OKX"].rest_fault = RestFault(503, times=2, trades=False)
    market = ExchangeMarket([BTC, "ETH:USDT"], ["OKX"], base_urls=exchanges.base_urls)
    with LocalServer(market) as server:
        server.wait_until(lambda stats: stats.exchanges["OKX"].error == "REST: HTTP status 503")
        assert market.pairs == {BTC, "ETH:USDT"}
        server.wait_until(lambda stats: stats.exchanges["OKX"].connected)
        assert market.pairs == {BTC}


def test_an_exchange_that_lists_nothing_is_left_alone(exchanges: LoopbackExchanges) -> None:
    market = ExchangeMarket(["ETH:USDT"], ["OKX"], base_urls=exchanges.base_urls)
    with LocalServer(market) as server:
        server.wait_until(lambda stats: stats.exchanges["OKX"].error is not None)
        assert (market.pairs, exchanges["OKX"].handshakes) == (frozenset(), 0)


def test_the_market_runs_again(exchanges: LoopbackExchanges, dial: Dial) -> None:
    """A restarted server begins with the next trade. The counters go on."""
    with running(exchanges, dial, "KRAKEN") as run:
        made = exchanges.make("KRAKEN", BTC)
        assert run.prices(1) == prices(made)
        run.server.stop()
        exchanges.wait_until(lambda: not exchanges["KRAKEN"].subscribed(BTC))
        assert not run.server.stats.exchanges["KRAKEN"].connected
        exchanges.make("KRAKEN", BTC, 5)
        run.server.start()
        exchanges.wait_subscribed("KRAKEN")
        peer = dial(run.server, f"streaming/demo/{BTC}")
        run.wait(lambda each: each.connected, "KRAKEN")
        again = Running(exchanges, run.server, peer)
        made = exchanges.make("KRAKEN", BTC)
        assert again.prices(1) == prices(made)
        assert run.wait(lambda each: each.trades == 2, "KRAKEN").gaps == 0


def test_tickers_of_contracts(exchanges: LoopbackExchanges, dial: Dial) -> None:
    """They feed the streams of Greeks, with the exchange's own digits."""
    market = ExchangeMarket([BTC], ["OKX"], ["BTC"], exchanges.base_urls)
    deribit = exchanges.deribit
    with LocalServer(market) as server:
        exchanges.wait_until(lambda: bool(deribit.connections) and bool(deribit.connections[0].subscriptions))
        server.wait_until(lambda stats: stats.exchanges["DERIBIT"].connected)
        assert market.contracts == {name for name in deribit.instruments if name.startswith("BTC")}
        name = next(each for each in sorted(market.contracts) if each.endswith("-C"))
        peer = dial(server, f"streaming/greeks/demo/{name}")
        server.wait_connected()
        exchanges.call(deribit.make, name, mark_price=0.0500001)
        ticker = json.loads(peer.recv(timeout=TIMEOUT))["resultData"]
        assert set(KEYS) <= set(ticker)
        assert (ticker["mark_price"], ticker["gamma"], ticker["instrument_name"]) == ("0.0500001", "0.0002", name)
        exchanges.call(deribit.drop, "fin")
        assert json.loads(peer.recv(timeout=TIMEOUT)) == {"notice": "exchange away", "source": "DERIBIT", "pair": name}


def test_no_thread_is_needed(exchanges: LoopbackExchanges, dial: Dial) -> None:
    """The market runs in the server's event loop."""
    before = set(threading.enumerate())
    with running(exchanges, dial) as run:
        names = {each.name for each in set(threading.enumerate()) - before}
        assert run.prices(0) == []
    assert {name for name in names if not name.startswith(("finx-", "Thread-"))} == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": "BTC:USDT"}, "pairs is 'BTC:USDT'; expected one or more names"),
        ({"pairs": []}, r"pairs is \[\]"),
        ({"pairs": ["btcusdt"]}, "did you mean 'BTC:USDT'"),
        ({"exchanges": ["FTX"]}, "exchanges has 'FTX'; expected some of BINANCE, "),
        ({"exchanges": ["DERIBIT"]}, "exchanges has 'DERIBIT'"),
        ({"base_urls": {"FTX": "http://127.0.0.1"}}, "base_urls has 'FTX'"),
        ({"base_urls": {"OKX": "ws://127.0.0.1"}}, "an address for OKX that can't be used"),
        ({"base_urls": {"OKX": "http://a:b@127.0.0.1"}}, "an address for OKX"),
        ({"base_urls": {"OKX": "http://[::1"}}, "an address for OKX"),
        ({"fill_seconds": 0}, "fill_seconds is 0"),
        ({"fill_seconds": float("nan")}, "fill_seconds is nan"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ExchangeMarket(**{"pairs": [BTC], **arguments})


def test_the_error_without_httpx_names_the_extra() -> None:
    """The server itself works without it."""
    program = (
        "import sys\nsys.modules['httpx'] = None\n"
        "from finx_streamer.server import ExchangeMarket, LocalServer\nExchangeMarket(['BTC:USDT'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        'ImportError: ExchangeMarket needs the httpx package: pip install "finx-streamer[live]"'
    )


def test_other_packages_log_nothing(exchanges: LoopbackExchanges, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, they would fill the user's terminal."""
    caplog.set_level(logging.INFO)
    with running(exchanges, dial, "OKX", "KRAKEN"):
        pass
    assert {each.name.partition(".")[0] for each in caplog.records} <= {"finx_streamer", "asyncio", "aiohttp"}
