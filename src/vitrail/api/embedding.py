"""Embed from Python: features of images, written to a file, probed, searched and drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.api.arguments import checked
from vitrail.api.inference import Inputs
from vitrail.api.options import (
    path_or_none,
    read_settings,
    require_at_least,
    settings_alone,
    shown,
)
from vitrail.api.results import Result, Table
from vitrail.choices import Device, Precision
from vitrail.config.commands import EmbedConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option, tell_count, write_option
from vitrail.files import files_of, refuse_output, write_whole
from vitrail.migrate.given import Given, Settings

if TYPE_CHECKING:
    from vitrail.embedding.embed import Embedded, EmbedOptions
    from vitrail.embedding.probe import Score
    from vitrail.embedding.search import Neighbour


@dataclass(frozen=True)
class Embedding(Result):
    """What came of embedding images."""

    checkpoint: str
    output: Path | None
    """File of features; None where none was written."""
    images: int
    """Rows, those of images that could not be read among them."""
    num_features: int
    """Numbers of a row."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read; their rows are NaN."""
    knn: Score | None
    """How often the nearest images have the right class; None where it was not asked for."""
    probe: Score | None
    """How well a linear layer tells the classes apart; None where it was not asked for."""
    neighbours: tuple[Neighbour, ...]
    """The images nearest to the one that was searched for."""
    pages: tuple[Path, ...]
    """Pages that were written."""
    notes: tuple[str, ...]
    """What is said of the pages."""

    def tables(self) -> Sequence[Table]:
        """Return the nearest images."""
        if not self.neighbours:
            return []
        rows = [
            (str(number), f"{one.cosine:.3f}", one.class_name, one.split, one.name)
            for number, one in enumerate(self.neighbours, 1)
        ]
        return [Table("nearest images", ("", "cosine", "class", "split", "image"), tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say what was embedded, and how well its classes are told apart."""
        where = "" if self.output is None else f"{self.output}: "
        lines = [f"{where}{tell_count(self.images, 'image')}, {self.num_features:,} features each"]
        if self.bad_files:
            unread = tell_count(len(self.bad_files), "image")
            lines.append(f"{unread} could not be read, with NaN in its row")
        if self.knn is not None:
            lines.append(f"k-NN: {self.knn}")
        if self.probe is not None:
            lines.append(f"linear probe: {self.probe}")
        lines += self.notes
        return [*lines, *(f"page: {page}" for page in self.pages)]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return the nearest images, or without a search the numbers as one row."""
        if self.neighbours:
            return [dict(vars(one)) for one in self.neighbours]
        row: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "images": self.images,
            "unreadable": len(self.bad_files),
        }
        for name, score in (("knn", self.knn), ("probe", self.probe)):
            if score is not None:
                row[f"{name}_{score.metric}"] = score.value
        return [row]


@checked
def embed(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path] | None = None,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    level: int = -1,
    pool: Literal["head", "cls", "mean", "max"] = "head",
    split: Literal["all", "train", "val"] = "all",
    batch_size: int = 32,
    device: Device = "auto",
    precision: Precision = "float32",
    knn: bool = False,
    probe: bool = False,
    search: str | Path | None = None,
    topk: int = 10,
    report: str | Path | None = None,
    map: str | Path | None = None,
    csv_as_is: bool = False,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Embedding:
    """Compute the features of images, once for all calls: written, probed, searched and drawn.

    `vitrail.embed("best.safetensors", settings={"data.root": FOLDER}, output="birds.npy",
    knn=True)` does what `vitrail embed best.safetensors data.root=FOLDER --output birds.npy --knn`
    does. Without images and settings, of the images that the weights were trained with. What was
    stopped goes on when it is called again. The features are kept in the user's cache, where the
    next call without an output finds them.

    Args:
        checkpoint: The weight file, of any project.
        images: An image, a folder, a glob, a list of paths in a file, or several of these; None
            takes a data set.
        settings: Settings of the sections weights, data and preprocess.
        output: File to write, .npy with an index and a description beside it, or .parquet; None
            writes none.
        level: Level of the model's `feature_levels`; a negative one counts from the end.
        pool: How the tokens of an image become one vector: as the head reads them, the class token,
            or their mean or maximum.
        split: Split of the data set.
        batch_size: Images that are computed together.
        device: auto takes the accelerator, where there is one.
        precision: Precision of the computation.
        knn: Ask the nearest images for the classes.
        probe: Ask a linear layer for the classes.
        search: Image whose nearest ones are found.
        topk: How many of them.
        report: Page with these images.
        map: Page with all images in two dimensions, near where their features are alike.
        csv_as_is: Put no apostrophe before texts in CSV that a spreadsheet would compute.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the output cannot be written.
        ConfigError: A setting or an option is wrong, or the file is an exported one.
        DataError: There are no images, or no classes that are needed.
    """
    inputs, layers = _read_inputs(images, read_settings(embed, settings, sections))
    require_at_least(1, batch_size=batch_size, topk=topk)
    checkpoint, output = Path(checkpoint), path_or_none(output)
    views = _Views(path_or_none(search), topk, path_or_none(report), path_or_none(map))
    views.check(checkpoint, output)

    from vitrail.embedding.embed import EmbedOptions

    options = EmbedOptions(
        level=level,
        pooling=pool,
        split=split,
        batch_size=batch_size,
        device=device,
        precision=precision,
        knn=knn,
        probe=probe,
        search=views.search,
    )
    with shown(display, progress) as display:
        return _embed_and_view(
            checkpoint, inputs, layers, options, views, output, not csv_as_is, display
        )


@dataclass(frozen=True)
class _Views:
    """How the features are looked at: by a search, and on pages."""

    search: Path | None
    """Image whose nearest ones are found."""
    topk: int
    """How many of them."""
    report: Path | None
    """Page with these images."""
    map: Path | None
    """Page with all images in two dimensions."""

    def check(self, checkpoint: Path, output: Path | None) -> None:
        """Refuse a page of a search without an image, and pages that would replace what is read or written.

        Raises:
            ConfigError: There is such a page.
        """
        if self.report is not None and self.search is None:
            where = write_option("report", self.report)
            raise ConfigError(
                f"{where}: shows the images that {name_option('search')} finds; give an image to "
                "search for"
            )
        read = files_of(checkpoint)
        if self.search is not None:
            read = [*read, self.search]
        written = [] if output is None else [output, *map(output.with_suffix, (".csv", ".json"))]
        for option, file in (("report", self.report), ("map", self.map)):
            if file is None:
                continue
            refuse_output(option, file, read)
            place = os.path.realpath(file)
            if place in map(os.path.realpath, written):
                raise ConfigError(
                    f"{write_option(option, file)}: is written by another option too; choose "
                    "another file"
                )
            written.append(file)


def _read_inputs(
    images: str | Path | Iterable[str | Path] | None, given: Given
) -> tuple[Inputs | None, list[Layer]]:
    """Return the images, None for those of a data set, and the settings; a wrong one is told before all else."""
    if images is None:
        layer = settings_alone(given)
        if layer.values.get("data"):
            resolve(EmbedConfig, [layer])
        return None, [layer]
    inputs = Inputs.read(images, given, "embed")
    layers, _ = inputs.read_layers()
    return inputs, layers


def _embed_and_view(
    checkpoint: Path,
    inputs: Inputs | None,
    layers: Sequence[Layer],
    options: EmbedOptions,
    views: _Views,
    output: Path | None,
    guard_csv: bool,
    display: Display,
) -> Embedding:
    """Compute the features, and search and draw where that is wanted; only the main process has a result."""
    from vitrail.embedding.embed import embed as run

    paths = None
    if inputs is not None:
        paths = [os.fspath(path) for path in inputs.find(display.note)]
    embedded = run(
        checkpoint,
        layers,
        options,
        display,
        images=paths,
        output=output,
        guard_csv=guard_csv,
    )
    if embedded is None:
        return Embedding(str(checkpoint), output, 0, 0, (), None, None, (), (), ())
    return _finish(embedded, display, checkpoint, output, views)


def _finish(
    embedded: Embedded,
    display: Display,
    checkpoint: Path,
    output: Path | None,
    views: _Views,
) -> Embedding:
    """Search and draw, where that is wanted, and return all that was found."""
    from vitrail.embedding.map import render_map
    from vitrail.embedding.search import render_search
    from vitrail.embedding.search import search as find

    for name, reason in embedded.bad_files:
        display.warn(f"{name}: {reason}; its row is NaN")
    neighbours: tuple[Neighbour, ...] = ()
    pages, notes = [], []
    if views.search is not None:
        neighbours = find(embedded, views.search, views.topk)
        if views.report is not None:
            page = render_search(embedded, views.search, neighbours)
            write_whole(views.report, page, f"choose another file with {name_option('report')}")
            pages.append(views.report)
    if views.map is not None:
        page, note = render_map(embedded)
        write_whole(views.map, page, f"choose another file with {name_option('map')}")
        pages.append(views.map)
        notes.append(note)
    return Embedding(
        checkpoint=str(checkpoint),
        output=output,
        images=embedded.description["rows"],
        num_features=embedded.description["num_features"],
        bad_files=embedded.bad_files,
        knn=embedded.scores.get("knn"),
        probe=embedded.scores.get("probe"),
        neighbours=neighbours,
        pages=tuple(pages),
        notes=tuple(notes),
    )
