"""Where in a file the weights of a model are: behind which entries and prefixes, and which of several.

Names are looked at from their ends. What stands before the names that one of the dialects gives a model's weights is a
prefix, whatever it is called: an entry of a training file, the attribute of a module, a wrapper. The names behind one
prefix are a subtree; those that fit a model are its weights. Rules of the choice, where several fit:

1. `weights.entry` decides.
2. A moving average goes with the weights that it is of, by the same names and shapes, and is taken unless
   `weights.average` is false. It is known by a word for one in its prefix, by torch's counter `n_averaged`, or by the
   programs that swap the two when they save (mmengine, mmcv, Lightning, Composer). Its names may be in order only, or
   without their dots.
3. Subtrees that are equal to the last bit are one.
4. Of others none is taken: the message lists them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.models.dialects import write_names
from vitrail.models.family import Family, VisionModel
from vitrail.models.registry import FAMILIES, build_config, find_variant
from vitrail.weights.formats.pickled import Held
from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.recognise import Reading, recognise

AVERAGE = {"ema", "swa", "avg", "average", "averaged", "averages", "shadow", "polyak", "smoothed"}
"""Words in the name of a moving average."""
PLAIN = {"online", "current", "raw", "live"}
"""Words for the weights themselves, where both stand together."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""As in model_ema, modelEma and EMACallback."""
OPTIMIZER = re.compile(r"(?:adam_[mv]|moment[12s]?|moments|accum|accu_grads|momentum|stat)\..*")
STATISTICS = {"mean", "std", "pixel_mean", "pixel_std", "image_mean", "image_std"}
"""Names of what a module that normalizes images keeps."""
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
    """With the dot that ends it; empty where the names begin at once."""
    names: Mapping[str, str]
    """The name in the file of each, by the name behind the prefix, without those of wrappers within."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What behind the prefix is no weight, and why."""
    is_average: bool = False

    @property
    def entry(self) -> str:
        """The prefix as `weights.entry` takes it, without wrappers at its end."""
        segments = self.prefix.rstrip(".").split(".")
        while segments and _is_wrapper(segments[-1]):
            segments.pop()
        return ".".join(segments)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The weights of a model in a file, still there."""

    tree: Subtree
    readings: list[Reading]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What else is in the file, and why it was left."""


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """A subtree, and how it is understood."""

    tree: Subtree
    readings: list[Reading]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    """Matrices beside weights without a head that may be of one."""


