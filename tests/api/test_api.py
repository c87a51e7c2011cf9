"""Python does what the shell does: the same settings, the same numbers, the same files, the same errors."""

import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

import vitrail
from support.commands import run
from support.displays import Notebook
from support.foreign import FILES
from support.forked import python
from support.runs import TINY
from vitrail.api.results import Result, Table
from vitrail.cli.app import app

VERBS = {name.replace("-", "_") for name in app if not name.startswith("-")} - {"models", "config", "weights"}
"""Commands; `models` is vitrail.list_models, `config` would be hidden by the room of that name, and `weights` is three
functions, such as vitrail.list_weights."""


def test_every_command_is_a_function() -> None:
    assert set(vitrail.__all__) >= VERBS
    for name in VERBS:
        assert callable(getattr(vitrail, name))


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_function_has_the_options_of_its_command(name: str) -> None:
    import inspect

    arguments: Any = app[name.replace("_", "-")].assemble_argument_collection()
    flags = {one.name[2:].replace("-", "_") for one in arguments if one.name.startswith("--")}
    keywords = set(inspect.signature(getattr(vitrail, name)).parameters)
    # what the shell says by a flag, Python says by the first argument, or by another function
    elsewhere = {
        "train": {"config"},
        "tune": {"config"},
        "evaluate": {"sweep_preprocess"},
        "predict": {"write_inputs"},
        # class is a word of Python's own, class_name; the others are score_explanations and measure_depth
        "explain": {"class", "by_layer", "json", "limit", "masks", "score"},
    }
    assert flags - keywords == elsewhere.get(name, set())


def test_no_room_hides_a_function() -> None:
    package = Path(vitrail.__file__).parent
    rooms = {path.stem for path in (*package.glob("*.py"), *package.glob("*/__init__.py"))}
    rooms |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert not rooms & set(vitrail.__all__)


def test_every_function_says_what_its_arguments_are() -> None:
    import inspect

    for name in VERBS | {"sweep_preprocess", "write_inputs", "show_config"}:
        function = getattr(vitrail, name)
        explained = inspect.getdoc(function) or ""
        for argument in inspect.signature(function).parameters:
            assert f"\n    {argument}: " in explained, f"{name}: {argument}"


def test_a_program_that_trains_is_not_run_again_by_its_workers(image_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "import vitrail\n"
        "multiprocessing.set_start_method('forkserver', force=True)\n"  # as Python 3.14 does
        "print('begun', flush=True)\n"
        f"settings = {{'data.root': {str(image_folder)!r}, 'data.workers': 2, 'output.root': 'runs'}}\n"
        f"print(len(vitrail.train({str(TINY)!r}, settings).rows))\n"
    )
    done = python(program, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["begun", "4"]), done.stderr


def test_training_from_python_is_training_from_the_shell(image_folder: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"data.root": str(image_folder), "train": {"epochs": 1}, "schedule.warmup_epochs": 0}
    result = vitrail.train(TINY, common, output={"root": tmp_path / "python"}, progress=False)
    tokens = (f"data.root={image_folder}", "train.epochs=1", "schedule.warmup_epochs=0")
    assert run("train", TINY, *tokens, f"output.root={tmp_path / 'shell'}") == 0
    shell = json.loads((tmp_path / "shell" / "tiny" / "metrics.jsonl").read_text().splitlines()[-1])
    assert result.folder == tmp_path / "python" / "tiny"
    assert {key: result.rows[-1][key] for key in ("train_loss", "val_loss", "val_top1")} == {
        key: shell[key] for key in ("train_loss", "val_loss", "val_top1")
    }
    assert result.weights.is_file()
    assert result.curves._repr_png_().startswith(b"\x89PNG")
    assert result.to_pandas()["epoch"].tolist() == [1]
    assert "top-1, %" in str(result)
    assert "<td" in result._repr_html_()


