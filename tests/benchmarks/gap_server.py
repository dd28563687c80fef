"""The server of `gap`: a local server that drops its stream once, and has ticks of the time in between."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

from gap import KEY

sys.path.insert(0, str(Path(__file__).parents[2]))

from finx_streamer.server import LocalServer
from tests.support.market import BEGIN, PAIR, Market

_STEP = timedelta(milliseconds=20)
_FIRST = BEGIN.replace(hour=1)


def _tick(number: int) -> dict[str, str]:
    moment = _FIRST + number * _STEP
    return {
        "pair": PAIR,
        "date": moment.date().isoformat(),
        "time": moment.time().isoformat("milliseconds") + "Z",
        "exchange": "BINANCE" if number % 2 else "COINBASE",
        "price": f"{19_200 + number % 999}.50",
    }


def main(count: int) -> None:
    """Print the URL. Serve a tick, an outage, and a tick after the gap. End when standard input is closed."""
    with LocalServer(Market(), keys={KEY}, resumable=False, store_limit=2 * count) as server:
        server.import_ticks(_tick(number) for number in range(1, count + 1))
        print(server.url, flush=True)
        server.wait_connected(1)
        server.emit(_tick(0))
        server.wait_until(lambda stats: stats.ticks_sent == 1)
        server.refuse_next(None, 503)
        server.drop_connections(PAIR)
        server.wait_until(lambda stats: PAIR not in stats.symbols)
        server.refuse_next(0, 503)
        server.wait_until(lambda stats: PAIR in stats.symbols)
        # Later than any tick of the gap by more than ticks may be late.
        server.emit(_tick(count + 100))
        sys.stdin.read()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
