"""Open any weight file without running anything in it; its tensors stay there until they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import CheckpointError, tell_syntax
from vitrail.files import MISSING, describe_absent, read_regular
from vitrail.weights.formats.file_kinds import (
    HEAD,
    READABLE,
    explain_other_kind,
    is_safetensors,
    is_torch,
)
from vitrail.weights.formats.mindspore_ckpt import CIPHERS, read_ckpt
from vitrail.weights.formats.pickled import USUAL, Held, Inert, UnreadablePickle, as_tensor
from vitrail.weights.formats.torch_file import explain_error, read_torch

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weight file in a folder of timm's or of the Hugging Face hub, beside config.json."""
MAX_WEIGHTS = 20_000
"""Tensors of a file: twins_svt_large has 578 weights, and an optimizer a few for each."""
MAX_ENTRIES = 200_000
"""Values of a file that are looked at; the states of an optimizer are among them."""
MAX_CONFIG = 16 * 2**20
"""Bytes of a config.json; timm's have a thousand."""
MAX_HEADER = 48 * 2**20
"""Bytes before the tensors of a safetensors file: their names and places, and what the file says of
itself."""
MAX_NESTING = 32
"""Entries within entries; no module of a model here is so deep in others."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Dtypes by their names in safetensors files."""
MAX_LISTED = 64
"""Mappings in a list that are looked into, as those of several optimizers; longer ones are
histories."""
SWAPPED_OUT = "swapped_out_by_composer"
"""Name given here to weights that Composer keeps apart, since it has saved their average in their
place."""
NAMES = ("arch", "model", "model_name", "architecture")
"""Options of training scripts that hold the model's name."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a file holds: tensors by their whole names, in which entries within entries are joined by dots."""

    path: Path
    kind: str
    """Format of the file, as messages call it."""
    tensors: Mapping[str, Held]
    entries: Mapping[str, str] = field(default_factory=dict)
    """Type of each entry at the top of the file, by name."""
    arch: str | None = None
    """The model's name, where the file says it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of config.json beside the weights."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of a safetensors file; empty for others."""
    swapped_out: str | None = None
    """Prefix of the weights whose average stands in their place; None where nothing is swapped."""
    passed_over: tuple[str, ...] = ()
    """Classes of objects beside the weights, of which nothing was run."""

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Read weights into memory.

        Args:
            names: Their names in the file, by those that they are to have.

        Raises:
            CheckpointError: They are damaged, or have values that no weight has.
        """
        weights = {}
        for name, whole in names.items():
            weights[name] = self.load(whole)
            _check_values(self.path, whole, weights[name])
        return weights

    def load(self, name: str) -> Tensor:
        """Read one tensor as it is.

        Raises:
            CheckpointError: It cannot be read.
        """
        self.check([name])
        try:
            return self.tensors[name].read()
        except (UnreadablePickle, OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: {name} {explain_error(error)}") from error
        except Exception as error:  # zipfile and zlib raise several kinds for damaged bytes
            raise CheckpointError(
                f"{self.path}: {name} cannot be read ({error}); use the original"
            ) from error

    def check(self, names: Iterable[str]) -> None:
        """Refuse tensors that have not all the values that they claim, before memory is spent on them.

        Raises:
            CheckpointError: One has not, or is no plain tensor.
        """
        for name in names:
            if fault := self.tensors[name].fault:
                raise CheckpointError(f"{self.path}: {name} {fault}")


def open_weights(given: Path | str) -> WeightFile:
    """Open a weight file, or a folder of timm's or the hub's.

    Raises:
        CheckpointError: There is none, it is damaged, or it is something other than a weight file.
    """
    try:
        path, config = _locate(given)
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CheckpointError(
            f"{str(given)[:200]}: {error.strerror}; choose another path, or mend its permissions"
        ) from error
    if is_safetensors(head):
        return WeightFile(path=path, kind="safetensors", config=config, **_read_safetensors(path))
    if is_torch(head):
        saved = read_torch(path)
        passed_over = tuple(name for name in saved.classes if not USUAL.fullmatch(name))
        parts = _divide_content(path, saved.value)
        return WeightFile(
            path=path, kind="PyTorch", config=config, passed_over=passed_over, **parts
        )
    if explanation := explain_other_kind(path, head):
        raise CheckpointError(f"{path}: {explanation}")
    if head[:1] == b"\x0a" or int.from_bytes(head[:4], "little") in CIPHERS:
        content: dict[str, Any] = {}
        for name, value in read_ckpt(path).items():
            content[name] = _in_memory(value) if isinstance(value, Tensor) else value
        return WeightFile(
            path=path, kind="MindSpore", config=config, **_divide_content(path, content)
        )
    raise CheckpointError(f"{path}: is no weight file, or is damaged; {READABLE}")


def _in_memory(tensor: Tensor) -> Held:
    return Held(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _locate(given: Path | str) -> tuple[Path, Mapping[str, Any]]:
    """Return the weight file that a path or a folder names, and the config.json beside it."""
    path = Path(given)
    if not path.is_dir():
        if absent := describe_absent(path):
            what = f"{absent}, not a weight file" if absent == MISSING else absent
            raise CheckpointError(f"{path}: {what}; give one such as runs/digits/best.safetensors")
        return path, {}
    for name in FOLDER_FILES:
        if (path / name).is_file() and (path / "config.json").is_file():
            return path / name, _read_config(path / "config.json")
    if list(path.glob("*.distcp")):
        raise CheckpointError(
            f"{path}: is a checkpoint of many processes; make it one file first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth"
        )
    # best.safetensors before best-2.safetensors
    inside = sorted(path.glob("*.safetensors"), key=lambda file: (len(file.name), file.name))
    advice = (
        f"did you mean {inside[0]}?" if inside else "give one such as runs/digits/best.safetensors"
    )
    raise CheckpointError(f"{path}: is a folder, not a weight file; {advice}")


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_regular(path, MAX_CONFIG))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); use the original"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({tell_syntax(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no settings; use the original")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if MAX_HEADER < size < path.stat().st_size:  # a larger one is damage
            raise CheckpointError(
                f"{path}: has a header of {size:,} bytes, and {MAX_HEADER:,} at most are read; use "
                "the original"
            )
    try:
        # left open for the tensors that are asked for later
        file: Any = safe_open(path, framework="pt")
        names, metadata = file.keys(), file.metadata() or {}
        if len(names) > MAX_WEIGHTS:
            raise CheckpointError(_too_many_tensors(path))
        tensors = {name: _in_safetensors(file, name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: is not a safetensors file, or is damaged ({reason}); use the original"
        ) from error
    return {"tensors": tensors, "entries": dict.fromkeys(tensors, "tensor"), "metadata": metadata}


def _in_safetensors(file: Any, name: str) -> Held:
    part = file.get_slice(name)
    kind, shape = part.get_dtype(), tuple(part.get_shape())
    fault = "" if kind in TYPES else f"is of type {kind}, which no weight here is; use the original"
    return Held(TYPES.get(kind, torch.float32), shape, partial(file.get_tensor, name), fault)


def _divide_content(path: Path, content: Any) -> dict[str, Any]:
    """Return the fields of a WeightFile that a file's content gives: its tensors, its entries and its model's name."""
    if isinstance(content, list | tuple) or _children(content) is None:
        raise CheckpointError(
            f"{path}: holds a {_name_type(content, tensor='Tensor')}, not weights by name; save "
            "the model's state_dict()"
        )
    tensors: dict[str, Held] = {}
    for count, (name, value) in enumerate(_walk(content, "", (), set())):
        if count > MAX_ENTRIES:
            raise CheckpointError(
                f"{path}: holds more than {MAX_ENTRIES:,} values; save its state_dict() alone"
            )
        tensor = as_tensor(value)
        if tensor is None:
            continue
        if name in tensors:
            raise CheckpointError(f"{path}: has {name}, the same weight twice; keep one of them")
        tensors[name] = tensor
        if len(tensors) > MAX_WEIGHTS:
            raise CheckpointError(_too_many_tensors(path))
    entries = {}
    for key, value in (_children(content) or {}).items():
        entries[str(key)] = _name_type(value, tensor="tensor")
    swapped_out = None
    for name in tensors:
        before, mark, _ = name.partition(f"{SWAPPED_OUT}.")
        if mark:
            swapped_out = f"{before}{mark}"
            break
    return {
        "tensors": tensors,
        "entries": entries,
        "arch": _model_name(content),
        "swapped_out": swapped_out,
    }


def _name_type(value: Any, *, tensor: str) -> str:
    """Return the name of a value's type, with the name that tensors are to have."""
    if as_tensor(value):
        return tensor
    return value.name if isinstance(value, Inert) else type(value).__name__


