"""`vitrail pretrain`: a training without labels, as settings over which the given ones go. No torch."""

from __future__ import annotations

from typing import Any

from vitrail.config.recipes import RECIPES
from vitrail.config.resolve import Layer
from vitrail.errors import ConfigError, command
from vitrail.migrate.recipes import OpenedRecipe
from vitrail.training.start import Start, begin_new

DEFAULTS: dict[str, dict[str, Any]] = {
    # Its windows and its position encoding by convolutions look at neighbours first, which few images
    # would have to teach TNT and T2T-ViT; it takes images of any size, has the fewest multiply-adds of
    # its accuracy, and is what `vitrail finetune` takes too.
    "model": {"name": "twins_svt_small"},
    "data": {"unlabelled": True},
    "augment": {"scale": [0.3, 1.0]},
    "distill": {"loss": "tokens"},
    "optim": {"lr": 5e-4, "clip_norm": 1.0},
    "schedule": {"min_lr": 1e-6},
    "train": {"epochs": 100, "batch_size": 64},
}
"""Settings of a pretraining, by section."""


def begin_pretraining(name: str, given: Layer) -> Start:
    """Return the run of a pretraining.

    Args:
        name: Name of the run folder, where `output.name` does not say.
        given: Settings that were given, the images and the teacher among them.

    Raises:
        ConfigError: They do not fit together, or there is no teacher.
    """
    if given.values.get("data", {}).get("unlabelled", True) in (False, "false"):
        raise ConfigError(
            "data.unlabelled=false: a pretraining reads no labels; leave it out, or learn from labels "
            f"and a teacher with `{command('train')}` and distill.teacher"
        )
    epochs = given.values.get("train", {}).get("epochs", DEFAULTS["train"]["epochs"])
    warmup = min(5.0, int(epochs) / 20) if str(epochs).isdigit() else 5.0
    schedule = {**DEFAULTS["schedule"], "warmup_epochs": warmup}
    recipe = Layer("pretraining", {**DEFAULTS, "schedule": schedule})
    return begin_new(OpenedRecipe(name, str(RECIPES / "pretraining.yaml"), recipe), given)
