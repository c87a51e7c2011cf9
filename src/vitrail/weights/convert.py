"""Convert a weight file: write it in the names, the layout and the kind of file of another project."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.display import Display
from vitrail.errors import CheckpointError, format_choices, write_option
from vitrail.files import Buffer, files_of, refuse_output, refuse_replacing, write_whole
from vitrail.images.preprocess import fit_statistics
from vitrail.models.dialects import Dialect, is_counter, write_names
from vitrail.weights.account import Account
from vitrail.weights.checkpoint import Record, config_of, encode_safetensors, provenance, save_model
from vitrail.weights.config_fields import (
    ADAPTABLE,
    NUMERICS,
    find_differences,
    read_architecture,
    read_numerics,
    write_options,
)
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.hub import FOLDER, name_in_timm, save_folder
from vitrail.weights.loading import open_model
from vitrail.weights.opened import OURS, Opened
from vitrail.weights.recognise import list_projects
from vitrail.weights.request import LoadRequest

TORCH = (".pth", ".pt", ".tar", ".bin")
SUFFIXES = {"MindSpore": (".ckpt", ".safetensors"), "PyTorch": (*TORCH, ".safetensors")}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written, and how it compares with what was read."""

    read: Account
    written: tuple[str, ...]
    """Files that were written."""
    doubts: tuple[str, ...]
    """Where the other project computes or reads images otherwise."""
    difference: float
    """Largest difference of logits: the source's as it was read, and the target's as its project
    computes."""
    scale: float
    """Standard deviation of those logits."""
    settings: tuple[str, ...] = ()
    """Settings that vitrail needs to read the file, where nothing in it tells its model or the size
    of its images."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self)


def convert(
    source: Path | str,
    target: Path,
    to: str,
    asked: LoadRequest | None = None,
    display: Display | None = None,
) -> Conversion:
    """Read a weight file and write it for another project, then read that back and compare.

    Args:
        source: Any file that `open_model` reads.
        target: File to write; its ending says of which kind, and for timm none makes a folder.
        to: Name of the project.
        asked: How the source is to be read.
        display: Where the progress of a download is shown.

    Raises:
        CheckpointError: It cannot be read or written, or the project has no place for such weights.
        ConfigError: The target cannot be written, or would replace what is read.
    """
    _refuse_target(source, target, to)
    request = replace(asked or LoadRequest(), two_logits=False)
    opened = open_model(source, request, display)
    if to == OURS:
        return _convert_to_ours(opened, target)

    # write
    dialect = find_dialect(to, opened.record)
    if zeros := _zero_additions(opened.record, dialect):
        opened = open_model(source, replace(request, options={**request.options, **zeros}))
    theirs = to_dialect(opened.weights, dialect, str(source), to)
    if _is_folder(target, to):
        written = save_folder(target, theirs, opened.record)
    else:
        framework = "MindSpore" if dialect.mindspore else "PyTorch"
        _check_suffix(target, to, SUFFIXES[framework])
        entry = dialect.entry if to == dialect.name else ""
        write_whole(
            target,
            _encode(theirs, target, entry, dialect.mindspore),
            f"choose another place than {target}",
        )
        written = (str(target),)

    # read back
    config = config_of(opened.record)
    # no numerics: those of the project's own programs are to be compared with
    options = asdict(config)
    for name in (*ADAPTABLE, *NUMERICS):
        options.pop(name, None)
    options["image_size"] = config.image_size
    as_theirs = LoadRequest(
        dialect=to, model=opened.record.model, options=options, two_logits=False
    )
    again = _read_back(opened, target, as_theirs, dialect)
    difference, scale = _compare_logits(opened, again)
    # config.json of a folder tells all
    needed = () if _is_folder(target, to) else _needed_settings(opened.record)
    return Conversion(
        read=opened.account,
        written=written,
        doubts=tuple(_list_doubts(opened, again, dialect, to, difference, needed)),
        difference=difference,
        scale=scale,
        settings=needed,
    )


def find_dialect(to: str, record: Record) -> Dialect:
    """Return how a project names the weights of a model.

    Raises:
        CheckpointError: It has no such model.
    """
    if to not in (known := list_projects()):
        every = format_choices(to, (*known, OURS), "known are")
        where = write_option("to", to)
        raise CheckpointError(f"{where}: is no project that is known here{every}")
    family = record.family
    of_family = [dialect for dialect in family.dialects if to in dialect.projects]
    if not of_family:
        advice = f"known for it are {', '.join(family.projects)}"
        if to == "timm":
            advice = "convert it to official, which timm reads after `import vitrail.timm`"
        where = write_option("to", to)
        raise CheckpointError(f"{where}: {to} has no {family.title}; {advice}")
    for dialect in of_family:
        if not _differing_fields(record, dialect).keys() - _zero_additions(record, dialect).keys():
            return dialect
    has = " and ".join(
        f"{name}={value}" for name, value in _differing_fields(record, of_family[0]).items()
    )
    where = write_option("to", to)
    raise CheckpointError(f"{where}: its {family.title} has {has}, and {record.model} has not")


def to_dialect(
    weights: Mapping[str, Tensor], dialect: Dialect, where: str, to: str
) -> dict[str, Tensor]:
    """Return weights under a project's names and in its layout.

    Raises:
        CheckpointError: It has no place for some of them, and they are not zeros.
    """
    links, dropped = write_names(weights, dialect)
    if lost := [name for name in dropped if weights[name].any()]:
        raise CheckpointError(
            f"{where}: {to} has no place for {len(lost)} of its weights ({', '.join(lost[:3])}, "
            "...), and they are not zero; without them it would be another "
            f"model{dialect.instead and f'; {dialect.instead}'}"
        )
    theirs: dict[str, Tensor] = {}
    for link in links:
        tensors = link.how.write([weights[name] for name in link.ours])
        theirs |= zip(link.theirs, tensors, strict=True)
    return theirs


def _is_folder(target: Path, to: str) -> bool:
    return to == "timm" and target.suffix not in SUFFIXES["PyTorch"]


def _refuse_target(source: Path | str, target: Path, to: str) -> None:
    if _is_folder(target, to):
        for name in FOLDER:
            refuse_replacing("OUT", target / name, files_of(source))
    else:
        refuse_output("OUT", target, files_of(source))


def _convert_to_ours(opened: Opened, target: Path) -> Conversion:
    _check_suffix(target, OURS, (".safetensors",))
    made = dict(opened.record.provenance)
    if opened.account.dialect != OURS:
        made = {**provenance(), **made}
    save_model(target, opened.weights, replace(opened.record, provenance=made))
    again = _read_back(opened, target, LoadRequest(two_logits=False), None)
    difference, scale = _compare_logits(opened, again)
    return Conversion(
        read=opened.account, written=(str(target),), doubts=(), difference=difference, scale=scale
    )


def _differing_fields(record: Record, dialect: Dialect) -> dict[str, Any]:
    """Return the fields, as a project has them, in which a model is none of the project's."""
    return find_differences(config_of(record), dialect.only)


