"""Write what the documents repeat from the code: the model table, the rooms and files, the recipes and the settings.

uv run python docs/generate.py          # write
uv run python docs/generate.py --check  # only say what differs; the tests do this
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from vitrail.config.recipes import read_header
from vitrail.models.registry import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vitrail"


def printed(*arguments: str) -> str:
    """Return what a `vitrail` command prints."""
    command = [sys.executable, "-m", "vitrail", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


ROOMS = (
    "kernels",
    "models",
    "images",
    "data",
    "weights",
    "migrate",
    "config",
    "classes",
    "distributed",
    "inference",
    "evaluation",
    "embedding",
    "explanation",
    "distillation",
    "training",
    "transfer",
    "tuning",
    "reproduction",
    "deploy",
    "server",
    "pages",
    "api",
    "cli",
)
"""In the order in which a newcomer meets them."""


def family_table() -> str:
    """Return one row a family of models: its models, their sizes and published accuracies."""
    rows = ["| family | models | parameters, M | published top-1, % | paper |", "|-|-|-:|-:|-|"]
    for family in FAMILIES:
        names = list(family.variants)
        sizes = [variant.params / 1e6 for variant in family.variants.values()]
        accuracies = [variant.top1 for variant in family.variants.values() if variant.top1]
        cells = (
            family.title,
            f"{len(names)}, such as `{names[1]}`",
            f"{min(sizes):.1f} to {max(sizes):.1f}",
            f"{min(accuracies):.1f} to {max(accuracies):.1f}",
            f"[{family.paper.rsplit('/', 1)[1]}]({family.paper})",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


CHINESE = {
    "family": "系列",
    "models": "模型",
    "model": "模型",
    "parameters, M": "参数量（M）",
    "params, M": "参数量（M）",
    "trainable, M": "可训练参数（M）",
    "MACs, G": "乘加（G）",
    "published top-1, %": "公布的 top-1（%）",
    "published top-1": "公布的 top-1",
    "source": "出处",
    "preprocessing": "预处理",
    "official": "官方",
    "paper": "论文",
}
"""Cells of the tables of models in Chinese; what is not here, such as a name, stays as it is."""


def in_chinese(table: str) -> str:
    """Return a table of models for a Chinese page."""
    text = ""
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        text += "| " + " | ".join(CHINESE.get(cell, cell) for cell in cells) + " |\n"
    text = re.sub(r", such as (`\w+`)", r" 个，如 \1", text)
    text = re.sub(r"(\d) to (\d)", r"\1 至 \2", text)
    text = re.sub(r"(\d+) px of ([\d.]+), bicubic, ", r"\1 像素，裁剪 \2，双三次，", text)
    text = text.replace("mean and std 0.5", "均值和标准差 0.5")
    return text.replace("ImageNet mean and std", "ImageNet 的均值和标准差")


TYPES = {
    "text": "文本",
    "a whole number": "整数",
    "a number": "数",
    "true or false": "true 或 false",
    "a mapping": "映射",
    "a list of numbers": "若干个数的列表",
    "a list of 2 numbers": "两个数的列表",
    "null": " null",
}
"""Types of settings in Chinese; of others, such as lists of choices, the first words are replaced."""

SETTING = re.compile(r"^\| (\w+\.\w+) \| (.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)
"""A row of the page of settings: key, type, default and meaning."""
SECTION = re.compile(r"^## (\w+)\n\n(.+)$", re.MULTILINE)
"""A section of it, and what is said of the section."""


def settings_in_chinese(english: str, chinese: str) -> str:
    """Return the Chinese page of settings with the keys, types and defaults of the English one.

    What its own rows and sections say stays; what it does not know yet is said in English.
    """
    meanings = {found[1]: found[4] for found in SETTING.finditer(chinese)}
    sections = dict(SECTION.findall(chinese))

    def row(found: re.Match[str]) -> str:
        kinds = []
        for kind in found[2].split(", or "):
            choices = re.sub("^one of ", "取自 ", re.sub("^a list of one of ", "列表，取自 ", kind))
            kinds.append(TYPES.get(kind, choices))
        cells = (found[1], "，或".join(kinds), found[3], meanings.get(found[1], found[4]))
        return "| " + " | ".join(cells) + " |"

    def section(found: re.Match[str]) -> str:
        return f"## {found[1]}\n\n{sections.get(found[1], found[2])}"

    head = chinese.partition("## ")[0]
    text = SETTING.sub(row, english.removeprefix(english.partition("## ")[0]))
    text = text.replace("| key | type | default | meaning |", "| 键 | 类型 | 默认值 | 含义 |")
    return head + SECTION.sub(section, text)


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def room_table() -> str:
    """Return one row a room: what it is for."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ROOMS), "ROOMS names each room once"
    rows = ["| room | what it is for |", "|-|-|"]
    for room in ROOMS:
        rows.append(f"| [{room}/](src/vitrail/{room}) | {first_line(PACKAGE / room / '__init__.py')} |")
    rows.append("| [recipes/](src/vitrail/recipes) | One YAML a published run: its command, source and accuracies. |")
    return "\n".join(rows) + "\n"


