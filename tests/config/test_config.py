"""Settings: how they are read, merged, checked, explained, and written back."""

import datetime
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_type_hints

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vitrail.config.sections import (
    AugmentSection,
    BalanceSection,
    DataSection,
    EmaSection,
    EvaluateConfig,
    EvaluateSection,
    Layer,
    ModelSection,
    MultiLabelSection,
    OptimSection,
    OutputSection,
    PredictConfig,
    PreprocessSection,
    ScheduleSection,
    TrainConfig,
    TrainSection,
    WeightsSection,
    command_line,
    describe,
    find_recipe,
    flat,
    list_recipes,
    read_yaml,
    resolve,
    to_dict,
    to_yaml,
)
from vitrail.errors import ConfigError, VitrailError

SECTIONS = (
    ModelSection, DataSection, PreprocessSection, AugmentSection, BalanceSection, MultiLabelSection, OptimSection,
    ScheduleSection, EmaSection, TrainSection, OutputSection, EvaluateSection, WeightsSection,
)  # fmt: skip
SELF_EXPLAINING = {
    (AugmentSection, "label_smoothing"),
    (OptimSection, "betas"),
    (OptimSection, "eps"),
    (OptimSection, "name"),
    (OptimSection, "weight_decay"),
    (OutputSection, "root"),
    (PreprocessSection, "interpolation"),
    (PreprocessSection, "std"),
    (ScheduleSection, "min_lr"),
    (ScheduleSection, "name"),
    (ScheduleSection, "warmup_lr"),
    (TrainSection, "channels_last"),
    (TrainSection, "epochs"),
    (TrainSection, "seed"),
    (EvaluateSection, "batch_size"),
    (EvaluateSection, "device"),
}


def settings(*tokens: str) -> TrainConfig:
    """Return the configuration of a command line for the digits."""
    return resolve(TrainConfig, [command_line(["data.name=digits", *tokens])]).config


def problem(*tokens: str, kind: Any = TrainConfig) -> str:
    """Return the message with which a command line is refused."""
    base = ["data.name=digits"] if "data" in get_type_hints(kind) else []
    with pytest.raises(ConfigError) as caught:
        resolve(kind, [command_line([*base, *tokens])])
    return str(caught.value)


# Layers


def test_command_line_wins_over_recipe_and_recipe_over_default() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "optim": {"lr": 0.5, "weight_decay": 0.1}})
    resolved = resolve(TrainConfig, [recipe, command_line(["optim.lr=0.25"])])
    assert resolved.config.optim.lr == 0.25
    assert resolved.config.optim.weight_decay == 0.1
    assert resolved.config.optim.eps == 1e-8


def test_origins_name_the_last_layer_that_wrote_each_key_and_leave_defaults_out() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "optim": {"lr": 0.5, "weight_decay": 0.1}})
    resolved = resolve(TrainConfig, [recipe, command_line(["optim.lr=0.25", "ema.decay=0.9"])])
    assert resolved.origins == {
        "data.name": "recipe",
        "optim.lr": "command line",
        "optim.weight_decay": "recipe",
        "ema.decay": "command line",
    }


def test_no_layer_at_all_gives_the_defaults() -> None:
    resolved = resolve(PredictConfig, [])
    assert resolved.config == PredictConfig()
    assert resolved.origins == {}


def test_a_command_may_null_what_a_recipe_set() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "ema": {"decay": 0.9}})
    assert resolve(TrainConfig, [recipe, command_line(["ema.decay=null"])]).config.ema.decay is None


def test_options_of_two_layers_are_merged() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "model": {"options": {"depth": 2, "gelu": "tanh"}}})
    resolved = resolve(TrainConfig, [recipe, command_line(["model.options.depth=3", "model.options.embed_dim=64"])])
    assert resolved.config.model.options == {"depth": 3, "gelu": "tanh", "embed_dim": 64}


def test_merging_options_changes_neither_layer_nor_default() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "model": {"options": {"depth": 2}}})
    resolve(TrainConfig, [recipe, command_line(["model.options.depth=3"])])
    assert recipe.values["model"]["options"] == {"depth": 2}
    assert ModelSection().options == {}


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    config = settings()
    with pytest.raises(FrozenInstanceError):
        config.optim.lr = 1.0  # type: ignore[misc]


# Command line


