"""Where a stream is in the log of a server that can resume it. See "Resuming a stream" in docs/protocol.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

#: The headers of a handshake (source: O). The answer to a request for a stream has them as members.
RESUME, LOG = "FinX-Resume", "FinX-Log"
#: What a stream without a position says.
ASK = "ask"
_POSITION = re.compile(r"([0-9A-Za-z_-]{1,64}):([0-9]{1,18})", re.ASCII)


@attrs.frozen
class LogPosition:
    """A place in a log.

    Attributes:
        log: The log's name.
        number: The ID of the newest tick up to there.
        refused: The server can't resume where it was asked to: ticks before this place are missing.
    """

    log: str
    number: int
    refused: bool = False

    def __str__(self) -> str:
        return f"{self.log}:{self.number}"

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> LogPosition | None:
        """Return where the stream starts. None if the server keeps no log. The names are in lower case."""
        return cls._read(headers.get(LOG.lower()), headers.get(RESUME.lower()))

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> LogPosition | None:
        """Return where a stream starts that was asked for by message."""
        return cls._read(answer.get("log"), answer.get("resume"))

    @classmethod
    def _read(cls, text: object, resume: object) -> LogPosition | None:
        found = _POSITION.fullmatch(text) if isinstance(text, str) else None
        return None if found is None else cls(found[1], int(found[2]), resume is not None)
