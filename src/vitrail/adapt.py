"""Weights for other classes, another image size or other channels than they were trained with, by printed rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.data.labels import canonical
from vitrail.errors import CheckpointError
from vitrail.imagenet import COUNT, by_name, plain, wnids
from vitrail.models.registry import ModelConfig, build_head
from vitrail.models.t2t_vit import sinusoid
from vitrail.recognise import Entry

Positions = Literal["resized", "fresh"]
HEAD = ("head.weight", "head.bias")
T2T_CELL = 7 * 7
"""Pixels that T2T-ViT's first layer joins into one token."""


def adapt(
    weights: Mapping[str, Tensor],
    source: Any,
    target: Any,
    where: str,
    *,
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    keep_head: bool = False,
    positions: Positions = "resized",
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Return weights for the model of `target` from those of the model of `source`, and what was done to which.

    Args:
        weights: By official names.
        source: Configuration of the model that they fit.
        target: Configuration of the model wanted; it differs in image_size, in_channels and num_classes at most.
        where: The file, for messages.
        old_classes: Names of the logits; empty where they are not known.
        new_classes: Names of the logits wanted; empty where they are not known.
        keep_head: Keep the head as it is, whatever the names of its logits.
        positions: Of T2T-ViT's fixed table: resized from the file's, or computed for the new size.

    Raises:
        CheckpointError: The channels cannot be adapted.
    """
    weights, entries = dict(weights), []
    if source.in_channels != target.in_channels:
        entries += _adapt_channels(weights, source.in_channels, target.in_channels, where)
    if source.size != target.size:
        entries += _adapt_positions(weights, source, target, positions)
    if source.num_classes != target.num_classes or (not keep_head and tuple(old_classes) != tuple(new_classes)):
        entries += _adapt_head(weights, target, tuple(old_classes), tuple(new_classes))
    return weights, entries


def _adapt_head(
    weights: dict[str, Tensor], target: ModelConfig, old: tuple[str, ...], new: tuple[str, ...]
) -> list[Entry]:
    features = weights["norm.weight"].shape[0]
    before = {name: weights.pop(name) for name in HEAD if name in weights}
    if target.num_classes == 0:
        return [Entry("skipped", theirs=tuple(before), note="the model is built without a head")]
    head = build_head(features, target.num_classes)
    found = shared_rows(old, new) if before else []
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            for to, of in found:
                parameter[to] = before[f"head.{name}"][of]
            weights[f"head.{name}"] = parameter.detach()
    note = f"{len(found)} of {target.num_classes} rows kept, by class name; the others are fresh"
    return [Entry("new", tuple(before), HEAD, note)]


def as_two_logits(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Entry]:
    """Return weights whose one logit z became the two logits 0 and z, whose softmax is the sigmoid of z."""
    wider = {name: torch.cat([torch.zeros_like(weights[name]), weights[name]]) for name in HEAD}
    return {**weights, **wider}, Entry("resized", HEAD, HEAD, "a row of zeros before its one")


def shared_rows(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return (new index, old index) of each class that both have; ImageNet's are known by id and by English name.

    Names that are not equal are the same where only their case differs, or what stands between their words, and no
    other name on either side is then the same too.
    """
    same = {canonical(name): index for index, name in enumerate(old)}
    counts, known = (Counter(map(plain, names)) for names in (new, old))
    alike = {plain(name): index for index, name in enumerate(old) if known[plain(name)] == 1}
    if len(old) == COUNT and tuple(old) == wnids():
        alike |= by_name()
    found = []
    for to, name in enumerate(map(canonical, new)):
        key = plain(name)
        if name in same:
            found.append((to, same[name]))
        elif key and counts[key] == 1 and key in alike:
            found.append((to, alike[key]))
    return found


def _adapt_positions(weights: dict[str, Tensor], source: Any, target: Any, positions: Positions) -> list[Entry]:
    from timm.layers.pos_embed import resample_abs_pos_embed  # importing timm takes seconds, and few files need it

    sizes = f"from {'x'.join(map(str, source.size))} to {'x'.join(map(str, target.size))} pixels"
    entries = []
    for name in ("outer_pos", "pos_embed"):
        if name not in weights:
            continue
        if name == "pos_embed" and positions == "fresh":
            weights[name] = sinusoid(target.grid[0] * target.grid[1] + 1, weights[name].shape[2])
            entries.append(Entry("new", (name,), (name,), f"the sinusoid of {'x'.join(map(str, target.size))} pixels"))
            continue
        weights[name] = resample_abs_pos_embed(weights[name], list(target.grid), list(source.grid), num_prefix_tokens=1)
        entries.append(Entry("resized", (name,), (name,), f"bicubic, {sizes}; the class token's row is kept"))
    if "outer_tokens" in weights:  # zeros that nothing reads
        weights["outer_tokens"] = torch.zeros(1, target.grid[0] * target.grid[1], weights["outer_tokens"].shape[2])
    return entries


def _adapt_channels(weights: dict[str, Tensor], old: int, new: int, where: str) -> list[Entry]:
    from timm.models._manipulate import adapt_input_conv

    if old != 3:
        raise CheckpointError(
            f"{where}: was made for {old} channels, and only weights for 3 can be adapted to other numbers; leave it "
            f"at {old}, in training by data.channels={old}"
        )
    rule = "summed over the three" if new == 1 else f"repeated, times 3/{new}"
    norm_rule = "the mean of the three" if new == 1 else "repeated"
    entries = []
    for name in ("patch_embed.proj.weight", "patch_embeds.0.proj.weight"):
        if name in weights:
            weights[name] = adapt_input_conv(new, weights[name])
            entries.append(Entry("resized", (name,), (name,), rule))
    first = "tokens_to_token.attention1"
    for name in (f"{first}.kqv.weight", f"{first}.attn.qkv.weight"):
        if name in weights:
            cells = weights[name].unflatten(1, (old, T2T_CELL, 1))
            weights[name] = adapt_input_conv(new, cells).flatten(1)
            entries.append(Entry("resized", (name,), (name,), rule))
    for name in (f"{first}.norm1.weight", f"{first}.norm1.bias"):
        if name in weights:
            channels = weights[name].unflatten(0, (old, T2T_CELL))
            made = channels.mean(0, keepdim=True) if new == 1 else channels.repeat(-(-new // old), 1)[:new]
            weights[name] = made.flatten()
            entries.append(Entry("resized", (name,), (name,), norm_rule))
    return entries
