"""What the keys of other projects mean here, and what their programs do with them: one table a project. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from vitrail.errors import among, closest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Say = Literal["", "note", "warning"]
"""Whether a run says a note: it differs from what the file reads as, or something is not to be had."""


@dataclass(frozen=True)
class Case:
    """What a rule may look at beside the value of its own key."""

    project: Project
    values: Mapping[str, Any]
    written: frozenset[str]
    processes: int
    as_written: bool

    def number(self, key: str, absent: float = 0.0) -> float:
        """Return the value of another key as a number."""
        value = self.values.get(key)
        try:
            return absent if value is None else number(value)
        except ValueError as error:
            raise ValueError(f"{key} is {shown(value)}; {error}") from None

    @cached_property
    def batch(self) -> int:
        """Images for one update, over all processes and accumulated parts."""
        return int(self.number("batch_size", 1)) * self.processes * int(self.number("accumulation_step", 1))

    @property
    def rate_factor(self) -> float:
        """What the program multiplies all its learning rates with."""
        base = self.project.lr_base_batch
        return 1.0 if base is None or self.as_written else self.batch / base


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of a value; a rule that refuses it raises a ValueError instead."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    say: Say = ""
    of_training: bool = False
    """Whether the note means nothing where nothing is trained."""


Rule = Callable[[Any, Case], Outcome]
NO_DEFAULT = object()


@dataclass(frozen=True)
class Key:
    """How a key is read, and what their program takes where it is not written."""

    rule: Rule
    default: Any = NO_DEFAULT


@dataclass(frozen=True)
class Project:
    """The keys that one project's programs know."""

    name: str
    keys: Mapping[str, Key]
    models: tuple[str, ...] = ()
    """Beginnings of the names of its models, where flags alone have to tell whose they are."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of keys: abbreviated flags, and those of shell scripts and of READMEs."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Our settings for what stands in their code."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """What its own file has for keys without a default; taken, and said, where one is not written."""
    file_wins: bool = False
    """Their program lets the file overrule the command line."""
    lr_base_batch: int | None = None
    """Their program multiplies learning rates by the global batch over this."""


# Reading values


def number(value: Any) -> float:
    """Return a number, which YAML reads as text where it is written 1e-8."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError("it must be a number")


def truth(value: Any) -> bool:
    """Return whether a switch is on, written in any of the ways that their parsers take."""
    text = str(value).lower()
    if text in ("true", "yes", "1", "1.0"):
        return True
    if text in ("false", "no", "0", "0.0", "none", ""):
        return False
    raise ValueError("it must be true or false")


def text_or_none(value: Any) -> str | None:
    """Return text, or None where nothing is written."""
    return None if value in (None, "") else str(value)


def same(value: Any, other: Any) -> bool:
    """Tell whether two values are the same number, switch or word."""
    for read in (number, truth):
        try:
            return read(value) == read(other)
        except ValueError:
            continue
    return str(value) == str(other)


