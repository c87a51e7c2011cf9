"""The floor of a fine-tuning: what the features of given weights reach without training, by k-NN and a linear probe.

The probe's layer becomes the head that training begins with, so that training begins where the
probe ends (Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from vitrail.config.sections import DataSection
from vitrail.data.opening import Data, list_files_read
from vitrail.data.sources import Source
from vitrail.display import Display
from vitrail.embedding.extract import Extractor
from vitrail.embedding.probe import Score, fit_head, knn_accuracy, score_answers
from vitrail.embedding.store import cached_features
from vitrail.errors import ConfigError
from vitrail.evaluation.multi_label_metrics import compute_multi_label_metrics
from vitrail.images.preprocess import Preprocess
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import Record, provenance, save_model
from vitrail.weights.published.resolve import ORIGIN

ORIGINS = (ORIGIN, "converted_from")
"""Entries of a provenance that say where weights come from, which stays true of a head for other images."""
MOST_EMBEDDED = 50_000
"""Training images that the floor is measured with, at most; of more, evenly spaced ones."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What the features of given weights reach on the validation images, without any training of the network."""

    neighbours: Score
    """Answers by the nearest training images."""
    probe: Score
    """Answers of one linear layer on the features."""
    own: Score | None
    """Answers of the weights' own head, where they are better than the probe's."""
    seconds: float
    """Time that features and both took."""

    @property
    def metric(self) -> str:
        """Which number both are: top1 or map."""
        return self.probe.metric

    @property
    def start(self) -> Score:
        """What the head reaches that training begins with: the better of both."""
        return self.own or self.probe

    @property
    def head(self) -> str:
        """Which head training begins with, in words."""
        return "a linear probe" if self.own is None else "their own layer"

    def lines(self) -> list[str]:
        """Say what was reached, and by what."""
        lines = [f"without training, in {self.seconds:.0f} s: k-NN {self.neighbours}"]
        if self.own is None:
            return [*lines, f"linear probe {self.probe}: training begins with it"]
        return [
            *lines,
            f"linear probe {self.probe}",
            f"own head {self.own}: training begins with it",
        ]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of the images of both splits, without those that cannot be read."""

    train: NDArray[np.float32]
    train_labels: NDArray[Any]
    """(n,) numbers of classes, or for multi-label data (n, k) booleans."""
    val: NDArray[np.float32]
    val_labels: NDArray[Any]


def embed_data(
    model: VisionModel,
    preprocess: Preprocess,
    data: Data,
    accelerator: Accelerator,
    display: Display,
    section: DataSection,
) -> Features:
    """Compute the features that the head of a model reads, of the images of both splits, each once."""
    extractor = Extractor(model=model, preprocess=preprocess)
    train = _take_evenly(data.train, MOST_EMBEDDED)
    display.begin("features of all images", len(train) + len(data.val))
    columns = []
    for source in (train, data.val):
        files = list_files_read(section, source)
        found = cached_features(
            extractor,
            source,
            accelerator,
            files=files,
            workers=section.workers,
            advance=display.advance,
        )
        assert found is not None  # on the first process
        columns.append(np.asarray(found.values))
    display.end()
    readable, val_readable = (np.isfinite(column).all(axis=1) for column in columns)
    return Features(
        train=columns[0][readable],
        train_labels=read_labels(train)[readable],
        val=columns[1][val_readable],
        val_labels=read_labels(data.val)[val_readable],
    )


def read_labels(source: Source) -> NDArray[Any]:
    """Return the class (n,) of each image, or in multi-label data (n, k) which classes it has."""
    if source.label_sets is None:
        return np.asarray(source.labels, np.int64)
    return source.label_sets[source.labels]


def measure_floor(
    features: Features, model: VisionModel, begun: float, *, is_head_trained: bool
) -> Floor:
    """Measure what features reach without training, and give the model the better head: its own, or the probe's.

    Args:
        features: Features of both splits.
        model: The network that they are of.
        begun: When the computation of the features began, by `time.perf_counter`.
        is_head_trained: Whether every row of the model's head comes from the given weights.

    Raises:
        DataError: The images are all of one class, or none can be read.
    """
    neighbours = knn_accuracy(
        features.train, features.train_labels, features.val, features.val_labels
    )
    head = read_head(model)
    weight, bias = fit_head(features.train, features.train_labels, head.out_features)
    if head.bias is None:
        bias = np.zeros_like(bias)
    how = f"ridge regression on {len(features.train):,}"
    probe = score_answers(features.val @ weight.T + bias, features.val_labels, how)
    with torch.no_grad():
        answers = head(torch.from_numpy(features.val).to(head.weight.device)).cpu().numpy()
        own = score_answers(answers, features.val_labels, "the head of the given weights")
        # weights that were trained on these classes may know better than a linear layer that was
        # fitted anew
        is_better = is_head_trained and own.value > probe.value
        if not is_better:
            head.weight.copy_(torch.from_numpy(weight))  # as float32
            if head.bias is not None:
                head.bias.copy_(torch.from_numpy(bias))
    seconds = time.perf_counter() - begun
    return Floor(
        neighbours=neighbours, probe=probe, own=own if is_better else None, seconds=seconds
    )


def read_head(model: VisionModel) -> nn.Linear:
    """Return the layer that gives a model's logits, which a linear probe can take the place of.

    Raises:
        ConfigError: It is no single linear layer.
    """
    head = model.get_classifier()
    if len(model.head_names) != 1 or not isinstance(head, nn.Linear):
        raise ConfigError(
            "the model's logits are not those of one linear layer, so no probe can be its head; "
            "train it by a recipe, with model.weights=pretrained"
        )
    return head


def save_probe(
    path: Path, model: VisionModel, record: Record, floor: Floor, features: Features
) -> None:
    """Write a model with the head that training begins with: a linear probe, or the weights' own.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    thresholds = None
    if features.val_labels.ndim == 2:
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = read_head(model)(torch.from_numpy(features.val).to(device)).cpu().numpy()
        thresholds = compute_multi_label_metrics(logits, features.val_labels).thresholds
    path.parent.mkdir(parents=True, exist_ok=True)
    # what the old file says of its images is not true of those that the probe is made with
    kept = {key: record.provenance[key] for key in ORIGINS if key in record.provenance}
    described = replace(
        record,
        metrics={f"val_{floor.metric}": floor.start.value},
        thresholds=thresholds,
        provenance={**kept, **provenance(), "head": floor.head},
    )
    save_model(path, {name: tensor.cpu() for name, tensor in model.state_dict().items()}, described)


def _take_evenly(source: Source, most: int) -> Source:
    """Return a source of at most so many images, at even distances."""
    if len(source) <= most:
        return source
    chosen = np.zeros(len(source), np.bool_)
    chosen[np.linspace(0, len(source) - 1, most).astype(np.int64)] = True
    return source.take(chosen, source.description, source.notes)
