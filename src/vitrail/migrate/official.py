"""The flags of the official PyTorch programs, which have no files: one table a program. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.migrate.projects import (
    COUNTED,
    DROPOUT,
    FROM_START,
    MIX_MODE,
    MIX_OFF,
    NO_DROP_BLOCK,
    NOTED,
    TWINS_NAMES,
    Case,
    Key,
    Outcome,
    Project,
    choice,
    downloaded,
    erasing,
    idle,
    jitter,
    network,
    nothing,
    only,
    per_process,
    switched,
    text_or_none,
    to,
    truth,
    weights,
    with_defaults,
)

NO_BATCH_NORM = nothing("there is no batch norm")
FILLED = {"mixup": 0.8, "cutmix": 1.0, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "remode": "pixel"}
"""Defaults of the programs of T2T-ViT and Twins where timm's own vary nothing."""


def _sched(value: Any, case: Case) -> Outcome:
    """Set the curve, which moves once an epoch."""
    step = {"schedule.step": "epoch"}
    curves = {name: {"schedule.name": name, **step} for name in ("cosine", "step")}
    return choice(curves)(value, case)


def _optimizer(value: Any, case: Case) -> Outcome:
    """Set the optimizer."""
    kinds = {
        "adamw": {"optim.name": "adamw"},
        "sgd": {"optim.name": "sgd", "optim.nesterov": True},
        "momentum": {"optim.name": "sgd"},
    }
    return choice(kinds)(value, case)


def _measures(value: Any, case: Case) -> Outcome:
    """Point to the command that measures."""
    if text_or_none(value) and str(value).lower() != "false":
        raise ValueError("`vitrail evaluate` measures; write it in place of `vitrail train`")
    return Outcome()


def _cutmix(value: Any, case: Case) -> Outcome:
    """Set CutMix's alpha, which timm leaves out of account beside the bounds of its rectangle."""
    return Outcome({"augment.cutmix": value if case.values.get("cutmix_minmax") is None else 1.0})


def _prefetcher(value: Any, case: Case) -> Outcome:
    """Set when rectangles are erased: timm's loader does so on the device, after the mixing."""
    return Outcome({"augment.erase": "before_mix" if truth(value) else "after_mix"})


def _augmentation(**defaults: Any) -> dict[str, Key]:
    """Return the flags of how images are varied that all of these programs have, with timm's defaults but for some."""
    keys = {
        "color_jitter": Key(jitter("aa"), 0.4),
        "aa": Key(to("augment.auto_augment", read=text_or_none), None),
        **with_defaults(erasing("reprob", "remode", "recount"), reprob=0.0, remode="const", recount=1),
        "resplit": Key(NOTED, False),
        "mixup": Key(to("augment.mixup"), 0.0),
        "cutmix": Key(_cutmix, 0.0),
        "cutmix_minmax": Key(to("augment.cutmix_minmax"), None),
        "mixup_prob": Key(to("augment.mix_prob"), 1.0),
        "mixup_switch_prob": Key(to("augment.mix_switch_prob"), 0.5),
        "mixup_mode": Key(MIX_MODE, "batch"),
        "smoothing": Key(to("augment.label_smoothing"), 0.1),
        "train_interpolation": Key(to("augment.interpolation"), "random"),
    }
    return with_defaults(keys, **defaults)


