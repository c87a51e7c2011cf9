"""Single-label and multi-label tasks: how answers are counted, compared and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.loader import Batch
from vitrail.data.sources import Source
from vitrail.distributed.processes import share, sum_over_processes
from vitrail.evaluation.answers import Answers, Gathered
from vitrail.evaluation.multi_label_metrics import MultiLabelMetrics, compute_multi_label_metrics
from vitrail.evaluation.multi_label_report import label_sets_of, multi_label_report_files
from vitrail.evaluation.report import Subject, Training
from vitrail.evaluation.single_label_metrics import (
    Counter,
    SingleLabelMetrics,
    compute_single_label_metrics,
)
from vitrail.evaluation.single_label_report import single_label_report_files
from vitrail.inference.decision import probabilities

Metrics = SingleLabelMetrics | MultiLabelMetrics


class Collector(Protocol):
    """The answers of an evaluation, taken batch by batch on this process and measured over all."""

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Take the answers to one batch: (b, k) logits of its readable images."""
        ...

    def finish(self, accelerator: Accelerator) -> tuple[Metrics, Gathered | None]:
        """Return the metrics, equal on all processes, and on the first one the answers, if they are kept.

        Collective: every process calls it once.
        """
        ...


class Task(Protocol):
    """The kind of labels that images have, and so what is measured and reported."""

    def collect(self, num_classes: int, device: torch.device, *, keep_answers: bool) -> Collector:
        """Begin an evaluation."""
        ...

    def same_answers(self, ours: Gathered, theirs: Gathered, metrics: Any) -> NDArray[np.bool_]:
        """Return (n,), whether two models answered an image alike; `metrics` are of theirs."""
        ...

    def report_files(
        self,
        subject: Subject,
        answers: Gathered,
        metrics: Any,
        bad_files: Sequence[tuple[str, str]],
        training: Training | None = None,
    ) -> dict[str, bytes]:
        """Return the files of a report by name."""
        ...


@dataclass(frozen=True)
class SingleLabel:
    """Each image has one class: accuracy, confusion and calibration."""

    source: Source
    training_counts: NDArray[np.int64] | None = None
    """Training images of each class, where they are known."""

    def collect(self, num_classes: int, device: torch.device, *, keep_answers: bool) -> Collector:
        """Begin an evaluation."""
        answers = Answers(num_classes, len(self.source), device) if keep_answers else None
        return _SingleLabelCollector(Counter(num_classes, device), answers, self.training_counts)

    def same_answers(
        self, ours: Gathered, theirs: Gathered, metrics: SingleLabelMetrics
    ) -> NDArray[np.bool_]:
        """Return (n,), whether the likeliest classes are equal."""
        return ours.choices[:, 0] == theirs.choices[:, 0]

    def report_files(
        self,
        subject: Subject,
        answers: Gathered,
        metrics: SingleLabelMetrics,
        bad_files: Sequence[tuple[str, str]],
        training: Training | None = None,
    ) -> dict[str, bytes]:
        """Return the files of a report by name."""
        return single_label_report_files(subject, answers, metrics, bad_files, training)


@dataclass(frozen=True)
class MultiLabel:
    """Each image has any number of classes: mean average precision, thresholds and F1."""

    source: Source
    thresholds: tuple[float, ...] | None = None
    """Probability from which each class is an answer; None tunes them on the images of the
    evaluation."""

    def collect(self, num_classes: int, device: torch.device, *, keep_answers: bool) -> Collector:
        """Begin an evaluation, which keeps the answers of all images, since they are ranked."""
        answers = Answers(num_classes, len(self.source), device, multi_label=True)
        return _MultiLabelCollector(self, answers, keep_answers)

    def same_answers(
        self, ours: Gathered, theirs: Gathered, metrics: MultiLabelMetrics
    ) -> NDArray[np.bool_]:
        """Return (n,), whether the same classes reach their thresholds."""
        our_classes = probabilities(ours.scores) >= metrics.thresholds
        their_classes = probabilities(theirs.scores) >= metrics.thresholds
        return (our_classes == their_classes).all(1)

    def report_files(
        self,
        subject: Subject,
        answers: Gathered,
        metrics: MultiLabelMetrics,
        bad_files: Sequence[tuple[str, str]],
        training: Training | None = None,
    ) -> dict[str, bytes]:
        """Return the files of a report by name."""
        return multi_label_report_files(subject, answers, metrics, bad_files, training)


def task_of(
    source: Source,
    *,
    training_counts: NDArray[np.int64] | None = None,
    thresholds: tuple[float, ...] | None = None,
) -> Task:
    """Return the task that the labels of images ask for.

    Args:
        source: The labelled images.
        training_counts: Training images of each class, which single-label metrics group classes by.
        thresholds: Probability from which each class is an answer, in multi-label tasks; None tunes
            them.
    """
    if source.label_sets is None:
        return SingleLabel(source, training_counts)
    return MultiLabel(source, thresholds)


@dataclass(frozen=True)
class _SingleLabelCollector:
    counter: Counter
    answers: Answers | None
    training_counts: NDArray[np.int64] | None

    def add(self, batch: Batch, logits: Tensor) -> None:
        self.counter.add(logits, batch.labels.to(logits.device, non_blocking=True))
        if self.answers is not None:
            self.answers.add(batch.indices, logits)

    def finish(self, accelerator: Accelerator) -> tuple[SingleLabelMetrics, Gathered | None]:
        counter = self.counter
        counter.totals, counter.loss, counter.confusion = sum_over_processes(
            accelerator, counter.totals, counter.loss, counter.confusion
        )
        gathered = None if self.answers is None else self.answers.gather(accelerator)
        return compute_single_label_metrics(counter, self.training_counts), gathered


@dataclass(frozen=True)
class _MultiLabelCollector:
    task: MultiLabel
    answers: Answers
    keep_answers: bool

    def add(self, batch: Batch, logits: Tensor) -> None:
        self.answers.add(batch.indices, logits)

    def finish(self, accelerator: Accelerator) -> tuple[MultiLabelMetrics, Gathered | None]:
        gathered = self.answers.gather(accelerator)
        metrics = None
        # sums of floats depend on their order, so one process makes all of them
        if gathered is not None:
            truth = label_sets_of(self.task.source, gathered)
            metrics = compute_multi_label_metrics(gathered.scores, truth, self.task.thresholds)
        metrics = share(accelerator, metrics)
        return metrics, gathered if self.keep_answers else None
