"""Evaluate a model over all processes: each image is answered and counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator

from vitrail.choices import Precision
from vitrail.data.loader import Batch, ImageLoader
from vitrail.devices import autocast
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
    look: Callable[[Batch, torch.Tensor], None] | None = None,
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
        look: Shown each batch of this process and its logits.

    Raises:
        DataError: No image could be read.
    """
    num_classes = model.config.num_classes if isinstance(model, VisionModel) else model.num_classes
    device = accelerator.device
    collector = task.collect(num_classes, device, keep_answers=keep_answers)
    answering = _Answering(model, preprocess, device, inputs)
    with answering.without_training(), torch.no_grad(), autocast(device, precision):
        bad = _answer_all(answering, batches, collector, accelerator, advance, look)
    metrics, answers = collector.finish(accelerator)
    if metrics.n == 0:
        raise DataError(
            f"none of the {len(bad)} images could be read; the first is {bad[0][0]} ({bad[0][1]})"
        )
    return Measured(metrics, bad, answers)


@dataclass(frozen=True)
class _Answering:
    """A model, or the logits that it gave elsewhere, asked batch by batch."""

    model: VisionModel | Network | LogitFiles
    preprocess: Preprocess
    device: torch.device
    inputs: InputCheck | None

    @cached_property
    def no_image(self) -> torch.Tensor:
        return torch.zeros(1, self.preprocess.channels, *self.preprocess.size, device=self.device)

    def answer(self, batch: Batch) -> torch.Tensor:
        """Return the (b, k) logits of the readable images."""
        if isinstance(self.model, LogitFiles):
            return self.model.read(batch.indices).to(self.device)
        n = len(batch.labels)
        images = batch.images.to(self.device, non_blocking=True)
        images = normalise(images, self.preprocess.mean, self.preprocess.std)
        if self.inputs is not None:
            self.inputs.add(images)
        # a model that is shared out needs all processes in each pass, also those without an image
        return self.model(images if n else self.no_image)[:n]

    def answer_nothing(self) -> None:
        """Take part in a pass for which this process has no batch left."""
        if not isinstance(self.model, LogitFiles):
            self.model(self.no_image)

    @contextmanager
    def without_training(self) -> Iterator[None]:
        """Put a model into inference mode, and back."""
        if not isinstance(self.model, VisionModel):
            yield
            return
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


def _answer_all(
    answering: _Answering,
    batches: ImageLoader | Sequence[Batch],
    collector: Collector,
    accelerator: Accelerator,
    advance: Callable[[], None],
    look: Callable[[Batch, torch.Tensor], None] | None,
) -> list[tuple[str, str]]:
    """Give each batch of this process and its logits to the collector; return the unreadable images of all."""
    bad: list[tuple[str, str]] = []
    most = max(gather_texts(accelerator, [len(batches)]))
    for batch in batches:
        bad += batch.bad
        logits = answering.answer(batch)
        collector.add(batch, logits)
        if look is not None:
            look(batch, logits)
        advance()
    # other processes may still have batches
    for _ in range(most - len(batches)):
        answering.answer_nothing()
        advance()
    return sorted(gather_texts(accelerator, bad))
