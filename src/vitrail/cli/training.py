"""The commands of training: train, config, models, preview, doctor and bench-data."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vitrail.cli.channel import outlive_output
from vitrail.cli.options import (
    JsonFile,
    RecipeAndSettings,
    Settings,
    read_whole_number,
    split_recipe,
)
from vitrail.cli.tables import show_line, show_result, show_table
from vitrail.distributed.launch import is_main_process
from vitrail.errors import ConfigError, command

if TYPE_CHECKING:
    from vitrail.api.training import TrainResult
    from vitrail.display import Terminal


def train(
    *settings: RecipeAndSettings,
    config: Annotated[
        str | None, Parameter(help="A recipe's name or file, of MindSpore's projects too.")
    ] = None,
    resume: Annotated[
        Path | None,
        Parameter(help="Run to go on with; with a recipe, begun if it is not there yet."),
    ] = None,
    extend: Annotated[Path | None, Parameter(help="Run to lengthen, with train.epochs=N.")] = None,
    fork: Annotated[Path | None, Parameter(help="Run whose weights a new run begins with.")] = None,
) -> int:
    """Train a model; without arguments, a small TNT on scikit-learn's digits.

    Status 75 says that the run was stopped and saved, and that the same command with --resume goes
    on.

    ```
    vitrail train
    vitrail train --resume runs/digits
    vitrail train cifar10_tnt data.root=/data/cifar10
    torchrun --nproc-per-node 8 -m vitrail train tnt_s_imagenet data.root=/data/imagenet --resume runs/tnt
    vitrail train --config configs/tnt/tnt_s_gpu.yaml --data_dir /data/imagenet
    ```
    """
    from vitrail.api import training as api
    from vitrail.cli.terminal import open_terminal

    recipe, tokens = split_recipe(settings, config)
    outlive_output()  # log.txt has what was to be shown
    with open_terminal() as display:
        result = api.train(recipe, tokens, resume=resume, extend=extend, fork=fork, display=display)
        if is_main_process():
            show_training(result, display)
    return 0


def show_training(result: TrainResult, display: Terminal) -> None:
    """Show the end of a run on the terminal and in its log."""
    _print_training(result)
    with redirect_stdout(StringIO()) as shown:
        _print_training(result)
    display.record(shown.getvalue())


def _print_training(result: TrainResult) -> None:
    """Print the numbers of a run, where its files are, and what to type next."""
    show_result(result)
    if result.weights.exists() and not result.has_head:
        show_line("best.safetensors has no head, and gives features")
        show_line(f"next: {command('finetune', 'FOLDER', '--weights', result.weights)}")
        show_line(f"      {command('embed', result.weights, 'data.root=FOLDER', '--knn')}")
    elif result.weights.exists():
        show_line(f"next: {command('evaluate', result.weights)}")
        show_line(f"      {command('predict', result.weights, result.example or 'IMAGE')}")


def config(
    recipe: Annotated[str | None, Parameter(help="A recipe's name or file.")] = None,
    *settings: Settings,
    markdown: Annotated[bool, Parameter(help="Print the reference page of all settings.")] = False,
) -> int:
    """Show a recipe's settings and where each comes from; without a recipe, list the recipes.

    A file of another project is translated key by key first.

    ```
    vitrail config digits optim.lr=1e-3
    vitrail config configs/tnt/tnt_s_gpu.yaml --batch_size 16
    ```
    """
    from vitrail.api import training as api
    from vitrail.config.recipes import find_recipe, list_recipes
    from vitrail.config.reference import write_reference

    if markdown:
        print(write_reference(), end="")
        return 0
    if recipe is None:
        rows = [(name, _first_comment(find_recipe(name)[1])) for name in list_recipes()]
        show_table("recipes", ("name", "what"), rows)
        print(
            "`vitrail config NAME` shows one, `vitrail config --markdown` explains every setting."
        )
        return 0
    name, tokens = split_recipe([recipe, *settings], None)
    show_result(api.show_config(name, tokens))
    return 0


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip()


def models(
    pattern: Annotated[
        str,
        Parameter(
            help="A shell pattern: t2t_vit_? has one letter for the question mark, a star stands for any number."
        ),
    ] = "*",
    *,
    markdown: Annotated[bool, Parameter(help="Print the table of docs/models.md.")] = False,
) -> int:
    """List the models: parameters, multiply-adds, published accuracy, preprocessing.

    ```
    vitrail models 'timm:*deit*'                   # the models of timm that are called so
    vitrail models timm:deit_tiny_patch16_224      # one of them, measured at its own image size
    ```
    """
    from vitrail.models.catalogue import COLUMNS, MOST_ROWS, catalogue, count_models

    rows = catalogue(pattern)
    if not rows:
        raise ConfigError(f"no model matches {pattern!r}; `vitrail models` shows all")
    if markdown:
        print("| " + " | ".join(COLUMNS) + " |\n|" + "|".join(["-"] * len(COLUMNS)) + "|")
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        show_table("", COLUMNS, rows)
        if left := count_models(pattern) - len(rows):
            show_line(
                f"the first {MOST_ROWS} are listed, and {left:,} more match: narrow the pattern"
            )
    return 0


def doctor(
    *,
    output: Annotated[Path, Parameter(help="Folder that runs are to be written to.")] = Path(
        "runs"
    ),
    json_file: JsonFile = None,
) -> int:
    """Look whether this machine is fit to train on, and say how to mend what is not; status 1 if anything is not.

    ```
    vitrail doctor
    vitrail doctor --json doctor.json
    torchrun --nproc-per-node 8 -m vitrail doctor
    ```
    """
    from vitrail.api import training as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        checks = api.doctor(output=output, json=json_file, display=display)
    if is_main_process():
        show_result(checks)
    return int(not checks.is_fit)


def bench_data(
    *settings: RecipeAndSettings,
    seconds: Annotated[
        float, Parameter(help="Seconds to measure the loader for, and again the model.")
    ] = 10.0,
    json_file: JsonFile = None,
) -> int:
    """Measure how fast training images are read, decoded and varied here, against how fast the model takes them.

    ```
    vitrail bench-data tnt_s_imagenet data.root=/data/imagenet
    vitrail bench-data cifar10_tnt data.root=/data/cifar10 data.workers=8 --json speed.json
    ```
    """
    from vitrail.api import training as api
    from vitrail.cli.terminal import open_terminal

    recipe, tokens = split_recipe(settings, None)
    with open_terminal() as display:
        speed = api.bench_data(recipe, tokens, seconds=seconds, json=json_file, display=display)
    show_result(speed)
    return 0


def preview(
    *settings: RecipeAndSettings,
    output: Annotated[
        Path, Parameter(help="File to write: a page, or a sheet of pictures where it ends in .png.")
    ] = Path("preview.html"),
    images: Annotated[
        int, Parameter(converter=read_whole_number, help="Number of images, drawn by train.seed.")
    ] = 12,
    views: Annotated[
        int, Parameter(converter=read_whole_number, help="Number of training views of each image.")
    ] = 4,
) -> int:
    """Show some images as they are, as evaluation shows them to the model, and as training does: varied and mixed.

    Weights instead of a recipe show how these were trained, and how they are evaluated.

    ```
    vitrail preview tnt_s_imagenet data.root=/data/pets
    vitrail preview runs/pets/best.safetensors preprocess.resize=letterbox --output pets.png
    ```
    """
    from vitrail.api import preview as api
    from vitrail.cli.terminal import open_terminal

    recipe, tokens = split_recipe(settings, None)
    with open_terminal() as display:
        drawn = api.preview(
            recipe, tokens, output=output, images=images, views=views, display=display
        )
    show_result(drawn)
    return 0
