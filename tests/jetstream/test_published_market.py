"""`serve --live … --to`: the trades of loopback exchanges in the log, by the exchanges' own IDs."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from nats.js.api import StreamConfig
from websockets.sync.client import connect

from finx_streamer import StreamListener
from finx_streamer.jetstream import JetStreamPublisher
from finx_streamer.jetstream.subjects import tick_subject
from finx_streamer.server import ExchangeMarket, LocalServer
from finx_streamer.server.published import PublishedMarket
from tests.support.cli import Running, run, running
from tests.support.exchanges import EXCHANGES, Comparison, LoopbackExchanges, Trade, compare
from tests.support.nats import NatsServer
from tests.support.publishing import FIELDS, Script, ask, check_log, read_log, ticks_now, wait_for

PAIR = "BTC:USDT"
NAMES = ("BINANCE", "COINBASE", "KRAKEN", "BYBIT", "BITSTAMP")


@pytest.fixture
def exchanges() -> Iterator[LoopbackExchanges]:
    with LoopbackExchanges([PAIR], options=["BTC"]) as exchanges:
        yield exchanges


def addresses(exchanges: LoopbackExchanges) -> list[str]:
    return [f"--exchange-url={name}={url}" for name, url in exchanges.base_urls.items()]


def subscribers(exchanges: LoopbackExchanges, name: str) -> list[Any]:
    """The connections that get an exchange's trades."""
    return [each for each in exchanges[name].connections if PAIR in each.subscriptions]


def timed(tick: dict[str, str]) -> dict[str, Any]:
    """A tick as a listener delivers it."""
    return {**tick, "timestamp": datetime.fromisoformat(f"{tick['date']}T{tick['time']}")}


def missing(exchanges: LoopbackExchanges, made: dict[str, list[Trade]], log: list[dict[str, str]]) -> list[Trade]:
    """The trades that aren't in the log exactly once."""
    ticks = [timed(tick) for tick in log]

    def count(name: str, trade: Trade) -> int:
        return sum(tick["exchange"] == name and exchanges[name].is_tick_of(trade, tick) for tick in ticks)

    return [trade for name, trades in made.items() for trade in trades if count(name, trade) != 1]


def check_ids(nats_server: NatsServer, made: dict[str, list[Trade]]) -> None:
    """Check that each trade is in the log once, by its ID."""

    async def ids(client: Any) -> list[str]:
        manager = client.jetstream()
        count = (await manager.stream_info("FINX")).state.messages
        messages = [await manager.get_msg("FINX", number) for number in range(1, count + 1)]
        return [message.headers["Nats-Msg-Id"] for message in messages]

    expected = [f"{name}:{PAIR}:{trade.id}" for name, trades in made.items() for trade in trades]
    assert sorted(ask(nats_server.url, ids)) == sorted(expected)


def test_two_servers_publish_each_trade_once(nats_server: NatsServer, exchanges: LoopbackExchanges) -> None:
    """By its ID: NATS recognises it even if the publishers differ in everything else."""
    options = ["serve", "--live", PAIR, "--exchanges", ",".join(NAMES), "--port", "0", *addresses(exchanges)]
    with running(*options, "--to", nats_server.url) as first, running(*options, "--to", nats_server.url) as second:
        for command in (first, second):
            assert command.stdout.readline().startswith("serving: ws://")
        exchanges.wait_until(lambda: all(len(subscribers(exchanges, name)) == 2 for name in NAMES))
        made = {name: exchanges.make(name, PAIR, 40) for name in NAMES}
        wait_for(lambda: not missing(exchanges, made, read_log(nats_server.url)))
        check_ids(nats_server, made)


def serve(nats_server: NatsServer, exchanges: LoopbackExchanges, *names: str) -> AbstractContextManager[Running]:
    options = ["serve", "--live", PAIR, "--exchanges", ",".join(names), "--port", "0", *addresses(exchanges)]
    return running(*options, "--to", nats_server.url)


def wait_begun(exchanges: LoopbackExchanges, names: tuple[str, ...], publishers: int = 1) -> None:
    exchanges.wait_until(lambda: all(len(subscribers(exchanges, name)) == publishers for name in names))


def kill(exchanges: LoopbackExchanges, names: tuple[str, ...], *commands: Running) -> None:
    for command in commands:
        command.send_signal(signal.SIGKILL)
    for command in commands:
        command.wait()
    wait_begun(exchanges, names, 0)


