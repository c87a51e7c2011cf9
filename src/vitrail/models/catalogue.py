"""The table of models: what they cost, what was published about them, how they read images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail.models.family import Family, ModelConfig
from vitrail.models.registry import canonical_name, find_library, find_variant, list_models

COLUMNS = (
    "model",
    "params, M",
    "trainable, M",
    "MACs, G",
    "published top-1",
    "top-5",
    "source",
    "preprocessing",
)


MOST_ROWS = 100
"""Models of a library that are listed at once; timm has over a thousand."""


@dataclass(frozen=True)
class Costs:
    """What a model costs."""

    params: int
    trainable: int
    macs: int
    """Multiply-adds of one image."""


def measure_costs(family: Family[Any], config: ModelConfig) -> Costs:
    """Count the parameters and multiply-adds of a model, without memory for its weights."""
    with torch.device("meta"):
        model = family.model(config).eval()
    parameters = list(model.parameters())
    trainable = sum(one.numel() for one in parameters if one.requires_grad)
    # the counter cannot follow an argument that wants a gradient where there are none
    model.requires_grad_(False)
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, config.in_channels, *config.size))
    return Costs(sum(one.numel() for one in parameters), trainable, counter.get_total_flops() // 2)


def catalogue(pattern: str = "*") -> list[tuple[str, ...]]:
    """Return one row of texts, in the order of COLUMNS, for each model whose name matches a shell pattern.

    Models of a library are measured, at their own image size, where the pattern names one; of
    others the costs are left empty, and MOST_ROWS of them are listed.
    """
    rows = []
    names = list_models(pattern) or _whole_name(pattern)
    for name in names[:MOST_ROWS] if find_library(pattern) else names:
        family, card = find_variant(name)
        costs = (card.params, card.trainable, card.macs)
        if card.params is None and name == pattern:
            measured = measure_costs(family, card.config)
            costs = (measured.params, measured.trainable, measured.macs)
        statistics = "ImageNet mean and std"
        if set(card.mean) == {0.5}:
            statistics = "mean and std 0.5"
        size = "x".join(str(n) for n in dict.fromkeys(card.config.size))
        rows.append(
            (
                name,
                _share(costs[0], 1e6, 2),
                _share(costs[1], 1e6, 2),
                _share(costs[2], 1e9, 3),
                _percent(card.top1),
                _percent(card.top5),
                card.source,
                f"{size} px of {card.crop:g}, {card.interpolation}, {statistics}",
            )
        )
    return rows


def count_models(pattern: str) -> int:
    """Return how many models match a shell pattern."""
    return len(list_models(pattern) or _whole_name(pattern))


def _whole_name(pattern: str) -> list[str]:
    """Return a library's model of that very name: with the tag of its weights, it is in no list.

    Raises:
        ConfigError: The library has none; the message has the closest name.
    """
    is_name = find_library(pattern) is not None and not set(pattern) & set("*?[")
    return [canonical_name(pattern)] if is_name else []


def _share(number: int | None, unit: float, digits: int) -> str:
    return "" if number is None else f"{number / unit:.{digits}f}"


def _percent(accuracy: float | None) -> str:
    return f"{accuracy:.1f}" if accuracy else ""