@pytest.mark.parametrize(
    ("token", "key", "value"),
    [
        ("optim.lr=0.01", "optim.lr", 0.01),
        ("optim.lr=5e-4", "optim.lr", 5e-4),
        ("optim.eps=1e-8", "optim.eps", 1e-8),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.clip_norm=null", "optim.clip_norm", None),
        ("optim.clip_norm=~", "optim.clip_norm", None),
        ("optim.betas=[0.8, 0.95]", "optim.betas", (0.8, 0.95)),
        ("optim.betas=[8e-1,9.5e-1]", "optim.betas", (0.8, 0.95)),
        ("augment.scale=[0.5, 1]", "augment.scale", (0.5, 1.0)),
        ("optim.nesterov=false", "optim.nesterov", False),
        ("train.compile=true", "train.compile", True),
        ("train.epochs=12", "train.epochs", 12),
        ("model.image_size=384", "model.image_size", 384),
        ("model.image_size=[224, 192]", "model.image_size", (224, 192)),
        ("model.image_size=null", "model.image_size", None),
        ("output.name=3", "output.name", "3"),
        ("output.name=1.5", "output.name", "1.5"),
        ("output.name=", "output.name", ""),
        ("data.root=/data/a=b/images", "data.root", "/data/a=b/images"),
        ("data.root=C:\\images", "data.root", "C:\\images"),
        ("data.root=[broken", "data.root", "[broken"),
        ("data.root=~/images", "data.root", "~/images"),
        ("preprocess.mean=[-0.5, 0, 5e-1]", "preprocess.mean", (-0.5, 0.0, 0.5)),
        ("schedule.name=step", "schedule.name", "step"),
    ],
)
def test_command_line_value_is_read_as_its_field_wants_it(token: str, key: str, value: Any) -> None:
    section, name = key.split(".")
    read = getattr(getattr(settings(token), section), name)
    assert read == value
    assert type(read) is type(value)


def test_a_negative_number_is_a_number() -> None:
    assert "optim.lr is -0.5; it must be above 0" in problem("optim.lr=-0.5")
    assert "optim.lr is -0.0005; it must be above 0" in problem("optim.lr=-5e-4")


def test_lists_become_tuples_inside_options() -> None:
    options = settings("model.options.depths=[1, 2]", "model.options.gelu=tanh").model.options
    assert options == {"depths": (1, 2), "gelu": "tanh"}


def test_the_last_of_two_equal_keys_wins() -> None:
    assert settings("optim.lr=0.1", "optim.lr=0.2").optim.lr == 0.2


@pytest.mark.parametrize(
    "token",
    ["lr=1", "optim.lr", "optim", "", "=", ".lr=1", "optim.=1", "optim..lr=1", "--optim.lr=1", "optim.weight-decay=1"],
)
def test_a_token_that_is_no_setting_is_shown_with_an_example(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command_line([token])
    expected = f"{token!r} is not a setting; write section.key=value, such as optim.lr=1e-3"
    assert str(caught.value) == f"command line: {expected}"


# Unknown names


def test_unknown_key_names_its_origin_the_closest_key_and_all_keys() -> None:
    message = problem("optim.lrr=1")
    assert message.startswith("command line: optim.lrr: unknown key; did you mean 'lr'? Known keys: name, lr, lr_base")


def test_unknown_section_names_the_closest_section_and_all_sections() -> None:
    message = problem("optimizer.lr=1")
    assert message.startswith("command line: optimizer: unknown section; did you mean 'optim'? Sections: model,")


def test_the_origin_of_a_problem_is_the_layer_that_has_it() -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml: optim\.lrr: unknown key"):
        resolve(TrainConfig, [Layer("my.yaml", {"optim": {"lrr": 1}}), command_line(["data.name=digits"])])


@pytest.mark.parametrize("kind", [EvaluateConfig, PredictConfig])
def test_a_command_knows_only_its_own_sections(kind: type) -> None:
    assert "optim: unknown section" in problem("optim.lr=1", kind=kind)


def test_evaluate_and_predict_take_their_sections() -> None:
    tokens = ["data.root=x", "evaluate.batch_size=8", "preprocess.crop=0.875"]
    evaluated = resolve(EvaluateConfig, [command_line(tokens)]).config
    assert (evaluated.data.root, evaluated.evaluate.batch_size, evaluated.preprocess.crop) == ("x", 8, 0.875)
    assert resolve(PredictConfig, [command_line(["preprocess.exif=apply"])]).config.preprocess.exif == "apply"


def test_a_section_that_is_not_a_mapping_is_told_what_to_write() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, [Layer("my.yaml", {"ema": None, "optim": [1]})])
    expected = "my.yaml: {0} is a section; write {0}.<key>=<value>, or a mapping in YAML"
    assert str(caught.value) == "; ".join(expected.format(name) for name in ("ema", "optim"))


