"""The command tune: search the settings of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vitrail.cli.channel import outlive_output
from vitrail.cli.options import read_whole_number
from vitrail.cli.tables import show_result
from vitrail.errors import ConfigError

Trials = Annotated[
    int | None,
    Parameter(
        name=["--trials", "--iters", "-n"],
        converter=read_whole_number,
        help="Number of trials; 30 where no hours are given.",
    ),
]
Prune = Annotated[
    Literal["median", "none"] | None,
    Parameter(
        help="End trials early that are worse than the median of those before: median, and none with --extend."
    ),
]
Finalists = Annotated[
    int,
    Parameter(
        converter=read_whole_number,
        help="Number of the best trials to train with two more seeds each; the best mean wins.",
    ),
]
Seeds = Annotated[
    int,
    Parameter(
        converter=read_whole_number,
        help="Number of new seeds to compare the winner and the recipe with; 0 leaves that out.",
    ),
]
Final = Annotated[
    int,
    Parameter(
        converter=read_whole_number,
        help="Number of seeds to train the winner and the recipe with at the end, as the whole recipe says.",
    ),
]


def tune(
    *words: Annotated[
        str,
        Parameter(
            show_default=False,
            help="A recipe's name or file, the file of a space, and settings as section.key=value.",
        ),
    ],
    config: Annotated[
        str | None,
        Parameter(
            name=["--config", "-c"], help="A recipe's name or file, of MindSpore's projects too."
        ),
    ] = None,
    study: Annotated[
        Path | None,
        Parameter(help="Folder of the study, begun or gone on with; tune-RECIPE in output.root."),
    ] = None,
    trials: Trials = None,
    hours: Annotated[
        float | None, Parameter(help="Hours of training of all trials together.")
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid"],
        Parameter(
            help="How values are drawn: tpe learns from the trials before, grid takes every combination."
        ),
    ] = "tpe",
    prune: Prune = None,
    finalists: Finalists = 3,
    seeds: Seeds = 3,
    extend: Annotated[
        bool,
        Parameter(help="Begin trials with a ninth of the epochs, and let the best third go on."),
    ] = False,
    metric: Annotated[
        str | None,
        Parameter(help="Number of an epoch to select by, such as val_loss; train.monitor."),
    ] = None,
    final: Final = 0,
) -> int:
    """Search the settings of a recipe; each trial is a run, and the winner is tried with several seeds.

    The same command goes on with a study, and shares it where it runs several times. Status 75 says
    that it was stopped and saved.

    ```
    vitrail tune digits --trials 20
    vitrail tune digits space.yaml --hours 2 --study runs/lr train.epochs=20
    vitrail tune digits --extend --final 3
    vitrail tune --config configs/optimize.yaml --iters 10
    ```
    """
    from vitrail.api import tuning as api
    from vitrail.cli.terminal import open_terminal

    recipe, space, settings = split_words(words, config)
    outlive_output()  # the page and the study have what was to be shown
    with open_terminal() as display:
        result = api.tune(
            recipe,
            settings,
            space=space,
            study=study,
            trials=trials,
            hours=hours,
            sampler=sampler,
            prune=prune,
            finalists=finalists,
            seeds=seeds,
            extend=extend,
            metric=metric,
            final=final,
            display=display,
        )
    show_result(result)
    return 0


def split_words(
    words: tuple[str, ...], config: str | None
) -> tuple[str | None, str | None, list[str]]:
    """Tell the recipe and the file of the space, in this order, from settings.

    Raises:
        ConfigError: There are more files than these.
    """
    files = [word for word in words if "=" not in word]
    if config is not None:
        files.insert(0, config)
    if len(files) > 2:
        raise ConfigError(
            f"{files[2]}: a recipe and a space are given already, {files[0]} and {files[1]}; "
            "settings are written section.key=value"
        )
    recipe, space = [*files, None, None][:2]
    return recipe, space, [word for word in words if "=" in word]
