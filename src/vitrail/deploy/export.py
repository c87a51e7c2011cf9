"""Export a trained model to other runtimes: each file is compared with PyTorch before it gets its name."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from vitrail.choices import ExportFormat, Precision
from vitrail.deploy.compare import SampleImages, Verdict, compare_logits, compare_probabilities
from vitrail.deploy.formats import FORMATS, Files, Plan
from vitrail.errors import ConfigError, MissingExtra, name_option, write_option
from vitrail.files import (
    files_of,
    refusal_told,
    refuse_output,
    remove,
    remove_leftovers,
    temporary_name,
)
from vitrail.inference.engines import has_mindspore
from vitrail.inference.exported import Making
from vitrail.inference.network import read_artifact, require_classes
from vitrail.weights.checkpoint import hash_file
from vitrail.weights.opened import Opened

"""What to do where a file cannot be written."""
REJECTED = ".rejected"
"""Ending of the name of a file whose answers are too far off."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One exported file, and how it compares with PyTorch."""

    format: ExportFormat
    path: Path
    """The file; its name ends in .rejected where the verdict is bad."""
    bytes: int
    """Size of all its files."""
    seconds: float
    """Time to write it, without the verdict."""
    verdict: Verdict | None
    """How it compares with PyTorch; None for MindIR where MindSpore is not at hand."""
    script: Path | None = None
    """Program that compares it where MindSpore is."""

    @property
    def is_good(self) -> bool:
        """Whether it has its name."""
        return self.verdict is None or self.verdict.is_good


def advise_elsewhere() -> str:
    """Return what to do where a file cannot be written."""
    return f"free space or choose another {write_option('output')}"


def find_outputs(
    formats: Sequence[ExportFormat], checkpoint: Path, output: Path | None
) -> dict[ExportFormat, Path]:
    """Return the file of each format: beside the weight file, or what `output` names, for several formats a folder.

    Raises:
        ConfigError: An output that cannot be.
    """
    paths: dict[ExportFormat, Path]
    if output is None:
        paths = {name: checkpoint.with_suffix(FORMATS[name].suffix) for name in formats}
    elif len(formats) == 1:
        paths = {formats[0]: output}
    elif output.is_dir():
        paths = {
            name: (output / checkpoint.name).with_suffix(FORMATS[name].suffix) for name in formats
        }
    else:
        where = write_option("output", output)
        raise ConfigError(
            f"{where}: must be a folder that is there, as {len(formats)} formats are wanted"
        )

    for name, path in paths.items():
        suffix = FORMATS[name].suffix
        if path.suffix != suffix:
            where = write_option("output", path)
            raise ConfigError(
                f"{where}: must end in {suffix}, by which it is known where it is loaded"
            )
        for one in (suffix, *FORMATS[name].beside):
            refuse_output("output", path.with_suffix(one), files_of(checkpoint))
    return paths


def check_request(
    formats: Sequence[ExportFormat],
    precision: Precision,
    batch_size: int | None,
    with_preprocess: bool,
) -> None:
    """Refuse what cannot be exported, before anything is.

    Raises:
        ConfigError: A format in a precision that it does not have, a batch of nothing, or
            preprocessing elsewhere.
        MissingExtra: A package that a format needs is not installed.
    """
    if batch_size is not None and batch_size < 1:
        where = name_option("batch_size")
        raise ConfigError(f"{where} is {batch_size}; it must be at least 1")
    if with_preprocess and set(formats) != {"onnx"}:
        where = name_option("with_preprocess")
        raise ConfigError(
            f"{where} is for {write_option('format', 'onnx')}; other runtimes scale images "
            "otherwise, or cannot"
        )
    if with_preprocess and batch_size is not None:
        where = name_option("batch_size")
        raise ConfigError(
            f"{where}: with {write_option('with_preprocess', True)} a file takes one image, of any "
            "size; leave it out"
        )
    for name in formats:
        if precision not in FORMATS[name].precisions:
            able = " and ".join(
                other for other in FORMATS if precision in FORMATS[other].precisions
            )
            allowed = (
                f"{able} can"
                if able
                else f"it must be one of {', '.join(FORMATS[name].precisions)}"
            )
            where = write_option("precision", precision)
            raise ConfigError(f"{where}: {name} cannot be had so; {allowed}")
        for package in FORMATS[name].packages:
            if find_spec(package) is None:
                where = write_option("format", name)
                raise MissingExtra(f"{where}: needs {package}; run: pip install 'vitrail[{name}]'")


