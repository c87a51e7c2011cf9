"""Files and flags of other projects become our settings, or are refused with the reason."""

from __future__ import annotations

import re
from typing import Any

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
        "read as settings of MindCV: mine: epoch_sise: unknown key; did you mean 'epoch_size'?; command line: "
        "batch-sise: unknown key; did you mean 'batch_size'?; mine: shuffle is false; here it can only be true: "
        "training images are always shuffled; mine: loss is BCE; here it can only be CE: training minimises "
        "cross-entropy; mine: warmup_factor is 0.00014; lr is fast; it must be a number"
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
            "a space to search; search it by `vitrail tune` with this file",
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
