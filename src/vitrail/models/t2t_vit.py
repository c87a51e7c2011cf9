"""T2T-ViT: Tokens-to-Token ViT (Yuan et al. 2021, https://arxiv.org/abs/2101.11986).

Overlapping neighbourhoods are joined into tokens three times (side 7, 3, 3; stride 4, 2, 2), with
one narrow attention layer after each of the first two, before a deep and narrow transformer.

Official code: yitu-opensource/T2T-ViT. Weights use its parameter names.

Shapes
    b images, c channels of a map, h and w its pixels, n tokens, s = n + 1 tokens (class token first), i channels of a
    token that enters a T2T layer, t = 64 channels that leave it, m = 32 random features, d channels of the backbone,
    k classes

Differences from the official code: kept oddities first, then what is otherwise here
    Kept: the T2T transformer scales its attention by the width of its input, 147 or 576, not by the 64 attended.
    Kept: the performer projects to keys, queries, values in that order, with a bias.
    Kept: the performer's residual is on the values, not on its input.
    Kept: the performer's random features are drawn once, frozen and stored in the file.
    Kept: the performer's dropout of 0.1 is always on in training.
    Kept: there is no drop path inside the T2T module, nor is `drop_rate` handed to it.
    Kept: positions are a frozen sinusoid over the raster order.
    Changed: performer features are float32 with the maximum subtracted, safe in half precision; same formula.
    Changed: neighbourhoods are strided views instead of nn.Unfold; attention is fused, of linear memory.
    Changed: images of any size in multiples of 16, square or not; another size than the built one is an error, or with
        `dynamic_image_size` padded to whole tokens, with the sinusoid resized.
    Changed: `reset_classifier` works for every variant, and names are those of the models that exist.
    Left out: `qk_scale`, which only `pretrained=True` set and no published training used.
    Left out: `resize_pos_embed`, which never ran as shipped; the sinusoid is made for the size asked.
    Left out: the incomplete "convolution" tokens, and the dense, SE and ghost studies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from vitrail.errors import shorten
from vitrail.kernels.attention import attend, recorder
from vitrail.kernels.linear import Linear, is_symbolic
from vitrail.models.any_size import fit_images, resize_positions, size_of
from vitrail.models.dialects import HEAD, ZOO_PREFIX, Dialect, Row
from vitrail.models.family import (
    Family,
    FeatureLevel,
    Shapes,
    TransformerConfig,
    Variant,
    VisionModel,
    block_index,
    build_head,
    check_depth,
    check_heads,
    check_multiple,
    count_classes,
    count_numbers,
    gelu,
    init_linear,
    to_map,
)
from vitrail.models.layers import DropPath, Mlp, drop, drop_path_rates

STRIDE = 16
TOKEN_DIM = 64
NUM_FEATURES = 32
PERFORMER_EPS = 1e-8
PERFORMER_DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class T2TViTConfig(TransformerConfig):
    """Architecture of one T2T-ViT."""

    tokens_type: Literal["performer", "transformer"] = "performer"
    embed_dim: int = 384
    depth: int = 14
    num_heads: int = 6
    mlp_ratio: float = 3.0

    @property
    def grid(self) -> tuple[int, int]:
        """Backbone tokens along height and width."""
        return self.size[0] // STRIDE, self.size[1] // STRIDE

    @property
    def multiple(self) -> int:
        """Pixels that the sides of images are padded to a multiple of: those of a token."""
        return STRIDE

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = super().problems()
        if not problems:
            problems += check_multiple(self.size, STRIDE)
        problems += check_depth("depth", self.depth)
        problems += check_heads("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        if self.embed_dim % 2:
            problems.append(f"embed_dim is {self.embed_dim}; the sinusoid needs an even number")
        if self.depth < 1 or self.mlp_ratio <= 0:
            problems.append("depth and mlp_ratio must be positive")
        if self.tokens_type not in ("performer", "transformer"):
            problems.append(
                f"tokens_type is {shorten(self.tokens_type)}; it must be 'performer' or "
                "'transformer'"
            )
        return problems


def soft_split(maps: Float[Tensor, "b c h w"], side: int, stride: int) -> Float[Tensor, "b n i"]:
    """Join each `side` x `side` neighbourhood into one token of (c, side, side) values, as nn.Unfold orders them."""
    margin = (side - stride + 1) // 2
    views = (
        pad(maps, (margin,) * 4).unfold(2, side, stride).unfold(3, side, stride)
    )  # (b, c, rows, columns, side, side)
    b, c, rows, columns, _, _ = views.shape
    return views.permute(0, 2, 3, 1, 4, 5).reshape(b, rows * columns, c * side * side)


def sinusoid(num_positions: int, dim: int) -> Float[Tensor, "1 s d"]:
    """Return the fixed position table: sines in even channels, cosines in odd ones, computed in float64."""
    channel = np.arange(dim)
    angle = np.arange(num_positions)[:, None] / np.power(10000.0, 2 * (channel // 2) / dim)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table.astype(np.float32)).unsqueeze(0)


class TokenPerformer(nn.Module):
    """Attention with positive random features (Choromanski et al. 2021): linear in the number of tokens."""

    def __init__(self, dim: int, config: T2TViTConfig) -> None:
        super().__init__()
        self.kqv = Linear(dim, 3 * TOKEN_DIM)
        self.proj = Linear(TOKEN_DIM, TOKEN_DIM)
        self.dropout = nn.Dropout(PERFORMER_DROPOUT)
        self.norm1 = nn.LayerNorm(dim, config.norm_eps)
        self.norm2 = nn.LayerNorm(TOKEN_DIM, config.norm_eps)
        self.mlp = nn.Sequential(
            Linear(TOKEN_DIM, TOKEN_DIM),
            gelu(config.gelu),
            Linear(TOKEN_DIM, TOKEN_DIM),
            nn.Dropout(PERFORMER_DROPOUT),
        )
        self.w = nn.Parameter(torch.empty(NUM_FEATURES, TOKEN_DIM), requires_grad=False)
        with torch.no_grad():
            nn.init.orthogonal_(self.w)
            self.w.mul_(math.sqrt(NUM_FEATURES))

    def log_features(self, x: Float[Tensor, "b n t"]) -> Float[Tensor, "b n m"]:
        """Return w.x - |x|^2 / 2, the logarithm of the random features but for their common factor 1 / sqrt(m)."""
        return x @ self.w.float().T - x.square().sum(-1, keepdim=True) / 2

    def attention(
        self, k: Float[Tensor, "b n t"], q: Float[Tensor, "b n t"], v: Float[Tensor, "b n t"]
    ) -> Float[Tensor, "b n t"]:
        """Return phi(q) (phi(k)^T v) / (phi(q) sum(phi(k)) + eps), with every exponent at most 0.

        The largest key exponent of each feature moves over to the queries, and the largest query
        exponent then cancels between numerator and denominator, except in eps. Gradients need not
        flow through either. Who records attention is told of phi(q) phi(k)^T / (the same).
        """
        log_k, log_q = self.log_features(k), self.log_features(q)
        k_max = log_k.detach().amax(dim=1, keepdim=True)  # (b, 1, m)
        log_q = log_q + k_max
        q_max = log_q.detach().amax(dim=2, keepdim=True)  # (b, n, 1)
        k, q = (log_k - k_max).exp(), (log_q - q_max).exp()
        # 60 keeps the exponential finite; beyond it the published formula gives 0 as well
        eps = PERFORMER_EPS * NUM_FEATURES * (-q_max).clamp(max=60).exp()
        denominator = q @ k.sum(dim=1).unsqueeze(2) + eps
        out = q @ (k.transpose(1, 2) @ v) / denominator
        if (record := recorder()) is not None:
            with torch.no_grad():
                shares = q @ k.transpose(1, 2) / denominator
            out = out.unsqueeze(1)  # as of one head
            record(shares.unsqueeze(1), v.detach().unsqueeze(1), out)
            out = out.squeeze(1)
        return out

    def forward(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b n t"]:
        k, q, v = self.kqv(self.norm1(x)).split(TOKEN_DIM, dim=2)
        kind = "cpu" if is_symbolic(x) else x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                y = self.attention(k.float(), q.float(), v.float())
        else:
            y = self.attention(k.float(), q.float(), v.float())
        x = v + self.dropout(self.proj(y.to(v.dtype)))
        return x + self.mlp(self.norm2(x))


class SingleHeadAttention(nn.Module):
    """Attention of one head that is narrower than its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = Linear(dim, 3 * TOKEN_DIM, bias=False)
        self.proj = Linear(TOKEN_DIM, TOKEN_DIM)

    def forward(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b n t"]:
        q, k, v = self.qkv(x).unsqueeze(1).split(TOKEN_DIM, dim=3)  # (b, 1, n, t) each
        x = attend(q, k, v, scale=self.scale)
        return v.squeeze(1) + self.proj(x.squeeze(1))


class TokenTransformer(nn.Module):
    """The T2T layer with full attention."""

    def __init__(self, dim: int, config: T2TViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, config.norm_eps)
        self.attn = SingleHeadAttention(dim)
        self.norm2 = nn.LayerNorm(TOKEN_DIM, config.norm_eps)
        self.mlp = Mlp(TOKEN_DIM, TOKEN_DIM, config.gelu)

    def forward(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b n t"]:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Three soft splits, with a T2T layer after the first and the second."""

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__()
        layer = TokenPerformer if config.tokens_type == "performer" else TokenTransformer
        self.attention1 = layer(config.in_channels * 7 * 7, config)
        self.attention2 = layer(TOKEN_DIM * 3 * 3, config)
        self.project = Linear(TOKEN_DIM * 3 * 3, config.embed_dim)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        h, w = images.shape[-2:]
        x = self.attention1(soft_split(images, 7, 4))  # (b, h/4 * w/4, t)
        x = self.attention2(soft_split(to_map(x, h // 4, w // 4), 3, 2))  # (b, h/8 * w/8, t)
        return self.project(soft_split(to_map(x, h // 8, w // 8), 3, 2))  # (b, h/16 * w/16, d)


class Attention(nn.Module):
    """Multi-head self-attention without biases on queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.drop_rate = num_heads, drop_rate
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.proj = Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        b, s, d = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k, v = (t.reshape(b, s, self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        x = attend(q, k, v)
        return drop(self.proj(x.transpose(1, 2).reshape(b, s, d)), self.drop_rate, self.training)


class Block(nn.Module):
    """One pre-norm transformer block of the backbone."""

    def __init__(self, config: T2TViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        d = config.embed_dim
        self.norm1 = nn.LayerNorm(d, config.norm_eps)
        self.attn = Attention(d, config.num_heads, config.drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(d, config.norm_eps)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), config.gelu, config.drop_rate)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class T2TViT(VisionModel[T2TViTConfig]):
    """Tokens-to-Token ViT, classifying by the class token."""

    in_float = (TokenPerformer,)
    num_class_tokens = 1
    embedding = "tokens_to_token"

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__()
        self.config = config
        d = config.embed_dim
        self.num_features = d
        self.num_layers = config.depth + 1
        self.feature_levels = tuple(
            FeatureLevel(d, STRIDE, f"blocks.{i}") for i in range(config.depth)
        )

        self.tokens_to_token = TokensToToken(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(
            torch.empty(1, config.grid[0] * config.grid[1] + 1, d), requires_grad=False
        )
        self.blocks = nn.ModuleList(
            Block(config, r) for r in drop_path_rates(config.drop_path_rate, config.depth)
        )
        self.norm = nn.LayerNorm(d, config.head_norm_eps)
        self.head = build_head(d, config.num_classes)

        self.apply(init_linear)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            self.pos_embed.copy_(sinusoid(self.pos_embed.shape[1], d))

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """Return the tokens that enter the first block, of images of whole tokens."""
        height, width = size_of(images, self.config)
        grid = height // STRIDE, width // STRIDE
        positions = resize_positions(self.pos_embed, self.config.grid, grid)
        x = self.tokens_to_token(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + positions
        return drop(x, self.config.drop_rate, self.tokens_to_token.training)

    def levels(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b s d"], tuple[int, int]]]:
        images = fit_images(images, self.config, "T2T-ViT")
        height, width = size_of(images, self.config)
        grid = height // STRIDE, width // STRIDE
        x = self.embed(images)
        for block in self.blocks:
            x = self.run(block, x)
            yield x, grid

    def pool(self, tokens: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        return tokens[:, 0]

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def layer_of(self, parameter_name: str) -> int:
        index = block_index(parameter_name)
        if index is not None:
            return index + 1
        return self.num_layers if parameter_name.startswith(("norm.", "head.")) else 0


def _config(
    embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 3.0, transformer: bool = False
) -> T2TViTConfig:
    tokens_type = "transformer" if transformer else "performer"
    return T2TViTConfig(
        tokens_type=tokens_type,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
    )


_CIFAR = {
    "crop": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
"""What the official transfer to CIFAR-10 and CIFAR-100 reads images with, from files with an entry
`net`."""
_MMPRETRAIN = (
    Row("tokens_to_token.attention{n}.norm{i}.{rest}", "tokens_to_token.attention{n}.ln{i}.{rest}"),
    Row(
        "tokens_to_token.attention{n}.mlp.fc1.{rest}",
        "tokens_to_token.attention{n}.ffn.layers.0.0.{rest}",
    ),
    Row(
        "tokens_to_token.attention{n}.mlp.fc2.{rest}",
        "tokens_to_token.attention{n}.ffn.layers.1.{rest}",
    ),
    Row("blocks.{i}.norm{n}.{rest}", "encoder.{i}.ln{n}.{rest}"),
    Row("blocks.{i}.mlp.fc1.{rest}", "encoder.{i}.ffn.layers.0.0.{rest}"),
    Row("blocks.{i}.mlp.fc2.{rest}", "encoder.{i}.ffn.layers.1.{rest}"),
    Row("blocks.{i}.{rest}", "encoder.{i}.{rest}"),
    Row("head.{rest}", "head.layers.head.{rest}"),
)

_ZOO = (
    # a performer's two layers have numbers here; a transformer's have names in both
    Row("tokens_to_token.attention{n}.mlp.0.{rest}", "tokens_to_token.attention{n}.mlp.fc1.{rest}"),
    Row("tokens_to_token.attention{n}.mlp.2.{rest}", "tokens_to_token.attention{n}.mlp.fc2.{rest}"),
)

_ZOO_OPTIONS = {"gelu": "tanh", "norm_eps": 1e-7}
_ZOO_REMEDY = (
    "with `disable_approximate_gelu: True` in their YAML its programs compute with erf GELU"
)
_ZOO_LACKS = ("t2t_vit_14_resnext",)
_SPLITS = {"tokens_to_token.soft_split{n}.out": "a buffer of MindSpore's unfold"}

_DIALECTS = (
    Dialect(name="official"),
    Dialect(
        name="mmpretrain",
        entry="state_dict",
        rows=_MMPRETRAIN,
        prefix="backbone.",
        bare=HEAD,
        only={"tokens_type": "transformer"},
        doubts=(
            "mmpretrain's present code multiplies attention by 8 where the paper divides, so its "
            "own figures for these "
            "weights cannot be had from it; here they compute what they were trained for",
        ),
    ),
    Dialect(
        name="zoo",
        rows=_ZOO,
        prefix=ZOO_PREFIX,
        ignored=_SPLITS,
        mindspore=True,
        options=_ZOO_OPTIONS,
        remedy=_ZOO_REMEDY,
        lacks=_ZOO_LACKS,
        only={"tokens_type": "performer"},
    ),
    Dialect(
        name="zoo",
        prefix=ZOO_PREFIX,
        ignored=_SPLITS,
        mindspore=True,
        options=_ZOO_OPTIONS,
        remedy=_ZOO_REMEDY,
        lacks=_ZOO_LACKS,
    ),
)


def _implied(shapes: Shapes) -> dict[str, Any]:
    dim, first = shapes["cls_token"][2], "tokens_to_token.attention1"
    return {
        "tokens_type": "performer" if f"{first}.kqv.weight" in shapes else "transformer",
        "embed_dim": dim,
        "depth": count_numbers(shapes, r"blocks\.(\d+)\."),
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / dim,
        "in_channels": shapes[f"{first}.norm1.weight"][0] // 49,
        "num_classes": count_classes(shapes),
        "positions": shapes["pos_embed"][1] - 1,
    }


FAMILY = Family(
    name="t2t_vit",
    title="T2T-ViT",
    paper="https://arxiv.org/abs/2101.11986",
    code="https://github.com/yitu-opensource/T2T-ViT",
    model=T2TViT,
    variants={
        "t2t_vit_7": Variant(
            config=_config(256, 7, 4, 2.0),
            params=4_310_222,
            trainable=4_255_694,
            macs=1_146_863_616,
            top1=71.7,
            source="official",
        ),
        "t2t_vit_10": Variant(
            config=_config(256, 10, 4, 2.0),
            params=5_889_230,
            trainable=5_834_702,
            macs=1_516_328_448,
            top1=75.2,
            source="official",
        ),
        "t2t_vit_12": Variant(
            config=_config(256, 12, 4, 2.0),
            params=6_941_902,
            trainable=6_887_374,
            macs=1_762_638_336,
            top1=76.5,
            source="official",
        ),
        "t2t_vit_14": Variant(
            config=_config(384, 14, 6),
            params=21_545_550,
            trainable=21_465_806,
            macs=4_783_468_544,
            top1=81.5,
            top5=95.666,
            source="official",
        ),
        "t2t_vit_19": Variant(
            config=_config(448, 19, 7),
            params=39_177_422,
            trainable=39_085_070,
            macs=8_479_682_176,
            top1=81.9,
            source="official",
        ),
        "t2t_vit_24": Variant(
            config=_config(512, 24, 8),
            params=64_105_934,
            trainable=64_000_974,
            macs=13_661_874_688,
            top1=82.3,
            source="official",
        ),
        "t2t_vit_t_14": Variant(
            config=_config(384, 14, 6, transformer=True),
            params=21_541_070,
            trainable=21_465_422,
            macs=6_088_721_920,
            top1=81.7,
            source="official",
        ),
        "t2t_vit_t_19": Variant(
            config=_config(448, 19, 7, transformer=True),
            params=39_172_942,
            trainable=39_084_686,
            macs=9_784_935_552,
            top1=82.4,
            source="official",
        ),
        "t2t_vit_t_24": Variant(
            config=_config(512, 24, 8, transformer=True),
            params=64_101_454,
            trainable=64_000_590,
            macs=14_967_128_064,
            top1=82.6,
            source="official",
        ),
        "t2t_vit_14_resnext": Variant(
            config=_config(384, 14, 32), params=21_545_550, trainable=21_465_806, macs=4_783_468_544
        ),
        "t2t_vit_14_wide": Variant(
            config=_config(768, 4, 12), params=25_156_302, trainable=25_000_910, macs=5_229_349_376
        ),
    },
    tiny={"image_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 7},
    aliases={
        "t2t_vit_t14": "t2t_vit_t_14",
        "t2t_vit_t19": "t2t_vit_t_19",
        "t2t_vit_t24": "t2t_vit_t_24",
        "t2t-vit-t-14_8xb64_in1k": "t2t_vit_t_14",
        "t2t-vit-t-19_8xb64_in1k": "t2t_vit_t_19",
        "t2t-vit-t-24_8xb64_in1k": "t2t_vit_t_24",
        "t2t_vit7": "t2t_vit_7",
        "t2t_vit10": "t2t_vit_10",
        "t2t_vit12": "t2t_vit_12",
        "t2t_vit14": "t2t_vit_14",
        "t2t_vit19": "t2t_vit_19",
        "t2t_vit24": "t2t_vit_24",
        "t2t_7": "t2t_vit_7",
        "t2t_10": "t2t_vit_10",
        "t2t_12": "t2t_vit_12",
        "t2t_14": "t2t_vit_14",
        "t2t_19": "t2t_vit_19",
        "t2t_24": "t2t_vit_24",
        "t2t_vit_p_14": "t2t_vit_14",
        "t2t_vit_p_19": "t2t_vit_19",
        "t2t_vit_p_24": "t2t_vit_24",
    },
    dialects=_DIALECTS,
    by_entry={("net", 10): _CIFAR, ("net", 100): _CIFAR},
    channels={
        "tokens_to_token.attention1.kqv.weight": "summed",
        "tokens_to_token.attention1.attn.qkv.weight": "summed",
        "tokens_to_token.attention1.norm1.weight": "averaged",
        "tokens_to_token.attention1.norm1.bias": "averaged",
    },
    positions=("pos_embed",),
    fixed_positions=sinusoid,
    implied=_implied,
)