def _optimisation(**defaults: Any) -> dict[str, Key]:
    """Return the flags of the optimizer and of the schedule that all of these programs have."""
    keys = {
        "batch_size": Key(per_process, 32),
        "drop": Key(DROPOUT, 0.0),
        "drop_path": Key(to("model.drop_path_rate", read=lambda value: value or 0.0), None),
        "opt": Key(_optimizer, "sgd"),
        "opt_eps": Key(to("optim.eps", read=lambda value: 1e-8 if value is None else value), None),
        "opt_betas": Key(to("optim.betas")),
        "momentum": Key(to("optim.momentum"), 0.9),
        "weight_decay": Key(to("optim.weight_decay"), 1e-4),
        "clip_grad": Key(to("optim.clip_norm"), None),
        "sched": Key(_sched, "step"),
        "lr": Key(to("optim.lr"), 0.01),
        "lr_noise": Key(only(None, why="the rate has no noise"), None),
        "lr_noise_pct": Key(nothing("of lr_noise")),
        "lr_noise_std": Key(nothing("of lr_noise")),
        "warmup_lr": Key(to("schedule.warmup_lr"), 1e-4),
        "min_lr": Key(to("schedule.min_lr"), 1e-5),
        "epochs": Key(to("train.epochs"), 200),
        "start_epoch": Key(FROM_START, 0),
        "decay_epochs": Key(to("schedule.decay_epochs"), 30),
        "warmup_epochs": Key(to("schedule.warmup_epochs"), 3),
        "cooldown_epochs": Key(to("schedule.cooldown_epochs"), 10),
        "patience_epochs": Key(nothing("of the plateau schedule, which is not known here")),
        "decay_rate": Key(to("schedule.decay_rate"), 0.1),
        "seed": Key(to("train.seed"), 42),
        "pin_mem": Key(nothing("done wherever there is a CUDA device")),
    }
    return with_defaults(keys, **defaults)


_ema, _ema_decay = switched("model_ema", "ema.decay", "model_ema_decay")
_TIMM_ALIASES = {
    "data": "data_dir",
    "wd": "weight_decay",
    "dr": "decay_rate",
    "auto_augment": "aa",
    "native_amp": "amp",
    "apex_amp": "amp",
    "initial_checkpoint": "pretrain_path",
    "checkpoint": "pretrain_path",
    "num_parallel_workers": "workers",
    "arch": "model",
    "momentum_decay": "momentum",
}
_TIMM_KEYS = {
    "data_dir": Key(to("data.root")),
    "num_classes": Key(COUNTED),
    "img_size": Key(to("model.image_size")),
    "gp": Key(only(None, why="the models pool as their papers do")),
    "crop_pct": Key(to("preprocess.crop")),
    "mean": Key(to("preprocess.mean")),
    "std": Key(to("preprocess.std")),
    "interpolation": Key(to("preprocess.interpolation")),
    "validation_batch_size_multiplier": Key(nothing("memory alone depends on it; evaluate.batch_size of `evaluate`")),
    **_optimisation(),
    "drop_connect": Key(only(0, None, why="drop_path is its name")),
    "drop_block": Key(NO_DROP_BLOCK, None),
    "lr_cycle_mul": Key(only(1, why="a cosine falls once")),
    "lr_cycle_limit": Key(only(1, why="a cosine falls once")),
    "no_aug": Key(only(False, why="augment.* turns off what varies images, each by itself")),
    "scale": Key(to("augment.scale"), [0.08, 1.0]),
    "ratio": Key(to("augment.ratio"), [3 / 4, 4 / 3]),
    "hflip": Key(to("augment.hflip"), 0.5),
    "vflip": Key(only(0, why="images are mirrored left and right alone"), 0.0),
    **_augmentation(),
    "mixup_off_epoch": Key(MIX_OFF, 0),
    "aug_splits": Key(only(0, why="a batch is one view of each image"), 0),
    "jsd": Key(only(False, why="training minimises cross-entropy"), False),
    "no_prefetcher": Key(_prefetcher, False),
    **dict.fromkeys(("bn_tf", "bn_momentum", "bn_eps", "sync_bn", "dist_bn", "split_bn"), Key(NO_BATCH_NORM)),
    "model_ema": Key(_ema, False),
    "model_ema_decay": Key(_ema_decay, 0.9998),
    "model_ema_force_cpu": Key(idle("the average is kept beside the weights")),
    "log_interval": Key(to("train.log_every"), 50),
    "recovery_interval": Key(to("output.save_every_updates", read=lambda value: value or None)),
    "workers": Key(to("data.workers")),
    "num_gpu": Key(only(1, why="torchrun starts a process for each card")),
    "save_images": Key(NOTED),
    "amp": Key(to("train.precision", read=lambda value: "mixed" if truth(value) else "float32"), False),
    "channels_last": Key(to("train.channels_last", read=truth), False),
    "output": Key(lambda value, case: Outcome({"output.root": value} if value else {}), ""),
    "pretrained": Key(downloaded, False),
    "pretrain_path": Key(weights, None),
    "no_resume_opt": Key(idle("`vitrail train --fork RUN` begins with a run's weights alone")),
    "eval_metric": Key(nothing("train.monitor chooses the best epoch")),
    "tta": Key(only(0, why="an image is seen once")),
    "use_multi_epochs_loader": Key(nothing("loader processes live as long as the run")),
}

