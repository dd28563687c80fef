"""The peak of each pair in the queue, compared with counting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.delivery.callbacks import CallbackRunner, Callbacks
from finx_streamer.delivery.dispatcher import ThreadDelivery
from finx_streamer.delivery.queue_peaks import QueuePeaks
from finx_streamer.delivery.queues import QUEUES
from finx_streamer.streaming.counters import Counters
from finx_streamer.values import Event, State
from tests.support.effort import examples
from tests.support.queue_models import MODELS, PAIRS, Step, mixed, steps, taken


def put(delivery: ThreadDelivery, pairs: list[str], first: int) -> None:
    """Put ticks as a connection does: it names their pairs if there are several."""
    delivery.put_ticks(mixed(pairs, first), pairs if len(set(pairs)) > 1 else None)


@pytest.mark.parametrize("policy", MODELS)
@given(size=st.integers(1, 8), given_steps=steps)
@examples(200)
def test_peaks_and_drops_of_each_pair(policy: str, size: int, given_steps: list[Step]) -> None:
    """They equal those of the queue's model, whether or not a list has several pairs."""
    counters = {pair: Counters() for pair in PAIRS}
    runner = CallbackRunner(Callbacks(), counters)
    delivery = ThreadDelivery(runner, QUEUES[policy](size), counters, lambda: None, lambda: None, lambda crash: None)
    loop = delivery.new_loop("never started", lambda: None, lambda crash: None)
    loop.relieved = True  # otherwise some ticks don't pass through the queue
    model = MODELS[policy](size)
    peaks, dropped = dict.fromkeys(PAIRS, 0), dict.fromkeys(PAIRS, 0)
    for number, step in enumerate(given_steps):
        if isinstance(step, list):
            put(delivery, step, number * 10)
            for pair, count in model.put(mixed(step, number * 10)).items():
                dropped[pair] += count
            for pair in PAIRS:
                waiting = sum(not isinstance(entry, Event) and entry["pair"] == pair for entry in model.entries)
                peaks[pair] = max(peaks[pair], waiting)
        elif step is None:
            # Ticks that are dropped from behind an event count as the event.
            if policy != "drop_oldest":
                event = Event(State.STREAMING)
                delivery.put_event(event)
                model.entries.append(event)
        else:
            for _ in range(step):
                taken(delivery.queue)
                del model.entries[:1]
    loop._close()
    assert {pair: each.queue_peak for pair, each in counters.items()} == peaks
    assert {pair: each.dropped for pair, each in counters.items()} == dropped


def test_nothing_of_an_empty_queue_is_kept() -> None:
    """A listener may see any number of pairs in its life."""
    peaks = QueuePeaks({})
    for number in range(1_000):
        peaks.put_mixed([f"P{number}:USD", f"Q{number}:USD"], 2)
    assert (len(peaks._runs), len(peaks._put), len(peaks._taken)) == (1, 2, 0)
