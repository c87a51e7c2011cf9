"""Settings that have no effect beside the others, such as optim.momentum with AdamW. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.sections import WeightsSection
from vitrail.config.teaching_sections import DistillSection, TokenLabelsSection
from vitrail.config.training_sections import OPTIMIZERS, MultiLabelSection
from vitrail.migrate.rules import format_value


@dataclass(frozen=True)
class Rule:
    """When some settings have no effect, and why."""

    names: tuple[str, ...]
    """Settings by their dotted keys."""
    is_idle: Callable[[TrainConfig], bool]
    reason: str
    """Clause behind "since", in which {config.SECTION.KEY} stands for a setting and {epochs} for
    all epochs."""


def idle_settings(config: TrainConfig, written: Mapping[str, Any]) -> list[str]:
    """Name the settings that have no effect, in one sentence for all that share a reason.

    Args:
        config: All settings.
        written: Settings that someone chose for this run, by their dotted keys; the others are not
            named.
    """
    sentences: list[str] = []
    named: set[str] = set()
    for rule in RULES:
        candidates = [name for name in rule.names if name in written and name not in named]
        chosen = [name for name in candidates if not _is_default(config, name)]
        if chosen and rule.is_idle(config):
            named.update(chosen)
            settings = " and ".join(
                f"{name}={format_value(_value(config, name))}" for name in chosen
            )
            verb = "does" if len(chosen) == 1 else "do"
            reason = rule.reason.format(config=config, epochs=_epochs(config))
            sentences.append(f"{settings}: {verb} nothing, since {reason}")
    return sentences


def find_lasting_freeze(config: TrainConfig) -> str | None:
    """Say that the run ends before what is frozen for some epochs is trained, whoever wrote that; None otherwise."""
    until, epochs = config.freeze.until, config.freeze.epochs
    if until is None or epochs is None or epochs < _epochs(config):
        return None
    return (
        f"freeze.epochs={epochs}: the run ends after {_epochs(config)}, so what comes before "
        f"freeze.until={until} is never trained; freeze.epochs=null says so, a longer train.epochs "
        "trains it"
    )


def _value(config: TrainConfig, name: str) -> Any:
    """Return a setting by its dotted key."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _is_default(config: TrainConfig, name: str) -> bool:
    """Say whether a setting has its default."""
    section, key = name.split(".")
    return _value(config, name) == getattr(type(getattr(config, section))(), key)


def _epochs(config: TrainConfig) -> int:
    """Return the epochs of the whole run."""
    return config.train.epochs + config.schedule.cooldown_epochs


def _has_moment(config: TrainConfig, name: str) -> bool:
    """Say whether the optimizer reads a setting of moments."""
    return name in OPTIMIZERS[config.optim.name]


def _pastes(config: TrainConfig) -> bool:
    """Say whether CutMix is on."""
    return config.augment.cutmix > 0 or config.augment.cutmix_minmax is not None


def _mixes(config: TrainConfig) -> bool:
    """Say whether Mixup or CutMix is on."""
    return config.augment.mixup > 0 or _pastes(config)


def _mixes_tokens(config: TrainConfig) -> bool:
    """Say whether MixToken is on."""
    return config.token_labels.folder is not None and config.token_labels.mix_token > 0


def _varies_views(config: TrainConfig) -> bool:
    """Say whether the student sees something else of an image than its view."""
    return config.augment.erase_prob > 0 or (_mixes(config) and config.augment.mix_prob > 0)


def _never_stops_mixing(config: TrainConfig) -> bool:
    """Say whether the epoch from which on nothing is mixed lies behind the end of the run."""
    end = config.augment.mix_off_epoch
    return end is not None and end >= _epochs(config)


def _has_no_floor(config: TrainConfig) -> bool:
    """Say whether a learning rate stays as it is, so that there is no least one."""
    return config.schedule.name == "constant" and not config.schedule.clip_to_min_lr


