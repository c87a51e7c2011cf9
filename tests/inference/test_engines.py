"""Exported files in their engines: what they answer and say of themselves, in `evaluate` and `predict` too."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from support.forked import TORCHRUN, python
from support.random_weights import randomised
from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export, find_outputs
from vitrail.deploy.onnx_preprocess import add_preprocess
from vitrail.errors import CheckpointError, ConfigError, MissingExtra
from vitrail.images.preprocess import Preprocess
from vitrail.images.synthetic import draw_photo
from vitrail.inference.exported import Making, describe, with_making
from vitrail.inference.network import open_artifact, read_artifact
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import Record, hash_file, model_options, provenance, save_model, to_metadata
from vitrail.weights.formats.protobuf import block
from vitrail.weights.loading import load_model, open_model

onnx = pytest.importorskip("onnx", reason="needs vitrail[onnx]")
parser = pytest.importorskip("onnx.parser")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs vitrail[onnx]")
openvino = pytest.importorskip("openvino", reason="needs vitrail[openvino]")

pytestmark = pytest.mark.usefixtures("without_shape_checks")

NAME = "t2t_vit_7"
EXPORTER = pytest.mark.thorough  # torch.onnx takes long
FILES = [
    pytest.param("best.onnx", "onnxruntime", marks=EXPORTER),
    pytest.param("best.onnx", "openvino", marks=EXPORTER),
    pytest.param("best.xml", "openvino", marks=EXPORTER),
    ("best.torchscript", "torchscript"),
]


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(token) for token in tokens])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def record_of(model: Any, name: str = NAME) -> Record:
    return Record(
        model=name,
        options=model_options(model),
        classes=CLASSES,
        preprocess=Preprocess(size=(32, 32)),
        provenance=provenance(),
        metrics={"val_top1": 81.5},
    )


def small_network(size: tuple[int, int], channels: int = 3) -> Any:
    """Return a network whose logits are the mean colours, and that also gives its input away."""
    shape = f"float[batch, {channels}, {size[0]}, {size[1]}]"
    return parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        network ({shape} images) => (float[batch, {channels}] logits, {shape} seen) {{
            axes = Constant <value = int64[2] {{ 2, 3 }}> ()
            logits = ReduceMean <keepdims = 0> (images, axes)
            seen = Identity (images)
        }}
    """)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weight file of a tiny T2T-ViT, with best.torchscript beside it, and small.onnx and small.xml."""
    torch.manual_seed(0)
    model = randomised(create_model(NAME, **{**find_variant(NAME)[0].tiny, "num_classes": len(CLASSES)}))
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    record = record_of(model)
    save_model(path, model.state_dict(), record)
    jaxtyping.config.update("jaxtyping_disable", True)
    (_,) = export(open_model(path), find_outputs(["torchscript"], path, None), gather_sample(record, None))
    jaxtyping.config.update("jaxtyping_disable", False)
    small = small_network((32, 32))
    text = to_metadata(with_making(record, Making(format="onnx", source="", sha256="", details={})))["vitrail"]
    onnx.helper.set_model_props(small, {"vitrail": text})
    onnx.save(small, path.with_name("small.onnx"))
    ir, xml = openvino.Core().read_model(path.with_name("small.onnx")), path.with_name("small.xml")
    openvino.save_model(ir, xml)
    details = {"bin": hash_file(xml.with_suffix(".bin"))}
    making = Making(format="openvino", source="", sha256="", details=details)
    ir.set_rt_info(to_metadata(with_making(record, making))["vitrail"], ["vitrail"])
    openvino.save_model(ir, xml)
    return path


@pytest.fixture(scope="session")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all files, those of torch.onnx too; written once for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp().parent / "exported"
    with (folder.parent / "exported.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.copytree(weights.parent, folder)
            formats = ("--format", "onnx", "--format", "openvino")
            done = python("-m", "vitrail", "export", folder / "best.safetensors", *formats)
            (folder / "printed.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return folder


@pytest.fixture
def folder(request: pytest.FixtureRequest, weights: Path) -> Path:
    """Return where the file of a test is."""
    return request.getfixturevalue("exported") if request.node.get_closest_marker("thorough") else weights.parent


@pytest.mark.parametrize(
    ("name", "engine"), [("small.onnx", "onnxruntime"), ("small.onnx", "openvino"), ("small.xml", "openvino")]
)
def test_an_engine_answers_any_number_of_images(weights: Path, name: str, engine: str) -> None:
    network = open_artifact(weights.with_name(name), engine, threads=1)
    assert network.about.startswith(f"{engine} ")
    assert network.about.endswith(", float32, 1 thread")
    images = torch.randn(5, 3, 32, 32)
    for given in (images, images[:1], images[:0], images.transpose(2, 3)):
        assert torch.allclose(network(given), given.mean((2, 3)), atol=1e-5)


@EXPORTER
def test_export_ends_with_a_verdict_on_each_file_and_what_to_type(exported: Path) -> None:
    status, out, err = json.loads((exported / "printed.json").read_text())
    assert status == 0, err
    for name in ("best.onnx", "best.xml"):
        assert f"{exported / name}: " in err
        assert f"vitrail evaluate {exported / name} data.root=FOLDER --against {exported}/best.safetensors" in out
    assert out.count("16 of 16") == 2
    assert {"best.bin", "best.onnx", "best.xml"} < {path.name for path in exported.iterdir()}
    assert not [path for path in exported.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("name", "engine"), FILES)
def test_one_file_answers_any_number_of_images_as_pytorch_does(folder: Path, name: str, engine: str) -> None:
    network, model = open_artifact(folder / name, engine), load_model(folder / "best.safetensors")
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
    assert expected.std() > 0.1
    for size in (1, 3, 8):
        logits = network(images[:size])
        assert logits.dtype == torch.float32
        assert torch.allclose(logits, expected[:size], atol=1e-5)
    assert network(images[:0]).shape == (0, len(CLASSES))
    # memory that is not in order, as crops have
    assert torch.allclose(network(images.permute(0, 1, 3, 2)), model(images.transpose(2, 3)), atol=1e-5)
    for wrong in (images.double(), images[:, :, :16], images[:, :1]):
        with pytest.raises(ValueError, match=r"takes float32 \(b, \(3, 32, 32\)\)"):
            network(wrong)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=EXPORTER) for name in ("best.onnx", "best.xml")), "best.torchscript"]
)
def test_a_file_says_all_that_its_weight_file_says_and_where_it_comes_from(folder: Path, name: str) -> None:
    found, record = describe(folder / name), read_artifact(folder / "best.safetensors").record
    for what in ("model", "options", "classes", "preprocess", "metrics"):
        assert getattr(found.record, what) == getattr(record, what)
    assert found.making.source == "best.safetensors"
    assert found.making.sha256 == hash_file(folder / "best.safetensors")
    assert (found.making.precision, found.making.batch_size) == ("float32", None)
    assert found.making.details["torch"] == torch.__version__


@EXPORTER
def test_onnx_has_neither_gather_chains_nor_paths_of_this_machine(exported: Path) -> None:
    model = onnx.load(exported / "best.onnx")
    onnx.checker.check_model(model, full_check=True)
    used = [node.op_type for node in model.graph.node]
    assert used.count("Gather") == 1  # the class token
    assert not {"Im2Col", "GatherND", "GatherElements", "Einsum"} & {*used}
    assert model.opset_import[0].version == 20
    shapes = [end.type.tensor_type.shape.dim for end in (model.graph.input[0], model.graph.output[0])]
    assert [dims[0].dim_param for dims in shapes] == ["batch", "batch"]
    assert str(Path(__file__).parents[2]).encode() not in (exported / "best.onnx").read_bytes()


@pytest.mark.parametrize(("name", "engine"), FILES)
def test_evaluate_and_predict_say_the_same_of_every_file(
    folder: Path,
    image_folder: Path,
    tmp_path: Path,
    name: str,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, root = folder / "best.safetensors", f"data.root={image_folder}"
    numbers = {}
    for file, words in ((weights, []), (folder / name, ["--engine", engine, "--against", weights])):
        assert run("evaluate", file, root, "data.workers=0", "evaluate.device=cpu", "--json", "n.json", *words) == 0
        numbers[file] = json.loads(Path("n.json").read_text())
        rows = Path(f"{file.suffix}.csv")
        assert run("predict", file, image_folder / "val", "--format", "csv", "--topk", 2, "--output", rows) == 0
    printed = capsys.readouterr().out
    assert f"same answer as {weights}: 12 of 12; scores differ by" in printed
    ours, theirs = numbers.values()
    agreement = theirs.pop("agreement")
    assert (agreement["n"], agreement["equal"], agreement["top1"]) == (12, 12, ours["top1"])
    assert 0 <= agreement["difference"] < 1e-5
    assert theirs.pop("engine").startswith(f"{engine} ")
    reported = json.loads(Path("evaluations", "best", "report.json").read_text())
    assert reported["versions"]["engine"] == engine
    for key in ("checkpoint", "engine"):
        ours.pop(key)
    theirs.pop("checkpoint")
    assert theirs.pop("loss") == pytest.approx(ours.pop("loss"), abs=1e-5)
    assert theirs == ours
    tables = [list(csv.reader(Path(f"{file.suffix}.csv").read_text().splitlines())) for file in numbers]
    for row, other in zip(*tables, strict=True):
        assert row[:3] == other[:3]


@pytest.mark.thorough
def test_processes_share_the_images_of_an_exported_file(weights: Path, image_folder: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        weights.with_name("small.onnx"),
        f"data.root={image_folder}",
        "data.workers=0",
        "evaluate.device=cpu",
    ]
    words += ["evaluate.batch_size=3", "--json", tmp_path / "two.json", "--report", tmp_path / "report"]
    done = python(*TORCHRUN, "--nproc-per-node", "2", "--standalone", "-m", "vitrail", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["n_ok"] == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small.onnx", "--engine", "torchscript"], "cannot run {}/small.onnx; what can is onnxruntime or openvino"),
        (["best.safetensors", "--engine", "openvino"], "cannot run {}/best.safetensors; what can is torch"),
        (["small.onnx", "--precision", "bfloat16"], "computes in float32, as it was exported; leave it out, or export"),
        (["best.safetensors", "--precision", "float16"], "PyTorch computes so on GPUs; use bfloat16 or float32"),
        (["small.onnx", "weights.average=false"], "small.onnx: settings of `weights` are for weight files; give them"),
        (["gone.onnx"], "gone.onnx: is missing; give a file that `vitrail export` wrote"),
        (["plain.onnx"], "plain.onnx: does not say which classes and preprocessing it has, as it was not written by"),
        (["plain.torchscript"], "plain.torchscript: does not say which classes and preprocessing it has"),
        (["cut.onnx"], "cut.onnx: is damaged, or no file of .onnx (ends within a field of"),
        (["cut.xml"], "cut.xml: is damaged, or no file of .xml ("),
        (
            ["cut.torchscript"],
            "cut.torchscript: is damaged: it is not what its digest was made of; copy it again, or make it anew",
        ),
        (
            ["empty.onnx"],
            "empty.onnx: is damaged, or no file of .onnx (cannot mmap an empty file); copy or export it again",
        ),
        (["alone.xml"], "alone.xml: its weights, alone.bin, are not beside it; copy both files"),
        (["other.xml"], "other.xml: other.bin beside it is damaged, or belongs to another file; copy both files"),
        (["wrong.onnx", "--engine", "openvino"], "wrong.onnx: OpenVINO cannot load it ("),
        (["wrong.onnx"], "wrong.onnx: ONNX Runtime cannot load it ("),
        (["whole.onnx"], "whole.onnx: reads whole images itself (--with-preprocess), one at a time; give the file"),
        (["other.pt2"], "other.pt2: was compiled for mips R2000, and this machine is "),
    ],
)
def test_what_cannot_be_run_is_one_line(
    weights: Path, image_folder: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / words[0]
    record = read_artifact(weights).record
    making = Making(format="pt2", source="", sha256="", details={"device": "cpu", "cpu": "mips R2000"})
    if words[0] == "plain.onnx":
        file.write_bytes(block(7, b""))
    elif words[0] in ("plain.torchscript", "other.pt2"):
        texts = to_metadata(with_making(record, making))
        extra = {} if file.stem == "plain" else {"x/extra/vitrail": texts["vitrail"]}
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in {"x/version": "3", **extra}.items():
                archive.writestr(name, text)
    elif words[0] in ("wrong.onnx", "whole.onnx"):
        reads = "image" if file.stem == "whole" else "normalised"
        given = Making(**{**vars(making), "format": "onnx", "input": reads})
        text = to_metadata(with_making(record, given))["vitrail"]
        file.write_bytes(block(7, b"no graph") + block(14, block(1, "vitrail") + block(2, text)))
    elif file.stem == "cut":
        made = "best" if file.suffix == ".torchscript" else "small"
        file.write_bytes((weights.parent / f"{made}{file.suffix}").read_bytes()[:-100])
    elif file.stem == "empty":
        file.touch()
    elif file.suffix == ".xml":
        shutil.copy(weights.with_name("small.xml"), file)
        if file.stem == "other":
            file.with_suffix(".bin").write_bytes(b"other weights")
    elif weights.with_name(words[0]).exists():
        file = weights.with_name(words[0])
    assert run("predict", file, image_folder, *words[1:], "--output", tmp_path / "out.json") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message.format(weights.parent) in line
    assert not (tmp_path / "out.json").exists()


def test_evaluate_refuses_to_compare_with_another_model(
    weights: Path, tiny_checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    words = (f"data.root={image_folder}", "data.workers=0", "--against", tiny_checkpoint)
    assert run("evaluate", weights.with_name("small.onnx"), *words) == 2
    assert "tiny.safetensors: has other model than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("small.onnx", "onnxruntime", "onnx"), ("small.xml", "openvino", "openvino")]
)
def test_an_engine_that_is_not_installed_is_named_with_what_to_type(
    weights: Path, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"which is not installed; run: pip install 'vitrail\[{extra}\]'"):
        open_artifact(weights.with_name(name))


@EXPORTER
def test_openvino_takes_the_precision_that_is_asked_for_or_refuses_it(exported: Path) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ConfigError, match="precision=bfloat16: OpenVINO cannot compute so on this CPU"):
            open_artifact(exported / "best.xml", precision="bfloat16")
        return
    network = open_artifact(exported / "best.xml", precision="bfloat16")
    assert ", bfloat16, " in network.about
    images = torch.randn(4, 3, *network.record.preprocess.size)
    difference = (network(images) - open_artifact(exported / "best.xml")(images)).abs().max()
    assert 0 < difference < 0.1


# ---- images preprocessed by the file itself ----


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=(224, 224)),
        Preprocess(size=(64, 64), interpolation="bilinear", crop=0.875, mean=(0.5,) * 3, std=(0.5,) * 3),
        Preprocess(size=(96, 160), crop=1.0),
        Preprocess(size=(75, 33), crop=0.95, interpolation="bilinear"),
        Preprocess(size=(64, 64), channels=4, mean=(0.5,) * 4, std=(0.25,) * 4),
        # to the edges of the image, beyond which the filter sees nothing
        Preprocess(size=(75, 60), crop=1.0, interpolation="bilinear"),
        Preprocess(size=(96, 160), resize="squash"),
        Preprocess(size=(64, 64), resize="squash", interpolation="bilinear"),
        Preprocess(size=(96, 160), resize="letterbox", mean=(0.1, 0.5, 0.9)),
        Preprocess(size=(75, 33), resize="letterbox", interpolation="bilinear"),
        Preprocess(size=(64, 64), channels=4, mean=(0.5,) * 4, std=(0.25,) * 4, resize="letterbox"),
    ],
    ids=[
        "square",
        "bilinear",
        "wide",
        "high",
        "four channels",
        "to the edges",
        "squash",
        "bilinear squash",
        "letterbox",
        "bilinear letterbox",
        "letterbox of four channels",
    ],
)
def test_preprocessing_in_the_graph_is_ours_to_two_levels_of_colour(preprocess: Preprocess) -> None:
    channels = preprocess.channels
    model = add_preprocess(small_network(preprocess.size, channels), preprocess, channels, 5)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [end.name for end in session.get_outputs()][1:] == ["probabilities", "top_probabilities", "top_classes"]
    generator = np.random.default_rng(0)
    sizes = [(1, 1), (5, 900), (900, 7), preprocess.size, (100, 80), (73, 72), (301, 257)]
    noise = [torch.from_numpy(generator.integers(0, 256, (channels, *size), dtype=np.uint8)) for size in sizes]
    for image in (*noise, *(torch.from_numpy(draw_photo(number, channels)).permute(2, 0, 1) for number in (0, 2))):
        given = {"image": image.permute(1, 2, 0)[None].contiguous().numpy()}
        seen, probabilities, best, classes = session.run(None, given)
        off = np.abs(seen[0] - preprocess(image).numpy()) * 255 * np.array(preprocess.std).reshape(-1, 1, 1)
        assert off.max() < 2.001
        assert (off > 0.5).mean() < 0.05
        order = np.argsort(-probabilities[0], kind="stable")
        assert classes[0].tolist() == order.tolist()
        assert np.array_equal(best[0], probabilities[0][order])


@EXPORTER
def test_whole_images_go_into_an_exported_file(exported: Path) -> None:
    model = load_model(exported / "best.safetensors")
    assert isinstance(model.preprocess, Preprocess)
    whole = add_preprocess(onnx.load(exported / "best.onnx"), model.preprocess, len(CLASSES), 2)
    session = onnxruntime.InferenceSession(whole.SerializeToString())
    for number in range(4):
        photo = draw_photo(number)
        (probabilities,) = session.run(["probabilities"], {"image": photo[None]})
        with torch.inference_mode():
            expected = model(model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None]).softmax(1)
        assert np.abs(probabilities - expected.numpy()).max() < 0.01


# ---- MindSpore ----


def test_mindir_runs_where_mindspore_is_in_whole_batches(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for MindSpore, whose logits are sums over the three channels."""
    record = read_artifact(weights).record
    making = Making(format="mindir", source="", sha256="", batch_size=4, details={})
    file = tmp_path / "net.mindir"
    text = to_metadata(with_making(record, making))["vitrail"]
    file.write_bytes(block(14, block(1, "vitrail") + block(2, text)))
    monkeypatch.delenv("VITRAIL_MINDSPORE_PYTHON", raising=False)
    with pytest.raises(MissingExtra, match="needs MindSpore; install it in an environment of its own"):
        open_artifact(file)
    (tmp_path / "mindspore.py").write_text(
        """
import types, numpy
__version__, GRAPH_MODE = "9.9", 0
def set_context(mode, device_target): print("noise")
def load(name): return name
def Tensor(images): assert images.shape == (4, 3, 32, 32); return images
def network(images): return types.SimpleNamespace(asnumpy=lambda: images.sum((2, 3)))
nn = types.SimpleNamespace(GraphCell=lambda loaded: network)
"""
    )
    monkeypatch.setenv("VITRAIL_MINDSPORE_PYTHON", sys.executable)
    with pytest.raises(CheckpointError, match="cannot load it in MindSpore, and says why above"):
        open_artifact(file)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    network = open_artifact(file, threads=1)
    assert network.about == "mindspore 9.9, float32, 1 thread"
    images = torch.randn(9, 3, 32, 32)
    assert torch.allclose(network(images), images.sum((2, 3)), atol=1e-4)
    assert torch.allclose(network(images[:2]), images[:2].sum((2, 3)), atol=1e-4)


