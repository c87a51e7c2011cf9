"""The flags of the official PyTorch programs, which have no files: one table a program. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.migrate.rules import (
    Case,
    Key,
    Outcome,
    Project,
    accept_only,
    choose,
    ignore,
    ignore_switch,
    merge_switch,
    read_drop_rate,
    read_interval,
    read_switch,
    read_text,
    replace_defaults,
    set_model,
    set_to,
)
from vitrail.migrate.shared_rules import (
    COUNTED,
    DROPOUT,
    FROM_START,
    MIX_MODE,
    MIX_OFF,
    NO_DROP_BLOCK,
    NOTED,
    TWINS_NAMES,
    make_erasing_keys,
    set_color_jitter,
    set_global_batch,
    start_from_published,
    start_from_weights,
)

NO_BATCH_NORM = ignore("there is no batch norm")
FILLED = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "aa": "rand-m9-mstd0.5-inc1",
    "reprob": 0.25,
    "remode": "pixel",
}
"""Augmentation that the programs of T2T-ViT and Twins have by default, where timm's own varies
nothing."""


# Rules that these programs share, since all are timm's train.py with changes


def _set_curve(value: Any, case: Case) -> Outcome:
    """Set the curve of the learning rate, which moves once an epoch."""
    curves = {
        "cosine": {"schedule.name": "cosine", "schedule.step": "epoch"},
        "step": {"schedule.name": "step", "schedule.step": "epoch"},
    }
    return choose(curves)(value, case)


def _set_optimizer(value: Any, case: Case) -> Outcome:
    """Set the optimizer."""
    optimizers = {
        "adamw": {"optim.name": "adamw"},
        "sgd": {"optim.name": "sgd", "optim.nesterov": True},
        "momentum": {"optim.name": "sgd"},
    }
    return choose(optimizers)(value, case)


def _refuse_evaluation(value: Any, case: Case) -> Outcome:
    """Refuse to evaluate in place of training, and name the command that evaluates."""
    if read_text(value) and str(value).lower() != "false":
        raise ValueError("`vitrail evaluate` measures; write it in place of `vitrail train`")
    return Outcome()


def _set_cutmix(value: Any, case: Case) -> Outcome:
    """Set CutMix's alpha, which timm leaves out of account beside the bounds of its rectangle."""
    if case.values.get("cutmix_minmax") is None:
        return Outcome({"augment.cutmix": value})
    return Outcome({"augment.cutmix": 1.0})


def _set_erase(value: Any, case: Case) -> Outcome:
    """Set when rectangles are erased: timm's loader does so on the device, after the mixing."""
    if read_switch(value):
        return Outcome({"augment.erase": "before_mix"})
    return Outcome({"augment.erase": "after_mix"})


def _set_output_root(value: Any, case: Case) -> Outcome:
    """Set the folder of the runs, where one is named."""
    if not value:
        return Outcome()
    return Outcome({"output.root": value})


def _read_eps(value: Any) -> Any:
    """Return AdamW's epsilon, which is PyTorch's default where none is written."""
    return 1e-8 if value is None else value


def _read_amp(value: Any) -> str:
    """Return the precision: mixed where automatic mixed precision is on."""
    return "mixed" if read_switch(value) else "float32"


def _read_repeated_aug(value: Any) -> int:
    """Return the augmented copies of each image: three where repeated augmentation is on."""
    return 3 if read_switch(value) else 1


def _make_augmentation_keys(**defaults: Any) -> dict[str, Key]:
    """Return the flags of augmentation that all of these programs have, with some defaults of their own."""
    keys = {
        "color_jitter": Key(set_color_jitter("aa"), 0.4),
        "aa": Key(set_to("augment.auto_augment", read=read_text), None),
        **replace_defaults(
            make_erasing_keys("reprob", "remode", "recount"), reprob=0.0, remode="const", recount=1
        ),
        "resplit": Key(NOTED, False),
        "mixup": Key(set_to("augment.mixup"), 0.0),
        "cutmix": Key(_set_cutmix, 0.0),
        "cutmix_minmax": Key(set_to("augment.cutmix_minmax"), None),
        "mixup_prob": Key(set_to("augment.mix_prob"), 1.0),
        "mixup_switch_prob": Key(set_to("augment.mix_switch_prob"), 0.5),
        "mixup_mode": Key(MIX_MODE, "batch"),
        "smoothing": Key(set_to("augment.label_smoothing"), 0.1),
        "train_interpolation": Key(set_to("augment.interpolation"), "random"),
    }
    return replace_defaults(keys, **defaults)


