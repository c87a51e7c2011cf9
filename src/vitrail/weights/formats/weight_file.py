"""Any file that holds weights, opened without running anything in it; its tensors stay there until asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files import read_regular
from vitrail.weights.formats.file_kinds import HEAD, READABLE, is_safetensors, is_torch, other_kind
from vitrail.weights.formats.mindspore_ckpt import CIPHERS, read_ckpt
from vitrail.weights.formats.pickled import USUAL, Held, Inert, UnreadablePickle, held
from vitrail.weights.formats.torch_file import read_torch, told

HUB = "hf-hub:"
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What holds the weights in a folder of timm's or of the Hugging Face hub, beside config.json."""
MAX_WEIGHTS = 20_000
"""Tensors of a file: twins_svt_large has 578 weights, and an optimizer a few for each."""
MAX_ENTRIES = 200_000
"""Values of a file that are looked at; the states of an optimizer are among them."""
MAX_CONFIG = 16 * 2**20
"""Bytes of a config.json; timm's have a thousand."""
MAX_HEADER = 48 * 2**20
"""Bytes before the tensors of a safetensors file: their names and places, and what the file says of itself."""
MAX_NESTING = 32
"""Entries within entries; no module of a model here is so deep in others."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""What a safetensors file calls each dtype."""
MAX_LISTED = 64
"""Mappings in a list that are looked into, as those of several optimizers; longer ones are histories."""
SWAPPED_OUT = "swapped_out_by_composer"
"""What the weights are called here that Composer keeps apart, since it has saved their average in their place."""
NAMES = ("arch", "model", "model_name", "architecture")
"""What the options of a training script call the model."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a file holds: tensors by their whole names, in which entries within entries are joined by dots."""

    path: Path
    kind: str
    """Of file, as said to a user."""
    tensors: Mapping[str, Held]
    entries: Mapping[str, str] = field(default_factory=dict)
    """What stands in the file at its top, and of which kind each is."""
    arch: str | None = None
    """The model's name, where the file says it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What stands in config.json beside the weights."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of a safetensors file; empty for others."""
    swapped_out: str | None = None
    """What the names of the weights begin with whose average stands in their place; None where nothing is swapped."""
    passed_over: tuple[str, ...] = ()
    """Classes of objects beside the weights, of which nothing was run."""

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Read weights into memory.

        Args:
            names: Their names in the file, by those that they are to have.

        Raises:
            CheckpointError: They are damaged, or have values that no weight has.
        """
        return {name: _finite(self.path, whole, self.load(whole)) for name, whole in names.items()}

    def load(self, name: str) -> Tensor:
        """Read one tensor as it is.

        Raises:
            CheckpointError: It cannot be read.
        """
        self.check([name])
        try:
            return self.tensors[name].read()
        except (UnreadablePickle, OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: {name} {told(error)}") from error
        except Exception as error:  # zipfile and zlib raise several kinds for damaged bytes
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error}); use the original") from error

    def check(self, names: Iterable[str]) -> None:
        """Refuse tensors that have not all the values that they claim, before memory is spent on them.

        Raises:
            CheckpointError: One has not, or is no plain tensor.
        """
        for name in names:
            if fault := self.tensors[name].fault:
                raise CheckpointError(f"{self.path}: {name} {fault}")


def open_weights(given: Path | str) -> WeightFile:
    """Open a weight file, a folder of timm's or the hub's, or `hf-hub:OWNER/NAME`.

    Raises:
        CheckpointError: There is none, it is damaged, or it is something other than a weight file.
    """
    try:
        path, config = _find(given)
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CheckpointError(
            f"{str(given)[:200]}: {error.strerror}; choose another path, or mend its permissions"
        ) from error
    if is_safetensors(head):
        return WeightFile(path=path, kind="safetensors", config=config, **_read_safetensors(path))
    if is_torch(head):
        content = read_torch(path)
        passed_over = tuple(name for name in content.classes if not USUAL.fullmatch(name))
        return WeightFile(
            path=path, kind="PyTorch", config=config, passed_over=passed_over, **_sort_out(path, content.value)
        )
    if said := other_kind(path, head):
        raise CheckpointError(f"{path}: {said}")
    if head[:1] == b"\x0a" or int.from_bytes(head[:4], "little") in CIPHERS:
        content = {
            name: _in_memory(value) if isinstance(value, Tensor) else value for name, value in read_ckpt(path).items()
        }
        return WeightFile(path=path, kind="MindSpore", config=config, **_sort_out(path, content))
    raise CheckpointError(f"{path}: is no weight file, or is damaged; {READABLE}")


def _in_memory(tensor: Tensor) -> Held:
    return Held(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _find(given: Path | str) -> tuple[Path, Mapping[str, Any]]:
    if str(given).startswith(HUB):
        return _download(str(given).removeprefix(HUB))
    path = Path(given)
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is no regular file; give a weight file")
        if not path.is_file():
            raise CheckpointError(
                f"{path}: is missing, not a weight file; give one such as runs/digits/best.safetensors"
            )
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
    raise CheckpointError(
        f"{path}: is a folder, not a weight file; "
        + (f"did you mean {inside[0]}?" if inside else "give one such as runs/digits/best.safetensors")
    )


def _download(name: str) -> tuple[Path, Mapping[str, Any]]:
    try:
        config = _read_config(Path(huggingface_hub.hf_hub_download(name, "config.json")))
        for file in FOLDER_FILES:
            if huggingface_hub.file_exists(name, file):
                return Path(huggingface_hub.hf_hub_download(name, file)), config
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{HUB}{name}: cannot be downloaded ({reason}); give a file, or a folder that was downloaded elsewhere"
        ) from error
    raise CheckpointError(f"{HUB}{name}: has neither {' nor '.join(FOLDER_FILES)}")


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_regular(path, MAX_CONFIG))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); use the original") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no settings; use the original")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if MAX_HEADER < size < path.stat().st_size:  # a larger one is damage
            raise CheckpointError(
                f"{path}: has a header of {size:,} bytes, and {MAX_HEADER:,} at most are read; use the original"
            )
    try:
        file: Any = safe_open(path, framework="pt")  # left open for the tensors that are asked for later
        names, metadata = file.keys(), file.metadata() or {}
        if len(names) > MAX_WEIGHTS:
            raise CheckpointError(_too_many(path))
        found = {name: _in_safetensors(file, name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: is not a safetensors file, or is damaged ({reason}); use the original"
        ) from error
    return {"tensors": found, "entries": dict.fromkeys(found, "tensor"), "metadata": metadata}


def _in_safetensors(file: Any, name: str) -> Held:
    part = file.get_slice(name)
    kind, shape = part.get_dtype(), tuple(part.get_shape())
    fault = "" if kind in TYPES else f"is of type {kind}, which no weight here is; use the original"
    return Held(TYPES.get(kind, torch.float32), shape, partial(file.get_tensor, name), fault)


def _sort_out(path: Path, content: Any) -> dict[str, Any]:
    """Tell tensors and the rest of a file apart."""
    if isinstance(content, list | tuple) or _children(content) is None:
        kind = content.name if isinstance(content, Inert) else "Tensor" if held(content) else type(content).__name__
        raise CheckpointError(f"{path}: holds a {kind}, not weights by name; save the model's state_dict()")
    found: dict[str, Held] = {}
    entries: dict[str, str] = {}
    for count, (name, value) in enumerate(_walk(content, "", (), set())):
        if count > MAX_ENTRIES:
            raise CheckpointError(f"{path}: holds more than {MAX_ENTRIES:,} values; save its state_dict() alone")
        if (tensor := held(value)) is None:
            continue
        if name in found:
            raise CheckpointError(f"{path}: has {name}, the same weight twice; keep one of them")
        found[name] = tensor
        if len(found) > MAX_WEIGHTS:
            raise CheckpointError(_too_many(path))
    for key, value in (_children(content) or {}).items():
        entries[str(key)] = (
            "tensor" if held(value) else value.name if isinstance(value, Inert) else type(value).__name__
        )
    marks = (name.partition(f"{SWAPPED_OUT}.") for name in found)
    swapped_out = next((f"{before}{mark}" for before, mark, _ in marks if mark), None)
    return {"tensors": found, "entries": entries, "arch": _arch(content), "swapped_out": swapped_out}


def _walk(node: Any, prefix: str, above: tuple[int, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield all that stands in mappings, modules and lists of tensors, by its whole name; an object once.

    Objects refer to each other in circles, as the settings of OmegaConf do.
    """
    if len(above) > MAX_NESTING or id(node) in above or id(node) in seen:
        return
    if isinstance(node, Inert | list | tuple):  # a long list in many places would take for ever
        seen.add(id(node))
    for key, value in (_children(node) or {}).items():
        name = f"{prefix}{key}"
        yield name, value
        if held(value) is None:
            yield from _walk(value, f"{name}.", (*above, id(node)), seen)


