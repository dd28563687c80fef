"""Import the server where the websockets package is missing."""

import sys

sys.modules["websockets"] = None  # type: ignore[assignment]

import finx_streamer.server  # noqa: E402, F401
