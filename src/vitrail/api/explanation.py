"""Explain from Python: what the answers to images rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.api.arguments import checked
from vitrail.api.inference import Choice, Inputs
from vitrail.api.options import (
    path_or_none,
    read_settings,
    require_at_least,
    shown,
    tell_remarks,
)
from vitrail.api.results import ResultList, Table, first_rows, rows_left_out
from vitrail.choices import Device, Engine, ExplanationMethod
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option, names_flags, write_option
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitrail.explanation.explainer import Explained, Explainer
    from vitrail.explanation.folder import ExplanationFolder
    from vitrail.explanation.judge import Judged


@dataclass(frozen=True)
class Explanation:
    """What the answer to one image rests on, or why the image could not be read."""

    path: str
    classes: tuple[Choice, ...]
    """The classes that are explained, the most probable first, or those that were asked for."""
    method: ExplanationMethod
    maps: Mapping[str, NDArray[np.float32]]
    """By level, the finest last: raw values (classes, h, w), with one map in place of all classes
    where the method knows of none; empty where they were written to files."""
    faithfulness: tuple[Judged, ...]
    """How faithful the finest map of each class is, by SaCo, the areas under insertion and deletion,
    and the rank correlation with the map of shuffled weights; empty where that was not measured."""
    sheet: Path | None
    """Picture of the maps; None where nothing was written."""
    values: Path | None
    """File with the raw values of the finest maps; None where nothing was written."""
    error: str | None
    """Why the image could not be read; None where it was."""

    def _repr_png_(self) -> bytes | None:
        return None if self.sheet is None else self.sheet.read_bytes()


@dataclass(frozen=True)
class Explanations(ResultList[Explanation]):
    """The explanations of several images, in the order given."""

    page: Path | None
    """Page with all sheets; None where nothing was written."""

    @property
    def bad_files(self) -> list[Explanation]:
        """The images that could not be read."""
        return [one for one in self.items if one.error is not None]

    def tables(self) -> Sequence[Table]:
        """Return one row an image."""
        rows = []
        for one in first_rows(self.items):
            names = ", ".join(choice.name for choice in one.classes)
            odds = ", ".join(f"{choice.probability:.3f}" for choice in one.classes)
            sheet = "" if one.sheet is None else str(one.sheet)
            numbers = [judged.saco for judged in one.faithfulness]
            saco = ", ".join("-" if math.isnan(number) else f"{number:.2f}" for number in numbers)
            rows.append((one.path, names, odds, saco, sheet, one.error or ""))
        columns = ("image", "class", "probability", "SaCo", "sheet", "error")
        return [Table("", columns, tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say how many images are not shown, which maps fail, and where the page is."""
        lines = [*rows_left_out(len(self.items))]
        failed = [one.path for one in self.items if any(each.fails for each in one.faithfulness)]
        if failed:
            lines.append(
                f"{len(failed):,} of {len(self.items):,} maps hardly change where the weights are "
                "shuffled, so they show the image and not the model; `vitrail explain --score` "
                "compares the methods"
            )
        return lines if self.page is None else [*lines, f"page: {self.page}"]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each class of each image."""
        rows = []
        for one in self.items:
            row: dict[str, Any] = {
                "path": one.path,
                "name": None,
                "probability": None,
                "method": one.method,
                "sheet": None if one.sheet is None else str(one.sheet),
                "error": one.error,
            }
            rows += _rows_of_classes(row, one) or [row]
        return rows


def _rows_of_classes(row: dict[str, Any], one: Explanation) -> list[dict[str, Any]]:
    """Return the row of each class of an image; a map of no class stands with the first."""
    rows = []
    for number, choice in enumerate(one.classes):
        numbers = vars(one.faithfulness[number]) if number < len(one.faithfulness) else {}
        rows.append({**row, "name": choice.name, "probability": choice.probability, **numbers})
    return rows


@checked
def explain(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path],
    settings: Settings | None = None,
    *,
    class_name: str | int | Sequence[str | int] | None = None,
    method: ExplanationMethod | None = None,
    output: str | Path | None = None,
    topk: int | None = None,
    maps_alone: bool = False,
    patch: Sequence[int] | None = None,
    engine: Engine | None = None,
    device: Device = "auto",
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Explanations:
    """Explain the answers to images: maps of what they rest on, which are written only if `output` names a folder.

    `vitrail.explain("best.safetensors", "photos/", class_name="robin", output="robins")` does what
    `vitrail explain best.safetensors photos/ --class robin --output robins` does.

    Args:
        checkpoint: The weight file, of any project, or an exported file, which has occlusion alone.
        images: An image, a folder, a glob, a list of paths in a file, or several of these.
        settings: How the file and images are read, of the sections weights and preprocess.
        class_name: Class to explain, by its name or number, or several; None is the most probable
            ones.
        method: How it is explained; None is what suits the family.
        output: Folder to write, with a sheet and raw values for each image and a page of all.
        topk: Most classes to explain of an image; None is one, or of a multi-label model all that
            reach their thresholds.
        maps_alone: Do not measure how faithful each map is, which takes some thirty answers and a map
            of the model whose weights are shuffled.
        patch: Row and column, from 0, of a patch of a TNT that the sheets magnify, with its words.
        engine: What runs an exported file, where two can, as .onnx.
        device: auto takes the accelerator, where there is one.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the folder cannot be written.
        ConfigError: A setting or an option is wrong, or the model has no such class or method.
        DataError: There is no such image, or a list is wrong.
        MissingExtra: The method needs captum, which is not installed.
    """
    inputs = Inputs.read(images, read_settings(explain, settings, sections), "explain")
    layers, remarks = inputs.read_layers()
    require_at_least(1, topk=topk)
    asked = _list_classes(class_name)
    _refuse_together(asked, topk, patch, output)

    from vitrail.explanation.explainer import open_explainer
    from vitrail.explanation.folder import refuse_folder
    from vitrail.explanation.judge import Judge, judge_explained

    target = path_or_none(output)
    if target is not None:
        refuse_folder(target)
    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        explainer = open_explainer(
            checkpoint,
            layers,
            method=method,
            class_names=asked,
            topk=topk,
            engine=engine,
            device=device,
            display=display,
        )
        folder = _open_folder(target, explainer, patch)
        judge = None
        if not maps_alone:
            judge = Judge(explainer.answer, explainer.rule.thresholds is not None)
        items = []
        display.begin("explain", None)
        for path in inputs.find(display.note):
            explained = explainer.explain(path)
            _warn_of(explained, explainer, display)
            judged = ()
            if judge is not None:
                judged = judge_explained(judge, explainer, explained)
            files = (None, None) if folder is None else folder.write(explained, judged)
            items.append(_named(explained, explainer.names, explainer.method, judged, files))
            display.advance()
        display.end()
        page = None if folder is None else folder.write_page()
    return Explanations(tuple(items), page)


def _open_folder(
    target: Path | None, explainer: Explainer, patch: Sequence[int] | None
) -> ExplanationFolder | None:
    """Return what writes the folder that is asked for, if one is.

    Raises:
        ConfigError: There is no such patch.
    """
    from vitrail.explanation.folder import ExplanationFolder
    from vitrail.explanation.patch import find_patch

    if target is None:
        return None
    magnified = None if patch is None else find_patch(explainer, (patch[0], patch[1]))
    return ExplanationFolder(target, explainer, magnified)


def _warn_of(explained: Explained, explainer: Explainer, display: Display) -> None:
    """Tell of an image that could not be explained, and of maps that say nothing."""
    if explained.error is not None:
        display.warn(f"{explained.path}: {explained.error}")
    for index in explained.empty:
        display.warn(
            f"{explained.path}: the map of {explainer.names[index]} is 0 everywhere: by "
            f"{explainer.method} nothing in the image speaks for it"
        )


def _list_classes(class_name: str | int | Sequence[str | int] | None) -> Sequence[str | int]:
    """Return the classes that are asked for; none are the most probable ones."""
    if class_name is None:
        return ()
    return (class_name,) if isinstance(class_name, str | int) else class_name


def _refuse_together(
    class_names: Sequence[str | int],
    topk: int | None,
    patch: Sequence[int] | None,
    output: str | Path | None,
) -> None:
    """Refuse options of which one would do nothing.

    Raises:
        ConfigError: With what to leave out.
    """
    if class_names and topk is not None:
        of_class = write_option("class" if names_flags() else "class_name", class_names[0])
        raise ConfigError(
            f"{write_option('topk', topk)}: {of_class} says which class is explained; leave one of "
            "them out"
        )
    if patch is None:
        return
    if len(patch) != 2:
        raise ConfigError(
            f"patch has {len(patch)} numbers; it must be a row and a column, as (3, 5)"
        )
    if output is None:
        row, column = patch
        raise ConfigError(
            f"{write_option('patch', f'{row},{column}')}: a patch is magnified on sheets, which "
            f"{name_option('output')} writes; the words of all patches are in the maps"
        )


def _named(
    explained: Explained,
    names: Sequence[str],
    method: ExplanationMethod,
    faithfulness: tuple[Judged, ...],
    files: tuple[Path | None, Path | None],
) -> Explanation:
    pairs = zip(explained.classes, explained.probabilities, strict=True)
    sheet, values = files
    maps = explained.maps if sheet is None else None  # what was written need not stay in memory
    return Explanation(
        path=explained.path,
        classes=tuple(Choice(index, names[index], probability) for index, probability in pairs),
        method=method,
        maps=maps or {},
        faithfulness=faithfulness,
        sheet=sheet,
        values=values,
        error=explained.error,
    )
