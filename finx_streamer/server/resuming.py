"""Where a client that can resume starts in the log. See "Resuming a stream" in docs/protocol.md."""

from __future__ import annotations

import attrs

from .tick_log import LogPage, Position

#: The headers of a handshake. Source: O.
RESUME, LOG = "FinX-Resume", "FinX-Log"
#: A client that can resume, and has no position yet.
ASK = "ask"
#: The answer if the log doesn't hold the ticks after a position.
NO = "no"
#: The most ticks to read from the store at once.
PAGE = 1_024


@attrs.frozen
class Start:
    """Where a stream starts in the log.

    `newest` is the log's newest tick at that moment: what comes up to it was missed. `page` is the first of that.
    `refused`: the client wanted to start elsewhere.
    """

    newest: Position
    page: LogPage
    refused: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What the answer to the handshake says."""
        return {LOG: str(self.newest), **({RESUME: NO} if self.refused else {})}

    @property
    def members(self) -> dict[str, str]:
        """What the answer to a subscription says."""
        return {"log": str(self.newest), **({"resume": NO} if self.refused else {})}
