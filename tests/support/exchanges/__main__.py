"""Run the loopback exchanges as a program: `python -m tests.support.exchanges --rate 600`.

It prints their base URLs as one line of JSON. Each line on the standard input is a command, and is answered by one line
of JSON: `rate 20000`, `make OKX BTC:USDT 100000`, `drop OKX rst`, `set OKX silent true`, `count`. It ends at the end of
the input.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .server import LoopbackExchanges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=["BTC:USDT", "ETH:USDT"])
    parser.add_argument("--rate", type=float, default=0.0, help="trades per second in total")
    parser.add_argument("--keep", type=int, default=20_000, help="trades of each pair to keep for REST requests")
    arguments = parser.parse_args()
    with LoopbackExchanges(arguments.pairs, keep=arguments.keep) as exchanges:
        exchanges.set_rate(arguments.rate)
        print(json.dumps(exchanges.base_urls), flush=True)
        for line in sys.stdin:
            print(json.dumps(_run(exchanges, *line.split())), flush=True)


def _run(exchanges: LoopbackExchanges, command: str, *arguments: str) -> Any:
    if command == "rate":
        return exchanges.set_rate(float(arguments[0]))
    if command == "count":
        return {each.name: sum(book.total for book in each.books.values()) for each in exchanges}
    exchange = exchanges[arguments[0]]
    if command == "make":
        return len(exchanges.make(exchange.name, arguments[1], int(arguments[2])))
    if command == "drop":
        return exchanges.call(exchange.drop, *arguments[1:])
    if command == "set":
        return setattr(exchange, arguments[1], json.loads(arguments[2]))
    return f"unknown command {command}"


if __name__ == "__main__":
    main()
