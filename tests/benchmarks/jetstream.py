"""NATS JetStream between a source and its listeners, compared with a listener on the source itself.

The source, the publisher, the NATS servers, the gateways and the clients are processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import contenders as who
from harness import (
    CHECKOUT,
    HERE,
    Figures,
    Goal,
    Options,
    Process,
    Watch,
    at_least,
    at_most,
    client,
    disturbed,
    median,
    rate,
    ratio,
    rounds,
    spread,
    table,
    wait_for,
)

sys.path.insert(0, str(CHECKOUT))

from tests.support.nats import NatsCluster, NatsServer

TITLE = "NATS JetStream between the source and the listeners"
DIRECT, SINGLE, CLUSTER = "no NATS", "one NATS server", "a NATS cluster of three"
RATES = (1_000, 5_000)
CLIENTS = 100
#: Ticks of a burst, and of one for many clients.
_BURST, _FAN_OUT = 60_000, 20_000
#: Seconds of a steady rate.
_STEADY = 4.0
_PATIENCE = 120.0
FAN_DIRECT, FAN_ONE, FAN_THREE = "no NATS", "one gateway", "three gateways"


def benchmark(options: Options) -> str:
    """Measure latency, throughput, publisher, gateway and fan-out."""
    return "\n\n".join((_latency(options), _throughput(options), _fan_out(options)))


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    return [
        at_least("ticks/s published by one process", 15_000, "", lambda results: median(results["publisher"], rate)),
        at_most("CPU per message of one gateway", 1.4, "x no NATS", ratio(FAN_ONE, FAN_DIRECT, "cpu")),
    ]


def _latency(options: Options) -> str:
    jobs = {_job(way, each): partial(_steady, way, each) for each in RATES for way in (DIRECT, SINGLE, CLUSTER)}
    results = rounds(jobs, options.rounds)
    rows = [
        (
            name,
            *(f"{median(runs, key) / 1e3:,.2f}" for key in ("p50", "p99", "worst")),
            spread(runs, lambda figures: figures["p50"] / 1e3, ",.2f"),
        )
        for name, runs in results.items()
    ]
    heads = ("between source and callback", "p50 ms", "p99 ms", "worst ms", "p50 of all rounds")
    return f"Latency from the source to the callback:\n\n{table(heads, rows)}\n\n{disturbed(results)}"


def _job(way: str, each: int) -> str:
    return f"{way}, {each:,} ticks/s"


def _throughput(options: Options) -> str:
    jobs: dict[str, Callable[[], Figures]] = {
        f"source to callback, {DIRECT}": partial(_burst, DIRECT),
        f"source to callback, {SINGLE}": partial(_burst, SINGLE),
        "publisher": _publisher,
        "gateway": _ingest,
    }
    results = rounds(jobs, options.rounds)
    rows = [
        (
            name,
            f"{median(runs, rate):,.0f}",
            spread(runs, rate),
            f"{median(runs, 'cpu') / _BURST * 1e6:.1f}",
        )
        for name, runs in results.items()
    ]
    heads = ("", "ticks/s", "slowest to fastest round", "CPU us/tick")
    return (
        f"A burst of {_BURST:,} ticks of one pair. CPU is that of the listener, the publisher, the gateway:\n\n"
        f"{table(heads, rows)}\n\n{disturbed(results)}"
    )


def _fan_out(options: Options) -> str:
    jobs = {FAN_DIRECT: partial(_fan, 0), FAN_ONE: partial(_fan, 1), FAN_THREE: partial(_fan, 3)}
    results = rounds(jobs, options.rounds)
    rows = [
        (
            name,
            f"{median(runs, 'speed'):,.0f}",
            spread(runs, lambda figures: figures["speed"]),
            f"{median(runs, 'cpu'):.2f}",
        )
        for name, runs in results.items()
    ]
    heads = ("server", "messages/s", "slowest to fastest round", "CPU us/message")
    return (
        f"{_FAN_OUT:,} ticks to {CLIENTS} clients of each server, which receive without decoding:\n\n"
        f"{table(heads, rows)}\n\n{disturbed(results)}"
    )


# Parts of a run.


def _part(stack: contextlib.ExitStack, part: str, **job: Any) -> Process:
    process = Process(str(HERE / "jetstream_part.py"), json.dumps({"part": part, **job}))
    stack.callback(process.kill)
    return process


@contextlib.contextmanager
def _nats(way: str) -> Iterator[NatsServer | NatsCluster]:
    with tempfile.TemporaryDirectory(prefix="bench-nats-") as folder:
        kind = NatsCluster if way == CLUSTER else NatsServer
        with kind(Path(folder)) as running:
            yield running


def _pids(nats: NatsServer | NatsCluster | None, *processes: Process) -> Iterator[int]:
    nodes = nats.nodes if isinstance(nats, NatsCluster) else [] if nats is None else [nats]
    yield from (node.process.pid for node in nodes if node.process is not None)
    yield from (process.process.pid for process in processes)


def _until(process: Process, key: str, number: float) -> None:
    end = time.monotonic() + _PATIENCE
    while process.ask()[key] < number:
        if time.monotonic() > end:
            raise RuntimeError(f"{key} stayed below {number}")
        time.sleep(0.02)


@contextlib.contextmanager
def _way(way: str, **source: Any) -> Iterator[tuple[Process, Process, list[int]]]:
    """The source, and the server for clients, which is the source itself if there is no NATS; and all processes."""
    with contextlib.ExitStack() as stack:
        origin = _part(stack, "serve", **source)
        if way == DIRECT:
            yield origin, origin, [*_pids(None, origin)]
            return
        nats = stack.enter_context(_nats(way))
        replicas = 3 if way == CLUSTER else 1
        publisher = _part(stack, "publish", port=origin.first["port"], nats=nats.url, replicas=replicas)
        _until(origin, "streams", 1)
        origin.ask("warm up")
        _until_stored(nats, 1)
        gateway = _gateway(stack, nats)
        yield origin, gateway, [*_pids(nats, origin, publisher, gateway)]


def _steady(way: str, each: int) -> Figures:
    count = int(each * _STEADY)
    with _way(way, count=count, rate=each) as (source, server, pids):
        return _listen(source, server, pids, meter="latency", count=count)


def _burst(way: str) -> Figures:
    with _way(way, count=_BURST, rate=None) as (source, server, pids):
        return _listen(source, server, pids, meter="laps", count=_BURST)


def _listen(source: Process, server: Process, pids: Sequence[int], **job: Any) -> Figures:
    with client(contender=who.THREAD, port=server.first["port"], **job) as process:
        _until(server, "streams", 1)
        watch = Watch(*pids, process.pid)
        source.ask("go")
        figures = wait_for(process, who.THREAD, _PATIENCE)
        return {**figures, "disturbed": watch.disturbance()}


def _publisher() -> Figures:
    """Until NATS has stored all."""
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(_nats(SINGLE))
        source = _part(stack, "serve", count=_BURST, rate=None)
        publisher = _part(stack, "publish", port=source.first["port"], nats=nats.url, replicas=1)
        _until(source, "streams", 1)
        source.ask("warm up")
        _until_stored(nats, 1)
        watch, before = Watch(*_pids(nats, source, publisher)), publisher.ask()
        begin = time.monotonic()
        source.ask("go")
        _until_stored(nats, 1 + _BURST)
        seconds = time.monotonic() - begin
        cpu = publisher.ask()["cpu"] - before["cpu"]
        return {"seconds": seconds, "count": _BURST, "cpu": cpu, "disturbed": watch.disturbance()}


def _until_stored(nats: NatsServer | NatsCluster, number: int) -> None:
    end = time.monotonic() + _PATIENCE
    while _stored(nats) < number:
        if time.monotonic() > end:
            raise RuntimeError(f"NATS stored {_stored(nats):,} ticks, not {number:,}")
        time.sleep(0.01)


def _stored(nats: NatsServer | NatsCluster) -> int:
    node = nats.nodes[0] if isinstance(nats, NatsCluster) else nats
    return int((node.about("jsz") or {}).get("messages") or 0)


def _gateways(stack: contextlib.ExitStack, number: int) -> tuple[NatsServer, list[Process]]:
    """NATS, and gateways that know the pair."""
    nats = stack.enter_context(_nats(SINGLE))
    assert isinstance(nats, NatsServer)
    source = _part(stack, "serve", count=0, rate=None)
    publisher = _part(stack, "publish", port=source.first["port"], nats=nats.url, replicas=1)
    _until(source, "streams", 1)
    source.ask("warm up")
    _until_stored(nats, 1)
    publisher.kill()
    source.kill()
    return nats, [_gateway(stack, nats) for _ in range(number)]


def _gateway(stack: contextlib.ExitStack, nats: NatsServer | NatsCluster) -> Process:
    process = _part(stack, "serve", nats=nats.url)
    _until(process, "ready", True)
    return process


def _ingest() -> Figures:
    """Until a gateway has taken all. It has no clients."""
    with contextlib.ExitStack() as stack:
        nats, [gateway] = _gateways(stack, 1)
        flood = _part(stack, "flood", count=_BURST, nats_port=nats.port)
        watch, before = Watch(*_pids(nats, gateway, flood)), gateway.ask()
        begin = time.monotonic()
        flood.ask()
        _until(gateway, "played", before["played"] + _BURST)
        seconds = time.monotonic() - begin
        cpu = gateway.ask()["cpu"] - before["cpu"]
        return {"seconds": seconds, "count": _BURST, "cpu": cpu, "disturbed": watch.disturbance()}


def _fan(gateways: int) -> Figures:
    with contextlib.ExitStack() as stack:
        if gateways:
            nats, servers = _gateways(stack, gateways)
            begin = _part(stack, "flood", count=_FAN_OUT, nats_port=nats.port)
        else:
            nats, begin = None, _part(stack, "serve", count=_FAN_OUT, rate=None)
            servers = [begin]
        drains = [_part(stack, "drain", clients=CLIENTS, port=server.first["port"]) for server in servers]
        watch, before = Watch(*_pids(nats, *servers, *drains)), sum(server.ask()["cpu"] for server in servers)
        begin.ask("go")
        for drain in drains:
            _until(drain, "messages", CLIENTS * _FAN_OUT)
        cpu = sum(server.ask()["cpu"] for server in servers) - before
        figures = [drain.ask() for drain in drains]
        seconds = max(each["last"] for each in figures) - min(each["first"] for each in figures)
        messages = sum(each["messages"] for each in figures)
        return {"speed": messages / seconds, "cpu": cpu / messages * 1e6, "disturbed": watch.disturbance()}
