"""`vitrail embed`: the features of a data set or of files, written, probed, searched and drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.choices import Device, Precision
from vitrail.config.commands import EmbedConfig, PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import DataSection, PreprocessSection
from vitrail.data.opening import Split
from vitrail.data.tables.hub import pin_revision
from vitrail.display import Display
from vitrail.distributed.processes import processes, share
from vitrail.embedding.extract import Extractor
from vitrail.embedding.files import check_output, write_features
from vitrail.embedding.images import Part, take_files, take_splits, view_query
from vitrail.embedding.probe import Score, knn_accuracy, linear_probe
from vitrail.embedding.store import Features, cached_features, describe, embed_source, keep_in_cache
from vitrail.errors import ConfigError, DataError, name_option, write_option
from vitrail.evaluation.match import check_pixels
from vitrail.evaluation.settings import inherited_data
from vitrail.files import remove
from vitrail.inference.network import read_artifact
from vitrail.kernels.prepare import prepare_kernels
from vitrail.models.family import Pooling
from vitrail.models.registry import kernels_of
from vitrail.weights.loading import override_preprocess
from vitrail.weights.opened import Opened, show_account
from vitrail.weights.request import resolve_request


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How features are made, beside the settings of weights, data and preprocessing."""

    level: int = -1
    """Level of the model; a negative one counts from the end."""
    pooling: Pooling = "head"
    """How the tokens of an image become one vector."""
    split: Split = "all"
    """Split of the data set."""
    batch_size: int = 32
    """Images that are computed together."""
    device: Device = "auto"
    precision: Precision = "float32"
    knn: bool = False
    """Whether the nearest images are asked for the classes."""
    probe: bool = False
    """Whether a linear layer is asked for the classes."""
    search: Path | None = None
    """Image that others are searched for by, which is read before they are computed."""

    @property
    def needs_labels(self) -> str:
        """The option that needs classes; empty where none does."""
        if self.knn:
            return name_option("knn")
        return name_option("probe") if self.probe else ""


