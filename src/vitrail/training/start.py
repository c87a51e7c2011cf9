"""How a run begins: new, resumed, extended or forked, and which settings may then differ. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import RECIPES
from vitrail.config.resolve import Layer, command_line, flat, read_yaml, resolve
from vitrail.errors import ConfigError, command
from vitrail.files import is_temporary
from vitrail.migrate.recipes import OpenedRecipe, open_recipe, split_keys
from vitrail.migrate.rules import Say
from vitrail.training.idle_settings import idle_settings
from vitrail.training.run_lock import LOCK

FREE = (
    "data.root", "data.list", "data.manifest", "data.check", "data.workers", "data.download", "data.cache_gb",
    "output.", "train.device", "train.shard", "train.log_every", "train.max_hours", "train.dist_timeout_minutes",
)  # fmt: skip
"""Beginnings of the settings that change where and how fast a run is made, not what it makes."""
LENGTH = ("train.epochs", "schedule.cooldown_epochs", "train.patience")


@dataclass(frozen=True)
class Start:
    """What to run, and what it begins from."""

    config: TrainConfig
    name: str
    """Of the run folder, where `output.name` does not say."""
    resume: Path | None = None
    """Run folder to go on in."""
    fork: Path | None = None
    """Run folder whose weights a new run begins with."""
    remarks: tuple[tuple[Say, str], ...] = ()
    """What is to be said about the settings, where another project's file was translated."""


def begin(
    recipe: str | None,
    tokens: Sequence[str],
    *,
    resume: Path | None = None,
    extend: Path | None = None,
    fork: Path | None = None,
) -> Start:
    """Read a recipe, or a run's own settings, and `section.key=value` tokens, into what to run.

    A file of another project is a recipe too, and takes the keys of that project as `key=value`.

    Raises:
        ConfigError: Two verbs at once, a folder that is no run, or settings that the verb does not allow.
    """
    verbs = [f"--{name}" for name, given in (("resume", resume), ("extend", extend), ("fork", fork)) if given]
    if len(verbs) > 1:
        raise ConfigError(f"{' and '.join(verbs)} are both given; choose one")
    keys, tokens = split_keys(tokens)
    written = open_recipe(recipe, keys) if recipe is not None or keys else None
    if resume is not None:
        return _resume(resume, written, tokens)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        raise ConfigError(
            "torchrun restarted a command that would begin a new run each time; name the folder with --resume "
            "runs/NAME, which begins the run or goes on with it"
        )
    if extend is not None:
        return _extend(extend, written, tokens)
    if fork is not None:
        return _fork(fork, written, tokens)
    return _new(written or open_recipe("digits", {}), tokens)


def _new(
    recipe: OpenedRecipe, tokens: Sequence[str], *, where: Sequence[Layer] = (), fork: Path | None = None
) -> Start:
    """Begin a run of a recipe."""
    remarks = recipe.translation.remarks() if recipe.translation else []
    resolved = resolve(TrainConfig, [recipe.layer, command_line(tokens), *where])
    # a recipe of the package and a run's own settings are whole, and a run cut short for a trial is not to be blamed;
    # neither are other projects' files, which name all that their programs know
    own = recipe.layer.origin if _is_written_by_hand(recipe) else "command line"
    written = {key: origin for key, origin in resolved.origins.items() if origin in ("command line", own)}
    idle: list[tuple[Say, str]] = [("warning", text) for text in idle_settings(resolved.config, written)]
    return Start(resolved.config, recipe.name, fork=fork, remarks=(*remarks, *idle))


def _is_written_by_hand(recipe: OpenedRecipe) -> bool:
    path = Path(recipe.path)
    return recipe.translation is None and path.parent != RECIPES and path.name != "config.yaml" and not path.is_dir()


def _resume(folder: Path, recipe: OpenedRecipe | None, tokens: Sequence[str]) -> Start:
    """Go on with a run, or begin it where nothing of it is there yet and a recipe says how."""
    if is_unbegun(folder) and recipe is not None:
        _refuse_other_folder("resume", folder, tokens)
        where = Layer("--resume", {"output": {"root": str(folder.parent), "name": folder.name}})
        return _new(recipe, tokens, where=[where])
    stored = _settings_of(folder, "resume")
    _refuse_other_folder("resume", folder, tokens)
    base = stored if recipe is None else recipe.layer
    config = _in_folder(resolve(TrainConfig, [base, command_line(tokens)]).config, folder)
    before = resolve(TrainConfig, [stored]).config
    config = _decided_by_weights(before, config)
    if config.data.name == before.data.name and config.data.revision is None:
        config = replace(config, data=replace(config.data, revision=before.data.revision))
    if changed := _changes(stored, config, FREE):
        raise ConfigError(
            f"--resume {folder}: goes on with the run's own settings, but {listed(changed)}; drop them, or begin a "
            f"new run from its weights with --fork {folder}"
            + (f", or lengthen it with --extend {folder}" if set(changed) <= set(LENGTH) else "")
        )
    return Start(config, folder.name, resume=folder)


