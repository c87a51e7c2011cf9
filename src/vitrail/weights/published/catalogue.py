"""The catalogue of published weights: model, origin, published accuracy, preprocessing, hash and address of each.

The rows are as their projects state them; none of the accuracies was measured here. Of a model's
rows, the first is the one that `pretrained` stands for: a safetensors file on the Hugging Face Hub,
then a release file, then the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from vitrail.errors import CheckpointError, ConfigError, suggest
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.registry import FAMILIES, canonical_name, find_family, find_library

HUB = "hf-hub:"
"""Prefix of what lies on the Hugging Face Hub, as OWNER/NAME."""
WORD = "pretrained"
"""Stands for the best published weights of a model; with `:ORIGIN` or `:NAME` behind it, for
others."""
HASH = re.compile(r"-([0-9a-f]{8})\.pth")
"""The beginning of a file's SHA-256 at the end of its name, as torch.hub's `check_hash` reads
it."""

_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_CIFAR = {
    "crop": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of weights that somebody published."""

    model: str
    """Name of the model."""
    origin: str
    """Whose file it is: a word that tells the files of a model apart."""
    address: str
    """Where it lies: an address, hf-hub:OWNER/NAME, or in words where it takes a browser."""
    top1: float | None
    """Published top-1 in percent, on the validation images of what it was trained for."""
    top5: float | None = None
    measured_by: str = ""
    """Who published the accuracy, where that is not the origin."""
    of: str = ""
    """Name of these weights before the origin; the model's, where nothing sets them apart."""
    dialect: str
    """Project whose names of weights the file uses."""
    image_size: int = 224
    num_classes: int = 1000
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """How images are read, where it differs from the model's own way."""

    @property
    def base(self) -> str:
        """The name before the origin, such as t2t_vit_14_384."""
        return self.of or self.model

    @property
    def name(self) -> str:
        """The whole name, such as tnt_s_patch16_224:mindcv; that of a library's model has no origin."""
        return f"{self.base}:{self.origin}" if self.origin else self.base

    @property
    def repository(self) -> str | None:
        """OWNER/NAME on the Hugging Face Hub; None where it lies elsewhere."""
        return self.address.removeprefix(HUB) if self.address.startswith(HUB) else None

    @property
    def kind(self) -> str:
        """The format of the file, as `WeightFile.kind` has it."""
        if self.repository is not None:
            return "safetensors"
        return "MindSpore" if self.file.endswith(".ckpt") else "PyTorch"

    @property
    def page(self) -> str:
        """Where a browser finds it."""
        if self.repository is None:
            return self.address
        return f"https://huggingface.co/{self.repository}/resolve/main/model.safetensors"

    @property
    def is_by_hand(self) -> bool:
        """Whether it can be had with a browser alone."""
        return not self.address.startswith((HUB, "https://"))

    @property
    def file(self) -> str:
        """The name of the file in the cache."""
        if self.repository is not None:
            return f"{PurePosixPath(self.repository).name}.safetensors"
        if self.is_by_hand:
            return f"{self.base}_{self.origin}.pth"
        return PurePosixPath(self.address).name

    @property
    def hash_prefix(self) -> str:
        """The beginning of the file's SHA-256; empty where its project does not say it."""
        found = HASH.search(self.file)
        return found[1] if found else ""


def _on_hub(model: str, top1: float, top5: float | None, measured_by: str) -> Published:
    return Published(
        model=model,
        origin="timm",
        address=f"{HUB}timm/{model}.in1k",
        top1=top1,
        top5=top5,
        measured_by=measured_by,
        dialect="timm",
    )


_TNT = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/tnt/"
_TNT_LEGACY = "https://github.com/contrastive/pytorch-image-models/releases/download/TNT/"
_MINDCV = "https://storage.googleapis.com/huawei-mindspore-hk/TNT/"
_T2T = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"
_OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/"
_TWINS_BY_HAND = "Google Drive, as the README of https://github.com/Meituan-AutoML/Twins links it"


def _of_tnt(model: str, file: str, top1: float, top5: float) -> Published:
    return Published(
        model=model,
        origin="official",
        address=_TNT + file,
        top1=top1,
        top5=top5,
        dialect="official",
    )


