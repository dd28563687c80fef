"""Serve with few descriptors until killed, and log to stdout. Arguments: the soft and hard limit, max_connections."""

import logging
import resource
import sys
import threading

from finx_streamer.server import LocalServer, SimulatedMarket

logging.basicConfig(stream=sys.stdout)
soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
with LocalServer(SimulatedMarket(["BTC:USDC"], seed=1), max_connections=connections) as server:
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
    print(server.url, flush=True)
    threading.Event().wait()