def _walk(
    node: Any, prefix: str, above: tuple[int, ...], visited: set[int]
) -> Iterator[tuple[str, Any]]:
    """Yield all that stands in mappings, modules and lists of tensors, by its whole name; an object once.

    Objects refer to each other in circles, as the settings of OmegaConf do.
    """
    if len(above) > MAX_NESTING or id(node) in above or id(node) in visited:
        return
    if isinstance(node, Inert | list | tuple):  # a long list in many places would take for ever
        visited.add(id(node))
    for key, value in (_children(node) or {}).items():
        name = f"{prefix}{key}"
        yield name, value
        if as_tensor(value) is None:
            yield from _walk(value, f"{name}.", (*above, id(node)), visited)


def _children(node: Any) -> Mapping[Any, Any] | None:
    """Return what a node has by name: a mapping's items, a module's parameters, buffers and parts, a list's members.

    A list has members where all are tensors, or some are mappings or lists themselves.
    """
    if isinstance(node, Mapping):
        is_composers = {"ema_model", "ema_weights_active"} <= node.keys()
        return _of_composer(node) if is_composers else node
    if isinstance(node, list | tuple) and node:
        has_containers = len(node) <= MAX_LISTED and any(
            isinstance(value, Mapping | list | tuple) for value in node
        )
        if has_containers or all(map(as_tensor, node)):
            return dict(enumerate(node))
        return None
    if not isinstance(node, Inert):
        return None
    own = node.attributes()
    if "_modules" not in own or "_parameters" not in own:
        return own
    members: dict[Any, Any] = {}
    for key in ("_parameters", "_buffers", "_modules"):
        members |= _children(own.get(key)) or {}
    return members


