"""A client of the `functions` benchmark: make one call at a time and report how many were answered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import child
from functions import CLIENT, DAY, KEY, PAIR, SESSION, TIME

from finx_streamer import FunctionClient
from finx_streamer.wire.decoder import Decoder


def main(contender: str, function: str, http: int, websocket: int, seconds: float) -> None:
    """Make calls for some seconds, after a few calls that don't count. All clients decode the same ticks."""
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
    if function == "tickSnap":
        return lambda: len([client.tick_snap(PAIR, f"{DAY}T{TIME}Z")])

    def history() -> int:
        ticks, bad = client._ticks.request(PAIR, DAY, TIME, {}).answer().read()
        return len(ticks) + len(bad)

    return history


def _requests(port: int, function: str, contender: str) -> Callable[[], int]:
    import requests

    post = requests.Session().post if contender == SESSION else requests.post
    url = f"http://127.0.0.1:{port}/call"
    arguments = {"functionName": function, "APIKey": KEY, "pair": PAIR, "date": DAY, "time": TIME}
    decoder = Decoder(PAIR, PAIR)

    def call() -> int:
        answer: dict[str, Any] = post(url, json=arguments, timeout=10.0).json()
        raws = [answer] if function == "tickSnap" else list(answer.values())
        return len([decoder.decode_tick(raw, time.time_ns()) for raw in raws])

    return call


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
