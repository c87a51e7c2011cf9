"""What the documents say of Python runs: each call of the page, and the notebook from images to predictions."""

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import vitrail
from support.forked import python
from vitrail.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "python.md").read_text()
ROWS = re.findall(r"^\| `(vitrail\..+?)` \| `(vitrail .+?)` \|$", PAGE, re.MULTILINE)


def test_the_page_has_every_function_beside_its_command() -> None:
    functions = {re.match(r"vitrail\.(\w+)\(", call)[1] for call, _ in ROWS}  # pyright: ignore[reportOptionalSubscript]
    assert functions == set(vitrail.__all__) - {
        "VitrailError",
        "attention",
        "create_model",
        "load_model",
        "register_family",
    }
    assert {shlex.split(command)[1] for _, command in ROWS} == {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize(("call", "command"), ROWS)
def test_a_call_and_its_command_are_understood(call: str, command: str) -> None:
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call)
    assert isinstance(tree.func, ast.Attribute)
    arguments = [ast.literal_eval(argument) for argument in tree.args]
    keywords: Any = {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords}
    inspect.signature(getattr(vitrail, tree.func.attr)).bind(*arguments, **keywords)
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


@pytest.mark.thorough
def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)))
    done = python(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "settings: optim.lrr: unknown key; did you mean 'lr'?" in done.stdout
    assert done.stderr == ""


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs_from_images_to_predictions(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "notebooks" / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            if output.output_type == "execute_result":
                shown[cell.source.splitlines()[-1]] = output.data
    assert "of 10 classes" in shown["check"]["text/html"]
    assert "top-1, %" in shown["run"]["text/html"]
    assert "image/png" in shown["run.curves"]
    assert "images/7/" in shown["predictions"]["text/html"]
    assert (tmp_path / "runs" / "digits" / "best.onnx").is_file()


def test_the_notebook_keeps_no_outputs() -> None:
    notebook = nbformat.read(DOCS / "notebooks" / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
