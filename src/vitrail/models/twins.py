"""Twins: PCPVT and SVT (Chu et al. 2021, https://arxiv.org/abs/2104.13840).

Both are four-stage pyramids with a convolutional position encoding. PCPVT attends from every token
to a reduced map; SVT alternates attention inside 7x7 windows with attention to the reduced map.

Official code: Meituan-AutoML/Twins. Weights use its parameter names.

Shapes
    b images, c channels of a map, h and w its pixels, n tokens, d channels of a token, r tokens of the reduced map,
    g window side, k classes

Differences from the official code: kept oddities first, then what is otherwise here
    Kept: norms of blocks and the last one use eps 1e-6, those of patch embeddings and of the reduced map 1e-5.
    Kept: the position encoding acts once a stage, after its first block, and does not decay.
    Kept: the last stage, of reduction 1, attends to all tokens without a reducing convolution or norm.
    Changed: images of any size from 32 pixels up; maps are padded right and bottom with zeros to whole windows.
    Changed: that padding is attended, as timm does; patch embedding and reduction drop rows and columns left over,
        or with `dynamic_image_size` images are padded to whole cells first.
    Changed: the head can be replaced; the official `reset_classifier` fails.
    Changed: the drop-path rate is given at creation alone; the official `reset_drop_path` has no effect on many blocks.
    Changed: SVT does not build and throw away a PCPVT first, so the same seed draws other initial weights.
    Changed: multiply-adds are counted with the attention products, which the published figures leave out.
    Changed: PCPVT is what the official file calls CPVTV2; its class PCPVT is not the published model.
    Changed: `no_weight_decay` is read here; the official `PosCNN.no_weight_decay` is never called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from vitrail.kernels.attention import attend
from vitrail.kernels.linear import Linear, is_symbolic
from vitrail.models.any_size import fit_images
from vitrail.models.dialects import HEAD, ZOO_PREFIX, Dialect, Row
from vitrail.models.family import (
    Family,
    FeatureLevel,
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
from vitrail.models.layers import DropPath, Mlp, drop, drop_path_rates


@dataclass(frozen=True, kw_only=True)
class TwinsConfig(TransformerConfig):
    """Architecture of one Twins; tuples have one entry a stage."""

    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 10, 4)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    """Side of the cells that the reduced map summarises."""
    patch_sizes: tuple[int, ...] = (4, 2, 2, 2)
    """Side of the cells that become one token at the entry of a stage."""
    window_size: int | None = 7
    """Side of the windows of every even block, in tokens; None attends to the reduced map in every
    block (PCPVT)."""
    norm_eps: float = 1e-6
    embed_norm_eps: float = 1e-5
    """Epsilon of the norms in patch embeddings and after reduction."""

    def __post_init__(self) -> None:
        for name in ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios", "patch_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = super().problems()
        of_stages = (
            self.embed_dims,
            self.depths,
            self.num_heads,
            self.mlp_ratios,
            self.sr_ratios,
            self.patch_sizes,
        )
        lengths = set(map(len, of_stages))
        if len(lengths) != 1:
            problems.append(
                "embed_dims, depths, num_heads, mlp_ratios, sr_ratios and patch_sizes need one "
                "entry a stage each"
            )
        elif (
            min(*self.depths, *self.sr_ratios, *self.patch_sizes) < 1
            or min(self.mlp_ratios) <= 0
            or self.embed_norm_eps <= 0
        ):
            problems.append(
                "depths, mlp_ratios, sr_ratios, patch_sizes and embed_norm_eps must be positive"
            )
        elif not problems and min(self.size) < (smallest := self.smallest_size()):
            nearest = "x".join(str(max(n, smallest)) for n in self.size)
            problems.append(
                f"image_size {self.size[0]}x{self.size[1]} is below {smallest} pixels; the nearest "
                f"size is {nearest}"
            )
        elif not problems and self.dynamic_image_size:
            problems += check_multiple(self.size, self.multiple)
        problems += check_depth("depths", sum(self.depths))
        if self.window_size is not None and self.window_size < 1:
            problems.append(
                f"window_size is {self.window_size}; it must be positive, or none for PCPVT"
            )
        elif self.window_size is not None and self.window_size > max(
            self.size
        ):  # the rest of which is only padding
            problems.append(
                f"window_size is {self.window_size}; it must be at most the {max(self.size)} of "
                "the images"
            )
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=False):
            problems += check_heads("embed_dims", dim, "num_heads", heads)
        return problems

    @property
    def multiple(self) -> int:
        """Pixels that the sides of images are padded to a multiple of: whole cells in every stage."""
        strides = list(accumulate(self.patch_sizes, mul))
        return math.lcm(*strides, *map(mul, strides, self.sr_ratios))

    def smallest_size(self) -> int:
        """Return the least height and width whose every stage keeps one cell of its reduced map."""
        strides = accumulate(self.patch_sizes, mul)
        return max(map(mul, strides, self.sr_ratios))


class WindowAttention(nn.Module):
    """Self-attention inside windows ("LSA")."""

    def __init__(self, dim: int, num_heads: int, window_size: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.drop_rate = num_heads, window_size, drop_rate
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b n d"]:
        b, _, d = x.shape
        g = self.window_size
        x = pad(x.reshape(b, height, width, d), (0, 0, 0, -width % g, 0, -height % g))
        rows, columns = x.shape[1] // g, x.shape[2] // g
        # (b * rows * columns, g * g, d)
        x = x.reshape(b, rows, g, columns, g, d).transpose(2, 3).reshape(-1, g * g, d)
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k, v = (
            t.reshape(-1, g * g, self.num_heads, d // self.num_heads).transpose(1, 2)
            for t in (q, k, v)
        )
        x = attend(q, k, v)  # (b * rows * columns, heads, g * g, d / heads)
        x = x.transpose(1, 2).reshape(b, rows, columns, g, g, d).transpose(2, 3)
        x = x.reshape(b, rows * g, columns * g, d)[:, :height, :width]
        return drop(self.proj(x.reshape(b, height * width, d)), self.drop_rate, self.training)


class ReducedAttention(nn.Module):
    """Attention from every token to a map reduced by a strided convolution ("GSA")."""

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int, norm_eps: float, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio, self.drop_rate = num_heads, sr_ratio, drop_rate
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim, norm_eps)

    def forward(self, x: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, -1).transpose(1, 2)  # (b, heads, n, d / heads)
        if self.sr_ratio > 1:
            x = self.norm(self.sr(to_map(x, height, width)).flatten(2).transpose(1, 2))  # (b, r, d)
        k, v = self.kv(x).chunk(2, dim=2)
        k, v = (
            t.reshape(b, -1, self.num_heads, d // self.num_heads).transpose(1, 2) for t in (k, v)
        )
        x = attend(q, k, v)
        return drop(self.proj(x.transpose(1, 2).reshape(b, n, d)), self.drop_rate, self.training)


class Block(nn.Module):
    """One pre-norm transformer block; even blocks of SVT attend in windows."""

    def __init__(self, config: TwinsConfig, stage: int, index: int, drop_path_rate: float) -> None:
        super().__init__()
        d, heads = config.embed_dims[stage], config.num_heads[stage]
        self.norm1 = nn.LayerNorm(d, config.norm_eps)
        if config.window_size is not None and index % 2 == 0:
            self.attn = WindowAttention(d, heads, config.window_size, config.drop_rate)
        else:
            self.attn = ReducedAttention(
                d, heads, config.sr_ratios[stage], config.embed_norm_eps, config.drop_rate
            )
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(d, config.norm_eps)
        self.mlp = Mlp(d, int(d * config.mlp_ratios[stage]), config.gelu, config.drop_rate)

    def forward(self, x: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b n d"]:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PositionEncoding(nn.Module):
    """Add a depthwise 3x3 convolution of the map to it ("PEG", Chu et al. 2021, https://arxiv.org/abs/2102.10882)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim))

    def forward(self, x: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b n d"]:
        return x + self.proj(to_map(x, height, width)).flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Turn each cell of a map into one token."""

    def __init__(self, in_channels: int, dim: int, patch_size: int, norm_eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, norm_eps)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n d"], int, int]:
        maps = self.proj(maps)
        return self.norm(maps.flatten(2).transpose(1, 2)), maps.shape[2], maps.shape[3]


class Twins(VisionModel[TwinsConfig]):
    """Twins pyramid, classifying by the mean of its last tokens."""

    embedding = "patch_embeds.0"

    def __init__(self, config: TwinsConfig) -> None:
        super().__init__()
        self.config = config
        dims, depths = config.embed_dims, config.depths
        self.num_features = dims[-1]
        self.num_layers = sum(depths) + 1
        levels = []
        for k, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            last_module = f"blocks.{k}.{depth - 1}" if depth > 1 else f"pos_block.{k}"
            levels.append(FeatureLevel(dim, math.prod(config.patch_sizes[: k + 1]), last_module))
        self.feature_levels = tuple(levels)

        self.patch_embeds = nn.ModuleList(
            PatchEmbed(before, dim, side, config.embed_norm_eps)
            for before, dim, side in zip(
                (config.in_channels, *dims[:-1]), dims, config.patch_sizes, strict=True
            )
        )
        rates = iter(drop_path_rates(config.drop_path_rate, sum(depths)))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(config, stage, index, next(rates)) for index in range(depth))
            for stage, depth in enumerate(depths)
        )
        self.pos_block = nn.ModuleList(PositionEncoding(dim) for dim in dims)
        self.norm = nn.LayerNorm(dims[-1], config.head_norm_eps)
        self.head = build_head(dims[-1], config.num_classes)
        self.apply(_init)

    def levels(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], tuple[int, int]]]:
        if self.config.dynamic_image_size:
            images = fit_images(images, self.config, "Twins")
        smallest = self.config.smallest_size()
        if not is_symbolic(images) and min(images.shape[-2:]) < smallest:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}; this Twins needs at least {smallest} "
                "pixels a side"
            )
        maps = images
        for patch_embed, blocks, pos_block in zip(
            self.patch_embeds, self.blocks, self.pos_block, strict=True
        ):
            x, height, width = patch_embed(maps)
            x = drop(x, self.config.drop_rate, patch_embed.training)
            for index, block in enumerate(blocks):  # pyright: ignore[reportArgumentType]
                x = self.run(block, x, height, width)
                if index == 0:
                    x = pos_block(x, height, width)
            yield x, (height, width)
            maps = to_map(x, height, width)

    def pool(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return tokens.mean(dim=1)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("pos_block.")}

    def layer_of(self, parameter_name: str) -> int:
        part, _, rest = parameter_name.partition(".")
        if part in ("norm", "head"):
            return self.num_layers
        stage = int(rest.split(".")[0])
        first = sum(self.config.depths[:stage])
        if part == "blocks":
            return first + int(rest.split(".")[1]) + 1
        # a patch embedding belongs to the last layer before it
        return first + (1 if part == "pos_block" else 0)


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        fan_out = (
            module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        )
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _pcpvt(*depths: int) -> TwinsConfig:
    return TwinsConfig(
        embed_dims=(64, 128, 320, 512),
        depths=depths,
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(8.0, 8.0, 4.0, 4.0),
        window_size=None,
    )


def _svt(width: int, heads: int, *depths: int) -> TwinsConfig:
    doubling = (1, 2, 4, 8)
    return TwinsConfig(
        embed_dims=tuple(width * n for n in doubling),
        depths=depths,
        num_heads=tuple(heads * n for n in doubling),
    )


_MMPRETRAIN = (
    Row("patch_embeds.{k}.proj.{rest}", "patch_embeds.{k}.projection.{rest}"),
    Row("pos_block.{k}.proj.0.{rest}", "position_encodings.{k}.proj.{rest}"),
    Row("blocks.{k}.{i}.mlp.fc1.{rest}", "stages.{k}.{i}.ffn.layers.0.0.{rest}"),
    Row("blocks.{k}.{i}.mlp.fc2.{rest}", "stages.{k}.{i}.ffn.layers.1.{rest}"),
    Row("blocks.{k}.{i}.{rest}", "stages.{k}.{i}.{rest}"),
    Row("norm.{rest}", "norm_after_stage3.{rest}"),
    Row("head.{rest}", "head.fc.{rest}"),
)


def _merged(stage: str, name: str) -> tuple[Row, ...]:
    """Return the rows of a stage, where the second place is its position encoding's and the other blocks follow."""
    return (
        Row(f"blocks.{stage}.0.{{rest}}", f"{name}.0.{{rest}}"),
        Row(f"blocks.{stage}.{{i}}.{{rest}}", f"{name}.{{i+1}}.{{rest}}"),
    )


def _merged_with_position(stage: str, name: str) -> tuple[Row, ...]:
    """Return the rows of a stage whose position encoding has that place in its name too."""
    first, others = _merged(stage, name)
    return (first, Row(f"pos_block.{stage}.{{rest}}", f"{name}.1.{{rest}}"), others)


_MINDSPORE = {"gelu": "tanh", "embed_norm_eps": 1e-7}

_DIALECTS = (
    Dialect(
        name="official",
        entry="model",
        also=("timm",),
        notes=("timm's names are the same; it evaluates with preprocess.crop=0.9",),
    ),
    Dialect(
        name="mmpretrain",
        entry="state_dict",
        rows=_MMPRETRAIN,
        prefix="backbone.",
        bare=HEAD,
        only={"window_size": None},
    ),
    Dialect(
        name="mmpretrain",
        entry="state_dict",
        rows=_MMPRETRAIN,
        prefix="backbone.",
        bare=HEAD,
        only={"window_size": 7},
        options={"norm_eps": 1e-5},
    ),
    # the bare net: MindSpore 2 names a stage by its number, the first one not at all
    Dialect(
        name="mindcv",
        rows=(*_merged_with_position("0", "0"), *_merged_with_position("{k}", "0.{k}")),
        mindspore=True,
        options=_MINDSPORE,
        preprocess={"crop": 0.9},
    ),
    # the net within another cell: the position encodings are registered, and named, before the
    # stages
    Dialect(
        name="zoo",
        rows=_merged("{k}", "merge_blocks.{k}"),
        prefix=ZOO_PREFIX,
        mindspore=True,
        options=_MINDSPORE,
    ),
    # as vitrail wrote it at first
    Dialect(
        name="zoo",
        rows=_merged_with_position("{k}", "merge_blocks.{k}"),
        mindspore=True,
        options=_MINDSPORE,
    ),
)


_BLOCK = re.compile(r"(.+?)\.((?:norm[12]|attn|mlp|proj\.0)\..+)")
_POSITION = "proj.0.bias"
_WIDTH = ("norm1.gamma", _POSITION)


def _number_stages(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the zoo's names of MindSpore's weights by those in a file, from its order and shapes.

    How MindSpore names what a stage holds differs from version to version; that a stage's blocks
    stand in the order they run does not. A stage is known by its width, which grows with each, and
    a position encoding by its weights.
    """
    if not any(name.startswith("patch_embeds.") and name.endswith(".gamma") for name in weights):
        return {}
    blocks: dict[str, dict[str, str]] = {}
    names = {}
    for name in weights:
        block = _BLOCK.fullmatch(name)
        if block is None or name.startswith("patch_embeds."):
            names[name] = name
        else:
            blocks.setdefault(block[1], {})[block[2]] = name
    widths = {}
    for place, leaves in blocks.items():
        for leaf in _WIDTH:
            if leaf in leaves:
                widths[place] = len(weights[leaves[leaf]])
    stages = sorted(set(widths.values()))
    for stage, width in enumerate(stages):
        places = [place for place in blocks if widths.get(place) == width]
        encodings = [place for place in places if _POSITION in blocks[place]]
        for place in encodings:
            names |= {name: f"pos_block.{stage}.{leaf}" for leaf, name in blocks[place].items()}
        for number, place in enumerate(place for place in places if place not in encodings):
            at = number + 1 if number else 0
            names |= {
                name: f"merge_blocks.{stage}.{at}.{leaf}" for leaf, name in blocks[place].items()
            }
    return names


def _implied(shapes: Shapes) -> dict[str, Any]:
    stages = range(count_numbers(shapes, r"patch_embeds\.(\d+)\."))
    dims = tuple(shapes[f"patch_embeds.{k}.proj.weight"][0] for k in stages)
    depths = tuple(count_numbers(shapes, rf"blocks\.{k}\.(\d+)\.") for k in stages)
    in_windows = "blocks.0.0.attn.qkv.weight" in shapes
    return {
        "embed_dims": dims,
        "depths": depths,
        "mlp_ratios": tuple(shapes[f"blocks.{k}.0.mlp.fc1.weight"][0] / dims[k] for k in stages),
        "patch_sizes": tuple(shapes[f"patch_embeds.{k}.proj.weight"][2] for k in stages),
        **({} if in_windows else {"window_size": None}),
        "in_channels": shapes["patch_embeds.0.proj.weight"][1],
        "num_classes": count_classes(shapes),
    }


FAMILY = Family(
    name="twins",
    title="Twins",
    paper="https://arxiv.org/abs/2104.13840",
    code="https://github.com/Meituan-AutoML/Twins",
    model=Twins,
    variants={
        "twins_pcpvt_small": Variant(
            config=_pcpvt(3, 4, 6, 3),
            params=24_106_216,
            trainable=24_106_216,
            macs=3_809_459_968,
            top1=81.2,
            top5=95.638,
            source="official",
            crop=0.875,
        ),
        "twins_pcpvt_base": Variant(
            config=_pcpvt(3, 4, 18, 3),
            params=43_828_456,
            trainable=43_828_456,
            macs=6_652_933_888,
            top1=82.7,
            top5=96.268,
            source="official",
            crop=0.875,
        ),
        "twins_pcpvt_large": Variant(
            config=_pcpvt(3, 8, 27, 3),
            params=60_989_672,
            trainable=60_989_672,
            macs=9_807_524_096,
            top1=83.1,
            top5=96.610,
            source="official",
            crop=0.875,
        ),
        "twins_svt_small": Variant(
            config=_svt(64, 2, 2, 2, 10, 4),
            params=24_060_776,
            trainable=24_060_776,
            macs=2_927_353_344,
            top1=81.7,
            top5=95.624,
            source="official",
            crop=0.875,
        ),
        "twins_svt_base": Variant(
            config=_svt(96, 3, 2, 2, 18, 2),
            params=56_070_952,
            trainable=56_070_952,
            macs=8_562_612_480,
            top1=83.2,
            top5=96.360,
            source="official",
            crop=0.875,
        ),
        "twins_svt_large": Variant(
            config=_svt(128, 4, 2, 2, 18, 2),
            params=99_271_400,
            trainable=99_271_400,
            macs=15_111_777_280,
            top1=83.7,
            top5=96.512,
            source="official",
            crop=0.875,
        ),
    },
    tiny={
        "image_size": 64,
        "embed_dims": (16, 16, 32, 32),
        "depths": (1, 2, 1, 2),
        "num_heads": (1, 2, 2, 4),
        "mlp_ratios": (2.0,) * 4,
        "num_classes": 7,
    },
    aliases={
        "pcpvt_small_v0": "twins_pcpvt_small",
        "pcpvt_base_v0": "twins_pcpvt_base",
        "pcpvt_large_v0": "twins_pcpvt_large",
        "pcpvt_small": "twins_pcpvt_small",
        "pcpvt_base": "twins_pcpvt_base",
        "pcpvt_large": "twins_pcpvt_large",
        "pcpvt_s": "twins_pcpvt_small",
        "pcpvt_b": "twins_pcpvt_base",
        "pcpvt_l": "twins_pcpvt_large",
        "alt_gvt_small": "twins_svt_small",
        "alt_gvt_base": "twins_svt_base",
        "alt_gvt_large": "twins_svt_large",
        "svt_small": "twins_svt_small",
        "svt_base": "twins_svt_base",
        "svt_large": "twins_svt_large",
        "svt_s": "twins_svt_small",
        "svt_b": "twins_svt_base",
        "svt_l": "twins_svt_large",
    },
    dialects=_DIALECTS,
    by_order=_number_stages,
    channels={"patch_embeds.0.proj.weight": "summed"},
    implied=_implied,
)
