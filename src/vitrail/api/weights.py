"""Published weights from Python: list, fetch and add them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.api.arguments import checked
from vitrail.api.options import shown
from vitrail.api.results import ResultList, Table
from vitrail.display import Display
from vitrail.errors import ConfigError, write_option

if TYPE_CHECKING:
    from vitrail.weights.published.catalogue import Published


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody published, and the file of them on this machine."""

    name: str
    """Name that commands and functions take, such as tnt_s_patch16_224:mindcv."""
    model: str
    origin: str
    """Whose file it is."""
    published_top1: float | None
    """Top-1 in percent as it was published; it was not measured here."""
    published_top5: float | None
    published_by: str
    """Who published the accuracy."""
    image_size: int
    num_classes: int
    address: str
    """Where the file lies."""
    file: str
    """Name of the file in the cache."""
    path: Path | None
    """The file on this machine; None where it is not here."""
    bytes: int | None
    """Size of the file; None where it is not here."""


@dataclass(frozen=True)
class WeightsList(ResultList[PublishedWeights]):
    """Published weights, those of a model in the order in which they are preferred."""

    folder: Path
    """Folder in which files that were downloaded by hand are found."""

    def tables(self) -> Sequence[Table]:
        """Return one row for each."""
        rows = []
        for one in self.items:
            size = "" if one.bytes is None else f"{one.bytes / 1e6:,.1f}"
            accuracy = (
                _percent(one.published_top1),
                _percent(one.published_top5),
                one.published_by,
            )
            images = f"{one.image_size} px, {one.num_classes} classes"
            rows.append(
                (
                    one.name,
                    one.model,
                    one.origin,
                    *accuracy,
                    images,
                    "here" if one.path else "",
                    size,
                )
            )
        columns = ("name", "model", "origin", "published top-1", "top-5", "by", "of", "here", "MB")
        return [Table("", columns, tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say what to type next."""
        return [
            "`vitrail weights fetch NAME` brings one here; files from elsewhere: `vitrail weights "
            f"add FILE`, or put them into {self.folder}"
        ]


@dataclass(frozen=True)
class FetchedWeights(ResultList[PublishedWeights]):
    """Published weights that are on this machine now."""

    recognised_by: tuple[str, ...] = ()
    """What each file was recognised by, where files were added."""

    def lines(self) -> Sequence[str]:
        """Say where each is."""
        lines = []
        for number, one in enumerate(self.items):
            by = f", known by {self.recognised_by[number]}" if self.recognised_by else ""
            lines.append(f"{one.name}: {one.path} ({(one.bytes or 0) / 1e6:,.1f} MB){by}")
        return lines


@checked
def list_weights(pattern: str = "*") -> WeightsList:
    """List the published weights that are known by name, and which of them are on this machine.

    `vitrail.list_weights("t2t*")` does what `vitrail weights 't2t*'` does.

    Args:
        pattern: A shell pattern that names match, with or without the origin, or an origin.

    Raises:
        ConfigError: No name matches.
    """
    from vitrail.weights.published.cache import folder
    from vitrail.weights.published.catalogue import list_rows

    rows = list_rows(pattern)
    if not rows:
        raise ConfigError(f"no published weights match {pattern!r}; `vitrail weights` lists all")
    return WeightsList(tuple(map(_describe, rows)), folder())


@checked
def fetch_weights(
    names: str | Iterable[str], *, display: Display | None = None, progress: bool = True
) -> FetchedWeights:
    """Bring published weights onto this machine, such as before it goes offline; those that are here and whole stay.

    A file that is here is compared with the hash that was recorded of it; one that is damaged is
    fetched again, with a warning. `vitrail.fetch_weights("twins_svt_small")` does what
    `vitrail weights fetch twins_svt_small` does.

    Args:
        names: One name or several, or hf-hub:OWNER/NAME.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.

    Raises:
        CheckpointError: There are none of that name, or they cannot be had; the message says how to
            get them.
        ConfigError: No name is given.
    """
    from vitrail.weights.published.resolve import locate_weights

    wanted = (names,) if isinstance(names, str) else tuple(names)
    if not wanted:
        raise ConfigError(
            "fetch needs names, such as twins_svt_small; `vitrail weights` lists them"
        )
    fetched = []
    with shown(display, progress) as display:
        for name in wanted:
            if not name:
                raise ConfigError("a name is empty; `vitrail weights` lists those that there are")
            located = locate_weights(name, display=display, is_renewed=True)
            if located.row is not None:
                fetched.append(_describe(located.row))
            elif located.origin:
                fetched.append(_describe_other(name, located.path))
            else:
                raise ConfigError(
                    f"{name}: is no name of published weights; `vitrail weights` lists them"
                )
    return FetchedWeights(tuple(fetched))


@checked
def add_weights(
    files: str | Path | Iterable[str | Path],
    *,
    name: str | None = None,
    display: Display | None = None,
    progress: bool = True,
) -> FetchedWeights:
    """Copy files that were downloaded elsewhere to where published weights are looked for, known by what is in them.

    `vitrail.add_weights("downloads/model.pth")` does what `vitrail weights add downloads/model.pth`
    does.

    Args:
        files: One file or several, whatever they are called.
        name: Which published weights a file holds, where its content leaves that open.
        display: Where notes are shown; None is the terminal or notebook.
        progress: Whether notes are shown in a terminal or notebook.

    Raises:
        CheckpointError: A file holds no published weights, or those of several names.
        ConfigError: No file is given, or one name for several.
    """
    from vitrail.weights.published.add import add_file

    given = (files,) if isinstance(files, str | Path) else tuple(files)
    if not given:
        raise ConfigError("add needs a file, such as one that was downloaded with a browser")
    if name is not None and len(given) > 1:
        raise ConfigError(
            f"{write_option('name', name)}: is of one file, and {len(given)} are given; add them "
            "one by one"
        )
    with shown(display, progress) as display:
        added = [add_file(Path(file), display, name) for file in given]
    return FetchedWeights(
        tuple(_describe(one.row) for one in added), tuple(one.by for one in added)
    )


def _describe(row: Published) -> PublishedWeights:
    """Return what is known of published weights, and where they are on this machine."""
    from vitrail.weights.published.cache import find_here

    path = find_here(row)
    return PublishedWeights(
        name=row.name,
        model=row.model,
        origin=row.origin,
        published_top1=row.top1,
        published_top5=row.top5,
        published_by=row.measured_by or row.origin,
        image_size=row.image_size,
        num_classes=row.num_classes,
        address=row.address,
        file=row.file,
        path=path,
        bytes=None if path is None else path.stat().st_size,
    )


def _describe_other(name: str, path: Path) -> PublishedWeights:
    """Return what is known of a repository of the Hugging Face Hub that is not in the catalogue."""
    size = sum(
        file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin")
    )
    return PublishedWeights(
        name=name,
        model="",
        origin=name,
        published_top1=None,
        published_top5=None,
        published_by="",
        image_size=0,
        num_classes=0,
        address=name,
        file="",
        path=path,
        bytes=size,
    )


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f}"
