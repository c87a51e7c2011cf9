"""What a search varies: a recipe as it is, as trials train it and as the winner is written; and by what it selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import read_recipe
from vitrail.config.resolve import Layer, flatten, read_yaml, resolve
from vitrail.config.training_sections import is_of_training
from vitrail.data.named_sets import NAMED_SETS
from vitrail.data.opening import open_data
from vitrail.data.sources import Source, count_by_class, fingerprint
from vitrail.data.tables.hub import pin_revision
from vitrail.display import Display
from vitrail.errors import ConfigError, command, format_choices, name_option, tell_count
from vitrail.migrate.given import Given
from vitrail.migrate.recipes import OpenedRecipe, is_foreign, open_recipe
from vitrail.migrate.search import SPACE, read_parameters, trial_settings
from vitrail.models.registry import canonical_name
from vitrail.training.initial_model import build_model, refuse_left_options
from vitrail.training.losses import LossKind, check_loss_settings, choose_loss
from vitrail.training.setup import check_monitor
from vitrail.training.start import find_left_options
from vitrail.tuning.space import Dimension, Space, kinds_of_settings, read_space, to_settings

TEST_SPLITS = ("test", "testing")
"""Names of splits that are kept for the very end, and never selected on."""
HELD_OUT = Layer("held out of the training images", {"data": {"val_split": None}})
"""Setting by which trials of a set with a test split are evaluated on images of the training
split."""


@dataclass(frozen=True)
class Subject:
    """A recipe that is searched around, and all that its trials have in common."""

    recipe: str | None
    """Name or file of the recipe; None is digits."""
    opened: OpenedRecipe
    """The recipe as it was when the search began."""
    given: Given
    """Settings that were put over the recipe."""
    shortened: Layer | None = None
    """Settings of trials alone, of another project's program; None where there are none."""
    held_out: Layer | None = None
    """Setting that keeps trials off the test split; None where the recipe has a validation split."""

    def configure(self, values: Mapping[str, Any], *, whole: bool = False) -> TrainConfig:
        """Return the settings of a training with some values tried.

        Args:
            values: Values by the keys of the space; none is the recipe as it is.
            whole: Whether it is the recipe's own length and validation split, and not those of a
                trial.

        Raises:
            ConfigError: The values do not go together.
        """
        theirs = {key: value for key, value in values.items() if "." not in key}
        opened = self.opened
        if theirs:
            opened = open_recipe(self.recipe, self.given.keys, theirs)
        layers = [opened.layer]
        if self.shortened is not None and not whole:
            layers.append(self.shortened)
        layers.append(self.given.layer)
        if self.held_out is not None and not whole:
            layers.append(self.held_out)
        layers.append(to_settings(values, "space"))
        return resolve(TrainConfig, layers).config

    def defaults(self, space: Space) -> dict[str, Any]:
        """Return what the recipe has for the settings of a space, where it is something."""
        ours = flatten(self.configure({}))
        rows = () if self.opened.translation is None else self.opened.translation.rows
        theirs = {row.key: row.value for row in rows}
        defaults = {}
        for dimension in space:
            if dimension.is_foreign:
                value = theirs.get(dimension.key)
            elif dimension.key in ours:
                value = ours[dimension.key]
            else:  # an option of the model
                *_, option = dimension.key.split(".")
                value = ours["model.options"].get(option)
            defaults[dimension.key] = value
        return defaults


def open_subject(recipe: str | None, given: Given) -> Subject:
    """Open the recipe of a search; one of MindSpore's optimize.yaml is trained as its program does.

    Raises:
        ConfigError: There is no such recipe, or a setting is wrong.
    """
    opened = open_recipe(recipe, given.keys, {})
    shortened = None
    translation = opened.translation
    if translation is not None and translation.compat == "as_executed" and _has_parameters(recipe):
        shortened = trial_settings(opened.name)
    subject = Subject(recipe, opened, given, shortened)
    subject.configure({})
    return subject


def refuse_space(recipe: str | None) -> None:
    """Refuse the file of a space in the place of a recipe; say nothing of what is none.

    Raises:
        ConfigError: All of its keys are dotted ones of settings.
    """
    if recipe is None or not Path(recipe).is_file():
        return
    keys = [str(key) for key in read_yaml(Path(recipe)).values]
    if keys == [SPACE]:  # the part of MindSpore's optimize.yaml that is searched
        raise ConfigError(
            f"{recipe}: holds a space, {SPACE}, and no recipe; name the file of their training "
            f"before it: {command('tune', 'svt_s.yaml', recipe)}"
        )
    if keys and all("." in key for key in keys):
        raise ConfigError(
            f"{recipe}: holds a space, as {keys[0]} says, and no recipe; name the recipe before it: "
            f"{command('tune', 'digits', recipe)}"
        )


