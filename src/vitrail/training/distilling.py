"""The teacher of a run: opened, measured on the validation images, and given a place for its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vitrail.choices import Precision
from vitrail.config.commands import TrainConfig
from vitrail.data.loader import Batch, build_eval_loader
from vitrail.data.opening import Data, list_files_read
from vitrail.data.sources import fingerprint
from vitrail.display import Display, headline_metric
from vitrail.distillation.answers import AnswerFiles, Layout, open_folder
from vitrail.distillation.distill import Distillation
from vitrail.distillation.teacher import PLACES, Teacher, open_teacher
from vitrail.distributed.processes import share
from vitrail.embedding.store import fingerprint_contents, locate_cache
from vitrail.errors import ConfigError, TrainingError, VitrailError, shorten
from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.measure import measure
from vitrail.evaluation.task import task_of
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import TrainView
from vitrail.training.step import is_out_of_memory


def build_distillation(
    config: TrainConfig,
    data: Data,
    preprocess: Preprocess,
    view: TrainView,
    accelerator: Accelerator,
    *,
    precision: Precision,
    counts: NDArray[np.int64],
    display: Display,
) -> Distillation | None:
    """Open the teacher that the settings name, if they do. Collective.

    Args:
        config: All settings.
        data: The images of both splits.
        preprocess: How the student reads images.
        view: How its training images are varied.
        accelerator: The processes.
        precision: Precision of matrix products.
        counts: Training images of each class.
        display: Told who teaches.

    Raises:
        CheckpointError: Its file is missing or damaged, or its answers cannot be kept.
        ConfigError: It cannot teach this student, or the folder is of other answers.
        DataError: It lacks classes of the data.
    """
    section = config.distill
    if section.teacher is None:
        return None
    refuse_combinations(config, data)
    is_multi_label = data.train.label_sets is not None
    with accelerator.local_main_process_first():  # which downloads for all
        teacher = open_teacher(
            section.teacher,
            data.classes,
            preprocess,
            accelerator.device,
            precision,
            display,
            multi_label=is_multi_label,
            with_features=section.loss == "feature",
        )
    layout = Layout(len(data.classes), section.topk, teacher.num_features)
    files = None
    if not section.mixed and section.cache is not False:
        about = None
        if accelerator.is_main_process:
            about = describe_answers(config, data, preprocess, view, teacher, layout)
        folder = share_folder(section.cache, about, accelerator)
        files = AnswerFiles(folder, layout, display.warn)
        display.note(f"the answers of the teacher are kept in {folder}")
    distillation = Distillation(
        section=section,
        teacher=teacher,
        layout=layout,
        preprocess=preprocess,
        device=accelerator.device,
        is_multi_label=is_multi_label,
        files=files,
    )
    measure_teacher(distillation, config, data, counts, accelerator, display)
    return distillation


def refuse_combinations(config: TrainConfig, data: Data) -> None:
    """Refuse settings that distillation cannot be combined with.

    Raises:
        ConfigError: Names them, and what to do.
    """
    loss, is_multi_label = config.distill.loss, data.train.label_sets is not None
    if is_multi_label and loss in ("hard", "dkd"):
        raise ConfigError(
            f"distill.loss={loss} takes one class as the answer to an image, and the images have "
            "any number of classes each; set it to soft or feature"
        )
    if loss == "dkd" and len(data.classes) < 3:
        raise ConfigError(
            "distill.loss=dkd compares the classes that an image is not, and the data has "
            f"{len(data.classes)} classes; set it to soft"
        )
    for name in ("compile", "shard"):
        if loss == "feature" and getattr(config.train, name):
            raise ConfigError(
                f"distill.loss=feature does not go with train.{name}=true; drop one, or take "
                "distill.loss=soft"
            )


def describe_answers(
    config: TrainConfig,
    data: Data,
    preprocess: Preprocess,
    view: TrainView,
    teacher: Teacher,
    layout: Layout,
) -> dict[str, Any]:
    """Return all that decides the answers to the views of a run, as plain values for JSON."""
    return {
        "teacher": teacher.description,
        "images": fingerprint(data.train),
        "contents": fingerprint_contents(data.train, list_files_read(config.data, data.train)),
        "view": asdict(view),
        "pixels": asdict(preprocess.pixels),
        "seed": config.train.seed,
        "classes": list(data.classes),
        "topk": layout.kept,
        "logits": "any number of classes" if data.train.label_sets is not None else "one class",
    }


def share_folder(given: str | None, about: dict[str, Any] | None, accelerator: Accelerator) -> Path:
    """Return the folder of answers, which the first rank has made or looked at. Collective.

    Args:
        given: The folder that is asked for; None takes one in the user's cache.
        about: What the answers are of, on the first rank.
        accelerator: The processes.
    """
    outcome: Path | VitrailError | None = None
    if about is not None:
        text = json.dumps(about, sort_keys=True).encode()
        name = hashlib.blake2b(text, digest_size=16).hexdigest()
        folder = locate_cache().with_name("answers") / name
        if given is not None:
            folder = Path(given).expanduser()
        try:
            open_folder(folder, about, is_given=given is not None)
            outcome = folder
        except VitrailError as error:
            outcome = error
    outcome = share(accelerator, outcome)
    if isinstance(outcome, VitrailError):  # on all ranks alike, so that none waits for another
        raise outcome
    assert outcome is not None
    return outcome


def measure_teacher(
    distillation: Distillation,
    config: TrainConfig,
    data: Data,
    counts: NDArray[np.int64],
    accelerator: Accelerator,
    display: Display,
) -> None:
    """Let the teacher answer the validation images as it reads them itself, and show how good it is. Collective."""
    teacher = distillation.teacher
    loader = build_eval_loader(
        data.val,
        teacher.preprocess,
        batch_size=PLACES,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=config.data.workers,
        bad_files=config.data.bad_files,
        pin_memory=accelerator.device.type == "cuda",
    )
    record = replace(
        teacher.record,
        classes=data.classes,
        options={**teacher.record.options, "num_classes": len(data.classes)},
    )

    def answer(images: Tensor) -> Tensor:
        return teacher.choose(teacher.network.run(images))

    display.begin("evaluate the teacher", len(loader))
    with _short_memory_told(teacher):
        measured = measure(
            replace(teacher.network, record=record, run=answer),
            loader,
            task_of(data.val, training_counts=counts, thresholds=thresholds_of(teacher)),
            teacher.preprocess,
            accelerator,
            advance=display.advance,
            keep_answers=True,
        )
    display.end()
    first = None
    if measured.answers is not None:
        first = first_answers(measured.answers, len(data.val))
    distillation.val_answers = share(accelerator, first)
    numbers = measured.metrics.numbers()
    name, title = headline_metric({f"val_{key}": None for key in numbers})
    distillation.val_numbers = {name: numbers[name], "n": measured.metrics.n}
    display.note(
        f"teacher {teacher.path}: {teacher.record.model}, digest {teacher.digest[:16]}, "
        f"{title.lower()} {numbers[name]:.2f} % of {measured.metrics.n:,} validation images"
    )


def ask_teacher(distillation: Distillation, micro_batches: list[Batch]) -> None:
    """Bring the answers to the views of an update into memory.

    Raises:
        CheckpointError: They cannot be kept.
        TrainingError: They are NaN or Inf, or memory is too short for the teacher.
    """
    with _short_memory_told(distillation.teacher):
        distillation.fetch(micro_batches)


@contextmanager
def _short_memory_told(teacher: Teacher) -> Iterator[None]:
    """Turn the error of short memory into one line.

    Raises:
        TrainingError: Memory is too short for the teacher.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"memory is too short for distill.teacher {teacher.path}, which computes {PLACES} "
            "images at once; give a smaller teacher, or let a run of a smaller student fill "
            f"distill.cache before ({shorten(str(error))})"
        ) from error


def thresholds_of(teacher: Teacher) -> tuple[float, ...] | None:
    """Return the thresholds of a multi-label teacher for the student's classes."""
    thresholds = teacher.record.thresholds
    if thresholds is None:
        return None
    return tuple(thresholds[index] for index in teacher.order)


def first_answers(answers: Gathered, n: int) -> NDArray[np.int64]:
    """Return the likeliest class of each of n images, -1 where an image cannot be read."""
    first = np.full(n, -1, np.int64)
    likeliest = answers.scores.argmax(1)
    if answers.choices.shape[1]:
        likeliest = answers.choices[:, 0]
    first[answers.indices] = likeliest
    return first


def origin_of_teacher(distillation: Distillation | None) -> dict[str, Any]:
    """Return the provenance that weights have of their teacher, empty where they had none."""
    if distillation is None:
        return {}
    teacher = distillation.teacher
    return {
        "teacher": {
            "file": teacher.path,
            "model": teacher.record.model,
            "digest": teacher.digest,
            "val": distillation.val_numbers,
        }
    }
