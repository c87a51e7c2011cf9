"""Images of any size for dense tasks: every family with `dynamic_image_size`, over what its maps and tables become."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from vitrail.models.any_size import resize_pairs, resize_positions
from vitrail.models.family import Family, VisionModel
from vitrail.models.registry import FAMILIES, create_model

BUILT = 64
every_family = pytest.mark.parametrize("family", [pytest.param(one, id=one.name) for one in FAMILIES])


def build(family: Family[Any], **overrides: Any) -> VisionModel:
    """Build a tiny backbone in evaluation, with tables of positions and biases off the zeros that they start from."""
    torch.manual_seed(0)
    name = next(iter(family.variants))
    model = create_model(name, **{**family.tiny, "image_size": BUILT, "dynamic_image_size": True, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def draw(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@every_family
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 100), (131, 65)], ids=str)
def test_maps_of_images_of_any_size_cover_them(family: Family[Any], size: tuple[int, int]) -> None:
    model = build(family)
    with torch.no_grad():
        maps = model.forward_intermediates(draw(*size))
        last = model.forward_intermediates(draw(*size), [-1], norm=True)[0]
        assert model(draw(*size)).isfinite().all()
    expected = [
        (2, level.num_channels, -(-size[0] // level.reduction), -(-size[1] // level.reduction))
        for level in model.feature_levels
    ]
    assert [tuple(one.shape) for one in maps] == expected
    assert last.shape == maps[-1].shape
    assert all(one.isfinite().all() for one in maps)


@every_family
def test_at_the_built_size_nothing_changes(family: Family[Any]) -> None:
    dynamic, fixed = build(family), build(family, dynamic_image_size=False)
    images = draw(BUILT, BUILT)
    with torch.no_grad():
        assert torch.equal(dynamic(images), fixed(images))
        for one, other in zip(dynamic.forward_intermediates(images), fixed.forward_intermediates(images), strict=True):
            assert torch.equal(one, other)


@every_family
def test_an_image_is_padded_with_zeros_right_and_bottom(family: Family[Any]) -> None:
    model = build(family)
    images = draw(50, 83)
    whole = pad(images, (0, 96 - 83, 0, 64 - 50))  # 16 and 32 divide both
    with torch.no_grad():
        found, expected = model.forward_intermediates(images), model.forward_intermediates(whole)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other[:, :, : one.shape[2], : one.shape[3]])


@every_family
def test_another_size_is_what_weights_adapted_to_it_compute(family: Family[Any]) -> None:
    """Resizing as images come, and when weights are loaded for that size, are the same."""
    from vitrail.weights.adapt import adapt

    model, size = build(family), (96, 128)
    target = replace(model.config, image_size=size)
    weights, _ = adapt(
        model.state_dict(),
        model.config,
        target,
        "weights",
        family=family,
        old_classes=(),
        new_classes=(),
        keep_head=True,
    )
    other = family.model(target)
    other.load_state_dict(weights)
    with torch.no_grad():
        assert_close(model(draw(*size)), other.eval()(draw(*size)))


@every_family
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_weight_at_another_size(family: Family[Any], checkpointing: bool) -> None:
    model = build(family, num_classes=0)
    model.set_grad_checkpointing(checkpointing)
    model.train()
    maps = model.forward_intermediates(draw(70, 96), norm=True)
    torch.stack([one.square().mean() for one in maps]).sum().backward()
    without = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert without == []
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


@every_family
def test_recomputed_blocks_give_the_same_gradients_at_another_size(family: Family[Any]) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(family, num_classes=0, drop_path_rate=0.5)
        model.set_grad_checkpointing(checkpointing)
        model.train()
        torch.manual_seed(2)
        sum(one.square().mean() for one in model.forward_intermediates(draw(70, 96, batch=4))).backward()
        found.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert_close(found[0], found[1])


@every_family
def test_bfloat16_stays_close_at_another_size(family: Family[Any]) -> None:
    model, images = build(family), draw(70, 96)
    with torch.no_grad():
        (expected,) = model.forward_intermediates(images, [-1])
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = model.forward_intermediates(images, [-1])
        (low,) = model.bfloat16().forward_intermediates(images.bfloat16(), [-1])
    for one in (found, low):
        assert (one.float() - expected).norm() < 0.05 * expected.norm()


@every_family
def test_a_program_is_exported_at_the_built_size(family: Family[Any]) -> None:
    model = build(family)
    program = torch.export.export(model, (draw(BUILT, BUILT),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert not [node for node in program.graph.nodes if "bicubic" in str(node.target)]
    images = draw(BUILT, BUILT, batch=3)
    assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("grid", [(4, 4), (7, 3), (2, 9)], ids=str)
@pytest.mark.parametrize("extra", [0, 1])
def test_positions_are_resized_as_timm_resizes_them(grid: tuple[int, int], extra: int) -> None:
    table = torch.randn(1, 4 * 6 + extra, 8)
    expected = resample_abs_pos_embed(table, list(grid), [4, 6], num_prefix_tokens=extra)
    assert_close(resize_positions(table, (4, 6), grid), expected)
    assert resize_positions(table, (4, 6), (4, 6)) is table


def test_pairs_are_resized_over_both_grids() -> None:
    rows, cells = torch.randn(2, 3 * 4), torch.randn(2, 2 * 2)
    table = torch.einsum("hn,hm->hnm", rows, cells)[None]
    found = resize_pairs(table, ((3, 4), (2, 2)), ((6, 5), (3, 4)))
    first = resize_positions(rows.T[None], (3, 4), (6, 5))[0].T
    second = resize_positions(cells.T[None], (2, 2), (3, 4))[0].T
    assert_close(found, torch.einsum("hn,hm->hnm", first, second)[None])


def test_a_model_that_takes_one_size_says_how_it_takes_others() -> None:
    model = create_model("tnt_ti_patch16_224", depth=1, num_classes=0, image_size=32)
    message = (
        "images are (40, 32) but this TNT was built for (32, 32); build it with image_size=(height, width), "
        "or with dynamic_image_size=True for images of any size"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.forward_intermediates(draw(40, 32))
