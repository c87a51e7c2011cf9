"""What a manifest says is wrong or odd about a data set, each with examples and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.classes.names import look_alikes, orders_differ, tell_look_alikes
from vitrail.data.audit.inspect_file import FORMATS, Finding
from vitrail.data.audit.near_duplicates import equal_groups, near_pairs
from vitrail.data.folders import UNREAD
from vitrail.data.manifest import VAL, Manifest
from vitrail.errors import DataError
from vitrail.images.pixels import Exif
from vitrail.images.transforms import Preprocess

Severity = Literal["error", "warning", "note"]
EXAMPLES = 12
CUT_AWAY = 0.6
"""Share of an image outside the evaluation's crop, from which it is said."""

ODD: tuple[tuple[Finding, Severity, str, str], ...] = (
    (Finding.WRONG_ENDING, "warning", "have the ending of another format", "harmless here; other programs may refuse"),
    (
        Finding.ENDS_EARLY,
        "warning",
        "are JPEGs that end too early",
        "the missing pixels are made up, mostly gray; get the files again",
    ),
    (Finding.HUGE, "warning", "have over 50 million pixels", "vitrail resize-data makes them quick to read"),
    (Finding.CMYK, "note", "are CMYK", "they are converted to RGB without a colour profile"),
    (Finding.DEEP, "note", "have more than 8 bits a channel", "the lower bits are dropped"),
    (Finding.ANIMATED, "note", "have several frames", "the first is read"),
    (Finding.ALPHA, "note", "have transparency", "it is dropped, and what is below it shows"),
    (Finding.GRAY, "note", "are gray", "they are read as RGB with equal channels"),
)


TURNED: dict[Exif, tuple[Severity, str]] = {
    "ignore": ("warning", "they are read unturned; preprocess.exif=apply turns them"),
    "apply": ("note", "they are read so (preprocess.exif=apply)"),
}

LACKING: tuple[tuple[Finding, str, str], ...] = (
    (Finding.DEEP, "have 8 bits a channel", "they are multiplied by 257, to fill data.bits=16"),
    (Finding.GRAY, "are in colour", "they become gray as in Pillow's mode L (data.channels=1)"),
)


@dataclass(frozen=True)
class Problem:
    """One kind of finding."""

    severity: Severity
    what: str
    """Begins with the number."""
    advice: str
    images: tuple[tuple[int, ...], ...] = ()
    """Examples: images, or groups of images that belong together."""
    count: int = 0


@dataclass(frozen=True)
class Findings:
    """All that is found, and the statistics of the set."""

    problems: tuple[Problem, ...]
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        """Whether something is wrong, and not only odd."""
        return any(problem.severity == "error" for problem in self.problems)

    def to_dict(self, manifest: Manifest) -> dict[str, Any]:
        """Return plain values for JSON, images by name."""
        listed = []
        for problem in self.problems:
            row = asdict(problem)
            row["images"] = [[manifest.name(index) for index in group] for group in problem.images]
            listed.append(row)
        return {"problems": listed, "statistics": self.statistics}


def find_problems(
    manifest: Manifest,
    held_out: NDArray[np.bool_],
    preprocess: Preprocess,
    structure: Sequence[str] = (),
    *,
    near: bool = True,
    quarantine: bool = False,
) -> Findings:
    """Look for what is wrong with a set of images.

    Args:
        manifest: Of images that were looked at.
        held_out: Which are validated with.
        preprocess: How they are to be read.
        structure: What is wrong with the folders.
        near: Also look for versions of one picture, which takes minutes for millions.
        quarantine: Whether the unreadable ones are left out.
    """
    problems = [Problem("error", text.split(": ", 1)[-1], "", count=1) for text in structure]
    for what, advice in (note.rsplit("; ", 1) for note in manifest.notes if UNREAD in note):
        problems.append(Problem("warning", what, advice, count=1))
    problems += _unreadable(manifest, quarantine)
    problems += _duplicates(manifest, held_out, near)
    problems += _classes(manifest, held_out)
    problems += _shapes(manifest, preprocess)
    problems += _oddities(manifest, preprocess)
    rank = {"error": 0, "warning": 1, "note": 2}
    problems.sort(key=lambda problem: rank[problem.severity])
    return Findings(tuple(problems), _statistics(manifest, held_out, preprocess))


def validated_with(manifest: Manifest, fold: int) -> NDArray[np.bool_]:
    """Return which images are not trained on, by folder or by division."""
    return manifest.fold == fold if manifest.division else manifest.part == VAL


def alarms(manifest: Manifest, held_out: NDArray[np.bool_], quarantine: bool = False) -> list[Problem]:
    """Return what a training should not begin without having said, as far as it is found in seconds.

    Args:
        manifest: Of the images.
        held_out: Which of them are not trained on.
        quarantine: Whether the unreadable ones are left out.
    """
    found = [*_unreadable(manifest, quarantine), *_duplicates(manifest, held_out, near=False)]
    return [problem for problem in found if problem.severity == "error"]


