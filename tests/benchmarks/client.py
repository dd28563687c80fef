"""A contender's process: `python client.py JOB`, where JOB is a JSON object with the fields of `Job`.

It runs one contender with one meter for its callback, and the meter prints what it measured, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import child
import ticks
from contenders import CONTENDERS, Feed, OnTick

#: What a lap's prices may be off: much less than the difference between two ticks, and more than rounding adds up to.
_ROUNDING = 1e-3


class Job(NamedTuple):
    """What a client process is told to do."""

    contender: str
    port: int
    meter: str = "laps"
    pairs: int = 1
    #: How long to measure, at the least; it ends with a lap.
    seconds: float = 1.0
    #: Ticks of each pair that the server sends; 0 for no end.
    count: int = 0
    authority: str = ""
    pause: float = 0.0
    pause_every: int = 0


def laps(job: Job, feed: Feed) -> OnTick:
    """Throughput: counts ticks and adds up their prices.

    A stream of one pair is measured in laps of all distinct ticks; the sum of each is checked, and every field of the
    lap that follows the last one. Several pairs send a certain number of ticks, in no certain order: the sum is
    checked.
    """
    lap = job.count * job.pairs or ticks.DISTINCT
    expected = job.pairs * ticks.total(job.count) if job.count else ticks.total(lap)
    # Until the next turn: the first tick, the last one of a lap, and in the end each tick is one.
    left, total, done, checked = 1, 0.0, 0, 0
    start = cpu = 0.0
    figures: dict[str, Any] = {}

    def on_tick(tick: dict[str, Any]) -> None:
        nonlocal left, total
        total += tick["price"]
        left -= 1
        if left <= 0:
            turn(tick)

    def turn(tick: dict[str, Any]) -> None:
        nonlocal start, cpu, left
        if figures:
            check(tick)
        elif start:
            end_lap()
        else:
            start, cpu = time.perf_counter(), time.process_time()
            left = lap - 1

    def end_lap() -> None:
        nonlocal done, left, total
        if abs(total - expected) > _ROUNDING * job.pairs:
            child.fail(f"prices add up to {total}, not {expected}")
        done, left, total = done + lap, lap, 0.0
        taken = time.perf_counter() - start
        if job.count or taken >= job.seconds:
            used = time.process_time() - cpu
            figures.update(seconds=taken, cpu=used, count=done, threads=child.threads(), resident=child.resident())
            left = 0
        if job.count:
            child.report(**figures)

    def check(tick: dict[str, Any]) -> None:
        nonlocal checked
        if wrong := ticks.fault(tick, checked):
            child.fail(wrong)
        checked += 1
        if checked == ticks.DISTINCT:
            child.report(**figures)

    return on_tick


def latency(job: Job, feed: Feed) -> OnTick:
    """From the server's time stamp in each tick to the callback. The first tenth does not count."""
    count = job.count
    taken = array("q", bytes(8 * count))
    at, total, start, cpu = 0, 0.0, 0.0, 0.0
    clock = time.monotonic_ns

    def on_tick(tick: dict[str, Any]) -> None:
        nonlocal at, total
        taken[at] = clock() - int(tick["exchange"])
        total += tick["price"]
        at += 1
        if at == 1 or at == count:
            mark(tick)

    def mark(tick: dict[str, Any]) -> None:
        nonlocal start, cpu
        # Among several pairs the last tick to arrive may be another one than the last that was sent.
        if job.pairs == 1 and (wrong := ticks.fault(tick, at - 1, stamped=True)):
            child.fail(wrong)
        if at < count:
            start, cpu = time.perf_counter(), time.process_time()
            return
        seconds, used, size, number = (
            time.perf_counter() - start,
            time.process_time() - cpu,
            # Less what the measuring itself has filled.
            child.resident() - 8 * count,
            child.threads(),
        )
        if abs(total - ticks.total(count)) > 1e-9 * total:
            child.fail(f"prices add up to {total}, not {ticks.total(count)}")
        steady = sorted(taken[count // 10 :])
        child.report(
            p50=steady[len(steady) // 2] / 1e3,
            p99=steady[len(steady) * 99 // 100] / 1e3,
            worst=steady[-1] / 1e3,
            seconds=seconds,
            busy=used / seconds,
            resident=size,
            threads=number,
        )

    return on_tick


def slow(job: Job, feed: Feed) -> OnTick:
    """Memory: a callback that pauses so often that it is slower than the stream. Looks at the memory on the way."""
    marks = {max(1, job.count * percent // 100): percent for percent in (1, 10, 25, 50, 75, 100)}
    seen: list[dict[str, Any]] = []
    number, total, start = 0, 0.0, time.perf_counter()

    def on_tick(tick: dict[str, Any]) -> None:
        nonlocal number, total
        total += tick["price"]
        number += 1
        if not number % job.pause_every:
            time.sleep(job.pause)
        if number in marks:
            look(marks[number])

    def look(percent: int) -> None:
        depth = feed.listener.stats.queue_depth if feed.listener else None
        seen.append(
            {
                "percent": percent,
                "count": number,
                "seconds": time.perf_counter() - start,
                "resident": child.resident(),
                "peak": child.peak_resident(),
                "depth": depth,
            }
        )
        if percent == 100:
            if abs(total - ticks.total(number)) > 1e-9 * total:
                child.fail(f"prices add up to {total}, not {ticks.total(number)}")
            child.report(seen=seen)

    return on_tick


def silent(job: Job, feed: Feed) -> OnTick:
    """A stream without ticks."""
    return child.fail


METERS: dict[str, Callable[[Job, Feed], OnTick]] = {"laps": laps, "latency": latency, "slow": slow, "silent": silent}


def main() -> None:
    """Run the job of the command line."""
    job = Job(**json.loads(sys.argv[1]))
    feed = Feed(job.port, job.pairs, job.authority, job.seconds, job.count)
    CONTENDERS[job.contender](feed, METERS[job.meter](job, feed))
    child.fail(f"{job.contender}: ended before the last tick")


if __name__ == "__main__":
    main()
