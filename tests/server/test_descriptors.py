"""File descriptors: the limit is raised, and exhaustion is reported without a flood."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from finx_streamer.server.descriptors import ExhaustionReporter
from tests.support.program import Program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "warns"), [(40, 400, 164, False), (200, 400, 200, False), (30, 163, 163, True)]
)
def test_raises_the_soft_limit_as_far_as_needed(soft: int, hard: int, expected: int, warns: bool) -> None:
    """The limit allows `max_connections` and a reserve. Otherwise, a warning names both numbers."""
    with Program("server/few_descriptors", soft, hard, 100) as server:
        assert server.read_line() == str(expected)
        server.read_line()
        server.process.kill()
        _, _, err = server.wait()
    warning = f"max_connections is 100, but the system allows this process only {hard} open files"
    assert (warning in err, bool(err)) == (warns, warns)


def test_exhaustion_is_one_line() -> None:
    """Clients wait until a descriptor is free, and are served then. There is one line, and no traceback."""
    with Program("server/few_descriptors", 40, 40, 100) as server, contextlib.ExitStack() as stack:
        server.read_line()
        url = server.read_line()
        address = (urlsplit(url).hostname, urlsplit(url).port)
        idle = [stack.enter_context(socket.create_connection(address, 20)) for _ in range(60)]
        report = server.read_line()
        for each in idle:
            each.close()
        with connect(f"{url}streaming/k/BTC:USDC", proxy=None, open_timeout=20) as peer:
            assert peer.recv(timeout=20)
        server.process.kill()
        _, rest, err = server.wait()
    assert "cannot accept connections: Too many open files" in report
    assert "ulimit -n" in report
    assert rest == ""
    assert "Traceback" not in err


def test_exhaustion_is_reported_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each report says how often it happened. Other errors of the loop are logged as always."""
    now = 0.0
    reporter = ExhaustionReporter(lambda: now)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(reporter.handle)
    exhausted = {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")}
    for second in range(121):
        now = float(second)
        for _ in range(100):
            loop.call_exception_handler(exhausted)
    loop.call_exception_handler({"message": "another error"})
    loop.close()
    found = [record.getMessage().partition(")")[0] for record in caplog.records if record.levelno == logging.ERROR]
    times = [
        f"cannot accept connections: Too many open files ({n} times since the last report" for n in (1, 6_000, 6_000)
    ]
    assert found == [*times, "another error"]