def _has_parameters(recipe: str | None) -> bool:
    """Say whether a file holds a space of another project."""
    return recipe is not None and SPACE in read_recipe(recipe).layer.values


def read_own_space(subject: Subject) -> Space | None:
    """Return the space that stands in the recipe's own file, as in MindSpore's optimize.yaml; None where none does.

    Raises:
        ConfigError: The space is wrong.
    """
    if subject.recipe is None or not _has_parameters(subject.recipe):
        return None
    file = read_recipe(subject.recipe)
    if not is_foreign(file.layer.values):
        return None
    parameters = read_parameters(file.layer.values, file.name)
    known = foreign_keys(subject)
    return read_space(parameters, f"{file.name}: {SPACE}", known)


def read_space_file(path: Path, foreign: Sequence[str]) -> Space:
    """Read the file of a space; one that holds MindSpore's `parameters` is read as theirs.

    Args:
        path: A YAML file.
        foreign: Keys of another project's file, which may be searched too.

    Raises:
        ConfigError: It cannot be read, or the space is wrong.
    """
    holds = "settings and their values, such as optim.lr: [1.0e-4, 1.0e-3]"
    content = read_yaml(path, holds=holds, advice="give the file of a space").values
    if content.keys() == {SPACE}:
        return read_space(read_parameters(content, str(path)), f"{path}: {SPACE}", foreign)
    return read_space(content, str(path), foreign)


def foreign_keys(subject: Subject) -> tuple[str, ...]:
    """Return the keys of another project's file that may be searched; none for a recipe of ours."""
    translation = subject.opened.translation
    if translation is None:
        return ()
    return tuple(row.key for row in translation.rows if row.key)


def check_space(subject: Subject, space: Space, origin: str, *, extend: bool) -> None:
    """Refuse a space whose values no run of the recipe could have, before the first trial.

    Args:
        subject: The recipe.
        space: The space.
        origin: Where the space is written, for messages.
        extend: Whether trials are lengthened step by step.

    Raises:
        ConfigError: A setting that is given too, or values out of range, all in one message.
    """
    problems = []
    for dimension in space:
        key = dimension.key
        section, _, name = key.partition(".")
        given = subject.given.keys if dimension.is_foreign else subject.given.layer.values
        is_given = key in given if dimension.is_foreign else name in given.get(section, {})
        if is_given:
            problems.append(
                f"{key}: is in the space and given as a setting too, so that it is not searched; "
                "drop one"
            )
            continue
        if extend and key in ("train.epochs", "schedule.cooldown_epochs"):
            problems.append(
                f"{key}: cannot be searched with {name_option('extend')}, which gives each trial "
                "epochs as it deserves them; drop one"
            )
            continue
        # choices are each looked at; of a range both ends, as settings have a least and a largest
        # value
        ends = dimension.choices or (dimension.low, dimension.high)
        beside = list_conditions(dimension, space)
        try:
            for values in beside:
                for value in ends:
                    config = subject.configure({**values, key: value})
                    if key.startswith("model."):
                        check_model(config)
        except ConfigError as error:
            problems.append(f"{key}: {error}")
            continue
        configs = []
        with suppress(ConfigError):  # a rate may be too low for the whole schedule alone
            configs = [subject.configure({**beside[0], key: value}, whole=True) for value in ends]
        # of another project's key, whose translation a setting of ours may overrule
        if len(configs) > 1 and all(config == configs[0] for config in configs):
            problems.append(
                f"{key}: its values make no difference, as a setting that is given or another key "
                "of the file goes before it; drop one of them"
            )
    if problems:
        raise ConfigError("; ".join(f"{origin}: {problem}" for problem in dict.fromkeys(problems)))


def list_conditions(dimension: Dimension, space: Space) -> list[dict[str, Any]]:
    """Return the values of other settings beside which one is searched; no value where it always is."""
    by_key = {one.key: one for one in space}
    points: list[dict[str, Any]] = [{}]
    for key, allowed in dimension.when.items():
        longer = []
        for before in list_conditions(by_key[key], space):
            for value in allowed:
                longer += [{**point, **before, key: value} for point in points]
        points = longer
    return points


def check_model(config: TrainConfig) -> None:
    """Refuse settings of a model that cannot be built, without memory for its weights.

    Raises:
        ConfigError: With what is wrong.
    """
    with torch.device("meta"):
        build_model(config, canonical_name(config.model.name), num_classes=2)


def refuse_model(subject: Subject) -> None:
    """Refuse a recipe whose model cannot be built, or that names another than its sizes are for, before all trials.

    Raises:
        ConfigError: With what is wrong.
    """
    config = subject.configure({})
    left = find_left_options(subject.opened, subject.given.layer)
    refuse_left_options(left, canonical_name(config.model.name))
    check_model(config)


