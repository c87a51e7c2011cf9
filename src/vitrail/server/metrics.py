"""What Prometheus may ask of the server."""

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
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """Counts since the start.

    Args:
        held: Returns the images that are held now.
    """

    def __init__(self, held: Callable[[], float]) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        here: dict[str, Any] = {"namespace": "vitrail", "registry": self._registry}
        timed: dict[str, Any] = {**here, "buckets": SECONDS}
        self.requests = Counter("requests", "Answered requests.", ["path", "status"], **here)
        self.request_seconds = Histogram("request_seconds", "From a request's header to its answer.", ["path"], **timed)
        self.images = Counter("images", "Images by what became of them.", ["outcome"], **here)
        self.decode_seconds = Histogram("decode_seconds", "Of one image.", **timed)
        self.batch_seconds = Histogram("batch_seconds", "Of one batch in the engine.", **timed)
        self.batch_images = Histogram("batch_images", "Images of a batch.", **here, buckets=SIZES)
        Gauge("held_images", "Received, waiting or computed now.", **here).set_function(held)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self._registry)
