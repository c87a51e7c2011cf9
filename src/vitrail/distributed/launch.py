"""Launchers: the variables of mpirun and srun as torchrun's, and reports to torchrun. No torch."""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import ConfigError

SEVERAL = (
    "train",
    "evaluate",
    "embed",
    "make-token-labels",
    "bench-data",
    "doctor",
    "config",
    "models",
)
"""Commands that may run in more than one process: together, or without writing a file."""
PORTS = range(20_000, 30_000)
"""Ports for the processes to meet at, below those that systems give out by themselves."""
LOOK_S = 0.05
"""Seconds between two looks for the report of another process."""


@dataclass(frozen=True)
class Launcher:
    """The variables by which a launcher tells each process which one it is."""

    name: str
    rank: str
    world: tuple[str, ...]
    local_rank: str
    local_world: str
    """Variable with the number of processes on this machine."""
    job: tuple[str, ...]
    """Variables that are equal in all processes of one start, and differ between starts; without
    any, the parent's process id is taken."""


LAUNCHERS = (
    Launcher(
        name="Open MPI's mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        world=("OMPI_COMM_WORLD_SIZE",),
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_world="OMPI_COMM_WORLD_LOCAL_SIZE",
        job=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"),
    ),
    Launcher(
        name="MVAPICH's mpirun",
        rank="MV2_COMM_WORLD_RANK",
        world=("MV2_COMM_WORLD_SIZE",),
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_world="MV2_COMM_WORLD_LOCAL_SIZE",
        job=("MPIRUN_ID",),
    ),
    Launcher(
        name="mpiexec (MPICH, Intel MPI)",
        rank="PMI_RANK",
        world=("PMI_SIZE",),
        local_rank="MPI_LOCALRANKID",
        local_world="MPI_LOCALNRANKS",
        job=(),
    ),
)
# after the others, which start their own helpers with srun
SRUN = Launcher(
    name="srun",
    rank="SLURM_PROCID",
    world=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
    local_rank="SLURM_LOCALID",
    local_world="SLURM_STEP_TASKS_PER_NODE",
    job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
)


def count_processes() -> int:
    """Return how many processes torchrun has started, or who else set its variables; 1 for a process alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def understand_launch(environ: MutableMapping[str, str], command: str) -> None:
    """Set the variables that torchrun would set, where another launcher started several processes.

    Args:
        environ: The variables of this process, which are changed.
        command: The command of this process; most commands are for one process.

    Raises:
        ConfigError: The launcher does not say what is needed, or several processes would write the
            same file.
    """
    if (
        not {"RANK", "WORLD_SIZE"} <= environ.keys()
        and (launcher := _launcher(environ)) is not None
    ):
        environ.update(_as_torchrun(launcher, environ))
    world = environ.get("WORLD_SIZE", "1")
    if (
        world != "1"
        and "RANK" in environ
        and command
        and command not in SEVERAL
        and not command.startswith("-")
    ):
        raise ConfigError(
            f"{world} processes were started, and each would do the whole `vitrail {command}`; "
            "start one"
        )


def is_main_process() -> bool:
    """Say whether this is the first process of its run, which shows results and writes files for all of them."""
    return int(os.environ.get("RANK", "0")) == 0


def without_local_rank(tokens: Sequence[str], environ: MutableMapping[str, str]) -> list[str]:
    """Take out `--local-rank N`, which python -m torch.distributed.launch types before all else."""
    rest = list(tokens)
    for place, token in enumerate(rest):
        option = re.fullmatch(r"--local[-_]rank(?:=(\d+))?", token)
        if option is None:
            continue
        value = option[1]
        if value is None:
            value = rest.pop(place + 1) if place + 1 < len(rest) else ""
        if not value.isdecimal():
            raise ConfigError(
                f"{token} {value}: it must be a whole number, as torch.distributed.launch gives it"
            )
        del rest[place]
        environ.setdefault("LOCAL_RANK", value)
        return rest
    return rest


def _launcher(environ: Mapping[str, str]) -> Launcher | None:
    """Return what started this process among others; None where it is alone."""
    for launcher in (*LAUNCHERS, SRUN):
        if launcher.rank not in environ or (launcher is SRUN and _is_batch_script(environ)):
            continue
        if launcher.local_rank not in environ and launcher is not SRUN and SRUN.rank in environ:
            continue  # srun --mpi=pmi2
        world = _first(environ, launcher.world)
        return launcher if world is not None and _number(environ, world) > 1 else None
    if "PMIX_RANK" in environ:
        raise ConfigError(
            "PMIX_RANK is set, so a launcher started this process, but not how many there are; "
            "start them with: torchrun --nproc-per-node N -m vitrail ..."
        )
    return None


def _is_batch_script(environ: Mapping[str, str]) -> bool:
    """Tell a script of sbatch, which has the variables of its job but is one process, from a task of srun."""
    return environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_NUM_TASKS" not in environ


def _as_torchrun(launcher: Launcher, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what torchrun would set."""
    rank = _number(environ, launcher.rank)
    world = _number(environ, _first(environ, launcher.world) or "")
    local_world = (
        _tasks_here(environ, world) if launcher is SRUN else _number(environ, launcher.local_world)
    )
    has_own_card = launcher is SRUN and _has_own_card(environ)
    local_rank = 0 if has_own_card else _number(environ, launcher.local_rank)
    alone = local_world == world
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or _first_host(launcher, environ, alone=alone),
        "MASTER_PORT": environ.get("MASTER_PORT") or _port(launcher, environ, alone=alone),
    }


