"""MindCV: the keys of config.py and of configs/tnt and configs/twins, each with its rule. No torch."""

from __future__ import annotations

from typing import Any

from vitrail.errors import suggest
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.migrate.rules import (
    Case,
    Key,
    Outcome,
    Project,
    accept_only,
    are_same,
    choose,
    follow_if_positive,
    format_value,
    ignore,
    ignore_unless_as_written,
    merge_switch,
    note_if,
    read_drop_rate,
    read_number,
    read_switch,
    read_text,
    set_model,
    set_to,
)
from vitrail.migrate.shared_rules import (
    COUNTED,
    DROPOUT,
    GRAPH,
    MIX_MODE,
    MIX_OFF,
    MODELARTS,
    NAMED_SETS,
    SAVES,
    SCALED,
    SINK,
    TWINS_NAMES,
    check_processes,
    leave_card_to_driver,
    set_color_jitter,
    set_device,
    set_epoch_images,
    set_global_batch,
    start_from_published,
    start_from_weights,
)

POLICIES = {
    "randaug": "rand",
    "autoaug": "original",
    "autoaugr": "originalr",
    "3a": "3a",
    "augmix": "augmix",
}
"""timm's name of each kind of augmentation policy."""


# Run and saves


def _set_eval_every(value: Any, case: Case) -> Outcome:
    """Set how often is evaluated; a run that does not evaluate here does so once, at its end."""
    if read_switch(value):
        return Outcome({"train.eval_every": int(case.number("val_interval", 1))})
    return Outcome({"train.eval_every": int(case.number("epoch_size"))})


def _set_saves_kept(value: Any, case: Case) -> Outcome:
    """Set how many saves are kept: of the latest or of the best, whichever their program keeps."""
    setting = "output.keep_last"
    if str(case.values.get("ckpt_save_policy")).lower() == "top_k":
        setting = "output.keep_best"
    return Outcome({setting: int(read_number(value))})


# Images


def _set_train_split(value: Any, case: Case) -> Outcome:
    """Set the folder to train on, which the files of Twins have wrong."""
    is_validation = "train_split" in case.written and value == case.values["val_split"]
    if not is_validation:
        return Outcome({"data.train_split": value}, of_training=True)
    usual = MINDCV.keys["train_split"].default
    note = (
        f"the run learns the images that it is validated with; train_split={usual} takes the others"
    )
    return Outcome({"data.train_split": value}, note, "warning", of_training=True)


def _divide_by_255(value: Any) -> tuple[float, ...]:
    """Return means or standard deviations for pixels from 0 to 1."""
    return tuple(read_number(one) / 255 for one in value)


def _read_repeats(value: Any) -> int:
    """Return the augmented copies of each image, which theirs counts as 0 where there is one."""
    return max(int(read_number(value)), 1)


def _read_policy(value: Any) -> str | None:
    """Return an augmentation policy in timm's notation."""
    text = read_text(value)
    if text is None:
        return None
    name, dash, rest = text.partition("-")
    if name not in POLICIES:
        raise ValueError(f"it can begin with {', '.join(POLICIES)}{suggest(name, POLICIES)}")
    return POLICIES[name] + dash + rest


def _set_erase_mode(value: Any, case: Case) -> Outcome:
    """Set what erased rectangles are filled with."""
    if value == "random":
        return Outcome({"augment.erase_mode": "pixel"})
    if are_same(value, 0):
        note = "0 after the normalisation, the mean of the images"
        return Outcome({"augment.erase_mode": "const"}, note)
    raise ValueError("it can be random, noise for every pixel, or 0, the mean of the images")


# Model


def _set_model(value: Any, case: Case) -> Outcome:
    """Accept a TNT or a Twins; in each, MindCV gives one norm an epsilon of its own."""
    if str(value).startswith("tnt"):
        return set_model("tnt", gelu="tanh", final_norm_eps=1e-7)(value, case)
    return set_model("tnt", *TWINS_NAMES, gelu="tanh", embed_norm_eps=1e-7)(value, case)


