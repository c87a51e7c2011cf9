"""Optimizers: AdamW, SGD, LAMB, Lion, Adan and Muon, with parameter groups for weight decay and layer-wise rates."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from timm.optim.adan import Adan
from timm.optim.lamb import Lamb
from timm.optim.lion import Lion
from timm.optim.muon import Muon

from vitrail.choices import OptimizerName
from vitrail.config.training_sections import OPTIMIZERS
from vitrail.models.family import VisionModel

DecayOn = Literal["paper", "matrices", "all"]


def parameter_groups(
    model: VisionModel,
    weight_decay: float,
    layer_decay: float | None,
    decay_on: DecayOn = "paper",
    backbone_scale: float = 1.0,
    late: Collection[torch.nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning-rate scale.

    Biases, one-dimensional parameters and those of `model.no_weight_decay()` do not decay, unless
    `decay_on` says that the last, or all three, do. With `layer_decay`, a parameter of layer i
    learns at layer_decay ** (num_layers - i) times the rate (`lr_scale` of its group), and with
    `backbone_scale` at so much of that unless it is the head's. Those that are trained only later
    (`late`) have groups of their own.
    """
    late_ones = set(late)
    exempt = model.no_weight_decay() if decay_on == "paper" else set()
    groups: dict[tuple[int, float, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim > 1 and not name.endswith(".bias")
        decays = decay_on == "all" or (is_matrix and name not in exempt)
        layer = model.num_layers if layer_decay is None else model.layer_of(name)
        scale = 1.0 if model.is_of_head(name) else backbone_scale
        group = groups.setdefault(
            (layer, scale, decays, parameter in late_ones),
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
    name: OptimizerName,
    lr: float,
    weight_decay: float,
    betas: tuple[float, ...] | None,
    eps: float | None,
    momentum: float | None,
    nesterov: bool,
    layer_decay: float | None,
    decay_on: DecayOn = "paper",
    backbone_scale: float = 1.0,
    shard: bool = False,
    late: Collection[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build an optimizer; moments that are None are its own (`OPTIMIZERS`).

    AdamW and SGD are one fused kernel, which leaves an update out where `found_inf` says so. The
    fused SGD cannot update a model that is sharded over ranks (`shard`), which takes torch's other
    kernels.
    """
    groups = parameter_groups(model, weight_decay, layer_decay, decay_on, backbone_scale, late)
    given = {"betas": betas, "eps": eps, "momentum": momentum}
    moments = {
        key: default if given[key] is None else given[key]
        for key, default in OPTIMIZERS[name].items()
    }
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True, **moments)
    if name == "sgd":
        return _build_sgd(groups, lr, moments["momentum"], nesterov, fused=not shard)
    if name == "lamb":
        # clipping the whole gradient is optim.clip_norm's business
        return Lamb(groups, lr=lr, max_grad_norm=None, **moments)
    if name == "muon":
        return Muon(_split_for_muon(model, groups), lr=lr, nesterov=nesterov, **moments)
    build: Callable[..., torch.optim.Optimizer] = {"lion": Lion, "adan": Adan}[name]
    return build(groups, lr=lr, **moments)


def _build_sgd(
    groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool, *, fused: bool
) -> torch.optim.SGD:
    """Build SGD with momenta of zero.

    Torch's kernel makes them with the first update, and leaves them unset where that update is
    skipped.
    """
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    if momentum:
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _split_for_muon(model: VisionModel, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split groups into matrices inside the network, for Muon, and all else, for AdamW.

    What reads the images and what gives the logits is AdamW's, as Muon's author has it, and so are
    convolutions.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}

    def is_inside(parameter: torch.nn.Parameter) -> bool:
        name = names[parameter]
        return parameter.ndim == 2 and not model.is_of_head(name) and model.layer_of(name) > 0

    split = []
    for group in groups:
        for use_muon in (True, False):
            chosen = [one for one in group["params"] if is_inside(one) is use_muon]
            if chosen:
                split.append({**group, "params": chosen, "use_muon": use_muon})
    return split


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether an optimizer reads `found_inf`, and changes nothing where it is 1, as torch's fused kernels do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def restart_counts(
    optimizer: torch.optim.Optimizer, parameters: Collection[torch.nn.Parameter]
) -> None:
    """Let the groups of parameters that are trained from now on count their updates from here.

    Some optimizers count for a whole group, whether its parameters have gradients or not, and
    correct young moments by that count.
    """
    begun = set(parameters)
    for group in optimizer.param_groups:
        if begun.issuperset(group["params"]):
            group.pop("step", None)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
