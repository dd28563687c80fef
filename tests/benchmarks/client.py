"""The process of one contender: `python client.py JOB`, where JOB is a JSON object with the fields of `Job`.

A meter is the contender's callback. It prints its measurements as JSON and ends the process.
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

#: Tolerance for the sum of a lap's prices: more than rounding errors, much less than one tick's step.
_ROUNDING = 1e-3


class Job(NamedTuple):
    """The job of a client process."""

    contender: str
    port: int
    meter: str = "laps"
    pairs: int = 1
    #: Minimum length of the measurement, which ends with a lap.
    seconds: float = 1.0
    #: Ticks per pair that the server sends. 0 means endless.
    count: int = 0
    authority: str = ""
    #: The callback sleeps for this many seconds, or computes, after each tick whose number `pause_every` divides.
    pause: float = 0.0
    pause_every: int = 0
    spin: bool = False


def laps(job: Job, feed: Feed) -> OnTick:
    """Measure throughput: count ticks and sum their prices.

    One pair, or one connection, is measured in laps of all distinct ticks. The sum of each lap is checked, and after
    the last lap all fields of one more. Several connections send a fixed number of ticks in any order; only their sum
    is checked.
    """
    lap = job.count * job.pairs or ticks.DISTINCT
    expected = job.pairs * ticks.total(job.count) if job.count else ticks.total(lap)
    # `left` counts down to the next checkpoint: the first tick, the last one of a lap, then every tick.
    left, total, done, checked = 1, 0.0, 0, 0
    start = cpu = 0.0
    figures: dict[str, Any] = {}

    def on_tick(tick: dict[str, Any]) -> None:
        nonlocal left, total
        total += tick["price"]
        left -= 1
        if left <= 0:
            checkpoint(tick)

    def checkpoint(tick: dict[str, Any]) -> None:
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
            child.fail(f"the prices add up to {total}, not {expected}")
        done, left, total = done + lap, lap, 0.0
        elapsed = time.perf_counter() - start
        if job.count or elapsed >= job.seconds:
            used = time.process_time() - cpu
            figures.update(seconds=elapsed, cpu=used, count=done, threads=child.threads(), resident=child.resident())
            left = 0
        if job.count:
            child.report(**figures)

    def check(tick: dict[str, Any]) -> None:
        nonlocal checked
        if error := ticks.find_error(tick, done + checked):
            child.fail(error)
        checked += 1
        if checked == ticks.DISTINCT:
            child.report(**figures)

    return on_tick


def latency(job: Job, feed: Feed) -> OnTick:
    """Measure the time from the server's stamp in each tick to the callback, without the first tenth."""
    count = job.count
    latencies = array("q", bytes(8 * count))
    at, stamps, start, cpu = 0, 0, 0.0, 0.0
    waits: dict[str, int] = {}
    clock, read_stamp = time.monotonic_ns, ticks.read_stamp

    def on_tick(tick: dict[str, Any]) -> None:
        nonlocal at, stamps
        stamp = read_stamp(tick["price"])
        latencies[at] = clock() - stamp
        stamps += stamp
        at += 1
        if at == 1 or at == count:
            mark(tick)

    def mark(tick: dict[str, Any]) -> None:
        nonlocal start, cpu, waits
        # With several pairs, the last tick to arrive may not be the last one sent.
        if job.pairs == 1 and (error := ticks.find_error(tick, at - 1, stamped=True)):
            child.fail(error)
        if at < count:
            start, cpu, waits = time.perf_counter(), time.process_time(), child.waits()
            return
        waited = child.added(waits, child.waits())
        seconds, used, size, number = (
            time.perf_counter() - start,
            time.process_time() - cpu,
            # Without the meter's own memory.
            child.resident() - 8 * count,
            child.threads(),
        )
        steady = sorted(latencies[count // 10 :])
        child.report(
            p50=steady[len(steady) // 2] / 1e3,
            p99=steady[len(steady) * 99 // 100] / 1e3,
            worst=steady[-1] / 1e3,
            seconds=seconds,
            busy=used / seconds,
            stamps=stamps,
            waits_per_tick=waited / (count - 1),
            resident=size,
            threads=number,
        )

    return on_tick


def memory(job: Job, feed: Feed) -> OnTick:
    """Sample the memory at some ticks on the way to the last one."""
    marks = {max(1, job.count * percent // 100): percent for percent in (1, 10, 25, 50, 75, 100)}
    samples: list[dict[str, Any]] = []
    number, total, start = 0, 0.0, 0.0

    def on_tick(tick: dict[str, Any]) -> None:
        nonlocal number, total, start
        total += tick["price"]
        number += 1
        if number in marks:
            sample(marks[number])
        elif number == 1:
            start = time.perf_counter()

    def sample(percent: int) -> None:
        depth = feed.listener.stats.queue_depth if feed.listener else None
        samples.append(
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
                child.fail(f"the prices add up to {total}, not {ticks.total(number)}")
            child.report(samples=samples)

    return on_tick


def silent(job: Job, feed: Feed) -> OnTick:
    """Fail on any tick: the server sends none."""
    return child.fail


METERS: dict[str, Callable[[Job, Feed], OnTick]] = {
    "laps": laps,
    "latency": latency,
    "memory": memory,
    "silent": silent,
}


def pausing(job: Job, on_tick: OnTick) -> OnTick:
    """Add pauses to a callback."""
    number = 0

    def on_tick_with_pauses(tick: dict[str, Any]) -> None:
        nonlocal number
        on_tick(tick)
        number += 1
        if not number % job.pause_every:
            pause()

    def pause() -> None:
        if not job.spin:
            time.sleep(job.pause)
            return
        end = time.perf_counter() + job.pause
        while time.perf_counter() < end:
            pass

    return on_tick_with_pauses


def main() -> None:
    """Run the job that the command line gives."""
    job = Job(**json.loads(sys.argv[1]))
    feed = Feed(job.port, job.pairs, job.authority, job.seconds, job.count)
    on_tick = METERS[job.meter](job, feed)
    CONTENDERS[job.contender](feed, pausing(job, on_tick) if job.pause else on_tick)
    child.fail(f"{job.contender} ended before the last tick")


if __name__ == "__main__":
    main()
