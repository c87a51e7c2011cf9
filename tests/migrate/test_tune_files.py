"""MindSpore's optimize.yaml: its space is read, and its keys are tried as its program does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitrail.cli.app import app, understood
from vitrail.cli.tuning import split_words
from vitrail.errors import ConfigError
from vitrail.migrate.given import read_given
from vitrail.migrate.search import read_parameters
from vitrail.tuning.subject import (
    check_space,
    foreign_keys,
    open_subject,
    read_own_space,
    read_space_file,
    refuse_space,
)

FOREIGN = Path(__file__).parent / "foreign"
PARAMETERS = {
    "base_lr": {"bounds": [1e-6, 1e-3], "kind": "log"},
    "batch_size": {"choice": [16, 32]},
    "momentum": {"bounds": [0.8, 0.99]},
    "warmup_length": {"range": [0, 4, 2]},
}


@pytest.fixture
def optimize(tmp_path: Path) -> Path:
    """Their training file with a space, as configs/optimize.yaml is."""
    path = tmp_path / "optimize.yaml"
    content = yaml.safe_load((FOREIGN / "svt_s.yaml").read_text())
    path.write_text(yaml.safe_dump({**content, "parameters": PARAMETERS}))
    return path


def test_their_space_is_searched_by_their_keys(optimize: Path) -> None:
    subject = open_subject(str(optimize), read_given({"data.root": "images"}))
    space = read_own_space(subject)
    assert space is not None
    assert [one.plain() for one in space] == [
        {"low": 1e-6, "high": 1e-3, "log": True},
        [16, 32],
        {"low": 0.8, "high": 0.99},
        {"low": 0, "high": 4, "step": 2},
    ]
    check_space(subject, space, "optimize", extend=False)
    content = yaml.safe_load(optimize.read_text())
    assert subject.defaults(space)["base_lr"] == content["base_lr"]

    # a value that is tried goes before the file's, as tune_params.py puts it there
    config = subject.configure({"base_lr": 2e-4, "batch_size": 32})
    assert config.optim.lr == 2e-4
    assert config.train.batch_size == 32
    # five epochs at a constant rate, as their program trains each trial; the winner's recipe is whole
    assert (config.train.epochs, config.schedule.name) == (5, "constant")
    whole = subject.configure({"base_lr": 2e-4}, whole=True)
    assert whole.train.epochs == content["epochs"]
    assert whole.schedule.name == "cosine"
    given = open_subject(str(optimize), read_given({"data.root": "images", "train.epochs": 7}))
    assert given.configure({}).train.epochs == 7
    written = open_subject(str(optimize), read_given({"data.root": "images", "compat": "as_written"}))
    assert written.configure({}).train.epochs == content["epochs"]


def test_a_file_of_their_parameters_alone_is_a_space(optimize: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"parameters": PARAMETERS}))
    subject = open_subject(str(FOREIGN / "svt_s.yaml"), read_given({"data.root": "images"}))
    space = read_space_file(parameters, foreign_keys(subject))
    assert space == read_own_space(open_subject(str(optimize), read_given({"data.root": "images"})))
    # and no recipe
    with pytest.raises(ConfigError) as caught:
        refuse_space(str(parameters))
    assert str(caught.value).startswith(
        f"{parameters}: holds a space, parameters, and no recipe; name the file of their training before it: "
    )


def test_their_command_is_understood(optimize: Path) -> None:
    tokens, notes = understood(["tune", "--config", str(optimize), "--iters", "10", "--data_dir", "images"])
    command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert command.__name__ == "tune"
    assert bound.arguments["trials"] == 10
    assert split_words(bound.arguments["words"], bound.arguments["config"]) == (
        str(optimize), None, ["data_dir=images"],
    )  # fmt: skip
    assert not notes
    for short in (["tune", "-c", str(optimize), "-n", "10"], ["tune", str(optimize), "-n", "10"]):
        _, bound, _ = app.parse_args(understood(short)[0], exit_on_error=False, print_error=False)
        assert bound.arguments["trials"] == 10
        assert split_words(bound.arguments.get("words", ()), bound.arguments.get("config"))[0] == str(optimize)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "optimize: has no parameters, the space to search; add it, or give a space of ours"),
        ({"base_lr": 3}, "optimize: parameters.base_lr: is 3; it must have one of bounds, range, choice"),
        ({"base_lr": {"bound": [1, 2]}}, "parameters.base_lr: bound: unknown key; did you mean 'bounds'?"),
        ({"base_lr": {"kind": "log"}}, "parameters.base_lr: has no values; give one of bounds, range, choice"),
        ({"base_lr": {"bounds": [1, 2], "choice": [1]}}, "parameters.base_lr: has bounds and choice; give one"),
        ({"base_lr": {"bounds": [1, 2, 3]}}, "parameters.base_lr: bounds is [1, 2, 3]; it must be [low, high]"),
        ({"base_lr": {"range": [1, 2]}}, "parameters.base_lr: range is [1, 2]; it must be [low, high, step]"),
        ({"base_lr": {"bounds": [1, 2], "kind": "normal"}}, "kind is 'normal'; it must be log or uniform"),
    ],
)
def test_what_is_none_of_their_forms_is_refused(parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_parameters({"parameters": parameters}, "optimize")


def test_a_key_that_a_setting_overrules_is_refused(optimize: Path) -> None:
    subject = open_subject(str(optimize), read_given({"data.root": "images", "train.batch_size": 8}))
    space = read_own_space(subject)
    assert space is not None
    with pytest.raises(ConfigError, match=r"^optimize: batch_size: its values make no difference, as a setting"):
        check_space(subject, space, "optimize", extend=False)


def test_a_key_that_their_file_does_not_have_is_refused(optimize: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(optimize.read_text())
    content["parameters"] = {"base_lrr": {"choice": [1]}}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="base_lrr: unknown setting; did you mean 'base_lr'"):
        read_own_space(open_subject(str(wrong), read_given({"data.root": "images"})))
    shutil.copyfile(wrong, tmp_path / "given.yaml")
    subject = open_subject(str(optimize), read_given({"data.root": "images", "base_lr": 1e-4}))
    space = read_own_space(subject)
    assert space is not None
    with pytest.raises(ConfigError, match="base_lr: is in the space and given as a setting too"):
        check_space(subject, space, "optimize", extend=False)