@pytest.mark.parametrize("window", [120.0, 0.5])
def test_trades_that_no_publisher_saw_are_published_once(
    nats_server: NatsServer, exchanges: LoopbackExchanges, window: float
) -> None:
    """Publishers are killed in the middle of a burst: one, and then two at the same time.

    With a short window, NATS has forgotten the IDs of what comes from history.
    """
    config = StreamConfig(name="FINX", subjects=["finx.v1.>"], duplicate_window=window)
    ask(nats_server.url, lambda client: client.jetstream().add_stream(config))
    names = tuple(EXCHANGES)
    made: dict[str, list[Trade]] = {name: [] for name in names}

    def make(count: int) -> None:
        for name in names:
            made[name] += exchanges.make(name, PAIR, count)

    def result() -> Comparison:
        trades = {(name, PAIR): made[name] for name in names}
        return compare(exchanges, trades, map(timed, read_log(nats_server.url)))

    def has_all() -> bool:
        return result().complete

    with serve(nats_server, exchanges, *names) as first:
        wait_begun(exchanges, names)
        make(20)
        wait_for(has_all)
        make(20)
        kill(exchanges, names, first)
    make(20)
    with serve(nats_server, exchanges, *names) as first, serve(nats_server, exchanges, *names) as second:
        wait_begun(exchanges, names, 2)
        make(1)
        wait_for(has_all, result)
        make(20)
        kill(exchanges, names, first, second)
    make(20)
    with serve(nats_server, exchanges, *names) as first, serve(nats_server, exchanges, *names) as second:
        wait_begun(exchanges, names, 2)
        # No further trade is needed.
        wait_for(has_all, result)
        make(1)
        wait_for(has_all, result)
        with serve(nats_server, exchanges, *names) as third:
            # It looks up where the log ends, and the others go on.
            while any(len(subscribers(exchanges, name)) < 3 for name in names):
                make(1)
                time.sleep(0.2)
            make(1)
            wait_for(has_all, result)
            for command in (first, second, third):
                command.send_signal()
                assert command.wait() == 0
    check_ids(nats_server, made)


@contextmanager
def published(
    url: str, exchanges: LoopbackExchanges, name: str, trades: Any = None
) -> Iterator[tuple[LocalServer, JetStreamPublisher]]:
    """A server in this process that begins after trades, or else after those in the log."""
    market = ExchangeMarket([PAIR], [name], base_urls=exchanges.base_urls, fill_seconds=0.5)
    with JetStreamPublisher(url, max_in_flight=5) as publisher:
        market.begin_after(publisher.find_trades([name], [PAIR]) if trades is None else trades)
        with LocalServer(PublishedMarket(market, publisher.new_feed())) as server:
            yield server, publisher


@pytest.mark.parametrize("name", NAMES)
def test_holes_in_the_log_are_filled(nats_server: NatsServer, exchanges: LoopbackExchanges, name: str) -> None:
    """Publishers that were killed had sent trades that NATS doesn't have."""
    trades = exchanges.make(name, PAIR, 50)

    async def publish(client: Any) -> None:
        with JetStreamPublisher(nats_server.url) as publisher:
            publisher.connect()
        for number, trade in enumerate(trades):
            # There are only holes among the last 20 messages. Of these, the last four are of this series.
            if number < 29 or number in (29, 31, 32, 40):
                exchange = "OTHER" if 2 < number < 29 else name
                day, clock = trade.iso.split("T")
                tick = {"pair": PAIR, "date": day, "time": clock, "exchange": exchange, "price": trade.price}
                subject, headers = tick_subject(exchange, PAIR), {"Nats-Msg-Id": f"{exchange}:{PAIR}:{trade.id}"}
                await client.jetstream().publish(subject, json.dumps(tick).encode(), headers=headers)

    ask(nats_server.url, publish)
    with published(nats_server.url, exchanges, name) as (server, publisher):
        wait_for(lambda: publisher.stats.published == 50 - 7, lambda: publisher.stats)
        trades += exchanges.make(name, PAIR)
        wait_for(lambda: publisher.stats.published == 51 - 7, lambda: publisher.stats)
        stats = server.stats.exchanges[name]
    assert (stats.gaps, stats.unfilled, stats.lost, stats.reconnects) == (1, 0, 0, 0)
    assert (publisher.stats.duplicates, publisher.stats.skipped) == (0, 0)
    assert not missing(exchanges, {name: trades}, read_log(nats_server.url))


def test_what_an_exchange_no_longer_has_is_reported(
    nats_server: NatsServer, exchanges: LoopbackExchanges, caplog: pytest.LogCaptureFixture
) -> None:
    """Bybit returns 60 trades, and Bitstamp those of a day."""
    old = datetime.now(UTC) - timedelta(days=2)
    first = exchanges.make("BYBIT", PAIR, 100)[0]
    for name, trade_id, lost in ("BYBIT", first.id, 39), ("BITSTAMP", 1, 0):
        known = [(trade_id, "1", old.date().isoformat(), f"{old.time().isoformat('milliseconds')}Z")]
        with published(nats_server.url, exchanges, name, {(name, PAIR): known}) as (server, _):
            # No trade is needed.
            stats = server.wait_until(lambda stats, name=name: stats.exchanges[name].unfilled).exchanges[name]
        assert (stats.unfilled, stats.lost) == (1, lost)
        assert stats.filled
        assert f"{name}: not all missed trades of {PAIR} could be fetched" in caplog.text


