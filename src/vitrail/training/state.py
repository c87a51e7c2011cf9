"""All that a run is between two updates: saved whole, checked when read, the last few kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vitrail.distributed.processes import gather_texts
from vitrail.distributed.sharding import shared_as, whole
from vitrail.errors import CheckpointError
from vitrail.files import refusal_told, temporary_name
from vitrail.models.family import VisionModel
from vitrail.training.nonfinite import Guard

NAME = re.compile(r"update-(\d{8,})\.([0-9a-f]{16})\.pt")
"""Updates made, and the beginning of the file's SHA-256."""
SUMS = 3
"""Loss, right answers and images, summed over the epoch so far."""


@dataclass
class TrainState:
    """All that a run is between two updates; random draws are not part of it, they follow from where it stands."""

    model: VisionModel
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    scaler: torch.amp.GradScaler | None
    sums: torch.Tensor
    """Of this process."""
    guard: Guard
    told: tuple[float, float] = (0.0, 0.0)
    """Loss and images of all processes, summed over the epoch up to the last row of steps.jsonl."""
    epoch: int = 0
    """Whole epochs."""
    step: int = 0
    """Updates of the epoch after them."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    bests: list[dict[str, Any]] = field(default_factory=list)
    """The rows of the epochs whose weights are kept, the best first; each beat the one after it."""
    bad_files: set[tuple[str, str]] = field(default_factory=set)
    """Name and reason of the images that could not be read, in whole epochs."""
    unread: set[tuple[str, str]] = field(default_factory=set)
    """Those of the epoch so far, of this process."""
    rollbacks: int = 0
    """Times the run has gone back; each has halved the learning rate."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in the epoch so far, by phase."""
    elapsed_s: float = 0.0
    """Spent in all, up to the last save."""

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch, or an empty one."""
        return self.bests[0] if self.bests else {}

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.step = 0
        self.sums.zero_()
        self.told = (0.0, 0.0)
        self.guard.clear_total()
        self.unread.clear()
        self.seconds.clear()

    def to_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return everything as tensors and plain values, gathered from all processes, which must all call this."""
        gathered = gather_texts(accelerator, [(accelerator.process_index, self.sums.tolist(), sorted(self.unread))])
        gathered.sort()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "bests": self.bests,
            "bad_files": sorted(self.bad_files),
            "rollbacks": self.rollbacks,
            "seconds": dict(self.seconds),
            "elapsed_s": self.elapsed_s,
            "sums": [sums for _, sums, _ in gathered],
            "unread": sorted({bad for _, _, unread in gathered for bad in unread}),
            "told": self.told,
            "guard": self.guard.counts.tolist(),
            "model": whole(self.model.state_dict()),
            "ema": whole(self.ema.module.state_dict()) if self.ema else None,
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def restore(self, saved: dict[str, Any], rank: int, world: int) -> None:
        """Take over what `to_dict` returned, on this of `world` processes."""
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.rows = list(saved["rows"])
        if "bests" in saved:
            self.bests = list(saved["bests"])
        else:  # earlier versions saved the best alone; which of the others are kept, the files tell
            self.bests = [row for row in (saved["best"], *reversed(self.rows)) if row]
        self.bad_files = {(name, reason) for name, reason in saved["bad_files"]}
        self.unread = {(name, reason) for name, reason in saved["unread"]} if rank == 0 else set()
        self.rollbacks, self.elapsed_s, self.seconds = saved["rollbacks"], saved["elapsed_s"], dict(saved["seconds"])
        # the sums of each process stay apart, as their order decides the last digit; another number shares them out
        mine = saved["sums"][rank::world]
        self.sums.copy_(torch.tensor(mine or [[0.0] * SUMS], dtype=torch.float64).sum(0))
        totals = torch.tensor(saved["sums"], dtype=torch.float64).sum(0).tolist()
        self.told = saved.get("told") or tuple(totals[::2])  # earlier versions did not save it
        self.guard.counts.copy_(torch.tensor(saved["guard"]))
        put_weights(self.model, saved["model"])
        if self.ema:
            put_weights(self.ema.module, saved["ema"])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {name: shared_as(value, parameters[number]) for name, value in found.items()}
            for number, found in saved["optimizer"]["state"].items()
        }
        groups = [  # the kernel is this run's, which may be shared out where the saved one was not
            {**group, "fused": mine["fused"]}
            for group, mine in zip(saved["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])


def put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put whole weights into a model, which may be shared out."""
    mine = model.state_dict()
    model.load_state_dict({name: shared_as(tensor, mine[name]) for name, tensor in weights.items()})


def save_state(folder: Path, saved: dict[str, Any], update: int, keep: int) -> None:
    """Write a state under a name that holds its checksum, then remove all but the newest `keep`.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; the older files stay as they were.
    """
    temporary = temporary_name(folder / f"update-{update:08d}.pt")
    with refusal_told(folder / f"update-{update:08d}.pt", temporary):
        with temporary.open("w+b") as file:
            torch.save(saved, file)
            file.flush()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            os.fsync(file.fileno())
        path = folder / f"update-{update:08d}.{digest}.pt"
        temporary.replace(path)
    others = [file for file in list_states(folder) if file != path]
    same = [file for file in others if file.name.startswith(f"update-{update:08d}.")]  # before an evaluation, say
    for old in same + [file for file in others if file not in same][keep - 1 :]:
        old.unlink(missing_ok=True)


def list_states(folder: Path) -> list[Path]:
    """Return the states in a folder, newest first."""
    files = [(int(found[1]), path) for path in folder.glob("update-*.pt") if (found := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(files, reverse=True)]


def _load(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no state
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}); use another save") from error


def load_last_state(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the newest state that is whole, saying which newer ones are not.

    Raises:
        CheckpointError: There is none.
    """
    damaged: list[tuple[Path, Exception]] = []
    paths: Sequence[Path] = list_states(folder)
    for path in paths:
        found = NAME.fullmatch(path.name)
        assert found is not None
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest()[:16] != found[2]:
                raise CheckpointError(f"{path}: its content does not match the checksum in its name")
            saved = _load(data, path)
        except (CheckpointError, OSError) as error:
            damaged.append((path, error))
            continue
        for bad, error in damaged:
            aside = bad.with_name(f"{bad.name}.damaged")  # or it would count as one of those that are kept
            with contextlib.suppress(OSError):
                bad.replace(aside)
            warn(f"{bad}: is damaged, so the save before it is used ({error}); renamed to {aside.name}")
        return saved
    raise CheckpointError(
        f"{folder}: none of its {len(paths)} saves can be read; put one back from a copy, or move {folder.parent} away "
        "to begin it anew"
        if paths
        else f"{folder}: holds no save to go on from"
    )
