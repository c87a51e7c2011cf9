"""Load a model from any weight file: its weights under official names, its preprocessing, and an account of both."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitrail.config.sections import PreprocessSection
from vitrail.devices import read_device
from vitrail.display import Display, Quiet, Terminal
from vitrail.errors import CheckpointError
from vitrail.images.preprocess import Preprocess
from vitrail.models.family import VisionModel
from vitrail.models.registry import canonical_name
from vitrail.weights.account import Account, Entry
from vitrail.weights.adapt_model import adapt_model
from vitrail.weights.checkpoint import KEY, config_of, parse_record
from vitrail.weights.config_fields import read_numerics
from vitrail.weights.digest import DIGESTS, check_weights
from vitrail.weights.foreign import (
    Remarks,
    describe_model,
    numerics_of_config,
    recognise_model,
    rename_weights,
)
from vitrail.weights.formats.weight_file import WeightFile, open_weights
from vitrail.weights.opened import OURS, Opened
from vitrail.weights.published.resolve import locate_weights
from vitrail.weights.request import LoadRequest, Positions, check_described
from vitrail.weights.search.find import find_weights

MAX_BYTES = 4 * 2**30
"""Bytes of the weights of one model; the largest here has 400 million."""


def open_model(
    path: Path | str, request: LoadRequest | None = None, display: Display | None = None
) -> Opened:
    """Read the weights of a model, from a file of this or another project, and adapt them to what is asked for.

    A word that stands for published weights is resolved first, and they are fetched if need be. A
    file of another project is read, the weights are found in it, recognised as a model of a
    project, renamed, and described; a file of ours describes itself. Either is then adapted.

    Args:
        path: A file, a folder of timm's, hf-hub:OWNER/NAME, or a name of published weights.
        request: How it is to be read, where it leaves a choice.
        display: Where the progress of a download is shown.

    Raises:
        CheckpointError: No such file, damaged, not understood or in two ways, or not all weights
            are accounted for; or published weights cannot be had.
        ConfigError: What is asked for is no model.
    """
    request = request or LoadRequest()
    located = locate_weights(
        path, model=request.with_description().model, display=display or Quiet()
    )
    request = located.fill(request, str(path))
    file = _read_file(located.path, request)
    if KEY in file.metadata and request.dialect in (None, OURS):
        opened = _open_own_file(file, request)
    else:
        found = find_weights(file, _request_search(file, request))
        remarks = Remarks([*found.notes], [*found.doubts])
        reading = recognise_model(file, found, request.with_description(), remarks)
        weights = rename_weights(file, found, reading, remarks)
        opened = describe_model(file, found, reading, weights, request, remarks)
    check_described(opened.record, request, opened.account.path)
    return adapt_model(located.describe(opened), request)


def load_model(
    path: Path | str,
    device: str | torch.device = "cpu",
    *,
    dialect: str | None = None,
    model: str | None = None,
    entry: str | None = None,
    average: bool = True,
    partial: bool = False,
    positions: Positions = "resized",
    classes: Sequence[str] | None = None,
    **options: Any,
) -> VisionModel:
    """Load a model from any weight file, ready for inference.

    The model's `preprocess` turns a path, bytes or image into its input, and its `classes` name the
    logits:

        model = vitrail.load_model("runs/digits/best.safetensors")
        logits = model(model.preprocess("seven.png").unsqueeze(0))
        print(model.classes[logits.argmax()])

    Published weights have names: `vitrail.load_model("twins_svt_small")` fetches them once, and
    `vitrail weights` lists all that there are.

    A multi-label model has `thresholds`: an image has the classes whose sigmoid reaches theirs.

    Args:
        path: A file of vitrail, of the official projects, timm, mmpretrain or MindSpore; a folder
            of timm's; the name of published weights, such as t2t_vit_14_384 or tnt_s:mindcv; or
            hf-hub:OWNER/NAME.
        device: Device that the model is put on.
        dialect: Name of the project whose names the file uses, where two would fit.
        model: Name of the model, where the shapes fit two or are of no published one.
        entry: Where in the file the weights are, where that leaves a choice: an entry such as
            state_dict or ema.model, or what stands before their names, such as net.
        average: Take the moving average of the weights, where the file has one.
        partial: Take a file that lacks weights, which are then fresh, or has others, which are then
            skipped.
        positions: T2T-ViT's table of positions at another image size: resized from the file's, or
            fresh for it.
        classes: Names that the logits are to have; rows of the head are kept for those that the
            file has too, and all of them where the file names none and has as many.
        options: Fields of the model's configuration, such as image_size, in_channels or
            num_classes.

    Raises:
        CheckpointError: No such file, damaged, not understood or in two ways, or not all weights
            are accounted for; or published weights cannot be had.
        ConfigError: An unknown model, option or device.
    """
    target = read_device(device)  # before a file is read that may be large
    request = LoadRequest(
        dialect=dialect,
        model=model,
        options=options,
        entry=entry,
        average=average,
        partial=partial,
        positions=positions,
        classes=classes,
        two_logits=False,
    )
    terminal = Terminal()
    opened = open_model(path, request, terminal if terminal.is_seen else None)
    for doubt in opened.account.doubts:
        # past the check of arguments, to whoever calls vitrail.load_model
        warnings.warn(doubt, stacklevel=3)
    return opened.build(target)


def override_preprocess(
    stored: Preprocess, settings: PreprocessSection, display: Display
) -> Preprocess:
    """Return the preprocessing of a file with explicit settings put over it, saying what they change."""
    changes = {}
    for name, value in vars(settings).items():
        if value is not None and value != getattr(stored, name):
            changes[name] = value
    for name, value in changes.items():
        display.warn(
            f"preprocess.{name} is {value} instead of {getattr(stored, name)}, which the weights "
            "were validated with"
        )
    return replace(stored, **changes)


def check_digest(file: WeightFile) -> bool:
    """Compare a file with the digest that it was written with, and say whether it has one.

    Raises:
        CheckpointError: It is damaged.
    """
    if not any(name in file.metadata for name in DIGESTS):
        return False
    file.check(file.tensors)
    size = sum(held.dtype.itemsize * math.prod(held.shape) for held in file.tensors.values())
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{file.path}: holds {size:,} bytes of weights, and no model here has so many"
        )
    return check_weights(
        file.path, {name: file.load(name) for name in file.tensors}, file.metadata, KEY
    )


def _read_file(path: Path | str, request: LoadRequest) -> WeightFile:
    """Open a file, check its digest, and refuse requests that contradict who wrote it."""
    file = open_weights(path)
    check_digest(file)
    is_own = KEY in file.metadata
    if request.dialect == OURS and not is_own:
        raise CheckpointError(
            f"{file.path}: was not written by vitrail; leave weights.dialect out to find its "
            "dialect"
        )
    if request.entry is not None and is_own:
        raise CheckpointError(
            f"{file.path}: was written by vitrail and holds one model; leave weights.entry out"
        )
    return file


def _open_own_file(file: WeightFile, request: LoadRequest) -> Opened:
    """Read a file that vitrail wrote, which says itself what it holds."""
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    record = parse_record(file.metadata, file.path, shapes)
    if request.model and canonical_name(request.model) != record.model:
        raise CheckpointError(f"{file.path}: is a {record.model}, not a {request.model}")
    weights = file.read({name: name for name in file.tensors})
    account = Account(
        path=str(file.path),
        dialect=OURS,
        model=record.model,
        entries=(Entry("loaded", tuple(weights), tuple(weights)),),
        numerics=read_numerics(config_of(record, file.path)),
    )
    return Opened(record=record, weights=weights, account=account)


def _request_search(file: WeightFile, request: LoadRequest) -> LoadRequest:
    """Return the request with all that is known of the model before its weights are found."""
    stated = numerics_of_config(file)
    request = request.with_description()
    model = canonical_name(request.model) if request.model else None
    return replace(request, model=model, options={**stated, **request.options})