def find_weights(
    file: WeightFile,
    *,
    entry: str | None,
    average: bool,
    partial: bool,
    dialect: str | None,
    model: str | None,
    options: Mapping[str, Any],
) -> Found:
    """Find the weights of a model in a file, by names and shapes.

    Args:
        file: What was opened.
        entry: Where they are, by hand: an entry, or entries and prefixes joined by dots.
        average: Take a moving average of them, where there is one.
        partial: Take what fits in part.
        dialect: Name of the project whose names are used, where it is known.
        model: Name of the model, where it is known.
        options: Fields of its configuration that differ from the published one.

    Raises:
        CheckpointError: There are none, or several to choose from.
        ConfigError: No model is called so, or it has no such option.
    """
    every = _inside(file, entry)
    spelt, dotless = _spelt(every), _dotless(every)
    others = {*spelt.values(), *(whole for names in dotless.values() for whole in names.values())}
    inside = [name for name in every if name not in others]
    trees = _subtrees(file, inside)
    usual = [tree for tree in trees if not _is_of_optimizer(tree.prefix)]
    if entry is not None:
        usual = [tree for tree in usual if entry.rstrip(".") in (tree.entry, tree.prefix.rstrip("."))] or usual
    free = _free(inside, trees)
    ask = _Ask(file, dialect, model, options, {})
    fits = [fit for tree in usual or [_nearest(file, inside)] if (fit := ask.fit(tree, free))]
    if not fits:
        raise next(answer for answer in ask.known.values() if isinstance(answer, CheckpointError))
    fits = [part for fit in fits for part in _of_mmcv(fit, spelt)]
    fits = [_completed_by(fits, fit) for fit in fits]
    own = [fit for fit in fits if not fit.tree.is_average]
    asked = fits if average or not own else own  # an average that is not wanted is taken where nothing else is there
    least = min(_problems(fit) for fit in asked)
    best = [fit for fit in asked if _problems(fit) == least][: None if partial or not least else 1]
    plain = [fit for fit in best if not fit.tree.is_average]
    averages = [fit for fit in (fits if plain else best) if fit.tree.is_average]
    averages += [made for fit in plain for made in ask.averages_by_order(fit, free)]
    averages += [made for fit in plain for stem in dotless if (made := _by_dotless_names(fit, stem, dotless[stem]))]
    averages += [
        replace(plain[0], tree=tree) for tree in usual if plain and tree.is_average and ask.fit(tree, free) is None
    ]
    chosen, notes, left, why = _choose(file, plain, averages, average)
    if chosen.heads and not partial:
        raise CheckpointError(
            f"{file.path}: is {chosen.readings[0]} without its head, and {', '.join(chosen.heads[:3])} may be of one; "
            "weights.partial=true takes it without"
        )
    doubts = [
        f"{file.path}: {stem}, an average without names, is in no order of the model's parameters, and is left"
        for stem in ask.lists_without_place(chosen, free)
    ]
    doubts += [
        f"{file.path}: {stem}, an average whose names have no dots, has none of the model's, and is left"
        for stem, names in dotless.items()
        if _by_dotless_names(chosen, stem, names) is None
    ]
    if around := ask.around(chosen, free):
        doubts.append(
            f"{file.path}: {', '.join(around[:3])} beside the model may have been trained with it, before or behind "
            "it, and are left"
        )
    return Found(
        tree=chosen.tree,
        readings=chosen.readings,
        notes=(*chosen.notes, *notes),
        doubts=(*chosen.doubts, *left, *doubts),
        skipped={**chosen.tree.skipped, **_left(file, chosen.tree, trees, why)},
    )


def _inside(file: WeightFile, entry: str | None) -> list[str]:
    """Return the names of the tensors that are behind an entry, or of all."""
    if not entry:
        return [*file.tensors]
    asked = entry.rstrip(".") + "."
    found = [name for name in file.tensors if name.startswith(asked)]
    found = found or [name for name in file.tensors if f".{asked}" in name]
    if not found:
        known = [tree.entry for tree in _subtrees(file, [*file.tensors]) if tree.entry] or [*file.entries][:5]
        raise CheckpointError(
            f"{file.path}: has no weights behind weights.entry={entry}; "
            + (f"there are {', '.join(known)}" if known else "leave it out")
        )
    return found


@cache
def _schemas() -> Mapping[str, frozenset[int]]:
    """Return how names of weights look in each dialect, numbers left out, with the models that have each.

    A model is one kind of names of one dialect, and is known by its number.
    """
    found: dict[str, set[int]] = {}
    number = 0
    for family in FAMILIES:
        for config, ours in _tiny_models(family):
            for dialect in family.dialects:
                if any(getattr(config, k) != v for k, v in dialect.only.items()):
                    continue
                links, _ = write_names(ours, dialect)
                for name in (name for link in links for name in link.theirs):
                    # a project's own prefix is one like others, and the head beside it is found as others are
                    found.setdefault(_look(name.removeprefix(dialect.prefix).split(".")), set()).add(number)
                number += 1
    return {look: frozenset(numbers) for look, numbers in found.items()}


def _tiny_models(family: Family[Any]) -> list[tuple[Any, list[str]]]:
    """Return a small model's configuration and names for each kind that a family has."""
    configs = {repr(config): config for name in family.variants if (config := build_config(name, **family.tiny))}
    with torch.random.fork_rng(devices=[]):  # nobody's draws are to differ because a file was opened
        return [(config, [*family.model(config).state_dict()]) for config in configs.values()]


@cache
def _sizes() -> Mapping[int, int]:
    """Return how many looks each model's names have."""
    counts: dict[int, int] = {}
    for numbers in _schemas().values():
        for number in numbers:
            counts[number] = counts.get(number, 0) + 1
    return counts


def _look(segments: list[str]) -> str:
    return ".".join("#" if segment.isdigit() else segment for segment in segments)


