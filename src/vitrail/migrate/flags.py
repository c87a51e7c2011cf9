"""The flags that commands of other projects are typed with, as our command line reads them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitrail.errors import ConfigError, closest
from vitrail.migrate.recipes import FORMATS, YAML, file_format
from vitrail.migrate.translate import KEYS

COMMANDS = ("train", "evaluate", "predict", "export", "config")
SHORT = {
    "c": "config", "b": "batch_size", "vb": "validation_batch_size_multiplier", "j": "workers", "a": "arch",
}  # fmt: skip
FILES = ("config", "config_path", "tnt_config")
WEIGHTS = ("ckpt_path", "pretrained", "checkpoint", "pretrain_path", "initial_checkpoint", "eval_checkpoint", "resume")
OF_MODEL = {
    "arch": "model", "model": "model", "image_size": "options.image_size", "img_size": "options.image_size",
}  # fmt: skip
"""What `predict` and `export` take without a file, and where it stands in our section `weights`."""
KNOWN = {*KEYS, *FILES, *WEIGHTS, *FORMATS, "extra"}
BARE = (
    "amp", "apex_amp", "channels_last", "collect_input_data", "dump_graph", "evaluate", "exclude_epoch_state", "extra",
    "jsd", "model_ema", "native_amp", "pin_mem", "repeated_aug", "resplit", "run_modelarts", "eval", "dist_eval",
    "no_aug", "no_repeated_aug", "no_pin_mem", "no_prefetcher", "no_resume_opt", "use_mcloader", "throughout", "bn_tf",
    "sync_bn", "split_bn", "model_ema_force_cpu", "save_images", "use_multi_epochs_loader",
)  # fmt: skip
"""Flags that stand alone; others may, where no value follows."""


def translate_flags(tokens: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Rewrite the flags of other projects in a command into what our command line reads.

    `--data_dir X` becomes `data_dir=X`, a file becomes --config, and a weight file the first argument of the commands
    that read one. Hyphens and underscores are alike.

    Args:
        tokens: One of COMMANDS and what follows it.
        own: Our own flags of that command, and whether each takes a value.

    Returns:
        The tokens, and a note for each flag that the command has no use for.

    Raises:
        ConfigError: A flag that is nearly one of theirs, or a value that cannot be had.
    """
    command = tokens[0]
    words, kept, theirs = _parse(tokens[1:], own)
    if not theirs:
        return [command, *words, *kept], []
    notes: list[str] = []
    config = checkpoint = None
    described = any(name in FILES for name, _ in theirs)
    for name, value in theirs:
        if name in FILES:
            config = value
        elif name in WEIGHTS and command in ("evaluate", "predict", "export"):
            if value == "true":
                raise ConfigError(f"--{name}: nothing is downloaded here; fetch the file and write --{name} FILE")
            checkpoint = value
        elif name in FORMATS and command == "export":
            kept += ["--format", _our_format(f"--{name}", value)]
        elif name == "device_target" and command == "predict":
            kept += ["--device", "cpu" if value.lower() == "cpu" else "auto"]
        elif command in ("predict", "export") and described and name not in ("device_target", "device_id", "extra"):
            words.append(f"{name}={value}")
        elif command in ("predict", "export") and name in OF_MODEL:
            words.append(f"weights.{OF_MODEL[name]}={value}")
        elif command in ("predict", "export"):
            notes.append(f"--{name} {value}: not needed; the weight file says what `vitrail {command}` has to know")
        elif name != "extra":  # after which a shell script hands on what follows
            words.append(f"{name}={value}")
    if command == "export" and "--format" not in kept:
        theirs_is = file_format(config) if config is not None else None
        kept += ["--format", _our_format(config or "", theirs_is or "MINDIR")]  # which is most programs' default
    if command == "evaluate" and checkpoint is not None:
        words, config = _places_of_evaluate(words, config)
    if checkpoint is not None:
        words.insert(0, checkpoint)
    if config is not None and command == "config":
        words.insert(0, config)
    elif config is not None:
        kept += ["--config", config]
    return [command, *words, *kept], notes


def _parse(tokens: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Return words that are no flags, our own flags with their values, and (name, value) of theirs."""
    rest = list(tokens)
    words: list[str] = []
    kept: list[str] = []
    theirs: list[tuple[str, str]] = []
    while rest:
        token = rest.pop(0)
        match = re.fullmatch(r"(--?)([A-Za-z][\w-]*)(?:=(.*))?", token, re.DOTALL)
        if match is None:
            words.append(token)
            continue
        name, value = match[2].replace("-", "_"), match[3]
        if match[1] == "-":
            name = SHORT.get(name, "")
        flag = "--" + name.replace("_", "-")
        if flag in own and (name not in (*WEIGHTS, *FILES) or name == "resume"):
            kept.append(flag if value is None else f"{flag}={value}")
            kept += [rest.pop(0)] if own[flag] and value is None and rest else []
        elif name in KNOWN:
            theirs.append((name, _take_values(name, rest) if value is None else value))
        elif hint := closest(f"--{name}", [f"--{key}" for key in (*KEYS, *FILES)], 0.8):
            raise ConfigError(f"{token}: unknown option{hint}")
        else:
            kept.append(token)
    return words, kept, theirs


def _our_format(where: str, value: str) -> str:
    """Return what we call a kind of file."""
    if value.upper() == "AIR":
        raise ConfigError(f"{where} says AIR, which Ascend 910 alone can write; it can be MINDIR or ONNX")
    return value.lower()


def _places_of_evaluate(words: Sequence[str], config: str | None) -> tuple[list[str], str | None]:
    """Tell a file and a folder of images, which stand first in their commands, by what they are."""
    found = []
    for word in words:
        if "=" in word:
            found.append(word)
        elif Path(word).suffix in YAML:
            config = word
        else:
            found.append(f"data_dir={word}")
    return found, config


def _take_values(name: str, rest: list[str]) -> str:
    """Take the value or the values of a flag from what follows it; one that stands alone is true."""
    if not rest or re.match(r"--?[A-Za-z]|[a-z_]+(\.\w+)+=", rest[0]):
        return "true"
    if name in BARE and rest[0].lower() not in ("true", "false", "0", "1"):
        return "true"
    values = [rest.pop(0)]
    while _is_number(values[0]) and rest and _is_number(rest[0]):
        values.append(rest.pop(0))
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