def refuse_unreadable(manifest: Manifest) -> None:
    """Stop where an image cannot be read, for data.bad_files=error.

    Raises:
        DataError: With the first of them.
    """
    bad = np.flatnonzero(manifest.unreadable)
    if len(bad):
        first = int(bad[0])
        raise DataError(
            f"{manifest.path(first)}: cannot be read, {manifest.reason_of(first)}; so it is with {len(bad)} images in "
            "all; repair or remove them, or set data.bad_files=quarantine to leave them out"
        )


def _of_images(severity: Severity, what: str, advice: str, chosen: NDArray[np.int64]) -> Problem:
    return Problem(
        severity, f"{len(chosen):,} images {what}", advice, tuple((int(i),) for i in chosen[:EXAMPLES]), len(chosen)
    )


def _unreadable(manifest: Manifest, quarantine: bool) -> Iterator[Problem]:
    bad = manifest.unreadable
    advice = "repair or remove them; training reads past and counts them, data.bad_files=quarantine leaves them out"
    if quarantine:
        advice = "they are left out"
    for number, reason in enumerate(manifest.reasons):
        chosen = np.flatnonzero(bad & (manifest.reason == number))
        if len(chosen):
            yield _of_images("note" if quarantine else "error", f"cannot be read: {reason}", advice, chosen)


def _duplicates(manifest: Manifest, held_out: NDArray[np.bool_], near: bool) -> Iterator[Problem]:
    readable = np.flatnonzero(manifest.inspected & ~manifest.unreadable)
    equal = [readable[group] for group in equal_groups(manifest.content[readable])]
    yield from _likenesses(equal, manifest, held_out, "the same file, byte for byte", "error")
    if not near:
        return
    hashes = np.zeros(len(manifest), np.uint64)
    hashes[readable] = manifest.picture[readable]
    for group in equal:
        hashes[group[1:]] = 0
    pairs, crowded = near_pairs(hashes)
    yield from _likenesses([*pairs], manifest, held_out, "versions of one picture, it seems", "warning", "pairs")
    if crowded:
        yield Problem(
            "note",
            f"{crowded:,} images look alike by thousands, such as blank ones",
            "their versions are not listed in full",
            count=crowded,
        )


def _likenesses(
    groups: Sequence[NDArray[np.int64]],
    manifest: Manifest,
    held_out: NDArray[np.bool_],
    what: str,
    gravest: Severity,
    called: str = "groups",
) -> Iterator[Problem]:
    across = [group for group in groups if len(np.unique(held_out[group])) > 1]
    torn = [group for group in groups if len(np.unique(manifest.label[group])) > 1]
    inside = [group for group in groups if len(np.unique(held_out[group])) == 1]
    kinds: tuple[tuple[Severity, Sequence[NDArray[np.int64]], str, str], ...] = (
        (
            gravest,
            across,
            "on both sides of training and validation",
            "validation looks better by them; remove one side",
        ),
        (gravest, torn, "in different classes", "one of the labels is wrong; look at them"),
        ("note", inside, "within one part", "they count double"),
    )
    for severity, found, where, advice in kinds:
        if found:
            images = tuple(tuple(int(i) for i in group[:4]) for group in islice(found, EXAMPLES))
            yield Problem(severity, f"{len(found):,} {called} of images {where} are {what}", advice, images, len(found))


def _classes(manifest: Manifest, held_out: NDArray[np.bool_]) -> Iterator[Problem]:
    names = manifest.classes
    counts = manifest.images_of_classes(~held_out)
    trained = counts[counts > 0]
    if len(trained) > 1 and trained.max() >= IMBALANCED * trained.min():
        most, least = int(np.argmax(counts)), int(np.flatnonzero(counts == trained.min())[0])
        yield Problem(
            "warning",
            f"{trained.max() / trained.min():,.0f} times as many training images of {names[most]!r} ({counts[most]:,}) "
            f"as of {names[least]!r} ({counts[least]:,})",
            "judge by balanced accuracy",
            count=1,
        )
    total = manifest.images_of_classes(np.ones(len(manifest), np.bool_))
    single = [name for name, count in zip(names, total, strict=True) if count == 1]
    if single:
        yield Problem(
            "warning",
            f"{len(single):,} classes have one image: {', '.join(single[:5])}",
            "add images",
            count=len(single),
        )
    if (differing := orders_differ(names)) is not None and names[differing[0]] == differing[1]:
        index, text, natural = differing
        has_numbers = any(character.isdigit() for character in text + natural)
        advice = "timm numbers folders in natural order, as data.class_order=natural does; "
        advice += f"write {'numbers of equal length, such as 0001' if has_numbers else 'all in lower case'}"
        advice += ", and all orders are one"
        if len(names) == 1000:
            advice += "; a model trained on ImageNet's WNIDs numbers its classes in another order"
        yield Problem(
            "warning" if has_numbers else "note",
            f"{len(names):,} classes are in the order of text: index {index} is {text}, and {natural} in natural order",
            advice,
            count=len(names),
        )
    if told := tell_look_alikes(names):
        what, advice = told.split("; ", 1)
        yield Problem("warning", what, advice, count=len(look_alikes(names)))
    if (manifest.part == VAL).any():
        absent = manifest.images_of_classes(held_out) == 0
        if absent.any():
            which = ", ".join(name for name, is_absent in zip(names, absent, strict=True) if is_absent)
            what = f"{absent.sum():,} classes have no validation image: {which[:200]}"
            yield Problem("warning", what, "add some", count=int(absent.sum()))


