"""Settings of training: augmentation, balance, losses, optimizer, schedule, EMA, loop and output. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.choices import Device, OptimizerName
from vitrail.config.ranges import find_not_positive, find_out_of_range
from vitrail.errors import printable


@dataclass(frozen=True, kw_only=True)
class AugmentSection:
    """Augmentation: how training images are varied."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a random crop."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    interpolation: Literal["random", "bicubic", "bilinear"] = "random"
    """Filter of the random crop; random draws bilinear or bicubic."""
    hflip: float = 0.5
    """Probability of mirroring left and right."""
    auto_augment: str | None = None
    """Augmentation policy in timm's notation, such as rand-m9-mstd0.5-inc1; null is none."""
    device: bool = False
    """Compute the policy for whole batches on the device that trains, instead of image by image in
    the loader's processes; rand-... policies alone. Pixels are a level apart in a few places, and
    strengths are drawn anew (see docs/data.md)."""
    color_jitter: float | None = None
    """Strength of brightness, contrast and saturation jitter; beside auto_augment, only 3a allows
    it."""
    erase_prob: float = 0.0
    """Random erasing: probability of filling random rectangles of an image."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """Random erasing: what fills a rectangle: noise for every pixel (pixel), one random colour
    (rand), or the mean of the images (const)."""
    erase_count: int = 1
    """Random erasing: largest number of rectangles of an image, which is drawn from 1 on; they
    share the area of one."""
    erase: Literal["before_mix", "after_mix"] = "before_mix"
    """Random erasing: before images are mixed, which carries the rectangles into other images, or
    after it, where timm's loader and with it the official TNT and T2T-ViT erase."""
    mixup: float = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    cutmix_minmax: tuple[float, float] | None = None
    """Smallest and largest share of each side that CutMix's rectangle takes, which turns CutMix on;
    null draws the area by its alpha."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """How often the mixing is drawn: once for the batch, for each pair of images that are mixed
    with each other, or for each image (elem)."""
    mix_prob: float = 1.0
    """Probability that a batch, a pair or an image is mixed at all."""
    mix_switch_prob: float = 0.5
    """Probability of CutMix rather than Mixup, where both are on."""
    mix_off_epoch: int | None = None
    """Number of epochs after which nothing is mixed any more; null mixes to the end. Labels stay
    smoothed."""
    label_smoothing: float = 0.0
    """Label smoothing: share of each target that is spread evenly over all classes; single-label
    data only, 0 is off."""
    repeats: int = 1
    """Repeated augmentation: number of augmented copies of each image in a row; the epoch stays as
    long."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self,
            hflip=(0, 1),
            erase_prob=(0, 1),
            mixup=(0, None),
            cutmix=(0, None),
            mix_prob=(0, 1),
            mix_switch_prob=(0, 1),
            color_jitter=(0, None),
            repeats=(1, None),
            erase_count=(1, None),
            mix_off_epoch=(1, None),
        )
        problems += self._cutmix_problems()
        if not 0 <= self.label_smoothing < 1:
            problems.append(
                f"label_smoothing is {self.label_smoothing}; it must be from 0 to below 1"
            )
        # timm applies colour jitter beside the policy 3a and drops it beside all others
        if self.color_jitter and self.auto_augment is not None and "3a" not in self.auto_augment:
            problems.append(
                f"color_jitter is not applied beside auto_augment={self.auto_augment}; set one of "
                "them to null"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            problems.append(f"scale is {self.scale}; it must rise within 0 to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            problems.append(f"ratio is {self.ratio}; it must be positive and rise")
        return problems

    def _cutmix_problems(self) -> list[str]:
        if self.cutmix_minmax is None:
            return []
        problems = []
        low, high = self.cutmix_minmax
        if not 0 <= low < high <= 1:
            problems.append(f"cutmix_minmax is {self.cutmix_minmax}; it must rise within 0 to 1")
        # timm's programs take an alpha of 1 beside the bounds, so 1 is what translated files hold
        if self.cutmix not in (0, 1):
            problems.append(
                f"cutmix is {self.cutmix}, but cutmix_minmax draws the rectangle instead; set one "
                "of them"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class BalanceSection:
    """Class imbalance: what makes up for classes with few training images, in single-label data."""

    class_weights: Literal["inverse", "sqrt", "effective"] | None = None
    """Weight of an image in the loss: 1 / images of its class (inverse), the square root of that
    (sqrt), or 1 / the effective number of images (effective); 1 on average. null is off."""
    effective_beta: float = 0.9999
    """Beta of class_weights=effective: a class has (1 - beta**images) / (1 - beta) effective
    images; 0 weighs all classes alike."""
    sampler: Literal["natural", "balanced", "sqrt"] = "natural"
    """How often a class is drawn: natural sees each image once an epoch, balanced draws all classes
    equally often, sqrt by the square root of their images; the epoch stays as long."""
    logit_adjust: float | None = None
    """Tau of logit adjustment: in training, tau * log(share of the class) is added to its logit; 1
    is the theory's, null is off."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_not_positive(self, "logit_adjust")
        if not 0 <= self.effective_beta < 1:
            problems.append(
                f"effective_beta is {self.effective_beta}; it must be from 0 to below 1"
            )
        if self.sampler == "balanced" and self.logit_adjust is not None:
            problems.append(
                "logit_adjust does nothing beside sampler=balanced, which shows all classes "
                "equally often; drop one"
            )
        return problems

    def active(self) -> list[str]:
        """Return the settings that make up for something, as they are written."""
        settings = []
        if self.class_weights is not None:
            settings.append(f"balance.class_weights={self.class_weights}")
        if self.sampler != "natural":
            settings.append(f"balance.sampler={self.sampler}")
        if self.logit_adjust is not None:
            settings.append(f"balance.logit_adjust={self.logit_adjust}")
        return settings


@dataclass(frozen=True, kw_only=True)
class MultiLabelSection:
    """The loss of multi-label data, where an image may have several classes, or none (see docs/multi_label.md)."""

    loss: Literal["bce", "asymmetric"] = "bce"
    """Binary cross-entropy (bce), or the asymmetric loss of Ridnik et al. 2021, which gives easy
    negatives little weight; the mean over the classes is the loss of an image."""
    gamma_negative: float = 4.0
    """Gamma of the asymmetric loss for negatives: their loss is weighted by a power of their
    probability, so that hard negatives count most."""
    gamma_positive: float = 0.0
    """Gamma of the asymmetric loss for positives, so that hard positives count most; 0 is off."""
    clip: float = 0.05
    """Margin of the asymmetric loss: probability up to which a negative counts nothing."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = []
        for name in ("gamma_negative", "gamma_positive"):
            gamma = getattr(self, name)
            # the derivative of p**gamma is infinite at p = 0 for a gamma between 0 and 1
            if gamma != 0 and gamma < 1:
                problems.append(
                    f"{name} is {gamma}; it must be 0, or at least 1 for its gradient to be finite"
                )
        if not 0 <= self.clip < 1:
            problems.append(f"clip is {self.clip}; it must be from 0 to below 1")
        return problems


OPTIMIZERS: Mapping[OptimizerName, Mapping[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "sgd": {"momentum": 0.9},
    "lamb": {"betas": (0.9, 0.999), "eps": 1e-6},
    "lion": {"betas": (0.9, 0.99)},
    "adan": {"betas": (0.98, 0.92, 0.99), "eps": 1e-8},
    "muon": {"betas": (0.9, 0.95), "eps": 1e-7, "momentum": 0.95},
}
"""Settings of moments that each optimizer reads, with what they are where they are null, as its
paper has them."""
UNREAD_MOMENTS = {"betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.9}
"""What these settings are where they are null and the optimizer does not read them."""


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """The optimizer: its learning rate, weight decay and moments."""

    name: OptimizerName = "adamw"
    """Optimizer: adamw; sgd with momentum; lamb, for large batches; lion, at a third to a tenth of
    AdamW's rate; adan; or muon, for the matrices of the blocks, with AdamW for all else, at AdamW's
    rate."""
    lr: float = 1e-3
    """Peak learning rate, for the global batch of `train.batch_size` unless `lr_base_batch` is
    set."""
    lr_base_batch: int | None = None
    """Batch size that `lr` is meant for: `lr` is multiplied by train.batch_size / lr_base_batch;
    null leaves it."""
    weight_decay: float = 0.05
    """Weight decay of each update, times the learning rate; decoupled from the gradient in
    AdamW."""
    decay_on: Literal["paper", "matrices", "all"] = "paper"
    """Parameters that decay: all but biases, norms and what the model's paper exempts (paper), all
    but biases and norms (matrices), or all."""
    betas: tuple[float, ...] | None = None
    """Decay rates of the first and second moments, and in adan of the gradient's change between
    them; null takes 0.9 and 0.999 for adamw and lamb, 0.9 and 0.99 for lion, 0.98, 0.92 and 0.99
    for adan, 0.9 and 0.95 for muon's AdamW."""
    eps: float | None = None
    """Number that is added to the root of the second moment, so that nothing is divided by zero;
    null takes 1e-8 for adamw and adan, 1e-6 for lamb, 1e-7 for muon."""
    momentum: float | None = None
    """Momentum of sgd and muon; null takes 0.9 for sgd and 0.95 for muon."""
    nesterov: bool = False
    """Nesterov momentum in sgd and muon."""
    clip_norm: float | None = None
    """Gradient clipping: largest norm of the whole gradient; null does not clip."""
    layer_decay: float | None = None
    """Layer-wise learning rate decay: factor from the rate of each layer to that of the layer
    before it; null is none."""
    backbone_scale: float = 1.0
    """Factor on the learning rate of all parameters but the head's, so that a new head learns
    faster than pretrained weights."""
    sam_rho: float | None = None
    """Sharpness-aware minimization (SAM): distance from the weights, along the gradient, at which
    the gradient of the update is computed, such as 0.05; it takes a second pass, twice the time;
    null is off."""

    def __post_init__(self) -> None:
        # what is null is written into the run's settings as the number that it stands for
        for name, value in {**UNREAD_MOMENTS, **OPTIMIZERS.get(self.name, {})}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self, weight_decay=(0, None), momentum=(0, 1), lr_base_batch=(1, None)
        )
        problems += find_not_positive(
            self, "lr", "eps", "clip_norm", "layer_decay", "backbone_scale", "sam_rho"
        )
        if self.layer_decay is not None and self.layer_decay > 1:
            problems.append(f"layer_decay is {self.layer_decay}; it must be at most 1")
        if self.betas is not None:
            wanted = len(OPTIMIZERS[self.name].get("betas", self.betas))
            if not all(0 <= beta < 1 for beta in self.betas):
                problems.append(f"betas are {self.betas}; each must be from 0 to below 1")
            elif len(self.betas) != wanted:
                problems.append(
                    f"betas are {self.betas}; {self.name} takes {wanted}; null takes its own"
                )
        if self.nesterov and ("momentum" not in OPTIMIZERS[self.name] or self.momentum == 0):
            problems.append("nesterov needs name=sgd or name=muon, and a momentum above 0")
        return problems


@dataclass(frozen=True, kw_only=True)
class FreezeSection:
    """Freezing, for fine-tuning: the parts of the network that keep the weights they begin with."""

    until: str | None = None
    """First part that is trained, all before it being frozen: the number of a layer, a block or a
    stage such as blocks.6, norm, or head for the head alone; null freezes nothing. Frozen parts
    have no dropout or drop path, and their activations are not kept."""
    epochs: int | None = None
    """Number of epochs after which the frozen parts are trained too, such as 1 with until=head for
    a warm-up of the head; null keeps them frozen to the end."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return find_out_of_range(self, epochs=(1, None))


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """LoRA, for fine-tuning: small low-rank adapters are trained beside the layers, which stay as they are."""

    rank: int | None = None
    """Rank of the adapters, such as 8; only they and the head are trained, and the weights that are
    kept have them merged in; null is off."""
    alpha: float | None = None
    """Strength of the adapters: what they add is multiplied by alpha / rank; null takes twice the
    rank."""
    dropout: float = 0.0
    """Dropout of what enters the adapters; 0 is off."""
    targets: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    """Linear layers that have adapters: those of attention, of MLPs, or both."""

    @property
    def scale(self) -> float:
        """Factor on what the adapters add."""
        assert self.rank is not None
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(self, rank=(1, None)) + find_not_positive(self, "alpha")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}; it must be from 0 to below 1")
        if not self.targets:
            problems.append("targets is empty; it must have attention, mlp or both")
        return problems


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """The schedule: the learning rate over time."""

    name: Literal["cosine", "linear", "step", "exponential", "constant"] = "cosine"
    """Curve of the learning rate: a cosine or a straight line down to `min_lr`, a fall by
    `decay_rate` at every period (step) or smoothly (exponential), or none (constant)."""
    step: Literal["update", "epoch"] = "update"
    """When the learning rate is set anew: before every update, or once an epoch, as in the official
    training runs and by timm's default."""
    warmup_epochs: float = 5.0
    """Length of the warm-up in epochs, a linear rise from `warmup_lr`; it takes the place of the
    beginning of the main curve, as in timm, unless `warmup_prefix` is set."""
    warmup_prefix: bool = False
    """Begin the main curve where the warm-up ends, as MindSpore's projects do, so that it starts at
    the peak."""
    warmup_lr: float = 1e-6
    """Learning rate at which the warm-up begins."""
    min_lr: float = 1e-5
    """Learning rate at which a cosine or a line ends, and below which step and exponential do not
    fall."""
    clip_to_min_lr: bool = False
    """Let a cosine fall to zero, with no rate below `min_lr`, the warm-up's included; false ends it
    at `min_lr`."""
    cosine_epochs: float | None = None
    """Length of a cosine in epochs, from its own beginning, after which it stays at `min_lr`; null
    ends it with train.epochs."""
    cooldown_epochs: int = 0
    """Number of epochs after `train.epochs`, in which a cosine and a line stay at `min_lr` and the
    other curves go on."""
    decay_epochs: float = 30.0
    """Period of step and exponential in epochs."""
    decay_rate: float = 0.1
    """Factor on the learning rate of step and exponential for each period."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self,
            warmup_epochs=(0, None),
            warmup_lr=(0, None),
            min_lr=(0, None),
            cooldown_epochs=(0, None),
        )
        problems += find_not_positive(self, "decay_epochs", "cosine_epochs")
        if not 0 < self.decay_rate <= 1:
            problems.append(f"decay_rate is {self.decay_rate}; it must be above 0 and at most 1")
        return problems


@dataclass(frozen=True, kw_only=True)
class EmaSection:
    """An exponential moving average (EMA) of the weights, evaluated and saved in place of them."""

    decay: float | None = None
    """Share of the average that is kept at each update, such as 0.99996; null is off."""
    warmup: bool | None = None
    """Let the decay follow the number n of updates made, as (1 + n) / (10 + n), until it reaches
    `decay`, so that the average soon forgets the initial weights; null does so where a run is too
    short for `decay`."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        if self.decay is None or 0 < self.decay < 1:
            return []
        return [f"decay is {self.decay}; it must be above 0 and below 1"]


def is_of_training(metric: str) -> bool:
    """Say whether a number of an epoch is measured on the training images, and only while they are trained on."""
    return metric.startswith("train_")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """The training loop: its length, batches, precision, and what ends it."""

    epochs: int = 300
    """Number of epochs, the schedule's cooldown not counted."""
    epoch_images: int | None = None
    """Number of training images in each epoch, a new random draw for every epoch; null takes all of
    them."""
    batch_size: int = 1024
    """Global batch: number of images of one update, over all processes (ranks) and micro-batches
    together."""
    accumulate: int = 1
    """Gradient accumulation: number of micro-batches that each update is computed in."""
    seed: int = 0
    """Seed that every random draw follows from: fresh weights, order, augmentation, mixing and
    dropout."""
    precision: Literal["float32", "bfloat16", "float16", "mixed", "O0", "O1", "O2", "O3"] = (
        "float32"
    )
    """Precision of matrix products; weights stay float32. float16 scales the loss dynamically and
    needs CUDA; mixed is bfloat16 where the device has it, float16 elsewhere. MindSpore's O0 is
    float32, O1 to O3 are mixed."""
    device: Device = "auto"
    """Device to train on; auto takes an accelerator (GPU) where there is one."""
    compile: bool = False
    """Compile the model with torch.compile; the first steps take a minute."""
    shard: bool = False
    """Shard weights, gradients and moments over the processes (FSDP2), for models that outgrow a
    card."""
    channels_last: bool = False
    """Keep images and convolutions in the memory format channels-last, which some GPUs compute
    faster."""
    grad_checkpointing: bool = False
    """Gradient checkpointing: recompute blocks in the backward pass, which takes less memory and a
    third more time."""
    eval_every: int = 1
    """Number of epochs from one evaluation to the next; the last epoch is always evaluated."""
    eval_first: bool = False
    """Evaluate the initial weights before the first update, as epoch 0; they are the best weights
    until an epoch is better, so that a run from good weights never ends with worse ones."""
    log_every: int = 20
    """Number of updates from one row of steps.jsonl to the next: loss since the row before,
    learning rate, norm of the gradient; reading them waits for the device."""
    loss: str | None = None
    """Name of a loss given in Python, `vitrail.train(..., loss=FUNCTION)`, which sets it; null is
    the loss of the labels."""
    monitor: (
        Literal[
            "val_top1",
            "val_top5",
            "val_loss",
            "val_balanced_accuracy",
            "val_macro_f1",
            "val_head_top1",
            "val_medium_top1",
            "val_tail_top1",
            "val_map",
            "val_micro_f1",
            "train_top1",
            "train_loss",
        ]
        | None
    ) = None
    """Metric that makes an evaluated epoch the best: the lowest loss, or the highest of the others.
    Balanced accuracy is the mean over the classes; head, medium and tail are those with more than
    100, 20 to 100 and fewer than 20 training images. null takes val_top1, and for multi-label data
    val_map."""
    patience: int | None = None
    """Early stopping: number of epochs without a better one after which the run ends; null never
    ends it early."""
    min_delta: float = 0.0
    """Early stopping: least gain of `monitor`, in its own unit, for which an epoch counts as
    better."""
    max_hours: float | None = None
    """Number of hours after which the run is saved and stopped with status 75, to be resumed; null
    is no limit."""
    skip_limit: int = 20
    """Number of updates skipped in a row, because their loss or gradient is NaN or Inf, after which
    the run goes back to its last save."""
    rollbacks: int = 3
    """Number of times that the run goes back to its last save, to go on at half the learning rate,
    before it gives up."""
    detect_anomaly: bool = False
    """Stop at the first operation whose gradient is NaN, and name it; several times slower."""
    dist_timeout_minutes: float = 10.0
    """Minutes that processes wait for one of them before they name it and stop."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self,
            epochs=(1, None),
            batch_size=(1, None),
            accumulate=(1, None),
            seed=(0, 2**63 - 1),
            epoch_images=(1, None),
            eval_every=(1, None),
            log_every=(1, None),
            patience=(1, None),
            min_delta=(0, None),
            skip_limit=(1, None),
            rollbacks=(0, None),
        )
        problems += find_not_positive(self, "max_hours", "dist_timeout_minutes")
        # divided only once both are known to be at least 1
        if not problems and self.batch_size % self.accumulate:
            problems.append(
                f"batch_size {self.batch_size} cannot be cut into accumulate={self.accumulate} "
                "equal parts"
            )
        if self.eval_first and self.monitor and is_of_training(self.monitor):
            problems.append(
                f"eval_first=true is for a number that weights have before training, and monitor="
                f"{self.monitor} is none; leave eval_first out, or set train.monitor=val_loss"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """Where a run is written, and what is kept of it."""

    root: str = "runs"
    """Folder in which the folders of runs are made."""
    name: str | None = None
    """Name of the run's folder below `root`; null takes the recipe's name and a number that is
    free."""
    keep_best: int = 1
    """Number of best weights kept: best.safetensors, best-2.safetensors, ..."""
    average_best: bool = False
    """At the end, average the best weights that are kept, evaluate that and write it to
    average.safetensors; best.safetensors stays as it is."""
    save_every_minutes: float = 5.0
    """Minutes from one save of all that a resume needs to the next; so much is lost when a machine
    dies."""
    save_every_updates: int | None = None
    """Number of updates from one save to the next, beside the minutes; null is none."""
    keep_last: int = 2
    """Number of saves kept to resume from, for the case that the last one is damaged."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Trackers that are given the metrics of each epoch, beside metrics.jsonl; tensorboard those of
    steps.jsonl too."""
    guard_csv: bool = True
    """In the report's CSV files, write names that a spreadsheet would compute, as they begin with =
    + - or @, with an apostrophe in front."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self, keep_best=(1, None), save_every_updates=(1, None), keep_last=(1, None)
        )
        # the name is written into files that hold text alone
        if self.name is not None and printable(self.name) != self.name:
            problems.append(f"name is {self.name!a}; it must be text, without bytes that are none")
        if self.average_best and self.keep_best < 2:
            problems.append(
                "average_best needs several best weights; set output.keep_best to 2 or more"
            )
        return problems + find_not_positive(self, "save_every_minutes")
