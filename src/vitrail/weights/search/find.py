"""Find the weights of a model in a file: behind which entries and prefixes they are, and which of several is taken.

Names are looked at from their ends. The names behind one prefix are a subtree; those that fit a
model are its weights. Rules of the choice, where several fit:

1. `weights.entry` decides.
2. A moving average goes with the weights that it is of, by the same names and shapes, and is taken
unless
   `weights.average` is false. `average_names` has the words and programs that it is known by. Its
   names may be in order only, or without their dots.
3. Subtrees that are equal to the last bit are one.
4. Of others none is taken: the message lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vitrail.errors import CheckpointError
from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.recognise import Reading
from vitrail.weights.request import LoadRequest
from vitrail.weights.search.average_names import group_dotless_names, pair_mmcv_names
from vitrail.weights.search.averages import (
    complete_by_counterpart,
    divide_by_mmcv,
    list_unnamed_averages,
    match_by_order,
    match_dotless_names,
)
from vitrail.weights.search.choice import choose_fit
from vitrail.weights.search.fits import Fit, Reader, list_neighbours
from vitrail.weights.search.subtrees import (
    Subtree,
    explain_left,
    find_likeliest,
    is_of_optimizer,
    list_outside,
    list_subtrees,
    names_behind,
)


@dataclass(frozen=True, kw_only=True)
class FoundWeights:
    """The weights of a model in a file, not yet read."""

    tree: Subtree
    readings: list[Reading]
    """The models that they may be of, which one is not settled here."""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What else is in the file, and why it was left."""


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """The names of a file's tensors, divided by where they stand."""

    names: list[str]
    """All but those of averages that change their names."""
    trees: list[Subtree]
    candidates: list[Subtree]
    """Subtrees that may be the weights: not of an optimizer, and those of the entry asked for."""
    outside: list[str]
    """Names in no subtree."""
    mmcv_pairs: Mapping[str, str]
    dotless: Mapping[str, Mapping[str, str]]


def find_weights(file: WeightFile, request: LoadRequest) -> FoundWeights:
    """Find the weights of a model in a file, by names and shapes.

    Args:
        file: What was opened.
        request: Says where the weights are, or what they are of, where the file leaves that open.

    Raises:
        CheckpointError: There are none, or several to choose from.
        ConfigError: No model is called so, or it has no such option.
    """
    contents = _divide_names(file, request.entry, request.library_model)
    reader = Reader(file, request)
    fits = _read_candidates(reader, contents)
    own, averages = _pair_averages(reader, contents, fits)
    choice = choose_fit(file, own, averages, take_average=request.average)
    chosen = choice.fit
    if chosen.heads and not request.partial:
        raise CheckpointError(
            f"{file.path}: is {chosen.reading} without its head, and {', '.join(chosen.heads[:3])} "
            "may be of one; weights.partial=true takes it without"
        )
    return FoundWeights(
        tree=chosen.tree,
        readings=chosen.readings,
        notes=(*chosen.notes, *choice.notes),
        doubts=(*chosen.doubts, *choice.doubts, *_doubt_left(file, chosen, contents)),
        skipped={
            **chosen.tree.skipped,
            **explain_left(file, chosen.tree, contents.trees, choice.reasons),
        },
    )


def _divide_names(file: WeightFile, entry: str | None, library_model: str) -> _Contents:
    inside = names_behind(file, entry, library_model)
    mmcv_pairs, dotless = pair_mmcv_names(inside), group_dotless_names(inside)
    renamed = {*mmcv_pairs.values()}
    for names in dotless.values():
        renamed.update(names.values())
    names = [name for name in inside if name not in renamed]

    trees = list_subtrees(file, names, library_model)
    candidates = [tree for tree in trees if not is_of_optimizer(tree.prefix)]
    if entry is not None:
        asked = entry.rstrip(".")
        exact = [tree for tree in candidates if asked in (tree.entry, tree.prefix.rstrip("."))]
        candidates = exact or candidates
    return _Contents(
        names=names,
        trees=trees,
        candidates=candidates,
        outside=list_outside(names, trees),
        mmcv_pairs=mmcv_pairs,
        dotless=dotless,
    )


def _read_candidates(reader: Reader, contents: _Contents) -> list[Fit]:
    """Return the subtrees that can be read as models; without any, why not is raised."""
    trees = contents.candidates or [find_likeliest(reader.file, contents.names)]
    fits: list[Fit] = []
    for tree in trees:
        fit = reader.fit(tree, contents.outside)
        if fit is not None:
            fits += divide_by_mmcv(fit, contents.mmcv_pairs)
    if not fits:
        raise reader.refusal()
    return [complete_by_counterpart(fit, fits) for fit in fits]


def _pair_averages(
    reader: Reader, contents: _Contents, fits: list[Fit]
) -> tuple[list[Fit], list[Fit]]:
    """Return the nearest weights, and all moving averages that may be of them."""
    request = reader.request
    eligible = fits
    if not request.average:  # an average that is not wanted is taken where nothing else is there
        eligible = [fit for fit in fits if not fit.tree.is_average] or fits
    fewest = min(fit.problems for fit in eligible)
    best = [fit for fit in eligible if fit.problems == fewest]
    if fewest and not request.partial:
        best = best[:1]  # one is enough to say what does not fit

    own = [fit for fit in best if not fit.tree.is_average]
    if not own:
        return [], best
    averages = [fit for fit in fits if fit.tree.is_average]
    matches: list[Fit | None] = []
    unnamed = list_unnamed_averages(reader.file, contents.outside)
    for fit in own:
        for place, tensors in unnamed.items():
            matches.append(match_by_order(reader.file, fit, place, tensors))
    for fit in own:
        for place, names in contents.dotless.items():
            matches.append(match_dotless_names(fit, place, names))
    averages += filter(None, matches)
    # an average that is no model alone is compared with the weights
    for tree in contents.candidates:
        if tree.is_average and reader.fit(tree, contents.outside) is None:
            averages.append(replace(own[0], tree=tree))
    return own, averages


def _doubt_left(file: WeightFile, chosen: Fit, contents: _Contents) -> list[str]:
    """Return doubts about averages and layers that are left though they may belong to the model."""
    doubts = []
    for place, tensors in list_unnamed_averages(file, contents.outside).items():
        if match_by_order(file, chosen, place, tensors) is None:
            doubts.append(
                f"{file.path}: {place}, an average without names, is in no order of the model's "
                "parameters, and is left"
            )
    for place, names in contents.dotless.items():
        if match_dotless_names(chosen, place, names) is None:
            doubts.append(
                f"{file.path}: {place}, an average whose names have no dots, has none of the "
                "model's, and is left"
            )
    if neighbours := list_neighbours(file, chosen, contents.outside):
        doubts.append(
            f"{file.path}: {', '.join(neighbours[:3])} beside the model may have been trained with "
            "it, before or behind it, and are left"
        )
    return doubts