def has_drop_path(subject: Subject) -> bool:
    """Say whether the model of a recipe can skip blocks; a few of timm's cannot."""
    try:
        check_model(subject.configure({"model.drop_path_rate": 0.1}))
    except ConfigError:
        return False
    return True


# The metric and the images


@dataclass(frozen=True)
class Ground:
    """What trials are compared by: a metric, on some images."""

    metric: str
    """Number of an epoch, as in metrics.jsonl."""
    split: str
    """Images that are selected on, in words."""
    images: Mapping[str, str]
    """Fingerprints of the training and the validation images."""
    is_multi_label: bool
    notes: tuple[str, ...]
    """What is to be said about the images."""

    @property
    def is_lower_better(self) -> bool:
        """Whether the best value is the lowest."""
        return self.metric.endswith("loss")


def find_ground(subject: Subject, metric: str | None) -> tuple[Subject, Ground]:
    """Find what trials are compared by; a test split is never selected on.

    Args:
        subject: The recipe.
        metric: Number of an epoch; None is train.monitor of the recipe, or its default.

    Returns:
        The recipe, with images held out where it would be evaluated on a test split, and what its
        trials are compared by.

    Raises:
        ConfigError: No epoch reports the metric.
        DataError: The images are not there, or not as they should be.
    """
    subject, notes = _keep_off_test(subject)
    config = subject.configure({})
    data = open_data(pin_revision(config.data))
    loss = choose_loss(data.train.label_sets, config.data.unlabelled)
    chosen = metric or config.train.monitor or loss.default_monitor
    where = "train.monitor" if metric is None else name_option("metric")
    check_loss_settings(loss, replace(config, train=replace(config.train, monitor=None)))
    _check_metric(chosen, where, loss, config)
    check_monitor(chosen, count_by_class(data.train), count_by_class(data.val))
    ground = Ground(
        metric=chosen,
        split=f"{data.val.description} ({tell_count(len(data.val), 'image')})",
        images=_fingerprints(data.train, data.val),
        is_multi_label=data.train.label_sets is not None,
        notes=(*notes, *data.notes),
    )
    return subject, ground


def _fingerprints(train: Source, val: Source) -> dict[str, str]:
    return {"train": fingerprint(train), "val": fingerprint(val)}


def _keep_off_test(subject: Subject) -> tuple[Subject, tuple[str, ...]]:
    """Hold out training images where the recipe is evaluated on a test split, and say so."""
    section = subject.configure({}).data
    has_test = section.name in NAMED_SETS and section.name != "digits"
    if section.val_split is None:
        return subject, ()
    if not has_test and section.val_split.lower() not in TEST_SPLITS:
        return subject, ()
    note = (
        f"the recipe evaluates on a test split, which nothing is selected on: trials hold out "
        f"{section.val_fraction:.0%} of the training images instead (data.val_split=null)"
    )
    return replace(subject, held_out=HELD_OUT), (note,)


def _check_metric(metric: str, where: str, loss: LossKind, config: TrainConfig) -> None:
    """Refuse a metric that no epoch reports of such labels, or that is measured on the training images.

    Raises:
        ConfigError: With those that there are.
    """
    known = []
    for name in _literals(kinds_of_settings()["train.monitor"]):
        monitored = replace(config, train=replace(config.train, monitor=name))
        if name.startswith("val_") and not loss.problems(monitored):
            known.append(name)
    if metric in known:
        return
    if is_of_training(metric):
        raise ConfigError(
            f"{where} is {metric}, of the training images, which says nothing about others; known "
            f"metrics: {', '.join(known)}"
        )
    choices = format_choices(metric, known, "known metrics")
    raise ConfigError(f"{where} is {metric}, which no epoch reports{choices}")


def _literals(kind: Any) -> list[str]:
    """Return the names that a setting may have."""
    names: list[str] = []
    for part in get_args(kind):
        names += [part] if isinstance(part, str) else _literals(part)
    return names


def place(config: TrainConfig, folder: Path, metric: str, seed: int | None = None) -> TrainConfig:
    """Return the settings of a training in a folder, with a metric and a seed."""
    train = replace(config.train, monitor=metric)
    if seed is not None:
        train = replace(train, seed=seed)
    output = replace(config.output, root=str(folder.parent), name=folder.name)
    return replace(config, train=train, output=output)


def show_start(display: Display, ground: Ground) -> None:
    """Say what is selected on, and what is to be said about it."""
    for note in ground.notes:
        display.note(note)
    display.note(f"selects by {ground.metric} on {ground.split}")