TNT = Project(
    name="the official TNT code",
    models=("tnt",),
    aliases=_TIMM_ALIASES,
    keys=_TIMM_KEYS
    | {
        "model": Key(network("tnt"), "resnet101"),
        "repeated_aug": Key(to("augment.repeats", read=lambda value: 3 if truth(value) else 1), False),
        "evaluate": Key(_measures, False),
    },
)


def _t2t_model(value: Any, case: Case) -> Outcome:
    """Take a T2T-ViT, whose names once began with a capital."""
    return network("t2t")(str(value).lower(), case)


T2T = Project(
    name="the official T2T-ViT code",
    models=("t2t",),
    aliases=_TIMM_ALIASES,
    keys=with_defaults(
        _TIMM_KEYS,
        **FILLED,
        batch_size=64,
        opt="adamw",
        weight_decay=0.05,
        sched="cosine",
        lr=5e-4,
        warmup_lr=1e-6,
        epochs=300,
        warmup_epochs=10,
        drop_path=0.1,
        model_ema=True,
        model_ema_decay=0.99996,
        img_size=224,
    )
    | {"model": Key(_t2t_model, "T2t_vit_14"), "eval_checkpoint": Key(_measures, "")},
)


def _transfer_set(value: Any, case: Case) -> Outcome:
    """Read CIFAR, which their program downloads into ./data."""
    sets = {name: {"data.name": name, "data.root": "./data", "data.download": True} for name in ("cifar10", "cifar100")}
    return choice(sets, "downloaded into ./data, as theirs")(value, case)


def _transfer_rate(value: Any, case: Case) -> Outcome:
    """Set the rate: in a transfer, the head's, of which the tokens and the blocks take a part."""
    if not truth(case.values["transfer_learning"]):
        return Outcome({"optim.lr": value})
    settings = {"optim.lr": value, "optim.backbone_scale": case.number("transfer_ratio")}
    note = (
        "theirs ends both rates at min_lr, ours the head's; theirs leaves the class token and the last norm as they are"
    )
    return Outcome(settings, note, "note")


TRANSFER = Project(
    name="the official T2T-ViT code's transfer_learning.py",
    models=("t2t",),
    aliases={"b": "batch_size", "initial_checkpoint": "transfer_model", "arch": "model"},
    fixed={
        "preprocess.mean": (0.4914, 0.4822, 0.4465),
        "preprocess.std": (0.2023, 0.1994, 0.2010),
        "preprocess.crop": 1.0,
        "preprocess.interpolation": "bilinear",
        "augment.interpolation": "bilinear",
        "augment.ratio": (1.0, 1.0),
        "augment.scale": (0.766, 1.0),  # theirs shifts an image by up to an eighth of its side
        "optim.name": "sgd",
        "optim.decay_on": "all",
        "schedule.name": "cosine",
        "schedule.step": "epoch",
        "schedule.warmup_epochs": 0.0,
        "train.epochs": 60,
    },
    keys={
        "model": Key(_t2t_model, "T2t_vit_14"),
        "dataset": Key(_transfer_set, "cifar10"),
        "num_classes": Key(COUNTED),
        "img_size": Key(to("model.image_size"), 224),
        "batch_size": Key(per_process, 128),
        "lr": Key(_transfer_rate, 0.01),
        "weight_decay": Key(to("optim.weight_decay"), 5e-4),
        "min_lr": Key(to("schedule.min_lr"), 2e-4),
        "drop": Key(DROPOUT, 0.0),
        "drop_path": Key(to("model.drop_path_rate"), 0.1),
        "drop_connect": Key(only(0, None, why="drop_path is its name")),
        "drop_block": Key(NO_DROP_BLOCK, None),
        "gp": Key(only(None, why="the models pool as their papers do")),
        **dict.fromkeys(("bn_tf", "bn_momentum", "bn_eps"), Key(NO_BATCH_NORM)),
        "pretrained": Key(downloaded, False),
        "transfer_learning": Key(nothing("with transfer_model"), False),
        "transfer_model": Key(weights, None),
        "transfer_ratio": Key(nothing("with lr"), 0.01),
    },
)