# Types


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("train.epochs=1.5", "'1.5'; it must be a whole number"),
        ("train.epochs=many", "'many'; it must be a whole number"),
        ("train.epochs=true", "'true'; it must be a whole number"),
        ("train.epochs=null", "'null'; it must be a whole number"),
        ("data.workers=two", "'two'; it must be a whole number, or null"),
        ("optim.lr=fast", "'fast'; it must be a number"),
        ("optim.lr=true", "'true'; it must be a number"),
        ("optim.lr=null", "'null'; it must be a number"),
        ("optim.lr=[1]", "'[1]'; it must be a number"),
        ("optim.lr={a: 1}", "'{a: 1}'; it must be a number"),
        ("optim.lr=.nan", "'.nan'; it must be a finite number"),
        ("optim.lr=nan", "'nan'; it must be a finite number"),
        ("optim.lr=.inf", "'.inf'; it must be a finite number"),
        ("ema.decay=-inf", "'-inf'; it must be a finite number, or null"),
        ("ema.decay=off", "'off'; it must be a number, or null"),
        ("optim.nesterov=1", "'1'; it must be true or false"),
        ("optim.nesterov=nope", "'nope'; it must be true or false"),
        ("optim.name=adam", "'adam'; it must be one of adamw, sgd; did you mean 'adamw'?"),
        ("optim.name=7", "'7'; it must be one of adamw, sgd"),
        ("schedule.name=zzz", "'zzz'; it must be one of cosine, step, exponential, constant"),
        ("preprocess.exif=rotate", "'rotate'; it must be one of ignore, apply, or null"),
        ("optim.betas=0.9", "'0.9'; it must be a list of 2 numbers such as [0.5, 0.5]"),
        ("optim.betas=[0.9]", "'[0.9]'; it must be a list of 2 numbers such as [0.5, 0.5]"),
        ("optim.betas=[0.9, 0.9, 0.9]", "'[0.9, 0.9, 0.9]'; it must be a list of 2 numbers such as [0.5, 0.5]"),
        ("optim.betas=[0.9, high]", "'[0.9, high]'; it must be a number"),
        ("preprocess.mean=0.5", "'0.5'; it must be a list such as [number], or null"),
        ("model.image_size=large", "'large'; it must be a whole number, or a list of 2 numbers, or null"),
        ("model.image_size=[224]", "'[224]'; it must be a whole number, or a list of 2 numbers, or null"),
        ("model.options=3", "'3'; it must be a mapping of names to values"),
    ],
)
def test_wrong_type_says_what_it_was_and_what_it_must_be(token: str, expected: str) -> None:
    assert problem(token) == f"command line: {token.partition('=')[0]} is {expected}"


def test_a_key_below_a_number_is_told_that_a_number_belongs_there() -> None:
    assert problem("optim.lr.peak=1") == "command line: optim.lr is {'peak': '1'}; it must be a number"


def test_a_literal_that_is_far_from_all_choices_gets_no_suggestion() -> None:
    assert "did you mean" not in problem("schedule.name=zzz")


