"""Write and upload a folder for the Hugging Face hub and timm: weights, config.json and a model card."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from vitrail.errors import CheckpointError, list_values
from vitrail.files import files_of, refusal_told, refuse_replacing, write_whole
from vitrail.imagenet import list_wordnet_ids
from vitrail.images.pixels import describe_channels
from vitrail.images.preprocess import Preprocess
from vitrail.models.dialects import write_names
from vitrail.models.registry import find_library
from vitrail.weights.checkpoint import Record, config_of, encode_safetensors, to_metadata
from vitrail.weights.config_fields import ADAPTABLE, read_numerics
from vitrail.weights.image_config import CROP_MODES
from vitrail.weights.loading import open_model
from vitrail.weights.request import LoadRequest

WEIGHTS = "model.safetensors"
PREFIX = "vitrail_"
"""Put before the name of a model of ours in timm, where timm has a model of that name itself."""
FOLDER = (WEIGHTS, "config.json", "README.md")
"""Files of a folder that is written."""


def save_pretrained(source: Path | str, folder: Path) -> tuple[str, ...]:
    """Write a weight file as a folder that `vitrail.load_model`, `timm.create_model("local-dir:...")` and the hub read.

    Args:
        source: Any file that `vitrail.load_model` reads.
        folder: The folder to make.

    Returns:
        The paths of the files in it.

    Raises:
        CheckpointError: It cannot be read or written.
        ConfigError: The source is a file of the folder, and would be replaced.
    """
    for name in FOLDER:
        refuse_replacing("folder", folder / name, files_of(source))
    opened = open_model(source, LoadRequest(two_logits=False))
    if is_of_timm(opened.record.model) and (differing := other_numerics(opened.record)):
        given = list_values(differing)
        warnings.warn(
            f"{folder}: these weights compute with {given}; vitrail reads that from the folder, "
            "timm's own models cannot, and differ by about 1e-3 in the logits",
            stacklevel=2,
        )
    return save_folder(folder, opened.weights, opened.record, described=True)


def other_numerics(record: Record) -> dict[str, Any]:
    """Return which of a model's numerics weights need otherwise than the published ones."""
    published = read_numerics(record.variant.config)
    needed = read_numerics(config_of(record))
    return {name: value for name, value in needed.items() if value != published[name]}


def is_of_timm(model: str) -> bool:
    """Say whether timm itself has a model of this name, which takes no numerics."""
    from timm.models import is_model, model_entrypoint  # importing timm takes seconds

    if find_library(model) is not None:
        return True
    return is_model(model) and model_entrypoint(model).__module__.startswith("timm.")


def name_in_timm(model: str) -> str:
    """Return the name by which `import vitrail.timm` registers a model in timm."""
    return PREFIX + model if is_of_timm(model) else model


def push_to_hub(source: Path | str, repository: str, folder: Path, *, private: bool = True) -> str:
    """Write a folder as `save_pretrained` does and upload it; returns its address. Log in with `hf auth login` first.

    Args:
        source: Any file that `vitrail.load_model` reads.
        repository: OWNER/NAME on the hub; made if it is not there.
        folder: Where the files are written before they are sent.
        private: Whether a repository that is made can be seen by its owner only.

    Raises:
        CheckpointError: The file cannot be read or written, or the hub refuses.
    """
    save_pretrained(source, folder)
    try:
        address = huggingface_hub.create_repo(repository, private=private, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload a model of vitrail"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{repository}: cannot be uploaded ({reason}); the files are in {folder}"
        ) from error
    return str(address)


def save_folder(
    folder: Path, weights: Mapping[str, Tensor], record: Record, *, described: bool = False
) -> tuple[str, ...]:
    """Write weights, config.json and model card into a folder.

    Args:
        folder: Made if it is not there.
        weights: By whatever names the folder's readers expect.
        record: What is known of them.
        described: Put the record into the weight file too, which then needs official names.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    with refusal_told(folder, None, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    if described:
        metadata |= to_metadata(record)
    files = {
        WEIGHTS: encode_safetensors(weights, metadata),
        "config.json": (json.dumps(timm_config(record), indent=2) + "\n").encode(),
        "README.md": model_card(record).encode(),
    }
    for name, data in files.items():
        write_whole(folder / name, data, "choose another folder")
    return tuple(str(folder / name) for name in files)


def timm_config(record: Record) -> dict[str, Any]:
    """Return the config.json that timm reads a model from."""
    preprocess, options = record.preprocess, record.options
    heads = record.family.head
    names = {ours: theirs for theirs, ours in CROP_MODES.items()}
    config: dict[str, Any] = {
        "architecture": _architecture(record),
        "num_classes": options["num_classes"],
    }
    if record.classes:
        config["label_names"] = list(record.classes)
    if arguments := _model_arguments(record):
        config["model_args"] = arguments
    config["pretrained_cfg"] = {
        "input_size": [options["in_channels"], *preprocess.size],
        "fixed_input_size": not record.family.library_name,
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop if preprocess.resize == "crop" else 1.0,
        "crop_mode": names[preprocess.resize],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": options["num_classes"],
        "classifier": heads[0] if len(heads) == 1 else list(heads),
        **_first_layer(record),
    }
    return config


def _architecture(record: Record) -> str:
    """Return the name by which timm builds the model, without the tag of anybody's weights."""
    return record.family.library_name.partition(".")[0] or record.model


