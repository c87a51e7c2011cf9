"""Weights for other classes, another image size or other channels than they were trained with, by printed rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitrail.classes.names import canonical
from vitrail.errors import CheckpointError
from vitrail.imagenet import NUM_CLASSES, index_by_name, list_wordnet_ids, normalise_name
from vitrail.models.any_size import resize_pairs, resize_positions
from vitrail.models.family import Family, ModelConfig, build_head
from vitrail.weights.account import UNUSED, Entry, list_added
from vitrail.weights.config_fields import find_differences
from vitrail.weights.recognise import expected_shapes
from vitrail.weights.request import Positions


def adapt(
    weights: Mapping[str, Tensor],
    source: Any,
    target: Any,
    where: str,
    *,
    family: Family[Any],
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    keep_head: bool = False,
    positions: Positions = "resized",
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Return weights for the model of `target` from those of the model of `source`, and what was done to which.

    Args:
        weights: By official names.
        source: Configuration of the model that they fit.
        target: Configuration of the model wanted; it differs in image_size, in_channels and
            num_classes at most, and in what the family can add.
        where: The file, for messages.
        family: Family of the model.
        old_classes: Names of the logits; empty where they are not known.
        new_classes: Names of the logits wanted; empty where they are not known.
        keep_head: Keep the head as it is, whatever the names of its logits.
        positions: T2T-ViT's fixed table of positions: resized from the file's, or computed for the
            new size.

    Raises:
        CheckpointError: The channels cannot be adapted.
    """
    weights, entries = dict(weights), []
    has_changed = source != target
    additions = family.additions
    added = set(find_differences(source, vars(target))) & additions.keys()
    if added:
        source = replace(source, **{name: additions[name] for name in added})
        entries += _add_zeros(weights, expected_shapes(family, source))
    if source.in_channels != target.in_channels:
        entries += _adapt_channels(weights, family, source.in_channels, target.in_channels, where)
    if source.size != target.size and family.refit is not None:
        entries += _refit(weights, family, source, target)
    elif source.size != target.size:
        entries += _adapt_positions(weights, family, source, target, positions)
    if source.num_classes != target.num_classes or (
        not keep_head and tuple(old_classes) != tuple(new_classes)
    ):
        entries += _adapt_head(weights, family, target, tuple(old_classes), tuple(new_classes))
    if family.unread and (has_changed or target.num_classes == 0):
        entries += _fit_unread(weights, family.unread, expected_shapes(family, target))
    return weights, entries


def _fit_unread(
    weights: dict[str, Tensor], names: Sequence[str], expected: Mapping[str, tuple[int, ...]]
) -> list[Entry]:
    """Add zeros for the parameters that nothing reads where the model has them, and drop them where it has not."""
    entries = []
    for name in names:
        if name not in expected:
            if weights.pop(name, None) is not None:
                entries.append(Entry("skipped", theirs=(name,), note=UNUSED))
        elif name not in weights or tuple(weights[name].shape) != expected[name]:
            weights[name] = torch.zeros(expected[name])
            entries.append(Entry("zero-filled", ours=(name,), note=UNUSED))
    return entries