# Optimizer and schedule


def _set_decay_on(value: Any, case: Case) -> Outcome:
    """Set which parameters decay.

    Their program makes a group of those that are to be exempt, but sets no decay in it, so that it
    inherits the optimizer's.
    """
    is_exempting = read_switch(value)
    if case.as_written and is_exempting:
        return Outcome({"optim.decay_on": "matrices"})
    if case.as_written:
        return Outcome({"optim.decay_on": "all"})
    note = (
        "biases and norms decay too, since the group that is to be exempt inherits the decay; "
        "compat=as_written exempts them"
    )
    return Outcome({"optim.decay_on": "all"}, note, note_if(is_exempting))


def _set_eps(value: Any, case: Case) -> Outcome:
    """Set AdamW's epsilon, which their program does not hand on."""
    is_written = "eps" in case.written
    if case.as_written and is_written:
        return Outcome({"optim.eps": value})
    differs = is_written and read_number(value) != 1e-8
    note = "not handed on to AdamW, which takes 1e-8"
    return Outcome({"optim.eps": 1e-8}, note, note_if(differs))


def _find_curve(case: Case) -> str:
    """Return the curve in force: the key that files write is not the one that the program reads."""
    key = "scheduler"
    if case.as_written and "lr_scheduler" in case.written:
        key = "lr_scheduler"
    return str(case.values[key]).removeprefix("warmup_")


def _set_decay_epochs(value: Any, case: Case) -> Outcome:
    """Set the length of a cosine or the period of steps."""
    curve = _find_curve(case)
    if curve == "step_decay":
        return Outcome({"schedule.decay_epochs": read_number(value)})
    if curve == "exponential_decay":
        return Outcome({"schedule.decay_epochs": 1.0})
    if curve != "cosine_decay":
        return Outcome()
    warmup = case.number("warmup_epochs")
    epochs = case.number("epoch_size")
    is_written = "decay_epochs" in case.written
    if case.as_written and not is_written:
        return Outcome({"schedule.cosine_epochs": None}, "the cosine ends with the run")
    # their cosine has a length of its own, which need not be that of the run
    settings = {"schedule.cosine_epochs": read_number(value)}
    end = warmup + read_number(value)
    cosine = f"a cosine of {format_value(value)} epochs"
    if end == epochs:
        return Outcome(settings)
    if end < epochs:
        note = f"{cosine}: the rate is at min_lr from epoch {end:g} of {epochs:g} on"
    else:
        note = f"{cosine} is cut off at epoch {epochs:g} of {end:g}"
    if is_written:
        return Outcome(settings, note)
    return Outcome(settings, f"{note}; compat=as_written ends it with the run", "note")


def _set_min_lr(value: Any, case: Case) -> Outcome:
    """Set the lowest rate, which only their cosine has."""
    lowest = 0.0
    if _find_curve(case) == "cosine_decay":
        lowest = value
    return Outcome({"schedule.min_lr": lowest})


def _set_warmup_lr(value: Any, case: Case) -> Outcome:
    """Set the rate at which the warm-up begins, which theirs writes as a factor of the peak."""
    return Outcome({"schedule.warmup_lr": read_number(value) * case.number("lr")}, "times lr")


def _read_step(value: Any) -> str:
    """Return when the rate is set anew: once an epoch where theirs is a stair."""
    return "epoch" if read_switch(value) else "update"


_set_curve = choose(
    {
        "cosine_decay": {"schedule.name": "cosine", "schedule.warmup_prefix": True},
        "warmup_cosine_decay": {"schedule.name": "cosine", "schedule.warmup_prefix": True},
        "step_decay": {"schedule.name": "step", "schedule.warmup_prefix": True},
        "exponential_decay": {"schedule.name": "exponential", "schedule.warmup_prefix": True},
        "constant": {"schedule.name": "constant", "schedule.warmup_prefix": True},
    }
)
_set_optimizer = choose(
    {
        "adamw": {"optim.name": "adamw"},
        "sgd": {"optim.name": "sgd"},
        "momentum": {"optim.name": "sgd"},
    }
)
_clip_grad, _clip_value = merge_switch("clip_grad", "optim.clip_norm", "clip_value")
_ema, _ema_decay = merge_switch("ema", "ema.decay", "ema_decay")

