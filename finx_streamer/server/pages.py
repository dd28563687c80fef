"""The answers to plain HTTP requests: a page for people at `/`, and `/health` for probes."""

from __future__ import annotations

import html
import json
from http import HTTPStatus

import attrs

#: The answer to requests of other methods than GET.
METHOD_NOT_ALLOWED = (
    b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Content-Length: 48\r\n\r\n{"error":"only GET is supported by this server"}'
)
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
}
# It shows no pair, because strangers don't learn which symbols exist. The icon saves a request for /favicon.ico.
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>finx-streamer</title>
<link rel="icon" href="data:,">
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
  pre {{ overflow-x: auto; padding: .75rem 1rem; border-radius: .4rem; background: #8882 }}
</style>
<h1>finx-streamer</h1>
<p>This is a local FinX server. It streams crypto ticks over WebSocket, and answers calls such as tick
history.</p>
<p>Listen to a pair from a terminal:</p>
<pre>finx-streamer listen BTC:USDC --endpoint {url}</pre>
<p>Or connect a WebSocket client of your own:</p>
<pre>{url}streaming/[API key]/[pair]
{url}streamer/[API key]</pre>
<p><a href="health">health</a> answers probes: 200 if everything works, 503 if the store or the source has failed.</p>
</html>
"""


@attrs.frozen
class Page:
    """An HTTP response."""

    path: str
    status: HTTPStatus
    content_type: str
    body: str
    headers: dict[str, str] = attrs.field(factory=_HEADERS.copy)


def welcome_page(url: str) -> Page:
    """The page that says what this is. `url` is the base URL under which the browser found it."""
    return Page("/", HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.format(url=html.escape(url)))


def health_page(*, store_works: bool, source_works: bool) -> Page:
    """The answer to probes. It gives no reasons, because strangers can read it. They are in the log."""
    works = store_works and source_works
    body = {
        "status": "ok" if works else "failed",
        "store": "ok" if store_works else "failed",
        "source": "ok" if source_works else "failed",
    }
    status = HTTPStatus.OK if works else HTTPStatus.SERVICE_UNAVAILABLE
    return Page("/health", status, "application/json", json.dumps(body) + "\n")