def file_map() -> str:
    """Return one line a module, room by room: its path and the first line of its docstring."""
    lines = ["```text"]
    for folder in ("", *ROOMS):
        modules = sorted((PACKAGE / folder).rglob("*.py") if folder else PACKAGE.glob("*.py"))
        modules = [path for path in modules if path.name not in ("__init__.py", "__main__.py")]
        width = max(len(str(path.relative_to(PACKAGE))) for path in modules)
        for path in modules:
            lines.append(f"{path.relative_to(PACKAGE)!s:<{width}}  {first_line(path)}")
        lines.append("")
    lines[-1] = "```"
    return "\n".join(lines) + "\n"


def recipe_table() -> str:
    """Return one line a recipe: its name, what it trains, and the figures of its header."""
    rows = ["| recipe | trains | published | reproduced |", "|-|-|-|-|"]
    for path in sorted((PACKAGE / "recipes").glob("*.yaml")):
        header = read_header(path.read_text(encoding="utf-8"))
        assert header.title, path
        rows.append(f"| `{path.stem}` | {header.title} | {header.published} | {header.reproduced} |")
    return "\n".join(rows) + "\n"


def filled(text: str, label: str, content: str) -> str:
    """Return the text with what stands between `<!-- label -->` and `<!-- end -->` replaced."""
    pattern = re.compile(rf"(<!-- {re.escape(label)} -->\n).*?(<!-- end -->)", re.DOTALL)
    changed, count = pattern.subn(lambda match: match[1] + content + match[2], text)
    assert count == 1, label
    return changed


def documents() -> dict[Path, str]:
    """Return what each document should read."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = filled(readme, "families", family_table())
    readme = filled(readme, "rooms", room_table())
    files = file_map()
    design = filled((ROOT / "docs" / "design.md").read_text(encoding="utf-8"), "file map", files)
    models = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    model_table = printed("models", "--markdown")
    models = filled(models, "vitrail models --markdown", model_table)
    training = filled((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), "recipes", recipe_table())
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    chinese = filled(chinese, "families", in_chinese(family_table()))
    chinese_models = (ROOT / "docs" / "zh" / "models.md").read_text(encoding="utf-8")
    chinese_models = filled(chinese_models, "vitrail models --markdown", in_chinese(model_table))
    chinese_design = (ROOT / "docs" / "zh" / "design.md").read_text(encoding="utf-8")
    chinese_design = filled(chinese_design, "file map", files)
    settings = printed("config", "--markdown")
    chinese_settings = (ROOT / "docs" / "zh" / "config.md").read_text(encoding="utf-8")
    return {
        ROOT / "README.md": readme,
        ROOT / "README.zh.md": chinese,
        ROOT / "docs" / "zh" / "models.md": chinese_models,
        ROOT / "docs" / "zh" / "design.md": chinese_design,
        ROOT / "docs" / "zh" / "config.md": settings_in_chinese(settings, chinese_settings),
        ROOT / "docs" / "design.md": design,
        ROOT / "docs" / "models.md": models,
        ROOT / "docs" / "training.md": training,
        ROOT / "docs" / "config.md": settings,
    }


def main() -> int:
    """Write or check the documents; return how many differ."""
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} {'differs' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    return len(stale) if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
