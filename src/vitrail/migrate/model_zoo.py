"""The MindSpore model zoo: the keys of its TNT, T2T-ViT and Twins, each with its rule. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import format_choices
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.migrate.rules import (
    Case,
    Key,
    Outcome,
    Project,
    Rule,
    accept_only,
    are_same,
    choose,
    format_value,
    ignore,
    ignore_unless_as_written,
    merge_switch,
    note_if,
    read_drop_rate,
    read_interval,
    read_number,
    read_switch,
    read_text,
    replace_defaults,
    set_model,
    set_only_as_written,
    set_to,
    warn_if,
)
from vitrail.migrate.shared_rules import (
    ALL_IMAGES,
    COUNTED,
    FROM_START,
    GRAPH,
    IN_ONE_FOLDER,
    MIX_MODE,
    MIX_OFF,
    MODELARTS,
    NAMED_SETS,
    NO_DROP_BLOCK,
    NOTED,
    SAVES,
    SCALED,
    SINK,
    TWINS_NAMES,
    check_processes,
    leave_card_to_driver,
    make_erasing_keys,
    set_device,
    set_epoch_images,
    set_global_batch,
    start_from_weights,
)

# Reading values


# Rules


# MindCV: config.py of the project and configs/tnt/*.yaml


# Rules of TNT, and of T2T-ViT and Twins, which grew out of it


def _scale_rate(setting: str) -> Rule:
    """Set a learning rate to what their program makes of it, which depends on the batch."""

    def rule(value: Any, case: Case) -> Outcome:
        rate = read_number(value) * case.rate_factor
        note = ""
        if case.rate_factor != 1:
            note = f"times {case.rate_factor:g}"
        return Outcome({setting: rate}, note)

    return rule


def _set_peak(value: Any, case: Case) -> Outcome:
    """Set the peak rate, with the batch size that it is meant for."""
    base = case.project.lr_base_batch
    if base is None:
        note = "whether this program scales it by the batch is not known; optim.lr_base_batch=512 would"
        return Outcome({"optim.lr": value, "optim.lr_base_batch": None}, note, "note")
    if case.as_written:
        return Outcome({"optim.lr": value, "optim.lr_base_batch": None})
    note = f"all rates are multiplied by images an update / {base}, here {case.batch} / {base}"
    return Outcome({"optim.lr": value, "optim.lr_base_batch": base}, note, "note")


def _set_min_lr(value: Any, case: Case) -> Outcome:
    """Clip a cosine that falls to zero, and the warm-up, as their program does; or end it there, as it reads."""
    lowest = read_number(value) * case.rate_factor
    if case.as_written:
        return Outcome({"schedule.min_lr": lowest, "schedule.clip_to_min_lr": False})
    note = "a cosine to zero, and the warm-up, are clipped here"
    return Outcome({"schedule.min_lr": lowest, "schedule.clip_to_min_lr": True}, note)


def _set_curve(value: Any, case: Case) -> Outcome:
    """Set the curve of the learning rate."""
    gamma = case.number("lr_gamma", 0.97)
    period = case.number("lr_adjust", 30)
    falling = {"schedule.name": "exponential", "schedule.decay_rate": gamma}
    curves = {
        "cosine_lr": {"schedule.name": "cosine", "schedule.warmup_prefix": True},
        "constant_lr": {"schedule.name": "constant"},
        "exp_lr": {**falling, "schedule.decay_epochs": 1.0},
        "multistep_lr": {**falling, "schedule.decay_epochs": period},
    }
    note = "a smooth fall, without a warm-up" if str(value) == "multistep_lr" else ""
    return choose(curves, note)(value, case)


def _set_warmup(value: Any, case: Case) -> Outcome:
    """Set the warm-up, which one of their curves leaves out."""
    if case.values.get("lr_scheduler") == "multistep_lr":
        return Outcome({"schedule.warmup_epochs": 0.0})
    return Outcome({"schedule.warmup_epochs": value})


def _set_optimizer(value: Any, case: Case) -> Outcome:
    """Set the optimizer."""
    optimizers = {
        "adamw": {"optim.name": "adamw"},
        "momentum": {"optim.name": "sgd"},
        "sgd": {"optim.name": "sgd"},
    }
    outcome = choose(optimizers)(value, case)
    if str(value).lower() != "adamw":
        return outcome
    note = "MindSpore's AdamWeightDecay corrects no bias of its moments: its first updates are larger than AdamW's"
    return Outcome(outcome.settings, note, "note")


def _warn_of_lost_state(value: Any, case: Case) -> Outcome:
    """Tell that no run is resumed, where their program would do so."""
    is_lost = not read_switch(value) and read_text(case.values.get("pretrained")) is not None
    note = "weights alone are read: epochs and rates begin anew; `vitrail train --resume RUN` goes on with a run"
    return Outcome(note=note, say=warn_if(is_lost), of_training=True)


def _warn_of_unread_lr(value: Any, case: Case) -> Outcome:
    """Tell whoever wrote `lr` that another key is the learning rate."""
    return Outcome(note="not read: the rate is base_lr", say="warning", of_training=True)


def _set_save_minutes(value: Any, case: Case) -> Outcome:
    """Set how often a run is saved, which theirs turns off by 0."""
    seconds = read_number(value)
    if seconds:
        return Outcome({"output.save_every_minutes": seconds / 60})
    return Outcome(note="off there; here output.save_every_minutes saves what a resume needs")


ZOO_KEYS = {
    "num_classes": Key(COUNTED),
    "auto_augment": Key(set_to("augment.auto_augment", read=read_text)),
    "cutmix": Key(set_to("augment.cutmix")),
    "mixup_prob": Key(set_to("augment.mix_prob")),
    "mixup_mode": Key(MIX_MODE),
    "switch_prob": Key(set_to("augment.mix_switch_prob")),
    "image_size": Key(set_to("model.image_size"), 224),
    "label_smoothing": Key(set_to("augment.label_smoothing"), 0.1),
    "optimizer": Key(_set_optimizer),
    "base_lr": Key(_set_peak),
    "lr": Key(_warn_of_unread_lr),
    "warmup_lr": Key(_scale_rate("schedule.warmup_lr"), 5e-7),
    "warmup_length": Key(_set_warmup, 0),
    "min_lr": Key(_set_min_lr),
    "lr_scheduler": Key(_set_curve),
    "lr_adjust": Key(ignore("of multistep_lr"), 30),
    "lr_gamma": Key(ignore("of multistep_lr and exp_lr"), 0.97),
    "beta": Key(set_to("optim.betas"), [0.9, 0.999]),
    "eps": Key(set_to("optim.eps"), 1e-8),
    "momentum": Key(set_to("optim.momentum"), 0.9),
    "amp_level": Key(set_to("train.precision")),
    "is_dynamic_loss_scale": Key(SCALED, 1),
    "loss_scale": Key(SCALED, 1024),
    "clip_global_norm_value": Key(set_to("optim.clip_norm"), 5.0),
    "accumulation_step": Key(set_to("train.accumulate"), 1),
    "epochs": Key(set_to("train.epochs"), 300),
    "start_epoch": Key(FROM_START, 0),
    "batch_size": Key(set_global_batch, 128),
    "num_parallel_workers": Key(set_to("data.workers")),
    "seed": Key(set_to("train.seed"), 0),
    "device_target": Key(set_device, "GPU"),
    "device_id": Key(leave_card_to_driver, 0),
    "device_num": Key(check_processes, 1),
    "pretrained": Key(start_from_weights, None),
    "exclude_epoch_state": Key(_warn_of_lost_state, True),
    "run_modelarts": Key(MODELARTS, False),
    "train_url": Key(ignore("of ModelArts")),
    "dump_graph": Key(NOTED, False),
    "collect_input_data": Key(NOTED, False),
}
ZOO_ALIASES = {
    "wd": "weight_decay",
    "learning_rate": "lr",
    "workers": "num_parallel_workers",
    "checkpoint": "pretrained",
    "num_devices": "device_num",
    "device_ids": "device_id",
    "device": "device_id",
}
POLICY_FILTER = ignore(
    "the policy resamples with augment.interpolation here; crops are bicubic in their code"
)
ZOO_PUBLISHED = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.25,
    "re_mode": "pixel",
    "re_count": 1,
    "cutmix": 1.0,
    "mixup_prob": 1.0,
    "mixup_mode": "batch",
    "switch_prob": 0.5,
    "lr_scheduler": "cosine_lr",
}
"""Values that the files of TNT and T2T-ViT share, for keys that their programs have no default
for."""
NORMALISATION = {"preprocess.mean": IMAGENET_MEAN, "preprocess.std": IMAGENET_STD}
BICUBIC = {"augment.interpolation": "bicubic", "preprocess.interpolation": "bicubic"}


ZOO_TNT = Project(
    name="the model zoo's TNT",
    aliases=ZOO_ALIASES | {"a": "arch", "mixup": "mix_up"},
    fixed={**NORMALISATION, **BICUBIC, "preprocess.crop": 0.875},
    published=ZOO_PUBLISHED | {"drop_path_rate": 0.1, "base_lr": 0.0005, "min_lr": 0.000006},
    lr_base_batch=512,
    keys=ZOO_KEYS
    | {
        "arch": Key(
            set_model("tnt", gelu="tanh", norm_eps=1e-7, biases="zoo"),
            "ResNet18",
        ),
        "data_url": Key(set_to("data.root"), "./data"),
        "set": Key(accept_only("ImageNet", why="it reads folders of classes"), "ImageNet"),
        "mix_up": Key(set_to("augment.mixup"), 0.0),
        "interpolation": Key(POLICY_FILTER),
        **make_erasing_keys("re_prob", "re_mode", "re_count"),
        "optimizer": Key(_set_optimizer, "sgd"),
        "amp_level": Key(set_to("train.precision"), "O2"),
        "weight_decay": Key(set_to("optim.weight_decay"), 0.05),
        "drop_path_rate": Key(set_to("model.drop_path_rate")),
        "drop_out": Key(set_only_as_written("model.drop_rate")),
        "keep_bn_fp32": Key(ignore("not read by their program; there is no batch norm")),
        "nonlinearity": Key(ignore("not read by their program")),
        "in_channel": Key(set_to("data.channels"), 3),
        "mlp_ratio": Key(accept_only(4, why="model.options.mlp_ratio sets it"), 4.0),
        "graph_mode": Key(GRAPH, 0),
        "keep_checkpoint_max": Key(set_to("output.keep_last")),
        "save_every": Key(SAVES, 2),
        "file_format": Key(ignore("of `vitrail export`"), "MINDIR"),
    },
)


# T2T-ViT


def _ignore_drop_block(value: Any, case: Case) -> Outcome:
    """Ignore a rate that no model here has, and say so where it is asked for."""
    if case.as_written:
        return NO_DROP_BLOCK(value, case)
    is_asked = read_number(value) != 0
    return Outcome(note="not handed to the model by train.py", say=note_if(is_asked))


def _set_log_every(value: Any, case: Case) -> Outcome:
    """Set how often the loss is read: as often as the more frequent of two keys wants it."""
    intervals = [case.number("print_loss_every"), case.number("summary_loss_collect_freq")]
    intervals = [interval for interval in intervals if interval]  # 0 is off
    if not intervals:
        return Outcome(note="off there; here train.log_every says how often")
    note = "the terminal and steps.jsonl have the loss equally often"
    return Outcome({"train.log_every": int(min(intervals))}, note)


def _set_scale(value: Any, case: Case) -> Outcome:
    """Set the smallest crop; the largest is the whole image."""
    return Outcome({"augment.scale": (read_number(value), 1.0)})


def _set_gelu(value: Any, case: Case) -> Outcome:
    """Set the GELU, exact where its approximation is disabled."""
    gelu = "erf" if read_switch(value) else "tanh"
    return Outcome({"model.options.gelu": gelu})


_t2t_clip, _t2t_clip_value = merge_switch("use_clip_grad_norm", "optim.clip_norm", "clip_grad_norm")
_t2t_ema, _t2t_ema_decay = merge_switch("with_ema", "ema.decay", "ema_decay")
T2T = Project(
    name="MindSpore's T2T-ViT",
    aliases=ZOO_ALIASES,
    fixed={**NORMALISATION, **BICUBIC},
    published=ZOO_PUBLISHED
    | {
        "mixup": 0.8,
        "mixup_off_epoch": 0,
        "label_smoothing": 0.1,
        "min_crop": 0.08,
        "crop_pct": 0.9,
        "optimizer": "adamw",
        "beta": [0.9, 0.999],
        "eps": 1e-8,
        "base_lr": 0.001,
        "min_lr": 1e-5,
        "warmup_length": 2,
        "warmup_lr": 7e-6,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "epochs": 300,
        "batch_size": 100,
        "use_clip_grad_norm": True,
        "clip_grad_norm": 1.0,
        "with_ema": False,
        "ema_decay": 0.9999,
        "seed": 0,
        "amp_level": "O0",
        "image_size": 224,
        "drop": 0.0,
        "drop_path": 0.1,
        "disable_approximate_gelu": False,
    },
    keys={key: Key(rule.rule) for key, rule in ZOO_KEYS.items()}  # every option stands in its file
    | {
        "arch": Key(set_model("t2t", norm_eps=1e-7), None),
        "dataset": Key(NAMED_SETS),
        "data_url": Key(set_to("data.root")),
        "train_dir": Key(set_to("data.train_split")),
        "val_dir": Key(set_to("data.val_split")),
        "train_num_samples": Key(set_epoch_images),
        "val_num_samples": Key(ALL_IMAGES),
        "aa_interpolation": Key(POLICY_FILTER),
        **make_erasing_keys("re_prob", "re_mode", "re_count"),
        "mixup": Key(set_to("augment.mixup")),
        "mixup_off_epoch": Key(MIX_OFF),
        "min_crop": Key(_set_scale),
        "crop_pct": Key(set_to("preprocess.crop")),
        "weight_decay": Key(set_to("optim.weight_decay")),
        "use_clip_grad_norm": Key(_t2t_clip),
        "clip_grad_norm": Key(_t2t_clip_value),
        "with_ema": Key(_t2t_ema),
        "ema_decay": Key(_t2t_ema_decay),
        "pynative_mode": Key(GRAPH),
        "dataset_sink_mode": Key(SINK),
        "file_format": Key(ignore("of `vitrail export`")),
        "drop": Key(set_only_as_written("model.drop_rate")),
        "drop_block": Key(_ignore_drop_block),
        "drop_path": Key(set_only_as_written("model.drop_path_rate")),
        "disable_approximate_gelu": Key(_set_gelu),
        "ckpt_root_dir": Key(set_to("output.root")),
        "best_ckpt_root_dir": Key(IN_ONE_FOLDER),
        "summary_root_dir": Key(IN_ONE_FOLDER),
        "logs_root_dir": Key(IN_ONE_FOLDER),
        "ckpt_keep_num": Key(set_to("output.keep_last")),
        "best_ckpt_num": Key(set_to("output.keep_best")),
        "ckpt_save_every_step": Key(set_to("output.save_every_updates", read=read_interval)),
        "ckpt_save_every_seconds": Key(_set_save_minutes),
        "print_loss_every": Key(_set_log_every),
        "summary_loss_collect_freq": Key(_set_log_every),
        "model_postfix": Key(ignore("runs are numbered; output.name=NAME names one")),
    },
)


# Twins

TWINS_PARAMS = ("model", "num_classes", "drop_rate", "drop_path_rate", "img_size", "device")
"""Keys that may stand in `params`."""


def _set_folders(value: Any, case: Case) -> Outcome:
    """Set one root and two names for the two paths of theirs."""
    train = read_text(case.values.get("ds_train"))
    val = read_text(case.values.get("ds_val"))
    if val is None:
        path = Path(train or "")
        return Outcome({"data.root": str(path.parent), "data.train_split": path.name})
    if train is None:
        path = Path(val)
        return Outcome({"data.root": str(path.parent), "data.val_split": path.name})
    try:
        root = os.path.commonpath([Path(train).parent, Path(val).parent])
    except ValueError:
        raise ValueError("ds_train and ds_val must both be absolute paths, or both not") from None
    root = root or "."
    settings = {
        "data.root": root,
        "data.train_split": os.path.relpath(train, root),
        "data.val_split": os.path.relpath(val, root),
    }
    return Outcome(settings)


def _read_params(params: Any) -> dict[str, Any]:
    """Return the arguments of the network, which stand in `params` as JSON or as a mapping; nothing where it is empty.

    Raises:
        ValueError: It is neither.
    """
    arguments = params
    if isinstance(params, str | None):
        try:
            arguments = json.loads(params or "{}")
        except ValueError as error:
            raise ValueError(f"it must be JSON ({error})") from None
    if not isinstance(arguments, Mapping):
        raise ValueError(
            'it must be a mapping, such as {"model": "alt_gvt_small", "drop_path_rate": 0.2}'
        )
    return dict(arguments)


def _set_params(value: Any, case: Case) -> Outcome:
    """Set the arguments that their program hands to the network; the rest of its file does not reach it."""
    params = _read_params(value)
    for key in params:
        if key not in TWINS_PARAMS:
            raise ValueError(
                f"{key} is unknown{format_choices(str(key), TWINS_PARAMS, 'known are')}"
            )
    if not params:
        return Outcome(
            note="their program does not run without; drop and drop_path are taken in its place"
        )
    settings = {
        "model.drop_rate": read_drop_rate(params.get("drop_rate")),
        "model.drop_path_rate": read_drop_rate(params.get("drop_path_rate")),
    }
    size = params.get("img_size")
    if size is not None:
        image_size = case.values.get("image_size")
        if "image_size" in case.written and not are_same(size, image_size):
            raise ValueError(
                f"img_size is {size}, but images have image_size {image_size}; write one"
            )
        settings["model.image_size"] = size
    built = case.values.get("model")
    if "model" in params and _normalise_twins(params["model"]) != _normalise_twins(built):
        note = f"its model is not read: {format_value(built)} is built"
        return Outcome(settings, note, "warning")
    return Outcome(settings, "what the network is built with")


def _normalise_twins(model: Any) -> tuple[bool, str]:
    """Return what the names of one network have in common: svt_s, svt_small and alt_gvt_small."""
    words = str(model).lower().removesuffix("_v0").split("_")
    return "pcpvt" in words, words[-1][:1]


def _set_without_params(setting: str) -> Rule:
    """Set a rate of the file where `params`, from which their program takes it, is not written."""

    def rule(value: Any, case: Case) -> Outcome:
        try:
            params = _read_params(case.values.get("params"))
        except ValueError:  # said of params itself
            params = {}
        if not params:
            return Outcome({setting: value})
        taken = read_drop_rate(params.get(setting.removeprefix("model.")))
        note = f"without effect: params has it, {format_value(taken)}"
        return Outcome(note=note, say=note_if(not are_same(value, taken)))

    return rule


def _refuse_search(value: Any, case: Case) -> Outcome:
    """Refuse a space of values where nothing is searched."""
    raise ValueError("a space to search; search it by `vitrail tune` with this file, or drop it")


def _note_unread_switch(value: Any, case: Case) -> Outcome:
    """Tell that only one of two keys for the probability of CutMix is read."""
    differs = not are_same(value, case.values.get("switch_prob"))
    return Outcome(note="switch_prob is what is read", say=note_if(differs))


TWINS = Project(
    name="MindSpore's Twins",
    aliases=ZOO_ALIASES
    | {"arch": "model", "re_prob": "reprob", "re_mode": "remode", "re_count": "recount"},
    fixed={**NORMALISATION, **BICUBIC, "preprocess.crop": 0.875, "optim.decay_on": "matrices"},
    file_wins=True,
    keys=ZOO_KEYS
    | {
        "model": Key(set_model(*TWINS_NAMES, gelu="tanh", embed_norm_eps=1e-7), None),
        "params": Key(_set_params),
        "ds_train": Key(_set_folders),
        "ds_val": Key(_set_folders),
        "batch_size": Key(set_global_batch, 1),
        "num_parallel_workers": Key(set_to("data.workers")),
        "interpolation": Key(POLICY_FILTER, "bilinear"),
        "auto_augment": Key(set_to("augment.auto_augment", read=read_text), "rand-m9-mstd0.5-inc1"),
        "switch_prob": Key(set_to("augment.mix_switch_prob"), 0.5),
        "mixup_switch_prob": Key(_note_unread_switch, 0.5),
        "optimizer": Key(_set_optimizer, "adamw"),
        "lr_scheduler": Key(_set_curve, "cosine_lr"),
        "warmup_length": Key(_set_warmup, 20),
        "base_lr": Key(_set_peak, 1e-4),
        "warmup_lr": Key(_scale_rate("schedule.warmup_lr"), 1e-6),
        "min_lr": Key(_set_min_lr, 1e-5),
        "amp_level": Key(set_to("train.precision"), "O0"),
        "pynative_mode": Key(GRAPH, 0),
        "drop": Key(_set_without_params("model.drop_rate"), 0.0),
        "drop_path": Key(_set_without_params("model.drop_path_rate"), 0.1),
        "weight_decay": Key(set_to("optim.weight_decay"), 0.05),
        **replace_defaults(
            make_erasing_keys("reprob", "remode", "recount"), reprob=0.25, remode="pixel", recount=1
        ),
        "resplit": Key(NOTED, False),
        "mixup": Key(set_to("augment.mixup"), 0.8),
        "cutmix": Key(set_to("augment.cutmix"), 1.0),
        "cutmix_minmax": Key(
            ignore_unless_as_written(set_to("augment.cutmix_minmax"), executed=None), None
        ),
        "mixup_prob": Key(set_to("augment.mix_prob"), 1.0),
        "mixup_mode": Key(MIX_MODE, "batch"),
        "label_smoothing": Key(set_to("augment.label_smoothing"), 0.5),
        "dir_ckpt": Key(set_to("output.root")),
        "dir_best_ckpt": Key(IN_ONE_FOLDER),
        "dir_summary": Key(IN_ONE_FOLDER),
        "save_ckpt_every_step": Key(set_to("output.save_every_updates", read=read_interval), 0),
        "save_ckpt_every_sec": Key(_set_save_minutes, 1800),
        "save_ckpt_keep": Key(set_to("output.keep_last"), 20),
        "seed": Key(set_to("train.seed"), 1),
        "exclude_epoch_state": Key(_warn_of_lost_state, False),
        "parameters": Key(_refuse_search),
        "export_format": Key(ignore("of `vitrail export`"), "ONNX"),
        "file_format": Key(ignore("of `vitrail export`")),
        "src": Key(ignore("of `vitrail convert`")),
        "dst": Key(ignore("of `vitrail convert`")),
    },
)
