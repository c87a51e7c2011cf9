"""Groups of parameters against timm's, and steps against torch's optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm.optim
import torch
from torch.testing import assert_close

from vitrail.models.family import VisionModel
from vitrail.models.registry import FAMILIES, create_model
from vitrail.training.optim.optimizers import build_optimizer, parameter_groups, set_learning_rate

SETTINGS: dict[str, Any] = {
    "lr": 1e-2,
    "weight_decay": 0.05,
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "momentum": 0.9,
    "nesterov": True,
    "layer_decay": None,
}

every_variant = pytest.mark.parametrize("name", [name for family in FAMILIES for name in family.variants])
every_family = pytest.mark.parametrize("name", [next(iter(family.variants)) for family in FAMILIES])


def tiny(name: str) -> VisionModel:
    torch.manual_seed(0)
    family = next(family for family in FAMILIES if name in family.variants)
    return create_model(name, **family.tiny)


def names_of(model: VisionModel, groups: list[dict[str, Any]]) -> dict[float, set[str]]:
    """Return the names of the parameters that have each weight decay."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert all(name not in other for other in found.values()), f"{name} is in two groups"
            found.setdefault(group["weight_decay"], set()).add(name)
    return found


def fill_gradients(model: VisionModel) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@every_family
def test_more_decays_where_it_is_asked_for(name: str) -> None:
    model = tiny(name)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names_of(model, parameter_groups(model, 0.05, None, "all")) == {0.05: set(trainable)}
    split = names_of(model, parameter_groups(model, 0.05, None, "matrices"))
    assert split[0.0] == {name for name, p in trainable.items() if p.ndim == 1 or name.endswith(".bias")}
    exempt = {name for name in trainable if name in model.no_weight_decay() and not name.endswith(".bias")}
    paper = names_of(model, parameter_groups(model, 0.05, None))
    assert split[0.05] == paper[0.05] | exempt
    assert exempt


@every_family
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_the_backbone_learns_at_its_share_of_the_heads_rate(name: str, layer_decay: float | None) -> None:
    model = tiny(name)
    names = {parameter: name for name, parameter in model.named_parameters()}

    def scales(backbone_scale: float) -> dict[str, float]:
        groups = parameter_groups(model, 0.05, layer_decay, "paper", backbone_scale)
        return {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}

    plain, scaled = scales(1.0), scales(0.01)
    assert plain.keys() == scaled.keys()
    for parameter, scale in scaled.items():
        assert scale == pytest.approx(plain[parameter] * (1 if parameter.startswith("head.") else 0.01))


@every_variant
def test_weight_decay_splits_the_parameters_as_timm_does(name: str) -> None:
    model = tiny(name)
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    ours = names_of(model, parameter_groups(model, 0.05, None))
    assert ours == names_of(model, theirs)
    assert set.union(*ours.values()) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert "head.weight" in ours[0.05]
    assert "head.bias" in ours[0.0]


@every_variant
def test_layer_decay_scales_each_parameter_by_its_depth(name: str) -> None:
    model = tiny(name)
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {
        names[parameter]: group["lr_scale"]
        for group in parameter_groups(model, 0.05, 0.5)
        for parameter in group["params"]
    }
    assert scales == {name: 0.5 ** (model.num_layers - model.layer_of(name)) for name in scales}
    assert scales["head.weight"] == 1
    assert min(scales.values()) == 0.5**model.num_layers
    assert len(set(scales.values())) == model.num_layers + 1


@every_variant
def test_layer_decay_leaves_the_weight_decay_of_every_parameter(name: str) -> None:
    model = tiny(name)
    plain, layered = (names_of(model, parameter_groups(model, 0.05, decay)) for decay in (None, 0.65))
    assert plain == layered


@every_family
def test_frozen_parameters_are_in_no_group(name: str) -> None:
    model = tiny(name)
    frozen = [parameter for key, parameter in model.named_parameters() if model.layer_of(key) == 1]
    for parameter in frozen:
        parameter.requires_grad_(False)
    grouped = {parameter for group in parameter_groups(model, 0.05, 0.5) for parameter in group["params"]}
    assert frozen
    assert not grouped & set(frozen)
    assert grouped == {parameter for parameter in model.parameters() if parameter.requires_grad}


def test_without_layer_decay_there_are_two_groups_of_scale_one() -> None:
    groups = parameter_groups(tiny("tnt_s_patch16_224"), 0.05, None)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.0, 1.0), (0.05, 1.0)]


@every_family
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_equal_torchs_optimizer_on_timms_groups(name: str, kind: Any) -> None:
    ours, theirs = tiny(name), tiny(name)
    groups = timm.optim.param_groups_weight_decay(theirs, 0.05, no_weight_decay_list=theirs.no_weight_decay())
    expected = (
        torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
        if kind == "adamw"
        else torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True)
    )
    optimizer = build_optimizer(ours, name=kind, **SETTINGS)
    before = copy.deepcopy(ours.state_dict())
    for _ in range(2):
        for model, stepped in ((ours, optimizer), (theirs, expected)):
            fill_gradients(model)
            stepped.step()
    found = ours.state_dict()
    # the fused kernels multiply in another order; a step is about 1e-2
    assert_close(found, theirs.state_dict(), rtol=0, atol=1e-6)
    for key, parameter in ours.named_parameters():
        assert torch.equal(found[key], before[key]) is not parameter.requires_grad


def test_layers_move_by_their_scale_of_the_learning_rate() -> None:
    model = tiny("tnt_s_patch16_224")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, name="sgd", **{**SETTINGS, "weight_decay": 0.0, "layer_decay": 0.5})
    set_learning_rate(optimizer, 1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 1e-2 * 0.5 ** (model.num_layers - model.layer_of(name)) if parameter.requires_grad else 0.0
        moved = rate * 1.9  # Nesterov's first step: the gradient and the momentum of it
        assert_close(parameter.detach(), before[name] - moved, rtol=0, atol=1e-7)  # rounding of values near 1


def test_learning_rate_of_each_group_is_scaled() -> None:
    optimizer = build_optimizer(tiny("tnt_s_patch16_224"), name="adamw", **{**SETTINGS, "layer_decay": 0.5})
    set_learning_rate(optimizer, 0.8)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.1, 0.2, 0.4, 0.8]
    set_learning_rate(optimizer, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}


def test_settings_reach_the_optimizer() -> None:
    adamw = build_optimizer(tiny("tnt_s_patch16_224"), name="adamw", **SETTINGS)
    assert isinstance(adamw, torch.optim.AdamW)
    assert {(group["betas"], group["eps"]) for group in adamw.param_groups} == {((0.8, 0.95), 1e-6)}
    sgd = build_optimizer(tiny("tnt_s_patch16_224"), name="sgd", **SETTINGS)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.9, True)}
