"""A server that six loopback exchanges feed. Prints its port, and answers each line of its input with its counters.

The argument is a JSON object: `pairs` and `base_urls`.
"""

from __future__ import annotations

import json
import sys
import time

from finx_streamer.server import ExchangeMarket, LocalServer


def main() -> None:
    given = json.loads(sys.argv[1])
    market = ExchangeMarket(given["pairs"], base_urls=given["base_urls"])
    with LocalServer(market, store_limit=100_000) as server:
        print(server.port, flush=True)
        for _ in sys.stdin:
            exchanges = server.stats.exchanges
            print(
                json.dumps(
                    {
                        "cpu": time.process_time(),
                        "at": time.monotonic(),
                        "connected": sum(each.connected for each in exchanges.values()),
                        "trades": sum(each.trades for each in exchanges.values()),
                        "gaps": sum(each.gaps for each in exchanges.values()),
                        "lost": sum(each.lost for each in exchanges.values()),
                        "reconnects": sum(each.reconnects for each in exchanges.values()),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
