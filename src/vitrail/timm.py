"""Importing this teaches timm our models: T2T-ViT and TNT-Ti by their names, those that timm has behind `vitrail_`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.models.family import ModelConfig, VisionModel
from vitrail.models.registry import FAMILIES, build_config, find_variant
from vitrail.weights.adapt import adapt
from vitrail.weights.config_fields import ADAPTABLE, NUMERICS, find_differences
from vitrail.weights.hub import name_in_timm
from vitrail.weights.recognise import recognise, translate

UNSUPPORTED = ("proj_drop_rate", "attn_drop_rate", "drop_block_rate")
"""Arguments of timm's training script that these models do not have; they may be 0."""
ANY_SIZE = ("dynamic_img_size", "dynamic_img_pad")
"""Arguments by which timm's own models take images of other sizes; here either does both."""


class _AsTimm:
    """What timm asks of a model beside what ours offer."""

    config: ModelConfig
    head: nn.Module

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        levels = self.feature_levels  # type: ignore[attr-defined]
        return [
            {"num_chs": n.num_channels, "reduction": n.reduction, "module": n.module}
            for n in levels
        ]

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        _refuse_pool(global_pool)
        super().reset_classifier(num_classes)  # type: ignore[misc, call-arg]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        return self.layer_of  # type: ignore[attr-defined]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> Any:
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt is {output_fmt!r}; these models give NCHW")
        tokens, maps, prefixes = self.forward_maps(  # type: ignore[attr-defined]
            x, indices, norm=norm, stop_early=stop_early or intermediates_only
        )
        # a pyramid has none
        if return_prefix_tokens and all(prefix.shape[1] for prefix in prefixes):
            maps = list(zip(maps, prefixes, strict=True))
        return maps if intermediates_only else (tokens, maps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = None,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the chosen maps do not need, and return their numbers."""
        model = cast(VisionModel, self)
        levels, chosen = model.feature_levels, sorted(model.level_indices(indices))
        kept = max(chosen, default=len(levels) - 1) + 1
        for name, child in model.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == len(levels):
                setattr(model, name, child[:kept])
            elif isinstance(child, nn.ModuleList) and len(child) == len(levels) - 1:
                setattr(model, name, child[: kept - 1])  # what stands between two stages
        # a pyramid's norm is for its last map
        if prune_norm or levels[kept - 1].reduction != levels[-1].reduction:
            model.norm = nn.Identity()
        if prune_head:
            model.reset_classifier(0)
        model.feature_levels = levels[:kept]
        return chosen


def _build(name: str, **arguments: Any) -> VisionModel:
    """Build a model from timm's arguments."""
    _refuse_pool(arguments.pop("global_pool", None))
    for key in UNSUPPORTED:
        if arguments.pop(key, 0):
            raise ConfigError(f"{name} has no {key}; leave it at 0")
    any_size = [arguments.pop(key) for key in ANY_SIZE if key in arguments]
    if any_size:
        arguments["dynamic_image_size"] = any(any_size)
    stride = arguments.pop("output_stride", None)
    ours = {"img_size": "image_size", "in_chans": "in_channels"}
    config = build_config(
        name, **{ours.get(key, key): _plain(value) for key, value in arguments.items()}
    )
    model = _CLASSES[find_variant(name)[0].name](config)
    _refuse_dilation(name, stride, model)
    return model


def _refuse_dilation(name: str, stride: int | None, model: VisionModel) -> None:
    """Refuse another stride of the last map than the model has: attention over a finer map is not that of its weights.

    Raises:
        ConfigError: Another stride was asked for.
    """
    last = model.feature_levels[-1].reduction
    if stride not in (None, last):
        strides = ", ".join(map(str, dict.fromkeys(one.reduction for one in model.feature_levels)))
        raise ConfigError(
            f"output_stride is {stride}; {name} cannot be dilated, as windows and reduced maps would "
            f"then hold other tokens than those it was trained with; its maps have strides {strides}, "
            "which out_indices chooses from"
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refuse_pool(global_pool: str | None) -> None:
    if global_pool:
        raise ConfigError(
            f"global_pool is {global_pool!r}; these models pool as their papers do, so leave it out"
        )


def _filter(name: str, weights: Mapping[str, Tensor], model: VisionModel) -> dict[str, Tensor]:
    """Bring weights of any dialect to a model's names, image size and channels; timm sees to the classes."""
    built = dict(vars(model.config))
    for key in (*ADAPTABLE, *NUMERICS):
        built.pop(key, None)
    reading = recognise(weights, "the weight file", dialect=None, model=name, options=built)[0]
    expected = find_differences(model.config, reading.dialect.options)
    if expected:
        arguments = ", ".join(f"{key}={value!r}" for key, value in expected.items())
        warnings.warn(
            f"these weights, of {reading.dialect.name}, were trained with {arguments}; give that "
            "to timm.create_model",
            stacklevel=2,
        )
    target = replace(model.config, num_classes=reading.config.num_classes)
    adapted, _ = adapt(
        translate(weights, reading), reading.config, target, "the weight file", family=reading.family, old_classes=(),
        new_classes=(),
    )  # fmt: skip
    return adapted


def _num_maps(name: str, arguments: Mapping[str, Any]) -> int:
    """Return how many maps a model gives where timm is not told: a pyramid all, another three, as timm's own do."""
    family, card = find_variant(name)
    options = {}
    for key, value in arguments.items():
        if card.config.has_option(key):  # such as depth
            options[key] = _plain(value)
    with torch.device("meta"):
        levels = family.model(build_config(name, **options)).feature_levels
    return len(levels) if len({level.reduction for level in levels}) > 1 else min(3, len(levels))


def _register(name: str, public: str) -> None:
    def create(pretrained: bool = False, **arguments: Any) -> VisionModel:
        wanted: dict[str, Any] = {"feature_cls": "getter"}
        if arguments.get("features_only"):
            wanted["out_indices"] = arguments.pop("out_indices", None) or _num_maps(name, arguments)
        return build_model_with_cfg(
            partial(_build, name), public, pretrained, pretrained_filter_fn=partial(_filter, name), feature_cfg=wanted,
            **arguments,
        )  # fmt: skip

    create.__name__, create.__module__ = public, __name__
    register_model(create)


_CLASSES: dict[str, Any] = {
    family.name: type(f"{family.name}_for_timm", (_AsTimm, cast(type, family.model)), {})
    for family in FAMILIES
}
_NAMES = {name: name_in_timm(name) for family in FAMILIES for name in family.variants}
default_cfgs = generate_default_cfgs(
    {
        _NAMES[name]: {
            "num_classes": 1000,
            "input_size": (3, *card.config.size),
            "fixed_input_size": True,
            "crop_pct": card.crop,
            "interpolation": card.interpolation,
            "mean": card.mean,
            "std": card.std,
            "classifier": "head",
        }
        for family in FAMILIES
        for name, card in family.variants.items()
    }
)
for _family in FAMILIES:
    for _name in _family.variants:
        _register(_name, _NAMES[_name])
