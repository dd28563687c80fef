"""Serve an unpaced market until killed. Arguments: the store file, `store_batch` and the seed."""

import sys
import threading

from finx_streamer.server import LocalServer, SimulatedMarket

path, batch, seed = sys.argv[1:]
market = SimulatedMarket(["BTC:USDC"], rate=None, seed=int(seed), wait_for=1)
with LocalServer(market, store=path, store_batch=int(batch)) as server:
    print(server.url, flush=True)
    threading.Event().wait()
