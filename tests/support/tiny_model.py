"""The weight file of an untrained tiny TNT for the classes of the fixture `image_folder`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.images.preprocess import Preprocess

CLASSES = ("blue", "green", "red")


def save_tiny(
    folder: Path,
    preprocess: Preprocess | None = None,
    thresholds: tuple[float, ...] | None = None,
    *,
    classes: tuple[str, ...] = CLASSES,
    **options: Any,
) -> Path:
    """Write the weight file of an untrained tiny TNT; `options` are fields of its configuration."""
    import torch

    from vitrail.images.preprocess import Preprocess
    from vitrail.models.registry import create_model, find_variant
    from vitrail.weights.checkpoint import Record, model_options, provenance, save_model

    preprocess = preprocess or Preprocess(size=(32, 32))
    name = "tnt_ti_patch16_224"
    torch.manual_seed(0)
    model = create_model(
        name,
        **{
            **find_variant(name)[0].tiny,
            "num_classes": len(classes),
            "in_channels": preprocess.channels,
            **options,
        },
    )
    path = folder / "tiny.safetensors"
    record = Record(
        model=name,
        options=model_options(model),
        classes=classes,
        preprocess=preprocess,
        thresholds=thresholds,
        provenance=provenance(),
    )
    save_model(path, model.state_dict(), record)
    return path


def fill_head(checkpoint: Path, value: float) -> None:
    """Let every weight of the head be one value, such as NaN; the file says of itself what it said."""
    from safetensors import safe_open

    from vitrail.weights.checkpoint import encode_safetensors

    with safe_open(checkpoint, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # a digest of the weights as they were would refuse the others as damaged
        metadata = {key: text for key, text in file.metadata().items() if "digest" not in key}
    weights["head.weight"].fill_(value)
    checkpoint.write_bytes(encode_safetensors(weights, metadata))
