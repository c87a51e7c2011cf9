"""Search the images nearest to one, by the cosine of their features, in memory that does not grow with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.loader import Batch
from vitrail.embedding.embed import Embedded
from vitrail.embedding.extract import Extractor
from vitrail.embedding.images import Part, take_files, view_query
from vitrail.embedding.probe import scale_to_unit
from vitrail.errors import printable
from vitrail.images.pixels import UnreadableImage
from vitrail.pages.render import picture, pictured, render

CHUNK = 65_536
"""Rows that are compared at a time."""


@dataclass(frozen=True)
class Neighbour:
    """An image that was found."""

    name: str
    """Its path, or its set and number."""
    class_name: str
    """Its class, several with | between them; empty where it has none."""
    split: str
    cosine: float
    """Cosine of the angle between the features, 1 for equal directions."""
    part: int
    """Index of its part among those that were embedded."""
    index: int
    """Index in that part."""


def search(embedded: Embedded, image: Path, topk: int) -> tuple[Neighbour, ...]:
    """Return the images nearest to one, the nearest first.

    Raises:
        DataError: The image cannot be read.
    """
    wanted = scale_to_unit(embed_image(embedded.extractor, image)[None])[0]
    best: list[tuple[float, int, int]] = []
    for number, one in enumerate(embedded.features):
        for begin in range(0, len(one.values), CHUNK):
            rows = np.asarray(one.values[begin : begin + CHUNK])
            known = np.flatnonzero(np.isfinite(rows).all(axis=1))
            cosines = scale_to_unit(rows[known]) @ wanted
            nearest = np.argsort(-cosines, kind="stable")[:topk]
            best += [(float(cosines[at]), number, begin + int(known[at])) for at in nearest]
        # of equal cosines the first image comes first
        best = sorted(best, key=lambda found: (-found[0], found[1:]))[:topk]
    return tuple(
        _describe(embedded.parts[number], number, index, cosine) for cosine, number, index in best
    )


def embed_image(extractor: Extractor, path: Path) -> NDArray[np.float32]:
    """Return the features of one image.

    Raises:
        DataError: It cannot be read.
    """
    view = view_query(path, extractor.preprocess)
    first = torch.zeros(1, dtype=torch.int64)
    device = next(extractor.model.parameters()).device
    return extractor.compute(Batch(view[None], first, first, first, []), range(1), device).values[0]


def render_search(embedded: Embedded, image: Path, found: tuple[Neighbour, ...]) -> bytes:
    """Return the page that shows an image and those nearest to it."""
    shown = [{**vars(one), "address": thumbnail(embedded, one.part, one.index)} for one in found]
    pixels = embedded.extractor.preprocess.pixels
    query = take_files([str(image)]).source.image(0, pixels)
    return render(
        "search.html",
        name=printable(image),
        address=picture(query),
        found=shown,
        images=sum(len(part.source) for part in embedded.parts),
        about=describe_features(embedded),
        pictured=pictured(pixels),
    )


def thumbnail(embedded: Embedded, part: int, index: int, largest: int | None = None) -> str:
    """Return an image as a data URI, or an empty text where it cannot be read any more."""
    pixels = embedded.extractor.preprocess.pixels
    try:
        image = embedded.parts[part].source.image(index, pixels)
    except (OSError, UnreadableImage):
        return ""
    return picture(image) if largest is None else picture(image, largest)


def describe_features(embedded: Embedded) -> str:
    """Return in words which features they are."""
    about = embedded.description
    return f"{about['checkpoint']}, {about['model']}, features of {about['module']}, pooled as {about['pooling']}"


def _describe(part: Part, number: int, index: int, cosine: float) -> Neighbour:
    return Neighbour(
        part.source.name(index), part.class_name(index), part.split, cosine, number, index
    )
