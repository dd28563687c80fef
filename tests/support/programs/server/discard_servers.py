"""Run and discard servers, and check that no thread or open database is left. Argument: a store file."""

import gc
import sys
import threading
import warnings

from finx_streamer.server import LocalServer, SimulatedMarket

warnings.simplefilter("error")
for path in (None, sys.argv[1]):
    with LocalServer(SimulatedMarket(rate=1e4), store=path) as server:
        server.wait_until(lambda stats: stats.ticks_stored > 100)
    del server
    gc.collect()
assert threading.active_count() == 1, threading.enumerate()
