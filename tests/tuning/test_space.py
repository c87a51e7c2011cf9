"""Spaces: what they may hold, and what is refused before the first trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.commands import refused
from support.image_folders import write_fashion_mnist
from support.runs import TINY
from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import list_recipes, read_recipe
from vitrail.config.resolve import read_yaml, resolve
from vitrail.errors import ConfigError
from vitrail.migrate.given import read_given
from vitrail.tuning.default_space import suggest_space
from vitrail.tuning.space import list_grid, read_space
from vitrail.tuning.subject import check_space, find_ground, list_conditions, open_subject
from vitrail.tuning.tune import choose_space


def test_a_space_is_read() -> None:
    space = read_space(
        {
            "augment.mixup": {"low": 0.1, "high": 0.8, "when": {"augment.cutmix": 0.0}},
            "optim.lr": {"low": "1e-5", "high": "1e-2", "log": True},
            "train.batch_size": {"low": 16, "high": 60, "step": 16},
            "augment.cutmix": [0, 1.0],
            "augment.scale": [[0.08, 1], [0.5, 1.0]],
            "augment.auto_augment": [None, "rand-m9-mstd0.5-inc1"],
            "model.options.depth": {"low": 2, "high": 4},
        },
        "space",
    )
    assert [one.key for one in space][-1] == "augment.mixup"  # after what it depends on
    by_key = {one.key: one for one in space}
    assert (by_key["optim.lr"].low, by_key["optim.lr"].high, by_key["optim.lr"].log) == (1e-5, 1e-2, True)
    assert (by_key["train.batch_size"].is_whole, by_key["train.batch_size"].high) == (True, 48)
    assert by_key["train.batch_size"].grid() == [16, 32, 48]
    assert by_key["augment.scale"].choices == ([0.08, 1.0], [0.5, 1.0])
    assert by_key["model.options.depth"].is_whole
    assert not by_key["augment.mixup"].is_active({"augment.cutmix": 1.0})
    assert not by_key["augment.mixup"].is_active({})
    assert by_key["augment.mixup"].is_active({"augment.cutmix": 0.0})
    assert str(by_key["augment.mixup"]) == "0.1 to 0.8; where augment.cutmix is 0.0"
    assert str(by_key["train.batch_size"]) == "16 to 48 in steps of 16"
    # what is kept of it reads back as itself
    assert read_space({one.key: one.plain() for one in space}, "kept") == space


def test_a_condition_is_read_as_the_type_of_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"  # in YAML, 1e-2 is a text
    file.write_text("optim.weight_decay: [1e-2, 0.1]\noptim.lr: {choices: [1e-3], when: {optim.weight_decay: 1e-2}}")
    space = read_space(read_yaml(file).values, "space")
    assert space[1].when == {"optim.weight_decay": (0.01,)}


def test_a_grid_regards_conditions() -> None:
    space = read_space(
        {
            "augment.cutmix": [0.0, 1.0],
            "augment.mixup": {"low": 0.2, "high": 0.8, "step": 0.3, "when": {"augment.cutmix": [1.0]}},
        },
        "space",
    )
    assert list_grid(space) == [
        {"augment.cutmix": 0.0},
        {"augment.cutmix": 1.0, "augment.mixup": 0.2},
        {"augment.cutmix": 1.0, "augment.mixup": 0.5},
        {"augment.cutmix": 1.0, "augment.mixup": 0.8},
    ]
    endless = read_space({"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "space")
    with pytest.raises(ConfigError, match=r"optim\.lr: a grid needs a list of values, or a range with a step"):
        list_grid(endless)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space: holds no setting; write one, such as optim.lr"),
        ({"optim.lrr": [1]}, "space: optim.lrr: unknown setting; did you mean 'optim.lr'?"),
        ({"base_lr": [1]}, "space: base_lr: unknown setting"),
        ({"data.root": ["a", "b"]}, "data.root: is the same in all trials, which otherwise could not be compared"),
        ({"train.seed": [1, 2]}, "train.seed: is the same in all trials"),
        ({"optim.lr": 0.1}, "optim.lr: is 0.1; give a list of values, or a range as {low: 0.1, high: 0.5}"),
        ({"optim.lr": []}, "optim.lr: is []; give a list of values"),
        ({"optim.lr": ["fast"]}, "optim.lr: is 'fast'; it must be a number"),
        ({"optim.lr": [1, 1.0]}, "optim.lr: 1.0 is given twice; drop one"),
        ({"optim.name": ["adamw", "adam"]}, "optim.name: is 'adam'; it must be one of adamw, sgd"),
        ({"optim.lr": {"lo": 1, "high": 2}}, "optim.lr: lo: unknown key; did you mean 'low'?"),
        ({"optim.lr": {"high": 2}}, "optim.lr: has no low; give low and high, or a list of values"),
        ({"optim.lr": {"low": 2, "high": 1}}, "optim.lr: low is 2.0 and high is 1.0; low must be below high"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, "optim.lr: low is 0.0; it must be above 0 where log is"),
        ({"optim.lr": {"low": 1, "high": 2, "log": True, "step": 1}}, "optim.lr: step and log are both given"),
        ({"optim.lr": {"low": 1, "high": 2, "step": 3}}, "optim.lr: step is 3.0; it must be above 0 and at most 1"),
        ({"optim.lr": {"low": 1, "high": 2, "log": "often"}}, "optim.lr: log is 'often'; it must be true or false"),
        ({"optim.lr": {"choices": [1], "low": 1}}, "optim.lr: choices and low are both given"),
        (
            {"optim.name": {"low": 1, "high": 2}},
            "optim.name: is one of adamw, sgd, lamb, lion, adan, muon, which has no",
        ),
        ({"train.epochs": {"low": 1.5, "high": 3}}, "train.epochs: low is 1.5; it must be a whole number"),
        ({"train.epochs": {"low": 1, "high": "many"}}, "train.epochs: high is 'many'; it must be a whole number"),
        ({"optim.lr": {"low": 1, "high": 2, "step": "x"}}, "optim.lr: step is 'x'; it must be a number"),
        (
            {"optim.name": ["adamw", "muon"], "optim.lr": {"choices": [1], "when": {"optim.name": "muom"}}},
            "optim.lr: when optim.name is 'muom'; it must be one of adamw, sgd, lamb, lion, adan, muon; did you mean",
        ),
        ({"optim.lr": {"low": 1, "high": 2, "when": 3}}, "optim.lr: when is 3; write {other.setting: value}"),
        (
            {"optim.lr": {"choices": [1], "when": {"optim.name": "sgd"}}},
            "optim.lr: when names optim.name, which is no setting of the space; add it, or drop the condition",
        ),
        (
            {"optim.name": ["adamw", "lion"], "optim.lr": {"choices": [1], "when": {"optim.name": []}}},
            "optim.lr: when gives no value of optim.name; write {optim.name: value}, or a list of values",
        ),
        (
            {"optim.name": ["adamw", "lion"], "optim.lr": {"choices": [1], "when": {"optim.name": "sgd"}}},
            "optim.lr: when wants optim.name to be sgd, which it never is; it is adamw or lion",
        ),
        (
            {
                "augment.mixup": {"choices": [1], "when": {"augment.cutmix": 1}},
                "augment.cutmix": {"choices": [1], "when": {"augment.mixup": 1}},
            },
            "the conditions of augment.mixup, augment.cutmix go round in a circle; drop one of them",
        ),
        (
            {"optim.lr": {"choices": [1], "when": {"optim.lr": 1}}},
            "the conditions of optim.lr go round in a circle; drop one of them",
        ),
    ],
)
def test_what_is_no_space_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(space, "space")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optim.lr": {"low": -1.0, "high": 1.0}}, "space: optim.lr: optim.lr is -1.0; it must be above 0"),
        ({"model.drop_path_rate": [0.1, 1.0]}, "model.drop_path_rate is 1.0; it must be from 0 to below 1"),
        ({"schedule.warmup_epochs": {"low": 0, "high": 9}}, "schedule.warmup_epochs 9 is more than train.epochs 4"),
        ({"optim.weight_decay": [0.1]}, "optim.weight_decay: is in the space and given as a setting too"),
        ({"train.epochs": [3]}, "train.epochs: cannot be searched with extend"),
        (
            {"model.options.depht": [1, 2]},
            "model.options.depht: tnt_ti_patch16_224 has no setting 'depht'",
        ),
        ({"model.options.num_heads": [2, 5]}, "model.options.num_heads: "),
        ({"model.name": ["tnt_ti_patch16_224", "timm:test_resnet"]}, "model.name: timm:test_resnet has no setting"),
        ({"model.name": ["tnt_ti_patch16_22"]}, "unknown model 'tnt_ti_patch16_22'; did you mean"),
        (
            {
                "train.batch_size": [4, 8],
                "schedule.warmup_epochs": {"choices": [9], "when": {"train.batch_size": [4, 8]}},
            },
            "schedule.warmup_epochs 9 is more than train.epochs 4",
        ),
    ],
)
def test_values_that_no_run_could_have_are_refused_first(space: dict[str, Any], message: str) -> None:
    subject = open_subject(str(TINY), read_given({"optim.weight_decay": 0.2}))
    with pytest.raises(ConfigError) as caught:
        check_space(subject, read_space(space, "space"), "space", extend=True)
    assert message in str(caught.value)


def test_what_is_searched_beside_other_values_is_looked_at_beside_them() -> None:
    space = read_space(
        {
            "schedule.warmup_epochs": {"low": 0, "high": 9, "when": {"train.epochs": [10, 20]}},
            "train.epochs": {"choices": [4, 10, 20], "when": {"optim.name": "lion"}},
            "optim.name": ["adamw", "lion"],
        },
        "space",
    )
    subject = open_subject(str(TINY), read_given({}))
    check_space(subject, space, "space", extend=False)
    (warmup,) = [one for one in space if one.key == "schedule.warmup_epochs"]
    assert list_conditions(warmup, space) == [
        {"optim.name": "lion", "train.epochs": 10},
        {"optim.name": "lion", "train.epochs": 20},
    ]


@pytest.mark.parametrize(("name", "can_skip"), [("timm:densenet121", False), ("timm:test_resnet", True)])
def test_the_space_chosen_for_a_model_of_timm_can_be_built(name: str, can_skip: bool) -> None:
    given = {"model.name": name, "data.name": "digits", "data.root": None}
    subject = open_subject("tnt_s_imagenet", read_given(given))
    space, _ = choose_space(subject, None, is_multi_label=False)
    assert ("model.drop_path_rate" in [one.key for one in space]) == can_skip
    check_space(subject, space, "space", extend=False)


@pytest.mark.thorough
@pytest.mark.parametrize("name", list_recipes())
def test_the_space_chosen_for_a_recipe_holds_what_it_has(name: str) -> None:
    layers = [read_recipe(name).layer]
    given: dict[str, Any] = {}
    if "digits" not in name:
        given = {"data.root": "images"}
    config = resolve(TrainConfig, [*layers, read_given(given).layer]).config
    space = read_space(suggest_space(config, is_multi_label=False), "chosen")
    subject = open_subject(name, read_given(given))
    check_space(subject, space, "chosen", extend=False)
    defaults = subject.defaults(space)
    for one in space:
        assert one.holds(defaults[one.key]), one.key
    assert {"optim.lr", "augment.scale", "augment.label_smoothing"} <= defaults.keys()
    assert "augment.label_smoothing" not in suggest_space(config, is_multi_label=True)


def test_options_are_refused_in_one_line(capsys: pytest.CaptureFixture, tmp_path: Path, image_folder: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: [1e-3, 2e-3]")
    given = ("tune", TINY, space, f"data.root={image_folder}", "--study", tmp_path / "study")
    assert "--trials is 0; it must be at least 1" in refused(capsys, *given, "--trials", 0)
    assert "--hours is 0.0; it must be above 0" in refused(capsys, *given, "--hours", 0)
    assert "--seeds is 1; it must be 2 or more" in refused(capsys, *given, "--seeds", 1)
    assert "--finalists is 0; it must be at least 1" in refused(capsys, *given, "--finalists", 0)
    assert "--final is 1; it must be 2 or more" in refused(capsys, *given, "--final", 1)
    both = refused(capsys, *given, "--extend", "--prune", "median")
    assert "--extend and --prune median: both end trials early" in both
    short = refused(capsys, *given, "--extend", "train.epochs=1")
    assert "--extend: begins trials with a part of the epochs, and train.epochs is 1" in short
    unknown = refused(capsys, *given, "--metric", "val_top2")
    assert "--metric is val_top2, which no epoch reports; did you mean 'val_top5'? " in unknown
    assert "Known metrics: val_top1, val_top5, val_loss" in unknown
    assert "--metric is train_loss, of the training images" in refused(capsys, *given, "--metric", "train_loss")
    assert "--metric is val_map, which no epoch reports; did" in refused(capsys, *given, "--metric", "val_map")
    assert "--metric" not in refused(capsys, *given, "train.monitor=val_top2")
    alone = refused(capsys, "tune", space)
    assert f"{space}: holds a space, as optim.lr says, and no recipe; name the recipe before it: vitrail tune" in alone
    third = refused(capsys, *given, "more.yaml")
    assert "more.yaml: a recipe and a space are given already" in third
    absent = refused(capsys, "tune", TINY, tmp_path / "none.yaml", f"data.root={image_folder}")
    assert "none.yaml: cannot be read (No such file or directory); give the file of a space" in absent
    space.write_text("- optim.lr: [1e-3, 2e-3]")
    assert "space.yaml: holds a list, not settings and their values, such as optim.lr" in refused(capsys, *given)
    space.write_text("optim.lr: {low: 1e-4, low: 1e-3, high: 1e-2}")
    assert "space.yaml: is not YAML (the key 'low' is written twice, line 1, " in refused(capsys, *given)
    # a range has no grid, and leaves no study behind that is of this space
    space.write_text("optim.lr: {low: 1e-4, high: 1e-2}")
    assert "optim.lr: a grid needs a list of values" in refused(capsys, *given, "--sampler", "grid")
    assert not (tmp_path / "study").exists()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("mine")
    assert "holds notes.txt and no study.yaml, so it is no study" in refused(capsys, *given)
    taken = refused(capsys, *given[:-1], space)
    assert "space.yaml: is a file; give a folder" in taken
    assert not (tmp_path / "study" / "journal.log").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.name=twins_svt_small"], "recipe digits sets model.options (depth, embed_dim, inner_dim and 4 more)"),
        (["model.name=timm:test_resnet"], "for its own model, tnt_ti_patch16_224; name another recipe"),
        (["model.options.dept=2"], "tnt_ti_patch16_224 has no setting 'dept'; did you mean 'depth'"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_the_first_trial(
    settings: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    assert message in refused(capsys, "tune", "digits", *settings, "--study", study)
    assert not study.exists()


def test_without_optuna_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import vitrail
    from vitrail.tuning import study

    monkeypatch.setattr(study, "find_spec", lambda name: None)
    with pytest.raises(vitrail.VitrailError, match=r"needs Optuna; run: pip install 'vitrail\[tune\]'"):
        vitrail.tune("digits", progress=False)


def test_torchrun_is_told_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    import vitrail

    with pytest.raises(ConfigError, match="once for each GPU, with CUDA_VISIBLE_DEVICES and the same study"):
        vitrail.tune("digits", progress=False)


def test_a_test_split_is_never_selected_on(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, 40, 10)
    given = read_given({"data.name": "fashion-mnist", "data.root": str(tmp_path)})
    subject, ground = find_ground(open_subject("digits", given), None)
    assert ground.split.startswith("fashion-mnist/train, held-out part (")
    assert "the recipe evaluates on a test split, which nothing is selected on: trials hold out 20%" in ground.notes[0]
    assert subject.configure({}).data.val_split is None
    assert subject.configure({}, whole=True).data.val_split == "val"  # the winner's recipe has its own


def test_a_folder_called_test_is_never_selected_on(image_folder: Path) -> None:
    (image_folder / "val").rename(image_folder / "test")
    given = read_given({"data.root": str(image_folder), "data.val_split": "test"})
    subject, ground = find_ground(open_subject(str(TINY), given), "val_loss")
    assert ground.is_lower_better
    assert ground.split.startswith(f"{image_folder / 'train'}, held-out part (")
    assert subject.held_out is not None
    # a split that is not called so is what the recipe says
    (image_folder / "test").rename(image_folder / "val")
    given = read_given({"data.root": str(image_folder)})
    subject, ground = find_ground(open_subject(str(TINY), given), None)
    assert (ground.metric, subject.held_out) == ("val_top1", None)
