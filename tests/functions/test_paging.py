"""Pages of history over real sockets: each is requested before the one before is used."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import CallTimeout, DecodeError, FinxStreamerError, FunctionClient, FunctionError
from finx_streamer.functions.history import PAGE_SIZE
from finx_streamer.server import LocalServer
from tests.support.calls import ClientFactory, answer, threads_of, wait_until
from tests.support.effort import examples
from tests.support.market import Market
from tests.support.peers import PATIENCE, Peer, frame

PAIR = "BTC:USDC"
NOON = datetime(2022, 7, 2, 12, tzinfo=UTC)
_numbers = itertools.count()


def wire(moment: datetime, price: object, pair: str = PAIR) -> dict[str, str]:
    """A tick in the form of the wire."""
    time = moment.time().isoformat("milliseconds") + "Z"
    return {"pair": pair, "date": moment.date().isoformat(), "time": time, "exchange": "X", "price": str(price)}


def page(first: int, last: int | None = None) -> bytes:
    """A full answer, or one that ends with a certain tick. Tick n has the nth second of the day."""
    end = first + PAGE_SIZE if last is None else last + 1
    start = NOON.replace(hour=0)
    return frame(json.dumps({str(n): wire(start + timedelta(seconds=n), n) for n in range(first, end)}))


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server without ticks."""
    with LocalServer(Market(), keys={"demo"}) as running:
        yield running


@examples(20)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 1, 2, 400, 998, 999])), min_size=1, max_size=9),
    st.sampled_from([0, 43_199_999, 43_199_000]),
    st.integers(1, 2),
)
def test_every_tick_comes_once(
    server: LocalServer, groups: list[tuple[int, int]], begin: int, connections: int
) -> None:
    """Groups of ticks of one millisecond lie anywhere within pages, at their seams and around midnight."""
    pair = f"P{next(_numbers)}:USDC"
    # Not at midnight, when the server knows one tick only.
    offsets = list(itertools.accumulate((gap for gap, _ in groups), initial=begin))[1:]
    moments = [NOON + timedelta(milliseconds=at + (at == 43_200_000)) for at in offsets]
    moments = [moment for moment, (_, size) in zip(moments, groups, strict=True) for _ in range(size)]
    if max(Counter(moments).values()) >= PAGE_SIZE:
        return  # such a millisecond can't be requested
    server.import_ticks([wire(moment, number, pair) for number, moment in enumerate(moments)])
    with FunctionClient("demo", server.url, connections=connections, timeout=PATIENCE) as client:
        found = client.tick_history(pair, NOON, NOON + timedelta(days=1))
    assert Counter(int(tick["price"]) for tick in found) == Counter(range(len(moments)))
    assert [tick["timestamp"] for tick in found] == sorted(moments)


class Pages:
    """Answers with full pages, up to some number of them. Then it is silent."""

    def __init__(self, count: int) -> None:
        self.asked = 0
        self.silent = threading.Event()
        self._count = count

    def __call__(self, request: dict[str, Any]) -> bytes:
        if request["functionName"] != "tickHistory":
            return frame("{}")
        self.asked += 1
        if self.asked > self._count:
            self.silent.set()
            return b""
        return page(1 + (self.asked - 1) * (PAGE_SIZE - 1))


def test_a_dropped_iterator_gives_up_its_request(make_client: ClientFactory) -> None:
    """The next call doesn't wait for an answer that no one wants, even with a single connection."""
    pages = Pages(1)
    with Peer(answer(pages)) as peer, make_client(peer, connections=1, timeout=PATIENCE * 10) as client:
        found = client.iter_tick_history(PAIR, NOON.replace(hour=0, second=1), NOON)
        next(found)
        assert pages.silent.wait(PATIENCE)
        del found
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(client.call, "other").result(PATIENCE) == {}
        assert peer.accepted == 2


@pytest.mark.parametrize("close_in_thread", [True, False])
def test_close_ends_a_walk_after_its_page(make_client: ClientFactory, close_in_thread: bool) -> None:
    """The ticks that have arrived are still yielded. Then the walk raises, and no thread is left."""
    pages = Pages(1)
    with Peer(answer(pages)) as peer:
        client = make_client(peer, timeout=PATIENCE * 10)
        found = client.iter_tick_history(PAIR, NOON.replace(hour=0, second=1), NOON)
        next(found)
        assert pages.silent.wait(PATIENCE)
        ticks: list[Any] = []

        def use() -> None:
            ticks.extend(itertools.islice(found, PAGE_SIZE - 2))
            with pytest.raises(FunctionError, match="clos"):
                next(found)

        with ThreadPoolExecutor(1) as thread:
            if not close_in_thread:
                client.close()
            used = thread.submit(use)
            if close_in_thread:
                wait_until(lambda: len(ticks) == PAGE_SIZE - 2)
                client.close()
            used.result(PATIENCE)
        assert len(ticks) == PAGE_SIZE - 2
        wait_until(lambda: not threads_of(client._name))


_FAILURES: dict[str, tuple[bytes, type[FinxStreamerError]]] = {
    "error": (frame('{"error":"no more"}'), FunctionError),
    "not JSON": (frame("{"), DecodeError),
    "another pair": (frame(json.dumps({"0": wire(NOON, 1, "ETH:USDC")})), DecodeError),
    "silence": (b"", CallTimeout),
}


@pytest.mark.parametrize("kind", _FAILURES)
def test_the_error_of_the_next_page_comes_after_the_ticks_of_this_one(make_client: ClientFactory, kind: str) -> None:
    """A page that is complete isn't lost with the one that was requested ahead."""
    failure, error = _FAILURES[kind]
    asked: list[str] = []

    def handler(request: dict[str, Any]) -> bytes:
        asked.append(request["time"])
        return page(1) if len(asked) == 1 else failure

    with Peer(answer(handler)) as peer, make_client(peer, timeout=0.2) as client:
        found = client.iter_tick_history(PAIR, NOON.replace(hour=0, second=1), NOON)
        # The last tick of a full page is in the next one as well.
        prices = [int(tick["price"]) for tick in itertools.islice(found, PAGE_SIZE - 1)]
        with pytest.raises(error):
            next(found)
        assert next(found, None) is None
    assert prices == list(range(1, PAGE_SIZE))
    assert asked[1] == "00:16:39.999"


def test_a_bad_tick_that_raises_gives_up_the_next_request(make_client: ClientFactory) -> None:
    """The error of this page's tick comes first, and the client can be used at once."""
    pages = Pages(1)

    def handler(request: dict[str, Any]) -> bytes:
        return pages(request).replace(b'"price": "7"', b'"price": "x"')

    with (
        Peer(answer(handler)) as peer,
        make_client(peer, connections=1, timeout=PATIENCE * 10, on_bad="raise") as client,
    ):
        with pytest.raises(DecodeError, match="'x' is not a decimal number"):
            client.tick_history(PAIR, NOON.replace(hour=0, second=1), NOON)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(client.call, "other").result(PATIENCE) == {}
