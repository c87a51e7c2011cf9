"""TNT: Transformer in Transformer (Han et al. 2021, https://arxiv.org/abs/2103.00112).

A patch is a sentence and the small cells inside it are its words. In every block an inner
transformer attends among the words of each sentence; the words are then folded into their sentence,
and an outer transformer attends among sentences.

Official code: huawei-noah/Efficient-AI-Backbones, tnt_pytorch (June 2021). Weights use its
parameter names.

Shapes
    b images, c image channels, h and w pixels, n patches, s = n + 1 tokens (class token first), bn = b * n sentences,
    p words of a sentence, e channels of a word, d channels of a sentence, k classes

Differences from the official code: kept oddities first, then what is otherwise here
    Kept: one drop-path module serves all four residuals of a block, and the inner ones drop sentences, not images.
    Kept: the stem convolution has PyTorch's default initialisation.
    Kept: `outer_tokens`, a frozen parameter that nothing reads, so that files and counts agree; not without a head.
    Kept: the stem cuts patches and convolves each alone (`stem="patch"`), so 7 of 16 words see zeros at the border.
    Kept: `stem="image"` convolves the whole image, as the first release did.
    Kept: `tnt_s_legacy_patch16_224` is that first release, with a norm over each word before the fold.
    Kept: neither positions nor the head are resized when weights are loaded.
    Changed: tokens are joined, not written in place; patches are cut by a reshape, not nn.Unfold; attention is fused.
    Changed: images of any size that the patch size divides, square or not; another size than the built one is an error,
        or with `dynamic_image_size` padded to whole patches, with the table of positions resized.
    Changed: weights must fit exactly; the official evaluation loads with strict=False.
    Left out: the squeeze-and-excitation branch and `_conv_filter`, which no model uses.
    Added: `tnt_ti_patch16_224`, which is in the paper but not in the code.
    Added: `biases="zoo"`, the net of MindSpore's model zoo, which has fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from vitrail.errors import shorten
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.kernels.attention import attend
from vitrail.kernels.linear import Linear
from vitrail.kernels.word_block import is_fused, type_of_products, word_block
from vitrail.kernels.word_block_compiled import NAME
from vitrail.kernels.word_block_plain import Weights
from vitrail.models.any_size import fit_images, resize_positions, size_of
from vitrail.models.dialects import HEAD, JOINED, SPLIT, WORDS, ZOO_PREFIX, Dialect, Row
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
    init_linear,
)
from vitrail.models.layers import DropPath, Mlp, are_plain, bias_of, drop, drop_path_rates


@dataclass(frozen=True, kw_only=True)
class TNTConfig(TransformerConfig):
    """Architecture of one TNT."""

    patch_size: int = 16
    inner_stride: int = 4
    """Pixels from one word to the next, along each side."""
    embed_dim: int = 384
    inner_dim: int = 24
    depth: int = 12
    num_heads: int = 6
    inner_num_heads: int = 4
    mlp_ratio: float = 4.0
    stem: Literal["patch", "image"] = "patch"
    """Convolve each patch alone, or the whole image."""
    fold: Literal["sentence", "word"] = "sentence"
    """Norm before words are folded into their sentence: over the whole sentence, or over each
    word."""
    biases: Literal["all", "zoo"] = "all"
    """`zoo` leaves out what MindSpore's model zoo has not: biases of the stem, of the fold before
    the blocks, of the head, and of the last layers of attention and MLPs."""

    @property
    def head_bias(self) -> bool:
        """Whether the head has a bias."""
        return self.biases == "all"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def multiple(self) -> int:
        """Pixels that the sides of images are padded to a multiple of: those of a patch."""
        return self.patch_size

    @property
    def words(self) -> int:
        """Words along one side of a patch."""
        return self.patch_size // self.inner_stride

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = super().problems()
        if min(self.patch_size, self.inner_stride, self.depth) < 1 or self.mlp_ratio <= 0:
            problems.append("patch_size, inner_stride, depth and mlp_ratio must be positive")
        elif self.patch_size % self.inner_stride:
            problems.append(
                f"patch_size {self.patch_size} is not a multiple of inner_stride "
                f"{self.inner_stride}"
            )
        elif not problems:
            problems += check_multiple(self.size, self.patch_size)
        problems += check_depth("depth", self.depth)
        problems += check_heads("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        problems += check_heads(
            "inner_dim", self.inner_dim, "inner_num_heads", self.inner_num_heads
        )
        if self.stem not in ("patch", "image"):
            problems.append(f"stem is {shorten(self.stem)}; it must be 'patch' or 'image'")
        if self.fold not in ("sentence", "word"):
            problems.append(f"fold is {shorten(self.fold)}; it must be 'sentence' or 'word'")
        if self.biases not in ("all", "zoo"):
            problems.append(f"biases is {shorten(self.biases)}; it must be 'all' or 'zoo'")
        return problems


class Attention(nn.Module):
    """Self-attention with queries and keys in one projection and values in another."""

    def __init__(
        self, dim: int, num_heads: int, drop_rate: float = 0.0, *, last_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.drop_rate = num_heads, drop_rate
        self.qk = Linear(dim, 2 * dim, bias=False)
        self.v = Linear(dim, dim, bias=False)
        self.proj = Linear(dim, dim, bias=last_bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        q, k = self.qk(x).chunk(2, dim=2)
        q, k, v = (
            t.reshape(b, n, self.num_heads, -1).transpose(1, 2) for t in (q, k, self.v(x))
        )  # (b, heads, n, d / heads)
        x = attend(q, k, v)
        return drop(self.proj(x.transpose(1, 2).reshape(b, n, d)), self.drop_rate, self.training)


class WordEmbed(nn.Module):
    """Turn an image into words: a strided 7x7 convolution, grouped by patch."""

    def __init__(self, config: TNTConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(
            config.in_channels, config.inner_dim, kernel_size=7, stride=config.inner_stride, padding=3,
            bias=config.biases == "all",
        )  # fmt: skip

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "bn p e"]:
        b, c, height, width = images.shape
        side, words = self.config.patch_size, self.config.words
        rows, columns = height // side, width // side
        if self.config.stem == "patch":
            x = images.reshape(b, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
            x = self.proj(x.reshape(b * rows * columns, c, side, side))  # (bn, e, words, words)
            return x.flatten(2).transpose(1, 2)
        x = self.proj(images).reshape(b, -1, rows, words, columns, words)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(b * rows * columns, words * words, -1)


class Block(nn.Module):
    """Update every word within its sentence, fold the words into the sentence, then update the sentences."""

    def __init__(self, config: TNTConfig, drop_path_rate: float) -> None:
        super().__init__()
        e, d, p = config.inner_dim, config.embed_dim, config.words**2
        self.by_sentence = by_sentence = config.fold == "sentence"
        last_bias = config.biases == "all"
        self.drop_path = DropPath(drop_path_rate)

        self.inner_norm1 = nn.LayerNorm(e, config.norm_eps)
        self.inner_attn = Attention(
            e, config.inner_num_heads, config.drop_rate, last_bias=last_bias
        )
        self.inner_norm2 = nn.LayerNorm(e, config.norm_eps)
        self.inner_mlp = Mlp(
            e, int(e * config.mlp_ratio), config.gelu, config.drop_rate, last_bias=last_bias
        )

        normed = p * e if by_sentence else e
        self.proj_norm1 = nn.LayerNorm(normed, config.norm_eps)
        self.proj = Linear(p * e, d, bias=not by_sentence)
        self.proj_norm2 = nn.LayerNorm(d, config.norm_eps) if by_sentence else nn.Identity()

        self.outer_norm1 = nn.LayerNorm(d, config.norm_eps)
        self.outer_attn = Attention(d, config.num_heads, config.drop_rate, last_bias=last_bias)
        self.outer_norm2 = nn.LayerNorm(d, config.norm_eps)
        self.outer_mlp = Mlp(
            d, int(d * config.mlp_ratio), config.gelu, config.drop_rate, last_bias=last_bias
        )

    def forward(
        self, words: Float[Tensor, "bn p e"], sentences: Float[Tensor, "b s d"]
    ) -> tuple[Float[Tensor, "bn p e"], Float[Tensor, "b s d"]]:
        words = self.update_words(words)

        b, s, _ = sentences.shape
        folded = words.reshape(b, s - 1, -1) if self.by_sentence else words
        folded = self.proj_norm1(folded).reshape(b, s - 1, -1)  # (b, n, p * e)
        folded = self.proj_norm2(self.proj(folded))  # (b, n, d)
        sentences = sentences + pad(folded, (0, 0, 1, 0))  # nothing is folded into the class token

        sentences = sentences + self.drop_path(self.outer_attn(self.outer_norm1(sentences)))
        sentences = sentences + self.drop_path(self.outer_mlp(self.outer_norm2(sentences)))
        return words, sentences

    def update_words(self, words: Float[Tensor, "bn p e"]) -> Float[Tensor, "bn p e"]:
        """Let the words of each sentence attend to each other, and pass through their MLP."""
        attn, mlp = self.inner_attn, self.inner_mlp
        parts = (self.inner_norm1, attn, self.inner_norm2, mlp)
        if not is_fused(words) or not are_plain(parts, WORD_LAYERS):
            words = words + self.drop_path(attn(self.inner_norm1(words)))
            return words + self.drop_path(mlp(self.inner_norm2(words)))
        weights = Weights(
            self.inner_norm1.weight,
            self.inner_norm1.bias,
            attn.qk.weight,
            attn.v.weight,
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


class TNT(VisionModel[TNTConfig]):
    """Transformer in Transformer, classifying by the class token."""

    num_class_tokens = 1
    embedding = "patch_embed"

    def __init__(self, config: TNTConfig) -> None:
        super().__init__()
        self.config = config
        e, d, p = config.inner_dim, config.embed_dim, config.words**2
        n = config.grid[0] * config.grid[1]
        self.num_features = d
        self.num_layers = config.depth + 1
        self.feature_levels = tuple(
            FeatureLevel(d, config.patch_size, f"blocks.{i}") for i in range(config.depth)
        )

        self.patch_embed = WordEmbed(config)
        self.proj_norm1 = nn.LayerNorm(p * e, config.norm_eps)
        self.proj = Linear(p * e, d, bias=config.biases == "all")
        self.proj_norm2 = nn.LayerNorm(d, config.norm_eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self._hold_outer_tokens()
        self.outer_pos = nn.Parameter(torch.zeros(1, n + 1, d))
        self.inner_pos = nn.Parameter(torch.zeros(1, p, e))
        self.blocks = nn.ModuleList(
            Block(config, r) for r in drop_path_rates(config.drop_path_rate, config.depth)
        )
        self.norm = nn.LayerNorm(d, config.head_norm_eps)
        self.head = build_head(d, config.num_classes, config.head_bias)

        self.apply(init_linear)
        for token in (self.cls_token, self.outer_pos, self.inner_pos):
            nn.init.trunc_normal_(token, std=0.02)

    def _hold_outer_tokens(self) -> None:
        is_held = self.config.fold == "sentence" and self.config.num_classes > 0
        rows, columns = self.config.grid
        outer_tokens = None
        if is_held:
            zeros = self.cls_token.new_zeros(1, rows * columns, self.num_features)
            outer_tokens = nn.Parameter(zeros, requires_grad=False)
        self.register_parameter("outer_tokens", outer_tokens)

    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        self._hold_outer_tokens()

    def embed(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "bn p e"], Float[Tensor, "b s d"]]:
        """Return the words and the sentences that enter the first block, of images of whole patches."""
        b, side = images.shape[0], self.config.patch_size
        words = self.patch_embed(images) + self.inner_pos
        sentences = self.proj_norm2(
            self.proj(self.proj_norm1(words.reshape(b, -1, words.shape[1] * words.shape[2])))
        )
        height, width = size_of(images, self.config)
        grid = height // side, width // side
        positions = resize_positions(self.outer_pos, self.config.grid, grid)
        sentences = torch.cat([self.cls_token.expand(b, -1, -1), sentences], dim=1) + positions
        return words, drop(sentences, self.config.drop_rate, self.patch_embed.training)

    def levels(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b s d"], tuple[int, int]]]:
        images, side = fit_images(images, self.config, "TNT"), self.config.patch_size
        height, width = size_of(images, self.config)
        grid = height // side, width // side
        words, sentences = self.embed(images)
        for block in self.blocks:
            words, sentences = self.run(block, words, sentences)
            yield sentences, grid

    def pool(self, tokens: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        return tokens[:, 0]

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "outer_pos", "inner_pos"}

    def layer_of(self, parameter_name: str) -> int:
        index = block_index(parameter_name)
        if index is not None:
            return index + 1
        return self.num_layers if parameter_name.startswith(("norm.", "head.")) else 0


_HALF = (0.5, 0.5, 0.5)
_TI = TNTConfig(embed_dim=192, inner_dim=12, num_heads=3, inner_num_heads=2)
_S = TNTConfig(embed_dim=384, inner_dim=24, num_heads=6, inner_num_heads=4)
_S_LEGACY = TNTConfig(
    embed_dim=384, inner_dim=24, num_heads=6, inner_num_heads=4, stem="image", fold="word"
)
_B = TNTConfig(embed_dim=640, inner_dim=40, num_heads=10, inner_num_heads=4)

_TIMM = (
    Row("outer_pos", "patch_pos"),
    Row("inner_pos", "pixel_pos", WORDS),
    Row("patch_embed.{rest}", "pixel_embed.{rest}"),
    Row("proj_norm1.{rest}", "norm1_proj.{rest}"),
    Row("proj_norm2.{rest}", "norm2_proj.{rest}"),
    Row("blocks.{i}.inner_norm1.{rest}", "blocks.{i}.norm_in.{rest}"),
    Row("blocks.{i}.inner_attn.{rest}", "blocks.{i}.attn_in.{rest}"),
    Row("blocks.{i}.inner_norm2.{rest}", "blocks.{i}.norm_mlp_in.{rest}"),
    Row("blocks.{i}.inner_mlp.{rest}", "blocks.{i}.mlp_in.{rest}"),
    Row("blocks.{i}.proj_norm1.{rest}", "blocks.{i}.norm1_proj.{rest}"),
    Row("blocks.{i}.proj_norm2.{rest}", "blocks.{i}.norm2_proj.{rest}"),
    Row("blocks.{i}.outer_norm1.{rest}", "blocks.{i}.norm_out.{rest}"),
    Row("blocks.{i}.outer_attn.{rest}", "blocks.{i}.attn_out.{rest}"),
    Row("blocks.{i}.outer_norm2.{rest}", "blocks.{i}.norm_mlp.{rest}"),
    Row("blocks.{i}.outer_mlp.{rest}", "blocks.{i}.mlp.{rest}"),
)


def _mmpretrain_half(half: str) -> tuple[Row, ...]:
    ours, theirs = f"blocks.{{i}}.{half}", f"layers.{{i}}.{half}_block"
    return (
        Row(f"{ours}_norm1.{{rest}}", f"{theirs}.norm_attn.{{rest}}"),
        Row(
            (f"{ours}_attn.qk.weight", f"{ours}_attn.v.weight"),
            f"{theirs}.attn.attn.in_proj_weight",
            SPLIT,
        ),
        Row(f"{ours}_attn.proj.{{rest}}", f"{theirs}.attn.attn.out_proj.{{rest}}"),
        Row(f"{ours}_norm2.{{rest}}", f"{theirs}.norm_ffn.{{rest}}"),
        Row(f"{ours}_mlp.fc1.{{rest}}", f"{theirs}.ffn.layers.0.0.{{rest}}"),
        Row(f"{ours}_mlp.fc2.{{rest}}", f"{theirs}.ffn.layers.1.{{rest}}"),
    )


_MMPRETRAIN = (
    *_TIMM[:5],
    Row("proj.{rest}", "projection.{rest}"),
    *_mmpretrain_half("inner"),
    Row("blocks.{i}.proj_norm1.{rest}", "layers.{i}.norm_proj.{rest}"),
    Row("blocks.{i}.proj.{rest}", "layers.{i}.projection.{rest}"),
    *_mmpretrain_half("outer"),
    Row("head.{rest}", "head.fc.{rest}"),
)

_ZOO = (
    Row(
        "blocks.{i}.inner_attn.qk.weight",
        ("blocks.{i}.inner_attn.q.weight", "blocks.{i}.inner_attn.k.weight"),
        JOINED,
    ),
    Row(
        "blocks.{i}.outer_attn.qk.weight",
        ("blocks.{i}.outer_attn.q.weight", "blocks.{i}.outer_attn.k.weight"),
        JOINED,
    ),
    Row("proj_norm2.{rest}", "proj_norm2_tnt.{rest}"),
)

_ZOO_BIASES = (
    "patch_embed.proj.bias",
    "proj.bias",
    "head.bias",
    "blocks.{i}.inner_attn.proj.bias",
    "blocks.{i}.inner_mlp.fc2.bias",
    "blocks.{i}.outer_attn.proj.bias",
    "blocks.{i}.outer_mlp.fc2.bias",
)

_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_DIALECTS = (
    Dialect(
        name="official",
        optional=("outer_tokens",),
        only={"fold": "sentence", "stem": "patch", "biases": "all"},
    ),
    Dialect(name="timm", rows=_TIMM, absent=("outer_tokens",), only={"biases": "all"}),
    Dialect(
        name="mmpretrain",
        entry="state_dict",
        rows=_MMPRETRAIN,
        prefix="backbone.",
        bare=HEAD,
        absent=("outer_tokens",),
        only={"fold": "word", "stem": "image", "biases": "all"},
    ),
    Dialect(
        name="mindcv",
        absent=("outer_tokens",),
        mindspore=True,
        options={"gelu": "tanh", "final_norm_eps": 1e-7},
        preprocess=_IMAGENET,
        only={"fold": "sentence", "stem": "patch", "biases": "all"},
        doubts=(
            "MindCV normalises with ImageNet's mean and std, which its own training used; weights "
            "that were converted to it from the official ones expect 0.5 "
            "(preprocess.mean=[0.5,0.5,0.5] preprocess.std=[0.5,0.5,0.5]) and erf GELU "
            "(weights.options.gelu=erf); `vitrail evaluate FILE --sweep-preprocess` tells which",
        ),
    ),
    Dialect(
        name="zoo",
        rows=_ZOO,
        prefix=ZOO_PREFIX,
        absent=("outer_tokens", *_ZOO_BIASES),
        instead="a model trained with model.options.biases=zoo has none of them",
        mindspore=True,
        options={"gelu": "tanh", "norm_eps": 1e-7},
        preprocess={**_IMAGENET, "crop": 0.875},
        only={"fold": "sentence", "stem": "patch"},
    ),
)


def _implied(shapes: Shapes) -> dict[str, Any]:
    dim, (_, words, inner) = shapes["cls_token"][2], shapes["inner_pos"]
    return {
        "embed_dim": dim,
        "inner_dim": inner,
        "depth": count_numbers(shapes, r"blocks\.(\d+)\."),
        "mlp_ratio": shapes["blocks.0.outer_mlp.fc1.weight"][0] / dim,
        "fold": "word"
        if shapes["blocks.0.proj_norm1.weight"] == (inner,) and words > 1
        else "sentence",
        "in_channels": shapes["patch_embed.proj.weight"][1],
        "num_classes": count_classes(shapes),
        "positions": shapes["outer_pos"][1] - 1,
    }


FAMILY = Family(
    name="tnt",
    title="TNT",
    paper="https://arxiv.org/abs/2103.00112",
    code="https://github.com/huawei-noah/Efficient-AI-Backbones/tree/master/tnt_pytorch",
    model=TNT,
    variants={
        "tnt_ti_patch16_224": Variant(
            config=_TI,
            params=6_114_040,
            trainable=6_076_408,
            macs=1_403_721_984,
            top1=73.9,
            top5=91.9,
            source="paper",
            mean=_HALF,
            std=_HALF,
        ),
        "tnt_s_patch16_224": Variant(
            config=_S,
            params=23_843_848,
            trainable=23_768_584,
            macs=5_216_875_008,
            top1=81.5,
            top5=95.7,
            source="official",
            mean=_HALF,
            std=_HALF,
        ),
        "tnt_b_patch16_224": Variant(
            config=_B,
            params=65_554_120,
            trainable=65_428_680,
            macs=14_049_082_880,
            top1=82.9,
            top5=96.3,
            source="official",
            mean=_HALF,
            std=_HALF,
        ),
        "tnt_s_legacy_patch16_224": Variant(
            config=_S_LEGACY,
            params=23_755_336,
            trainable=23_755_336,
            macs=5_216_875_008,
            top1=81.512,
            top5=95.742,
            source="timm",
            mean=_HALF,
            std=_HALF,
        ),
    },
    tiny={
        "image_size": 32,
        "embed_dim": 48,
        "inner_dim": 8,
        "depth": 2,
        "num_heads": 3,
        "inner_num_heads": 2,
        "num_classes": 7,
    },
    aliases={
        "tnt_ti": "tnt_ti_patch16_224",
        "tnt_tiny": "tnt_ti_patch16_224",
        "tnt_s": "tnt_s_patch16_224",
        "tnt_small": "tnt_s_patch16_224",
        "tnt_small_patch16_224": "tnt_s_patch16_224",
        "tnt-small-p16_16xb64_in1k": "tnt_s_legacy_patch16_224",
        "tnt_b": "tnt_b_patch16_224",
        "tnt_base": "tnt_b_patch16_224",
        "tnt_base_patch16_224": "tnt_b_patch16_224",
        "tnt_s_legacy": "tnt_s_legacy_patch16_224",
    },
    unread=("outer_tokens",),
    kernels=(NAME,),
    additions={"biases": "all"},
    dialects=_DIALECTS,
    channels={"patch_embed.proj.weight": "summed"},
    positions=("outer_pos",),
    implied=_implied,
)
