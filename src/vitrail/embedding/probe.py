"""Probe features: how well the nearest images, or one linear layer, tell the classes apart.

Everything is a search or a closed form on arrays, and takes seconds for 5,000 images. Labels are
(n,) numbers of classes, or for multi-label data (n, k) booleans, whose score is the mean average
precision. A row of features with NaN, which stands for an image that could not be read, is left
out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.evaluation.class_scores import ranking

MOST_NEIGHBOURS = 20
"""Nearest images that vote, at most; as many as DINO takes."""
TEMPERATURE = 0.07
"""A neighbour's vote counts exp(cosine / TEMPERATURE), as in DINO."""
MOST_ASKED = 10_000
"""Images whose neighbours are searched for, at most; of more, evenly spaced ones."""
MOST_FITTED = 20_000
"""Images that a linear layer is fitted to, at most; of more, evenly spaced ones."""
MOST_TARGETS = 5 * 10**7
"""Images times classes that a linear layer is fitted to, at most."""
FOLDS = 5
"""Parts of which each is held out once, where there are no images to validate with."""
ALPHAS = tuple(10.0**power for power in range(6))
"""Strengths of regularisation that a linear layer chooses from."""
CHUNK = 4096
"""Images whose scores are held at a time."""

Features = NDArray[np.floating[Any]]
"""(n, d), a row an image."""
Labels = NDArray[Any]
"""(n,) numbers of classes, or (n, k) booleans."""
Scorer = Callable[[Features], NDArray[np.float64]]
"""Turns (n, d) features into (n, k) scores of the classes."""


@dataclass(frozen=True)
class Score:
    """How well features tell classes apart."""

    value: float
    """Percent of the images whose class is found (top-1), or the mean average precision in
    percent."""
    metric: Literal["top1", "map"]
    """Which of the two: `map` for multi-label data."""
    images: int
    """Images that were asked for."""
    how: str
    """How it was measured, in words, such as `20 nearest of 4,000 images`."""

    def __str__(self) -> str:
        title = "mAP" if self.metric == "map" else "top-1"
        return f"{title} {self.value:.1f} % of {self.images:,} images, {self.how}"


def knn_accuracy(
    features: Features,
    labels: Labels,
    val_features: Features | None = None,
    val_labels: Labels | None = None,
    *,
    k: int | None = None,
) -> Score:
    """Measure how often the nearest images have the right class, by the cosine of their features.

    Args:
        features: Features of the images that are known.
        labels: Their labels.
        val_features: Features of the images that are asked for; None asks for each known one among
            all the others.
        val_labels: Their labels.
        k: Neighbours that vote; None is `choose_neighbours`.

    Raises:
        DataError: Fewer than two classes, or no image to ask for.
    """
    features, labels = _readable(features, labels)
    _require_classes(labels)
    leaves_out = val_features is None
    if val_features is None or val_labels is None:
        val_features, val_labels = features, labels
    else:
        val_features, val_labels = _readable(val_features, val_labels)
    asked = _evenly(len(val_features), MOST_ASKED)
    k = choose_neighbours(labels) if k is None else k
    k = min(k, len(features) - leaves_out)

    similarities, found = find_neighbours(features, val_features[asked], k + leaves_out)
    if leaves_out:
        found, similarities = _without_itself(found, similarities, asked)
    votes = np.exp((similarities - 1) / TEMPERATURE)
    how = f"{k} nearest of {len(features):,}" + (" without itself" if leaves_out else "")
    if labels.ndim == 2:
        shares = [_vote(votes[part], labels[found[part]]) for part in _parts(len(asked))]
        return _mean_precision(np.concatenate(shares), val_labels[asked], how)
    winners = [_elect(votes[part], labels[found[part]]) for part in _parts(len(asked))]
    return _top1(np.concatenate(winners), val_labels[asked], how)


def choose_neighbours(labels: Labels) -> int:
    """Return how many neighbours vote: 20, or fewer where an image of the median class has fewer others beside it."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    return int(np.clip(np.median(counts[counts > 0]) - 1, 1, MOST_NEIGHBOURS))


def find_neighbours(
    features: Features, asked: Features, k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the cosines (m, k) of the k images nearest to each that is asked for, and their indices, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, metric="euclidean", algorithm="brute").fit(
        scale_to_unit(features)
    )
    distances, found = search.kneighbors(scale_to_unit(asked))
    return 1 - np.square(distances, dtype=np.float64) / 2, found


def scale_to_unit(features: Features) -> NDArray[np.float32]:
    """Return features scaled to length 1, whose products are cosines; those of length 0 stay as they are."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)


