"""A weight file in the names, the layout and the kind of file of another project."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.checkpoint import config_of, encode_safetensors, provenance, save_model
from vitrail.ckpt import encode_ckpt
from vitrail.dialects import DIALECTS, PROJECTS, Dialect, write_names
from vitrail.errors import CheckpointError, among
from vitrail.files import write_whole
from vitrail.hub import save_folder
from vitrail.loading import NUMERICS, OURS, Account, Opened, Wanted, open_model
from vitrail.models import find_variant
from vitrail.models.registry import ModelConfig
from vitrail.recognise import FREE
from vitrail.transforms import fit_statistics
from vitrail.wire import Buffer

TORCH = (".pth", ".pt", ".tar", ".bin")
SUFFIXES = {"MindSpore": (".ckpt", ".safetensors"), "PyTorch": (*TORCH, ".safetensors")}
ENTRIES = {("official", "twins"): "model", ("mmpretrain", None): "state_dict"}
"""Where a project's own programs look for the weights in a .pth file; elsewhere they stand alone in it."""
WHY_NOT = {
    ("timm", "t2t_vit"): "timm has no T2T-ViT; convert it to official, which timm reads after `import vitrail.timm`",
    ("mindcv", "t2t_vit"): "MindCV has no T2T-ViT; the MindSpore code for it is in the model zoo (--to zoo)",
}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written, and how it compares with what was read."""

    read: Account
    written: tuple[str, ...]
    """Files."""
    doubts: tuple[str, ...]
    """Where the other project computes or reads images otherwise."""
    difference: float
    """The largest between the logits of what was read and of what was written, each as its project computes them."""
    scale: float
    """Standard deviation of those logits."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self)


def convert(source: Path | str, target: Path, to: str, asked: Wanted | None = None) -> Conversion:
    """Read a weight file and write it for another project, then read that back and compare.

    Args:
        source: Any file that `open_model` reads.
        target: File to write; its ending says of which kind, and for timm none makes a folder.
        to: Name of the project.
        asked: How the source is to be read.

    Raises:
        CheckpointError: It cannot be read or written, or the project has no place for such weights.
    """
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise CheckpointError(f"{target}: is the source; choose another name, so that it stays")
    opened = open_model(source, replace(asked or Wanted(), two_logits=False))
    config, model = config_of(opened.record), opened.record.model
    if to == OURS:
        _check_suffix(target, to, (".safetensors",))
        save_model(target, opened.weights, replace(opened.record, provenance=_provenance(opened)))
        return _compared(opened, target, (str(target),), [], Wanted(two_logits=False))
    dialect = find_dialect(to, model, config)
    theirs = to_dialect(opened.weights, dialect, str(source), to)
    if to == "timm" and target.suffix not in SUFFIXES["PyTorch"]:
        written = save_folder(target, theirs, opened.record)
    else:
        _check_suffix(target, to, SUFFIXES["MindSpore" if dialect.mindspore else "PyTorch"])
        entry = ENTRIES.get((to, dialect.family)) or ENTRIES.get((to, None))
        write_whole(target, _encode(theirs, target, entry, dialect.mindspore), f"choose another place than {target}")
        written = (str(target),)
    options = {name: value for name, value in asdict(config).items() if name not in (*FREE, *dialect.options)}
    asked = Wanted(
        dialect=to, model=model, options={**options, "image_size": config.image_size}, two_logits=False
    )  # fmt: skip
    return _compared(opened, target, written, _doubts(opened, dialect, to), asked)


def find_dialect(to: str, model: str, config: ModelConfig) -> Dialect:
    """Return how a project names the weights of a model.

    Raises:
        CheckpointError: It has no such model.
    """
    family = find_variant(model)[0].name
    known = [dialect for dialect in DIALECTS if to in dialect.projects]
    if not known:
        every = among(to, (*PROJECTS, OURS), "known are")
        raise CheckpointError(f"--to {to}: is no project that is known here{every}")
    of_family = [dialect for dialect in known if dialect.family == family]
    if not of_family:
        raise CheckpointError(f"--to {to}: {WHY_NOT[to, family]}")
    for dialect in of_family:
        if all(getattr(config, name) == value for name, value in dialect.only.items()):
            return dialect
    has = " and ".join(f"{name}={value}" for name, value in of_family[0].only.items())
    raise CheckpointError(f"--to {to}: its {family} has {has}, and {model} has not")


