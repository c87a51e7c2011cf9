"""A model behind HTTP: opened, warmed up, and then answering until it is told to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from vitrail.devices import Precision
from vitrail.images.preprocess import Preprocess
from vitrail.inference.engines import Artifact, require_classes
from vitrail.server.app import Served, build_app
from vitrail.server.connections import address, listen, run
from vitrail.server.decoders import Decoders
from vitrail.server.settings import KEY_VARIABLE, Serving

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
        artifact: What to run.
        preprocess: How it is to see images.
        serving: Where, for whom, and within what limits.
        device: Where the model is wanted.
        precision: Of what is computed; None is the file's own.
        on_ready: Told the server's address and what runs the model, as soon as it answers.

    Raises:
        ConfigError: The port cannot be had, the engine cannot compute so, or the model tells no classes apart.
        CheckpointError: The file is damaged.
        MissingExtra: The engine is not installed.
    """
    require_classes(artifact.record, artifact.path)
    preprocess.check_batch(serving.max_batch)
    # before there are threads, and memory that is no decoder's business
    with closing(Decoders(preprocess, serving.limits)) as decoders, listen(serving) as listening:
        # an engine keeps its number of threads, and some of its memory, by the thread that runs it
        thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        try:
            network = thread.submit(artifact.start, device, precision).result()
            classes = list(artifact.record.classes or map(str, range(network.num_classes)))
            usual = 5 if network.record.thresholds is None else len(classes)
            if (serving.topk or 0) > len(classes):
                log.warning("--topk is %d but the model has %d classes; all are given", serving.topk, len(classes))
            served = Served(network, preprocess, classes, min(serving.topk or usual, len(classes)), thread)
            blank = torch.zeros(preprocess.channels, *preprocess.size, dtype=preprocess.pixels.dtype)
            for size in {1, serving.max_batch}:
                thread.submit(served.classify, [blank] * size).result()
        except BaseException:
            thread.shutdown(wait=False)
            raise
        if serving.is_open:
            log.warning("anyone who reaches %s may ask; a key is set by %s", address(listening), KEY_VARIABLE)
        app = build_app(served, serving, decoders)
        run(app, serving, listening, lambda: on_ready(address(listening), network.about))
