"""Accuracy of a model on labelled images, each counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.classes.matching import check_classes, match_by_name, match_by_order, order_in_doubt, read_class_names
from vitrail.classes.names import tell_look_alikes
from vitrail.config.sections import DataSection, EvaluateConfig, Layer, Resolved, resolve, to_dict
from vitrail.data.loader import Batch, ImageLoader, build_eval_loader
from vitrail.data.opening import DIVISION, list_files_read, open_split
from vitrail.data.overlap import count_overlap
from vitrail.data.sources import Source, fingerprint
from vitrail.data.tables.hub import is_hf, pin_revision
from vitrail.devices import Precision, autocast
from vitrail.display import Display, Quiet
from vitrail.distributed.processes import gather_texts, processes, share, sum_over_processes
from vitrail.errors import CheckpointError, ConfigError, DataError, printable
from vitrail.evaluation.answers import Answers, Gathered
from vitrail.evaluation.metrics import Accuracy, Counter, accuracy
from vitrail.evaluation.multi_label_metrics import LabelAccuracy, label_accuracy
from vitrail.evaluation.multi_label_report import label_report_files, truth
from vitrail.evaluation.report import FILES, PAGE, Subject, Training, report_files
from vitrail.files import refuse_replacing
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.input_check import InputCheck
from vitrail.images.preprocess import Preprocess, fit_statistics, normalise
from vitrail.inference.bin_files import LogitFiles, find_logits
from vitrail.inference.engines import Artifact, Network, read_artifact, require_classes
from vitrail.inference.predict import probabilities
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import Record
from vitrail.weights.loading import override_preprocess, tell, wanted_by
from vitrail.whole_folder import WholeFolder

STATISTICS = ((IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3))
"""Mean and std that published models were trained with."""
CROPS = (0.875, 0.9, 1.0)
OTHER_CLASSES = (
    "rename the classes of the data, or evaluate on the data it was trained on; if the data has a part of the classes, "
    "or another order, data.match_classes=by-name; if it has all of them by other names, data.match_classes=by-order"
)
HOW_READ = ("workers", "download", "check", "match_classes")
"""Data settings that do not choose images."""
INTERPOLATIONS: tuple[Literal["bicubic", "bilinear"], ...] = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Agreement:
    """How the answers of two files to the same images compare."""

    path: str
    """Of the other file."""
    n: int
    equal: int
    """Images with the same answer: the likeliest class, or all that reach their thresholds."""
    difference: float
    """The largest of any logarithm of a probability; of any logit where an image may have several classes."""
    numbers: dict[str, Any]
    """Of the other file."""
    shown: dict[str, str]
    """The same, as a table shows them."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        about = {"path": self.path, "n": self.n, "equal": self.equal, "difference": self.difference}
        return {**about, **{name: value for name, value in self.numbers.items() if name != "n"}}


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of one model on one set of images."""

    accuracy: Accuracy | LabelAccuracy
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read; none of them is counted as right or wrong."""
    data: str
    preprocess: Preprocess
    engine: str
    """What computed, in which precision and where."""
    report: Path | None = None
    """Page that was written."""
    agreement: Agreement | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON."""
        found, bad = self.accuracy, len(self.bad_files)
        numbers = {name: value for name, value in found.numbers().items() if name != "n"}
        if isinstance(found, Accuracy):  # an unreadable image is answered wrong
            numbers["top1_all_images"] = 100 * round(found.top1 * found.n / 100) / (found.n + bad)
        return {
            **numbers,
            "n_ok": found.n,
            "n_bad": bad,
            "bad_files": [{"path": name, "error": reason} for name, reason in self.bad_files],
            "warnings": list(found.warnings),
            "data": self.data,
            "preprocess": self.preprocess.to_dict(),
            "engine": self.engine,
            **({"agreement": self.agreement.to_dict()} if self.agreement else {}),
        }


def evaluate(
    path: Path,
    settings: Sequence[Layer] = (),
    *,
    engine: str | None = None,
    against: Path | None = None,
    answers: Path | None = None,
    report: WholeFolder | None = None,
    written: Sequence[tuple[str, Path]] = (),
    display: Display | None = None,
) -> Evaluation:
    """Evaluate a weight file or an exported file on the images that `settings` name, or on those it was validated with.

    Args:
        path: The weight file, of any project, or what `vitrail export` wrote; with `answers` a file of names will do.
        settings: Of the sections weights, data, preprocess and evaluate.
        engine: What is to run an exported file, where two can.
        against: Another file of the same model, whose answers to the same images are compared.
        answers: Folder with the logits of each image, NAME_0.bin, which are counted instead of running the file.
        report: Where to write the report, see `report_folder`; None writes none.
        written: Files that are written afterwards, by the option that names each; none may be one of the images.
        display: Where progress is shown.

    Raises:
        CheckpointError: The file is not one, or damaged; or the report cannot be written.
        ConfigError: A setting is unknown, of the wrong type or out of range.
        DataError: The images are not there, or their classes are not the model's.
    """
    return _evaluate(
        path, settings, display or Quiet(), lambda stored: [stored], report, engine, against, answers, written
    )[0]


def report_folder(folder: Path, *, never_replace: bool = False) -> WholeFolder:
    """Return a folder to write a report to.

    Args:
        folder: Its name; an earlier report there is replaced, anything else is not.
        never_replace: Take the next number that is free instead: digits, digits-2, digits-3.
    """
    advice = "free space or choose another folder with --report"
    return WholeFolder(folder, FILES, advice, never_replace=never_replace)


def report_name(path: Path) -> str:
    """Return what a report on a weight file is called: as the run whose best weights they are, or else as the file."""
    path = path.absolute()
    return path.parent.name if path.name.startswith("best") and path.suffix == ".safetensors" else path.stem


def sweep(
    path: Path,
    settings: Sequence[Layer] = (),
    *,
    engine: str | None = None,
    written: Sequence[tuple[str, Path]] = (),
    display: Display | None = None,
) -> list[Evaluation]:
    """Evaluate a weight file with every usual way of reading images, the best first, to find the one that fits it.

    Raises: As `evaluate` does.
    """

    def candidates(stored: Preprocess) -> list[Preprocess]:
        ways = [
            replace(stored, mean=mean, std=std, crop=crop, interpolation=interpolation)
            for mean, std in dict.fromkeys(
                fit_statistics(stored.channels, *pair) for pair in ((stored.mean, stored.std), *STATISTICS)
            )
            for crop in sorted({stored.crop, *CROPS})
            for interpolation in INTERPOLATIONS
        ]
        return ways

    found = _evaluate(path, settings, display or Quiet(), candidates, engine=engine, written=written)
    return sorted(found, key=lambda result: result.accuracy.best_first)


def _evaluate(
    path: Path,
    settings: Sequence[Layer],
    display: Display,
    ways: Callable[[Preprocess], list[Preprocess]],
    report: WholeFolder | None = None,
    engine: str | None = None,
    against: Path | None = None,
    answers: Path | None = None,
    written: Sequence[tuple[str, Path]] = (),
) -> list[Evaluation]:
    names_only = answers is not None and path.suffix.lower() in (".txt", ".json")
    artifact = _names_alone(path) if names_only else read_artifact(path, engine, wanted_by(settings))
    other = _same_model(artifact, against) if against is not None else None
    require_classes(artifact.record, path)
    for opened in (artifact.weights, other.weights if other else None):
        if opened is not None:
            tell(opened, display)
    record = artifact.record
    resolved = resolve_for(record, settings)
    config = resolved.config
    check_pixels(record, config.data, path)
    # an exported file has a precision of its own
    precision = config.evaluate.precision if "evaluate.precision" in resolved.origins else None
    with processes("float32", config.evaluate.device) as accelerator, ExitStack() as exits:
        if report is not None and accelerator.is_main_process:
            exits.enter_context(report.staged())
        data = share(accelerator, pin_revision(config.data) if accelerator.is_main_process else None)
        config = replace(config, data=data)
        with accelerator.local_main_process_first():  # which downloads for all
            source, notes = open_split(data, config.evaluate.split)
        for flag, file in (*written, *(("--report", file) for file in (report.earlier_files() if report else ()))):
            refuse_replacing(flag, file, list_files_read(data, source))
        check_kind(record, source, path)
        record, source = matched(record, source, data, path, display)
        if told := seen_before(record, config, source):
            display.warn(told)
        tried = ways(override_preprocess(record.preprocess, config.preprocess, display))
        for note in notes:
            display.note(note)
        rank, world = accelerator.process_index, accelerator.num_processes
        network: Network | LogitFiles
        if answers is None:
            network = artifact.start(accelerator.device, precision)
        else:
            network = find_logits(answers, source, record.options["num_classes"], record.preprocess.pixels)
            if network.bad and data.bad_files != "skip":
                index, reason = next(iter(network.bad.items()))
                raise DataError(
                    f"{source.name(index)}: cannot be read, {reason}; repair or remove it, or set data.bad_files=skip"
                )
        if artifact.weights is None and answers is None:
            display.note(f"{path}: run by {network.about}")
        loaders = [
            build_eval_loader(
                source,
                preprocess,
                batch_size=config.evaluate.batch_size,
                rank=rank,
                world=world,
                workers=data.workers,
                bad_files=data.bad_files,
                pin_memory=accelerator.device.type == "cuda",
            )
            for preprocess in tried
        ]
        counts = np.array(record.provenance["training_counts"]) if "training_counts" in record.provenance else None
        display.begin("evaluate", sum(map(len, loaders)) + (len(loaders[0]) if other else 0))
        results = []
        page = agreement = None
        inputs = InputCheck() if len(tried) == 1 else None  # a sweep tries what does not fit
        for preprocess, loader in zip(tried, loaders, strict=True):
            measured = partial(
                measure, source=source, preprocess=preprocess, accelerator=accelerator, precision="float32",
                advance=display.advance, keep_answers=report is not None or other is not None,
                training_counts=counts, thresholds=record.thresholds,
            )  # fmt: skip
            batches = network.batches(source, rank, world) if isinstance(network, LogitFiles) else loader
            found, bad, gathered = measured(network, batches, inputs=inputs)
            if inputs is not None and (doubt := inputs.doubt(preprocess.mean, preprocess.std)):
                display.warn(doubt)
            if other is not None:
                rival, _, theirs = measured(other.start(accelerator.device), loader)
                agreement = _agreement(other.path, gathered, theirs, rival)
            if report is not None and gathered is not None:
                subject = Subject(
                    name=report_name(path), path=Path(artifact.path), record=record, source=source,
                    preprocess=preprocess, settings=to_dict(config), device=accelerator.device,
                    engine="answers" if isinstance(network, LogitFiles) else network.engine,
                )  # fmt: skip
                files = write_report(subject, gathered, found, bad)
                try:
                    folder, replaced = report.publish(files)
                except CheckpointError as error:  # after an hour, perhaps
                    shown = [(*title.split(", "), value) for title, value in found.shown.items()]
                    numbers = ", ".join(" ".join((name, value, *unit)) for name, *unit, value in shown)
                    raise CheckpointError(f"{error}; the evaluation itself found {numbers}") from error
                if replaced:
                    display.note(f"{folder}: held an earlier report, which is replaced")
                page = folder / PAGE
            results.append(
                Evaluation(found, tuple(bad), source.description, preprocess, network.about, page, agreement)
            )
        display.end()
        return results


def _names_alone(path: Path) -> Artifact:
    """Return what a file of class names says of the model that gave answers elsewhere."""
    classes = read_class_names(path, "names of classes")
    options = {"num_classes": len(classes), "in_channels": 3}
    record = Record(model="not named", options=options, classes=classes, preprocess=Preprocess(size=(224, 224)))
    return Artifact(path=str(path), record=record, engine="torch")


def resolve_for(record: Record, settings: Sequence[Layer]) -> Resolved[EvaluateConfig]:
    """Return the settings of an evaluation: those given, over those of the data that a weight file was made with."""
    pixels = {"channels": record.preprocess.channels, "bits": record.preprocess.bits}
    layers = [*inherited_data(record, settings), Layer("weight file", {"data": pixels}), *settings]
    return resolve(EvaluateConfig, layers)


def _same_model(artifact: Artifact, against: Path) -> Artifact:
    """Open a file whose answers are to be compared.

    Raises:
        ConfigError: It is of another model, or of other classes.
    """
    other = read_artifact(against)
    for what in ("model", "options", "classes"):
        if getattr(other.record, what) != getattr(artifact.record, what):
            raise ConfigError(f"--against {against}: has other {what} than {artifact.path}; give what it was made from")
    return other


def _agreement(
    path: str, ours: Gathered | None, theirs: Gathered | None, found: Accuracy | LabelAccuracy
) -> Agreement | None:
    """Compare what the first process has of both."""
    if ours is None or theirs is None:
        return None
    difference = np.abs(ours.scores - theirs.scores).max()
    if isinstance(found, LabelAccuracy):
        ours_given, theirs_given = (probabilities(answers.scores) >= found.thresholds for answers in (ours, theirs))
        equal = (ours_given == theirs_given).all(1)
    else:
        equal = ours.choices[:, 0] == theirs.choices[:, 0]
    return Agreement(path, len(ours.indices), int(equal.sum()), float(difference), found.numbers(), found.shown)


def matched(
    record: Record, source: Source, data: DataSection, path: Path | str, display: Display
) -> tuple[Record, Source]:
    """Return a model and images whose classes are the same in the same order, and say what was taken for what.

    Raises:
        DataError: They cannot be matched as the settings say, or not without a doubt.
    """
    if told := tell_look_alikes(source.classes):
        display.warn(f"{source.description}: {told}")
    count = record.options["num_classes"]
    if data.match_classes == "by-name":
        lacking = len(record.classes) - len(source.classes)
        source = in_order_of(record.classes, source, path)
        if lacking and source.label_sets is not None:
            display.warn(
                f"{source.description}: has no images of {lacking} of the {len(record.classes)} classes; where the "
                "model gives an image one of these, that counts as wrong"
            )
        return record, source
    if data.match_classes == "exact" and record.classes:
        check_classes(record.classes, source.classes, path, OTHER_CLASSES)
        return record, source
    if data.match_classes == "exact" and count != len(source.classes):
        raise DataError(
            f"{path}: has {count} outputs and names no classes, and the data has {len(source.classes)}; name them with "
            "weights.classes=FILE, and where the data has a part of them add data.match_classes=by-name"
        )
    told = match_by_order(record.classes, count, source.classes, path)
    if told or not record.classes:
        if doubt := order_in_doubt(source.classes, data.class_order):
            raise DataError(f"{path}: {'' if record.classes else 'names no classes, and '}{doubt}")
        first, last = (printable(source.classes[index]) for index in (0, -1))
        taken = f"those of the data are taken, in their order, from 0, {first}, to {count - 1}, {last}"
        display.warn(told or f"{path}: names no classes; {taken}")
    if not record.classes:
        return replace(record, classes=source.classes), source
    # every source is a dataclass with this field, which no protocol can say
    return record, replace(cast(Any, source), classes=record.classes)


def zoo_lines(found: Accuracy | LabelAccuracy) -> str:
    """Return what postprocess.py of MindSpore's model zoo prints into acc.log.

    Raises:
        ConfigError: An image may have several classes.
    """
    if isinstance(found, LabelAccuracy):
        raise ConfigError("--acc-log: the model zoo's lines are for one class an image; leave it out")
    return "".join(
        f"Top{k} acc:  {round(share * found.n / 100) / found.n}\n" for k, share in ((1, found.top1), (5, found.top5))
    )


def check_kind(record: Record, source: Source, path: Path) -> None:
    """Refuse images whose labels are of another kind than the model's answers.

    Raises:
        DataError: One class an image there and any number here, or the reverse.
    """
    if record.thresholds is None and source.label_sets is not None:
        raise DataError(
            f"{path}: gives one class an image, and those of {source.description} have any number; evaluate a model "
            "that was trained on such images"
        )
    if record.thresholds is not None and source.label_sets is None:
        raise DataError(
            f"{path}: gives any number of classes an image, and those of {source.description} have one each; give a "
            "list with data.list, see docs/multi_label.md"
        )


def write_report(
    subject: Subject,
    answers: Gathered,
    found: Accuracy | LabelAccuracy,
    bad_files: Sequence[tuple[str, str]],
    training: Training | None = None,
) -> dict[str, bytes]:
    """Return the files of a report by name, for either kind of answers."""
    if isinstance(found, LabelAccuracy):
        return label_report_files(subject, answers, found, bad_files, training)
    return report_files(subject, answers, found, bad_files, training)


def measure(
    model: VisionModel | Network | LogitFiles,
    loader: ImageLoader | Sequence[Batch],
    source: Source,
    preprocess: Preprocess,
    accelerator: Accelerator,
    precision: Precision,
    advance: Callable[[], None],
    *,
    keep_answers: bool = False,
    training_counts: NDArray[np.int64] | None = None,
    thresholds: tuple[float, ...] | None = None,
    inputs: InputCheck | None = None,
) -> tuple[Accuracy | LabelAccuracy, list[tuple[str, str]], Gathered | None]:
    """Evaluate a model over all processes, and gather the images that could not be read.

    Args:
        model: To be evaluated, or the logits that it gave elsewhere.
        loader: Of this process's share of the images.
        source: All of them.
        preprocess: Mean and standard deviation of the images, and their size.
        accelerator: Of the processes.
        precision: Of matrix products.
        advance: Called after each batch, equally often in all processes.
        keep_answers: Whether a report is to be written.
        training_counts: Training images of each class, where they are known.
        thresholds: Of classes of which an image may have several; None tunes them on these images.
        inputs: Takes the normalised images of this process.

    Returns:
        What was found; name and reason of each unreadable image; and in the first process the answers, if kept.

    Raises:
        DataError: None could be read.
    """
    k = model.config.num_classes if isinstance(model, VisionModel) else model.num_classes
    device, several = accelerator.device, source.label_sets is not None
    answers = Answers(k, len(source), device, several=several) if keep_answers or several else None
    counter = None if several else Counter(k, device)

    def take(batch: Batch, logits: torch.Tensor) -> None:
        if counter is not None:
            counter.add(logits, batch.labels.to(device, non_blocking=True))
        if answers is not None:
            answers.add(batch.indices, logits)

    bad = answer(model, loader, preprocess, accelerator, precision, advance, take, inputs)
    if counter is not None:
        counter.totals, counter.loss, counter.confusion = sum_over_processes(
            accelerator, counter.totals, counter.loss, counter.confusion
        )
    gathered = answers.gather(accelerator) if answers is not None else None
    if counter is not None:
        found = accuracy(counter, training_counts)
    else:  # sums of floats depend on their order, so one process makes all of them
        here = label_accuracy(gathered.scores, truth(source, gathered), thresholds) if gathered is not None else None
        found = share(accelerator, here)
    if found.n == 0:
        raise DataError(f"none of the {len(bad)} images could be read; the first is {bad[0][0]} ({bad[0][1]})")
    return found, bad, gathered if keep_answers else None


def answer(
    model: VisionModel | Network | LogitFiles,
    loader: ImageLoader | Sequence[Batch],
    preprocess: Preprocess,
    accelerator: Accelerator,
    precision: Precision,
    advance: Callable[[], None],
    take: Callable[[Batch, torch.Tensor], None],
    inputs: InputCheck | None = None,
) -> list[tuple[str, str]]:
    """Give each batch of this process and its logits to `take`; return the unreadable images of all processes."""
    device = accelerator.device
    is_module = isinstance(model, VisionModel)
    was_training = is_module and model.training
    if is_module:
        model.eval()
    bad: list[tuple[str, str]] = []
    nothing = torch.zeros(1, preprocess.channels, *preprocess.size, device=device)
    most = max(gather_texts(accelerator, [len(loader)]))

    def ask(batch: Batch) -> torch.Tensor:
        if isinstance(model, LogitFiles):
            return model.read(batch.indices).to(device)
        images = normalise(batch.images.to(device, non_blocking=True), preprocess.mean, preprocess.std)
        if inputs is not None:
            inputs.add(images)
        # a model that is shared out needs all processes in each pass, also those without an image
        return model(images if len(batch.labels) else nothing)

    with torch.no_grad(), autocast(device, precision):
        for batch in loader:
            bad += batch.bad
            take(batch, ask(batch)[: len(batch.labels)])
            advance()
        for _ in range(most - len(loader)):
            if not isinstance(model, LogitFiles):
                model(nothing)
            advance()
    if is_module:
        model.train(was_training)
    return sorted(gather_texts(accelerator, bad))


def inherited_data(record: Record, settings: Sequence[Layer]) -> list[Layer]:
    """Return the data settings that a weight file was made with, less what a data set named anew replaces."""
    data = dict(record.recipe.get("data", {}))
    given = {key: value for layer in settings for key, value in layer.values.get("data", {}).items()}
    # another root of a named set holds the same set; another name, or another folder, is divided in its own way
    changed = {key for key in ("root", "list") if key in given and given[key] != data.get(key)}
    is_here = data.get("name") is None or is_hf(data["name"])
    if "name" in given or "list" in changed or (changed and is_here):
        kept = ["download", "workers", *DIVISION]
        # a quarantine is for what was looked at, and sets with a name declare an order
        kept += [] if given.get("name") else ["bad_files", "class_order"]
        kept += ["path_column", "label_column", "labels_column"] if "list" in given else []
        data = {key: data[key] for key in kept if key in data}
    known = to_dict(DataSection())
    return [Layer("weight file", {"data": {key: value for key, value in data.items() if key in known}})] if data else []


def seen_before(record: Record, config: EvaluateConfig, source: Source) -> str:
    """Return a warning where images that are to be validated with were trained on, or may have been."""
    trained, split = record.provenance.get("images", {}), config.evaluate.split
    if trained.get(split) == fingerprint(source):
        return ""
    if split != "train" and (known := record.provenance.get("sketch")):
        n, is_exact = count_overlap(source, known)
        if n:
            return (
                f"{source.description}: {'' if is_exact else 'about '}{n:,} of its {len(source):,} images were trained "
                "on, by name and content, and count as if they were new; to leave them out, divide as in training"
            )
    named = record.recipe.get("data", {})
    same = all(named.get(name) == value for name, value in to_dict(config.data).items() if name not in HOW_READ)
    if same and split in trained:
        return f"{source.description}: its images are not those of the training: files were added, removed or renamed"
    return ""


def check_pixels(record: Record, data: DataSection, path: Path | str) -> None:
    """Refuse to read images otherwise than a model needs them.

    Raises:
        ConfigError: The settings ask for other channels or bits.
    """
    needs = record.preprocess
    if (data.channels, data.bits) != (needs.channels, needs.bits):
        raise ConfigError(
            f"{path}: reads images of {needs.channels} channels and {needs.bits} bits, the settings say "
            f"data.channels={data.channels} data.bits={data.bits}; drop them"
        )


def in_order_of(model_classes: Sequence[str], source: Source, path: Path | str) -> Source:
    """Return the images with the labels of the model, found by the names of the classes.

    Raises:
        DataError: The model lacks a class of the data.
    """
    indices = np.array(match_by_name(model_classes, source.classes, path), dtype=np.int32)
    changed: dict[str, Any]
    if source.label_sets is None:
        changed = {"labels": indices[source.labels]}
    else:
        changed = {"label_sets": np.zeros((len(source.label_sets), len(model_classes)), np.bool_)}
        changed["label_sets"][:, indices] = source.label_sets
    # every source is a dataclass with these fields, which no protocol can say
    return replace(cast(Any, source), classes=tuple(model_classes), **changed)
