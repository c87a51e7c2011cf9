"""DeiT (Touvron et al. 2021, https://arxiv.org/abs/2012.12877), as a newcomer adds it by CONTRIBUTING.md: one file.

Patches of 16x16 pixels are tokens of a plain transformer. Without distillation.

Official code: facebookresearch/deit. Weights use its parameter names.

Shapes
    b images, c image channels, h and w pixels, s tokens (class token first), d channels of a token
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.kernels.attention import attend
from vitrail.kernels.linear import Linear
from vitrail.models.family import (
    Family,
    FeatureLevel,
    TransformerConfig,
    Variant,
    VisionModel,
    block_index,
    build_head,
    check_heads,
    check_multiple,
    init_linear,
)
from vitrail.models.layers import DropPath, Mlp, drop_path_rates


@dataclass(frozen=True, kw_only=True)
class DeiTConfig(TransformerConfig):
    """Architecture of one DeiT."""

    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    norm_eps: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        found = super().problems() or check_multiple(self.size, self.patch_size)
        return found + check_heads("embed_dim", self.embed_dim, "num_heads", self.num_heads)


class PatchEmbed(nn.Module):
    """Turn each patch into one token."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.embed_dim, config.patch_size, config.patch_size)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        b, s, d = x.shape
        q, k, v = (t.reshape(b, s, self.num_heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=2))
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(b, s, d))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: DeiTConfig, drop_path_rate: float) -> None:
        super().__init__()
        d = config.embed_dim
        self.norm1 = nn.LayerNorm(d, config.norm_eps)
        self.attn = Attention(d, config.num_heads)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(d, config.norm_eps)
        self.mlp = Mlp(d, 4 * d, config.gelu)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DeiT(VisionModel[DeiTConfig]):
    """DeiT, classifying by the class token."""

    num_class_tokens = 1

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.config = config
        d = config.embed_dim
        self.num_features = d
        self.num_layers = config.depth + 1
        self.feature_levels = tuple(FeatureLevel(d, config.patch_size, f"blocks.{i}") for i in range(config.depth))
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid[0] * config.grid[1] + 1, d))
        self.blocks = nn.ModuleList(Block(config, r) for r in drop_path_rates(config.drop_path_rate, config.depth))
        self.norm = nn.LayerNorm(d, config.head_norm_eps)
        self.head = build_head(d, config.num_classes)
        self.apply(init_linear)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)

    def levels(self, images: Float[Tensor, "b c h w"]) -> Iterator[tuple[Float[Tensor, "b s d"], tuple[int, int]]]:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = self.run(block, x)
            yield x, self.config.grid

    def pool(self, tokens: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        return tokens[:, 0]

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    def layer_of(self, parameter_name: str) -> int:
        index = block_index(parameter_name)
        if index is not None:
            return index + 1
        return self.num_layers if parameter_name.startswith(("norm.", "head.")) else 0


FAMILY = Family(
    name="deit",
    paper="https://arxiv.org/abs/2012.12877",
    code="https://github.com/facebookresearch/deit",
    model=DeiT,
    variants={
        "deit_tiny_patch16_224": Variant(
            config=DeiTConfig(),
            params=5_717_416,
            trainable=5_717_416,
            macs=1_253_683_200,
            top1=72.2,
            source="official",
        ),
        "deit_base_patch16_224": Variant(
            config=DeiTConfig(embed_dim=768, num_heads=12),
            params=86_567_656,
            trainable=86_567_656,
            macs=17_563_828_224,
            top1=81.8,
            source="official",
        ),
    },
    tiny={"image_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7},
)