MINDCV = Project(
    name="MindCV",
    aliases={"distributed": "distribute"},
    keys={
        "mode": Key(GRAPH, 0),
        "distribute": Key(check_processes, False),
        "num_parallel_workers": Key(set_to("data.workers")),
        "val_while_train": Key(_set_eval_every, False),
        "val_interval": Key(ignore("with val_while_train"), 1),
        "log_interval": Key(set_to("train.log_every"), 100),
        "seed": Key(set_to("train.seed"), 42),
        "dataset": Key(NAMED_SETS, "imagenet"),
        "data_dir": Key(set_to("data.root"), "./"),
        "shuffle": Key(accept_only(True, why="training images are always shuffled"), True),
        "dataset_download": Key(set_to("data.download", read=read_switch), False),
        "num_samples": Key(set_epoch_images, None),
        "batch_size": Key(set_global_batch, 128),
        "drop_remainder": Key(
            accept_only(True, why="an epoch leaves out what fills no batch"), True
        ),
        "val_split": Key(set_to("data.val_split"), "val"),
        "train_split": Key(_set_train_split, "train"),
        "aug_repeats": Key(set_to("augment.repeats", read=_read_repeats), 0),
        "image_resize": Key(set_to("model.image_size"), 224),
        "scale": Key(set_to("augment.scale"), [0.08, 1.0]),
        "ratio": Key(set_to("augment.ratio"), [0.75, 1.333]),
        "hflip": Key(set_to("augment.hflip"), 0.5),
        "vflip": Key(accept_only(0, why="images are mirrored left and right alone"), 0.0),
        "color_jitter": Key(set_color_jitter("auto_augment"), 0.4),
        "auto_augment": Key(set_to("augment.auto_augment", read=_read_policy), None),
        "interpolation": Key(
            set_to("augment.interpolation", "preprocess.interpolation"), "bilinear"
        ),
        "re_prob": Key(set_to("augment.erase_prob"), 0.0),
        "re_value": Key(follow_if_positive("re_prob", _set_erase_mode), 0),
        "re_scale": Key(
            accept_only([0.02, 0.33], why="areas from 0.02 to 1/3 are erased", where="re_prob"),
            [0.02, 0.33],
        ),
        "re_ratio": Key(
            accept_only([0.3, 3.3], why="aspects from 0.3 to 3.3 are erased", where="re_prob"),
            [0.3, 3.3],
        ),
        "re_max_attempts": Key(
            accept_only(10, why="ten rectangles are tried", where="re_prob"), 10
        ),
        "mean": Key(
            set_to("preprocess.mean", read=_divide_by_255), [255 * mean for mean in IMAGENET_MEAN]
        ),
        "std": Key(
            set_to("preprocess.std", read=_divide_by_255), [255 * std for std in IMAGENET_STD]
        ),
        "crop_pct": Key(set_to("preprocess.crop"), 0.875),
        "cutmix": Key(set_to("augment.cutmix"), 0.0),
        "mixup": Key(set_to("augment.mixup"), 0.0),
        "cutmix_prob": Key(set_to("augment.mix_prob"), 1.0),
        "mixup_prob": Key(ignore_unless_as_written(set_to("augment.mix_prob"), executed=1.0)),
        "mixup_mode": Key(ignore_unless_as_written(MIX_MODE, executed="batch")),
        "mixup_off_epoch": Key(ignore_unless_as_written(MIX_OFF, executed=0)),
        "switch_prob": Key(
            ignore_unless_as_written(set_to("augment.mix_switch_prob"), executed=0.5)
        ),
        "model": Key(_set_model, "mobilenet_v2_035_224"),
        "num_classes": Key(COUNTED, None),
        "in_channels": Key(set_to("data.channels"), 3),
        "pretrained": Key(start_from_published("pretrained:mindcv"), False),
        "ckpt_path": Key(start_from_weights, ""),
        "resume_opt": Key(
            accept_only(False, why="`vitrail train --resume RUN` goes on with a run"), False
        ),
        "keep_checkpoint_max": Key(_set_saves_kept),
        "keep_checkpoints_max": Key(ignore_unless_as_written(_set_saves_kept, executed=None)),
        "ckpt_save_dir": Key(set_to("output.root"), "./ckpt"),
        "ckpt_save_interval": Key(SAVES, 1),
        "ckpt_save_policy": Key(ignore("of keep_checkpoint_max"), "latest_k"),
        "epoch_size": Key(set_to("train.epochs"), 90),
        "dataset_sink_mode": Key(SINK, True),
        "amp_level": Key(set_to("train.precision"), "O0"),
        "dynamic_loss_scale": Key(ignore_unless_as_written(SCALED, executed=None), False),
        "loss_scale": Key(SCALED, 1.0),
        "loss_scale_type": Key(SCALED, "fixed"),
        "drop_overflow_update": Key(ignore("updates that overflow are always left out")),
        "gradient_accumulation_steps": Key(
            accept_only(1, why="train.accumulate=N cuts an update into parts"), 1
        ),
        "ema": Key(_ema, False),
        "ema_decay": Key(_ema_decay, 0.9999),
        "clip_grad": Key(_clip_grad, False),
        "clip_value": Key(_clip_value, 15.0),
        "drop_rate": Key(DROPOUT, None),
        "drop_path_rate": Key(set_to("model.drop_path_rate", read=read_drop_rate), None),
        "loss": Key(accept_only("CE", why="training minimises cross-entropy"), "CE"),
        "label_smoothing": Key(set_to("augment.label_smoothing"), 0.0),
        "aux_factor": Key(accept_only(0, why="the models have one head", where="aux_factor"), 0.0),
        "reduction": Key(accept_only("mean", why="the loss is a mean"), "mean"),
        "scheduler": Key(_set_curve, "cosine_decay"),
        "lr_scheduler": Key(ignore_unless_as_written(_set_curve, executed="cosine_decay")),
        "lr_epoch_stair": Key(set_to("schedule.step", read=_read_step), False),
        "lr": Key(set_to("optim.lr"), 0.001),
        "warmup_epochs": Key(set_to("schedule.warmup_epochs"), 3),
        "warmup_factor": Key(_set_warmup_lr, 0.0),
        "min_lr": Key(_set_min_lr, 1e-6),
        "decay_epochs": Key(_set_decay_epochs, 100),
        "decay_rate": Key(set_to("schedule.decay_rate"), 0.9),
        "num_cycles": Key(accept_only(1, why="a cosine falls once"), 1),
        "cycle_decay": Key(accept_only(1, why="a cosine falls once"), 1.0),
        "multi_step_decay_milestones": Key(
            ignore("of multi_step_decay, which is not known here"), [30, 60, 90]
        ),
        "opt": Key(_set_optimizer, "adam"),
        "momentum": Key(set_to("optim.momentum"), 0.9),
        "use_nesterov": Key(set_to("optim.nesterov", read=read_switch), False),
        "weight_decay": Key(set_to("optim.weight_decay"), 1e-6),
        "filter_bias_and_bn": Key(_set_decay_on, True),
        "eps": Key(_set_eps, 1e-10),
        "device_target": Key(set_device),
        "device_id": Key(leave_card_to_driver),
        "enable_modelarts": Key(MODELARTS, False),
        "multi_data_url": Key(ignore("of ModelArts")),
        "data_url": Key(ignore("of ModelArts; data_dir is the folder of images")),
        "ckpt_url": Key(ignore("of ModelArts")),
        "train_url": Key(ignore("of ModelArts")),
    },
)
