"""Every notebook of docs/notebooks runs from its first cell to its last, and shows the values that it should."""

from __future__ import annotations

import ast
import json
import statistics
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from vitrail.weights.formats.mindspore_ckpt import read_ckpt

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def execute(name: str, folder: Path) -> dict[str, Any]:
    """Run a notebook in a folder, and return what cells show by their last lines, printed text under `print`."""
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown: dict[str, Any] = {"print": ""}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            if output.output_type == "execute_result":
                shown[cell.source.splitlines()[-1]] = output.data
            elif output.get("name") == "stdout":
                shown["print"] += output.text
    return shown


def value(shown: dict[str, Any], line: str) -> Any:
    """Return a plain value that a cell shows."""
    return ast.literal_eval(shown[line]["text/plain"])


def words(shown: dict[str, Any], line: str) -> str:
    """Return the table that a cell shows, as it stands in HTML."""
    return shown[line]["text/html"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_public_functions_alone(path: Path) -> None:
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    source = "\n".join(cell for cell in code if not cell.startswith("%%writefile"))  # a file of the user's own
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert {name for name in imported if name.startswith("vitrail")} == {"vitrail"}


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_quickstart_goes_from_images_to_predictions(tmp_path: Path) -> None:
    shown = execute("quickstart", tmp_path)
    assert "of 10 classes" in words(shown, "check")
    assert "top-1, %" in words(shown, "run")
    assert "image/png" in shown["run.curves"]
    assert "images/7/" in words(shown, "predictions")
    assert (tmp_path / "runs" / "digits" / "best.onnx").is_file()


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_engineer_goes_from_a_folder_of_photos_to_a_service(tmp_path: Path) -> None:
    shown = execute("engineer", tmp_path)

    # What was wrong with the folder, and that it was mended
    assert "1 image cannot be read" in words(shown, "check")
    assert "('train/seven/IMG_0017.jpg', 'val/seven/copy.jpg')" in shown["print"]
    assert '<td style="text-align: left">error</td>' in words(shown, "check")
    assert '<td style="text-align: left">error</td>' not in words(shown, "again")
    assert not (tmp_path / "photos" / "val" / "seven" / "copy.jpg").exists()

    # Fine-tuning ends above the linear probe that it began with, and the report has the same number
    rows = [json.loads(line) for line in (tmp_path / "runs" / "photos" / "metrics.jsonl").read_text().splitlines()]
    best = max(row["val_top1"] for row in rows)
    assert rows[0]["epoch"] == 0
    assert 75 < rows[0]["val_top1"] < best
    assert best > 85
    assert "the model of the given weights" in words(shown, "plan")
    report = json.loads((tmp_path / "evaluations" / "photos" / "report.json").read_text())
    assert report["top1"] == pytest.approx(best)
    assert report["n_ok"] == 99
    assert f'<td style="text-align: right">{best:.2f}</td>' in words(shown, "evaluation")
    for line in ("run.curves", "evaluation.confusion", "explained[0]"):
        assert shown[line]["image/png"]
    for name in ("eight", "five", "nine", "seven", "six"):
        assert name in words(shown, 'pandas.read_csv(evaluation.report.with_name("per_class.csv"))')
        assert f"photos/val/{name}/" in words(shown, "predictions")
    threshold = value(shown, "threshold")
    assert 0 < threshold < 1
    assert (tmp_path / "maps" / "index.html").is_file()

    # The file for other runtimes: its verdict, and its answers to the photos
    assert "16 of 16" in words(shown, "exports")
    assert "same answer as runs/photos/best.safetensors: 99 of 99" in words(shown, "agreement")

    # The service: an answer over HTTP, its state, its end
    assert value(shown, "address").startswith("http://127.0.0.1:")
    answer = value(shown, 'best | {"is_sure": best["probability"] >= threshold}')
    assert answer["name"] == "eight"
    assert 0.2 < answer["probability"] <= 1
    assert answer["is_sure"] is (answer["probability"] >= threshold)
    assert '{"status":"ok"}' in shown["print"]
    assert 'vitrail_requests_total{path="/predict",status="200"} 1.0' in shown["print"]
    assert value(shown, "service.wait(timeout=60)") == 0
    log = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    assert [one["path"] for one in log if one["event"] == "request"] == ["/predict", "/health", "/metrics"]


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_researcher_goes_from_a_family_and_a_loss_to_a_table(tmp_path: Path) -> None:
    shown = execute("researcher", tmp_path)

    # The family is known by its name, has maps, and says what is wrong
    assert value(shown, 'vitrail.list_models("patch*")') == ["patchconv_s"]
    assert value(shown, "[tuple(one.shape) for one in maps]") == [(1, 48, 4, 4)] * 3
    assert "image_size 60x60 is not a multiple of 16; the nearest sizes are 48x48 or 64x64" in shown["print"]

    # Two models, two losses, three seeds, each run with the loss that it says
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 12
    for folder in folders:
        recorded = yaml.safe_load((folder / "config.yaml").read_text())["train"].get("loss")
        assert recorded == ("poly_loss" if "poly" in folder.name else None)
    last = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["val_top1"] for folder in folders[:3]]
    assert folders[0].name.startswith("PatchConv-cross-entropy")
    assert min(last) > 80
    mean = statistics.mean(last)
    assert f"PatchConv & {mean:.1f} $\\pm$ {statistics.stdev(last):.1f} & " in shown["print"]
    assert "16 of 16" in words(shown, "exports")


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_mindspore_goes_to_pytorch_and_back(tmp_path: Path) -> None:
    shown = execute("mindspore", tmp_path)

    # Recognised and converted, every weight equal, the same answers
    table = words(shown, "settings.translated")
    for cell in ("their key", "drop_path_rate", "model.drop_path_rate", "epoch_size", "train.epochs"):
        assert f">{cell}</t" in table
    assert "tnt_small.ckpt: mindcv tnt_s_patch16_224" in words(shown, "converted")
    assert "logits differ by 0.0e+00 at most" in words(shown, "converted")
    assert "as written" in words(shown, "checks")
    assert "same answer as tnt_small.ckpt: 181 of 181" in words(shown, "evaluation")
    best = value(shown, "sweep.best_settings")
    assert best["preprocess.mean"] == (0.485, 0.456, 0.406)

    # Training goes on from where MindCV's ended
    folder = tmp_path / "ckpt"
    trained, run = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("tnt_s", "continued")
    )
    assert [row["epoch"] for row in run] == [0, 1]
    assert run[0]["val_top1"] == max(row["val_top1"] for row in trained) > 80
    assert run[1]["val_loss"] < run[0]["val_loss"]
    recipe = value(
        shown, '{name: recipe[name] for name in ("model.name", "model.options", "optim.lr", "train.epochs")}'
    )
    assert recipe["model.options"] == {"gelu": "tanh", "final_norm_eps": 1e-7}
    assert (recipe["optim.lr"], recipe["train.epochs"]) == (1e-4, 1)

    # Back: a .ckpt in MindSpore's names and with the same answers, and a MindIR with its program
    assert "blocks.0.inner_norm1.gamma" in read_ckpt(tmp_path / "continued.ckpt")
    assert "every weight equal: continued.ckpt" in words(shown, "back")
    assert "same answer as continued.ckpt: 181 of 181" in words(shown, "agreement")
    assert "continued.mindir" in words(shown, "exports")
    files = value(shown, 'sorted(path.name for path in Path().glob("continued.*"))')
    assert files == ["continued.check.npz", "continued.check.py", "continued.ckpt", "continued.mindir"]
