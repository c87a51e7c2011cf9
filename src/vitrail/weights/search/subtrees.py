"""Tensors of a file grouped by the prefix that stands before names of weights: each group is a subtree.

What stands before the names that one of the dialects gives a model's weights is a prefix, whatever
it is called: an entry of a training file, the attribute of a module, a wrapper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vitrail.errors import CheckpointError
from vitrail.weights.formats.pickled import Held
from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.search.average_names import holds_average
from vitrail.weights.search.weight_names import (
    are_half_a_model,
    is_weight,
    is_wrapper,
    join_prefix,
    split_prefix,
)

OPTIMIZER = re.compile(r"(?:adam_[mv]|moment[12s]?|moments|accum|accu_grads|momentum|stat)\..*")
"""Names of what MindSpore's optimizers keep for each weight."""
COUNTERS = {
    "global_step",
    "learning_rate",
    "beta1_power",
    "beta2_power",
    "scale_sense",
    "current_iterator_step",
    "last_overflow_iterator_step",
    "epoch_num",
    "step_num",
}
"""Numbers that MindSpore's training keeps beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Subtree:
    """Weights behind one prefix of a file."""

    prefix: str
    """The prefix with the dot that ends it; empty where the names begin at once."""
    names: Mapping[str, str]
    """The name in the file of each, by the name behind the prefix, without those of wrappers
    within."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What behind the prefix is no weight, and why."""
    is_average: bool = False

    @property
    def entry(self) -> str:
        """The prefix as `weights.entry` takes it, without wrappers at its end."""
        segments = self.prefix.rstrip(".").split(".")
        while segments and is_wrapper(segments[-1]):
            segments.pop()
        return ".".join(segments)

    @property
    def title(self) -> str:
        """The subtree as messages call it."""
        return self.entry or self.prefix.rstrip(".") or "the names without a prefix"

    def shapes(self, file: WeightFile) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by its name behind the prefix."""
        return {name: file.tensors[whole].shape for name, whole in self.names.items()}


def names_behind(file: WeightFile, entry: str | None, library_model: str = "") -> list[str]:
    """Return the names of the tensors that are behind an entry, or of all.

    Raises:
        CheckpointError: None is.
    """
    if not entry:
        return [*file.tensors]
    prefix = entry.rstrip(".") + "."
    names = [name for name in file.tensors if name.startswith(prefix)]
    names = names or [name for name in file.tensors if f".{prefix}" in name]
    if names:
        return names
    known = [
        tree.entry for tree in list_subtrees(file, [*file.tensors], library_model) if tree.entry
    ]
    known = known or [*file.entries][:5]
    advice = f"there are {', '.join(known)}" if known else "leave it out"
    raise CheckpointError(f"{file.path}: has no weights behind weights.entry={entry}; {advice}")


def list_subtrees(file: WeightFile, names: list[str], library_model: str = "") -> list[Subtree]:
    """Return all places of a file where the names of half a model's weights are, or more.

    Args:
        file: What was opened.
        names: Of tensors in it.
        library_model: The model of a library that weights are looked for of; empty for our own.
    """
    patterns: dict[str, set[str]] = {}
    prefixes: dict[str, str] = {}
    for name in names:
        if split := split_prefix(name, library_model):
            prefixes[name], pattern = split
            patterns.setdefault(prefixes[name], set()).add(pattern)
    roots = [prefix for prefix in patterns if are_half_a_model(patterns[prefix], library_model)]

    members: dict[str, list[str]] = {prefix: [] for prefix in roots}
    tops = {(prefix, name.split(".")[0]) for name, prefix in prefixes.items()}
    for name in names:
        prefix, top = prefixes.get(name), name.split(".")[0]
        if prefix not in members:
            # what looks like no weight is of the nearest place that it is behind, if not in an
            # entry of its own
            above = [root for root in roots if name.startswith(root)]
            prefix = max(above, key=len, default=None)
        if prefix is not None and (not is_entry(file, top) or (prefix, top) in tops):
            members[prefix].append(name)
    return [build_subtree(file, prefix, members[prefix], library_model) for prefix in roots]


def build_subtree(
    file: WeightFile, prefix: str, members: Iterable[str], library_model: str = ""
) -> Subtree:
    """Return the subtree that some tensors behind a prefix are.

    Raises:
        CheckpointError: Two have the same name once those of wrappers are left out.
    """
    names: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for whole in members:
        behind = whole.removeprefix(prefix)
        name = ".".join(segment for segment in behind.split(".") if not is_wrapper(segment))
        reason = why_no_weight(name, file.tensors[whole])
        # of a library's model, single and whole numbers may be of it
        is_known = _is_counter_of_norm(file, whole) or (
            bool(library_model) and is_weight(name, library_model)
        )
        if reason and not is_known:
            skipped[whole] = reason
        elif name in names:
            raise CheckpointError(
                f"{file.path}: has {names[name]} and {whole}, the same weight twice; keep one of "
                "them"
            )
        else:
            names[name] = whole
    return Subtree(
        prefix=prefix, names=names, skipped=skipped, is_average=holds_average(file, prefix)
    )


def _is_counter_of_norm(file: WeightFile, name: str) -> bool:
    """Say whether a number is how many batches a batch norm has seen, whose running mean stands beside it."""
    module, _, own = name.rpartition(".")
    return own == "num_batches_tracked" and f"{module}.running_mean" in file.tensors


def find_likeliest(file: WeightFile, names: list[str]) -> Subtree:
    """Return the tensors that are likeliest to be weights where nothing has the names of any.

    Raises:
        CheckpointError: No tensor can be a weight.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        top = name.split(".")[0]
        if not is_entry(file, top):
            top = ""  # tensors at the top of the file are one group
        group = groups.setdefault(top, [])
        if not why_no_weight(name, file.tensors[name]):
            group.append(name)
    largest = max(groups.values(), key=len, default=[])
    if not largest:
        listed = ", ".join([*file.entries][:5]) or "none"
        raise CheckpointError(f"{file.path}: holds no weights; its entries are {listed}")
    parents = [name.split(".")[:-1] for name in largest]
    shared = parents[0][: _depth_of_fork(parents)]
    return build_subtree(file, join_prefix(shared), largest)


