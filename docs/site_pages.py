"""The pages of the documentation site that are generated: verbs, models, recipes, benchmarks and the API."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import vitrail
from vitrail.cli.app import app
from vitrail.config.recipes import find_recipe, list_recipes, read_header, read_recipe
from vitrail.models.catalogue import COLUMNS, catalogue
from vitrail.models.registry import find_variant, list_models
from vitrail.reproduction.recipes import find_recipes

ROOT = Path(__file__).parents[1]
Writer = Callable[[str, str, Path], None]
"""Takes a page, its text, and the file of the repository that its links are relative to."""
MADE = Path("docs/generated.md")
"""Links of generated pages are relative to docs/; those to other generated pages begin with `page:`."""
API_OPTIONS = {
    "docstring_style": "google",
    "filters": ["!^_"],
    "heading_level": 2,
    "members_order": "source",
    "separate_signature": True,
    "show_bases": False,
    "show_root_heading": True,
    "show_root_full_path": False,
    "show_source": False,
    "show_signature_annotations": True,
    "signature_crossrefs": False,
}
"""How mkdocstrings shows a name."""
ROOMS = ("models", "images", "data", "weights", "inference", "evaluation", "embedding", "training")
"""Rooms that programs of others import from, and that the API reference has."""
TUTORIALS = ("quickstart", "engineer", "researcher", "mindspore")
"""Notebooks in the order in which they are listed; others follow."""


def write_pages(write: Writer) -> dict[str, list[object]]:
    """Write all generated pages and return the navigation of each group."""
    write_verbs(write)
    return {
        "notebooks": write_notebooks(write),
        "model": write_models(write),
        "recipes": write_recipes(write),
        "benchmarks": write_benchmarks(write),
        "api": write_api(write),
    }


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ("-",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_notebooks(write: Writer) -> list[object]:
    """Write the list of notebooks, the first ones first, each of which is shown as a page."""
    text = (
        "# Tutorials\n\nEach is a notebook that runs from its first cell to its last without a network; a test does so "
        "and looks at what it shows. Read it here, or open the file in Jupyter.\n\n"
    )
    paths = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"), key=_place_of)
    for path in paths:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title, _, about = "".join(cells[0]["source"]).removeprefix("# ").partition("\n\n")
        first = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", about.partition(". ")[0]).rstrip(".")  # links as text
        text += f"- [{title}](notebooks/{path.name}): `docs/notebooks/{path.name}`. {first}.\n"
    write("notebooks/index.md", text, MADE)
    return ["notebooks/index.md"]


def _place_of(notebook: Path) -> tuple[int, str]:
    """Return what notebooks are sorted by."""
    name = notebook.stem
    return (TUTORIALS.index(name) if name in TUTORIALS else len(TUTORIALS), name)


def write_verbs(write: Writer) -> None:
    """Write the page of every command: its own help, and the function that does the same."""
    text = app.generate_docs(output_format="markdown")
    text = text[text.index("**Commands**") :]
    for name in vitrail.__all__:
        verb = name.replace("_", "-")
        first = (inspect.getdoc(getattr(vitrail, name)) or "").split("\n\n")[0].replace("\n", " ")
        function = f"In Python: [`vitrail.{name}`](page:api/index.md#vitrail.{name}). {first}"
        text = text.replace(f"\n## vitrail {verb}\n", f"\n## vitrail {verb}\n\n{function}\n")
    head = "# Every verb\n\nThe command line's own help, and the function of each command.\n\n"
    write("verbs.md", head + text, MADE)


def write_models(write: Writer) -> list[object]:
    """Write a page for each model: facts, weights, cost by engine, recipes and commands."""
    published = list(vitrail.list_weights())
    costs = read_engines()
    trained = {one: read_recipe(one).layer.values["model"]["name"] for one in list_recipes()}
    rows, nav = [], []
    for name, *facts in catalogue():
        family = find_variant(name)[0]
        text = f"# {name}\n\n{family.title}: [paper]({family.paper}), [official code]({family.code}).\n\n## Facts\n\n"
        named = dict(zip(COLUMNS[1:], facts, strict=True))
        recipes = [one for one, model in trained.items() if model == name]
        reproduced = "not yet run"
        for one in find_recipes(name)[:1]:  # that of the published number, where there is one
            if one.endswith("_imagenet"):
                reproduced = read_header(find_recipe(one)[1].read_text(encoding="utf-8")).reproduced
        accuracy = ("top-1 / top-5, %", f"{named.pop('published top-1')} / {named.pop('top-5')}", reproduced)
        text += table(("fact", "value"), list(named.items()))
        text += f"\n## Accuracy on ImageNet-1k\n\n{table(('', 'published', 'reproduced'), [accuracy])}"
        text += "\n## Weights\n\n"
        files = [one for one in published if one.model == name]
        if files:
            where = [
                (f"`{one.name}`", one.origin, str(one.published_top1 or ""), f"{one.image_size} px", f"`{one.address}`")
                for one in files
            ]
            text += table(("name", "from", "published top-1", "size", "source"), where)
        else:
            text += "None is published at an address that can be fetched. A file that you have is read all the same.\n"
        text += "\n[Weights of every project](weights.md)\n\n## Cost by engine\n\n"
        text += costs.get(name, "Not measured for this model yet; `vitrail bench` measures it on your machine.\n")
        text += "\n## Recipes\n\n"
        text += "".join(f"- [{one}](page:recipes/{one}.md)\n" for one in recipes) or "None of its own.\n"
        text += f"\n## Commands\n\n```bash\n{commands_of(name, recipes, bool(files))}```\n"
        write(f"model/{name}.md", text, MADE)
        rows.append((f"[{name}](page:model/{name}.md)", *facts[:4], reproduced))
        nav.append({name: f"model/{name}.md"})
    columns = ("model", *COLUMNS[1:5], "reproduced top-1")
    write("model/index.md", f"# Each model\n\n{table(columns, rows)}", MADE)
    return ["model/index.md", *nav]


def commands_of(name: str, recipes: list[str], is_published: bool) -> str:
    """Return what one types for a model."""
    weights = name if is_published else "weights.pth"
    lines = [
        f"vitrail evaluate {weights} data.root=/data/imagenet",
        f"vitrail predict {weights} photos/",
        f"vitrail finetune photos/ model.name={name}",
        f"vitrail export {weights} --format onnx",
        f"vitrail bench {name}",
    ]
    lines += [f"vitrail train {one} data.root=/data/imagenet" for one in recipes if one.endswith("_imagenet")]
    return "\n".join(lines) + "\n"


def read_engines() -> dict[str, str]:
    """Return the tables of cost by engine, by model, with the machine and a link to the whole benchmark."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "benchmarks").glob("engines_*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        machine = next(line for line in lines if "threads," in line).removeprefix("- ")
        head = [line for line in lines if line.startswith(("| what", "|-"))]
        for name in list_models():
            rows = [line for line in lines if re.match(rf"\| {name}[ .,]", line)]
            if rows:
                title = f"[{machine}](../benchmarks/{path.name}):"
                found[name] = found.get(name, "") + "\n".join([title, "", *head, *rows, "", ""])
    return found