# ---- what runtimes refuse ----


@pytest.mark.parametrize(
    ("network", "engine", "message"),
    [
        ("small", "onnxruntime", r"ONNX Runtime cannot run it \("),
        ("small", "openvino", r"OpenVINO cannot run it \("),
        ("empty", "onnxruntime", r"ONNX Runtime cannot load it \("),
        (
            "wide",
            "onnxruntime",
            r"gives torch.float32 of shape \(2, 3, 32, 32\) for 2 images, and no logits of 3 classes",
        ),
        ("wide", "openvino", "gives torch.float32 of shape"),
        ("whole", "onnxruntime", r"gives torch.int64 of shape \(2, 3\) for 2 images, and no logits"),
    ],
)
def test_a_network_that_is_another_than_its_record_says_is_one_line(
    weights: Path, tmp_path: Path, network: str, engine: str, message: str
) -> None:
    images = "float[batch, 3, 32, 32] images"
    graphs = {
        "small": small_network((16, 16)),
        "empty": parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> n () => (float[1] y) { y = Constant <value = float[1] {1}> () }'
        ),
        "wide": parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 20]> n ({images}) => (float[b, 3, 32, 32] y) {{ y = Abs (images) }}'
        ),
        "whole": parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 20]> n ({images}) => (int64[b, 3] y) {{
                axes = Constant <value = int64[2] {{ 2, 3 }}> ()
                x = ReduceMean <keepdims = 0> (images, axes)
                y = Cast <to = 7> (x)
            }}"""
        ),
    }
    making = Making(format="onnx", source="", sha256="", details={})
    graph, path = graphs[network], tmp_path / "other.onnx"
    onnx.helper.set_model_props(graph, to_metadata(with_making(read_artifact(weights).record, making)))
    onnx.save(graph, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_artifact(path, engine, threads=1)(torch.zeros(2, 3, 32, 32))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_program_of_torchscript_that_fails_is_one_line(weights: Path, tmp_path: Path) -> None:
    class Strict(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.reshape(5, 5)

    making = Making(format="torchscript", source="", sha256="", details={})
    texts = to_metadata(with_making(read_artifact(weights).record, making))
    path = tmp_path / "a.torchscript"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Strict(), torch.zeros(25)), path, _extra_files=texts)
    with pytest.raises(CheckpointError, match=r"a.torchscript: TorchScript cannot run it \(") as caught:
        open_artifact(path)(torch.zeros(2, 3, 32, 32))
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    for name in entries:  # an archive whose checksums are right, and that lacks an entry or has another one
        for content in (None, b"", b"\x80\x02(((((((."):
            with zipfile.ZipFile(path, "w") as archive:
                for other, data in entries.items():
                    if other != name or content is not None:
                        archive.writestr(other, data if other != name else content)
            with contextlib.suppress(CheckpointError):
                open_artifact(path)
