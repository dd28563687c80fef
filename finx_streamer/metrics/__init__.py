"""Metrics for Prometheus: a page with the counters of this process. Needs the extra `[metrics]`.

    from finx_streamer import metrics

    with metrics.expose(9464) as page:
        print(page.url)

Each request for the page reads the snapshots that exist anyway, so streaming costs nothing more.
"""

from importlib import import_module

try:
    import_module("prometheus_client")
except ImportError as error:
    raise ImportError(
        'finx_streamer.metrics needs the prometheus_client package: pip install "finx-streamer[metrics]"'
    ) from error

from .page import MetricsPage, expose

__all__ = ["MetricsPage", "expose"]