def _of_mindcv(model: str, origin: str, file: str, top1: float, top5: float) -> Published:
    return Published(
        model=model,
        origin=origin,
        address=_MINDCV + file,
        top1=top1,
        top5=top5,
        dialect="mindcv",
        preprocess=_IMAGENET,
    )


def _of_t2t(model: str, top1: float, file: str, of: str = "", image_size: int = 224) -> Published:
    return Published(
        model=model,
        origin="official",
        address=_T2T + file,
        top1=top1,
        of=of,
        dialect="official",
        image_size=image_size,
    )


def _of_cifar(model: str, num_classes: int, top1: float, file: str) -> Published:
    return Published(
        model=model,
        origin="official",
        address=_T2T + file,
        top1=top1,
        of=f"{model}_cifar{num_classes}",
        dialect="official",
        num_classes=num_classes,
        preprocess=_CIFAR,
    )


def _of_mmpretrain(model: str, top1: float, file: str, top5: float | None = None) -> Published:
    return Published(
        model=model,
        origin="mmpretrain",
        address=_OPENMMLAB + file,
        top1=top1,
        top5=top5,
        dialect="mmpretrain",
    )


def _of_twins(model: str, top1: float) -> Published:
    return Published(
        model=model,
        origin="official",
        address=_TWINS_BY_HAND,
        top1=top1,
        measured_by="mmpretrain",
        dialect="official",
    )


