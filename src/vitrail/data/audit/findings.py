"""Find problems of a data set in its manifest: unreadable files, duplicates, leaks, imbalance, odd formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.classes.names import find_look_alikes, find_order_difference, tell_look_alikes
from vitrail.data.audit.inspect_file import FORMATS, Finding
from vitrail.data.audit.near_duplicates import find_equal, find_near_pairs
from vitrail.data.folders import UNREAD
from vitrail.data.manifest import Manifest
from vitrail.data.sources import VAL
from vitrail.errors import DataError, tell_count
from vitrail.images.pixels import Exif
from vitrail.images.preprocess import Preprocess

Severity = Literal["error", "warning", "note"]
EXAMPLES = 12
"""Most examples of a problem."""
OF_ONE = {"are": "is", "have": "has", "lose": "loses"}
"""Verbs of the findings, of several images and of one."""
CUT_AWAY = 0.6
"""Share of an image outside the evaluation's crop, above which it is reported."""
CUT_ADVICE = (
    "see that what counts is in the middle; preprocess.crop=1 cuts less, and "
    "preprocess.resize=letterbox or squash nothing"
)
"""What can be done about images of which the evaluation's crop leaves little."""
IMBALANCED = 10
"""Warn when the largest class has at least this many times the training images of the smallest."""

ODD: tuple[tuple[Finding, Severity, str, str], ...] = (
    (
        Finding.WRONG_ENDING,
        "warning",
        "have the ending of another format",
        "harmless here; other programs may refuse",
    ),
    (
        Finding.ENDS_EARLY,
        "warning",
        "are JPEGs that end too early",
        "the missing pixels are made up, mostly gray; get the files again",
    ),
    (
        Finding.HUGE,
        "warning",
        "have over 50 million pixels",
        "vitrail resize-data makes them quick to read",
    ),
    (Finding.CMYK, "note", "are CMYK", "they are converted to RGB without a colour profile"),
    (Finding.DEEP, "note", "have more than 8 bits a channel", "the lower bits are dropped"),
    (Finding.ANIMATED, "note", "have several frames", "the first is read"),
    (Finding.ALPHA, "note", "have transparency", "it is dropped, and what is below it shows"),
    (Finding.GRAY, "note", "are gray", "they are read as RGB with equal channels"),
)
"""Findings of single images: severity, what is said of them, and advice."""

TURNED: dict[Exif, tuple[Severity, str]] = {
    "ignore": ("warning", "they are read unturned; preprocess.exif=apply turns them"),
    "apply": ("note", "they are read so (preprocess.exif=apply)"),
}
"""Severity and advice for images with an EXIF orientation, by the setting preprocess.exif."""

LACKING: tuple[tuple[Finding, str, str], ...] = (
    (Finding.DEEP, "have 8 bits a channel", "they are multiplied by 257, to fill data.bits=16"),
    (Finding.GRAY, "are in colour", "they become gray as in Pillow's mode L (data.channels=1)"),
)
"""Findings that the settings ask for, where images lack them: what is said of those images, and
advice."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem, with the images that have it."""

    severity: Severity
    what: str
    """The problem in words, which begin with the number of images."""
    advice: str
    """Advice on the problem."""
    images: tuple[tuple[int, ...], ...] = ()
    """Examples: groups of images that belong together, often of one image."""
    count: int = 0
    """Number of images, groups or classes."""


@dataclass(frozen=True)
class Findings:
    """All problems of a data set, and its statistics."""

    problems: tuple[Problem, ...]
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        """Whether there is a problem of severity error."""
        return any(problem.severity == "error" for problem in self.problems)

    def to_dict(self, manifest: Manifest) -> dict[str, Any]:
        """Return plain values for JSON, images by name."""
        listed = []
        for problem in self.problems:
            row = asdict(problem)
            row["images"] = [list(map(manifest.name, group)) for group in problem.images]
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
    """Find the problems of a set of images.

    Args:
        manifest: The images, inspected.
        held_out: Which images are used for validation.
        preprocess: The evaluation's preprocessing.
        structure: Problems of the folders, which become errors.
        near: Whether near-duplicates are searched, which takes minutes for millions.
        quarantine: Whether unreadable images are left out.
    """
    problems = [Problem("error", text.split(": ", 1)[-1], "", count=1) for text in structure]
    for note in manifest.notes:
        if UNREAD in note:
            what, advice = note.rsplit("; ", 1)
            problems.append(Problem("warning", what, advice, count=1))
    problems += _unreadable(manifest, quarantine)
    problems += _duplicates(manifest, held_out, near)
    problems += _classes(manifest, held_out)
    problems += _shapes(manifest, preprocess)
    problems += _oddities(manifest, preprocess)
    order = {"error": 0, "warning": 1, "note": 2}
    problems.sort(key=lambda problem: order[problem.severity])
    return Findings(tuple(problems), _statistics(manifest, held_out, preprocess))


