"""k-NN accuracy of a training without labels, on labelled images beside its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.config.commands import TrainConfig
from vitrail.config.sections import DataSection
from vitrail.display import Display
from vitrail.distributed.processes import share
from vitrail.embedding.extract import Extractor
from vitrail.embedding.images import Part, take_splits
from vitrail.embedding.probe import Score, knn_accuracy
from vitrail.embedding.store import cached_features
from vitrail.errors import DataError, VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.models.family import VisionModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Labelled images whose nearest neighbours say how well features tell classes apart."""

    where: str
    """Their folder or list."""
    parts: Sequence[Part]
    workers: int | None

    def measure(
        self,
        model: VisionModel,
        preprocess: Preprocess,
        accelerator: Accelerator,
        advance: Callable[[], None] = lambda: None,
    ) -> Score:
        """Return the k-NN accuracy of a model's features, as `vitrail embed --knn` has it. Collective.

        Args:
            model: The network, on the device that computes.
            preprocess: How it reads images.
            accelerator: The processes.
            advance: Called now and then.
        """
        extractor = Extractor(model=model, preprocess=preprocess)
        arrays: list[NDArray[Any]] = []
        for part in self.parts:
            features = cached_features(
                extractor,
                part.source,
                accelerator,
                files=part.files,
                workers=self.workers,
                advance=lambda images: advance(),
            )
            if features is not None:
                arrays += [features.values, part.labels]
        score = share(accelerator, knn_accuracy(*arrays) if arrays else None)
        assert score is not None
        return score


def open_neighbours(
    config: TrainConfig, accelerator: Accelerator, display: Display
) -> Neighbours | None:
    """Find the labelled images that the settings name, if they do. Collective.

    Raises:
        DataError: They are not there, or have one class alone.
    """
    where = config.distill.labels
    if where is None:
        return None
    path = Path(where).expanduser()
    key = "list" if path.is_file() else "root"
    data = config.data
    section = replace(
        DataSection(channels=data.channels, bits=data.bits, workers=data.workers),
        **{key: str(path)},
    )
    try:
        with accelerator.local_main_process_first():
            parts = take_splits(section, "all", display)
    except VitrailError as error:
        raise DataError(f"distill.labels {where}: {error}") from error
    labels = np.concatenate([part.labels for part in parts])
    if (labels == labels[:1]).all():
        raise DataError(
            f"distill.labels {where}: all {len(labels):,} images have the same class, so nothing can "
            "be told apart; give images of two classes"
        )
    return Neighbours(where=where, parts=tuple(parts), workers=data.workers)
