"""Read preprocessing and class names from a config.json of timm's or of the Hugging Face hub."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.choices import Resize
from vitrail.config.sections import MIN_STD, find_pixel_range

FILTERS = ("bicubic", "bilinear")
CROP_MODES: Mapping[str, Resize] = {"center": "crop", "squash": "squash", "border": "letterbox"}
"""What timm's crop_mode is called in the setting preprocess.resize."""
MOST = 65535
"""Upper bound of a mean or standard deviation of pixels."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Preprocessing that a config.json settles, and what could not be followed."""

    values: Mapping[str, Any]
    """Fields of Preprocess that the file settles."""
    notes: tuple[str, ...] = ()
    """What was understood otherwise than it stands there, as clauses that follow the file's
    name."""
    doubts: tuple[str, ...] = ()
    """What cannot be had, and what is taken instead."""


def read_images(said: Mapping[str, Any], own: Mapping[str, Any], channels: int) -> Images:
    """Return what a config.json settles of the preprocessing; what it does not stays the model's own.

    Args:
        said: The `pretrained_cfg` of it, or all of it in timm's older files.
        own: The preprocessing that the weights would have without it.
        channels: Channels of the images.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    doubts: list[str] = []
    for name in ("mean", "std"):
        if name in said:
            lowest = MIN_STD if name == "std" else -math.inf
            numbers = _numbers(said[name], channels, above=lowest)
            if numbers is None:
                doubts.append(_instead(name, said[name], name, own))
            else:
                values[name] = numbers
    _to_unit_scale(values, notes, doubts)
    if "crop_pct" in said:
        crop = said["crop_pct"]
        if _is_number(crop) and 0 < crop <= 1:
            values["crop"] = float(crop)
        else:
            doubts.append(
                _instead("crop_pct", crop, "crop", own)
                + "; timm itself takes 0.875" * (crop is None)
            )
    if "interpolation" in said:
        if said["interpolation"] in FILTERS:
            values["interpolation"] = said["interpolation"]
        else:
            doubts.append(_instead("interpolation", said["interpolation"], "interpolation", own))
    _read_crop_mode(said, values, doubts)
    return Images(values=values, notes=tuple(notes), doubts=tuple(doubts))


def _read_crop_mode(said: Mapping[str, Any], values: dict[str, Any], doubts: list[str]) -> None:
    """Take how images are fitted, where all of them is seen too."""
    mode = said.get("crop_mode")
    resize = CROP_MODES.get(mode) if isinstance(mode, str) else None
    if resize is not None:
        values["resize"] = resize
        share = values.get("crop", 1.0)
        if resize != "crop" and share < 1:
            doubts.append(
                f"has crop_mode {mode} with crop_pct {_short(share)}, which cuts off the edges; all "
                "of an image is taken instead"
            )
    elif mode is not None:
        doubts.append(
            f"asks for crop_mode {_short(mode)}; the centre is cut instead, and preprocess.resize "
            "sets another"
        )


def read_labels(config: Mapping[str, Any]) -> list[Any] | None:
    """Return the names of the logits, in timm's place or in the hub's."""
    if "label_names" in config:
        return config["label_names"] if isinstance(config["label_names"], list) else []
    numbered = config.get("id2label", _turned_round(config.get("label2id")))
    if not isinstance(numbered, dict) or any(
        f"LABEL_{key}" == name for key, name in numbered.items()
    ):
        return None  # what transformers writes where there are no names
    by_number = {str(key): name for key, name in numbered.items()}
    numbers = list(map(str, range(len(by_number))))
    if by_number.keys() != set(numbers):
        return []  # numbered from 1, or with gaps
    return [by_number[number] for number in numbers]


def _turned_round(numbers: Any) -> dict[str, Any] | None:
    """Return names by their numbers, of a mapping that has the numbers by name."""
    if not isinstance(numbers, dict):
        return None
    by_number = {str(number): name for name, number in numbers.items()}
    return by_number if len(by_number) == len(numbers) else {}


def _numbers(value: Any, channels: int, above: float) -> tuple[float, ...] | None:
    """Return one number for each channel; one alone is for all."""
    listed = [value] if _is_number(value) else value
    if not isinstance(listed, list) or not all(
        _is_number(number) and number > above for number in listed
    ):
        return None
    if len(listed) == 1:
        listed = listed * channels
    if len(listed) != channels:
        return None
    return tuple(map(float, listed))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _to_unit_scale(values: dict[str, Any], notes: list[str], doubts: list[str]) -> None:
    """Bring statistics for larger pixels, from 0 to 255 as a rule, to the scale that they have here, 0 to 1."""
    ranges = {name: find_pixel_range(values.get(name, ())) for name in ("mean", "std")}
    most = max(ranges.values())
    larger = [name for name in ranges if ranges[name] > 1]
    if larger == ["mean"] and "std" in values:
        if max(values["std"]) < 1:  # 1 is for such pixels too, left as they are
            doubts.append(
                f"has mean for pixels from 0 to {most}, and std {_short(values['std'])} for pixels "
                "from 0 to 1"
            )
        else:
            larger = ["mean", "std"]
    for name in larger:
        values[name] = tuple(value / most for value in values[name])
        notes.append(
            f"has {name} for pixels from 0 to {most}, which is {_short(values[name])} for pixels "
            "from 0 to 1"
        )


def _instead(theirs: str, value: Any, ours: str, own: Mapping[str, Any]) -> str:
    why = "is for training" if value == "random" else "cannot be had here"
    return (
        f"has {theirs} {_short(value)}, which {why}; the model's own {_short(own[ours])} is taken, "
        f"and preprocess.{ours} sets another"
    )


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_short, value[:4]))}{', ...' * (len(value) > 4)}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)[:40]
