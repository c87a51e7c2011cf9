"""The command reproduce: what a published number takes, and a small run whose curve is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vitrail.cli.options import JsonFile, Settings
from vitrail.cli.tables import show_result
from vitrail.distributed.launch import is_main_process


def reproduce(
    model: Annotated[
        str, Parameter(help="A model, as `vitrail models` lists them, or one of its recipes.")
    ],
    *settings: Settings,
    proxy: Annotated[
        bool,
        Parameter(
            help="Train the small proxy of the model's family on CIFAR-10 instead, and compare its "
            "curve with the band of our own runs; a run that was stopped is resumed."
        ),
    ] = False,
    expected: Annotated[
        Path | None,
        Parameter(
            help="With --proxy, a JSON file of curves of your own runs to compare with, as "
            "docs/reproduce.md shows it."
        ),
    ] = None,
    seconds: Annotated[
        float, Parameter(help="Seconds to make updates for, from which the cost follows.")
    ] = 8.0,
    json_file: JsonFile = None,
) -> int:
    """Show what it takes to reproduce a model's published number: recipe, conditions, and what it costs here.

    With --proxy, status 0 says inside the band, 1 below, 3 above; 75 that it was stopped and saved,
    and that the same command goes on.

    ```
    vitrail reproduce tnt_s_patch16_224
    vitrail reproduce t2t_vit_14_cifar10 --json cost.json
    vitrail reproduce tnt_s_patch16_224 --proxy data.download=true
    ```
    """
    from vitrail.api import reproduction as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        result = api.reproduce(
            model,
            settings,
            proxy=proxy,
            expected=expected,
            seconds=seconds,
            json=json_file,
            display=display,
        )
    if is_main_process():
        show_result(result)
    return result.status if isinstance(result, api.ProxyRun) else 0
