"""The table of models: what they cost, what was published about them, how they read images."""

from __future__ import annotations

from vitrail.models.registry import find_variant, list_models

COLUMNS = (
    "model",
    "params, M",
    "trainable, M",
    "MACs at 224, G",
    "published top-1",
    "top-5",
    "source",
    "preprocessing",
)


def catalogue(pattern: str = "*") -> list[tuple[str, ...]]:
    """Return one row of texts, in the order of COLUMNS, for each model whose name matches a shell pattern."""
    rows = []
    for name in list_models(pattern):
        _, card = find_variant(name)
        statistics = "ImageNet mean and std"
        if set(card.mean) == {0.5}:
            statistics = "mean and std 0.5"
        size = "x".join(str(n) for n in dict.fromkeys(card.config.size))
        rows.append(
            (
                name,
                f"{card.params / 1e6:.2f}",
                f"{card.trainable / 1e6:.2f}",
                f"{card.macs / 1e9:.3f}",
                _percent(card.top1),
                _percent(card.top5),
                card.source,
                f"{size} px of {card.crop:g}, {card.interpolation}, {statistics}",
            )
        )
    return rows


def _percent(accuracy: float | None) -> str:
    return f"{accuracy:.1f}" if accuracy else ""
