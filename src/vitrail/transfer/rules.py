"""Which settings fit a fine-tuning: documented rules from images, classes, weights and device, each with its reason.

The numbers were measured on small models and CIFAR-10's classes (benchmarks/finetune.py); see
docs/finetuning.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.config.training_sections import is_of_training
from vitrail.errors import ConfigError
from vitrail.transfer.survey import UNBALANCED, Survey

Size = Literal["small", "base"]
MODELS: dict[Size, str] = {"small": "twins_svt_small", "base": "twins_svt_base"}
"""Models where none is named: of their size those of the highest published accuracy, for images of
any size."""
MOST_BATCH_ON_CPU = 128
MOST_BATCH = 256
LEAST_BATCH = 16
UPDATES_AN_EPOCH = 32
"""Updates that an epoch should have at least, where the batch is not the smallest already."""
FEW = 250
"""Images of the data set that the rule for epochs begins with."""
EPOCHS_OF_FEW = 60
SHORT = 5
"""Epochs below which many images are learnt in updates of half as many, or there would be few."""
SHORT_RATE = 1.4
"""Share of the rate for such updates: the root of what they would have in proportion."""
RATE = 1.2e-3
"""Peak learning rate of AdamW, for updates of `RATE_BATCH` images and networks of `RATE_WIDTH`
features."""
RATE_BATCH = 64
MOST_RATE_BATCH = 128
"""Images of an update from which on the rate grows no more."""
RATE_WIDTH = 128
RATE_ERROR = 40.0
"""Percent of the validation images that the head may get wrong at the start for the whole rate."""
LEAST_RATE = 0.15
"""Share of the rate that is left for weights that make no mistake at the start."""
KNOWN_RATE = 0.1
"""Share of the rate for weights that know these very classes: more makes them worse than they are."""
ENOUGH_TO_AVERAGE = 200
"""Updates from which on the average of the last ones is evaluated."""
EVALUATIONS = 20
"""Evaluations of a run, at most."""
POLICY = "rand-m7-mstd0.5-inc1"
"""RandAugment, a little weaker than the papers', which train from nothing."""
LONG = 15
"""Epochs from which on blocks that are left out at random help."""
OFTEN = 25
"""Epochs from which on strongly varied images help more than they delay: seen less often, they are
not learnt by heart."""
MANY_A_CLASS = 1_000
"""Images of a class from which on mixing images may help, where they are seen often."""


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen, and why."""

    key: str
    """The setting as section.key."""
    value: Any
    reason: str
    """The reason, in words that stand alone."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the rules know beside the images."""

    num_features: int
    """Features that the network gives an image."""
    reached: float | None
    """Percent (top-1, or mAP) that the weights reach which training begins with; None for a
    training from scratch."""
    knows_classes: bool = False
    """Whether the weights were trained on these very classes, and their own head is kept."""
    on_cpu: bool
    most_at_once: int = MOST_BATCH
    """Images whose activations fit into the device's memory."""
    has_bfloat16: bool = False
    """Whether the device computes matrix products in bfloat16 faster than in float32."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the user gave, by their dotted keys."""
    epochs: Choice | None = None
    """Epochs that a budget allows, in place of the rule's."""


