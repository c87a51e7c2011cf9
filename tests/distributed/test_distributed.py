"""Many real processes: the same weights everywhere, a killed one restarted, a hanging one named."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import yaml

from support.forked import TORCHRUN, Python, python, wait_until
from support.long_tailed import ALL, long_tailed
from support.runs import EVERYTHING, TINY, Signals, assert_same_run, has_saved, rows, run, steps, torchrun
from vitrail.choices import OptimizerName
from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import find_recipe
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.distributed.watchdog import describe
from vitrail.errors import ConfigError, Stopped

START = """
import os, sys, time
from pathlib import Path
import torch
import vitrail.training.train
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.display import Quiet
rank = int(os.environ["RANK"])
config = resolve(TrainConfig, [read_yaml(Path(sys.argv[1])), parse_command_line(sys.argv[2:])]).config
"""


def script(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text(START + body)
    return path


def settings(images: Path, *more: str) -> list[str]:
    return [str(TINY), f"data.root={images}", f"output.root={images.parent / 'runs'}", *more]


def test_two_processes_make_the_updates_of_one_hold_the_same_weights_and_go_on_with_its_run(image_folder: Path) -> None:
    runs = image_folder.parent / "runs"
    more = (
        "train.epochs=3", "augment.scale=[0.9, 1.0]", "augment.repeats=2", "train.accumulate=2", "ema.decay=0.9",
        "optim.clip_norm=1",
    )  # fmt: skip
    run(image_folder, *more, "output.name=alone")
    with pytest.raises(Stopped, match="after update 4 of 9"):
        run(image_folder, *more, "output.name=stopped", display=Signals(4))
    program = script(
        image_folder.parent,
        """
from dataclasses import replace
finish, epochs, notes = vitrail.training.train.finish_epoch, [], []
def compare(job, state, run):
    for tensor in [*state.model.state_dict().values(), *state.ema.module.state_dict().values()]:
        both = [torch.empty_like(tensor) for _ in range(2)]
        torch.distributed.all_gather(both, tensor)
        assert torch.equal(*both)
    epochs.append(state.epoch)
    finish(job, state, run)
class Notes(Quiet):
    def note(self, text):
        notes.append(text)
vitrail.training.train.finish_epoch = compare
vitrail.training.train.train(config)
assert epochs == [0, 1, 2]
stopped = replace(config, output=replace(config.output, name="stopped"))
vitrail.training.train.train(stopped, resume=Path(config.output.root) / "stopped", display=Notes())
assert epochs == [0, 1, 2, 1, 2]
assert "goes on with 2 processes instead of 1: the same images in the same order" in notes[0]
""",
    )
    words = settings(image_folder, *more, "output.name=pair")
    done = python(*torchrun(2, str(program), *words))
    assert done.returncode == 0, done.stderr
    for name in ("pair", "stopped"):
        assert_close_run(runs / "alone", runs / name)
        for first, second in zip(steps(runs / "alone"), steps(runs / name), strict=True):
            assert first == pytest.approx(second, rel=1e-3), "the loss is that of both processes"


@pytest.mark.thorough
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_make_the_updates_of_one_with_every_optimizer(image_folder: Path, shard: str) -> None:
    more = (
        "train.epochs=2", "train.accumulate=2", "optim.clip_norm=1", "optim.layer_decay=0.7", "optim.sam_rho=0.05",
        "schedule.warmup_epochs=0", "optim.lr=1e-3",
    )  # fmt: skip
    names = get_args(OptimizerName)
    for name in names:
        run(image_folder, *more, f"optim.name={name}", f"output.name=alone-{name}")
    program = script(
        image_folder.parent,
        f"""
from dataclasses import replace
for name in {names}:
    chosen = replace(config.optim, name=name, betas=None, eps=None, momentum=None)
    output = replace(config.output, name=f"pair-{{name}}")
    vitrail.training.train.train(replace(config, optim=chosen, output=output))
