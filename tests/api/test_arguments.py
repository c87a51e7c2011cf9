"""Whatever Python's functions are given, they answer, or refuse it in one line that names the argument."""

import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrail
from support.commands import refused
from support.runs import TINY, Notebook
from vitrail.api.inference import iterate_predictions
from vitrail.models import twins

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(vitrail, name) for name in vitrail.__all__ if name != "VitrailError"},
    "iterate_predictions": lambda *args, **kwargs: list(iterate_predictions(*args, **kwargs)),
}
SIGNATURES = {name: inspect.signature(function) for name, function in FUNCTIONS.items()} | {
    "iterate_predictions": inspect.signature(iterate_predictions)
}


class Hostile:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def circle() -> dict[str, Any]:
    values: dict[str, Any] = {}
    values["train"] = values
    return values


def endless() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


ODD: Mapping[str, Any] = {
    "none": None,
    "empty": "",
    "word": "bogus",
    "zero byte": "a\0b",
    "half a letter": "\ud800",
    "byte that is no text": "\udcff",
    "bytes": b"bytes",
    "minus one": -1,
    "zero": 0,
    "huge": 10**30,
    "true": True,
    "half": 0.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "no list": [],
    "numbers": [5],
    "odd list": [None, Hostile()],
    "list of itself": endless(),
    "no mapping": {},
    "mapping": {"train.epochs": "x", 3: 4},
    "mapping of itself": circle(),
    "array": np.zeros((2, 2)),
    "number of numpy": np.int64(-1),
    "image": Image.new("RGB", (8, 8)),
    "function": print,
    "class": int,
    "hostile": Hostile(),
}