def export(
    opened: Opened,
    outputs: Mapping[ExportFormat, Path],
    sample: SampleImages,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    with_preprocess: bool = False,
    topk: int = 5,
    device: torch.device | str = "cpu",
    mindir_version: Literal[1, 3] = 1,
) -> Iterator[Exported]:
    """Write a trained model in other formats, for float32 images of one size; yield each when it is compared.

    Args:
        opened: A model from `open_model`; weights of half precision are widened.
        outputs: Files from `find_outputs`.
        sample: Images on which each file is compared with PyTorch.
        precision: Precision that the file computes in; images and logits are float32 in any case.
        batch_size: Images that a file takes at once; None lets it take any number, but MindIR,
            which takes one.
        with_preprocess: Let the file, of ONNX, take one whole image of uint8 instead, and yield
            probabilities.
        topk: Most probable classes that a file with preprocessing yields too.
        device: Device that a .pt2 is compiled for.
        mindir_version: Version of MindIR, as in `to_mindir`.

    Raises:
        CheckpointError: The weights do not fit, or the disk is full; no file is left half written.
        ConfigError: The preprocessing is to be put into the file, and is of 16 bits or without
            classes behind it.
        DataError: An image of the sample cannot be read.
        ExportError: An operation of the model has no counterpart in the format, or a compiler is
            missing.
    """
    if with_preprocess:
        require_classes(opened.record, opened.account.path)
    if with_preprocess and opened.record.preprocess.bits != 8:
        where = name_option("with_preprocess")
        raise ConfigError(f"{where} takes images of 8 bits, and this model reads 16; leave it out")
    model = opened.build().float()
    source = Path(opened.account.path)
    sha256 = hash_file(source)
    compared = [name for name in outputs if name != "mindir" or has_mindspore()]
    if compared:
        _ = sample.images  # read first, as writing takes longer

    cache: dict[Any, Any] = {}
    for name, path in outputs.items():
        its_batch_size = batch_size
        if name == "mindir" and batch_size is None:
            its_batch_size = 1
        making = Making(
            format=name,
            source=source.name,
            sha256=sha256,
            precision=precision,
            batch_size=its_batch_size,
            input="image" if with_preprocess else "normalised",
            details={},
        )
        plan = Plan(
            model=model,
            record=opened.record,
            making=making,
            device=torch.device(device),
            mindir_version=mindir_version,
            topk=topk,
            cache=cache,
        )
        yield _export_one(name, plan, path, sample if name in compared else None)


def _export_one(
    name: ExportFormat, plan: Plan, path: Path, sample: SampleImages | None
) -> Exported:
    """Write one format, compare it unless there is no sample, and give it the name that it has earned."""
    started = time.perf_counter()
    files = FORMATS[name].write(plan)
    seconds = time.perf_counter() - started
    with staged_files(path, files) as staged:
        verdict = None if sample is None else _compare(staged, plan, sample)
        ending = "" if verdict is None or verdict.is_good else REJECTED
        publish(staged, path, ending)
        written = {suffix: path.with_suffix(suffix + ending) for suffix in files}
    return Exported(
        format=name,
        path=written[path.suffix],
        bytes=sum(final.stat().st_size for final in written.values()),
        seconds=seconds,
        verdict=verdict,
        script=written.get(".check.py"),
    )


def _compare(file: Path, plan: Plan, sample: SampleImages) -> Verdict:
    is_whole = plan.making.input == "image"
    network = read_artifact(file, whole=is_whole).start(plan.device)
    compare = compare_probabilities if is_whole else compare_logits
    return compare(network, plan.model, sample)


def publish(staged: Path, path: Path, ending: str = "") -> None:
    """Give a staged file, and those beside it, their names, of which `ending` is added to each.

    The file that the others are found from comes last. It says which they have to be, so what a
    kill in between leaves together is refused by whoever reads it.
    """
    for part in sorted(staged.parent.iterdir(), key=lambda part: part.name == staged.name):
        part.replace(path.with_name(part.name + ending))


@contextmanager
def staged_files(path: Path, files: Files) -> Iterator[Path]:
    """Write files to a folder of their own beside where they are wanted, which is removed at the end of the context.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    with refusal_told(path, path.parent / "none", advise_elsewhere()):
        remove_leftovers(path)
        folder = temporary_name(path)
        # of a process that was killed and had the same number
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    try:
        staged = folder / path.name
        with refusal_told(path, staged, advise_elsewhere()):
            for suffix, parts in files.items():
                with staged.with_suffix(suffix).open("wb") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
        yield staged
    finally:
        remove(folder)