""",
    )
    done = python(*torchrun(2, str(program), *settings(image_folder, *more, f"train.shard={shard}")))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    for name in names:
        assert_close_run(image_folder.parent / "runs" / f"alone-{name}", image_folder.parent / "runs" / f"pair-{name}")


@pytest.mark.thorough
def test_two_processes_make_the_updates_of_one_while_parts_are_frozen_and_after(image_folder: Path) -> None:
    runs = image_folder.parent / "runs"
    run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=pretrained")
    more = (
        f"model.weights={runs / 'pretrained' / 'best.safetensors'}", "train.epochs=2", "train.accumulate=2",
        "schedule.warmup_epochs=0", "ema.decay=0.9", "freeze.until=head", "freeze.epochs=1",
    )  # fmt: skip
    run(image_folder, *more, "output.name=alone")
    program = script(image_folder.parent, "vitrail.training.train.train(config)")
    done = python(*torchrun(2, str(program), *settings(image_folder, *more, "output.name=pair")))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert_close_run(runs / "alone", runs / "pair")


@pytest.mark.thorough
def test_two_processes_make_the_updates_of_one_with_drawn_and_weighted_classes(tmp_path: Path) -> None:
    images = long_tailed(tmp_path / "images", (24, 6, 2))
    more = (*ALL, "train.epochs=2", "augment.scale=[0.9, 1.0]", "augment.repeats=2", "train.accumulate=2")
    run(images, *more, "output.name=alone")
    program = script(tmp_path, "vitrail.training.train.train(config)")
    done = python(*torchrun(2, str(program), *settings(images, *more, "output.name=pair")))
    assert done.returncode == 0, done.stderr
    assert_close_run(tmp_path / "runs" / "alone", tmp_path / "runs" / "pair")


@pytest.mark.thorough
def test_a_process_that_hangs_is_named_with_the_call_it_hangs_in(image_folder: Path) -> None:
    program = script(
        image_folder.parent,
        """
class Sleeper(Quiet):
    made = 0
    def advance(self, steps=1, **values):
        self.made += steps
        if rank == 1 and self.made == 3 and steps:
            time.sleep(600)
vitrail.training.train.train(config, display=Sleeper())
""",
    )
    words = settings(image_folder, "train.dist_timeout_minutes=0.1")
    done = python(*torchrun(2, str(program), *words), timeout=120)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: process ")]
    assert line.startswith("error: process 1 (")
    assert "has been computing update 3 for " in line
    at = program.read_text().splitlines().index("            time.sleep(600)") + 1
    assert f"at {program}:{at} in advance; 1 wait for it, adding up the losses until update 3, at " in line
    assert line.endswith("; see train.dist_timeout_minutes")


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_a_shared_out_model_makes_the_updates_of_a_whole_one_and_its_saves_fit_both(
    image_folder: Path, optimizer: str
) -> None:
    runs = image_folder.parent / "runs"
    common = ("train.epochs=4", "ema.decay=0.9", "optim.clip_norm=1", f"optim.name={optimizer}")
    run(image_folder, *common, "output.name=plain")
    with pytest.raises(Stopped, match="after update 2 of 12"):
        run(image_folder, *common, "output.name=back", display=Signals(2))
    program = script(
        image_folder.parent,
        """
import signal
from dataclasses import replace
from vitrail.errors import Stopped
class Signals(Quiet):
    made = 0
    def advance(self, steps=1, **values):
        self.made += steps
        if steps and self.made == 7:
            os.kill(os.getpid(), signal.SIGTERM)
try:
    vitrail.training.train.train(config, display=Signals())
except Stopped as error:
    assert "and saved" in str(error)