def shown(value: Any) -> str:
    """Return a value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


# Rules


def to(*settings: str, read: Callable[[Any], Any] = lambda value: value, note: str = "") -> Rule:
    """Set our settings to the value, or to what `read` makes of it."""
    return lambda value, case: Outcome(dict.fromkeys(settings, read(value)), note)


def nothing(note: str) -> Rule:
    """Take any value, which has no effect here."""
    return lambda value, case: Outcome(note=note)


def idle(note: str) -> Rule:
    """Take a switch that has no effect here, and say so where it is on."""
    return lambda value, case: Outcome(note=note, say="note" if truth(value) else "")


def unheard(setting: str) -> Rule:
    """Leave out a rate that their program does not build the model with, but take it where that is asked for."""

    def rule(value: Any, case: Case) -> Outcome:
        if case.as_written:
            return Outcome({setting: value})
        return Outcome({setting: 0.0}, "not handed to the model by train.py", "note" if number(value) != 0 else "")

    return rule


def where_positive(amount: str, rule: Rule) -> Rule:
    """Follow a rule only where another key, which says how often, is above zero."""

    def judged(value: Any, case: Case) -> Outcome:
        return rule(value, case) if case.number(amount) else Outcome(note=f"without effect at {amount} 0")

    return judged


def only(*allowed: Any, why: str, where: str | None = None) -> Rule:
    """Take the values for which it is so here anyway; with `where`, take any while that other key is zero."""

    def rule(value: Any, case: Case) -> Outcome:
        if any(same(value, one) for one in allowed) or (where is not None and case.number(where) == 0):
            return Outcome(note="so it is here")
        raise ValueError(f"here it can only be {' or '.join(map(shown, allowed))}: {why}")

    return rule


def unread(rule: Rule, executed: Any) -> Rule:
    """Leave out a key that their program does not read, but take it as it is written where that is asked for."""

    def judged(value: Any, case: Case) -> Outcome:
        if case.as_written:
            return rule(value, case)
        differs = executed is not None and not same(value, executed)
        instead = f", which takes {shown(executed)}" if executed is not None else ""
        return Outcome(note=f"not read by {case.project.name}{instead}", say="note" if differs else "")

    return judged


def choice(settings: Mapping[Any, Mapping[str, Any]], note: str = "") -> Rule:
    """Set what belongs to one of a few words."""

    def rule(value: Any, case: Case) -> Outcome:
        word = str(value).lower()
        if word not in settings:
            raise ValueError(f"it can be {', '.join(map(str, settings))}{closest(word, settings)}")
        return Outcome(settings[word], note)

    return rule


def network(*prefixes: str, **options: Any) -> Rule:
    """Take a model of one family, with what its arithmetic is in their program."""

    def rule(value: Any, case: Case) -> Outcome:
        if value is None:
            raise ValueError(f"name a model that begins with {' or '.join(prefixes)}")
        if not str(value).startswith(prefixes):
            raise ValueError(f"of {case.project.name}, models are known here that begin with {' or '.join(prefixes)}")
        settings = {"model.name": str(value), **{f"model.options.{key}": option for key, option in options.items()}}
        return Outcome(settings)

    return rule


def switched(switch: str, setting: str, amount: str) -> tuple[Rule, Rule]:
    """Return the rules of a switch and of its amount, which here are one setting."""

    def rule(value: Any, case: Case) -> Outcome:
        if not truth(value):
            return Outcome({setting: None})
        if case.values.get(amount) is None:
            raise ValueError(f"{amount} is not written")
        return Outcome({setting: case.values[amount]})

    return rule, nothing(f"with {switch}")


def weights(value: Any, case: Case) -> Outcome:
    """Begin with the weights of a file; nothing else is read from it."""
    path = text_or_none(value)
    return Outcome({"model.weights": path}, "weights alone: epochs and rates begin anew" if path else "")


def downloaded(value: Any, case: Case) -> Outcome:
    """Refuse to fetch weights."""
    if truth(value):
        raise ValueError("nothing is downloaded here; fetch the file and name it as model.weights=FILE")
    return Outcome()


def device(value: Any, case: Case) -> Outcome:
    """Choose between the CPU and what there is."""
    if str(value).lower() == "cpu":
        return Outcome({"train.device": "cpu"})
    lacking = str(value).lower() == "ascend" and "device_target" in case.written
    note = "there is no Ascend here; an accelerator that torch finds is taken" if lacking else ""
    return Outcome({"train.device": "auto"}, note, "warning" if lacking else "")


def one_device(value: Any, case: Case) -> Outcome:
    """Leave the choice of a card to the driver."""
    chosen = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    asked = chosen not in ("0", "None") and case.processes == 1
    note = f"CUDA_VISIBLE_DEVICES={chosen} chooses the card" if asked else "CUDA_VISIBLE_DEVICES chooses a card"
    return Outcome(note=note, say="note" if asked else "")


def several(value: Any, case: Case) -> Outcome:
    """Say how several processes are started, where they are asked for and there is one."""
    count = None if isinstance(value, bool) or str(value).lower() in ("true", "false") else int(number(value))
    wanted = truth(value) if count is None else count > 1
    if wanted and case.processes == 1:
        note = f"this is one process; start several with: torchrun --nproc-per-node {count or 8} -m vitrail train ..."
        return Outcome(note=note, say="warning", of_training=True)
    if count is not None and 1 < count != case.processes:
        note = f"{case.processes} processes were started, and they count"
        return Outcome(note=note, say="warning", of_training=True)
    return Outcome(note="torchrun starts processes")


def per_process(value: Any, case: Case) -> Outcome:
    """Count the batch over all processes, as ours does."""
    return Outcome(
        {"train.batch_size": case.batch}, f"theirs counts one process, ours all: here {case.processes}, set by torchrun"
    )


def epoch_images(value: Any, case: Case) -> Outcome:
    """Set how many images an epoch draws, which theirs counts for one process."""
    if text_or_none(value) is None or number(value) == -1:
        return Outcome({"train.epoch_images": None})
    images = int(number(value)) * case.processes
    return Outcome({"train.epoch_images": images}, "drawn anew for each epoch, and counted over all processes", "note")


def jitter(policy: str) -> Rule:
    """Vary colours where no policy does."""

    def rule(value: Any, case: Case) -> Outcome:
        if text_or_none(case.values.get(policy)) is not None:
            return Outcome(note=f"not applied beside {policy}")
        return Outcome({"augment.color_jitter": value or None})

    return rule


NAMED_SETS = choice(
    {"imagenet": {"data.name": None}, "cifar10": {"data.name": "cifar10"}, "cifar100": {"data.name": "cifar100"}}
)
DROPOUT = to("model.drop_rate", read=lambda value: value or 0.0)
NO_DROP_BLOCK = only(0, None, why="the models drop tokens (model.drop_rate) and paths, no blocks of a feature map")
MIX_MODE = choice({mode: {"augment.mix_mode": mode} for mode in ("batch", "pair", "elem")})
MIX_OFF = to("augment.mix_off_epoch", read=lambda value: int(number(value or 0)) or None)
SINK = nothing("feeds an Ascend or GPU from the graph; no counterpart")
GRAPH = idle("without effect: PyTorch runs operation by operation; train.compile=true compiles")
MODELARTS = only(False, why="there is no ModelArts")
ALL_IMAGES = only(-1, None, why="all images are validated with; data.list=FILE names some")
TWINS_NAMES = ("svt", "pcpvt", "alt_gvt", "twins")
IN_ONE_FOLDER = nothing("a run is one folder, below output.root")
NOTED = idle("without effect: there is no counterpart")
SAVES = nothing("output.save_every_minutes and output.save_every_updates say when a run is saved")
COUNTED = nothing("classes are counted in the data")
FROM_START = only(0, why="`vitrail train --resume RUN` goes on with a run")


# MindCV: config.py of the project and configs/tnt/*.yaml


def _mindcv_policy(value: Any) -> str | None:
    """Return a policy under timm's name."""
    names = {"randaug": "rand", "autoaug": "original", "autoaugr": "originalr", "3a": "3a", "augmix": "augmix"}
    if (text := text_or_none(value)) is None:
        return None
    name, dash, rest = text.partition("-")
    if name not in names:
        raise ValueError(f"it can begin with {', '.join(names)}{closest(name, names)}")
    return names[name] + dash + rest