class _Choices:
    """Settings as they are chosen, one after the other; those that were given are left as they are."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self.made: list[Choice] = []

    def choose(self, key: str, value: Any, reason: str) -> None:
        """Choose a setting, unless it is given."""
        if key not in self._given:
            self.made.append(Choice(key, value, reason))

    def value(self, key: str) -> Any:
        """Return what a setting is, given or chosen before."""
        if key in self._given:
            return self._given[key]
        return next(one.value for one in self.made if one.key == key)


def check_optimizer(given: Mapping[str, Any]) -> None:
    """Refuse an optimizer whose learning rate no rule knows.

    Raises:
        ConfigError: Another optimizer than AdamW is given, and no rate.
    """
    if given.get("optim.name", "adamw") != "adamw" and "optim.lr" not in given:
        raise ConfigError(
            f"optim.name is {given['optim.name']}, and the learning rate is chosen for adamw "
            "alone; give optim.lr too"
        )


def choose_settings(images: Survey, known: Circumstances) -> list[Choice]:
    """Return the settings that fit and were not given, in the order in which they are shown."""
    choices = _Choices(known.given)
    _choose_length(choices, images, known)
    _choose_optimizer(choices, images, known)
    _choose_augmentation(choices, images, known)
    _choose_average(choices, images, known)
    _choose_evaluation(choices, images, known)
    if known.has_bfloat16:
        choices.choose(
            "train.precision",
            "bfloat16",
            "this device computes it several times as fast as float32",
        )
    return choices.made


def _choose_length(choices: _Choices, images: Survey, known: Circumstances) -> None:
    """Choose the batch and the epochs: the fewer images, the more often each is seen."""
    n = images.train_images
    usual = choose_epochs(n, has_weights=known.reached is not None)
    batch = choose_batch(n, count_epochs(known, usual), on_cpu=known.on_cpu)
    parts = int(known.given.get("train.accumulate", 1))
    batch = max(parts, batch // parts * parts)
    taken = int(known.given.get("train.epoch_images") or n)
    updates = count_updates(images, batch, known.given)
    choices.choose("train.batch_size", batch, f"updates an epoch of {taken:,} images: {updates:,}")
    batch = int(choices.value("train.batch_size"))
    if batch > known.most_at_once:
        parts = choose_parts(batch, known.most_at_once)
        reason = f"activations of {batch // parts:,} images fit into the memory of this device"
        choices.choose("train.accumulate", parts, reason)
    times = usual * count_updates(images, batch, known.given) * batch / n
    reason = f"{n:,} images, each seen about {times:,.0f} times"
    if known.reached is None:
        reason += ", as nothing was learnt before"
    allowed = known.epochs or Choice("train.epochs", usual, reason)
    choices.choose(allowed.key, allowed.value, allowed.reason)


def count_updates(images: Survey, batch: int, given: Mapping[str, Any]) -> int:
    """Return the updates of an epoch: of whole batches of all images, or of as many as are given."""
    return max(1, int(given.get("train.epoch_images") or images.train_images) // batch)


def count_epochs(known: Circumstances, usual: int) -> int:
    """Return the epochs that a run will have: those that are given or that the time allows, else the usual ones."""
    if "train.epochs" in known.given:
        return int(known.given["train.epochs"])
    return usual if known.epochs is None else int(known.epochs.value)


def choose_batch(images: int, epochs: int, *, on_cpu: bool) -> int:
    """Return the images of an update: a power of two that leaves an epoch enough updates, or all images of a few."""
    most = MOST_BATCH_ON_CPU if on_cpu else MOST_BATCH
    if epochs < SHORT:
        most //= 2
    wanted = max(1, images // UPDATES_AN_EPOCH)
    power = 2 ** (wanted.bit_length() - 1)
    return min(max(power, LEAST_BATCH), most, max(images, 1))


def choose_parts(batch: int, most: int) -> int:
    """Return the smallest number of equal parts of a batch that have at most so many images, or one."""
    for parts in range(2, batch):
        if batch % parts == 0 and batch // parts <= most:
            return parts
    return batch


def choose_epochs(images: int, *, has_weights: bool) -> int:
    """Return how often each image is seen: 60 times of 250, and less by the cube root of what there are more."""
    epochs = EPOCHS_OF_FEW * (FEW / max(images, 1)) ** (1 / 3)
    if not has_weights:
        epochs *= 5
    return min(max(round(epochs), 5), 300)


def _choose_optimizer(choices: _Choices, images: Survey, known: Circumstances) -> None:
    """Choose the optimizer, its rate and its schedule."""
    choices.choose("optim.name", "adamw", "the optimizer that these models were trained with")
    batch = int(choices.value("train.batch_size"))
    reason = f"for updates of {batch:,} images and a network of {known.num_features:,} features"
    if known.reached is not None:
        number = "a mAP of" if images.is_multi_label else "top-1"
        reason += f" that reaches {number} {known.reached:.0f} % already"
    rate = choose_rate(batch, known.num_features, known.reached)
    n, epochs = images.train_images, int(choices.value("train.epochs"))
    usual = choose_batch(n, SHORT, on_cpu=known.on_cpu)
    if choose_batch(n, epochs, on_cpu=known.on_cpu) < usual:
        rate *= SHORT_RATE
        reason += " in few epochs"
    if known.knows_classes:
        rate *= KNOWN_RATE
        reason += " and knows these classes"
    choices.choose("optim.lr", float(f"{rate:.2g}"), reason)
    choices.choose("optim.weight_decay", 0.05, "as in the papers of all three families")
    choices.choose("optim.clip_norm", 1.0, "a single odd batch cannot undo what was learnt")
    choices.choose(
        "schedule.warmup_epochs",
        min(max(1.0, epochs / 20), epochs / 5),
        "moments settle before the rate is at its peak",
    )
    peak = float(choices.value("optim.lr"))
    lowest = float(f"{peak / 100:.2g}")
    choices.choose("schedule.warmup_lr", lowest, "a hundredth of the peak")
    choices.choose("schedule.min_lr", lowest, "a hundredth of the peak")


def choose_rate(batch: int, num_features: int, reached: float | None) -> float:
    """Return the peak learning rate of AdamW: in proportion to the batch, less for wider networks and better weights.

    Small batches go with few images, which are soon learnt by heart. A change of all weights of a
    wide layer changes its output more (Yang et al. 2022, Tensor Programs V), so that what was
    measured on narrow networks may hold for wide ones too. Weights that leave few mistakes have
    little to learn and much to lose.

    Args:
        batch: Images of an update.
        num_features: Features that the network gives an image.
        reached: Percent that the weights reach without training; None for weights drawn at random.
    """
    rate = RATE * min(batch, MOST_RATE_BATCH) / RATE_BATCH * RATE_WIDTH / num_features
    if reached is not None:
        rate *= min(max((100 - reached) / RATE_ERROR, LEAST_RATE), 1.0)
    return rate


def _choose_augmentation(choices: _Choices, images: Survey, known: Circumstances) -> None:
    """Choose how training images are varied: the more often each is seen, the more."""
    a_class = images.images_a_class
    choices.choose(
        "augment.scale",
        (0.5, 1.0),
        "crops of half an image or more, so that what it shows stays in it",
    )
    epochs = int(choices.value("train.epochs"))
    is_seen_often = images.is_picture and epochs >= OFTEN
    if is_seen_often and not known.given.get("augment.color_jitter"):
        reason = f"colours and shapes vary at random, as images are seen in {epochs:,} epochs"
        choices.choose("augment.auto_augment", POLICY, reason)
    choices.choose(
        "augment.hflip",
        0.5,
        "mirrored images are seen as often; 0 where left and right have a meaning",
    )
    if not images.is_multi_label:
        choices.choose(
            "augment.label_smoothing",
            0.1,
            "keeps a network from being too sure of what it has seen often",
        )
    if is_seen_often and a_class >= MANY_A_CLASS:
        reason = f"{a_class:,} images of a class, in {epochs:,} epochs, are enough to learn from mixed ones"
        choices.choose("augment.mixup", 0.2, reason)
        choices.choose("augment.cutmix", 1.0, reason)
    if epochs >= LONG:
        reason = f"images are seen in {epochs:,} epochs, and blocks left out at random vary them"
        choices.choose("model.drop_path_rate", 0.1, reason)


def _choose_average(choices: _Choices, images: Survey, known: Circumstances) -> None:
    """Choose an average of the weights that is as long as the run allows."""
    batch = int(choices.value("train.batch_size"))
    updates = int(choices.value("train.epochs")) * count_updates(images, batch, known.given)
    if updates < ENOUGH_TO_AVERAGE:
        return
    horizon = updates / 20
    decay = round(1 - 1 / horizon, 5)
    choices.choose("ema.decay", decay, f"averages the last {horizon:,.0f} of {updates:,} updates")


def space_evaluations(epochs: int) -> int:
    """Return after how many epochs each evaluation comes, so that there are `EVALUATIONS` at most."""
    return math.ceil(epochs / EVALUATIONS)


def _choose_evaluation(choices: _Choices, images: Survey, known: Circumstances) -> None:
    """Choose what is measured when, and which epoch is the best."""
    monitor = known.given.get("train.monitor")
    if known.reached is not None and not (monitor and is_of_training(monitor)):
        reason = "what training begins with is the best until an epoch is better by train.monitor"
        choices.choose("train.eval_first", True, reason)
    epochs = int(choices.value("train.epochs"))
    every = space_evaluations(epochs)
    choices.choose("train.eval_every", every, f"at most {EVALUATIONS} evaluations in a training")
    if images.imbalance >= UNBALANCED and not images.is_multi_label:
        reason = f"the largest class has {images.imbalance:.0f} times the images of the smallest"
        if not any(key.startswith("balance.") for key in known.given):
            choices.choose(
                "balance.logit_adjust",
                1.0,
                f"{reason}, so that the network does not learn their shares",
            )
        choices.choose(
            "train.monitor", "val_balanced_accuracy", f"{reason}, so each class counts alike"
        )