def test_the_path_from_weights_to_predictions(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    data = {"root": str(image_folder)}
    evaluation = vitrail.evaluate(tiny_checkpoint, data=data, json=tmp_path / "numbers.json", progress=False)
    assert evaluation.report is None
    assert not (tmp_path / "evaluations").exists()
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written["top1"] == evaluation.numbers["top1"]
    assert evaluation.to_pandas()["top1"].tolist() == [evaluation.numbers["top1"]]
    assert evaluation.shown["top-1, %"] in str(evaluation)

    assert evaluation.confusion is None
    reported = vitrail.evaluate(tiny_checkpoint, data=data, report=tmp_path / "report", progress=False)
    assert reported.confusion is not None
    assert reported.confusion._repr_png_() == (tmp_path / "report" / "confusion.png").read_bytes()

    images = sorted((image_folder / "val").rglob("*.jpg"))[:2]
    predictions = vitrail.predict(tiny_checkpoint, images, topk=2, progress=False)
    assert [one.path for one in predictions] == [str(path) for path in images]
    first = predictions[0]
    assert first.name in ("red", "green", "blue")
    assert first.topk[0].probability == first.probability >= first.topk[1].probability
    assert list(predictions.to_pandas().columns) == [
        "path", "name", "probability", "name_2", "probability_2", "error",
    ]  # fmt: skip
    assert not list(tmp_path.glob("predictions*"))

    output = tmp_path / "answers.csv"
    vitrail.predict(tiny_checkpoint, str(image_folder / "val"), output=output, progress=False)
    assert run("predict", tiny_checkpoint, image_folder / "val", "--output", tmp_path / "shell.csv") == 0
    assert output.read_text() == (tmp_path / "shell.csv").read_text()


def test_an_unreadable_image_is_a_row_and_a_warning(tiny_checkpoint: Path, image_folder: Path) -> None:
    bad = image_folder / "val" / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"bad\.jpg: "):
        predictions = vitrail.predict(tiny_checkpoint, bad, progress=False)
    assert predictions[0].name is None
    assert predictions[0].error
    assert predictions.bad_files == list(predictions)


def test_data_is_looked_at_and_packed(image_folder: Path, tmp_path: Path) -> None:
    check = vitrail.check_data({"data.root": image_folder}, output=tmp_path / "check", progress=False)
    assert check.page.is_file()
    assert check.statistics["classes"] == 3
    assert len(check.to_pandas()) == len(check.problems)
    assert "images of 3 classes" in " ".join(str(check).split())
    packed = vitrail.pack(data={"root": image_folder}, output=tmp_path / "shards", progress=False)
    assert packed.images == check.statistics["images"]
    small = vitrail.resize_data({"data.root": image_folder}, output=tmp_path / "small", short_side=8, progress=False)
    assert small.resized + sum(small.copied.values()) == packed.images


def test_files_are_verified(tiny_checkpoint: Path) -> None:
    checks = vitrail.verify(tiny_checkpoint)
    assert (checks[0].is_whole, checks.damaged) == (True, [])
    tiny_checkpoint.write_bytes(tiny_checkpoint.read_bytes()[:-8])
    assert len(vitrail.verify(tiny_checkpoint).damaged) == 1


