"""Recipes trained with several new seeds, each run made once by whichever process of a study comes first."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vitrail.config.commands import TrainConfig
from vitrail.errors import TrainingError
from vitrail.files import refusal_told, write_whole
from vitrail.tuning.process import Training
from vitrail.tuning.search import Search, stop_if_told, watch
from vitrail.tuning.subject import place

WAIT_S = 1.0
"""Seconds between two looks at what other processes work on."""


@dataclass(frozen=True)
class Entry:
    """One training of a recipe with a seed."""

    name: str
    """Name of the recipe among the others."""
    folder: Path
    config: TrainConfig
    header: str


def train_with_seeds(
    job: Search,
    folder: Path,
    configs: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    failures: dict[str, str] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Train each recipe with each seed, unless that is done, and return their numbers by seed.

    Several processes may share the work; each run is made once.

    Args:
        job: The study.
        folder: Folder of the runs.
        configs: Settings by the name of the recipe.
        seeds: Seeds to train all with.
        failures: Where the reason is put by the name of a recipe of which a run failed, and which
            is left out then; None raises it.

    Raises:
        TrainingError: One of the runs failed.
        Stopped: This process was told to stop; the run is saved.
    """
    left = _entries(job, folder, configs, seeds)
    with refusal_told(folder, None):
        folder.mkdir(parents=True, exist_ok=True)
    values: dict[tuple[str, int], float] = {}
    job.display.begin(f"train with {len(seeds)} seeds", len(left))
    while left:
        before = len(left)
        for key, entry in list(left.items()):
            stop_if_told(job)
            try:
                value = _train_once(job, entry)
            except TrainingError as error:
                if failures is None:
                    raise
                failures.setdefault(entry.name, str(error))
                job.display.warn(f"{entry.folder.name} failed: {error}")
            else:
                if value is None:
                    continue
                values[key] = value
                job.display.note(f"{entry.folder.name}: {job.measure.metric} {value:.4g}")
            del left[key]
            job.display.advance()
        if len(left) == before:  # others work on all that is left
            time.sleep(WAIT_S)
    job.display.end()
    whole = [name for name in configs if not failures or name not in failures]
    return {name: tuple(values[name, seed] for seed in seeds) for name in whole}


def _entries(
    job: Search, folder: Path, configs: Mapping[str, TrainConfig], seeds: Sequence[int]
) -> dict[tuple[str, int], Entry]:
    """Return the trainings by recipe and seed, all recipes with one seed before the next."""
    entries = {}
    for seed in seeds:
        for name, config in configs.items():
            target = folder / f"{name}-seed{seed}"
            placed = place(config, target, job.measure.metric, seed)
            header = f"{name} with seed {seed}, to be compared with others of this seed"
            entries[name, seed] = Entry(name, target, placed, header)
    return entries


def _train_once(job: Search, entry: Entry) -> float | None:
    """Return the number of a run, made where it is not there; None where another process works on it.

    Raises:
        TrainingError: The run failed.
        Stopped: This process was told to stop; the run is saved.
    """
    result = entry.folder.with_name(f"{entry.folder.name}.json")
    try:
        held = FileLock(entry.folder.with_name(f".{entry.folder.name}.lock")).acquire(timeout=0)
    except Timeout:
        return None
    with held:
        if result.is_file():
            return float(json.loads(result.read_text())["value"])
        training = Training(entry.config, entry.folder, entry.header)
        watch(job, training)
        value = job.measure.best(job.measure.read(entry.folder))
        if not training.is_finished or value is None:
            reason = training.failure() or "no epoch was evaluated"
            raise TrainingError(
                f"{entry.folder}: {reason}; mend that, and type the same again, which goes on with "
                "the study"
            )
        numbers = {"metric": job.measure.metric, "value": value}
        write_whole(result, json.dumps(numbers).encode())
        return value
