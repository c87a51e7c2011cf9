"""A weight file in the names, the layout and the kind of file of another project."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, among
from vitrail.files import Buffer, files_of, refuse_output, refuse_replacing, write_whole
from vitrail.images.preprocess import fit_statistics
from vitrail.models.dialects import Dialect, write_names
from vitrail.models.family import ModelConfig
from vitrail.models.registry import find_variant
from vitrail.weights.checkpoint import config_of, encode_safetensors, provenance, save_model
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.hub import FOLDER, name_in_timm, save_folder
from vitrail.weights.loading import NUMERICS, OURS, Account, Opened, Wanted, numerics, open_model
from vitrail.weights.recognise import FREE, PROJECTS

TORCH = (".pth", ".pt", ".tar", ".bin")
SUFFIXES = {"MindSpore": (".ckpt", ".safetensors"), "PyTorch": (*TORCH, ".safetensors")}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written, and how it compares with what was read."""

    read: Account
    written: tuple[str, ...]
    """Files."""
    doubts: tuple[str, ...]
    """Where the other project computes or reads images otherwise."""
    difference: float
    """The largest between logits: of the source as it was read, and of the target as its project's programs compute."""
    scale: float
    """Standard deviation of those logits."""
    image_size: str = ""
    """Setting by which vitrail reads the file, where nothing in it tells the size of its images."""

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
        ConfigError: The target cannot be written, or would replace what is read.
    """
    is_folder = to == "timm" and target.suffix not in SUFFIXES["PyTorch"]
    if is_folder:
        for file in (target / name for name in FOLDER):
            refuse_replacing("OUT", file, files_of(source))
    else:
        refuse_output("OUT", target, files_of(source))
    asked = replace(asked or Wanted(), two_logits=False)
    opened = open_model(source, asked)
    config, model = config_of(opened.record), opened.record.model
    if to == OURS:
        _check_suffix(target, to, (".safetensors",))
        save_model(target, opened.weights, replace(opened.record, provenance=_provenance(opened)))
        difference, scale = _difference(opened, _read_back(opened, target, Wanted(two_logits=False)))
        return Conversion(read=opened.account, written=(str(target),), doubts=(), difference=difference, scale=scale)
    dialect = find_dialect(to, model, config)
    if added := _added(config, model, dialect):
        opened = open_model(source, replace(asked, options={**asked.options, **added}))
        config = config_of(opened.record)
    theirs = to_dialect(opened.weights, dialect, str(source), to)
    if is_folder:
        written = save_folder(target, theirs, opened.record)
    else:
        _check_suffix(target, to, SUFFIXES["MindSpore" if dialect.mindspore else "PyTorch"])
        entry = dialect.entry if to == dialect.name else ""
        write_whole(target, _encode(theirs, target, entry, dialect.mindspore), f"choose another place than {target}")
        written = (str(target),)
    # no numerics: those of the project's own programs are to be compared with
    options = {name: value for name, value in asdict(config).items() if name not in (*FREE, *NUMERICS)}
    options["image_size"] = config.image_size
    again = _read_back(opened, target, Wanted(dialect=to, model=model, options=options, two_logits=False))
    difference, scale = _difference(opened, again)
    return Conversion(
        read=opened.account,
        written=written,
        doubts=tuple(_doubts(opened, again, dialect, to, difference)),
        difference=difference,
        scale=scale,
        image_size=_size_setting(opened, again),
    )


def find_dialect(to: str, model: str, config: ModelConfig) -> Dialect:
    """Return how a project names the weights of a model.

    Raises:
        CheckpointError: It has no such model.
    """
    family = find_variant(model)[0]
    if to not in PROJECTS:
        every = among(to, (*PROJECTS, OURS), "known are")
        raise CheckpointError(f"--to {to}: is no project that is known here{every}")
    of_family = [dialect for dialect in family.dialects if to in dialect.projects]
    if not of_family:
        others = dict.fromkeys(name for dialect in family.dialects for name in dialect.projects)
        advice = (
            "convert it to official, which timm reads after `import vitrail.timm`"
            if to == "timm"
            else f"known for it are {', '.join(others)}"
        )
        raise CheckpointError(f"--to {to}: {to} has no {family.title}; {advice}")
    for dialect in of_family:
        if not _differing(config, dialect).keys() - _added(config, model, dialect).keys():
            return dialect
    has = " and ".join(f"{name}={value}" for name, value in _differing(config, of_family[0]).items())
    raise CheckpointError(f"--to {to}: its {family.title} has {has}, and {model} has not")


def _differing(config: ModelConfig, dialect: Dialect) -> dict[str, Any]:
    """Return the fields, as a project has them, in which a model is none of the project's."""
    return {name: value for name, value in dialect.only.items() if getattr(config, name) != value}


