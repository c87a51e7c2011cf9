"""The flags that commands of other projects are typed with, as our command line reads them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.errors import ConfigError, suggest
from vitrail.migrate.recipes import FORMATS, YAML, find_export_format
from vitrail.migrate.translate import KEYS

COMMANDS = ("train", "evaluate", "predict", "export", "config", "tune")
SHORT = {
    "c": "config",
    "b": "batch_size",
    "vb": "validation_batch_size_multiplier",
    "j": "workers",
    "a": "arch",
    "n": "iters",
}
"""Long names of their flags of one hyphen."""
FILES = ("config", "config_path", "tnt_config")
"""Flags that name a file of settings."""
WEIGHTS = (
    "ckpt_path",
    "pretrained",
    "checkpoint",
    "pretrain_path",
    "initial_checkpoint",
    "eval_checkpoint",
    "resume",
)
"""Flags that name a weight file."""
OF_MODEL = {
    "arch": "model",
    "model": "model",
    "image_size": "options.image_size",
    "img_size": "options.image_size",
}
"""Flags that `predict` and `export` take without a file of settings, and their place in our section
`weights`."""
KNOWN = {*KEYS, *FILES, *WEIGHTS, *FORMATS, "extra"}
BARE = {
    "amp", "apex_amp", "bn_tf", "channels_last", "collect_input_data", "dist_eval", "dump_graph",
    "eval", "evaluate", "exclude_epoch_state", "extra", "jsd", "model_ema", "model_ema_force_cpu",
    "native_amp", "no_aug", "no_pin_mem", "no_prefetcher", "no_repeated_aug", "no_resume_opt",
    "pin_mem", "repeated_aug", "resplit", "run_modelarts", "save_images", "split_bn", "sync_bn",
    "throughout", "use_mcloader", "use_multi_epochs_loader",
}  # fmt: skip
"""Flags that stand alone; others may, where no value follows."""


@dataclass
class _Rewritten:
    """A command as our command line reads it, while it is put together."""

    command: str
    words: list[str]
    """Arguments that are no flags."""
    flags: list[str]
    """Our flags, with their values."""
    notes: list[str] = field(default_factory=list)
    """Flags that the command has no use for."""
    config: str | None = None
    """File of settings."""
    checkpoint: str | None = None
    """Weight file."""


def translate_flags(tokens: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Rewrite the flags of other projects in a command into those that our command line reads.

    `--data_dir X` becomes `data_dir=X`, a file becomes --config, and a weight file the first
    argument of the commands that read one. Hyphens and underscores are alike.

    Args:
        tokens: One of COMMANDS and the arguments that follow it.
        own: Our own flags of that command, and whether each takes a value.

    Returns:
        The tokens, and a note for each flag that the command has no use for.

    Raises:
        ConfigError: A flag that is nearly one of theirs, or a value that cannot be had.
    """
    command = tokens[0]
    words, flags, theirs = _parse(tokens[1:], own)
    if not theirs:
        return [command, *words, *flags], []

    ours = _Rewritten(command, words, flags)
    has_file = any(name in FILES for name, _ in theirs)
    for name, value in theirs:
        _add_flag(ours, name, value, has_file)

    if command == "export" and "--format" not in ours.flags:
        _add_usual_format(ours)
    if command == "evaluate" and ours.checkpoint is not None:
        _sort_words_of_evaluate(ours)
    if ours.checkpoint is not None:
        ours.words.insert(0, ours.checkpoint)
    if ours.config is not None and command == "config":
        ours.words.insert(0, ours.config)
    elif ours.config is not None:
        ours.flags += ["--config", ours.config]
    return [command, *ours.words, *ours.flags], ours.notes


