"""Tickers of contracts, and messages of the second wire."""

from __future__ import annotations

import json
from typing import Any

from websockets.sync.client import ClientConnection

from finx_streamer.server import Tape
from finx_streamer.server.contracts import KEYS
from tests.support.raw_client import TIMEOUT

CALL, PUT, FUTURE, PERPETUAL = "BTC-26AUG22-20000-C", "BTC-26AUG22-20000-P", "BTC-26AUG22", "BTC-PERPETUAL"
#: The stream of both options.
MONTH = "BTCQ2202208"
#: 2022-08-06T04:31:40.724Z, in milliseconds.
BEGIN = 1_659_760_300_724


def ticker(name: str = CALL, timestamp: int = BEGIN, **values: str) -> dict[str, str]:
    """The ticker of a contract with all 31 keys."""
    known = {"instrument_name": name, "redis_key": name, "timestamp": str(timestamp), "state": "open"}
    return dict.fromkeys(KEYS, "") | known | {"mark_price": "0.1553"} | values


def played_by_hand(*names: str) -> Tape:
    """A market of contracts that plays only what the test emits."""
    return Tape([ticker(name) for name in names], wait_for=10**6)


def request(name: str, key: str = "demo", **arguments: Any) -> str:
    """A message that asks for a function."""
    return json.dumps({"APIKey": key, "functionName": name, **arguments})


def ask(peer: ClientConnection, name: str, **arguments: Any) -> Any:
    """Send a message and return the next one."""
    peer.send(request(name, **arguments))
    return json.loads(peer.recv(timeout=TIMEOUT))
