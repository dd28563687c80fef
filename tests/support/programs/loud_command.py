"""Run `finx-streamer` with logging at DEBUG and the trace of websocket-client."""

from __future__ import annotations

import logging

import websocket

from finx_streamer.__main__ import main

logging.basicConfig(level=logging.DEBUG)
websocket.enableTrace(True)
main()
