"""Serve a model over HTTP: opened, warmed up, and then answering until the process is told to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from vitrail.choices import Precision
from vitrail.inference.predictor import Predictor, UnstartedPredictor
from vitrail.server.app import Served, build_app
from vitrail.server.connections import format_url, listen, run
from vitrail.server.decoders import Decoders
from vitrail.server.settings import KEY_VARIABLE, Serving

DEFAULT_TOPK = 5
"""Classes of each answer of a single-label model, where the settings say nothing."""

log = logging.getLogger(__name__)


def serve(
    unstarted: UnstartedPredictor,
    serving: Serving,
    *,
    device: torch.device,
    precision: Precision | None = None,
    on_ready: Callable[[str, str], None],
) -> None:
    """Answer HTTP requests with a model until SIGTERM or Ctrl-C, and finish those that are begun.

    Args:
        unstarted: The model, from `read_predictor`; it is started in a thread of its own.
        serving: Where to listen, whom to answer, and within what limits.
        device: Device that the model is wanted on.
        precision: Precision to compute in; None is the file's own.
        on_ready: Told the server's address and what runs the model, as soon as it answers.

    Raises:
        ConfigError: The port cannot be had, or the engine cannot compute so.
        CheckpointError: The file is damaged.
        MissingExtra: The engine is not installed.
    """
    preprocess = unstarted.preprocess
    preprocess.check_batch(serving.max_batch)
    # decoders are forked before there are threads, and memory that they have no use for
    with closing(Decoders(preprocess, serving.limits)) as decoders, listen(serving) as listening:
        # an engine keeps its number of threads, and some of its memory, by the thread that runs it
        thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        try:
            predictor = thread.submit(unstarted.start, device, precision).result()
            thread.submit(_warm_up, predictor, serving.max_batch).result()
        except BaseException:
            thread.shutdown(wait=False)
            raise
        url = format_url(listening)
        if serving.is_open:
            log.warning("anyone who reaches %s may ask; a key is set by %s", url, KEY_VARIABLE)
        app = build_app(Served(predictor, thread), serving, decoders)
        run(app, serving, listening, lambda: on_ready(url, predictor.network.about))


def _warm_up(predictor: Predictor, max_batch: int) -> None:
    """Let the engine compile for the smallest and the largest batch, so that no client waits for that."""
    preprocess = predictor.preprocess
    blank = torch.zeros(preprocess.channels, *preprocess.size, dtype=preprocess.pixels.dtype)
    for size in {1, max_batch}:
        predictor.classify([blank] * size)
