"""The request log: its lines, no keys in it, and disks that are slow, full or rotated."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.server.request_log import RequestLog, encode_line
from tests.support import secrets
from tests.support.program import run_program
from tests.support.raw_client import TIMEOUT, close_socket, handshake, open_socket, read_all

Dial = Callable[..., ClientConnection]
SECRET = quote(secrets.KEY, safe="")


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """The path of a request log."""
    return tmp_path / "requests.jsonl"


def lines_of(file: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a log, without their times."""
    lines = [json.loads(line) for line in file.read_text("ascii").splitlines()]
    for line in lines:
        assert line.pop("time").endswith("Z")
    return [line for line in lines if event in {None, line["event"]}]


def wait_for_lines(file: Path, count: int, event: str | None = None) -> list[dict[str, Any]]:
    """Wait until the log has as many lines."""
    deadline = time.monotonic() + TIMEOUT
    while len(found := lines_of(file, event) if file.exists() else []) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def test_a_line_for_each_handshake_and_each_end(market: SimulatedMarket, dial: Dial, log_file: Path) -> None:
    """A line says who connected, with which key, for what, and what came of it."""
    keys = {"the-key-of-alice": 3, "the-key-of-bob": 7}
    with LocalServer(market, keys=keys, request_log=log_file) as server:
        peer = dial(server, "streaming/the-key-of-alice/BTC:USDC")
        peer.recv(timeout=TIMEOUT)
        port = peer.local_address[1]
        server.close_connections(1012)
        with contextlib.suppress(Exception):
            while peer.recv(timeout=TIMEOUT):
                pass
        wait_for_lines(log_file, 1, "end")
        calls = dial(server, "streamer/the-key-of-bob")
        calls.send('{"functionName":"authenticate"}')
        calls.recv(timeout=TIMEOUT)
        calls.close(1000)
        wait_for_lines(log_file, 2, "end")
    client = {"address": "127.0.0.1", "port": port}
    stream = {"kind": "ticks", "symbol": "BTC:USDC", "wire": "url", "key": 3}
    first, end, second, last = lines_of(log_file)
    assert first == {"event": "handshake", **client, **stream, "status": 101}
    assert end.pop("messages") >= 1
    assert 0 <= end.pop("seconds") < TIMEOUT
    assert end == {"event": "end", **client, **stream, "code": 1012}
    called = {"kind": "functions", "symbol": None, "wire": "subscribe", "key": 7}
    assert second == {"event": "handshake", "address": "127.0.0.1", "port": second["port"], **called, "status": 101}
    assert (last["messages"], last["code"], last["port"]) == (1, 1000, second["port"])
    assert log_file.stat().st_mode & 0o777 == 0o600


def test_counts_the_messages_of_a_stream(make_ticks: Any, dial: Dial, receive: Any, log_file: Path) -> None:
    """Each tick and each answer is a message, also those that are sent in one piece."""
    with LocalServer(Tape(make_ticks(2_000), speed=None), keys={"demo"}, request_log=log_file) as server:
        peer = dial(server)
        receive(peer, 2_000)
        peer.close()
        [end] = wait_for_lines(log_file, 1, "end")
    assert end["messages"] == 2_000


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("streaming/wrong/BTC:USDC", (401, "ticks", None, "url", None)),
        ("streaming/greeks/wrong/BTCN2202207", (401, "greeks", None, "url", None)),
        ("streamer/wrong", (401, "functions", None, "subscribe", None)),
        ("streaming/right/ETH:USDC", (404, "ticks", None, "url", 1)),
        ("streaming/right/right", (404, "ticks", None, "url", 1)),
        ("favicon.ico", (404, None, None, None, None)),
        ("x" * 3_000, (414, None, None, None, None)),
    ],
)
def test_refusals(market: SimulatedMarket, dial: Dial, log_file: Path, path: str, found: tuple[Any, ...]) -> None:
    """A symbol is logged only if it is one that the source plays: others may be keys."""
    with LocalServer(market, keys={"right": 1}, request_log=log_file) as server, pytest.raises(InvalidStatus):
        dial(server, path)
    [line] = lines_of(log_file)
    assert tuple(line[name] for name in ("status", "kind", "symbol", "wire", "key")) == found