def mark_held_out(manifest: Manifest, fold: int) -> NDArray[np.bool_]:
    """Return which images are used for validation: those of the held-out fold, or of the validation folder."""
    if manifest.division:
        return manifest.fold == fold
    return manifest.part == VAL


def find_alarms(
    manifest: Manifest, held_out: NDArray[np.bool_], quarantine: bool = False
) -> list[Problem]:
    """Return the errors that a training reports when it begins, as far as they are found in seconds.

    Args:
        manifest: The images, inspected.
        held_out: Which images are used for validation.
        quarantine: Whether unreadable images are left out.
    """
    problems = [*_unreadable(manifest, quarantine), *_duplicates(manifest, held_out, near=False)]
    return [problem for problem in problems if problem.severity == "error"]


def refuse_unreadable(manifest: Manifest) -> None:
    """Refuse a manifest with unreadable images, for data.bad_files=error.

    Raises:
        DataError: An image cannot be read; the first is named.
    """
    bad = np.flatnonzero(manifest.unreadable)
    if len(bad):
        first = int(bad[0])
        raise DataError(
            f"{manifest.path(first)}: cannot be read, {manifest.reason_of(first)}; so it is with "
            f"{tell_count(len(bad), 'image')} in "
            "all; repair or remove them, or set data.bad_files=quarantine to leave them out"
        )


def _of_images(severity: Severity, what: str, advice: str, chosen: NDArray[np.int64]) -> Problem:
    """Return a problem of single images, whose indices are given."""
    examples = tuple((int(index),) for index in chosen[:EXAMPLES])
    verb, _, rest = what.partition(" ")
    one = f"image {OF_ONE.get(verb, verb)} {rest}"
    counted = tell_count(len(chosen), one, f"images {what}")
    return Problem(severity, counted, advice, examples, len(chosen))


def _unreadable(manifest: Manifest, quarantine: bool) -> Iterator[Problem]:
    bad = manifest.unreadable
    severity: Severity = "error"
    advice = "repair or remove them; training reads past and counts them, data.bad_files=quarantine leaves them out"
    if quarantine:
        severity = "note"
        advice = "they are left out"
    for number, reason in enumerate(manifest.reasons):
        chosen = np.flatnonzero(bad & (manifest.reason == number))
        if len(chosen):
            yield _of_images(severity, f"cannot be read: {reason}", advice, chosen)


def _duplicates(manifest: Manifest, held_out: NDArray[np.bool_], near: bool) -> Iterator[Problem]:
    readable = np.flatnonzero(manifest.inspected & ~manifest.unreadable)
    equal = [readable[group] for group in find_equal(manifest.content[readable])]
    yield from _sort_duplicates(equal, manifest, held_out, "the same file, byte for byte", "error")
    if not near:
        return
    # near-duplicates are searched among one image of each group
    hashes = np.zeros(len(manifest), np.uint64)
    hashes[readable] = manifest.picture[readable]
    for group in equal:
        hashes[group[1:]] = 0
    pairs, crowded = find_near_pairs(hashes)
    what = "versions of one picture, it seems"
    yield from _sort_duplicates([*pairs], manifest, held_out, what, "warning", "pair")
    if crowded:
        yield Problem(
            "note",
            f"{crowded:,} images look alike by thousands, such as blank ones",
            "their versions are not listed in full",
            count=crowded,
        )


