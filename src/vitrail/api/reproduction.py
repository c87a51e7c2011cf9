"""Reproduce published numbers from Python: what a model's recipe asks for and costs here, and its family's proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitrail.api import training
from vitrail.api.arguments import checked
from vitrail.api.options import (
    path_or_none,
    read_settings,
    settings_alone,
    shown,
    write_json,
)
from vitrail.api.results import Result, Table
from vitrail.config.resolve import Layer
from vitrail.display import Display
from vitrail.distributed.launch import count_processes, is_main_process
from vitrail.errors import (
    ConfigError,
    Interrupted,
    Stopped,
    command,
    name_option,
    tell_count,
    write_option,
)
from vitrail.files import refuse_output
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    from vitrail.reproduction.cost import Cost
    from vitrail.reproduction.curves import Place


@dataclass(frozen=True)
class PublishedRecipe:
    """A recipe of a model, what was published of it and what was reached here: two different numbers."""

    name: str
    title: str
    published: str
    """The published number and its source."""
    reproduced: str
    """What was reached with this toolkit, and where that is written."""


@dataclass(frozen=True)
class Reproduction(Result):
    """What it takes to reproduce the published number of a model."""

    model: str
    paper: str
    recipes: tuple[PublishedRecipe, ...]
    """The one that `conditions` and `cost` are of comes first."""
    conditions: dict[str, str]
    """What the first recipe asks for."""
    cost: Cost | None
    """What the first recipe costs on this machine; None where it cannot be measured."""
    unmeasured: str
    """Why not; empty where it was."""
    proxy: str
    """Recipe of the proxy of the model's family; empty where none has a band."""
    next: str
    """What to type to train by the first recipe."""

    def tables(self) -> Sequence[Table]:
        """Return the recipes, the conditions of the first one, and what it costs here."""
        rows = []
        for one in self.recipes:
            rows.append((one.name, one.published or "-", one.reproduced or "-"))
        first = self.recipes[0]
        tables = [
            Table(
                f"{self.model}, {self.paper}", ("recipe", "published", "reproduced"), tuple(rows)
            ),
            Table(f"{first.name}: {first.title}", ("", "as"), tuple(self.conditions.items())),
        ]
        if self.cost is not None:
            tables.append(_cost_table(self.cost))
        return tables

    def lines(self) -> Sequence[str]:
        """Say what the cost is of, where a proxy is, and what to type next."""
        lines = []
        if self.cost is None:
            lines.append(f"cost: not measured, as {self.unmeasured}")
        else:
            lines += _explain_cost(self.cost, self.recipes[0].name)
        if self.proxy:
            proxy = command("reproduce", self.model, "--proxy")
            lines.append(f"first, in minutes, the proxy of its family, {self.proxy}: {proxy}")
        lines.append(f"next: {self.next}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a recipe."""
        return [vars(one) for one in self.recipes]


def _cost_table(cost: Cost) -> Table:
    """Return what a recipe costs as a table."""
    from vitrail.reproduction.cost import format_time

    rows = [
        ("device", f"{cost.devices} x {cost.device}, {cost.precision}"),
        ("training", f"{cost.images_per_s:,.1f} images/s on one"),
        ("evaluation", f"{cost.evaluated_per_s:,.1f} images/s on one"),
        ("an epoch", f"{format_time(cost.epoch_s / cost.devices)} here"),
        ("the whole recipe", f"{format_time(cost.here_s)} here"),
        ("in a day", f"with {cost.devices_for_a_day:,} x {cost.device}"),
    ]
    return Table("cost, from updates that were timed here", ("", "here"), tuple(rows))


def _explain_cost(cost: Cost, recipe: str) -> list[str]:
    """Say what was timed, and what is not in it."""
    timed = f"timed with updates of {tell_count(cost.at_once, 'image')}"
    if cost.at_once < cost.wanted:
        timed += f" where the recipe has {cost.wanted:,} on a device, as the time or memory allows"
    if cost.parts > 1:
        timed += f", cut into {cost.parts} parts that fit into the memory"
    reading = command("bench-data", recipe, "data.root=FOLDER")
    return [
        f"{timed}; several devices are taken to be as many times as fast",
        f"reading images is not in it: {reading} measures that",
    ]


@dataclass(frozen=True)
class ProxyEpoch:
    """An epoch of a proxy beside what is expected, in percent."""

    epoch: int
    top1: float
    expected: float
    """Mean of the seeds that were measured."""
    low: float
    high: float
    place: Place


@dataclass(frozen=True)
class ProxyRun(Result):
    """A run of a proxy, and where it lies."""

    model: str
    recipe: str
    """Recipe of the proxy, which is that of the model's family."""
    epochs: tuple[ProxyEpoch, ...]
    seeds: int
    """Runs that the band follows from."""
    folder: Path
    made: dict[str, str]
    """What the band was measured with."""
    next: str

    @property
    def place(self) -> Place:
        """Where the run lies after the last epoch."""
        return self.epochs[-1].place

    @property
    def status(self) -> int:
        """Exit status of the command: 0 inside the band, 1 below it, 3 above it."""
        return {"inside": 0, "below": 1, "above": 3}[self.place]

    def tables(self) -> Sequence[Table]:
        """Return one row an epoch."""
        rows = []
        for one in self.epochs:
            band = f"{one.low:.2f} to {one.high:.2f}"
            numbers = (f"{one.top1:.2f}", f"{one.expected:.2f}", band)
            rows.append((str(one.epoch), *numbers, one.place))
        title = f"{self.recipe}, the proxy of {self.model}"
        columns = ("epoch", "top-1, %", f"mean of {self.seeds} seeds, %", "band, %", "this run is")
        return [Table(title, columns, tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say where the run lies, what the band was measured with, and what to type next."""
        last = self.epochs[-1]
        lines = [
            f"{last.place} the band: {last.top1:.2f} % after {tell_count(last.epoch, 'epoch')}, "
            f"expected {last.low:.2f} to {last.high:.2f} %"
        ]
        if last.place == "below":
            lines.append(
                "something differs here: compare `vitrail doctor`, the images "
                "(`vitrail check-data`) and train.precision=float32"
            )
        if last.place == "above":
            lines.append("better than it should be: look whether it was validated on other images")
        if self.made:
            measured = ", ".join(f"{name} {value}" for name, value in self.made.items())
            lines.append(f"band: {measured}")
        return [*lines, f"run: {self.folder}", f"next: {self.next}"]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row an epoch."""
        return [vars(one) for one in self.epochs]


@checked
def reproduce(
    model: str,
    settings: Settings | None = None,
    *,
    proxy: bool = False,
    expected: str | Path | None = None,
    seconds: float = 8.0,
    json: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Reproduction | ProxyRun:
    """Show what it takes to reproduce a model's published number, or run the small proxy of its family.

    `vitrail.reproduce("tnt_s_patch16_224", proxy=True)` does what
    `vitrail reproduce tnt_s_patch16_224 --proxy` does.

    Args:
        model: Name of a model, or of the recipe of it that is meant.
        settings: Settings that go before the recipe's; of a proxy, those that say where it runs.
        proxy: Whether the proxy of the model's family is trained, and its curve compared with the
            band that is known of it; its run is gone on with where it was stopped.
        expected: File of curves of other runs, by recipes of your own; None is those that come with
            the package.
        seconds: Time to make updates for, from which the cost follows.
        json: File that the numbers are also written to.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        ConfigError: A model without a recipe or a proxy, or settings that would change a proxy.
        DataError: The images are not there, or others than those of the proxy.
        CheckpointError: A file of the run cannot be read or written.
        TrainingError: The loss is no longer finite, or memory is too short.
        Stopped: A signal said so; the proxy is saved, and the same call goes on.
    """
    layer = settings_alone(read_settings(reproduce, settings, sections))
    if not seconds > 0:
        raise ConfigError(f"{name_option('seconds')} is {seconds}; it must be above 0")
    if expected is not None and not proxy:
        raise ConfigError(
            f"{name_option('expected')} goes with {write_option('proxy', True)} alone; add that, or "
            "leave it out"
        )
    json_file, curves = path_or_none(json), path_or_none(expected)
    if json_file is not None:
        refuse_output("json", json_file, [] if curves is None else [curves])
    with shown(display, progress) as display:
        if proxy:
            return _keep(_run_proxy(model, layer, curves, display), json_file, display)
        return _keep(_look_up(model, layer, seconds, display), json_file, display)


def _look_up(wanted: str, layer: Layer, seconds: float, display: Display) -> Reproduction:
    """Return what the recipes of a model ask for, and what the first one costs here."""
    if count_processes() > 1:
        raise ConfigError("reproduce measures one process; start it without torchrun")

    from vitrail.reproduction.cost import measure_cost, why_not_measured
    from vitrail.reproduction.proxies import family_of, list_shipped
    from vitrail.reproduction.recipes import (
        describe_conditions,
        next_command,
        open_recipes,
        refuse_without_recipe,
    )

    model, family, recipes = open_recipes(wanted, layer)
    if not recipes:
        refuse_without_recipe(model, family)
    first = recipes[0]
    unmeasured, cost = why_not_measured(first.config), None
    if not unmeasured:
        cost = measure_cost(first, seconds, display)
    rows = []
    for one in recipes:
        header = one.header
        rows.append(PublishedRecipe(one.name, header.title, header.published, header.reproduced))
    proxies = [recipe for recipe in list_shipped() if family_of(recipe) == family.name]
    return Reproduction(
        model=model,
        paper=family.paper,
        recipes=tuple(rows),
        conditions=dict(describe_conditions(first)),
        cost=cost,
        unmeasured=unmeasured,
        proxy=proxies[0] if proxies else "",
        next=next_command(first, 1 if cost is None else cost.devices),
    )


def _run_proxy(wanted: str, layer: Layer, expected: Path | None, display: Display) -> ProxyRun:
    """Train the proxy of a model's family, or go on with it, and say where its curve lies."""
    from vitrail.reproduction.proxies import choose_proxy
    from vitrail.reproduction.recipes import next_command, open_recipes
    from vitrail.reproduction.watch import Watch

    model, family, recipes = open_recipes(wanted, Layer("", {}))
    chosen = choose_proxy(model, family, layer, expected)
    display.note(
        f"{chosen.recipe} is the proxy of {model}, as of every {family.title or family.name}"
    )
    for note in chosen.notes:
        display.note(note)
    again = command("reproduce", wanted, "--proxy")
    try:
        watch = Watch(display, chosen.band)
        run = training.train(chosen.recipe, chosen.settings, resume=chosen.folder, display=watch)
    except (Stopped, Interrupted) as error:
        raise type(error)(
            f"{error}; to go on and compare it with the band, type `{again}` with the same settings"
        ) from None
    epochs = []
    for row in run.rows:
        epoch, top1 = row["epoch"], row.get("val_top1")
        if epoch == 0 or top1 is None:  # the initial weights; several labels an image have no top-1
            continue
        low, high = chosen.band.ends(epoch)
        mean, place = chosen.band.mean[epoch - 1], chosen.band.place(epoch, top1)
        epochs.append(ProxyEpoch(epoch, top1, mean, low, high, place))
    if not epochs:
        raise ConfigError(
            f"{chosen.recipe}: its epochs have no top-1; a proxy is one with a class an image"
        )
    following = command("evaluate", run.weights)
    if recipes and epochs[-1].place == "inside":
        following = next_command(recipes[0], 1)
    return ProxyRun(
        model=model,
        recipe=chosen.recipe,
        epochs=tuple(epochs),
        seeds=chosen.band.seeds,
        folder=run.folder,
        made=dict(chosen.made),
        next=following,
    )


R = TypeVar("R", Reproduction, ProxyRun)


def _keep(result: R, file: Path | None, display: Display) -> R:
    """Return a result, written to a file where one is wanted."""
    if file is not None and is_main_process():
        write_json(file, _plain(result), display)
    return result


def _plain(result: Reproduction | ProxyRun) -> dict[str, Any]:
    """Return a result as values that JSON can hold."""
    from vitrail.config.values import to_plain

    plain = asdict(result)
    if isinstance(result, ProxyRun):
        plain["folder"] = str(result.folder)
        plain["place"] = result.place
        plain["status"] = result.status
    elif result.cost is not None:
        plain["cost"]["here_s"] = result.cost.here_s
        plain["cost"]["devices_for_a_day"] = result.cost.devices_for_a_day
    return to_plain(plain)