def linear_probe(
    features: Features,
    labels: Labels,
    val_features: Features | None = None,
    val_labels: Labels | None = None,
) -> Score:
    """Measure how well one linear layer tells the classes apart: ridge regression, a closed form.

    Args:
        features: Features of the images that it is fitted to.
        labels: Their labels.
        val_features: Features of the images that are asked for; None holds out each fold of the
            others once.
        val_labels: Their labels.

    Raises:
        DataError: Fewer than two classes, or no image to ask for.
    """
    features, labels = _readable(features, labels)
    _require_classes(labels)
    if val_features is None or val_labels is None:
        scored = _score_folds(
            _fit_folds(features, labels, assign_folds(labels)), features, np.arange(len(labels))
        )
        how = f"ridge regression, {FOLDS} folds"
        val_labels = labels
    else:
        val_features, val_labels = _readable(val_features, val_labels)
        num_classes = _count_classes(labels)
        scorer = fit_ridge(features, labels, num_classes)
        scored = _score_parts(scorer, val_features, np.arange(len(val_features)))
        how = f"ridge regression on {min(len(features), _most_fitted(num_classes)):,}"
    if labels.ndim == 2:
        scores = np.empty((len(val_labels), labels.shape[1]))
        for indices, part in scored:
            scores[indices] = part
        return _mean_precision(scores, val_labels, how)
    winners = np.empty(len(val_labels), np.int64)
    for indices, part in scored:
        winners[indices] = part.argmax(axis=1)
    return _top1(winners, val_labels, how)


