"""Grad-CAM, integrated gradients and occlusion, and the table of methods and families."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from support.explained_models import PYRAMID, build, random_images
from vitrail.choices import ExplanationMethod
from vitrail.errors import ConfigError
from vitrail.explanation.feature_maps import weigh_channels
from vitrail.explanation.methods import METHODS, choose_method, explain
from vitrail.explanation.perturbation import integrate_gradients, occlude
from vitrail.models.registry import OWN, create_model, find_variant

CLASSES = torch.tensor([1, 2])
PAGE = Path(__file__).parents[2] / "docs" / "explain.md"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "side"),
    [("tnt_ti_patch16_224", 32), ("t2t_vit_7", 32), ("twins_svt_small", 32), ("twins_pcpvt_small", 64), (PYRAMID, 64)],
)
def test_every_method_has_a_map_of_every_family_that_is_not_even(
    name: str, side: int, method: ExplanationMethod
) -> None:
    model = build(name, image_size=side)
    images = random_images(model)
    before = [parameter.clone() for parameter in model.parameters()]
    maps = explain(method, model, images, CLASSES)
    for one in maps.values():
        assert (one.ndim, len(one), one.dtype) == (3, 2, torch.float32)
        assert one.isfinite().all()
        if min(one.shape[1:]) > 1:
            assert (one.flatten(1).amax(1) > one.flatten(1).amin(1)).all()
        if not METHODS[method].is_signed:
            assert (one >= 0).all()
    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_weighs_channels_by_their_mean_gradient() -> None:
    model = build("twins_svt_small", image_size=64)
    images = random_images(model)
    (named,) = weigh_channels(model, images, CLASSES).items()
    assert named[0] == model.feature_levels[-1].module
    # the head reads the mean of the normalised last tokens, so a tangent of the logit is at hand
    tokens, size = list(model.levels(images))[-1]
    tokens = tokens.detach().requires_grad_()
    model.head(model.norm(tokens).mean(1))[[0, 1], CLASSES].sum().backward()
    assert tokens.grad is not None
    expected = (tokens.grad.mean(1, keepdim=True) * tokens).sum(2)
    torch.testing.assert_close(named[1].flatten(1), expected.detach())
    assert named[1].shape[1:] == size


@pytest.mark.parametrize("name", ["tnt_ti_patch16_224", "t2t_vit_7"])
def test_a_level_that_the_class_token_alone_is_read_of_is_not_taken(name: str) -> None:
    model = build(name, depth=3)
    images = random_images(model)
    assert list(weigh_channels(model, images, CLASSES)) == ["blocks.1"]
    assert list(weigh_channels(model, images, CLASSES, level=0)) == ["blocks.0"]
    with pytest.raises(
        ConfigError, match=re.escape("level=-1: nothing reads the map of blocks.2, so it would be zero")
    ):
        weigh_channels(model, images, CLASSES, level=-1)
    with pytest.raises(ConfigError, match=re.escape("level=3: this model has levels 0 to 2")):
        weigh_channels(model, images, CLASSES, level=3)


def test_a_single_block_has_no_level_for_grad_cam() -> None:
    model = build("t2t_vit_7", depth=1)
    with pytest.raises(ConfigError, match="nothing reads the map of any level"):
        weigh_channels(model, random_images(model), CLASSES)


def test_integrated_gradients_sum_to_what_the_logit_gained() -> None:
    model = build("twins_svt_small", image_size=32)
    images = 0.1 * random_images(model)  # where few steps are enough
    shares = integrate_gradients(model, images, CLASSES)["pixels"]
    with torch.no_grad():
        gained = (model(images) - model(torch.zeros_like(images)))[[0, 1], CLASSES]
    torch.testing.assert_close(shares.sum((1, 2)), gained, atol=0.02, rtol=0.05)


def test_occlusion_finds_the_only_place_that_counts() -> None:
    def answer(images: torch.Tensor) -> torch.Tensor:
        corner = images[:, :, :8, 24:].mean((1, 2, 3))
        return torch.stack([-corner, corner], dim=1)

    images = torch.ones(2, 3, 32, 32)
    lost = occlude(answer, images, torch.tensor([1, 0]))["pixels"]
    assert lost.shape == (2, 32, 32)
    assert lost[0, :8, 24:].mean() > 0
    assert (lost[0, 12:, :] == 0).all()
    assert (lost[0, :, :20] == 0).all()
    torch.testing.assert_close(lost[1], -lost[0])


def test_the_table_has_every_method_and_a_default_for_every_own_family() -> None:
    assert set(METHODS) == set(get_args(ExplanationMethod))
    for family in OWN:
        assert choose_method("x", family, None, is_exported=False) == "gradient-attention"
    assert choose_method("x", "timm:resnet10t", None, is_exported=False) == "occlusion"
    assert choose_method("x.onnx", "tnt", None, is_exported=True) == "occlusion"
    assert choose_method("x.onnx", "tnt", "occlusion", is_exported=True) == "occlusion"


def test_the_page_says_what_the_table_says() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE)
    said = {method: families for method, families in rows}
    assert set(said) == set(METHODS)
    for name, method in METHODS.items():
        words = "every model" if method.is_for_all else "our families"
        assert said[name].startswith(words)
        assert ("exported" in said[name]) == method.takes_exported


@pytest.mark.parametrize("method", ["rollout", "gradient-attention", "grad-cam"])
def test_a_method_that_a_family_lacks_is_one_line(method: ExplanationMethod) -> None:
    family = find_variant("timm:resnet10t")[0].name
    with pytest.raises(ConfigError) as caught:
        choose_method("r.safetensors", family, method, is_exported=False)
    assert str(caught.value) == (
        f"method={method}: is for TNT, T2T-ViT, Twins and PyramidTNT, and r.safetensors is a {family}, which has "
        "integrated-gradients and occlusion"
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_explained_in_memory_is_one_line(method: ExplanationMethod) -> None:
    model = build("twins_svt_small", image_size=32)
    images = random_images(model)
    with pytest.raises(ConfigError, match=r"^classes are \[1, 9\]; the model has the classes 0 to 6$"):
        explain(method, model, images, torch.tensor([1, 9]))
    with pytest.raises(ConfigError, match=r"^classes are torch\.int64 of \(1,\); they must be an index for each of 2"):
        explain(method, model, images, torch.tensor([1]))
    with pytest.raises(ConfigError, match=r"^classes is 2; it must be a tensor with an index for each image, or a"):
        explain(method, model, images, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"^images are torch\.float32 of \(3, 32, 32\); they must be normalised"):
        explain(method, model, images[0], torch.tensor([1]))
    with torch.inference_mode():
        expected = explain(method, model, images, CLASSES)
    for level, one in explain(method, model, images, CLASSES).items():
        torch.testing.assert_close(one, expected[level])


def test_an_unknown_method_is_one_line() -> None:
    model = build("twins_svt_small", image_size=32)
    with pytest.raises(ConfigError, match=r"^method=rolout: unknown; did you mean 'rollout'\?$"):
        explain("rolout", model, random_images(model), CLASSES)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.takes_exported])
def test_an_exported_file_has_no_gradients(method: ExplanationMethod) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_method("best.onnx", "tnt", method, is_exported=True)
    assert str(caught.value) == (
        f"method={method}: best.onnx is an exported file, which has answers and neither gradients nor attention; "
        "take occlusion, or give the weight file"
    )


def test_a_model_of_timm_has_the_methods_that_ask_for_its_answers() -> None:
    model = create_model("timm:resnet10t", num_classes=3, image_size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    for method in ("integrated-gradients", "occlusion"):
        maps = explain(method, model, images, torch.tensor([2]))
        assert maps["pixels"].shape == (1, 32, 32)
