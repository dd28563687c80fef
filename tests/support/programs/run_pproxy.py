"""Run the proxy server pproxy, with its own arguments. It doesn't run with uvloop, or without an event loop."""

from __future__ import annotations

import asyncio
import sys

sys.modules["uvloop"] = None  # type: ignore[assignment]
asyncio.set_event_loop(asyncio.new_event_loop())

from pproxy.server import main  # noqa: E402

main()
