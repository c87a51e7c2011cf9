"""Parts that are frozen: which they are, that nothing of them is kept or drawn, and that they thaw."""

from __future__ import annotations

import copy

import pytest
import torch

from vitrail.errors import ConfigError
from vitrail.models.family import VisionModel
from vitrail.models.registry import FAMILIES, create_model
from vitrail.training.optim.freezing import Freeze

every_family = pytest.mark.parametrize("name", [next(iter(family.variants)) for family in FAMILIES])

DEPTHS = {
    "tnt_ti_patch16_224": {
        0: (
            "cls_token",
            "outer_tokens",
            "outer_pos",
            "inner_pos",
            "patch_embed.",
            "proj.",
            "proj_norm1.",
            "proj_norm2.",
        ),
        1: ("blocks.0.",),
        2: ("blocks.1.",),
        3: ("norm.", "head."),
    },
    "t2t_vit_7": {
        0: ("cls_token", "pos_embed", "tokens_to_token."),
        1: ("blocks.0.",),
        2: ("blocks.1.",),
        3: ("norm.", "head."),
    },
    "twins_pcpvt_small": {
        0: ("patch_embeds.0.",),
        1: ("blocks.0.0.", "pos_block.0."),
        2: ("blocks.0.1.", "patch_embeds.1."),
        3: ("blocks.1.0.", "pos_block.1."),
        4: ("blocks.1.1.", "patch_embeds.2."),
        5: ("blocks.2.0.", "pos_block.2."),
        6: ("blocks.2.1.", "patch_embeds.3."),
        7: ("blocks.3.0.", "pos_block.3."),
        8: ("norm.", "head."),
    },
    "ptnt_ti_patch16_192": {
        0: ("outer_pos", "inner_pos", "patch_embed."),
        1: ("stages.0.", "word_merges.0.", "sentence_merges.0."),
        2: ("stages.1.relative_pos", "stages.1.blocks.0."),
        3: ("stages.1.blocks.1.", "word_merges.1.", "sentence_merges.1."),
        4: ("stages.2.", "word_merges.2.", "sentence_merges.2."),
        5: ("stages.3.",),
        6: ("norm.", "head."),
    },
}  # inner and outer transformers of a TNT together, the T2T module as the stem, stages in the order they run
SHAPES = {
    "tnt_ti_patch16_224": {"depth": 2},
    "t2t_vit_7": {"depth": 2},
    "twins_pcpvt_small": {"depths": (2, 2, 2, 1)},
    "ptnt_ti_patch16_192": {"depths": (1, 2, 1, 1)},
}


def tiny(name: str, **more: object) -> VisionModel:
    torch.manual_seed(0)
    family = next(family for family in FAMILIES if name in family.variants)
    return create_model(name, **{**family.tiny, **more})


@pytest.mark.parametrize("name", DEPTHS)
def test_every_weight_has_the_depth_at_which_it_is_computed_with(name: str) -> None:
    model = tiny(name, **SHAPES[name])
    expected = {
        parameter: depth
        for depth, beginnings in DEPTHS[name].items()
        for parameter, _ in model.named_parameters()
        if parameter.startswith(beginnings)
    }
    assert {parameter: model.layer_of(parameter) for parameter, _ in model.named_parameters()} == expected
    assert model.num_layers == max(DEPTHS[name])


@pytest.mark.parametrize(
    ("name", "until", "frozen_layers"),
    [
        ("tnt_ti_patch16_224", "1", 1),
        ("tnt_ti_patch16_224", "blocks.1", 2),
        ("tnt_ti_patch16_224", "norm", 3),
        ("t2t_vit_7", "blocks.0", 1),
        ("t2t_vit_7", "3", 3),
        ("twins_pcpvt_small", "blocks.2", 5),
        ("twins_pcpvt_small", "blocks.1.1", 4),
        ("twins_pcpvt_small", "norm", 8),
        ("ptnt_ti_patch16_192", "stages.1.blocks.1", 3),
        ("ptnt_ti_patch16_192", "stages.2", 4),
    ],
)
def test_what_comes_before_a_part_is_frozen(name: str, until: str, frozen_layers: int) -> None:
    model = tiny(name, **SHAPES[name])
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    freeze = Freeze(model, until)
    freeze.begin()
    kept = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert kept == {key for key in trainable if model.layer_of(key) >= frozen_layers}
    freeze.end()
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == trainable


@every_family
def test_the_head_alone_may_be_trained(name: str) -> None:
    model = tiny(name)
    Freeze(model, "head").begin()
    assert {key for key, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("name", "until", "message"),
    [
        (
            "tnt_ti_patch16_224",
            "blocks.2",
            "freeze.until is blocks.2; it must be a layer from 1 to 3, a part from blocks.0 to blocks.1, norm or "
            "head; did you mean 'blocks.1'?",
        ),
        (
            "twins_pcpvt_small",
            "stem",
            "freeze.until is stem; it must be a layer from 1 to 8, a part from blocks.0 to blocks.3.0, norm or head",
        ),
        (
            "t2t_vit_7",
            "0",
            "freeze.until is 0; it must be a layer from 1 to 3, a part from blocks.0 to blocks.1, norm or head",
        ),
        (
            "t2t_vit_7",
            "4",
            "freeze.until is 4; it must be a layer from 1 to 3, a part from blocks.0 to blocks.1, norm or head",
        ),
    ],
)
def test_a_part_that_is_not_there_is_refused_with_those_that_are(name: str, until: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Freeze(tiny(name, **SHAPES[name]), until)
    assert str(caught.value) == message


def kept_bytes(model: VisionModel, images: torch.Tensor) -> int:
    """Return the bytes of activations that a forward pass keeps for the backward pass; weights are no activations."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
    assert logits.requires_grad
    return sum(kept.values())


@every_family
def test_activations_of_frozen_parts_are_not_kept(name: str) -> None:
    model = tiny(name, **SHAPES[name])
    images = torch.randn(2, 3, *model.config.size)
    model.train()
    whole = kept_bytes(model, images)
    last = {"twins_pcpvt_small": "blocks.3", "ptnt_ti_patch16_192": "stages.3"}.get(name, "blocks.1")
    sizes = []
    for until in (last, "head"):
        freeze = Freeze(model, until)
        freeze.begin()
        freeze.still()
        sizes.append(kept_bytes(model, images))
        freeze.end()
    assert sizes[0] < 0.55 * whole
    assert sizes[1] < 0.02 * whole


@every_family
def test_frozen_parts_draw_no_dropout_and_no_drop_path(name: str) -> None:
    model = tiny(name, **SHAPES[name], drop_rate=0.5, drop_path_rate=0.5)
    images = torch.randn(2, 3, *model.config.size)
    model.train()
    assert not torch.equal(model(images), model(images))
    freeze = Freeze(model, "head")
    freeze.begin()
    freeze.still()
    assert model.training
    assert torch.equal(model(images), model(images))
    assert torch.equal(model(images), copy.deepcopy(model).eval()(images))
    # what is not frozen still draws
    model.train()
    Freeze(model, {"twins_pcpvt_small": "blocks.2", "ptnt_ti_patch16_192": "stages.2"}.get(name, "blocks.1")).still()
    assert not torch.equal(model(images), model(images))
