"""Weights for other classes, another image size or other channels than they were trained with, by printed rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.classes.names import canonical
from vitrail.errors import CheckpointError
from vitrail.imagenet import COUNT, by_name, plain, wnids
from vitrail.models.family import Family, ModelConfig, build_head
from vitrail.models.registry import find_variant
from vitrail.weights.recognise import UNREAD, Entry, expected_shapes

Positions = Literal["resized", "fresh"]
HEAD = ("head.weight", "head.bias")


def adapt(
    weights: Mapping[str, Tensor],
    source: Any,
    target: Any,
    where: str,
    *,
    model: str,
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    keep_head: bool = False,
    positions: Positions = "resized",
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Return weights for the model of `target` from those of the model of `source`, and what was done to which.

    Args:
        weights: By official names.
        source: Configuration of the model that they fit.
        target: Configuration of the model wanted; it differs in image_size, in_channels and num_classes at most, and in
            what the family can add.
        where: The file, for messages.
        model: Name of the model.
        old_classes: Names of the logits; empty where they are not known.
        new_classes: Names of the logits wanted; empty where they are not known.
        keep_head: Keep the head as it is, whatever the names of its logits.
        positions: Of T2T-ViT's fixed table: resized from the file's, or computed for the new size.

    Raises:
        CheckpointError: The channels cannot be adapted.
    """
    weights, entries, family = dict(weights), [], find_variant(model)[0]
    has_changed = source != target
    additions = family.additions
    if added := {name: value for name, value in additions.items() if getattr(source, name) != getattr(target, name)}:
        source = replace(source, **added)
        entries += _add_zeros(weights, expected_shapes(model, source))
    if source.in_channels != target.in_channels:
        entries += _adapt_channels(weights, family, source.in_channels, target.in_channels, where)
    if source.size != target.size:
        entries += _adapt_positions(weights, family, source, target, positions)
    if source.num_classes != target.num_classes or (not keep_head and tuple(old_classes) != tuple(new_classes)):
        entries += _adapt_head(weights, target, tuple(old_classes), tuple(new_classes))
    if family.unread and (has_changed or target.num_classes == 0):
        entries += _fit_unread(weights, family.unread, expected_shapes(model, target))
    return weights, entries


def _fit_unread(
    weights: dict[str, Tensor], names: Sequence[str], expected: Mapping[str, tuple[int, ...]]
) -> list[Entry]:
    """Have zeros of the right size of what nothing reads where the model has it, and nothing where it has not."""
    entries = []
    for name in names:
        if name not in expected:
            if weights.pop(name, None) is not None:
                entries.append(Entry("skipped", theirs=(name,), note=UNREAD))
        elif name not in weights or tuple(weights[name].shape) != expected[name]:
            weights[name] = torch.zeros(expected[name])
            entries.append(Entry("zero-filled", ours=(name,), note=UNREAD))
    return entries


def _add_zeros(weights: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    found = {name: weights[name] if name in weights else torch.zeros(shape) for name, shape in expected.items()}
    added = [name for name in found if name not in weights]
    weights.clear()
    weights.update(found)
    return [Entry("zero-filled", ours=(name,), note="the weights were made without") for name in added]


def _adapt_head(
    weights: dict[str, Tensor], target: ModelConfig, old: tuple[str, ...], new: tuple[str, ...]
) -> list[Entry]:
    features = weights["norm.weight"].shape[0]
    before = {name: weights.pop(name) for name in HEAD if name in weights}
    if target.num_classes == 0:
        return [Entry("skipped", theirs=tuple(before), note="the model is built without a head")]
    head = build_head(features, target.num_classes, target.head_bias)
    found = shared_rows(old, new) if before else []
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            for to, of in found:
                parameter[to] = before[f"head.{name}"][of]
            weights[f"head.{name}"] = parameter.detach()
    note = f"{len(found)} of {target.num_classes} rows kept, by class name; the others are fresh"
    return [Entry("new", tuple(before), tuple(f"head.{name}" for name, _ in head.named_parameters()), note)]


def as_two_logits(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Entry]:
    """Return weights whose one logit z became the two logits 0 and z, whose softmax is the sigmoid of z."""
    names = tuple(name for name in HEAD if name in weights)
    wider = {name: torch.cat([torch.zeros_like(weights[name]), weights[name]]) for name in names}
    return {**weights, **wider}, Entry("resized", names, names, "a row of zeros before its one")


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


def _adapt_positions(
    weights: dict[str, Tensor], family: Family[Any], source: Any, target: Any, positions: Positions
) -> list[Entry]:
    from timm.layers.pos_embed import resample_abs_pos_embed  # importing timm takes seconds, and few files need it

    sizes = f"from {'x'.join(map(str, source.size))} to {'x'.join(map(str, target.size))} pixels"
    entries = []
    for name in family.positions:
        before, after = source.grid[0] * source.grid[1], target.grid[0] * target.grid[1]
        _, rows, width = weights[name].shape
        extra = rows - before
        kept = "; the class token's row is kept" if extra else ""
        if positions == "fresh" and family.fixed_positions:
            weights[name] = family.fixed_positions(after + extra, width)
            entries.append(Entry("new", (name,), (name,), f"the sinusoid of {'x'.join(map(str, target.size))} pixels"))
            continue
        weights[name] = resample_abs_pos_embed(
            weights[name], list(target.grid), list(source.grid), num_prefix_tokens=extra
        )
        entries.append(Entry("resized", (name,), (name,), f"bicubic, {sizes}{kept}"))
    return entries


def _adapt_channels(weights: dict[str, Tensor], family: Family[Any], old: int, new: int, where: str) -> list[Entry]:
    from timm.models._manipulate import adapt_input_conv

    if old != 3 or not family.channels:
        of = "only weights for 3 can be adapted" if family.channels else f"{family.title} is not adapted"
        raise CheckpointError(
            f"{where}: was made for {old} channels, and {of} to other numbers; leave it at {old}, in training by "
            f"data.channels={old}"
        )
    rule = "summed over the three" if new == 1 else f"repeated, times 3/{new}"
    norm_rule = "the mean of the three" if new == 1 else "repeated"
    entries = []
    for name, kind in family.channels.items():
        if name not in weights:
            continue
        tensor = weights[name]
        if kind == "summed":
            cells = adapt_input_conv(new, tensor.reshape(len(tensor), old, -1, 1))
            weights[name] = cells.reshape(len(tensor), new * tensor.shape[1] // old, *tensor.shape[2:])
        else:
            channels = tensor.unflatten(0, (old, -1))
            made = channels.mean(0, keepdim=True) if new == 1 else channels.repeat(-(-new // old), 1)[:new]
            weights[name] = made.flatten()
        entries.append(Entry("resized", (name,), (name,), rule if kind == "summed" else norm_rule))
    return entries
