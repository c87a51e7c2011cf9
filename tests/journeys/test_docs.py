"""The documents say what the code does: generated parts are current, commands parse, examples run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.forked import python
from vitrail.cli.app import app, understood
from vitrail.config.commands import (
    CheckConfig,
    ConvertConfig,
    DataConfig,
    EmbedConfig,
    EvaluateConfig,
    PredictConfig,
    TrainConfig,
)
from vitrail.config.recipes import find_recipe, list_recipes
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.models.registry import create_model
from vitrail.reproduction.recipes import find_recipes

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# the code of the Chinese pages is held equal to the English by tests/journeys/test_chinese.py
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    # the page of the functions is run by tests/api/test_documents.py
    pages = [path for path in DOCUMENTS if path.name != "python.md"]
    return [code for path in pages for kind, code in BLOCK.findall(path.read_text()) if kind == language]


def vitrail_commands() -> list[list[str]]:
    """Return the arguments of every vitrail command that a document or a recipe's header tells the reader to type."""
    lines = [line for code in blocks("bash") for line in code.splitlines()]
    for name in list_recipes():
        lines += [
            line.lstrip("# ") for line in find_recipe(name)[1].read_text().splitlines() if line.startswith("#   ")
        ]
    words = [shlex.split(line, comments=True) for line in lines]
    found = []
    for line in words:
        for start in (["vitrail"], ["uv", "run", "vitrail"]):
            if line[: len(start)] == start:
                found.append(line[len(start) :])
        if line[:1] == ["torchrun"]:
            found.append(line[line.index("vitrail") + 1 :])
    return found


def test_generated_parts_are_current() -> None:
    done = python(ROOT / "docs" / "generate.py", "--check")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run: uv run python docs/generate.py"


def test_documents_have_every_command() -> None:
    named = {arguments[0] for arguments in vitrail_commands()}
    assert named | {"models", "config"} == {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("arguments", vitrail_commands(), ids=" ".join)
def test_a_documented_command_is_understood(arguments: list[str]) -> None:
    arguments, _ = understood(arguments)
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    if arguments[0] == "weights":  # which has commands of its own, and takes no settings
        assert command.__module__ == "vitrail.cli.weights"
        return
    assert command.__name__.replace("_", "-") == arguments[0]
    given = [value for value in bound.args if isinstance(value, str)]
    settings = [text for text in given if re.match(r"[a-z]+\.[a-z_0-9]+=", text)]
    recipes = [text for text in given if text not in settings and text in list_recipes()]
    if arguments[0] in ("doctor", "bench", "verify", "models"):
        return
    if arguments[0] == "reproduce":
        recipes = find_recipes(given[0])[:1] if given[0] not in list_recipes() else [given[0]]
    schema = {
        "train": TrainConfig,
        "finetune": TrainConfig,
        "pretrain": TrainConfig,
        "tune": TrainConfig,
        "reproduce": TrainConfig,
        "preview": TrainConfig,
        "bench-data": TrainConfig,
        "evaluate": EvaluateConfig,
        "quantize": EvaluateConfig,
        "predict": PredictConfig,
        "explain": EvaluateConfig if {"--score", "--by-layer"} & {*arguments} else PredictConfig,
        "embed": EmbedConfig,
        "make-token-labels": EmbedConfig,
    }
    schema |= {"check-data": CheckConfig, **dict.fromkeys(("convert", "export", "serve"), ConvertConfig)}
    schema |= dict.fromkeys(("pack", "resize-data"), DataConfig)
    if schema[arguments[0]] is TrainConfig:
        layers = [read_yaml(find_recipe(recipes[0] if recipes else "digits")[1])]
    else:  # what the weight file would say
        layers = [
            parse_command_line(
                ["data.root=trained/on"] if schema[arguments[0]] in (EvaluateConfig, EmbedConfig) else []
            )
        ]
    resolve(schema[arguments[0]], [*layers, parse_command_line(settings)])


@pytest.mark.thorough
def test_python_of_the_documents_runs(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run = tmp_path / "runs" / "digits"
    run.mkdir(parents=True)
    tiny_checkpoint.rename(run / "best.safetensors")
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(run / "digits-00003.png")
    torch.save(create_model("t2t_vit_7").state_dict(), tmp_path / "t2t_vit_7.pth")
    program = tmp_path / "program.py"
    own_program = "import mixer\n"  # tests/models/test_registered_family.py runs it
    program.write_text("\n".join(block for block in blocks("python") if not block.startswith(own_program)))
    done = python(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in ("red", "green", "blue")
    assert "twins_svt_base" in done.stdout


def test_documents_name_files_that_exist() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_readme_is_short_and_names_folders_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    for name in re.findall(r"`((?:docs|src|tests|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_documents_are_ascii() -> None:
    for path in [*DOCUMENTS, ROOT / "CHANGELOG.md"]:
        assert path.read_bytes().isascii(), path