def _depth_of_fork(paths: list[list[str]]) -> int:
    """Return how many segments all paths share before they part; 0 where they do not."""
    for depth, segments in enumerate(zip(*paths, strict=False)):
        if len({*segments}) > 1:
            return depth
    return 0


def is_entry(file: WeightFile, top: str) -> bool:
    """Say whether the first part of a name is an entry of the file that holds others, not a tensor."""
    return file.entries.get(top, "tensor") != "tensor"


def is_of_optimizer(prefix: str) -> bool:
    """Say whether what is behind a prefix are states of an optimizer."""
    return any(OPTIMIZER.fullmatch(f"{segment}.") for segment in prefix.split("."))


def why_no_weight(name: str, tensor: Held) -> str:
    """Return why a tensor is no weight; empty where it may be one."""
    if tensor.fault:
        return ""  # which is told when it is read
    if OPTIMIZER.fullmatch(name):
        return "of the optimizer"
    if name in COUNTERS:
        return "of the training"
    if not tensor.shape:
        return "a single number, and no weight is one"
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return f"{str(tensor.dtype).removeprefix('torch.')}, and no weight is"
    return ""


def list_outside(names: list[str], trees: list[Subtree]) -> list[str]:
    """Return the names that are in no subtree."""
    taken = {whole for tree in trees for whole in (*tree.names.values(), *tree.skipped)}
    return [name for name in names if name not in taken]


def explain_left(
    file: WeightFile, taken: Subtree, trees: list[Subtree], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Return what else is in the file, and why it was left: whole entries, and tensors beside the weights by name.

    Args:
        file: What was opened.
        taken: The subtree whose weights are read.
        trees: All subtrees.
        reasons: Why some of these were left, by title.
    """
    used = {*taken.names.values(), *taken.skipped}
    tops = {name.split(".")[0] for name in used}
    reason_of: dict[str, str] = {}
    for tree in trees:
        reason = reasons.get(tree.title, "of another model")
        if is_of_optimizer(tree.prefix):
            reason = "of the optimizer"
        reason_of |= dict.fromkeys((*tree.names.values(), *tree.skipped), reason)

    left: dict[str, str] = {}
    for name in file.tensors:
        if name in used:
            continue
        top = name.split(".")[0]
        if top not in tops and is_entry(file, top):
            left[top] = reason_of.get(name) or left.get(top) or "no weights"
        else:
            left[name] = (
                reason_of.get(name)
                or why_no_weight(name, file.tensors[name])
                or "beside the weights"
            )

    for name, kind in file.entries.items():
        if kind != "tensor" and name not in tops and name not in left:
            left[name] = "no weights" if kind == "dict" else f"a {kind}, not a tensor"
    return left
