"""Fine-tuning from Python: from a folder of images to a plan, and from the plan to the best model it leads to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.api import training as api
from vitrail.api.arguments import checked
from vitrail.api.options import read_settings, settings_alone, shown
from vitrail.api.results import Result, Table
from vitrail.api.training import TrainResult
from vitrail.config.resolve import Layer
from vitrail.display import Display
from vitrail.distributed.launch import count_processes
from vitrail.errors import ConfigError, command, name_option, write_option
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    from vitrail.transfer.floor import Floor

UNITS = {"s": 1, "m": 60, "h": 3600}
MOST_HOURS = 10_000
"""Hours of a budget, at most: more than a year."""


@dataclass(frozen=True)
class Finetuning(Result):
    """A plan to fine-tune, with the reason of each setting, and what came of it."""

    recipe: Path
    """Recipe of the training, which may be edited."""
    data: tuple[str, ...]
    """What the data set is, in a few lines."""
    floor: Floor | None
    """Accuracies that the given weights reach without training; None for a training from
    scratch."""
    probe: Path | None
    """The given weights with the head that training begins with: a model that can be used as it
    is."""
    settings: tuple[tuple[str, Any, str, str], ...]
    """Each setting that is no default: its name, its value, `auto` or `given`, and the reason of
    what is automatic."""
    training: TrainResult | None
    """The finished run; None for a plan alone."""

    def tables(self) -> Sequence[Table]:
        """Return the floor, the settings with their reasons, and the numbers of the run."""
        tables = []
        if self.floor is not None:
            rows = []
            scores = {"k-NN": self.floor.neighbours, "linear probe": self.floor.probe}
            if self.floor.own is not None:
                scores["own head"] = self.floor.own
            for name, score in scores.items():
                rows.append((name, f"{score.value:.2f}", score.how))
            title = {"top1": "top-1, %", "map": "mAP, %"}[self.floor.metric]
            tables.append(Table("without training", ("", title, "how"), tuple(rows)))
        rows = [
            (name, dumps(value), origin, reason) for name, value, origin, reason in self.settings
        ]
        tables.append(Table(str(self.recipe), ("setting", "value", "from", "reason"), tuple(rows)))
        if self.training is not None:
            tables += self.training.tables()
        return tables

    def lines(self) -> Sequence[str]:
        """Say what the data set is, and what to do next."""
        if self.training is not None:
            return self.training.lines()
        lines = []
        if self.probe is not None:
            lines.append(f"what training begins with is a model already: {self.probe}")
        return [*lines, f"to train by this recipe: {command('train', self.recipe)}"]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a setting."""
        names = ("setting", "value", "from", "reason")
        return [dict(zip(names, row, strict=True)) for row in self.settings]


@checked
def finetune(
    data: str | Path | None = None,
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    size: Literal["small", "base"] | None = None,
    budget: str | float | None = None,
    dry_run: bool = False,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Finetuning:
    """Fine-tune a model on your images: look at them, measure what is reached without training, choose settings, train.

    `vitrail.finetune("photos", budget="10m")` does what `vitrail finetune photos --budget 10m`
    does.

    Args:
        data: Folder or list of images; None where the settings name the data.
        settings: Settings that are taken as they are, such as {"optim.lr": 1e-4}; all others are
            chosen.
        weights: Weight file to begin with; None takes published ones. {"model.weights": None}
            trains from scratch.
        size: Size of the model, where neither a model nor weights are given; None is small.
        budget: Time that training may take, as 10m, 90s, 2h, or in minutes.
        dry_run: Stop at the recipe.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as optim={"lr": 1e-4}.

    Raises:
        ConfigError: Settings that do not fit together or the data, or a budget too small for one
            epoch.
        DataError: The images are not there, or not as they should be.
        CheckpointError: The weights cannot be had or read, or a file cannot be written.
        Stopped: A signal said so; everything is saved.
    """
    given = settings_alone(read_settings(finetune, settings, sections))
    given, name = add_data(given, data, "finetune")
    if weights is not None:
        given = add_setting(given, "model", "weights", str(weights), name_option("weights"))
    _refuse_processes()

    from vitrail.transfer.plan import make_plan

    with shown(display, progress) as display:
        plan = make_plan(
            given, name=name, size=size, budget_s=read_seconds(budget), display=display
        )
        chosen = {choice.key: choice.reason for choice in plan.choices}
        rows = [(choice.key, choice.value, "auto", choice.reason) for choice in plan.choices]
        rows += [
            (key, value, "given", "") for key, value in plan.given.items() if key not in chosen
        ]
        training = None if dry_run else api.train(plan.recipe, display=display)
    return Finetuning(
        recipe=plan.recipe,
        data=tuple(plan.survey.lines()),
        floor=plan.floor,
        probe=plan.probe,
        settings=tuple(rows),
        training=training,
    )


def read_seconds(budget: str | float | None) -> float | None:
    """Return the seconds that a text such as 10m says, or a number of minutes.

    Raises:
        ConfigError: It is no time, none at all, or above `MOST_HOURS`.
    """
    if budget is None:
        return None
    if isinstance(budget, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
        seconds = float(match[1]) * UNITS[match[2] or "m"] if match else 0.0
    else:
        seconds = 60.0 * budget
    if not 0 < seconds <= MOST_HOURS * UNITS["h"]:
        raise ConfigError(
            f"{name_option('budget')} is {budget}; it must be a time such as 90s, 10m or 2h, of "
            f"at most {MOST_HOURS:,} h"
        )
    return seconds


def add_data(given: Layer, data: str | Path | None, verb: str) -> tuple[Layer, str]:
    """Return the settings with the images, and the name of the run that follows from them.

    Args:
        given: The settings.
        data: Folder or list of images; None where the settings name them.
        verb: The command that needs them.

    Raises:
        ConfigError: No images are named, or twice.
    """
    from vitrail.data.folders import is_image

    section = given.values.get("data", {})
    if data is None:
        named = []
        for key in ("name", "list", "root", "manifest"):
            if section.get(key) is not None:
                named.append(str(section[key]))
        if not named:
            raise ConfigError(
                f"{verb} needs images; give their folder: {command(verb, 'FOLDER')}, or "
                "data.list or data.name"
            )
        return given, Path(named[0].rsplit(":", 1)[-1]).stem
    path = Path(data).expanduser()
    key = "list" if path.is_file() else "root"
    if not path.exists():
        which = "with a folder for each class, " if verb == "finetune" else ""
        raise ConfigError(f"{path}: is not there; give a folder of images, {which}or a list")
    if path.is_file() and is_image(path.name):
        raise ConfigError(
            f"{path}: is one image, and {verb} needs many; give their folder: "
            f"{command(verb, 'FOLDER')}, or a list"
        )
    return add_setting(given, "data", key, str(path), str(data)), path.resolve().stem


def add_setting(given: Layer, section: str, key: str, value: str, what: str) -> Layer:
    """Put what an argument says among the settings.

    Raises:
        ConfigError: It is among them already.
    """
    content = given.values.get(section, {})
    if key in content:
        raise ConfigError(f"{what} and {section}.{key} are both given; give one of them")
    return Layer(given.origin, {**given.values, section: {**content, key: value}})


def _refuse_processes() -> None:
    """Refuse to plan in several processes, where each would write a plan of its own.

    Raises:
        ConfigError: torchrun has started several.
    """
    if count_processes() > 1:
        first = write_option("dry_run", True)
        raise ConfigError(
            f"finetune plans in one process; make the recipe with {first}, then give it to "
            "torchrun: torchrun --nproc-per-node N -m vitrail train RECIPE"
        )
