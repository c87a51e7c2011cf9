"""Any model of timm by the contract of our own, as `timm:NAME`: its module, its weight names and its preprocessing.

What is added stands around timm's module and changes nothing in it: logits, parameter names and
random draws are those of `timm.create_model`. What a model cannot do is said when it is built, or
where it is asked for.

Differences from our own families
    Tokens have timm's layout: (b, c, h, w) or (b, h, w, c) in networks without tokens.
    Layers, for rates that fall with the depth and for freezing, are timm's groups (`group_matcher`).
    Two heads, as distilled models have, are averaged, in training as in evaluation.
    Sizes and numbers of classes are arguments that timm is given; what else it takes are options.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, format_choices, shorten
from vitrail.models.dialects import Dialect
from vitrail.models.family import (
    Family,
    FeatureLevel,
    Library,
    ModelConfig,
    Pooling,
    Shapes,
    Variant,
    VisionModel,
)

PREFIX = "timm:"
FILTERS = ("bicubic", "bilinear")
"""Interpolations that images are resized with here."""
RESIZES: Mapping[str, Any] = {"center": "crop", "squash": "squash", "border": "letterbox"}
"""Our names of timm's crop modes."""
SETTINGS: Mapping[str, str] = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path_rate",
    "drop_rate": "drop_rate",
}
"""Arguments of timm that are settings here, and what they are called."""
LOADING = ("cache_dir", "checkpoint_path", "device", "dtype", "exportable", "no_jit", "scriptable")
BEGINNINGS = ("pretrained", "pruned", "feature", "kwargs_filter", "out_indices", "cfg", "model_cfg")
"""Arguments of timm, and beginnings of others, that read files or make another thing than a
classifier; a weight file that anyone may have written must not give them."""
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What timm and torch raise for arguments that a model cannot be built with."""


@dataclass(frozen=True, kw_only=True)
class TimmConfig(ModelConfig):
    """The arguments that timm is given for a model, beside its name."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those that are no setting of every model, by timm's own names."""

    def __hash__(self) -> int:
        return hash(repr(self))

    def has_option(self, name: str) -> bool:
        """Say whether a model may have a setting of that name; which timm takes is seen when it is built."""
        return True

    def with_options(self, **options: Any) -> TimmConfig:
        """Return this configuration with some of its settings changed; unknown ones are timm's arguments."""
        own = {setting.name for setting in fields(self)}
        # a recipe has tuples where a weight file has lists, and both mean the same model
        others = {name: _as_list(value) for name, value in options.items() if name not in own}
        changed = {name: value for name, value in options.items() if name in own}
        if others:
            changed["arguments"] = {**changed.get("arguments", self.arguments), **others}
        return replace(self, **changed)

    def list_options(self) -> dict[str, Any]:
        """Return each setting by the name that `with_options` takes, timm's arguments among them."""
        options = super().list_options()
        return options.pop("arguments") | options

    def problems(self) -> list[str]:
        """Say what is wrong with this configuration, each as one clause."""
        problems = super().problems()
        if not isinstance(self.arguments, Mapping):
            return [*problems, f"arguments is {shorten(self.arguments)}; it must be a mapping"]
        for name, value in self.arguments.items():
            if name in SETTINGS:
                problems.append(f"{name} is called {SETTINGS[name]} here")
            elif name in LOADING or name.startswith(BEGINNINGS):
                problems.append(f"{name} cannot be given to a model of timm here")
            elif not _is_plain(value):
                problems.append(f"{name} is {shorten(value)}; it must be a plain value")
        return problems


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model of timm once it has computed something."""

    num_features: int
    """Channels that enter the layer that gives the logits."""
    levels: tuple[FeatureLevel, ...]
    """Maps that it can give; none where it cannot."""


class TimmModel(VisionModel[TimmConfig]):
    """A model of timm, in whose place it stands: it has the same parameters, buffers and layers by the same names.

    Args:
        name: Name of the model, with `timm:` before timm's own.
        config: Arguments.

    Raises:
        ConfigError: timm refuses the arguments, or the model does not classify images of that size
            with one answer each.
    """

    timm_module: Any
    """What timm has built; not among the layers of this module, which are its layers."""

    def __init__(self, name: str, config: TimmConfig) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.layered_names: tuple[str, ...] = ()
        self.layers_by_name: dict[str, int] = {}
        self.head_names = list_heads(name)
        if config.num_classes and not self.head_names:
            raise ConfigError(f"{name}: timm has no head for it, so it gives no classes")
        self.facts = examine(name, config)
        self.num_features = self.facts.num_features
        net = create(name, config)
        refuse_clashes(name, net)
        # as a layer of this module, it would stand before all names
        object.__setattr__(self, "timm_module", net)
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, shared, getattr(net, shared))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, num_classes)."""
        return self.timm_module(images)

    def train(self, mode: bool = True) -> TimmModel:
        """Set the mode of the module and of timm's own, which is no layer of it."""
        self.timm_module.training = mode
        return super().train(mode)

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The maps that `forward_intermediates` can return."""
        return self.facts.levels

    @property
    def num_class_tokens(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Tokens that stand before those of the map and are a class token: one or none."""
        return int(getattr(self.timm_module, "cls_token", None) is not None)

    @property
    def num_layers(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest value of `layer_of`; 1 where timm does not tell the layers of a model apart."""
        return max(self._layers().values()) if self._has_layers else 1

    def get_classifier(self) -> nn.Module:
        """Return the layer that gives the logits; of a model with two, the first."""
        return self.timm_module.get_submodule(self.head_names[0])

    def levels(self, images: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Yield the tokens of each of `feature_levels`, and the height and width of its map."""
        _, maps, prefixes = self.forward_maps(images, None, stop_early=True)
        for one, prefix in zip(maps, prefixes, strict=True):
            size = (one.shape[2], one.shape[3])
            yield torch.cat([prefix, one.flatten(2).transpose(1, 2)], dim=1), size

    def pool(self, tokens: Tensor) -> Tensor:
        """Reduce what `forward_features` returns to what enters the layer that gives the logits."""
        return self.timm_module.forward_head(tokens, pre_logits=True)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what enters timm's head, in timm's layout."""
        return self.timm_module.forward_features(images)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or with `pre_logits` the features that enter the layer that gives them."""
        return self.timm_module.forward_head(tokens, pre_logits=pre_logits)

    def forward_maps(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None,
        *,
        norm: bool = False,
        stop_early: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return what timm gives at the end, the chosen maps, and the class token before each, of one pass."""
        chosen = sorted(self.level_indices(indices))
        module, options = self.timm_module, {"indices": chosen, "norm": norm}
        has_prefix = bool(self.num_class_tokens)
        if has_prefix:
            options["return_prefix_tokens"] = True
        if stop_early:
            maps = module.forward_intermediates(
                images, stop_early=True, intermediates_only=True, **options
            )
            final = images
        else:
            final, maps = module.forward_intermediates(images, **options)
        if has_prefix:
            return final, [one for one, _ in maps], [tokens for _, tokens in maps]
        return final, list(maps), [one.new_zeros(len(one), 0, one.shape[1]) for one in maps]

    def forward_vectors(self, images: Tensor, level: int = -1, pooling: Pooling = "head") -> Tensor:
        """Return one vector an image from a level; at the last one, `head` is what enters the layer of the logits.

        At a lower level `head` is the class token where timm's head reads that, and else the mean.
        Arguments and errors are those of our own families.
        """
        if pooling not in self.poolings:
            raise ValueError(f"pooling is {pooling!r}; this model has {', '.join(self.poolings)}")
        (index,) = self.level_indices([level])
        if pooling == "head" and index == len(self.feature_levels) - 1:
            return self.pool(self.forward_features(images))
        _, (one,), (prefix,) = self.forward_maps(images, [index], norm=True, stop_early=True)
        reads_token = getattr(self.timm_module, "global_pool", "") == "token"
        if pooling == "cls" or (pooling == "head" and reads_token and self.num_class_tokens):
            return prefix[:, 0]
        return one.amax(dim=(2, 3)) if pooling == "max" else one.mean(dim=(2, 3))

    def count_vector(self, level: int, pooling: Pooling) -> int:
        """Return how many numbers `forward_vectors` gives an image."""
        (index,) = self.level_indices([level])
        if pooling == "head" and index == len(self.feature_levels) - 1:
            return self.num_features
        return self.feature_levels[index].num_channels

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a freshly initialised one, for classes without names; 0 classes removes it."""
        self.classes, self.thresholds = (), None
        parameter = next(self.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.timm_module.reset_classifier(num_classes)
        self.to(device=parameter.device, dtype=parameter.dtype)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm exempts from decay."""
        exempt = getattr(self.timm_module, "no_weight_decay", None)
        return set() if exempt is None else {*exempt()}

    def layer_of(self, parameter_name: str) -> int:
        """Return the depth of a parameter by timm's groups.

        Raises:
            ConfigError: timm does not tell the layers of this model apart.
        """
        if not self._has_layers:
            raise ConfigError(
                f"{self.name}: timm does not tell the layers of this model apart (it has no "
                "group_matcher); leave out optim.layer_decay, optim.name=muon and freeze.until but "
                "for the head"
            )
        return self._layers()[parameter_name]

    def parts(self) -> list[str]:
        """Return the names of the blocks whose parameters are layers of their own, in timm's groups."""
        if not self._has_layers:
            return []
        layers, blocks, whole = self._layers(), [], "."
        for name, module in self.named_modules():
            inside = (
                {layers[f"{name}.{own}"] for own, _ in module.named_parameters()} if name else {}
            )
            is_numbered = name.rpartition(".")[2].isdecimal() and not self.is_of_head(f"{name}.")
            # what lies in a block that is one layer begins none
            if is_numbered and inside and min(inside) > 0 and not name.startswith(whole):
                blocks.append(name)
                whole = f"{name}." if len(inside) == 1 else whole
        return blocks

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, as timm does it for the model.

        Raises:
            ConfigError: It cannot.
        """
        if not enable and not hasattr(self.timm_module, "set_grad_checkpointing"):
            return
        try:
            self.timm_module.set_grad_checkpointing(enable)
        except REFUSALS as error:
            raise ConfigError(
                f"{self.name}: timm cannot recompute its blocks ({first_line(error)}); leave out "
                "train.grad_checkpointing"
            ) from error

    @property
    def _has_layers(self) -> bool:
        return hasattr(self.timm_module, "group_matcher")

    def _layers(self) -> dict[str, int]:
        """Return the layer of each parameter, of those there are now: adapters may have been added."""
        from timm.models._manipulate import group_parameters

        names = tuple(name for name, _ in self.named_parameters())
        if names != self.layered_names:
            matcher = self.timm_module.group_matcher(coarse=False)
            self.layered_names = names
            layers: Any = group_parameters(self.timm_module, matcher, reverse=True)
            self.layers_by_name = layers
        return self.layers_by_name


@lru_cache(maxsize=64)
def find_family(name: str) -> Family[TimmConfig] | None:
    """Return the family that a model of timm has to itself, by its name with `timm:`; None where there is none."""
    published = read_published(name)
    if published is None:
        return None
    height, width = published.input_size[1:]
    config = TimmConfig(
        image_size=height if height == width else (height, width),
        in_channels=published.input_size[0],
        num_classes=published.num_classes,
    )
    heads, stems = list_heads(name), as_tuple(published.first_conv)
    variant = Variant(
        config=config,
        source="timm",
        mean=tuple(published.mean),
        std=tuple(published.std),
        crop=published.crop_pct,
        interpolation=published.interpolation if published.interpolation in FILTERS else "bicubic",
        resize=RESIZES.get(published.crop_mode, "crop"),
        weights=find_weights(published),
    )
    paper = f"https://arxiv.org/abs/{str(published.paper_ids).removeprefix('arXiv:')}"
    return Family(
        name="timm",
        title=name,
        paper=paper if published.paper_ids else "not named by timm",
        code=published.origin_url or "https://github.com/huggingface/pytorch-image-models",
        model=partial(TimmModel, name),
        variants={name: variant},
        tiny={},
        dialects=(Dialect(name="timm"),),
        implied=partial(read_shapes, heads, stems),
        channels={f"{stem}.weight": "summed" for stem in stems},
        head=heads,
        fresh_head=partial(make_head, name),
        refit=partial(refit, name),
        has_hidden_buffers=True,
        library_name=name.removeprefix(PREFIX),
        library_arguments=partial(list_arguments, name),
    )


def list_names() -> list[str]:
    """Return the names of all models of timm, with `timm:`."""
    import timm

    return [f"{PREFIX}{name}" for name in timm.list_models() if _is_theirs(name)]


LIBRARY = Library(prefix=PREFIX, find=find_family, list_names=list_names)


def read_published(name: str) -> Any:
    """Return what timm knows of a model's weights and images; None where it has no such model or weights."""
    import timm

    theirs = name.removeprefix(PREFIX)
    architecture, _, tag = theirs.partition(".")
    if not _is_theirs(architecture):
        return None
    try:
        published = timm.get_pretrained_cfg(theirs, allow_unregistered=False)
    except RuntimeError:  # no weights of that tag
        return None
    return published if published is None or (published.tag or "") == tag or not tag else None


def list_heads(name: str) -> tuple[str, ...]:
    """Return the names of the layers that give a model's logits."""
    return as_tuple(read_published(name).classifier)


def as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return names that timm gives as one, several or none."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def find_weights(published: Any) -> str:
    """Return where timm fetches weights from: a repository of the Hub, or an address; empty for none it has.

    Weights in the formats of other libraries, which timm converts while it loads them, are left
    out.
    """
    if published.label_offset or published.hf_hub_filename or published.custom_load == "hf":
        return ""
    if published.hf_hub_id:
        return f"hf-hub:{published.hf_hub_id}"
    is_address = str(published.url).startswith("https://") and not published.custom_load
    return published.url if is_address else ""


def create(name: str, config: TimmConfig, **loading: Any) -> Any:
    """Build timm's module.

    Args:
        name: Name of the model, with `timm:`.
        config: Arguments.
        loading: Arguments of timm that fill it with weights.

    Raises:
        ConfigError: timm refuses the arguments, or does not know them.
    """
    import timm

    known = list_parameters(name)
    rates = {"drop_path_rate": config.drop_path_rate, "drop_rate": config.drop_rate}
    arguments = {rate: rates[rate] for rate in rates if rates[rate] or rate in known}
    arguments |= list_arguments(name, config)
    try:
        return timm.create_model(
            name.removeprefix(PREFIX), num_classes=config.num_classes, **arguments, **loading
        )
    except REFUSALS as error:
        for rate, value in rates.items():
            if value and rate not in known:
                advice = f"leave it at 0 (model.{rate}=0)"
                raise ConfigError(f"{name}: timm has no {rate} for it; {advice}") from error
        for key in config.arguments:
            if key not in known:
                choices = format_choices(key, known, "timm's are")
                raise ConfigError(f"{name} has no setting {key!r}{choices}") from error
        raise ConfigError(f"{name}: timm refuses that ({first_line(error)})") from error


def list_arguments(name: str, config: TimmConfig) -> dict[str, Any]:
    """Return what timm has to be told to build a model, beside the number of classes and the rates of training."""
    family = find_family(name)
    assert family is not None
    usual, arguments = family.variants[name].config, dict(config.arguments)
    if config.size != usual.size and "img_size" in list_parameters(name):
        arguments["img_size"] = config.size
    if config.in_channels != usual.in_channels:
        arguments["in_chans"] = config.in_channels
    return arguments


@lru_cache(maxsize=64)
def list_parameters(name: str) -> tuple[str, ...]:
    """Return the names of the arguments that timm's class of a model takes."""
    import timm

    with torch.device("meta"):
        module = timm.create_model(name.removeprefix(PREFIX))
    named: dict[str, None] = {}
    for kind in type(module).__mro__:
        if kind is nn.Module:
            break
        parameters = inspect.signature(kind.__init__).parameters.values()
        named |= {one.name: None for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break  # it hands nothing on to the class that it is made of
    return tuple(one for one in named if one not in ("self", *LOADING, *BEGINNINGS))


@lru_cache(maxsize=64)
def examine(name: str, config: TimmConfig) -> Facts:
    """Return what a model computes, tried without memory for its weights.

    Raises:
        ConfigError: It does not take such images, or gives other answers than one for each image.
    """
    with torch.device("meta"), torch.no_grad():
        module = create(name, config)
        images = torch.empty(2, config.in_channels, *config.size)
        with _refusing_images(name, config):
            answers = module.train()(images)
        if config.num_classes and (not isinstance(answers, Tensor) or answers.ndim != 2):
            given = "one of more dimensions" if isinstance(answers, Tensor) else "several answers"
            raise ConfigError(
                f"{name}: gives {given} in training, where one for each image is trained on; leave "
                "out what asks for auxiliary outputs"
            )
        with _refusing_images(name, config):
            features = module.eval().forward_features(images)
            vectors = module.forward_head(features, pre_logits=True)
            has_maps = hasattr(module, "forward_intermediates")
            maps = module.forward_intermediates(images, intermediates_only=True) if has_maps else []
    known = getattr(module, "feature_info", [])
    levels = []
    for number, one in enumerate(maps):
        place, reduction = "", round(config.size[0] / one.shape[2])
        if len(known) == len(maps):
            place, reduction = known[number]["module"], known[number].get("reduction", reduction)
        levels.append(FeatureLevel(one.shape[1], reduction, place))
    return Facts(num_features=vectors.shape[1], levels=tuple(levels))


@contextmanager
def _refusing_images(name: str, config: TimmConfig) -> Iterator[None]:
    """Say in one line that a model does not take the images of a configuration."""
    try:
        yield
    except REFUSALS as error:
        size, family = "x".join(map(str, config.size)), find_family(name)
        assert family is not None
        usual = "x".join(map(str, family.variants[name].config.size))
        raise ConfigError(
            f"{name}: does not take images of {size} pixels and {config.in_channels} channels "
            f"({first_line(error)}); its own are {usual}"
        ) from error


def refuse_clashes(name: str, module: nn.Module) -> None:
    """Refuse a module with layers that have the name of a method of ours.

    Raises:
        ConfigError: It has one, so that it could not be saved and exported by its own names.
    """
    for own, _ in module.named_children():
        if hasattr(TimmModel, own):
            raise ConfigError(
                f"{name}: has a part called {own}, as a method is here, and cannot be taken; "
                f"`vitrail models '{PREFIX}*'` lists others"
            )


def read_shapes(heads: Sequence[str], stems: Sequence[str], shapes: Shapes) -> dict[str, Any]:
    """Return the number of classes and of channels that shapes of weights tell.

    Raises:
        KeyError: They lack the layer that reads images, so they are of another model.
    """
    told: dict[str, Any] = {"num_classes": 0}
    for head in heads:
        if f"{head}.weight" in shapes:
            told["num_classes"] = shapes[f"{head}.weight"][0]
    for stem in stems:  # not every kind of stem tells how many channels images have
        shapes[f"{stem}.weight"]
    return told


def make_head(name: str, config: TimmConfig) -> dict[str, Tensor]:
    """Return the weights of a fresh head as timm initialises it."""
    state = create(name, config).state_dict()
    layers = tuple(f"{head}." for head in list_heads(name))
    return {key: tensor for key, tensor in state.items() if key.startswith(layers)}


def refit(name: str, weights: Mapping[str, Tensor], config: TimmConfig) -> dict[str, Tensor]:
    """Bring weights to the image size of a configuration by timm's own rules."""
    known = {"state_dict": dict(weights), "num_classes": config.num_classes}
    known |= {"input_size": (config.in_channels, *config.size), "label_offset": 0}
    with warnings.catch_warnings():
        # torch has remarks on how timm interpolates, which are not for whoever trains
        warnings.simplefilter("ignore")
        return create(name, config, pretrained=True, pretrained_cfg_overlay=known).state_dict()


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _is_theirs(architecture: str) -> bool:
    """Say whether timm itself has a model; `vitrail.timm` registers ours there too."""
    import timm

    entry = timm.model_entrypoint(architecture) if timm.is_model(architecture) else None
    return entry is not None and entry.__module__.startswith("timm.")


def _as_list(value: Any) -> Any:
    """Return a value with lists for tuples, in whatever depth."""
    return [_as_list(one) for one in value] if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