ROWS = (
    _on_hub("tnt_s_patch16_224", 81.5, 95.7, "official"),
    _of_tnt("tnt_s_patch16_224", "tnt_s_81.5.pth.tar", 81.5, 95.7),
    _of_mindcv(
        "tnt_s_patch16_224", "mindcv", "tnt_s_patch16_224_ep138_acc_0.74.ckpt", 74.14, 92.07
    ),
    _of_mindcv("tnt_s_patch16_224", "mindcv-converted", "tnt_s_converted_0.718.ckpt", 72.51, 90.68),
    _on_hub("tnt_b_patch16_224", 82.9, 96.3, "official"),
    _of_tnt("tnt_b_patch16_224", "tnt_b_82.9.pth.tar", 82.9, 96.3),
    _of_mindcv("tnt_b_patch16_224", "mindcv-converted", "tnt_b_converted_0.795.ckpt", 79.62, 94.81),
    _on_hub("tnt_s_legacy_patch16_224", 81.5, 95.7, "timm"),
    Published(
        model="tnt_s_legacy_patch16_224",
        origin="contrastive",
        address=f"{_TNT_LEGACY}tnt_s_patch16_224.pth.tar",
        top1=81.5,
        top5=95.7,
        measured_by="timm",
        dialect="timm",
    ),
    _of_mmpretrain(
        "tnt_s_legacy_patch16_224",
        81.5,
        "tnt/tnt-small-p16_3rdparty_in1k_20210903-c56ee7df.pth",
        95.7,
    ),
    _of_t2t("t2t_vit_7", 71.7, "71.7_T2T_ViT_7.pth.tar"),
    _of_t2t("t2t_vit_10", 75.2, "75.2_T2T_ViT_10.pth.tar"),
    _of_t2t("t2t_vit_12", 76.5, "76.5_T2T_ViT_12.pth.tar"),
    _of_t2t("t2t_vit_14", 81.5, "81.5_T2T_ViT_14.pth.tar"),
    _of_t2t("t2t_vit_14", 83.3, "83.3_T2T_ViT_14.pth.tar", "t2t_vit_14_384", 384),
    _of_cifar("t2t_vit_14", 10, 98.3, "cifar10_t2t-vit_14_98.3.pth"),
    _of_cifar("t2t_vit_14", 100, 88.4, "cirfar100_t2t-vit-14_88.4.pth"),  # spelt so by its authors
    _of_t2t("t2t_vit_19", 81.9, "81.9_T2T_ViT_19.pth.tar"),
    _of_cifar("t2t_vit_19", 10, 98.4, "cifar10_t2t-vit_19_98.4.pth"),
    _of_cifar("t2t_vit_19", 100, 89.0, "cifar100_t2t-vit-19_89.0.pth"),
    _of_t2t("t2t_vit_24", 82.3, "82.3_T2T_ViT_24.pth.tar"),
    _of_t2t("t2t_vit_24", 84.2, "84.2_T2T_ViT_24.pth.tar", "t2t_vit_24_token_labeling"),
    _of_t2t("t2t_vit_t_14", 81.7, "81.7_T2T_ViTt_14.pth.tar"),
    _of_mmpretrain("t2t_vit_t_14", 81.83, "t2t-vit/t2t-vit-t-14_8xb64_in1k_20211220-f7378dd5.pth"),
    _of_t2t("t2t_vit_t_19", 82.4, "82.4_T2T_ViTt_19.pth.tar"),
    _of_mmpretrain("t2t_vit_t_19", 82.63, "t2t-vit/t2t-vit-t-19_8xb64_in1k_20211214-7f5e3aaf.pth"),
    _of_t2t("t2t_vit_t_24", 82.6, "82.6_T2T_ViTt_24.pth.tar"),
    _of_mmpretrain("t2t_vit_t_24", 82.71, "t2t-vit/t2t-vit-t-24_8xb64_in1k_20211214-b2a68ae3.pth"),
    _on_hub("twins_pcpvt_small", 81.14, None, "mmpretrain"),
    _of_mmpretrain(
        "twins_pcpvt_small",
        81.14,
        "twins/twins-pcpvt-small_3rdparty_8xb128_in1k_20220126-ef23c132.pth",
    ),
    _of_twins("twins_pcpvt_small", 81.14),
    _on_hub("twins_pcpvt_base", 82.66, None, "mmpretrain"),
    _of_mmpretrain(
        "twins_pcpvt_base",
        82.66,
        "twins/twins-pcpvt-base_3rdparty_8xb128_in1k_20220126-f8c4b0d5.pth",
    ),
    _of_twins("twins_pcpvt_base", 82.66),
    _on_hub("twins_pcpvt_large", 83.09, None, "mmpretrain"),
    _of_mmpretrain(
        "twins_pcpvt_large",
        83.09,
        "twins/twins-pcpvt-large_3rdparty_16xb64_in1k_20220126-c1ef8d80.pth",
    ),
    _of_twins("twins_pcpvt_large", 83.09),
    _on_hub("twins_svt_small", 81.77, None, "mmpretrain"),
    _of_mmpretrain(
        "twins_svt_small", 81.77, "twins/twins-svt-small_3rdparty_8xb128_in1k_20220126-8fe5205b.pth"
    ),
    _of_twins("twins_svt_small", 81.77),
    _on_hub("twins_svt_base", 83.13, None, "mmpretrain"),
    _of_mmpretrain(
        "twins_svt_base", 83.13, "twins/twins-svt-base_3rdparty_8xb128_in1k_20220126-e31cc8e9.pth"
    ),
    _of_twins("twins_svt_base", 83.13),
    _on_hub("twins_svt_large", 83.60, None, "mmpretrain"),
    _of_mmpretrain(
        "twins_svt_large", 83.60, "twins/twins-svt-large_3rdparty_16xb64_in1k_20220126-4817645f.pth"
    ),
    _of_twins("twins_svt_large", 83.60),
)
"""All published weights, those of a model in the order in which they are preferred."""
_NAMES = tuple(row.name for row in ROWS)
_BASES = tuple(dict.fromkeys(row.base for row in ROWS))
_LISTED = "`vitrail weights` lists all that there are"


def list_rows(pattern: str = "*") -> list[Published]:
    """Return the rows whose whole name, name before the origin, or origin matches a shell pattern."""
    return [
        row
        for row in ROWS
        if any(fnmatch(text, pattern) for text in (row.name, row.base, row.origin))
    ]


