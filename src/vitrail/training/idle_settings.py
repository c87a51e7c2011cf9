"""Settings that do nothing beside the others, told to whoever wrote them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.sections import WeightsSection
from vitrail.migrate.rules import format_value

Why = Callable[[TrainConfig], str]
"""Returns what makes some settings idle, as a clause, or nothing where they are used."""


def idle_settings(config: TrainConfig, written: Mapping[str, Any]) -> list[str]:
    """Say which settings do nothing, one sentence for all that share a reason.

    Args:
        config: All settings.
        written: Dotted keys that someone chose for this run; the others are nobody's wish.
    """
    found, told = [], set()
    for names, why in IDLE.items():
        chosen = [name for name in names if name in written and name not in told and not _is_usual(config, name)]
        if chosen and (reason := why(config)):
            told.update(chosen)
            listed = " and ".join(f"{name}={format_value(_value(config, name))}" for name in chosen)
            found.append(f"{listed}: {'does' if len(chosen) == 1 else 'do'} nothing, since {reason}")
    return found


def _value(config: TrainConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _is_usual(config: TrainConfig, name: str) -> bool:
    section, key = name.split(".")
    return _value(config, name) == getattr(type(getattr(config, section))(), key)


def _without_weights(config: TrainConfig) -> str:
    return "" if config.model.weights is not None else "model.weights is null"


def _without_erasing(config: TrainConfig) -> str:
    return "" if config.augment.erase_prob > 0 else "augment.erase_prob is 0"


def _without_mixing(config: TrainConfig) -> str:
    augment = config.augment
    is_mixed = augment.mixup > 0 or augment.cutmix > 0 or augment.cutmix_minmax is not None
    if is_mixed and augment.mix_prob > 0:
        return ""
    return "augment.mix_prob is 0" if is_mixed else "augment.mixup and augment.cutmix are 0"


def _without_a_choice(config: TrainConfig) -> str:
    augment = config.augment
    by_paste = augment.cutmix > 0 or augment.cutmix_minmax is not None
    if augment.mixup > 0 and by_paste:
        return ""
    return f"only augment.{'mixup' if augment.mixup > 0 else 'cutmix'} is on"


def _never_so_late(config: TrainConfig) -> str:
    last, end = config.train.epochs + config.schedule.cooldown_epochs, config.augment.mix_off_epoch
    return f"the run has {last} epochs, all of which mix" if end is not None and end >= last else ""


def _not_by_effective_number(config: TrainConfig) -> str:
    return "" if config.balance.class_weights == "effective" else "balance.class_weights is not effective"


def _not_asymmetric(config: TrainConfig) -> str:
    return "" if config.multi_label.loss == "asymmetric" else "multi_label.loss is not asymmetric"


def _not_sgd(config: TrainConfig) -> str:
    return "" if config.optim.name == "sgd" else f"it is for optim.name=sgd, and that is {config.optim.name}"


def _not_adamw(config: TrainConfig) -> str:
    return "" if config.optim.name == "adamw" else f"optim.name is {config.optim.name}"


def _without_warmup(config: TrainConfig) -> str:
    return "" if config.schedule.warmup_epochs > 0 else "schedule.warmup_epochs is 0"


def _no_cosine(config: TrainConfig) -> str:
    return "" if config.schedule.name == "cosine" else f"schedule.name is {config.schedule.name}"


def _no_decay(config: TrainConfig) -> str:
    return "" if config.schedule.name in ("step", "exponential") else f"schedule.name is {config.schedule.name}"


def _no_floor(config: TrainConfig) -> str:
    is_constant = config.schedule.name == "constant" and not config.schedule.clip_to_min_lr
    return "schedule.name is constant" if is_constant else ""


def _not_streaming(config: TrainConfig) -> str:
    return "" if config.data.streaming else "data.streaming is false"


def _in_folds(config: TrainConfig) -> str:
    return "" if config.data.folds is None else "data.folds divides the images instead"


IDLE: Mapping[tuple[str, ...], Why] = {
    tuple(f"weights.{field.name}" for field in fields(WeightsSection)): _without_weights,
    ("augment.erase_mode", "augment.erase_count", "augment.erase"): _without_erasing,
    (
        "augment.mix_mode",
        "augment.mix_prob",
        "augment.mix_switch_prob",
        "augment.mix_off_epoch",
    ): _without_mixing,
    ("augment.mix_switch_prob",): _without_a_choice,
    ("augment.mix_off_epoch",): _never_so_late,
    ("balance.effective_beta",): _not_by_effective_number,
    ("multi_label.gamma_negative", "multi_label.gamma_positive", "multi_label.clip"): _not_asymmetric,
    ("optim.momentum",): _not_sgd,
    ("optim.betas", "optim.eps"): _not_adamw,
    ("schedule.warmup_lr", "schedule.warmup_prefix"): _without_warmup,
    ("schedule.cosine_epochs",): _no_cosine,
    ("schedule.decay_epochs", "schedule.decay_rate"): _no_decay,
    ("schedule.min_lr",): _no_floor,
    ("data.shuffle_buffer", "data.cache_gb"): _not_streaming,
    ("data.val_fraction",): _in_folds,
}
"""Which settings a reason makes idle; of two reasons the first is told."""
