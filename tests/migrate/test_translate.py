"""Translate files of other projects: every key has its place, and a run does what their program does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.foreign import PROJECT_OF, changed, content, remarks, translated
from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import find_recipe, list_recipes
from vitrail.config.resolve import Layer, flatten, read_yaml, resolve
from vitrail.errors import ConfigError
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.migrate import official
from vitrail.migrate.model_zoo import T2T, ZOO_TNT
from vitrail.migrate.recipes import is_foreign
from vitrail.migrate.rules import NO_DEFAULT
from vitrail.migrate.translate import PROJECTS, translate

WITHOUT_EFFECT = {"nonlinearity": "GELU", "exclude_epoch_state": True, "dump_graph": False, "collect_input_data": False}


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
    known = set(flatten(resolve(TrainConfig, [Layer("", {"data": {"root": "x"}})]).config))
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
        ("tnt_s_gpu", {"pretrained": "maybe"}, "pretrained is maybe; it must be true or false"),
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
    assert flatten(translated(name, **flags))[setting] == expected


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
    found = flatten(translated(name, **flags))
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
