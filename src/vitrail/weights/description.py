"""Check the description in a weight file against bounds and against its tensors, before anything follows it.

A description is text that anyone can write. Each value that is used has to be of its kind and
within reason; what the tensors tell too, such as the number of blocks, has to agree with them
before a model is built of it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitrail.errors import shorten, suggest
from vitrail.images.preprocess import Preprocess
from vitrail.models.family import ModelConfig, Shapes
from vitrail.models.registry import find_variant, is_model, list_models

MAX_TEXT = 16 * 2**20
"""Letters of a description; that of a model of 20,000 classes with counts and thresholds has 2
million."""
MAX_DIGITS = 40
"""Digits of a whole number; the hashes are text, and nothing else has so many."""
MAX_NAME = 4096
"""Letters of a class name."""
SKETCH = re.compile(r"([0-9a-f]{12}[0-9a-z]{0,16}( |$))*")
"""The fingerprint of a set of images: hashes of their names and contents."""
MAX_BATCH = 1_000_000
"""Images that an exported file takes at once."""
NEEDED: Mapping[str, tuple[str, ...]] = {
    "onnx": (),
    "openvino": ("bin",),
    "pt2": ("device", "cpu"),
    "torchscript": (),
    "mindir": (),
}
"""Formats of exported files, and the details without which the files of each cannot be run."""
REQUIRED = ("size", "crop", "interpolation", "mean", "std")
"""Fields of the preprocessing without which images would be read in another way than the model was
trained on."""
KINDS: Mapping[str, type] = {
    "model": str,
    "options": dict,
    "classes": list,
    "classes_hash": str,
    "preprocess": dict,
    "recipe": dict,
    "provenance": dict,
    "metrics": dict,
}
"""Type of each part of a description, beside its format and thresholds."""
KIND_NAMES = {str: "text", dict: "a mapping", list: "a list"}


def parse(text: str) -> dict[str, Any]:
    """Return what a description has by name.

    Raises:
        ValueError: It is too long or no JSON object; with a clause that says so.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has {len(text):,} letters, and {MAX_TEXT:,} at most are read")
    try:
        content = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it has lists within lists without end") from None
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    return content


def check(content: Mapping[str, Any]) -> None:
    """Refuse values that are missing, of another kind than they are used as, or beyond reason.

    Args:
        content: What `parse` returned.

    Raises:
        ValueError: With a clause that says which value, and what it must be.
    """
    for name, kind in KINDS.items():
        if name not in content:
            raise ValueError(f"{name} is missing")
        if not isinstance(content[name], kind):
            raise ValueError(f"{name} is {shorten(content[name])}; it must be {KIND_NAMES[kind]}")
    if not is_model(content["model"]):
        known = list_models()
        name, near = content["model"], suggest(content["model"], known)
        raise ValueError(
            f"unknown model {shorten(name)}{near or ';'} `vitrail models` shows all {len(known)}"
        )
    for name, test in TESTS.items():
        if problem := test(content.get(name)):
            raise ValueError(f"{name}{problem}")


