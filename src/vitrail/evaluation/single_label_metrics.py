"""Single-label metrics: top-1, top-5, loss, rates of each class, and warnings of labels that look wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

LOSS_UNITS = 2**30
"""Parts of a unit that the loss is counted in; the sum over 2**33 / loss images fits 63 bits."""
SHOTS = {"head": "more than 100", "medium": "20 to 100", "tail": "fewer than 20"}
"""Groups of classes by their training images: the usual division of long-tailed sets (Liu et al.
2019)."""


class Counter:
    """Count right answers batch by batch; integers, so that the order and the split over processes cannot matter.

    Attributes:
        totals: Images, right at first choice, right within five, without a finite loss, as int64
            (4,).
        loss: Sum of the finite cross-entropies in units of 1 / LOSS_UNITS, int64 ().
        confusion: Images by (label, prediction), int64 (k, k).
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.totals = torch.zeros(4, dtype=torch.int64, device=device)
        # the loss is computed in float64, which mps does not have
        loss_device = "cpu" if device.type == "mps" else device
        self.loss = torch.zeros((), dtype=torch.int64, device=loss_device)
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)

    def add(self, logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> None:
        """Count one batch."""
        k = logits.shape[1]
        logits = logits.float()
        best = logits.topk(min(5, k)).indices
        hits = best == labels[:, None]
        losses = cross_entropy(
            logits.to(self.loss.device).double(), labels.to(self.loss.device), reduction="none"
        )
        finite = losses.isfinite()
        self.loss += (torch.where(finite, losses, 0) * LOSS_UNITS).round().long().sum()
        n = torch.tensor(len(labels), device=hits.device)
        self.totals += torch.stack(
            [n, hits[:, 0].sum(), hits.sum(), (~finite).sum().to(hits.device)]
        )
        self.confusion += torch.bincount(labels * k + best[:, 0], minlength=k * k)


@dataclass(frozen=True)
class SingleLabelMetrics:
    """The numbers of a single-label evaluation."""

    n: int
    """Images counted."""
    top1: float
    """Images whose first choice is right, percent."""
    top5: float
    """Images of which one of five choices is right, percent; one of all classes where these are
    fewer than five."""
    loss: float
    """Mean cross-entropy."""
    balanced_accuracy: float
    """Mean over the classes of the share that is right, percent."""
    macro_f1: float
    """Mean over the classes of F1, percent."""
    head_top1: float | None = None
    """Balanced accuracy of the classes with more than 100 training images; None where there are
    none to count."""
    medium_top1: float | None = None
    """Balanced accuracy of the classes with 20 to 100 training images."""
    tail_top1: float | None = None
    """Balanced accuracy of the classes with fewer than 20 training images."""
    warnings: tuple[str, ...] = ()

    @property
    def best_first(self) -> tuple[float, float]:
        """A key that sorts evaluations, the best first."""
        return -self.top1, self.loss

    @property
    def shown(self) -> dict[str, str]:
        """The numbers that a table shows, by their titles."""
        return {
            "loss": f"{self.loss:.4f}",
            "top-1, %": f"{self.top1:.2f}",
            "top-5, %": f"{self.top5:.2f}",
        }

    @property
    def thresholds(self) -> None:
        """A single-label answer is the likeliest class, without a threshold."""

    @property
    def headline(self) -> Literal["top-1"]:
        """The name of the number that evaluations are compared by."""
        return "top-1"

    def numbers(self) -> dict[str, Any]:
        """Return the row of numbers."""
        numbers = dict(vars(self))
        del numbers["warnings"]
        return numbers

    def numbers_of_all_images(self, unreadable: int) -> dict[str, Any]:
        """Return the accuracy in which each unreadable image counts as answered wrong."""
        right = round(self.top1 * self.n / 100)
        return {"top1_all_images": 100 * right / (self.n + unreadable)}

    def acc_log(self) -> str:
        """Return what postprocess.py of MindSpore's model zoo prints into acc.log."""
        lines = ""
        for k, percent in ((1, self.top1), (5, self.top5)):
            lines += f"Top{k} acc:  {round(percent * self.n / 100) / self.n}\n"
        return lines


def compute_single_label_metrics(
    counter: Counter, training_counts: Int64[np.ndarray, " k"] | None = None
) -> SingleLabelMetrics:
    """Turn counts into percentages, with a warning where they look wrong.

    Args:
        counter: The counts.
        training_counts: Training images of each class, where they are known.
    """
    n, right, right5, without_loss = counter.totals.tolist()
    if n == 0:
        return SingleLabelMetrics(0, *[math.nan] * 5, warnings=("no image was counted",))
    loss = math.nan if without_loss else counter.loss.item() / LOSS_UNITS / n
    k = math.isqrt(len(counter.confusion))
    confusion = counter.confusion.reshape(k, k)
    rates = class_rates(confusion)
    counted = rates.images > 0
    shots: dict[str, float] = {}
    if training_counts is not None:
        for name, chosen in shot_groups(training_counts).items():
            # a group without images is left at None
            if (chosen & counted).any():
                shots[f"{name}_top1"] = _percent(rates.recall[chosen & counted])
    return SingleLabelMetrics(
        n,
        100 * right / n,
        100 * right5 / n,
        loss,
        balanced_accuracy=_percent(rates.recall[counted]),
        macro_f1=_percent(rates.f1[counted | (rates.answers > 0)]),
        warnings=(*_lost(without_loss, n), *suspicions(n, right, loss, confusion)),
        **shots,
    )


def _percent(rates: Float64[np.ndarray, " n"]) -> float:
    # fsum rounds once, so the mean is the same in all processes
    return 100 * math.fsum(rates) / len(rates)


@dataclass(frozen=True)
class ClassRates:
    """How well each class is found, as scikit-learn defines it, with 0 where nothing is to be divided."""

    images: Int64[np.ndarray, " k"]
    """Images of the class."""
    answers: Int64[np.ndarray, " k"]
    """Images that are taken for the class."""
    precision: Float64[np.ndarray, " k"]
    """Share of the answers with the class that are right."""
    recall: Float64[np.ndarray, " k"]
    """Share of the images of the class that are answered right."""
    f1: Float64[np.ndarray, " k"]
    """Harmonic mean of precision and recall."""


def class_rates(confusion: Int[Tensor, "k k"]) -> ClassRates:
    """Turn images by (label, prediction) into the rates of each class."""
    table = confusion.cpu().numpy()
    right, images, answers = table.diagonal(), table.sum(1), table.sum(0)
    # no denominator is below 1 but for classes whose right answers are 0
    return ClassRates(
        images=images,
        answers=answers,
        precision=right / np.maximum(answers, 1),
        recall=right / np.maximum(images, 1),
        f1=2 * right / np.maximum(images + answers, 1),
    )


def shot_groups(training_counts: Int64[np.ndarray, " k"]) -> dict[str, Bool[np.ndarray, " k"]]:
    """Return which classes are of the head, the medium and the tail of a set."""
    head, tail = training_counts > 100, training_counts < 20
    return dict(zip(SHOTS, (head, ~head & ~tail, tail), strict=True))


def _lost(without_loss: int, n: int) -> tuple[str, ...]:
    """Say so when the logits of some images are no numbers, of which the first counts as the answer."""
    if not without_loss:
        return ()
    return (
        f"{without_loss:,} of {n:,} images have no finite loss: their logits are NaN or infinite, "
        "and their answers mean nothing",
    )


def suspicions(n: int, right: int, loss: float, confusion: Int[Tensor, "k k"]) -> tuple[str, ...]:
    """Return warnings where the numbers are those of right predictions under wrong labels.

    Two signs: accuracy at chance (within three standard deviations) beside a loss far below
    ln(classes), which a model that is this often wrong hardly has; and one renumbering of the
    classes that makes most answers right, more than the best of all renumberings does by luck.
    """
    warnings = (
        _suspect_chance(n, right, loss, len(confusion)),
        _suspect_permutation(n, right, confusion),
    )
    return tuple(filter(None, warnings))


def _suspect_chance(n: int, right: int, loss: float, k: int) -> str:
    """Return a warning where the accuracy is at chance and the loss is far better."""
    chance = 1 / k
    at_chance = right / n <= chance + 3 * math.sqrt(chance * (1 - chance) / n)
    # a model that believes its probabilities is right at least exp(-loss) of the time (Jensen's
    # inequality)
    implied = math.exp(-loss)
    below = right / n < implied - 3 * math.sqrt(implied * (1 - implied) / n)
    if k > 1 and at_chance and below and loss < 0.7 * math.log(k):
        return (
            f"accuracy {100 * right / n:.1f} % is at chance for {k} classes but the loss "
            f"{loss:.2f} is far below ln({k}) = {math.log(k):.2f}; the labels are probably wrong"
        )
    return ""


def _suspect_permutation(n: int, right: int, confusion: Int[Tensor, "k k"]) -> str:
    """Return a warning where another numbering of the classes would make most answers right."""
    k = len(confusion)
    if n < 5 * k or right >= n / 2:
        return ""
    # SciPy takes a second to import, and few evaluations come here
    from scipy.optimize import linear_sum_assignment

    table = confusion.cpu().numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    matched = int(table[rows, columns].sum())
    # how many match if labels and answers had only these frequencies
    expected = float(table.sum(1)[rows] @ table.sum(0)[columns]) / n
    if matched < n / 2 or matched < 2 * right or not is_beyond_luck(matched, n, expected / n, k):
        return ""
    moved = []
    for label, answer in zip(rows.tolist(), columns.tolist(), strict=True):
        if label != answer:
            moved.append((label, answer))
    example = ", ".join(f"{label} is answered as {answer}" for label, answer in moved[:3])
    return (
        f"the labels look permuted: renumbering the classes would make {100 * matched / n:.1f} % "
        f"right instead of {100 * right / n:.1f} % (label {example}); compare the class order of "
        "data and model"
    )


def is_beyond_luck(matched: int, n: int, chance: float, k: int) -> bool:
    """Say whether the best of k! renumberings matches more than once in a thousand by luck (Chernoff's bound)."""
    share = matched / n
    if share <= chance:
        return False
    divergence = share * math.log(share / chance)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - chance))
    return n * divergence > math.lgamma(k + 1) + math.log(1000)
