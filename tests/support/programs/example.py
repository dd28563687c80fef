"""Run a documented example with a local server as the production endpoint: example.py URL FILE."""

from __future__ import annotations

import runpy
import sys

import finx_streamer

finx_streamer.Endpoint.PRODUCTION = finx_streamer.Endpoint(sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
