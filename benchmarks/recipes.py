"""Write down what finished runs of a recipe reached: the command, accuracy, time and curves.

uv run vitrail train digits train.seed=1
uv run python benchmarks/recipes.py digits runs/digits runs/digits-2
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import cyclopts
import torch
from side_by_side import publish

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import find_recipe
from vitrail.config.resolve import flatten, read_yaml, resolve
from vitrail.models.registry import create_model
from vitrail.weights.loading import open_model

NOT_OF_THE_RESULT = {"data.root", "output.root", "output.name"}


def main(recipe: str, *runs: Path) -> None:
    """Publish the runs of a recipe on one page beside this file, with the curves of the first."""
    plain = flatten(resolve(TrainConfig, [read_yaml(find_recipe(recipe)[1])]).config)
    table = [
        "| run | epochs | images | best top-1, % | at epoch | last top-1, % | last top-5, % | minutes |",
        "|-|-:|-:|-:|-:|-:|-:|-:|",
    ]
    commands = []
    for number, run in enumerate(runs, 1):
        config = resolve(TrainConfig, [read_yaml(run / "config.yaml")]).config
        changed = [
            f"{k}={v if isinstance(v, str) else json.dumps(v)}"
            for k, v in flatten(config).items()
            if v != plain[k] and k not in NOT_OF_THE_RESULT
        ]
        if config.data.root is not None:
            changed.append("data.root=FOLDER")
        commands.append(f"run {number}: `{shlex.join(['vitrail', 'train', recipe, *changed])}`")
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["epoch"] == config.train.epochs + config.schedule.cooldown_epochs, f"{run} is not finished"
        best = open_model(run / "best.safetensors").record.metrics
        table.append(
            f"| {number} | {last['epoch']} | {last['val_n']:,} | {best['val_top1']:.2f} | {best['epoch']} "
            f"| {last['val_top1']:.2f} | {last['val_top5']:.2f} | {last['elapsed_s'] / 60:.1f} |"
        )
    record = open_model(runs[0] / "best.safetensors").record
    with torch.device("meta"):
        model = create_model(record.model, **record.options)
    params = sum(parameter.numel() for parameter in model.parameters())
    picture = Path(__file__).with_name(f"{recipe}.png")
    shutil.copyfile(runs[0] / "curves.png", picture)
    notes = [
        *commands,
        f"{record.model} with the recipe's options: {params / 1e6:.2f} M parameters",
        "minutes are of the whole run, evaluation each epoch included; the best epoch is chosen by these same images",
    ]
    publish(recipe, f"Recipe {recipe}", notes, [*table, "", f"![curves of run 1]({picture.name})"])


if __name__ == "__main__":
    cyclopts.run(main)
