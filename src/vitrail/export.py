"""A trained model in another framework's format, beside a script that compares it there with PyTorch."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.export import ExportedProgram

from vitrail.checkpoint import Record, to_metadata
from vitrail.errors import ConfigError
from vitrail.files import write_whole
from vitrail.loading import Opened
from vitrail.mindir import CHECK_SCRIPT, to_mindir

ADVICE = "free space or choose another --output"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    model: Path
    check: Path
    """A script for where the other framework is; its images and logits are beside it."""
    images: tuple[int, ...]
    """Shape of the input (b, c, h, w), the only one that the file takes."""
    logits: tuple[int, ...]


def export(
    opened: Opened,
    output: Path | None = None,
    *,
    format: Literal["mindir"],
    batch_size: int = 1,
    mindir_version: Literal[1, 3] = 1,
) -> Exported:
    """Write a trained model in another format, for float32 images of one size.

    Args:
        opened: From `open_model`; weights of half precision are widened.
        output: The file to write; by default beside the weight file. The check goes beside it.
        format: A key of FORMATS.
        batch_size: Images that the file takes at once, never more nor fewer.
        mindir_version: As in `to_mindir`.

    Raises:
        ConfigError: An output that cannot be, or a batch of nothing.
        CheckpointError: The weights do not fit, or the disk is full; no file is left half written.
        ExportError: An operation of the model has no counterpart in the format.
    """
    output = output or Path(opened.account.path).with_suffix(f".{format}")
    if output.suffix != f".{format}":
        raise ConfigError(f"--output {output}: must end in .{format}, by which it is known where it is loaded")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; create or choose another")
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        raise ConfigError(f"--output {output}: cannot be written; choose another file")
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; it must be at least 1")

    model = opened.build().float()
    shape = (batch_size, model.config.in_channels, *model.config.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images)
        program = torch.export.export(model, (images,))
    script = FORMATS[format](program, output, opened.record, mindir_version)

    reference, check = io.BytesIO(), output.with_suffix(".check.py")
    np.savez(reference, images=images.numpy(), logits=logits.numpy())
    write_whole(check.with_suffix(".npz"), reference.getvalue(), ADVICE)
    write_whole(check, script.encode(), ADVICE)
    return Exported(model=output, check=check, images=shape, logits=tuple(logits.shape))


def _write_mindir(program: ExportedProgram, output: Path, record: Record, version: Literal[1, 3]) -> str:
    write_whole(output, to_mindir(program, version, to_metadata(record)), ADVICE)
    return CHECK_SCRIPT


FORMATS: Mapping[str, Callable[[ExportedProgram, Path, Record, Literal[1, 3]], str]] = {"mindir": _write_mindir}
"""What writes a program to a file, and returns the script that checks it."""
