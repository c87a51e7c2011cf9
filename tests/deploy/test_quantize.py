"""8 bits behind a gate: what is in 8 bits and what is not, what passes, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support.random_weights import randomised
from vitrail.cli.app import main
from vitrail.config.resolve import parse_command_line
from vitrail.deploy.int8 import find_quantizable, measure_sensitivities
from vitrail.deploy.quantize import find_drawbacks, quantize
from vitrail.deploy.quantized import Quantized, Speed
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, MissingExtra
from vitrail.evaluation.evaluate import evaluate
from vitrail.images.preprocess import Preprocess
from vitrail.inference.engines import openvino_capabilities
from vitrail.inference.network import open_artifact
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import Record, model_options, save_model

onnx = pytest.importorskip("onnx", reason="needs vitrail[onnx]")
pytest.importorskip("onnxruntime", reason="needs vitrail[onnx]")
NEEDS_NNCF = pytest.mark.skipif(
    find_spec("openvino") is None or find_spec("nncf") is None, reason="needs vitrail[openvino,int8]"
)
pytestmark = pytest.mark.usefixtures("without_shape_checks")

CLASSES = ("blue", "green", "red")


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(token) for token in tokens])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def save(path: Path, change: Callable[[nn.Module], None] = lambda _: None, name: str = "tnt_ti_patch16_224") -> Path:
    """Write a tiny model whose features are random, and whose head was fitted to the colours of `image_folder`."""
    torch.manual_seed(0)
    model = randomised(create_model(name, **{**find_variant(name)[0].tiny, "num_classes": 3}))
    change(model)
    preprocess = Preprocess(size=model.config.size)
    generator = np.random.default_rng(1)
    colours = np.repeat([(40, 60, 200), (40, 190, 60), (200, 50, 40)], 20, axis=0)[:, None, None]
    pixels = np.clip(colours + generator.integers(-30, 31, (60, 40, 40, 3)), 0, 255).astype(np.uint8)
    views = torch.stack([preprocess(torch.from_numpy(image).permute(2, 0, 1)) for image in pixels])
    with torch.no_grad():
        features = model.forward_features(views)
        features = model.forward_head(features, pre_logits=True)
        targets = 4 * torch.eye(3).repeat_interleave(20, 0) - 2
        ones = torch.ones(len(features), 1)
        fitted = torch.linalg.lstsq(torch.cat([features, ones], 1), targets, driver="gelsd").solution
        model.head.weight.copy_(fitted[:-1].T)
        model.head.bias.copy_(fitted[-1])
    record = Record(model=name, options=model_options(model), classes=CLASSES, preprocess=preprocess)
    save_model(path, model.state_dict(), record)
    return path


def magnify(*norms: str) -> Callable[[nn.Module], None]:
    """Let one channel of what leaves norms be 10,000 times as large, and the layers behind them take that back."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            for norm in norms:
                for name, module in model.named_modules():
                    place, _, kind = name.rpartition(".")
                    if kind == norm:
                        module.get_parameter("weight")[0] *= 1e4
                        module.get_parameter("bias")[0] *= 1e4
                        for behind in BEHIND[norm]:
                            model.get_submodule(f"{place}.{behind}").get_parameter("weight")[:, 0] /= 1e4

    return change


BEHIND = {
    "inner_norm1": ("inner_attn.qk", "inner_attn.v"),
    "inner_norm2": ("inner_mlp.fc1",),
    "outer_norm1": ("outer_attn.qk", "outer_attn.v"),
    "outer_norm2": ("outer_mlp.fc1",),
}


def made(checkpoint: Path, images: Path, format: str = "onnx", **options: object) -> Quantized:
    return quantize(checkpoint, format, [parse_command_line([f"data.root={images}"])], rounds=1, **options)  # type: ignore[arg-type]


