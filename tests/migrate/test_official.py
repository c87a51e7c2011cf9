"""The flags of the official PyTorch programs, and the recipes that their commands are."""

from __future__ import annotations

import re
from typing import Any

import pytest

from support.foreign import changed
from vitrail.cli.app import understood
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import flatten, resolve
from vitrail.errors import ConfigError
from vitrail.migrate import official
from vitrail.migrate.translate import translate
from vitrail.training.start import begin

OFFICIAL = (
    "/path/to/imagenet/ --model tnt_s_patch16_224 --sched cosine --epochs 300 --opt adamw -j 8 --warmup-lr 1e-6 "
    "--mixup .8 --cutmix 1.0 --model-ema --model-ema-decay 0.99996 --aa rand-m9-mstd0.5-inc1 --color-jitter 0.4 "
    "--warmup-epochs 5 --opt-eps 1e-8 --repeated-aug --remode pixel --reprob 0.25 --amp --lr 1e-3 --weight-decay .05 "
    "--drop 0 --drop-path .1 -b 128 --output /path/to/save/models/"
)


def test_the_official_command_is_our_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    (_, place, *rest), _ = understood(["train", *OFFICIAL.split()])
    theirs, ours = flatten(begin(place, rest).config), flatten(begin("tnt_s_imagenet", []).config)
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
    theirs, ours = (flatten(begin(*args).config) for args in ((*place, keys) if place else (None, keys), (recipe, [])))
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
    assert official.find_program(flags) is project


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
    found = flatten(resolve(TrainConfig, [translate({}, "flags", {**flags, "data": "/d"}).layer]).config)
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