def _mindcv_scheduler(case: Case) -> str:
    """Return the curve in force: the key that files write is not the one that the program reads."""
    key = "lr_scheduler" if case.as_written and "lr_scheduler" in case.written else "scheduler"
    return str(case.values[key]).removeprefix("warmup_")


_mindcv_curve = choice(
    {
        "cosine_decay": {"schedule.name": "cosine", "schedule.warmup_prefix": True},
        "warmup_cosine_decay": {"schedule.name": "cosine", "schedule.warmup_prefix": True},
        "step_decay": {"schedule.name": "step", "schedule.warmup_prefix": True},
        "exponential_decay": {"schedule.name": "exponential", "schedule.warmup_prefix": True},
        "constant": {"schedule.name": "constant", "schedule.warmup_prefix": True},
    }
)


def _mindcv_decay_epochs(value: Any, case: Case) -> Outcome:
    """Set the length of a cosine or the period of steps."""
    curve = _mindcv_scheduler(case)
    if curve in ("exponential_decay", "step_decay"):
        return Outcome({"schedule.decay_epochs": number(value) if curve == "step_decay" else 1.0})
    if curve != "cosine_decay":
        return Outcome()
    warmup, epochs = case.number("warmup_epochs"), case.number("epoch_size")
    if "decay_epochs" not in case.written and case.as_written:
        return Outcome({"schedule.cosine_epochs": None}, "the cosine ends with the run")
    end, note = warmup + number(value), ""
    if end < epochs:
        note = f"a cosine of {shown(value)} epochs: the rate is at min_lr from epoch {end:g} of {epochs:g} on"
    elif end > epochs:
        note = f"a cosine of {shown(value)} epochs is cut off at epoch {epochs:g} of {end:g}"
    if note and "decay_epochs" not in case.written:
        return Outcome(
            {"schedule.cosine_epochs": number(value)}, f"{note}; compat=as_written ends it with the run", "note"
        )
    return Outcome({"schedule.cosine_epochs": number(value)}, note)


def _mindcv_min_lr(value: Any, case: Case) -> Outcome:
    """Set the floor, which their cosine alone has."""
    return Outcome({"schedule.min_lr": value if _mindcv_scheduler(case) == "cosine_decay" else 0.0})


def _mindcv_filter(value: Any, case: Case) -> Outcome:
    """Choose what decays: the group that is to be exempt sets no decay, so in their program it has the optimizer's."""
    if case.as_written:
        return Outcome({"optim.decay_on": "matrices" if truth(value) else "all"})
    note = "biases and norms decay too, since the group that is to be exempt inherits the decay; compat=as_written"
    return Outcome({"optim.decay_on": "all"}, f"{note} exempts them", "note" if truth(value) else "")


def _mindcv_eps(value: Any, case: Case) -> Outcome:
    """Set AdamW's epsilon, which their program does not hand on."""
    if case.as_written and "eps" in case.written:
        return Outcome({"optim.eps": value})
    differs = "eps" in case.written and number(value) != 1e-8
    return Outcome({"optim.eps": 1e-8}, "not handed on to AdamW, which takes 1e-8", "note" if differs else "")


def _of_255(value: Any) -> tuple[float, ...]:
    """Return means or deviations for pixels from 0 to 1."""
    return tuple(number(one) / 255 for one in value)


def _mindcv_network(value: Any, case: Case) -> Outcome:
    """Take a TNT or a Twins, which had no final norm of its own epsilon."""
    if str(value).startswith("tnt"):
        return network("tnt", gelu="tanh", final_norm_eps=1e-7)(value, case)
    return network("tnt", *TWINS_NAMES, gelu="tanh", embed_norm_eps=1e-7)(value, case)


def _mindcv_train_split(value: Any, case: Case) -> Outcome:
    """Set the folder to train on, which the files of Twins have wrong."""
    alike = "train_split" in case.written and value == case.values["val_split"]
    note = f"the run learns the images that it is validated with; train_split={MINDCV.keys['train_split'].default}"
    told = f"{note} takes the others" if alike else ""
    return Outcome({"data.train_split": value}, told, "warning" if alike else "", of_training=True)


def _mindcv_re_value(value: Any, case: Case) -> Outcome:
    """Set what rectangles are filled with."""
    if value == "random":
        return Outcome({"augment.erase_mode": "pixel"})
    if same(value, 0):
        return Outcome({"augment.erase_mode": "const"}, "0 after the normalisation, the mean of the images")
    raise ValueError("it can be random, noise for every pixel, or 0, the mean of the images")


def _mindcv_keep(value: Any, case: Case) -> Outcome:
    """Set how many of what their program keeps are kept: the latest or the best."""
    best = str(case.values.get("ckpt_save_policy")).lower() == "top_k"
    return Outcome({"output.keep_best" if best else "output.keep_last": int(number(value))})


