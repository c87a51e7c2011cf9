"""Losses between the answers of a student and those of its teacher, summed over the images.

Shapes
    b images, k classes, d numbers of a vector
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_softmax,
    mse_loss,
    one_hot,
)


def soft_loss(
    logits: Float[Tensor, "b k"], probabilities: Float[Tensor, "b k"], temperature: float
) -> Float[Tensor, ""]:
    """Return the divergence of the student from the teacher, times the squared temperature (Hinton et al. 2015).

    Args:
        logits: The student's logits.
        probabilities: The teacher's probabilities at that temperature, which may be mixed.
        temperature: What logits are divided by.
    """
    logarithms = log_softmax(logits / temperature, 1)
    return temperature**2 * kl_div(logarithms, probabilities, reduction="sum")


def soft_binary_loss(
    logits: Float[Tensor, "b k"], probabilities: Float[Tensor, "b k"], temperature: float
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of each class with the teacher's, its mean over the classes being an image's.

    Args:
        logits: The student's logits.
        probabilities: Sigmoids of the teacher's logits at that temperature, which may be mixed.
        temperature: What logits are divided by, by whose square the loss is multiplied.
    """
    losses = binary_cross_entropy_with_logits(logits / temperature, probabilities, reduction="none")
    return temperature**2 * losses.mean(1).sum()


def hard_loss(logits: Float[Tensor, "b k"], answers: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Return the cross-entropy with the teacher's first answers, 1 for that class, which may be mixed."""
    return cross_entropy(logits, answers, reduction="sum")


def decoupled_loss(
    logits: Float[Tensor, "b k"],
    teacher_logits: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    temperature: float,
    alpha: float,
    beta: float,
) -> Float[Tensor, ""]:
    """Return the decoupled loss (DKD, Zhao et al. 2022, https://arxiv.org/abs/2203.08679).

    The divergence of probabilities falls apart into that of the image's class against all others
    together, and that among the others, which a confident teacher gives next to no weight. Here
    each has a weight of its own.

    Args:
        logits: The student's logits.
        teacher_logits: The teacher's.
        labels: Class of each image.
        temperature: What logits are divided by, by whose square the loss is multiplied.
        alpha: Weight of the image's class against the others.
        beta: Weight of the others among each other.
    """
    is_target = one_hot(labels, logits.shape[1]).bool()
    target, others = _part(logits / temperature, is_target)
    teacher_target, teacher_others = _part(teacher_logits / temperature, is_target)
    of_target = kl_div(target, teacher_target, reduction="sum", log_target=True)
    of_others = kl_div(others, teacher_others, reduction="sum", log_target=True)
    return temperature**2 * (alpha * of_target + beta * of_others)


def _part(
    logits: Float[Tensor, "b k"], is_target: Bool[Tensor, "b k"]
) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b k-1"]]:
    """Return log-probabilities of the class and all others together, and of the others among themselves."""
    logarithms = log_softmax(logits, 1)
    others = logarithms[~is_target].view(len(logits), -1)
    together = others.logsumexp(1, keepdim=True)
    pair = logarithms[is_target][:, None]
    return torch.cat([pair, together], 1), others - together


def feature_loss(
    projected: Float[Tensor, "b d"], vectors: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of projected vectors from the teacher's, of the images summed."""
    return mse_loss(projected, vectors, reduction="sum") / vectors.shape[1]


def token_loss(
    projected: Float[Tensor, "b all"], targets: Float[Tensor, "b all"], num_features: int
) -> Float[Tensor, ""]:
    """Return the mean of the loss of the vectors and of that of the tokens, of the images summed.

    Both are mean squared differences from standardised features, so that an image counts 1 while
    nothing is known of them but their mean.

    Args:
        projected: The student's vectors, and behind them its tokens.
        targets: The teacher's, standardised.
        num_features: Numbers of the teacher's vector.
    """
    of_vectors = feature_loss(projected[:, :num_features], targets[:, :num_features])
    of_tokens = feature_loss(projected[:, num_features:], targets[:, num_features:])
    return (of_vectors + of_tokens) / 2