def test_a_display_that_is_given_is_told_all(tiny_checkpoint: Path, image_folder: Path) -> None:
    display = Notebook()
    bad = image_folder / "val" / "bad.jpg"
    bad.write_bytes(b"no image")
    vitrail.predict(tiny_checkpoint, bad, display=display)
    assert "bad.jpg: " in display.warnings[0]
    assert display.notes[-1] == "1 image, 1 unreadable"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vitrail.train("digts"), "unknown recipe 'digts'; did you mean 'digits'?"),
        (
            lambda: vitrail.train("digits", {"optim.lrr": 1}),
            "settings: optim.lrr: unknown key; did you mean 'lr'?",
        ),
        (
            lambda: vitrail.train("digits", {"optim.lr": 1, "optim": {"lr": 2}}),
            "settings: optim.lr is set twice; set it once",
        ),
        (
            lambda: vitrail.train("digits", {"optim.lr": 1}, optim={"lr": 2}),
            "settings: optim.lr is set twice; set it once",
        ),
        (
            lambda: vitrail.train("digits", {"model.options": {"depth": 1}, "model.options.depth.x": 2}),
            "settings: model.options.depth.x sets a part of what another setting sets whole; set one of them",
        ),
        (lambda: vitrail.train("digits", optm={"lr": 2}), "train has no option 'optm'; did you mean 'optim'?"),
        (lambda: vitrail.train("digits", epochs=2), "settings are given as a mapping such as {'train.epochs': 3}"),
        (lambda: vitrail.train("digits", optim=2), "optim is a section; write optim={'key': value}, a mapping"),
        (
            lambda: vitrail.train("digits", {"epochs": 2}),
            "epochs=2: goes with files of other projects alone; write train.epochs=...",
        ),
        (
            lambda: vitrail.check_data("/data/pets"),
            "settings are '/data/pets'; they must be a mapping such as {'train.epochs': 3}, or a list of",
        ),
        (
            lambda: vitrail.check_data({"root": "/data/pets"}),
            "settings: 'root=/data/pets' is not a setting; write section.key=value",
        ),
        (lambda: vitrail.check_data({3: 4}), "settings: 3 is no key; write 'section.key', such as 'optim.lr'"),
        (lambda: vitrail.check_data(["nonsense"]), "command line: 'nonsense' is not a setting"),
        (lambda: vitrail.predict("gone.safetensors", []), "predict needs images"),
        (lambda: vitrail.predict("gone.safetensors", "a.jpg", topk=0), "topk is 0; it must be at least 1"),
        (lambda: vitrail.evaluate("gone.safetensors"), "gone.safetensors: is missing, not a weight file"),
        (lambda: vitrail.export("gone.safetensors", format="onix"), "format is 'onix'; it must be one of onnx, "),
        (lambda: vitrail.bench([]), "bench needs models or files"),
        (lambda: vitrail.verify(), "verify needs files"),
        (lambda: vitrail.serve("gone.safetensors", port=-1), "port is -1; it must be 1 to 65535"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(
    call: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vitrail.VitrailError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_values_of_python_are_taken_as_settings() -> None:
    import numpy as np

    shown = vitrail.show_config(
        "digits",
        {"train.epochs": np.int64(3), "data.root": Path("/data"), "preprocess.mean": (0.5, 0.25, 0.5)},
        model={"options": {"depth": 2}},
    )
    assert shown.values["train.epochs"] == 3
    assert shown.values["data.root"] == "/data"
    assert list(shown.values["preprocess.mean"]) == [0.5, 0.25, 0.5]
    assert shown.values["model.options"]["depth"] == 2
    assert shown.origins["train.epochs"] == "settings"
    assert vitrail.show_config("digits", ["optim.lr=5e-4"]).values["optim.lr"] == 5e-4


def test_a_table_alone_is_shown_as_in_its_result() -> None:
    recipe = FILES / "tnt_s_gpu.yaml"
    shown = vitrail.show_config(recipe)
    table = shown.translated
    assert table is not None
    assert str(table) in str(shown)
    assert table._repr_html_() in shown._repr_html_()
    assert re.search(r"their key +their value +our setting +our value +note", str(table))


def test_an_explanation_alone_is_shown_as_its_sheet(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    image = next((image_folder / "val").rglob("*.jpg"))
    without = vitrail.explain(tiny_checkpoint, image, maps_alone=True, progress=False)
    assert without[0]._repr_png_() is None
    one = vitrail.explain(tiny_checkpoint, image, output=tmp_path / "maps", maps_alone=True, progress=False)[0]
    assert one.sheet is not None
    assert one._repr_png_() == one.sheet.read_bytes()


def test_a_result_obeys_no_name_in_it() -> None:
    class Hostile(Result):
        def tables(self) -> list[Table]:
            return [Table("<b>\x1b[31m", ("a",), (("<script>\x1b[2J",),))]

    assert "\x1b" not in str(Hostile()) + Hostile()._repr_html_()
    assert "<script>" not in Hostile()._repr_html_()


def test_without_pandas_a_result_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(vitrail.VitrailError, match="to_pandas needs pandas; run: pip install pandas"):
        vitrail.show_config("digits").to_pandas()


@pytest.mark.thorough
def test_pandas_is_imported_by_to_pandas_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, vitrail\n"
        "shown = vitrail.show_config('digits')\n"
        "print(shown)\n"
        "assert 'pandas' not in sys.modules\n"
        "shown.to_pandas()\n"
    )
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert isinstance(vitrail.show_config("digits").to_pandas(), pandas.DataFrame)


def test_a_script_without_a_terminal_is_told_warnings_alone(tmp_path: Path, image_folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vitrail.train(
            TINY,
            {"data.root": image_folder, "train.epochs": 1, "schedule.warmup_epochs": 0, "model.name": "tnt_ti"},
            output={"root": tmp_path},
        )
    assert "model 'tnt_ti' is called 'tnt_ti_patch16_224' here" in [str(one.message) for one in caught]
