"""Other projects' files and flags: every key has its place, and a run does what their program does."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vitrail.cli.app import EVALUATE_SECTIONS, app, main, understood
from vitrail.config.sections import (
    EvaluateConfig,
    Layer,
    TrainConfig,
    command_line,
    find_recipe,
    flat,
    list_recipes,
    read_yaml,
    resolve,
)
from vitrail.errors import CheckpointError, ConfigError
from vitrail.migrate import official
from vitrail.migrate.flags import translate_flags
from vitrail.migrate.projects import IMAGENET_MEAN, IMAGENET_STD, MINDCV, NO_DEFAULT, PROJECTS, T2T, TWINS, ZOO_TNT
from vitrail.migrate.translate import is_foreign, read_part, read_recipe, split_keys, translate
from vitrail.training.start import begin

FILES = Path(__file__).parent / "foreign"
PROJECT_OF = {
    "tnt_s_gpu": MINDCV, "svt_s_gpu": MINDCV, "pcpvt_l_gpu": MINDCV, "tnt_s_patch16_224": ZOO_TNT, "t2t_vit_19": T2T,
    "svt_s": TWINS, "svt_s_params": TWINS, "pcpvt_l": TWINS,
}  # fmt: skip
GUIDE = Path(__file__).parents[2] / "docs" / "migrating.md"
WITHOUT_EFFECT = {"nonlinearity": "GELU", "exclude_epoch_state": True, "dump_graph": False, "collect_input_data": False}


def content(name: str) -> dict[str, Any]:
    return dict(read_yaml(FILES / f"{name}.yaml").values)


def translated(name: str, processes: int = 8, **flags: Any) -> TrainConfig:
    return resolve(TrainConfig, [translate(content(name), name, flags, processes=processes).layer]).config


def changed(config: TrainConfig) -> dict[str, Any]:
    """Return the dotted settings that are not our defaults."""
    default = flat(resolve(TrainConfig, [Layer("", {"data": {"root": "x"}})]).config)
    return {key: value for key, value in flat(config).items() if value != default[key]}


def remarks(name: str, **flags: Any) -> list[str]:
    return [f"{kind}: {text}" for kind, text in translate(content(name), name, flags, processes=8).remarks()]


NORMALISED = {"preprocess.mean": list(IMAGENET_MEAN), "preprocess.std": list(IMAGENET_STD)}
MIXED = {"augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.erase_prob": 0.25}
EXPECTED: dict[str, dict[str, Any]] = {
    "tnt_s_gpu": {
        **NORMALISED,
        **MIXED,
        "model.name": "tnt_small",
        "model.image_size": 224,
        "model.drop_path_rate": 0.1,
        "model.options": {"gelu": "tanh", "final_norm_eps": 1e-7},
        "data.root": "path/to/imagenet/",
        "data.workers": 1,
        "preprocess.crop": 0.9,
        "preprocess.interpolation": "bicubic",
        "augment.ratio": [0.75, 1.333],
        "augment.interpolation": "bicubic",
        "augment.auto_augment": "rand-m9-mstd0.1-inc1",
        "augment.label_smoothing": 0.1,
        "optim.lr": 5e-4,
        "optim.decay_on": "all",
        "optim.clip_norm": 5.0,
        "schedule.warmup_epochs": 20.0,
        "schedule.warmup_prefix": True,
        "schedule.warmup_lr": pytest.approx(7e-8, rel=1e-12),
        "schedule.min_lr": 6e-6,
        "schedule.cosine_epochs": 100.0,
        "schedule.decay_rate": 0.9,
        "train.batch_size": 256,
        "train.seed": 42,
        "train.precision": "O0",
        "train.log_every": 100,
        "output.root": "./ckpt",
    },
    "tnt_s_patch16_224": {
        **NORMALISED,
        **MIXED,
        "model.image_size": 224,
        "model.drop_path_rate": 0.1,
        "model.options": {"biases": "zoo", "gelu": "tanh", "norm_eps": 1e-7},
        "data.root": "../data/imagenet",
        "data.workers": 16,
        "preprocess.crop": 0.875,
        "preprocess.interpolation": "bicubic",
        "augment.interpolation": "bicubic",
        "augment.auto_augment": "rand-m9-mstd0.5-inc1",
        "augment.label_smoothing": 0.1,
        "optim.lr": 5e-4,
        "optim.lr_base_batch": 512,
        "optim.clip_norm": 5.0,
        "schedule.warmup_epochs": 20.0,
        "schedule.warmup_prefix": True,
        "schedule.warmup_lr": 1.4e-7,
        "schedule.min_lr": 1.2e-5,
        "schedule.clip_to_min_lr": True,
        "train.precision": "O2",
    },
    "t2t_vit_19": {
        **NORMALISED,
        **MIXED,
        "model.name": "t2t_vit_19",
        "model.image_size": 224,
        "model.options": {"norm_eps": 1e-7, "gelu": "tanh"},
        "data.root": "/data/imagenet/ILSVRC/Data/CLS-LOC/",
        "data.val_split": "validation_preprocess",
        "data.workers": 8,
        "preprocess.crop": 0.9,
        "preprocess.interpolation": "bicubic",
        "augment.interpolation": "bicubic",
        "augment.auto_augment": "rand-m9-mstd0.5-inc1",
        "augment.label_smoothing": 0.1,
        "optim.clip_norm": 1.0,
        "schedule.warmup_epochs": 2.0,
        "schedule.warmup_prefix": True,
        "schedule.warmup_lr": 7e-6,
        "schedule.clip_to_min_lr": True,
        "train.batch_size": 800,
        "train.precision": "O0",
        "output.root": "/experiments/checkpoints/",
        "output.keep_best": 5,
        "output.keep_last": 10,
        "output.save_every_minutes": 30.0,
    },
    "svt_s": {
        **NORMALISED,
        **MIXED,
        "model.name": "svt_s",
        "model.image_size": 224,
        "model.drop_path_rate": 0.1,
        "model.options": {"gelu": "tanh", "embed_norm_eps": 1e-7},
        "data.root": "/data/imagenet",
        "data.workers": 8,
        "preprocess.crop": 0.875,
        "preprocess.interpolation": "bicubic",
        "augment.interpolation": "bicubic",
        "augment.auto_augment": "rand-m9-mstd0.5-inc1",
        "augment.label_smoothing": 0.5,
        "optim.lr": 1e-4,
        "optim.decay_on": "matrices",
        "optim.clip_norm": 5.0,
        "schedule.warmup_epochs": 20.0,
        "schedule.warmup_prefix": True,
        "schedule.clip_to_min_lr": True,
        "train.seed": 1,
        "train.precision": "O0",
        "output.keep_last": 20,
        "output.save_every_minutes": 30.0,
    },
}


# Files


@pytest.mark.parametrize("name", EXPECTED)
def test_a_reference_file_becomes_these_settings_and_no_others(name: str) -> None:
    expected = {"train.batch_size": 1024, **EXPECTED[name]}
    found = {"train.batch_size": 1024, **changed(translated(name))}
    found = {"data.root": "x", **found}
    assert found == expected


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tnt_s_gpu", 52), ("tnt_s_patch16_224", 35), ("t2t_vit_19", 72), ("svt_s_params", 56), ("pcpvt_l", 56),
        ("svt_s_gpu", 52), ("pcpvt_l_gpu", 52),
    ],
)  # fmt: skip
def test_every_key_of_a_file_has_its_row(name: str, count: int) -> None:
    keys = list(content(name))
    assert len(keys) == count
    result = translate(content(name), name)
    assert result.project == PROJECT_OF[name].name
    assert [row.key for row in result.rows if row.written] == keys
    for row in result.rows:
        assert row.settings or row.note or row.key in ("pretrained", "params"), row.key


def flags_of(program: Any) -> dict[str, Any]:
    """Return flags that only this program of the official ones is started with."""
    own = {"transfer_model": "w.pth"} if program is official.TRANSFER else {}
    return {"model": f"{program.models[0]}_s", **own}


@pytest.mark.parametrize("project", [*PROJECTS, *official.PROGRAMS], ids=lambda project: project.name)
def test_every_key_sets_only_settings_that_we_have(project: Any) -> None:
    known = set(flat(resolve(TrainConfig, [Layer("", {"data": {"root": "x"}})]).config))
    if project in official.PROGRAMS:
        translation = translate({}, "flags", flags_of(project))
    else:
        translation = translate(next(content(name) for name, one in PROJECT_OF.items() if one is project), "file")
    assert translation.project == project.name
    rows = translation.rows
    used = {".".join(name.split(".")[:2]) for row in rows for name in row.settings}
    assert used <= known
    seen = {row.key for row in rows}
    assert {key for key, entry in project.keys.items() if entry.default is not NO_DEFAULT} <= seen


# Not in the files, but known to their programs.
BESIDE = {
    "tnt_s_gpu": "decay_epochs mean std vflip color_jitter re_scale re_ratio aug_repeats seed val_interval "
    "log_interval ckpt_save_interval ckpt_save_policy resume_opt filter_bias_and_bn in_channels use_nesterov "
    "aux_factor reduction loss_scale_type cutmix_prob keep_checkpoint_max scheduler ema_decay distributed "
    "device_target",
    "tnt_s_patch16_224": "nonlinearity accumulation_step device_id device_num eps file_format graph_mode in_channel "
    "keep_checkpoint_max mlp_ratio start_epoch loss_scale lr_adjust lr_gamma pretrained seed save_every train_url "
    "run_modelarts",
    "t2t_vit_19": "num_devices device_ids device checkpoint",
    "svt_s": "params pretrained exclude_epoch_state cutmix_minmax resplit dir_ckpt dir_best_ckpt dir_summary "
    "dump_graph collect_input_data run_modelarts export_format file_format src dst",
}


@pytest.mark.parametrize("name", BESIDE)
def test_keys_that_their_programs_know_beside_are_known(name: str) -> None:
    project = PROJECT_OF[name]
    assert {*BESIDE[name].split()} <= {*project.keys, *project.aliases}


def test_keys_without_effect_change_nothing() -> None:
    assert changed(translated("tnt_s_patch16_224", **WITHOUT_EFFECT)) == changed(translated("tnt_s_patch16_224"))


def test_values_that_yaml_reads_as_text_are_numbers() -> None:
    assert content("tnt_s_gpu")["eps"] == "1e-8"
    config = translated("tnt_s_gpu", compat="as_written")
    assert config.optim.eps == 1e-8
    assert translated("tnt_s_patch16_224", base_lr="1e-3", warmup_lr="1e-8").optim.lr == 1e-3


def test_hyphens_and_underscores_are_alike() -> None:
    dashed = {key.replace("_", "-"): value for key, value in content("svt_s").items()}
    assert translate(dashed, "svt_s").layer == translate(content("svt_s"), "svt_s").layer


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"foo": 1, "bar": 2},
            r"^f: has neither our sections, such as model, data and train, nor the keys of a",
        ),
        (
            {"model": "tnt_s_patch16_224", "opt": "adamw", "warmup-epochs": 5, "reprob": 0.25, "aa": "x", "sched": "y"},
            r"^f: has the keys of official programs, here the official TNT code, which are read as flags and from no "
            r"file; leave the file out and write them behind the command: --model tnt_s_patch16_224 --opt adamw "
            r"--warmup-epochs 5 \.\.\.$",
        ),
        ({"batch_size": 8, "seed": 1}, r"^f: its keys are those of MindCV and of the model zoo's TNT and of .* alike"),
    ],
)
def test_a_file_of_nobody_or_of_several_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(keys, "f")


def test_a_file_of_ours_has_sections() -> None:
    for name in list_recipes():
        assert not is_foreign(read_yaml(find_recipe(name)[1]).values)
    for name in EXPECTED:
        assert is_foreign(content(name))


def test_all_that_is_wrong_comes_in_one_line() -> None:
    file = {**content("tnt_s_gpu"), "epoch_sise": 3, "shuffle": False, "lr": "fast", "loss": "BCE"}
    with pytest.raises(ConfigError) as caught:
        translate(file, "mine", {"batch-sise": 4})
    assert str(caught.value) == (
        "read as settings of MindCV: mine: epoch_sise: unknown key; did you mean 'epoch_size'?; "
        "command line: batch-sise: unknown key; did you mean 'batch_size'?; "
        "mine: shuffle is false; here it can only be true: training images are always shuffled; "
        "mine: loss is BCE; here it can only be CE: training minimises cross-entropy; "
        "mine: warmup_factor is 0.00014; lr is fast; it must be a number"
    )


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("tnt_s_gpu", {"model": "resnet50"}, "model is resnet50; of MindCV, models are known here that begin with tnt"),
        ("tnt_s_gpu", {"opt": "lamb"}, "opt is lamb; it can be adamw, sgd, momentum"),
        ("tnt_s_gpu", {"auto_augment": "trivialaug"}, "auto_augment is trivialaug; it can begin with randaug, autoaug"),
        ("tnt_s_gpu", {"scheduler": "multi_step_decay"}, "it can be cosine_decay, warmup_cosine_decay, step_decay"),
        ("tnt_s_gpu", {"re_value": 127}, "re_value is 127; it can be random, noise for every pixel, or 0, the mean of"),
        ("tnt_s_gpu", {"num_samples": "few"}, "num_samples is few; it must be a number"),
        ("tnt_s_gpu", {"pretrained": True}, "nothing is downloaded here; fetch the file and name it as model.weights"),
        ("tnt_s_gpu", {"distribute": "maybe"}, "distribute is maybe; it must be a number"),
        ("tnt_s_gpu", {"ema": "maybe"}, "ema is maybe; it must be true or false"),
        ("tnt_s_gpu", {"dataset": "mnist"}, "dataset is mnist; it can be imagenet, cifar10, cifar100"),
        ("tnt_s_patch16_224", {"start_epoch": 4}, "start_epoch is 4; here it can only be 0: `vitrail train --resume"),
        ("tnt_s_patch16_224", {"optimizer": "lamb"}, "optimizer is lamb; it can be adamw, momentum, sgd"),
        ("tnt_s_patch16_224", {"re_mode": "noise"}, "re_mode is noise; it can be pixel, rand, const"),
        ("t2t_vit_19", {"mixup_off_epoch": "never"}, "mixup_off_epoch is never; it must be a number"),
        ("t2t_vit_19", {"drop_block": 0.1, "compat": "as_written"}, "drop_block is 0.1; here it can only be 0 or null"),
        ("t2t_vit_19", {"mixup_mode": "half"}, "mixup_mode is half; it can be batch, pair, elem"),
        (
            "t2t_vit_19",
            {"val_num_samples": 100},
            "val_num_samples is 100; here it can only be -1 or null: all images",
        ),
        ("svt_s", {"params": '{"wss": 1}'}, "wss is unknown; known are: model, num_classes, drop_rate, drop_path_rate"),
        ("svt_s", {"params": '{"drop_path": 1}'}, "drop_path is unknown; did you mean 'drop_path_rate'? Known are: mo"),
        ("svt_s", {"params": '{"drop_rate": 1'}, "it must be JSON (Expecting"),
        ("svt_s", {"params": "[1]"}, 'it must be a mapping, such as {"model": "alt_gvt_small", "drop_path_rate"'),
        ("svt_s", {"params": 3}, "params is 3; it must be a mapping"),
        ("svt_s", {"params": {"img_size": 64}}, "img_size is 64, but images have image_size 224; write one"),
        (
            "svt_s",
            {"parameters": {"epochs": {}}},
            "a space for tune_params.py to search; nothing searches here, so try",
        ),
        ("svt_s", {"compat": "as_is"}, "compat is as_is; it must be as_executed or as_written"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(name: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        translate(content(name), name, flags)


def test_a_default_that_cannot_be_had_is_named_as_one() -> None:
    file = content("tnt_s_gpu")
    del file["opt"]
    with pytest.raises(ConfigError, match=r"tnt, not written: opt is adam; it can be adamw, sgd, momentum"):
        translate(file, "tnt")


def test_a_switch_needs_its_amount() -> None:
    file = content("tnt_s_gpu") | {"clip_value": None}
    with pytest.raises(ConfigError, match=r"clip_grad is true; clip_value is not written"):
        translate(file, "tnt")


@pytest.mark.parametrize(("name", "key"), [("t2t_vit_19", "arch"), ("svt_s", "model")])
def test_a_file_without_its_model_is_refused(name: str, key: str) -> None:
    file = content(name)
    del file[key]
    with pytest.raises(ConfigError, match=rf"file, not written: {key} is null; name a model that begins with "):
        translate(file, "file")


@pytest.mark.parametrize("name", ["t2t_vit_19", "tnt_s_patch16_224"])
def test_what_a_program_has_no_default_for_is_taken_from_its_published_file(name: str) -> None:
    file = content(name)
    project = {"t2t_vit_19": T2T, "tnt_s_patch16_224": ZOO_TNT}[name]
    short = translate({key: value for key, value in file.items() if key not in project.published}, name, processes=4)
    assert resolve(TrainConfig, [short.layer]).config == translated(name, 4)
    said = [text for kind, text in short.remarks() if kind == "note" and "is not written: taken as in the file" in text]
    assert f"{name}: min_lr is not written: taken as in the file of {project.name}" in " ".join(said)
    assert len(said) > 10


@pytest.mark.parametrize(
    ("name", "flags", "setting", "expected"),
    [
        ("t2t_vit_19", {"print_loss_every": 0}, "train.log_every", 20),
        ("t2t_vit_19", {"summary_loss_collect_freq": 0}, "train.log_every", 100),
        ("t2t_vit_19", {"ckpt_save_every_seconds": 0}, "output.save_every_minutes", 5.0),
        ("svt_s", {"save_ckpt_every_sec": 0, "compat": "as_written"}, "output.save_every_minutes", 5.0),
    ],
)
def test_nothing_every_so_often_is_off(name: str, flags: dict[str, Any], setting: str, expected: Any) -> None:
    assert flat(translated(name, **flags))[setting] == expected


def test_a_rate_that_is_not_read_is_told_of() -> None:
    assert "warning: tnt_s_patch16_224: lr=0.01: not read: the rate is base_lr" in remarks("tnt_s_patch16_224", lr=0.01)


# As executed and as written


PARAMS = {"model": "alt_gvt_small", "num_classes": 1000, "drop_rate": 0.1, "drop_path_rate": 0.2, "device": "cpu:0"}


@pytest.mark.parametrize("compat", ["as_executed", "as_written"])
@pytest.mark.parametrize("form", [json.dumps, dict], ids=["text", "mapping"])
def test_the_network_of_twins_is_built_with_what_params_has(form: Callable[[Any], Any], compat: str) -> None:
    file = {**content("svt_s"), "params": form(PARAMS), "drop": 0.3}
    assert is_foreign(file)
    translation = translate(file, "svt_s", {"compat": compat})
    model = resolve(TrainConfig, [translation.layer]).config.model
    assert (model.drop_rate, model.drop_path_rate, model.image_size) == (0.1, 0.2, 224)
    said = [text for _, text in translation.remarks()]
    assert "svt_s: drop_path=0.1: without effect: params has it, 0.2" in said
    assert "svt_s: drop=0.3: without effect: params has it, 0.1" in said


def test_the_network_of_twins_has_no_drop_path_where_params_has_none() -> None:
    file = {key: value for key, value in content("svt_s").items() if key != "image_size"}
    without = translate({**file, "params": '{"model": "svt_small", "img_size": 64}'}, "svt_s")
    model = resolve(TrainConfig, [without.layer]).config.model
    assert (model.drop_path_rate, model.image_size) == (0.0, 64)
    for empty in ("", "{}", None):
        translation = translate({**content("svt_s"), "params": empty}, "svt_s")
        assert resolve(TrainConfig, [translation.layer]).config.model.drop_path_rate == 0.1
        (note,) = [row.note for row in translation.rows if row.key == "params"]
        assert note == "their program does not run without; drop and drop_path are taken in its place"


@pytest.mark.parametrize(
    ("named", "params", "agree"),
    [
        ("svt_s", "alt_gvt_small", True),
        ("pcpvt_l", "pcpvt_large_v0", True),
        ("svt_s", "alt_gvt_base", False),
        ("svt_s", "pcpvt_small", False),
    ],
)
def test_a_network_of_two_names_is_told_of(named: str, params: str, agree: bool) -> None:
    file = {**content("svt_s"), "model": named, "params": {"model": params}}
    said = [text for kind, text in translate(file, "twins").remarks() if kind == "warning"]
    assert bool(said) is not agree
    assert agree or said[0].endswith(f"its model is not read: {named} is built")


def test_the_files_of_mindcvs_twins_train_on_what_they_validate_with_and_say_so() -> None:
    for name, model in (("svt_s_gpu", "alt_gvt_small"), ("pcpvt_l_gpu", "pcpvt_large")):
        config = translated(name)
        assert (config.model.name, config.model.drop_path_rate, config.preprocess.crop) == (model, 0.1, 0.9)
        assert config.model.options == {"gelu": "tanh", "embed_norm_eps": 1e-7}
        assert (config.data.train_split, config.data.val_split, config.output.keep_last) == ("val", "val", 10)
        assert (
            f"warning: {name}: train_split=val: the run learns the images that it is validated with; train_split=train "
            "takes the others"
        ) in remarks(name)
        assert not [text for text in remarks(name, train_split="train") if "train_split" in text]


def test_what_has_no_effect_is_said_where_it_is_asked_for() -> None:
    for name in ("t2t_vit_19", "svt_s"):
        assert "without effect" not in " ".join(remarks(name))
        file = {**content(name), "dump_graph": True, "collect_input_data": True, "pynative_mode": True}
        said = " ".join(text for _, text in translate(file, name).remarks())
        for key in ("dump_graph=true", "collect_input_data=true", "pynative_mode=true"):
            assert f"{key}: without effect: " in said


@pytest.mark.parametrize(
    ("flags", "lost"),
    [
        ({"pretrained": "a.ckpt", "exclude_epoch_state": False}, True),
        ({"pretrained": "a.ckpt", "exclude_epoch_state": True}, False),
        ({"exclude_epoch_state": False}, False),
    ],
)
def test_a_state_that_is_not_gone_on_with_is_told_of(flags: dict[str, Any], lost: bool) -> None:
    said = remarks("t2t_vit_19", **flags)
    warned = "warning: t2t_vit_19: exclude_epoch_state=false: weights alone are read: epochs and rates begin anew; "
    assert any(text.startswith(warned) for text in said) is lost
    twins = [text for text in remarks("svt_s", **{"pretrained": "a.ckpt"}) if "exclude_epoch_state is not" in text]
    assert len(twins) == 1


def test_as_written_takes_mindcvs_file_by_its_word() -> None:
    executed, written = (changed(translated("tnt_s_gpu", compat=c)) for c in ("as_executed", "as_written"))
    assert {key for key in executed if executed[key] != written.get(key)} == {
        "optim.decay_on",
        "schedule.cosine_epochs",
    }
    assert written["optim.decay_on"] == "matrices"
    assert "schedule.cosine_epochs" not in written


def test_keys_that_mindcv_does_not_read_count_only_as_written() -> None:
    flags = {"mixup_prob": 0.5, "switch_prob": 0.1, "lr_scheduler": "constant", "eps": 1e-6}
    executed = translated("tnt_s_gpu", **flags)
    assert (executed.augment.mix_prob, executed.augment.mix_switch_prob, executed.optim.eps) == (1.0, 0.5, 1e-8)
    assert executed.schedule.name == "cosine"
    written = translated("tnt_s_gpu", compat="as_written", **flags)
    assert (written.augment.mix_prob, written.augment.mix_switch_prob, written.optim.eps) == (0.5, 0.1, 1e-6)
    assert written.schedule.name == "constant"
    said = remarks("tnt_s_gpu", **flags)
    for key, value, taken in (("mixup_prob", "0.5", "1.0"), ("lr_scheduler", "constant", "cosine_decay")):
        assert f"note: tnt_s_gpu: {key}={value}: not read by MindCV, which takes {taken}" in said
    assert "note: tnt_s_gpu: eps=1.0e-06: not handed on to AdamW, which takes 1e-8" in said


def test_a_run_says_where_it_differs_from_what_the_file_reads_as() -> None:
    assert remarks("tnt_s_gpu") == [
        "note: tnt_s_gpu: settings of MindCV, as_executed; `vitrail config` shows each key",
        "note: tnt_s_gpu: decay_epochs is not written: a cosine of 100 epochs: the rate is at min_lr from epoch 120 of "
        "300 on; compat=as_written ends it with the run",
        "note: tnt_s_gpu: filter_bias_and_bn is not written: biases and norms decay too, since the group that is to be "
        "exempt inherits the decay; compat=as_written exempts them",
    ]
    said = " ".join(remarks("tnt_s_patch16_224"))
    for part in ("here 1024 / 512", "corrects no bias", "there is no Ascend here"):
        assert part in said
    for key in ("drop", "drop_block"):
        assert f"{key}=0.1: not handed to the model by train.py" in " ".join(remarks("t2t_vit_19", **{key: 0.1}))
    assert "drop_path=0.1: not handed to the model by train.py" in " ".join(remarks("t2t_vit_19"))
    assert "whether this program scales it" in " ".join(remarks("svt_s"))


def test_a_short_run_of_mindcv_cuts_its_cosine_off() -> None:
    said = " ".join(remarks("tnt_s_gpu", epoch_size=50, warmup_epochs=0))
    assert "a cosine of 100 epochs is cut off at epoch 50 of 100" in said
    own = translated("tnt_s_gpu", epoch_size=50, decay_epochs=50, warmup_epochs=0)
    assert own.schedule.cosine_epochs == 50
    assert "decay_epochs" not in " ".join(remarks("tnt_s_gpu", epoch_size=50, decay_epochs=50, warmup_epochs=0))


def test_as_written_rates_of_the_zoo_are_not_scaled_nor_clipped() -> None:
    config = translated("tnt_s_patch16_224", compat="as_written")
    assert (config.optim.lr_base_batch, config.schedule.min_lr, config.schedule.clip_to_min_lr) == (None, 6e-6, False)


def test_as_written_t2t_has_its_drop_path() -> None:
    assert translated("t2t_vit_19").model.drop_path_rate == 0.0
    assert translated("t2t_vit_19", compat="as_written").model.drop_path_rate == 0.1


def test_the_file_of_twins_overrules_flags_as_executed() -> None:
    assert translated("svt_s", epochs=3).train.epochs == 300
    assert "warning: svt_s: epochs=3: the file overrules the flag in MindSpore's Twins" in " ".join(
        remarks("svt_s", epochs=3)
    )
    assert "overrules" not in " ".join(remarks("svt_s", epochs=300))
    assert translated("svt_s", epochs=30, compat="as_written").train.epochs == 30
    assert translated("svt_s", dir_ckpt="here").output.root == "here"
    assert translated("tnt_s_gpu", epoch_size=30).train.epochs == 30


def test_batches_count_one_process_and_one_part() -> None:
    assert [translated("tnt_s_gpu", processes=n).train.batch_size for n in (1, 8)] == [32, 256]
    config = translated("tnt_s_patch16_224", processes=2, accumulation_step=4)
    assert (config.train.batch_size, config.train.accumulate) == (1024, 4)
    assert config.schedule.min_lr == 1.2e-5


@pytest.mark.parametrize(
    ("name", "flags", "processes", "message"),
    [
        ("tnt_s_gpu", {"distributed": True}, 1, "start several with: torchrun --nproc-per-node 8 -m vitrail train"),
        ("t2t_vit_19", {"num_devices": 4}, 1, "start several with: torchrun --nproc-per-node 4 -m vitrail train"),
        ("t2t_vit_19", {"num_devices": 4}, 2, "2 processes were started, and they count"),
        ("t2t_vit_19", {"device": 3}, 1, "CUDA_VISIBLE_DEVICES=3 chooses the card"),
        ("svt_s", {"device_target": "Ascend"}, 1, "the file overrules the flag"),
    ],
)
def test_devices_are_chosen_outside(name: str, flags: dict[str, Any], processes: int, message: str) -> None:
    said = [text for _, text in translate(content(name), name, flags, processes=processes).remarks()]
    assert message in " ".join(said)


def test_distribution_that_is_there_needs_no_word() -> None:
    assert "torchrun" not in " ".join(remarks("tnt_s_gpu", distribute=True))


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("tnt_s_gpu", {"clip_grad": False}, {"optim.clip_norm": None}),
        ("tnt_s_gpu", {"ema": True}, {"ema.decay": 0.9999}),
        ("tnt_s_gpu", {"auto_augment": None}, {"augment.auto_augment": None, "augment.color_jitter": 0.4}),
        ("tnt_s_gpu", {"auto_augment": "autoaugr-mstd0.5"}, {"augment.auto_augment": "originalr-mstd0.5"}),
        ("tnt_s_gpu", {"aug_repeats": 3}, {"augment.repeats": 3}),
        ("tnt_s_gpu", {"val_while_train": False}, {"train.eval_every": 300}),
        ("tnt_s_gpu", {"ckpt_path": "a.ckpt"}, {"model.weights": "a.ckpt"}),
        ("tnt_s_gpu", {"opt": "momentum", "use_nesterov": True}, {"optim.name": "sgd", "optim.nesterov": True}),
        ("tnt_s_gpu", {"dataset": "cifar10"}, {"data.name": "cifar10"}),
        ("tnt_s_gpu", {"device_target": "CPU"}, {"train.device": "cpu"}),
        ("tnt_s_gpu", {"filter_bias_and_bn": False, "compat": "as_written"}, {"optim.decay_on": "all"}),
        (
            "tnt_s_gpu",
            {"scheduler": "step_decay", "decay_epochs": 30},
            {"schedule.name": "step", "schedule.decay_epochs": 30.0, "schedule.min_lr": 0.0},
        ),
        (
            "tnt_s_gpu",
            {"scheduler": "exponential_decay"},
            {"schedule.name": "exponential", "schedule.decay_epochs": 1.0, "schedule.decay_rate": 0.9},
        ),
        ("tnt_s_gpu", {"scheduler": "constant"}, {"schedule.name": "constant", "schedule.cosine_epochs": None}),
        ("tnt_s_patch16_224", {"pretrained": "a.ckpt"}, {"model.weights": "a.ckpt"}),
        ("tnt_s_patch16_224", {"wd": 0.1}, {"optim.weight_decay": 0.1}),
        (
            "tnt_s_patch16_224",
            {"lr_scheduler": "multistep_lr"},
            {"schedule.name": "exponential", "schedule.warmup_epochs": 0.0, "schedule.decay_rate": 0.97},
        ),
        ("tnt_s_patch16_224", {"lr_scheduler": "exp_lr"}, {"schedule.decay_epochs": 1.0}),
        ("tnt_s_patch16_224", {"optimizer": "momentum"}, {"optim.name": "sgd"}),
        ("tnt_s_patch16_224", {"optimizer": "sgd"}, {"optim.name": "sgd"}),
        (
            "tnt_s_patch16_224",
            {"re_mode": "rand", "re_count": 3},
            {"augment.erase_mode": "rand", "augment.erase_count": 3},
        ),
        (
            "tnt_s_patch16_224",
            {"re_mode": "const", "re_prob": 0},
            {"augment.erase_mode": "pixel", "augment.erase_prob": 0.0},
        ),
        ("tnt_s_patch16_224", {"mixup_mode": "pair"}, {"augment.mix_mode": "pair"}),
        ("tnt_s_patch16_224", {"keep_checkpoint_max": 7}, {"output.keep_last": 7}),
        ("tnt_s_gpu", {"re_value": 0}, {"augment.erase_mode": "const"}),
        ("tnt_s_gpu", {"drop_rate": 0.1}, {"model.drop_rate": 0.1}),
        ("tnt_s_gpu", {"keep_checkpoint_max": 7}, {"output.keep_last": 7, "output.keep_best": 1}),
        (
            "tnt_s_gpu",
            {"keep_checkpoint_max": 7, "ckpt_save_policy": "top_k"},
            {"output.keep_last": 2, "output.keep_best": 7},
        ),
        ("tnt_s_gpu", {"lr_epoch_stair": True}, {"schedule.step": "epoch"}),
        ("svt_s_gpu", {"mixup_off_epoch": 9}, {"augment.mix_off_epoch": None}),
        ("svt_s_gpu", {"mixup_off_epoch": 9, "compat": "as_written"}, {"augment.mix_off_epoch": 9}),
        ("t2t_vit_19", {"mixup_off_epoch": 9.0}, {"augment.mix_off_epoch": 9}),
        ("t2t_vit_19", {"mixup_mode": "elem"}, {"augment.mix_mode": "elem"}),
        ("t2t_vit_19", {"drop": 0.1}, {"model.drop_rate": 0.0}),
        ("tnt_s_patch16_224", {"drop_out": 0.1}, {"model.drop_rate": 0.0}),
        ("tnt_s_patch16_224", {"drop_out": 0.1, "compat": "as_written"}, {"model.drop_rate": 0.1}),
        ("t2t_vit_19", {"drop": 0.1, "compat": "as_written"}, {"model.drop_rate": 0.1}),
        ("t2t_vit_19", {"train_num_samples": None}, {"train.epoch_images": None}),
        ("t2t_vit_19", {"train_num_samples": 5000}, {"train.epoch_images": 40_000}),
        ("tnt_s_gpu", {"num_samples": 5000}, {"train.epoch_images": 40_000}),
        ("t2t_vit_19", {"print_loss_every": 5}, {"train.log_every": 5}),
        ("svt_s", {"cutmix_minmax": [0.2, 0.8]}, {"augment.cutmix_minmax": None}),
        ("svt_s", {"cutmix_minmax": [0.2, 0.8], "compat": "as_written"}, {"augment.cutmix_minmax": [0.2, 0.8]}),
        ("svt_s", {"drop": 0.1, "compat": "as_written"}, {"model.drop_rate": 0.1}),
        ("t2t_vit_19", {"disable_approximate_gelu": True}, {"model.options": {"norm_eps": 1e-7, "gelu": "erf"}}),
        ("t2t_vit_19", {"ckpt_save_every_step": 50}, {"output.save_every_updates": 50}),
        ("t2t_vit_19", {"min_crop": 0.2}, {"augment.scale": [0.2, 1.0]}),
        ("t2t_vit_19", {"with_ema": 1}, {"ema.decay": 0.9999}),
    ],
)
def test_a_key_sets_what_belongs_to_it(name: str, flags: dict[str, Any], expected: dict[str, Any]) -> None:
    found = flat(translated(name, **flags))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ("/data/a/train", "/data/a/val", ("/data/a", "train", "val")),
        ("/data/a/train", "/data/b/val", ("/data", "a/train", "b/val")),
        ("train", "val", (".", "train", "val")),
        ("in/train", None, ("in", "train", "val")),
        (None, "in/test", ("in", "train", "test")),
    ],
)
def test_two_folders_are_a_root_and_two_names(train: str | None, val: str | None, expected: tuple[str, ...]) -> None:
    file = {key: value for key, value in content("svt_s").items() if not key.startswith("ds_")}
    given = {key: value for key, value in (("ds_train", train), ("ds_val", val)) if value is not None}
    data = resolve(TrainConfig, [translate({**file, **given}, "svt").layer]).config.data
    assert (data.root, data.train_split, data.val_split) == expected


def test_two_folders_without_a_common_root_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ds_train and ds_val must both be absolute paths, or both not"):
        translate({**content("svt_s"), "ds_val": "val"}, "svt")


# Learning rates


def rates(config: TrainConfig, steps: int) -> list[float]:
    from vitrail.training.setup import build_schedule

    rate = build_schedule(config, steps)
    return [rate(update) for update in range((config.train.epochs + config.schedule.cooldown_epochs) * steps)]


def test_mindcvs_rate_is_what_mindcv_executes() -> None:
    steps, lr, floor = 7, 5e-4, 6e-6
    warmup = [lr * 0.00014 + (lr - lr * 0.00014) * i / (20 * steps) for i in range(20 * steps)]
    times = [min(i / steps, 100) for i in range(280 * steps)]
    cosine = [floor + (lr - floor) * 0.5 * (1 + math.cos(math.pi * t / 100)) for t in times]
    ours = rates(translated("tnt_s_gpu"), steps)
    np.testing.assert_allclose(ours, warmup + cosine, rtol=1e-9)
    assert ours[120 * steps :] == [floor] * (180 * steps)
    assert ours[20 * steps] == lr
    cut = rates(translated("tnt_s_gpu", epoch_size=50), steps)
    np.testing.assert_allclose(cut, (warmup + cosine)[: 50 * steps], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "factor", "base", "start", "floor", "warmup"),
    [
        ("tnt_s_patch16_224", 2.0, 5e-4, 7e-8, 6e-6, 20),
        ("t2t_vit_19", 1.0, 1e-3, 7e-6, 1e-5, 2),
        ("svt_s", 1.0, 1e-4, 1e-6, 1e-5, 20),
    ],
)
def test_the_zoos_rate_is_what_its_programs_execute(
    name: str, factor: float, base: float, start: float, floor: float, warmup: int
) -> None:
    steps, epochs = 5, 300

    def at(epoch: float) -> float:
        if epoch < warmup:
            return epoch / warmup * (base - start) + start
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) * base

    theirs = [factor * max(at(epoch + batch / steps), floor) for epoch in range(epochs) for batch in range(steps)]
    np.testing.assert_allclose(rates(translated(name), steps), theirs, rtol=1e-9)


@pytest.mark.parametrize(("scheduler", "period"), [("multistep_lr", 30), ("exp_lr", 1)])
def test_the_zoos_other_curves_are_executed_too(scheduler: str, period: int) -> None:
    steps = 5
    ours = rates(translated("tnt_s_patch16_224", lr_scheduler=scheduler), steps)
    first = 0 if scheduler == "multistep_lr" else 20 * steps
    theirs = [2 * max(5e-4 * 0.97 ** (update / steps / period), 6e-6) for update in range(300 * steps)]
    np.testing.assert_allclose(ours[first:], theirs[first:], rtol=1e-9)


# Flags


OFFICIAL = (
    "/path/to/imagenet/ --model tnt_s_patch16_224 --sched cosine --epochs 300 --opt adamw -j 8 --warmup-lr 1e-6 "
    "--mixup .8 --cutmix 1.0 --model-ema --model-ema-decay 0.99996 --aa rand-m9-mstd0.5-inc1 --color-jitter 0.4 "
    "--warmup-epochs 5 --opt-eps 1e-8 --repeated-aug --remode pixel --reprob 0.25 --amp --lr 1e-3 --weight-decay .05 "
    "--drop 0 --drop-path .1 -b 128 --output /path/to/save/models/"
)


def test_the_official_command_is_our_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    (_, place, *rest), _ = understood(["train", *OFFICIAL.split()])
    theirs, ours = flat(begin(place, rest).config), flat(begin("tnt_s_imagenet", []).config)
    differing = {key for key in ours if ours[key] != theirs[key]} - {"augment.erase", "schedule.step"}
    assert (theirs["augment.erase"], theirs["schedule.step"]) == ("after_mix", "epoch")
    assert differing == {
        "data.root", "data.workers", "train.precision", "train.seed", "train.log_every", "output.root",
    }  # fmt: skip


T2T_TRAIN = "path/to/data --model t2t_vit_14 -b 64 --lr 5e-4 --weight-decay .05 --amp --img-size 224"
TWINS_TRAIN = "--model alt_gvt_base --batch-size 128 --data-path imagenet/ --dist-eval --drop-path 0.3"


@pytest.mark.parametrize(
    ("recipe", "typed", "others"),
    [
        ("t2t_vit_14_imagenet", T2T_TRAIN, {"train.seed": 42, "train.log_every": 50}),
        # the same rate for the same batch, and the same model
        (
            "twins_svt_base_imagenet",
            TWINS_TRAIN,
            {"optim.lr": 5e-4, "optim.lr_base_batch": 512, "model.name": "alt_gvt_base"},
        ),
    ],
)
def test_the_commands_of_t2t_and_twins_are_our_recipes(
    recipe: str, typed: str, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    tokens, _ = understood(["train", *typed.split()])
    keys = [token for token in tokens[1:] if "=" in token]
    place = [token for token in tokens[1:] if "=" not in token]
    theirs, ours = (flat(begin(*args).config) for args in ((*place, keys) if place else (None, keys), (recipe, [])))
    alike = ("data.root", "model.image_size", "train.precision", "augment.erase", "schedule.step")
    assert {key: theirs[key] for key in ours if ours[key] != theirs[key] and key not in alike} == others
    assert (theirs["model.image_size"], theirs["train.precision"], theirs["schedule.step"]) == (224, "mixed", "epoch")
    assert theirs["augment.erase"] == ("after_mix" if "t2t" in recipe else "before_mix")


def test_t2ts_transfer_to_cifar_is_read_as_what_it_is() -> None:
    typed = (
        "--lr 0.05 --b 64 --num-classes 10 --img-size 224 --transfer-learning True --transfer-model 81.9_T2T_ViT_19.pth"
    )
    tokens, _ = understood(["train", *typed.split(), "--model", "t2t_vit_19"])
    start = begin(None, tokens[1:])
    assert changed(start.config) == {
        "augment.interpolation": "bilinear",
        "augment.ratio": [1.0, 1.0],
        "augment.scale": [0.766, 1.0],
        "data.download": True,
        "data.name": "cifar10",
        "data.root": "./data",
        "model.drop_path_rate": 0.1,
        "model.image_size": 224,
        "model.name": "t2t_vit_19",
        "model.weights": "81.9_T2T_ViT_19.pth",
        "optim.backbone_scale": 0.01,
        "optim.decay_on": "all",
        "optim.lr": 0.05,
        "optim.name": "sgd",
        "optim.weight_decay": 5e-4,
        "preprocess.crop": 1.0,
        "preprocess.interpolation": "bilinear",
        "preprocess.mean": [0.4914, 0.4822, 0.4465],
        "preprocess.std": [0.2023, 0.1994, 0.201],
        "schedule.min_lr": 2e-4,
        "schedule.step": "epoch",
        "schedule.warmup_epochs": 0.0,
        "train.batch_size": 64,
        "train.epochs": 60,
    }
    assert not [text for kind, text in start.remarks if kind == "warning"]
    (told,) = [text for _, text in start.remarks if "lr=0.05" in text]
    assert "theirs ends both rates at min_lr, ours the head's" in told
    alone = begin(None, ["transfer_model=a.pth", "model=t2t_vit_14", "lr=0.05", "dataset=cifar100"]).config
    assert (alone.optim.lr, alone.data.name, alone.model.weights) == (0.05, "cifar100", "a.pth")


@pytest.mark.parametrize(
    ("flags", "project"),
    [
        ({"model": "tnt_s_patch16_224"}, official.TNT),
        ({"model": "T2t_vit_t_14", "lr": 1}, official.T2T),
        ({"model": "t2t_vit_14", "transfer_model": "w"}, official.TRANSFER),
        ({"transfer-model": "w"}, official.TRANSFER),
        ({"arch": "pcpvt_small_v0"}, official.TWINS),
        ({"model": "alt_gvt_small"}, official.TWINS),
        ({"data-path": "/d"}, official.TWINS),
        ({"data_dir": "/d"}, official.TNT),
        ({"model": "resnet50", "input-size": 224}, official.TWINS),
    ],
)
def test_flags_belong_to_the_program_of_their_model_or_that_knows_most(flags: dict[str, Any], project: Any) -> None:
    assert official.program_of(flags) is project


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"model": "t2t_vit_7", "remode": "rand", "recount": 2},
            {"augment.erase_mode": "rand", "augment.erase_count": 2},
        ),
        ({"model": "t2t_vit_7", "no_prefetcher": True}, {"augment.erase": "before_mix"}),
        (
            {"model": "t2t_vit_7", "cutmix_minmax": [0.2, 0.8], "cutmix": 0.5},
            {"augment.cutmix_minmax": [0.2, 0.8], "augment.cutmix": 1.0},
        ),
        (
            {"model": "t2t_vit_7", "mixup_off_epoch": 200, "mixup_mode": "elem"},
            {"augment.mix_off_epoch": 200, "augment.mix_mode": "elem"},
        ),
        ({"model": "t2t_vit_7", "drop": 0.1}, {"model.drop_rate": 0.1}),
        ({"model": "t2t_vit_7", "recovery_interval": 9}, {"output.save_every_updates": 9}),
        ({"model": "tnt_s", "drop": 0.1}, {"model.drop_rate": 0.1, "augment.erase_mode": "pixel"}),
        ({"model": "alt_gvt_small", "data_set": "CIFAR"}, {"data.name": "cifar100"}),
        (
            {"model": "alt_gvt_small", "device": "cpu", "input_size": 96},
            {"train.device": "cpu", "model.image_size": 96},
        ),
        ({"model": "alt_gvt_small", "repeated_aug": True}, {"augment.repeats": 3}),
    ],
)
def test_a_flag_of_an_official_program_sets_what_belongs_to_it(flags: dict[str, Any], expected: dict[str, Any]) -> None:
    found = flat(resolve(TrainConfig, [translate({}, "flags", {**flags, "data": "/d"}).layer]).config)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model": "t2t_vit_7", "eval_checkpoint": "w.pth"},
            "eval_checkpoint is w.pth; `vitrail evaluate` measures; write",
        ),
        ({"model": "alt_gvt_small", "eval": True}, "eval is true; `vitrail evaluate` measures; write it in place of"),
        (
            {"model": "alt_gvt_small", "finetune": "w.pth"},
            "their program reads no weights by it; model.weights=w.pth begins",
        ),
        ({"model": "alt_gvt_small", "data_set": "INAT"}, "data_set is INAT; it can be imnet, cifar"),
        ({"model": "t2t_vit_7", "no_aug": True}, "no_aug is true; here it can only be false: augment.* turns off what"),
        (
            {"model": "t2t_vit_7", "drop_block": 0.1},
            "drop_block is 0.1; here it can only be 0 or null: the models drop tok",
        ),
        ({"model": "t2t_vit_7", "data_path": "/d"}, "command line: data_path: unknown key"),
    ],
)
def test_a_flag_of_an_official_program_is_refused_with_the_reason(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        translate({}, "flags", flags)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("train --config f.yaml --data_dir /d", "train data_dir=/d --config f.yaml"),
        ("train -c f.yaml --data-dir=/d", "train data_dir=/d --config f.yaml"),
        ("train --tnt_config f.yaml --device-id 0", "train device_id=0 --config f.yaml"),
        ("train f.yaml --beta 0.9 0.99 --mix_up .5", "train f.yaml 'beta=[0.9, 0.99]' mix_up=.5"),
        ("train f.yaml --distribute train.epochs=2", "train f.yaml train.epochs=2 distribute=true"),
        ("train f.yaml --model-ema --amp x", "train f.yaml x model_ema=true amp=true"),
        ("train f.yaml --amp false", "train f.yaml amp=false"),
        ("train --resume runs/a optim.lr=1", "train optim.lr=1 --resume runs/a"),
        ("train f.yaml --compat as_written", "train f.yaml compat=as_written"),
        ("train f.yaml --lr -1", "train f.yaml lr=-1"),
        ("evaluate --pretrained w.ckpt -c f.yaml -b 9", "evaluate w.ckpt batch_size=9 --config f.yaml"),
        ("evaluate f.yaml --checkpoint w.ckpt", "evaluate w.ckpt --config f.yaml"),
        (
            "evaluate --eval --resume w.pth --model alt_gvt_large --data-path d",
            "evaluate w.pth eval=true model=alt_gvt_large data_path=d",
        ),
        (
            "evaluate d --model t2t_vit_14 -vb 2 --eval_checkpoint w",
            "evaluate w data_dir=d model=t2t_vit_14 validation_batch_size_multiplier=2",
        ),
        (
            'train --config f.yaml --params \'{"model": "svt_s"}\'',
            'train \'params={"model": "svt_s"}\' --config f.yaml',
        ),
        (
            "export --checkpoint w -c f.yaml --img-size 9 --format pt2",
            "export w img_size=9 --format pt2 --config f.yaml",
        ),
        ("predict a.jpg --checkpoint w -c f.yaml --arch t2t_vit_7", "predict w a.jpg arch=t2t_vit_7 --config f.yaml"),
        ("predict a.jpg --checkpoint w --image_size 64", "predict w a.jpg weights.options.image_size=64"),
        ("evaluate /d --pretrain_path w.pth", "evaluate w.pth data_dir=/d"),
        ("evaluate w.pth data.root=/d --json j", "evaluate w.pth data.root=/d --json j"),
        ("predict a.jpg --ckpt-path w.ckpt --batch_size 4", "predict w.ckpt a.jpg --batch-size 4"),
        ("predict a.jpg --checkpoint w --device_target CPU", "predict w a.jpg --device cpu"),
        ("export --checkpoint w --file_format MINDIR", "export w --format mindir"),
        ("config --config_path f.yaml --epochs 3", "config f.yaml epochs=3"),
        ("models --markdown", "models --markdown"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_flags_become_what_we_read(typed: str, read: str) -> None:
    tokens, notes = understood(shlex.split(typed))
    assert tokens == shlex.split(read)
    assert notes == []


def test_flags_that_a_command_has_no_use_for_are_noted() -> None:
    tokens, notes = translate_flags(["predict", "a.jpg", "--checkpoint", "w", "--batch_size", "8"], {})
    assert tokens == ["predict", "w", "a.jpg"]
    assert notes == ["--batch_size 8: not needed; the weight file says what `vitrail predict` has to know"]


@pytest.mark.parametrize("command", ["predict", "export"])
def test_the_model_that_a_command_names_is_that_of_the_weight_file(command: str) -> None:
    tokens, notes = translate_flags([command, "--checkpoint", "w", "--arch", "t2t_vit_19"], {})
    assert tokens[:3] == [command, "w", "weights.model=t2t_vit_19"]
    assert not notes


def test_an_export_without_a_format_is_what_their_program_writes(tmp_path: Path) -> None:
    kinds = {"tnt_s_patch16_224": "mindir", "t2t_vit_19": "mindir", "svt_s": "onnx", "tnt_s_gpu": "mindir"}
    words = ["export", "--pretrained", "w", "--config", ""]
    for name, kind in kinds.items():
        words[-1] = str(FILES / f"{name}.yaml")
        assert translate_flags(words, {"--config": True})[0][2:4] == ["--format", kind]
    words[-1] = str(written(tmp_path, "t2t_vit_19", file_format="AIR"))
    with pytest.raises(ConfigError, match=r"theirs\.yaml says AIR, which Ascend 910 alone can write"):
        translate_flags(words, {})
    words[-1] = "tnt_s_imagenet"
    assert translate_flags(words, {})[0][2:4] == ["--format", "mindir"]
    assert translate_flags(["export", "--pretrained", "w"], {})[0] == ["export", "w", "--format", "mindir"]
    given = ["export", "--pretrained", "w", "--format", "mindir"]
    assert translate_flags(given, {"--format": True})[0].count("--format") == 1


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train --data_dri /d", "--data_dri: unknown option; did you mean '--data_dir'?"),
        ("evaluate -c f.yaml --pretrained", "--pretrained: nothing is downloaded here; fetch the file and write"),
        (
            "export --checkpoint w --file_format AIR",
            "--file_format says AIR, which Ascend 910 alone can write; it can",
        ),
    ],
)
def test_a_flag_that_cannot_be_had_is_refused(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        understood(typed.split())


def test_keys_have_no_section() -> None:
    keys, rest = split_keys(["epoch_size=3", "optim.lr=1", "x.yaml", "eps=1e-8", "data_dir=", "a=b: c: d"])
    assert keys == {"epoch_size": 3, "eps": "1e-8", "data_dir": None, "a": "b: c: d"}
    assert rest == ["optim.lr=1", "x.yaml"]


@pytest.mark.parametrize(
    ("recipe", "keys", "message"),
    [
        ("digits", {"batch_size": 4}, r"^batch_size=4: goes with files of other projects alone; write train"),
        ("digits", {"nonsense": 4}, r"write section\.key=\.\.\., `vitrail config digits` shows all settings"),
        ("digits", {"compat": "as_written"}, r"^compat is for files of other projects; drop it"),
        (None, {"lr": 1}, r"^lr=1: goes with files of other projects alone; write optim\.lr=\.\.\."),
        (None, {"model": "tnt_s", "sched": "plateau"}, r"sched is plateau; it can be cosine, step"),
        ("gone/x.yaml", {"model": "tnt_s"}, r"unknown recipe 'gone/x\.yaml'"),
        ("/d", {"model": "tnt_s_patch16_224", "evaluate": True}, r"`vitrail evaluate` measures; write it in place of"),
    ],
)  # fmt: skip
def test_keys_need_a_file_of_theirs(recipe: str | None, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe, keys)


def test_our_settings_are_put_over_theirs(tmp_path: Path) -> None:
    start = begin(str(FILES / "tnt_s_gpu.yaml"), ["epoch_size=30", "warmup_epochs=2", "train.epochs=7", "optim.lr=1"])
    assert (start.name, start.config.train.epochs, start.config.optim.lr) == ("tnt_s_gpu", 7, 1.0)
    assert start.remarks[0][1].startswith("tnt_s_gpu: settings of MindCV")
    new = begin(str(FILES / "tnt_s_gpu.yaml"), [], resume=tmp_path / "runs" / "a")
    assert new.config.output.name == "a"
    assert len(new.remarks) == 3


def test_evaluation_takes_the_images_and_how_they_are_read() -> None:
    part = read_part(str(FILES / "tnt_s_gpu.yaml"), {"data_dir": "/d"}, EVALUATE_SECTIONS)
    assert part is not None
    config = resolve(EvaluateConfig, [part.layer]).config
    assert (config.data.root, config.data.workers, config.preprocess.crop) == ("/d", 1, 0.9)
    assert (config.evaluate.batch_size, config.evaluate.device) == (32, "auto")
    assert set(part.layer.values) == {*EVALUATE_SECTIONS} - {"weights"}
    assert part.layer.model["name"] == "tnt_small"
    ours = read_part("digits", {}, ["preprocess"])
    assert ours is not None
    assert ours.layer.values == {"preprocess": {"crop": 1.0}}
    flags = read_part(None, {"data_dir": "/d", "batch_size": 9, "evaluate": True}, EVALUATE_SECTIONS)
    assert flags is not None
    assert resolve(EvaluateConfig, [flags.layer]).config.evaluate.batch_size == 9
    assert read_part(None, {}, EVALUATE_SECTIONS) is None


# What a file says of the model


TWINS_TINY: dict[str, Any] = {
    "image_size": 64,
    "embed_dims": (16, 16, 32, 32),
    "depths": (1, 2, 1, 2),
    "num_heads": (1, 2, 2, 4),
    "mlp_ratios": (2.0,) * 4,
    "num_classes": 3,
}
TWINS_OPTIONS = [
    f"weights.options.{name}={list(value)}" for name, value in TWINS_TINY.items() if isinstance(value, tuple)
]


@pytest.fixture
def of_mindspore(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a .ckpt as MindSpore does, of a tiny model with drawn weights."""

    def write(name: str, project: str, **options: Any) -> Path:
        import torch

        from vitrail.models.registry import create_model
        from vitrail.weights.convert import convert
        from vitrail.weights.request import LoadRequest

        torch.manual_seed(0)
        source = tmp_path / "source.pth"
        torch.save(create_model(name, **options).state_dict(), source)
        convert(str(source), tmp_path / "w.ckpt", project, LoadRequest(model=name, options=options))
        return tmp_path / "w.ckpt"

    return write


