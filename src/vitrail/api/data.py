"""Data sets from Python: look through images, pack them into shards, make them smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.api.arguments import checked
from vitrail.api.options import read_settings, require_at_least, settings_alone, shown
from vitrail.api.results import Result, Table
from vitrail.config.commands import CheckConfig, DataConfig
from vitrail.config.resolve import resolve
from vitrail.config.sections import DataSection
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option, tell_count
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    from vitrail.data.audit.suspects import Suspect
    from vitrail.data.manifest import Manifest


@dataclass(frozen=True)
class DataProblem:
    """One kind of thing that is wrong or odd in a data set."""

    severity: str
    """error or warning."""
    what: str
    """What is wrong, in words that begin with the number of images."""
    advice: str
    """What to do about it."""
    count: int
    """Images, or groups of images that belong together."""
    examples: tuple[tuple[str, ...], ...]
    """Names of some images, each in a group with those that it belongs to."""


@dataclass(frozen=True)
class SuspectLabel:
    """An image whose label looks wrong."""

    path: str
    label: str
    """The class that it has."""
    likelier: str
    """The class that it looks like."""
    loss: float
    """Cross-entropy of its label, by a layer that was fitted without it."""


@dataclass(frozen=True)
class DataCheck(Result):
    """What was found in a data set, and where the page about it is."""

    where: str
    """Folder or list of the images."""
    problems: tuple[DataProblem, ...]
    statistics: dict[str, Any]
    """Numbers of images, classes and pixels."""
    page: Path
    """The page to look at."""
    replaced: bool
    """Whether an earlier page was replaced."""
    multi_label: bool
    """Whether an image may have several classes."""
    is_picture: bool
    """Whether the images have three channels of 8 bits."""
    suspects: tuple[SuspectLabel, ...] | None = None
    """Images whose label looks wrong, the most suspect first; None where none were searched for."""
    judged: int = 0
    """Images whose labels were judged; 0 where suspects were not searched for."""

    @property
    def has_errors(self) -> bool:
        """Whether something is wrong, and not only odd."""
        return any(problem.severity == "error" for problem in self.problems)

    def tables(self) -> Sequence[Table]:
        """Return the problems as a table."""
        numbers = self.statistics
        title = (
            f"{self.where}: {numbers['images']:,} images of {numbers['classes']:,} classes, "
            f"{numbers['training']:,} to train on, {numbers['validation']:,} to validate with"
        )
        rows = [(problem.severity, problem.what, problem.advice) for problem in self.problems]
        if not rows:
            rows = [("", "nothing is wrong as far as it can be seen", "")]
        return [Table(title, ("", "found", "to do"), tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say how many labels look wrong, and where the page is."""
        lines = []
        if self.suspects is not None:
            agreed = 100 * (1 - len(self.suspects) / max(self.judged, 1))
            lines += [
                f"a linear layer that has not seen them agrees with {agreed:.1f} % of "
                f"{self.judged:,} labels",
                f"{len(self.suspects):,} differ from what it says, to be looked at, not to be "
                f"believed: {self.page.with_name('suspects.csv')}",
            ]
        return [*lines, f"page: {self.page}{' (replaced)' if self.replaced else ''}"]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a problem."""
        return [dict(vars(problem)) for problem in self.problems]


@dataclass(frozen=True)
class PackedData(Result):
    """Shards that were written, and what is in them."""

    folder: Path
    images: int
    classes: int
    shards: int
    bytes: int
    replaced: bool
    """Whether earlier shards were replaced."""
    multi_label: bool
    """Whether an image may have several classes."""

    def lines(self) -> Sequence[str]:
        """Say what was packed."""
        return [
            f"{self.folder}: {self.images:,} images of {self.classes:,} classes in {self.shards:,} "
            f"shards, {self.bytes / 1e9:,.3f} GB{' (replaced)' if self.replaced else ''}"
        ]


@dataclass(frozen=True)
class ResizedData(Result):
    """A folder of smaller images, and what became of each."""

    folder: Path
    resized: int
    copied: dict[str, int]
    """Images that were copied byte for byte, by the reason."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    bad_files_were: str
    """What was done with those: left out or copied."""
    bytes_before: int
    bytes_after: int

    def tables(self) -> Sequence[Table]:
        """Return how many images were resized and copied."""
        copied = [(f"copied: {why}", f"{count:,}") for why, count in self.copied.items()]
        return [Table("", ("", "images"), (("resized", f"{self.resized:,}"), *copied))]

    def lines(self) -> Sequence[str]:
        """Say how much smaller the data became, and which images could not be read."""
        size = f"{self.folder}: {self.bytes_before / 1e9:,.3f} GB became {self.bytes_after / 1e9:,.3f} GB"
        if not self.bad_files:
            return [size]
        unread = tell_count(len(self.bad_files), "unreadable image was", "unreadable images were")
        head = f"{unread} {self.bad_files_were}:"
        return [size, head, *(f"  {name}: {reason}" for name, reason in self.bad_files)]


