"""What is particular to T2T-ViT: soft splits, the performer and its float range, single-head attention, sinusoids."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.testing import assert_close

from vitrail.models.registry import create_model
from vitrail.models.t2t_vit import T2TViT, T2TViTConfig, TokenPerformer, TokenTransformer, sinusoid, soft_split

SMALL = T2TViTConfig(image_size=32, embed_dim=48, depth=2, num_heads=4, num_classes=7)


def performer(seed: int = 0, dim: int = 20) -> TokenPerformer:
    torch.manual_seed(seed)
    return TokenPerformer(dim, SMALL).eval()


def published_attention(w: Tensor, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
    """Return the official formula in float64 and as it stands: no maximum subtracted, no product reordered."""
    k, q, v, w = (t.double() for t in (k, q, v, w))

    def features(x: Tensor) -> Tensor:
        return torch.stack([torch.exp(x @ row - (x * x).sum(dim=-1) / 2) for row in w], dim=-1) / math.sqrt(len(w))

    phi_k, phi_q = features(k), features(q)
    out = torch.zeros_like(v)
    for image in range(len(v)):
        weights = phi_q[image] @ phi_k[image].T  # (n, n): what the performer never forms
        denominator = weights.sum(dim=1, keepdim=True) + 1e-8
        out[image] = (weights / denominator) @ v[image]
    return out


@pytest.mark.parametrize(("side", "stride"), [(7, 4), (3, 2)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 16), (8, 24)])
def test_soft_split_equals_unfold_value_by_value(side: int, stride: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 5, height, width, requires_grad=True)
    padding = {7: 2, 3: 1}[side]
    expected = unfold(maps, side, stride=stride, padding=padding).transpose(1, 2)
    found = soft_split(maps, side, stride)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, maps, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, maps, upstream)
    assert_close(gradient, expected_gradient)


# the published formula overflows no float64; random features of inputs 10 times wider span e^-900 to e^16
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3, 1.0, 2.0, 5.0, 10.0, 100.0])
def test_performer_equals_the_published_formula(scale: float) -> None:
    layer = performer()
    torch.manual_seed(1)
    k, q, v = (torch.randn(2, 50, 64) for _ in range(3))
    found = layer.attention(scale * k / 3, scale * q / 3, v)
    assert_close(found, published_attention(layer.w, scale * k / 3, scale * q / 3, v).float(), atol=1e-5, rtol=1e-5)


def test_performer_equals_the_published_formula_where_features_are_largest() -> None:
    """Keys and queries along the rows of w reach e^16, which float16 cannot hold; along -w they reach e^-48."""
    layer = performer()
    w = layer.w.detach()
    for k, q in ((w, w), (w, -w), (-w, w), (-w, -w), (2 * w, w), (torch.cat([w, -w]), torch.cat([w, 2 * w]))):
        v = torch.randn(1, len(k), 64)
        found = layer.attention(k[None], q[None], v)
        assert_close(found, published_attention(w, k[None], q[None], v).float(), atol=1e-5, rtol=1e-5)


def test_performer_gradients_equal_those_of_the_published_formula() -> None:
    layer = performer()
    torch.manual_seed(1)
    inputs = [(0.5 * torch.randn(2, 20, 64)).requires_grad_() for _ in range(3)]
    upstream = torch.randn(2, 20, 64)
    found = torch.autograd.grad(layer.attention(*inputs), inputs, upstream)
    expected = torch.autograd.grad(published_attention(layer.w, *inputs), inputs, upstream.double())
    assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_performer_stays_finite_in_half_precision(dtype: torch.dtype, scale: float, autocast: bool) -> None:
    layer = performer()
    layer.kqv.weight.data *= scale  # past the norm, so that features see it
    x = torch.randn(2, 30, 20, requires_grad=True)
    if autocast:
        with torch.autocast("cpu", dtype):
            y = layer(x)
    else:
        y = layer.to(dtype)(x.to(dtype))
    assert y.isfinite().all()
    y.float().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_whole_model_stays_finite_in_half_precision(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model = T2TViT(SMALL)
    for part in (model.tokens_to_token.attention1, model.tokens_to_token.attention2):
        nn.init.normal_(part.kqv.weight, std=0.3)
    images = scale * torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype):
        loss = model(images).float().logsumexp(dim=1).mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_performer_under_autocast_computes_its_features_in_float32() -> None:
    """Exact to bfloat16's own rounding of k, q and v; features in bfloat16 would err by tens of percent."""
    layer = performer()
    nn.init.normal_(layer.kqv.weight, std=0.5)
    nn.init.eye_(layer.proj.weight)
    x = torch.randn(1, 40, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        k, q, v = layer.kqv(layer.norm1(x)).split(64, dim=2)
        seen: list[Tensor] = []
        layer.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        layer(x)
    expected = published_attention(layer.w, k, q, v).float()
    assert_close(seen[0].float(), expected, atol=0.01, rtol=0.01)


def test_random_features_are_orthogonal_frozen_and_saved() -> None:
    layer = performer()
    assert not layer.w.requires_grad
    assert "w" in layer.state_dict()
    assert_close(layer.w @ layer.w.T, 32 * torch.eye(32), atol=1e-4, rtol=0)  # rows of norm sqrt(32)
    assert not torch.equal(layer.w, performer(seed=1).w)


def test_performer_order_is_keys_queries_values_and_its_residual_the_values() -> None:
    layer = performer()
    for module in (layer.proj, layer.mlp[2]):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    x = torch.randn(1, 9, 20)
    assert_close(layer(x), layer.kqv(layer.norm1(x))[:, :, 128:])
    layer = performer()
    seen: list[tuple[Tensor, ...]] = []
    attention = layer.attention
    layer.attention = lambda k, q, v: seen.append((k, q, v)) or attention(k, q, v)
    layer(x)
    assert_close(torch.cat(seen[0], dim=2), layer.kqv(layer.norm1(x)))


def test_performer_drops_out_in_training_even_without_being_asked() -> None:
    layer = performer()
    assert [m.p for m in layer.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    transformer = T2TViT(replace(SMALL, tokens_type="transformer")).train()
    assert not [m for m in transformer.modules() if isinstance(m, nn.Dropout)]
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(transformer(images), transformer(images))


@pytest.mark.parametrize("dim", [147, 576])
def test_token_transformer_scales_by_the_width_of_its_input(dim: int) -> None:
    torch.manual_seed(0)
    layer = TokenTransformer(dim, SMALL)
    nn.init.normal_(layer.attn.qkv.weight, std=0.1)
    x = torch.randn(2, 10, dim)
    normed = layer.norm1(x)
    q, k, v = layer.attn.qkv(normed).split(64, dim=2)
    weights = (q @ k.transpose(1, 2) * dim**-0.5).softmax(dim=2)
    y = v + layer.attn.proj(weights @ v)
    assert_close(layer(x), y + layer.mlp(layer.norm2(y)), atol=1e-5, rtol=1e-5)
    assert math.isclose(layer.attn.scale, {147: 0.08248, 576: 0.04167}[dim], rel_tol=1e-3)


def test_sinusoid_alternates_sines_and_cosines_from_position_zero() -> None:
    table = sinusoid(5, 6)[0]
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            assert math.isclose(table[position, channel], (math.sin, math.cos)[channel % 2](angle), abs_tol=1e-7)
    assert table[0].tolist() == [0, 1] * 3  # the class token's


def test_a_larger_table_starts_with_the_rows_of_a_smaller_one() -> None:
    small, large = (create_model("t2t_vit_7", image_size=size, depth=1).pos_embed for size in (224, 384))
    assert small.shape == (1, 197, 256)
    assert large.shape == (1, 577, 256)
    assert torch.equal(large[:, :197], small)
    assert not small.requires_grad


def test_initialisation_has_the_published_statistics() -> None:
    torch.manual_seed(0)
    model = create_model("t2t_vit_7")
    for name, parameter in model.named_parameters():
        if name == "pos_embed" or name.endswith(".w"):
            assert not parameter.requires_grad
        elif name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            assert abs(parameter.std() - 0.02) < 0.002, name


def test_class_token_alone_is_exempt_from_decay() -> None:
    assert T2TViT(SMALL).no_weight_decay() == {"cls_token"}


def test_layers_of_named_parameters() -> None:
    model = T2TViT(SMALL)
    names = (
        "cls_token",
        "tokens_to_token.attention1.kqv.bias",
        "blocks.0.norm1.weight",
        "blocks.1.mlp.fc2.bias",
        "norm.bias",
        "head.bias",
    )
    assert [model.layer_of(name) for name in names] == [0, 0, 1, 2, 3, 3]


def test_another_image_size_than_the_built_one_is_explained() -> None:
    with pytest.raises(
        ValueError, match=re.escape("images are (48, 32) but this T2T-ViT was built for (32, 32); build it with")
    ):
        T2TViT(SMALL)(torch.zeros(1, 3, 48, 32))


def test_there_is_no_drop_path_inside_the_t2t_module() -> None:
    model = T2TViT(replace(SMALL, drop_path_rate=0.9, tokens_type="transformer")).train()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.tokens_to_token(images), model.tokens_to_token(images))
    assert [round(block.drop_path.rate, 6) for block in model.blocks] == [0, 0.9]  # pyright: ignore


@pytest.mark.parametrize("size", [(128, 128), (128, 256)], ids=str)
def test_no_matrix_of_tokens_by_tokens_is_kept_for_the_backward_pass(size: tuple[int, int]) -> None:
    model = T2TViT(replace(SMALL, image_size=size, tokens_type="transformer"))
    n = size[0] * size[1] // 16  # tokens of the first layer
    largest = 0

    def measure(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        model(torch.randn(1, 3, *size)).sum().backward()
    assert largest == n * 147  # the neighbourhoods
    assert largest < n * n / 5