# Ranges


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("model.drop_path_rate=-0.1", "model.drop_path_rate is -0.1; it must be from 0 to below 1"),
        ("model.drop_path_rate=1.1", "model.drop_path_rate is 1.1; it must be from 0 to below 1"),
        ("model.drop_rate=1", "model.drop_rate is 1.0; it must be from 0 to below 1"),
        ("model.drop_rate=-0.1", "model.drop_rate is -0.1; it must be from 0 to below 1"),
        ("data.workers=-1", "data.workers is -1; it must be from 0 to 1024"),
        ("data.val_fraction=0", "data.val_fraction is 0.0; it must be above 0 and below 1"),
        ("data.val_fraction=1", "data.val_fraction is 1.0; it must be above 0 and below 1"),
        ("data.name=null", "data.root is not set; give the folder with your images, or data.name=digits"),
        ("preprocess.crop=0", "preprocess.crop is 0.0; it must be above 0 and at most 1"),
        ("preprocess.crop=1.1", "preprocess.crop is 1.1; it must be above 0 and at most 1"),
        ("preprocess.std=[0.5, 0, 0.5]", "preprocess.std is (0.5, 0.0, 0.5); it must be positive"),
        (
            "preprocess.mean=[123.675, 116.28, 103.53]",
            "preprocess.mean is (123.675, 116.28, 103.53); it is for pixels from 0 to 1: divide mean and std by 255",
        ),
        (
            "preprocess.std=[58.395, 57.12, 57.375]",
            "preprocess.std is (58.395, 57.12, 57.375); it is for pixels from 0 to 1: divide mean and std by 255",
        ),
        (
            "preprocess.mean=[31000, 30000, 0]",
            "preprocess.mean is (31000.0, 30000.0, 0.0); it is for pixels from 0 to 1: divide mean and std by 65535",
        ),
        ("augment.hflip=2", "augment.hflip is 2.0; it must be from 0 to 1"),
        ("augment.erase_prob=-0.5", "augment.erase_prob is -0.5; it must be from 0 to 1"),
        ("augment.mixup=-1", "augment.mixup is -1.0; it must be at least 0"),
        ("augment.cutmix=-1", "augment.cutmix is -1.0; it must be at least 0"),
        ("augment.mix_prob=1.5", "augment.mix_prob is 1.5; it must be from 0 to 1"),
        ("augment.mix_switch_prob=-1", "augment.mix_switch_prob is -1.0; it must be from 0 to 1"),
        ("augment.mix_off_epoch=0", "augment.mix_off_epoch is 0; it must be at least 1"),
        ("augment.cutmix_minmax=[0.9, 0.2]", "augment.cutmix_minmax is (0.9, 0.2); it must rise within 0 to 1"),
        ("augment.cutmix_minmax=[0.2, 1.2]", "augment.cutmix_minmax is (0.2, 1.2); it must rise within 0 to 1"),
        ("augment.erase_count=0", "augment.erase_count is 0; it must be at least 1"),
        ("optim.layer_decay=1.1", "optim.layer_decay is 1.1; it must be at most 1"),
        ("augment.color_jitter=-0.4", "augment.color_jitter is -0.4; it must be at least 0"),
        ("augment.repeats=0", "augment.repeats is 0; it must be at least 1"),
        ("augment.label_smoothing=1", "augment.label_smoothing is 1.0; it must be from 0 to below 1"),
        ("augment.label_smoothing=-0.1", "augment.label_smoothing is -0.1; it must be from 0 to below 1"),
        ("augment.scale=[0, 1]", "augment.scale is (0.0, 1.0); it must rise within 0 to 1"),
        ("augment.scale=[0.9, 0.1]", "augment.scale is (0.9, 0.1); it must rise within 0 to 1"),
        ("augment.scale=[0.5, 2]", "augment.scale is (0.5, 2.0); it must rise within 0 to 1"),
        ("augment.ratio=[0, 1]", "augment.ratio is (0.0, 1.0); it must be positive and rise"),
        ("augment.ratio=[2, 1]", "augment.ratio is (2.0, 1.0); it must be positive and rise"),
        ("balance.logit_adjust=0", "balance.logit_adjust is 0.0; it must be above 0"),
        ("balance.effective_beta=1", "balance.effective_beta is 1.0; it must be from 0 to below 1"),
        ("balance.effective_beta=-0.1", "balance.effective_beta is -0.1; it must be from 0 to below 1"),
        ("optim.lr=0", "optim.lr is 0.0; it must be above 0"),
        ("optim.eps=0", "optim.eps is 0.0; it must be above 0"),
        ("optim.clip_norm=0", "optim.clip_norm is 0.0; it must be above 0"),
        ("optim.layer_decay=0", "optim.layer_decay is 0.0; it must be above 0"),
        ("optim.backbone_scale=0", "optim.backbone_scale is 0.0; it must be above 0"),
        ("optim.lr_base_batch=0", "optim.lr_base_batch is 0; it must be at least 1"),
        ("optim.weight_decay=-1", "optim.weight_decay is -1.0; it must be at least 0"),
        ("optim.momentum=1.5", "optim.momentum is 1.5; it must be from 0 to 1"),
        ("optim.betas=[0.9, 1]", "optim.betas are (0.9, 1.0); each must be from 0 to below 1"),
        ("optim.betas=[-0.9, 0.9]", "optim.betas are (-0.9, 0.9); each must be from 0 to below 1"),
        ("optim.nesterov=true", "optim.nesterov needs name=sgd and a momentum above 0"),
        ("schedule.warmup_epochs=-1", "schedule.warmup_epochs is -1.0; it must be at least 0"),
        ("schedule.warmup_lr=-1", "schedule.warmup_lr is -1.0; it must be at least 0"),
        ("schedule.min_lr=-1", "schedule.min_lr is -1.0; it must be at least 0"),
        ("schedule.cooldown_epochs=-1", "schedule.cooldown_epochs is -1; it must be at least 0"),
        ("schedule.decay_epochs=0", "schedule.decay_epochs is 0.0; it must be above 0"),
        ("schedule.decay_rate=0", "schedule.decay_rate is 0.0; it must be above 0 and at most 1"),
        ("schedule.decay_rate=2", "schedule.decay_rate is 2.0; it must be above 0 and at most 1"),
        ("ema.decay=0", "ema.decay is 0.0; it must be above 0 and below 1"),
        ("ema.decay=1", "ema.decay is 1.0; it must be above 0 and below 1"),
        ("train.batch_size=0", "train.batch_size is 0; it must be at least 1"),
        ("train.accumulate=0", "train.accumulate is 0; it must be at least 1"),
        ("train.seed=-1", "train.seed is -1; it must be from 0 to 9223372036854775807"),
        ("train.eval_every=0", "train.eval_every is 0; it must be at least 1"),
        ("train.log_every=0", "train.log_every is 0; it must be at least 1"),
        ("train.accumulate=3", "train.batch_size 1024 cannot be cut into accumulate=3 equal parts"),
        ("output.keep_best=0", "output.keep_best is 0; it must be at least 1"),
    ],
)
def test_value_out_of_range_says_what_is_allowed(token: str, expected: str) -> None:
    assert problem(token) == expected


