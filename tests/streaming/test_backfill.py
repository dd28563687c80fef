"""The threads that fetch history for gaps: a job always ends, whatever becomes of its history."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from finx_streamer.errors import ConnectionFailed
from finx_streamer.streaming.backfill import SIDE_BY_SIDE, Backfiller, Job

START = datetime(2022, 7, 2, tzinfo=UTC)
PATIENCE = 20.0


class Book:
    """A history of so many pages, each of one tick."""

    def __init__(self, pages: int = 0, fault: Exception | None = None) -> None:
        self.pages, self.fault = pages, fault
        self.closed = 0

    def history_pages(
        self, pair: str, start: datetime, end: datetime | None, *, empty_days: int | None
    ) -> Iterator[list[Any]]:
        for number in range(self.pages):
            yield [{"pair": pair, "price": number}]
        if self.fault is not None:
            raise self.fault

    def interrupt(self) -> None:
        """Nothing here hangs."""

    def close(self) -> None:
        self.closed += 1


class Desk:
    """The network thread's part: what was posted is done in turn, until so many jobs have ended."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._posted: queue.Queue[Callable[[], None]] = queue.Queue()
        self.backfiller = Backfiller(connect, self._post, "test")
        self.ends: list[str | None] = []
        self.pages: list[Any] = []

    def _post(self, command: Callable[[], None]) -> bool:
        self._posted.put(command)
        return True

    def fetch(self) -> Job:
        def page(ticks: list[Any]) -> None:
            self.pages.append(ticks)
            job.taken()

        job = Job("BTC:USDC", START, None, page, self.ends.append)
        self.backfiller.fetch(job)
        return job

    def wait(self, ends: int) -> list[str | None]:
        while len(self.ends) < ends:
            self._posted.get(timeout=PATIENCE)()
        self.backfiller.close()
        return self.ends


@pytest.mark.parametrize("fault", [ValueError("bad luck"), ConnectionFailed("no way")], ids=repr)
def test_a_history_that_can_not_be_had(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Each job ends with the reason; a crash is told in the log."""

    def refuse() -> Book:
        raise fault

    desk = Desk(refuse)
    for _ in range(2 * SIDE_BY_SIDE):
        desk.fetch()
    assert len(desk.wait(2 * SIDE_BY_SIDE)) == 2 * SIDE_BY_SIDE
    told = str(fault) if isinstance(fault, ConnectionFailed) else "ValueError"
    assert {f"no history ({told})"} == set(desk.ends)
    assert isinstance(fault, ConnectionFailed) == (not caplog.records)


def test_a_history_that_fails_on_the_way() -> None:
    """Its pages have come, the job ends with the reason, and it is closed."""
    book = Book(3, RuntimeError())
    desk = Desk(lambda: book)
    desk.fetch()
    assert desk.wait(1) == ["no history (RuntimeError)"]
    assert ([page[0]["price"] for page in desk.pages], book.closed) == ([0, 1, 2], 1)


def test_each_history_is_closed_once() -> None:
    """It is kept while there are jobs, and closed with its thread's last one."""
    books = [Book(1) for _ in range(20)]
    unused = list(books)
    desk = Desk(unused.pop)
    for _ in range(20):
        desk.fetch()
    assert desk.wait(20) == [None] * 20
    assert len(desk.pages) == 20
    assert [0] * len(unused) + [1] * (20 - len(unused)) == [book.closed for book in books]


def test_nothing_is_fetched_any_more_after_close() -> None:
    """Not even begun."""
    desk = Desk(Book)
    desk.backfiller.close()
    desk.fetch()
    assert not [thread for thread in threading.enumerate() if "-backfill-" in thread.name]