def test_pages_and_what_is_no_handshake(market: SimulatedMarket, log_file: Path) -> None:
    """A probe has a line, and so has a client that sends nothing useful."""
    with LocalServer(market, request_log=log_file) as server:
        with urllib.request.urlopen(server.url.replace("ws:", "http:") + "health?key=secret") as answer:
            answer.read()
        for data in (b"POST /streaming HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b""):
            with open_socket(server) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
        with open_socket(server) as sock:
            sock.sendall(handshake("/streamer/x").replace(b"Sec-WebSocket-Key", b"X"))
            read_all(sock)
        lines = wait_for_lines(log_file, 5)
    page = lines[0]
    assert (page["event"], page["page"], page["status"]) == ("page", "/health", 200)
    assert [line["event"] for line in lines[1:]] == ["handshake"] * 4
    assert [line["status"] for line in lines[1:]] == [405, lines[2]["status"], None, 400]
    assert lines[2]["status"] in (None, 400)


def test_a_client_that_leaves_during_its_handshake(market: SimulatedMarket, log_file: Path) -> None:
    """Every handshake that was accepted has a line for its end."""
    with LocalServer(market, request_log=log_file) as server:
        for _ in range(50):
            sock = open_socket(server)
            sock.sendall(handshake())
            close_socket(sock, reset=True)
        wait_for_lines(log_file, 50, "handshake")
        server.wait_until(lambda stats: not stats.connections)
    accepted = [line for line in lines_of(log_file, "handshake") if line["status"] == 101]
    assert len(accepted) == len(lines_of(log_file, "end"))


def test_no_key_is_in_the_log(market: SimulatedMarket, dial: Dial, log_file: Path) -> None:
    """Wherever a client puts a key: in any part of the path, in a query, in a header, in a method, in messages."""
    paths = [
        f"/streaming/{SECRET}/BTC:USDC", f"/streaming/{SECRET.lower()}/BTC:USDC", f"/streaming/{SECRET.upper()}/X:Y",
        f"/streaming/{SECRET}/{SECRET}", f"/streaming/greeks/{SECRET}/{SECRET}", f"/streamer/{SECRET}",
        f"/streamer/x?key={SECRET}", f"/{SECRET}", f"/health?{SECRET}", f"/{SECRET}/health", f"//{SECRET}",
        f"/streaming/x/{SECRET}", f"/streaming/{quote(SECRET, safe='')}/BTC:USDC", f"/streaming/{SECRET}:USDC/BTC:USDC",
        f"/streaming/x/{secrets.MARK.upper()}:USDC", f"/streaming/greeks/x/{secrets.MARK}", f"/?{SECRET}",
    ]  # fmt: skip
    headers = f"Origin: http://{SECRET}\r\nAuthorization: {secrets.KEY}\r\nX-Forwarded-For: {SECRET}\r\n"
    for keys in ({secrets.KEY: 1}, None, {"another": 2}):
        with LocalServer(market, keys=keys, request_log=log_file, idle_limit=60.0) as server:
            for path in paths:
                for request in (
                    handshake(path),
                    handshake(path, headers=headers),
                    handshake(path, host=SECRET),
                    handshake(path).replace(b"GET", SECRET.encode()),
                    f"GET {path} HTTP/1.1\r\nHost: {SECRET}\r\n\r\n".encode(),
                ):
                    with open_socket(server) as sock:
                        sock.sendall(request)
                        sock.settimeout(TIMEOUT)
                        sock.recv(1_000)
            with contextlib.suppress(InvalidStatus):
                peer = dial(server, f"streamer/{SECRET}")
                peer.send(json.dumps({"functionName": secrets.KEY, "APIKey": secrets.KEY, "pair": secrets.KEY}))
                peer.recv(timeout=TIMEOUT)
                peer.close(3_000, secrets.MARK)
            server.wait_until(lambda stats: not stats.connections)
    lines = lines_of(log_file)
    assert {101, 401, 403, 404, 405, 200} <= {line.get("status") for line in lines}
    assert [line["code"] for line in lines if line["event"] == "end"].count(3_000) == 2
    secrets.assert_clean(log_file.read_text(), "the request log")


def test_a_limit_is_in_the_log_without_the_key(market: SimulatedMarket, dial: Dial, log_file: Path) -> None:
    """A revoked key's connections end with 1008."""
    with LocalServer(market, keys={secrets.KEY: 5}, max_connections_per_key=1, request_log=log_file) as server:
        dial(server, f"streamer/{SECRET}")
        with pytest.raises(InvalidStatus):
            dial(server, f"streamer/{SECRET}")
        server.revoke_key(secrets.KEY)
        [end] = wait_for_lines(log_file, 1, "end")
    assert (end["code"], end["key"]) == (1008, 5)
    assert [(line["status"], line["key"]) for line in lines_of(log_file, "handshake")] == [(101, 5), (429, 5)]
    secrets.assert_clean(log_file.read_text(), "the request log")


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)