def _zero_additions(record: Record, dialect: Dialect) -> dict[str, Any]:
    """Return the differing fields that add nothing but weights of zeros."""
    return dict(_differing_fields(record, dialect).items() & record.family.additions.items())


def _check_suffix(target: Path, to: str, allowed: Iterable[str]) -> None:
    if target.suffix not in allowed:
        folder = ", or a folder's name" if to == "timm" else ""
        raise CheckpointError(
            f"{target}: {write_option('to', to)} writes files that end in "
            f"{', '.join(allowed)}{folder}"
        )


def _encode(
    theirs: dict[str, Tensor], target: Path, entry: str, mindspore: bool
) -> Buffer | Iterable[Buffer]:
    if target.suffix == ".ckpt":
        return encode_ckpt(theirs)
    if target.suffix == ".safetensors":
        framework = "ms" if mindspore else "pt"
        return encode_safetensors(theirs, {"format": framework})
    buffer = io.BytesIO()
    content = {entry: theirs} if entry else theirs
    torch.save(content, buffer)
    return buffer.getvalue()


def _needed_settings(record: Record) -> tuple[str, ...]:
    """Return the settings that tell the model and the size of its images, where a written file does not."""
    config, published = config_of(record), record.variant.config
    told = read_architecture(published)
    options = {
        name: value for name, value in read_architecture(config).items() if value != told[name]
    }
    settings = [f"weights.model={record.model}"] if options else []
    if not hasattr(config, "grid") and config.size != published.size:
        options["image_size"] = config.image_size
    return (*settings, *write_options(options))


