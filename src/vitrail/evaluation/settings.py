"""The settings of an evaluation: those that are given, over those that the model's file was made with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import Layer, Resolved, resolve, to_dict
from vitrail.config.sections import DataSection
from vitrail.data.setting_checks import DIVISION
from vitrail.data.tables.hub import is_hf, is_on_hub
from vitrail.errors import ConfigError
from vitrail.weights.checkpoint import Record

OF_THE_MACHINE = ("workers", "download", "cache_gb")
"""Data settings that say what this machine spends, in processes, downloads and disk."""


def resolve_for(record: Record, settings: Sequence[Layer]) -> Resolved[EvaluateConfig]:
    """Return the settings of an evaluation: those given, over those of the data that a weight file was made with."""
    pixels = {"channels": record.preprocess.channels, "bits": record.preprocess.bits}
    layers = [*inherited_data(record, settings), Layer("weight file", {"data": pixels}), *settings]
    return resolve(EvaluateConfig, layers)


def inherited_data(record: Record, settings: Sequence[Layer]) -> list[Layer]:
    """Return the data settings that a weight file was made with, less those that a data set named anew replaces.

    Settings of this machine, such as the number of processes, are never taken from a file.

    Raises:
        ConfigError: The file names a data set of the Hub, and the settings do not name it too.
    """
    known = to_dict(DataSection()).keys() - {*OF_THE_MACHINE}
    data = {key: value for key, value in record.recipe.get("data", {}).items() if key in known}
    manifest = data.get("manifest")
    if not isinstance(manifest, str) or not Path(manifest).expanduser().is_file():
        # a manifest that is not here would be written here
        data.pop("manifest", None)
    given: dict[str, Any] = {}
    for layer in settings:
        given |= layer.values.get("data", {})
    if {"name", "root", "list"} & given.keys():
        data.pop("unlabelled", None)  # what is named is named for its labels
    is_named = "name" in given
    if is_named and given["name"] == data.get("name"):
        # the same set, and said to be wanted
        del given["name"]

    # Another root of a named set holds the same set; another name, or another folder, is divided in
    # its own way.
    changed = {key for key in ("root", "list") if key in given and given[key] != data.get(key)}
    is_here = data.get("name") is None or is_hf(data["name"])
    if "name" in given or "list" in changed or (changed and is_here):
        kept = [*DIVISION]
        # a quarantine is for images that were looked at, and sets with a name declare an order
        if not given.get("name"):
            kept += ["bad_files", "class_order"]
        if "list" in given:
            kept += ["path_column", "label_column", "labels_column"]
        data = {key: data[key] for key in kept if key in data}
    if not is_named and is_on_hub(data.get("name")):
        raise ConfigError(
            f"the weight file names {data['name']}, a data set of the Hugging Face Hub, and "
            "nothing is downloaded because a file says so; if you trust it, write "
            f"data.name={data['name']}, or give other images with data.root=FOLDER"
        )
    if not data:
        return []
    return [Layer("weight file", {"data": data})]
