"""Pretraining from Python: a student of a teacher's features, from images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrail.api.arguments import checked
from vitrail.api.finetuning import add_data, add_setting
from vitrail.api.options import read_settings, settings_alone, shown, tell_remarks
from vitrail.api.results import copy_fields
from vitrail.api.training import TrainResult
from vitrail.config.resolve import Layer
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option, write_option
from vitrail.migrate.given import Settings
from vitrail.training.pretraining import begin_pretraining


@checked
def pretrain(
    data: str | Path | None = None,
    settings: Settings | None = None,
    *,
    teacher: str | Path | None = None,
    labels: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> TrainResult:
    """Train a student on a teacher's features of images without labels, and write its run folder.

    `vitrail.pretrain("photos", teacher="twins_svt_large")` does what `vitrail pretrain photos
    --teacher twins_svt_large` does. It is a training like any other, which `vitrail.train(resume=...)`
    goes on with. Its weights have no head: `finetune`, `embed` and `model.weights` take them.

    Args:
        data: Folder of images at any depth, or a list of them; None where the settings name the data.
        settings: Settings that go before those of a pretraining, such as {"train.epochs": 30}.
        teacher: A weight file, or the name of published weights; also `distill.teacher`.
        labels: Labelled images, class folders or a list, whose nearest neighbours by the student's
            features are measured before and after; also `distill.labels`.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as model={"name": "tnt_ti_patch16_224"}.

    Raises:
        ConfigError: Settings that do not fit together or the data, or a teacher that gives no features.
        DataError: The images are not there, or the labelled ones have one class alone.
        CheckpointError: A weight file cannot be had or read, or a file of the run not be written.
        TrainingError: The loss is no longer finite, and going back did not help.
        Stopped: A signal or train.max_hours said so; everything is saved.
    """
    given = settings_alone(read_settings(pretrain, settings, sections))
    given, name = add_data(given, data, "pretrain")
    for key, value in (("teacher", teacher), ("labels", labels)):
        if value is not None:
            given = add_setting(given, "distill", key, str(value), name_option(key))
    if given.values.get("distill", {}).get("teacher") is None:
        raise ConfigError(
            f"pretrain needs a teacher, whose features are learned; give {write_option('teacher', 'FILE')}, "
            "a weight file or the name of published weights"
        )
    start = begin_pretraining(f"pretrain-{name}", given)

    from vitrail.training.train import train as run

    with shown(display, progress) as display:
        tell_remarks(display, start.remarks)
        if hint := _find_labels(given):
            display.note(hint)
        done = run(start.config, name=start.name, display=display)
    return TrainResult(**copy_fields(TrainResult, done))


def _find_labels(given: Layer) -> str:
    """Say how class folders among the images measure the features; nothing where none are, or labels are given."""
    from vitrail.data.folders import visible_folders

    root = given.values.get("data", {}).get("root")
    if root is None or given.values["distill"].get("labels") is not None:
        return ""
    folder = Path(str(root)).expanduser()
    if not folder.is_dir() or "name" in given.values["data"]:
        return ""
    inner = folder / "train" if "train" in visible_folders(folder) else folder
    classes = visible_folders(inner)
    if len(classes) < 2:
        return ""
    return (
        f"{inner} has {len(classes):,} folders; if these are classes, {write_option('labels', root)} "
        "measures by k-NN how well the features tell them apart"
    )
