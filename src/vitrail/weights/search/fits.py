"""Subtrees read as models: which reading each allows, and the head that may stand beside it under another name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.models.dialects import write_names
from vitrail.models.family import VisionModel
from vitrail.weights.formats.weight_file import WeightFile
from vitrail.weights.recognise import Reading, recognise
from vitrail.weights.request import LoadRequest
from vitrail.weights.search.subtrees import Subtree
from vitrail.weights.search.weight_names import join_prefix

STATISTICS = {"mean", "std", "pixel_mean", "pixel_std", "image_mean", "image_std"}
"""Names of what a module that normalizes images keeps."""
HEAD_NAMES = {"head", "fc", "classifier"}
"""Usual names of a classifier, which is taken for the head without a doubt."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A subtree, and the models that its weights may be of."""

    tree: Subtree
    readings: list[Reading]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    """Matrices beside weights without a head that may be of one."""

    @property
    def reading(self) -> Reading:
        """The first reading, which all the others are as near as."""
        return self.readings[0]

    @property
    def problems(self) -> int:
        """How many weights the first reading leaves missing or over."""
        return len(self.reading.missing) + len(self.reading.misfits)


@dataclass(frozen=True)
class Reader:
    """Reads subtrees of one file as models; those of the same names and shapes once."""

    file: WeightFile
    request: LoadRequest
    answers: dict[Shapes, list[Reading] | CheckpointError] = field(default_factory=dict)
    """The readings of each subtree, or why it has none, by its names and shapes."""

    def fit(self, tree: Subtree, outside: list[str]) -> Fit | None:
        """Return how a subtree is read, with a head that goes by another name; None where it is no model.

        Args:
            tree: The subtree.
            outside: Names of tensors that are in no subtree.
        """
        readings = self._read(tree)
        if readings is None:
            return None
        if readings[0].config.num_classes:
            return Fit(tree=tree, readings=readings)

        layers, others = _find_heads(self.file, tree, readings[0], outside)
        if len(layers) == 1 and not others:
            whole = _with_head(tree, readings[0], layers[0])
            with_head = self._read(whole)
            if with_head is not None and with_head[0].is_whole:
                return self._fit_with_head(whole, with_head, layers[0])
        heads = [f"{layer}.weight" for layer in layers]
        if layers:
            heads += [name for name in others if name.endswith(".weight")]
        return Fit(tree=tree, readings=readings, heads=tuple(heads))

    def refusal(self) -> CheckpointError:
        """Return why the first of the subtrees that are no model is none."""
        return next(
            answer for answer in self.answers.values() if isinstance(answer, CheckpointError)
        )

    def _fit_with_head(self, tree: Subtree, readings: list[Reading], layer: str) -> Fit:
        note = f"{self.file.path}: {layer} is taken for the head"
        if not HEAD_NAMES & {*layer.split(".")}:
            doubt = f"{note}: nothing else there is as wide as what the model gives"
            return Fit(tree=tree, readings=readings, doubts=(doubt,))
        if layer.endswith(("head", "head.fc")):
            return Fit(tree=tree, readings=readings)
        return Fit(tree=tree, readings=readings, notes=(note,))

    def _read(self, tree: Subtree) -> list[Reading] | None:
        self.file.check(tree.names.values())
        key = tuple(tree.shapes(self.file).items())
        if key not in self.answers:
            try:
                self.answers[key] = recognise(
                    _without_values(self.file, tree),
                    str(self.file.path),
                    dialect=self.request.dialect,
                    model=self.request.model,
                    options=self.request.options,
                )
            except CheckpointError as error:
                self.answers[key] = error
        answer = self.answers[key]
        return None if isinstance(answer, CheckpointError) else answer


def build_on_meta(reading: Reading) -> VisionModel:
    """Build the model of a reading without memory for its weights."""
    with torch.device("meta"):
        return reading.family.model(reading.config)


def list_frozen(reading: Reading) -> set[str]:
    """Return the names in the file of what is never trained, which some averages leave out."""
    parameters = build_on_meta(reading).named_parameters()
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    names: set[str] = set()
    for link in reading.links:
        if {*link.ours} <= frozen:
            names.update(link.theirs)
    return names


