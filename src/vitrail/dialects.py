"""How each project names the weights of these models, and lays them out, beside the official names that we use.

A dialect is a table of rows, read from top to bottom in either direction; the first row that fits a name decides, and a
name that no row fits is the same in both. In a pattern, {i} stands for a number, {i+1} for the number after it, and
{rest} for the rest of a name. A row with several names joins or splits tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vitrail.models.registry import IMAGENET_MEAN, IMAGENET_STD

Change = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class How:
    """A change of layout, in both directions."""

    name: str
    """As the report calls it."""
    read: Change
    write: Change


def _keep(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors)


def _join(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(list(tensors))]


def _halve(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [half.contiguous() for half in tensors[0].chunk(2)]


def _cut(tensors: Sequence[Tensor]) -> list[Tensor]:
    rows = len(tensors[0]) * 2 // 3
    return [tensors[0][:rows].contiguous(), tensors[0][rows:].contiguous()]


def _to_words(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0].flatten(2).transpose(1, 2).contiguous()]  # (1, e, side, side) to (1, p, e)


def _to_grid(tensors: Sequence[Tensor]) -> list[Tensor]:
    words = tensors[0].shape[1]
    side = math.isqrt(words)
    return [tensors[0].transpose(1, 2).unflatten(2, (side, words // side)).contiguous()]


SAME = How("renamed", _keep, _keep)
JOINED = How("joined", _join, _halve)
"""Two of theirs are one of ours, one below the other."""
SPLIT = How("split", _cut, _join)
"""One of theirs is queries and keys, then values, of ours."""
WORDS = How("reshaped", _to_words, _to_grid)
"""Positions of words: a grid there, a list here."""


@dataclass(frozen=True)
class Row:
    """One line of a dialect's table."""

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    how: How = SAME


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The names of one project for one family of models."""

    name: str
    family: str
    also: tuple[str, ...] = ()
    """Other projects with the same names."""
    rows: tuple[Row, ...] = ()
    absent: tuple[str, ...] = ()
    """Patterns of ours that the project does not have: zeros when read, and they must be zeros to be written."""
    optional: tuple[str, ...] = ()
    """Patterns of ours that the project's files may lack: zeros then."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Patterns of theirs that hold no weights, and what they are."""
    prefix: str = ""
    """Before every name but the head's, when written."""
    mindspore: bool = False
    """Norms have gamma and beta, and files are .ckpt."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the model must be built with to compute what that project computes."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """Where that project reads images otherwise than the model's authors."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a model must have to be one that the project knows, and why not."""
    notes: tuple[str, ...] = ()
    """What a user of such a file should know."""
    doubts: tuple[str, ...] = ()
    """What may make numbers wrong without a sign."""

    @property
    def projects(self) -> tuple[str, ...]:
        """All projects with these names."""
        return (self.name, *self.also)


@dataclass(frozen=True)
class Link:
    """Some weights of ours, and those of theirs that hold the same."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    how: How


def read_names(names: Iterable[str], dialect: Dialect) -> tuple[list[Link], dict[str, str], list[str]]:
    """Return which names of a project hold which of ours, those that hold no weights with what they are, and the rest.

    The rest are names that the project does not use: they have another name there, or the weights are absent.
    """
    leaves, rest = {}, []
    for whole in names:
        name = whole.removeprefix(dialect.prefix)
        if dialect.mindspore and (norm := _NORM.fullmatch(name)) and norm[2] in ("weight", "bias"):
            rest.append(whole)
        else:
            leaves[_from_gamma(name) if dialect.mindspore else name] = whole
    ignored = {
        name: what for name in leaves for pattern, what in dialect.ignored.items() if _match(pattern, name) is not None
    }
    rows = [(_names(row.theirs), _names(row.ours), row.how) for row in dialect.rows]
    foreign = [*dialect.absent, *(ours for _, group, _ in rows for ours in group)]
    links = []
    for theirs, ours, how in _pair([name for name in leaves if name not in ignored], rows):
        if theirs == ours and _is_one_of(ours[0], foreign):
            rest.append(leaves[theirs[0]])
        else:
            links.append(Link(ours, tuple(leaves[name] for name in theirs), how))
    return links, {leaves[name]: what for name, what in ignored.items()}, rest


def write_names(names: Iterable[str], dialect: Dialect) -> tuple[list[Link], list[str]]:
    """Return under which names a project holds our weights, and those of ours that it has no place for."""
    rows = [(_names(row.ours), _names(row.theirs), row.how) for row in dialect.rows]
    names = list(names)
    dropped = [name for name in names if _is_one_of(name, dialect.absent)]
    links = [
        Link(ours, tuple(_theirs(name, dialect) for name in theirs), how)
        for ours, theirs, how in _pair([name for name in names if name not in dropped], rows)
    ]
    return links, dropped


def may_lack(name: str, dialect: Dialect) -> bool:
    """Say whether a project's files lack a weight of ours that is then zeros."""
    return _is_one_of(name, (*dialect.absent, *dialect.optional))