_mindcv_clip, _mindcv_clip_value = switched("clip_grad", "optim.clip_norm", "clip_value")
_mindcv_ema, _mindcv_ema_decay = switched("ema", "ema.decay", "ema_decay")
MINDCV = Project(
    name="MindCV",
    aliases={"distributed": "distribute"},
    keys={
        "mode": Key(GRAPH, 0),
        "distribute": Key(several, False),
        "num_parallel_workers": Key(to("data.workers")),
        "val_while_train": Key(
            lambda value, case: Outcome(
                {"train.eval_every": int(case.number("val_interval", 1) if truth(value) else case.number("epoch_size"))}
            ),
            False,
        ),
        "val_interval": Key(nothing("with val_while_train"), 1),
        "log_interval": Key(to("train.log_every"), 100),
        "seed": Key(to("train.seed"), 42),
        "dataset": Key(NAMED_SETS, "imagenet"),
        "data_dir": Key(to("data.root"), "./"),
        "shuffle": Key(only(True, why="training images are always shuffled"), True),
        "dataset_download": Key(to("data.download", read=truth), False),
        "num_samples": Key(epoch_images, None),
        "batch_size": Key(per_process, 128),
        "drop_remainder": Key(only(True, why="an epoch leaves out what fills no batch"), True),
        "val_split": Key(to("data.val_split"), "val"),
        "train_split": Key(_mindcv_train_split, "train"),
        "aug_repeats": Key(to("augment.repeats", read=lambda value: max(int(number(value)), 1)), 0),
        "image_resize": Key(to("model.image_size"), 224),
        "scale": Key(to("augment.scale"), [0.08, 1.0]),
        "ratio": Key(to("augment.ratio"), [0.75, 1.333]),
        "hflip": Key(to("augment.hflip"), 0.5),
        "vflip": Key(only(0, why="images are mirrored left and right alone"), 0.0),
        "color_jitter": Key(jitter("auto_augment"), 0.4),
        "auto_augment": Key(to("augment.auto_augment", read=_mindcv_policy), None),
        "interpolation": Key(to("augment.interpolation", "preprocess.interpolation"), "bilinear"),
        "re_prob": Key(to("augment.erase_prob"), 0.0),
        "re_value": Key(where_positive("re_prob", _mindcv_re_value), 0),
        "re_scale": Key(only([0.02, 0.33], why="areas from 0.02 to 1/3 are erased", where="re_prob"), [0.02, 0.33]),
        "re_ratio": Key(only([0.3, 3.3], why="aspects from 0.3 to 3.3 are erased", where="re_prob"), [0.3, 3.3]),
        "re_max_attempts": Key(only(10, why="ten rectangles are tried", where="re_prob"), 10),
        "mean": Key(to("preprocess.mean", read=_of_255), [255 * mean for mean in IMAGENET_MEAN]),
        "std": Key(to("preprocess.std", read=_of_255), [255 * std for std in IMAGENET_STD]),
        "crop_pct": Key(to("preprocess.crop"), 0.875),
        "cutmix": Key(to("augment.cutmix"), 0.0),
        "mixup": Key(to("augment.mixup"), 0.0),
        "cutmix_prob": Key(to("augment.mix_prob"), 1.0),
        "mixup_prob": Key(unread(to("augment.mix_prob"), executed=1.0)),
        "mixup_mode": Key(unread(MIX_MODE, executed="batch")),
        "mixup_off_epoch": Key(unread(MIX_OFF, executed=0)),
        "switch_prob": Key(unread(to("augment.mix_switch_prob"), executed=0.5)),
        "model": Key(_mindcv_network, "mobilenet_v2_035_224"),
        "num_classes": Key(COUNTED, None),
        "in_channels": Key(to("data.channels"), 3),
        "pretrained": Key(downloaded, False),
        "ckpt_path": Key(weights, ""),
        "resume_opt": Key(only(False, why="`vitrail train --resume RUN` goes on with a run"), False),
        "keep_checkpoint_max": Key(_mindcv_keep),
        "keep_checkpoints_max": Key(unread(_mindcv_keep, executed=None)),
        "ckpt_save_dir": Key(to("output.root"), "./ckpt"),
        "ckpt_save_interval": Key(nothing("output.save_every_minutes and output.save_every_updates say when"), 1),
        "ckpt_save_policy": Key(nothing("of keep_checkpoint_max"), "latest_k"),
        "epoch_size": Key(to("train.epochs"), 90),
        "dataset_sink_mode": Key(SINK, True),
        "amp_level": Key(to("train.precision"), "O0"),
        "dynamic_loss_scale": Key(unread(nothing("float16's loss is always scaled dynamically"), executed=None), False),
        "loss_scale": Key(nothing("float16's loss is always scaled dynamically"), 1.0),
        "loss_scale_type": Key(nothing("float16's loss is always scaled dynamically"), "fixed"),
        "drop_overflow_update": Key(nothing("updates that overflow are always left out")),
        "gradient_accumulation_steps": Key(only(1, why="train.accumulate=N cuts an update into parts"), 1),
        "ema": Key(_mindcv_ema, False),
        "ema_decay": Key(_mindcv_ema_decay, 0.9999),
        "clip_grad": Key(_mindcv_clip, False),
        "clip_value": Key(_mindcv_clip_value, 15.0),
        "drop_rate": Key(DROPOUT, None),
        "drop_path_rate": Key(to("model.drop_path_rate", read=lambda value: value or 0.0), None),
        "loss": Key(only("CE", why="training minimises cross-entropy"), "CE"),
        "label_smoothing": Key(to("augment.label_smoothing"), 0.0),
        "aux_factor": Key(only(0, why="the models have one head", where="aux_factor"), 0.0),
        "reduction": Key(only("mean", why="the loss is a mean"), "mean"),
        "scheduler": Key(_mindcv_curve, "cosine_decay"),
        "lr_scheduler": Key(unread(_mindcv_curve, executed="cosine_decay")),
        "lr_epoch_stair": Key(to("schedule.step", read=lambda value: "epoch" if truth(value) else "update"), False),
        "lr": Key(to("optim.lr"), 0.001),
        "warmup_epochs": Key(to("schedule.warmup_epochs"), 3),
        "warmup_factor": Key(
            lambda value, case: Outcome({"schedule.warmup_lr": number(value) * case.number("lr")}, "times lr"), 0.0
        ),
        "min_lr": Key(_mindcv_min_lr, 1e-6),
        "decay_epochs": Key(_mindcv_decay_epochs, 100),
        "decay_rate": Key(to("schedule.decay_rate"), 0.9),
        "num_cycles": Key(only(1, why="a cosine falls once"), 1),
        "cycle_decay": Key(only(1, why="a cosine falls once"), 1.0),
        "multi_step_decay_milestones": Key(nothing("of multi_step_decay, which is not known here"), [30, 60, 90]),
        "opt": Key(
            choice(
                {
                    "adamw": {"optim.name": "adamw"},
                    "sgd": {"optim.name": "sgd"},
                    "momentum": {"optim.name": "sgd"},
                }
            ),
            "adam",
        ),
        "momentum": Key(to("optim.momentum"), 0.9),
        "use_nesterov": Key(to("optim.nesterov", read=truth), False),
        "weight_decay": Key(to("optim.weight_decay"), 1e-6),
        "filter_bias_and_bn": Key(_mindcv_filter, True),
        "eps": Key(_mindcv_eps, 1e-10),
        "device_target": Key(device),
        "device_id": Key(one_device),
        "enable_modelarts": Key(MODELARTS, False),
        "multi_data_url": Key(nothing("of ModelArts")),
        "data_url": Key(nothing("of ModelArts; data_dir is the folder of images")),
        "ckpt_url": Key(nothing("of ModelArts")),
        "train_url": Key(nothing("of ModelArts")),
    },
)


