"""The learning rate of each update, as a pure function of the update's number."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    update: int,
    *,
    name: Literal["cosine", "step", "exponential", "constant"],
    peak: float,
    warmup_start: float,
    floor: float,
    warmup_updates: int | float,
    total_updates: int | float,
    decay_updates: int | float,
    decay_rate: float,
) -> float:
    """Return the learning rate of update number `update`, counted from 0.

    The warm-up replaces the beginning of the main curve, as timm's schedulers have it by default; it does not come
    before it. After `total_updates` (in the cooldown) a cosine stays at `floor`.
    """
    if update < warmup_updates:
        return warmup_start + (peak - warmup_start) * update / warmup_updates
    if name == "cosine":
        progress = min(update / total_updates, 1.0)
        return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
    if name == "constant":
        return peak
    periods = update / decay_updates
    return max(floor, peak * decay_rate ** (math.floor(periods) if name == "step" else periods))
