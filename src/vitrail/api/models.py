"""Models from Python: list, build and load them, with arguments that are checked."""

from __future__ import annotations

from typing import Any

from vitrail.api.arguments import checked
from vitrail.errors import CheckpointError
from vitrail.models import registry
from vitrail.models.family import VisionModel
from vitrail.weights import loading
from vitrail.weights.published.catalogue import WORD, find_row

list_models = checked(registry.list_models)
load_model = checked(loading.load_model)
register_family = checked(registry.register_family)


@checked
def create_model(name: str, *, pretrained: bool | str = False, **overrides: Any) -> VisionModel:
    """Build a model, freshly initialised or with published weights.

        backbone = vitrail.create_model("twins_svt_small", pretrained=True, num_classes=0)

    With published weights, a head of another size is fresh, and positions and first layer are
    fitted to the image size and channels that are asked for. The model has their `preprocess`, and
    is in training mode, as a fresh one is.

    Args:
        name: A name of `list_models`, or one that another project uses for the same model.
        pretrained: Whether it begins with the best published weights of the model, or the origin or
            name of others, such as "mindcv" or "t2t_vit_14_384".
        overrides: Fields of the family's configuration, such as `num_classes`, `image_size`
            (pixels, or height and width), `in_channels`, `drop_path_rate` and `drop_rate`.

    Raises:
        CheckpointError: There are no such weights, or they cannot be had; the message says how to
            get them.
        ConfigError: An unknown name or field, or a value that the architecture does not allow.
    """
    if pretrained is False:
        return registry.create_model(name, **overrides)
    model = registry.canonical_name(name)
    word = WORD if pretrained is True else f"{WORD}:{pretrained}"
    try:
        find_row(word, model)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{word}: ")
        best = f"; pretrained=True takes the best of {model}" if _is_published(model) else ""
        raise CheckpointError(f"pretrained={pretrained!r}: {reason}{best}") from error
    return loading.load_model(word, model=model, **overrides).train()


def _is_published(model: str) -> bool:
    """Say whether there are weights of a model at all."""
    try:
        find_row(WORD, model)
    except CheckpointError:
        return False
    return True