def _model_arguments(record: Record) -> dict[str, Any]:
    """Return what timm has to be told to build the model of a record, beside its name and number of classes."""
    published, channels = record.variant.config, record.options["in_channels"]
    arguments: dict[str, Any] = {}
    if record.family.library_name:
        return record.family.library_arguments(config_of(record))
    if tuple(record.preprocess.size) != published.size:
        arguments["img_size"] = list(record.preprocess.size)
    if channels != 3:
        arguments["in_chans"] = channels
    # then `vitrail.timm` builds it, of any size and with any numerics
    if not is_of_timm(record.model):
        for name, value in vars(config_of(record)).items():
            if name not in (*ADAPTABLE, "drop_path_rate") and value != getattr(published, name):
                arguments[name] = value
    return arguments


def _first_layer(record: Record) -> dict[str, str]:
    """Return what timm asks for to adapt a model of its own to other channels; `vitrail.timm` does that for ours."""
    family = record.family
    if not family.channels or not is_of_timm(record.model):
        return {}
    dialect = next(dialect for dialect in family.dialects if "timm" in dialect.projects)
    (link,), _ = write_names([next(iter(family.channels))], dialect)
    return {"first_conv": link.theirs[0].removesuffix(".weight")}


def model_card(record: Record) -> str:
    """Return a README.md with published and reproduced figures apart."""
    family, preprocess = record.family, record.preprocess
    rows = _accuracy_rows(record)
    classes = _say_classes(record)
    read_as = ""
    if not preprocess.pixels.is_picture:
        read_as = (
            f" of {describe_channels(preprocess.channels)}, {preprocess.pixels.bits} bits each,"
        )
    numerics = ""
    if differing := other_numerics(record):
        listed = list_values(differing)
        numerics = f"These weights compute with {listed}, which timm's own models do not.\n\n"
    origin = ""
    for key, value in record.provenance.items():
        if key not in ("training_counts", "sketch"):
            origin += f"- {key}: {value}\n"
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags:
- vitrail
- {family.name}
---
# {record.model}

Paper: {family.paper}. Code of its authors: {family.code}.

| | published for the architecture on ImageNet-1k | reproduced with these weights on their own validation images |
|-|-|-|
{rows}

{record.options["num_classes"]} classes, {classes}. {_say_resize(preprocess, read_as)}, and it is normalised by mean
{list(preprocess.mean)} and std {list(preprocess.std)}.

{numerics}```python
import vitrail

model = vitrail.load_model("hf-hub:OWNER/NAME")
logits = model(model.preprocess("image.jpg").unsqueeze(0))
```

{origin}"""


def _accuracy_rows(record: Record) -> str:
    """Return the rows of a model card's table: each accuracy as published, and as these weights reach it."""
    figures = (
        {"map": "mAP, %"} if record.is_multi_label else {"top1": "top-1, %", "top5": "top-5, %"}
    )
    published = {"top1": record.variant.top1, "top5": record.variant.top5}
    rows = []
    for key, title in figures.items():
        in_paper = _show_figure(published.get(key), "not published")
        reached = _show_figure(record.metrics.get(f"val_{key}"), "not measured")
        rows.append(f"| {title} | {in_paper} | {reached} |")
    return "\n".join(rows)


def _say_classes(record: Record) -> str:
    """Return the clause of a model card that says what its classes are."""
    if record.classes == list_wordnet_ids():
        named = "ImageNet-1k's"
    elif record.classes:
        named = "named in config.json"
    else:
        named = "not named"
    return f"{named}, of which an image has any number" if record.is_multi_label else named


def _say_resize(preprocess: Preprocess, read_as: str) -> str:
    """Return the clauses of a model card that say how an image comes to its size."""
    size = "x".join(map(str, preprocess.size))
    if preprocess.resize == "squash":
        return f"An image{read_as} is resized to {size} pixels, whatever its proportions ({preprocess.interpolation})"
    if preprocess.resize == "letterbox":
        return (
            f"An image{read_as} is resized to fit into {size} pixels as a whole "
            f"({preprocess.interpolation}), the rest is filled with the mean"
        )
    return (
        f"The short side of an image{read_as} is resized to {size}\npixels divided by\n"
        f"{preprocess.crop:g} ({preprocess.interpolation}), the centre of {size} pixels is cut"
    )


def _show_figure(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.1f}"
