"""The settings of an evaluation: those that are given, over those that the model's file was made with."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.config.sections import DataSection, EvaluateConfig, Layer, Resolved, resolve, to_dict
from vitrail.data.opening import DIVISION
from vitrail.data.tables.hub import is_hf
from vitrail.weights.checkpoint import Record


def resolve_for(record: Record, settings: Sequence[Layer]) -> Resolved[EvaluateConfig]:
    """Return the settings of an evaluation: those given, over those of the data that a weight file was made with."""
    pixels = {"channels": record.preprocess.channels, "bits": record.preprocess.bits}
    layers = [*inherited_data(record, settings), Layer("weight file", {"data": pixels}), *settings]
    return resolve(EvaluateConfig, layers)


def inherited_data(record: Record, settings: Sequence[Layer]) -> list[Layer]:
    """Return the data settings that a weight file was made with, less what a data set named anew replaces."""
    data = dict(record.recipe.get("data", {}))
    given = {key: value for layer in settings for key, value in layer.values.get("data", {}).items()}
    # another root of a named set holds the same set; another name, or another folder, is divided in its own way
    changed = {key for key in ("root", "list") if key in given and given[key] != data.get(key)}
    is_here = data.get("name") is None or is_hf(data["name"])
    if "name" in given or "list" in changed or (changed and is_here):
        kept = ["download", "workers", *DIVISION]
        # a quarantine is for what was looked at, and sets with a name declare an order
        kept += [] if given.get("name") else ["bad_files", "class_order"]
        kept += ["path_column", "label_column", "labels_column"] if "list" in given else []
        data = {key: data[key] for key in kept if key in data}
    known = to_dict(DataSection())
    return [Layer("weight file", {"data": {key: value for key, value in data.items() if key in known}})] if data else []