def test_evaluation_needs_images_and_a_batch_of_at_least_one() -> None:
    assert problem("data.name=null", kind=EvaluateConfig).startswith("data.root is not set")
    assert problem("evaluate.batch_size=0", kind=EvaluateConfig) == "evaluate.batch_size is 0; it must be at least 1"
    assert problem("preprocess.crop=2", kind=PredictConfig).startswith("preprocess.crop is 2.0; it must be above 0")


@pytest.mark.parametrize(
    "token",
    [
        "model.drop_path_rate=0",
        "data.workers=0",
        "preprocess.crop=1",
        "augment.scale=[1, 1]",
        "augment.ratio=[1, 1]",
        "augment.label_smoothing=0",
        "augment.color_jitter=0",
        "balance.effective_beta=0",
        "optim.weight_decay=0",
        "optim.betas=[0, 0]",
        "schedule.warmup_epochs=0",
        "schedule.warmup_lr=0",
        "schedule.min_lr=0",
        "schedule.decay_rate=1",
        "schedule.warmup_epochs=300",
        "train.accumulate=1024",
        "train.seed=9223372036854775807",
    ],
)
def test_the_edge_of_a_range_is_inside_it(token: str) -> None:
    settings(token)


def test_jitter_that_the_policy_would_replace_is_refused() -> None:
    refusal = r"augment\.color_jitter is not applied beside auto_augment=rand-m9; set one of them to null"
    with pytest.raises(ConfigError, match=refusal):
        settings("augment.color_jitter=0.4", "augment.auto_augment=rand-m9")
    settings("augment.color_jitter=0.4", "augment.auto_augment=3a")


def test_an_adjustment_that_would_do_nothing_is_refused() -> None:
    refusal = (
        r"^balance\.logit_adjust does nothing beside sampler=balanced, which shows all classes equally often; drop one$"
    )
    with pytest.raises(ConfigError, match=refusal):
        settings("balance.logit_adjust=1", "balance.sampler=balanced")
    both = settings("balance.logit_adjust=1", "balance.sampler=sqrt").balance
    assert both.active() == ["balance.sampler=sqrt", "balance.logit_adjust=1.0"]


def test_a_rectangle_drawn_by_its_sides_has_no_alpha_beside_it() -> None:
    assert settings("augment.cutmix_minmax=[0.2, 0.8]", "augment.cutmix=1").augment.cutmix_minmax == (0.2, 0.8)
    message = "augment.cutmix is 0.5, but cutmix_minmax draws the rectangle instead; set one of them"
    assert problem("augment.cutmix_minmax=[0.2, 0.8]", "augment.cutmix=0.5") == message