def _add_flag(ours: _Rewritten, name: str, value: str, has_file: bool) -> None:
    """Add a flag of theirs to the command, in the form that the command reads."""
    command = ours.command
    uses_weights = command in ("evaluate", "predict", "export")
    # predict and export ask the weight file for all else, unless a file of settings describes it
    is_terse = command in ("predict", "export")
    if name in FILES:
        ours.config = value
    elif name in WEIGHTS and uses_weights:
        if name == "pretrained" and value.lower() in ("true", "false"):
            if value.lower() == "true" and ours.checkpoint is None:
                # with a file of settings it is a flag of MindCV, which means MindCV's own weights
                ours.checkpoint = "pretrained:mindcv" if has_file else "pretrained"
            return
        if value == "true":
            raise ConfigError(f"--{name}: names no file; write --{name} FILE")
        ours.checkpoint = value
    elif name in FORMATS and command == "export":
        ours.flags += ["--format", _find_format_name(f"--{name}", value)]
    elif name == "device_target" and command == "predict":
        device = "cpu" if value.lower() == "cpu" else "auto"
        ours.flags += ["--device", device]
    elif is_terse and has_file and name not in ("device_target", "device_id", "extra"):
        ours.words.append(f"{name}={value}")
    elif is_terse and name in OF_MODEL:
        ours.words.append(f"weights.{OF_MODEL[name]}={value}")
    elif is_terse:
        ours.notes.append(
            f"--{name} {value}: not needed; the weight file says what `vitrail {command}` has to "
            "know"
        )
    elif name != "extra":  # after which a shell script hands on what follows
        ours.words.append(f"{name}={value}")


def _add_usual_format(ours: _Rewritten) -> None:
    """Add the format that their program writes, which for most programs is MindIR by default."""
    usual = None
    if ours.config is not None:
        usual = find_export_format(ours.config)
    ours.flags += ["--format", _find_format_name(ours.config or "", usual or "MINDIR")]


def _sort_words_of_evaluate(ours: _Rewritten) -> None:
    """Tell a file of settings and a folder of images, which stand first in their commands, by what they are."""
    words = []
    for word in ours.words:
        if "=" in word:
            words.append(word)
        elif Path(word).suffix in YAML:
            ours.config = word
        else:
            words.append(f"data_dir={word}")
    ours.words = words


def _parse(
    tokens: Sequence[str], own: Mapping[str, bool]
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Return words that are no flags, our own flags with their values, and (name, value) of theirs."""
    rest = list(tokens)
    words: list[str] = []
    flags: list[str] = []
    theirs: list[tuple[str, str]] = []
    while rest:
        token = rest.pop(0)
        match = re.fullmatch(r"(--?)([A-Za-z][\w-]*)(?:=(.*))?", token, re.DOTALL)
        if match is None:
            words.append(token)
            continue
        hyphens, name, value = match.groups()
        name = name.replace("-", "_")
        if hyphens == "-":
            name = SHORT.get(name, "")
        flag = "--" + name.replace("_", "-")
        # --resume is ours, and their other flags of files and weights go before ours of that name
        if flag in own and (name == "resume" or name not in (*WEIGHTS, *FILES)):
            flags.append(flag if value is None else f"{flag}={value}")
            if own[flag] and value is None and rest:
                flags.append(rest.pop(0))
        elif name in KNOWN:
            if value is None:
                value = _take_values(name, rest)
            theirs.append((name, value))
        elif hint := suggest(f"--{name}", [f"--{key}" for key in (*KEYS, *FILES)], 0.8):
            raise ConfigError(f"{token}: unknown option{hint}")
        else:
            flags.append(token)
    return words, flags, theirs


def _find_format_name(where: str, value: str) -> str:
    """Return our name of a format of exported files."""
    if value.upper() == "AIR":
        raise ConfigError(
            f"{where} says AIR, which Ascend 910 alone can write; it can be MINDIR or ONNX"
        )
    return value.lower()


def _take_values(name: str, rest: list[str]) -> str:
    """Take the value or the values of a flag from what follows it; one that stands alone is true."""
    if not rest or re.match(r"--?[A-Za-z]|[a-z_]+(\.\w+)+=", rest[0]):
        return "true"
    if name in BARE and rest[0].lower() not in ("true", "false", "0", "1"):
        return "true"
    values = [rest.pop(0)]
    # argparse's flags of several values, such as --opt-betas 0.9 0.999
    while _is_number(values[0]) and rest and _is_number(rest[0]):
        values.append(rest.pop(0))
    if len(values) == 1:
        return values[0]
    return f"[{', '.join(values)}]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
