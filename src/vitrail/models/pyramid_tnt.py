"""PyramidTNT: TNT in four stages (Han et al. 2022, https://arxiv.org/abs/2201.00978).

As in TNT, a patch is a sentence and the cells inside it are its words. A stem of convolutions makes
both; between stages, two by two sentences become one of twice the width, and so do their words, of
which each sentence keeps 16. Sentences attend to a map of sentences that is averaged in the first
two stages. Only the first blocks of a stage update the words.

Official code: huawei-noah/Efficient-AI-Backbones, tnt_pytorch/pyramid_tnt.py. Weights use its
parameter names.

Shapes
    b images, c image channels, h and w pixels, n sentences of a stage, m of its reduced map, bn = b * n, p words of a
    sentence, e channels of a word, d channels of a sentence, k classes

Differences from the official code: kept oddities first, then what is otherwise here
    Kept: names say patch16, and a sentence of the first stage is 8 pixels wide.
    Kept: the norms over words run over all words of a sentence at once.
    Kept: the table that is added to the scores of a stage is drawn with a deviation of 1, and decays.
    Kept: drop path leaves the fold of words into sentences alone.
    Kept: dropout at the entry acts on the table of positions alone.
    Changed: images of any size that 32 divides; an odd grid has one more row or column of zeros where words are joined.
    Changed: attention is fused; weights must fit exactly.
    Added: `image_size=(height, width)`, and all tables resized where weights are loaded for another size.
    Added: `dynamic_image_size`, by which images of any size are padded and all tables resized as they pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from vitrail.kernels.attention import attend
from vitrail.kernels.linear import Linear
from vitrail.kernels.word_block import is_fused, type_of_products, word_block
from vitrail.kernels.word_block_compiled import NAME
from vitrail.kernels.word_block_plain import Weights
from vitrail.models.any_size import fit_images, resize_pairs, resize_positions, size_of
from vitrail.models.dialects import Dialect, Row
from vitrail.models.family import (
    Family,
    FeatureLevel,
    Grid,
    Shapes,
    TransformerConfig,
    Variant,
    VisionModel,
    build_head,
    check_depth,
    check_heads,
    check_multiple,
    count_classes,
    count_numbers,
    init_linear,
    to_map,
)
from vitrail.models.layers import DropPath, Mlp, are_plain, bias_of, drop, drop_path_rates

STRIDE = 8
"""Pixels of a sentence of the first stage, along each side."""
SIDE = 4
"""Words along one side of a sentence, in every stage."""
MULTIPLE = 32
"""What divides image sizes, so that the reduced maps of all stages are whole."""
LONG_STAGE = 6
"""Blocks above which the first two blocks of a stage, and not the first alone, update the words."""


@dataclass(frozen=True, kw_only=True)
class PyramidTNTConfig(TransformerConfig):
    """Architecture of one PyramidTNT; tuples have one entry a stage."""

    image_size: int | tuple[int, int] = 256
    embed_dims: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of a sentence."""
    inner_dims: tuple[int, ...] = (8, 16, 32, 32)
    """Channels of a word."""
    depths: tuple[int, ...] = (2, 8, 4, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 16)
    inner_num_heads: tuple[int, ...] = (2, 4, 8, 8)
    mlp_ratio: float = 4.0
    sr_ratios: tuple[int, ...] = (4, 2, 1, 1)
    """Side of the cells of sentences that the reduced map averages."""

    def __post_init__(self) -> None:
        for name in OF_STAGES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, int]:
        """Sentences of the first stage along height and width."""
        return self.size[0] // STRIDE, self.size[1] // STRIDE

    @property
    def multiple(self) -> int:
        """Pixels that the sides of images are padded to a multiple of: whole reduced maps in every stage."""
        cells = [MULTIPLE]
        for k, ratio in enumerate(self.sr_ratios):
            if ratio > 1:
                cells.append(STRIDE * 2**k * ratio)
        return math.lcm(*cells)

    def pairs(self, size: tuple[int, int]) -> list[tuple[Grid, Grid]]:
        """Return the grids of each stage's sentences and of its reduced map, for images of a size in pixels."""
        pairs = []
        for (rows, columns), ratio in zip(self.grids(size), self.sr_ratios, strict=True):
            pairs.append(((rows, columns), (rows // ratio, columns // ratio)))
        return pairs

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the sentences of each stage along height and width, for images of a size in pixels."""
        rows, columns = size[0] // STRIDE, size[1] // STRIDE
        grids = []
        for _ in self.depths:
            grids.append((rows, columns))
            rows, columns = -(-rows // 2), -(-columns // 2)
        return grids

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = super().problems()
        if len({len(getattr(self, name)) for name in OF_STAGES}) != 1:
            problems.append(
                f"{', '.join(OF_STAGES[:-1])} and sr_ratios need one entry a stage each"
            )
        elif min(*self.depths, *self.sr_ratios) < 1 or self.mlp_ratio <= 0:
            problems.append("depths, sr_ratios and mlp_ratio must be positive")
        elif not problems and not (problems := check_multiple(self.size, MULTIPLE)):
            for grid, ratio in zip(self.grids(self.size), self.sr_ratios, strict=True):
                if any(side % ratio for side in grid):
                    problems.append(
                        f"sr_ratios {ratio} does not divide its stage's grid of "
                        f"{grid[0]}x{grid[1]} sentences"
                    )
        problems += check_depth("depths", sum(self.depths))
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=False):
            problems += check_heads("embed_dims", dim, "num_heads", heads)
        for dim, heads in zip(self.inner_dims, self.inner_num_heads, strict=False):
            problems += check_heads("inner_dims", dim, "inner_num_heads", heads)
        return problems


OF_STAGES = ("embed_dims", "inner_dims", "depths", "num_heads", "inner_num_heads", "sr_ratios")
"""Settings with one entry a stage."""


class Attention(nn.Module):
    """Attention from every token to all of them, or to a map in which cells of them are averaged."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio, self.drop_rate = num_heads, sr_ratio, drop_rate
        self.q = Linear(dim, dim, bias=False)
        self.kv = Linear(dim, 2 * dim, bias=False)
        self.proj = Linear(dim, dim)
        if sr_ratio > 1:
            self.linear = Linear(dim, dim)
            self.norm = nn.LayerNorm(dim, norm_eps)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        grid: tuple[int, int] | None = None,
        bias: Float[Tensor, "1 heads n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, -1).transpose(1, 2)  # (b, heads, n, d / heads)
        if self.sr_ratio > 1:
            assert grid is not None
            cells = avg_pool2d(to_map(x, *grid), self.sr_ratio).flatten(2).transpose(1, 2)
            x = self.norm(self.linear(cells))  # (b, m, d)
        k, v = self.kv(x).chunk(2, dim=2)
        k = k.reshape(b, -1, self.num_heads, d // self.num_heads).transpose(1, 2)
        v = v.reshape(b, -1, self.num_heads, d // self.num_heads).transpose(1, 2)
        x = attend(q, k, v, bias=bias)
        return drop(self.proj(x.transpose(1, 2).reshape(b, n, d)), self.drop_rate, self.training)


class Stem(nn.Module):
    """Turn an image into words and sentences by 3x3 convolutions, each with a batch norm and a ReLU."""

    def __init__(self, config: PyramidTNTConfig) -> None:
        super().__init__()
        e = config.inner_dims[0]
        self.common_conv = _convolve((config.in_channels, 2 * e, 2))
        self.inner_convs = _convolve((2 * e, e, 1))
        self.outer_convs = _convolve(
            (2 * e, 4 * e, 2), (4 * e, 8 * e, 2), (8 * e, config.embed_dims[0], 1)
        )

    def forward(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "bn p e"], Float[Tensor, "b n d"]]:
        maps = self.common_conv(images)
        words = _cut(self.inner_convs(maps), SIDE)
        return words, self.outer_convs(maps).flatten(2).transpose(1, 2)


def _convolve(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Build convolutions from their channels before and after, and their strides."""
    parts: list[nn.Module] = []
    for before, after, stride in layers:
        convolution = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1)
        parts += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*parts)


def _cut(maps: Float[Tensor, "b e _ _"], side: int) -> Float[Tensor, "bn p e"]:
    """Cut a map into square cells, row by row, and lay the pixels of each out in its own order."""
    b, e, height, width = maps.shape
    x = maps.reshape(b, e, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, e)


class Block(nn.Module):
    """Update the words of every sentence and fold them into it, in the first blocks of a stage; then the sentences."""

    def __init__(
        self, config: PyramidTNTConfig, stage: int, index: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        e, d = config.inner_dims[stage], config.embed_dims[stage]
        eps, rate = config.norm_eps, config.drop_rate
        self.drop_path = DropPath(drop_path_rate)
        self.has_words = index < (2 if config.depths[stage] > LONG_STAGE else 1)
        if self.has_words:
            whole = SIDE * SIDE * e
            self.inner_norm1 = nn.LayerNorm(whole, eps)
            self.inner_attn = Attention(e, config.inner_num_heads[stage], drop_rate=rate)
            self.inner_norm2 = nn.LayerNorm(whole, eps)
            self.inner_mlp = Mlp(e, int(e * config.mlp_ratio), config.gelu, rate)
            self.proj_norm1 = nn.LayerNorm(whole, eps)
            self.proj = Linear(whole, d, bias=False)
            self.proj_norm2 = nn.LayerNorm(d, eps)
        self.outer_norm1 = nn.LayerNorm(d, eps)
        self.outer_attn = Attention(d, config.num_heads[stage], config.sr_ratios[stage], eps, rate)
        self.outer_norm2 = nn.LayerNorm(d, eps)
        self.outer_mlp = Mlp(d, int(d * config.mlp_ratio), config.gelu, rate)

    def forward(
        self,
        words: Float[Tensor, "bn p e"],
        sentences: Float[Tensor, "b n d"],
        grid: tuple[int, int],
        bias: Float[Tensor, "1 heads n m"],
    ) -> tuple[Float[Tensor, "bn p e"], Float[Tensor, "b n d"]]:
        if self.has_words:
            words = self.update_words(words)
            b, n, _ = sentences.shape
            folded = words.reshape(b, n, -1)  # (b, n, p * e)
            sentences = sentences + self.proj_norm2(self.proj(self.proj_norm1(folded)))
        attended = self.outer_attn(self.outer_norm1(sentences), grid, bias)
        sentences = sentences + self.drop_path(attended)
        sentences = sentences + self.drop_path(self.outer_mlp(self.outer_norm2(sentences)))
        return words, sentences

    def update_words(self, words: Float[Tensor, "bn p e"]) -> Float[Tensor, "bn p e"]:
        """Let the words of each sentence attend to each other, and pass through their MLP."""
        attn, mlp = self.inner_attn, self.inner_mlp
        parts = (self.inner_norm1, attn, self.inner_norm2, mlp)
        if not is_fused(words, whole=True) or not are_plain(parts, WORD_LAYERS):
            words = words + self.drop_path(attn(_by_sentence(self.inner_norm1, words)))
            return words + self.drop_path(mlp(_by_sentence(self.inner_norm2, words)))
        e = words.shape[2]
        weights = Weights(
            self.inner_norm1.weight,
            self.inner_norm1.bias,
            torch.cat([attn.q.weight, attn.kv.weight[:e]]),
            attn.kv.weight[e:],
            attn.proj.weight,
            bias_of(attn.proj),
            self.inner_norm2.weight,
            self.inner_norm2.bias,
            mlp.fc1.weight,
            mlp.fc1.bias,
            mlp.fc2.weight,
            bias_of(mlp.fc2),
        )
        return word_block(
            words,
            self.drop_path.draw_twice(words),
            weights,
            attn.num_heads,
            self.inner_norm1.eps,
            mlp.act.approximate,
            type_of_products(words),
        )


WORD_LAYERS = (nn.LayerNorm, nn.GELU, Linear, Attention, Mlp)
"""Layers of the words that the fused operator stands for; an adapter in their place is none."""


def _by_sentence(norm: nn.Module, words: Float[Tensor, "bn p e"]) -> Float[Tensor, "bn p e"]:
    """Apply a norm over all words of a sentence at once."""
    return norm(words.flatten(1)).reshape(words.shape)


class Stage(nn.Module):
    """The blocks of a stage, and the table that is added to the scores of all of them."""

    def __init__(self, config: PyramidTNTConfig, index: int, rates: list[float]) -> None:
        super().__init__()
        rows, columns = config.grids(config.size)[index]
        ratio = config.sr_ratios[index]
        cells = (rows // ratio) * (columns // ratio)
        table = torch.randn(1, config.num_heads[index], rows * columns, cells)
        self.relative_pos = nn.Parameter(table)
        self.blocks = nn.ModuleList(
            Block(config, index, number, rate) for number, rate in enumerate(rates)
        )


class SentenceMerge(nn.Module):
    """Turn two by two sentences into one."""

    def __init__(self, dim: int, out_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.conv = nn.Sequential(nn.Conv2d(dim, out_dim, kernel_size=3, stride=2, padding=1))

    def forward(
        self, sentences: Float[Tensor, "b n d"], grid: tuple[int, int]
    ) -> Float[Tensor, "b _ _"]:
        return self.conv(to_map(self.norm(sentences), *grid)).flatten(2).transpose(1, 2)


class WordMerge(nn.Module):
    """Turn the words of two by two sentences into those of one."""

    def __init__(self, dim: int, out_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.conv = nn.Sequential(nn.Conv2d(dim, out_dim, kernel_size=3, stride=2, padding=1))

    def forward(self, words: Float[Tensor, "bn p e"], grid: tuple[int, int]) -> Tensor:
        rows, columns = grid
        x = self.norm(words).reshape(-1, rows, columns, SIDE, SIDE, words.shape[2])
        x = pad(x, (0, 0, 0, 0, 0, 0, 0, columns % 2, 0, rows % 2))  # zeros behind an odd grid
        # (b, e, rows * SIDE, columns * SIDE), cut into the words of two by two sentences each
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        b, e, height, width = x.shape
        side = 2 * SIDE
        x = x.reshape(b, e, height // side, side, width // side, side)
        x = self.conv(x.permute(0, 2, 4, 1, 3, 5).reshape(-1, e, side, side))
        return x.flatten(2).transpose(1, 2)


class PyramidTNT(VisionModel[PyramidTNTConfig]):
    """Transformer in Transformer as a pyramid, classifying by the mean of its last sentences."""

    embedding = "patch_embed"

    def __init__(self, config: PyramidTNTConfig) -> None:
        super().__init__()
        self.config = config
        dims, words, depths = config.embed_dims, config.inner_dims, config.depths
        rows, columns = config.grid
        self.num_features = dims[-1]
        self.num_layers = sum(depths) + 1
        self.feature_levels = tuple(
            FeatureLevel(dim, STRIDE * 2**k, f"stages.{k}.blocks.{depth - 1}")
            for k, (dim, depth) in enumerate(zip(dims, depths, strict=True))
        )
        self.patch_embed = Stem(config)
        self.outer_pos = nn.Parameter(torch.zeros(1, rows * columns, dims[0]))
        self.inner_pos = nn.Parameter(torch.zeros(1, SIDE * SIDE, words[0]))
        rates = drop_path_rates(config.drop_path_rate, sum(depths))
        firsts = [sum(depths[:k]) for k in range(len(depths))]
        self.stages = nn.ModuleList(
            Stage(config, k, rates[first : first + depth])
            for k, (first, depth) in enumerate(zip(firsts, depths, strict=True))
        )
        eps = config.norm_eps
        self.word_merges = nn.ModuleList(WordMerge(e, after, eps) for e, after in pairwise(words))
        self.sentence_merges = nn.ModuleList(
            SentenceMerge(d, after, eps) for d, after in pairwise(dims)
        )
        self.norm = nn.LayerNorm(dims[-1], config.head_norm_eps)
        self.head = build_head(dims[-1], config.num_classes)
        self.apply(init_linear)
        for table in (self.outer_pos, self.inner_pos):
            nn.init.trunc_normal_(table, std=0.02)

    def levels(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], tuple[int, int]]]:
        config = self.config
        images = fit_images(images, config, "PyramidTNT")
        before, pairs = config.pairs(config.size), config.pairs(size_of(images, config))
        words, sentences = self.patch_embed(images)
        words = words + self.inner_pos
        positions = resize_positions(self.outer_pos, before[0][0], pairs[0][0])
        sentences = sentences + drop(positions, config.drop_rate, self.patch_embed.training)
        for k, stage in enumerate(self.stages):
            grid = pairs[k][0]
            # once for all blocks of the stage: a table can be larger than what they compute
            table: Any = stage.relative_pos
            bias = resize_pairs(table, before[k], pairs[k])
            for block in stage.blocks:  # pyright: ignore[reportGeneralTypeIssues]
                words, sentences = self.run(block, words, sentences, grid, bias)
            yield sentences, grid
            if k < len(self.stages) - 1:
                words = self.word_merges[k](words, grid)
                sentences = self.sentence_merges[k](sentences, grid)

    def map_size(self, level: int) -> tuple[int, int]:
        return self.config.grids(self.config.size)[level]

    def pool(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return tokens.mean(dim=1)

    def no_weight_decay(self) -> set[str]:
        return {"outer_pos", "inner_pos"}

    def layer_of(self, parameter_name: str) -> int:
        part, _, rest = parameter_name.partition(".")
        if part in ("norm", "head"):
            return self.num_layers
        if part not in ("stages", "word_merges", "sentence_merges"):
            return 0
        stage = int(rest.split(".")[0])
        first = sum(self.config.depths[:stage])
        if part != "stages":  # what joins two stages belongs to the last block before it
            return first + self.config.depths[stage]
        place = rest.split(".")
        return first + 1 + (int(place[2]) if place[1] == "blocks" else 0)


BATCH_NORMS = (
    "patch_embed.common_conv.1",
    "patch_embed.inner_convs.1",
    "patch_embed.outer_convs.1",
    "patch_embed.outer_convs.4",
    "patch_embed.outer_convs.7",
)
"""The batch norms of the stem, by their names."""


_DIALECTS = (
    Dialect(name="official"),
    # no project has published this family for MindSpore: its own names for the official modules
    Dialect(
        name="mindspore",
        rows=(
            *(Row(f"{name}.running_mean", f"{name}.moving_mean") for name in BATCH_NORMS),
            *(Row(f"{name}.running_var", f"{name}.moving_variance") for name in BATCH_NORMS),
        ),
        norms=BATCH_NORMS,
        has_counters=False,
        mindspore=True,
    ),
)


def _implied(shapes: Shapes) -> dict[str, Any]:
    stages = range(count_numbers(shapes, r"stages\.(\d+)\.relative_pos"))
    dims = tuple(shapes[f"stages.{k}.blocks.0.outer_norm1.weight"][0] for k in stages)
    inner = tuple(shapes[f"stages.{k}.blocks.0.inner_mlp.fc2.weight"][0] for k in stages)
    return {
        "embed_dims": dims,
        "inner_dims": inner,
        "depths": tuple(count_numbers(shapes, rf"stages\.{k}\.blocks\.(\d+)\.") for k in stages),
        "num_heads": tuple(shapes[f"stages.{k}.relative_pos"][1] for k in stages),
        "mlp_ratio": shapes["stages.0.blocks.0.outer_mlp.fc1.weight"][0] / dims[0],
        "in_channels": shapes["patch_embed.common_conv.0.weight"][1],
        "num_classes": count_classes(shapes),
        "positions": shapes["outer_pos"][1],
    }


def _variant(
    width: int, word: int, heads: int, depths: tuple[int, ...], *, params: int, **facts: Any
) -> Variant[PyramidTNTConfig]:
    """Return a variant from the first stage's channels and heads; the last stage is as wide as the one before."""
    growth = (1, 2, 4, 4)
    config = PyramidTNTConfig(
        image_size=facts.pop("image_size", 256),
        embed_dims=tuple(width * n for n in growth),
        inner_dims=tuple(word * n for n in growth),
        depths=depths,
        num_heads=tuple(heads * n for n in growth),
        inner_num_heads=tuple(heads // 2 * n for n in growth),
    )
    half = (0.5, 0.5, 0.5)
    facts |= {"params": params, "trainable": params, "mean": half, "std": half}
    return Variant(config=config, source="official", **facts)


def _pairs(config: PyramidTNTConfig) -> dict[str, tuple[Grid, Grid]]:
    """Return the grids of the sentences and of the reduced map that each stage's table is for."""
    return {f"stages.{k}.relative_pos": pair for k, pair in enumerate(config.pairs(config.size))}


FAMILY = Family(
    name="pyramid_tnt",
    title="PyramidTNT",
    paper="https://arxiv.org/abs/2201.00978",
    code="https://github.com/huawei-noah/Efficient-AI-Backbones/tree/master/tnt_pytorch",
    model=PyramidTNT,
    variants={
        "ptnt_ti_patch16_192": _variant(
            80, 5, 2, (2, 6, 3, 2), image_size=192, params=10_578_529, macs=586_434_560, top1=75.2
        ),
        "ptnt_s_patch16_256": _variant(
            128, 8, 4, (2, 8, 4, 2), params=31_953_200, macs=3_283_341_312, top1=82.0
        ),
        "ptnt_m_patch16_256": _variant(
            192, 12, 4, (2, 8, 6, 2), params=84_943_572, macs=8_204_630_016, top1=83.5
        ),
        "ptnt_b_patch16_256": _variant(
            256, 16, 4, (2, 10, 6, 2), params=156_990_072, macs=15_966_642_176, top1=84.1
        ),
    },
    tiny={
        "image_size": 96,
        "embed_dims": (16, 32, 32, 32),
        "inner_dims": (4, 8, 8, 8),
        "depths": (1, 2, 1, 2),
        "num_heads": (1, 2, 2, 2),
        "inner_num_heads": (1, 2, 2, 2),
        "num_classes": 7,
    },
    aliases={
        "ptnt_ti": "ptnt_ti_patch16_192",
        "ptnt_s": "ptnt_s_patch16_256",
        "ptnt_m": "ptnt_m_patch16_256",
        "ptnt_b": "ptnt_b_patch16_256",
        "pyramid_tnt_ti": "ptnt_ti_patch16_192",
        "pyramid_tnt_s": "ptnt_s_patch16_256",
        "pyramid_tnt_m": "ptnt_m_patch16_256",
        "pyramid_tnt_b": "ptnt_b_patch16_256",
    },
    kernels=(NAME,),
    dialects=_DIALECTS,
    positions=("outer_pos",),
    paired_positions=_pairs,
    channels={"patch_embed.common_conv.0.weight": "summed"},
    implied=_implied,
)
