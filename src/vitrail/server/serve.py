"""Serve a model over HTTP: opened, warmed up, and then answering until the process is told to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from vitrail.devices import Precision
from vitrail.images.transforms import Preprocess
from vitrail.inference.engines import Artifact, require_classes
from vitrail.server.app import build_app
from vitrail.server.connections import format_url, listen, run
from vitrail.server.decoders import Decoders
from vitrail.server.served import Served
from vitrail.server.settings import KEY_VARIABLE, Serving

USUAL_TOPK = 5
"""Classes of each answer of a single-label model, unless told otherwise."""

log = logging.getLogger(__name__)


def serve(
    artifact: Artifact,
    preprocess: Preprocess,
    serving: Serving,
    *,
    device: torch.device,
    precision: Precision | None = None,
    on_ready: Callable[[str, str], None],
) -> None:
    """Answer HTTP requests with a model until SIGTERM or Ctrl-C, and finish those that are begun.

    Args:
        artifact: The model to run.
        preprocess: How the model is to see images.
        serving: Where to listen, whom to answer, and within what limits.
        device: Device that the model is wanted on.
        precision: Precision to compute in; None is the file's own.
        on_ready: Told the server's address and what runs the model, as soon as it answers.

    Raises:
        ConfigError: The port cannot be had, the engine cannot compute so, or the model tells no classes apart.
        CheckpointError: The file is damaged.
        MissingExtra: The engine is not installed.
    """
    require_classes(artifact.record, artifact.path)
    preprocess.check_batch(serving.max_batch)
    # decoders are forked before there are threads, and memory that they have no use for
    with closing(Decoders(preprocess, serving.limits)) as decoders, listen(serving) as listening:
        # an engine keeps its number of threads, and some of its memory, by the thread that runs it
        thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        try:
            served = _start_model(artifact, preprocess, serving, thread, device, precision)
            _warm_up(served, serving.max_batch)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        url = format_url(listening)
        if serving.is_open:
            log.warning("anyone who reaches %s may ask; a key is set by %s", url, KEY_VARIABLE)
        app = build_app(served, serving, decoders)
        run(app, serving, listening, lambda: on_ready(url, served.network.about))


def _start_model(
    artifact: Artifact,
    preprocess: Preprocess,
    serving: Serving,
    thread: ThreadPoolExecutor,
    device: torch.device,
    precision: Precision | None,
) -> Served:
    network = thread.submit(artifact.start, device, precision).result()
    classes = list(artifact.record.classes or map(str, range(network.num_classes)))
    usual = USUAL_TOPK if network.record.thresholds is None else len(classes)
    topk = serving.topk or usual
    if serving.topk is not None and serving.topk > len(classes):
        log.warning("--topk is %d but the model has %d classes; all are given", serving.topk, len(classes))
    return Served(network, preprocess, classes, min(topk, len(classes)), thread)


def _warm_up(served: Served, max_batch: int) -> None:
    """Let the engine compile for the smallest and the largest batch, so that no client waits for that."""
    preprocess = served.preprocess
    blank = torch.zeros(preprocess.channels, *preprocess.size, dtype=preprocess.pixels.dtype)
    for size in {1, max_batch}:
        served.thread.submit(served.classify, [blank] * size).result()
