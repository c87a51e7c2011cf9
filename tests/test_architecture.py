"""Who may import whom, who alone may do what, and that the public names are few and documented."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitrail

PACKAGE = Path(vitrail.__file__).parent
ROOMS = [
    {"choices", "errors", "imagenet", "cells"},
    {"files", "devices"},
    {"whole_folder", "config", "distributed", "kernels"},
    {"display", "models", "classes"},
    {"images"},
    {"weights", "migrate", "pages"},
    {"hub", "data", "timm"},
    {"inference"},
    {"explanation"},
    {"evaluation", "server"},
    {"embedding"},
    {"distillation"},
    {"training", "deploy"},
    {"transfer", "tuning", "reproduction"},
    {"api"},
    {"cli"},
]
"""A room is a package, or a module beside them; it imports from itself and from the rows above it."""
ENTRY_POINTS = {"__init__", "__main__"}  # nothing imports them
ROWS = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}


def read_modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module, by its name below the package; that of a package ends in __init__."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = read_modules()
FACES = {name for name in MODULES if name.endswith(".__init__")}


@dataclass(frozen=True)
class Imported:
    """A name that one of our modules imports."""

    module: str
    """Absolute; of `from a import b`, a.b where that is a module of ours, else a."""
    name: str
    """What is taken from the module; empty where it is the module itself."""
    in_function: bool

    @property
    def own(self) -> str:
        """The module's name below the package; empty where it is no module of ours."""
        return self.module.removeprefix("vitrail.") if self.module.startswith("vitrail.") else ""