# The model zoo's TNT, and T2T-ViT and Twins, which grew out of it


def _zoo_rate(setting: str) -> Rule:
    """Set a rate to what their program makes of it."""
    return lambda value, case: Outcome(
        {setting: number(value) * case.rate_factor}, f"times {case.rate_factor:g}" if case.rate_factor != 1 else ""
    )


def _zoo_base_lr(value: Any, case: Case) -> Outcome:
    """Set the peak, with the batch it counts for."""
    base = case.project.lr_base_batch
    if base is None:
        note = "whether this program scales it by the batch is not known; optim.lr_base_batch=512 would"
        return Outcome({"optim.lr": value, "optim.lr_base_batch": None}, note, "note")
    if case.as_written:
        return Outcome({"optim.lr": value, "optim.lr_base_batch": None})
    note = f"all rates are multiplied by images an update / {base}, here {case.batch} / {base}"
    return Outcome({"optim.lr": value, "optim.lr_base_batch": base}, note, "note")


def _zoo_min_lr(value: Any, case: Case) -> Outcome:
    """Clip a cosine that falls to zero, and the warm-up, as their program does; or end it there, as it reads."""
    note = "a cosine to zero, and the warm-up, are clipped here" if not case.as_written else ""
    settings = {"schedule.min_lr": number(value) * case.rate_factor, "schedule.clip_to_min_lr": not case.as_written}
    return Outcome(settings, note)


def _zoo_scheduler(value: Any, case: Case) -> Outcome:
    """Set the curve."""
    gamma, period = case.number("lr_gamma", 0.97), case.number("lr_adjust", 30)
    falling = {"schedule.name": "exponential", "schedule.decay_rate": gamma}
    return choice(
        {
            "cosine_lr": {"schedule.name": "cosine", "schedule.warmup_prefix": True},
            "constant_lr": {"schedule.name": "constant"},
            "exp_lr": {**falling, "schedule.decay_epochs": 1.0},
            "multistep_lr": {**falling, "schedule.decay_epochs": period},
        },
        note="a smooth fall, without a warm-up" if str(value) == "multistep_lr" else "",
    )(value, case)


def _zoo_warmup(value: Any, case: Case) -> Outcome:
    """Set the warm-up, which one of their curves leaves out."""
    return Outcome({"schedule.warmup_epochs": 0.0 if case.values.get("lr_scheduler") == "multistep_lr" else value})


def _zoo_optimizer(value: Any, case: Case) -> Outcome:
    """Set the optimizer."""
    choose = choice({"adamw": {"optim.name": "adamw"}, "momentum": {"optim.name": "sgd"}, "sgd": {"optim.name": "sgd"}})
    if str(value).lower() != "adamw":
        return choose(value, case)
    note = "MindSpore's AdamWeightDecay corrects no bias of its moments: its first updates are larger than AdamW's"
    return Outcome(choose(value, case).settings, note, "note")


def _zoo_epoch_state(value: Any, case: Case) -> Outcome:
    """Tell that no run is gone on with, where their program would do so."""
    lost = not truth(value) and text_or_none(case.values.get("pretrained")) is not None
    note = "weights alone are read: epochs and rates begin anew; `vitrail train --resume RUN` goes on with a run"
    return Outcome(note=note, say="warning" if lost else "", of_training=True)


