"""Sharding: a model split over all ranks (FSDP2), and its tensors gathered again."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, device: torch.device) -> None:
    """Shard a model's parameters over all ranks (FSDP2); each block is gathered only while it computes."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for parent in model.modules():
        if isinstance(parent, nn.ModuleList):
            for block in parent:
                if not isinstance(block, nn.ModuleList):
                    fully_shard(block, mesh=mesh)
    # FSDP warns of a model that returns a view, as logits are that a convolution computes
    # (kernels/linear.py)
    model.register_forward_hook(lambda module, inputs, logits: logits.clone())
    fully_shard(model, mesh=mesh)


def gather_full(value: Any) -> Any:
    """Return a state dict, or any part of one, with sharded tensors gathered to full ones. Collective."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: gather_full(item) for key, item in value.items()}
    return value


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Any, like: Tensor) -> Any:
    """Return this rank's shard of a full tensor, where `like` is sharded and of its shape."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(
            value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )
    return value
