"""The depth of a network on many images: reach of attention and similarity of tokens, as numbers and as a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vitrail.data.sources import Source
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option
from vitrail.explanation.attention import require_attention
from vitrail.explanation.batches import draw_images, read_batches
from vitrail.explanation.depth import Likeness, Reach, measure_depth
from vitrail.explanation.subject import Subject
from vitrail.files import refusal_told, write_whole
from vitrail.models.family import VisionModel
from vitrail.pages.charts import Chart, line_chart
from vitrail.pages.render import render

PAGE, NUMBERS = "index.html", "depth.json"
LEVELS = {
    "word": "words, within their sentence",
    "sentence": "sentences",
    "split": "tokens of the soft splits",
    "token": "tokens",
    "window": "tokens, in windows",
    "reduced": "tokens, to a reduced map",
}
"""What attends, by its level, as the page calls it."""


@dataclass(frozen=True)
class DepthMeasures:
    """The numbers of a network, as means over images."""

    reaches: tuple[Reach, ...]
    likenesses: tuple[Likeness, ...]
    images: int
    """Images that they are means over."""
    found: int
    """Images that these were drawn of."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""


def require_depth(subject: Subject, path: Path) -> VisionModel:
    """Return the model of a file, which must be one whose attention is known.

    Raises:
        ConfigError: It is an exported file, or of another family.
    """
    model = subject.answer
    if not isinstance(model, VisionModel):
        raise ConfigError(
            f"{path}: is an exported file, which has answers and no layers to look into; give the "
            "weight file"
        )
    require_attention(model)
    return model


def measure_images(
    subject: Subject, model: VisionModel, source: Source, limit: int, display: Display
) -> DepthMeasures:
    """Return the numbers of a network as means over images.

    Args:
        subject: What the images are read for.
        model: Its model.
        source: The images.
        limit: Most images to take, drawn evenly from all of them.
        display: Shows progress and warnings.

    Raises:
        DataError: None of the images can be read.
    """
    chosen = draw_images(len(source), limit, seed=0)
    bad: list[tuple[str, str]] = []
    parts: list[tuple[int, list[Reach], list[Likeness]]] = []
    for batch in read_batches(subject, source, chosen, bad, display, label="measure"):
        parts.append((len(batch.indices), *measure_depth(model, batch.images)))
    total = sum(count for count, _, _ in parts)
    reaches, likenesses = [], []
    for each in zip(*(reaches_of for _, reaches_of, _ in parts), strict=True):
        heads = zip(*(one.pixels for one in each), strict=True)
        pixels = tuple(_mean(parts, values, total) for values in heads)
        reaches.append(replace(each[0], pixels=pixels))
    for each in zip(*(likenesses_of for _, _, likenesses_of in parts), strict=True):
        cosine = _mean(parts, [one.cosine for one in each], total)
        likenesses.append(replace(each[0], cosine=cosine))
    return DepthMeasures(tuple(reaches), tuple(likenesses), total, len(source), tuple(bad))


def _mean(
    parts: Sequence[tuple[int, object, object]], values: Sequence[float], total: int
) -> float:
    """Return the mean of a number over batches of different sizes."""
    return sum(part[0] * value for part, value in zip(parts, values, strict=True)) / total


def write_report(folder: Path, name: str, measures: DepthMeasures) -> Path:
    """Write the numbers and the page, and return the page.

    Raises:
        CheckpointError: They cannot be written.
    """
    advice = f"choose another folder with {name_option('output')}"
    with refusal_told(folder, None, advice):
        folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "images": measures.images,
        "attention": [asdict(one) for one in measures.reaches],
        "similarity": [_plain(asdict(one)) for one in measures.likenesses],
    }
    write_whole(folder / NUMBERS, (json.dumps(numbers, indent=1) + "\n").encode(), advice)
    page = render(
        "depth.html",
        name=name,
        images=measures.images,
        reaches=_draw_reaches(measures.reaches),
        likenesses=_draw_likenesses(measures.likenesses),
        numbers=NUMBERS,
    )
    write_whole(folder / PAGE, page, advice)
    return folder / PAGE


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """Return values that JSON has: NaN becomes None."""
    plain = {}
    for key, value in values.items():
        is_nan = isinstance(value, float) and math.isnan(value)
        plain[key] = None if is_nan else value
    return plain


def _draw_reaches(reaches: Sequence[Reach]) -> list[Chart]:
    """Return a chart for each level: the heads as points, their mean as a line, and what even attention reaches."""
    charts = []
    for level, title in LEVELS.items():
        of_level = [one for one in reaches if one.level == level]
        means = [(one.layer, sum(one.pixels) / len(one.pixels)) for one in of_level]
        heads = [(one.layer, pixels) for one in of_level for pixels in one.pixels]
        even = [(one.layer, one.even) for one in of_level]
        lines = {"even attention": even, "mean of the heads": means}
        chart = line_chart(title, lines, points=heads)
        if chart is not None:
            charts.append(chart)
    return charts


def _draw_likenesses(likenesses: Sequence[Likeness]) -> list[Chart]:
    """Return a chart for each level: the mean cosine of two tokens after each block."""
    charts = []
    for level, title in LEVELS.items():
        cosines = [(one.layer, one.cosine) for one in likenesses if one.level == level]
        chart = line_chart(title, {"mean cosine": cosines})
        if chart is not None:
            charts.append(chart)
    return charts