def to_dialect(weights: Mapping[str, Tensor], dialect: Dialect, where: str, to: str) -> dict[str, Tensor]:
    """Return weights under a project's names and in its layout.

    Raises:
        CheckpointError: It has no place for some of them, and they are not zeros.
    """
    links, dropped = write_names(weights, dialect)
    if lost := [name for name in dropped if weights[name].any()]:
        raise CheckpointError(
            f"{where}: {to} has no place for {len(lost)} of its weights ({', '.join(lost[:3])}, ...), and they are not "
            "zero; without them it would be another model"
        )
    return {
        name: tensor
        for link in links
        for name, tensor in zip(link.theirs, link.how.write([weights[ours] for ours in link.ours]), strict=True)
    }


def _check_suffix(target: Path, to: str, allowed: Iterable[str]) -> None:
    if target.suffix not in allowed:
        folder = ", or a folder's name" if to == "timm" else ""
        raise CheckpointError(f"{target}: --to {to} writes files that end in {', '.join(allowed)}{folder}")


def _encode(theirs: dict[str, Tensor], target: Path, entry: str | None, mindspore: bool) -> Buffer | Iterable[Buffer]:
    if target.suffix == ".ckpt":
        return encode_ckpt(theirs)
    if target.suffix == ".safetensors":
        return encode_safetensors(theirs, {"format": "ms" if mindspore else "pt"})
    buffer = io.BytesIO()
    torch.save({entry: theirs} if entry else theirs, buffer)
    return buffer.getvalue()


def _provenance(opened: Opened) -> dict[str, Any]:
    return (
        {**provenance(), **opened.record.provenance}
        if opened.account.dialect != OURS
        else dict(opened.record.provenance)
    )


def _doubts(opened: Opened, dialect: Dialect, to: str) -> list[str]:
    record, doubts = opened.record, []
    if record.thresholds is not None:
        doubts.append(
            f"{to} has no place for the thresholds of a model that gives any number of classes: take the sigmoid of "
            f"each logit, and as thresholds {', '.join(f'{value:.4g}' for value in record.thresholds[:10])}"
            f"{', ...' if len(record.thresholds) > 10 else ''}"
        )
    card = find_variant(record.model)[1]
    computes = vars(card.config) | dict(dialect.options)
    if differing := [
        f"{name} {computes[name]} instead of {record.options[name]}"
        for name in NUMERICS
        if name in computes and computes[name] != record.options[name]
    ]:
        doubts.append(f"{to} computes with {', '.join(differing)}")
    reads: dict[str, Any] = {
        "mean": card.mean, "std": card.std, "crop": card.crop, "interpolation": card.interpolation, "bits": 8,
        **dialect.preprocess,
    }  # fmt: skip
    reads["mean"], reads["std"] = fit_statistics(record.preprocess.channels, reads["mean"], reads["std"])
    if differing := [
        f"{name} {_short(value)} instead of {_short(getattr(record.preprocess, name))}"
        for name, value in reads.items()
        if getattr(record.preprocess, name) != value
    ]:
        doubts.append(f"{to} reads images with {', '.join(differing)}, unless told otherwise")
    return doubts


def _short(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _compared(opened: Opened, target: Path, written: tuple[str, ...], doubts: list[str], asked: Wanted) -> Conversion:
    """Read the written file back; its weights are those that were read, or else nothing is said to be converted."""
    again = open_model(target, asked)
    changed = [name for name, tensor in opened.weights.items() if not torch.equal(tensor, again.weights[name])]
    if changed:
        raise CheckpointError(f"{target}: reads back with other values ({changed[0]}); it is not to be used")
    config = config_of(opened.record)
    images = torch.rand(2, config.in_channels, *config.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        ours = opened.build()(images)
        theirs = again.build()(images)
    return Conversion(
        read=opened.account,
        written=written,
        doubts=tuple(doubts),
        difference=(ours - theirs).abs().max().item(),
        scale=ours.std().item(),
    )
