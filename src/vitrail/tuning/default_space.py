"""A space where none is given: rate, decay, regularisation and augmentation around what a recipe has. No torch."""

from __future__ import annotations

from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.values import to_plain

RATE_FACTOR = 8.0
"""How far the learning rate is searched, up and down."""
CROPS = ((0.08, 1.0), (0.35, 1.0), (0.7, 1.0))
"""Shares of the image in random crops, from strong to weak."""
POLICIES = ("rand-m5-mstd0.5-inc1", "rand-m9-mstd0.5-inc1")
"""Policies of augmentation, from weak to strong."""
MIXED_FROM = 20
"""Epochs from which on images are seen often enough for mixing to be tried."""


def suggest_space(
    config: TrainConfig, is_multi_label: bool, has_drop_path: bool = True
) -> dict[str, Any]:
    """Return a space for a recipe, as its file would hold it; what the recipe has lies within.

    Args:
        config: The recipe as it is.
        is_multi_label: Whether an image may have several classes.
        has_drop_path: Whether the model can skip blocks.
    """
    space: dict[str, Any] = {"optim.lr": _around(config.optim.lr, RATE_FACTOR)}
    usual = (1e-5, 1e-2) if config.optim.name == "sgd" else (5e-3, 0.3)
    decay = config.optim.weight_decay
    if decay > 0:
        space["optim.weight_decay"] = {
            "low": min(usual[0], decay),
            "high": max(usual[1], decay),
            "log": True,
        }
    is_whole_network = config.lora.rank is None and config.freeze.until is None
    if is_whole_network and has_drop_path:
        most = max(0.3, config.model.drop_path_rate)
        space["model.drop_path_rate"] = {"low": 0.0, "high": most}
    epochs, warmup = config.train.epochs, config.schedule.warmup_epochs
    if epochs >= 5 and config.schedule.name != "constant":
        space["schedule.warmup_epochs"] = {
            "low": 0.0,
            "high": float(min(epochs, max(epochs / 5, warmup))),
        }
    space |= _augmentation(config)
    if not is_multi_label:
        most = max(0.2, config.augment.label_smoothing)
        space["augment.label_smoothing"] = {"low": 0.0, "high": most}
    return space


def _around(value: float, factor: float) -> dict[str, Any]:
    """Return the range around a value that is searched by its logarithm, with round ends."""
    return {
        "low": float(f"{value / factor:.2g}"),
        "high": float(f"{value * factor:.2g}"),
        "log": True,
    }


def _augmentation(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of augmentation that are searched."""
    augment = config.augment
    space: dict[str, Any] = {"augment.scale": _with_own(CROPS, augment.scale)}
    if augment.auto_augment is not None and augment.color_jitter is None:
        space["augment.auto_augment"] = _with_own((None, *POLICIES), augment.auto_augment)
    mixes_tokens = config.token_labels.folder is not None and config.token_labels.mix_token > 0
    if config.train.epochs >= MIXED_FROM and not mixes_tokens:
        space["augment.mixup"] = _with_own((0.0, 0.2, 0.8), augment.mixup)
        if augment.cutmix > 0 and augment.cutmix_minmax is None:
            space["augment.cutmix"] = _with_own((0.0, 1.0), augment.cutmix)
    return space


def _with_own(choices: tuple[Any, ...], own: Any) -> list[Any]:
    """Return choices with the recipe's own value among them."""
    values = [to_plain(choice) for choice in choices]
    value = to_plain(own)
    return values if value in values else [value, *values]
