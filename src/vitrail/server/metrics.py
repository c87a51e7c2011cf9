"""Metrics for Prometheus: counts and times of requests, images and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper edges of the buckets of times."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper edges of the buckets of batch sizes."""


class Metrics:
    """Counts and times since the start of the server.

    Args:
        count_held: Returns the number of images that are received, waiting or computed now.
        count_explanations: Returns the number of explanations that wait or are computed now.
    """

    def __init__(
        self, count_held: Callable[[], float], count_explanations: Callable[[], float]
    ) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ours: dict[str, Any] = {"namespace": "vitrail", "registry": self._registry}
        timed: dict[str, Any] = {**ours, "buckets": SECONDS}
        self.requests = Counter("requests", "Answered requests.", ["path", "status"], **ours)
        self.request_seconds = Histogram(
            "request_seconds", "From a request's header to its answer.", ["path"], **timed
        )
        self.images = Counter("images", "Images by what became of them.", ["outcome"], **ours)
        self.decode_seconds = Histogram("decode_seconds", "To decode one image.", **timed)
        self.batch_seconds = Histogram("batch_seconds", "To run one batch in the engine.", **timed)
        self.batch_images = Histogram("batch_images", "Images of a batch.", **ours, buckets=SIZES)
        self.explanation_seconds = Histogram(
            "explanation_seconds",
            "To compute one explanation, with its waits for the engine.",
            **timed,
        )
        explanations = Gauge(
            "held_explanations", "Explanations that wait or are computed now.", **ours
        )
        explanations.set_function(count_explanations)
        held = Gauge("held_images", "Images that are received, waiting or computed now.", **ours)
        held.set_function(count_held)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
