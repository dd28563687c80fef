"""The head of an HTTP response, of the server or of a proxy."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import math
import re
import time

import attrs


@attrs.frozen
class HttpResponse:
    """A status line, its headers, and what has arrived of the body."""

    status: int
    phrase: str
    headers: http.client.HTTPMessage
    body: bytes

    @classmethod
    def parse(cls, response: bytes) -> HttpResponse | None:
        """Parse a response. None if there is no status line. Headers that can't be parsed count as none."""
        head, _, body = response.partition(b"\r\n\r\n")
        status_line, _, headers = head.partition(b"\r\n")
        # Split at spaces only, like `websocket-client`: otherwise it might follow a redirect that we take for a 101.
        words = status_line.decode("latin-1").split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/") or len(words[1]) != 3 or not words[1].isdecimal():
            return None
        try:
            parsed = http.client.parse_headers(io.BytesIO(headers + b"\r\n\r\n"))
        except http.client.HTTPException:
            parsed = http.client.HTTPMessage()
        return cls(int(words[1]), words[2] if len(words) > 2 else "", parsed, body)

    @property
    def unrequested(self) -> str | None:
        """The header with an extension or a subprotocol, which we never offer: RFC 6455, 4.1 makes us refuse it."""
        for name in ("Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"):
            if any(value.strip() for value in self.headers.get_all(name, ())):
                return name
        return None

    @property
    def retry_after(self) -> float | None:
        """Retry-After in seconds, from either form. None if it's absent, unreadable, or irrelevant for the status."""
        if self.status != 429 and self.status < 500:
            return None
        value = (self.headers.get("Retry-After") or "").strip()
        if value.isdecimal() and len(value) < 12:
            return float(value)
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            moment = email.utils.parsedate_to_datetime(value).timestamp()
            with contextlib.suppress(ValueError, TypeError):
                # By the sender's clock, if it's there: ours may differ.
                return max(0.0, moment - email.utils.parsedate_to_datetime(self.headers.get("Date", "")).timestamp())
            return max(0.0, math.ceil(moment - time.time()))
        return None


def without_cookies(response: bytes) -> bytes:
    """Remove Set-Cookie headers: `websocket-client` would keep them for all connections of the process."""
    head, end, body = response.partition(b"\r\n\r\n")
    kept: list[bytes] = []
    dropping = False
    # The library splits lines and compares names like this.
    for line in re.split(rb"\r?\n", head):
        name = line.decode("utf-8", "replace").strip().partition(":")[0].lower()
        dropping = name == "set-cookie" or (dropping and line[:1] in (b" ", b"\t"))
        if not dropping:
            kept.append(line)
    return b"\r\n".join(kept) + end + body