def _of_composer(node: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return what Composer's EMA keeps beside the model, under names that tell what it is.

    It swaps the average with the weights before it saves, and says so beside them; files of before
    0.13 have both here.
    """
    if not node.get("ema_started", True):
        return {}  # copies of what the training began with
    if node["ema_weights_active"]:
        return {SWAPPED_OUT: node.get("training_model", node["ema_model"])}
    return {"ema_model": node["ema_model"]}


def _model_name(content: Any) -> str | None:
    """Return the model's name, as the file says it itself or as an option of the script that wrote it."""
    own = _children(content) or {}
    if isinstance(own.get("arch"), str):
        return own["arch"]
    for key in ("args", "hyper_parameters"):
        options = _children(own.get(key)) or {}
        for name in NAMES:
            if isinstance(options.get(name), str):
                return options[name]
    return None


def _too_many_tensors(path: Path) -> str:
    return f"{path}: holds more than {MAX_WEIGHTS:,} tensors, and no model here has so many"


def _check_values(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse values that no weight has."""
    if tensor.is_complex():
        raise CheckpointError(
            f"{path}: {name} is {tensor.dtype}, and no weight here is complex; use the original"
        )
    if not tensor.isfinite().all():
        raise CheckpointError(
            f"{path}: {name} has values that are not finite; use a save from before that happened"
        )