def fit_ridge(features: Features, labels: Labels, num_classes: int) -> Scorer:
    """Fit one linear layer by ridge regression, and return what it makes of features.

    Its targets are 1 for the classes of an image and -1 for the others; each feature is brought to
    mean 0 and standard deviation 1. The strength of regularisation is the one of ALPHAS with the
    smallest error on a fifth of the images, held out for that: scikit-learn's RidgeCV, which leaves
    out each image once, decomposes all images for it, and takes many times as long.

    Args:
        features: (n, d), without NaN.
        labels: Their labels.
        num_classes: Number of scores.
    """
    from sklearn.preprocessing import StandardScaler

    chosen = _evenly(len(features), _most_fitted(num_classes))
    scaler = StandardScaler().fit(features[chosen].astype(np.float64))

    def scale(some: Features) -> NDArray[np.float64]:
        return np.asarray(scaler.transform(some.astype(np.float64)))

    inputs = scale(features[chosen])
    indicators = (
        labels[chosen] if labels.ndim == 2 else labels[chosen][:, None] == np.arange(num_classes)
    )
    targets = np.where(indicators, 1.0, -1.0)

    held_out = assign_folds(labels[chosen]) == 0
    errors = {}
    if held_out.any() and not held_out.all():
        for alpha in ALPHAS:
            predicted = _fit_layer(inputs[~held_out], targets[~held_out], alpha)(inputs[held_out])
            errors[alpha] = float(np.square(predicted - targets[held_out]).mean())
    layer = _fit_layer(
        inputs,
        targets,
        min(errors, key=lambda alpha: errors[alpha], default=ALPHAS[len(ALPHAS) // 2]),
    )
    return lambda asked: layer(scale(asked))


def _fit_layer(inputs: NDArray[np.float64], targets: NDArray[np.float64], alpha: float) -> Scorer:
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha, solver="cholesky").fit(inputs, targets)
    return lambda asked: ridge.predict(asked).reshape(len(asked), -1)


def out_of_fold_losses(
    features: Features, labels: NDArray[np.integer[Any]], folds: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the cross-entropy of each image's label by a linear layer that has not seen it, and the likeliest class.

    Scores become probabilities by one temperature for all, the one with the smallest mean
    cross-entropy.

    Args:
        features: (n, d), without NaN.
        labels: (n,) numbers of classes.
        folds: (n,) fold of each image; images that must not be told apart, such as copies, share
            one.

    Raises:
        DataError: Fewer than two classes.
    """
    _require_classes(labels)
    fitted = _fit_folds(features, labels, folds)
    temperature = _fit_temperature(fitted, features, labels)
    losses, winners = np.empty(len(labels)), np.empty(len(labels), np.int64)
    for indices, scores in _score_folds(fitted, features, np.arange(len(labels))):
        losses[indices] = _cross_entropy(scores / temperature, labels[indices])
        winners[indices] = scores.argmax(axis=1)
    return losses, winners


def fit_head(
    features: Features, labels: Labels, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (k, d) and biases (k,) of a linear probe as the head of a network: its outputs are logits.

    The scores of ridge regression are divided by one temperature for all, with which those of
    images left out have the smallest mean cross-entropy, so that probabilities say how sure the
    probe can be.

    Args:
        features: (n, d), without NaN.
        labels: Their labels.
        num_classes: Number of logits.

    Raises:
        DataError: Fewer than two classes.
    """
    _require_classes(labels)
    score = fit_ridge(features, labels, num_classes)
    size = features.shape[1]
    bias = score(np.zeros((1, size)))
    # of a linear layer, the scores of unit vectors are the weights
    weight = score(np.eye(size)) - bias
    fitted = _fit_folds(features, labels, assign_folds(labels))
    temperature = _fit_temperature(fitted, features, labels)
    return weight.T / temperature, bias[0] / temperature


def score_answers(scores: NDArray[np.floating[Any]], labels: Labels, how: str) -> Score:
    """Measure scores (n, k) of images against their labels; `how` says in words where they are from."""
    if labels.ndim == 2:
        return _mean_precision(scores.astype(np.float64), labels, how)
    return _top1(scores.argmax(axis=1), labels, how)


def assign_folds(
    labels: Labels, keys: Sequence[bytes] | None = None, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the fold of each image, 0 to FOLDS - 1: of each class about equally many, by a hash of the keys.

    Args:
        labels: The labels; a multi-label image counts for its rarest class.
        keys: A name of each image; images keep their folds as long as their names and groups are
            the same. None takes their numbers.
        groups: (n,) equal numbers for images that must share a fold, such as copies; None is none.
    """
    n = len(labels)
    keys = [b"%d" % index for index in range(n)] if keys is None else keys
    hashes = [hashlib.blake2b(key, digest_size=8).digest() for key in keys]
    strata = _strata(labels)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(range(n) if groups is None else groups.tolist()):
        members.setdefault(group, []).append(index)

    # groups take their turn in the order of their hashes, each the fold that has fewest of its
    # class
    folds = np.empty(n, np.int64)
    filled = np.zeros((int(strata.max(initial=0)) + 1, FOLDS), np.int64)
    for group in sorted(members.values(), key=lambda group: min(hashes[index] for index in group)):
        first = min(group, key=lambda index: hashes[index])
        counts = filled[strata[first]]
        # of folds that are equally full, the one that the hash names
        begin = hashes[first][0] % FOLDS
        order = [(begin + step) % FOLDS for step in range(FOLDS)]
        fold = min(order, key=lambda fold: counts[fold])
        for index in group:
            folds[index] = fold
            filled[strata[index], fold] += 1
    return folds


@dataclass(frozen=True)
class _FoldScorers:
    """Layers that were each fitted without one fold."""

    folds: NDArray[np.int64]
    """Fold of each image."""
    scorers: dict[int, Scorer]
    """The layer that has not seen a fold."""


def _fit_folds(features: Features, labels: Labels, folds: NDArray[np.int64]) -> _FoldScorers:
    scorers = {}
    for fold in np.unique(folds).tolist():
        others = folds != fold
        # all images may share one fold, where they are copies of one
        others = others if others.any() else ~others
        scorers[fold] = fit_ridge(features[others], labels[others], _count_classes(labels))
    return _FoldScorers(folds, scorers)


def _score_folds(
    fitted: _FoldScorers, features: Features, asked: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield some of the images, a chunk at a time, and their scores (b, k) by the layer that has not seen them."""
    for fold, scorer in fitted.scorers.items():
        yield from _score_parts(scorer, features, asked[fitted.folds[asked] == fold])


def _fit_temperature(fitted: _FoldScorers, features: Features, labels: Labels) -> float:
    """Return the temperature with which the scores of images left out have the smallest mean cross-entropy."""
    from scipy.optimize import minimize_scalar

    # one number needs no more images than a chunk
    sample = _evenly(len(labels), CHUNK)
    pairs = [
        (scores, labels[indices]) for indices, scores in _score_folds(fitted, features, sample)
    ]

    def mean_loss(log_temperature: float) -> float:
        losses = [
            _cross_entropy(scores / math.exp(log_temperature), truth) for scores, truth in pairs
        ]
        return float(np.concatenate(losses).mean())

    return math.exp(minimize_scalar(mean_loss, bounds=(-5, 3), method="bounded").x)


def _score_parts(
    scorer: Scorer, features: Features, indices: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield some images and their scores, a chunk at a time."""
    for part in _parts(len(indices)):
        yield indices[part], scorer(features[indices[part]])


def _parts(n: int) -> Iterator[slice]:
    return (slice(begin, begin + CHUNK) for begin in range(0, n, CHUNK))


def _cross_entropy(scores: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Return the cross-entropy (n,) of each image, in multi-label data the mean over its classes."""
    from scipy.special import log_softmax

    if labels.ndim == 2:
        return np.logaddexp(0, np.where(labels, -scores, scores)).mean(axis=1)
    return -log_softmax(scores, axis=1)[np.arange(len(labels)), labels]


def _top1(winners: NDArray[np.int64], labels: Labels, how: str) -> Score:
    return Score(100 * float(np.mean(winners == labels)), "top1", len(labels), how)


def _mean_precision(scores: NDArray[np.float64], labels: Labels, how: str) -> Score:
    """Return the mean of the classes' average precision, of those that have an image."""
    precisions = [
        ranking(scores[:, index], labels[:, index])[1]
        for index in np.flatnonzero(labels.any(axis=0))
    ]
    if not precisions:
        raise DataError(
            "none of the images that are asked for has a class; give images with labels"
        )
    return Score(100 * math.fsum(precisions) / len(precisions), "map", len(labels), how)


def _vote(votes: NDArray[np.float64], sets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share (m, c) of the votes (m, k) for each class, from the classes (m, k, c) of the neighbours."""
    return np.einsum("mk,mkc->mc", votes, sets) / votes.sum(axis=1, keepdims=True)


def _elect(votes: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class with most votes of each image; of equal ones that of the nearest neighbour."""
    agree = classes[:, :, None] == classes[:, None, :]
    totals = np.einsum("mkj,mj->mk", agree, votes)
    return classes[np.arange(len(classes)), totals.argmax(axis=1)]


def _without_itself(
    found: NDArray[np.int64], similarities: NDArray[np.float64], asked: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Leave each image out of its own neighbours; where it has copies, it may not be among those that were found."""
    itself = found == asked[:, None]
    itself[~itself.any(axis=1), -1] = True
    shape = (len(asked), found.shape[1] - 1)
    return found[~itself].reshape(shape), similarities[~itself].reshape(shape)


def _readable(features: Features, labels: Labels) -> tuple[Features, Labels]:
    known = np.isfinite(features).all(axis=1)
    if not known.any():
        raise DataError("none of the images has features; they cannot be read, or are none")
    return (features, labels) if known.all() else (features[known], labels[known])


def _require_classes(labels: Labels) -> None:
    """Refuse labels that tell nothing apart.

    Raises:
        DataError: All images have the same.
    """
    first = labels[:1]
    if (labels == first).all():
        raise DataError(
            f"all {len(labels):,} images have the same class, so nothing can be told apart; give "
            "images of two classes"
        )


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    """Return the numbers below n, or so many of them at even distances."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)


def _most_fitted(num_classes: int) -> int:
    """Return how many images a linear layer is fitted to, at most."""
    return min(MOST_FITTED, max(MOST_TARGETS // num_classes, 1))


def _count_classes(labels: Labels) -> int:
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def _strata(labels: Labels) -> NDArray[np.int64]:
    """Return the class by which each image is stratified: its rarest, or one more for images without any."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    order = np.argsort(labels.sum(axis=0), kind="stable")
    rarest = order[labels[:, order].argmax(axis=1)]
    return np.where(labels.any(axis=1), rarest, labels.shape[1])
