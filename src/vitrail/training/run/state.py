"""Training state: model, optimizer, EMA and counters; saved with a checksum, verified when loaded, a few kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vitrail.distributed.processes import gather_texts
from vitrail.distributed.sharding import gather_full, shard_like
from vitrail.errors import CheckpointError
from vitrail.files import refusal_told, temporary_name
from vitrail.models.family import VisionModel
from vitrail.training.optim.freezing import Freeze
from vitrail.training.optim.nonfinite import Guard

NAME = re.compile(r"update-(\d{8,})\.([0-9a-f]{16})\.pt")
"""Name of a saved state: updates made, and the beginning of the file's SHA-256."""
SUMS = 4
"""Numbers that are summed over an epoch: loss, right answers, images, and answers that are the
teacher's."""


@dataclass
class TrainState:
    """All that a run is between two updates; random draws are no part of it, their seeds follow from epoch and step."""

    model: VisionModel
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    scaler: torch.amp.GradScaler | None
    sums: torch.Tensor
    """Loss, right answers, images and answers that are the teacher's, of this rank, summed over the
    epoch so far."""
    guard: Guard
    freeze: Freeze | None = None
    """The parts that are frozen, for as long as they are."""
    logged: tuple[float, float] = (0.0, 0.0)
    """Loss and images of all ranks, summed over the epoch up to the last row of steps.jsonl."""
    epoch: int = 0
    """Number of whole epochs."""
    step: int = 0
    """Updates made since the last whole epoch."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    bests: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the epochs whose weights are kept, the best first; each beat the one after it."""
    gained: dict[str, Any] = field(default_factory=dict)
    """Row of the last epoch that was better by as much as early stopping asks for."""
    bad_files: set[tuple[str, str]] = field(default_factory=set)
    """Name and reason of the images that could not be read, in whole epochs."""
    unread: set[tuple[str, str]] = field(default_factory=set)
    """Name and reason of the images that this rank could not read in the epoch so far."""
    rollbacks: int = 0
    """Times the run has gone back to a save; each has halved the learning rate."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of the epoch so far, by phase."""
    elapsed_s: float = 0.0
    """Seconds of the run in all, up to the last save."""

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch, or an empty one."""
        return self.bests[0] if self.bests else {}

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.step = 0
        self.sums.zero_()
        self.logged = (0.0, 0.0)
        self.guard.clear_total()
        self.unread.clear()
        self.seconds.clear()

    def to_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return everything as tensors and plain values, gathered from all processes, which must all call this."""
        gathered = gather_texts(
            accelerator, [(accelerator.process_index, self.sums.tolist(), sorted(self.unread))]
        )
        gathered.sort()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "bests": self.bests,
            "gained": self.gained,
            "bad_files": sorted(self.bad_files),
            "rollbacks": self.rollbacks,
            "seconds": dict(self.seconds),
            "elapsed_s": self.elapsed_s,
            "sums": [sums for _, sums, _ in gathered],
            "unread": sorted({bad for _, _, unread in gathered for bad in unread}),
            "told": self.logged,
            "guard": self.guard.counts.tolist(),
            "model": gather_full(self.model.state_dict()),
            "ema": gather_full(self.ema.module.state_dict()) if self.ema else None,
            "optimizer": gather_full(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def restore(self, saved: dict[str, Any], rank: int, world: int) -> None:
        """Take over what `to_dict` returned, on rank `rank` of `world`."""
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.rows = list(saved["rows"])
        if "bests" in saved:
            self.bests = list(saved["bests"])
        else:  # earlier versions saved the best alone; which of the others are kept, the files tell
            self.bests = [row for row in (saved["best"], *reversed(self.rows)) if row]
        self.gained = saved.get("gained", self.best)
        self.bad_files = set(map(tuple, saved["bad_files"]))
        # on one rank, as they are gathered from all of them
        self.unread = {(name, reason) for name, reason in saved["unread"]} if rank == 0 else set()
        self.rollbacks = saved["rollbacks"]
        self.elapsed_s = saved["elapsed_s"]
        self.seconds = dict(saved["seconds"])
        self._restore_sums(saved, rank, world)
        self.guard.counts.copy_(torch.tensor(saved["guard"]))
        put_weights(self.model, saved["model"])
        if self.ema:
            put_weights(self.ema.module, saved["ema"])
        self._restore_optimizer(saved["optimizer"])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])

    def _restore_sums(self, saved: dict[str, Any], rank: int, world: int) -> None:
        """Take over the sums of this rank.

        They stay apart from those of the others, as the order of a sum decides its last digit;
        where the number of ranks is another, they are dealt out.
        """
        sums = torch.zeros(len(saved["sums"]), len(self.sums), dtype=torch.float64)
        # earlier versions summed up less
        kept = torch.tensor(saved["sums"], dtype=torch.float64)[:, : len(self.sums)]
        sums[:, : kept.shape[1]] = kept
        self.sums.copy_(sums[rank::world].sum(0))
        loss, images = sums[:, 0].sum().item(), sums[:, 2].sum().item()
        self.logged = saved.get("told") or (loss, images)  # earlier versions did not save it

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """Take over an optimizer's state, sharded like the parameters of this run."""
        parameters = []
        for group in self.optimizer.param_groups:
            parameters += group["params"]
        moments = {}
        for number, values in saved["state"].items():
            like = parameters[number]
            moments[number] = {name: shard_like(value, like) for name, value in values.items()}
        groups = []
        for group, own in zip(saved["param_groups"], self.optimizer.param_groups, strict=True):
            groups.append(dict(group))
            if "fused" in own:
                # the kernel is this run's, which may be sharded where the saved one was not
                groups[-1]["fused"] = own["fused"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def new_sums(device: torch.device) -> torch.Tensor:
    """Return zeros for the sums of an epoch: float64, or float32 on Apple's GPUs, which lack it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(SUMS, dtype=dtype, device=device)


def put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load full weights into a model, which may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in weights.items()})


def save_state(folder: Path, saved: dict[str, Any], update: int, keep: int) -> None:
    """Write a state under a name that holds its checksum, then remove all but the newest `keep`.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; the older files stay as
            they were.
    """
    unfinished = folder / f"update-{update:08d}.pt"
    temporary = temporary_name(unfinished)
    with refusal_told(unfinished, temporary):
        with temporary.open("w+b") as file:
            torch.save(saved, file)
            file.flush()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            os.fsync(file.fileno())
        path = folder / f"update-{update:08d}.{digest}.pt"
        temporary.replace(path)
    _remove_older(path, update, keep)


def _remove_older(path: Path, update: int, keep: int) -> None:
    """Remove the states that a new one replaces, and all but the newest `keep`."""
    others = [file for file in list_states(path.parent) if file != path]
    # an update is saved twice where an evaluation lies between
    replaced = [file for file in others if file.name.startswith(f"update-{update:08d}.")]
    older = [file for file in others if file not in replaced]
    for file in replaced + older[keep - 1 :]:
        file.unlink(missing_ok=True)


def list_states(folder: Path) -> list[Path]:
    """Return the states in a folder, newest first."""
    numbered = []
    for path in folder.glob("update-*.pt"):
        if name := NAME.fullmatch(path.name):
            numbered.append((int(name[1]), path))
    return [path for _, path in sorted(numbered, reverse=True)]


def load_last_state(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the newest state that is whole; damaged ones before it are renamed and warned of.

    Raises:
        CheckpointError: There is none.
    """
    damaged: list[tuple[Path, Exception]] = []
    paths = list_states(folder)
    for path in paths:
        try:
            saved = _load_verified(path)
        except (CheckpointError, OSError) as error:
            damaged.append((path, error))
            continue
        for bad, error in damaged:
            # or it would count as one of those that are kept
            aside = bad.with_name(f"{bad.name}.damaged")
            with contextlib.suppress(OSError):
                bad.replace(aside)
            warn(
                f"{bad}: is damaged, so the save before it is used ({error}); renamed to "
                f"{aside.name}"
            )
        return saved
    if not paths:
        raise CheckpointError(f"{folder}: holds no save to go on from")
    raise CheckpointError(
        f"{folder}: none of its {len(paths)} saves can be read; put one back from a copy, or move "
        f"{folder.parent} away to begin it anew"
    )


def _load_verified(path: Path) -> dict[str, Any]:
    """Read a state whose content matches the checksum in its name."""
    name = NAME.fullmatch(path.name)
    assert name is not None
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != name[2]:
        raise CheckpointError(f"{path}: its content does not match the checksum in its name")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no state
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); use another save"
        ) from error
