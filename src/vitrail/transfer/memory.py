"""How many images are computed at a time, so that what training keeps of them fits into the device's memory."""

from __future__ import annotations

from typing import Any

import torch

from vitrail.devices import count_memory
from vitrail.models.family import VisionModel
from vitrail.training.batch_norm import has_batch_norm, keep_statistics

SHARE = 0.5
"""Share of the memory that activations may take; the rest is for weights, moments, images and other programs."""
FOR_GRADIENTS = 1.5
"""Times the activations that a backward pass takes beside them, at its fullest."""


def count_fitting_images(model: VisionModel) -> int:
    """Return how many images of a model's size may be computed at a time in training, at least 1."""
    device = next(model.parameters()).device
    fitting = SHARE * find_memory(device) / (FOR_GRADIENTS * measure_activations(model))
    return max(1, int(fitting))


def measure_activations(model: VisionModel) -> int:
    """Return the bytes that a training keeps of one image until its backward pass, by computing one."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    # a single one has no spread for batch norm
    count = 2 if has_batch_norm(model) else 1
    images = torch.zeros(
        count, model.config.in_channels, *model.config.size, device=next(model.parameters()).device
    )
    was_training = model.training
    model.train()
    with (
        keep_statistics(model),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        logits: Any = model(images)
    del logits
    model.train(was_training)
    return max(1, sum(size for place, size in kept.items() if place not in weights) // count)


def find_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a GPU, or that this process may take elsewhere."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return count_memory()
