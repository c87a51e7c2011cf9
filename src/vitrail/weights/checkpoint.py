"""The self-describing weight file: one safetensors file with model, classes, preprocessing and provenance."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from vitrail.classes.names import canonical
from vitrail.errors import CheckpointError, ConfigError, shorten
from vitrail.files import write_whole
from vitrail.images.decoding import decoder_name
from vitrail.images.preprocess import Preprocess
from vitrail.kernels.prepare import describe_kernels
from vitrail.models.family import Family, ModelConfig, Shapes, Variant, VisionModel
from vitrail.models.registry import find_variant
from vitrail.weights.description import (
    check,
    check_classes,
    check_exported,
    check_tensors,
    config_from,
    parse,
    preprocess_from,
)
from vitrail.weights.digest import DIGESTS, digest_weights

KEY = "vitrail"
FORMAT = 1
ALIGNMENT = 64
"""Bytes of which the addresses of torch's tensors on a CPU are multiples."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The description that a weight file has of itself."""

    model: str
    """Name of the model."""
    options: Mapping[str, Any]
    """Every field of the model's configuration."""
    classes: tuple[str, ...]
    """Names of the logits, in their order."""
    preprocess: Preprocess
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The settings it was trained with."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    thresholds: tuple[float, ...] | None = None
    """Probability of each class, the sigmoid of its logit, from which it is an answer, of a
    multi-label model; None where an image has one class, and probabilities are the softmax."""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes, each with a threshold."""
        return self.thresholds is not None

    @cached_property
    def family(self) -> Family[Any]:
        """The family of the model."""
        return find_variant(self.model)[0]

    @cached_property
    def variant(self) -> Variant[Any]:
        """The published model of that name."""
        return find_variant(self.model)[1]

    @property
    def classes_hash(self) -> str:
        """Short hash of the class names in their order."""
        return hash_classes(self.classes)


def hash_classes(classes: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that change with any class name or their order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance() -> dict[str, Any]:
    """Return what made this file: versions, decoder, platform and time."""
    return {
        "vitrail": version("vitrail"),
        "torch": torch.__version__,
        "decoder": decoder_name(),
        "kernels": describe_kernels(),
        "platform": platform.platform(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def model_options(model: VisionModel) -> dict[str, Any]:
    """Return every field of a model's configuration, for a Record."""
    return asdict(model.config)


def save_model(path: Path, weights: Mapping[str, torch.Tensor], record: Record) -> None:
    """Write weights and their record; the file appears whole or not at all.

    Args:
        path: Its name, such as best.safetensors.
        weights: As in a state dict.
        record: What the file says of itself.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; an older file stays as it
            was.
    """
    write_whole(path, encode_safetensors(weights, {**to_metadata(record), "format": "pt"}))


