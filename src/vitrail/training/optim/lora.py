"""LoRA (Hu et al. 2021): low-rank adapters beside the frozen layers of a network, and how they are merged into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from torch import Tensor, nn

from vitrail.config.training_sections import LoraSection
from vitrail.errors import ConfigError, MissingExtra
from vitrail.models.family import VisionModel

DOWN, UP, BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."
"""What peft calls the two matrices of an adapter, and the layer beside it."""


def add_adapters(model: VisionModel, settings: LoraSection) -> None:
    """Put adapters beside the chosen layers, and train nothing but them and the head.

    An adapter begins as zero, so the network computes what it did.

    Raises:
        ConfigError: The model has no such layers, or the rank is above the width of one.
        MissingExtra: peft is not installed.
    """
    if find_spec("peft") is None:
        raise MissingExtra(
            f"lora.rank={settings.rank}: needs peft; run: pip install 'vitrail[lora]'"
        )
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    assert settings.rank is not None
    layers = [
        name for name, module in model.named_modules() if kind_of(name, module) in settings.targets
    ]
    if not layers:
        targets = " or ".join(settings.targets)
        raise ConfigError(
            f"lora.rank={settings.rank}: the model has no linear layers of an {targets}; leave it "
            "out, or freeze.until=head trains the head alone"
        )
    _refuse_wide_rank(settings.rank, model, layers)
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale * settings.rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=layers,
    )
    inject_adapter_in_model(adapters, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.is_of_head(name) or name.endswith((DOWN, UP)))


def _refuse_wide_rank(rank: int, model: VisionModel, layers: Sequence[str]) -> None:
    """Refuse a rank that no adapter of the narrowest layer can have, as its matrix has a lower one itself."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name in layers:
            widths[name] = min(module.in_features, module.out_features)
    narrowest = min(widths, key=lambda name: widths[name])
    if rank > widths[narrowest]:
        raise ConfigError(
            f"lora.rank is {rank}; it must be at most {widths[narrowest]}, the width of {narrowest}, "
            "which is the narrowest layer that has an adapter; fewer, such as 8, are usual"
        )


def kind_of(name: str, module: nn.Module) -> str | None:
    """Say whether a module is a linear layer of an attention, or of an MLP; None for all others."""
    if not isinstance(module, nn.Linear):
        return None
    parts = name.split(".")[:-1]
    if any(part == "mlp" or part.endswith("_mlp") for part in parts):
        return "mlp"
    if any(
        part == "attn" or part.endswith("_attn") or part.startswith("attention") for part in parts
    ):
        return "attention"
    return None


def merge_adapters(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the weights of a network without adapters that computes what the one with these weights does."""
    merged = {}
    for name, tensor in weights.items():
        if name.endswith((DOWN, UP)):
            continue
        layer = name.removesuffix(f"{BASE}weight")
        if layer != name:
            tensor = tensor + scale * (weights[layer + UP] @ weights[layer + DOWN])
        merged[name.replace(BASE, ".")] = tensor
    return merged