def write_recipes(write: Writer) -> list[object]:
    """Write a page for each recipe: what its header says, and its settings."""
    rows, nav = [], []
    for name in sorted(list_recipes()):
        text = find_recipe(name)[1].read_text(encoding="utf-8")
        header = read_header(text)
        first, *notes = header.notes
        figures = (header.published, header.reproduced)
        page = f"# {name}\n\n{first}\n\n```bash\n" + "\n".join(header.commands) + "\n```\n\n"
        page += table(("published", "reproduced"), [figures]) + "\n"
        page += "".join(f"- {line}\n" for line in notes) + "\n## Settings\n\n"
        page += "[Every setting](config.md) that is not here has its default; "
        page += f"`vitrail config {name}` shows them all.\n\n"
        settings = re.sub(r"\A(#.*\n)+", "", text)
        write(f"recipes/{name}.md", f"{page}```yaml\n{settings}```\n", MADE)
        rows.append((f"[{name}](page:recipes/{name}.md)", *figures))
        nav.append({name: f"recipes/{name}.md"})
    head = "# Recipes\n\nOne a published run. `vitrail train NAME data.root=FOLDER` runs it.\n\n"
    write("recipes/index.md", head + table(("recipe", "published", "reproduced"), rows), MADE)
    return ["recipes/index.md", *nav]


def write_benchmarks(write: Writer) -> list[object]:
    """Write the list of what was measured."""
    rows, nav = [], []
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        title = lines[0].removeprefix("# ")
        command = next((line.removeprefix("- ") for line in lines if line.startswith("- `")), "")
        machine = next((line.removeprefix("- ") for line in lines if "threads, AVX" in line), "")
        rows.append((f"[{title}](../benchmarks/{path.name})", machine, command))
        nav.append({f"{title}, {machine.rsplit(', ', 1)[1]}" if machine else title: f"benchmarks/{path.name}"})
    head = "# Benchmarks\n\nWhat was measured, with the command and the machine.\n\n"
    write("benchmarks/index.md", head + table(("what", "machine", "command"), rows), MADE)
    return ["benchmarks/index.md", *nav]


def write_api(write: Writer) -> list[object]:
    """Write the reference: the functions of vitrail, and the modules of the rooms that other programs import from."""
    text = "# vitrail\n\n```python\nimport vitrail\n```\n\n"
    write("api/index.md", text + "".join(f"::: vitrail.{name}\n\n" for name in vitrail.__all__), MADE)
    nav: list[object] = [{"vitrail": "api/index.md"}]
    for room in ROOMS:
        folder = ROOT / "src" / "vitrail" / room
        title = f"vitrail.{room}"
        page = f"# {title}\n\n"
        for path in sorted(folder.rglob("*.py")):
            module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            if path.name != "__init__.py":
                page += f"::: {module}\n    options:\n      show_root_full_path: true\n\n"
        write(f"api/{room}.md", page, MADE)
        nav.append({title: f"api/{room}.md"})
    return nav
