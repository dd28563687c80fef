"""Ticks, histories and recoveries for tests of the gap logic."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from finx_streamer.streaming.delivered_window import DeliveredWindow, Key, tick_key
from finx_streamer.streaming.recovery import Finish, Probe, Recovery, Step
from finx_streamer.values import Tick

START = datetime(2022, 7, 2, 23, 59, 50, tzinfo=UTC)
PAIR = "BTC:USDC"


def at(seconds: float) -> datetime:
    """A time in seconds after `START`."""
    return START + timedelta(microseconds=round(seconds * 1e6))


def tick(seconds: float, price: Any = 1.0, exchange: str = "BINANCE", backfilled: bool = False) -> Tick:
    """A tick with that time."""
    time = at(seconds)
    return {
        "pair": PAIR,
        "date": time.date().isoformat(),
        "time": time.time().isoformat() + "Z",
        "exchange": exchange,
        "price": price,
        "timestamp": time,
        "received_ns": 0,
        "backfilled": backfilled,
    }


def seconds_of(ticks: list[Any]) -> list[float]:
    """The ticks' times in seconds after `START`."""
    return [(each["timestamp"] - START).total_seconds() for each in ticks]


def keys_of(*ticks: Tick) -> list[Key]:
    """The ticks' keys, as a `DeliveredWindow` keeps them."""
    return [tick_key(each) for each in ticks]


def history(*ticks: Tick) -> list[Tick]:
    """The ticks as history returns them: sorted by time, in random order within one time."""
    found: list[Tick] = [{**each, "backfilled": True} for each in ticks]
    random.Random(0).shuffle(found)
    return sorted(found, key=lambda each: each["timestamp"])


def window_of(*ticks: Tick, lateness: timedelta = timedelta(seconds=1), size: int = 1_024) -> DeliveredWindow:
    """A window after these ticks were delivered one by one."""
    window = DeliveredWindow(lateness, size)
    for each in ticks:
        window.extend([each])
    return window


def recovery_after(*delivered: Tick) -> Recovery:
    """A recovery that starts at 0 s with a lateness of 2 s. One tick was delivered long before these."""
    window = window_of(tick(-100), *delivered, lateness=timedelta(seconds=2))
    return Recovery(PAIR, window, 0.0)


def only(steps: list[Step] | Step | None, kind: type) -> Any:
    """The only step, which must be of this kind."""
    found = steps if isinstance(steps, list) else [steps]
    assert [type(step) for step in found] == [kind]
    return found[0]


def answer(recovery: Recovery, found: list[Tick], now: float = 1.0) -> list[Step]:
    """Answer a fetch with one page, and the probe that may follow. Return all other steps."""
    steps = [recovery.page(found)]
    if not isinstance(steps[0], Finish):
        steps.append(recovery.fetched(now))
        if isinstance(steps[-1], Probe):
            steps[-1] = recovery.probe_answered(now)
    return [step for step in steps if step is not None]
