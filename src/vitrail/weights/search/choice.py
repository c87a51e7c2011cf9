"""Which of several subtrees that fit a model is taken: the weights, or the moving average of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from vitrail.errors import CheckpointError
from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.search.averages import complete, explain_difference
from vitrail.weights.search.fits import Fit
from vitrail.weights.search.subtrees import Subtree


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The subtree that is taken, and what a user is told of that."""

    fit: Fit
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why others were left, by title."""


def choose_fit(
    file: WeightFile, own: list[Fit], averages: list[Fit], *, take_average: bool
) -> Choice:
    """Choose between the weights themselves and their moving averages.

    Args:
        file: What was opened.
        own: Subtrees of weights themselves.
        averages: Subtrees of moving averages.
        take_average: Take the average, where there is one.

    Raises:
        CheckpointError: Several differ, and nothing says which is wanted.
    """
    own, same_own = _drop_copies(file, own)
    averages, same_averages = _drop_copies(file, averages)
    notes = tuple(
        f"{file.path}: {' and '.join(titles)} hold the same values"
        for titles in same_own + same_averages
    )
    if len(own) > 1:
        raise _refuse_several(file, own)
    if not own:
        if len(averages) > 1:
            raise _refuse_several(file, averages)
        return Choice(fit=averages[0], notes=notes)

    # an average counts where it has the names and shapes of the weights
    weights = own[0]
    shapes = weights.tree.shapes(file)
    reasons, fitting = {}, []
    for average in averages:
        average = complete(average, weights)
        reason = explain_difference(average.tree.shapes(file), shapes)
        reasons[average.tree.title] = reason
        if not reason:
            fitting.append(average)
    if not take_average:
        for average in fitting:
            reasons[average.tree.title] = "a moving average, not taken"
        return Choice(fit=weights, notes=notes, reasons=reasons)
    if not fitting:
        doubts = [
            f"{file.path}: the moving average ({title}) {why}, and is left"
            for title, why in reasons.items()
        ]
        return Choice(fit=weights, notes=notes, doubts=tuple(doubts), reasons=reasons)
    if len(fitting) > 1:
        raise _refuse_several(file, fitting)
    note = (
        f"{file.path}: the moving average ({fitting[0].tree.title}) is taken; "
        "weights.average=false takes the weights themselves"
    )
    reasons[weights.tree.title] = "the weights themselves, not taken"
    return Choice(fit=fitting[0], notes=(note, *notes), reasons=reasons)


def _drop_copies(file: WeightFile, fits: list[Fit]) -> tuple[list[Fit], list[tuple[str, str]]]:
    """Return subtrees that differ in a name, a shape or a value, and the titles of each pair that does not."""
    kept: list[Fit] = []
    copies: list[tuple[str, str]] = []
    for fit in fits:
        twin = next((other for other in kept if _are_equal(file, fit.tree, other.tree)), None)
        if twin is None:
            kept.append(fit)
        else:
            copies.append((twin.tree.title, fit.tree.title))
    return kept, copies


def _are_equal(file: WeightFile, one: Subtree, other: Subtree) -> bool:
    if one.names.keys() != other.names.keys():
        return False
    return all(
        torch.equal(file.load(whole), file.load(other.names[name]))
        for name, whole in one.names.items()
    )


def _refuse_several(file: WeightFile, fits: list[Fit]) -> CheckpointError:
    titles = [fit.tree.title for fit in fits]
    example = fits[-1].tree.entry or fits[-1].tree.prefix.rstrip(".")
    return CheckpointError(
        f"{file.path}: holds {len(titles)} models that fit and differ: {', '.join(titles)}; say "
        f"which, such as weights.entry={example}"
    )
