"""One training step: micro-batches to targets, loss, gradients and the update, which NaN or Inf leaves out."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vitrail.config.commands import TrainConfig
from vitrail.data.loader import Batch
from vitrail.data.sampling import BatchSampler
from vitrail.distillation.distill import Distillation
from vitrail.distillation.token_labels import TokenLabels
from vitrail.distributed.processes import any_process
from vitrail.distributed.sharding import gather_full
from vitrail.images.batch_augment import erase, mix
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.images.train_view import sample_key
from vitrail.training.batch_norm import (
    copy_statistics,
    keep_statistics,
    never_alone,
    put_back,
)
from vitrail.training.losses import Objective
from vitrail.training.optim.optimizers import can_skip
from vitrail.training.optim.sharpness import ascend
from vitrail.training.run.state import new_sums
from vitrail.training.stopwatch import Stopwatch

SHORT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a primitive",
    "std::bad_alloc",
)
"""What torch, oneDNN and C++ say on the CPU where memory is short."""


@dataclass
class Memory:
    """Into how many parts a micro-batch is cut, so that its activations fit into the device's memory."""

    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Settings, processes, preprocessing and loss of a training step, beside model, optimizer and images."""

    config: TrainConfig
    accelerator: Accelerator
    preprocess: Preprocess
    objective: Objective
    """The training loss, which makes targets of labels too."""
    distillation: Distillation | None = None
    """The teacher and its loss, where there is one; its targets stand behind those of the labels."""
    token_labels: TokenLabels | None = None
    """What a teacher says of tokens, where that is learned; its targets stand behind those of the labels."""
    memory: Memory = field(default_factory=Memory)


def train_step(
    context: StepContext,
    model: nn.Module,
    optimizer: Any,
    micro_batches: Sequence[Batch],
    keys: Sequence[int | None],
    watch: Stopwatch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one update from the micro-batches of this rank, unless the loss or the gradient is NaN or Inf.

    Every image weighs 1 / batch_size times what its class does, so an unreadable one changes the
    weight of no other. For a micro-batch without any, a black image is passed through and left out:
    other ranks wait for its gradients. Nothing waits for the device, unless the optimizer cannot
    leave an update out by itself.

    Args:
        context: Settings, processes, preprocessing and loss.
        model: The model, as Accelerate prepared it.
        optimizer: The optimizer, as Accelerate prepared it.
        micro_batches: This rank's images of the batch.
        keys: Mixup/CutMix seed of each micro-batch; None where it is not mixed.
        watch: Times the phases.

    Returns:
        (Summed loss, right answers, images, answers that are the teacher's) of this rank, zeros
        where the update was skipped;
        whether it was skipped, in all ranks alike; and the norm of the gradient before it is
        clipped.
    """
    statistics = copy_statistics(model)
    with watch.phase("forward_backward_s"):
        sums = _compute_in_memory(context, model, optimizer, micro_batches, keys)
    with watch.phase("optimizer_s"):
        context.accelerator.unscale_gradients()
        norm = _clip_gradients(model, context.config.optim.clip_norm)
        # in all ranks alike, or their weights would differ
        is_skipped = any_process(context.accelerator, ~(norm.isfinite() & sums[0].isfinite()))
        _update_weights(context, optimizer, is_skipped)
        put_back(model, statistics, is_skipped)
    return torch.where(is_skipped, torch.zeros_like(sums), sums), is_skipped, norm


def _compute_in_memory(
    context: StepContext,
    model: nn.Module,
    optimizer: Any,
    micro_batches: Sequence[Batch],
    keys: Sequence[int | None],
) -> Tensor:
    """Compute the gradients of the update, in smaller parts where memory is short; return the sums.

    The parts are of images that are mixed already, so it is the same update. Several ranks wait for
    each other's gradients, so one of them cannot begin again alone.

    Raises:
        OutOfMemoryError: A single image does not fit, or there are several ranks.
    """
    statistics = copy_statistics(model)
    while True:
        try:
            return _compute_gradients(context, model, optimizer, micro_batches, keys)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            largest = max(len(micro_batch.labels) for micro_batch in micro_batches)
            if context.accelerator.num_processes > 1 or context.memory.parts >= largest:
                raise torch.OutOfMemoryError(str(error)) from error
        # outside of the handler, which holds on to the activations
        optimizer.zero_grad()
        put_back(model, statistics)
        context.memory.parts *= 2
        gc.collect()  # cycles keep activations too
        if context.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error of torch is that memory is short, the device's or that of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in SHORT_OF_MEMORY
    )