def _zoo_lr(value: Any, case: Case) -> Outcome:
    """Tell whoever wrote it that another key is the rate."""
    return Outcome(note="not read: the rate is base_lr", say="warning", of_training=True)


def _zoo_minutes(value: Any, case: Case) -> Outcome:
    """Set how often a run is saved, which theirs turns off by 0."""
    if seconds := number(value):
        return Outcome({"output.save_every_minutes": seconds / 60})
    return Outcome(note="off there; here output.save_every_minutes saves what a resume needs")


ZOO_KEYS = {
    "num_classes": Key(COUNTED),
    "auto_augment": Key(to("augment.auto_augment", read=text_or_none)),
    "cutmix": Key(to("augment.cutmix")),
    "mixup_prob": Key(to("augment.mix_prob")),
    "mixup_mode": Key(MIX_MODE),
    "switch_prob": Key(to("augment.mix_switch_prob")),
    "image_size": Key(to("model.image_size"), 224),
    "label_smoothing": Key(to("augment.label_smoothing"), 0.1),
    "optimizer": Key(_zoo_optimizer),
    "base_lr": Key(_zoo_base_lr),
    "lr": Key(_zoo_lr),
    "warmup_lr": Key(_zoo_rate("schedule.warmup_lr"), 5e-7),
    "warmup_length": Key(_zoo_warmup, 0),
    "min_lr": Key(_zoo_min_lr),
    "lr_scheduler": Key(_zoo_scheduler),
    "lr_adjust": Key(nothing("of multistep_lr"), 30),
    "lr_gamma": Key(nothing("of multistep_lr and exp_lr"), 0.97),
    "beta": Key(to("optim.betas"), [0.9, 0.999]),
    "eps": Key(to("optim.eps"), 1e-8),
    "momentum": Key(to("optim.momentum"), 0.9),
    "amp_level": Key(to("train.precision")),
    "is_dynamic_loss_scale": Key(nothing("float16's loss is always scaled dynamically"), 1),
    "loss_scale": Key(nothing("float16's loss is always scaled dynamically"), 1024),
    "clip_global_norm_value": Key(to("optim.clip_norm"), 5.0),
    "accumulation_step": Key(to("train.accumulate"), 1),
    "epochs": Key(to("train.epochs"), 300),
    "start_epoch": Key(FROM_START, 0),
    "batch_size": Key(per_process, 128),
    "num_parallel_workers": Key(to("data.workers")),
    "seed": Key(to("train.seed"), 0),
    "device_target": Key(device, "GPU"),
    "device_id": Key(one_device, 0),
    "device_num": Key(several, 1),
    "pretrained": Key(weights, None),
    "exclude_epoch_state": Key(_zoo_epoch_state, True),
    "run_modelarts": Key(MODELARTS, False),
    "train_url": Key(nothing("of ModelArts")),
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
POLICY_FILTER = nothing("the policy resamples with augment.interpolation here; crops are bicubic in their code")
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
"""What the files of TNT and T2T-ViT have in common of what their programs have no default for."""
NORMALISATION = {"preprocess.mean": IMAGENET_MEAN, "preprocess.std": IMAGENET_STD}
BICUBIC = {"augment.interpolation": "bicubic", "preprocess.interpolation": "bicubic"}


def erasing(prob: str, mode: str, count: str) -> dict[str, Key]:
    """Return the keys of random erasing, by their names."""
    modes = choice({one: {"augment.erase_mode": one} for one in ("pixel", "rand", "const")})
    counts = to("augment.erase_count", read=lambda value: int(number(value)))
    return {
        prob: Key(to("augment.erase_prob")),
        mode: Key(where_positive(prob, modes)),
        count: Key(where_positive(prob, counts)),
    }


def with_defaults(keys: Mapping[str, Key], **defaults: Any) -> dict[str, Key]:
    """Return keys with other defaults."""
    return {**keys, **{name: Key(keys[name].rule, default) for name, default in defaults.items()}}


ZOO_TNT = Project(
    name="the model zoo's TNT",
    aliases=ZOO_ALIASES | {"a": "arch", "mixup": "mix_up"},
    fixed={**NORMALISATION, **BICUBIC, "preprocess.crop": 0.875},
    published=ZOO_PUBLISHED | {"drop_path_rate": 0.1, "base_lr": 0.0005, "min_lr": 0.000006},
    lr_base_batch=512,
    keys=ZOO_KEYS
    | {
        "arch": Key(
            network("tnt", gelu="tanh", norm_eps=1e-7, biases="zoo"),
            "ResNet18",
        ),
        "data_url": Key(to("data.root"), "./data"),
        "set": Key(only("ImageNet", why="it reads folders of classes"), "ImageNet"),
        "mix_up": Key(to("augment.mixup"), 0.0),
        "interpolation": Key(POLICY_FILTER),
        **erasing("re_prob", "re_mode", "re_count"),
        "optimizer": Key(_zoo_optimizer, "sgd"),
        "amp_level": Key(to("train.precision"), "O2"),
        "weight_decay": Key(to("optim.weight_decay"), 0.05),
        "drop_path_rate": Key(to("model.drop_path_rate")),
        "drop_out": Key(unheard("model.drop_rate")),
        "keep_bn_fp32": Key(nothing("not read by their program; there is no batch norm")),
        "nonlinearity": Key(nothing("not read by their program")),
        "in_channel": Key(to("data.channels"), 3),
        "mlp_ratio": Key(only(4, why="model.options.mlp_ratio sets it"), 4.0),
        "graph_mode": Key(GRAPH, 0),
        "keep_checkpoint_max": Key(to("output.keep_last")),
        "save_every": Key(SAVES, 2),
        "file_format": Key(nothing("of `vitrail export`"), "MINDIR"),
    },
)


def _t2t_drop_block(value: Any, case: Case) -> Outcome:
    """Leave out a rate that no model here has, and say so where it is asked for."""
    if case.as_written:
        return NO_DROP_BLOCK(value, case)
    return Outcome(note="not handed to the model by train.py", say="note" if number(value) != 0 else "")


def _t2t_log_every(value: Any, case: Case) -> Outcome:
    """Set how often the loss is read: as often as the more frequent of two wants it."""
    wanted = [every for key in ("print_loss_every", "summary_loss_collect_freq") if (every := case.number(key))]
    if not wanted:
        return Outcome(note="off there; here train.log_every says how often")
    return Outcome({"train.log_every": int(min(wanted))}, "the terminal and steps.jsonl have the loss equally often")


_t2t_clip, _t2t_clip_value = switched("use_clip_grad_norm", "optim.clip_norm", "clip_grad_norm")
_t2t_ema, _t2t_ema_decay = switched("with_ema", "ema.decay", "ema_decay")
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
        "arch": Key(network("t2t", norm_eps=1e-7), None),
        "dataset": Key(NAMED_SETS),
        "data_url": Key(to("data.root")),
        "train_dir": Key(to("data.train_split")),
        "val_dir": Key(to("data.val_split")),
        "train_num_samples": Key(epoch_images),
        "val_num_samples": Key(ALL_IMAGES),
        "aa_interpolation": Key(POLICY_FILTER),
        **erasing("re_prob", "re_mode", "re_count"),
        "mixup": Key(to("augment.mixup")),
        "mixup_off_epoch": Key(MIX_OFF),
        "min_crop": Key(lambda value, case: Outcome({"augment.scale": (number(value), 1.0)})),
        "crop_pct": Key(to("preprocess.crop")),
        "weight_decay": Key(to("optim.weight_decay")),
        "use_clip_grad_norm": Key(_t2t_clip),
        "clip_grad_norm": Key(_t2t_clip_value),
        "with_ema": Key(_t2t_ema),
        "ema_decay": Key(_t2t_ema_decay),
        "pynative_mode": Key(GRAPH),
        "dataset_sink_mode": Key(SINK),
        "file_format": Key(nothing("of `vitrail export`")),
        "drop": Key(unheard("model.drop_rate")),
        "drop_block": Key(_t2t_drop_block),
        "drop_path": Key(unheard("model.drop_path_rate")),
        "disable_approximate_gelu": Key(
            lambda value, case: Outcome({"model.options.gelu": "erf" if truth(value) else "tanh"})
        ),
        "ckpt_root_dir": Key(to("output.root")),
        "best_ckpt_root_dir": Key(IN_ONE_FOLDER),
        "summary_root_dir": Key(IN_ONE_FOLDER),
        "logs_root_dir": Key(IN_ONE_FOLDER),
        "ckpt_keep_num": Key(to("output.keep_last")),
        "best_ckpt_num": Key(to("output.keep_best")),
        "ckpt_save_every_step": Key(to("output.save_every_updates", read=lambda value: value or None)),
        "ckpt_save_every_seconds": Key(_zoo_minutes),
        "print_loss_every": Key(_t2t_log_every),
        "summary_loss_collect_freq": Key(_t2t_log_every),
        "model_postfix": Key(nothing("runs are numbered; output.name=NAME names one")),
    },
)


