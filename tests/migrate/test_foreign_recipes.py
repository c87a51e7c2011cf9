"""Recipes of ours and files of other projects, opened alike; what a file says of the model that weights are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.foreign import FILES, written
from vitrail.api.evaluation import EVALUATE_SECTIONS
from vitrail.cli.app import main
from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import parse_command_line, resolve
from vitrail.errors import CheckpointError, ConfigError
from vitrail.migrate.recipes import open_recipe, read_part, split_keys
from vitrail.training.start import begin


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
        open_recipe(recipe, keys)


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


def wanted_with(config: Path | str, *tokens: str) -> Any:
    from vitrail.weights.request import resolve_request

    part = read_part(str(config), {}, EVALUATE_SECTIONS)
    assert part is not None
    return resolve_request([part.layer, parse_command_line(tokens)])


@pytest.mark.thorough
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
    from vitrail.inference.network import read_artifact

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
