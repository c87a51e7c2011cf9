"""Counts against scikit-learn, and warnings that fire for wrong labels and stay silent for honest models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor

from vitrail.evaluation.single_label_metrics import (
    LOSS_UNITS,
    Counter,
    SingleLabelMetrics,
    class_rates,
    compute_single_label_metrics,
    shot_groups,
)


def counted(logits: Tensor, labels: Tensor, batch: int = 10**9) -> Counter:
    counter = Counter(logits.shape[1], torch.device("cpu"))
    for start in range(0, len(labels), batch):
        counter.add(logits[start : start + batch], labels[start : start + batch])
    return counter


def answers(labels: Tensor, predictions: Tensor, k: int, confidence: float = 0.9) -> SingleLabelMetrics:
    """Return the accuracy of a model that gives each prediction this probability, and the others what is left."""
    logits = torch.full((len(labels), k), math.log((1 - confidence) / max(k - 1, 1)))
    logits[torch.arange(len(labels)), predictions] = math.log(confidence)
    return compute_single_label_metrics(counted(logits, labels))


def random_case(seed: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), k=st.integers(2, 12))
def test_counts_equal_scikit_learns(seed: int, n: int, k: int) -> None:
    logits, labels = random_case(seed, n, k)
    counter = counted(logits, labels, batch=7)
    found = compute_single_label_metrics(counter)
    truth, scores, classes = labels.numpy(), logits.double().softmax(1).numpy(), np.arange(k)
    assert found.n == n
    assert found.top1 == pytest.approx(100 * accuracy_score(truth, scores.argmax(1)), abs=1e-9)
    assert found.loss == pytest.approx(log_loss(truth, scores, labels=classes), abs=1 / LOSS_UNITS)
    np.testing.assert_array_equal(
        counter.confusion.reshape(k, k), confusion_matrix(truth, scores.argmax(1), labels=classes)
    )
    # scikit-learn takes the scores of two classes in another form, and both are then within five
    top5 = top_k_accuracy_score(truth, scores, k=min(5, k - 1), labels=classes) if k > 5 else 1.0
    assert found.top5 == pytest.approx(100 * top5, abs=1e-9)


@settings(max_examples=25)  # scikit-learn takes its time
@given(
    answered=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40),
    counts=st.lists(st.integers(0, 130), min_size=7, max_size=7).map(np.array),
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_rates_of_the_classes_equal_scikit_learns_where_some_are_absent_too(answered: list, counts: Any) -> None:
    truth, predicted = np.array(answered).T
    counter = counted(torch.eye(7)[predicted], torch.tensor(truth))
    rates = class_rates(counter.confusion.reshape(7, 7))
    expected: Any = precision_recall_fscore_support(truth, predicted, labels=range(7), zero_division=0)  # pyright: ignore
    for mine, theirs in zip((rates.precision, rates.recall, rates.f1, rates.images), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-14)
    assert rates.answers.tolist() == np.bincount(predicted, minlength=7).tolist()
    found = compute_single_label_metrics(counter, counts)
    assert found.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(truth, predicted))
    assert found.macro_f1 == pytest.approx(100 * float(f1_score(truth, predicted, average="macro", zero_division=0)))
    for name, low, high in (("head", 101, 999), ("medium", 20, 100), ("tail", 0, 19)):
        chosen = (low <= counts[truth]) & (counts[truth] <= high)
        share = getattr(found, f"{name}_top1")
        if chosen.any():
            assert share == pytest.approx(100 * balanced_accuracy_score(truth[chosen], predicted[chosen]))
        else:
            assert share is None


def test_head_medium_and_tail_are_divided_at_a_hundred_and_at_twenty_training_images() -> None:
    groups = shot_groups(np.array([0, 19, 20, 100, 101]))
    assert {name: np.flatnonzero(chosen).tolist() for name, chosen in groups.items()} == {
        "head": [4], "medium": [2, 3], "tail": [0, 1],
    }  # fmt: skip
    assert compute_single_label_metrics(counted(*random_case(0, 20, 4))).tail_top1 is None


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_batch_boundaries_do_not_show(seed: int, sizes: list[int]) -> None:
    logits, labels = random_case(seed, sum(sizes), 8)
    whole, parts = counted(logits, labels), Counter(8, torch.device("cpu"))
    for chosen, answered in zip(logits.split(sizes), labels.split(sizes), strict=True):
        parts.add(chosen, answered)
    assert torch.equal(whole.totals, parts.totals)
    assert torch.equal(whole.confusion, parts.confusion)
    assert torch.equal(whole.loss, parts.loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_counted_in_full_precision(dtype: torch.dtype) -> None:
    logits, labels = random_case(0, 4000, 5)
    half = counted(logits.to(dtype), labels)
    full = counted(logits.to(dtype).double().float(), labels)
    assert half.loss == full.loss
    assert torch.equal(half.confusion, full.confusion)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_with_five_classes_or_fewer_every_answer_is_within_five(k: int) -> None:
    found = compute_single_label_metrics(counted(*random_case(1, 30, k)))
    assert found.top5 == 100.0


def test_rows_of_the_confusion_are_labels_and_columns_answers() -> None:
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 8.0], [7.0, 0.0, 0.0]])
    counter = counted(logits, torch.tensor([1, 1, 0]))
    assert counter.confusion.reshape(3, 3).tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]
    assert counter.totals.tolist() == [3, 1, 3, 0]


def test_a_loss_that_is_not_finite_makes_the_mean_so_but_not_the_counts() -> None:
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [2.0, 0.0]])
    found = compute_single_label_metrics(counted(logits, torch.tensor([1, 0, 0])))
    assert (found.n, round(found.top1, 1)) == (3, 100.0)  # topk takes a nan for the largest
    assert math.isnan(found.loss)
    assert found.warnings[0].startswith("1 of 3 images have no finite loss: their logits are NaN or infinite")


def test_no_images_give_no_numbers_and_say_so() -> None:
    found = compute_single_label_metrics(Counter(4, torch.device("cpu")))
    assert found.n == 0
    assert math.isnan(found.top1)
    assert math.isnan(found.top5)
    assert math.isnan(found.loss)
    assert found.warnings == ("no image was counted",)
    counter = Counter(4, torch.device("cpu"))
    counter.add(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert compute_single_label_metrics(counter).warnings == ("no image was counted",)


@pytest.mark.parametrize(("k", "n"), [(2, 20), (3, 15), (10, 50), (10, 1000), (100, 500)])
def test_permuted_labels_are_noticed(k: int, n: int) -> None:
    labels = torch.arange(n) % k
    found = answers(labels, (labels + 1) % k, k)
    assert found.top1 == 0
    assert found.warnings == (
        "the labels look permuted: renumbering the classes would make 100.0 % right instead of 0.0 % (label "
        + ", ".join(f"{i} is answered as {(i + 1) % k}" for i in range(min(k, 3)))
        + "); compare the class order of data and model",
    )


def test_permuted_labels_are_noticed_under_errors_and_where_some_classes_kept_their_place() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (400,), generator=generator)
    order = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 2])
    wrong = torch.rand(400, generator=generator) < 0.2
    predictions = torch.where(wrong, torch.randint(10, (400,), generator=generator), order[labels])
    (warning,) = answers(labels, predictions, 10).warnings
    assert "label 2 is answered as 3, 3 is answered as 4, 4 is answered as 5" in warning


def test_chance_accuracy_beside_a_low_loss_is_noticed() -> None:
    k, n = 10, 500
    labels = torch.arange(n) % k
    # every label is a close second: seldom right, and never far off
    logits = torch.full((n, k), math.log(0.1 / 8))
    logits[torch.arange(n), labels] = math.log(0.44)
    logits[torch.arange(n), (labels + torch.arange(n) // k % 9 + 1) % k] = math.log(0.46)
    found = compute_single_label_metrics(counted(logits, labels))
    assert found.top1 == 0
    assert found.warnings == (
        "accuracy 0.0 % is at chance for 10 classes but the loss 0.82 is far below ln(10) = 2.30; "
        "the labels are probably wrong",
    )


@pytest.mark.parametrize("k", [2, 3, 5, 10, 100])
@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.999])
def test_random_model_raises_no_alarm(k: int, confidence: float) -> None:
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        labels, predictions = torch.randint(k, (2, 5 * k), generator=generator)
        confidence = max(confidence, 1 / k + 1e-3)
        assert answers(labels, predictions, k, confidence).warnings == ()


@pytest.mark.parametrize("k", [2, 3, 10, 1000])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10, 50])
@pytest.mark.parametrize("right", [0.5, 0.8, 1.0])
def test_good_model_raises_no_alarm_on_few_images(k: int, n: int, right: float) -> None:
    """Images few enough to be within three deviations of chance, answered by a model that knows how good it is."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(k, (n,), generator=generator)
        wrong = torch.rand(n, generator=generator) >= right
        predictions = torch.where(wrong, (labels + torch.randint(1, k, (n,), generator=generator)) % k, labels)
        assert answers(labels, predictions, k, min(right, 0.99)).warnings == ()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [10, 100, 1000])
def test_model_that_always_gives_one_answer_raises_no_alarm(share: float, n: int) -> None:
    """On a set where one class is frequent, renumbering makes many answers right, yet nothing is permuted."""
    labels = (torch.arange(n) >= share * n).long()
    for answer in (0, 1):
        assert answers(labels, torch.full((n,), answer), 2, 0.6).warnings == ()


def test_warnings_are_about_labels_not_about_a_half_right_model() -> None:
    labels = torch.arange(100) % 10
    predictions: Any = torch.where(torch.arange(100) < 50, labels, (labels + 1) % 10)
    assert answers(labels, predictions, 10).warnings == ()
