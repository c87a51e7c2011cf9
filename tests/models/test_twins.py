"""What is particular to Twins: padded windows, the reduced map, the position encoding, and equality with timm."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from timm.models.twins import Twins as TimmTwins
from torch import Tensor, nn
from torch.testing import assert_close

from support.random_weights import randomised
from vitrail.models.registry import create_model
from vitrail.models.twins import PositionEncoding, ReducedAttention, Twins, TwinsConfig, WindowAttention

SVT = TwinsConfig(
    image_size=224, embed_dims=(16, 32, 48, 64), depths=(2, 2, 2, 2), num_heads=(1, 2, 3, 4), num_classes=7
)
PCPVT = replace(SVT, window_size=None, mlp_ratios=(8.0, 8.0, 4.0, 4.0))


def timm_twin(model: Twins) -> nn.Module:
    """Build timm's model of the same sizes and weights; its names are those of the official code, as ours are."""
    config = model.config
    twin = TimmTwins(
        img_size=config.size,
        num_classes=config.num_classes,
        embed_dims=config.embed_dims,
        num_heads=config.num_heads,
        mlp_ratios=config.mlp_ratios,
        depths=config.depths,
        sr_ratios=config.sr_ratios,
        wss=None if config.window_size is None else (config.window_size,) * len(config.depths),
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()


# at 224 all windows are whole; elsewhere maps are padded at the right, at the bottom or at both, in some stages
@pytest.mark.parametrize("size", [(224, 224), (224, 96), (96, 224), (64, 64), (160, 288), (32, 32)], ids=str)
@pytest.mark.parametrize("config", [SVT, PCPVT], ids=["svt", "pcpvt"])
def test_equals_timm_with_whole_and_padded_windows(config: TwinsConfig, size: tuple[int, int]) -> None:
    model = randomised(Twins(config))
    images = torch.randn(2, 3, *size)
    twin = timm_twin(model)
    with torch.no_grad():
        assert_close(model(images), twin(images), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["twins_svt_small", "twins_pcpvt_small"])
def test_true_size_equals_timm(name: str) -> None:
    model = create_model(name)
    assert isinstance(model, Twins)
    model = randomised(model)
    images = torch.randn(1, 3, 256, 192)
    with torch.no_grad():
        assert_close(model(images), timm_twin(model)(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (61, 100), (63, 32)], ids=str)
def test_any_size_from_32_up_is_taken(size: tuple[int, int]) -> None:
    model = randomised(Twins(SVT))
    maps = model.forward_intermediates(torch.randn(1, 3, *size))
    assert [tuple(m.shape[-2:]) for m in maps] == [(size[0] // r, size[1] // r) for r in (4, 8, 16, 32)]
    assert model(torch.randn(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("call", ["forward", "forward_features", "forward_intermediates"])
def test_images_below_32_pixels_are_explained(call: str) -> None:
    with pytest.raises(ValueError, match=re.escape("images are (64, 31); this Twins needs at least 32 pixels a side")):
        getattr(Twins(SVT), call)(torch.zeros(1, 3, 64, 31))


def window_by_window(attention: WindowAttention, x: Tensor, height: int, width: int) -> Tensor:
    """Attend in each window by itself, in double precision, with padding as what it is: zeros behind the edge."""
    g, heads = attention.window_size, attention.num_heads
    d = x.shape[2]
    rows, columns = -(-height // g), -(-width // g)
    maps = torch.zeros(len(x), rows * g, columns * g, d, dtype=x.dtype)
    maps[:, :height, :width] = x.reshape(len(x), height, width, d)
    out = torch.zeros_like(maps)
    for top in range(0, rows * g, g):
        for left in range(0, columns * g, g):
            tokens = maps[:, top : top + g, left : left + g].reshape(len(x), g * g, d)
            q, k, v = attention.qkv(tokens).reshape(len(x), g * g, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(2, 3) / (d // heads) ** 0.5).softmax(dim=3)
            joined = (weights @ v).transpose(1, 2).reshape(len(x), g, g, d)
            out[:, top : top + g, left : left + g] = joined
    return attention.proj(out[:, :height, :width].reshape(len(x), height * width, d))


@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 21), (8, 7), (7, 8), (9, 16), (2, 3)])
def test_window_attention_is_attention_in_each_window(height: int, width: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(dim=12, num_heads=3, window_size=7).double()
    x = torch.randn(2, height * width, 12, dtype=torch.float64)
    assert_close(attention(x, height, width), window_by_window(attention, x, height, width))


def test_windows_do_not_leak() -> None:
    model = randomised(Twins(replace(SVT, image_size=112)))
    first = model.blocks[0][0]  # pyright: ignore[reportIndexIssue]
    seen: list[Tensor] = []
    first.register_forward_hook(lambda module, args, output: seen.append(output))
    images = torch.randn(1, 3, 112, 112)  # 28 x 28 tokens, 4 x 4 windows
    changed = images.clone()
    changed[:, :, 28:56, 56:84] = torch.randn(1, 3, 28, 28)  # the window in row 1, column 2
    model(images)
    model(changed)
    moved = (seen[0] != seen[1]).any(dim=2).reshape(4, 7, 4, 7)
    assert moved[1, :, 2].all()
    moved[1, :, 2] = False
    assert not moved.any()


def test_reduced_attention_reaches_every_token_and_sees_cell_means() -> None:
    torch.manual_seed(0)
    attention = ReducedAttention(dim=8, num_heads=2, sr_ratio=2, norm_eps=1e-5)
    with torch.no_grad():
        attention.sr.weight.zero_()
        for channel in range(8):
            attention.sr.weight[channel, channel] = 0.25
    x = torch.randn(1, 24, 8)
    changed = x.clone()
    changed[0, [0, 1, 6, 7]] = x[0, [7, 6, 1, 0]]  # the same cell of a 4 x 6 map, in another order
    keys = attention(changed, 4, 6)[0, 8:]
    assert_close(keys, attention(x, 4, 6)[0, 8:])
    changed[0, 0] += 100
    assert (attention(changed, 4, 6)[0] != attention(x, 4, 6)[0]).any(dim=1).all()


@pytest.mark.parametrize("config", [SVT, PCPVT], ids=["svt", "pcpvt"])
def test_blocks_alternate_and_the_position_encoding_follows_the_first_of_each_stage(config: TwinsConfig) -> None:
    model = Twins(replace(config, image_size=64))
    order: list[str] = []
    for module in model.modules():
        if isinstance(module, WindowAttention | ReducedAttention | PositionEncoding):
            kind = {WindowAttention: "window", ReducedAttention: "reduced", PositionEncoding: "position"}[type(module)]
            module.register_forward_hook(lambda module, args, output, kind=kind: order.append(kind))
    model(torch.randn(1, 3, 64, 64))
    first = "window" if config.window_size else "reduced"
    assert order == [first, "position", "reduced"] * 4


def test_the_last_stage_has_no_reduction() -> None:
    names = dict(Twins(SVT).named_parameters())
    assert "blocks.2.1.attn.sr.weight" in names
    assert "blocks.3.1.attn.sr.weight" not in names
    assert "blocks.3.1.attn.norm.weight" not in names


def test_position_encoding_is_a_depthwise_convolution_added_to_the_map() -> None:
    torch.manual_seed(0)
    encoding = PositionEncoding(4)
    x = torch.randn(1, 15, 4)
    expected = x.transpose(1, 2).reshape(1, 4, 3, 5)
    expected = expected + encoding.proj[0](expected)
    assert_close(encoding(x, 3, 5), expected.flatten(2).transpose(1, 2))
    assert encoding.proj[0].groups == 4


def test_norms_have_two_epsilons() -> None:
    with torch.device("meta"):
        small, pcpvt = create_model("twins_svt_small"), create_model("twins_pcpvt_small")
    for model, expected in ((small, {1e-6: 37, 1e-5: 11}), (pcpvt, {1e-6: 33, 1e-5: 17})):
        assert Counter(m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)) == expected
    model = Twins(replace(SVT, norm_eps=1e-3, embed_norm_eps=1e-4, final_norm_eps=1e-2))
    found = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert found["norm"] == 1e-2
    assert {eps for name, eps in found.items() if "attn.norm" in name or "patch_embeds" in name} == {1e-4}
    assert {eps for name, eps in found.items() if re.search(r"norm[12]$", name)} == {1e-3}


def test_initialisation_has_the_published_statistics() -> None:
    torch.manual_seed(0)
    model = create_model("twins_svt_small")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            std = (2 / fan_out) ** 0.5
            assert abs(module.weight.std() / std - 1) < 0.1, name
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            assert abs(module.weight.std() - 0.02) < 0.001, name
            assert not module.bias.any()
    encoding = dict(model.named_parameters())["pos_block.3.proj.0.weight"]
    assert abs(encoding.std() - 0.471) < 0.02


def test_exempt_from_decay_is_the_position_encoding() -> None:
    model = Twins(SVT)
    assert model.no_weight_decay() == {f"pos_block.{k}.proj.0.{kind}" for k in range(4) for kind in ("weight", "bias")}


def test_layers_run_through_the_stages() -> None:
    model = Twins(SVT)
    names = (
        "patch_embeds.0.proj.weight",
        "blocks.0.0.norm1.weight",
        "pos_block.0.proj.0.bias",
        "blocks.0.1.attn.q.bias",
    )
    assert [model.layer_of(name) for name in names] == [0, 1, 1, 2]
    names = (
        "patch_embeds.3.norm.bias",
        "blocks.3.0.norm1.weight",
        "blocks.3.1.mlp.fc2.bias",
        "norm.weight",
        "head.bias",
    )
    assert [model.layer_of(name) for name in names] == [6, 7, 8, 9, 9]


def test_drop_path_grows_over_the_blocks_of_all_stages() -> None:
    model = Twins(replace(SVT, drop_path_rate=0.7))
    rates = [block.drop_path.rate for stage in model.blocks for block in stage]  # pyright: ignore
    assert_close(torch.tensor(rates), torch.linspace(0, 0.7, 8))


def test_four_levels_are_a_feature_pyramid() -> None:
    with torch.device("meta"):
        levels = create_model("twins_svt_base").feature_levels
    assert [(level.num_channels, level.reduction) for level in levels] == [(96, 4), (192, 8), (384, 16), (768, 32)]


def test_pooling_is_the_mean_of_the_tokens() -> None:
    model = randomised(Twins(SVT))
    tokens = torch.randn(2, 5, 64)
    assert torch.equal(model.pool(tokens), tokens.mean(dim=1))
