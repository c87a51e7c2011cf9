"""Evaluate a model over all processes: each image is answered and counted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from vitrail.data.loader import Batch, ImageLoader
from vitrail.devices import Precision, autocast
from vitrail.distributed.processes import gather_texts
from vitrail.errors import DataError
from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.task import Collector, Metrics, Task
from vitrail.images.input_check import InputCheck
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.inference.bin_files import LogitFiles
from vitrail.inference.network import Network
from vitrail.models.family import VisionModel


@dataclass(frozen=True)
class Measured:
    """The outcome of an evaluation."""

    metrics: Metrics
    bad_files: list[tuple[str, str]]
    """Name and reason of each image that could not be read, sorted."""
    answers: Gathered | None
    """The answers to all images, on the first process, where they are kept."""


def measure(
    model: VisionModel | Network | LogitFiles,
    batches: ImageLoader | Sequence[Batch],
    task: Task,
    preprocess: Preprocess,
    accelerator: Accelerator,
    *,
    precision: Precision = "float32",
    advance: Callable[[], None],
    keep_answers: bool = False,
    inputs: InputCheck | None = None,
) -> Measured:
    """Evaluate a model. Collective: every process calls it with its own batches.

    Args:
        model: The model, or the logits that it gave elsewhere.
        batches: This process's share of the images.
        task: The kind of labels, which decides what is measured.
        preprocess: Mean and standard deviation that the model expects, and the size of its images.
        accelerator: The processes.
        precision: Precision of matrix products; an exported file has its own.
        advance: Called after each batch, equally often in all processes.
        keep_answers: Return the answers too, for a report or a comparison.
        inputs: Takes the normalised images of this process, to see whether they look as usual.

    Raises:
        DataError: No image could be read.
    """
    num_classes = model.config.num_classes if isinstance(model, VisionModel) else model.num_classes
    collector = task.collect(num_classes, accelerator.device, keep_answers=keep_answers)
    bad = _answer_all(model, batches, collector, preprocess, accelerator, precision, advance, inputs)
    metrics, answers = collector.finish(accelerator)
    if metrics.n == 0:
        raise DataError(f"none of the {len(bad)} images could be read; the first is {bad[0][0]} ({bad[0][1]})")
    return Measured(metrics, bad, answers)


def _answer_all(
    model: VisionModel | Network | LogitFiles,
    batches: ImageLoader | Sequence[Batch],
    collector: Collector,
    preprocess: Preprocess,
    accelerator: Accelerator,
    precision: Precision,
    advance: Callable[[], None],
    inputs: InputCheck | None,
) -> list[tuple[str, str]]:
    """Give each batch of this process and its logits to the collector; return the unreadable images of all."""
    device = accelerator.device
    no_image = torch.zeros(1, preprocess.channels, *preprocess.size, device=device)

    def answer(batch: Batch) -> torch.Tensor:
        if isinstance(model, LogitFiles):
            return model.read(batch.indices).to(device)
        images = normalise(batch.images.to(device, non_blocking=True), preprocess.mean, preprocess.std)
        if inputs is not None:
            inputs.add(images)
        # a model that is shared out needs all processes in each pass, also those without an image
        return model(images if len(batch.labels) else no_image)

    bad: list[tuple[str, str]] = []
    most = max(gather_texts(accelerator, [len(batches)]))
    was_training = isinstance(model, VisionModel) and model.training
    if isinstance(model, VisionModel):
        model.eval()
    with torch.no_grad(), autocast(device, precision):
        for batch in batches:
            bad += batch.bad
            collector.add(batch, answer(batch)[: len(batch.labels)])
            advance()
        for _ in range(most - len(batches)):  # while other processes still have batches
            if not isinstance(model, LogitFiles):
                model(no_image)
            advance()
    if isinstance(model, VisionModel):
        model.train(was_training)
    return sorted(gather_texts(accelerator, bad))