def _children(node: Any) -> Mapping[Any, Any] | None:
    """Return what a node has by name: a mapping's items, a module's parameters, buffers and parts, a list's members.

    A list has members where all are tensors, or some are mappings or lists themselves.
    """
    if isinstance(node, Mapping):
        return _of_composer(node) if {"ema_model", "ema_weights_active"} <= node.keys() else node
    if isinstance(node, list | tuple) and node:
        is_looked_into = len(node) <= MAX_LISTED and any(isinstance(value, Mapping | list | tuple) for value in node)
        return dict(enumerate(node)) if is_looked_into or all(held(value) for value in node) else None
    if not isinstance(node, Inert):
        return None
    own = node.attributes()
    if "_modules" not in own or "_parameters" not in own:
        return own
    parts = [part for key in ("_parameters", "_buffers", "_modules") if (part := _children(own.get(key)))]
    return {key: value for part in parts for key, value in part.items()}


def _of_composer(node: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return what Composer's EMA keeps beside the model, under names that tell what it is.

    It swaps the average with the weights before it saves, and says so beside them; files of before 0.13 have both here.
    """
    if not node.get("ema_started", True):
        return {}  # copies of what the training began with
    if node["ema_weights_active"]:
        return {SWAPPED_OUT: node.get("training_model", node["ema_model"])}
    return {"ema_model": node["ema_model"]}


def _arch(content: Any) -> str | None:
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


def _too_many(path: Path) -> str:
    return f"{path}: holds more than {MAX_WEIGHTS:,} tensors, and no model here has so many"


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Refuse values that no weight has."""
    if tensor.is_complex():
        raise CheckpointError(f"{path}: {name} is {tensor.dtype}, and no weight here is complex; use the original")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{path}: {name} has values that are not finite; use a save from before that happened")
    return tensor
