"""Who may import whom, who alone may do what, and that the public names are few and documented."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitrail

PACKAGE = Path(vitrail.__file__).parent
LAYERS = [
    {
        "devices",
        "errors",
        "file_kinds",
        "pickled",
        "wire",
        "models.recorded",
        "serve.measures",
        "serve.nursery",
        "serve.turns",
    },
    {
        "cells",
        "channel",
        "dialects",
        "files",
        "inputs",
        "launch",
        "pixels",
        "models.attention",
        "models.linear",
        "serve.batching",
        "serve.cost",
    },
    {"arrays", "tiff", "bmp", "containers"},
    {
        "ckpt",
        "config",
        "torch_file",
        "models.registry",
        "display",
        "schedule",
        "stop",
        "stopwatch",
        "guard",
        "watchdog",
        "rendezvous",
        "sharding",
        "decoding",
        "shift",
        "serve.settings",
    },
    {
        "image_config",
        "imagenet",
        "models.layers",
        "photos",
        "transforms",
        "metrics",
        "augment",
        "projects",
        "weight_file",
    },
    {"official", "preprocess_graph", "serve.connections", "serve.headers", "serve.log", "serve.upload"},
    {"scores", "confusion", "page", "whole_folder"},
    {
        "models.tnt",
        "models.t2t_vit",
        "models.twins",
        "data.paths",
        "data.labels",
        "data.inspection",
        "data.likeness",
        "data.sampling",
        "foreign",
        "label_metrics",
    },
    {"data.sources"},
    {"data.shards", "data.sketch"},
    {
        "data.roster",
        "data.folders",
        "data.splits",
        "data.named_sets",
        "data.loader",
        "data.imagenet_val",
        "data.rows",
        "data.parquet",
        "data.columns",
        "balance",
    },
    {"data.manifest", "data.lists", "data.hf", "objective"},
    {"data.check", "data.findings"},
    {"models", "data", "start", "flags"},
    {"checkpoint", "engine", "optim", "catalogue", "int8", "mindir", "recognise"},
    {"answers", "artifact", "class_names", "subtree"},
    {"adapt", "bin_files"},
    {"loading", "report"},
    {"engines", "label_report"},
    {"bench", "hub", "evaluate", "predict", "run_folder", "state", "doctor"},
    {"convert", "check_data", "pack", "resize_data", "timm", "verdict", "serve.decoders"},
    {"export", "serve.app"},
    {"serve"},
    {"job", "quantize"},
    {"run_report"},
    {"train"},
    {"bench_data", "tables"},
    {"cli"},
]
ENTRY_POINTS = {"", "__main__"}  # nothing imports them
ROWS = {module: row for row, modules in enumerate(LAYERS) for module in modules}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module) -> list[tuple[str, bool]]:
    """Return each imported module's absolute name, and whether the import stands inside a function."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            own = [n for n in names if n.removeprefix("vitrail.") in ROWS]
            found += [(n, id(node) in inside) for n in own] or [(str(node.module), id(node) in inside)]
    return found


MODULES = modules()


def test_every_module_has_a_layer() -> None:
    for name in MODULES.keys() - ENTRY_POINTS:
        assert name in ROWS, f"{name} is new: give it a layer in LAYERS"
    assert not ROWS.keys() - MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES.keys() - ENTRY_POINTS))
def test_module_imports_only_from_lower_rows(name: str) -> None:
    for imported, _ in imports(MODULES[name]):
        if imported.split(".")[0] == "vitrail":
            target = imported.removeprefix("vitrail").removeprefix(".")
            assert ROWS[target] < ROWS[name], f"{name} may not import {target}"


@pytest.mark.parametrize("name", sorted(MODULES.keys() - ENTRY_POINTS - {"cli"}))
def test_only_the_command_line_imports_our_modules_inside_functions(name: str) -> None:
    assert not [i for i, inside in imports(MODULES[name]) if inside and i.split(".")[0] == "vitrail"]


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        (
            "accelerate",
            {"answers", "doctor", "engine", "evaluate", "state", "job", "train"},
        ),  # all but the first only name the type
        ("cyclopts", {"cli"}),
        ("rich", {"display", "tables"}),
        ("safetensors", {"checkpoint", "weight_file", "data.manifest"}),
        ("matplotlib", {"run_folder"}),
        ("jinja2", {"page"}),
        ("torchvision", {"data.named_sets", "transforms"}),
        ("torchcodec", {"decoding"}),
        ("tifffile", {"tiff"}),
        ("timm", {"adapt", "bench", "hub", "imagenet", "timm", "transforms", "state", "job", "models.layers"}),
        ("huggingface_hub", {"hub", "weight_file"}),
        ("datasets", {"data.hf"}),
        ("pyarrow", {"data.hf", "data.parquet"}),
        ("mindspore", set()),
        ("onnxruntime", {"engines", "int8"}),
        ("nncf", {"int8"}),
        ("openvino", {"engines", "export"}),
        ("onnx", {"int8", "preprocess_graph"}),
        ("fastapi", {"serve.app"}),
        ("pydantic", {"serve.app"}),
        ("starlette", {"serve.app"}),
        ("uvicorn", {"serve.connections"}),
        ("python_multipart", {"serve.upload"}),
        ("prometheus_client", {"serve.measures"}),
        ("pickle", set()),
        ("sklearn", {"data.named_sets"}),
    ],
)
def test_a_library_has_few_owners(library: str, owners: set[str]) -> None:
    users = {name for name, tree in MODULES.items() if any(i.split(".")[0] == library for i, _ in imports(tree))}
    assert users <= owners


def calls(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) == name for node in ast.walk(tree))


@pytest.mark.parametrize(
    ("function", "owners"),
    [
        ("print", {"cli", "tables"}),
        ("sys.exit", {"cli"}),
        ("torch.load", {"state"}),
        ("safe_open", {"weight_file", "data.manifest"}),
        ("Image.open", {"decoding"}),
        ("dist.all_gather_object", {"engine"}),
        ("eval", set()),
        ("exec", set()),
    ],
)
def test_an_effect_has_one_owner(function: str, owners: set[str]) -> None:
    assert {name for name, tree in MODULES.items() if calls(tree, function)} == owners


def test_states_are_read_without_unrestricted_pickle() -> None:
    loads = [
        node
        for node in ast.walk(MODULES["state"])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    for load in loads:
        assert "weights_only=True" in ast.unparse(load)


def test_models_use_no_unfold() -> None:
    for name, tree in MODULES.items():
        if name.startswith("models"):
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert "Unfold" not in used, name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_and_its_public_definitions_say_what_they_are(name: str) -> None:
    tree = MODULES[name]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def test_every_file_is_ascii() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.read_bytes().isascii(), path


def test_public_names_resolve_and_are_documented() -> None:
    assert set(vitrail.__all__) == set(dir(vitrail)) == {"VitrailError", "create_model", "list_models", "load_model"}
    for name in vitrail.__all__:
        assert getattr(vitrail, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vitrail.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["vitrail", *(f"vitrail.{name}" for name in ("cli", "config", "start", "errors"))])
def test_what_answers_at_once_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'timm', 'numpy', 'matplotlib'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prediction_imports_no_more_than_it_needs() -> None:
    needless = {"accelerate", "matplotlib", "jinja2", "scipy", "timm", "torchvision", "onnxruntime"}
    code = f"import sys, vitrail.predict, vitrail.engines; print(*{needless} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert not done.stdout.split()