def test_a_log_without_trades_says_nothing(nats_server: NatsServer, exchanges: LoopbackExchanges) -> None:
    async def publish(client: Any) -> None:
        for message_id, payload in (
            (f"OKX:{PAIR}:1", b"[]"),
            (f"OKX:{PAIR}:1-", b"{}"),
            ("hash", b'{"price":"1","date":"2026-11-29","time":"08:00:00Z"}'),
        ):
            await client.jetstream().publish(tick_subject("OKX", PAIR), payload, headers={"Nats-Msg-Id": message_id})

    with JetStreamPublisher(nats_server.url) as publisher:
        assert publisher.find_trades(["OKX"], [PAIR]) == {}
        ask(nats_server.url, publish)
        assert publisher.find_trades(["OKX", "KRAKEN"], [PAIR, "ETH:USDT"]) == {}
    market = ExchangeMarket([PAIR], ["OKX"], base_urls=exchanges.base_urls)
    market.begin_after({("OKX", PAIR): [(1, "1", "yesterday", "08:00")]})
    with LocalServer(market) as server:
        exchanges.wait_subscribed("OKX")
        exchanges.make("OKX", PAIR)
        assert server.wait_until(lambda stats: stats.exchanges["OKX"].trades == 1).exchanges["OKX"].gaps == 0


def test_clients_get_the_ticks_and_no_ids(nats_server: NatsServer) -> None:
    """Trades with the same ID are one, even if nothing else is equal."""
    source = Script(PAIR)
    notices: list[Any] = []
    got: list[Any] = []
    with JetStreamPublisher(nats_server.url) as publisher:
        publisher.connect()
        market = PublishedMarket(source, publisher.new_feed())
        with LocalServer(market) as server:
            listener = StreamListener(PAIR, endpoint=server.url, api_key="demo", parse_price=str, on_tick=got.append)
            listener.on_notice(notices.append)
            with listener, connect(f"{server.url}streaming/demo/{PAIR}") as raw:
                server.wait_until(lambda stats: stats.streams == 2)
                ticks = ticks_now(3, PAIR)
                source.send([{**tick, "trade": str(number)} for number, tick in enumerate(ticks)])
                source.send(ticks_now(1, PAIR, first=3))
                assert [set(json.loads(raw.recv(timeout=20.0))["resultData"]) for _ in range(4)] == [set(FIELDS)] * 4
                wait_for(lambda: len(got) == 4)
            check_log(nats_server.url, source)
            source.send([{**ticks_now(1, PAIR, first=9)[0], "trade": "2"}])
            wait_for(lambda: publisher.stats.duplicates == 1)
    assert (publisher.stats.published, notices) == (4, [])


def test_an_outage_of_nats_makes_the_source_wait(nats_server: NatsServer) -> None:
    """And then loses ticks, and reports them."""
    source = Script(PAIR)
    errors: list[Any] = []
    settings: dict[str, Any] = {"max_waiting": 10, "max_in_flight": 5, "duplicate_window": timedelta(seconds=2)}
    with JetStreamPublisher(nats_server.url, on_error=errors.append, **settings) as publisher:
        publisher.connect()
        with LocalServer(PublishedMarket(source, publisher.new_feed())):
            source.send(ticks_now(100, PAIR))
            check_log(nats_server.url, source)
            assert publisher.stats.lost == 0
            nats_server.kill()
            source.send(ticks_now(100, PAIR, first=100))
            wait_for(lambda: any("from now on" in error.reason for error in errors))
            nats_server.start()
            wait_for(lambda: publisher.stats.lost and publisher.stats.connected and not publisher.stats.waiting)
            wait_for(lambda: publisher.stats.published + publisher.stats.lost == 200, lambda: publisher.stats)


def test_to_needs_live(tmp_path: Path) -> None:
    done = run("serve", "--to", "nats://127.0.0.1")
    assert done.returncode == 2
    assert "--to can only be used with --live; add it, as in --live BTC:USDT" in done.stderr


def test_the_market_is_still_an_exchange_market(exchanges: LoopbackExchanges) -> None:
    market = ExchangeMarket([PAIR], ("OKX",), base_urls=exchanges.base_urls)
    published = PublishedMarket(market, None)  # type: ignore[arg-type]
    assert (published.pairs, published.contracts) == (market.pairs, market.contracts)
    assert published.exchange_stats.keys() == {"OKX"}
    assert market.sends_trade_ids