@given(st.dictionaries(st.text().filter(lambda name: name != "time"), JSON, max_size=5))
def test_any_text_stays_within_its_line(entry: dict[str, Any]) -> None:
    """With any value, the line is printable ASCII and contains the value."""
    line = encode_line({"time": 0.0, **entry})
    assert line.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in line[:-1])
    assert json.loads(line) == {"time": "1970-01-01T00:00:00.000Z", **entry}


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file that accepts only what is read from the descriptor: a pipe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    yield path, descriptor
    os.close(descriptor)


def test_a_slow_disk_delays_nothing(
    market: SimulatedMarket, dial: Dial, receive: Any, slow_disk: tuple[Path, int]
) -> None:
    """Nothing is written, and clients are served. The server stops in time."""
    path, _ = slow_disk
    filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.write(filler, bytes(4_096)):
            pass
    with LocalServer(market, request_log=path) as server:
        for _ in range(20):
            receive(dial(server), 1)
    assert not server.running
    os.close(filler)


def test_lines_beyond_the_room_are_dropped_and_counted(slow_disk: tuple[Path, int]) -> None:
    """Every line is either there or counted, in the order in which they were added."""
    path, descriptor = slow_disk
    request_log = RequestLog(str(path))
    total = 30_000
    for number in range(total):
        request_log.add({"number": number})
    received = bytearray()

    def read() -> None:
        while data := os.read(descriptor, 65_536):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    request_log.add({"number": total})
    deadline = time.monotonic() + TIMEOUT
    while b'"dropped"' not in received:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        request_log.add({"number": total})
    request_log.close()
    reader.join()
    lines = [json.loads(line) for line in received.splitlines()]
    numbers = [line["number"] for line in lines if "number" in line and line["number"] < total]
    dropped = sum(line["lines"] for line in lines if line.get("event") == "dropped")
    assert numbers == sorted(set(numbers))
    assert len(numbers) + dropped in (total, total + 1)
    assert dropped > 10_000


def test_a_full_disk_loses_lines_and_says_how_many(log_file: Path) -> None:
    """What is written afterwards begins on a line of its own."""
    ended = run_program("server/full_disk", log_file)
    assert (ended.returncode, ended.stderr.count("cannot write the request log")) == (0, 1), ended.stderr
    assert "File too large; lines are dropped until it works" in ended.stderr
    lines = []
    torn = 0
    for line in log_file.read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            torn += 1
    written = [line["number"] for line in lines if "number" in line]
    [dropped] = [line["lines"] for line in lines if line.get("event") == "dropped"]
    assert len(written) + dropped == 100
    assert (written[-1], torn <= 1) == (99, True)


def test_a_renamed_file_is_followed_by_a_new_one(market: SimulatedMarket, dial: Dial, log_file: Path) -> None:
    """As logrotate does it. The connections go on, and no line is lost."""
    earlier = log_file.with_suffix(".1")
    with LocalServer(market, request_log=log_file) as server:
        server.reopen_request_log()  # without a rename, nothing changes
        peer = dial(server)
        wait_for_lines(log_file, 1)
        log_file.rename(earlier)
        server.reopen_request_log()
        peer.close()
        wait_for_lines(log_file, 1)
    assert [line["event"] for line in lines_of(earlier)] == ["handshake"]
    assert [line["event"] for line in lines_of(log_file)] == ["end"]


def test_a_file_that_cannot_be_opened_again(
    market: SimulatedMarket, dial: Dial, log_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and the earlier file stays in use."""
    with LocalServer(market, request_log=log_file) as server:
        log_file.rename(earlier := log_file.with_suffix(".1"))
        log_file.mkdir()
        server.reopen_request_log()
        dial(server)
        wait_for_lines(earlier, 1)
    [text] = caplog.messages
    assert text == f"cannot open the request log {log_file}: Is a directory; the earlier file stays in use"


def test_a_file_that_cannot_be_opened_is_an_error(market: SimulatedMarket, tmp_path: Path) -> None:
    """The port is free again afterwards."""
    server = LocalServer(market, request_log=tmp_path)
    with pytest.raises(IsADirectoryError):
        server.start()
    assert not server.running
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_a_server_that_restarts_continues_the_log(market: SimulatedMarket, dial: Dial, log_file: Path) -> None:
    """Lines are appended, and the end of each connection is among them."""
    server = LocalServer(market, request_log=log_file)
    for _ in range(2):
        with server:
            dial(server).recv(timeout=TIMEOUT)
    assert [line["event"] for line in lines_of(log_file)] == ["handshake", "end"] * 2
    assert {line["code"] for line in lines_of(log_file, "end")} == {1001}
