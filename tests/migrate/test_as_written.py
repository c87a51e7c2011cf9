"""Where other projects' programs do not do what their files say: as executed, as written, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.foreign import changed, content, remarks, translated
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import flatten, resolve
from vitrail.errors import ConfigError
from vitrail.migrate.recipes import is_foreign
from vitrail.migrate.translate import translate

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
