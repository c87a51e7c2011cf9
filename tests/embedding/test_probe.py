"""The nearest images and a linear layer: right on data whose answer is known, in closed form, and stable folds."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.embedding.probe import (
    FOLDS,
    assign_folds,
    choose_neighbours,
    find_neighbours,
    knn_accuracy,
    linear_probe,
    out_of_fold_losses,
)
from vitrail.errors import DataError


def clouds(n: int = 300, classes: int = 3, dim: int = 16, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return features around one centre a class, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    return (rng.normal(size=(classes, dim))[labels] + noise * rng.normal(size=(n, dim))).astype(np.float32), labels


def test_clouds_far_apart_are_told_apart_and_noise_is_not() -> None:
    features, labels = clouds()
    for measure in (knn_accuracy, linear_probe):
        assert measure(features, labels).value > 99
        assert measure(features[100:], labels[100:], features[:100], labels[:100]).value > 98
    noise = np.random.default_rng(1).normal(size=(600, 16)).astype(np.float32)
    answers = np.random.default_rng(2).integers(0, 3, 600)
    for measure in (knn_accuracy, linear_probe):
        assert 20 < measure(noise, answers).value < 47


def test_an_image_is_no_neighbour_of_itself_even_among_copies() -> None:
    # two copies with other labels: each finds its copy alone, which is of the other class
    features = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert knn_accuracy(features, np.array([0, 1, 0, 1]), k=1).value == 0
    assert knn_accuracy(features, np.array([0, 0, 1, 1]), k=1).value == 100


def test_neighbours_are_found_by_the_angle_nearest_first() -> None:
    features = np.array([[1, 0], [5, 5], [0, 3]], np.float32)
    cosines, found = find_neighbours(features, np.array([[2, 0.1]], np.float32), 3)
    assert found.tolist() == [[0, 1, 2]]
    assert np.allclose(cosines, [[2 / np.hypot(2, 0.1), 2.1 / np.hypot(2, 0.1) / np.sqrt(2), 0.1 / np.hypot(2, 0.1)]])


@pytest.mark.parametrize(("counts", "k"), [([1000, 1000], 20), ([6, 6, 400], 5), ([1, 1], 1), ([2, 0, 2], 1)])
def test_no_more_neighbours_vote_than_the_median_class_has(counts: list[int], k: int) -> None:
    assert choose_neighbours(np.repeat(np.arange(len(counts)), counts)) == k


def test_a_linear_layer_is_scikit_learns_ridge_regression() -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    features, labels = clouds(noise=3)
    train, val = slice(100, None), slice(100)
    scaler = StandardScaler().fit(features[train])
    best = 0.0
    for power in range(6):
        model = RidgeClassifier(10.0**power).fit(scaler.transform(features[train]), labels[train])
        best = max(best, 100 * model.score(scaler.transform(features[val]), labels[val]))
    found = linear_probe(features[train], labels[train], features[val], labels[val]).value
    assert best - 4 <= found <= best


def test_images_with_several_classes_are_scored_by_average_precision() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((400, 3)) < (0.5, 0.2, 0.05)
    features = (labels @ rng.normal(size=(3, 16)) + 0.3 * rng.normal(size=(400, 16))).astype(np.float32)
    for measure in (knn_accuracy, linear_probe):
        score = measure(features, labels)
        assert (score.metric, score.images) == ("map", 400)
        assert score.value > 90
        assert str(score).startswith("mAP ")


def test_images_that_cannot_be_read_are_left_out() -> None:
    features, labels = clouds()
    broken = features.copy()
    broken[:100] = np.nan
    for measure in (knn_accuracy, linear_probe):
        assert measure(broken, labels) == measure(features[100:], labels[100:])
    with pytest.raises(DataError, match="none of the images has features"):
        knn_accuracy(np.full_like(features, np.nan), labels)


@pytest.mark.parametrize("measure", [knn_accuracy, linear_probe])
def test_one_class_is_refused(measure) -> None:
    features, _ = clouds(5)
    with pytest.raises(DataError, match="all 5 images have the same class, so nothing can be told apart; give images"):
        measure(features, np.zeros(5, np.int64))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_very_few_images_are_enough(n: int) -> None:
    features, _ = clouds(n)
    labels = np.arange(n) % 2
    for measure in (knn_accuracy, linear_probe):
        assert 0 <= measure(features, labels).value <= 100


def test_folds_follow_from_names_hold_each_class_and_keep_copies_together() -> None:
    labels = np.repeat([0, 1, 2], (100, 50, 5))
    names = [b"image-%d" % index for index in range(155)]
    groups = np.arange(155)
    groups[10:20] = 10
    folds = assign_folds(labels, names, groups)
    assert len(set(folds[10:20].tolist())) == 1
    for label, count in enumerate((100, 50, 5)):
        sizes = np.bincount(folds[labels == label], minlength=FOLDS)
        assert sizes.sum() == count
        assert abs(sizes - count / FOLDS).max() <= 9 if label == 0 else abs(sizes - count / FOLDS).max() <= 1
    # the order of the images changes nothing
    order = np.random.default_rng(0).permutation(155)
    assert (assign_folds(labels[order], [names[i] for i in order], groups[order]) == folds[order]).all()


def test_wrong_labels_have_the_largest_losses() -> None:
    features, labels = clouds(500, noise=0.8)
    wrong = np.arange(0, 500, 50)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 1) % 3
    losses, likeliest = out_of_fold_losses(features, given, assign_folds(given))
    assert {*np.argsort(-losses)[:10].tolist()} == {*wrong.tolist()}
    assert (likeliest[wrong] == labels[wrong]).all()