def _sort_duplicates(
    groups: Sequence[NDArray[np.int64]],
    manifest: Manifest,
    held_out: NDArray[np.bool_],
    what: str,
    gravest: Severity,
    called: str = "group",
) -> Iterator[Problem]:
    """Yield the problems of duplicates: leaks into validation, different labels, and copies within a split.

    Args:
        groups: Indices of images that are duplicates of each other.
        manifest: The images.
        held_out: Which images are used for validation.
        what: The kind of duplicates in words.
        gravest: Severity of leaks and of different labels.
        called: Word for one of the groups.
    """
    leaks = []
    copies = []
    mislabelled = []
    for group in groups:
        if len(np.unique(held_out[group])) > 1:
            leaks.append(group)
        else:
            copies.append(group)
        if len(np.unique(manifest.label[group])) > 1:
            mislabelled.append(group)

    kinds: tuple[tuple[Severity, Sequence[NDArray[np.int64]], str, str], ...] = (
        (
            gravest,
            leaks,
            "on both sides of training and validation",
            "validation looks better by them; remove one side",
        ),
        (gravest, mislabelled, "in different classes", "one of the labels is wrong; look at them"),
        ("note", copies, "within one part", "they count double"),
    )
    for severity, members, where, advice in kinds:
        if members:
            examples = tuple(tuple(group[:4].tolist()) for group in members[:EXAMPLES])
            text = f"{tell_count(len(members), called)} of images {where} are {what}"
            yield Problem(severity, text, advice, examples, len(members))


def _classes(manifest: Manifest, held_out: NDArray[np.bool_]) -> Iterator[Problem]:
    """Yield the problems of classes: imbalance, single images, ambiguous order and names, none to validate with."""
    yield from _imbalance(manifest, held_out)
    names = manifest.classes
    total = manifest.count_by_class(np.ones(len(manifest), np.bool_))
    single = [name for name, count in zip(names, total, strict=True) if count == 1]
    if single:
        what = f"{tell_count(len(single), 'class has', 'classes have')} one image: {', '.join(single[:5])}"
        yield Problem("warning", what, "add images", count=len(single))
    yield from _order_of_classes(names)
    if told := tell_look_alikes(names):
        what, advice = told.split("; ", 1)
        yield Problem("warning", what, advice, count=len(find_look_alikes(names)))
    if manifest.has_val:
        absent = np.flatnonzero(manifest.count_by_class(held_out) == 0)
        if len(absent):
            which = ", ".join(names[index] for index in absent)
            what = f"{tell_count(len(absent), 'class has', 'classes have')} no validation image: {which[:200]}"
            yield Problem("warning", what, "add some", count=len(absent))


def _imbalance(manifest: Manifest, held_out: NDArray[np.bool_]) -> Iterator[Problem]:
    names = manifest.classes
    counts = manifest.count_by_class(~held_out)
    trained = counts[counts > 0]
    if len(trained) < 2 or trained.max() < IMBALANCED * trained.min():
        return
    most = int(np.argmax(counts))
    least = int(np.flatnonzero(counts == trained.min())[0])
    yield Problem(
        "warning",
        f"{trained.max() / trained.min():,.0f} times as many training images of {names[most]!r} "
        f"({counts[most]:,}) as of {names[least]!r} ({counts[least]:,})",
        "judge by balanced accuracy",
        count=1,
    )


def _order_of_classes(names: tuple[str, ...]) -> Iterator[Problem]:
    """Yield a problem where the classes are in the order of text and their natural order is another."""
    differing = find_order_difference(names)
    if differing is None:
        return
    index, text, natural = differing
    if names[index] != text:
        return
    has_numbers = any(character.isdigit() for character in text + natural)
    severity: Severity = "warning" if has_numbers else "note"
    names_to_write = "numbers of equal length, such as 0001" if has_numbers else "all in lower case"
    advice = (
        "timm numbers folders in natural order, as data.class_order=natural does; "
        f"write {names_to_write}, and all orders are one"
    )
    if len(names) == 1000:
        advice += "; a model trained on ImageNet's WNIDs numbers its classes in another order"
    yield Problem(
        severity,
        f"{len(names):,} classes are in the order of text: index {index} is {text}, and {natural} "
        "in natural order",
        advice,
        count=len(names),
    )