def _make_optimizer_keys(**defaults: Any) -> dict[str, Key]:
    """Return the flags of optimizer and schedule that all of these programs have, with some defaults of their own."""
    keys = {
        "batch_size": Key(set_global_batch, 32),
        "drop": Key(DROPOUT, 0.0),
        "drop_path": Key(set_to("model.drop_path_rate", read=read_drop_rate), None),
        "opt": Key(_set_optimizer, "sgd"),
        "opt_eps": Key(set_to("optim.eps", read=_read_eps), None),
        "opt_betas": Key(set_to("optim.betas")),
        "momentum": Key(set_to("optim.momentum"), 0.9),
        "weight_decay": Key(set_to("optim.weight_decay"), 1e-4),
        "clip_grad": Key(set_to("optim.clip_norm"), None),
        "sched": Key(_set_curve, "step"),
        "lr": Key(set_to("optim.lr"), 0.01),
        "lr_noise": Key(accept_only(None, why="the rate has no noise"), None),
        "lr_noise_pct": Key(ignore("of lr_noise")),
        "lr_noise_std": Key(ignore("of lr_noise")),
        "warmup_lr": Key(set_to("schedule.warmup_lr"), 1e-4),
        "min_lr": Key(set_to("schedule.min_lr"), 1e-5),
        "epochs": Key(set_to("train.epochs"), 200),
        "start_epoch": Key(FROM_START, 0),
        "decay_epochs": Key(set_to("schedule.decay_epochs"), 30),
        "warmup_epochs": Key(set_to("schedule.warmup_epochs"), 3),
        "cooldown_epochs": Key(set_to("schedule.cooldown_epochs"), 10),
        "patience_epochs": Key(ignore("of the plateau schedule, which is not known here")),
        "decay_rate": Key(set_to("schedule.decay_rate"), 0.1),
        "seed": Key(set_to("train.seed"), 42),
        "pin_mem": Key(ignore("done wherever there is a CUDA device")),
    }
    return replace_defaults(keys, **defaults)


