"""Whatever Python's functions are given, they answer, or refuse it in one line that names the argument."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrail
from support.commands import refused
from vitrail.api.inference import iterate_predictions

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
    monkeypatch.chdir(tmp_path)
    image = next(image_folder.rglob("*.jpg"))
    gone = {"data.root": "gone"}
    return {
        "train": {"recipe": "digits", "settings": gone},
        "bench_data": {"recipe": "digits", "settings": gone},
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
        "list_models": {},
        "load_model": {"path": tiny_checkpoint},
    }


def call(name: str, arguments: dict[str, Any]) -> None:
    """Call a function, whose several files are given by position."""
    files = () if "files" not in arguments else (arguments["files"],)
    rest = {key: value for key, value in arguments.items() if key != "files"}
    FUNCTIONS[name](*files, **rest)


PARAMETERS = [(name, parameter) for name, signature in SIGNATURES.items() for parameter in signature.parameters]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_odd_arguments_are_taken_or_refused_in_one_line(name: str, parameter: str, given: dict[str, Any]) -> None:
    kind = SIGNATURES[name].parameters[parameter].kind
    broken = []
    for what, value in ODD.items():
        arguments = {**given[name], parameter: value}
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments = {**given[name], "num_classes": value} if "model" in name else {**given[name], "data": value}
        try:
            call(name, arguments)
        except vitrail.VitrailError as error:
            if "\n" in str(error):
                broken.append(f"{what}: of several lines: {error}")
        except Exception as error:
            broken.append(f"{what}: {type(error).__name__}: {error}")
    assert not broken, "\n".join(broken)
