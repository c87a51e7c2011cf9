"""What an evaluation in training measures: answers to labelled images, or how near a student is to its teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vitrail.distributed.processes import sum_over_processes
from vitrail.evaluation.measure import Measured, measure
from vitrail.evaluation.task import task_of
from vitrail.models.family import VisionModel
from vitrail.training.imitation import Imitation, measure_imitation
from vitrail.training.setup import Job


def measure_before(job: Job, model: VisionModel, advance: Callable[[], None]) -> dict[str, Any]:
    """Measure k-NN of a student before its first update, and of its teacher; return the numbers that its row has.

    Collective.

    Args:
        job: The parts of the run that do not change.
        model: The student.
        advance: Called now and then.
    """
    assert job.neighbours is not None
    assert job.distillation is not None
    teacher = job.distillation.teacher
    assert teacher.model is not None
    before = job.neighbours.measure(model, job.preprocess, job.accelerator, advance)
    theirs = job.neighbours.measure(teacher.model, teacher.preprocess, job.accelerator, advance)
    job.display.note(f"k-NN on {job.neighbours.where} before training: {before}")
    job.display.note(f"k-NN of the teacher, {teacher.path}: {theirs}")
    return {f"knn_{before.metric}": before.value, f"teacher_knn_{theirs.metric}": theirs.value}


def evaluate_weights(
    job: Job, model: VisionModel, advance: Callable[[], None]
) -> tuple[Measured | Imitation, dict[str, Any]]:
    """Evaluate weights on the validation images. Collective.

    Args:
        job: The parts of the run that do not change.
        model: The model with these weights.
        advance: Called after each batch, equally often on all ranks; what it raises ends the
            evaluation.

    Returns:
        What was measured, and the numbers of it that an epoch's row has.
    """
    teaching = job.distillation
    if job.config.data.unlabelled:
        assert teaching is not None
        near = measure_imitation(
            model,
            job.val_loader,
            teaching,
            job.accelerator,
            precision=job.precision,
            advance=advance,
        )
        return near, {"val_loss": near.metrics.loss}
    agreement = None if teaching is None else teaching.agreement()
    measured = measure(
        model,
        job.val_loader,
        task_of(job.data.val, training_counts=job.training_counts),
        job.preprocess,
        job.accelerator,
        precision=job.precision,
        advance=advance,
        look=None if agreement is None else agreement.add,
    )
    numbers = {f"val_{name}": value for name, value in measured.metrics.numbers().items()}
    if agreement is not None:
        counts = torch.tensor(agreement.counts, device=job.accelerator.device)
        equal, images = sum_over_processes(job.accelerator, counts)[0].tolist()
        numbers["val_agreement"] = 100 * equal / images if images else None
    return measured, numbers