def _list_doubts(
    opened: Opened,
    again: Opened,
    dialect: Dialect,
    to: str,
    difference: float,
    needed: Sequence[str],
) -> list[str]:
    """Return where the other project computes or reads images otherwise, and what its files have no place for."""
    doubts = _doubt_labels(opened.record, again.record, to)
    if needed:
        what = "its model" if needed[0].startswith("weights.model") else "the size of its images"
        doubts.append(
            f"nothing in the file tells {what}: `vitrail` reads it with {' '.join(needed)}"
        )
    doubts += _doubt_numerics(opened, again, dialect, to, difference)
    doubts += _doubt_preprocess(opened.record, dialect, to)
    return doubts


def _doubt_labels(record: Record, written: Record, to: str) -> list[str]:
    """Return what is lost of thresholds and class names."""
    doubts = []
    if record.thresholds is not None:
        listed = ", ".join(f"{value:.4g}" for value in record.thresholds[:10])
        if len(record.thresholds) > 10:
            listed += ", ..."
        doubts.append(
            f"{to} has no place for the thresholds of a model that gives any number of classes: "
            f"take the sigmoid of each logit, and as thresholds {listed}"
        )
    if record.classes and not written.classes:
        listed = ", ".join(record.classes[:3])
        if len(record.classes) > 3:
            listed += ", ..."
        doubts.append(
            f"{to} has no place for the names of the {len(record.classes)} classes; "
            f"weights.classes=FILE, with a name a line, gives them back: {listed}"
        )
    return doubts


def _doubt_numerics(
    opened: Opened, again: Opened, dialect: Dialect, to: str, difference: float
) -> list[str]:
    """Return by how much the project's GELU and epsilons change the logits."""
    needed, given = read_numerics(config_of(opened.record)), read_numerics(config_of(again.record))
    differing = [name for name, value in needed.items() if given[name] != value]
    if not differing:
        return []
    instead = ", ".join(f"{name} {given[name]} instead of {needed[name]}" for name in differing)
    remedy = dialect.remedy
    if to == "timm":
        arguments = ", ".join(f"{name}={needed[name]!r}" for name in differing)
        remedy = (
            "after `import vitrail.timm`, "
            f"timm.create_model({name_in_timm(opened.record.model)!r}, pretrained=True, "
            f"pretrained_cfg_overlay={{'file': {again.account.path!r}}}, {arguments}) computes as "
            f"these weights expect"
        )
    return [
        f"{to} computes with {instead}: logits differ by {difference:.1e} at "
        f"most{remedy and f'; {remedy}'}"
    ]


def _doubt_preprocess(record: Record, dialect: Dialect, to: str) -> list[str]:
    """Return how the project's programs read images otherwise than the record says."""
    variant, preprocess = record.variant, record.preprocess
    values: dict[str, Any] = {
        "mean": variant.mean,
        "std": variant.std,
        "crop": variant.crop,
        "resize": "crop",
        "interpolation": variant.interpolation,
        "bits": 8,
        **dialect.preprocess,
    }
    values["mean"], values["std"] = fit_statistics(
        preprocess.channels, values["mean"], values["std"]
    )
    differing = []
    for name, value in values.items():
        own = getattr(preprocess, name)
        if own != value:
            differing.append(f"{name} {_short(value)} instead of {_short(own)}")
    return (
        [f"{to} reads images with {', '.join(differing)}, unless told otherwise"]
        if differing
        else []
    )


def _short(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _read_back(opened: Opened, target: Path, asked: LoadRequest, dialect: Dialect | None) -> Opened:
    """Read the written file; its weights are those that were read, or else nothing is said to be converted."""
    again = open_model(target, asked)
    for name, tensor in opened.weights.items():
        if is_counter(name) and dialect is not None and not dialect.has_counters:
            continue
        if not torch.equal(tensor, again.weights[name]):
            raise CheckpointError(
                f"{target}: reads back with other values ({name}); it is not to be used"
            )
    return again


def _compare_logits(opened: Opened, again: Opened) -> tuple[float, float]:
    """Return the largest difference between logits of both, and their standard deviation."""
    config = config_of(opened.record)
    images = (
        torch.rand(2, config.in_channels, *config.size, generator=torch.Generator().manual_seed(0))
        * 2
        - 1
    )
    with torch.inference_mode():
        ours = opened.build()(images)
        theirs = again.build()(images)
    return (ours - theirs).abs().max().item(), ours.std().item()