def test_nesterov_is_accepted_with_sgd_and_momentum() -> None:
    assert settings("optim.name=sgd", "optim.nesterov=true").optim.nesterov
    assert "optim.nesterov needs" in problem("optim.name=sgd", "optim.nesterov=true", "optim.momentum=0")


def test_warmup_may_not_be_longer_than_training() -> None:
    assert problem("train.epochs=4") == "schedule.warmup_epochs 5 is more than train.epochs 4; lower it too"
    assert problem("train.epochs=5", "schedule.warmup_epochs=5.5").endswith(
        "5.5 is more than train.epochs 5; lower it too"
    )


def test_a_bad_batch_or_accumulation_is_not_reported_twice() -> None:
    assert problem("train.accumulate=-3", "train.batch_size=10") == "train.accumulate is -3; it must be at least 1"


# All at once


def test_unknown_names_and_wrong_types_of_all_layers_come_in_one_line() -> None:
    recipe = Layer("my.yaml", {"optim": {"lrr": 1}, "dota": {}})
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, [recipe, command_line(["train.epochs=many", "ema.decai=1"])])
    message = str(caught.value)
    parts = (
        "my.yaml: optim.lrr: ",
        "my.yaml: dota: ",
        "command line: train.epochs is 'many'",
        "command line: ema.decai: ",
    )
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_values_out_of_range_of_all_sections_come_in_one_line() -> None:
    message = problem(
        "optim.lr=0", "optim.eps=0", "ema.decay=2", "train.epochs=2", "data.name=null", "augment.mixup=-1"
    )
    for part in (
        "optim.lr ",
        "optim.eps ",
        "ema.decay ",
        "data.root ",
        "augment.mixup ",
        "schedule.warmup_epochs 5 is",
    ):
        assert part in message
    assert "\n" not in message


def test_a_configuration_built_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set.*; optim\.lr is -1"):
        TrainConfig(optim=OptimSection(lr=-1))


def test_a_refusal_is_a_value_error_of_ours() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, VitrailError)


# Files


def test_yaml_file_is_a_layer_named_by_its_path_or_as_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  lr: 5e-4\n")
    assert read_yaml(path) == Layer(str(path), {"optim": {"lr": "5e-4"}})
    assert read_yaml(path, "recipe mine").origin == "recipe mine"
    assert resolve(TrainConfig, [Layer("test", {"data": {"root": "x"}}), read_yaml(path)]).config.optim.lr == 5e-4


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}\n", "---\n"])
def test_empty_yaml_file_sets_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.yaml").write_text(text)
    assert read_yaml(tmp_path / "empty.yaml").values == {}


