"""Models of timm, by the contract of our own: what they compute is timm's, and what they cannot do is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch.testing import assert_close

from vitrail.errors import ConfigError
from vitrail.models.catalogue import catalogue, count_models, measure_costs
from vitrail.models.family import VisionModel
from vitrail.models.registry import build_config, canonical_name, create_model, find_variant, is_model, list_models
from vitrail.models.timm_model import TimmModel

TINY: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"image_size": 64, "depth": 2, "embed_dim": 48},
    "deit_tiny_patch16_224": {"image_size": 64, "depth": 2, "embed_dim": 48},
    "deit_tiny_distilled_patch16_224": {"image_size": 64, "depth": 2, "embed_dim": 48},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "convnext_atto": {"image_size": 64},
    "test_resnet": {"image_size": 64},
    "mobilenetv3_small_050": {"image_size": 64},
}
every_model = pytest.mark.parametrize("name", TINY)


def build(name: str, **overrides: Any) -> VisionModel:
    torch.manual_seed(0)
    return create_model(f"timm:{name}", num_classes=5, **{**TINY[name], **overrides})


def build_theirs(name: str, **overrides: Any) -> Any:
    arguments = {**TINY[name], **overrides}
    size = arguments.pop("image_size", None)
    if size is not None and ("vit" in name or "deit" in name):
        arguments["img_size"] = size
    if "swin" in name:
        arguments["drop_path_rate"] = 0.0  # as ours is where nobody sets it; timm's own is 0.1
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **arguments)


def draw(model: VisionModel, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, model.config.in_channels, *model.config.size, generator=generator)


@every_model
def test_logits_and_weights_are_those_of_timm_in_evaluation_and_in_training(name: str) -> None:
    ours, theirs = build(name), build_theirs(name)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert [one for one, _ in ours.named_parameters()] == [one for one, _ in theirs.named_parameters()]
    images = draw(ours)
    with torch.inference_mode():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))
    torch.manual_seed(2)
    trained = ours.train()(images)
    torch.manual_seed(2)
    assert torch.equal(trained, theirs.train()(images))
    trained.sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters() if parameter.requires_grad)


@every_model
def test_vectors_maps_and_layers_are_as_promised(name: str) -> None:
    model = build(name).eval()
    images = draw(model)
    with torch.inference_mode():
        for level in (0, -1):
            for pooling in model.poolings:
                vectors = model.forward_vectors(images, level, pooling)
                assert vectors.shape == (2, model.count_vector(level, pooling))
        maps = model.forward_intermediates(images)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        assert torch.equal(model.forward_vectors(images), expected)
        tokens, size = list(model.levels(images))[-1]
        assert tokens.shape[1] >= size[0] * size[1]
    assert expected.shape[1] == model.num_features
    for one, level in zip(maps, model.feature_levels, strict=True):
        assert one.shape[1] == level.num_channels
        assert model.get_submodule(level.module) is not None
    layers = [model.layer_of(parameter) for parameter, _ in model.named_parameters()]
    assert (min(layers), max(layers)) == (0, model.num_layers)
    assert any(model.is_of_head(parameter) for parameter, _ in model.named_parameters())
    assert model.no_weight_decay() == set(getattr(model.timm_module, "no_weight_decay", set)())
    assert all(model.get_submodule(part) for part in model.parts())


@every_model
def test_head_is_replaced_and_removed_and_a_copy_is_whole(name: str) -> None:
    model = build(name).eval()
    images = draw(model)
    twin = copy.deepcopy(model)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert twin(images).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    twin.train()
    assert twin.timm_module.training
    assert not model.timm_module.training
    own = [*twin.named_children()]
    assert all(module is dict(twin.timm_module.named_children())[one] for one, module in own)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.thorough),
        pytest.param("test_resnet", marks=pytest.mark.thorough),
    ],
)
def test_exported_program_runs_at_any_batch(name: str) -> None:
    model = build(name).eval()
    program = torch.export.export(model, (draw(model),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert_close(program.module()(draw(model, 3)), model(draw(model, 3)))


def test_blocks_are_recomputed_where_timm_can() -> None:
    model = build("vit_tiny_patch16_224", drop_path_rate=0.2)
    model.set_grad_checkpointing()
    plain = build("vit_tiny_patch16_224", drop_path_rate=0.2)
    for one in (model, plain):
        torch.manual_seed(3)
        one(draw(one)).sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_a_whole_name_is_measured_and_lists_are_bounded() -> None:
    (row,) = catalogue("timm:test_resnet")
    family, variant = find_variant("timm:test_resnet")
    costs = measure_costs(family, variant.config)
    assert costs.params == sum(one.numel() for one in timm.create_model("test_resnet").parameters())
    assert row[:3] == ("timm:test_resnet", f"{costs.params / 1e6:.2f}", f"{costs.trainable / 1e6:.2f}")
    assert row[-1] == "160 px of 0.95, bilinear, mean and std 0.5"
    assert len(catalogue("timm:test_*")) == count_models("timm:test_*") < 100
    assert len(list_models("timm:*")) == count_models("timm:*") > 1000
    assert len(catalogue("timm:*")) == 100
    with pytest.raises(ConfigError, match="unknown model 'timm:resnet5O'; did you mean 'timm:resnet50'"):
        catalogue("timm:resnet5O")
    assert not [name for name in list_models() if name.startswith("timm:")]
    assert is_model("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert not is_model("timm:t2t_vit_7")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet5O", {}, "unknown model 'timm:resnet5O'; did you mean 'timm:resnet50'"),
        ("resnet50", {}, "unknown model 'resnet50'; did you mean 'timm:resnet50'?"),
        ("timm:resnet50.nobody", {}, "unknown model 'timm:resnet50.nobody'"),
        ("timm:vit_tiny_patch16_224", {"dept": 2}, "has no setting 'dept'; did you mean 'depth'"),
        ("timm:vit_tiny_patch16_224", {"checkpoint_path": "x"}, "checkpoint_path cannot be given to a model of timm"),
        ("timm:vit_tiny_patch16_224", {"pretrained_cfg_overlay": "x"}, "pretrained_cfg_overlay cannot be given"),
        ("timm:vit_tiny_patch16_224", {"img_size": 64}, "img_size is called image_size here"),
        ("timm:vit_tiny_patch16_224", {"arguments": {"depth": object()}}, "it must be a plain value"),
        ("timm:vit_tiny_patch16_224", {"num_heads": 5}, "timm refuses that (dim should be divisible by num_heads)"),
        ("timm:vit_tiny_patch16_224", {"drop_path_rate": 1.0}, "it must be from 0 to below 1"),
        ("timm:densenet121", {"drop_path_rate": 0.1}, "timm has no drop_path_rate for it; leave it at 0"),
        ("timm:test_resnet", {"image_size": 0}, "it must be positive"),
        ("timm:inception_v3", {"aux_logits": True}, "gives several answers in training, where one for each image"),
        ("timm:nest_tiny", {}, "has a part called levels, as a method is here, and cannot be taken"),
        ("timm:qwen3_vit_88m_enc", {"num_classes": 3}, "timm has no head for it, so it gives no classes"),
    ],
)
def test_what_a_model_cannot_do_is_refused_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_model(name, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert message in said


def test_layers_of_a_model_whose_groups_timm_does_not_tell_are_refused_where_they_are_asked_for() -> None:
    model = create_model("timm:pit_ti_224", num_classes=2)
    assert model.num_layers == 1
    assert model.parts() == []
    with pytest.raises(ConfigError, match=r"timm:pit_ti_224: timm does not tell .* leave out optim.layer_decay"):
        model.layer_of("norm.weight")


def test_a_model_that_timm_cannot_recompute_says_so() -> None:
    model = create_model("timm:ghostnet_050", num_classes=2, image_size=64)
    assert isinstance(model, TimmModel)
    model.set_grad_checkpointing(False)
    model.timm_module.set_grad_checkpointing = None
    with pytest.raises(ConfigError, match=r"timm cannot recompute its blocks .*; leave out train.grad_checkpointing"):
        model.set_grad_checkpointing()


def test_lists_in_a_recipe_and_in_a_weight_file_are_the_same_model() -> None:
    recipe = build_config("timm:test_resnet", layers=(1, 1, 1, 1), image_size=32)
    file = build_config("timm:test_resnet", arguments={"layers": [1, 1, 1, 1]}, image_size=32)
    assert recipe == file
    assert hash(recipe) == hash(file)
    assert recipe.list_options()["layers"] == [1, 1, 1, 1]
    assert "arguments" not in recipe.list_options()
    assert build_config("timm:test_resnet", **recipe.list_options()) == recipe


def test_the_name_is_kept_with_the_tag_of_its_weights() -> None:
    name = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert canonical_name(name) == name
    assert find_variant(name)[1].weights == "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert build_config(name, num_classes=3).num_classes == 3