def _extend(folder: Path, recipe: OpenedRecipe | None, tokens: Sequence[str]) -> Start:
    """Lengthen a run."""
    if recipe is not None:
        raise ConfigError(f"--extend {folder} goes on with that run's own settings; drop {recipe.name}")
    stored = _settings_of(folder, "extend")
    _refuse_other_folder("extend", folder, tokens)
    config = _in_folder(resolve(TrainConfig, [stored, command_line(tokens)]).config, folder)
    if changed := _changes(stored, config, (*FREE, *LENGTH)):
        raise ConfigError(
            f"--extend {folder}: changes the length of a run only, but {listed(changed)}; begin a new run from its "
            f"weights with --fork {folder}"
        )
    before = resolve(TrainConfig, [stored]).config
    lengths = [(c.train.epochs, c.schedule.cooldown_epochs, c.train.patience or math.inf) for c in (before, config)]
    if lengths[0] == lengths[1] or any(now < was for was, now in zip(*lengths, strict=True)):
        raise ConfigError(
            f"--extend {folder}: has {before.train.epochs} epochs; say how many it shall have in all, such as "
            f"train.epochs={2 * before.train.epochs}"
        )
    return Start(config, folder.name, resume=folder)


def _fork(folder: Path, recipe: OpenedRecipe | None, tokens: Sequence[str]) -> Start:
    """Begin a new run and schedule from the weights of another."""
    stored = _settings_of(folder, "fork")
    if recipe is None:
        anew = {"output": {"name": None}, "model": {"weights": None}}
        values = {**stored.values, **{key: {**stored.values.get(key, {}), **anew[key]} for key in anew}}
        recipe = OpenedRecipe(folder.name, str(folder), Layer(stored.origin, values))
    start = _new(recipe, tokens, fork=folder)
    if (weights := start.config.model.weights) is not None:
        raise ConfigError(f"--fork {folder}: begins with that run's weights; drop model.weights={weights}")
    return start


def is_unbegun(folder: Path) -> bool:
    """Say whether a folder is not there, or holds nothing but what is left of a start that was killed at once."""
    try:
        return all(
            is_temporary(path) or (path.name == "last" and all(map(is_of_a_start, path.iterdir())))
            for path in folder.iterdir()
        )
    except FileNotFoundError:
        return True
    except OSError:  # a file, or it may not be looked at; whoever reads it says so
        return False


def is_of_a_start(path: Path) -> bool:
    """Say whether a file in last/ says nothing of a run."""
    return path.name == LOCK or is_temporary(path)


def _settings_of(folder: Path, verb: str) -> Layer:
    if not (folder / "config.yaml").is_file():
        hint = "; with a recipe's name, --resume begins the run" if verb == "resume" and is_unbegun(folder) else ""
        raise ConfigError(
            f"--{verb} {folder}: holds no config.yaml, so it is no run; give the folder that `{command('train')}` "
            f"made{hint}"
        )
    return read_yaml(folder / "config.yaml")


def _refuse_other_folder(verb: str, folder: Path, tokens: Sequence[str]) -> None:
    if named := sorted({"root", "name"} & command_line(tokens).values.get("output", {}).keys()):
        raise ConfigError(f"--{verb} {folder} names the run's folder; drop output.{named[0]}")


def _decided_by_weights(stored: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Take from the run what its weight file decided and nothing here sets: numerics, image size, preprocessing."""
    if config.model.weights is None or config.model.weights != stored.model.weights:
        return config
    size = stored.model.image_size if config.model.image_size is None else config.model.image_size
    options = {**stored.model.options, **config.model.options}
    read = {
        key: getattr(stored.preprocess, key) if value is None else value
        for key, value in vars(config.preprocess).items()
    }
    return replace(
        config,
        model=replace(config.model, image_size=size, options=options),
        preprocess=replace(config.preprocess, **read),
    )


def _in_folder(config: TrainConfig, folder: Path) -> TrainConfig:
    return replace(config, output=replace(config.output, root=str(folder.parent), name=folder.name))


def _changes(stored: Layer, config: TrainConfig, allowed: Iterable[str]) -> Mapping[str, tuple[Any, Any]]:
    """Return {dotted key: (in the run, here)} of the settings that differ, less those that may."""
    return differences(flat(resolve(TrainConfig, [stored]).config), flat(config), allowed)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str]
) -> Mapping[str, tuple[Any, Any]]:
    """Return {dotted key: (before, now)} of the settings that differ, less those that begin with what is allowed to."""
    return {
        key: (before[key], now[key])
        for key in now
        if key in before and before[key] != now[key] and not any(key.startswith(name) for name in allowed)
    }


def listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Say what differs, in words."""
    texts = {key: ["null" if value is None else str(value) for value in values] for key, values in changed.items()}
    shown = [f"{key} is {was} there and {now} here" for key, (was, now) in list(texts.items())[:5]]
    more = f" and {len(changed) - 5} more differ" if len(changed) > 5 else ""
    return ", ".join(shown) + more