def written(folder: Path, name: str, **changes: Any) -> Path:
    """Write a file of theirs with some values changed, and return where."""
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump({**content(name), **changes}))
    return path


def wanted_with(config: Path | str, *tokens: str) -> Any:
    from vitrail.weights.request import resolve_request

    part = read_part(str(config), {}, EVALUATE_SECTIONS)
    assert part is not None
    return resolve_request([part.layer, command_line(tokens)])


def test_a_file_gives_the_image_size_that_weights_do_not_tell(
    of_mindspore: Callable[..., Path],
    image_folder: Path,
    without_shape_checks: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    weights = of_mindspore("twins_svt_small", "zoo", **TWINS_TINY)
    folders = {"ds_train": f"{image_folder}/train", "ds_val": f"{image_folder}/val"}
    file = written(tmp_path, "svt_s_params", image_size=64, model="twins_svt_small", **folders)
    words = [str(weights), "--config", str(file), *TWINS_OPTIONS]
    with pytest.raises(SystemExit) as caught:
        main(
            ["evaluate", *words, "data.workers=0", "--json", str(tmp_path / "a.json"), "--report", str(tmp_path / "r")]
        )
    assert caught.value.code == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["preprocess"]["size"] == [64, 64]
    with pytest.raises(SystemExit) as caught:
        main(["export", *words, "--format", "torchscript", "--output", str(tmp_path / "a.torchscript")])
    assert caught.value.code == 0, capsys.readouterr().err
    from vitrail.inference.engines import read_artifact

    record = read_artifact(tmp_path / "a.torchscript").record
    assert (record.preprocess.size, record.options["image_size"]) == ((64, 64), 64)
    (image,) = sorted(image_folder.glob("val/red/red_0.jpg"))
    answers = {}
    for name, size in (("file", ["--config", str(file)]), ("typed", ["weights.options.image_size=64"])):
        output = tmp_path / f"{name}.jsonl"
        with pytest.raises(SystemExit) as caught:
            main(["predict", words[0], str(image), *TWINS_OPTIONS, *size, "--format", "jsonl", "--output", str(output)])
        assert caught.value.code == 0, capsys.readouterr().err
        answers[name] = output.read_text()
    assert answers["file"] == answers["typed"]
    # what was exported has its size for good
    file = written(tmp_path, "svt_s_params", image_size=96, model="twins_svt_small")
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(tmp_path / "a.torchscript"), "--config", str(file)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "theirs: has image_size 96, and " in said
    assert "; export it again with weights.options.image_size=96, or leave the settings out" in said


def test_a_file_gives_the_gelu_that_weights_do_not_tell(of_mindspore: Callable[..., Path], tmp_path: Path) -> None:
    from vitrail.weights.loading import open_model

    tiny = {"image_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 3}
    weights = of_mindspore("t2t_vit_14", "zoo", **tiny)
    changes = {"image_size": 32, "arch": "t2t_vit_14"}
    options = ["weights.options.embed_dim=48", "weights.options.depth=2", "weights.options.num_heads=4"]
    for exact, gelu in ((False, "tanh"), (True, "erf")):
        file = written(tmp_path, "t2t_vit_19", **changes, disable_approximate_gelu=exact)
        opened = open_model(weights, wanted_with(file, *options))
        assert (opened.record.options["gelu"], opened.record.options["image_size"]) == (gelu, 32)
        notes = [note for note in opened.account.notes if "gelu is" in note]
        told = "gelu is erf, as theirs has it; in zoo files it is tanh, which weights.options.gelu=tanh takes"
        assert notes == ([f"{weights}: {told}"] if exact else [])
    assert (
        open_model(weights, wanted_with(file, *options, "weights.options.gelu=tanh")).record.options["gelu"] == "tanh"
    )


def test_a_file_names_the_model(of_mindspore: Callable[..., Path], tmp_path: Path) -> None:
    from vitrail.weights.loading import open_model

    weights = of_mindspore("t2t_vit_7", "zoo", image_size=32, num_classes=3)
    right = written(tmp_path, "t2t_vit_19", arch="t2t_vit_7", image_size=32)
    assert open_model(weights, wanted_with(right)).record.model == "t2t_vit_7"
    wrong = written(tmp_path, "t2t_vit_19", arch="t2t_vit_10", image_size=32)
    with pytest.raises(CheckpointError, match=r"w\.ckpt: does not fit the model: .*nearest is zoo t2t_vit_10"):
        open_model(weights, wanted_with(wrong))
    assert open_model(weights, wanted_with(wrong, "weights.model=t2t_vit_7")).record.model == "t2t_vit_7"
    large = written(tmp_path, "t2t_vit_19", arch="t2t_vit_7", image_size=64)
    with pytest.raises(
        ConfigError, match=r"^theirs: has image_size 64, and .*w\.ckpt was made with 32; say which counts: weights\."
    ):
        open_model(weights, wanted_with(large))
    assert open_model(weights, wanted_with(large, "weights.options.image_size=48")).record.options["image_size"] == 48


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {name: t2t_vit_7}",
            "mine: is for t2t_vit_7, and {path} holds a tnt_ti_patch16_224; give the settings",
        ),
        (
            "model: {image_size: 64}",
            "mine: has image_size 64, and {path} was made with 32; say which counts: weights.options",
        ),
        (
            "model: {image_size: [32, 64]}",
            "mine: has image_size [32,64], and {path} was made with 32; say which",
        ),
        (
            "model: {options: {gelu: tanh}}",
            "mine: has gelu tanh, and {path} was made with erf; say which counts: weights.options",
        ),
        (
            "model: {options: {depth: 9}}",
            "mine: has depth 9, and {path} was made with 2; say which counts: weights.options",
        ),
        ("model: {name: tnt_s, options: 3}", "mine: model.options is 3; it must be a mapping of names to values"),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "predict", "export"])
