"""Measure speed from Python: how fast models and exported files answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.api.arguments import checked
from vitrail.api.options import path_or_none, require_at_least, shown, write_json
from vitrail.api.results import ResultList, Table
from vitrail.choices import Device, Engine, Precision
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option, write_option
from vitrail.files import files_of, refuse_output

if TYPE_CHECKING:
    from vitrail.inference.bench import Measured as Latency


@dataclass(frozen=True)
class Latencies(ResultList[Any]):
    """How fast models and files answer, at each batch size."""

    items: tuple[Latency, ...]
    rounds: int
    """Alternating rounds that they were measured in."""

    def tables(self) -> Sequence[Table]:
        """Return one row for each model or file and batch size."""
        rows = []
        for one in self.items:
            times = (f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.images_per_s:.1f}")
            sizes = (f"{one.peak_mib:,.0f}", f"{one.params / 1e6:.2f}", f"{one.macs / 1e9:.3f}")
            rows.append((one.name, one.about, str(one.batch_size), *times, *sizes))
        columns = (
            "what",
            "run by",
            "batch",
            "p50, ms",
            "p99, ms",
            "images/s",
            "peak, MiB",
            "params, M",
            "MACs, G",
        )
        title = f"{self.items[0].runs} runs of each, in {self.rounds} alternating rounds"
        return [Table(title, columns, tuple(rows))]


@checked
def bench(
    names: str | Path | Iterable[str | Path],
    *,
    batch_size: int | Sequence[int] = (1, 8),
    timm: bool = False,
    engine: Engine | Sequence[Engine] = (),
    precision: Precision | None = None,
    device: Device = "auto",
    threads: int | None = None,
    rounds: int = 10,
    json: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
) -> Latencies:
    """Measure how fast models and exported files answer, each in a process of its own, taking turns.

    `vitrail.bench(["best.safetensors", "best.onnx"], batch_size=8)` does what
    `vitrail bench best.safetensors best.onnx --batch-size 8` does.

    Args:
        names: Models, which get fresh weights, weight files, and exported files.
        batch_size: One or several.
        timm: Whether timm's model is measured beside each, where it has one.
        engine: One or several engines that run the exported files; none is the usual one.
        precision: Precision of the computation; None is an exported file's own.
        device: auto takes the accelerator, where there is one.
        threads: Threads on the CPU; None is all cores.
        rounds: Turns of each, of 5 runs.
        json: File that the numbers are also written to.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A name of nothing, an option that is wrong, or an engine that cannot run a
            file.
    """
    given = (names,) if isinstance(names, str | Path) else names
    named = [os.fspath(name) for name in given]
    sizes = [batch_size] if isinstance(batch_size, int) else sorted(set(batch_size))
    if not named:
        raise ConfigError("bench needs models or files; `vitrail models` shows the models")
    if not sizes:
        raise ConfigError(f"bench needs {name_option('batch_size')}: one number, or several")
    require_at_least(1, batch_size=sizes[0], rounds=rounds, threads=threads)
    json_file = path_or_none(json)
    if json_file is not None:
        refuse_output("json", json_file, chain.from_iterable(map(files_of, named)))

    from vitrail.inference.bench import bench as run
    from vitrail.inference.bench import beside_timm, find_subjects
    from vitrail.inference.network import tell_program

    engines = (engine,) if isinstance(engine, str) else tuple(engine)
    options = {"precision": precision, "device": device, "threads": threads}
    with shown(display, progress) as display:
        subjects = find_subjects(named, engines, display, **options)
        for name in named:
            tell_program(name, display)
        if timm:
            more, lacking = beside_timm(subjects, **options)
            subjects += more
            for name in lacking:
                display.warn(
                    f"{write_option('timm', True)}: it has no {name} of that size; left out"
                )
        results = run(subjects, sizes, rounds, display)
        if json_file is not None:
            write_json(json_file, [asdict(one) for one in results], display)
    return Latencies(tuple(results), rounds)