back = replace(config, output=replace(config.output, name="back"))
vitrail.training.train.train(back, resume=Path(config.output.root) / "back")
""",
    )
    words = settings(image_folder, *common, "output.name=there", "train.shard=true")
    done = python(*torchrun(2, str(program), *words))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert len(rows(runs / "there")) == 2
    run(image_folder, *common, "output.name=there", resume=runs / "there")
    # Muon multiplies in bfloat16, sharded and whole matrices in another order
    tolerance = 1e-3 if optimizer == "muon" else 1e-4
    for name in ("there", "back"):
        assert len(rows(runs / name)) == 4
        assert_close_run(runs / "plain", runs / name, tolerance)


def assert_close_run(a: Path, b: Path, tolerance: float = 1e-4) -> None:
    """Compare what two runs found, up to the order of summation."""
    for first, second in zip(rows(a), rows(b), strict=True):
        assert math.isclose(first["train_loss"], second["train_loss"], rel_tol=tolerance)
        assert math.isclose(first["val_loss"], second["val_loss"], rel_tol=tolerance)
        for name in ("val_n", "val_top1", "val_balanced_accuracy", "val_macro_f1", "val_tail_top1"):
            assert first[name] == second[name]


def test_a_model_is_not_shared_out_over_one_process(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train\.shard needs several processes; start them with torchrun$"):
        run(image_folder, "train.shard=true")


def report(rank: int, moves: int, doing: str, told: float = 100.0, call: str = "f.py:1 in g") -> dict[str, Any]:
    return {"rank": rank, "host": "h", "pid": 7, "moves": moves, "doing": doing, "call": call, "still_s": 60.0,
            "told": told}  # fmt: skip


def test_the_process_with_the_fewest_moves_is_the_one_that_is_waited_for() -> None:
    assert describe([report(0, 9, "b"), report(1, 8, "a", told=90.0), report(2, 9, "b")], 100.0) == (
        "process 1 (h, pid 7) has been a for 70 s, at f.py:1 in g; 2 wait for it, b, at f.py:1 in g"
    )
    collective = "/torch/distributed/distributed_c10d.py:9 in all_reduce"
    assert describe([report(0, 9, "b", call=collective), report(1, 9, "b")], 100.0) == (
        f"process 1 (h, pid 7) has been b for 60 s, at f.py:1 in g; 1 wait for it, b, at {collective}"
    )
    assert describe([report(0, 9, "b"), report(1, 9, "b")], 100.0) == (
        "no process moves on: process 0 (h, pid 7) has been b for 60 s, at f.py:1 in g; process 1 (h, pid 7) has been "
        "b for 60 s, at f.py:1 in g"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.thorough
def test_a_killed_worker_is_restarted_by_its_agents_and_the_run_is_the_same_to_the_last_bit(image_folder: Path) -> None:
    runs = image_folder.parent / "runs"
    words = settings(image_folder, *EVERYTHING, "train.epochs=20", "output.save_every_updates=1")
    place = words.pop(2)  # --resume names the folder
    words = ["-m", "vitrail", "train", *words]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "test"]
    launch = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", *rendezvous]
    agents = [Python(*launch, *words, "--resume", runs / "elastic") for _ in range(2)]
    try:
        wait_until(has_saved(runs / "elastic", 8), *agents)
        (victim,) = psutil.Process(agents[1].pid).children()
        victim.kill()
        done = [agent.wait() for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    printed = [agent.stderr for agent in done]
    assert [agent.returncode for agent in done] == [0, 0], printed
    assert any("SIGKILL" in text or "exitcode: -9" in text for text in printed)
    assert not any("Traceback" in text for text in printed), printed
    assert python(*torchrun(2, *words, place, "output.name=whole")).returncode == 0
    assert_same_run(runs / "elastic", runs / "whole")


CLUSTER = Path(__file__).parents[2] / "docs" / "cluster"
PATCHED = ("template", "spec", "replicatedJobs", 0, "template", "spec", "template", "spec")
"""Where the pods of a TrainJob lie in a patch of its runtime."""
TRAIN_JOB = {
    "spec": {"runtimeRef", "trainer", "runtimePatches"},
    "trainer": {"image", "numNodes", "numProcPerNode", "command", "args", "resourcesPerNode"},
    "pod": {"terminationGracePeriodSeconds", "containers", "volumes"},
    "container": {"name", "volumeMounts"},
}
"""Of the fields that trainer.kubeflow.org/v1alpha1 has since version 2.3, those that are used."""


def test_the_train_job_has_the_fields_of_its_version_and_mounts_what_it_has() -> None:
    job = yaml.safe_load((CLUSTER / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec = job["spec"]
    assert spec.keys() == TRAIN_JOB["spec"]
    assert spec["trainer"].keys() == TRAIN_JOB["trainer"]
    assert spec["trainer"]["numProcPerNode"] == spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    (patch,) = spec["runtimePatches"]
    assert patch.keys() == {"manager", "trainingRuntimeSpec"}
    pod: Any = patch["trainingRuntimeSpec"]
    for step in PATCHED:
        assert isinstance(step, int) or pod.keys() <= {step, "name"}
        pod = pod[step]
    assert pod.keys() == TRAIN_JOB["pod"]
    (container,) = pod["containers"]
    assert container.keys() == TRAIN_JOB["container"]
    assert container["name"] == "node", "as the runtime torch-distributed names it"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    old = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())["spec"]["pytorchReplicaSpecs"]["Worker"]
    theirs, ours = old["template"]["spec"]["containers"][0], spec["trainer"]
    assert (ours["command"], ours["args"]) == (theirs["command"], theirs["args"])
    assert (ours["numNodes"], ours["resourcesPerNode"]) == (old["replicas"], theirs["resources"])


# as Slurm's own behave: srun answers SIGTERM by killing its tasks (src/srun/signals.c); scancel signals the tasks alone
SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
assert f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}" in words
task = subprocess.Popen(words[words.index("torchrun"):], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: os.killpg(task.pid, signal.SIGKILL))
open("step.0", "w").write(str(task.pid))
sys.exit(abs(task.wait()))
"""
SCANCEL = """
import os, signal, sys
assert sys.argv[1:] == ["--signal=TERM", "7.0"], sys.argv
os.killpg(int(open("step.0").read()), signal.SIGTERM)
"""
SCONTROL = """
import os, sys
if sys.argv[1] == "show":
    os.write(1, b"node-1\\nnode-2\\n")
else:
    open("requeued", "w").write(" ".join(sys.argv[1:]))
"""
TASK = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    open("saved", "w").write(" ".join(sys.argv[1:]))
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
open("started", "w").close()
time.sleep(60)
"""


def slurm(folder: Path, text: str, restarts: str = "") -> subprocess.Popen[bytes]:
    """Begin a job script among stand-ins for Slurm's programs and torchrun, and say that its time is nearly up."""
    programs = folder / "bin"
    programs.mkdir()
    for name, program in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, "torchrun": TASK}.items():
        (programs / name).write_text(f"#!{sys.executable} -S\n{program}")
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_RESTART_COUNT": restarts,
    }  # fmt: skip
    job = subprocess.Popen(["bash", "-c", text], cwd=folder, env=environment)
    deadline = time.monotonic() + 30
    while not (folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=30)
    return job