def _is_wrapper(segment: str) -> bool:
    """Say whether a module's name is one that torch and its like give what they wrap: `module`, or a private one."""
    return segment == "module" or segment.startswith("_")


def _place(name: str) -> tuple[str, str] | None:
    """Return the prefix of a name and how what is behind it looks, where that is a weight's name in some dialect."""
    segments = name.split(".")
    inner = [at for at, segment in enumerate(segments) if not _is_wrapper(segment)]
    for first in range(len(inner)):
        look = _look([segments[at] for at in inner[first:]])
        if look in _schemas():
            return "".join(f"{segment}." for segment in segments[: inner[first]]), look
    return None


def _subtrees(file: WeightFile, names: list[str]) -> list[Subtree]:
    """Return all places of a file where the names of half a model's weights are, or more."""
    looks: dict[str, set[str]] = {}
    prefixes: dict[str, str] = {}
    for name in names:
        if place := _place(name):
            prefixes[name] = place[0]
            looks.setdefault(place[0], set()).add(place[1])
    roots = [prefix for prefix, found in looks.items() if _is_half(found)]
    members: dict[str, list[str]] = {prefix: [] for prefix in roots}
    tops = {(prefix, name.split(".")[0]) for name, prefix in prefixes.items()}
    for name in names:
        own, top = prefixes.get(name), name.split(".")[0]
        # what looks like no weight is of the nearest place that it is behind, if not in an entry of its own
        behind = own if own in members else max((p for p in roots if name.startswith(p)), key=len, default=None)
        if behind is not None and (file.entries.get(top, "tensor") == "tensor" or (behind, top) in tops):
            members[behind].append(name)
    return [_subtree(file, prefix, members[prefix]) for prefix in roots]


def _is_half(looks: Iterable[str]) -> bool:
    counts: dict[int, int] = {}
    for look in looks:
        for number in _schemas()[look]:
            counts[number] = counts.get(number, 0) + 1
    return any(2 * count >= _sizes()[number] for number, count in counts.items())


def _subtree(file: WeightFile, prefix: str, members: Iterable[str]) -> Subtree:
    names: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for whole in members:
        behind = whole.removeprefix(prefix)
        name = ".".join(segment for segment in behind.split(".") if not _is_wrapper(segment))
        if why := _why_not(name, file.tensors[whole]):
            skipped[whole] = why
        elif name in names:
            raise CheckpointError(
                f"{file.path}: has {names[name]} and {whole}, the same weight twice; keep one of them"
            )
        else:
            names[name] = whole
    return Subtree(prefix=prefix, names=names, skipped=skipped, is_average=_is_average(file, prefix))


def _why_not(name: str, tensor: Held) -> str:
    """Return why a tensor is no weight, if it is none."""
    if tensor.fault:
        return ""  # which is told
    if OPTIMIZER.fullmatch(name):
        return "of the optimizer"
    if name in COUNTERS:
        return "of the training"
    if not tensor.shape:
        return "a single number, and no weight is one"
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return f"{str(tensor.dtype).removeprefix('torch.')}, and no weight is"
    return ""


def _is_of_optimizer(prefix: str) -> bool:
    return any(OPTIMIZER.fullmatch(f"{segment}.") for segment in prefix.split("."))


def _is_average(file: WeightFile, prefix: str) -> bool:
    segments = prefix.rstrip(".").split(".")
    for beginning, is_average in _swapped(file).items():
        if prefix.startswith(beginning):
            return is_average
    if segments[-1] == "module" and prefix.removesuffix("module.") + "n_averaged" in file.tensors:
        return True  # torch.optim.swa_utils
    for segment in reversed(segments):
        words = {word.lower() for word in WORD.findall(segment)}
        if words & (AVERAGE | PLAIN):
            return not words & PLAIN
    return False


def _swapped(file: WeightFile) -> dict[str, bool]:
    """Return which prefixes begin averages, of programs that swap them with the weights when they save."""
    entries = file.entries.keys()
    if {"state_dict", "ema_state_dict"} <= entries and (
        {"meta", "message_hub"} & entries or "ema_state_dict.steps" in file.tensors
    ):
        return {"state_dict.": True, "ema_state_dict.": False}  # mmengine
    if {"state_dict", "current_model_state", "averaging_state"} <= entries:
        return {"state_dict.": True, "current_model_state.": False}  # Lightning
    if file.swapped_out is not None:
        return {file.swapped_out: False, f"{file.swapped_out.partition('algorithms.')[0]}model.": True}  # Composer
    return {}


