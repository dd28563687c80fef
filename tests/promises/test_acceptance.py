"""End to end: recorded trades go through a real server into callbacks, complete and in order."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from finx_streamer import (
    FinxStreamerError,
    FunctionClient,
    FunctionError,
    ReconnectPolicy,
    SlowConsumer,
    State,
    StreamListener,
    StreamNotFound,
    Tick,
)
from finx_streamer.server import LocalServer, SimulatedMarket, Tape

WIRE_FIELDS = ("pair", "date", "time", "exchange", "price")
TAPES = ("tape-small.jsonl", "tape.jsonl.gz")
PATIENCE = 30.0


def read_tape(path: Path) -> list[dict[str, str]]:
    """The lines of a tape."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def of_pair(lines: Iterable[dict[str, str]], pair: str) -> list[dict[str, str]]:
    """The ticks of one pair, in order."""
    return [line for line in lines if line["pair"] == pair]


def wire_part(tick: Tick) -> dict[str, Any]:
    """The fields that are sent over the wire."""
    return {field: tick[field] for field in WIRE_FIELDS}  # type: ignore[literal-required]


def collect(server: LocalServer, pairs: list[str], count: int, **settings: Any) -> list[dict[str, Any]]:
    """Listen to pairs until `count` ticks have arrived."""
    got: list[dict[str, Any]] = []
    errors: list[FinxStreamerError] = []
    complete = threading.Event()

    def keep(tick: Tick) -> None:
        got.append(wire_part(tick))
        if len(got) == count:
            complete.set()

    listener = StreamListener(
        *pairs,
        api_key="demo",
        endpoint=server.url,
        on_tick=keep,
        on_error=errors.append,
        parse_price=str,
        **settings,
    )
    with listener:
        complete.wait(PATIENCE)
    # A short queue is always full, which is reported and loses nothing.
    assert [error for error in errors if not isinstance(error, SlowConsumer)] == []
    return got


@pytest.mark.parametrize("tape", TAPES)
@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_one_pair_of_a_tape_arrives_complete_and_in_order(shared_data: Path, tape: str, dispatch: str) -> None:
    """All ticks of one pair arrive in order, each field as in the file."""
    expected = of_pair(read_tape(shared_data / tape), "BTC:USDT")
    with LocalServer(Tape(shared_data / tape, speed=None), keys={"demo"}) as server:
        assert collect(server, ["BTC:USDT"], len(expected), dispatch=dispatch) == expected