def _added(config: ModelConfig, model: str, dialect: Dialect) -> dict[str, Any]:
    """Return those of them that weights of zeros mend."""
    additions = find_variant(model)[0].additions.items()
    return {name: value for name, value in _differing(config, dialect).items() if (name, value) in additions}


def to_dialect(weights: Mapping[str, Tensor], dialect: Dialect, where: str, to: str) -> dict[str, Tensor]:
    """Return weights under a project's names and in its layout.

    Raises:
        CheckpointError: It has no place for some of them, and they are not zeros.
    """
    links, dropped = write_names(weights, dialect)
    if lost := [name for name in dropped if weights[name].any()]:
        raise CheckpointError(
            f"{where}: {to} has no place for {len(lost)} of its weights ({', '.join(lost[:3])}, ...), and they are not "
            f"zero; without them it would be another model{dialect.instead and f'; {dialect.instead}'}"
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


def _encode(theirs: dict[str, Tensor], target: Path, entry: str, mindspore: bool) -> Buffer | Iterable[Buffer]:
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


def _size_setting(opened: Opened, again: Opened) -> str:
    """Return the setting that tells the size of the images, where a written file does not."""
    config, card = config_of(opened.record), find_variant(opened.record.model)[1]
    if hasattr(config, "grid") or config.size == card.config.size or Path(again.account.path).is_dir():
        return ""
    return f"weights.options.image_size={_short(config.image_size).replace(' ', '')}"


def _doubts(opened: Opened, again: Opened, dialect: Dialect, to: str, difference: float) -> list[str]:
    record, doubts = opened.record, []
    if record.thresholds is not None:
        doubts.append(
            f"{to} has no place for the thresholds of a model that gives any number of classes: take the sigmoid of "
            f"each logit, and as thresholds {', '.join(f'{value:.4g}' for value in record.thresholds[:10])}"
            f"{', ...' if len(record.thresholds) > 10 else ''}"
        )
    if record.classes and not again.record.classes:
        doubts.append(
            f"{to} has no place for the names of the {len(record.classes)} classes; weights.classes=FILE, with a name "
            f"a line, gives them back: {', '.join(record.classes[:3])}{', ...' * (len(record.classes) > 3)}"
        )
    config, card = config_of(record), find_variant(record.model)[1]
    if size := _size_setting(opened, again):
        doubts.append(f"nothing in the file tells the size of its images: `vitrail` reads it with {size}")
    wanted, given = numerics(config), numerics(config_of(again.record))
    if differing := [name for name, value in wanted.items() if given[name] != value]:
        instead = ", ".join(f"{name} {given[name]} instead of {wanted[name]}" for name in differing)
        remedy = dialect.remedy
        if to == "timm":
            arguments = ", ".join(f"{name}={wanted[name]!r}" for name in differing)
            remedy = (
                f"after `import vitrail.timm`, timm.create_model({name_in_timm(record.model)!r}, pretrained=True, "
                f"pretrained_cfg_overlay={{'file': {again.account.path!r}}}, {arguments}) computes as these weights "
                "expect"
            )
        doubts.append(
            f"{to} computes with {instead}: logits differ by {difference:.1e} at most{remedy and f'; {remedy}'}"
        )
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


def _read_back(opened: Opened, target: Path, asked: Wanted) -> Opened:
    """Read the written file; its weights are those that were read, or else nothing is said to be converted."""
    again = open_model(target, asked)
    changed = [name for name, tensor in opened.weights.items() if not torch.equal(tensor, again.weights[name])]
    if changed:
        raise CheckpointError(f"{target}: reads back with other values ({changed[0]}); it is not to be used")
    return again


def _difference(opened: Opened, again: Opened) -> tuple[float, float]:
    """Return the largest difference between logits of both, and their standard deviation."""
    config = config_of(opened.record)
    images = torch.rand(2, config.in_channels, *config.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        ours = opened.build()(images)
        theirs = again.build()(images)
    return (ours - theirs).abs().max().item(), ours.std().item()