def _spelt(names: list[str]) -> dict[str, str]:
    """Return the other name of weights that mmcv keeps twice in one place: `ema_`, and its name with underscores."""
    others = {name for name in names if name.rpartition(".")[2].startswith("ema_")}
    found = {}
    for place in {name[: name.rfind(".") + 1] for name in others}:
        for name in names:
            other = f"{place}ema_{name.removeprefix(place).replace('.', '_')}"
            if name.startswith(place) and other in others:
                found[name] = other
    return found


def _dotless(names: list[str]) -> dict[str, dict[str, str]]:
    """Return the names that LitEma of latent diffusion keeps in one place, by themselves, without dots and their place.

    It always has two numbers beside them.
    """
    known = {*names}
    stems = [name.removesuffix(".num_updates") for name in names if name.endswith(".num_updates")]
    groups = {stem: f"{stem}." for stem in stems if f"{stem}.decay" in known}
    return {
        stem: {name.removeprefix(begin): name for name in names if name.startswith(begin)}
        for stem, begin in groups.items()
    }


def _by_dotless_names(fit: _Fit, stem: str, names: Mapping[str, str]) -> _Fit | None:
    """Return an average of a model whose names, from some module above its weights on, have lost their dots."""
    segments = fit.tree.prefix.split(".")[:-1]
    places = ["".join(f"{segment}." for segment in segments[:depth]) for depth in range(len(segments), -1, -1)]
    for place in places:
        found = {
            name: names[joined]
            for name, whole in fit.tree.names.items()
            if (joined := whole.removeprefix(place).replace(".", "")) in names
        }
        if found:
            return replace(fit, tree=replace(fit.tree, prefix=f"{stem}.", names=found, is_average=True))
    return None


def _of_mmcv(fit: _Fit, spelt: Mapping[str, str]) -> list[_Fit]:
    """Tell the two apart where mmcv has kept both; it swaps them, so that what has the usual names is the average."""
    names = {name: spelt.get(whole, whole) for name, whole in fit.tree.names.items()}
    if names == fit.tree.names:
        return [fit]
    plain = replace(fit.tree, prefix=f"{fit.tree.prefix}ema_", names=names)
    return [replace(fit, tree=replace(fit.tree, is_average=True)), replace(fit, tree=plain)]


def _nearest(file: WeightFile, names: list[str]) -> Subtree:
    """Return the tensors that are likeliest to be weights where nothing has the names of any."""
    groups: dict[str, list[str]] = {}
    for name in names:
        top = name.split(".")[0]
        groups.setdefault(top if file.entries.get(top, "tensor") != "tensor" else "", []).append(name)
    of_weights = [[name for name in group if not _why_not(name, file.tensors[name])] for group in groups.values()]
    found = max(of_weights, key=len, default=[])
    if not found:
        listed = ", ".join([*file.entries][:5]) or "none"
        raise CheckpointError(f"{file.path}: holds no weights; its entries are {listed}")
    split = [name.split(".")[:-1] for name in found]
    shared = next((n for n, parts in enumerate(zip(*split, strict=False)) if len({*parts}) > 1), 0)
    return _subtree(file, "".join(f"{segment}." for segment in split[0][:shared]), found)


def _on_meta(file: WeightFile, tree: Subtree) -> dict[str, Tensor]:
    """Return tensors of the right names, shapes and types, without values."""
    held = {name: file.tensors[whole] for name, whole in tree.names.items()}
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in held.items()}


def _free(names: list[str], trees: list[Subtree]) -> list[str]:
    taken = {whole for tree in trees for whole in (*tree.names.values(), *tree.skipped)}
    return [name for name in names if name not in taken]


def _problems(fit: _Fit) -> int:
    return len(fit.readings[0].missing) + len(fit.readings[0].misfits)


