"""NaN and Inf: count skipped updates without a device sync, and find the module that produced the first one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitrail.distributed.processes import any_process
from vitrail.distributed.sharding import local_shard


class Guard:
    """Counts the updates that are skipped because the loss or the gradient is NaN or Inf.

    The counts stay on the device until they are read with other numbers.

    Attributes:
        counts: Updates skipped in this epoch, updates skipped in a row until now, and the number of
            the first one skipped since `clear_first`, or -1; int64 (3,).
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.tensor([0, 0, -1], device=device)

    def record(self, bad: Tensor, update: int) -> None:
        """Count update number `update` if `bad`, a boolean (), says that it was skipped."""
        total, row, first = self.counts.unbind()
        self.counts = torch.stack(
            [total + bad, (row + bad) * bad, torch.where(bad & (first < 0), update, first)]
        )

    def clear_total(self) -> None:
        """Begin an epoch, in which no update is skipped yet."""
        self.counts[0] = 0

    def clear_first(self) -> None:
        """Forget which skipped update was the first, once the user was warned of it."""
        self.counts[2] = -1


def has_finite_weights(model: nn.Module, accelerator: Accelerator) -> bool:
    """Say whether no weight is NaN or Inf, on all ranks. Collective."""
    finite_here = torch.stack(
        [local_shard(weights.detach()).isfinite().all() for weights in model.parameters()]
    )
    return not any_process(accelerator, ~finite_here.all())


def first_nonfinite(model: nn.Module, forward: Callable[[], Tensor]) -> str | None:
    """Run a batch again and name what first gives NaN or Inf, in the forward pass or else in the backward pass.

    Args:
        model: The model, whose gradients are thrown away.
        forward: Computes the loss of the batch.
    """
    culprits: list[str] = []
    names = {module: name or "the model" for name, module in model.named_modules()}

    def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
        if not culprits and not _is_finite(output):
            culprits.append(f"the output of {names[module]} ({type(module).__name__})")

    def check_gradient(module: nn.Module, to_input: Any, from_output: Any) -> None:
        if not culprits and not _is_finite(to_input):
            culprits.append(f"the gradient of {names[module]} ({type(module).__name__})")

    hooks = [module.register_forward_hook(check_output) for module in names]
    hooks += [module.register_full_backward_hook(check_gradient) for module in names]
    try:
        loss = forward()
        if not culprits and not _is_finite(loss):
            culprits.append("the loss")
        with warnings.catch_warnings():
            # the first modules are given no gradient to hand on, which is as it should be
            warnings.simplefilter("ignore")
            loss.backward()
        for name, parameter in reversed(list(model.named_parameters())):
            if not culprits and not _is_finite(parameter.grad):
                culprits.append(f"the gradient of {name}")
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    return culprits[0] if culprits else None


def _is_finite(values: Any) -> bool:
    if isinstance(values, tuple | list):
        return all(_is_finite(value) for value in values)
    return (
        not isinstance(values, Tensor)
        or not values.is_floating_point()
        or bool(values.isfinite().all())
    )