def read_metrics(path: Path) -> Mapping[str, Any] | None:
    """Return the numbers that a weight file of ours was reached with; None where there is none, or it is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            return json.loads((file.metadata() or {})[KEY])["metrics"]
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def encode_safetensors(weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors file that holds weights, wherever they lie, and some texts beside them.

    Where one of them is the description of a record, a digest of all goes with it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    digests = dict.fromkeys(DIGESTS, digest_weights(tensors, metadata)) if KEY in metadata else {}
    return safetensors.torch.save(tensors, {**metadata, **digests})


def to_metadata(record: Record) -> dict[str, str]:
    """Return what stands in a safetensors file beside its tensors, for `parse_record`."""
    content = {
        "format": FORMAT,
        "model": record.model,
        "options": record.options,
        "classes": record.classes,
        "classes_hash": record.classes_hash,
        "preprocess": record.preprocess.to_dict(),
        "recipe": record.recipe,
        "provenance": record.provenance,
        "metrics": record.metrics,
    }
    if record.is_multi_label:
        content["thresholds"] = record.thresholds
    return {KEY: json.dumps(content)}


def parse_record(
    metadata: Mapping[str, str], path: Path | str, shapes: Shapes | None = None
) -> Record:
    """Read what a weight file says of itself, and refuse what cannot be or what its tensors contradict.

    Args:
        metadata: What stands in the safetensors file beside its tensors.
        path: The file, for messages.
        shapes: Of its tensors by name; None where they are those of an exported program.

    Raises:
        CheckpointError: It says nothing, is of another format, or was changed.
    """
    if KEY not in metadata:
        raise CheckpointError(
            f"{path}: is without vitrail's description of model, classes and preprocessing; give a "
            "file that vitrail wrote"
        )
    try:
        content = parse(metadata[KEY])
        if "format" not in content:
            raise ValueError("format is missing")
        if (form := content["format"]) != FORMAT:
            raise CheckpointError(
                f"{path}: is of format {shorten(form)}, this vitrail reads format {FORMAT}; "
                "upgrade vitrail"
            )
        check(content)
        config = config_from(content)
        if shapes is not None:
            check_tensors(content["model"], config, shapes)
        preprocess = preprocess_from(content, config)
        check_classes(content, config)
        if "exported" in content["provenance"]:
            check_exported(content["provenance"]["exported"])
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()).removesuffix(".")[:400]
        raise CheckpointError(
            f"{path}: its description of model, classes and preprocessing cannot be followed "
            f"({reason}); use the original"
        ) from error
    if hash_classes(content["classes"]) != content["classes_hash"]:
        raise CheckpointError(
            f"{path}: its class names do not match their hash, so the file was changed; use the "
            "original"
        )
    thresholds = content.get("thresholds")
    if thresholds is not None:
        thresholds = tuple(map(float, thresholds))
    return Record(
        model=content["model"],
        options=asdict(config),
        classes=tuple(map(canonical, content["classes"])),
        preprocess=preprocess,
        recipe=content["recipe"],
        provenance=content["provenance"],
        metrics=content["metrics"],
        thresholds=thresholds,
    )


def config_of(record: Record, path: Path | str = "record") -> ModelConfig:
    """Return the configuration of the model that a record describes.

    Raises:
        CheckpointError: The record names a model or options that this version does not know.
    """
    try:
        return type(record.variant.config)(**record.options)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: describes a model that cannot be built ({error})"
        ) from error


def build_model(record: Record, path: Path | str = "record") -> VisionModel:
    """Build the model that a record describes, on the current default device, freshly initialised.

    Raises:
        CheckpointError: The record names a model or options that this version does not know.
    """
    config = config_of(record, path)
    try:
        return record.family.model(config)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # sizes that no tensor can have
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: describes a model that cannot be built ({reason})"
        ) from error


def build_empty(record: Record, path: Path | str) -> VisionModel:
    """Build the model that a record describes, for weights that take the place of its own.

    It has no memory for these, unless the model has values beside them that no file holds. Nothing
    is drawn that others would draw.

    Raises:
        CheckpointError: The record names a model or options that this version does not know.
    """
    if record.family.has_hidden_buffers:
        with torch.random.fork_rng(devices=[]):
            return build_model(record, path)
    with torch.device("meta"):
        return build_model(record, path)


def load_weights(model: VisionModel, weights: Mapping[str, torch.Tensor], path: Path | str) -> None:
    """Put weights into a model, which takes over those that lie in memory as torch would put them.

    Kernels add up in another order where numbers begin elsewhere, as they do in a file that is
    mapped: such weights are copied, so that a file computes what the model computed that it is of.

    Raises:
        CheckpointError: Names or shapes differ; the message has the first of each kind.
    """
    check_fit(model.state_dict(), weights, path)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    aligned = {name: align(tensor) for name, tensor in weights.items()}
    model.load_state_dict(aligned, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def align(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose numbers begin where torch lets them begin, a copy if they did not."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def check_fit(
    expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], path: Path | str
) -> None:
    """Compare weights with those of a model.

    Raises:
        CheckpointError: Names or shapes differ; the message has the first of each kind.
    """
    missing, shapes = [], []
    for name, parameter in expected.items():
        if name not in weights:
            missing.append(name)
        elif parameter.shape != weights[name].shape:
            shapes.append(name)
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected or shapes:
        example = ""
        if names := [*missing[:2], *unexpected[:2]]:
            example += f" ({', '.join(names)})"
        if shapes:
            there, here = weights[shapes[0]].shape, expected[shapes[0]].shape
            example += f"; {shapes[0]} is {tuple(there)} there, {tuple(here)} here"
        raise CheckpointError(
            f"{path}: does not fit the model: {len(missing)} weights missing, {len(unexpected)} "
            f"unexpected, {len(shapes)} of another shape{example}"
        )
    for name, tensor in expected.items():
        if tensor.is_floating_point() != weights[name].is_floating_point():
            raise CheckpointError(
                f"{path}: {name} is {weights[name].dtype} there, {tensor.dtype} here, so the file "
                "was changed; use the original"
            )