def _first_host(launcher: Launcher, environ: Mapping[str, str], *, alone: bool) -> str:
    """Return where process 0 is."""
    if alone:
        return "127.0.0.1"
    hosts = _first(environ, ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))
    if launcher is SRUN and hosts is not None:
        # gpu[03-07,11],big1
        if parts := re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", environ[hosts]):
            return "".join(part for part in parts.groups() if part)
        raise ConfigError(
            f"{hosts} is {environ[hosts]!r}, which names no host; set MASTER_ADDR to the first one"
        )
    raise ConfigError(
        f"{launcher.name} started processes on several machines and does not say on which the "
        "first one is; set "
        "MASTER_ADDR to its name and MASTER_PORT to a free port for all of them, or use torchrun"
    )


def _port(launcher: Launcher, environ: Mapping[str, str], *, alone: bool) -> str:
    """Return a port that all processes of this start choose alike."""
    job = [environ[name] for name in launcher.job if name in environ]
    if not job and not alone:
        raise ConfigError(
            f"{launcher.name} gives processes no name in common; set MASTER_PORT to a free port, "
            "for all"
        )
    return str(PORTS[zlib.crc32(" ".join(job or [str(os.getppid())]).encode()) % len(PORTS)])


def _has_own_card(environ: Mapping[str, str]) -> bool:
    """Tell whether srun shows each task a card of its own (--gpus-per-task), whose number is 0 for all of them."""
    return bool(re.fullmatch(r"[^,]+", environ.get("CUDA_VISIBLE_DEVICES", "")))


def _tasks_here(environ: Mapping[str, str], world: int) -> int:
    """Return how many of all tasks are on this node, from a list such as 4(x2),3."""
    nodes = _first(environ, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES"))
    if nodes is None or environ[nodes] == "1":
        return world
    name = _first(environ, (SRUN.local_world, "SLURM_TASKS_PER_NODE")) or SRUN.local_world
    counts: list[int] = []
    for part in environ.get(name, "").split(","):
        if count := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            counts += [int(count[1])] * int(count[2] or 1)
    node = _number(environ, "SLURM_NODEID")
    if node >= len(counts):
        raise ConfigError(
            f"{name} is {environ.get(name)!r}, which has no node {node}; start processes with "
            "torchrun"
        )
    return counts[node]


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    """Return the first of some variables that is set."""
    return next((name for name in names if environ.get(name)), None)


def _number(environ: Mapping[str, str], name: str, absent: int | None = None) -> int:
    """Return a variable that is a number."""
    text = environ.get(name, "")
    if not text and absent is not None:
        return absent
    if not text.isdecimal():
        what = f"{name} is {text!r}" if text else f"{name or 'the number of processes'} is not set"
        raise ConfigError(
            f"{what}, by which processes of one run know each other; start them with torchrun "
            "instead"
        )
    return int(text)


def is_said_by_first_process(line: str, environ: Mapping[str, str], patience_s: float) -> bool:
    """Wait until the first process of this machine reports the same error to torchrun; False if it does not in time.

    Args:
        line: The error of this process.
        environ: The variables of this process, by which torchrun names the file for its report.
        patience_s: Seconds to wait; without torchrun they are waited too, as the launcher may end
            this process.
    """
    own_report = environ.get("TORCHELASTIC_ERROR_FILE")
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if own_report and _reported_error(_report_of_first(own_report)) == line:
            return True
        time.sleep(LOOK_S)
    return False


def _report_of_first(own_report: str) -> Path:
    """Return where the first process of this machine reports to torchrun, beside the folder of this one."""
    path = Path(own_report)
    return path.parents[1] / "0" / path.name


def _reported_error(report: Path) -> str | None:
    """Return the error in a report to torchrun; None while there is none, or half of one."""
    try:
        return json.loads(report.read_text())["message"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