@dataclass(frozen=True)
class _Ask:
    """Understands subtrees; those of the same names and shapes once."""

    file: WeightFile
    dialect: str | None
    model: str | None
    options: Mapping[str, Any]
    known: dict[Any, list[Reading] | CheckpointError]

    def fit(self, tree: Subtree, free: list[str]) -> _Fit | None:
        """Return how a subtree is understood, with a head that goes by another name; None where it is no model."""
        readings = self._read(tree)
        if readings is None:
            return None
        if readings[0].config.num_classes:
            return _Fit(tree=tree, readings=readings)
        stems, spare = self._heads(tree, readings[0], free)
        with_head = self._read(_with_head(tree, readings[0], stems[0])) if len(stems) == 1 and not spare else None
        if with_head is None or not with_head[0].is_whole:
            layers = [f"{stem}.weight" for stem in stems]
            beside = [name for name in spare if name.endswith(".weight")] if stems else []
            return _Fit(tree=tree, readings=readings, heads=(*layers, *beside))
        where = f"{self.file.path}: {stems[0]} is taken for the head"
        usual = {"head", "fc", "classifier"} & {*stems[0].split(".")}
        its_own = stems[0].endswith(("head", "head.fc"))
        return _Fit(
            tree=_with_head(tree, readings[0], stems[0]),
            readings=with_head,
            notes=(where,) if usual and not its_own else (),
            doubts=() if usual else (f"{where}: nothing else there is as wide as what the model gives",),
        )

    def _read(self, tree: Subtree) -> list[Reading] | None:
        self.file.check(tree.names.values())
        key = tuple(_shapes(self.file, tree).items())
        if key not in self.known:
            try:
                self.known[key] = recognise(
                    _on_meta(self.file, tree), str(self.file.path), dialect=self.dialect, model=self.model,
                    options=self.options,
                )  # fmt: skip
            except CheckpointError as error:
                self.known[key] = error
        answer = self.known[key]
        return None if isinstance(answer, CheckpointError) else answer

    def _heads(self, tree: Subtree, reading: Reading, free: list[str]) -> tuple[list[str], list[str]]:
        """Return the linear layers that a model without a head could have as one, and what else stands with them.

        They are within the subtree under another name, such as head.1, or else beside it, in the nearest place.
        """
        width = _on_meta_device(reading).num_features
        inside = [tree.names[name] for name in reading.misfits if name in tree.names]
        stems = [stem for name in inside if (stem := self._stem(name, width))]
        if inside:
            return stems, [name for name in inside if name.rpartition(".")[0] not in stems]
        segments = tree.prefix.split(".")[:-1]
        for depth in range(len(segments) - 1, -1, -1):
            place = "".join(f"{segment}." for segment in segments[:depth])
            near = [name for name in free if name.startswith(place)]
            if stems := [stem for name in near if (stem := self._stem(name, width))]:
                no_bias = [stem for stem in stems if f"{stem}.bias" not in self.file.tensors]
                return stems, [*no_bias, *self._beside(near, stems, width)]
        return [], []

    def _beside(self, near: list[str], stems: list[str], width: int) -> list[str]:
        """Return layers that take what the model gives, such as a norm, or what a head gives, such as another."""
        shapes = {name: self.file.tensors[name].shape for name in near if name.endswith(".weight")}
        heads = [f"{stem}.weight" for stem in stems]
        given = {shapes[name][0] for name in heads}
        return [
            name
            for name, shape in shapes.items()
            if name not in heads and ((width in shape[-1:]) or (len(shape) == 2 and shape[1] in given))
        ]

    def around(self, fit: _Fit, free: list[str]) -> list[str]:
        """Return what stands beside a model and may be part of it as it was trained.

        It is means and standard deviations of images, a convolution before the model, or a layer behind its head.
        """
        place, config = fit.tree.prefix[: fit.tree.prefix.rfind(".", 0, -1) + 1], fit.readings[0].config
        given = config.num_classes or _on_meta_device(fit.readings[0]).num_features
        used, found = {*fit.tree.names.values()}, []
        for name in (name for name in free if name.startswith(place) and name not in used):
            shape, leaf = self.file.tensors[name].shape, name.rpartition(".")[2]
            of_images = leaf in STATISTICS and math.prod(shape) == config.in_channels
            before = leaf == "weight" and len(shape) == 4 and shape[0] == config.in_channels
            behind = leaf == "weight" and len(shape) > 1 and shape[1] == given
            if of_images or before or behind:
                found.append(name)
        return found

    def _stem(self, name: str, width: int) -> str:
        stem, _, leaf = name.rpartition(".")
        shape = self.file.tensors[name].shape
        return stem if leaf == "weight" and len(shape) == 2 and shape[1] == width else ""

    def averages_by_order(self, fit: _Fit, free: list[str]) -> list[_Fit]:
        """Return averages that are lists without names, in the order of the model's parameters."""
        return [made for stem, listed in self._lists(free).items() if (made := self._by_order(fit, stem, listed))]

    def lists_without_place(self, fit: _Fit, free: list[str]) -> list[str]:
        """Return those that are in no order of the model's parameters."""
        return [stem for stem, listed in self._lists(free).items() if self._by_order(fit, stem, listed) is None]

    def _lists(self, free: list[str]) -> dict[str, list[str]]:
        lists: dict[str, list[str]] = {}
        for name in free:
            stem, _, number = name.rpartition(".")
            if number.isdigit() and _is_average(self.file, f"{stem}."):
                lists.setdefault(stem, []).append(name)
        return lists

    def _by_order(self, fit: _Fit, stem: str, listed: list[str]) -> _Fit | None:
        shapes = [self.file.tensors[name].shape for name in listed]
        frozen = _frozen(fit.readings[0])
        for names in ([*fit.tree.names], [name for name in fit.tree.names if name not in frozen]):
            if shapes == [self.file.tensors[fit.tree.names[name]].shape for name in names]:
                own = {**fit.tree.names, **dict(zip(names, listed, strict=True))}
                return replace(fit, tree=replace(fit.tree, prefix=f"{stem}.", names=own, is_average=True))
        return None


