"""The functions for options and futures: the list of contracts, and what they were worth. Source: D."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, Literal

from ..config import checks as check
from ..config.checks import Moment, moment
from ..config.symbols import instrument
from ..errors import PAYLOAD_LIMIT, DecodeError
from ..values import Greeks
from ..wire.contract_ticker import NAME, read_greeks
from .bad_ticks import BadTicks

_STEP = timedelta(minutes=5)
_FUNCTION = "getFiveMinMatrix"


def matrix_arguments(underlying: str, at: Moment | Literal["latest"]) -> dict[str, str]:
    """Check the arguments of a matrix. Raises `ConfigurationError`."""
    check.text("underlying", underlying, "a str such as 'BTC'")
    when = at if isinstance(at, str) and at == "latest" else _five_minute_point(moment("at", at))
    return {"baseInstrument": underlying, "fiveMinuteDateTime": when}


def _five_minute_point(time: datetime) -> str:
    return (time - (time - datetime.min.replace(tzinfo=time.tzinfo)) % _STEP).strftime("%Y-%m-%dT%H:%M")


def read_names(answer: list[Any]) -> list[str]:
    """Return the names in the list of contracts. Raises `DecodeError`."""
    for name in answer:
        if not isinstance(name, str):
            raise _error("listDeribitContracts", "a contract's name is not a string", name)
    return answer


def read_matrix(underlying: str, answer: list[Any], received_ns: int, bad: BadTicks) -> list[Greeks]:
    """Return the tickers of a matrix. Those that can't be read are left out, or raise, as the user wishes.

    Raises:
        DecodeError: The answer has anything but tickers of the underlying.
    """
    found = []
    for raw in answer:
        if not isinstance(raw, dict) or not _is_of(underlying, raw.get(NAME)):
            # It may be the answer to another call.
            raise _error(_FUNCTION, f"expected tickers of {underlying}", raw)
        try:
            if not isinstance(name := raw.get(NAME), str):
                raise ValueError("it names no contract")
            found.append(read_greeks(raw, instrument(name), received_ns))
        except ValueError as fault:
            bad.report(_error(_FUNCTION, f"not a contract's ticker: {fault}", raw))
    return found


def _is_of(underlying: str, name: object) -> bool:
    """Whether a name begins with the underlying, or with coins such as BTC_USDC. True if there is no name."""
    return not isinstance(name, str) or underlying in name.partition("-")[0].split("_")


def _error(function: str, reason: str, content: object) -> DecodeError:
    return DecodeError(reason, json.dumps(content)[:PAYLOAD_LIMIT], symbol=function)
