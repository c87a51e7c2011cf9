"""Where a student's last map is computed, a teacher's brought to its grid, and the loss of both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, mse_loss

from vitrail.distillation.losses import token_loss
from vitrail.distillation.projection import add_projection, project, take_projected, without_projection
from vitrail.distillation.tokens import find_grid, make_targets
from vitrail.errors import ConfigError
from vitrail.models.registry import create_model, find_variant

OURS = ["tnt_ti_patch16_224", "t2t_vit_7", "twins_svt_small", "twins_pcpvt_small"]
THEIRS = {
    "timm:vit_tiny_patch16_224": {"image_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "timm:deit_tiny_distilled_patch16_224": {"image_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "timm:swin_tiny_patch4_window7_224": {
        "image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
    },
    "timm:resnet10t": {"image_size": 64},
    "timm:convnext_atto": {"image_size": 64, "depths": [1, 1, 1, 1], "dims": [4, 8, 12, 16]},
}  # fmt: skip


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = THEIRS.get(name) or {**find_variant(name)[0].tiny, **options}
    return create_model(name, **{**sizes, "num_classes": 0})


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_the_projected_tokens_are_those_of_the_last_map(name: str) -> None:
    model = build(name)
    grid = find_grid(model, name)
    images = torch.randn(2, 3, *model.config.size)
    model.eval()
    with torch.no_grad():
        one = model.forward_intermediates(images, 1, norm=True)[0]
        tokens = grid.read(model.forward_features(images))
    assert tokens.shape == (2, grid.n, grid.channels)
    torch.testing.assert_close(tokens, one.flatten(2).transpose(1, 2))

    head = add_projection(model, 5, grid, 7)
    average = copy.deepcopy(model)  # as the average of the weights is made
    for one_of_two in (average, model):
        for parameter in one_of_two.parameters():
            nn.init.normal_(parameter, std=0.02)
        one_of_two.train()
        own = one_of_two.get_classifier()
        one_of_two(images)
        projected = take_projected(own)
        assert projected.shape == (2, 5 + 7 * grid.n)
        own.train()
    assert head is model.get_classifier()
    assert take_projected_of(model, images, grid).shape == projected.shape
    assert not [key for key in without_projection(model.state_dict()) if "teacher" in key]


def take_projected_of(model: Any, images: torch.Tensor, grid: Any) -> torch.Tensor:
    """What an evaluation projects."""
    model.eval()
    features = model.forward_features(images)
    vectors = model.forward_head(features, pre_logits=True)
    return project(model.get_classifier(), vectors, grid.read(features))


def test_training_and_evaluation_project_alike() -> None:
    model = build("twins_svt_small")
    grid = find_grid(model, "twins_svt_small")
    head = add_projection(model, 5, grid, 7)
    images = torch.randn(2, 3, *model.config.size)
    model.train()
    model(images)
    torch.testing.assert_close(take_projected(head), take_projected_of(model, images, grid))


def test_a_model_without_maps_is_refused() -> None:
    model = build("tnt_ti_patch16_224")
    model.feature_levels = ()
    with pytest.raises(ConfigError) as caught:
        find_grid(model, "timm:strange")
    assert str(caught.value) == (
        "distill.loss=tokens learns the last map of a network, and timm:strange gives none; set distill.loss=feature, "
        "or model.name to another"
    )


def test_targets_are_standardised_on_the_students_grid() -> None:
    vectors, maps = torch.randn(2, 6) * 9 + 4, torch.randn(2, 5, 4, 4) * 9 + 4
    targets = make_targets(vectors, maps, (4, 4))
    torch.testing.assert_close(targets[:, :6], layer_norm(vectors, (6,)))
    tokens = targets[:, 6:].reshape(2, 16, 5)
    torch.testing.assert_close(tokens[1, 7], layer_norm(maps[1, :, 1, 3], (5,)))
    torch.testing.assert_close(tokens.mean(2), torch.zeros(2, 16), atol=1e-5, rtol=0)
    smaller = make_targets(vectors, maps, (1, 1))[:, 6:]
    assert smaller.shape == (2, 5)
    constant = make_targets(vectors, maps[:, :, :1, :1].expand(-1, -1, 4, 4), (2, 3))[:, 6:].reshape(2, 6, 5)
    torch.testing.assert_close(constant, layer_norm(maps[:, :, 0, 0], (5,))[:, None].expand(2, 6, 5))


def test_the_loss_of_both_is_their_mean_and_1_where_nothing_is_known() -> None:
    targets = make_targets(torch.randn(3, 64), torch.randn(3, 64, 2, 2), (2, 2))
    projected = torch.randn_like(targets)
    by_hand = [mse_loss(projected[:, part], targets[:, part]) for part in (slice(64), slice(64, None))]
    torch.testing.assert_close(token_loss(projected, targets, 64), 3 * sum(by_hand) / 2)
    assert token_loss(torch.zeros_like(targets), targets, 64).item() == pytest.approx(3, rel=1e-3)
