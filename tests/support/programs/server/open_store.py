"""Create a server on a store file. Argument: the file."""

import sys

from finx_streamer.server import LocalServer, SimulatedMarket

LocalServer(SimulatedMarket(), store=sys.argv[1])
