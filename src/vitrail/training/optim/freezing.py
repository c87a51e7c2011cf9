"""Freezing: the parts of a network before a point keep their weights, cost no memory for gradients and draw nothing."""

from __future__ import annotations

from torch import nn

from vitrail.errors import ConfigError, suggest
from vitrail.models.family import VisionModel


class Freeze:
    """The parts of a model that come before a point.

    Autograd keeps no activations where neither the weights nor what goes in ask for a gradient.
    Dropout and drop path are off there, so an image always leaves these parts in the same way.

    Args:
        model: The model, whose trainable parameters are those that may be frozen.
        until: The first part that is trained, as in freeze.until.

    Raises:
        ConfigError: The model has no such part; the message names those it has.
    """

    def __init__(self, model: VisionModel, until: str) -> None:
        self.model = model
        names = [name for name, _ in model.named_parameters()]
        if until == "head":
            before = {name for name in names if not model.is_of_head(name)}
        else:
            depth = find_layer(model, until)
            before = {name for name in names if model.layer_of(name) < depth}
        self.parameters, self.modules = [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name in before:
                self.parameters.append(parameter)
        for name, module in model.named_modules():
            if name and _lies_in(name, module, before):
                self.modules.append(module)

    def begin(self) -> None:
        """Freeze the weights."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def still(self) -> None:
        """Switch off dropout and drop path in what is frozen, after the model was set to training."""
        for module in self.modules:
            module.eval()

    def end(self) -> None:
        """Train all parts from here on."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def find_layer(model: VisionModel, until: str) -> int:
    """Return the number of the layer that a part of a model begins with.

    Raises:
        ConfigError: It is no part of the model.
    """
    parts = model.parts()
    if until in parts:
        inside = [name for name, _ in model.get_submodule(until).named_parameters(prefix=until)]
        return min(map(model.layer_of, inside))
    if until.isdecimal() and 1 <= int(until) <= model.num_layers:
        return int(until)
    hint = suggest(until, [*parts, "head"])
    first, _ = next(model.named_parameters())
    model.layer_of(first)  # raises where the layers of the model are not told apart
    blocks = [part for part in parts if part != "norm"]
    named = ["norm", "head"] if "norm" in parts else ["head"]
    raise ConfigError(
        f"freeze.until is {until}; it must be a layer from 1 to {model.num_layers}, a part from "
        f"{blocks[0]} to {blocks[-1]}, {' or '.join(named)}{hint}"
    )


def _lies_in(name: str, module: nn.Module, names: set[str]) -> bool:
    """Say whether a module has parameters, all of which are among these names."""
    own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
    return bool(own) and names.issuperset(own)