def _on_meta_device(reading: Reading) -> VisionModel:
    with torch.device("meta"):
        return find_variant(reading.model)[0].model(reading.config)


def _frozen(reading: Reading) -> set[str]:
    """Return the names in the file of what is never trained, which some averages leave out."""
    parameters = _on_meta_device(reading).named_parameters()
    still = {name for name, parameter in parameters if not parameter.requires_grad}
    return {theirs for link in reading.links if {*link.ours} <= still for theirs in link.theirs}


def _with_head(tree: Subtree, reading: Reading, stem: str) -> Subtree:
    """Return a subtree with a linear layer under the name that the dialect gives the head."""
    links, _ = write_names(("head.weight", "head.bias"), reading.dialect)
    kept = {name: whole for name, whole in tree.names.items() if name not in reading.misfits}
    head = {name: f"{stem}.{name.rpartition('.')[2]}" for link in links for name in link.theirs}
    return replace(tree, names={**kept, **head})


def _choose(
    file: WeightFile, plain: list[_Fit], averages: list[_Fit], average: bool
) -> tuple[_Fit, tuple[str, ...], tuple[str, ...], dict[str, str]]:
    """Return what is taken, what is said of that, what may be wrong with it, and why others were left."""
    (plain, same), (averages, alike) = _distinct(file, plain), _distinct(file, averages)
    notes = tuple(f"{file.path}: {' and '.join(names)} hold the same values" for names in (*same, *alike))
    if len(plain) > 1:
        raise _several(file, plain)
    if not plain:
        if len(averages) > 1:
            raise _several(file, averages)
        return averages[0], notes, (), {}
    (own,) = plain
    shapes = _shapes(file, own.tree)
    averages = [_completed(fit, own) for fit in averages]
    others = {_shown(fit.tree): _differing(file, fit.tree, shapes) for fit in averages}
    fitting = [fit for fit in averages if not others[_shown(fit.tree)]]
    if not average:
        return own, notes, (), others | {_shown(fit.tree): "a moving average, not taken" for fit in fitting}
    if not fitting:
        left = [f"{file.path}: the moving average ({name}) {why}, and is left" for name, why in others.items()]
        return own, notes, tuple(left), others
    if len(fitting) > 1:
        raise _several(file, fitting)
    told = (
        f"{file.path}: the moving average ({_shown(fitting[0].tree)}) is taken; weights.average=false takes the "
        "weights themselves"
    )
    return fitting[0], (told, *notes), (), others | {_shown(own.tree): "the weights themselves, not taken"}