@pytest.mark.thorough
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=NEEDS_NNCF)])
def test_a_file_in_8_bits_is_smaller_and_says_what_it_is(tmp_path: Path, image_folder: Path, format: str) -> None:
    checkpoint = save(tmp_path / "best.safetensors")
    done = made(checkpoint, image_folder, format)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    assert done.path == tmp_path / f"best.int8{suffix}"
    assert (done.exact, done.images, done.measured_by) == (100, 12, "top-1")
    assert done.calibrated_on.startswith("calibrated on 24 of the 24 images of")
    (trial,) = done.trials
    assert (trial.kept, trial.drop) == ((), 0)
    half = ["bfloat16 openvino"] if format == "openvino" and "BF16" in openvino_capabilities() else []
    assert [one.what for one in done.speeds] == ["best.safetensors", f"float32 {format}", *half, done.path.name]
    assert all(one.measure == 100 and one.ms[1] > 0 and one.ms[8] > 0 for one in done.speeds)
    assert done.speeds[-1].bytes == trial.bytes < 0.8 * done.speeds[1].bytes
    network = open_artifact(done.path)
    assert ", int8 and float32, " in network.about
    assert network.record.provenance["exported"]["details"]["int8"] == f"25 of 25 layers, {done.calibrated_on}"
    preprocess = network.record.preprocess
    images = torch.stack([preprocess(path) for path in sorted((image_folder / "val").rglob("*.jpg"))])
    together, alone = network(images), torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    exact = open_artifact(checkpoint)(images)
    assert 0 < (together - exact).abs().max() < 0.2 * exact.abs().max()
    again = evaluate(done.path, [parse_command_line([f"data.root={image_folder}"])], against=checkpoint)
    assert again.accuracy.numbers()["top1"] == 100
    stored = json.loads(done.numbers.read_text())
    assert done.numbers == tmp_path / f"best.int8{suffix}.json"
    assert list(stored["sensitivities"].values()) == sorted(stored["sensitivities"].values(), reverse=True)
    assert sorted(path.name for path in tmp_path.iterdir() if "int8" in path.name) == sorted(
        {done.path.name, done.numbers.name, *(["best.int8.bin"] if format == "openvino" else [])}
    )


@pytest.mark.thorough
def test_the_layers_that_suffer_stay_in_float_and_no_others(tmp_path: Path, image_folder: Path) -> None:
    checkpoint = save(tmp_path / "best.safetensors", magnify("outer_norm2"))
    done = made(checkpoint, image_folder, max_drop=5)
    suffering = {name for name in done.sensitivities if name.endswith("outer_mlp.fc1")}
    assert set(list(done.sensitivities)[: len(suffering)]) == suffering
    assert set(done.trials[-1].kept) <= suffering
    assert [len(trial.kept) for trial in done.trials] == [0, 1, 2, 4][: len(done.trials)]
    assert [trial.drop <= 5 for trial in done.trials] == [*[False] * (len(done.trials) - 1), True]
    assert len(done.trials) > 1


@pytest.mark.thorough
def test_a_model_that_suffers_everywhere_is_rejected(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.deploy.quantize.MOST_KEPT", 0.1)
    checkpoint = save(tmp_path / "best.safetensors", magnify(*BEHIND))
    assert run("quantize", checkpoint, "--format", "onnx", f"data.root={image_folder}", "--rounds", 1) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert lines[0].startswith(f"error: {tmp_path}/best.int8.onnx.rejected: loses ")
    assert "points of top-1 with 2 of 25 layers in float, and 1 are allowed; use float, or allow more" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir() if "int8" in path.name) == [
        "best.int8.onnx.rejected",
        "best.int8.onnx.rejected.json",
    ]
    assert "layers in float" in printed.out
    assert "next:" not in printed.out


@pytest.mark.thorough
def test_only_layers_are_in_8_bits_and_none_of_a_performer(tmp_path: Path, image_folder: Path) -> None:
    checkpoint = save(tmp_path / "best.safetensors", name="t2t_vit_7")
    model = create_model("t2t_vit_7", **find_variant("t2t_vit_7")[0].tiny)
    layers = set(find_quantizable(model))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name in linear - layers} == {name for name in linear if "attention" in name}
    done = made(checkpoint, image_folder, max_drop=100)
    nodes = onnx.load(done.path).graph.node
    rounded = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    fed = {node.name: node.op_type for node in nodes if rounded & set(node.input)}
    assert set(fed) == layers
    assert set(fed.values()) <= {"MatMul", "Gemm"}


