"""How a run starts: new, resumed, extended or forked, and which settings may then differ. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import RECIPES
from vitrail.config.resolve import Layer, flatten, read_yaml, resolve
from vitrail.config.values import read_value
from vitrail.errors import ConfigError, command, name_option, tell_count, write_option
from vitrail.files import is_temporary, is_there
from vitrail.migrate.given import Given, Settings, read_given
from vitrail.migrate.recipes import OpenedRecipe, open_recipe
from vitrail.migrate.rules import Say
from vitrail.training.idle_settings import find_lasting_freeze, idle_settings
from vitrail.training.run.lock import LOCK

FREE = (
    "data.root",
    "data.list",
    "data.manifest",
    "data.check",
    "data.workers",
    "data.download",
    "data.cache_gb",
    "distill.cache",
    "token_labels.folder",
    "output.",
    "train.device",
    "train.shard",
    "train.log_every",
    "train.max_hours",
    "train.dist_timeout_minutes",
)
"""Beginnings of the settings that change where and how fast a run is made, not what it makes."""
LENGTH = ("train.epochs", "schedule.cooldown_epochs", "train.patience", "train.min_delta")
"""Settings that change how long a run is."""


@dataclass(frozen=True)
class LeftOptions:
    """Options that a recipe sets for its own model and the settings leave, while they name another model."""

    recipe: str
    model: str
    """The recipe's own model."""
    options: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """A run to start: its settings, its name, and the folder that it resumes or forks."""

    config: TrainConfig
    name: str
    """Name of the run folder, where `output.name` does not say."""
    resume: Path | None = None
    """Folder of a run to go on with."""
    fork: Path | None = None
    """Folder of a run whose weights a new run begins with."""
    remarks: tuple[tuple[Say, str], ...] = ()
    """Notes and warnings about the settings, such as those of another project's file that was
    translated."""
    left: LeftOptions | None = None
    """Options of the recipe's own model, where the settings name another one."""


def begin(
    recipe: str | None,
    settings: Settings | Given,
    *,
    resume: Path | None = None,
    extend: Path | None = None,
    fork: Path | None = None,
) -> Start:
    """Read a recipe, or a run's own settings, and settings of the command line or of Python, into what to run.

    A file of another project is a recipe too, and takes the keys of that project as `key=value`.

    Raises:
        ConfigError: Two verbs at once, a folder that is no run, or settings that the verb does not
            allow.
    """
    folders = {"resume": resume, "extend": extend, "fork": fork}
    verbs = [name_option(option) for option, folder in folders.items() if folder]
    if len(verbs) > 1:
        raise ConfigError(f"{' and '.join(verbs)} are both given; choose one")
    given = settings if isinstance(settings, Given) else read_given(settings)
    layer = given.layer
    written = open_recipe(recipe, given.keys) if recipe is not None or given.keys else None
    if resume is not None:
        return _resume(resume, written, layer)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        raise ConfigError(
            "torchrun restarted a command that would begin a new run each time; name the folder "
            f"with {write_option('resume', 'runs/NAME')}, which begins the run or goes on with it"
        )
    if extend is not None:
        return _extend(extend, written, layer)
    if fork is not None:
        return _fork(fork, written, layer)
    return begin_new(written or open_recipe("digits", {}), layer)


def begin_new(
    recipe: OpenedRecipe, given: Layer, *, where: Sequence[Layer] = (), fork: Path | None = None
) -> Start:
    """Begin a run of a recipe, with given settings over it.

    Args:
        recipe: The recipe.
        given: Settings of the command line or of Python.
        where: Layers over these, which say where the run is.
        fork: Folder of a run whose weights it begins with.
    """
    resolved = resolve(TrainConfig, [recipe.layer, given, *where])
    remarks: list[tuple[Say, str]] = []
    if recipe.translation:
        remarks += recipe.translation.remarks()
    # settings that do nothing are worth a warning where someone chose them for this run: a recipe
    # of the package and
    # a run's own settings are whole, and other projects' files name all that their programs know
    chosen_by = {given.origin}
    if _is_written_by_hand(recipe):
        chosen_by.add(recipe.layer.origin)
    chosen = {key: origin for key, origin in resolved.origins.items() if origin in chosen_by}
    for text in idle_settings(resolved.config, chosen):
        remarks.append(("warning", text))
    if (text := find_lasting_freeze(resolved.config)) is not None:
        remarks.append(("warning", text))
    return Start(
        resolved.config,
        recipe.name,
        fork=fork,
        remarks=tuple(remarks),
        left=find_left_options(recipe, given),
    )