def _compute_gradients(
    context: StepContext,
    model: nn.Module,
    optimizer: Any,
    micro_batches: Sequence[Batch],
    keys: Sequence[int | None],
) -> Tensor:
    """Compute the gradients at the weights, or with SAM uphill of them; return the sums at the weights."""
    sums = _accumulate_gradients(context, model, micro_batches, keys)
    if context.config.optim.sam_rho is not None:
        # the statistics are those of the weights, not of the place uphill
        with ascend(model, context.config.optim.sam_rho), keep_statistics(model):
            optimizer.zero_grad()
            _accumulate_gradients(context, model, micro_batches, keys)
    return sums


def _accumulate_gradients(
    context: StepContext,
    model: nn.Module,
    micro_batches: Sequence[Batch],
    keys: Sequence[int | None],
) -> Tensor:
    """Go forward and backward with each micro-batch; return the sums of `train_step`."""
    accelerator = context.accelerator
    images_per_rank = context.config.train.batch_size // accelerator.num_processes
    sums = new_sums(accelerator.device)
    for number, (micro_batch, key) in enumerate(zip(micro_batches, keys, strict=True), start=1):
        images, targets = prepare(context, micro_batch, key)
        in_pairs = context.token_labels is not None and context.token_labels.mixes
        parts = _cut(images, targets, context.memory.parts, in_pairs=in_pairs)
        for part, (part_images, part_targets) in enumerate(parts, start=1):
            is_last = number == len(micro_batches) and part == len(parts)
            # gradients are summed over the ranks once, with those of the last micro-batch
            synchronization = nullcontext() if is_last else accelerator.no_sync(model)
            # a black image that stands for unreadable ones is none that statistics are of
            statistics = nullcontext() if len(part_targets) else keep_statistics(model)
            with synchronization, statistics:
                # of a cut batch or beside unreadable ones, an image may be alone
                logits = model(never_alone(model, part_images)).float()[: len(part_targets)]
                if context.config.data.unlabelled:
                    logits = logits[:, :0]  # there is no head, and these were vectors
                loss = compute_loss(context, logits, part_targets)
                accelerator.backward(loss / images_per_rank)
            sums += _count(logits, part_targets, loss).to(sums.dtype)
    return sums


