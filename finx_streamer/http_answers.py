"""The head of an answer to an HTTP request, whoever gave it: the server, or a proxy on the way to it."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import math
import time

import attrs


@attrs.frozen
class HttpAnswer:
    """A status line, its headers, and what came behind them so far."""

    status: int
    phrase: str
    headers: http.client.HTTPMessage
    body: bytes

    @classmethod
    def parse(cls, response: bytes) -> HttpAnswer | None:
        """None where the first line is no status line. Headers that can't be read count as none."""
        head, _, body = response.partition(b"\r\n\r\n")
        status_line, _, headers = head.partition(b"\r\n")
        words = status_line.decode("latin-1").split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/") or len(words[1]) != 3 or not words[1].isdecimal():
            return None
        try:
            parsed = http.client.parse_headers(io.BytesIO(headers + b"\r\n\r\n"))
        except http.client.HTTPException:
            parsed = http.client.HTTPMessage()
        return cls(int(words[1]), words[2] if len(words) > 2 else "", parsed, body)

    @property
    def retry_after(self) -> float | None:
        """Retry-After in seconds, from either of its forms; None where it is absent, neither, or beside the point."""
        if self.status != 429 and self.status < 500:
            return None
        value = (self.headers.get("Retry-After") or "").strip()
        if value.isdecimal() and len(value) < 12:
            return float(value)
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            moment = email.utils.parsedate_to_datetime(value).timestamp()
            with contextlib.suppress(ValueError, TypeError):
                # The sender's own clock, where it tells it: ours may differ.
                return max(0.0, moment - email.utils.parsedate_to_datetime(self.headers.get("Date", "")).timestamp())
            return max(0.0, math.ceil(moment - time.time()))
        return None
