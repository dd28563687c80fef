"""Run `finx-streamer` without a module: command_without.py MODULE [ARGUMENT ...]."""

from __future__ import annotations

import sys

sys.modules[sys.argv.pop(1)] = None  # type: ignore[assignment]

from finx_streamer.__main__ import main  # noqa: E402

main()
