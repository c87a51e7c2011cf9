"""The command pretrain: from images without labels to the weights of a network without a head."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from vitrail.cli.channel import outlive_output
from vitrail.cli.options import split_recipe
from vitrail.distributed.launch import is_main_process


def pretrain(
    *data: Annotated[
        str,
        Parameter(
            show_default=False,
            help="Folder of images at any depth, or a list, and settings as section.key=value.",
        ),
    ],
    teacher: Annotated[
        str | None,
        Parameter(
            help="Trained model whose features are learned: a weight file, or a name that "
            "`vitrail weights` lists."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        Parameter(
            help="Folder or list of labelled images: their k-NN accuracy by the features is "
            "measured before and after the training."
        ),
    ] = None,
) -> int:
    """Train a network on a teacher's features of your images, without labels; `vitrail finetune` takes the weights.

    It is a training like any other: `vitrail train --resume RUN` goes on with it.

    ```
    vitrail pretrain photos/ --teacher twins_svt_large
    vitrail pretrain photos/ --teacher timm:vit_small_patch14_dinov2 --labels labelled/
    vitrail pretrain photos/ --teacher best.safetensors model.name=tnt_ti_patch16_224 distill.views=10
    torchrun --nproc-per-node 8 -m vitrail pretrain photos/ --teacher twins_svt_large train.batch_size=512
    ```
    """
    from vitrail.api import pretraining as api
    from vitrail.cli.terminal import open_terminal
    from vitrail.cli.training import show_training

    folder, tokens = split_recipe(data, None)
    outlive_output()  # log.txt has what was to be shown
    with open_terminal() as display:
        result = api.pretrain(folder, tokens, teacher=teacher, labels=labels, display=display)
        if is_main_process():
            show_training(result, display)
    return 0