@dataclass(frozen=True)
class Embedded:
    """Images and their features, on the first process."""

    parts: tuple[Part, ...]
    features: tuple[Features, ...]
    """Features of each part."""
    extractor: Extractor
    description: dict[str, Any]
    """What the features are, as plain values for JSON."""
    scores: dict[str, Score]
    """What was found of the classes, by `knn` and `probe`."""

    @property
    def bad_files(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each image that cannot be read."""
        found = []
        for part, one in zip(self.parts, self.features, strict=True):
            found += [(part.source.name(index), reason) for index, reason in one.bad.items()]
        return tuple(found)


def embed(
    path: Path,
    settings: Sequence[Layer],
    options: EmbedOptions,
    display: Display,
    *,
    images: Sequence[str] | None = None,
    output: Path | None = None,
    guard_csv: bool = True,
) -> Embedded | None:
    """Embed images, and return what came of it on the first process, None on the others.

    What a killed process has computed is kept, beside the output or else in the user's cache, and
    all of it in that cache in the end, unless the output is on another disk.

    Args:
        path: The weight file.
        settings: Layers of settings of the sections weights, data and preprocess.
        options: How features are made.
        display: Shows progress, notes and warnings.
        images: Paths of images; None takes the data set of the settings, or that of the weight
            file.
        output: File of features to write; None writes none.
        guard_csv: Put an apostrophe before texts in CSV that a spreadsheet would compute.

    Raises:
        CheckpointError: The file is damaged or of no known kind, or the output cannot be written.
        ConfigError: A setting or an option is wrong, or the file is an exported one.
        DataError: There are no images, or no labels that are needed.
    """
    opened = open_weights_for_features(path, settings, display)
    section, overrides = _resolve(opened, path, settings, images)
    if output is not None:
        check_output(output)
    if images is not None and options.needs_labels:
        raise ConfigError(
            f"{options.needs_labels} needs the classes of images, and files have none; give "
            "data.root=FOLDER, data.list or data.name instead of them"
        )
    preprocess = override_preprocess(opened.record.preprocess, overrides, display)
    if options.search is not None:
        view_query(options.search, preprocess)
    with processes("float32", options.device) as accelerator:
        parts = _take_parts(section, options, images, accelerator, display)
        _require_labels(parts, options)
        prepare_kernels(kernels_of(opened.record.model), accelerator.device.type, display.note)
        extractor = Extractor(
            model=opened.build(accelerator.device),
            preprocess=preprocess,
            level=options.level,
            pooling=options.pooling,
            precision=options.precision,
            batch_size=options.batch_size,
        )
        workers = None if section is None else section.workers
        display.begin("embed", sum(len(part.source) for part in parts))
        features = []
        for number, part in enumerate(parts):
            features.append(
                _embed_part(extractor, part, number, accelerator, output, workers, display)
            )
        display.end()
        embedded = (
            _finish(path, opened, extractor, parts, features, options)
            if None not in features
            else None
        )
        if embedded is not None and output is not None:
            write_features(
                output, parts, embedded.features, embedded.description, guard_csv=guard_csv
            )
            for number in range(len(parts)):
                # computed once, whatever is asked of them next
                keep_in_cache(_staging(output) / str(number))
            remove(_staging(output))
        return embedded


def open_weights_for_features(path: Path, settings: Sequence[Layer], display: Display) -> Opened:
    """Open a weight file whose features are wanted.

    Raises:
        CheckpointError: It is damaged, or of no known kind.
        ConfigError: It is an exported file.
    """
    artifact = read_artifact(path, None, resolve_request(settings))
    if artifact.weights is None:
        raise ConfigError(
            f"{path}: is an exported file, which gives logits alone; give the weight file that it "
            "was made from"
        )
    show_account(artifact.weights, display)
    return artifact.weights


def _resolve(
    opened: Opened, path: Path, settings: Sequence[Layer], images: Sequence[str] | None
) -> tuple[DataSection | None, PreprocessSection]:
    """Return the settings of the data, None where files are given, and of how images are read."""
    if images is not None:
        return None, resolve(PredictConfig, settings).config.preprocess
    record = opened.record
    pixels = {"channels": record.preprocess.channels, "bits": record.preprocess.bits}
    layers = [*inherited_data(record, settings), Layer("weight file", {"data": pixels}), *settings]
    config = resolve(EmbedConfig, layers).config
    check_pixels(record, config.data, path)
    return config.data, config.preprocess


def _take_parts(
    section: DataSection | None,
    options: EmbedOptions,
    images: Sequence[str] | None,
    accelerator: Accelerator,
    display: Display,
) -> tuple[Part, ...]:
    """Return the images, of a data set that one process of a machine downloads."""
    if section is None:
        return (take_files(images or ()),)
    pinned = share(accelerator, pin_revision(section) if accelerator.is_main_process else None)
    with accelerator.local_main_process_first():
        return tuple(take_splits(pinned, options.split, display))


def _require_labels(parts: Sequence[Part], options: EmbedOptions) -> None:
    """Refuse to probe images that have no classes, or one alone, before any of them is computed."""
    if not options.needs_labels:
        return
    labels = np.concatenate([part.labels for part in parts])
    if (labels == labels[:1]).all():
        raise DataError(
            f"{options.needs_labels}: all {len(labels):,} images of {parts[0].source.description} "
            "have the same class, so nothing can be told apart; give images of two classes"
        )


def _staging(output: Path) -> Path:
    """Return the folder that features grow in until they are whole."""
    return output.with_name(f".{output.name}.partial")


def _embed_part(
    extractor: Extractor,
    part: Part,
    number: int,
    accelerator: Accelerator,
    output: Path | None,
    workers: int | None,
    display: Display,
) -> Features | None:
    if output is None:
        return cached_features(
            extractor,
            part.source,
            accelerator,
            files=part.files,
            workers=workers,
            advance=display.advance,
        )
    about = describe(extractor, part.source, part.files)
    return embed_source(
        extractor,
        part.source,
        accelerator,
        _staging(output) / str(number),
        about,
        workers=workers,
        advance=display.advance,
        advice=f"free space, or choose another file with {write_option('output')}",
    )


def _finish(
    path: Path,
    opened: Opened,
    extractor: Extractor,
    parts: Sequence[Part],
    features: Sequence[Features | None],
    options: EmbedOptions,
) -> Embedded:
    """Describe the features, and probe them where that is wanted."""
    known = tuple(one for one in features if one is not None)
    level = extractor.model.feature_levels[options.level]
    described_parts = []
    for part in parts:
        about = describe(extractor, part.source, part.files)
        described_parts.append(
            {
                "split": part.split,
                "data": part.source.description,
                "rows": len(part.source),
                "images": about["images"],
                "contents": about["contents"],
            }
        )
    description = {
        "checkpoint": os.fspath(path),
        "model": opened.record.model,
        **extractor.description,
        "module": level.module,
        "classes": list(parts[0].source.classes),
        "multi_label": parts[0].source.label_sets is not None,
        "rows": sum(len(part.source) for part in parts),
        "unreadable": sum(len(one.bad) for one in known),
        "parts": described_parts,
    }
    arrays: list[NDArray[Any]] = []
    for part, one in zip(parts, known, strict=True):
        arrays += [one.values, part.labels]
    scores = {}
    if options.knn:
        scores["knn"] = knn_accuracy(*arrays)
    if options.probe:
        scores["probe"] = linear_probe(*arrays)
    return Embedded(tuple(parts), known, extractor, description, scores)