def test_a_layer_is_more_sensitive_the_more_its_inputs_differ() -> None:
    name = "tnt_ti_patch16_224"
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for change in (lambda _: None, magnify("outer_norm2")):
        torch.manual_seed(0)
        model = randomised(create_model(name, **find_variant(name)[0].tiny))
        change(model)
        before = model(images)
        found.append(measure_sensitivities(model, find_quantizable(model), images, lambda: None))
        assert torch.equal(model(images), before), "the model is as it was"
    plain, magnified = found
    assert all(0 < moved < 0.5 for moved in plain.values())
    for layer, moved in plain.items():
        if layer.endswith("outer_mlp.fc1"):
            assert magnified[layer] > 10 * moved
        else:
            assert magnified[layer] == pytest.approx(moved, rel=0.05)


@NEEDS_NNCF
@pytest.mark.thorough
def test_nobody_is_told_of_it(tmp_path: Path) -> None:
    code = """
import openvino, torch, sys
from openvino import opset13 as ops
from vitrail.deploy.int8 import Int8, quantize_openvino
images = ops.parameter([-1, 8], name="images")
product = ops.matmul(images, ops.constant(torch.randn(8, 8).numpy()), False, False)
product.set_friendly_name("layer")
quantize_openvino(openvino.Model([product], [images]), Int8(["layer"], torch.randn(8, 8)))
from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry
print(isinstance(telemetry, NNCFTelemetryStub), "pytest" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_what_is_slower_than_float_is_said_to_be() -> None:
    def speed(what: str, measured: float, ms: float) -> Speed:
        return Speed(what=what, about="", measure=measured, bytes=1, ms={1: ms, 8: 8 * ms})

    done = Quantized(
        path=Path("best.int8.xml"),
        is_good=True,
        numbers=Path("n"),
        measured_by="top-1",
        exact=80,
        max_drop=1,
        images=100,
        calibrated_on="",
        layers=1,
        trials=(),
        sensitivities={},
        speeds=(speed("best.safetensors", 80, 9), speed("float32 openvino", 80, 3), speed("best.int8.xml", 79, 5)),
    )
    assert find_drawbacks(done) == [
        "best.int8.xml is slower here than float32 openvino (40.0 ms and 24.0 ms a batch of 8), which is as accurate; "
        "8 bits save size alone"
    ]
    assert not find_drawbacks(dataclasses.replace(done, speeds=()))
    assert find_drawbacks(dataclasses.replace(done, speeds=(), images=40)) == [
        "each of the 40 labelled images counts 2.5 points, more than may be lost; measure on more"
    ]


def test_what_cannot_be_is_refused(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save(tmp_path / "best.safetensors")
    with pytest.raises(ConfigError, match="max_drop is -1; it must be at least 0 points"):
        made(checkpoint, image_folder, max_drop=-1)
    with pytest.raises(ConfigError, match=r"best\.bin: must end in \.onnx"):
        made(checkpoint, image_folder, output=tmp_path / "best.bin")
    assert run("quantize", checkpoint, "--format", "onnx", "--rounds", 0) == 2
    with pytest.raises(CheckpointError, match=r"/sys/best\.onnx: cannot be written"):
        made(checkpoint, image_folder, output=Path("/sys/best.onnx"))
    monkeypatch.setattr("vitrail.deploy.quantize.find_spec", lambda name: None if name == "nncf" else name)
    with pytest.raises(MissingExtra, match=r"needs nncf; run: pip install 'vitrail\[openvino,int8\]'"):
        made(checkpoint, image_folder, "openvino")


@pytest.mark.thorough
def test_images_of_no_training_calibrate_with_a_warning(tmp_path: Path, image_folder: Path) -> None:
    checkpoint = save(tmp_path / "best.safetensors")
    (image_folder / "train").rename(tmp_path / "elsewhere")
    said: list[str] = []

    class Heard(Quiet):
        def warn(self, text: str) -> None:
            said.append(text)

    done = made(checkpoint, image_folder, display=Heard())
    assert done.calibrated_on.startswith("calibrated on 12 of the 12 images of")
    assert any(text.startswith("calibrated on the images it is evaluated on") for text in said)
