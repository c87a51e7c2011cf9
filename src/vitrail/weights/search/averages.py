"""Moving averages put beside the weights that they are of, also where their names are in order only or changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.search.average_names import holds_average
from vitrail.weights.search.fits import Fit, list_frozen
from vitrail.weights.search.weight_names import join_prefix


def divide_by_mmcv(fit: Fit, pairs: Mapping[str, str]) -> list[Fit]:
    """Divide a subtree in which mmcv keeps weights and average: it swaps them, so the usual names are the average's.

    Args:
        fit: A subtree as it was read.
        pairs: The other name of each weight that is kept twice.
    """
    names = {name: pairs.get(whole, whole) for name, whole in fit.tree.names.items()}
    if names == fit.tree.names:
        return [fit]
    own = replace(fit.tree, prefix=f"{fit.tree.prefix}ema_", names=names)
    return [replace(fit, tree=replace(fit.tree, is_average=True)), replace(fit, tree=own)]


def match_dotless_names(fit: Fit, place: str, names: Mapping[str, str]) -> Fit | None:
    """Return an average of a model whose names, from some module above its weights on, have lost their dots.

    Args:
        fit: The model.
        place: The prefix of the average, without the dot at its end.
        names: The name in the file of each weight of the average, by its name without dots.
    """
    segments = fit.tree.prefix.split(".")[:-1]
    for depth in range(len(segments), -1, -1):
        above = join_prefix(segments[:depth])
        matched = {}
        for name, whole in fit.tree.names.items():
            joined = whole.removeprefix(above).replace(".", "")
            if joined in names:
                matched[name] = names[joined]
        if matched:
            return _as_average(fit, place, matched)
    return None


def list_unnamed_averages(file: WeightFile, outside: list[str]) -> dict[str, list[str]]:
    """Return the averages that are lists of tensors without names: those of each place, in their order."""
    lists: dict[str, list[str]] = {}
    for name in outside:
        place, _, number = name.rpartition(".")
        if number.isdigit() and holds_average(file, f"{place}."):
            lists.setdefault(place, []).append(name)
    return lists


def match_by_order(file: WeightFile, fit: Fit, place: str, tensors: list[str]) -> Fit | None:
    """Return an average that is a list in the order of a model's parameters, or of those that are trained."""
    shapes = _list_shapes(file, tensors)
    frozen = list_frozen(fit.reading)
    trained = [name for name in fit.tree.names if name not in frozen]
    for names in ([*fit.tree.names], trained):
        whole = [fit.tree.names[name] for name in names]
        if shapes == _list_shapes(file, whole):
            return _as_average(
                fit, place, {**fit.tree.names, **dict(zip(names, tensors, strict=True))}
            )
    return None


def _list_shapes(file: WeightFile, names: Iterable[str]) -> list[tuple[int, ...]]:
    return [file.tensors[name].shape for name in names]


def complete(incomplete: Fit, other: Fit) -> Fit:
    """Return weights with what is never trained, which some averages leave out, from a subtree that has it."""
    lacking = other.tree.names.keys() - incomplete.tree.names.keys()
    if not lacking or not lacking <= list_frozen(other.reading):
        return incomplete
    own = incomplete.tree.names
    names = {name: own.get(name, whole) for name, whole in other.tree.names.items()}
    return replace(
        incomplete, readings=other.readings, tree=replace(incomplete.tree, names={**names, **own})
    )


def complete_by_counterpart(fit: Fit, fits: list[Fit]) -> Fit:
    """Return weights with what is never trained, which may stand only beside their average, or the other way round."""
    for other in fits:
        if other.tree.is_average != fit.tree.is_average and not other.problems:
            completed = complete(fit, other)
            if completed is not fit:
                return completed
    return fit


def explain_difference(
    average: Mapping[str, tuple[int, ...]], own: Mapping[str, tuple[int, ...]]
) -> str:
    """Say why an average is not one of certain weights; empty where it is.

    Args:
        average: Shapes of the average by name.
        own: Shapes of the weights by name.
    """
    if lacking := [name for name in own if name not in average]:
        return f"lacks {', '.join(lacking[:3])}"
    if others := [name for name in average if average[name] != own.get(name)]:
        return f"has other weights ({', '.join(others[:3])})"
    return ""


def _as_average(fit: Fit, place: str, names: Mapping[str, str]) -> Fit:
    return replace(fit, tree=replace(fit.tree, prefix=f"{place}.", names=names, is_average=True))
