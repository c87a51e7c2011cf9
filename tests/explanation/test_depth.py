"""How far attention reaches and how alike tokens are, over the depth of a network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.explained_models import NAMES, build, random_images
from vitrail.explanation.attention import record_attention
from vitrail.explanation.depth import measure_depth, measure_likeness, measure_reach


def reach_plainly(shares: Tensor, queries: list[tuple[float, float]], keys: list[tuple[float, float]]) -> Tensor:
    """Return the mean distance of each head, one query and one key after the other."""
    found = torch.zeros(shares.shape[1])
    for image in shares:
        for head, of_queries in enumerate(image):
            for query, of_keys in zip(queries, of_queries, strict=True):
                total = of_keys.sum().item()
                for key, share in zip(keys, of_keys, strict=True):
                    found[head] += share.item() / total * math.dist(query, key)
    return found / (len(shares) * len(queries))


def grid(rows: int, columns: int, step: float) -> list[tuple[float, float]]:
    return [((row + 0.5) * step, (column + 0.5) * step) for row in range(rows) for column in range(columns)]


def test_reach_is_the_mean_distance_by_shares() -> None:
    torch.manual_seed(0)
    shares = torch.rand(2, 3, 6, 2).softmax(-1)
    queries, keys = grid(2, 3, 4), grid(1, 2, 8)
    found = measure_reach(shares, torch.tensor(queries), torch.tensor(keys))
    torch.testing.assert_close(found, reach_plainly(shares, queries, keys))
    at_itself = torch.eye(6).expand(1, 1, 6, 6)
    assert measure_reach(at_itself, torch.tensor(queries), torch.tensor(queries)).item() == 0


def test_padding_is_left_out() -> None:
    torch.manual_seed(0)
    shares = torch.rand(2, 1, 4, 4).softmax(-1)
    places = grid(2, 2, 4)
    real = torch.tensor([[True, True, True, True], [True, False, True, False]])
    found = measure_reach(shares, torch.tensor(places), torch.tensor(places), real)
    whole = reach_plainly(shares[:1], places, places) * 4
    part = reach_plainly(shares[1:, :, ::2, ::2], places[::2], places[::2]) * 2
    torch.testing.assert_close(found, (whole + part) / 6)


def test_likeness_is_the_mean_cosine_of_pairs() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 5, 8)
    for image, found in zip(tokens, measure_likeness(tokens), strict=True):
        pairs = [torch.cosine_similarity(image[i], image[j], 0) for i in range(5) for j in range(5) if i != j]
        assert found.item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    alike = torch.ones(1, 4, 3)
    assert measure_likeness(alike).item() == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_and_block_has_its_numbers(name: str) -> None:
    model = build(name, image_size=(64, 96))
    images = random_images(model)
    with torch.no_grad():
        before = model(images)
    reaches, likenesses = measure_depth(model, images)
    with record_attention(model) as recorded, torch.no_grad():
        model(images)
    assert [(one.name, one.level, one.layer) for one in reaches] == [
        (one.name, one.level, one.layer) for one in recorded
    ]
    for reach, one in zip(reaches, recorded, strict=True):
        assert len(reach.pixels) == one.shares.shape[1]
        assert all(0 < pixels < math.hypot(64, 96) for pixels in reach.pixels)
    assert all(-1 <= one.cosine <= 1 for one in likenesses)
    levels = {"word", "sentence"} if name.startswith("tnt") else {"token"}
    assert {one.level for one in likenesses} == levels
    assert len(likenesses) == len({(one.name, one.level) for one in likenesses})
    with torch.no_grad():
        assert torch.equal(model(images), before)


def test_words_and_sentences_are_measured_apart() -> None:
    model = build("tnt_ti_patch16_224", image_size=(32, 48), depth=1)
    images = random_images(model)
    with record_attention(model) as recorded, torch.no_grad():
        model(images)
    reaches, _ = measure_depth(model, images)
    words = reach_plainly(recorded[0].shares, grid(4, 4, 4), grid(4, 4, 4))
    torch.testing.assert_close(torch.tensor(reaches[0].pixels), words)
    places = grid(2, 3, 16)
    sentences = reach_plainly(recorded[1].shares[:, :, 1:, 1:], places, places)
    torch.testing.assert_close(torch.tensor(reaches[1].pixels), sentences)


def test_even_attention_of_twins_reaches_as_far_as_its_map() -> None:
    model = build("twins_svt_small", image_size=64)
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if ".attn.q" in place:
                parameter.zero_()
    reaches, _ = measure_depth(model, random_images(model))
    reduced = next(one for one in reaches if one.level == "reduced")
    assert reduced.name == "blocks.1.1.attn"
    queries, keys = torch.tensor(grid(8, 8, 8)), torch.tensor(grid(2, 2, 32))
    assert reduced.pixels[0] == pytest.approx(torch.cdist(queries, keys).mean().item(), rel=1e-4)
