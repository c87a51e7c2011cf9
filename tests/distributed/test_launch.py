"""Processes that mpirun, srun and python -m torch.distributed.launch start: one run, or one line of an error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from support.forked import Python, python
from support.runs import TINY
from vitrail.distributed.launch import PORTS, is_said_by_first_process, understand_launch, without_local_rank
from vitrail.errors import ConfigError

OF_LAUNCHERS = ("OMPI_", "PMI", "MPI_", "MV2_", "SLURM_", "MASTER_", "RANK", "LOCAL_", "WORLD_SIZE", "ENVIRONMENT")


def variables(rank: int, world: int, **more: str) -> dict[str, dict[str, str]]:
    """Return what each launcher gives one process of several on one machine."""
    mine, all_ = str(rank), str(world)
    return {
        "open mpi": {
            "OMPI_COMM_WORLD_RANK": mine,
            "OMPI_COMM_WORLD_SIZE": all_,
            "OMPI_COMM_WORLD_LOCAL_RANK": mine,
            "OMPI_COMM_WORLD_LOCAL_SIZE": all_,
            "PMIX_RANK": mine,
            "PMIX_NAMESPACE": "1627848705",
        },
        "mvapich": {
            "MV2_COMM_WORLD_RANK": mine,
            "MV2_COMM_WORLD_SIZE": all_,
            "MV2_COMM_WORLD_LOCAL_RANK": mine,
            "MV2_COMM_WORLD_LOCAL_SIZE": all_,
            "MPIRUN_ID": "77",
        },
        "mpich": {"PMI_RANK": mine, "PMI_SIZE": all_, "MPI_LOCALRANKID": mine, "MPI_LOCALNRANKS": all_},
        "srun": {
            "SLURM_PROCID": mine,
            "SLURM_NTASKS": all_,
            "SLURM_STEP_NUM_TASKS": all_,
            "SLURM_LOCALID": mine,
            "SLURM_NNODES": "1",
            "SLURM_JOB_ID": "12",
            "SLURM_STEP_ID": "0",
        },
    }


def given(environ: dict[str, str], command: str = "train") -> dict[str, str]:
    """Return what a process with these variables is given beside them."""
    changed = dict(environ)
    understand_launch(changed, command)
    return {key: value for key, value in changed.items() if environ.get(key) != value}


@pytest.mark.parametrize("launcher", variables(0, 1))
def test_a_launchers_variables_become_torchruns(launcher: str) -> None:
    found = [given(variables(rank, 3)[launcher]) for rank in range(3)]
    ports = {one.pop("MASTER_PORT") for one in found}
    assert len(ports) == 1
    assert int(*ports) in PORTS
    shared = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    assert found == [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(3)]
    chosen = {**variables(1, 3)[launcher], "MASTER_ADDR": "host", "MASTER_PORT": "5"}
    assert given(chosen) == {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}


@pytest.mark.parametrize("launcher", variables(0, 1))
def test_one_process_and_those_of_torchrun_are_left_alone(launcher: str) -> None:
    assert given(variables(0, 1)[launcher]) == {}
    assert given({**variables(1, 2)[launcher], "RANK": "0", "WORLD_SIZE": "1"}) == {}
    assert given({"WORLD_SIZE": "8"}, "config") == {}


def test_other_starts_choose_other_ports() -> None:
    one, other = ({**variables(0, 2)["srun"], "SLURM_STEP_ID": step} for step in "01")
    assert given(one)["MASTER_PORT"] != given(other)["MASTER_PORT"]


@pytest.mark.parametrize(
    ("nodes", "tasks", "node", "first", "here"),
    [
        ("gpu[03-07,11]", "4(x2),3", 1, "gpu03", "4"),
        ("gpu[03-07,11]", "4(x2),3", 2, "gpu03", "3"),
        ("big1,gpu[1-2]", "1,2(x2)", 0, "big1", "1"),
        ("n[001,004]-ib", "2(x2)", 0, "n001-ib", "2"),
        ("alone", "8(x2)", 1, "alone", "8"),
    ],
)
def test_srun_says_which_node_is_the_first(nodes: str, tasks: str, node: int, first: str, here: str) -> None:
    environ = variables(5, 11)["srun"] | {
        "SLURM_NNODES": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
    }
    found = given(environ)
    assert (found["MASTER_ADDR"], found["LOCAL_WORLD_SIZE"], found["LOCAL_RANK"]) == (first, here, "1")


def test_a_card_of_its_own_is_number_0_for_every_task() -> None:
    for cards, number in (("0", "0"), ("3", "0"), ("0,1", "1"), ("", "1")):
        assert given({**variables(1, 2)["srun"], "CUDA_VISIBLE_DEVICES": cards})["LOCAL_RANK"] == number


def test_a_batch_script_is_one_process_and_an_allocation_none() -> None:
    script = variables(0, 4)["srun"] | {"ENVIRONMENT": "BATCH"}
    del script["SLURM_STEP_NUM_TASKS"], script["SLURM_STEP_ID"]
    assert given(script) == {}
    del script["SLURM_PROCID"]
    assert given({**script, "ENVIRONMENT": ""}) == {}


def test_helpers_that_slurm_starts_do_not_count() -> None:
    """MPICH's mpiexec starts a helper a node with srun, whose variables its processes inherit."""
    helper = variables(0, 1)["srun"] | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    assert given({**helper, **variables(3, 4)["mpich"]})["RANK"] == "3"
    pmi2 = {**variables(1, 2)["srun"], "PMI_RANK": "1", "PMI_SIZE": "2"}
    assert given(pmi2)["RANK"] == "1"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"PMI_RANK": "0", "PMI_SIZE": "2"},
            "MPI_LOCALNRANKS is not set, by which processes of one run know",
        ),
        ({"PMIX_RANK": "0"}, "PMIX_RANK is set, so a launcher started this process, but not how many there are; start"),
        (
            variables(0, 4)["open mpi"] | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            "Open MPI's mpirun started processes on several machines and does not say on which the first one is; set",
        ),
        (
            variables(0, 4)["mpich"] | {"MPI_LOCALNRANKS": "2", "MASTER_ADDR": "host"},
            "mpiexec (MPICH, Intel MPI) gives processes no name in common; set MASTER_PORT to a free port, for all",
        ),
        ({**variables(0, 2)["srun"], "SLURM_PROCID": "x"}, "SLURM_PROCID is 'x', by which processes of one run know"),
        (
            {**variables(0, 2)["srun"], "SLURM_NNODES": "2", "SLURM_NODEID": "0"},
            "SLURM_STEP_TASKS_PER_NODE is None, which has no node 0; start processes with torchrun",
        ),
        (
            variables(0, 2)["srun"]
            | {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NODELIST": "[1-2]"},
            "SLURM_NODELIST is '[1-2]', which names no host; set MASTER_ADDR to the first one",
        ),
    ],
)
def test_what_a_launcher_does_not_say_is_asked_for_in_one_line(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        understand_launch(dict(environ), "train")


@pytest.mark.parametrize(
    "command", ["predict", "export", "convert", "pack", "quantize", "bench", "serve", "check-data"]
)
def test_commands_of_one_process_are_not_run_by_several(command: str) -> None:
    message = f"2 processes were started, and each would do the whole `vitrail {command}`; start one"
    with pytest.raises(ConfigError, match=re.escape(message)):
        understand_launch(dict(variables(1, 2)["open mpi"]), command)
    with pytest.raises(ConfigError, match=re.escape(message)):
        understand_launch({"RANK": "0", "WORLD_SIZE": "2"}, command)
    for other in ("train", "evaluate", "bench-data", "doctor", "config", "models", "--help", ""):
        understand_launch(dict(variables(1, 2)["open mpi"]), other)


@pytest.mark.parametrize(
    ("typed", "rest", "rank"),
    [
        ("--local-rank=1 train x.yaml", "train x.yaml", "1"),
        ("--local_rank=0 train x.yaml", "train x.yaml", "0"),
        ("train x.yaml --local_rank 3 --amp", "train x.yaml --amp", "3"),
        ("train x.yaml", "train x.yaml", None),
    ],
)
def test_the_flag_of_torch_distributed_launch_is_understood(typed: str, rest: str, rank: str | None) -> None:
    environ: dict[str, str] = {}
    assert without_local_rank(typed.split(), environ) == rest.split()
    assert environ.get("LOCAL_RANK") == rank


@pytest.mark.parametrize("typed", ["--local-rank", "--local_rank one train"])
def test_a_local_rank_is_a_number(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"^--local[-_]rank (one)?: it must be a whole number"):
        without_local_rank(typed.split(), {})


# Real processes


def words(images: Path, name: str) -> list[str]:
    return ["train", str(TINY), f"data.root={images}", f"output.root={images.parent}/runs", f"output.name={name}"]


def plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(OF_LAUNCHERS)}


