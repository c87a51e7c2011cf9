"""Depth from Python: how far the attention of a network reaches, and how alike its tokens become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.api.arguments import checked
from vitrail.api.measured_images import MeasuredImages
from vitrail.api.options import (
    path_or_none,
    read_settings,
    require_at_least,
    shown,
    tell_remarks,
)
from vitrail.api.results import Result, Table
from vitrail.choices import Device
from vitrail.display import Display
from vitrail.errors import tell_count
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    from vitrail.explanation.depth import Likeness, Reach


@dataclass(frozen=True)
class Depth(Result):
    """How far each attention of a network reaches, and how alike its tokens are after each block."""

    attention: tuple[Reach, ...]
    """Mean distance in pixels between query and key, by head, for each module that attends."""
    similarity: tuple[Likeness, ...]
    """Mean cosine of two tokens after each block; of a TNT, of sentences, and of words in theirs."""
    images: int
    """Images that the numbers are means over."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    page: Path | None
    """Page with the plots; None where none was written."""

    def tables(self) -> Sequence[Table]:
        """Return one row for each module that attends, and one for each block."""
        rows = []
        for one in self.attention:
            pixels = one.pixels
            mean = f"{sum(pixels) / len(pixels):.1f}"
            ends = (f"{min(pixels):.1f}", f"{max(pixels):.1f}")
            rows.append((one.name, one.level, mean, *ends, f"{one.even:.1f}"))
        columns = ("module", "level", "mean of heads", "nearest", "farthest", "even attention")
        reach = Table("attention distance in pixels", columns, tuple(rows))
        blocks = tuple((one.name, one.level, f"{one.cosine:.3f}") for one in self.similarity)
        return [reach, Table("similarity of tokens", ("block", "level", "cosine"), blocks)]

    def lines(self) -> Sequence[str]:
        """Say what the numbers are means over, and where the page is."""
        lines = [f"means over {tell_count(self.images, 'image')}"]
        return lines if self.page is None else [*lines, f"page: {self.page}"]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each head of each module that attends."""
        rows = []
        for one in self.attention:
            about = {key: value for key, value in asdict(one).items() if key != "pixels"}
            rows += [
                {**about, "head": head, "pixels": pixels} for head, pixels in enumerate(one.pixels)
            ]
        return rows


@checked
def measure_depth(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path] | None = None,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    limit: int = 32,
    device: Device = "auto",
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Depth:
    """Measure how far each attention of one of our models reaches, and how alike its tokens become.

    `vitrail.measure_depth("best.safetensors", "photos/", output="depth")` does what
    `vitrail explain best.safetensors photos/ --by-layer --output depth` does. Images need no labels.
    The plots are written only if `output` names a folder.

    Args:
        checkpoint: The weight file, of any project.
        images: An image, a folder, a glob, a list of paths in a file, or several of these; None
            takes a data set, by the settings, or else the one that the model was validated with.
        settings: Settings of the sections weights, data, preprocess and evaluate.
        output: Folder to write, with a page of plots and all numbers.
        limit: Most images to take, drawn evenly from all.
        device: auto takes the accelerator, where there is one.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the folder cannot be written.
        ConfigError: A setting or an option is wrong, or the model's attention is not known.
        DataError: There is no such image, or none can be read.
    """
    measured = MeasuredImages.read(images, read_settings(measure_depth, settings, sections))
    require_at_least(1, limit=limit)

    from vitrail.explanation.depth_report import measure_images, require_depth, write_report
    from vitrail.explanation.folder import refuse_folder
    from vitrail.explanation.subject import open_subject

    target, path = path_or_none(output), Path(checkpoint)
    if target is not None:
        refuse_folder(target)
    with shown(display, progress) as display:
        tell_remarks(display, measured.remarks)
        subject = open_subject(
            path, measured.of_weights, methods=(), device=device, display=display
        )
        model = require_depth(subject, path)
        source = measured.open(subject.record, path, display)
        measures = measure_images(subject, model, source, limit, display)
        page = None if target is None else write_report(target, str(path), measures)
    return Depth(measures.reaches, measures.likenesses, measures.images, measures.bad_files, page)
