"""Ticks through NATS JetStream: publish them, read them back. Needs the extra `jetstream`."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("nats") is None or importlib.util.find_spec("nkeys") is None:
    raise ImportError('finx_streamer.jetstream needs nats-py and nkeys: pip install "finx-streamer[jetstream]"')

from .publisher import JetStreamPublisher as JetStreamPublisher
from .publisher_stats import PublisherStats as PublisherStats
from .settings import Nats as Nats

__all__ = ["JetStreamPublisher", "Nats", "PublisherStats"]
