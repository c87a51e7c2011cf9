"""Any file that holds weights, opened without running anything that is in it."""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitrail.ckpt import CIPHERS, read_ckpt
from vitrail.errors import CheckpointError

HUB = "hf-hub:"
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What holds the weights in a folder of timm's or of the Hugging Face hub, beside config.json."""
WEIGHTS = ("state_dict", "model", "net", "module")
"""Entries of a training file that hold the weights, in the order they are looked for."""
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")
"""Entries that hold a moving average of them."""
PREFIX = re.compile(r"(?:(?:module|model|network|backbone|_orig_mod)\.)+")
"""What wrappers put before a name."""
AVERAGED = re.compile(rf"(?P<wrapped>(?:{PREFIX.pattern})?)(?P<kind>_?ema(?:_[a-z]+)?\.)")
"""What stands before a name where MindSpore keeps an average beside the weights, behind wrappers or before them."""
OPTIMIZER = re.compile(r"(?:adam_[mv]|moment[12s]?|moments|accum|accu_grads|momentum|stat)\..*")
MAX_WEIGHTS = 20_000  # twins_svt_large has 578
MAX_NESTING = 16
LEGACY_PICKLES = 4
"""Magic number, protocol, machine and content stand before the tensors of torch's old format."""
MEMO = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GET", "DUP", "MARK")
COUNTERS = {
    "global_step",
    "learning_rate",
    "beta1_power",
    "beta2_power",
    "scale_sense",
    "current_iterator_step",
    "last_overflow_iterator_step",
    "epoch_num",
    "step_num",
}
"""Numbers that MindSpore's training keeps beside the weights."""

EXPORTED = (".onnx", ".xml", ".bin")
"""Endings of files that hold a program, or half of one."""
_NUMPY = [np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}]
_NUMPY_NAMES = {
    f"numpy.{core}.multiarray.{name}": made
    for core in ("core", "_core")
    for name, made in (("scalar", np.float64(0).__reduce__()[0]), ("_reconstruct", np.zeros(1).__reduce__()[0]))
}
ALLOWED: list[Any] = [argparse.Namespace, *_NUMPY, *((made, name) for name, made in _NUMPY_NAMES.items())]
"""What a pickle may name beside tensors and plain containers: options of a training script, and numpy's numbers."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of a file by their names in it, without what wrappers put before them."""

    path: Path
    kind: str
    """Of file, as said to a user."""
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """A moving average of the weights, where there is one."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The whole name of each weight."""
    entry: str = ""
    """Which entry of a training file the weights were."""
    average_entry: str = ""
    arch: str | None = None
    """The model's name, where the file says it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What stands in config.json beside the weights."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What is no weight, and why."""


def open_weights(given: Path | str) -> WeightFile:
    """Open a weight file, a folder of timm's or the hub's, or `hf-hub:OWNER/NAME`.

    Raises:
        CheckpointError: There is none, it is damaged, or it holds something other than tensors and plain values.
    """
    try:
        path, config = _find(given)
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"{str(given)[:200]}: {error.strerror}; choose another path, or mend its permissions"
        ) from error
    metadata: Mapping[str, str] = {}
    if head[8:9] == b"{":  # looked for first, as the size before it can begin like a pickle
        kind = "safetensors"
        content, metadata = _read_safetensors(path)
    elif head.startswith(b"PK") or head[:1] == b"\x80":
        kind, content = "PyTorch", _read_torch(path)
    elif head[:1] == b"\x0a" or int.from_bytes(head[:4], "little") in CIPHERS:
        kind, content = "MindSpore", read_ckpt(path)
    else:
        taken = "; evaluate, predict, bench and serve take exported files, an OpenVINO model by the name of its .xml"
        raise CheckpointError(
            f"{path}: is no weight file; readable are safetensors, PyTorch's .pth and MindSpore's .ckpt"
            f"{taken * (path.suffix in EXPORTED)}"
        )
    return _sort_out(path, kind, content, config, metadata)


def load_tensors(file: BinaryIO, path: Path) -> Any:
    """Read a file of tensors and plain values that `torch.save` wrote, never running code from it.

    Raises:
        CheckpointError: It is not one, or damaged, or asks for something else.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tensors, which are looked at afterwards
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: asks to run {asked[1]}, which is no tensor or plain value, so it is not opened; save its "
                "state_dict() alone"
            ) from error
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}); use the original") from error


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no settings; use the original")
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            if len(file.keys()) > MAX_WEIGHTS:
                raise CheckpointError(_too_many(path))
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: is not a safetensors file, or is damaged ({reason}); use the original"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        is_archive = zipfile.is_zipfile(path)  # which refuses an archive over several disks
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                # torch.save never compresses, so what would grow when it is read is not its
                grows = sum(e.file_size for e in entries) > path.stat().st_size or any(e.compress_type for e in entries)
                if grows or not _has_one_directory(path):
                    raise CheckpointError(
                        f"{path}: is an archive that torch.save did not write; give the weight file itself"
                    )
                for entry in entries:
                    if entry.filename.endswith("data.pkl"):
                        with archive.open(entry) as pickle:
                            _look_through(pickle, path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use the original") from error
    with path.open("rb") as file:
        if not is_archive:
            for _ in range(LEGACY_PICKLES):
                _look_through(file, path)
            file.seek(0)
        return load_tensors(file, path)


def _look_through(pickle: IO[bytes], path: Path) -> None:
    """Refuse a pickle that could fill the memory or overrun the stack before torch sees what it makes.

    Raises:
        CheckpointError: It asks for a bytearray of any size, or nests tuples without end.
    """
    nested = 0
    try:
        for code, argument, _ in pickletools.genops(pickle):
            if isinstance(argument, str) and "bytearray" in argument:
                raise CheckpointError(
                    f"{path}: asks for a bytearray, which no weights need; save its state_dict() alone"
                )
            if code.name in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"):
                nested += 1
            elif code.name not in MEMO:
                nested = 0
            if nested > MAX_NESTING:
                raise CheckpointError(f"{path}: nests tuples without end; save its state_dict() alone")
    except (ValueError, IndexError, EOFError, OverflowError, MemoryError):
        return  # not a whole pickle: torch says so


def _has_one_directory(path: Path) -> bool:
    """Say whether a zip's directory ends where the record of its end begins, so that all readers find the same one."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 98, 0))
        tail = file.read()
    end, wide = tail[-22:], tail[:56] if tail[:4] == b"PK\x06\x06" else b""
    length, offset = int.from_bytes(end[12:16], "little"), int.from_bytes(end[16:20], "little")
    if wide and 0xFFFFFFFF in (length, offset):
        length, offset = int.from_bytes(wide[40:48], "little"), int.from_bytes(wide[48:56], "little")
    return end[:4] == b"PK\x05\x06" and offset + length == size - (98 if wide else 22)


