"""Draw images as a map: points in two dimensions, near where features are alike, as one page with thumbnails."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.embedding.embed import Embedded
from vitrail.embedding.probe import scale_to_unit
from vitrail.embedding.search import describe_features, thumbnail
from vitrail.errors import DataError, escape_text, name_option
from vitrail.pages.render import pictured, render

MOST_SHOWN = 2_000
"""Points of a map, at most; of more images, evenly spaced ones."""
LARGEST = 64
"""Longer side of a thumbnail in pixels."""
FEWEST = 5
"""Images that t-SNE and UMAP need; fewer are drawn by PCA."""
SIDE = 1000
"""Width of the map, in its own units; its height is what the points need."""
FLATTEST = 0.4
"""Height of the map, at least, as a part of its width."""
MARGIN = 30
"""Units between the points and the edges."""
SEED = 0


def project(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], str]:
    """Return a place (n, 2) for each image, and by which method: UMAP where it is installed, else t-SNE; PCA for few.

    Directions of features count, not lengths, as in the search of neighbours.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    directions = scale_to_unit(features)
    n = len(directions)
    if n < FEWEST:
        size = min(2, n - 1, directions.shape[1])
        places = np.zeros((n, 2))
        if size > 0:
            places[:, :size] = PCA(size, random_state=SEED).fit_transform(directions)
        return places, "PCA"
    if find_spec("umap") is not None:
        return _project_by_umap(directions), "UMAP"
    # t-SNE of many dimensions is slow, and the first 50 components hold what it uses
    compact = PCA(min(50, *directions.shape), random_state=SEED).fit_transform(directions)
    perplexity = min(30.0, (n - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=SEED)
    return tsne.fit_transform(compact).astype(np.float64), "t-SNE"


def _project_by_umap(directions: NDArray[np.float32]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        # it says that a seed keeps it to one thread, which is wanted here
        warnings.simplefilter("ignore")
        from umap import UMAP  # pyright: ignore[reportMissingImports]

        places = UMAP(n_neighbors=min(15, len(directions) - 1), random_state=SEED).fit_transform(
            directions
        )
    return np.asarray(places, np.float64)


def render_map(embedded: Embedded) -> tuple[bytes, str]:
    """Return the page of the map, and a line that says how it was made.

    Raises:
        DataError: No image has features, as the weights give none that are finite.
    """
    places = []
    for part, one in enumerate(embedded.features):
        places += zip(repeat(part), _find_finite(one.values))
    if not places:
        raise DataError(
            f"{name_option('map')}: none of the images has features that are finite; give other "
            "weights"
        )
    chosen = np.linspace(0, len(places) - 1, min(len(places), MOST_SHOWN)).astype(np.int64)
    shown = [places[at] for at in chosen.tolist()]
    features = np.stack([embedded.features[part].values[index] for part, index in shown])
    points, method = project(features)
    names = sorted({embedded.parts[part].class_name(index) for part, index in shown})
    note = f"map by {method} of {len(shown):,} images"
    if len(shown) < len(places):
        note += f", evenly spaced ones of {len(places):,}"
    places_shown, height = fit_points(points)
    page = render(
        "map.html",
        points=_describe_points(embedded, shown, places_shown, names),
        classes=[
            {"name": name or "no class", "colour": choose_colour(number)}
            for number, name in enumerate(names)
        ],
        width=SIDE,
        height=height,
        note=note,
        about=describe_features(embedded),
        pictured=pictured(embedded.extractor.preprocess.pixels),
    )
    return page, note


def _find_finite(values: NDArray[np.float32]) -> list[int]:
    return np.flatnonzero(np.isfinite(values).all(axis=1)).tolist()


def _describe_points(
    embedded: Embedded, shown: list[tuple[int, Any]], points: NDArray[np.float64], names: list[str]
) -> list[dict[str, Any]]:
    numbers = {name: number for number, name in enumerate(names)}
    rows = []
    for (part, index), (x, y) in zip(shown, points.tolist(), strict=True):
        images = embedded.parts[part]
        rows.append(
            {
                "x": round(x, 1),
                "y": round(y, 1),
                "class": numbers[images.class_name(index)],
                "name": escape_text(images.source.name(index)),
                "split": images.split,
                "address": thumbnail(embedded, part, int(index), LARGEST),
            }
        )
    return rows


def choose_colour(number: int) -> str:
    """Return a colour that differs from those of the numbers around it, in light pages and dark ones."""
    return f"hsl({number * 137.508 % 360:.0f} 65% {(48, 60, 38)[number // 12 % 3]}%)"


def fit_points(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Turn points so that they are wider than high, scale them to the map equally, and return them and its height.

    Which way is up has no meaning in a map, and screens are wider than high.
    """
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    turned = centred @ axes[:, ::-1]
    low, high = turned.min(axis=0), turned.max(axis=0)
    width, height = np.maximum(high - low, 1e-9).tolist()
    frame = round(SIDE * min(max(height / width, FLATTEST), 1.0))
    scale = min((SIDE - 2 * MARGIN) / width, (frame - 2 * MARGIN) / height)
    if max(width, height) <= 1e-9:  # one image, or copies of one
        scale = 0.0
    return (turned - (low + high) / 2) * scale + np.array([SIDE, frame]) / 2, frame
