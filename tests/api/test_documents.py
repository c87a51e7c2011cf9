"""What docs/python.md says runs: each call of the page, and its code."""

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

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
