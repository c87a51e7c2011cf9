"""Relevance through attention: equal to the papers' formulas where they apply, and kept where it is carried on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.explained_models import NAMES, PYRAMID, build, random_images
from vitrail.errors import ConfigError
from vitrail.explanation.attention import Windows, record_attention
from vitrail.explanation.placing import (
    cut_windows,
    divide,
    join_windows,
    share_cells,
    spread_cells,
    spread_merged,
    spread_split,
)
from vitrail.explanation.relevance import roll_out, weigh_by_gradient
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model

CLASSES = torch.tensor([1, 2])


def roll_out_plainly(model: VisionModel, images: Tensor, level: str) -> Tensor:
    """Return rollout as the paper has it, the product of whole matrices."""
    with record_attention(model) as recorded, torch.no_grad():
        model(images)
    product = None
    for one in recorded:
        if one.level == level:
            step = (one.shares.mean(1) + torch.eye(one.shares.shape[-1])) / 2
            product = step if product is None else step @ product
    assert product is not None
    return product[:, 0, 1:]


def weigh_plainly(model: VisionModel, images: Tensor, level: str) -> Tensor:
    """Return gradient-weighted attention as the paper has it."""
    with record_attention(model) as recorded:
        logits = model(images)
    chosen = [one for one in recorded if one.level == level]
    of_outputs = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), [one.output for one in chosen])
    relevance = torch.eye(chosen[0].shares.shape[-1]).repeat(len(images), 1, 1)
    for one, of_output in zip(chosen, of_outputs, strict=True):
        relevance = relevance + (one.shares * one.gradient(of_output)).clamp(min=0).mean(1) @ relevance
    return relevance[:, 0, 1:].detach()


@pytest.mark.parametrize(("name", "level"), [("tnt_ti_patch16_224", "sentence"), ("t2t_vit_7", "token")])
def test_the_coarse_level_is_the_papers(name: str, level: str) -> None:
    model = build(name)
    images = random_images(model)
    rolled = next(iter(roll_out(model, images, CLASSES).values()))
    torch.testing.assert_close(rolled.flatten(1), roll_out_plainly(model, images, level))
    weighed = next(iter(weigh_by_gradient(model, images, CLASSES).values()))
    torch.testing.assert_close(weighed.flatten(1), weigh_plainly(model, images, level))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tnt_ti_patch16_224", {"sentences": (2, 3), "words": (8, 12)}),
        ("tnt_s_legacy_patch16_224", {"sentences": (2, 3), "words": (8, 12)}),
        ("t2t_vit_7", {"tokens": (2, 3), "pixels": (32, 48)}),
        ("t2t_vit_t_14", {"tokens": (2, 3), "pixels": (32, 48)}),
        ("twins_svt_small", {"stage-4": (1, 1), "stage-3": (2, 3), "stage-2": (4, 6), "tokens": (8, 12)}),
        ("twins_pcpvt_small", {"stage-4": (1, 1), "stage-3": (2, 3), "stage-2": (4, 6), "tokens": (8, 12)}),
    ],
)
@pytest.mark.parametrize("method", [roll_out, weigh_by_gradient])
def test_maps_have_the_grids_of_their_family_and_are_never_all_zero(name: str, sizes: dict, method: object) -> None:
    model = build(name, image_size=(32, 48))
    maps = method(model, random_images(model), CLASSES)  # pyright: ignore[reportCallIssue]
    assert {level: tuple(one.shape[1:]) for level, one in maps.items()} == sizes
    assert list(maps) == list(sizes)
    for one in maps.values():
        assert not one.requires_grad
        assert (one >= 0).all()
        if one[0].numel() > 1:  # the last stage of so small an image is one token
            assert (one.flatten(1).amax(1) > one.flatten(1).amin(1)).all()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["tnt_ti_patch16_224", "t2t_vit_7"])
def test_a_model_of_one_block_has_a_map_too(name: str, depth: int) -> None:
    model = build(name, depth=depth)
    maps = weigh_by_gradient(model, random_images(model), CLASSES)
    assert all((one.flatten(1).amax(1) > 0).all() for one in maps.values())


@pytest.mark.parametrize("method", [roll_out, weigh_by_gradient])
def test_words_sum_to_their_sentence_and_soft_splits_keep_the_sum(method: object) -> None:
    model = build("tnt_ti_patch16_224", image_size=(32, 48))
    maps = method(model, random_images(model), CLASSES)  # pyright: ignore[reportCallIssue]
    summed = maps["words"].unflatten(2, (3, 4)).unflatten(1, (2, 4)).sum(dim=(2, 4))
    torch.testing.assert_close(summed, maps["sentences"])


def test_rollout_keeps_the_sum_through_soft_splits_and_stages() -> None:
    model = build("t2t_vit_t_14", image_size=(32, 48))
    maps = roll_out(model, random_images(model), CLASSES)
    torch.testing.assert_close(maps["pixels"].sum((1, 2)), maps["tokens"].sum((1, 2)))
    model = build("twins_pcpvt_small", image_size=64)
    maps = roll_out(model, random_images(model), CLASSES)
    for one in maps.values():
        torch.testing.assert_close(one.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize("is_rollout", [True, False])
@pytest.mark.parametrize(
    ("name", "side", "stage"), [("twins_pcpvt_small", 64, "blocks.3."), (PYRAMID, 128, "stages.3.")]
)
def test_the_last_stage_has_what_its_own_attention_gives(name: str, side: int, stage: str, is_rollout: bool) -> None:
    model = build(name, image_size=side)
    images = random_images(model)
    with record_attention(model) as recorded:
        logits = model(images)
    last = [one for one in recorded if one.name.startswith(stage) and one.level != "word"]
    of_outputs = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), [one.output for one in last])
    relevance = torch.full((2, 1, 4), 1 / 4)
    for one, of_output in reversed(list(zip(last, of_outputs, strict=True))):
        if is_rollout:
            relevance = (relevance + relevance @ one.shares.mean(1)) / 2
        else:
            relevance = relevance + relevance @ (one.shares * one.gradient(of_output)).clamp(min=0).mean(1)
    expected = relevance if is_rollout else relevance - 1 / 4
    method = roll_out if is_rollout else weigh_by_gradient
    found = method(model, images, CLASSES)["stage-4"]
    torch.testing.assert_close(found, expected.detach().reshape(2, 2, 2))


def test_the_words_of_a_sentence_depend_on_the_class_and_are_not_even() -> None:
    model = build("tnt_ti_patch16_224")
    images = random_images(model)
    first = weigh_by_gradient(model, images, torch.tensor([0, 0]))["words"]
    other = weigh_by_gradient(model, images, torch.tensor([1, 1]))["words"]
    assert not torch.allclose(first, other)
    within = first[:, :4, :4].flatten(1)
    assert (within.amax(1) > within.amin(1)).all()


def test_words_share_their_sentence_by_what_their_pixels_add_to_the_logit() -> None:
    model = build("tnt_ti_patch16_224", image_size=(32, 48))
    images = random_images(model).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[[0, 1], CLASSES].sum(), images)
    maps = weigh_by_gradient(model, images.detach(), CLASSES)
    added = ((images - images.mean((2, 3), keepdim=True)) * gradient).sum(1).detach()
    for row, column in ((0, 0), (1, 2)):
        patch = added[1, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        weights = torch.stack([torch.stack([cell.sum() for cell in band.split(4, 1)]) for band in patch.split(4)])
        shares = weights.clamp(min=0) / weights.clamp(min=0).sum()
        words = maps["words"][1, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        torch.testing.assert_close(words, shares * maps["sentences"][1, row, column])


def test_pixels_of_a_cell_share_what_soft_splits_carry_there_by_what_they_add_to_the_logit() -> None:
    model = build("t2t_vit_t_14", image_size=(32, 48))
    images = random_images(model).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[[0, 1], CLASSES].sum(), images)
    added = ((images - images.mean((2, 3), keepdim=True)) * gradient).sum(1).detach().clamp(min=0)
    pixels = weigh_by_gradient(model, images.detach(), CLASSES)["pixels"]
    for cell, weights in ((pixels[1, :16, 32:], added[1, :16, 32:]), (pixels[0, 16:, :16], added[0, 16:, :16])):
        torch.testing.assert_close(cell / cell.sum(), weights / weights.sum(), atol=1e-5, rtol=1e-3)


def test_a_cell_keeps_its_sum_and_is_even_where_nothing_weighs() -> None:
    relevance = torch.arange(24.0).reshape(1, 4, 6)
    weights = torch.zeros(1, 4, 6)
    weights[0, 0, 1], weights[0, 1, 1] = 3, 1
    shared = share_cells(relevance, weights, 2)
    assert shared[0, :2, :2].tolist() == [[0, 10.5], [0, 3.5]]
    assert shared[0, 2:, 4:].tolist() == [[19.5, 19.5], [19.5, 19.5]]
    # of a cell of 4 there is one, and left-over columns keep what they have
    shared = share_cells(relevance, weights, 4)
    assert shared[0, :, :4].sum() == relevance[0, :, :4].sum()
    assert torch.equal(shared[0, :, 4:], relevance[0, :, 4:])


def test_tokens_of_twins_divide_what_the_last_stage_gives_them_by_what_they_add() -> None:
    model = build("twins_svt_small", image_size=(64, 96))
    images = random_images(model).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[[0, 1], CLASSES].sum(), images)
    added = ((images - images.mean((2, 3), keepdim=True)) * gradient).sum(1).detach()
    of_tokens = added.unflatten(2, (24, 4)).unflatten(1, (16, 4)).sum((2, 4)).clamp(min=0)
    tokens = weigh_by_gradient(model, images.detach(), CLASSES)["tokens"]
    side = math.prod(model.config.patch_sizes[1:])
    cell, weights = tokens[1, :side, -side:], of_tokens[1, :side, -side:]
    torch.testing.assert_close(cell / cell.sum(), weights / weights.sum(), atol=1e-5, rtol=1e-3)


def test_a_pyramid_has_a_map_of_each_stage_and_of_its_words() -> None:
    model = build(PYRAMID, image_size=(64, 96))
    images = random_images(model)
    sizes = {"stage-4": (1, 2), "stage-3": (2, 3), "stage-2": (4, 6), "sentences": (8, 12)}
    rolled = roll_out(model, images, CLASSES)
    assert {level: tuple(one.shape[1:]) for level, one in rolled.items()} == sizes
    for one in rolled.values():  # through an odd grid too
        torch.testing.assert_close(one.sum((1, 2)), torch.ones(2))
        assert (one >= 0).all()
    weighed = weigh_by_gradient(model, images, CLASSES)
    assert {level: tuple(one.shape[1:]) for level, one in weighed.items()} == {**sizes, "words": (32, 48)}
    assert list(weighed)[-1] == "words"
    summed = weighed["words"].unflatten(2, (12, 4)).unflatten(1, (8, 4)).sum(dim=(2, 4))
    torch.testing.assert_close(summed, weighed["sentences"])
    other = weigh_by_gradient(model, images, CLASSES - 1)
    assert not torch.allclose(other["sentences"], weighed["sentences"])


def test_of_two_images_each_has_the_map_that_it_has_alone() -> None:
    for name in NAMES:
        model = build(name)
        images = random_images(model)
        together = weigh_by_gradient(model, images, CLASSES)
        alone = weigh_by_gradient(model, images[1:], CLASSES[1:])
        for level, one in alone.items():
            torch.testing.assert_close(together[level][1:], one, atol=1e-6, rtol=1e-3)


def test_a_model_in_training_mode_is_left_so_and_draws_nothing() -> None:
    model = build("tnt_ti_patch16_224", drop_rate=0.5)
    images = random_images(model)
    expected = weigh_by_gradient(model, images, CLASSES)["words"]
    model.train()
    model.patch_embed.eval()
    assert torch.equal(weigh_by_gradient(model, images, CLASSES)["words"], expected)
    assert model.training
    assert not model.patch_embed.training


@pytest.mark.parametrize("name", NAMES)
def test_what_answered_in_inference_mode_is_explained_and_answers_on_as_it_did(name: str) -> None:
    model = build(name, image_size=64)
    images = random_images(model)
    with torch.inference_mode():
        before = model(images)
    weigh_by_gradient(model, images, CLASSES)
    with torch.inference_mode():
        assert torch.equal(model(images), before)


def test_attention_that_is_unknown_is_refused() -> None:
    model = create_model("timm:resnet10t", num_classes=3)
    with pytest.raises(ConfigError, match="tells nothing of its attention"):
        roll_out(model, torch.zeros(1, 3, 224, 224), CLASSES[:1])


def test_a_twins_whose_attention_is_even_has_an_even_map() -> None:
    model = build("twins_pcpvt_small", image_size=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn.q." in name:
                parameter.zero_()
    rolled = roll_out(model, random_images(model), CLASSES)["tokens"]
    torch.testing.assert_close(rolled, torch.full_like(rolled, 1 / 256))


def test_an_even_map_stays_even_through_overlapping_neighbourhoods() -> None:
    spread = spread_split(torch.ones(1, 16), (16, 16), 7, 4).reshape(16, 16)
    assert spread.sum().item() == pytest.approx(16)
    # neighbourhoods at the border lose what they have of the padding
    torch.testing.assert_close(spread[5:10, 5:10], torch.full((5, 5), 1 / 16))


def test_a_token_of_a_soft_split_reaches_its_neighbourhood_alone() -> None:
    relevance = torch.zeros(1, 16)
    relevance[0, 5] = 1  # row 1, column 1 of 4 x 4
    spread = spread_split(relevance, (8, 8), 3, 2).reshape(8, 8)
    assert spread[1:4, 1:4].sum().item() == pytest.approx(1)
    assert (spread[1:4, 1:4] > 0).all()


def test_left_over_tokens_get_nothing_and_cells_share() -> None:
    spread = spread_cells(torch.tensor([[4.0, 8.0]]), (3, 4), 2)
    assert spread.reshape(3, 4).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0]]


def test_two_by_two_tokens_share_what_they_were_merged_to_and_odd_ones_have_it_alone() -> None:
    spread = spread_merged(torch.tensor([[4.0, 8.0, 2.0, 6.0]]), (3, 3))
    assert spread.reshape(3, 3).tolist() == [[1, 1, 4], [1, 1, 4], [1, 1, 6]]


def test_windows_are_put_where_they_were_cut() -> None:
    windows = Windows(rows=2, columns=3, side=2, height=3, width=5)
    relevance = torch.arange(30.0).reshape(2, 15)
    cut = cut_windows(relevance, windows)
    assert cut.shape == (12, 4)
    assert cut[1].tolist() == [2, 3, 7, 8]
    assert cut[5].tolist() == [14, 0, 0, 0]
    assert torch.equal(join_windows(cut, windows), relevance)


def test_what_weighs_nothing_is_divided_evenly() -> None:
    divided = divide(torch.tensor([2.0, 3.0]), torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    assert divided.tolist() == [[1, 1], [1, 2]]
