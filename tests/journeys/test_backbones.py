"""Backbones for dense tasks: what timm calls features_only, of any image size, under heads of other libraries."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import vitrail
import vitrail.timm
from vitrail.errors import ConfigError
from vitrail.models.family import VisionModel
from vitrail.models.registry import FAMILIES, find_variant
from vitrail.training.optim.freezing import Freeze
from vitrail.weights.hub import name_in_timm

NAMES = {family.name: next(iter(family.variants)) for family in FAMILIES}
every_family = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
PYRAMIDS = [NAMES["twins"], NAMES["pyramid_tnt"]]


def features(name: str, **arguments: Any) -> Any:
    """Build a tiny backbone with timm, of images of any size."""
    torch.manual_seed(0)
    tiny = {**find_variant(name)[0].tiny, "image_size": 64}
    size, _ = tiny.pop("image_size"), tiny.pop("num_classes")
    return timm.create_model(
        name_in_timm(name), features_only=True, **{"img_size": size, "dynamic_img_size": True, **tiny, **arguments}
    )


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@every_family
@pytest.mark.parametrize("switch", ["dynamic_img_size", "dynamic_img_pad"])
def test_features_have_the_channels_strides_and_names_that_timm_tells(name: str, switch: str) -> None:
    model = features(name, **{"dynamic_img_size": False, switch: True}).eval()
    info = model.feature_info
    with torch.no_grad():
        maps = model(draw(1, 3, 75, 41))
    expected = [
        (1, channels, -(-75 // stride), -(-41 // stride))
        for channels, stride in zip(info.channels(), info.reduction(), strict=True)
    ]
    assert [tuple(one.shape) for one in maps] == expected
    for one, place in zip(maps, info.module_name(), strict=True):
        seen: list[Tensor] = []
        block = model.model.get_submodule(place)
        block.register_forward_hook(lambda *args, seen=seen: seen.append(args[-1]))
        with torch.no_grad():
            model(draw(1, 3, 75, 41))
        assert len(seen) == 1
        assert one.shape[1] in (seen[0][-1] if isinstance(seen[0], tuple) else seen[0]).shape


@every_family
def test_one_size_is_taken_unless_others_are_asked_for(name: str) -> None:
    model = features(name, dynamic_img_size=False)
    if "twins" in name:  # takes any size, and drops rows and columns left over
        assert [one.shape[2] for one in model(draw(1, 3, 75, 64))] == [18, 9, 4, 2]
        return
    with pytest.raises(ValueError, match=r"build it with image_size=.*or with dynamic_image_size=True"):
        model(draw(1, 3, 96, 64))


@every_family
def test_a_finer_last_map_is_refused_in_one_line(name: str) -> None:
    strides = [level.reduction for level in features(name).model.feature_levels]
    assert features(name, output_stride=strides[-1])
    with pytest.raises(ConfigError) as caught:
        features(name, output_stride=4)
    said = str(caught.value)
    assert said.startswith(f"output_stride is 4; {name} cannot be dilated")
    assert said.endswith("which out_indices chooses from")
    assert "\n" not in said


@every_family
def test_frozen_parts_of_a_backbone_neither_learn_nor_draw_nor_count(name: str) -> None:
    model = features(name, drop_path_rate=0.5)
    body: VisionModel = model.model
    freeze = Freeze(body, body.parts()[1])
    freeze.begin()
    model.train()
    freeze.still()
    before = {key: one.clone() for key, one in model.state_dict().items()}
    first = model.feature_info.module_name()[0]
    seen: list[Any] = []
    body.get_submodule(first).register_forward_hook(lambda *args: seen.append(args[-1]))
    images = draw(2, 3, 75, 64)
    for _ in range(2):
        sum(one.square().mean() for one in model(images)).backward()
    assert [key for key, one in model.named_parameters() if one.grad is not None]
    assert [one for one in freeze.parameters if one.grad is not None] == []
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items() if "running" in key)
    if name not in PYRAMIDS:  # whose first stage has blocks behind the frozen one
        first, second = (one if isinstance(one, Tensor) else one[-1] for one in seen)
        assert torch.equal(first, second)


def test_a_stem_with_frozen_batch_norm_keeps_its_statistics_in_training() -> None:
    model = features(NAMES["pyramid_tnt"])
    plain = features(NAMES["pyramid_tnt"])
    timm.utils.freeze(model.model, ["patch_embed"])  # timm's own, which puts frozen norms in their place
    images = draw(2, 3, 75, 64) + 3
    with torch.no_grad():
        expected = model.eval()(images)
        found = model.train()(images)
        for _ in range(2):
            plain.train()(images)
        moved = plain.eval()(images)
    for one, other, third in zip(found, expected, moved, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(third, other)


@every_family
def test_recomputed_features_have_the_same_gradients(name: str) -> None:
    found, kept = [], []
    for checkpointing in (False, True):
        model = features(name)
        model.model.set_grad_checkpointing(checkpointing)
        count = 0

        def add(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(add, lambda tensor: tensor):
            torch.manual_seed(2)
            total = sum(one.square().mean() for one in model.train()(draw(2, 3, 75, 64)))
        total.backward()  # pyright: ignore[reportAttributeAccessIssue]
        kept.append(count)
        found.append({key: one.grad for key, one in model.named_parameters() if one.grad is not None})
    torch.testing.assert_close(found[0], found[1])
    assert kept[1] < kept[0]


@every_family
def test_weights_of_one_size_make_a_backbone_of_any(name: str, tmp_path: Path) -> None:
    tiny = {**find_variant(name)[0].tiny, "image_size": 64}
    torch.manual_seed(0)
    trained = vitrail.create_model(name, **tiny).eval()
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    known = {key: one for key, one in tiny.items() if key != "num_classes"}
    loaded = vitrail.load_model(tmp_path / "a.pth", model=name, **{**known, "dynamic_image_size": True})
    backbone = features(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "a.pth"), "num_classes": 7}
    )
    images = draw(1, 3, 75, 64)
    with torch.no_grad():
        assert torch.equal(loaded(draw(1, 3, 64, 64)), trained(draw(1, 3, 64, 64)))
        maps = dict(
            zip((one.module for one in loaded.feature_levels), loaded.forward_intermediates(images), strict=True)
        )
        for place, one in zip(backbone.feature_info.module_name(), backbone.eval()(images), strict=True):
            assert torch.equal(one, maps[place])


def train(model: nn.Module, lose: Any, count: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(count):
        loss = lose()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_head_for_semantic_segmentation_learns_on_a_twins() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    tiny = find_variant(NAMES["twins"])[0].tiny
    options = {key: tiny[key] for key in ("embed_dims", "depths", "num_heads", "mlp_ratios")}
    name = f"tu-{name_in_timm(NAMES['twins'])}"
    model = smp.UPerNet(name, encoder_weights=None, decoder_channels=16, classes=2, dynamic_img_size=True, **options)
    model.requires_divisible_input_shape = False
    images = draw(2, 3, 76, 100)
    masks = (images.mean(1) > 0).long()
    masks[:, :, :50], masks[:, :, 50:] = 0, 1
    images[:, :, :, :50] += 2
    losses = train(model, lambda: cross_entropy(model(images), masks), 8)
    assert losses[-1] < 0.8 * losses[0]
    assert model.eval()(draw(1, 3, 48, 60)).shape == (1, 2, 48, 60)
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.UPerNet(f"tu-{name_in_timm(NAMES['pyramid_tnt'])}", encoder_weights=None)  # whose first stride is 8


class Pyramid(nn.Module):
    """A backbone for torchvision's detectors: the maps of features_only under a feature pyramid."""

    def __init__(self, body: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), out_channels)  # pyright: ignore[reportCallIssue, reportArgumentType, reportAttributeAccessIssue]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(k), one) for k, one in enumerate(self.body(images))))


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_detector_learns_on_a_pyramid(name: str) -> None:
    body = features(name)
    strides = body.feature_info.reduction()
    anchors = AnchorGenerator(tuple((2 * stride,) for stride in strides), ((1.0,),) * len(strides))
    model = RetinaNet(Pyramid(body, 16), 2, anchor_generator=anchors, min_size=80, max_size=120)
    timm.utils.freeze(body.model, ["patch_embed"] if "ptnt" in name else [])
    images = [draw(3, 70, 90), draw(3, 80, 80)]
    targets = [
        {"boxes": torch.tensor([[10.0, 12.0, 30.0, 32.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[40.0, 41.0, 60.0, 62.0]]), "labels": torch.tensor([1])},
    ]
    losses = train(model, lambda: sum(model(images, targets).values()), 6)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        answers = model.eval()(images)
    assert [set(one) for one in answers] == [{"boxes", "scores", "labels"}] * 2