def find_left_options(recipe: OpenedRecipe, given: Layer) -> LeftOptions | None:
    """Return the options that a recipe sets for its own model, where the settings name another one."""
    own, wanted = (layer.values.get("model", {}) for layer in (recipe.layer, given))
    names_both = "name" in own and "name" in wanted
    if not names_both or own["name"] == wanted["name"] or recipe.translation:
        return None
    theirs, ours = (
        read_value(section.get("options", {}), dict[str, Any]) for section in (own, wanted)
    )
    left = tuple(key for key in theirs if key not in ours)
    return LeftOptions(recipe.name, own["name"], left) if left else None


def _is_written_by_hand(recipe: OpenedRecipe) -> bool:
    """Say whether a recipe is a user's own file: none of the package, of a run, or of another project."""
    path = Path(recipe.path)
    return (
        recipe.translation is None
        and path.parent != RECIPES
        and path.name != "config.yaml"
        and not path.is_dir()
    )


def _resume(folder: Path, recipe: OpenedRecipe | None, given: Layer) -> Start:
    """Go on with a run, or begin it where nothing of it is there yet and a recipe says how."""
    if is_unbegun(folder) and recipe is not None:
        _refuse_other_folder("resume", folder, given)
        where = Layer(
            write_option("resume"), {"output": {"root": str(folder.parent), "name": folder.name}}
        )
        return begin_new(recipe, given, where=[where])
    stored = _settings_of(folder, "resume")
    _refuse_other_folder("resume", folder, given)
    base = stored if recipe is None else recipe.layer
    config = _in_folder(resolve(TrainConfig, [base, given]).config, folder)
    before = resolve(TrainConfig, [stored]).config
    config = _keep_recorded_settings(before, config)
    if config.data.name == before.data.name and config.data.revision is None:
        config = replace(config, data=replace(config.data, revision=before.data.revision))
    if changed := _changes(stored, config, FREE):
        advice = (
            f"drop them, or begin a new run from its weights with {write_option('fork', folder)}"
        )
        if set(changed) <= set(LENGTH):
            advice += f", or lengthen it with {write_option('extend', folder)}"
        where = write_option("resume", folder)
        raise ConfigError(
            f"{where}: goes on with the run's own settings, but {describe_differences(changed)}; "
            f"{advice}"
        )
    return Start(config, folder.name, resume=folder)


def _extend(folder: Path, recipe: OpenedRecipe | None, given: Layer) -> Start:
    """Lengthen a run."""
    if recipe is not None:
        where = write_option("extend", folder)
        raise ConfigError(f"{where} goes on with that run's own settings; drop {recipe.name}")
    stored = _settings_of(folder, "extend")
    _refuse_other_folder("extend", folder, given)
    config = _in_folder(resolve(TrainConfig, [stored, given]).config, folder)
    if changed := _changes(stored, config, (*FREE, *LENGTH)):
        where = write_option("extend", folder)
        raise ConfigError(
            f"{where}: changes the length of a run only, but {describe_differences(changed)}; "
            f"begin a new run from its weights with {write_option('fork', folder)}"
        )
    before = resolve(TrainConfig, [stored]).config
    if not _is_longer(before, config):
        where = write_option("extend", folder)
        raise ConfigError(
            f"{where}: has {tell_count(before.train.epochs, 'epoch')}; say how many it shall have in all, such "
            f"as train.epochs={2 * before.train.epochs}"
        )
    return Start(config, folder.name, resume=folder)


def _is_longer(before: TrainConfig, now: TrainConfig) -> bool:
    """Say whether one of the settings of a run's length is larger than before, and none is smaller."""
    lengths_before, lengths_now = (
        (config.train.epochs, config.schedule.cooldown_epochs, config.train.patience or math.inf)
        for config in (before, now)
    )
    is_shorter = any(new < old for old, new in zip(lengths_before, lengths_now, strict=True))
    return lengths_now != lengths_before and not is_shorter