def find_row(word: str, model: str | None = None) -> Published | None:
    """Return the published weights that a word stands for; None where it cannot stand for any.

    Args:
        word: `pretrained`, `pretrained:ORIGIN`, `pretrained:NAME`, or a name of the catalogue, with
            or without its `:ORIGIN`; another project's name of the model will do too.
        model: The model that they are wanted for, where that is known.

    Raises:
        CheckpointError: It stands for some, and there are none such; the message has those that
            there are.
    """
    if word == WORD:
        if model is None:
            raise CheckpointError(
                f"{word}: of which model? Write {WORD}:NAME, such as {WORD}:{ROWS[0].base}; "
                f"{_LISTED}"
            )
        return _choose(word, _our_name(model), "")
    text = word.removeprefix(f"{WORD}:")
    if find_library(text) is not None:
        return _row_of_library(word, text)
    base, _, origin = text.partition(":")
    name = _our_name(base)
    if name in _BASES or _is_model(name):
        return _choose(word, name, origin)
    if text == word:
        return None
    if model is not None and not origin:
        return _choose(word, _our_name(model), base)
    known = [*_BASES, *_NAMES]
    raise CheckpointError(
        f"{word}: no published weights are called so{suggest(text, known) or ';'} {_LISTED}"
    )


def is_published(word: str) -> bool:
    """Say whether a word stands for weights of the catalogue or of the Hugging Face Hub.

    Raises:
        CheckpointError: It stands for some, and there are none such.
    """
    return word.startswith(HUB) or find_row(word) is not None


def choose_namesake(word: str | Path, file: str) -> Path:
    """Return the path that files made of weights are named after: the weight file's own, or a published name here.

    Args:
        word: What the weights were asked for by.
        file: The file that they were read from, which for published ones is in a cache.
    """
    if Path(file).is_relative_to(word):  # the file itself, or a folder that it is in
        return Path(file)
    return Path(Path(word).name.removeprefix(f"{WORD}:").replace(":", "-"))


def suggest_row(word: str) -> str:
    """Return "; did you mean 'x'?" for the name in the catalogue that is very near to a word, or nothing."""
    return suggest(word, [*_BASES, *_NAMES], 0.8)


def _choose(word: str, base: str, origin: str) -> Published:
    """Return the first weights of a name from an origin, or the first of all where none is asked for."""
    if find_library(base) is not None:
        return _row_of_library(word, base)
    rows = [row for row in ROWS if row.base == base]
    if not rows:
        family = find_family(base)
        alike: dict[str, None] = {}
        if family is not None:
            alike = dict.fromkeys(row.base for row in ROWS if row.model in family.variants)
        of_family = (
            f"; of {family.title} there are {', '.join(alike)}"
            if family is not None and alike
            else ""
        )
        raise CheckpointError(f"{word}: no weights of {base} are published{of_family}; {_LISTED}")
    exact = [row for row in rows if row.origin == origin]
    near = [row for row in rows if row.origin.startswith(f"{origin}-")]
    if not origin:
        return rows[0]
    if exact or len(near) == 1:
        return (exact or near)[0]
    origins = ", ".join(row.origin for row in rows)
    raise CheckpointError(
        f"{word}: {base} is not published by {origin!r}; it is by {origins}, and {_LISTED}"
    )


def _row_of_library(word: str, model: str) -> Published:
    """Return the weights that a library publishes for a model of its own.

    Raises:
        CheckpointError: It has none that can be fetched, or no such model.
    """
    try:
        family = find_family(canonical_name(model))
    except ConfigError as error:
        raise CheckpointError(f"{word}: {error}") from error
    assert family is not None
    variant = family.variants[model]
    if not variant.weights:
        raise CheckpointError(
            f"{word}: {family.name} has no weights of {model} that can be fetched; name others of "
            "its model, with their tag, or give a file"
        )
    return Published(
        model=model,
        origin="",
        address=variant.weights,
        top1=variant.top1,
        dialect=family.dialects[0].name,
        num_classes=variant.config.num_classes,
        image_size=variant.config.size[0],
    )


def _our_name(name: str) -> str:
    """Return our name of a model that another project may call otherwise, and any other name as it is."""
    for family in FAMILIES:
        if name in family.aliases:
            return family.aliases[name]
    return name


def _is_model(name: str) -> bool:
    return find_family(name) is not None
