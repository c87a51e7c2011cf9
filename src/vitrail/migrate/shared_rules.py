"""Rules that several projects share: weights, devices, processes, batches, mixing and erasing. No torch."""

from __future__ import annotations

from typing import Any

from vitrail.migrate.rules import (
    Case,
    Key,
    Outcome,
    Rule,
    accept_only,
    are_same,
    choose,
    follow_if_positive,
    ignore,
    ignore_switch,
    read_drop_rate,
    read_number,
    read_switch,
    read_text,
    set_to,
)

# Weights, devices and processes


WEIGHT_FILES = ("pretrain_path", "transfer_model", "ckpt_path")
"""Keys that name a weight file, in programs where `pretrained` is a switch."""


def start_from_weights(value: Any, case: Case) -> Outcome:
    """Start from the weights of a file; nothing else is read from it."""
    path = read_text(value)
    if path is None:
        is_pretrained = are_same(case.values.get("pretrained"), True)
        return Outcome() if is_pretrained else Outcome({"model.weights": None})
    return Outcome({"model.weights": path}, "weights alone: epochs and rates begin anew")


def start_from_published(weights: str = "pretrained") -> Rule:
    """Start from published weights of the model, which are fetched where they are not here.

    Args:
        weights: Which: the best, or those of an origin.
    """

    def rule(value: Any, case: Case) -> Outcome:
        if not read_switch(value):
            return Outcome()
        if any(read_text(case.values.get(name)) is not None for name in WEIGHT_FILES):
            return Outcome(note="the weight file that is named counts")
        return Outcome(
            {"model.weights": weights},
            "fetched once; `vitrail weights` lists them and others",
            "note",
        )

    return rule


def set_device(value: Any, case: Case) -> Outcome:
    """Choose between the CPU and the accelerator that there is."""
    name = str(value).lower()
    if name == "cpu":
        return Outcome({"train.device": "cpu"})
    if name == "ascend" and "device_target" in case.written:
        note = "there is no Ascend here; an accelerator that torch finds is taken"
        return Outcome({"train.device": "auto"}, note, "warning")
    return Outcome({"train.device": "auto"})


def leave_card_to_driver(value: Any, case: Case) -> Outcome:
    """Leave the choice of a card to the driver, which reads CUDA_VISIBLE_DEVICES."""
    chosen = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if chosen not in ("0", "None") and case.processes == 1:
        return Outcome(note=f"CUDA_VISIBLE_DEVICES={chosen} chooses the card", say="note")
    return Outcome(note="CUDA_VISIBLE_DEVICES chooses a card")


def check_processes(value: Any, case: Case) -> Outcome:
    """Say how several processes are started, where they are asked for and there is one."""
    if isinstance(value, bool) or str(value).lower() in ("true", "false"):
        count = None
        is_distributed = read_switch(value)
    else:
        count = int(read_number(value))
        is_distributed = count > 1
    if is_distributed and case.processes == 1:
        note = f"this is one process; start several with: torchrun --nproc-per-node {count or 8} -m vitrail train ..."
        return Outcome(note=note, say="warning", of_training=True)
    if count is not None and 1 < count != case.processes:
        note = f"{case.processes} processes were started, and they count"
        return Outcome(note=note, say="warning", of_training=True)
    return Outcome(note="torchrun starts processes")


# Batches and epochs


def set_global_batch(value: Any, case: Case) -> Outcome:
    """Set the batch over all processes, where theirs counts one process."""
    note = f"theirs counts one process, ours all: here {case.processes}, set by torchrun"
    return Outcome({"train.batch_size": case.batch}, note)


def set_epoch_images(value: Any, case: Case) -> Outcome:
    """Set how many images an epoch draws over all processes, where theirs counts one process."""
    if read_text(value) is None or read_number(value) == -1:
        return Outcome({"train.epoch_images": None})
    images = int(read_number(value)) * case.processes
    note = "drawn anew for each epoch, and counted over all processes"
    return Outcome({"train.epoch_images": images}, note, "note")


# Augmentation


def set_color_jitter(policy: str) -> Rule:
    """Set the colour jitter, unless the key `policy` names an augmentation policy, which replaces it."""

    def rule(value: Any, case: Case) -> Outcome:
        if read_text(case.values.get(policy)) is not None:
            return Outcome(note=f"not applied beside {policy}")
        return Outcome({"augment.color_jitter": value or None})

    return rule


def read_mix_off_epoch(value: Any) -> int | None:
    """Return the epoch from which on nothing is mixed, which is None, for never, where theirs is 0."""
    return int(read_number(value or 0)) or None


def make_erasing_keys(prob: str, mode: str, count: str) -> dict[str, Key]:
    """Return the keys of random erasing, by their names."""
    modes = choose({one: {"augment.erase_mode": one} for one in ("pixel", "rand", "const")})
    counts = set_to("augment.erase_count", read=lambda value: int(read_number(value)))
    return {
        prob: Key(set_to("augment.erase_prob")),
        mode: Key(follow_if_positive(prob, modes)),
        count: Key(follow_if_positive(prob, counts)),
    }


MIX_MODE = choose({mode: {"augment.mix_mode": mode} for mode in ("batch", "pair", "elem")})
MIX_OFF = set_to("augment.mix_off_epoch", read=read_mix_off_epoch)

# Models

TWINS_NAMES = ("svt", "pcpvt", "alt_gvt", "twins")
DROPOUT = set_to("model.drop_rate", read=read_drop_rate)
NO_DROP_BLOCK = accept_only(
    0, None, why="the models drop tokens (model.drop_rate) and paths, no blocks of a feature map"
)

# Data

NAMED_SETS = choose(
    {
        "imagenet": {"data.name": None},
        "cifar10": {"data.name": "cifar10"},
        "cifar100": {"data.name": "cifar100"},
    }
)
ALL_IMAGES = accept_only(-1, None, why="all images are validated with; data.list=FILE names some")
COUNTED = ignore("classes are counted in the data")

# Keys that have no effect here

SINK = ignore("feeds an Ascend or GPU from the graph; no counterpart")
GRAPH = ignore_switch(
    "without effect: PyTorch runs operation by operation; train.compile=true compiles"
)
MODELARTS = accept_only(False, why="there is no ModelArts")
IN_ONE_FOLDER = ignore("a run is one folder, below output.root")
NOTED = ignore_switch("without effect: there is no counterpart")
SAVES = ignore("output.save_every_minutes and output.save_every_updates say when a run is saved")
SCALED = ignore("float16's loss is always scaled dynamically")
FROM_START = accept_only(0, why="`vitrail train --resume RUN` goes on with a run")