def list_neighbours(file: WeightFile, fit: Fit, outside: list[str]) -> list[str]:
    """Return what stands beside a model and may be part of it as it was trained.

    It is means and standard deviations of images, a convolution before the model, or a layer behind
    its head.
    """
    place = fit.tree.prefix[: fit.tree.prefix.rfind(".", 0, -1) + 1]
    config = fit.reading.config
    width = config.num_classes or build_on_meta(fit.reading).num_features
    used = {*fit.tree.names.values()}
    neighbours = []
    for name in outside:
        if name in used or not name.startswith(place):
            continue
        shape, leaf = file.tensors[name].shape, name.rpartition(".")[2]
        is_weight = leaf == "weight"
        of_images = leaf in STATISTICS and math.prod(shape) == config.in_channels
        before = is_weight and len(shape) == 4 and shape[0] == config.in_channels
        behind = is_weight and len(shape) > 1 and shape[1] == width
        if of_images or before or behind:
            neighbours.append(name)
    return neighbours


def _without_values(file: WeightFile, tree: Subtree) -> dict[str, Tensor]:
    """Return tensors of the right names, shapes and types on the meta device."""
    tensors: dict[str, Tensor] = {}
    for name, whole in tree.names.items():
        held = file.tensors[whole]
        tensors[name] = torch.empty(held.shape, dtype=held.dtype, device="meta")
    return tensors


def _find_heads(
    file: WeightFile, tree: Subtree, reading: Reading, outside: list[str]
) -> tuple[list[str], list[str]]:
    """Return the linear layers that a model without a head could have as one, and what else stands with them.

    They are within the subtree under another name, such as head.1, or else beside it, in the
    nearest place.
    """
    width = build_on_meta(reading).num_features
    inside = [tree.names[name] for name in reading.misfits if name in tree.names]
    if inside:
        layers = _linear_layers(file, inside, width)
        return layers, [name for name in inside if name.rpartition(".")[0] not in layers]
    segments = tree.prefix.split(".")[:-1]
    for depth in range(len(segments) - 1, -1, -1):
        place = join_prefix(segments[:depth])
        near = [name for name in outside if name.startswith(place)]
        if layers := _linear_layers(file, near, width):
            without_bias = [layer for layer in layers if f"{layer}.bias" not in file.tensors]
            return layers, [*without_bias, *_layers_beside(file, near, layers, width)]
    return [], []


def _linear_layers(file: WeightFile, names: list[str], width: int) -> list[str]:
    """Return the linear layers among some tensors that take so many channels."""
    layers = []
    for name in names:
        layer, _, leaf = name.rpartition(".")
        shape = file.tensors[name].shape
        if layer and leaf == "weight" and len(shape) == 2 and shape[1] == width:
            layers.append(layer)
    return layers


def _layers_beside(file: WeightFile, near: list[str], layers: list[str], width: int) -> list[str]:
    """Return layers that take what the model gives, such as a norm, or what a head gives, such as another."""
    shapes = {name: file.tensors[name].shape for name in near if name.endswith(".weight")}
    heads = [f"{layer}.weight" for layer in layers]
    head_widths = {shapes[name][0] for name in heads}
    beside = []
    for name, shape in shapes.items():
        takes_features = width in shape[-1:]
        takes_logits = len(shape) == 2 and shape[1] in head_widths
        if name not in heads and (takes_features or takes_logits):
            beside.append(name)
    return beside


def _with_head(tree: Subtree, reading: Reading, layer: str) -> Subtree:
    """Return a subtree with a linear layer under the name that the dialect gives the head."""
    links, _ = write_names(("head.weight", "head.bias"), reading.dialect)
    names = dict(tree.names)
    for name in reading.misfits:
        names.pop(name, None)
    for link in links:
        for name in link.theirs:
            names[name] = f"{layer}.{name.rpartition('.')[2]}"
    return replace(tree, names=names)