def _twins_folders(value: Any, case: Case) -> Outcome:
    """Set one root and two names for what theirs names by two paths."""
    train, val = (text_or_none(case.values.get(key)) for key in ("ds_train", "ds_val"))
    if train is None or val is None:
        known = Path(train or val or "")
        split = "data.train_split" if val is None else "data.val_split"
        return Outcome({"data.root": str(known.parent), split: known.name})
    try:
        root = os.path.commonpath([Path(train).parent, Path(val).parent])
    except ValueError:
        raise ValueError("ds_train and ds_val must both be absolute paths, or both not") from None
    names = (os.path.relpath(path, root or ".") for path in (train, val))
    return Outcome(dict(zip(("data.root", "data.train_split", "data.val_split"), (root or ".", *names), strict=True)))


TWINS_PARAMS = ("model", "num_classes", "drop_rate", "drop_path_rate", "img_size", "device")


def _twins_of(params: Any) -> dict[str, Any]:
    """Return the arguments of the network, which stand in `params` as JSON or as a mapping; nothing where it is empty.

    Raises:
        ValueError: It is neither.
    """
    try:
        read = json.loads(params or "{}") if isinstance(params, str | None) else params
    except ValueError as error:
        raise ValueError(f"it must be JSON ({error})") from None
    if not isinstance(read, Mapping):
        raise ValueError('it must be a mapping, such as {"model": "alt_gvt_small", "drop_path_rate": 0.2}')
    return dict(read)


