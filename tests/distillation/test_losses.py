"""The losses of distillation against straightforward forms of the same formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from vitrail.distillation.losses import (
    decoupled_loss,
    feature_loss,
    hard_loss,
    soft_binary_loss,
    soft_loss,
)

B, K = 5, 7


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Return logits of a student and of a teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, B, K, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_loss_is_the_divergence_written_out(logits: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = logits
    expected = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(z / temperature) for z in ours]
        p = [math.exp(z / temperature) for z in theirs]
        for q_i, p_i in zip(q, p, strict=True):
            share = p_i / sum(p)
            expected += temperature**2 * share * (math.log(share) - math.log(q_i / sum(q)))
    found = soft_loss(student, (teacher / temperature).softmax(1), temperature)
    assert found.item() == pytest.approx(expected)
    of_torch = functional.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1), reduction="sum", log_target=True
    )
    assert_close(found, temperature**2 * of_torch)
    assert_close(soft_loss(teacher, (teacher / temperature).softmax(1), temperature), torch.zeros_like(found))


def test_the_binary_loss_is_the_mean_over_the_classes_written_out(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    expected = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        for z, t in zip(ours, theirs, strict=True):
            q, p = 1 / (1 + math.exp(-z / 2)), 1 / (1 + math.exp(-t / 2))
            expected -= 4 * (p * math.log(q) + (1 - p) * math.log(1 - q)) / K
    assert soft_binary_loss(student, (teacher / 2).sigmoid(), 2).item() == pytest.approx(expected)


def test_the_hard_loss_is_that_of_labels_which_the_teacher_gave(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    answers = functional.one_hot(teacher.argmax(1), K).double()
    assert_close(hard_loss(student, answers), functional.cross_entropy(student, teacher.argmax(1), reduction="sum"))


def published_dkd(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, t: float) -> Tensor:
    """The formula as the authors' code has it, with its masks."""
    is_target = torch.zeros_like(student).scatter_(1, target[:, None], 1).bool()

    def two(logits: Tensor) -> Tensor:
        p = (logits / t).softmax(1)
        return torch.cat([(p * is_target).sum(1, keepdim=True), (p * ~is_target).sum(1, keepdim=True)], 1)

    of_target = functional.kl_div(two(student).log(), two(teacher), reduction="sum") * t**2
    others = (teacher / t - 1000.0 * is_target).softmax(1)
    ours = (student / t - 1000.0 * is_target).log_softmax(1)
    return alpha * of_target + beta * functional.kl_div(ours, others, reduction="sum") * t**2


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 2.0, 1.0)])
def test_the_decoupled_loss_and_its_gradient_are_those_of_its_authors(
    logits: tuple[Tensor, Tensor], alpha: float, beta: float, temperature: float
) -> None:
    student, teacher = logits
    target = torch.arange(B) % K
    found = decoupled_loss(student, teacher, target, temperature, alpha, beta)
    expected = published_dkd(student, teacher, target, alpha, beta, temperature)
    assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, student)
    assert_close(gradient, torch.autograd.grad(expected, student)[0])


def test_the_decoupled_loss_is_the_divergence_where_its_weights_are(logits: tuple[Tensor, Tensor]) -> None:
    """KL = TCKD + (1 - p of the class) * NCKD, of one image."""
    student, teacher = logits[0][:1], logits[1][:1]
    target = torch.tensor([2])
    share = 1 - float(teacher.softmax(1)[0, 2])
    assert_close(decoupled_loss(student, teacher, target, 1, 1, share), soft_loss(student, teacher.softmax(1), 1))


def test_a_teacher_that_is_certain_gives_finite_losses() -> None:
    teacher = torch.tensor([[0.0, -60000.0, -60000.0]])
    student = torch.tensor([[50.0, -50.0, 0.0]], requires_grad=True)
    for loss in (
        decoupled_loss(student, teacher, torch.tensor([1]), 1, 1, 8),
        soft_loss(student, teacher.softmax(1), 1),
    ):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_the_feature_loss_is_the_mean_over_the_numbers() -> None:
    ours, theirs = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0], [0, 4]])
    assert float(feature_loss(ours, theirs)) == (4 + 9) / 2
