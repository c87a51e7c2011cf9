"""Score explanations from Python: how faithful the maps of each method are, for a model and its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    write_json,
)
from vitrail.api.results import Result, Table
from vitrail.choices import Device, Engine, ExplanationMethod
from vitrail.display import Display
from vitrail.errors import ConfigError, tell_count
from vitrail.files import files_of, refuse_output
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    from vitrail.explanation.scoring import Scored


@dataclass(frozen=True)
class MeasureScore:
    """One measure of one method, over images."""

    mean: float
    std: float | None
    """Standard deviation between images; None of a single one."""
    images: int
    """Images that have the number; an even map has none."""

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({'-' if self.std is None else f'{self.std:.2f}'})"


@dataclass(frozen=True)
class MethodScores:
    """How faithful the maps of one method are."""

    method: str
    is_floor: bool
    """Whether it is a map that knows nothing of image and model."""
    measures: Mapping[str, MeasureScore]
    """By their names: saco, insertion, deletion, shuffled, occlusion, pointing and inside."""
    reasons: Mapping[str, str]
    """Why a measure is not there, by its name."""
    fails: bool
    """Whether it hardly changes where the weights are shuffled: it shows the image, not the model."""


@dataclass(frozen=True)
class ExplanationScores(Result):
    """How faithful the maps of each method are, for one model on some images."""

    checkpoint: str
    data: str
    """Description of the images."""
    images: int
    """Images that were explained."""
    found: int
    """Images that these were drawn of."""
    masked: int
    """Images that have a mask."""
    methods: tuple[MethodScores, ...]
    """One for each method, and last the maps that know nothing."""
    left_out: Mapping[str, str]
    """Why a method was left out, by its name."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    titles: Mapping[str, str]
    """Titles of the measures, by their names."""
    reading: str
    """How the numbers are to be read."""

    def tables(self) -> Sequence[Table]:
        """Return one row a method: the mean of each measure, and its standard deviation."""
        names = [name for name in self.titles if any(name in one.measures for one in self.methods)]
        rows = []
        for one in self.methods:
            cells = []
            for name in names:
                score = one.measures.get(name)
                cells.append("-" if score is None else str(score))
            rows.append((one.method, *cells, "fails" if one.fails else ""))
        columns = ("method", *(self.titles[name] for name in names), "sanity check")
        part = "" if self.images == self.found else f"{self.images:,} of "
        found = tell_count(self.found, "image")
        title = f"{self.checkpoint} on {part}{found} of {self.data}, mean (std)"
        return [Table(title, columns, tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say how the numbers are read, which methods fail, and what was not computed and why."""
        lines = [self.reading]
        failed = [one.method for one in self.methods if one.fails]
        if failed:
            lines.append(
                f"{', '.join(failed)}: the map hardly changes where the weights are shuffled, so it "
                "shows the image and not the model"
            )
        reasons: dict[str, list[str]] = {}
        for one in self.methods:
            for name, reason in one.reasons.items():
                reasons.setdefault(f"{self.titles[name]}: {reason}", []).append(one.method)
        for reason, methods in reasons.items():
            of_all = len(methods) == len(self.methods)
            lines.append(f"no {reason}" if of_all else f"no {reason} ({', '.join(methods)})")
        for method, reason in self.left_out.items():
            lines.append(f"{method} is left out: {reason}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a method."""
        rows = []
        for one in self.methods:
            row: dict[str, Any] = {"method": one.method, "is_floor": one.is_floor}
            for name in self.titles:
                score = one.measures.get(name)
                row[name] = None if score is None else score.mean
                row[f"{name}_std"] = None if score is None else score.std
            rows.append({**row, "fails": one.fails})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers and reasons as plain values for JSON."""
        methods = []
        for one in self.methods:
            measures = {name: vars(score) for name, score in one.measures.items()}
            about = {"method": one.method, "is_floor": one.is_floor, "fails": one.fails}
            methods.append({**about, "measures": measures, "reasons": dict(one.reasons)})
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "images": self.images,
            "found": self.found,
            "masked": self.masked,
            "bad_files": [{"path": name, "error": reason} for name, reason in self.bad_files],
            "methods": methods,
            "left_out": dict(self.left_out),
        }


@checked
def score_explanations(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path] | None = None,
    settings: Settings | None = None,
    *,
    class_name: str | int | None = None,
    methods: Sequence[ExplanationMethod] | None = None,
    limit: int = 32,
    masks: str | Path | None = None,
    seed: int = 0,
    json: str | Path | None = None,
    engine: Engine | None = None,
    device: Device = "auto",
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> ExplanationScores:
    """Measure how faithful the maps of each method are, for a model on images, which need no labels.

    `vitrail.score_explanations("best.safetensors", settings={"data.root": FOLDER}, limit=100)` does
    what `vitrail explain best.safetensors --score data.root=FOLDER --limit 100` does. Without images
    and settings, on the images that it was validated with. An image costs some forty answers a
    method, and those that occlusion asks for once.

    Args:
        checkpoint: The weight file, of any project, or an exported file, which has occlusion alone.
        images: An image, a folder, a glob, a list of paths in a file, or several of these; None
            takes a data set.
        settings: Settings of the sections weights, data, preprocess and evaluate.
        class_name: Class to explain, by its name or number; None is the most probable one of each
            image.
        methods: Methods to score; None is all that suit the model.
        limit: Most images to explain, drawn evenly from all.
        masks: Folder with a mask or boxes for each image, by the end of the image's path: a PNG, in
            which the class is where it is not 0, or an XML file of boxes as PASCAL VOC and ImageNet
            have them.
        seed: What all draws follow from.
        json: File that the numbers are also written to.
        engine: What runs an exported file, where two can, as .onnx.
        device: auto takes the accelerator, where there is one.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The file is not one, or damaged.
        ConfigError: A setting or an option is wrong, or the model has no such class or method.
        DataError: There are no images, or a mask does not fit its image.
    """
    given = read_settings(score_explanations, settings, sections)
    measured = MeasuredImages.read(images, given)
    require_at_least(1, limit=limit)
    require_at_least(0, seed=seed)
    if methods is not None and not methods:
        raise ConfigError(
            "methods is empty; name some, or leave it out for all that suit the model"
        )
    checkpoint, output = Path(checkpoint), path_or_none(json)
    if output is not None:
        refuse_output("json", output, files_of(checkpoint))

    from vitrail.explanation.scoring import Request, score_methods
    from vitrail.explanation.subject import open_subject

    with shown(display, progress) as display:
        tell_remarks(display, measured.remarks)
        subject = open_subject(
            checkpoint,
            measured.of_weights,
            methods=methods,
            class_name=class_name,
            engine=engine,
            device=device,
            display=display,
        )
        source = measured.open(subject.record, checkpoint, display)
        request = Request(subject.methods, subject.wanted, limit, path_or_none(masks), seed)
        scored = score_methods(subject, source, request, display)
        result = _name_scores(checkpoint, source.description, scored)
        if output is not None:
            write_json(output, result.to_dict(), display)
    return result


def _name_scores(checkpoint: Path, data: str, scored: Scored) -> ExplanationScores:
    from vitrail.explanation.judge import MEASURES, READING, fails

    methods = []
    for one in scored.scores:
        measures = {}
        for name in MEASURES:
            spread = one.spread(name)
            if spread is not None:
                measures[name] = MeasureScore(spread.mean, spread.std, spread.images)
        change = measures.get("shuffled")
        is_failed = change is not None and fails(change.mean)
        reasons = {str(name): reason for name, reason in one.reasons.items()}
        methods.append(MethodScores(one.method, one.is_floor, measures, reasons, is_failed))
    return ExplanationScores(
        checkpoint=str(checkpoint),
        data=data,
        images=scored.images,
        found=scored.found,
        masked=scored.masked,
        methods=tuple(methods),
        left_out=scored.left_out,
        bad_files=scored.bad_files,
        titles={str(name): title for name, title in MEASURES.items()},
        reading=READING,
    )
