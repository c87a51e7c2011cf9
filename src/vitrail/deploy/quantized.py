"""The result of a quantization to 8 bits: what was tried, and how accurate, large and fast the file is. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One 8-bit file that was tried: its layers in float, its accuracy and its size."""

    kept: tuple[str, ...]
    """Layers that stay in float, the most sensitive first."""
    measure: float
    """Top-1 of a single-label model, mAP of a multi-label one; percent."""
    drop: float
    """Points of the measure lost against the weights."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The latency, accuracy and size of one file: the weights, a float export, or the 8-bit file."""

    what: str
    about: str
    """Engine, precision and threads."""
    measure: float
    """Top-1 of a single-label model, mAP of a multi-label one; percent."""
    bytes: int
    ms: dict[int, float]
    """Latency of a batch by its size: medians of alternating rounds, each file in a process of its
    own."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The result of `quantize`: file, trials, accuracy and latency."""

    path: Path
    """The 8-bit file; its name ends in .rejected where no trial passed."""
    is_good: bool
    """Whether the allowed drop was kept."""
    numbers: Path
    """JSON file with all of these values."""
    measured_by: Literal["top-1", "mAP"]
    """The measure: top-1, or mAP of a multi-label model."""
    exact: float
    """The measure of the weights, percent."""
    max_drop: float
    """Points of the measure that may be lost."""
    images: int
    """Number of labelled images that accuracy was measured on."""
    calibrated_on: str
    """Images that the ranges of inputs were found on."""
    layers: int
    """Number of layers that could be in 8 bits."""
    trials: tuple[Trial, ...]
    """Files that were tried."""
    sensitivities: dict[str, float]
    """Result of `measure_sensitivities` by layer, the most sensitive first."""
    speeds: tuple[Speed, ...]
    """Alternatives, and the 8-bit file last; empty where no trial passed."""