def config_from(content: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of the model that a description names; nothing is built.

    Raises:
        ValueError: It has options that are unknown, or that no model can have.
    """
    # JSON has no tuples, and every list of a model's configuration was one
    options = dict(content["options"])
    for name, value in options.items():
        if isinstance(value, list):
            options[name] = tuple(value)
    _, variant = find_variant(content["model"])
    try:
        return type(variant.config)(**options)
    except TypeError as error:
        reason = " ".join(str(error).split("__init__() ")[-1].split())[:200]
        raise ValueError(f"options are not those of {content['model']}: {reason}") from error


def preprocess_from(content: Mapping[str, Any], config: ModelConfig) -> Preprocess:
    """Return the preprocessing of a description, which has to give what its model takes.

    Raises:
        ValueError: It does not, or a value is missing or out of bounds.
    """
    values = content["preprocess"]
    if missing := [name for name in REQUIRED if name not in values]:
        raise ValueError(f"preprocess.{missing[0]} is missing")
    preprocess = Preprocess.from_dict(values)
    if preprocess.channels != config.in_channels:
        raise ValueError(
            f"its model takes {config.in_channels} channels and its preprocessing gives "
            f"{preprocess.channels}"
        )
    if preprocess.size != config.size:
        there, here = ("x".join(map(str, size)) for size in (config.size, preprocess.size))
        raise ValueError(
            f"its model takes images of {there} pixels and its preprocessing gives {here}"
        )
    return preprocess


def check_classes(content: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuse names, thresholds and counts that are not one for each output of the model.

    Raises:
        ValueError: With a clause that says which.
    """
    count = config.num_classes
    if (named := len(content["classes"])) not in (0, count):
        raise ValueError(f"it names {named:,} classes, and its model has {count:,} outputs")
    for name, values in (
        ("thresholds", content.get("thresholds")),
        ("provenance.training_counts", content["provenance"].get("training_counts")),
    ):
        if values is not None and len(values) != count:
            raise ValueError(
                f"{name} are {len(values):,} numbers, and its model has {count:,} outputs"
            )


def check_tensors(model: str, config: ModelConfig, shapes: Shapes) -> None:
    """Refuse a configuration that the names and shapes of the tensors contradict, before anything is built of it.

    Raises:
        ValueError: With a clause that says where they differ.
    """
    family, _ = find_variant(model)
    try:
        told = family.implied(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise ValueError(
            f"it describes a {model}, and its tensors are not those of a {family.title}"
        ) from None
    for name, there in told.items():
        if name == "positions":
            here = math.prod(getattr(config, "grid", (there,)))
        elif name in vars(config) and not isinstance(there, str | None):
            here = getattr(config, name)
        else:
            continue  # a word is taken by what it makes of the shapes
        if not _agree(here, there):
            raise ValueError(
                f"it says {name} {shorten(here)}, and its tensors are of {name} {shorten(there)}"
            )


def _agree(here: Any, there: Any) -> bool:
    """Say whether numbers are the same; a ratio is rounded down to whole channels, of which there are two at least."""
    if isinstance(here, tuple) and isinstance(there, tuple):
        return len(here) == len(there) and all(map(_agree, here, there))
    return (
        abs(here - there) < 0.5
        if isinstance(there, float) and not isinstance(here, tuple)
        else here == there
    )


def check_exported(said: Any) -> None:
    """Refuse what a file says of its export where a value is of another kind than it is used as.

    Raises:
        ValueError: With a clause that says which value, and what it must be.
    """
    if not isinstance(said, dict):
        raise ValueError(f"provenance.exported is {shorten(said)}; it must be a mapping")
    for name in ("format", "source", "sha256"):
        if not isinstance(said.get(name), str):
            raise ValueError(
                f"provenance.exported.{name} is {shorten(said.get(name))}; it must be text"
            )
    for name, allowed in (
        ("precision", ("float32", "bfloat16", "float16", "int8")),
        ("input", ("normalised", "image")),
    ):
        if name in said and said[name] not in allowed:
            raise ValueError(
                f"provenance.exported.{name} is {shorten(said[name])}; it must be "
                f"{' or '.join(allowed)}"
            )
    if said["format"] not in NEEDED:
        raise ValueError(
            f"provenance.exported.format is {shorten(said['format'])}; it must be one of "
            f"{', '.join(NEEDED)}"
        )
    batch = said.get("batch_size")
    if batch is not None and not (_is_whole(batch) and 1 <= batch <= MAX_BATCH):
        raise ValueError(
            f"provenance.exported.batch_size is {shorten(batch)}; it must be 1 to {MAX_BATCH:,}, "
            "or null"
        )
    details = said.get("details")
    if not isinstance(details, dict) or not _are_texts(details.values()):
        raise ValueError(
            f"provenance.exported.details is {shorten(details)}; it must be texts by name"
        )
    if missing := [name for name in NEEDED[said["format"]] if name not in details]:
        raise ValueError(f"provenance.exported.details.{missing[0]} is missing")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _is_whole(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(one, int) and not isinstance(one, bool) for one in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _classes(names: list[Any]) -> str:
    for index, name in enumerate(names):
        if not isinstance(name, str) or len(name) > MAX_NAME or not _is_text(name):
            return f"[{index}] is {shorten(name)}; it must be text of at most {MAX_NAME:,} letters"
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        return f" has {shorten(twice)} twice; each names one output"
    return ""


def _is_text(value: str) -> bool:
    """Say whether all of a text are letters; JSON also has halves of letters, which nothing can show or store."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _thresholds(values: Any) -> str:
    if values is None:
        return ""
    if isinstance(values, list) and all(_is_number(value) and 0 <= value <= 1 for value in values):
        return ""
    return f" is {shorten(values)}; it must be a list of probabilities, one for each class"


def _metrics(values: dict[str, Any]) -> str:
    for name, value in values.items():
        if not name.startswith("val_") or value is None:
            continue
        if not _is_number(value):
            return f".{shorten(name)[1:-1]} is {shorten(value)}; it must be a number"
        # the loss of a run is NaN where logits of an image were not finite
        if 2**63 <= abs(value) < math.inf:
            return f".{shorten(name)[1:-1]} is {shorten(value)}; it must be a number below 2^63"
    return ""


def _provenance(values: dict[str, Any]) -> str:
    if "training_counts" in values:
        counts = values["training_counts"]
        if not isinstance(counts, list) or not all(
            _is_whole(count) and 0 <= count < 2**53 for count in counts
        ):
            return f".training_counts is {shorten(counts)}; it must be a list of numbers of images"
    if "images" in values:
        images = values["images"]
        if not isinstance(images, dict) or not _are_texts(images.values()):
            return f".images is {shorten(images)}; it must be hashes by the names of splits"
    if "sketch" in values:
        known = values["sketch"]
        if not isinstance(known, str) or not SKETCH.fullmatch(known):
            return f".sketch is {shorten(known)}; it must be hashes"
    return ""


def _recipe(values: dict[str, Any]) -> str:
    for name, section in values.items():
        if not isinstance(section, dict):
            return f".{shorten(name)[1:-1]} is {shorten(section)}; it must be a section of settings"
    return ""


TESTS: Mapping[str, Callable[[Any], str]] = {
    "classes": _classes,
    "thresholds": _thresholds,
    "metrics": _metrics,
    "provenance": _provenance,
    "recipe": _recipe,
}
"""Checks of parts that have parts themselves: each says as a clause what is wrong; empty where
nothing is."""
