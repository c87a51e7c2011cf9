"""Optimizers: AdamW and SGD, with parameter groups for weight decay and layer-wise learning rates."""

from __future__ import annotations

from typing import Any, Literal

import torch

from vitrail.models.family import VisionModel

DecayOn = Literal["paper", "matrices", "all"]


def parameter_groups(
    model: VisionModel,
    weight_decay: float,
    layer_decay: float | None,
    decay_on: DecayOn = "paper",
    backbone_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning-rate scale.

    Biases, one-dimensional parameters and those of `model.no_weight_decay()` do not decay, unless `decay_on` says that
    the last, or all three, do. With `layer_decay`, a parameter of layer i learns at layer_decay ** (num_layers - i)
    times the rate (`lr_scale` of its group), and with `backbone_scale` at so much of that unless it is the head's.
    """
    exempt = model.no_weight_decay() if decay_on == "paper" else set()
    groups: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim > 1 and not name.endswith(".bias")
        decays = decay_on == "all" or (is_matrix and name not in exempt)
        layer = model.num_layers if layer_decay is None else model.layer_of(name)
        scale = 1.0 if name.startswith("head.") else backbone_scale
        group = groups.setdefault(
            (layer, scale, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": scale * (layer_decay or 1.0) ** (model.num_layers - layer),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def build_optimizer(
    model: VisionModel,
    *,
    name: Literal["adamw", "sgd"],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
    nesterov: bool,
    layer_decay: float | None,
    decay_on: DecayOn = "paper",
    backbone_scale: float = 1.0,
    shard: bool = False,
) -> torch.optim.Optimizer:
    """Build AdamW or SGD, as one fused kernel, which leaves an update out where `found_inf` says so.

    The fused SGD cannot update a model that is sharded over ranks (`shard`), which takes torch's other kernels.
    """
    groups = parameter_groups(model, weight_decay, layer_decay, decay_on, backbone_scale)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=not shard)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