def test_a_job_of_slurm_saves_before_it_goes_back_into_the_queue(tmp_path: Path) -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    assert slurm(tmp_path, text).returncode == os.EX_TEMPFAIL
    assert "--resume runs/tnt" in (tmp_path / "saved").read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 7"


def test_a_job_of_slurm_that_was_restarted_often_ends(tmp_path: Path) -> None:
    assert slurm(tmp_path, (CLUSTER / "slurm.sh").read_text(), restarts="50").returncode == os.EX_TEMPFAIL
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "requeued").exists()


def test_a_signal_to_srun_would_lose_the_save(tmp_path: Path) -> None:
    text = (CLUSTER / "slurm.sh").read_text().replace('scancel --signal=TERM "$SLURM_JOB_ID.0"', 'kill -TERM "$SRUN"')
    slurm(tmp_path, text)
    assert not (tmp_path / "saved").exists(), "the stand-in does what srun does"


def test_the_ready_files_for_clusters_name_commands_that_exist() -> None:
    folder = CLUSTER
    subprocess.run(["bash", "-n", str(folder / "slurm.sh")], check=True)
    pod = yaml.safe_load((folder / "kubernetes.yaml").read_text())["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    (container,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    trainer = yaml.safe_load((folder / "trainjob.yaml").read_text())["spec"]["trainer"]
    texts = [
        (folder / "slurm.sh").read_text(),
        yaml.safe_load((folder / "skypilot.yaml").read_text())["run"],
        " ".join(container["command"] + container["args"]),
        " ".join(trainer["command"] + trainer["args"]),
    ]
    known = python(*TORCHRUN, "--help").stdout
    for text in texts:
        words = text.replace("\\\n", " ").replace('"$RUN"', "x").split()
        launch = words[words.index("torchrun") : words.index("-m")]
        assert all(word in known for word in launch if word.startswith("--"))
        settings = [word for word in words[words.index("train") + 1 :] if "=" in word and not word.startswith("-")]
        name, path = find_recipe(words[words.index("train") + 1])
        resolve(TrainConfig, [read_yaml(path, name), parse_command_line(settings[:1])])
        assert "--resume" in words


@pytest.mark.thorough
def test_processes_whose_torchrun_is_killed_before_they_met_end(tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text(
        """
import os, sys, time
from pathlib import Path
from vitrail.distributed.processes import processes
folder = Path(sys.argv[1])
if os.environ["RANK"] == "1":
    from vitrail.distributed.rendezvous import end_with_torchrun
    end_with_torchrun()
    (folder / "late").touch()
    time.sleep(600)
(folder / "early").touch()
with processes("float32", "cpu", 20, 10):
    pass
"""
    )
    process = Python(*torchrun(2, str(program), str(tmp_path)))
    try:
        wait_until(lambda: (tmp_path / "early").exists() and (tmp_path / "late").exists(), process)
        time.sleep(0.5)  # in which the first begins to wait for the second
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    finally:
        process.kill()


@pytest.mark.thorough
def test_processes_whose_torchrun_is_killed_save_and_leave(image_folder: Path) -> None:
    folder = image_folder.parent / "runs" / "pair"
    words = settings(image_folder, "train.epochs=300", "schedule.warmup_epochs=0", "output.name=pair")
    process = Python(*torchrun(2, "-m", "vitrail", "train", *words))
    try:
        wait_until(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) > 1, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        assert has_saved(folder, 6)()
        assert "stopped by SIGTERM after update" in (text := (folder / "log.txt").read_text())
        assert "Traceback" not in text
    finally:
        process.kill()


@pytest.mark.thorough
def test_torchrun_does_not_start_again_what_was_told_to_stop(image_folder: Path) -> None:
    words = [*settings(image_folder), "train.max_hours=1e-9"]
    del words[2]  # --resume names the folder
    launch = torchrun(1, "-m", "vitrail", "train", *words, "--resume", str(image_folder.parent / "runs" / "stopped"))
    launch[2:2] = ["--max-restarts", "3"]
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("stopped by train.max_hours=1e-09 after update 1 of 12, and saved; go on with") == 1


@pytest.mark.parametrize("restarts", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_what_no_restart_mends_is_said_once_and_ends_it(restarts: int) -> None:
    launch = torchrun(2, "-m", "vitrail", "train", "digits", "train.epochs=0", "--resume", "runs/never")
    launch[2:2] = ["--max-restarts", str(restarts)]
    done = python(*launch)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "train.epochs is 0; it must be at least 1" in line]
    assert lines[0].startswith("error: train.epochs is 0; ")
    if restarts:
        assert len(lines) == 1, done.stderr
        assert "failed (exitcode: 2)" not in done.stderr, "it is not started again"
    else:
        assert [line.split(":")[0].strip() for line in lines[1:]] == ["traceback"], "torchrun's report names it"
    assert "error in process 1" not in done.stderr


def test_torchrun_is_told_again_where_it_loses_the_signal(tmp_path: Path) -> None:
    """Python ignores what a signal's handler raises within a lock's callback, so torchrun may miss one."""
    path = tmp_path / "launcher.py"
    path.write_text(
        "import os, signal, subprocess, sys\n"
        "heard = []\n"
        "def hear(number, frame):\n"
        "    heard.append(number)\n"
        "    if len(heard) == 2:\n"
        "        worker.kill()\n"
        "signal.signal(signal.SIGTERM, hear)\n"
        "variables = {'LOCAL_RANK': '0', 'TORCHELASTIC_MAX_RESTARTS': '2', 'TORCHELASTIC_RESTART_COUNT': '0'}\n"
        "words = [sys.executable, '-m', 'vitrail', 'train', 'digits', 'train.epochs=0']\n"
        "worker = subprocess.Popen(words, env={**os.environ, **variables})\n"
        "sys.exit(0 if worker.wait() == -signal.SIGKILL else 'the worker ended before')\n"
    )
    done = python(path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: train.epochs is 0; ") == 1


@pytest.mark.thorough
def test_a_process_whose_error_is_its_own_says_so(tmp_path: Path) -> None:
    """torchrun's first process waits, as it would for the images of the second."""
    path = tmp_path / "script.py"
    path.write_text(
        "import os, sys, time\n"
        "from vitrail.cli.app import main\n"
        "time.sleep(600) if os.environ['RANK'] == '0' else main(['train', 'digits', 'train.epochs=0'])\n"
    )
    done = python(*torchrun(2, path))
    assert done.returncode == 1
    assert "error in process 1: train.epochs is 0; " in done.stderr
    assert "traceback : train.epochs is 0; " in done.stderr


@pytest.mark.parametrize("verb", [[], ["--fork", "runs/x"]])
def test_a_restart_that_would_begin_anew_is_refused(verb: list[str]) -> None:
    environment = {**os.environ, "TORCHELASTIC_RESTART_COUNT": "1"}
    done = python("-m", "vitrail", "train", *verb, env=environment)
    assert done.returncode == 2
    assert "torchrun restarted a command that would begin a new run each time" in done.stderr
