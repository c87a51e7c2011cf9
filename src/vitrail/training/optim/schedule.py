"""Learning-rate schedules: cosine, linear, step, exponential, constant, with warm-up, by the number of the update."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    update: int,
    *,
    name: Literal["cosine", "linear", "step", "exponential", "constant"],
    peak: float,
    warmup_start: float,
    floor: float,
    warmup_updates: int | float,
    total_updates: int | float,
    decay_updates: int | float,
    decay_rate: float,
    warmup_prefix: bool = False,
    cosine_updates: int | float | None = None,
    clip: bool = False,
) -> float:
    """Return the learning rate of update number `update`, counted from 0.

    The warm-up replaces the beginning of the main curve, as timm's schedulers have it by default;
    with `warmup_prefix` it comes before it. A cosine takes `cosine_updates`, or what there is until
    `total_updates`, and stays at `floor` from then on; a line ends at `total_updates`. With `clip`
    a cosine falls to zero instead, and no rate, the warm-up's included, is below `floor`.
    """
    if update < warmup_updates:
        rate = warmup_start + (peak - warmup_start) * update / warmup_updates
        return max(rate, floor) if clip else rate
    before = warmup_updates if warmup_prefix else 0
    if name == "cosine":
        length = total_updates - before if cosine_updates is None else cosine_updates
        progress = 1.0
        if length > 0:
            progress = min((update - before) / length, 1.0)
        share = (1 + math.cos(math.pi * progress)) / 2
        if clip:
            return max(peak * share, floor)
        return floor + (peak - floor) * share
    if name == "linear":
        progress = min((update - before) / max(total_updates - before, 1), 1.0)
        return floor + (peak - floor) * (1 - progress)
    if name == "constant":
        return peak
    periods = (update - before) / decay_updates
    if name == "step":
        periods = math.floor(periods)
    return max(floor, peak * decay_rate**periods)
