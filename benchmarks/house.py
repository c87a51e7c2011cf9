"""Measure how Python packages are built: files, functions, density; one column a package, as Markdown.

uv run python benchmarks/house.py                          # this package
uv run python benchmarks/house.py src/vitrail ../timm/timm # beside another
git worktree add /tmp/before COMMIT && uv run python benchmarks/house.py /tmp/before/src/vitrail src/vitrail

A function is as long as its lines from `def` on,
docstring and comments included; nested functions count as functions of their own.
"""

from __future__ import annotations

import argparse
import ast
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Module:
    """One file: its lines, its syntax tree and its comments."""

    path: Path
    lines: list[str]
    tree: ast.Module
    own_line_comments: int

    @property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def count(self, *kinds: type[ast.AST]) -> int:
        return sum(isinstance(node, kinds) for node in ast.walk(self.tree))


def read_module(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    own_line = sum(token.line.lstrip().startswith("#") for token in comments)
    return Module(path, text.splitlines(), ast.parse(text), own_line)


def length(function: Function) -> int:
    return int(function.end_lineno or 0) - function.lineno + 1


def positional(function: Function) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args]
    is_method = bool(arguments) and arguments[0].arg in ("self", "cls")
    return len(arguments) - is_method


def parameters(function: Function) -> int:
    return positional(function) + len(function.args.kwonlyargs)


def is_annotated(function: Function) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    return function.returns is not None and all(argument.annotation is not None for argument in own)


def public_functions(module: Module) -> Iterator[Function]:
    for node in module.tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def attribute_docstrings(module: Module) -> int:
    """Count the strings that stand alone behind an assignment."""
    bodies = [node.body for node in ast.walk(module.tree) if isinstance(node, ast.Module | ast.ClassDef)]
    pairs = [pair for body in bodies for pair in pairwise(body)]
    return sum(
        isinstance(first, ast.Assign | ast.AnnAssign)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
        and isinstance(second.value.value, str)
        for first, second in pairs
    )


def nested_conditionals(module: Module) -> int:
    """Count conditional expressions inside a comprehension or an argument list."""
    outer = [node for node in ast.walk(module.tree) if isinstance(node, COMPREHENSIONS | ast.Call)]
    inner = {id(inside) for node in outer for inside in ast.walk(node) if isinstance(inside, ast.IfExp)}
    return len(inner)


def measure(package: Path) -> Mapping[str, str]:
    """Return what stands in each row of the table."""
    modules = [read_module(path) for path in sorted(package.rglob("*.py"))]
    functions = [function for module in modules for function in module.functions]
    public = [function for module in modules for function in public_functions(module)]
    lines = [line for module in modules for line in module.lines]
    written = [line for line in lines if line.strip()]
    sizes = {module.path: len(module.lines) for module in modules}
    largest = max(sizes, key=lambda path: sizes[path])
    longest = max(functions, key=length)
    thousand = len(lines) / 1000

    def rate(count: int) -> str:
        return f"{count / thousand:.1f}"

    def share(count: int, of: int) -> str:
        return f"{count} ({100 * count / of:.1f} %)"

    def total(*kinds: type[ast.AST]) -> int:
        return sum(module.count(*kinds) for module in modules)

    tuple_assignments = sum(
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
        for module in modules
        for node in ast.walk(module.tree)
    )
    return {
        "files / lines": f"{len(modules)} / {len(lines):,}",
        "modules directly in the package root": str(len(list(package.glob("*.py")))),
        "packages inside": str(len(list(package.rglob("__init__.py"))) - 1),
        "file, median lines": f"{median(sizes.values()):.0f}",
        "file, largest": f"{sizes[largest]:,} {largest.relative_to(package)}",
        "files over 500 lines": share(sum(size > 500 for size in sizes.values()), len(sizes)),
        "files over 600 lines": str(sum(size > 600 for size in sizes.values())),
        "function, median lines": f"{median(map(length, functions)):.0f}",
        "functions over 50 lines": share(sum(length(function) > 50 for function in functions), len(functions)),
        "functions over 90 lines": str(sum(length(function) > 90 for function in functions)),
        "longest function": f"{length(longest)} {longest.name}",
        "functions of more than 6 parameters": share(sum(parameters(f) > 6 for f in functions), len(functions)),
        "functions of more than 8 positional parameters": str(sum(positional(f) > 8 for f in functions)),
        "functions fully annotated": f"{100 * sum(map(is_annotated, functions)) / len(functions):.0f} %",
        "public functions with a docstring": share(sum(map(bool, map(ast.get_docstring, public))), len(public)),
        "attribute docstrings / 1000 lines": rate(sum(map(attribute_docstrings, modules))),
        "own-line comments / 1000": rate(sum(module.own_line_comments for module in modules)),
        "conditional expressions / 1000": rate(total(ast.IfExp)),
        "of these inside a comprehension or an argument list": rate(sum(map(nested_conditionals, modules))),
        "comprehensions / 1000": rate(total(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)),
        "walrus / 1000": rate(total(ast.NamedExpr)),
        "assignments of tuples / 1000": rate(tuple_assignments),
        "characters a line": f"{sum(map(len, written)) / len(written):.0f}",
        "lines over 100 characters": f"{100 * sum(len(line) > 100 for line in lines) / len(lines):.1f} %",
        "`# fmt: skip`": str(sum("# fmt: skip" in line for line in lines)),
    }


def read_package(text: str) -> Path:
    """Return the folder of a package; argparse tells what is none."""
    folder = Path(text).resolve()
    if not any(folder.rglob("*.py")):
        raise argparse.ArgumentTypeError(f"{text} holds no Python files")
    return folder


def main() -> None:
    """Print the table of the packages named on the command line."""
    here = Path(__file__).resolve().parents[1] / "src" / "vitrail"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", type=read_package, default=[here], help="folders of packages")
    packages: list[Path] = parser.parse_args().packages
    columns = [measure(package) for package in packages]
    print("| | " + " | ".join(package.name for package in packages) + " |")
    print("|-" * (len(packages) + 1) + "|")
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main()
