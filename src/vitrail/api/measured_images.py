"""The images that a model is measured on without their labels: files that are named, or a data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.api.evaluation import EVALUATE_SECTIONS
from vitrail.api.inference import Inputs
from vitrail.api.options import OF_WEIGHTS, with_recipe
from vitrail.config.commands import PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.display import Display
from vitrail.migrate.given import Given
from vitrail.migrate.rules import Say

if TYPE_CHECKING:
    from vitrail.data.sources import Source
    from vitrail.weights.checkpoint import Record


@dataclass(frozen=True)
class MeasuredImages:
    """What is asked for, read and checked before any file of it is opened."""

    files: Inputs | None
    """Files that are named; None is a data set."""
    layers: Sequence[Layer]
    """Layers of settings, those of the data set among them."""
    of_weights: Sequence[Layer]
    """Those by which the weight file is read."""
    remarks: Sequence[tuple[Say, str]]
    """What the user should know of the settings."""

    @classmethod
    def read(cls, images: str | Path | Iterable[str | Path] | None, given: Given) -> MeasuredImages:
        """Read what is asked for.

        Args:
            images: An image, a folder, a glob, a list of paths in a file, or several of these; None
                is a data set, the one of the settings or else that a model was validated with.
            given: Settings of the sections weights, data, preprocess and evaluate.

        Raises:
            ConfigError: A setting is wrong.
        """
        if images is not None:
            files = Inputs.read(images, given, "explain")
            layers, remarks = files.read_layers()
            return cls(files, layers, layers, remarks)
        layers, remarks = with_recipe(None, given, EVALUATE_SECTIONS)
        of_weights = []
        for layer in layers:
            values = {name: one for name, one in layer.values.items() if name in OF_WEIGHTS}
            of_weights.append(Layer(layer.origin, values))
        resolve(PredictConfig, of_weights)
        return cls(None, layers, of_weights, remarks)

    def open(self, record: Record, path: Path, display: Display) -> Source:
        """Return the images.

        Args:
            record: Of the weight file: a data set is by default the one that it was validated with.
            path: The weight file, for messages.
            display: Told what the user should know of the images.

        Raises:
            ConfigError: A setting of the data set is wrong, or its images do not suit the model.
            DataError: There are no such images.
        """
        if self.files is not None:
            from vitrail.embedding.images import take_files

            return take_files(os.fspath(one) for one in self.files.find(display.note)).source

        from vitrail.data.opening import open_split
        from vitrail.evaluation.match import check_pixels
        from vitrail.evaluation.settings import resolve_for

        config = resolve_for(record, self.layers).config
        check_pixels(record, config.data, path)
        source, notes = open_split(config.data, config.evaluate.split)
        for note in notes:
            display.note(note)
        return source