def _oddities(manifest: Manifest, preprocess: Preprocess) -> Iterator[Problem]:
    turned, is_tiff = (manifest.findings & Finding.TURNED) != 0, manifest.format == FORMATS.index("TIFF")
    if (chosen := turned & ~is_tiff).any():
        severity, advice = TURNED[preprocess.exif]
        yield _of_images(severity, "are to be turned by EXIF", advice, np.flatnonzero(chosen))
    if (chosen := turned & is_tiff).any():
        advice = "they are read upright, as the format says; preprocess.exif is about the others"
        yield _of_images("note", "are TIFFs that are stored turned", advice, np.flatnonzero(chosen))
    channels, readable = manifest.pixels.channels, manifest.inspected & ~manifest.unreadable
    asked_for = Finding.DEEP * (manifest.pixels.bits == 16) | Finding.GRAY * (channels == 1)
    of_no_effect = 0 if channels in (1, 3) else Finding.GRAY | Finding.ALPHA
    for flag, severity, what, advice in ODD:
        chosen = np.flatnonzero((manifest.findings & flag) != 0)
        if len(chosen) and not flag & (asked_for | of_no_effect):
            yield _of_images(severity, what, advice, chosen)
    for flag, what, advice in LACKING:
        chosen = np.flatnonzero(readable & ((manifest.findings & flag) == 0))
        if len(chosen) and flag & asked_for:
            yield _of_images("note", what, advice, chosen)


def _shapes(manifest: Manifest, preprocess: Preprocess) -> Iterator[Problem]:
    known = manifest.width > 0
    if not known.any():
        return
    short = np.minimum(manifest.width, manifest.height)
    small = np.flatnonzero(known & (short < min(preprocess.size)))
    if len(small):
        size = " x ".join(map(str, preprocess.size))
        yield _of_images("note", f"are smaller than the model's {size} pixels", "they are enlarged", small)
    cut = np.flatnonzero(known & (cut_away(manifest, preprocess) > CUT_AWAY))
    if len(cut):
        yield _of_images(
            "note", f"lose over {CUT_AWAY:.0%} of their area to the evaluation's centre crop",
            "see that what counts is in the middle; preprocess.crop=1 cuts less", cut,
        )  # fmt: skip


def cut_away(manifest: Manifest, preprocess: Preprocess) -> NDArray[np.float64]:
    """Return the share of each image's area that its evaluation view leaves out; 0 where its size is not known."""
    height, width = (np.maximum(side, 1).astype(np.float64) for side in (manifest.height, manifest.width))
    rows, columns = seen(height, width, preprocess)
    return np.where(manifest.width > 0, 1 - rows * columns, 0)


def seen(
    height: NDArray[np.float64] | np.float64, width: NDArray[np.float64] | np.float64, preprocess: Preprocess
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares of images' heights and widths that their evaluation view shows."""
    cover = [side / preprocess.crop for side in preprocess.size]
    scale = np.minimum(height / cover[0], width / cover[1])
    return np.minimum(preprocess.size[0] * scale / height, 1), np.minimum(preprocess.size[1] * scale / width, 1)


def _statistics(manifest: Manifest, held_out: NDArray[np.bool_], preprocess: Preprocess) -> dict[str, Any]:
    known = manifest.width > 0
    cut = cut_away(manifest, preprocess)[known]
    formats = np.bincount(manifest.format[known], minlength=len(FORMATS))
    return {
        "images": len(manifest),
        "unreadable": int(manifest.unreadable.sum()),
        "training": int((~held_out).sum()),
        "validation": int(held_out.sum()),
        "classes": len(manifest.classes),
        "bytes": int(manifest.bytes.sum()),
        "formats": {name or "other": int(count) for name, count in zip(FORMATS, formats, strict=True) if count},
        "width": _spread(manifest.width[known]),
        "height": _spread(manifest.height[known]),
        "cut_away_by_centre_crop": _spread(cut),
        "training_images_by_class": manifest.images_of_classes(~held_out).tolist(),
        "validation_images_by_class": manifest.images_of_classes(held_out).tolist(),
    }


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Return the smallest, median and largest of some values."""
    if not len(values):
        return None
    low, middle, high = np.percentile(values, (0, 50, 100)).tolist()
    return {"least": round(low, 4), "median": round(middle, 4), "most": round(high, 4)}


IMBALANCED = 10
"""Times as many images as the smallest class has, from which the largest is worth a word."""