def _twins_lr(value: Any, case: Case) -> Outcome:
    """Set the peak, which counts for 512 images."""
    note = (
        f"multiplied by images an update / 512, here {case.batch} / 512; their rate moves one epoch late, ours in time"
    )
    return Outcome({"optim.lr": value, "optim.lr_base_batch": 512}, note, "note")


def _twins_set(value: Any, case: Case) -> Outcome:
    """Set which images."""
    return choice({"imnet": {"data.name": None}, "cifar": {"data.name": "cifar100"}})(value, case)


def _twins_finetune(value: Any, case: Case) -> Outcome:
    """Refuse what their program does not do: it reads no file, and trains without drop path."""
    if text_or_none(value):
        raise ValueError(f"their program reads no weights by it; model.weights={value} begins with them")
    return Outcome()


TWINS = Project(
    name="the official Twins code",
    models=TWINS_NAMES,
    aliases={
        "data": "data_path",
        "data_dir": "data_path",
        "arch": "model",
        "dr": "decay_rate",
        "workers": "num_workers",
    },
    fixed={"train.precision": "mixed"},
    keys={
        **with_defaults(
            _optimisation(),
            batch_size=64,
            drop_path=0.1,
            opt="adamw",
            opt_eps=1e-8,
            clip_grad=5.0,
            weight_decay=0.05,
            sched="cosine",
            warmup_lr=1e-6,
            epochs=300,
            warmup_epochs=5,
            seed=0,
        ),
        **_augmentation(**FILLED, train_interpolation="bicubic"),
        "model": Key(network(*TWINS_NAMES), "pvt_small"),
        "lr": Key(_twins_lr, 5e-4),
        "cooldown_epochs": Key(nothing("not run by their program, which ends with its epochs")),
        "input_size": Key(to("model.image_size"), 224),
        "repeated_aug": Key(to("augment.repeats", read=lambda value: 3 if truth(value) else 1), False),
        "no_repeated_aug": Key(nothing("so it is where repeated_aug is not written")),
        "finetune": Key(_twins_finetune, ""),
        "data_path": Key(to("data.root")),
        "data_set": Key(_twins_set, "IMNET"),
        "use_mcloader": Key(NOTED),
        "inat_category": Key(nothing("of iNaturalist, which data.root=FOLDER reads as folders")),
        "output_dir": Key(lambda value, case: Outcome({"output.root": value} if value else {}), ""),
        "device": Key(lambda value, case: Outcome({"train.device": "cpu" if value == "cpu" else "auto"}), "cuda"),
        "eval": Key(_measures, False),
        "dist_eval": Key(nothing("each image is measured once, by whatever number of processes")),
        "num_workers": Key(to("data.workers")),
        "no_pin_mem": Key(nothing("pinned memory changes no number")),
        "throughout": Key(idle("`vitrail bench` measures the speed")),
        "world_size": Key(nothing("torchrun says it")),
        "dist_url": Key(nothing("torchrun says it")),
    },
)

PROGRAMS = (TNT, T2T, TRANSFER, TWINS)
"""Whose flags are read without a file."""


def program_of(flags: Mapping[str, Any]) -> Project:
    """Return the program that flags are typed for: the one of the model that they name, which knows most of them."""
    model = str(flags.get("model", flags.get("arch", ""))).lower()
    named = [program for program in PROGRAMS if model.startswith(program.models)] if model else PROGRAMS
    names = [key.replace("-", "_") for key in flags]

    def known(program: Project) -> int:
        return sum(name in program.keys or name in program.aliases for name in names)

    return max(named or PROGRAMS, key=known)