_ema, _ema_decay = merge_switch("model_ema", "ema.decay", "model_ema_decay")
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
    "data_dir": Key(set_to("data.root")),
    "num_classes": Key(COUNTED),
    "img_size": Key(set_to("model.image_size")),
    "gp": Key(accept_only(None, why="the models pool as their papers do")),
    "crop_pct": Key(set_to("preprocess.crop")),
    "mean": Key(set_to("preprocess.mean")),
    "std": Key(set_to("preprocess.std")),
    "interpolation": Key(set_to("preprocess.interpolation")),
    "validation_batch_size_multiplier": Key(
        ignore("memory alone depends on it; evaluate.batch_size of `evaluate`")
    ),
    **_make_optimizer_keys(),
    "drop_connect": Key(accept_only(0, None, why="drop_path is its name")),
    "drop_block": Key(NO_DROP_BLOCK, None),
    "lr_cycle_mul": Key(accept_only(1, why="a cosine falls once")),
    "lr_cycle_limit": Key(accept_only(1, why="a cosine falls once")),
    "no_aug": Key(accept_only(False, why="augment.* turns off what varies images, each by itself")),
    "scale": Key(set_to("augment.scale"), [0.08, 1.0]),
    "ratio": Key(set_to("augment.ratio"), [3 / 4, 4 / 3]),
    "hflip": Key(set_to("augment.hflip"), 0.5),
    "vflip": Key(accept_only(0, why="images are mirrored left and right alone"), 0.0),
    **_make_augmentation_keys(),
    "mixup_off_epoch": Key(MIX_OFF, 0),
    "aug_splits": Key(accept_only(0, why="a batch is one view of each image"), 0),
    "jsd": Key(accept_only(False, why="training minimises cross-entropy"), False),
    "no_prefetcher": Key(_set_erase, False),
    **dict.fromkeys(
        ("bn_tf", "bn_momentum", "bn_eps", "sync_bn", "dist_bn", "split_bn"), Key(NO_BATCH_NORM)
    ),
    "model_ema": Key(_ema, False),
    "model_ema_decay": Key(_ema_decay, 0.9998),
    "model_ema_force_cpu": Key(ignore_switch("the average is kept beside the weights")),
    "log_interval": Key(set_to("train.log_every"), 50),
    "recovery_interval": Key(set_to("output.save_every_updates", read=read_interval)),
    "workers": Key(set_to("data.workers")),
    "num_gpu": Key(accept_only(1, why="torchrun starts a process for each card")),
    "save_images": Key(NOTED),
    "amp": Key(set_to("train.precision", read=_read_amp), False),
    "channels_last": Key(set_to("train.channels_last", read=read_switch), False),
    "output": Key(_set_output_root, ""),
    "pretrained": Key(start_from_published(), False),
    "pretrain_path": Key(start_from_weights, None),
    "no_resume_opt": Key(
        ignore_switch("`vitrail train --fork RUN` begins with a run's weights alone")
    ),
    "eval_metric": Key(ignore("train.monitor chooses the best epoch")),
    "tta": Key(accept_only(0, why="an image is seen once")),
    "use_multi_epochs_loader": Key(ignore("loader processes live as long as the run")),
}

TNT = Project(
    name="the official TNT code",
    models=("tnt", "ptnt"),
    aliases=_TIMM_ALIASES,
    keys=_TIMM_KEYS
    | {
        "model": Key(set_model("tnt", "ptnt"), "resnet101"),
        "repeated_aug": Key(set_to("augment.repeats", read=_read_repeated_aug), False),
        "evaluate": Key(_refuse_evaluation, False),
    },
)


def _set_t2t_model(value: Any, case: Case) -> Outcome:
    """Accept a T2T-ViT, whose names once began with a capital."""
    return set_model("t2t")(str(value).lower(), case)


T2T = Project(
    name="the official T2T-ViT code",
    models=("t2t",),
    aliases=_TIMM_ALIASES,
    keys=replace_defaults(
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
    | {"model": Key(_set_t2t_model, "T2t_vit_14"), "eval_checkpoint": Key(_refuse_evaluation, "")},
)


def _set_transfer_data(value: Any, case: Case) -> Outcome:
    """Read CIFAR, which their program downloads into ./data."""
    sets = {}
    for name in ("cifar10", "cifar100"):
        sets[name] = {"data.name": name, "data.root": "./data", "data.download": True}
    return choose(sets, "downloaded into ./data, as theirs")(value, case)


def _set_transfer_rate(value: Any, case: Case) -> Outcome:
    """Set the learning rate: in a transfer, the head's, of which the tokens and the blocks take a part."""
    if not read_switch(case.values["transfer_learning"]):
        return Outcome({"optim.lr": value})
    settings = {"optim.lr": value, "optim.backbone_scale": case.number("transfer_ratio")}
    note = (
        "theirs ends both rates at min_lr, ours the head's; theirs leaves the class token and the "
        "last norm as they are"
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
        "model": Key(_set_t2t_model, "T2t_vit_14"),
        "dataset": Key(_set_transfer_data, "cifar10"),
        "num_classes": Key(COUNTED),
        "img_size": Key(set_to("model.image_size"), 224),
        "batch_size": Key(set_global_batch, 128),
        "lr": Key(_set_transfer_rate, 0.01),
        "weight_decay": Key(set_to("optim.weight_decay"), 5e-4),
        "min_lr": Key(set_to("schedule.min_lr"), 2e-4),
        "drop": Key(DROPOUT, 0.0),
        "drop_path": Key(set_to("model.drop_path_rate"), 0.1),
        "drop_connect": Key(accept_only(0, None, why="drop_path is its name")),
        "drop_block": Key(NO_DROP_BLOCK, None),
        "gp": Key(accept_only(None, why="the models pool as their papers do")),
        **dict.fromkeys(("bn_tf", "bn_momentum", "bn_eps"), Key(NO_BATCH_NORM)),
        "pretrained": Key(start_from_published(), False),
        "transfer_learning": Key(ignore("with transfer_model"), False),
        "transfer_model": Key(start_from_weights, None),
        "transfer_ratio": Key(ignore("with lr"), 0.01),
    },
)


