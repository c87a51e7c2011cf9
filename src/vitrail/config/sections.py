"""Every setting of every command: frozen dataclasses, and how recipes and the command line fill them. No torch."""

from __future__ import annotations

import ast
import inspect
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vitrail.errors import ConfigError, among, brief, closest
from vitrail.files import read_regular

RECIPES = Path(__file__).parents[1] / "recipes"
MOST_SETTINGS = 2**20
"""Bytes of a file of settings; the largest recipe has a few thousand."""
MOST_VALUES = 20_000
"""Values of such a file."""
MOST_NESTED = 16
"""Values within values of such a file."""
MAX_WHOLE = 2**63 - 1
"""Largest whole number of a setting."""
MIN_STD = 1e-6
"""Of pixels from 0 to 1; below it, what is the same in 16 bits would be apart by more than a network can take."""
MAX_WORKERS = 1024
"""Loader processes; no machine has more cores for one training process."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Which network."""

    name: str = "tnt_s_patch16_224"
    """One of `vitrail models`."""
    image_size: int | tuple[int, int] | None = None
    """Pixels, one number or height and width; null takes the model's own."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""
    drop_rate: float = 0.0
    """Dropout of the tokens that enter the blocks, of what an attention gives, and after both layers of an MLP."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any other field of the model's configuration, such as `depth` or `gelu`."""
    weights: str | None = None
    """Weight file to begin with, of any of the projects that `vitrail convert --help` lists; null begins afresh."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        rates = {"drop_path_rate": self.drop_path_rate, "drop_rate": self.drop_rate}
        return [f"{name} is {rate}; it must be from 0 to below 1" for name, rate in rates.items() if not 0 <= rate < 1]


@dataclass(frozen=True, kw_only=True)
class WeightsSection:
    """How a weight file is read, where it leaves a choice."""

    dialect: Literal["official", "timm", "mmpretrain", "mindcv", "zoo", "vitrail"] | None = None
    """Project whose names the file uses; null finds out."""
    model: str | None = None
    """Model that the file holds; null finds out by the shapes. In training it is `model.name`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of its configuration, such as `image_size`, or `depth` where the size was never published."""
    entry: str | None = None
    """Where in the file the weights are, where that leaves a choice: an entry such as `state_dict` or `ema.model`, or
    what stands before their names, such as `net`; null finds out by names and shapes."""
    average: bool = True
    """Take the moving average of the weights, where the file has one."""
    partial: bool = False
    """Take a file that lacks weights, which are then fresh, or has others, which are then skipped."""
    positions: Literal["resized", "fresh"] = "resized"
    """T2T-ViT's fixed positions at another image size: resized from the file's, or computed anew."""
    classes: str | None = None
    """File that names the classes of a weight file without names, in the order of its outputs: text with a name a line,
    or JSON; ImageNet's lists of synsets too. null takes the file's own names."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return []


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which images."""

    name: str | None = None
    """A named data set: digits, cifar10, cifar100, fashion-mnist, oxford-pets or flowers102; hf:OWNER/NAME, one of the
    Hugging Face Hub; hf:/FOLDER, Parquet files or what `datasets` has saved; null reads folders."""
    subset: str | None = None
    """Configuration of a Hugging Face data set that has several."""
    revision: str | None = None
    """Commit, tag or branch of a data set of the Hub; null takes the newest, and the run notes its commit here."""
    image_column: str | None = None
    """Column of the images, where a Hugging Face data set leaves a choice."""
    label_column: str | None = None
    """Column of the labels, likewise; and of a list, where it has one class: null takes `label`, where there is one."""
    streaming: bool = False
    """Read Parquet files where they are, also on the Hub, through a small cache instead of a copy of the whole set."""
    shuffle_buffer: int = 10_000
    """Images that are shuffled together in streaming, after the row groups of all files have been."""
    cache_gb: float = 10.0
    """Gigabytes of disk that streaming may use on each machine."""
    root: str | None = None
    """Folder with train/<class>/* and val/<class>/*, or with <class>/* alone, or the shards that `vitrail pack` made of
    it; for a named set, where its files lie; for a list, what its paths begin in."""
    list: str | None = None
    """File of images with their labels, .csv, .tsv, .jsonl or .ndjson, a row an image; its paths begin in `root`, or in
    its own folder. See docs/data.md."""
    path_column: str = "path"
    """Column of a list that has the paths."""
    labels_column: str | None = None
    """Column of a list, or of a Hugging Face data set, that has any number of classes, in CSV with | between them; null
    takes in a list `labels`, where there is one, or columns of 0 and 1, one for each class."""
    train_split: str = "train"
    """Name of the folder to train on, or in the column `split` of a list."""
    val_split: str | None = "val"
    """The same to evaluate on; null holds out `val_fraction` of the training images."""
    val_fraction: float = 0.2
    """Share of each class held out where there is no validation folder, chosen by a hash of the file names."""
    folds: int | None = None
    """Divide into so many equal parts instead, of which one is held out (cross-validation)."""
    fold: int = 0
    """The part held out, from 0 to folds - 1."""
    group_regex: str | None = None
    """What in a file's name must stay on one side of the division, such as 'patient-([0-9]+)'."""
    manifest: str | None = None
    """File that lists the images, written by `vitrail check-data`; without `root` it is taken as it is, with `root` it
    is brought up to date. null keeps the list in the user's cache."""
    check: bool = True
    """Look at every image once before the first training on it, which takes about as long as an epoch's reading."""
    download: bool = False
    """Let a named set be downloaded into `root`."""
    channels: int = 3
    """Of every image, and so of the model: 3 is RGB, 1 is gray, another number is read from TIFF and .npy."""
    bits: Literal[8, 16] = 8
    """Of a channel: 16 keeps what 8 would cut off."""
    workers: int | None = None
    """Loader processes for each training process; null chooses by the cores."""
    bad_files: Literal["skip", "error", "quarantine"] = "skip"
    """What an unreadable image does: skip counts and names it where it is read, error stops the run, quarantine leaves
    out those that the check has found, and is strict with any other."""
    class_order: Literal["text", "natural"] | None = None
    """In which order the classes of folders, lists and columns of text are numbered: text is torchvision's and
    MindSpore's (class1, class10, class2), natural is timm's (class1, class2, class10). null is text, but that of
    numbers for lists and columns of whole numbers; and it is no answer where the two differ and a weight file names no
    classes."""
    match_classes: Literal["exact", "by-name", "by-order"] = "exact"
    """How the data's classes are matched with the model's: in `vitrail evaluate` exact wants the same names in the same
    order, by-name takes a part of them in any order, and ImageNet's by id or English name; by-order takes as many of
    any names in their order, and in training keeps the head of `model.weights` so."""

    def problems(self) -> Sequence[str]:
        """Say what is wrong, each as one clause."""
        found = _in_range(
            self, workers=(0, MAX_WORKERS), folds=(2, 32767), channels=(1, 1000), shuffle_buffer=(1, 2**31)
        )
        found += _above_zero(self, "cache_gb")
        if self.folds is None and self.fold:
            found.append(f"fold is {self.fold}; it goes with folds, which is not set")
        elif not 0 <= self.fold < (self.folds or 1):
            found.append(f"fold is {self.fold}; it must be from 0 to below folds, which is {self.folds}")
        if not 0 < self.val_fraction < 1:
            found.append(f"val_fraction is {self.val_fraction}; it must be above 0 and below 1")
        if not (self.name or "").startswith("hf:"):
            for name in ("subset", "revision", "image_column", "streaming"):
                if getattr(self, name):
                    found.append(f"{name} is {getattr(self, name)}; it is for data sets whose name begins with hf:")
            for name in ("label_column", "labels_column"):
                if (value := getattr(self, name)) is not None and self.list is None:
                    found.append(f"{name} is {value}; it is for data.list and sets whose name begins with hf:")
        if self.list is None and self.path_column != "path":
            found.append(f"path_column is {self.path_column}; it is for data.list")
        if self.label_column is not None and self.labels_column is not None:
            found.append("label_column and labels_column are both set; an image has one class or several: drop one")
        if self.name is None and self.root is None and self.manifest is None and self.list is None:
            found.append("root is not set; give the folder with your images, or data.name=digits")
        return found


@dataclass(frozen=True, kw_only=True)
class PreprocessSection:
    """How an image is brought to the network for evaluation; null takes what the model was published with."""

    crop: float | None = None
    """The short side is resized to image_size / crop before the centre is cut."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    mean: tuple[float, ...] | None = None
    """Of each channel, for pixels from 0 to 1 (others' 123.675 is 0.485 here); null takes the average of the published
    ones for gray, and 0.5 where `data.channels` is neither 1 nor 3."""
    std: tuple[float, ...] | None = None
    exif: Literal["ignore", "apply"] | None = None
    """Whether EXIF orientation turns the image; published numbers were made without."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = (
            []
            if self.crop is None or 0 < self.crop <= 1
            else [f"crop is {self.crop}; it must be above 0 and at most 1"]
        )
        if self.std is not None and min(self.std, default=0) <= 0:
            found.append(f"std is {self.std}; it must be positive")
        elif self.std is not None and min(self.std) < MIN_STD:
            found.append(f"std is {self.std}; it must be at least {MIN_STD:g}")
        return found + too_large(self.mean, self.std)


def too_large(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[str]:
    """Say it, as one clause, where a mean or std is for pixels that go further than from 0 to 1."""
    found = [
        f"{name} is {tuple(values)}; it is for pixels from 0 to 1: divide mean and std by {pixel_range(values)}"
        for name, values in (("mean", mean), ("std", std))
        if values is not None and pixel_range(values) > 1
    ]
    return found[:1]


def pixel_range(values: Sequence[float]) -> int:
    """Return the largest value of the pixels that means, or standard deviations, are for."""
    largest = max(values, default=0)
    return next(most for most in (1, 255, 65535) if largest <= most or most == 65535)


@dataclass(frozen=True, kw_only=True)
class AugmentSection:
    """How training images are varied."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a random crop."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    interpolation: Literal["random", "bicubic", "bilinear"] = "random"
    """Filter of the random crop; random draws bilinear or bicubic."""
    hflip: float = 0.5
    """Probability of mirroring left and right."""
    auto_augment: str | None = None
    """A policy in timm's notation, such as rand-m9-mstd0.5-inc1."""
    color_jitter: float | None = None
    """Strength of brightness, contrast and saturation jitter; beside auto_augment, only 3a allows it."""
    erase_prob: float = 0.0
    """Probability of filling random rectangles of an image."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """What fills a rectangle: noise for every pixel, one random colour, or const, the mean of the images."""
    erase_count: int = 1
    """Most rectangles of an image, from one to so many, which share the area of one."""
    erase: Literal["before_mix", "after_mix"] = "before_mix"
    """Whether rectangles are filled before images are mixed, which carries them into other images, or afterwards, as
    timm's loader and with it the official TNT and T2T-ViT do."""
    mixup: float = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    cutmix_minmax: tuple[float, float] | None = None
    """Smallest and largest share of each side that CutMix's rectangle takes, which turns CutMix on; null draws the area
    by its alpha."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """What has a draw of its own of how it is mixed: the batch, each pair of images that are mixed with each other, or
    each image (elem)."""
    mix_prob: float = 1.0
    """Probability that a batch, a pair or an image is mixed at all."""
    mix_switch_prob: float = 0.5
    """Probability of CutMix where both are on."""
    mix_off_epoch: int | None = None
    """Epochs after which nothing is mixed any more; null mixes to the end. Labels stay smoothed."""
    label_smoothing: float = 0.0
    repeats: int = 1
    """Augmented copies of each image in a row, the epoch staying as long (repeated augmentation)."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = _in_range(
            self, hflip=(0, 1), erase_prob=(0, 1), mixup=(0, None), cutmix=(0, None), mix_prob=(0, 1),
            mix_switch_prob=(0, 1), color_jitter=(0, None), repeats=(1, None), erase_count=(1, None),
            mix_off_epoch=(1, None),
        )  # fmt: skip
        found += self._cutmix_problems()
        if not 0 <= self.label_smoothing < 1:
            found.append(f"label_smoothing is {self.label_smoothing}; it must be from 0 to below 1")
        if self.color_jitter and self.auto_augment is not None and "3a" not in self.auto_augment:
            found.append(
                f"color_jitter is not applied beside auto_augment={self.auto_augment}; set one of them to null"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            found.append(f"scale is {self.scale}; it must rise within 0 to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            found.append(f"ratio is {self.ratio}; it must be positive and rise")
        return found

    def _cutmix_problems(self) -> list[str]:
        if self.cutmix_minmax is None:
            return []
        low, high = self.cutmix_minmax
        found = [] if 0 <= low < high <= 1 else [f"cutmix_minmax is {self.cutmix_minmax}; it must rise within 0 to 1"]
        if self.cutmix not in (0, 1):
            found.append(f"cutmix is {self.cutmix}, but cutmix_minmax draws the rectangle instead; set one of them")
        return found


@dataclass(frozen=True, kw_only=True)
class BalanceSection:
    """What makes up for classes with few training images."""

    class_weights: Literal["inverse", "sqrt", "effective"] | None = None
    """Weight of an image in the loss: by 1 / images of its class, the square root of that, or 1 / the effective number
    of images; 1 on average. null is off."""
    effective_beta: float = 0.9999
    """Of effective: a class has (1 - beta**images) / (1 - beta) effective images; 0 weighs all classes alike."""
    sampler: Literal["natural", "balanced", "sqrt"] = "natural"
    """How often a class is drawn: natural sees each image once an epoch, balanced draws all classes equally often, sqrt
    by the square root of their images; the epoch stays as long."""
    logit_adjust: float | None = None
    """Tau of logit adjustment: in training, tau * log(share of the class) is added to its logit; 1 is the theory's,
    null is off."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = _above_zero(self, "logit_adjust")
        if not 0 <= self.effective_beta < 1:
            found.append(f"effective_beta is {self.effective_beta}; it must be from 0 to below 1")
        if self.sampler == "balanced" and self.logit_adjust is not None:
            found.append(
                "logit_adjust does nothing beside sampler=balanced, which shows all classes equally often; drop one"
            )
        return found

    def active(self) -> list[str]:
        """Return the settings that make up for something, as they are written."""
        written = {
            "class_weights": self.class_weights,
            "sampler": self.sampler if self.sampler != "natural" else None,
            "logit_adjust": self.logit_adjust,
        }
        return [f"balance.{name}={value}" for name, value in written.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class MultiLabelSection:
    """The loss where an image may have several classes, or none; such data is a list with a column `labels`."""

    loss: Literal["bce", "asymmetric"] = "bce"
    """Binary cross-entropy, or the asymmetric loss of Ridnik et al. 2021, which makes little of easy negatives; the
    mean over the classes is the loss of an image."""
    gamma_negative: float = 4.0
    """Of asymmetric: focusing on hard negatives, a power of their probability."""
    gamma_positive: float = 0.0
    """Of asymmetric: focusing on hard positives."""
    clip: float = 0.05
    """Of asymmetric: probability up to which a negative counts nothing."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = []
        for name in ("gamma_negative", "gamma_positive"):
            gamma = getattr(self, name)
            if gamma != 0 and gamma < 1:
                found.append(f"{name} is {gamma}; it must be 0, or at least 1 for its gradient to be finite")
        if not 0 <= self.clip < 1:
            found.append(f"clip is {self.clip}; it must be from 0 to below 1")
        return found


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """The optimizer."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    """Peak learning rate, for the global batch of `train.batch_size` unless `lr_base_batch` is set."""
    lr_base_batch: int | None = None
    """Multiply `lr` by train.batch_size / lr_base_batch; null leaves it."""
    weight_decay: float = 0.05
    decay_on: Literal["paper", "matrices", "all"] = "paper"
    """What decays: paper leaves out biases, norms and what the model's paper exempts, matrices leaves out biases and
    norms, all leaves out nothing."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    """Of sgd."""
    nesterov: bool = False
    """Of sgd."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; null does not clip."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one before it; null is none."""
    backbone_scale: float = 1.0
    """Factor on the learning rate of all but the head, for weights that are trained on."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = _in_range(self, weight_decay=(0, None), momentum=(0, 1), lr_base_batch=(1, None))
        found += _above_zero(self, "lr", "eps", "clip_norm", "layer_decay", "backbone_scale")
        if self.layer_decay is not None and self.layer_decay > 1:
            found.append(f"layer_decay is {self.layer_decay}; it must be at most 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas are {self.betas}; each must be from 0 to below 1")
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            found.append("nesterov needs name=sgd and a momentum above 0")
        return found


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """The learning rate over time."""

    name: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    step: Literal["update", "epoch"] = "update"
    """When the rate is set anew: before every update, or once an epoch, as in the official training runs and by timm's
    default."""
    warmup_epochs: float = 5.0
    """Linear rise from `warmup_lr`, inside the main curve as in timm unless `warmup_prefix` is set."""
    warmup_prefix: bool = False
    """Begin the main curve where the warm-up ends, as MindSpore's projects do, so that it starts at the peak."""
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    clip_to_min_lr: bool = False
    """Let a cosine fall to zero, with no rate below `min_lr`, the warm-up's included; false ends it at `min_lr`."""
    cosine_epochs: float | None = None
    """Length of a cosine, from its own beginning, after which it stays at `min_lr`; null ends it with train.epochs."""
    cooldown_epochs: int = 0
    """Epochs after `train.epochs`, in which a cosine stays at `min_lr` and the others go on."""
    decay_epochs: float = 30.0
    """Period of step and exponential."""
    decay_rate: float = 0.1
    """Factor of step and exponential for each period."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = _in_range(
            self, warmup_epochs=(0, None), warmup_lr=(0, None), min_lr=(0, None), cooldown_epochs=(0, None)
        )
        found += _above_zero(self, "decay_epochs", "cosine_epochs")
        if not 0 < self.decay_rate <= 1:
            found.append(f"decay_rate is {self.decay_rate}; it must be above 0 and at most 1")
        return found


@dataclass(frozen=True, kw_only=True)
class EmaSection:
    """An exponential moving average of the weights, evaluated and saved in place of them."""

    decay: float | None = None
    """Share of the average kept at each update, such as 0.99996; null is off."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return (
            []
            if self.decay is None or 0 < self.decay < 1
            else [f"decay is {self.decay}; it must be above 0 and below 1"]
        )


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """The loop."""

    epochs: int = 300
    epoch_images: int | None = None
    """Training images in each epoch, a new random draw for every epoch; null takes all of them."""
    batch_size: int = 1024
    """Images for one update, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Parts that each update is computed in."""
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16", "mixed", "O0", "O1", "O2", "O3"] = "float32"
    """Of matrix products; weights stay float32. float16 scales the loss dynamically and needs CUDA; mixed is bfloat16
    where the device has it, float16 elsewhere. MindSpore's O0 is float32, O1 to O3 are mixed."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator where there is one."""
    compile: bool = False
    """Compile the model; the first steps take a minute."""
    shard: bool = False
    """Share out weights, gradients and moments over the processes (FSDP2), for models that outgrow a card."""
    channels_last: bool = False
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, a third more time."""
    eval_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    log_every: int = 20
    """Updates from one row of steps.jsonl to the next: loss since the row before, learning rate, norm of the gradient;
    reading them waits for the device."""
    monitor: Literal[
        "val_top1", "val_top5", "val_loss", "val_balanced_accuracy", "val_macro_f1", "val_head_top1", "val_medium_top1",
        "val_tail_top1", "val_map", "val_micro_f1", "train_top1", "train_loss",
    ] | None = None  # fmt: skip
    """Which number makes an evaluated epoch the best: the lowest loss, or the highest of the others. Balanced accuracy
    is the mean over the classes; head, medium and tail are those with more than 100, 20 to 100 and fewer than 20
    training images. null takes val_top1, and where images may have several classes val_map."""
    patience: int | None = None
    """Epochs without a better one after which the run ends; null never ends it early."""
    max_hours: float | None = None
    """Hours after which the run is saved and stopped with status 75, to be resumed; null is no limit."""
    skip_limit: int = 20
    """Updates left out in a row, their loss or gradient not finite, after which the run goes back to its last save."""
    rollbacks: int = 3
    """Times that the run goes back so, each time to go on at half the learning rate, before it gives up."""
    detect_anomaly: bool = False
    """Stop at the first operation whose gradient is not a number, and name it; several times slower."""
    dist_timeout_minutes: float = 10.0
    """How long processes wait for one of them before they name it and stop."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = _in_range(
            self, epochs=(1, None), batch_size=(1, None), accumulate=(1, None), seed=(0, 2**63 - 1),
            epoch_images=(1, None), eval_every=(1, None), log_every=(1, None), patience=(1, None), skip_limit=(1, None),
            rollbacks=(0, None),
        )  # fmt: skip
        found += _above_zero(self, "max_hours", "dist_timeout_minutes")
        if not found and self.batch_size % self.accumulate:
            found.append(f"batch_size {self.batch_size} cannot be cut into accumulate={self.accumulate} equal parts")
        return found


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """Where a run is written."""

    root: str = "runs"
    name: str | None = None
    """Folder of the run below `root`; null takes the recipe's name and a number that is free."""
    keep_best: int = 1
    """Best weights kept: best.safetensors, best-2.safetensors, ..."""
    save_every_minutes: float = 5.0
    """Minutes from one save of all that a resume needs to the next; so much is lost when a machine dies."""
    save_every_updates: int | None = None
    """Updates from one save to the next, beside the minutes; null is none."""
    keep_last: int = 2
    """Saves kept, for the case that the last one is damaged."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Who is given the numbers of each epoch, beside metrics.jsonl; tensorboard also those of steps.jsonl."""

    guard_csv: bool = True
    """In the report's CSV files, write names that a spreadsheet would compute, as they begin with = + - or @, with an
    apostrophe in front."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        found = _in_range(self, keep_best=(1, None), save_every_updates=(1, None), keep_last=(1, None))
        return found + _above_zero(self, "save_every_minutes")


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """How a model is evaluated."""

    split: Literal["val", "train", "all"] = "val"
    """Which part; where a folder has no splits, val and train are the parts that training held out and used."""
    batch_size: int = 64
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights, and in OpenVINO; another exported file computes in the precision that it was exported with."""
    device: Literal["auto", "cpu"] = "auto"
    guard_csv: bool = True
    """Write names that a spreadsheet would compute, as they begin with = + - or @, with an apostrophe in front."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return _in_range(self, batch_size=(1, None))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `vitrail train`."""

    model: ModelSection = field(default_factory=ModelSection)
    weights: WeightsSection = field(default_factory=WeightsSection)
    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    augment: AugmentSection = field(default_factory=AugmentSection)
    balance: BalanceSection = field(default_factory=BalanceSection)
    multi_label: MultiLabelSection = field(default_factory=MultiLabelSection)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    ema: EmaSection = field(default_factory=EmaSection)
    train: TrainSection = field(default_factory=TrainSection)
    output: OutputSection = field(default_factory=OutputSection)

    def __post_init__(self) -> None:
        found = _section_problems(self) + self._channel_problems()
        optim, schedule = self.optim, self.schedule
        peak = optim.lr * (self.train.batch_size / optim.lr_base_batch if optim.lr_base_batch else 1)
        used = {"warmup_lr": schedule.warmup_epochs > 0, "min_lr": schedule.name != "constant"}
        for name in used:
            rate = getattr(schedule, name)
            if used[name] and rate > peak > 0:
                found.append(f"schedule.{name} {rate:g} is above the peak rate {peak:g} of optim.lr; lower it")
        if self.train.epoch_images is not None and self.balance.sampler != "natural":
            found.append(
                f"balance.sampler is {self.balance.sampler}, which gives each class its share of whole epochs; "
                "train.epoch_images cuts them; set one of them to its default"
            )
        if self.data.streaming and self.balance.sampler != "natural":
            found.append(
                f"balance.sampler is {self.balance.sampler}, which draws from all over the set; data.streaming reads "
                "it in windows; set one of them to its default"
            )
        if self.schedule.warmup_epochs > self.train.epochs:
            found.append(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} is more than train.epochs "
                f"{self.train.epochs}; lower it too"
            )
        if found:
            raise ConfigError("; ".join(found))

    def _channel_problems(self) -> list[str]:
        data, augment = self.data, self.augment
        found = [
            f"preprocess.{name} is {values}; it must have a number for each of data.channels={data.channels}"
            for name, values in (("mean", self.preprocess.mean), ("std", self.preprocess.std))
            if values is not None and len(values) != data.channels
        ]
        if (data.channels, data.bits) != (3, 8):
            found += [
                f"augment.{name}={value} knows only RGB of 8 bits; set it to null, or leave out data.channels="
                f"{data.channels} and data.bits={data.bits}"
                for name, value in (("auto_augment", augment.auto_augment), ("color_jitter", augment.color_jitter))
                if value
            ]
        return found


class _Sections:
    """Sections of settings that are right as soon as each of them is."""

    def __post_init__(self) -> None:
        if found := _section_problems(self):
            raise ConfigError("; ".join(found))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_Sections):
    """All settings of `vitrail evaluate`."""

    weights: WeightsSection = field(default_factory=WeightsSection)
    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(_Sections):
    """Settings of `vitrail predict` that are written as key=value."""

    weights: WeightsSection = field(default_factory=WeightsSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(_Sections):
    """Settings of `vitrail check-data`."""

    data: DataSection = field(default_factory=DataSection)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Sections):
    """Settings of `vitrail pack` and `vitrail resize-data`."""

    data: DataSection = field(default_factory=DataSection)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(_Sections):
    """Settings of `vitrail convert` that are written as key=value."""

    weights: WeightsSection = field(default_factory=WeightsSection)


@dataclass(frozen=True, kw_only=True)
class DescribedConfig(_Sections):
    """What a file of settings says of the model whose weights are used."""

    model: ModelSection = field(default_factory=ModelSection)


T = TypeVar("T", TrainConfig, EvaluateConfig, PredictConfig, CheckConfig, DataConfig, ConvertConfig, DescribedConfig)


@dataclass(frozen=True)
class Layer:
    """Some settings, and where they were written."""

    origin: str
    values: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    """Section `model` of a file whose other settings are taken for weights that exist: these have to bear it out."""


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A complete configuration, and the origin of each dotted key that is not a default."""

    config: T
    origins: Mapping[str, str]


def resolve(cls: type[T], layers: Iterable[Layer]) -> Resolved[T]:
    """Build a configuration from defaults and layers, the later ones winning.

    Raises:
        ConfigError: Unknown keys, wrong types and values out of range, all in one message.
    """
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    sections = {f.name: get_type_hints(cls)[f.name] for f in fields(cls)}
    for layer in layers:
        for section, content in layer.values.items():
            if section not in sections:
                problems.append(
                    f"{layer.origin}: {section}: unknown section{among(str(section), list(sections), 'sections')}"
                )
                continue
            if not isinstance(content, Mapping):
                problems.append(
                    f"{layer.origin}: {section} is a section; write {section}.<key>=<value>, or a mapping in YAML"
                )
                continue
            hints = get_type_hints(sections[section])
            for key, value in content.items():
                dotted = f"{section}.{key}"
                if key not in hints:
                    problems.append(
                        f"{layer.origin}: {dotted}: unknown key{among(str(key), list(hints), 'known keys')}"
                    )
                    continue
                try:
                    converted = _convert(_read_text(value, hints[key]), hints[key])
                except ValueError as error:
                    problems.append(f"{layer.origin}: {dotted} is {_quoted(value)}; it must be {error}")
                    continue
                if isinstance(converted, dict):  # options are merged, not replaced
                    converted = {**values.get(section, {}).get(key, {}), **converted}
                values.setdefault(section, {})[key] = converted
                origins[dotted] = layer.origin
    built = {name: section(**values.get(name, {})) for name, section in sections.items()}
    if problems:
        ranges = [f"{name}.{problem}" for name in values for problem in built[name].problems()]
        raise ConfigError("; ".join(problems + ranges))
    return Resolved(cls(**built), origins)


class Text(str):
    """A value of the command line, to be read as YAML where the setting is not itself text."""


def command_line(tokens: Sequence[str]) -> Layer:
    """Read `section.key=value` tokens; values are YAML, so lists are written [0.5, 0.5].

    Raises:
        ConfigError: A token that is not of this form.
    """
    values: dict[str, Any] = {}
    for token in tokens:
        dotted, equals, text = token.partition("=")
        parts = dotted.split(".")
        if not equals or len(parts) < 2 or not all(re.fullmatch(r"\w+", part) for part in parts):
            raise ConfigError(
                f"command line: {token!r} is not a setting; write section.key=value, such as optim.lr=1e-3"
            )
        target = values
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(
                    f"command line: {token!r} sets a part of what another setting sets whole; give one of them"
                )
        target[parts[-1]] = Text(text)
    return Layer("command line", values)


def read_yaml(path: Path, origin: str | None = None) -> Layer:
    """Read a file of settings.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not hold sections.
    """
    try:
        content = yaml.load(read_regular(path, MOST_SETTINGS).decode("utf-8"), _OneOfEachKey)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); `vitrail config` lists the recipes") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML lets a bad date through as ValueError
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if wrong := _beyond_settings(content):
        raise ConfigError(f"{path}: {wrong}, which no setting is")
    if not isinstance(content, Mapping) and content is not None:
        raise ConfigError(f"{path}: holds a {type(content).__name__}, not sections such as model, data and train")
    return Layer(origin or str(path), content or {})


def _beyond_settings(content: Any) -> str:
    """Return what of a YAML file's content no setting could be: a circle, too many values, or a number without end.

    Values that a file writes once and names often are counted as often as they are named.
    """
    waiting = [(content, 0)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return ""
        value, depth = waiting.pop()
        if depth > MOST_NESTED:
            return f"nests values more than {MOST_NESTED} deep"
        if isinstance(value, int) and value.bit_length() > 64:
            return "has a whole number of more than 64 bits"
        if isinstance(value, Mapping):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(part, depth + 1) for part in value]
    return f"holds more than {MOST_VALUES:,} values"


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> tuple[str, Path]:
    """Return the short name and the file of a recipe, given by name or by path.

    Raises:
        ConfigError: Neither a recipe of the package nor a file.
    """
    known = list_recipes()
    if name in known:
        return name, RECIPES / f"{name}.yaml"
    path = Path(name)
    if path.is_dir() and (path / "config.yaml").is_file():
        path = path / "config.yaml"
    if path.is_file():
        return (path.resolve().parent.name if path.name == "config.yaml" else path.stem), path
    if path.is_dir():
        raise ConfigError(f"{name} is a folder, not a recipe; to train on its images, write data.root={name}")
    hint = closest(name, known) or ";"
    raise ConfigError(
        f"unknown recipe {name!r}{hint} `vitrail config` lists all {len(known)}; a path to a YAML file works too"
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values that YAML and JSON can hold and `resolve` reads back."""
    return _plain(asdict(config))


def to_yaml(config: TrainConfig, header: str = "") -> str:
    """Return a configuration as YAML, one section a paragraph, with `header` as a comment above."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comment + "\n".join(
        yaml.safe_dump({name: section}, sort_keys=False) for name, section in to_dict(config).items()
    )


def describe(section: type) -> list[tuple[str, str, str, str]]:
    """Return (key, type, default, description) of each field of a section, the last from its docstring."""
    docs = _field_docs(section)
    default = section()
    hints = get_type_hints(section)
    return [
        (f.name, _type_name(hints[f.name]), _value_text(getattr(default, f.name)), docs.get(f.name, ""))
        for f in fields(section)
    ]


def reference() -> str:
    """Return the reference page of all settings in Markdown."""
    lines = [
        "# Settings",
        "",
        "Generated by `vitrail config --markdown`; written as `section.key=value`. `evaluate` takes weights, data,",
        "preprocess and evaluate; `predict` takes weights, preprocess and, for lists, data.root and data.path_column;",
        "`convert` takes weights.",
        "",
    ]
    sections = {**get_type_hints(TrainConfig), **get_type_hints(EvaluateConfig)}
    for name, section in sections.items():
        lines += [
            f"## {name}",
            "",
            inspect.cleandoc(section.__doc__ or ""),
            "",
            "| key | type | default | meaning |",
            "|-|-|-|-|",
        ]
        lines += [f"| {name}.{key} | {kind} | {default} | {text} |" for key, kind, default, text in describe(section)]
        lines.append("")
    return "\n".join(lines)


def flat(config: Any) -> dict[str, Any]:
    """Return {dotted key: value} of a configuration."""
    return {f"{section}.{key}": value for section, content in to_dict(config).items() for key, value in content.items()}


def _section_problems(config: Any) -> list[str]:
    return [f"{f.name}.{problem}" for f in fields(config) for problem in getattr(config, f.name).problems()]


def _in_range(section: Any, **bounds: tuple[float, float | None]) -> list[str]:
    found = []
    for name, (low, high) in bounds.items():
        value = getattr(section, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            found.append(f"{name} is {value}; it must be {allowed}")
    return found


def _above_zero(section: Any, *names: str) -> list[str]:
    values = {name: getattr(section, name) for name in names}
    return [
        f"{name} is {value}; it must be above 0" for name, value in values.items() if value is not None and value <= 0
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`; a ValueError says what it must be."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        wanted = [arg for arg in args if arg is not type(None)]
        for arg in wanted:
            try:
                return _convert(value, arg)
            except ValueError as error:
                if len(wanted) == 1:
                    raise ValueError(f"{error}{', or null' if len(args) > 1 else ''}") from None
        raise ValueError(_type_name(kind))
    if origin is Literal:
        if value not in args:
            hint = closest(value, args).rstrip() if isinstance(value, str) else ""
            raise ValueError("one of " + ", ".join(map(str, args)) + hint.rstrip("?") + ("?" if hint else ""))
        return value
    if origin is tuple:
        if args[-1] is Ellipsis:
            if not isinstance(value, list | tuple):
                raise ValueError(f"a list such as [{_type_name(args[0]).split()[-1]}]")
            return tuple(_convert(item, args[0]) for item in value)
        if not isinstance(value, list | tuple) or len(value) != len(args):
            raise ValueError(f"a list of {len(args)} numbers such as [{', '.join(['0.5'] * len(args))}]")
        return tuple(_convert(item, arg) for item, arg in zip(value, args, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError("a mapping of names to values")
        return {str(key): _convert(item, args[1]) for key, item in value.items()}
    if kind is float and not isinstance(value, bool):
        try:  # YAML reads 5e-4 as a string
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError("a number") from None
        except OverflowError:
            raise ValueError("a finite number") from None
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError("a finite number")
        return number
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= MAX_WHOLE:
            raise ValueError("text")
        return str(value)  # output.name=3
    if type(value) is not kind:
        raise ValueError(_type_name(kind))
    if kind is int and abs(value) > MAX_WHOLE:
        raise ValueError("a whole number below 2^63")
    if isinstance(value, str) and not _is_plain(value):
        raise ValueError("text without characters that no name or path has")
    return value


def _is_plain(text: str) -> bool:
    """Say whether a name or path can be made of a text: no byte 0, which ends it, and no halves of letters."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _read_text(value: Any, kind: Any) -> Any:
    """Read a value of the command line as YAML, unless text is wanted: a name may look like a number or a date."""
    if isinstance(value, dict):
        return {key: _read_text(item, Any) for key, item in value.items()}
    if not isinstance(value, Text):
        return value
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if str in kinds:
        return None if type(None) in kinds and value in ("null", "none", "~") else str(value)
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return str(value)


def _quoted(value: Any) -> str:
    return brief(str(value) if isinstance(value, Text) else value, 200)


class _OneOfEachKey(yaml.SafeLoader):
    """A YAML reader that refuses a key written twice, where PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if (key := key_node.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _type_name(kind: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        Any: "any value",
    }
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(_type_name(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list of {_type_name(args[0])}" if args[-1] is Ellipsis else f"a list of {len(args)} numbers"
    if origin is dict:
        return "a mapping"
    return names[kind]


def _value_text(value: Any) -> str:
    return yaml.safe_dump(_plain(value), default_flow_style=True).removesuffix("\n").removesuffix("\n...")


@cache
def _field_docs(section: type) -> dict[str, str]:
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
