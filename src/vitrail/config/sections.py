"""Settings of models, weights, data, preprocessing and evaluation, in sections that every command shares. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.choices import Device, Precision, Resize
from vitrail.config.ranges import find_not_positive, find_out_of_range

MIN_STD = 1e-6
"""Smallest standard deviation, for pixels from 0 to 1; below it, pixels that are the same in 16
bits would be apart by more than a network can take."""
MAX_WORKERS = 1024
"""Largest number of loader processes; no machine has more cores for one training process."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The network to train."""

    name: str = "tnt_s_patch16_224"
    """Name of the model, one of those that `vitrail models` lists, or `timm:NAME` for one of timm."""
    image_size: int | tuple[int, int] | None = None
    """Size of the input images in pixels, one number or [height, width]; null takes the model's
    own."""
    drop_path_rate: float = 0.0
    """Stochastic depth: probability of skipping the last block; earlier blocks have less, rising
    linearly from 0."""
    drop_rate: float = 0.0
    """Dropout of the tokens that enter the blocks, of an attention's output, and after both layers
    of an MLP."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any other field of the model's configuration, such as `depth` or `gelu`; of a model of timm,
    any other argument that timm's class takes."""
    weights: str | None = None
    """Weights to start from: a file of any project that `vitrail convert --help` lists,
    `pretrained` for the best published ones of the model, `pretrained:NAME` for others that
    `vitrail weights` lists, or `hf-hub:OWNER/NAME`; null starts with fresh weights."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        rates = {"drop_path_rate": self.drop_path_rate, "drop_rate": self.drop_rate}
        return [
            f"{name} is {rate}; it must be from 0 to below 1"
            for name, rate in rates.items()
            if not 0 <= rate < 1
        ]


@dataclass(frozen=True, kw_only=True)
class WeightsSection:
    """How a weight file is read, where it leaves a choice."""

    dialect: (
        Literal["official", "timm", "mmpretrain", "mindcv", "zoo", "mindspore", "vitrail"] | None
    ) = None
    """Project whose parameter names the weight file uses; null finds out."""
    model: str | None = None
    """Name of the model that the weight file holds; null finds out by shapes. In training it is
    `model.name`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration of the weight file's model, such as `image_size`, or `depth`
    where the size was never published."""
    entry: str | None = None
    """Where in the file the weights are, where that leaves a choice: an entry such as `state_dict`
    or `ema.model`, or what stands before their names, such as `net`; null finds out by names and
    shapes."""
    average: bool = True
    """Take the moving average (EMA) of the weights, where the file has one."""
    partial: bool = False
    """Accept a file that lacks weights, which are then fresh, or has others, which are then
    skipped."""
    positions: Literal["resized", "fresh"] = "resized"
    """T2T-ViT's fixed position embedding at another image size: resized from the file's, or
    computed anew."""
    classes: str | None = None
    """File that names the classes of a weight file without names, in the order of its outputs: text
    with a name a line, or JSON; ImageNet's lists of synsets too. null takes the file's own
    names."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return []


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which images, with which labels and in which splits."""

    name: str | None = None
    """A named data set: digits, cifar10, cifar100, fashion-mnist, oxford-pets or flowers102;
    hf:OWNER/NAME, one of the Hugging Face Hub; hf:/FOLDER, Parquet files or what `datasets` has
    saved; null reads folders."""
    subset: str | None = None
    """Configuration of a Hugging Face data set that has several."""
    revision: str | None = None
    """Commit, tag or branch of a data set of the Hub; null takes the newest, and the run notes its
    commit here."""
    image_column: str | None = None
    """Column of the images, where a Hugging Face data set leaves a choice."""
    label_column: str | None = None
    """Column of single-label classes, in a list or where a Hugging Face data set leaves a choice;
    in a list, null takes the column `label`, where there is one."""
    streaming: bool = False
    """Read Parquet files where they are, also on the Hub, through a small cache instead of a copy
    of the whole set."""
    shuffle_buffer: int = 10_000
    """Number of images that are shuffled together in streaming, after the row groups of all files
    were shuffled."""
    cache_gb: float = 10.0
    """Gigabytes of disk that streaming may use on each machine."""
    root: str | None = None
    """Folder with train/<class>/* and val/<class>/*, or with <class>/* alone, or the shards that
    `vitrail pack` made of it; for a named set, the folder of its files; for a list, the folder in
    which its paths begin."""
    list: str | None = None
    """File of images with their labels, .csv, .tsv, .jsonl or .ndjson, a row an image; its paths
    begin in `root`, or in its own folder. See docs/data.md."""
    path_column: str = "path"
    """Column of the paths in a list."""
    labels_column: str | None = None
    """Column of multi-label classes in a list or a Hugging Face data set, in CSV with | between the
    classes of an image; null takes in a list `labels`, where there is one, or columns of 0 and 1,
    one for each class."""
    unlabelled: bool = False
    """Read no label: a folder's images are taken at any depth, whatever their folders are called, and
    a share of them is held out. Training then learns a teacher's features (distill.loss=tokens or
    feature), and the network has no head; `vitrail pretrain` sets it."""
    train_split: str = "train"
    """Split to train on: name of a folder, or value in the column `split` of a list."""
    val_split: str | None = "val"
    """Split to evaluate on: name of a folder, or value in the column `split` of a list; named sets
    have their test split, whatever the name; null holds out `val_fraction` of the training
    images."""
    val_fraction: float = 0.2
    """Share of each class held out where there is no validation split, chosen by a hash of the file
    names."""
    folds: int | None = None
    """Cross-validation: number of equal folds to divide the images into, of which one is held out;
    null is none."""
    fold: int = 0
    """Cross-validation: number of the fold that is held out, from 0 to folds - 1."""
    group_regex: str | None = None
    """Pattern in a file's name, such as 'patient-([0-9]+)'; images for which it matches the same
    text stay in the same split. It is stopped where it takes more than 10 seconds and a little for
    each image."""
    manifest: str | None = None
    """File that lists the images, written by `vitrail check-data`; without `root` it is taken as it
    is, with `root` it is brought up to date. null keeps the list in the user's cache."""
    check: bool = True
    """Look at every image once before the first training on it, which takes about as long as an
    epoch's reading."""
    download: bool = False
    """Allow a named set to be downloaded into `root`."""
    channels: int = 3
    """Number of channels of every image, and so of the model's input: 3 is RGB, 1 is gray, another
    number is read from TIFF and .npy."""
    bits: Literal[8, 16] = 8
    """Bit depth of a channel; 16 keeps what 8 would cut off."""
    workers: int | None = None
    """Number of loader processes for each training process (rank); null chooses by the cores."""
    bad_files: Literal["skip", "error", "quarantine"] = "skip"
    """How an unreadable image is treated: skip counts and names it where it is read, error stops
    the run, quarantine leaves out those that the check has found, and stops at any other."""
    class_order: Literal["text", "natural"] | None = None
    """Order in which the classes of folders, lists and columns of text are numbered: text is
    torchvision's and MindSpore's (class1, class10, class2), natural is timm's (class1, class2,
    class10). null is text, but the order of numbers for lists and columns of whole numbers; and it
    is refused where the two differ and a weight file names no classes."""
    match_classes: Literal["exact", "by-name", "by-order"] = "exact"
    """How the data's classes are matched with the model's: in `vitrail evaluate` exact wants the
    same names in the same order, by-name takes some of them in any order, and ImageNet's by id or
    English name; by-order takes as many of any names in their order, and in training keeps the head
    of `model.weights` so."""

    def problems(self) -> Sequence[str]:
        """Say what is wrong, each as one clause."""
        problems = find_out_of_range(
            self,
            workers=(0, MAX_WORKERS),
            folds=(2, 32767),
            channels=(1, 1000),
            shuffle_buffer=(1, 2**31),
        )
        problems += find_not_positive(self, "cache_gb")
        problems += self._fold_problems()
        if not 0 < self.val_fraction < 1:
            problems.append(f"val_fraction is {self.val_fraction}; it must be above 0 and below 1")
        problems += self._column_problems()
        if self.name is None and self.root is None and self.manifest is None and self.list is None:
            problems.append(
                "root is not set; give the folder with your images, or data.name=digits"
            )
        return problems

    def _fold_problems(self) -> Sequence[str]:
        if self.folds is None and self.fold:
            return [f"fold is {self.fold}; it goes with folds, which is not set"]
        if not 0 <= self.fold < (self.folds or 1):
            return [f"fold is {self.fold}; it must be from 0 to below folds, which is {self.folds}"]
        return []

    def _column_problems(self) -> Sequence[str]:
        """Say which settings of columns and tables are set where nothing reads them."""
        problems = []
        if self.unlabelled and (self.name or "").startswith("hf:"):
            problems.append(
                f"unlabelled does not go with name={self.name}; it is for folders, lists, shards and "
                "the other named sets"
            )
        if not (self.name or "").startswith("hf:"):
            for name in ("subset", "revision", "image_column", "streaming"):
                value = getattr(self, name)
                if value:
                    problems.append(
                        f"{name} is {value}; it is for data sets whose name begins with hf:"
                    )
            for name in ("label_column", "labels_column"):
                value = getattr(self, name)
                if value is not None and self.list is None:
                    problems.append(
                        f"{name} is {value}; it is for data.list and sets whose name begins with "
                        "hf:"
                    )
        if self.list is None and self.path_column != "path":
            problems.append(f"path_column is {self.path_column}; it is for data.list")
        if self.label_column is not None and self.labels_column is not None:
            problems.append(
                "label_column and labels_column are both set; an image has one class or several: "
                "drop one"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class PreprocessSection:
    """How an image is brought to the network for evaluation; null takes what the model was published with."""

    crop: float | None = None
    """Share of the resized image that the centre crop keeps: the short side is resized to
    image_size / crop first. It counts where images are cropped, see `preprocess.resize`."""
    resize: Resize | None = None
    """How an image of other proportions than the network's comes to its size in evaluation: crop
    cuts its middle out; squash resizes height and width each to the network's; letterbox resizes
    all of the image into it, and fills the rest with the mean (timm's crop_mode center, squash and
    border). null takes the one that the weights were validated with, which is crop for published
    ones. Training's views are cropped at random and resized, whatever stands here."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Filter of the resizing; null takes the one that the model was published with."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that normalisation subtracts, for pixels from 0 to 1 (123.675 for pixels
    to 255 is 0.485 here); null takes the published one, its average for gray, and 0.5 where
    `data.channels` is neither 1 nor 3."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel that normalisation divides by, for pixels from 0 to 1;
    null takes the published one, its average for gray, and 0.5 where `data.channels` is neither 1
    nor 3."""
    exif: Literal["ignore", "apply"] | None = None
    """Whether the EXIF orientation turns the image; published accuracies were measured without."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        problems = []
        if self.crop is not None and not 0 < self.crop <= 1:
            problems.append(f"crop is {self.crop}; it must be above 0 and at most 1")
        if self.std is not None and min(self.std, default=0) <= 0:
            problems.append(f"std is {self.std}; it must be positive")
        elif self.std is not None and min(self.std) < MIN_STD:
            problems.append(f"std is {self.std}; it must be at least {MIN_STD:g}")
        return problems + find_wrong_scale(self.mean, self.std)


def find_wrong_scale(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[str]:
    """Say, as one clause, that a mean or std is for pixels that go further than from 0 to 1; nothing where none is."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and find_pixel_range(values) > 1:
            return [
                f"{name} is {tuple(values)}; it is for pixels from 0 to 1: divide mean and std by "
                f"{find_pixel_range(values)}"
            ]
    return []


def find_pixel_range(values: Sequence[float]) -> int:
    """Return the largest value of the pixels that means, or standard deviations, are for."""
    largest = max(values, default=0)
    for most in (1, 255):
        if largest <= most:
            return most
    return 65535


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """How a model is evaluated."""

    split: Literal["val", "train", "all"] = "val"
    """Split to evaluate on; where a folder has no splits, val and train are what training held out
    and used."""
    batch_size: int = 64
    """Number of images in a batch."""
    precision: Precision = "float32"
    """Precision that matrix products of weight files and of OpenVINO are computed in; another
    exported file computes in the precision that it was exported with."""
    device: Device = "auto"
    """Device to compute on; auto takes an accelerator (GPU) where there is one."""
    guard_csv: bool = True
    """In CSV files, write names that a spreadsheet would compute, as they begin with = + - or @,
    with an apostrophe in front."""
    explain: bool = False
    """Show the report's most confident mistakes with maps of what the answers rest on, by the usual
    method of the model; of one that has occlusion alone, only the first 6, as that takes long."""

    def problems(self) -> list[str]:
        """Say what is wrong, each as one clause."""
        return find_out_of_range(self, batch_size=(1, None))
