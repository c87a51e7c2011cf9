"""The teacher of a run: opened, measured on the validation images, and given a place for its answers."""

from __future__ import annotations

import hashlib
import json
import shutil
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
from vitrail.config.teaching_sections import DistillSection
from vitrail.data.loader import Batch, build_eval_loader
from vitrail.data.opening import Data, list_files_read
from vitrail.data.sources import fingerprint
from vitrail.display import Display, headline_metric
from vitrail.distillation.answers import AnswerFiles, Layout, open_folder
from vitrail.distillation.distill import Distillation
from vitrail.distillation.teacher import PLACES, Teacher, open_teacher
from vitrail.distillation.tokens import find_grid
from vitrail.distributed.processes import share
from vitrail.embedding.store import fingerprint_contents, locate_cache
from vitrail.errors import ConfigError, TrainingError, VitrailError, shorten
from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.measure import measure
from vitrail.evaluation.task import task_of
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import TrainView
from vitrail.models.family import VisionModel
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
    model: VisionModel,
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
        model: The student.

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
    classes = None if config.data.unlabelled else data.classes
    grid = find_grid(model, config.model.name) if section.loss == "tokens" else None
    with accelerator.local_main_process_first():  # which downloads for all
        teacher = open_teacher(
            section.teacher,
            classes,
            preprocess,
            accelerator.device,
            precision,
            display,
            multi_label=is_multi_label,
            with_features=section.learns_features,
            size=None if grid is None else grid.size,
        )
    layout = Layout(len(classes or ()), section.topk, teacher.num_features)
    files = None
    if section.cache is not False and is_kept(section):
        about = None
        if accelerator.is_main_process:
            about = describe_answers(config, data, preprocess, view, teacher, layout)
        folder = share_folder(section.cache, about, accelerator)
        files = AnswerFiles(folder, layout, display.warn)
        display.note(f"the answers of the teacher are kept in {folder}")
    if grid is not None:
        tell_size(config, len(data.train), layout, files, display)
    distillation = Distillation(
        section=section,
        teacher=teacher,
        layout=layout,
        preprocess=preprocess,
        device=accelerator.device,
        is_multi_label=is_multi_label,
        files=files,
        grid=grid,
    )
    if config.data.unlabelled:
        display.note(
            f"teacher {teacher.path}: {teacher.record.model}, digest {teacher.digest[:16]}"
        )
    else:
        measure_teacher(distillation, config, data, counts, accelerator, display)
    return distillation


def is_kept(section: DistillSection) -> bool:
    """Say whether a teacher's answers are kept, unless that was refused.

    Those with maps are large, and kept where they come again or somebody has named a folder for them.
    """
    if section.mixed:
        return False
    return section.loss != "tokens" or section.cache is not None or section.views is not None


def tell_size(
    config: TrainConfig, images: int, layout: Layout, files: AnswerFiles | None, display: Display
) -> None:
    """Say what a teacher's maps take on the disk, and whether there is room."""
    bytes_a_view = layout.row.itemsize
    views = config.distill.views or config.train.epochs + config.schedule.cooldown_epochs
    a_view, in_all = (count * images * bytes_a_view / 1e9 for count in (1, views))
    size = f"{bytes_a_view:,} bytes a view, {a_view:.3g} GB for all images once"
    if files is None:
        if not config.distill.mixed:
            display.note(
                f"the teacher's maps are not kept, and computed in every epoch; they take {size}: "
                f"distill.views=K keeps K views of an image, distill.cache=FOLDER all {views:,}"
            )
        return
    free = shutil.disk_usage(files.folder).free / 1e9
    told = (
        f"the teacher's maps take {size}, {in_all:.3g} GB for {views:,} views, and {free:.3g} GB are "
        f"free in {files.folder}"
    )
    if in_all > free:
        display.warn(
            f"{told}; lower distill.views, or set distill.cache to another folder or to false"
        )
    else:
        display.note(told)


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
        if config.distill.learns_features and getattr(config.train, name):
            instead = "" if config.data.unlabelled else "; drop one, or take distill.loss=soft"
            raise ConfigError(
                f"distill.loss={loss} does not go with train.{name}=true"
                + (instead or f"; leave out train.{name}")
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
    about = {
        "teacher": teacher.description,
        "images": fingerprint(data.train),
        "contents": fingerprint_contents(data.train, list_files_read(config.data, data.train)),
        "view": view.describe(),
        "pixels": asdict(preprocess.pixels),
        "seed": config.train.seed,
        "classes": list(data.classes),
        "topk": layout.kept,
        "logits": "any number of classes" if data.train.label_sets is not None else "one class",
    }
    if config.data.unlabelled:  # whose validation images are kept too, as they are evaluated
        shown = preprocess.to_dict()
        for key in ("mean", "std"):  # the student's, which the teacher does not see
            del shown[key]
        about["val"] = {
            "images": fingerprint(data.val),
            "contents": fingerprint_contents(data.val, list_files_read(config.data, data.val)),
            "preprocess": shown,
        }
    return about


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
            **({"val": distillation.val_numbers} if distillation.val_numbers else {}),
        }
    }
