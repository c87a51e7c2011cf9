"""Batch norm in a run: its statistics are kept from updates that do not count, and shared by the ranks.

A batch norm divides a micro-batch by that micro-batch's own spread, so that the cut of a batch
into micro-batches, over ranks or in time, changes the update. No other layer here does so, and
it is said before the run. Its running mean and variance are what evaluation and files compute
with: they change in each forward pass in training, whether an update follows or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitrail.config.commands import TrainConfig
from vitrail.distributed.processes import send_to_all
from vitrail.errors import ConfigError


def list_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means, variances and counts of a model's batch norms."""
    statistics = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            statistics += list(module.buffers(recurse=False))
    return statistics


def copy_statistics(model: nn.Module) -> list[Tensor]:
    """Return a copy of the statistics of a model, to be put back."""
    return [one.clone() for one in list_statistics(model)]


def put_back(model: nn.Module, before: list[Tensor], where: Tensor | None = None) -> None:
    """Give a model the statistics that it had, or only where a boolean () is true, without waiting for it."""
    for one, earlier in zip(list_statistics(model), before, strict=True):
        one.copy_(earlier if where is None else torch.where(where, earlier, one))


@contextmanager
def keep_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the statistics of a model as they were, whatever passes through it in the context."""
    before = copy_statistics(model)
    try:
        yield
    finally:
        put_back(model, before)


def share_statistics(accelerator: Accelerator, *models: nn.Module) -> None:
    """Give all ranks the statistics of the first one, which are those that are saved. Collective."""
    for model in models:
        send_to_all(accelerator, list_statistics(model))


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether a model has a batch norm, whose layers compute with the batch in training."""
    return bool(list_statistics(model))


def never_alone(model: nn.Module, images: Tensor) -> Tensor:
    """Return images for a pass in training: a single one twice where a batch norm needs a spread."""
    if len(images) == 1 and has_batch_norm(model):
        return torch.cat([images, images])
    return images


def explain_batch_norm(model: nn.Module, config: TrainConfig, world: int) -> list[str]:
    """Say where a batch norm makes a run differ from what is exact without one.

    Raises:
        ConfigError: A micro-batch is a single image, which has no spread.
    """
    if not has_batch_norm(model):
        return []
    name, settings = config.model.name, config.train
    images = settings.batch_size // (world * settings.accumulate)
    if images < 2:
        raise ConfigError(
            f"{name} has batch norm, which needs at least 2 images in a micro-batch, and there is 1: "
            f"train.batch_size is {settings.batch_size} over train.accumulate={settings.accumulate} "
            f"and {world} processes; raise train.batch_size or lower train.accumulate"
        )
    notes = []
    if images < settings.batch_size:
        notes.append(
            f"{name} has batch norm, which normalises each micro-batch of {images} images by itself: "
            f"train.accumulate={settings.accumulate} and {world} processes make other updates than "
            f"{settings.batch_size} images at once, and the running statistics kept are those of the "
            "first process"
        )
    if config.output.average_best:
        notes.append(
            f"{name} has batch norm, whose running statistics output.average_best averages like "
            "weights, though the averaged weights have others; compare the accuracy of average.safetensors"
        )
    return notes