def _add_zeros(weights: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    before = dict(weights)
    added = [name for name in expected if name not in before]
    weights.clear()
    for name, shape in expected.items():
        weights[name] = before[name] if name in before else torch.zeros(shape)
    return list_added("zero-filled", added, "the weights were made without")


def _adapt_head(
    weights: dict[str, Tensor],
    family: Family[Any],
    target: ModelConfig,
    old: tuple[str, ...],
    new: tuple[str, ...],
) -> list[Entry]:
    before = {name: weights.pop(name) for name in head_weights(family) if name in weights}
    if target.num_classes == 0:
        return [Entry("skipped", theirs=tuple(before), note="the model is built without a head")]
    shared = shared_rows(old, new) if before else []
    if family.fresh_head is not None:
        fresh = family.fresh_head(target)
    else:
        features = weights["norm.weight"].shape[0]
        head = build_head(features, target.num_classes, target.head_bias)
        fresh = {name: one.detach() for name, one in head.named_parameters(prefix="head")}
    for name, tensor in fresh.items():
        for new_row, old_row in shared:
            tensor[new_row] = before[name][old_row]
        weights[name] = tensor
    note = f"{len(shared)} of {target.num_classes} rows kept, by class name; the others are fresh"
    return [Entry("new", tuple(before), tuple(fresh), note)]


def head_weights(family: Family[Any]) -> tuple[str, ...]:
    """Return the names of the weights that give the logits, each with a row for each class."""
    return tuple(f"{layer}.{kind}" for layer in family.head for kind in ("weight", "bias"))


def as_two_logits(
    weights: Mapping[str, Tensor], family: Family[Any]
) -> tuple[dict[str, Tensor], Entry]:
    """Return weights whose one logit z became the two logits 0 and z, whose softmax is the sigmoid of z."""
    names = tuple(name for name in head_weights(family) if name in weights)
    wider = {name: torch.cat([torch.zeros_like(weights[name]), weights[name]]) for name in names}
    return {**weights, **wider}, Entry("resized", names, names, "a row of zeros before its one")


def shared_rows(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return (new index, old index) of each class that both have; ImageNet's are known by id and by English name.

    Names that are not equal are the same where only their case differs, or what stands between
    their words, and no other name on either side is then the same too.
    """
    same = {canonical(name): index for index, name in enumerate(old)}
    old_keys, new_keys = list(map(normalise_name, old)), list(map(normalise_name, new))
    old_counts, new_counts = Counter(old_keys), Counter(new_keys)
    alike = {key: index for index, key in enumerate(old_keys) if old_counts[key] == 1}
    if len(old) == NUM_CLASSES and tuple(old) == list_wordnet_ids():
        alike |= index_by_name()
    rows = []
    for index, name in enumerate(map(canonical, new)):
        key = normalise_name(name)
        if name in same:
            rows.append((index, same[name]))
        elif key and new_counts[key] == 1 and key in alike:
            rows.append((index, alike[key]))
    return rows


def _refit(
    weights: dict[str, Tensor], family: Family[Any], source: Any, target: Any
) -> list[Entry]:
    """Bring weights to another image size by the rules of the library that the model is of."""
    assert family.refit is not None
    wanted = replace(source, image_size=target.image_size, in_channels=target.in_channels)
    shapes = expected_shapes(family, wanted)
    changed = [name for name, shape in shapes.items() if tuple(weights[name].shape) != shape]
    if not changed:
        return []
    fitted = family.refit(weights, wanted)
    weights |= {name: fitted[name] for name in changed}
    sizes = f"from {'x'.join(map(str, source.size))} to {'x'.join(map(str, target.size))} pixels"
    return [
        Entry("resized", (name,), (name,), f"by its library's own rule, {sizes}")
        for name in changed
    ]


def _adapt_positions(
    weights: dict[str, Tensor], family: Family[Any], source: Any, target: Any, positions: Positions
) -> list[Entry]:
    sizes = f"from {'x'.join(map(str, source.size))} to {'x'.join(map(str, target.size))} pixels"
    entries = []
    for name in family.positions:
        before, after = source.grid[0] * source.grid[1], target.grid[0] * target.grid[1]
        _, rows, width = weights[name].shape
        extra = rows - before
        kept = "; the class token's row is kept" if extra else ""
        if positions == "fresh" and family.fixed_positions:
            weights[name] = family.fixed_positions(after + extra, width)
            entries.append(
                Entry(
                    "new",
                    (name,),
                    (name,),
                    f"the sinusoid of {'x'.join(map(str, target.size))} pixels",
                )
            )
            continue
        weights[name] = resize_positions(weights[name], source.grid, target.grid)
        entries.append(Entry("resized", (name,), (name,), f"bicubic, {sizes}{kept}"))
    if family.paired_positions is not None:
        after = family.paired_positions(target)
        for name, before in family.paired_positions(source).items():
            weights[name] = resize_pairs(weights[name], before, after[name])
            note = f"bicubic over both grids, {sizes}"
            entries.append(Entry("resized", (name,), (name,), note))
    return entries


def _adapt_channels(
    weights: dict[str, Tensor], family: Family[Any], old: int, new: int, where: str
) -> list[Entry]:
    from timm.models._manipulate import adapt_input_conv

    if old != 3 or not family.channels:
        limit = (
            "only weights for 3 can be adapted"
            if family.channels
            else f"{family.title} is not adapted"
        )
        raise CheckpointError(
            f"{where}: was made for {old} channels, and {limit} to other numbers; leave it at "
            f"{old}, in training by data.channels={old}"
        )
    entries = []
    for name, kind in family.channels.items():
        if name not in weights:
            continue
        tensor = weights[name]
        if kind == "summed":
            cells = adapt_input_conv(new, tensor.reshape(len(tensor), old, -1, 1))
            weights[name] = cells.reshape(
                len(tensor), new * tensor.shape[1] // old, *tensor.shape[2:]
            )
            rule = "summed over the three" if new == 1 else f"repeated, times 3/{new}"
        else:
            channels = tensor.unflatten(0, (old, -1))
            if new == 1:
                weights[name], rule = channels.mean(0).flatten(), "the mean of the three"
            else:
                weights[name], rule = channels.repeat(-(-new // old), 1)[:new].flatten(), "repeated"
        entries.append(Entry("resized", (name,), (name,), rule))
    return entries