_BLOCK = re.compile(r"(.+?)\.((?:norm[12]|attn|mlp|proj\.0)\..+)")
_WIDTH = ("norm1.gamma", "proj.0.bias")


def is_twins_of_mindspore(weights: Mapping[str, Tensor]) -> bool:
    """Say whether names are MindSpore's of a Twins, of whatever version."""
    return any(name.startswith("patch_embeds.") and name.endswith(".gamma") for name in weights)


def number_stages(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the zoo's names of Twins' weights, with those in the file, by the order and the shapes of the file.

    How MindSpore names what a stage holds differs from version to version; that it saves it as it runs does not: the
    first block, the position encoding, the other blocks. A stage is known by its width, which grows with each.
    """
    blocks: dict[str, dict[str, str]] = {}
    found = {}
    for name in weights:
        block = _BLOCK.fullmatch(name)
        if block is None or name.startswith("patch_embeds."):
            found[name] = name
        else:
            blocks.setdefault(block[1], {})[block[2]] = name
    widths = {
        place: len(weights[leaves[leaf]]) for place, leaves in blocks.items() for leaf in _WIDTH if leaf in leaves
    }
    stages = sorted(set(widths.values()))
    for stage, width in enumerate(stages):
        places = [place for place in blocks if widths.get(place) == width]
        for number, place in enumerate(places):
            found |= {f"merge_blocks.{stage}.{number}.{leaf}": name for leaf, name in blocks[place].items()}
    return found


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(_match(pattern, name) is not None for pattern in patterns)


def _pair(
    names: Sequence[str], rows: Sequence[tuple[tuple[str, ...], tuple[str, ...], How]]
) -> list[tuple[tuple[str, ...], tuple[str, ...], How]]:
    left, pairs = dict.fromkeys(names), []
    for name in names:
        if name not in left:
            continue  # joined with one before it
        for sources, targets, how in rows:
            found = _match(sources[0], name)
            group = tuple(_fill(source, found) for source in sources) if found is not None else ()
            if found is not None and all(member in left for member in group):
                pairs.append((group, tuple(_fill(target, found) for target in targets), how))
                break
        else:
            group = (name,)
            pairs.append((group, group, SAME))
        for member in group:
            del left[member]
    return pairs


def _names(pattern: str | tuple[str, ...]) -> tuple[str, ...]:
    return (pattern,) if isinstance(pattern, str) else pattern


_PLACE = re.compile(r"\{(\w+)(\+1)?\}")


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    text, end = "", 0
    for place in _PLACE.finditer(pattern):
        text += re.escape(pattern[end : place.start()])
        # a number has a name of one letter; what is longer begins with a letter itself, so that 0.1 is no rest
        text += rf"(?P<{place[1]}>\d{{1,6}})" if len(place[1]) == 1 else rf"(?P<{place[1]}>[a-z_][\w.]*)"
        end = place.end()
    return re.compile(text + re.escape(pattern[end:]))


def _match(pattern: str, name: str) -> dict[str, str] | None:
    found = _compile(pattern).fullmatch(name)
    if found is None:
        return None
    later = {place[1] for place in _PLACE.finditer(pattern) if place[2]}
    return {key: str(int(text) - 1) if key in later else text for key, text in found.groupdict().items()}


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda place: str(int(values[place[1]]) + 1) if place[2] else values[place[1]], pattern)


_NORM = re.compile(r"(.*norm\w*)\.(gamma|beta|weight|bias)")
_LEAF = {"gamma": "weight", "beta": "bias", "weight": "gamma", "bias": "beta"}


def _from_gamma(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_LEAF[leaf]}" if leaf in ("gamma", "beta") else name


def _theirs(name: str, dialect: Dialect) -> str:
    found = _NORM.fullmatch(name) if dialect.mindspore else None
    name = f"{found[1]}.{_LEAF[found[2]]}" if found else name
    return name if name.startswith("head.") else dialect.prefix + name


# TNT

_TNT_TIMM = (
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
        Row((f"{ours}_attn.qk.weight", f"{ours}_attn.v.weight"), f"{theirs}.attn.attn.in_proj_weight", SPLIT),
        Row(f"{ours}_attn.proj.{{rest}}", f"{theirs}.attn.attn.out_proj.{{rest}}"),
        Row(f"{ours}_norm2.{{rest}}", f"{theirs}.norm_ffn.{{rest}}"),
        Row(f"{ours}_mlp.fc1.{{rest}}", f"{theirs}.ffn.layers.0.0.{{rest}}"),
        Row(f"{ours}_mlp.fc2.{{rest}}", f"{theirs}.ffn.layers.1.{{rest}}"),
    )


_TNT_MMPRETRAIN = (
    *_TNT_TIMM[:5],
    Row("proj.{rest}", "projection.{rest}"),
    *_mmpretrain_half("inner"),
    Row("blocks.{i}.proj_norm1.{rest}", "layers.{i}.norm_proj.{rest}"),
    Row("blocks.{i}.proj.{rest}", "layers.{i}.projection.{rest}"),
    *_mmpretrain_half("outer"),
    Row("head.{rest}", "head.fc.{rest}"),
)

_TNT_ZOO = (
    *(
        Row(
            f"blocks.{{i}}.{half}_attn.qk.weight",
            (f"blocks.{{i}}.{half}_attn.q.weight", f"blocks.{{i}}.{half}_attn.k.weight"),
            JOINED,
        )
        for half in ("inner", "outer")
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

_TNT = (
    Dialect(name="official", family="tnt", optional=("outer_tokens",), only={"fold": "sentence", "stem": "patch"}),
    Dialect(name="timm", family="tnt", rows=_TNT_TIMM, absent=("outer_tokens",)),
    Dialect(
        name="mmpretrain",
        family="tnt",
        rows=_TNT_MMPRETRAIN,
        prefix="backbone.",
        absent=("outer_tokens",),
        only={"fold": "word", "stem": "image"},
    ),
    Dialect(
        name="mindcv",
        family="tnt",
        absent=("outer_tokens",),
        mindspore=True,
        options={"gelu": "tanh", "final_norm_eps": 1e-7},
        preprocess=_IMAGENET,
        only={"fold": "sentence", "stem": "patch"},
        doubts=(
            "MindCV normalises with ImageNet's mean and std, which its own training used; weights that were converted "
            "to it from the official ones expect 0.5 (preprocess.mean=[0.5,0.5,0.5] preprocess.std=[0.5,0.5,0.5]) and "
            "erf GELU (weights.options.gelu=erf); `vitrail evaluate FILE --sweep-preprocess` tells which",
        ),
    ),
    Dialect(
        name="zoo",
        family="tnt",
        rows=_TNT_ZOO,
        absent=("outer_tokens", *_ZOO_BIASES),
        mindspore=True,
        options={"gelu": "tanh", "norm_eps": 1e-7},
        preprocess={**_IMAGENET, "crop": 0.875},
        only={"fold": "sentence", "stem": "patch"},
    ),
)

# T2T-ViT

_T2T_MMPRETRAIN = (
    Row("tokens_to_token.attention{n}.norm{i}.{rest}", "tokens_to_token.attention{n}.ln{i}.{rest}"),
    Row("tokens_to_token.attention{n}.mlp.fc1.{rest}", "tokens_to_token.attention{n}.ffn.layers.0.0.{rest}"),
    Row("tokens_to_token.attention{n}.mlp.fc2.{rest}", "tokens_to_token.attention{n}.ffn.layers.1.{rest}"),
    Row("blocks.{i}.norm{n}.{rest}", "encoder.{i}.ln{n}.{rest}"),
    Row("blocks.{i}.mlp.fc1.{rest}", "encoder.{i}.ffn.layers.0.0.{rest}"),
    Row("blocks.{i}.mlp.fc2.{rest}", "encoder.{i}.ffn.layers.1.{rest}"),
    Row("blocks.{i}.{rest}", "encoder.{i}.{rest}"),
    Row("head.{rest}", "head.layers.head.{rest}"),
)

_T2T_ZOO = (
    # a performer's two layers have numbers here; a transformer's have names in both
    Row("tokens_to_token.attention{n}.mlp.0.{rest}", "tokens_to_token.attention{n}.mlp.fc1.{rest}"),
    Row("tokens_to_token.attention{n}.mlp.2.{rest}", "tokens_to_token.attention{n}.mlp.fc2.{rest}"),
)

_T2T_ZOO_OPTIONS = {"gelu": "tanh", "norm_eps": 1e-7}
_T2T_SPLITS = {"tokens_to_token.soft_split{n}.out": "a buffer of MindSpore's unfold"}

_T2T = (
    Dialect(name="official", family="t2t_vit"),
    Dialect(
        name="mmpretrain",
        family="t2t_vit",
        rows=_T2T_MMPRETRAIN,
        prefix="backbone.",
        only={"tokens_type": "transformer"},
        doubts=(
            "mmpretrain's present code multiplies attention by 8 where the paper divides, so its own figures for these "
            "weights cannot be had from it; here they compute what they were trained for",
        ),
    ),
    Dialect(
        name="zoo",
        family="t2t_vit",
        rows=_T2T_ZOO,
        ignored=_T2T_SPLITS,
        mindspore=True,
        options=_T2T_ZOO_OPTIONS,
        only={"tokens_type": "performer"},
    ),
    Dialect(
        name="zoo",
        family="t2t_vit",
        ignored=_T2T_SPLITS,
        mindspore=True,
        options=_T2T_ZOO_OPTIONS,
    ),
)

# Twins

_TWINS_MMPRETRAIN = (
    Row("patch_embeds.{k}.proj.{rest}", "patch_embeds.{k}.projection.{rest}"),
    Row("pos_block.{k}.proj.0.{rest}", "position_encodings.{k}.proj.{rest}"),
    Row("blocks.{k}.{i}.mlp.fc1.{rest}", "stages.{k}.{i}.ffn.layers.0.0.{rest}"),
    Row("blocks.{k}.{i}.mlp.fc2.{rest}", "stages.{k}.{i}.ffn.layers.1.{rest}"),
    Row("blocks.{k}.{i}.{rest}", "stages.{k}.{i}.{rest}"),
    Row("norm.{rest}", "norm_after_stage3.{rest}"),
    Row("head.{rest}", "head.fc.{rest}"),
)


def _merged(stage: str, name: str) -> tuple[Row, ...]:
    """Return the rows of a stage, whose position encoding stands between its first block and the others."""
    return (
        Row(f"blocks.{stage}.0.{{rest}}", f"{name}.0.{{rest}}"),
        Row(f"pos_block.{stage}.{{rest}}", f"{name}.1.{{rest}}"),
        Row(f"blocks.{stage}.{{i}}.{{rest}}", f"{name}.{{i+1}}.{{rest}}"),
    )


_TWINS_MINDSPORE = {"gelu": "tanh", "embed_norm_eps": 1e-7}

_TWINS = (
    Dialect(
        name="official",
        family="twins",
        also=("timm",),
        notes=("timm's names are the same; it evaluates with preprocess.crop=0.9",),
    ),
    Dialect(
        name="mmpretrain",
        family="twins",
        rows=_TWINS_MMPRETRAIN,
        prefix="backbone.",
        only={"window_size": None},
    ),
    Dialect(
        name="mmpretrain",
        family="twins",
        rows=_TWINS_MMPRETRAIN,
        prefix="backbone.",
        only={"window_size": 7},
        options={"norm_eps": 1e-5},
    ),
    # MindSpore 2 names a stage by its number, the first one not at all
    Dialect(
        name="mindcv",
        family="twins",
        rows=(*_merged("0", "0"), *_merged("{k}", "0.{k}")),
        mindspore=True,
        options=_TWINS_MINDSPORE,
        preprocess={"crop": 0.9},
    ),
    Dialect(
        name="zoo",
        family="twins",
        rows=_merged("{k}", "merge_blocks.{k}"),
        mindspore=True,
        options=_TWINS_MINDSPORE,
        preprocess={"crop": 0.9},
    ),
)

DIALECTS = _TNT + _T2T + _TWINS
PROJECTS = tuple(dict.fromkeys(name for dialect in DIALECTS for name in dialect.projects))