def _set_twins_lr(value: Any, case: Case) -> Outcome:
    """Set the peak rate, which is meant for a batch of 512 images."""
    note = (
        f"multiplied by images an update / 512, here {case.batch} / 512; their rate moves one "
        "epoch late, ours in time"
    )
    return Outcome({"optim.lr": value, "optim.lr_base_batch": 512}, note, "note")


def _set_twins_data(value: Any, case: Case) -> Outcome:
    """Set which images: folders, or CIFAR-100."""
    sets = {"imnet": {"data.name": None}, "cifar": {"data.name": "cifar100"}}
    return choose(sets)(value, case)


def _set_twins_device(value: Any, case: Case) -> Outcome:
    """Choose between the CPU and the accelerator that there is."""
    if value == "cpu":
        return Outcome({"train.device": "cpu"})
    return Outcome({"train.device": "auto"})


def _refuse_finetune(value: Any, case: Case) -> Outcome:
    """Refuse `finetune`, by which their program reads no file, and trains without drop path."""
    if read_text(value):
        raise ValueError(
            f"their program reads no weights by it; model.weights={value} begins with them"
        )
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
        **replace_defaults(
            _make_optimizer_keys(),
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
        **_make_augmentation_keys(**FILLED, train_interpolation="bicubic"),
        "model": Key(set_model(*TWINS_NAMES), "pvt_small"),
        "lr": Key(_set_twins_lr, 5e-4),
        "cooldown_epochs": Key(ignore("not run by their program, which ends with its epochs")),
        "input_size": Key(set_to("model.image_size"), 224),
        "repeated_aug": Key(set_to("augment.repeats", read=_read_repeated_aug), False),
        "no_repeated_aug": Key(ignore("so it is where repeated_aug is not written")),
        "finetune": Key(_refuse_finetune, ""),
        "data_path": Key(set_to("data.root")),
        "data_set": Key(_set_twins_data, "IMNET"),
        "use_mcloader": Key(NOTED),
        "inat_category": Key(ignore("of iNaturalist, which data.root=FOLDER reads as folders")),
        "output_dir": Key(_set_output_root, ""),
        "device": Key(_set_twins_device, "cuda"),
        "eval": Key(_refuse_evaluation, False),
        "dist_eval": Key(ignore("each image is measured once, by whatever number of processes")),
        "num_workers": Key(set_to("data.workers")),
        "no_pin_mem": Key(ignore("pinned memory changes no number")),
        "throughout": Key(ignore_switch("`vitrail bench` measures the speed")),
        "world_size": Key(ignore("torchrun says it")),
        "dist_url": Key(ignore("torchrun says it")),
    },
)

PROGRAMS = (TNT, T2T, TRANSFER, TWINS)
"""Programs whose flags are read without a file."""


def find_program(flags: Mapping[str, Any]) -> Project:
    """Return the program that flags are typed for: the one of the model that they name, which knows most of them."""
    names = [flag.replace("-", "_") for flag in flags]

    def count_known(program: Project) -> int:
        return sum(name in program.keys or name in program.aliases for name in names)

    model = str(flags.get("model", flags.get("arch", ""))).lower()
    of_model = [program for program in PROGRAMS if model and model.startswith(program.models)]
    return max(of_model or PROGRAMS, key=count_known)