@pytest.fixture
def given(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of each function with which it answers, or with which nothing is wrong but a file that is not there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # where the images of the recipe are not
    image = next(image_folder.rglob("*.jpg"))
    gone = {"data.root": "gone"}
    curves = tmp_path / "curves.json"
    runs = {"1": [50, 60], "2": [51, 61]}
    content = {"settings": {"train.epochs": 2}, "images": {"train": 5, "val": 5}, "made": {}}
    curves.write_text(json.dumps({**content, "curves": {str(TINY): runs}}))
    return {
        "train": {"recipe": TINY, "settings": gone},
        "bench_data": {"recipe": TINY, "settings": gone},
        "preview": {"recipe": TINY, "settings": gone, "output": tmp_path / "preview.html"},
        "show_config": {"recipe": "digits", "settings": {}},
        "doctor": {},
        "evaluate": {"checkpoint": tiny_checkpoint, "settings": gone},
        "sweep_preprocess": {"checkpoint": tiny_checkpoint, "settings": gone},
        "predict": {"checkpoint": tiny_checkpoint, "images": image},
        "iterate_predictions": {"checkpoint": tiny_checkpoint, "images": image},
        "write_inputs": {"checkpoint": tiny_checkpoint, "images": image, "folder": tmp_path / "inputs"},
        "bench": {"names": "gone"},
        "verify": {"files": tiny_checkpoint},
        "serve": {"artifact": "gone"},
        "export": {"checkpoint": "gone", "format": "torchscript"},
        "quantize": {"checkpoint": "gone", "format": "onnx"},
        "convert": {"source": tiny_checkpoint, "target": tmp_path / "made.safetensors", "to": "timm"},
        "check_data": {"settings": {"data.root": image_folder}, "output": tmp_path / "check"},
        "pack": {"settings": {"data.root": image_folder}, "output": tmp_path / "shards"},
        "resize_data": {"settings": {"data.root": image_folder}, "output": tmp_path / "small", "short_side": 8},
        "create_model": {"name": "tnt_ti_patch16_224"},
        "register_family": {"family": replace(twins.FAMILY, name="mine", variants={}, aliases={})},
        "list_models": {},
        "list_weights": {},
        "fetch_weights": {"names": "gone"},
        "add_weights": {"files": "gone"},
        "embed": {"checkpoint": "gone", "images": image},
        "explain": {"checkpoint": tiny_checkpoint, "images": image},
        "score_explanations": {"checkpoint": tiny_checkpoint, "settings": gone},
        "measure_depth": {"checkpoint": tiny_checkpoint, "images": image},
        "attention": {"model": tiny_checkpoint, "image": image},
        "finetune": {"data": "gone"},
        "pretrain": {"data": "gone"},
        "make_token_labels": {"teacher": "gone", "settings": gone, "output": tmp_path / "labels"},
        "tune": {"recipe": TINY, "settings": gone},
        "reproduce": {"model": "digits", "settings": gone, "proxy": True, "expected": curves},
        "load_model": {"path": tiny_checkpoint},
    }


def call(name: str, arguments: dict[str, Any]) -> None:
    """Call a function, whose several files are given by position."""
    files = () if "files" not in arguments else (arguments["files"],)
    rest = {key: value for key, value in arguments.items() if key != "files"}
    FUNCTIONS[name](*files, **rest)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_arguments_are_taken_or_refused_in_one_line(name: str, given: dict[str, Any]) -> None:
    broken = []
    for parameter in SIGNATURES[name].parameters.values():
        # of the keywords without a name of their own, one that each function knows
        others = "num_classes" if "model" in name else "data"
        keyword = others if parameter.kind is inspect.Parameter.VAR_KEYWORD else parameter.name
        for what, value in ODD.items():
            try:
                call(name, {**given[name], keyword: value})
            except vitrail.VitrailError as error:
                if "\n" in str(error):
                    broken.append(f"{parameter}, {what}: of several lines: {error}")
            except Exception as error:
                broken.append(f"{parameter}, {what}: {type(error).__name__}: {error}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: vitrail.predict("a.safetensors", "b.jpg", device="cuda:0"),  # pyright: ignore
            "predict: device is 'cuda:0'; it must be one of auto, cpu; did you mean",
        ),
        (
            lambda: vitrail.predict("a.safetensors", "b.jpg", topk="3"),  # pyright: ignore
            "predict: topk is '3'; it must be a whole number, or None",
        ),
        (
            lambda: vitrail.predict("a.safetensors", Image.new("RGB", (8, 8))),  # pyright: ignore
            "predict: images is of type PIL.Image.Image; it must be a path, or several of them; an image in memory "
            "goes through the model of vitrail.load_model(FILE) itself, as model(model.preprocess(image).unsqueeze(0))",
        ),
        (
            lambda: vitrail.bench("tnt_s_patch16_224", device="tpu"),  # pyright: ignore
            "bench: device is 'tpu'; it must be one of auto, cpu",
        ),
        (
            lambda: vitrail.bench("tnt_s_patch16_224", engine=["onxruntime"]),  # pyright: ignore
            "engine is ['onxruntime']; it must be one of torch, onnxruntime, openvino, aotinductor, torchscript, "
            "mindspore; did you mean 'onnxruntime'?",
        ),
        (lambda: vitrail.bench("tnt_s_patch16_224", batch_size=[]), "bench needs batch_size: one number, or several"),
        (
            lambda: vitrail.export("a.safetensors", format=[]),
            "export needs format: one of onnx, openvino, pt2, torchscript, mindir, or several",
        ),
        (
            lambda: vitrail.quantize("a.safetensors", format="bogus"),  # pyright: ignore
            "quantize: format is 'bogus'; it must be one of onnx, openvino",
        ),
        (
            lambda: vitrail.evaluate("a.safetensors", report=5),  # pyright: ignore
            "evaluate: report is 5; it must be a path, or True or False",
        ),
        (
            lambda: vitrail.doctor(output=""),
            "doctor: output is ''; it must be a path",
        ),
        (
            lambda: vitrail.serve("a.safetensors", cors="https://example.org"),
            "serve: cors is 'https://example.org'; it must be a list of texts",
        ),
        (
            lambda: vitrail.serve("a.safetensors", timeout_s=float("inf")),
            "serve: timeout_s is inf; it must be a finite number",
        ),
        (
            lambda: vitrail.verify(["a.safetensors"]),  # pyright: ignore
            "verify: files is ['a.safetensors']; it must be a path; several are given one by one, as verify(*files)",
        ),
        (
            lambda: vitrail.list_models(5),  # pyright: ignore
            "list_models: pattern is 5; it must be text",
        ),
        (
            lambda: vitrail.train({"optim.lr": 1}),  # pyright: ignore
            "train: recipe is {'optim.lr': 1}; it must be a path, or None; settings are given as "
            "settings={'section.key': value}",
        ),
        (
            lambda: vitrail.train(progress="no"),  # pyright: ignore
            "train: progress is 'no'; it must be True or False",
        ),
        (
            lambda: vitrail.train(display=print),  # pyright: ignore
            "it must be an object with the methods of vitrail.display.Display, or None",
        ),
        (lambda: vitrail.train("digits", circle()), "settings: nests values more than 16 deep, which no setting is"),
        (lambda: vitrail.train("digits", [5]), "settings: 5 is no text; write 'section.key=value'"),  # pyright: ignore
        (lambda: vitrail.bench("a", batchsize=8), "bench has no argument 'batchsize'; did you mean 'batch_size'?"),
        (lambda: vitrail.export("a.safetensors"), "export: missing a required argument: 'format'; help("),
        (
            lambda: vitrail.load_model("a.safetensors", "tpu"),
            "device is 'tpu'; it must be one of cpu",
        ),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_told_with_what_is_allowed(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(vitrail.VitrailError) as caught:
        ask()
    assert message in str(caught.value)


def test_numbers_of_numpy_and_any_iterable_are_taken(tiny_checkpoint: Path, image_folder: Path) -> None:
    images = (path for path in sorted(image_folder.rglob("*.jpg"))[:3])
    predictions = vitrail.predict(
        tiny_checkpoint,
        images,
        topk=np.int64(2),
        batch_size=np.int32(1),
        progress=False,  # pyright: ignore
    )
    assert [len(one.topk) for one in predictions] == [2, 2, 2]


def test_the_shell_is_told_of_flags_and_python_of_arguments(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "gone" / "made.onnx"
    words = ("export", tiny_checkpoint, "--format", "onnx", "--output", output)
    assert f"error: --output {output}: there is no folder {output.parent}; create" in refused(capsys, *words)
    with pytest.raises(vitrail.VitrailError, match=rf"^output={output}: there is no folder {output.parent}; create"):
        vitrail.export(tiny_checkpoint, format="onnx", output=output)
    assert "error: --max-wait-ms is nan; it must be a finite number" in refused(
        capsys, "serve", tiny_checkpoint, "--max-wait-ms", "nan"
    )
    # the flags are forgotten with the command, even one that failed
    with pytest.raises(vitrail.VitrailError, match=r"^topk is 0; it must be at least 1$"):
        vitrail.predict(tiny_checkpoint, "a.jpg", topk=0)


def test_a_name_that_is_nearly_one_of_ours_is_answered_with_it() -> None:
    with pytest.raises(
        AttributeError, match=r"^module 'vitrail' has no attribute 'evaluat'; did you mean 'evaluate'\?$"
    ):
        vitrail.evaluat  # noqa: B018  # pyright: ignore
    assert not hasattr(vitrail, "__wrapped__")


def test_a_second_training_in_another_thread_is_refused(image_folder: Path, tmp_path: Path) -> None:
    refusals: list[str] = []

    class Second(Notebook):
        """A display that lets another thread begin a run, and an evaluation, when this one has made an update."""

        def advance(self, steps: int = 1, **values: str) -> None:
            if not refusals:
                thread = threading.Thread(target=begin_another)
                thread.start()
                thread.join()

    def begin_another() -> None:
        for ask in (
            lambda: vitrail.train(TINY, settings, output={"root": tmp_path / "second"}),
            lambda: vitrail.bench_data(TINY, settings, seconds=0.1),
        ):
            try:
                ask()
            except vitrail.VitrailError as error:
                refusals.append(str(error))

    settings = {"data.root": image_folder, "train.epochs": 1, "schedule.warmup_epochs": 0}
    run = vitrail.train(TINY, settings, output={"root": tmp_path / "first"}, display=Second())
    assert run.weights.exists()
    assert len(refusals) == 2
    for refusal in refusals:
        assert refusal.startswith("another thread of this process trains or evaluates")
    assert not (tmp_path / "second").exists()
    # once it is through, the next may
    vitrail.train(TINY, settings, output={"root": tmp_path / "second"}, progress=False)


@pytest.mark.thorough
def test_a_script_without_a_guard_is_run_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import vitrail\n"
        "print('begun')\n"
        f"print(len(vitrail.bench({str(tiny_checkpoint)!r}, batch_size=1, rounds=1, threads=1)))\n"
    )
    # names of the standard library in the folder of the script are none of the measured process's business
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "begun\n1\n"), done.stderr
