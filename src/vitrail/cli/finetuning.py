"""The command finetune: from a folder of images to a trained model."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from vitrail.cli.channel import outlive_output
from vitrail.cli.options import split_recipe
from vitrail.cli.tables import show_result


def finetune(
    *data: Annotated[
        str,
        Parameter(
            show_default=False, help="Folder or list of images, and settings as section.key=value."
        ),
    ],
    weights: Annotated[
        str | None,
        Parameter(
            help="Weights to begin with, a file or a name of `vitrail weights`; by default the "
            "published ones of the model."
        ),
    ] = None,
    size: Annotated[
        Literal["small", "base"] | None,
        Parameter(
            help="Size of the model, where neither a model nor weights are given; small by default."
        ),
    ] = None,
    budget: Annotated[
        str | None, Parameter(help="Time that training may take: 90s, 10m, 2h.")
    ] = None,
    dry_run: Annotated[
        bool, Parameter(help="Stop at the recipe, which has every choice and its reason.")
    ] = False,
) -> int:
    """Fine-tune a model on your images: every setting that is not given is chosen, with its reason, and shown.

    What the weights reach without training is shown first, and the run keeps its best epoch, or what it began with.

    ```
    vitrail finetune photos/
    vitrail finetune photos/ --budget 10m
    vitrail finetune labels.csv model.name=tnt_s_patch16_224 optim.lr=1e-4 --dry-run
    vitrail finetune photos/ --weights runs/digits/best.safetensors
    ```
    """
    from vitrail.api import finetuning as api
    from vitrail.api import training
    from vitrail.cli.terminal import open_terminal
    from vitrail.cli.training import show_training

    folder, tokens = split_recipe(data, None)
    outlive_output()  # log.txt has what was to be shown
    with open_terminal() as display:
        plan = api.finetune(
            folder, tokens, weights=weights, size=size, budget=budget, dry_run=True, display=display
        )
        show_result(plan)
        if not dry_run:
            show_training(training.train(plan.recipe, display=display), display)
    return 0