def _cut(
    images: Tensor, targets: Tensor, parts: int, *, in_pairs: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Cut the images of a micro-batch and their targets into so many parts, or as many as there are images.

    Args:
        images: The images.
        targets: Their targets.
        parts: How many parts.
        in_pairs: Whether an image and its partner in the reversed batch stay together, and are
            partners in the part too.
    """
    if not len(targets):  # the black image of a micro-batch without readable ones
        return [(images, targets)]
    if in_pairs and parts > 1:
        n, cut = len(targets), []
        for first in torch.arange((n + 1) // 2, device=images.device).chunk(parts):
            second = (n - 1 - first).flip(0)
            both = torch.cat([first, second[second > first[-1]]])
            cut.append((images[both], targets[both]))
        return cut
    return list(zip(images.chunk(parts), targets.chunk(parts), strict=True))


def compute_loss(context: StepContext, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of the labels, or the weighted sum of theirs and the teacher's, over the images."""
    if context.token_labels is not None:
        return context.token_labels.loss(logits, targets, context.objective.loss)
    loss = context.objective.loss(logits, targets[:, : logits.shape[1]])
    if context.distillation is None:
        return loss
    share = 1.0 if context.config.data.unlabelled else context.config.distill.weight
    return (1 - share) * loss + share * context.distillation.loss(logits, targets)


def _count(logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
    """Return loss, right answers, images, and answers that are the teacher's too."""
    k = logits.shape[1]
    if k == 0:  # images without labels
        numbers = torch.tensor([0, len(targets), 0], device=loss.device)
        return torch.cat([loss.detach().reshape(1), numbers.to(loss.dtype)])
    first = logits.argmax(1)
    right = (first == targets[:, :k].argmax(1)).sum()
    counted = torch.full_like(right, len(targets))
    agreeing = torch.zeros_like(right)
    if targets.shape[1] > k:
        agreeing = (first == targets[:, k : 2 * k].argmax(1)).sum()
    return torch.stack([loss.detach(), right, counted, agreeing])


def _clip_gradients(model: nn.Module, clip_norm: float | None) -> Tensor:
    """Scale the gradients down to a norm, where one is given; return the norm that they had."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    shared_norm = get_total_norm(
        [parameter.grad for parameter in parameters if parameter.grad is not None]
    )
    if clip_norm is not None:
        clip_grads_with_norm_(parameters, clip_norm, shared_norm)
    return gather_full(shared_norm)


def _update_weights(context: StepContext, optimizer: Any, is_skipped: Tensor) -> None:
    """Let the optimizer make its update, unless it is skipped, and clear the gradients."""
    if context.accelerator.scaler is not None:
        optimizer.step()  # which the scaler leaves out where a gradient is not finite
    elif can_skip(optimizer.optimizer) and not context.config.train.shard:
        # the fused kernels change nothing where it is 1
        optimizer.optimizer.found_inf = is_skipped.float()
        optimizer.step()
    elif not is_skipped:
        # waits for the device: other kernels, and those for sharded parameters, cannot skip an
        # update themselves
        optimizer.step()
    optimizer.zero_grad()


def prepare(context: StepContext, micro_batch: Batch, key: int | None) -> tuple[Tensor, Tensor]:
    """Return the normalised, erased and, with a key, mixed images of a micro-batch, and their targets (b, k).

    Behind the k numbers of the labels stand those of the teacher, if there is one. A micro-batch
    without images has no target, and a black image to pass through the model.
    """
    device, preprocess, augment = (
        context.accelerator.device,
        context.preprocess,
        context.config.augment,
    )
    targets = context.objective.targets(micro_batch.labels, device)
    teacher, is_mixed = context.distillation, context.config.distill.mixed
    if teacher is not None and not len(micro_batch.labels):
        targets = torch.cat([targets, targets.new_zeros(0, teacher.columns)], 1)
    elif teacher is not None and not is_mixed:
        targets = torch.cat([targets, teacher.make_targets(micro_batch)], 1)
    labels = context.token_labels
    if labels is not None and not len(micro_batch.labels):
        targets = labels.mix(torch.cat([targets, targets.new_zeros(0, labels.columns)], 1), None)
    elif labels is not None:
        targets = torch.cat([targets, labels.make_targets(micro_batch, targets)], 1)
    if not len(micro_batch.labels):
        return torch.zeros(1, preprocess.channels, *preprocess.size, device=device), targets
    images = normalise(
        micro_batch.images.to(device, non_blocking=True), preprocess.mean, preprocess.std
    )
    erase_images = partial(
        erase,
        keys=micro_batch.keys,
        probability=augment.erase_prob,
        mode=augment.erase_mode,
        count=augment.erase_count,
    )
    if augment.erase == "before_mix":
        images = erase_images(images)
    if key is not None:
        images, targets = mix(
            images,
            targets,
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            probability=augment.mix_prob,
            switch_probability=augment.mix_switch_prob,
            key=key,
            mode=augment.mix_mode,
            minmax=augment.cutmix_minmax,
        )
    if labels is not None:
        targets = labels.mix(targets, key)
    if augment.erase == "after_mix":
        images = erase_images(images)
    if teacher is not None and is_mixed:
        targets = torch.cat([targets, teacher.make_mixed_targets(images)], 1)
    if context.config.train.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, targets


def mixing_keys(
    config: TrainConfig, sampler: BatchSampler, epoch: int, step: int
) -> list[int] | list[None]:
    """Return the Mixup/CutMix seed of each micro-batch of an update on this rank; None once mixing has ended."""
    micro_batches = range(sampler.accumulate)
    end = config.augment.mix_off_epoch
    if end is not None and epoch >= end:
        return [None] * len(micro_batches)
    seed, rank, world = config.train.seed, sampler.rank, sampler.world
    # negative, as the draws of images and of dropout have the numbers from 0 on
    return [sample_key(seed, epoch, step, -(number * world + rank) - 1) for number in micro_batches]


def seed_dropout(config: TrainConfig, sampler: BatchSampler, epoch: int, step: int) -> None:
    """Seed the dropouts and drop paths of an update on this rank, so that a resumed run draws the same ones."""
    torch.manual_seed(sample_key(config.train.seed, epoch, step, 1 + sampler.rank))