@pytest.mark.parametrize(
    ("tape", "queue_size"),
    [
        *itertools.product(TAPES, (100, 65_536)),
        (TAPES[0], 1),
        pytest.param(TAPES[1], 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_every_pair_of_a_tape_in_one_listener(shared_data: Path, tape: str, dispatch: str, queue_size: int) -> None:
    """With all pairs at once, each pair's ticks arrive complete and in order, however short the queue is."""
    lines = read_tape(shared_data / tape)
    pairs = sorted({line["pair"] for line in lines})
    with LocalServer(Tape(shared_data / tape, speed=None, wait_for=len(pairs)), keys={"demo"}) as server:
        got = collect(server, pairs, len(lines), dispatch=dispatch, queue_size=queue_size)
    assert len(got) == len(lines)
    for pair in pairs:
        assert of_pair(got, pair) == of_pair(lines, pair)


@pytest.mark.parametrize("form", ["enveloped", "flat"])
def test_both_forms_of_the_wire_give_the_same_ticks(shared_data: Path, form: str) -> None:
    """The documented message and the vendor's later one become the same dict."""
    expected = of_pair(read_tape(shared_data / TAPES[0]), "ETH:USDT")
    with LocalServer(Tape(shared_data / TAPES[0], speed=None), keys={"demo"}, form=form) as server:
        assert collect(server, ["ETH:USDT"], len(expected)) == expected


def serve(port: int) -> tuple[subprocess.Popen[str], int]:
    """Start a server process. Return it and its port when it accepts connections."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finx_streamer", "serve", "--port", str(port), "--rate", "500"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise AssertionError("the server named no URL")


def test_the_listener_survives_the_servers_death() -> None:
    """The listener reconnects to a server that is killed and started again on the same port."""
    process, port = serve(0)
    ticks = [threading.Event(), threading.Event()]
    lost = threading.Event()
    phase = 0

    def note(_symbol: str, state: State) -> None:
        if state is State.RECONNECTING:
            lost.set()

    listener = StreamListener(
        "BTC:USDC",
        api_key="demo",
        endpoint=f"ws://127.0.0.1:{port}/",
        on_tick=lambda tick: ticks[phase].set(),
        on_state=note,
        on_error=lambda error: None,
        reconnect=ReconnectPolicy(initial=0.05, maximum=0.5),
    )
    try:
        with listener:
            assert ticks[0].wait(PATIENCE)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert lost.wait(PATIENCE)
            phase = 1
            assert process.stdout is not None
            process.stdout.close()
            process, _ = serve(port)
            assert ticks[1].wait(PATIENCE)
            assert listener.stats.reconnects == 1
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("lives", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_a_listener_leaves_nothing_behind_after_many_lives(lives: int) -> None:
    """Many starts and stops leave no thread and no file descriptor."""
    with LocalServer(SimulatedMarket(rate=2_000.0, seed=1), keys={"demo"}) as server:
        names = {thread.name for thread in threading.enumerate()}
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        for life in range(lives):
            listener = StreamListener("BTC:USDT", api_key="demo", endpoint=server.url).start()
            if life % 2:
                next(iter(listener))
            assert listener.stop()
        after = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        assert {thread.name for thread in threading.enumerate()} == names
    # The server may still be closing its ends of the last connections.
    assert after - before <= 10


NAMES = ("USDC.E:USDT", "$TRUMP:USDC", "币安人生:USDT", "1INCH:USDC", 'A"&<B>:C+D')


@pytest.mark.parametrize("form", ["enveloped", "flat"])
def test_pairs_of_any_name_work_everywhere(tmp_path: Path, form: Any) -> None:
    """A tape in a file is played to streams, and history, snaps, imports and a persistent store have the same pairs."""
    ticks = [
        {"pair": pair, "date": "2022-07-02", "time": f"15:30:{second:02}.500Z", "exchange": "BINANCE", "price": "1.5"}
        for second in range(40)
        for pair in NAMES
    ]
    tape = tmp_path / "tape.jsonl"
    tape.write_text("".join(json.dumps(tick, ensure_ascii=False) + "\n" for tick in ticks))
    options: Any = {"keys": {"demo"}, "form": form, "store": tmp_path / "ticks.db"}
    with LocalServer(Tape(tape, speed=None, wait_for=len(NAMES)), **options) as server:
        assert server.import_ticks([tick | {"date": "2022-07-01"} for tick in ticks]) == len(ticks)
        got = collect(server, list(NAMES), len(ticks))
        for pair in NAMES:
            assert of_pair(got, pair) == of_pair(ticks, pair)
    with LocalServer(Tape(tape, wait_for=9), **options) as server, FunctionClient("demo", server.url) as client:
        for pair in NAMES:
            assert len(client.tick_history(pair, "2022-07-01", "2022-07-03")) == 80
            assert client.tick_snap(pair, "2022-07-02T16:00")["time"] == "15:30:39.500Z"
        assert client.reference_data("币安人生")["pairs"] == ["币安人生:USDT"]


def test_an_unknown_pair_of_any_name_is_named() -> None:
    """The errors are as readable as for any other pair."""
    with LocalServer(SimulatedMarket(), keys={"demo"}) as server:
        with pytest.raises(StreamNotFound, match=r"^币安人生:USDT: no such stream"):
            list(StreamListener("币安人生:USDT", endpoint=server.url, api_key="demo"))
        with FunctionClient("demo", server.url) as client, pytest.raises(FunctionError, match="'币安人生:USDT' is unk"):
            client.tick_snap("币安人生:USDT")