def _sort_out(
    path: Path, kind: str, content: Any, config: Mapping[str, Any], metadata: Mapping[str, str]
) -> WeightFile:
    """Tell weights, their average and the rest of a file apart."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not weights by name; save the model's state_dict()"
        )
    skipped: dict[str, str] = {}
    arch = content["arch"] if isinstance(content.get("arch"), str) else None
    args = content.get("args")
    if arch is None and isinstance(args, argparse.Namespace) and isinstance(getattr(args, "model", None), str):
        arch = args.model
    kinds: list[str] = []
    averages = [name for name in AVERAGES if isinstance(content.get(name), Mapping)]
    entries = [name for name in WEIGHTS if isinstance(content.get(name), Mapping)]
    if entries or averages:
        average = _flat(path, content[averages[0]], skipped) if averages else {}
        weights = _flat(path, content[entries[0]], skipped) if entries else average
        used = {*entries[:1], *averages[:1]}
        skipped |= {str(name): "no weights" for name in content if name not in used}
    else:
        weights = _flat(path, content, skipped)
        found = {name: match for name in weights if (match := AVERAGED.match(name))}
        kinds = list(dict.fromkeys(match["kind"] for match in found.values()))
        if len(kinds) > 1:
            raise CheckpointError(f"{path}: has several moving averages ({', '.join(kinds)}); keep one of them")
        average = {match["wrapped"] + name[match.end() :]: weights[name] for name, match in found.items()}
        weights = {name: tensor for name, tensor in weights.items() if name not in found} or average
    if not weights:
        listed = ", ".join(map(str, list(content)[:5])) or "none"
        raise CheckpointError(f"{path}: holds no weights; its entries are {listed}")
    weights, names = _unwrap(path, weights)
    average, _ = _unwrap(path, average)
    if average and (lacking := [name for name in weights if name not in average]):
        skipped["the moving average"] = f"lacks {', '.join(lacking[:3])}"
        average = {}
    return WeightFile(
        path=path, kind=kind, weights=weights, average=average, names=names, entry=(entries or [""])[0],
        average_entry=averages[0] if averages else kinds[0] if average else "", arch=arch, config=config,
        metadata=metadata, skipped=skipped,
    )  # fmt: skip


def _flat(path: Path, content: Mapping[Any, Any], skipped: dict[str, str]) -> dict[str, Tensor]:
    weights = {}
    for name, value in content.items():
        if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
            skipped[str(name)] = f"a {type(value).__name__}, not a tensor"
        elif OPTIMIZER.fullmatch(name):
            skipped[name] = "of the optimizer"
        elif name in COUNTERS:
            skipped[name] = "of the training"
        elif value.ndim == 0:
            skipped[name] = "a single number, and no weight is one"
        elif not value.is_floating_point() and not value.is_complex():
            skipped[name] = f"{str(value.dtype).removeprefix('torch.')}, and no weight is"
        else:
            weights[name] = _checked(path, name, value)
        if len(weights) > MAX_WEIGHTS:
            raise CheckpointError(_too_many(path))
    return weights


def _too_many(path: Path) -> str:
    return f"{path}: holds more than {MAX_WEIGHTS:,} tensors, and no model here has so many"


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Refuse a tensor that has not all the values it claims: copying it could fill the memory."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CheckpointError(f"{path}: {name} is a sparse, quantized or empty tensor; save it as a plain one")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} claims {tensor.numel():,} values and has fewer; save it whole")
    if tensor.is_complex():
        raise CheckpointError(f"{path}: {name} is {tensor.dtype}, and no weight here is complex; use the original")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{path}: {name} has values that are not finite; use a save from before that happened")
    return tensor


def _unwrap(path: Path, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    names: dict[str, str] = {}
    for name in weights:
        short = PREFIX.sub("", name, count=1) if PREFIX.match(name) else name
        if short in names:
            raise CheckpointError(f"{path}: has {names[short]} and {name}, the same weight twice; keep one of them")
        names[short] = name
    return {short: weights[name] for short, name in names.items()}, names