def last_line(images: Path, name: str) -> dict[str, float]:
    return json.loads((images.parent / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["open mpi", "srun"])
def test_two_processes_of_another_launcher_make_one_run(launcher: str, image_folder: Path) -> None:
    job = uuid.uuid4().hex
    processes = [
        Python(
            "-m", "vitrail", *words(image_folder, "pair"),
            env=plain() | variables(rank, 2)[launcher] | {"PMIX_NAMESPACE": job, "SLURM_JOB_ID": job},
        )
        for rank in range(2)
    ]  # fmt: skip
    for done in [process.wait() for process in processes]:
        assert done.returncode == 0, done.stderr
    assert [path.name for path in (image_folder.parent / "runs").iterdir()] == ["pair"]
    alone = python("-m", "vitrail", *words(image_folder, "alone"), env=plain())
    assert alone.returncode == 0, alone.stderr
    found, expected = last_line(image_folder, "pair"), last_line(image_folder, "alone")
    assert found["updates"] == expected["updates"]
    assert found["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-4)


@pytest.mark.thorough
def test_several_processes_of_a_command_for_one_end_in_one_line(image_folder: Path, tiny_checkpoint: Path) -> None:
    done = python(
        "-m",
        "vitrail",
        "predict",
        tiny_checkpoint,
        image_folder,
        env=plain() | variables(1, 2)["mpich"],
        cwd=image_folder,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error in process 1: 2 processes were started, and each would do the whole `vitrail predict`; start one"
    ]
    assert not (image_folder / "predictions.json").exists()


@pytest.mark.thorough
def test_python_m_torch_distributed_launch_starts_a_run(image_folder: Path) -> None:
    start = [
        "-m",
        "torch.distributed.launch",
        "--nproc_per_node",
        "2",
        "-m",
        "vitrail",
        *words(image_folder, "launched"),
    ]
    done = subprocess.run([sys.executable, *start], env=plain(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert last_line(image_folder, "launched")["val_n"] == 12


@pytest.mark.thorough
@pytest.mark.parametrize("program", ["mpirun.openmpi", "mpiexec.hydra"])
def test_mpirun_itself_starts_a_run(program: str, image_folder: Path) -> None:
    if (found := shutil.which(program)) is None:
        pytest.skip(f"{program} is not installed")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    more = ["--oversubscribe"] if "openmpi" in program else []
    start = [found, *more, "-n", "2", sys.executable, "-m", "vitrail", *words(image_folder, "mpi")]
    done = subprocess.run(start, env=plain() | as_root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (image_folder.parent / "runs").iterdir()] == ["mpi"]
    assert last_line(image_folder, "mpi")["val_n"] == 12


def test_an_error_is_said_once_a_machine_where_the_first_process_reports_the_same_to_torchrun(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    environ = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "1" / "error.json")}
    report = tmp_path / "0" / "error.json"
    assert not is_said_by_first_process("same", environ, 0.2)
    for text in ('{"mess', '{"message": "a traceback"}', '{"message": {"message": "another"}}'):
        report.write_text(text)
        assert not is_said_by_first_process("same", environ, 0.2)
    report.write_text('{"message": {"message": "same", "extraInfo": {}}}')
    assert is_said_by_first_process("same", environ, 60)
    assert not is_said_by_first_process("same", {}, 0.2), "mpirun and srun take no reports"
    assert not is_said_by_first_process("same", {"TORCHELASTIC_ERROR_FILE": ""}, 0.2)
