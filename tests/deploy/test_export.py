"""`vitrail export`: the files it writes, their verdicts, what it refuses, and the check in MindSpore."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import torch

from support.forked import SERVER
from support.random_weights import randomised
from vitrail.choices import ExportFormat
from vitrail.cli.app import main
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import Exported, export, find_outputs, publish, staged_files
from vitrail.deploy.mindir import CHECK_SCRIPT
from vitrail.errors import ConfigError
from vitrail.images.preprocess import Preprocess
from vitrail.inference.exported import Making, with_making
from vitrail.inference.network import open_artifact
from vitrail.inference.verify import verify
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import KEY, Record, model_options, save_model, to_metadata
from vitrail.weights.loading import load_model, open_model

pytestmark = pytest.mark.usefixtures("without_shape_checks")

MINDSPORE = os.environ.get("VITRAIL_MINDSPORE_PYTHON") or (
    sys.executable if importlib.util.find_spec("mindspore") else None
)


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["export", *map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def export_one(checkpoint: Path, format: ExportFormat, output: Path | None = None, **options: Any) -> Exported:
    """Export to one format, with pictures that are drawn."""
    opened = open_model(checkpoint)
    outputs = find_outputs([format], checkpoint, output)
    (done,) = export(opened, outputs, gather_sample(opened.record, None), **options)
    return done


def save(
    path: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    preprocess: Preprocess | None = None,
    thresholds: tuple[float, ...] | None = None,
    **overrides: Any,
) -> Path:
    """Write the weights of a tiny model."""
    model = randomised(create_model(name, **{**find_variant(name)[0].tiny, **overrides})).to(dtype)
    record = Record(
        model=name,
        options=model_options(model),
        classes=tuple(map(str, range(model.config.num_classes))),
        preprocess=preprocess or Preprocess(size=model.config.size),
        thresholds=thresholds,
    )
    save_model(path, model.state_dict(), record)
    return path


def _openvino_pair(weights: bytes, record: Record) -> dict[str, list[bytes]]:
    """Return the two files of an OpenVINO model without layers, which say what belongs to them."""
    details = {"bin": hashlib.sha256(weights).hexdigest(), "opset": "20", "openvino": "0", "vitrail": "0", "torch": "0"}
    making = Making(format="openvino", source="x.safetensors", sha256="0" * 64, details=details)
    texts = to_metadata(with_making(record, making))
    entries = "".join(f"<{name} value={quoteattr(text)}/>" for name, text in texts.items())
    return {".bin": [weights], ".xml": [f"<net><rt_info>{entries}</rt_info></net>".encode()]}


def _export_and_die(path: Path, files: dict[str, list[bytes]], renames: int) -> None:
    def audit(event: str, rest: tuple[Any, ...]) -> None:
        nonlocal renames
        if event == "os.rename":
            if renames == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            renames -= 1

    sys.addaudithook(audit)
    with staged_files(path, files) as staged:
        publish(staged, path)


@pytest.mark.thorough
def test_files_that_a_kill_left_together_are_known_not_to_belong_together(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    record = open_model(tiny_checkpoint).record
    path = tmp_path / "net.xml"
    old, new = (_openvino_pair(weights, record) for weights in (b"old weights", b"new weights"))
    for renames, outcome in ((0, "as written"), (1, "refused")):
        with staged_files(path, old) as staged:
            publish(staged, path)
        assert verify(path).verdict == "as written", verify(path).by
        process = SERVER.Process(target=_export_and_die, args=(path, new, renames))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert verify(path).verdict == outcome, verify(path).by
    assert verify(path).by == (
        "net.bin beside it is damaged, or belongs to another file; copy both files, or export again"
    )
    with staged_files(path, new) as staged:
        publish(staged, path)
    assert verify(path).verdict == "as written"
    assert {one.name for one in tmp_path.iterdir() if "net" in one.name} == {"net.bin", "net.xml"}


@pytest.mark.thorough
@pytest.mark.parametrize("outputs", [0, 1])
def test_what_follows_a_model_without_classes_can_be_done(
    outputs: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = save(tmp_path / "a.safetensors", "twins_svt_small", num_classes=outputs)
    only = [f"weights.options.num_classes={outputs}"] * (outputs == 1)  # else it becomes two by its sigmoid
    assert run(whole, *only, "--format", "torchscript") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.partition("vitrail ")[2])
    assert words == ["bench", str(tmp_path / "a.torchscript")]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--threads", "1"])
    assert caught.value.code == 0


def test_model_check_and_logits_are_written_and_named(tiny_checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tiny_checkpoint.parent
    assert run(tiny_checkpoint, "--format", "mindir", "--batch-size", 3) == 0
    printed = capsys.readouterr()
    assert sorted(path.name for path in folder.iterdir()) == [
        "tiny.check.npz",
        "tiny.check.py",
        "tiny.mindir",
        "tiny.safetensors",
    ]
    assert re.search(r"/tiny\.mindir: 0\.\d MiB, written in \d+ s\n", printed.err)
    assert printed.out.endswith(f"next: python {folder}/tiny.check.py  # where MindSpore is\n")
    stored = np.load(folder / "tiny.check.npz")
    with torch.no_grad():
        logits = load_model(tiny_checkpoint)(torch.from_numpy(stored["images"]))
    assert np.array_equal(stored["logits"], logits.numpy())
    assert KEY.encode() in (folder / "tiny.mindir").read_bytes(), "classes and preprocessing are in the file"


def test_output_and_version_are_as_asked_and_the_same_each_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        done = export_one(tiny_checkpoint, "mindir", tmp_path / folder / "net.v3.mindir", mindir_version=3)
        assert done.script == tmp_path / folder / "net.v3.check.py"
        written.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert len(written[0]) == 3
    assert {name for name in written[0] if written[0][name] != written[1][name]} <= {"net.v3.check.npz"}  # has a time
    assert b"REF::MatMul" in written[0]["net.v3.mindir"]


def test_weights_of_half_precision_are_widened(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "half.safetensors", "tnt_ti_patch16_224", torch.bfloat16, depth=1)
    done = export_one(checkpoint, "mindir")
    assert done.script is not None
    stored = np.load(done.script.with_suffix(".npz"))
    with torch.no_grad():
        logits = load_model(checkpoint).float()(torch.from_numpy(stored["images"]))
    assert np.array_equal(stored["logits"], logits.numpy())


def test_the_weights_are_never_replaced_by_what_is_made_of_them(tmp_path: Path) -> None:
    for name, form in (("pytorch_model.bin", "openvino"), ("net.onnx", "onnx"), ("net.check.npz", "mindir")):
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(ConfigError, match=f"output=.*{name}: is read, and would be replaced; choose another"):
            find_outputs([form], tmp_path / name, tmp_path / "net.mindir" if form == "mindir" else None)
    assert find_outputs(["onnx"], tmp_path / "pytorch_model.bin", None) == {"onnx": tmp_path / "pytorch_model.onnx"}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--format", "onnxx"], 'Invalid value "onnxx" for --format. Choose from: "onnx", "openvino", "pt2", '),
        ([], "error: vitrail export needs --format, one of onnx, openvino, "),
        (["--format", "mindir", "--mindir-version", "2"], 'Invalid value "2" for --mindir-version. Choose from: 1, 3'),
        (["--format", "mindir", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--format", "mindir", "--batch-size", "1.5"], "--batch-size is '1.5'; it must be a whole number"),
        (["--format", "mindir", "--output", "net.onnx"], "--output net.onnx: must end in .mindir"),
        (["--format", "mindir", "--output", "gone/net.mindir"], "there is no folder gone; create or choose another"),
        (["--format", "mindir", "--output", "folder.mindir"], "folder.mindir: cannot be written (is a folder); choose"),
        (
            ["--format", "pt2", "--format", "mindir", "--output", "x"],
            "--output x: must be a folder that is there, as 2",
        ),
        (["--format", "mindir", "--precision", "float16"], "mindir cannot be had so; onnx and openvino and pt2 and"),
        (["--format", "pt2", "--with-preprocess"], "--with-preprocess is for --format onnx; other runtimes scale"),
        (["--format", "onnx", "--with-preprocess", "--batch-size", "2"], "a file takes one image, of any size; leave"),
        (["--format", "torchscript", "--topk", "3"], "--topk 3: goes with --with-preprocess; without it a file yields"),
        (
            ["--format", "onnx", "--with-preprocess", "--topk", "0"],
            "--topk is 0; it must be 1 to 3, the model's classes",
        ),
        (["--format", "onnx", "--mindir-version", "3"], "--mindir-version 3: goes with --format mindir"),
        (["--format", "torchscript", "--images", "gone"], "gone: no such file or folder"),
        (["--format", "torchscript", "--images", "empty"], "empty: holds no image"),
        (["--format", "torchscript", "--images", "broken"], "--images: broken/a.jpg cannot be read ("),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tokens: list[str],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder.mindir", "empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    assert run(tiny_checkpoint, *tokens) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "gone.safetensors", "--format", "mindir") == 2
    assert "gone.safetensors: is missing, not a weight file" in capsys.readouterr().err


def test_full_disk_leaves_the_old_file_and_no_half_one(
    tiny_checkpoint: Path, largest_file: Callable[[int], AbstractContextManager[None]], capsys: pytest.CaptureFixture
) -> None:
    old = tiny_checkpoint.with_suffix(".mindir")
    old.write_bytes(b"old")
    with largest_file(20_000):
        assert run(tiny_checkpoint, "--format", "mindir") == 2
    assert capsys.readouterr().err == (
        f"error: {old}: cannot be written (File too large); the file of that name is as it was; "
        "free space or choose another --output\n"
    )
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in old.parent.iterdir()) == ["tiny.mindir", "tiny.safetensors"]


def test_a_file_that_answers_otherwise_is_kept_as_rejected(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    """Weights beyond what float16 holds."""
    opened, old = open_model(tiny_checkpoint), tiny_checkpoint.with_suffix(".torchscript")
    weights = {name: 1e8 * tensor if name == "head.weight" else tensor for name, tensor in opened.weights.items()}
    save_model(tiny_checkpoint, weights, opened.record)
    old.write_bytes(b"old")
    assert run(tiny_checkpoint, "--format", "torchscript", "--precision", "float16") == 2
    printed = capsys.readouterr()
    assert f"error: {old}.rejected: answers otherwise than PyTorch, by more than is allowed" in printed.err
    assert re.search("nan|inf", printed.out)
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in old.parent.iterdir()) == [
        "tiny.safetensors",
        "tiny.torchscript",
        "tiny.torchscript.rejected",
    ]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_torchscript_answers_in_its_precision(tiny_checkpoint: Path, precision: Any) -> None:
    done = export_one(tiny_checkpoint, "torchscript", precision=precision, batch_size=None)
    assert done.is_good
    assert done.verdict is not None
    assert 1e-6 < done.verdict.difference < 0.05
    network = open_artifact(done.path)
    assert network.precision == precision
    assert network(torch.zeros(3, 3, 32, 32)).dtype == torch.float32


def test_a_file_of_a_fixed_batch_answers_any_number(tiny_checkpoint: Path) -> None:
    network = open_artifact(export_one(tiny_checkpoint, "torchscript", batch_size=4).path)
    images = torch.randn(6, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(network(images), load_model(tiny_checkpoint)(images), atol=1e-5)


@pytest.mark.thorough
def test_compiled_file_answers_as_pytorch_does(tiny_checkpoint: Path) -> None:
    done = export_one(tiny_checkpoint, "pt2")
    assert done.is_good
    network = open_artifact(done.path)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = load_model(tiny_checkpoint)(images)
    assert torch.allclose(network(images), expected, atol=1e-5)
    assert network.record.classes == ("blue", "green", "red")


# ---- the check ----


def checked(python: str, check: Path, **environment: str) -> tuple[int, str]:
    """Run a check as a user does; return its status and what it prints."""
    done = subprocess.run(
        [python, check.name],
        cwd=check.parent,  # MindSpore leaves folders where it is run
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        ("5e-5", 0, "MindSpore 0: logits differ by at most 5e-05; good\n"),
        ("2e-4", 1, "MindSpore 0: logits differ by at most 0.0002; above 1e-4\n"),
        ("float('nan')", 1, "MindSpore 0: logits differ by at most nan; above 1e-4\n"),
    ],
)
def test_check_fails_for_other_logits(error: str, status: int, text: str, tmp_path: Path) -> None:
    """With a stand-in for MindSpore that returns known logits."""
    (tmp_path / "net.mindir").touch()
    (tmp_path / "net.check.py").write_text(CHECK_SCRIPT)
    np.savez(tmp_path / "net.check.npz", images=np.zeros((1, 3, 2, 2), np.float32), logits=np.zeros((1, 2)))
    (tmp_path / "mindspore.py").write_text(
        f"""
