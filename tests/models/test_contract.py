"""What every model offers, over every variant of every family; a new family is tested by being in FAMILIES."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from vitrail.errors import ConfigError
from vitrail.models.family import Family, ModelConfig, Variant, VisionModel
from vitrail.models.registry import FAMILIES, build_config, canonical_name, create_model, find_variant, list_models


def tiny_models() -> list[Any]:
    """Return every variant's tiny twin; variants whose twins are equal share one, named by the first of them."""
    distinct: dict[ModelConfig, Any] = {}
    for family in FAMILIES:
        for name, variant in family.variants.items():
            config = replace(variant.config, **family.tiny)
            distinct.setdefault(config, pytest.param(family, config, id=name))
    return list(distinct.values())


every_tiny = pytest.mark.parametrize(("family", "config"), tiny_models())
every_variant = pytest.mark.parametrize(
    ("family", "variant"),
    [pytest.param(family, variant, id=name) for family in FAMILIES for name, variant in family.variants.items()],
)


def build(family: Family[Any], config: ModelConfig, **overrides: Any) -> VisionModel:
    """Build a model in eval mode; biases, gains and tables are moved off the zeros and ones they start from."""
    torch.manual_seed(0)
    model = family.model(replace(config, **overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Run the code as users do: the checks of shapes and types that the tests add are no part of it, nor compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def random_images(model: VisionModel, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, model.config.in_channels, *model.config.size)


def gradients(model: VisionModel, images: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a training pass whose random draws are fixed."""
    model.train().zero_grad()
    torch.manual_seed(2)
    cross_entropy(model(images), torch.arange(len(images))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_tiny
def test_logits_features_and_tokens_have_the_promised_shapes(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    images = random_images(model)
    tokens = model.forward_features(images)
    features = model.forward_head(tokens, pre_logits=True)
    logits = model(images)
    assert tokens.ndim == 3
    assert (tokens.shape[0], tokens.shape[2]) == (2, model.num_features)
    assert features.shape == (2, model.num_features)
    assert logits.shape == (2, config.num_classes)
    assert logits.isfinite().all()
    assert torch.equal(model.forward_head(tokens), logits)
    assert torch.equal(model.head(features), logits)


@every_tiny
def test_gradient_reaches_every_trainable_parameter(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    found = gradients(model, random_images(model))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in found.items() if not gradient.isfinite().all()] == []
    assert [name for name, gradient in found.items() if not gradient.any()] == []


@every_tiny
def test_an_image_is_classified_alike_alone_and_in_a_batch(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    images = random_images(model, batch=3)
    with torch.no_grad():
        # the order of float32 sums may depend on the batch
        assert_close(model(images)[1:2], model(images[1:2]), atol=2e-6, rtol=1e-5)


@every_tiny
def test_evaluation_is_deterministic_and_training_with_drop_path_is_not(
    family: Family[Any], config: ModelConfig
) -> None:
    model = build(family, config, drop_path_rate=0.5)
    images = random_images(model, batch=4)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


@every_tiny
def test_drop_path_rate_changes_nothing_in_evaluation(family: Family[Any], config: ModelConfig) -> None:
    plain, dropping = build(family, config), build(family, config, drop_path_rate=0.5)
    with torch.no_grad():
        assert torch.equal(plain(random_images(plain)), dropping(random_images(plain)))


DROPOUTS = {
    "tnt": lambda c: 1 + c.depth * 2 * (1 + 2),
    "t2t_vit": lambda c: 1 + c.depth * (1 + 2),
    "twins": lambda c: len(c.depths) + sum(c.depths) * (1 + 2),
    "pyramid_tnt": lambda c: 1 + (sum(c.depths) + sum(2 if n > 6 else 1 for n in c.depths)) * (1 + 2),
}
"""Calls of a dropout in one forward pass of the official code, beside the performer's own: entry, attention, MLP."""


@every_tiny
def test_drop_rate_acts_where_the_official_code_has_it(
    family: Family[Any], config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, dropping = build(family, config), build(family, config, drop_rate=0.3)
    images = random_images(plain)
    rates: list[float] = []

    def count(x: Tensor, rate: float) -> Tensor:
        rates.append(rate)
        return x

    monkeypatch.setattr("vitrail.models.layers.dropout", count)
    with torch.no_grad():
        assert torch.equal(plain(images), dropping(images))
        plain.train()(images)
        assert not rates
        dropping.train()(images)
    assert rates == [0.3] * DROPOUTS[family.name](config)


@every_tiny
def test_dropout_changes_training_alone(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config, drop_rate=0.5)
    images = random_images(model, batch=4)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


@every_tiny
def test_head_can_be_replaced_and_removed(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    images = random_images(model)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    model.classes = ("a", "b")
    model.reset_classifier(3)
    assert model.classes == ()
    assert model(images).shape == (2, 3)
    assert model.config.num_classes == 3
    model.double().reset_classifier(5)
    assert model(images.double()).dtype == torch.float64
    model.float().reset_classifier(0)
    assert torch.equal(model(images), features)
    assert model.config.num_classes == 0
    headless = build(family, config, num_classes=0)
    headless.load_state_dict(model.state_dict())
    assert torch.equal(headless(images), features)
    with pytest.raises(ValueError, match="num_classes is -1"):
        model.reset_classifier(-1)


@every_tiny
@pytest.mark.parametrize("size", [(96, 64), (64, 160), (128, 128)], ids=str)
def test_other_and_oblong_image_sizes_are_taken(
    family: Family[Any], config: ModelConfig, size: tuple[int, int]
) -> None:
    model = build(family, config, image_size=size)
    images = random_images(model)
    assert images.shape[-2:] == size
    maps = model.forward_intermediates(images)
    assert [m.shape[-2:] for m in maps] == [
        (-(-size[0] // f.reduction), -(-size[1] // f.reduction)) for f in model.feature_levels
    ]
    assert model(images).isfinite().all()


@every_tiny
@pytest.mark.parametrize("in_channels", [1, 4])
def test_images_of_other_than_three_channels_are_taken(
    family: Family[Any], config: ModelConfig, in_channels: int
) -> None:
    model = build(family, config, in_channels=in_channels)
    assert model(random_images(model)).isfinite().all()


@every_tiny
def test_intermediate_maps_are_what_the_named_modules_return(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config, image_size=(96, 64))
    images = random_images(model)
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        # a block of TNT returns words and sentences; the map is made of the last
        return lambda module, args, output: seen.update({name: output[-1] if isinstance(output, tuple) else output})

    modules = dict(model.named_modules())
    for level in model.feature_levels:
        modules[level.module].register_forward_hook(remember(level.module))
    maps = model.forward_intermediates(images)
    assert len(maps) == len(model.feature_levels) == len(seen)
    for found, level in zip(maps, model.feature_levels, strict=True):
        height, width = -(-96 // level.reduction), -(-64 // level.reduction)
        assert found.shape == (2, level.num_channels, height, width)
        tokens = seen[level.module][:, -height * width :]  # without a class token
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens)


@every_tiny
def test_last_intermediate_map_with_norm_is_forward_features(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    images = random_images(model)
    last = model.forward_intermediates(images, [-1], norm=True)[0].flatten(2).transpose(1, 2)
    assert torch.equal(last, model.forward_features(images)[:, -last.shape[1] :])


@every_tiny
def test_vectors_are_what_the_head_reads_or_pooled_over_the_map(family: Family[Any], config: ModelConfig) -> None:
    model, n = build(family, config), len(build(family, config).feature_levels)
    images = random_images(model)
    with torch.no_grad():
        assert_close(model.forward_vectors(images), model.forward_head(model.forward_features(images), pre_logits=True))
        for level in (0, n - 1):
            (found,), (before,) = model.forward_maps(images, [level], norm=True)[1:]
            assert before.shape[1] == model.num_class_tokens
            assert_close(model.forward_vectors(images, level, "mean"), found.mean((2, 3)))
            assert_close(model.forward_vectors(images, level - n, "max"), found.amax((2, 3)))
            if model.num_class_tokens:
                assert_close(model.forward_vectors(images, level, "cls"), before[:, 0])
    if not model.num_class_tokens:
        with pytest.raises(ValueError, match="pooling is 'cls'; this model has head, mean, max"):
            model.forward_vectors(images, pooling="cls")


@every_tiny
def test_intermediate_levels_are_chosen_by_list_or_count(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    images, n = random_images(model), len(model.feature_levels)
    maps = model.forward_intermediates(images)
    for indices, expected in (([0], [0]), ([-1, 0], [0, n - 1]), ((0, 0), [0]), (1, [n - 1]), (n, range(n)), ([], [])):
        chosen = model.forward_intermediates(images, indices)
        assert len(chosen) == len(expected)
        assert all(torch.equal(a, maps[i]) for a, i in zip(chosen, expected, strict=True))
    for indices in ([n], [-n - 1], 0, n + 1, -1):
        with pytest.raises(ValueError, match="indices"):
            model.forward_intermediates(images, indices)


@every_tiny
def test_nothing_behind_the_last_chosen_level_is_computed(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    images, seen = random_images(model), []
    modules = dict(model.named_modules())
    for index, level in enumerate(model.feature_levels):
        modules[level.module].register_forward_hook(lambda *args, index=index: seen.append(index))
    for last in range(len(model.feature_levels)):
        seen.clear()
        model.forward_intermediates(images, [0, last])
        assert seen == list(range(last + 1))
    seen.clear()
    tokens, maps, _ = model.forward_maps(images, [0])
    assert seen == list(range(len(model.feature_levels)))
    assert torch.equal(tokens, model.forward_features(images))
    assert torch.equal(maps[0], model.forward_intermediates(images, [0])[0])


@every_tiny
def test_exempt_parameters_exist(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))


@every_tiny
def test_layers_grow_from_zero_along_the_forward_pass(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(model.num_layers + 1))
    order: list[int] = []

    def visit(name: str) -> Callable[..., None]:
        return lambda module, args: order.extend(
            layers[f"{name}.{key}"] for key, _ in module.named_parameters(recurse=False)
        )

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(visit(name))
    model(random_images(model))
    assert order == sorted(order)
    assert (order[0], order[-1]) == (0, model.num_layers)
    # parameters that the model itself owns, such as a class token, come before the first block
    assert all(layer == 0 for name, layer in layers.items() if "." not in name)


@every_tiny
def test_gradient_checkpointing_gives_the_same_gradients_from_less_memory(
    family: Family[Any], config: ModelConfig
) -> None:
    model = build(family, config, drop_path_rate=0.5)
    images = random_images(model, batch=4)
    kept = {False: 0, True: 0}
    found = {}
    for enable in kept:
        model.set_grad_checkpointing(enable)

        def count(tensor: Tensor, enable: bool = enable) -> Tensor:
            kept[enable] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found[enable] = gradients(model, images)
    assert kept[True] < kept[False]
    assert_close(found[True], found[False])


@every_tiny
def test_state_dict_makes_an_equal_model(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(9)
    other = family.model(config).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(random_images(model)), model(random_images(model)))


@every_tiny
def test_models_are_copied_and_pickled(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config
        assert torch.equal(other(random_images(model)), model(random_images(model)))


@every_tiny
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_stays_close_to_float32(family: Family[Any], config: ModelConfig, autocast: bool) -> None:
    model = build(family, config)
    images = random_images(model)
    with torch.no_grad():
        expected = model(images)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                found = model(images)
        else:
            found = model.bfloat16()(images.bfloat16())
    assert found.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits, so each of some 30 layers errs by up to 0.4%
    assert (found.float() - expected).norm() < 0.04 * expected.norm()


@every_tiny
def test_exported_program_runs_at_any_batch(family: Family[Any], config: ModelConfig) -> None:
    model = build(family, config)
    program = torch.export.export(model, (random_images(model),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in operators
    assert not {name for name in operators if "im2col" in name or "softmax" in name}
    module = program.module()
    for batch in (1, 3):
        images = random_images(model, batch)
        assert_close(module(images), model(images))


@pytest.mark.thorough
@every_tiny
@pytest.mark.usefixtures("without_shape_checks")
def test_training_pass_compiles_to_one_graph(family: Family[Any], config: ModelConfig) -> None:
    """Capture only: Inductor, which takes a minute for each of these, has nothing to add but PyTorch's own code."""
    model = build(family, config)
    eager = gradients(model, random_images(model))
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="eager")
    compiled = gradients(model, random_images(model))
    assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


@every_variant
@pytest.mark.usefixtures("without_shape_checks")
def test_parameter_counts_and_multiply_adds_equal_the_card(family: Family[Any], variant: Variant[Any]) -> None:
    with torch.device("meta"):
        model = family.model(variant.config).eval()
        with FlopCounterMode(display=False) as counter:
            logits = model(torch.empty(1, 3, *variant.config.size))
    assert logits.shape == (1, 1000)
    assert sum(p.numel() for p in model.parameters()) == variant.params
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == variant.trainable
    assert counter.get_total_flops() // 2 == variant.macs


@pytest.mark.parametrize(
    ("name", "num_classes", "trainable"),
    [("t2t_vit_19", 5, 38_638_315), ("t2t_vit_t_14", 5, 21_082_347), ("twins_svt_small", 1000, 24_060_776)],
)
def test_counts_published_with_the_mindspore_ports_are_reproduced(name: str, num_classes: int, trainable: int) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


@every_variant
def test_cards_are_complete(family: Family[Any], variant: Variant[Any]) -> None:
    assert variant.config.num_classes == 1000
    assert min(variant.config.size) >= 192
    assert (variant.top1 is None) == (variant.source == "")
    assert 0 < variant.crop <= 1
    assert len(variant.mean) == len(variant.std) == variant.config.in_channels


def test_names_are_unique_and_aliases_lead_to_models() -> None:
    names = list_models()
    aliases = {alias: target for family in FAMILIES for alias, target in family.aliases.items()}
    assert len(names) == len(set(names)) == 25
    assert sum(len(family.aliases) for family in FAMILIES) == len(aliases)
    assert not set(aliases) & set(names)
    assert set(aliases.values()) <= set(names)


def test_list_models_takes_a_pattern() -> None:
    assert list_models("*svt*") == ["twins_svt_small", "twins_svt_base", "twins_svt_large"]
    assert list_models("nothing*") == []


def test_a_foreign_name_is_answered_once_with_ours() -> None:
    for call in (canonical_name, find_variant, create_model):
        with warnings.catch_warnings(record=True) as caught, torch.device("meta"):
            warnings.simplefilter("always")
            call("tnt_tiny")
        assert [str(w.message) for w in caught] == ["model 'tnt_tiny' is called 'tnt_ti_patch16_224' here"]


@pytest.mark.usefixtures("without_shape_checks")
def test_create_model_is_the_class_over_the_overridden_config() -> None:
    with torch.device("meta"):
        model = create_model("twins_svt_small", num_classes=5, image_size=[64, 96], depths=[1, 1, 1, 1])
    assert model.config == build_config("twins_svt_small", num_classes=5, image_size=(64, 96), depths=(1, 1, 1, 1))
    assert sum(p.numel() for p in model.head.parameters()) == 513 * 5


@pytest.mark.usefixtures("without_shape_checks")
def test_configurations_are_hashable_values() -> None:
    for name in list_models():
        config = find_variant(name)[1].config
        values = {f.name: getattr(config, f.name) for f in fields(config)}
        # JSON and YAML have lists
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        assert hash(config) == hash(type(config)(**listed))
        assert config == type(config)(**listed)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tnt_m_patch16_224", {}, "unknown model 'tnt_m_patch16_224'; did you mean 'tnt_"),
        ("resnet", {}, "unknown model 'resnet'"),
        ("zzz", {}, f"unknown model 'zzz'; `vitrail models` shows all {len(list_models())}"),
        ("tnt_s_patch16_224", {"drop_path": 0.1}, "has no setting 'drop_path'; did you mean 'drop_path_rate'?"),
        ("tnt_s_patch16_224", {"xyzzy": 1}, "image_size, in_channels, num_classes"),
        (
            "tnt_s_patch16_224",
            {"image_size": 230},
            "230x230 is not a multiple of 16; the nearest sizes are 224x224 or 240x240",
        ),
        (
            "t2t_vit_14",
            {"image_size": (100, 224)},
            "100x224 is not a multiple of 16; the nearest sizes are 96x224 or 112x224",
        ),
        ("t2t_vit_14", {"image_size": 9}, "9x9 is not a multiple of 16; the nearest sizes are 16x16"),
        ("twins_svt_small", {"image_size": (31, 224)}, "31x224 is below 32 pixels; the nearest size is 32x224"),
        ("twins_svt_small", {"image_size": 0}, "image_size is 0; it must be positive"),
        ("twins_svt_small", {"image_size": (1, 2, 3)}, "image_size has 3 numbers; give one, or height and width"),
        ("tnt_s_patch16_224", {"image_size": 224.0}, "image_size is 224.0; it must be like 224"),
        ("tnt_s_patch16_224", {"image_size": "224"}, "image_size is '224'; it takes whole numbers"),
        ("tnt_s_patch16_224", {"num_classes": "10"}, "num_classes is '10'; it takes whole numbers"),
        ("tnt_s_patch16_224", {"depth": 2.5}, "depth is 2.5; it takes whole numbers"),
        ("tnt_s_patch16_224", {"in_channels": True}, "in_channels is True; it takes whole numbers"),
        ("t2t_vit_14", {"dynamic_image_size": "yes"}, "dynamic_image_size is 'yes'; it must be true or false"),
        ("t2t_vit_14", {"dynamic_image_size": 1}, "dynamic_image_size is 1; it must be true or false"),
        ("t2t_vit_14", {"dynamic_image_size": None}, "dynamic_image_size is None; it must be true or false"),
        (
            "twins_svt_small",
            {"dynamic_image_size": True, "image_size": (100, 224)},
            "image_size 100x224 is not a multiple of 32; the nearest sizes are 96x224 or 128x224",
        ),
        ("tnt_s_patch16_224", {"num_classes": -1}, "num_classes is -1; it must be at least 1, or 0 for no head"),
        ("tnt_s_patch16_224", {"drop_path_rate": "a lot"}, "drop_path_rate is 'a lot'; it must be like 0.0"),
        ("tnt_s_patch16_224", {"drop_path_rate": 1.0}, "drop_path_rate is 1.0; it must be from 0 to below 1"),
        ("twins_svt_small", {"drop_rate": 1.0}, "drop_rate is 1.0; it must be from 0 to below 1"),
        ("tnt_s_patch16_224", {"drop_path_rate": math.nan}, "drop_path_rate is nan"),
        ("tnt_s_patch16_224", {"gelu": "relu"}, "gelu is 'relu'; it must be 'erf' or 'tanh'"),
        ("tnt_s_patch16_224", {"norm_eps": 0.0}, "norm_eps and final_norm_eps must be positive"),
        ("tnt_s_patch16_224", {"num_heads": 7}, "embed_dim 384 cannot be split over num_heads 7"),
        ("tnt_s_patch16_224", {"num_heads": 0}, "embed_dim 384 cannot be split over num_heads 0"),
        ("tnt_s_patch16_224", {"inner_num_heads": 5}, "inner_dim 24 cannot be split over inner_num_heads 5"),
        ("tnt_s_patch16_224", {"inner_stride": 3}, "patch_size 16 is not a multiple of inner_stride 3"),
        ("tnt_s_patch16_224", {"depth": 0}, "patch_size, inner_stride, depth and mlp_ratio must be positive"),
        ("tnt_s_patch16_224", {"stem": "conv"}, "stem is 'conv'; it must be 'patch' or 'image'"),
        ("tnt_s_patch16_224", {"fold": "line"}, "fold is 'line'; it must be 'sentence' or 'word'"),
        ("tnt_s_patch16_224", {"biases": "none"}, "biases is 'none'; it must be 'all' or 'zoo'"),
        (
            "t2t_vit_14",
            {"tokens_type": "performers"},
            "tokens_type is 'performers'; it must be 'performer' or 'transformer'",
        ),
        ("t2t_vit_14", {"embed_dim": 63, "num_heads": 7}, "embed_dim is 63; the sinusoid needs an even number"),
        ("t2t_vit_14", {"mlp_ratio": 0}, "depth and mlp_ratio must be positive"),
        ("twins_svt_small", {"depths": (1, 2)}, "need one entry a stage each"),
        ("twins_svt_small", {"depths": 2}, "depths is 2; it must be like (2, 2, 10, 4)"),
        ("twins_svt_small", {"depths": (2, 2, 2.0, 2)}, "depths is (2, 2, 2.0, 2); it takes whole numbers"),
        ("twins_svt_small", {"sr_ratios": (8, 4, 2, 0)}, "must be positive"),
        ("twins_svt_small", {"window_size": 0}, "window_size is 0; it must be positive, or none for PCPVT"),
        ("twins_svt_small", {"num_heads": (3, 4, 8, 16)}, "embed_dims 64 cannot be split over num_heads 3"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_wrong_request_is_explained(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        create_model(name, **overrides)


@pytest.mark.usefixtures("without_shape_checks")
def test_all_problems_of_a_configuration_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"num_classes is -2.*drop_path_rate is 2.*cannot be split over num_heads 7"):
        create_model("tnt_s_patch16_224", num_classes=-2, drop_path_rate=2, num_heads=7)


OF_AN_ADDED_FAMILY = (
    test_logits_features_and_tokens_have_the_promised_shapes,
    test_gradient_reaches_every_trainable_parameter,
    test_head_can_be_replaced_and_removed,
    test_intermediate_maps_are_what_the_named_modules_return,
    test_nothing_behind_the_last_chosen_level_is_computed,
    test_layers_grow_from_zero_along_the_forward_pass,
)
"""What the tests of families outside of FAMILIES check of them."""