def test_what_a_file_says_of_weights_that_say_otherwise_is_an_error(
    verb: str, text: str, message: str, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    rest = {"evaluate": [f"data.root={image_folder}"], "predict": [str(image_folder)], "export": ["--format", "pt2"]}
    with pytest.raises(SystemExit) as caught:
        main([verb, str(tiny_checkpoint), *rest[verb], "--config", str(tmp_path / "mine.yaml")])
    assert caught.value.code == 2
    assert message.format(path=tiny_checkpoint) in capsys.readouterr().err


def test_what_a_file_says_of_weights_may_be_true(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from vitrail.weights.loading import open_model

    (tmp_path / "mine.yaml").write_text("model: {name: tnt_ti_patch16_224, image_size: [32, 32], options: {gelu: erf}}")
    plain = open_model(tiny_checkpoint).record
    assert open_model(tiny_checkpoint, wanted_with(tmp_path / "mine.yaml")).record == plain


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export", "train", "config"])
def test_a_file_that_is_not_there_is_an_error_of_every_verb(
    verb: str, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = {"predict": [str(image_folder)], "export": ["--format", "pt2"]}
    first = [str(tiny_checkpoint)] if verb in ("evaluate", "predict", "export") else []
    with pytest.raises(SystemExit) as caught:
        main([verb, *first, *words.get(verb, []), "--config", str(tmp_path / "nope.yaml")])
    assert caught.value.code == 2
    assert f"unknown recipe '{tmp_path}/nope.yaml'" in capsys.readouterr().err


def test_flags_are_put_over_a_file_when_weights_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", "--pretrained", "w.ckpt", "--config", str(FILES / "svt_s_params.yaml"), "--image_size", "384"])
    said = capsys.readouterr().err
    assert "svt_s_params: image_size=384: the file overrules the flag in MindSpore's Twins" in said
    with pytest.raises(SystemExit):
        main(["predict", "a.jpg", "--ckpt_path", "w.ckpt", "-c", str(FILES / "tnt_s_gpu.yaml"), "--image_resize", "x"])
    assert "tnt_s_gpu: model.image_size is 'x'; it must be a whole number" in capsys.readouterr().err


# The guide


def commands() -> list[tuple[str, str, str]]:
    """Return theirs, ours and what it does, of each line of the guide's table that has one of ours."""
    table = GUIDE.read_text().split("<!-- commands -->\n")[1].split("<!-- end -->")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return [(row[0].strip("`"), row[1].strip("`"), row[2]) for row in rows if row[1].startswith("`")]


def test_the_guide_has_every_command_of_the_readmes() -> None:
    assert len(commands()) == 51
    for theirs, ours, _ in commands():
        flags = re.findall(r"(?<= )--?[a-zA-Z][\w-]*", theirs)
        launch = {"--nproc_per_node", "-n", "-m", "--use_env", "--src", "--dst"}
        for flag in set(flags) - launch:
            assert flag in ours, f"{ours} lacks {flag}"


TINY_OF: dict[str, dict[str, Any]] = {
    "tnt": {"embed_dim": 24, "inner_dim": 8, "depth": 1, "num_heads": 2, "inner_num_heads": 2},
    "t2t": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "twins": {
        "embed_dims": [8, 8], "depths": [1, 1], "num_heads": [1, 1], "mlp_ratios": [1.0, 1.0], "sr_ratios": [2, 1],
        "patch_sizes": [4, 2],
    },
}  # fmt: skip
WEIGHTS = {
    "/path/to/ckpt": "mindcv",
    "/path/to/pretrained/model/": "official tnt_s_patch16_224",
    "./ckpt_0/tnt_s_patch16_224.ckpt": "zoo tnt_s_patch16_224",
    "/data/models/t2t_vit_19.ckpt": "zoo t2t_vit_19",
    "path/to/checkpoint": "official",
    "path/to/T2T-ViT-14-384": "official t2t_vit_14",
    "/path/to/pretrained/T2T-ViT-19": "official t2t_vit_19",
    "alt_gvt_large.pth": "official twins_svt_large",
    "alt_gvt_small.pth": "official twins_svt_small",
    "pretrained.ckpt": "zoo twins_svt_small",
    "svt_s.onnx": "onnx twins_svt_small",
}
"""Of which project the weights in a command are, and of which model where it does not say so itself."""
IMAGES = (
    "/path/to/imagenet", "/path/to/dataset", "path/to/data", "path_to_imagenet", "/data/imagenet", "/data/images",
)  # fmt: skip
PLACES = {
    "tnt_s_gpu": ["configs/tnt/tnt_s_gpu.yaml"],
    "svt_s_gpu": ["configs/twins/svt_s.yaml"],
    "tnt_s_patch16_224": ["src/configs/tnt_s_patch16_224.yaml"],
    "t2t_vit_19": ["../src/configs/t2t_vit_19.yaml", "src/configs/t2t_vit_19.yaml", "path/to/config.yaml"],
    "svt_s_params": ["configs/svt_s.yaml"],
}


def family_of(name: str) -> str:
    if re.search("t2t|path/to/config", name.lower()):
        return "t2t"
    return "twins" if re.search("twins|svt|gvt", name) else "tnt"


def save_weights(folder: Path, project: str, name: str) -> Path:
    """Write a tiny model as a project would, unless it is there."""
    import torch

    from vitrail.models.registry import create_model
    from vitrail.weights.convert import convert
    from vitrail.weights.request import LoadRequest

    path = folder / f"{project}-{name}{'.pth' if project == 'official' else '.ckpt'}"
    if path.exists():
        return path
    options = {**TINY_OF[family_of(name)], "image_size": 32, "num_classes": 3}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    torch.manual_seed(0)
    state = create_model(name, **options).state_dict()
    for key in state:
        if key.endswith(".bias"):  # some of which MindSpore's zoo does not have
            state[key].zero_()
    if project == "official":
        torch.save(state, path)
    else:
        source = save_weights(folder, "official", name)
        torch.save(state, source)
        convert(str(source), path, project, LoadRequest(model=name, options=options))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for weights that several commands share."""
    return tmp_path_factory.mktemp("weights")


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def tiny(prefix: str, family: str) -> list[str]:
    """Return the settings of a tiny model."""
    values = {**TINY_OF[family], **({"image_size": 32} if prefix == "weights" else {})}
    return [f"{prefix}.options.{name}={json.dumps(value, separators=(',', ':'))}" for name, value in values.items()]


ROWS = [
    pytest.param(*row[1:], id=f"{n}-{row[1][:60]}", marks=[pytest.mark.thorough] if "onnx" in row[1].lower() else [])
    for n, row in enumerate(commands())
]


@pytest.mark.filterwarnings("ignore:model '.*' is called")
@pytest.mark.parametrize(("ours", "does"), ROWS)
def test_a_command_of_the_guide_runs(
    ours: str,
    does: str,
    saved: Path,
    image_folder: Path,
    without_shape_checks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    here = tmp_path / "scripts"
    for name, paths in PLACES.items():
        for path in paths:
            (here / path).parent.resolve().mkdir(parents=True, exist_ok=True)
            (here / path).write_text((FILES / f"{name}.yaml").read_text())
    monkeypatch.chdir(here)
    (image_folder / "validation_preprocess").symlink_to(image_folder / "val")
    words = shlex.split(ours)
    _, verb, *rest = words[words.index("vitrail") :]
    known = app[verb].assemble_argument_collection()
    if lacking := {"--write-inputs", "--answers"} & {*rest} - {name for one in known for name in one.names}:
        pytest.skip(f"`vitrail {verb}` has no {lacking.pop()} yet")
    family = family_of(ours)
    named = rest[rest.index("--model") + 1] if "--model" in rest else "tnt_s_patch16_224" if family == "tnt" else ""

    def place(word: str) -> str:
        if (kind := WEIGHTS.get(word)) is not None:
            project, _, name = kind.partition(" ")
            name = name or named or "twins_svt_small"
            if project == "onnx":
                of_torch = str(save_weights(saved, "zoo", name))
                assert run(["export", of_torch, "--format", "onnx", "--output", word, *tiny("weights", family)]) == 0
                return word
            return str(save_weights(saved, project, name))
        if word.startswith(IMAGES):
            inner = "val" if word.endswith("/val") else "val/red/red_0.jpg" if word.endswith(".JPEG") else ""
            return str(image_folder / inner if inner or "/images/" not in word else image_folder / "val" / "red")
        return word

    if exported := "svt_s.onnx" in rest:
        (here / "configs/svt_s.yaml").write_text(yaml.safe_dump({**content("svt_s_params"), "image_size": 32}))
    rest = [place(word) for word in rest]
    if verb == "train" and "--help" not in rest:
        # what follows is put over what the command says
        rest += [
            *tiny("model", family), "model.image_size=32", "train.epochs=1", "train.batch_size=8", "train.device=cpu",
            "train.precision=float32", "train.accumulate=1", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0",
            "schedule.min_lr=0", "data.name=null", "data.download=false", f"data.root={image_folder}", "data.workers=0",
            "data.train_split=train", "data.val_split=val", "data.check=false", "output.root=runs",
        ]  # fmt: skip
        if "--pretrained" in rest:
            rest[rest.index("--pretrained") + 1] = str(save_weights(saved, "zoo", "t2t_vit_19"))
    elif verb != "train":
        rest += [] if exported else tiny("weights", family)
        if verb == "evaluate":
            rest += [f"data.root={image_folder}", "data.workers=0", "data.train_split=train", "data.val_split=val"]
    if "--answers" in rest:
        (here / "result_Files").mkdir()
        for image in image_folder.glob("val/*/*.jpg"):
            (here / f"result_Files/{image.stem}_0.bin").write_bytes(np.eye(3, dtype="<f4")[0].tobytes())
    status = run([verb, *rest])
    printed = capsys.readouterr()
    if does == "refused":
        assert status == 2
        assert "nothing is downloaded here" in printed.err
        return
    assert status == 0, printed.err
    files = {"train": "runs/*/best.safetensors", "evaluate": "evaluations/*/*.html", "predict": "predictions.json"}
    if "--write-inputs" in rest:
        files["predict"] = "inputs/input/*.bin"
    if "--help" not in rest and verb in files:
        assert list(here.glob(files[verb]))


# Runs


TINY: dict[str, Callable[[Path], str]] = {
    "tnt_s_gpu": lambda root: (
        f"--data_dir {root} --model tnt_s_patch16_224 --batch_size 8 --epoch_size 1 --warmup_epochs 0 "
        "--image_resize 32 model.options.embed_dim=24 model.options.inner_dim=8 model.options.depth=1 "
        "model.options.num_heads=2 model.options.inner_num_heads=2"
    ),
    "tnt_s_patch16_224": lambda root: (
        f"--data_url {root} --batch_size 8 --epochs 1 --warmup_length 0 --image_size 32 --device_target CPU "
        "--amp_level O0 model.options.embed_dim=24 model.options.inner_dim=8 model.options.depth=1 "
        "model.options.num_heads=2 model.options.inner_num_heads=2"
    ),
    "t2t_vit_19": lambda root: (
        f"--data_url {root} --val_dir val --batch_size 8 --epochs 1 --warmup_length 0 --image_size 32 "
        "model.options.embed_dim=16 model.options.depth=1 model.options.num_heads=2"
    ),
    "svt_s": lambda root: (
        f"--ds_train {root}/train --ds_val {root}/val --batch_size 8 --epochs 1 --warmup_length 0 --image_size 32 "
        "--model twins_svt_small --compat as_written model.options.embed_dims=[8,8] model.options.depths=[1,1] "
        "model.options.num_heads=[1,1] model.options.mlp_ratios=[1.0,1.0] model.options.sr_ratios=[2,1] "
        "model.options.patch_sizes=[4,2]"
    ),
    "flags": lambda root: (
        f"{root} --model tnt_s_patch16_224 --sched cosine --epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --opt adamw "
        "--lr 1e-3 -b 8 --img-size 32 model.options.embed_dim=24 model.options.inner_dim=8 model.options.depth=1 "
        "model.options.num_heads=2 model.options.inner_num_heads=2"
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_a_file_of_theirs_trains(
    name: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    file = [] if name == "flags" else ["--config", str(FILES / f"{name}.yaml")]
    ours = ["output.root=runs", "data.workers=0", "train.device=cpu", "train.log_every=1"]
    with pytest.raises(SystemExit) as caught:
        main(["train", *file, *TINY[name](image_folder).split(), *ours])
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    assert ": settings of " in printed.err
    (run,) = Path("runs").iterdir()
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["train"]["batch_size"] == 8
    assert (run / "best.safetensors").exists()
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--ckpt_path", str(run / "best.safetensors"), "--data_dir", str(image_folder), "-b", "4"])
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    assert "top-1" in printed.out


def test_their_flag_for_weights_begins_with_them(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--config", str(FILES / "tnt_s_gpu.yaml"), *TINY["tnt_s_gpu"](image_folder).split()]
    ours = ["output.root=runs", "data.workers=0", "train.device=cpu", "optim.lr=1e-9", "schedule.min_lr=0"]
    weights = "runs/first/best.safetensors"
    for more in (["output.name=first"], ["--ckpt_path", weights, "output.name=second"]):
        with pytest.raises(SystemExit) as caught:
            main([*words, *ours, *more])
        assert caught.value.code == 0, capsys.readouterr().err
    stored = yaml.safe_load(Path("runs/second/config.yaml").read_text())["model"]
    assert (stored["weights"], stored["options"]["gelu"]) == (weights, "tanh")
    first, second = (json.loads(Path(f"runs/{name}/metrics.jsonl").read_text()) for name in ("first", "second"))
    assert second["val_loss"] == pytest.approx(first["val_loss"], abs=1e-4)


def test_config_shows_the_translation_key_by_key(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", str(FILES / "tnt_s_gpu.yaml"), "--batch_size", "16", "optim.lr=1e-4"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert "MindCV, as_executed" in printed
    assert ["batch_size", "16", "train.batch_size", "16", "theirs", "counts"] in [line[:6] for line in lines]
    assert ["preprocess.interpolation", "bicubic"] in lines
    assert ["(seed)", "42", "train.seed", "42"] in lines
    assert ["optim.lr", "0.0001", "command", "line"] in lines
    assert ["schedule.cosine_epochs", "100.0", "tnt_s_gpu"] in lines


def test_a_translated_run_is_resumed_by_its_folder_alone(tmp_path: Path) -> None:
    from vitrail.config.sections import to_yaml

    start = begin(str(FILES / "svt_s.yaml"), [f"output.root={tmp_path}", "output.name=a"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(to_yaml(start.config))
    assert begin(None, [], resume=tmp_path / "a").config == start.config
    assert begin(str(FILES / "svt_s.yaml"), [], resume=tmp_path / "a").config == start.config


def test_what_is_about_training_alone_is_not_said_elsewhere() -> None:
    for name, flags, key in (
        ("t2t_vit_19", {"device_num": 8}, "device_num"),
        ("tnt_s_gpu", {"distribute": True}, "torchrun"),
        ("tnt_s_patch16_224", {"lr": 0.01}, "lr=0.01"),
        ("tnt_s_gpu", {"train_split": "val"}, "train_split"),
        ("t2t_vit_19", {"exclude_epoch_state": False, "pretrained": "a.ckpt"}, "exclude_epoch_state"),
    ):
        translation = translate(content(name), name, flags)
        assert key in " ".join(text for _, text in translation.remarks()), name
        for sections in (("weights", "data", "preprocess", "evaluate"), ("weights", "preprocess")):
            assert key not in " ".join(text for _, text in translation.remarks(sections)), name
