"""Find the source of NaN or Inf: make the batch of a skipped update again, or let autograd name the operation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from vitrail.devices import autocast
from vitrail.distributed.processes import gather_texts
from vitrail.errors import TrainingError
from vitrail.training.batch_norm import keep_statistics
from vitrail.training.optim.nonfinite import first_nonfinite
from vitrail.training.run.state import TrainState
from vitrail.training.setup import Job
from vitrail.training.step import compute_loss, mixing_keys, prepare, seed_dropout


def diagnose(job: Job, state: TrainState, update: int) -> str:
    """Make the batch of an update again and say what is NaN or Inf in it, on whichever rank. Collective."""
    epoch, step = divmod(update, job.sampler.steps)
    sampler = copy.copy(job.sampler)
    sampler.epoch, sampler.first_step = epoch, step
    mixing = mixing_keys(job.config, sampler, epoch, step)
    culprit = None
    for sample_keys, mixing_key in zip(islice(sampler, sampler.accumulate), mixing, strict=True):
        images, targets = prepare(job, job.loader.read(sample_keys), mixing_key)

        def loss_again(images: Tensor = images, targets: Tensor = targets) -> Tensor:
            with autocast(job.accelerator.device, job.precision):
                logits = state.model(images)
            return compute_loss(job, logits.float()[: len(targets)], targets)

        seed_dropout(job.config, sampler, epoch, step)
        with keep_statistics(state.model):
            culprit = culprit or first_nonfinite(state.model, loss_again)
    culprits = [text for text in gather_texts(job.accelerator, [culprit]) if text]
    return (
        culprits[0] if culprits else "only with the weights it had then, not with those it has now"
    )


@contextmanager
def name_anomalies(enabled: bool) -> Iterator[None]:
    """Turn what autograd's anomaly detection finds into one line.

    Args:
        enabled: Whether train.detect_anomaly is set; without it this does nothing.
    """
    if not enabled:
        yield
        return
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    except RuntimeError as error:
        if "nan values" not in str(error):
            raise
        raise TrainingError(
            f"train.detect_anomaly: {error}; its forward call stands in the warning above"
        ) from error