import types, numpy, pathlib
__version__, GRAPH_MODE = "0", 0
def set_context(mode): pass
def load(name): assert pathlib.Path(name).name == "net.mindir" and pathlib.Path(name).exists()
def Tensor(images): assert images.shape == (1, 3, 2, 2)
logits = types.SimpleNamespace(asnumpy=lambda: numpy.array([[0, {error}]]))
nn = types.SimpleNamespace(GraphCell=lambda network: lambda images: logits)
"""
    )
    assert checked(sys.executable, tmp_path / "net.check.py") == (status, text)


def test_the_check_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "net.check.py").write_text(CHECK_SCRIPT)
    (tmp_path / "mindspore.py").write_text("raise ModuleNotFoundError('No module', name='mindspore')")
    program = [sys.executable, str(tmp_path / "net.check.py")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "mindspore is not installed; run: pip install mindspore==2.10.0 'numpy<2'\n",
    )


def test_the_check_names_a_file_that_it_was_not_written_with(tmp_path: Path) -> None:
    (tmp_path / "net.mindir").write_bytes(b"another")
    (tmp_path / "net.check.py").write_text(CHECK_SCRIPT)
    np.savez(tmp_path / "net.check.npz", images=[0], logits=[0], sha256="0" * 64)
    (tmp_path / "mindspore.py").touch()
    program = [sys.executable, str(tmp_path / "net.check.py")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [f"{tmp_path}/net.mindir is not the file that was written with net.check.npz; copy or export all three again"],
    )


@pytest.mark.skipif(
    MINDSPORE is None,
    reason="needs MindSpore: pip install mindspore==2.10.0 'numpy<2' in an environment of its own, and give the path "
    "of its python in VITRAIL_MINDSPORE_PYTHON",
)
@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("tnt_s_patch16_224", {"image_size": (32, 48)}),
        ("tnt_s_legacy_patch16_224", {"gelu": "tanh"}),
        ("t2t_vit_7", {"gelu": "tanh"}),
        ("t2t_vit_t_14", {"image_size": (48, 32)}),
        ("twins_svt_small", {"image_size": (72, 104)}),
        ("twins_pcpvt_small", {"image_size": (75, 97), "gelu": "tanh"}),
    ],
    ids=["tnt", "tnt legacy", "t2t performer", "t2t transformer", "svt", "pcpvt"],
)
def test_mindspore_computes_the_same_logits(
    name: str, overrides: dict[str, Any], version: Literal[1, 3], tmp_path: Path
) -> None:
    checkpoint = save(tmp_path / "best.safetensors", name, **overrides)
    done = export_one(checkpoint, "mindir", batch_size=2, mindir_version=version)
    assert MINDSPORE is not None
    assert done.script is not None
    status, text = checked(MINDSPORE, done.script, GLOG_v="3")
    assert status == 0, text
    found = re.search(r"by at most ([\d.e-]+); good", text)
    assert found, text
    assert float(found[1]) <= 1e-5


GRAY = Preprocess(size=(32, 32), channels=1, mean=(0.4,), std=(0.3,))


@pytest.mark.thorough
def test_gray_images_and_several_classes_are_handled_within_the_file_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = {"preprocess": GRAY, "in_channels": 1, "num_classes": 3, "thresholds": (0.5, 0.4, 0.3)}
    checkpoint = save(tmp_path / "gray.safetensors", "tnt_ti_patch16_224", **options)
    done = export_one(checkpoint, "onnx", with_preprocess=True)
    assert done.verdict is not None
    assert done.verdict.is_good


def test_sixteen_bits_are_not_prepared_within_a_file(tmp_path: Path) -> None:
    deep = replace(GRAY, bits=16)
    checkpoint = save(tmp_path / "deep.safetensors", "tnt_ti_patch16_224", preprocess=deep, in_channels=1)
    with pytest.raises(ConfigError) as caught:
        export_one(checkpoint, "onnx", with_preprocess=True)
    assert str(caught.value) == "with_preprocess takes images of 8 bits, and this model reads 16; leave it out"
