"""How a weight file is to be read, where it leaves a choice: from settings, or from another project's settings file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from vitrail.classes.names import canonical
from vitrail.config.commands import ConvertConfig, DescribedConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import WeightsSection
from vitrail.errors import ConfigError
from vitrail.models.registry import build_config, canonical_name, find_library
from vitrail.weights.checkpoint import Record, config_of

Positions = Literal["resized", "fresh"]
"""Fixed positions at another image size: resized from the file's, or computed for that size."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The model of a settings file beside the weights: it counts where the weights and the request leave it open."""

    origin: str
    """The settings file, as messages call it."""
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """How a file is to be read, where it leaves a choice."""

    dialect: str | None = None
    """Name of the project whose names it uses."""
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration: of a size that was never published, or for other images
    or channels."""
    entry: str | None = None
    """Where in the file the weights are: entries and prefixes, joined by dots."""
    average: bool = True
    """Take the moving average of the weights, where there is one."""
    partial: bool = False
    """Take a file that lacks weights, which are then fresh, or has others, which are then
    skipped."""
    positions: Positions = "resized"
    names: str | None = None
    """File that names the logits of a file without names."""
    classes: Sequence[str] | None = None
    """Names that the logits are to have; None leaves them as they are."""
    by_order: bool = False
    """Let the order of `classes` decide which logit is whose, where the file names them
    otherwise."""
    two_logits: bool = True
    """Let the one logit of a binary classifier become two, for the softmax that everything else
    takes."""
    described: ModelDescription | None = None
    """A description that counts only so far as the weights do not contradict it."""

    def __post_init__(self) -> None:
        if self.positions not in get_args(Positions):
            raise ConfigError(
                f"positions is {self.positions!r}; it must be one of "
                f"{', '.join(get_args(Positions))}"
            )
        if self.classes is None:
            return
        if isinstance(self.classes, str) or not all(isinstance(name, str) for name in self.classes):
            raise ConfigError("classes must be a list of names")
        counts = Counter(map(canonical, self.classes))
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ConfigError(f"classes has {twice[0]!r} twice; each name stands for one logit")

    @property
    def library_model(self) -> str:
        """The model, where it is one of a library; empty for our own, or where none is named."""
        is_of_library = self.model is not None and find_library(self.model) is not None
        return str(self.model) if is_of_library else ""

    def with_description(self) -> LoadRequest:
        """Return the request in which the described model fills in what is left open."""
        described = self.described
        if described is None:
            return self
        return replace(
            self, model=self.model or described.model, options={**described.options, **self.options}
        )


def make_request(section: WeightsSection, **given: Any) -> LoadRequest:
    """Return the request of the settings `weights`, with some fields given otherwise."""
    values = vars(section).copy()
    values["names"] = values.pop("classes")
    return LoadRequest(**{**values, **given})


def resolve_request(layers: Sequence[Layer]) -> LoadRequest:
    """Return the request of layers of settings, with the model that a settings file among them describes."""
    of_weights = []
    for one in layers:
        if "weights" in one.values:
            of_weights.append(Layer(one.origin, {"weights": one.values["weights"]}))
    request = make_request(resolve(ConvertConfig, of_weights).config.weights)
    described = None
    for layer in layers:
        if layer.model:
            described = _read_description(layer, request)
    return replace(request, described=described)


def _read_description(layer: Layer, request: LoadRequest) -> ModelDescription:
    """Return the model of a settings file, without what the request says itself."""
    model = resolve(DescribedConfig, [Layer(layer.origin, {"model": layer.model})]).config.model
    options = {}
    for name, value in {**model.options, "image_size": model.image_size}.items():
        if value is not None and name not in request.options:
            options[name] = value
    name = None
    if "name" in layer.model and request.model is None:
        name = model.name
    return ModelDescription(origin=layer.origin, model=name, options=options)


def check_described(
    record: Record, request: LoadRequest, path: str, *, exported: bool = False
) -> None:
    """Refuse weights, or what was exported of them, of which a settings file says something else than they do.

    Raises:
        ConfigError: It describes another model, or the same with another image size or arithmetic.
    """
    described = request.described
    if described is None:
        return
    if described.model is not None and canonical_name(described.model) != record.model:
        raise ConfigError(
            f"{described.origin}: is for {described.model}, and {path} holds a {record.model}; "
            "give the settings that it was made with, or leave them out"
        )
    made = config_of(record, path)
    stated = build_config(record.model, **{**asdict(made), **described.options})
    for name in described.options:
        if name == "image_size":
            there, here = made.size, stated.size
        else:
            there, here = getattr(made, name), getattr(stated, name)
        if there == here:
            continue
        there, here = _as_typed(there), _as_typed(here)
        advice = (
            f"say which counts: weights.options.{name}={there} or weights.options.{name}={here}"
        )
        if exported:
            advice = (
                f"export it again with weights.options.{name}={here}, or leave the settings out"
            )
        raise ConfigError(
            f"{described.origin}: has {name} {here}, and {path} was made with {there}; {advice}"
        )


def _as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if not isinstance(value, tuple):
        return str(value)
    if len(set(value)) == 1:
        return str(value[0])
    return f"[{','.join(map(str, value))}]"
