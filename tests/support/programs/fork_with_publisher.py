"""Publish a tick, fork, and try to publish another one in the child. The argument is the URL of NATS."""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Any

from finx_streamer import PublishError
from finx_streamer.jetstream import JetStreamPublisher

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads


def tick(number: int) -> Any:
    fields = {"pair": "BTC:USDC", "date": "2026-11-29", "time": "00:00:00Z", "exchange": "MINE", "price": str(number)}
    return {**fields, "backfilled": False, "received_ns": time.time_ns()}


publisher = JetStreamPublisher(sys.argv[1])
feed = publisher.new_feed()
feed.on_tick(tick(1))
if (child := os.fork()) == 0:
    try:
        feed.on_tick(tick(2))
    except PublishError as error:
        print(error.reason)
    sys.exit()
os.waitpid(child, 0)
feed.on_tick(tick(3))
print(publisher.close(), publisher.stats.published)
