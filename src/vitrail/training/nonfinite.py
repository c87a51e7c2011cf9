"""What is not finite: counted without waiting for the device, and traced to the module that made it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Guard:
    """Counts the updates that are left out because the loss or the gradient is not finite.

    The counts stay on the device until they are read with other numbers.

    Attributes:
        counts: Left out in this epoch, left out in a row until now, and the number of the first of them since
            `clear_first`, or -1; int64 (3,).
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.tensor([0, 0, -1], device=device)

    def record(self, bad: Tensor, update: int) -> None:
        """Count update number `update`, where `bad` is a boolean ()."""
        total, row, first = self.counts.unbind()
        self.counts = torch.stack([total + bad, (row + bad) * bad, torch.where(bad & (first < 0), update, first)])

    def clear_total(self) -> None:
        """Begin an epoch."""
        self.counts[0] = 0

    def clear_first(self) -> None:
        """Forget which update was the first, once it was told."""
        self.counts[2] = -1


def first_nonfinite(model: nn.Module, forward: Callable[[], Tensor]) -> str | None:
    """Run a batch again and say what first gives a value that is not finite, forwards or else backwards.

    Args:
        model: Its gradients are thrown away.
        forward: Returns the loss.
    """
    found: list[str] = []
    names = {module: name or "the model" for name, module in model.named_modules()}

    def outward(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _is_finite(output):
            found.append(f"the output of {names[module]} ({type(module).__name__})")

    def inward(module: nn.Module, to_input: Any, from_output: Any) -> None:
        if not found and not _is_finite(to_input):
            found.append(f"the gradient of {names[module]} ({type(module).__name__})")

    hooks = [module.register_forward_hook(outward) for module in names]
    hooks += [module.register_full_backward_hook(inward) for module in names]
    try:
        loss = forward()
        if not found and not _is_finite(loss):
            found.append("the loss")
        with warnings.catch_warnings():
            # the first modules are given no gradient to hand on, which is as it should be
            warnings.simplefilter("ignore")
            loss.backward()
        for name, parameter in reversed(list(model.named_parameters())):
            if not found and not _is_finite(parameter.grad):
                found.append(f"the gradient of {name}")
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    return found[0] if found else None


def _is_finite(values: Any) -> bool:
    if isinstance(values, tuple | list):
        return all(_is_finite(value) for value in values)
    return not isinstance(values, Tensor) or not values.is_floating_point() or bool(values.isfinite().all())
