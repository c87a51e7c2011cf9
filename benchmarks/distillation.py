"""Teach a small TNT on CIFAR-10: from labels alone, from a Twins, from its kept answers, from its token labels.

uv run python benchmarks/distillation.py ../shared/data/cifar10.tar.xz --work /tmp/distillation             # hours
uv run python benchmarks/distillation.py ../shared/data/cifar10.tar.xz --work /tmp/distillation --seeds 0 --seconds 60

The teacher is a run of the recipe cifar10_twins of half an hour, the student a TNT of a third of its multiply-adds. All
ways have the same time for their updates; how many epochs that is for each is timed first, which needs a quiet machine;
the rest gives the same numbers on a busy one. What is reported is top-1 on the 10,000 test images after the last epoch,
so that nothing is chosen by them. What was done is kept in the work folder, so that the command goes on where it was
stopped, and two processes can share the folder where each has seeds of its own.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cyclopts
from cifar10_runs import place, unpack
from side_by_side import publish, spread

import vitrail
from vitrail.api.training import TrainResult
from vitrail.models.catalogue import measure_costs
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.loading import open_model

TEACHER = "cifar10_twins"
TEACHER_EPOCHS = 22
STUDENT = "cifar10_tnt"
SMALLER = {"model.options.depth": 3, "model.options.embed_dim": 96, "model.options.inner_dim": 4}
"""What makes the student of the recipe's model a third of the teacher."""
PLAIN, LIVE, KEPT, TOKENS = "labels alone", "teacher, asked live", "teacher, from kept answers", "token labels"
TIMED_EPOCHS = 4
"""Epochs of the runs that are timed; the first has the warm-up, the last the evaluation."""


def teach(work: Path, images: Path) -> dict[str, Any]:
    """Train the teacher, and return its weights, its accuracy and its minutes."""
    note = work / "teacher.json"
    if not note.exists():
        run = vitrail.train(TEACHER, {**place(work, images), "train.epochs": TEACHER_EPOCHS, "output.name": "teacher"})
        about = {"weights": str(run.weights), "top1": run.rows[-1]["val_top1"], "minutes": run.seconds / 60}
        note.write_text(json.dumps(about))
    return json.loads(note.read_text())


def label_tokens(work: Path, images: Path, teacher: Mapping[str, Any]) -> Path:
    """Write the token labels of the training images, and return their folder."""
    folder = work / "token_labels"
    of_data = {name: value for name, value in place(work, images).items() if name.startswith("data.")}
    vitrail.make_token_labels(teacher["weights"], of_data, output=folder)
    return folder


def ways(work: Path, images: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Return the settings of each way to learn; views depend on the seed, and so do kept answers."""
    teacher = teach(work, images)
    asked = {"distill.teacher": teacher["weights"], "distill.temperature": 2.0, "distill.weight": 0.7}
    return {
        PLAIN: {},
        LIVE: {**asked, "distill.cache": False},
        KEPT: {**asked, "distill.cache": work / f"answers-{seed}"},
        TOKENS: {"token_labels.folder": label_tokens(work, images, teacher)},
    }


def train(work: Path, images: Path, way: str, more: Mapping[str, Any]) -> TrainResult:
    """Train the student one way."""
    settings = {**place(work, images), **SMALLER, **ways(work, images, more["train.seed"])[way], **more}
    settings["train.eval_every"] = settings["train.epochs"]
    return vitrail.train(STUDENT, settings)


def time_epochs(work: Path, images: Path) -> dict[str, float]:
    """Return the seconds of an epoch of each way, of which those of the kept answers find all that they ask for."""
    note = work / "seconds.json"
    if note.exists():
        return json.loads(note.read_text())
    seconds = {}
    for way in (PLAIN, LIVE, KEPT, KEPT, TOKENS):  # the first of the two runs fills the folder
        rows = train(work, images, way, {"train.epochs": TIMED_EPOCHS, "train.seed": 99}).rows
        ends = [row["elapsed_s"] for row in rows[:-1]]
        seconds[way] = statistics.median(b - a for a, b in itertools.pairwise(ends))
    note.write_text(json.dumps(seconds))
    return seconds


def main(archive: Path, *, work: Path, seeds: tuple[int, ...] = (0, 1, 2), seconds: float = 480) -> None:
    """Train the student every way with every seed, and publish a table."""
    work.mkdir(parents=True, exist_ok=True)
    images = unpack(archive, work)
    of_epoch = time_epochs(work, images)
    results = work / "results.jsonl"
    done = {(row["way"], row["seed"]) for row in read(results)}
    for seed in seeds:
        for way, each in of_epoch.items():
            if (way, seed) in done:
                continue
            run = train(work, images, way, {"train.epochs": max(1, round(seconds / each)), "train.seed": seed})
            last = run.rows[-1]
            row = {"way": way, "seed": seed, "epochs": last["epoch"], "top1": last["val_top1"]}
            row["agreement"] = last.get("val_agreement")
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    report(read(results), work, images, seconds)


def read(results: Path) -> list[dict[str, Any]]:
    """Return what was trained so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def report(rows: list[dict[str, Any]], work: Path, images: Path, seconds: float) -> None:
    """Publish mean and spread of each way, and what its epochs cost."""
    teacher, of_epoch = teach(work, images), time_epochs(work, images)
    student = next(iter((work / "runs").glob(f"{STUDENT}*/best.safetensors")))
    table = ["| learns from | seconds an epoch | over labels alone | epochs | top-1, % | agrees with the teacher, % |"]
    table.append("|-|-:|-:|-:|-:|-:|")
    for way, each in of_epoch.items():
        found = [row for row in rows if row["way"] == way]
        agreeing = [row["agreement"] for row in found if row["agreement"] is not None]
        over = f"{each / of_epoch[PLAIN]:.2f}"
        cells = [way, f"{each:.1f}", over, f"{found[0]['epochs']}", spread([row["top1"] for row in found])]
        table.append("| " + " | ".join([*cells, spread(agreeing)]) + " |")
    share = count_macs(student) / count_macs(Path(teacher["weights"]))
    smaller = ", ".join(f"{name}={value}" for name, value in SMALLER.items())
    notes = [
        "top-1 of 10,000 test images after the last epoch: mean and standard deviation over the seeds",
        f"{seconds:.0f} s of updates for each way",
        f"teacher: {TEACHER}, {TEACHER_EPOCHS} epochs in {teacher['minutes']:.1f} minutes, {teacher['top1']:.2f} %",
        f"student: {STUDENT} with {smaller}, {share:.2f} of its multiply-adds",
        "from kept answers: a run whose views were asked for before; their asking is that of a live run, once",
    ]
    publish("distillation", "A small TNT taught by a Twins", notes, table)


def count_macs(weights: Path) -> int:
    """Return the multiply-adds of an image."""
    record = open_model(weights).record
    model = create_model(record.model, **record.options)
    return measure_costs(find_variant(record.model)[0], model.config).macs


if __name__ == "__main__":
    cyclopts.run(main)