def _fork(folder: Path, recipe: OpenedRecipe | None, given: Layer) -> Start:
    """Begin a new run and schedule from the weights of another."""
    stored = _settings_of(folder, "fork")
    if recipe is None:
        # its own settings, but for the folder and the weights that it began with
        values = dict(stored.values)
        values["output"] = {**values.get("output", {}), "name": None}
        values["model"] = {**values.get("model", {}), "weights": None}
        recipe = OpenedRecipe(folder.name, str(folder), Layer(stored.origin, values))
    start = begin_new(recipe, given, fork=folder)
    if (weights := start.config.model.weights) is not None:
        where = write_option("fork", folder)
        raise ConfigError(f"{where}: begins with that run's weights; drop model.weights={weights}")
    return start


def is_unbegun(folder: Path) -> bool:
    """Say whether a folder is not there, or holds nothing but what is left of a start that was killed at once."""
    try:
        for path in folder.iterdir():
            is_empty_last = path.name == "last" and all(map(is_of_a_start, path.iterdir()))
            if not is_temporary(path) and not is_empty_last:
                return False
        return True
    except FileNotFoundError:
        return True
    except OSError:  # a file, or it may not be looked at; whoever reads it says so
        return False


def is_of_a_start(path: Path) -> bool:
    """Say whether a file in last/ may be left of a start that was killed at once."""
    return path.name == LOCK or is_temporary(path)


def _settings_of(folder: Path, verb: str) -> Layer:
    """Read the settings that a run was made with; `verb` is the option that names its folder."""
    if not is_there(folder / "config.yaml"):
        hint = ""
        if verb == "resume" and is_unbegun(folder):
            hint = f"; with a recipe's name, {write_option('resume')} begins the run"
        where = write_option(verb, folder)
        raise ConfigError(
            f"{where}: holds no config.yaml, so it is no run; give the folder that "
            f"`{command('train')}` made{hint}"
        )
    return read_yaml(folder / "config.yaml")


def _refuse_other_folder(verb: str, folder: Path, given: Layer) -> None:
    """Refuse settings that name another folder than the option does; a script may name the same one twice."""
    output = given.values.get("output", {})
    where = write_option(verb, folder)
    if "name" in output and str(output["name"]) != folder.name:
        raise ConfigError(f"{where} names the run's folder; drop output.name")
    if "root" in output and os.path.realpath(str(output["root"])) != os.path.realpath(
        folder.parent
    ):
        raise ConfigError(f"{where} names the run's folder; drop output.root")


def _keep_recorded_settings(stored: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Take from the run what its weight file decided and nothing here sets: numerics, image size, preprocessing."""
    if config.model.weights is None or config.model.weights != stored.model.weights:
        return config
    image_size = config.model.image_size
    if image_size is None:
        image_size = stored.model.image_size
    options = {**stored.model.options, **config.model.options}
    unset = [key for key, value in vars(config.preprocess).items() if value is None]
    recorded = {key: getattr(stored.preprocess, key) for key in unset}
    return replace(
        config,
        model=replace(config.model, image_size=image_size, options=options),
        preprocess=replace(config.preprocess, **recorded),
    )


def _in_folder(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return settings whose output goes to a folder."""
    return replace(config, output=replace(config.output, root=str(folder.parent), name=folder.name))


def _changes(
    stored: Layer, config: TrainConfig, allowed: Iterable[str]
) -> Mapping[str, tuple[Any, Any]]:
    """Return {dotted key: (in the run, here)} of the settings that differ, less those that may."""
    return differences(flatten(resolve(TrainConfig, [stored]).config), flatten(config), allowed)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str]
) -> Mapping[str, tuple[Any, Any]]:
    """Return {dotted key: (before, now)} of the settings that differ, less those that begin with what is allowed to."""
    allowed_beginnings = tuple(allowed)
    changed = {}
    for key, value in now.items():
        is_allowed = key not in before or key.startswith(allowed_beginnings)
        if not is_allowed and before[key] != value:
            changed[key] = (before[key], value)
    return changed


def describe_differences(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Say in words which settings differ: the first five, and how many more."""

    def in_words(value: Any) -> str:
        return "null" if value is None else str(value)

    shown = []
    for key, (before, now) in islice(changed.items(), 5):
        shown.append(f"{key} is {in_words(before)} there and {in_words(now)} here")
    more = f" and {len(changed) - 5} more differ" if len(changed) > 5 else ""
    return ", ".join(shown) + more