def _oddities(manifest: Manifest, preprocess: Preprocess) -> Iterator[Problem]:
    """Yield the problems of single images' formats that have an effect with the settings given."""
    turned = (manifest.findings & Finding.TURNED) != 0
    is_tiff = manifest.format == FORMATS.index("TIFF")
    by_exif = np.flatnonzero(turned & ~is_tiff)
    if len(by_exif):
        severity, advice = TURNED[preprocess.exif]
        yield _of_images(severity, "are to be turned by EXIF", advice, by_exif)
    tiffs = np.flatnonzero(turned & is_tiff)
    if len(tiffs):
        advice = "they are read upright, as the format says; preprocess.exif is about the others"
        yield _of_images("note", "are stored turned, in a TIFF", advice, tiffs)

    channels = manifest.pixels.channels
    asked_for = Finding(0)
    if manifest.pixels.bits == 16:
        asked_for |= Finding.DEEP
    if channels == 1:
        asked_for |= Finding.GRAY
    of_no_effect = Finding(0)
    if channels not in (1, 3):
        of_no_effect = Finding.GRAY | Finding.ALPHA
    for flag, severity, what, advice in ODD:
        chosen = np.flatnonzero((manifest.findings & flag) != 0)
        if len(chosen) and not flag & (asked_for | of_no_effect):
            yield _of_images(severity, what, advice, chosen)
    readable = manifest.inspected & ~manifest.unreadable
    for flag, what, advice in LACKING:
        chosen = np.flatnonzero(readable & ((manifest.findings & flag) == 0))
        if len(chosen) and flag & asked_for:
            yield _of_images("note", what, advice, chosen)


def _shapes(manifest: Manifest, preprocess: Preprocess) -> Iterator[Problem]:
    known = manifest.width > 0
    if not known.any():
        return
    # a letterbox enlarges an image both of whose sides are smaller
    side = np.maximum if preprocess.resize == "letterbox" else np.minimum
    scaled = side(manifest.width, manifest.height)
    small = np.flatnonzero(known & (scaled < min(preprocess.size)))
    if len(small):
        size = " x ".join(map(str, preprocess.size))
        yield _of_images(
            "note", f"are smaller than the model's {size} pixels", "they are enlarged", small
        )
    cut = np.flatnonzero(known & (compute_cut_away(manifest, preprocess) > CUT_AWAY))
    if len(cut):
        what = f"lose over {CUT_AWAY:.0%} of their area to the evaluation's centre crop"
        yield _of_images("note", what, CUT_ADVICE, cut)


def compute_cut_away(manifest: Manifest, preprocess: Preprocess) -> NDArray[np.float64]:
    """Return the share of each image's area that its evaluation view leaves out; 0 where its size is not known."""
    height = np.maximum(manifest.height, 1).astype(np.float64)
    width = np.maximum(manifest.width, 1).astype(np.float64)
    rows, columns = compute_visible_share(height, width, preprocess)
    return np.where(manifest.width > 0, 1 - rows * columns, 0)


def compute_visible_share(
    height: NDArray[np.float64] | np.float64,
    width: NDArray[np.float64] | np.float64,
    preprocess: Preprocess,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares of images' heights and widths that their evaluation view shows."""
    if preprocess.resize != "crop":
        return np.ones_like(height), np.ones_like(width)
    cover_height, cover_width = (side / preprocess.crop for side in preprocess.size)
    scale = np.minimum(height / cover_height, width / cover_width)
    rows = np.minimum(preprocess.size[0] * scale / height, 1)
    columns = np.minimum(preprocess.size[1] * scale / width, 1)
    return rows, columns


def _statistics(
    manifest: Manifest, held_out: NDArray[np.bool_], preprocess: Preprocess
) -> dict[str, Any]:
    known = manifest.width > 0
    cut = compute_cut_away(manifest, preprocess)[known]
    counts = np.bincount(manifest.format[known], minlength=len(FORMATS)).tolist()
    formats = {}
    for name, count in zip(FORMATS, counts, strict=True):
        if count:
            formats[name or "other"] = count
    return {
        "images": len(manifest),
        "unreadable": int(manifest.unreadable.sum()),
        "training": int((~held_out).sum()),
        "validation": int(held_out.sum()),
        "classes": len(manifest.classes),
        "bytes": int(manifest.bytes.sum()),
        "formats": formats,
        "width": _spread(manifest.width[known]),
        "height": _spread(manifest.height[known]),
        "cut_away_by_centre_crop": _spread(cut),
        "training_images_by_class": manifest.count_by_class(~held_out).tolist(),
        "validation_images_by_class": manifest.count_by_class(held_out).tolist(),
    }


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Return the smallest, median and largest of some values."""
    if not len(values):
        return None
    low, middle, high = np.percentile(values, (0, 50, 100)).tolist()
    return {"least": round(low, 4), "median": round(middle, 4), "most": round(high, 4)}