def test_missing_yaml_file_and_folder_say_why_and_where_recipes_are(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert str(caught.value) == f"{path}: cannot be read ({why}); `vitrail config` lists the recipes"


@pytest.mark.parametrize(
    "content",
    [
        b"optim: {lr: 1",
        b"a: b: c\n",
        b"\x89PNG\r\n\x1a\n\x00",
        b"\x00\x01\x02",
        b"\xff\xfe\xfa",
        b"x: !!python/object:os.system {}",
    ],
)
def test_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: is not YAML (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just text\n", "str"), ("42\n", "int")])
def test_yaml_that_holds_no_sections_says_what_it_holds(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: holds a {kind}, not sections such as model, data and train"


# Recipes


def test_recipes_are_listed_sorted_and_found_by_name() -> None:
    names = list_recipes()
    assert names == sorted(names)
    assert "tnt_s_imagenet" in names
    for name in names:
        found, path = find_recipe(name)
        assert (found, path.stem, path.is_file()) == (name, name, True)


def test_recipe_is_found_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("{}")
    assert find_recipe(str(tmp_path / "mine.yml")) == ("mine", tmp_path / "mine.yml")


def test_run_folder_and_its_file_are_recipes_named_after_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "tnt-7"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    assert find_recipe(str(run)) == ("tnt-7", run / "config.yaml")
    assert find_recipe(str(run / "config.yaml")) == ("tnt-7", run / "config.yaml")


def test_unknown_recipe_names_the_closest_one_and_how_many_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        find_recipe("tnt_s_imagnet")
    assert str(caught.value) == (
        "unknown recipe 'tnt_s_imagnet'; did you mean 'tnt_s_imagenet'? "
        f"`vitrail config` lists all {len(list_recipes())}; a path to a YAML file works too"
    )


def test_folder_without_a_configuration_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, not a recipe; to train on its images, write data\.root="):
        find_recipe(str(tmp_path))


# Writing


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_survives_being_written_and_read(tmp_path: Path, name: str) -> None:
    config = resolve(TrainConfig, [read_yaml(find_recipe(name)[1])]).config
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    again = resolve(TrainConfig, [read_yaml(path)]).config
    assert again == config
    assert to_yaml(again) == to_yaml(config)


def test_written_yaml_has_the_header_as_comment_and_a_paragraph_for_each_section() -> None:
    text = to_yaml(settings(), header="vitrail 1.0\n\n  indented")
    assert text.startswith("# vitrail 1.0\n#\n#   indented\nmodel:\n  name: ")
    assert [part.split(":")[0] for part in text.split("\n\n")][1:] == [f.name for f in fields(TrainConfig)][1:]
    assert not to_yaml(settings()).startswith("#")


def test_dict_holds_plain_values_only() -> None:
    plain = to_dict(settings("model.image_size=[32, 48]", "model.options.depths=[1, 2]", "model.options.stem={a: [1]}"))
    assert plain["model"]["image_size"] == [32, 48]
    assert plain["model"]["options"] == {"depths": [1, 2], "stem": {"a": [1]}}
    assert plain["optim"]["betas"] == [0.9, 0.999]
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_flat_names_every_field_by_its_dotted_key() -> None:
    config = settings("optim.lr=0.5")
    values = flat(config)
    assert values["optim.lr"] == 0.5
    assert list(values) == [f"{s.name}.{f.name}" for s in fields(config) for f in fields(getattr(config, s.name))]


finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-12, 1e12)
text = st.text(st.characters(codec="utf-8"), max_size=12)
option = st.booleans() | st.integers() | finite | text | st.lists(st.integers(), max_size=3).map(tuple)


@hypothesis.settings(max_examples=50, deadline=None)
@given(
    lr=st.floats(1e-5, 1e12),  # from the default of schedule.min_lr
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    clip=st.none() | positive,
    mean=st.none() | st.tuples(*(st.floats(-1e12, 1),) * 3),
    size=st.none() | st.integers(1, 4096) | st.tuples(st.integers(1, 512), st.integers(1, 512)),
    epochs=st.integers(5, 10**6),
    seed=st.integers(0, 2**63 - 1),
    root=text,
    name=st.none() | text,
    options=st.dictionaries(text, option, max_size=3),
)
def test_any_configuration_survives_dict_and_yaml(
    lr: float, betas: Any, clip: Any, mean: Any, size: Any, epochs: int, seed: int, root: str, name: Any, options: Any
) -> None:
    config = TrainConfig(
        model=ModelSection(image_size=size, options=options),
        data=DataSection(root=root),
        preprocess=PreprocessSection(mean=mean),
        optim=OptimSection(lr=lr, betas=betas, clip_norm=clip),
        train=TrainSection(epochs=epochs, seed=seed),
        output=OutputSection(name=name),
    )
    assert resolve(TrainConfig, [Layer("dict", to_dict(config))]).config == config
    assert resolve(TrainConfig, [Layer("yaml", yaml.safe_load(to_yaml(config, header="run")))]).config == config


# Description


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_described_or_explains_itself(section: type) -> None:
    described = describe(section)
    assert [key for key, *_ in described] == [field.name for field in fields(section)]
    for key, kind, default, doc in described:
        assert kind, key
        assert default, key
        assert "\n" not in kind + default + doc
        assert bool(doc) != ((section, key) in SELF_EXPLAINING), f"{section.__name__}.{key}: {doc!r}"


def test_every_section_of_every_command_is_described() -> None:
    used = {kind for config in (TrainConfig, EvaluateConfig, PredictConfig) for kind in get_type_hints(config).values()}
    assert used == set(SECTIONS)


@pytest.mark.parametrize(
    ("section", "key", "kind", "default"),
    [
        (TrainSection, "epochs", "a whole number", "300"),
        (OptimSection, "lr", "a number", "0.001"),
        (OptimSection, "eps", "a number", "1.0e-08"),
        (OptimSection, "betas", "a list of 2 numbers", "[0.9, 0.999]"),
        (OptimSection, "name", "one of adamw, sgd", "adamw"),
        (OptimSection, "nesterov", "true or false", "false"),
        (OptimSection, "clip_norm", "a number, or null", "null"),
        (OutputSection, "root", "text", "runs"),
        (ModelSection, "image_size", "a whole number, or a list of 2 numbers, or null", "null"),
        (ModelSection, "options", "a mapping", "{}"),
        (PreprocessSection, "exif", "one of ignore, apply, or null", "null"),
    ],
)
def test_type_and_default_are_described_in_words(section: type, key: str, kind: str, default: str) -> None:
    assert {name: rest[:2] for name, *rest in describe(section)}[key] == [kind, default]


@pytest.mark.parametrize("section", SECTIONS)
def test_described_defaults_are_what_the_command_line_would_read(section: type) -> None:
    defaults = to_dict(section())
    assert {key: yaml.safe_load(default) for key, _, default, _ in describe(section)} == defaults


def test_a_docstring_is_the_description_of_the_field_above_it() -> None:
    docs = {key: doc for key, *_, doc in describe(OptimSection)}
    assert docs["momentum"] == "Of sgd."
    assert docs["betas"] == ""


def test_config_imports_no_torch() -> None:
    code = (
        "import sys, vitrail.config.sections; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Known defects of config.py; each marker is to be removed with its cure


def test_unknown_key_and_value_out_of_range_come_in_one_message() -> None:
    message = problem("optim.lrr=1", "optim.eps=0")
    assert "optim.lrr" in message
    assert "optim.eps" in message


@pytest.mark.parametrize("tokens", [("optim.lr=1", "optim.lr.peak=2"), ("model.options=null", "model.options.depth=2")])
def test_key_below_a_plain_value_is_refused(tokens: tuple[str, str]) -> None:
    problem(*tokens)


@pytest.mark.parametrize("section", [1, True, None])
def test_section_that_is_not_text_is_unknown(section: Any) -> None:
    with pytest.raises(ConfigError, match="unknown section"):
        resolve(TrainConfig, [Layer("my.yaml", {section: {}})])


def test_text_that_looks_like_an_impossible_date_is_text() -> None:
    assert settings("output.name=2025-02-30").output.name == "2025-02-30"


def test_text_that_looks_like_a_date_is_text() -> None:
    assert settings("output.name=2025-02-28").output.name == "2025-02-28"
    assert isinstance(yaml.safe_load("2025-02-28"), datetime.date)


@pytest.mark.parametrize("name", ["007", "12:34", "1_000", "1.50"])
def test_text_that_looks_like_a_number_stays_as_written(name: str) -> None:
    assert settings(f"output.name={name}").output.name == name


def test_text_after_a_number_sign_is_kept() -> None:
    assert settings("data.root=photos #2").data.root == "photos #2"


def test_number_too_large_for_a_float_is_refused() -> None:
    problem("optim.lr=1" + "0" * 400)


def test_list_of_known_keys_is_set_off_even_without_a_suggestion() -> None:
    assert "unknown key Known keys" not in problem("optim.zzzzzz=1")


def test_configuration_in_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("config.yaml")[0] == tmp_path.name


def test_path_without_its_suffix_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="unknown recipe"):
        find_recipe(str(tmp_path / "mine"))


def test_key_that_a_file_has_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("optim: {lr: 1}\noptim: {eps: 1}\n")
    with pytest.raises(ConfigError):
        read_yaml(tmp_path / "twice.yaml")


LAUGHS = "a: &a [1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{name}'] * 10)}]\n" for name, after in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A file whose values are named by others ten times each, nine times over."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"train:\n  batch_size: {'9' * 5000}", "is not YAML (Exceeds the limit (4300 digits)"),
        (f"train:\n  batch_size: -0x{'f' * 5000}", "has a whole number of more than 64 bits, which no setting is"),
        ("model:\n  options: &x {a: *x}", "nests values more than 16 deep, which no setting is"),
        ("a: &a [1, *a]", "nests values more than 16 deep, which no setting is"),
        ("[" * 5000, "is not YAML (maximum recursion depth exceeded"),
        (LAUGHS, "holds more than 20,000 values, which no setting is"),
        ("#" * 2_000_000, "cannot be read (has 2,000,000 bytes, and 1,048,576 are the most)"),
    ],
)
def test_a_file_of_settings_without_measure_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
