"""`expose`: serves the metrics over HTTP."""

from __future__ import annotations

import socket
import sys
import threading
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from ..config import checks as check
from ..config.endpoint import join_host_port
from ..config.redaction import redact
from .collector import StatsCollector

#: Seconds after which a client that sends or reads nothing is disconnected.
_CLIENT_TIMEOUT = 10.0
#: How many clients are served at the same time. Others are disconnected at once.
_MOST_CLIENTS = 64
#: Seconds that `close` may wait.
_POLL_INTERVAL = 0.1


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = _MOST_CLIENTS
    # On Windows, this would let another program take over the port.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.Semaphore(_MOST_CLIENTS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: the client left, or was too slow."""


class MetricsPage:
    """A page with the metrics of this process, as `expose` returned it::

        from finx_streamer import metrics

        with metrics.expose(0) as page:
            print(page.url)

    The end of a `with` block closes it.

    Attributes:
        port (int): The port that it listens on.
        url (str): Its address.
    """

    def __init__(self, port: int, host: str) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StatsCollector())
        try:
            self._server = _HttpServer(host, port)
        except OSError as error:
            where, why = f"{redact(host)}:{port}", error.strerror or str(error)
            advice = "pass another port, or 0 for a free one"
            raise OSError(error.errno, f"metrics: can't listen on {where}: {why}; {advice}") from None
        self._server.set_app(make_wsgi_app(registry))
        self.port: int = self._server.server_port
        self.url = f"http://{join_host_port(host, self.port)}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_INTERVAL,), name="finx-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving the page. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MetricsPage {self.url}>"


def expose(port: int, host: str = "127.0.0.1") -> MetricsPage:
    """Serve the metrics of this process over HTTP, in the formats of Prometheus and OpenMetrics::

        from finx_streamer import metrics

        page = metrics.expose(9464)
        print(page.url)
        page.close()

    The page has the running listeners, local servers and recordings of this process. See `docs/metrics.md`.

    Args:
        port (int): The port to listen on. 0 picks a free one.
        host (str): The address to listen on. Anyone who can reach it can read the page. It shows no API key.

    Returns:
        The page, with its `port` and `url`. Close it, or use it in a `with` block.

    Raises:
        ConfigurationError: An argument is wrong.
        OSError: The port is taken, or this machine doesn't have the address.
    """
    if check.integer("port", port, 0) > 65_535:
        raise check.refusal("port", port, "a port, from 0 to 65535")
    if not isinstance(host, str) or not host:
        raise check.refusal("host", host, "an address, such as '127.0.0.1'")
    return MetricsPage(port, host)