@checked
def check_data(
    settings: Settings | None = None,
    *,
    output: str | Path = "data-check",
    imagenet_devkit: str | Path | None = None,
    suspects: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> DataCheck:
    """Look at every image of a data set, and say what is wrong with them.

    `vitrail.check_data({"data.root": "/data/pets"})` does what `vitrail check-data
    data.root=/data/pets` does.

    Args:
        settings: Settings of the sections data and preprocess, such as {"data.root": FOLDER}.
        output: Folder for the page, and the same as JSON.
        imagenet_devkit: Archive by which ImageNet's validation images are brought into class
            folders first.
        suspects: Weight file by whose features labels are found that look wrong; the page shows
            them, suspects.csv has all.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        ConfigError: A setting is wrong, or the data is a named set, which needs no check.
        DataError: There are no images.
        CheckpointError: The output folder cannot be written.
    """
    given = settings_alone(read_settings(check_data, settings, sections))
    config = resolve(CheckConfig, [given]).config

    from vitrail.data.audit.check_data import check_data as run
    from vitrail.data.audit.check_data import count_readable
    from vitrail.data.imagenet_val import prepare_imagenet_val

    with shown(display, progress) as display:
        if imagenet_devkit is not None:
            if config.data.root is None or config.data.val_split is None:
                where = name_option("imagenet_devkit")
                raise ConfigError(f"{where} needs data.root, the folder with val/")
            val = Path(config.data.root).expanduser() / config.data.val_split
            done = prepare_imagenet_val(val, Path(imagenet_devkit))
            display.note(
                f"{done.moved:,} images moved into class folders, {done.there:,} were there"
            )
            if done.absent:
                display.warn(f"{done.absent:,} of ImageNet's validation images are not there")
        suspect, usual = None, None
        if suspects is not None:
            from vitrail.embedding.suspects import find_suspects, open_judge

            weights = Path(suspects)
            opened = open_judge(weights, config.data, display)
            usual = opened.record.preprocess
            suspect = partial(find_suspects, opened, weights, config.data, display=display)
        checked = run(config, Path(output), display, suspect, usual)
        for note in checked.manifest.notes:
            display.note(note)
    manifest, findings = checked.manifest, checked.findings
    problems = []
    for problem in findings.problems:
        examples = tuple(tuple(map(manifest.name, group)) for group in problem.images)
        problems.append(
            DataProblem(problem.severity, problem.what, problem.advice, problem.count, examples)
        )
    return DataCheck(
        where=config.data.list or str(manifest.root),
        problems=tuple(problems),
        statistics=findings.statistics,
        page=checked.folder / "check.html",
        replaced=checked.replaced,
        multi_label=manifest.label_sets is not None,
        is_picture=manifest.pixels.is_picture,
        suspects=_name_suspects(manifest, checked.suspects),
        judged=0 if suspects is None else count_readable(manifest),
    )


def _name_suspects(
    manifest: Manifest, suspects: Sequence[Suspect] | None
) -> tuple[SuspectLabel, ...] | None:
    if suspects is None:
        return None
    rows = []
    for one in suspects:
        label, likelier = manifest.label_name(one.index), manifest.classes[one.likelier]
        rows.append(SuspectLabel(manifest.name(one.index), label, likelier, one.loss))
    return tuple(rows)


@checked
def pack(
    settings: Settings | None = None,
    *,
    output: str | Path,
    shard_mb: int = 512,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> PackedData:
    """Pack a folder of images into tar shards, for disks that are slow with many small files.

    `vitrail.pack({"data.root": FOLDER}, output="shards")` does what `vitrail pack data.root=FOLDER
    --output shards` does.

    Args:
        settings: Settings of the section data, such as {"data.root": FOLDER}.
        output: Folder for the shards and their index.
        shard_mb: Megabytes that a shard has at most, in millions of bytes.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        ConfigError: A setting is wrong, or the data is a named set.
        DataError: There are no images.
        CheckpointError: The output folder cannot be written.
    """
    section = _read_data_section(pack, settings, sections)
    require_at_least(1, shard_mb=shard_mb)

    from vitrail.data.pack import pack as run

    with shown(display, progress) as display:
        done = run(section, Path(output), shard_mb * 1_000_000, display)
        for note in done.manifest.notes:
            display.note(note)
    return PackedData(
        folder=done.folder,
        images=len(done.manifest),
        classes=len(done.manifest.classes),
        shards=len(done.shards),
        bytes=sum(shard.bytes for shard in done.shards),
        replaced=done.replaced,
        multi_label=done.manifest.label_sets is not None,
    )


@checked
def resize_data(
    settings: Settings | None = None,
    *,
    output: str | Path,
    short_side: int,
    quality: int = 95,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> ResizedData:
    """Write a folder of images anew with fewer pixels, to be read and decoded in less time.

    `vitrail.resize_data({"data.root": FOLDER}, output="small", short_side=256)` does what
    `vitrail resize-data data.root=FOLDER --output small --short-side 256` does. What was stopped
    goes on when it is called again.

    Args:
        settings: Settings of the section data, such as {"data.root": FOLDER}.
        output: Folder to write, of the same structure.
        short_side: Pixels of the shorter side; smaller images are copied.
        quality: Quality of JPEG and lossy WebP, to 100.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        ConfigError: A setting is wrong, or the data is a named set.
        DataError: There are no images.
        CheckpointError: The output folder cannot be written.
    """
    section = _read_data_section(resize_data, settings, sections)
    require_at_least(1, short_side=short_side)
    if not 1 <= quality <= 100:
        where = name_option("quality")
        raise ConfigError(f"{where} is {quality}; it must be from 1 to 100")

    from vitrail.data.resize import resize_data as run

    with shown(display, progress) as display:
        done = run(section, Path(output), short_side, quality, display)
    return ResizedData(
        folder=done.folder,
        resized=done.resized,
        copied=dict(done.copied.most_common()),
        bad_files=tuple((name, reason) for _, name, reason in done.bad),
        bad_files_were="left out" if section.bad_files == "quarantine" else "copied",
        bytes_before=done.before,
        bytes_after=done.after,
    )


def _read_data_section(
    verb: Callable[..., Any], settings: Settings | None, sections: Mapping[str, Any]
) -> DataSection:
    """Return the settings of the section data, as a function is given them."""
    given = settings_alone(read_settings(verb, settings, sections))
    return resolve(DataConfig, [given]).config.data