def _twins_params(value: Any, case: Case) -> Outcome:
    """Set what their program hands to the network; the rest of its file does not reach it."""
    params = _twins_of(value)
    if unknown := [key for key in params if key not in TWINS_PARAMS]:
        raise ValueError(f"{unknown[0]} is unknown{among(str(unknown[0]), TWINS_PARAMS, 'known are')}")
    if not params:
        return Outcome(note="their program does not run without; drop and drop_path are taken in its place")
    settings = {
        ours: params.get(key) or 0.0
        for key, ours in (("drop_rate", "model.drop_rate"), ("drop_path_rate", "model.drop_path_rate"))
    }
    if (size := params.get("img_size")) is not None:
        if "image_size" in case.written and not same(size, case.values["image_size"]):
            raise ValueError(f"img_size is {size}, but images have image_size {case.values['image_size']}; write one")
        settings["model.image_size"] = size
    if "model" in params and _twins_kind(params["model"]) != _twins_kind(case.values.get("model")):
        return Outcome(settings, f"its model is not read: {shown(case.values.get('model'))} is built", "warning")
    return Outcome(settings, "what the network is built with")


def _twins_kind(model: Any) -> tuple[bool, str]:
    """Return what the names of one network have in common: svt_s, svt_small and alt_gvt_small."""
    words = str(model).lower().removesuffix("_v0").split("_")
    return "pcpvt" in words, words[-1][:1]


def _twins_unheard(setting: str) -> Rule:
    """Set a rate of the file where `params`, from which their program takes it, is not written."""

    def rule(value: Any, case: Case) -> Outcome:
        try:
            params = _twins_of(case.values.get("params"))
        except ValueError:  # said of params itself
            params = {}
        if not params:
            return Outcome({setting: value})
        taken = params.get(setting.removeprefix("model.")) or 0.0
        differs = not same(value, taken)
        return Outcome(note=f"without effect: params has it, {shown(taken)}", say="note" if differs else "")

    return rule


def _twins_search(value: Any, case: Case) -> Outcome:
    """Point out that nothing searches here."""
    raise ValueError("a space for tune_params.py to search; nothing searches here, so try values as flags and drop it")


def _twins_switch(value: Any, case: Case) -> Outcome:
    """Tell that only one of two keys for the same is read."""
    differs = not same(value, case.values.get("switch_prob"))
    return Outcome(note="switch_prob is what is read", say="note" if differs else "")


TWINS = Project(
    name="MindSpore's Twins",
    aliases=ZOO_ALIASES | {"arch": "model", "re_prob": "reprob", "re_mode": "remode", "re_count": "recount"},
    fixed={**NORMALISATION, **BICUBIC, "preprocess.crop": 0.875, "optim.decay_on": "matrices"},
    file_wins=True,
    keys=ZOO_KEYS
    | {
        "model": Key(network(*TWINS_NAMES, gelu="tanh", embed_norm_eps=1e-7), None),
        "params": Key(_twins_params),
        "ds_train": Key(_twins_folders),
        "ds_val": Key(_twins_folders),
        "batch_size": Key(per_process, 1),
        "num_parallel_workers": Key(to("data.workers")),
        "interpolation": Key(POLICY_FILTER, "bilinear"),
        "auto_augment": Key(to("augment.auto_augment", read=text_or_none), "rand-m9-mstd0.5-inc1"),
        "switch_prob": Key(to("augment.mix_switch_prob"), 0.5),
        "mixup_switch_prob": Key(_twins_switch, 0.5),
        "optimizer": Key(_zoo_optimizer, "adamw"),
        "lr_scheduler": Key(_zoo_scheduler, "cosine_lr"),
        "warmup_length": Key(_zoo_warmup, 20),
        "base_lr": Key(_zoo_base_lr, 1e-4),
        "warmup_lr": Key(_zoo_rate("schedule.warmup_lr"), 1e-6),
        "min_lr": Key(_zoo_min_lr, 1e-5),
        "amp_level": Key(to("train.precision"), "O0"),
        "pynative_mode": Key(GRAPH, 0),
        "drop": Key(_twins_unheard("model.drop_rate"), 0.0),
        "drop_path": Key(_twins_unheard("model.drop_path_rate"), 0.1),
        "weight_decay": Key(to("optim.weight_decay"), 0.05),
        **with_defaults(erasing("reprob", "remode", "recount"), reprob=0.25, remode="pixel", recount=1),
        "resplit": Key(NOTED, False),
        "mixup": Key(to("augment.mixup"), 0.8),
        "cutmix": Key(to("augment.cutmix"), 1.0),
        "cutmix_minmax": Key(unread(to("augment.cutmix_minmax"), executed=None), None),
        "mixup_prob": Key(to("augment.mix_prob"), 1.0),
        "mixup_mode": Key(MIX_MODE, "batch"),
        "label_smoothing": Key(to("augment.label_smoothing"), 0.5),
        "dir_ckpt": Key(to("output.root")),
        "dir_best_ckpt": Key(IN_ONE_FOLDER),
        "dir_summary": Key(IN_ONE_FOLDER),
        "save_ckpt_every_step": Key(to("output.save_every_updates", read=lambda value: value or None), 0),
        "save_ckpt_every_sec": Key(_zoo_minutes, 1800),
        "save_ckpt_keep": Key(to("output.keep_last"), 20),
        "seed": Key(to("train.seed"), 1),
        "exclude_epoch_state": Key(_zoo_epoch_state, False),
        "parameters": Key(_twins_search),
        "export_format": Key(nothing("of `vitrail export`"), "ONNX"),
        "file_format": Key(nothing("of `vitrail export`")),
        "src": Key(nothing("of `vitrail convert`")),
        "dst": Key(nothing("of `vitrail convert`")),
    },
)


PROJECTS = (MINDCV, ZOO_TNT, T2T, TWINS)
"""Of files."""