def imports(tree: ast.Module) -> list[Imported]:
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    result = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result += [Imported(alias.name, "", id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole.removeprefix("vitrail.") in MODULES:
                    result.append(Imported(whole, "", id(node) in inside))
                else:
                    result.append(Imported(str(node.module), alias.name, id(node) in inside))
    return result


IMPORTS = {name: imports(tree) for name, tree in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_row() -> None:
    rooms = {room(name) for name in MODULES} - ENTRY_POINTS
    assert rooms == ROWS.keys(), "a new room needs a row in ROOMS"


def test_few_files_stand_outside_the_rooms() -> None:
    assert len([name for name in MODULES if "." not in name]) <= 12


@pytest.mark.parametrize("name", sorted(MODULES.keys() - ENTRY_POINTS))
def test_a_room_imports_only_from_the_rows_above_it(name: str) -> None:
    for imported in IMPORTS[name]:
        target = imported.own
        if target and room(target) != room(name):
            assert ROWS[room(target)] < ROWS[room(name)], f"{name} may not import {target}"


@pytest.mark.parametrize("name", sorted({room(name) for name in MODULES if "." in name}))
def test_no_modules_of_a_room_import_each_other_in_a_circle(name: str) -> None:
    graph = {
        module: {imported.own for imported in IMPORTS[module] if room(imported.own) == name and imported.own in MODULES}
        for module in MODULES
        if room(module) == name
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


@pytest.mark.parametrize("name", sorted(MODULES.keys() - ENTRY_POINTS - {"hub"}))
def test_a_name_is_imported_from_the_module_that_defines_it(name: str) -> None:
    for imported in IMPORTS[name]:
        if imported.own in MODULES and imported.name:
            borrowed = {other.name for other in IMPORTS[imported.own] if other.own}
            assert imported.name not in borrowed, f"{name} takes {imported.name} from {imported.own}"


@pytest.mark.parametrize("name", sorted(FACES))
def test_the_face_of_a_room_holds_no_logic(name: str) -> None:
    (docstring,) = MODULES[name].body
    assert isinstance(docstring, ast.Expr)


@pytest.mark.parametrize(
    "name", sorted(name for name in MODULES.keys() - ENTRY_POINTS if room(name) not in ("api", "cli"))
)
def test_only_the_api_and_the_command_line_import_our_modules_inside_functions(name: str) -> None:
    # of Triton's body, which can only be imported where Triton is
    allowed = {"kernels.word_block_triton"} if name == "kernels.word_block" else set()
    inside = {imported.own for imported in IMPORTS[name] if imported.in_function and imported.own}
    assert inside <= allowed


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        (
            "accelerate",
            {
                "evaluation.answers",
                "training.doctor",
                "distributed.processes",
                "evaluation.evaluate",
                "evaluation.measure",
                "evaluation.task",
                "embedding.embed",
                "embedding.extract",
                "embedding.store",
                "distributed.votes",
                "training.optim.nonfinite",
                "training.run.open_run",
                "training.run.resume",
                "training.distilling",
                "training.imitation",
                "training.neighbours",
                "training.token_labeling",
                "distillation.label_tokens",
                "training.setup",
                "training.run.state",
                "training.step",
                "training.batch_norm",
                "training.run.trackers",
                "transfer.budget",
                "transfer.floor",
                "transfer.plan",
            },
        ),  # all but the first only name the type
        (
            "cyclopts",
            {
                "cli.app",
                *(
                    f"cli.{name}"
                    for name in (
                        "options",
                        "training",
                        "finetuning",
                        "pretraining",
                        "tuning",
                        "reproduction",
                        "data",
                        "inference",
                        "serving",
                        "embedding",
                        "explanation",
                        "token_labels",
                        "deploy",
                        "weights",
                    )
                ),
            },
        ),
        ("rich", {"display", "api.results"}),
        ("pandas", {"api.results"}),
        ("peft", {"training.optim.lora"}),
        ("safetensors", {"weights.checkpoint", "weights.formats.weight_file", "data.manifest"}),
        ("matplotlib", {"training.run.folder"}),
        ("jinja2", {"pages.render"}),
        ("torchvision", {"data.named_sets", "distillation.token_labels", "images.train_view", "training.preview"}),
        ("torchcodec", {"images.decoding"}),
        ("tifffile", {"images.tiff"}),
        (
            "timm",
            {
                "weights.adapt",
                "inference.bench",
                "weights.hub",
                "imagenet",
                "timm",
                "images.train_view",
                "training.run.state",
                "training.setup",
                "training.optim.optimizers",
                "models.layers",
                "models.timm_model",
            },
        ),
        (
            "huggingface_hub",
            {"weights.hub", "weights.published.hub_files", "weights.published.resolve"},
        ),  # the last names the error of a file that is not there
        (
            "filelock",
            {"data.tables.parquet", "weights.published.cache", "tuning.study", "tuning.journal", "tuning.repeats"},
        ),
        ("captum", {"explanation.perturbation"}),
        ("optuna", {"tuning.study", "tuning.journal"}),
        ("urllib", {"weights.published.download", "weights.published.hub_files"}),
        ("datasets", {"data.tables.hub"}),
        ("pyarrow", {"data.tables.hub", "data.tables.parquet", "embedding.files"}),
        ("umap", {"embedding.map"}),
        ("mindspore", set()),
        ("onnxruntime", {"inference.engines", "deploy.int8"}),
        ("nncf", {"deploy.int8"}),
        ("openvino", {"inference.engines", "deploy.formats"}),
        ("onnx", {"deploy.int8", "deploy.onnx_preprocess"}),
        ("fastapi", {"server.app"}),
        ("pydantic", {"server.schema"}),
        ("starlette", {"server.app", "server.middleware"}),
        ("uvicorn", {"server.connections", "server.protocol"}),
        ("h11", {"server.protocol"}),
        ("python_multipart", {"server.upload"}),
        ("prometheus_client", {"server.metrics"}),
        ("pickle", set()),
        ("sklearn", {"data.named_sets", "embedding.map", "embedding.probe"}),
    ],
)
def test_a_library_has_few_owners(library: str, owners: set[str]) -> None:
    users = {name for name, names in IMPORTS.items() if any(room(imported.module) == library for imported in names)}
    assert users <= owners


def calls(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) == name for node in ast.walk(tree))


@pytest.mark.parametrize(
    ("function", "owners"),
    [
        ("print", {"cli.app", "cli.tables", "cli.training", "cli.data"}),
        ("sys.exit", {"cli.app"}),
        ("torch.load", {"training.run.state"}),
        ("safe_open", {"weights.formats.weight_file", "data.manifest"}),
        ("Image.open", {"images.decoding"}),
        ("dist.all_gather_object", {"distributed.processes"}),
        ("eval", set()),
        ("exec", set()),
    ],
)
def test_an_effect_has_one_owner(function: str, owners: set[str]) -> None:
    assert {name for name, tree in MODULES.items() if calls(tree, function)} == owners


def test_states_are_read_without_unrestricted_pickle() -> None:
    loads = [
        node
        for node in ast.walk(MODULES["training.run.state"])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    for load in loads:
        assert "weights_only=True" in ast.unparse(load)


def test_models_use_no_unfold() -> None:
    for name, tree in MODULES.items():
        if room(name) == "models":
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
    assert set(vitrail.__all__) == set(dir(vitrail)) == {
        "VitrailError", "add_weights", "attention", "bench", "bench_data", "check_data", "convert", "create_model",
        "doctor", "embed", "evaluate", "explain", "export", "fetch_weights", "finetune", "list_models",
        "list_weights", "load_model", "make_token_labels", "measure_depth", "pack", "predict", "pretrain", "preview",
        "quantize", "register_family", "reproduce", "resize_data", "score_explanations", "serve", "show_config",
        "sweep_preprocess", "train", "tune", "verify", "write_inputs",
    }  # fmt: skip
    for name in vitrail.__all__:
        assert getattr(vitrail, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vitrail.nothing  # noqa: B018


@pytest.mark.parametrize(
    "module",
    [
        "vitrail",
        *(
            f"vitrail.{name}"
            for name in (
                "cli.app",
                "config.sections",
                "training.start",
                "errors",
                "api.training",
                "api.pretraining",
                "api.tuning",
                "api.reproduction",
                "tuning.space",
                "api.data",
                "api.inference",
                "api.bench",
                "api.verify",
                "api.embedding",
                "api.depth",
                "api.explanation",
                "api.explanation_scores",
                "api.deploy",
            )
        ),
    ],
)
def test_what_answers_at_once_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'timm', 'numpy', 'matplotlib'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prediction_imports_no_more_than_it_needs() -> None:
    needless = {"accelerate", "matplotlib", "jinja2", "scipy", "timm", "torchvision", "onnxruntime", "torch._dynamo"}
    families = "vitrail.models.tnt, vitrail.models.t2t_vit, vitrail.models.twins"
    modules = f"vitrail.inference.predictor, vitrail.inference.prediction_file, {families}"
    code = f"import sys, {modules}; print(*{needless} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert not done.stdout.split()


FLAG = re.compile(r"(?:^|[\s(])--[a-z]")
OF_OTHER_PROGRAMS = ("--shm-size", "--nproc-per-node", "--format openvino --precision bfloat16", "--local-rank")
"""Flags that are not ours, or part of a whole command."""


@pytest.mark.parametrize(
    "name", sorted(name for name in MODULES if room(name) not in ("cli", "migrate") and name != "distributed.launch")
)
def test_messages_name_options_as_their_caller_gave_them(name: str) -> None:
    tree = MODULES[name]
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    commands = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "command"]
    in_commands = {id(node) for call in commands for node in ast.walk(call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | in_commands:
            text = re.sub(r"`[^`]*`", "", node.value)  # a whole command
            for flag in OF_OTHER_PROGRAMS:
                text = text.replace(flag, "")
            assert not FLAG.search(text), f"{name}: {node.value!r}; errors.write_option and name_option write it"


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_are_short(name: str) -> None:
    tree = MODULES[name]
    assert max((node.end_lineno or 0 for node in tree.body), default=0) <= 600
    for function in functions(tree):
        if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
            continue  # a kernel, which has pointers and sizes where others have objects
        length = int(function.end_lineno or 0) - function.lineno + 1
        positional = [*function.args.posonlyargs, *function.args.args]
        names = [argument.arg for argument in positional if argument.arg not in ("self", "cls")]
        assert length <= 90, f"{function.name} has {length} lines"
        assert len(names) <= 8, f"{function.name} has {len(names)} positional parameters"
