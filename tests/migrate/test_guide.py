"""The commands of docs/migrating.md, and runs from files of other projects."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from support.foreign import FILES, content
from vitrail.cli.app import app, main
from vitrail.training.start import begin

GUIDE = Path(__file__).parents[2] / "docs" / "migrating.md"


def commands() -> list[tuple[str, str, str]]:
    """Return theirs, ours and what it does, of each line of the guide's table that has one of ours."""
    table = GUIDE.read_text().split("<!-- commands -->\n")[1].split("<!-- end -->")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return [(row[0].strip("`"), row[1].strip("`"), row[2]) for row in rows if row[1].startswith("`")]


def test_the_guide_has_every_command_of_the_readmes() -> None:
    assert len(commands()) == 52
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
    return "twins" if re.search("twins|svt|gvt|optimize", name) else "tnt"


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
    pytest.param(
        row[1],
        id=f"{n}-{row[1][:60]}",
        marks=[pytest.mark.thorough] if re.search("onnx|vitrail tune", row[1].lower()) else [],
    )
    for n, row in enumerate(commands())
]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:model '.*' is called")
@pytest.mark.parametrize("ours", ROWS)
def test_a_command_of_the_guide_runs(
    ours: str,
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
    if verb == "tune":
        space = {"parameters": {"base_lr": {"bounds": [1e-5, 1e-3], "kind": "log"}}}
        (here / "configs/optimize.yaml").write_text(yaml.safe_dump({**content("svt_s_params"), **space}))
        rest[rest.index("--iters") + 1] = "2"
        rest += ["--seeds", "0"]
    rest = [place(word) for word in rest]
    if rest[-1] == "--pretrained":  # MindCV's published weights, as if they had been fetched
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        cache = tmp_path / "torch" / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        published = save_weights(saved, "mindcv", "tnt_s_patch16_224")
        shutil.copy(published, cache / "tnt_s_patch16_224_ep138_acc_0.74.ckpt")
    if verb in ("train", "tune") and "--help" not in rest:
        # what follows is put over what the command says
        rest += [
            *tiny("model", family), "model.image_size=32", "train.epochs=1", "train.batch_size=8", "train.device=cpu",
            "train.precision=float32", "train.accumulate=1", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0",
            "schedule.min_lr=0", "data.name=null", "data.download=false", f"data.root={image_folder}", "data.workers=0",
            "data.train_split=train", "data.val_split=val", "data.check=false", "output.root=runs",
        ]  # fmt: skip
        if "--pretrained" in rest:
            rest[rest.index("--pretrained") + 1] = str(save_weights(saved, "zoo", "t2t_vit_19"))
    elif verb not in ("train", "tune"):
        rest += [] if exported else tiny("weights", family)
        if verb == "evaluate":
            rest += [f"data.root={image_folder}", "data.workers=0", "data.train_split=train", "data.val_split=val"]
    if "--answers" in rest:
        (here / "result_Files").mkdir()
        for image in image_folder.glob("val/*/*.jpg"):
            (here / f"result_Files/{image.stem}_0.bin").write_bytes(np.eye(3, dtype="<f4")[0].tobytes())
    status = run([verb, *rest])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    files = {
        "tune": "runs/tune-optimize/best.yaml",
        "train": "runs/*/best.safetensors",
        "evaluate": "evaluations/*/*.html",
        "predict": "predictions.json",
    }
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
    from vitrail.config.resolve import to_yaml

    start = begin(str(FILES / "svt_s.yaml"), [f"output.root={tmp_path}", "output.name=a"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(to_yaml(start.config))
    assert begin(None, [], resume=tmp_path / "a").config == start.config
    assert begin(str(FILES / "svt_s.yaml"), [], resume=tmp_path / "a").config == start.config