def _completed(average: _Fit, own: _Fit) -> _Fit:
    """Return an average with what is never trained, which some averages leave out, from the weights that it is of."""
    lacking = own.tree.names.keys() - average.tree.names.keys()
    if not lacking or not lacking <= _frozen(own.readings[0]):
        return average
    names = {name: average.tree.names.get(name, whole) for name, whole in own.tree.names.items()}
    return replace(average, readings=own.readings, tree=replace(average.tree, names={**names, **average.tree.names}))


def _completed_by(fits: list[_Fit], fit: _Fit) -> _Fit:
    """Return weights with what is never trained, which may stand only beside their average, or the other way round."""
    others = [other for other in fits if other.tree.is_average != fit.tree.is_average and not _problems(other)]
    return next((done for other in others if (done := _completed(fit, other)) is not fit), fit)


def _shapes(file: WeightFile, tree: Subtree) -> dict[str, tuple[int, ...]]:
    return {name: file.tensors[whole].shape for name, whole in tree.names.items()}


def _differing(file: WeightFile, average: Subtree, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say why an average is not one of weights of these shapes; nothing where it is."""
    found = _shapes(file, average)
    if lacking := [name for name in shapes if name not in found]:
        return f"lacks {', '.join(lacking[:3])}"
    other = [name for name in found if found[name] != shapes.get(name)]
    return f"has other weights ({', '.join(other[:3])})" if other else ""


def _distinct(file: WeightFile, fits: list[_Fit]) -> tuple[list[_Fit], list[tuple[str, str]]]:
    """Return subtrees that differ in a name, a shape or a value, and the pairs that do not."""
    kept: list[_Fit] = []
    same: list[tuple[str, str]] = []
    for fit in fits:
        twin = next((other for other in kept if _are_equal(file, fit.tree, other.tree)), None)
        if twin is None:
            kept.append(fit)
        else:
            same.append((_shown(twin.tree), _shown(fit.tree)))
    return kept, same


def _are_equal(file: WeightFile, one: Subtree, other: Subtree) -> bool:
    return one.names.keys() == other.names.keys() and all(
        torch.equal(file.load(whole), file.load(other.names[name])) for name, whole in one.names.items()
    )


def _several(file: WeightFile, fits: list[_Fit]) -> CheckpointError:
    names = [_shown(fit.tree) for fit in fits]
    return CheckpointError(
        f"{file.path}: holds {len(names)} models that fit and differ: {', '.join(names)}; say which, such as "
        f"weights.entry={fits[-1].tree.entry or fits[-1].tree.prefix.rstrip('.')}"
    )


def _shown(tree: Subtree) -> str:
    return tree.entry or tree.prefix.rstrip(".") or "the names without a prefix"


def _left(file: WeightFile, taken: Subtree, trees: list[Subtree], others: Mapping[str, str]) -> dict[str, str]:
    """Return what else is in the file, and why it was left: whole entries, and tensors beside the weights by name."""
    used = {*taken.names.values(), *taken.skipped}
    tops = {name.split(".")[0] for name in used}
    why = {
        whole: "of the optimizer" if _is_of_optimizer(tree.prefix) else others.get(_shown(tree), "of another model")
        for tree in trees
        for whole in (*tree.names.values(), *tree.skipped)
    }
    found: dict[str, str] = {}
    for name in file.tensors:
        top = name.split(".")[0]
        if name not in used:
            as_one = top not in tops and file.entries.get(top, "tensor") != "tensor"
            key = top if as_one else name
            alone = "no weights" if as_one else _why_not(name, file.tensors[name]) or "beside the weights"
            found[key] = why.get(name) or found.get(key) or alone
    empty = {name: kind for name, kind in file.entries.items() if kind != "tensor" and name not in tops | found.keys()}
    nothing = {name: "no weights" if kind == "dict" else f"a {kind}, not a tensor" for name, kind in empty.items()}
    return {**found, **nothing}
