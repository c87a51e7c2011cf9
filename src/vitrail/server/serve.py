"""A model behind HTTP: opened, warmed up, and then answering until it is told to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from vitrail.devices import Precision
from vitrail.inference.predictor import UnstartedPredictor
from vitrail.server.app import Served, build_app
from vitrail.server.connections import address, listen, run
from vitrail.server.decoders import Decoders
from vitrail.server.settings import KEY_VARIABLE, Serving

log = logging.getLogger(__name__)

DEFAULT_TOPK = 5
"""Classes of each answer of a single-label model, where the settings say nothing."""


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
        serving: Where, for whom, and within what limits.
        device: Where the model is wanted.
        precision: Of what is computed; None is the file's own.
        on_ready: Told the server's address and what runs the model, as soon as it answers.

    Raises:
        ConfigError: The port cannot be had, or the engine cannot compute so.
        CheckpointError: The file is damaged.
        MissingExtra: The engine is not installed.
    """
    preprocess = unstarted.preprocess
    preprocess.check_batch(serving.max_batch)
    # before there are threads, and memory that is no decoder's business
    with closing(Decoders(preprocess, serving.limits)) as decoders, listen(serving) as listening:
        # an engine keeps its number of threads, and some of its memory, by the thread that runs it
        thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        try:
            predictor = thread.submit(unstarted.start, device, precision).result()
            blank = torch.zeros(preprocess.channels, *preprocess.size, dtype=preprocess.pixels.dtype)
            for size in {1, serving.max_batch}:
                thread.submit(predictor.classify, [blank] * size).result()
        except BaseException:
            thread.shutdown(wait=False)
            raise
        if serving.is_open:
            log.warning("anyone who reaches %s may ask; a key is set by %s", address(listening), KEY_VARIABLE)
        app = build_app(Served(predictor, thread), serving, decoders)
        run(app, serving, listening, lambda: on_ready(address(listening), predictor.network.about))