MIXING = (
    "augment.mix_mode",
    "augment.mix_prob",
    "augment.mix_switch_prob",
    "augment.mix_off_epoch",
)
RULES = (
    Rule(
        tuple(f"weights.{field.name}" for field in fields(WeightsSection)),
        lambda config: config.model.weights is None,
        "model.weights is null",
    ),
    Rule(
        ("augment.device",),
        lambda config: config.augment.auto_augment is None,
        "augment.auto_augment is null",
    ),
    Rule(
        ("augment.erase_mode", "augment.erase_count", "augment.erase"),
        lambda config: config.augment.erase_prob <= 0,
        "augment.erase_prob is 0",
    ),
    Rule(MIXING[:-1], lambda config: not _mixes(config), "augment.mixup and augment.cutmix are 0"),
    Rule(
        ("augment.mix_off_epoch",),
        lambda config: not _mixes(config) and not _mixes_tokens(config),
        "augment.mixup and augment.cutmix are 0",
    ),
    Rule(MIXING, lambda config: config.augment.mix_prob <= 0, "augment.mix_prob is 0"),
    Rule(
        ("augment.mix_switch_prob",), lambda config: not _pastes(config), "only augment.mixup is on"
    ),
    Rule(
        ("augment.mix_switch_prob",),
        lambda config: config.augment.mixup <= 0,
        "only augment.cutmix is on",
    ),
    Rule(
        ("augment.mix_off_epoch",),
        _never_stops_mixing,
        "the run has {epochs} epochs, all of which mix",
    ),
    Rule(
        ("balance.effective_beta",),
        lambda config: config.balance.class_weights != "effective",
        "balance.class_weights is not effective",
    ),
    Rule(
        ("multi_label.gamma_negative", "multi_label.gamma_positive", "multi_label.clip"),
        lambda config: config.multi_label.loss != "asymmetric",
        "multi_label.loss is not asymmetric",
    ),
    Rule(
        tuple(f"distill.{field.name}" for field in fields(DistillSection)),
        lambda config: config.distill.teacher is None,
        "distill.teacher is null",
    ),
    Rule(
        ("distill.weight", "distill.topk"),
        lambda config: config.data.unlabelled,
        "data.unlabelled is true, and the teacher's features are all that is learned",
    ),
    Rule(
        (
            *(f"multi_label.{field.name}" for field in fields(MultiLabelSection)),
            "data.class_order",
            "data.label_column",
            "data.labels_column",
            "data.match_classes",
        ),
        lambda config: config.data.unlabelled,
        "data.unlabelled is true, and no label is read",
    ),
    Rule(
        ("data.train_split", "data.val_split"),
        lambda config: config.data.unlabelled and config.data.root is not None,
        "data.unlabelled is true, and a folder's images are taken at any depth",
    ),
    Rule(
        tuple(f"token_labels.{field.name}" for field in fields(TokenLabelsSection)),
        lambda config: config.token_labels.folder is None,
        "token_labels.folder is null",
    ),
    Rule(
        ("distill.temperature",),
        lambda config: config.distill.loss not in ("soft", "dkd"),
        "distill.loss is {config.distill.loss}",
    ),
    Rule(
        ("distill.alpha", "distill.beta"),
        lambda config: config.distill.loss != "dkd",
        "distill.loss is not dkd",
    ),
    Rule(
        ("distill.mixed",), lambda config: not _varies_views(config), "nothing is mixed or erased"
    ),
    Rule(
        ("optim.momentum",),
        lambda config: not _has_moment(config, "momentum"),
        "it is for optim.name=sgd, and that is {config.optim.name}",
    ),
    Rule(
        ("optim.betas",),
        lambda config: not _has_moment(config, "betas"),
        "optim.name is {config.optim.name}",
    ),
    Rule(
        ("optim.eps",),
        lambda config: not _has_moment(config, "eps"),
        "optim.name is {config.optim.name}",
    ),
    Rule(
        ("lora.alpha", "lora.dropout", "lora.targets"),
        lambda config: config.lora.rank is None,
        "lora.rank is null",
    ),
    Rule(("ema.warmup",), lambda config: config.ema.decay is None, "ema.decay is null"),
    Rule(
        ("train.min_delta",), lambda config: config.train.patience is None, "train.patience is null"
    ),
    Rule(("freeze.epochs",), lambda config: config.freeze.until is None, "freeze.until is null"),
    Rule(
        ("schedule.warmup_lr", "schedule.warmup_prefix"),
        lambda config: config.schedule.warmup_epochs <= 0,
        "schedule.warmup_epochs is 0",
    ),
    Rule(
        ("schedule.cosine_epochs",),
        lambda config: config.schedule.name != "cosine",
        "schedule.name is {config.schedule.name}",
    ),
    Rule(
        ("schedule.decay_epochs", "schedule.decay_rate"),
        lambda config: config.schedule.name not in ("step", "exponential"),
        "schedule.name is {config.schedule.name}",
    ),
    Rule(("schedule.min_lr",), _has_no_floor, "schedule.name is constant"),
    Rule(
        ("data.shuffle_buffer", "data.cache_gb"),
        lambda config: not config.data.streaming,
        "data.streaming is false",
    ),
    Rule(
        ("data.val_fraction",),
        lambda config: config.data.folds is not None,
        "data.folds divides the images instead",
    ),
)
"""Rules in their order: where two hold for one setting, the first one is named."""
