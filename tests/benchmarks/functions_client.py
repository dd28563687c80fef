"""A client of the `functions` benchmark: make one call at a time and report how many were answered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from operator import itemgetter
from typing import Any

import child
from functions import CLIENT, DAY, END, HISTORY, KEY, PAIR, REQUESTS, TIME, UNCHECKED

from finx_streamer import FunctionClient
from finx_streamer.wire.decoder import Decoder


def main(contender: str, function: str, http: int, websocket: int, seconds: float) -> None:
    """Make calls for some seconds, after a few that don't count. All clients make the same ticks."""
    call = _function_client(websocket, function) if contender == CLIENT else _requests(http, function, contender)
    for _ in range(5):
        ticks = call()
    count, cpu, start = 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        call()
        count += 1
    child.report(count=count, seconds=elapsed, cpu=time.process_time() - cpu, ticks=ticks)


def _function_client(port: int, function: str) -> Callable[[], int]:
    client = FunctionClient(KEY, f"ws://127.0.0.1:{port}/", connections=1)

    def page() -> int:
        ticks, bad = client._ticks.request(PAIR, DAY, TIME, {}).answer().read()
        return len(ticks) + len(bad)

    calls: dict[str, Callable[[], int]] = {
        "tickSnap": lambda: len([client.tick_snap(PAIR, f"{DAY}T{TIME}Z")]),
        "tickHistory": page,
        HISTORY: lambda: len(client.tick_history(PAIR, f"{DAY}T{TIME}Z", f"{DAY}T{END}Z")),
    }
    return calls[function]


def _requests(port: int, function: str, contender: str) -> Callable[[], int]:
    import requests

    post = requests.post if contender == REQUESTS else requests.Session().post
    url = f"http://127.0.0.1:{port}/call"
    decoder = Decoder(PAIR, PAIR)
    decode = decoder.decode_tick if contender != UNCHECKED else _decode_unchecked

    def ask(function: str, at: str) -> list[Any]:
        arguments = {"functionName": function, "APIKey": KEY, "pair": PAIR, "date": DAY, "time": at}
        answer: dict[str, Any] = post(url, json=arguments, timeout=10.0).json()
        raws = [answer] if function == "tickSnap" else answer.values()
        return [decode(raw, time.time_ns()) for raw in raws]

    def history() -> int:
        """No two ticks of the benchmark have the same time, so that the next page begins after the last one."""
        ticks: list[Any] = []
        at, end = TIME, f"{DAY}T{END}Z"
        while True:
            page = sorted(ask("tickHistory", at), key=itemgetter("timestamp"))
            ticks += page
            if f"{DAY}T{page[-1]['time']}" >= end:
                return sum(f"{DAY}T{tick['time']}" < end for tick in ticks)
            at = page[-1]["time"].rstrip("Z")

    return history if function == HISTORY else lambda: len(ask(function, TIME))


def _decode_unchecked(raw: dict[str, str], received_ns: int) -> dict[str, Any]:
    return {
        **raw,
        "price": float(raw["price"]),
        "timestamp": datetime.fromisoformat(f"{raw['date']}T{raw['time']}"),
        "received_ns": received_ns,
        "backfilled": True,
    }


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
