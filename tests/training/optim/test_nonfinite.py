"""Counting what is not finite, and finding where it came from."""

import pytest
import torch
from torch import nn

from vitrail.models.registry import FAMILIES, create_model
from vitrail.training.optim.nonfinite import Guard, first_nonfinite


def test_counts_are_of_the_epoch_the_row_and_the_first() -> None:
    guard = Guard(torch.device("cpu"))
    seen = []
    for update, bad in enumerate([False, True, True, False, True]):
        guard.record(torch.tensor(bad), update)
        seen.append(guard.counts.tolist())
    assert seen == [[0, 0, -1], [1, 1, 1], [2, 2, 1], [2, 0, 1], [3, 1, 1]]
    guard.clear_first()
    guard.clear_total()
    assert guard.counts.tolist() == [0, 1, -1]
    guard.record(torch.tensor(True), 5)
    assert guard.counts.tolist() == [1, 2, 5]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))


def test_the_first_module_whose_output_overflows_is_named() -> None:
    model, x = small(), torch.ones(2, 3)
    assert first_nonfinite(model, lambda: model(x).sum()) is None
    with torch.no_grad():
        model[2].weight.fill_(3e38)
        model[0].bias.fill_(100.0)
    assert first_nonfinite(model, lambda: model(x).sum()) == "the output of 2 (Linear)"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_the_first_module_whose_gradient_is_not_a_number_is_named() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 0).sqrt() * 0  # its derivative at 0 is infinite

    model = nn.Sequential(nn.Linear(3, 4), Root(), nn.Identity())
    found = first_nonfinite(model, lambda: model(torch.ones(2, 3)).sum())
    assert found == "the gradient of 1 (Root)"


def test_a_loss_that_alone_is_not_finite_is_named() -> None:
    model = small()
    assert first_nonfinite(model, lambda: model(torch.ones(1, 3)).sum() + torch.tensor(torch.inf)) == "the loss"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_can_be_searched(family) -> None:
    name = next(iter(family.variants))
    torch.manual_seed(0)
    model = create_model(name, **family.tiny)
    x = torch.randn(2, 3, *model.config.size)
    assert first_nonfinite(model, lambda: model(x).sum()) is None
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    assert first_nonfinite(model, lambda: model(x).sum()) == "the output of head (Linear)"
