"""Flags of other projects, rewritten into what our command line reads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from support.foreign import FILES, written
from vitrail.cli.app import understood
from vitrail.errors import ConfigError
from vitrail.migrate.flags import translate_flags


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
    ("typed", "checkpoint"),
    [
        ("evaluate -c f.yaml --pretrained", "pretrained:mindcv"),
        ("evaluate /data --model tnt_s_patch16_224 --pretrained", "pretrained"),
        ("evaluate /data --pretrained --pretrain_path w.pth", "w.pth"),
        ("evaluate /data --pretrain_path w.pth --pretrained", "w.pth"),
        ("predict --pretrained true --arch t2t_vit_14 seven.png", "pretrained"),
    ],
)
def test_the_flag_pretrained_means_published_weights(typed: str, checkpoint: str) -> None:
    assert translate_flags(typed.split(), {})[0][1] == checkpoint


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train --data_dri /d", "--data_dri: unknown option; did you mean '--data_dir'?"),
        ("evaluate -c f.yaml --ckpt_path", "--ckpt_path: names no file; write --ckpt_path FILE"),
        (
            "export --checkpoint w --file_format AIR",
            "--file_format says AIR, which Ascend 910 alone can write; it can",
        ),
    ],
)
def test_a_flag_that_cannot_be_had_is_refused(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        understood(typed.split())
