"""By which names moving averages of weights are known, and the names under which programs store them.

An average is known by a word for one in its prefix, by torch's counter `n_averaged`, or by the
programs that swap the average and the weights when they save (mmengine, mmcv, Lightning, Composer).
"""

from __future__ import annotations

import re

from vitrail.weights.formats.weight_file import WeightFile

AVERAGE_WORDS = {
    "ema",
    "swa",
    "avg",
    "average",
    "averaged",
    "averages",
    "shadow",
    "polyak",
    "smoothed",
}
"""Words in the name of a moving average."""
CURRENT_WORDS = {"online", "current", "raw", "live"}
"""Words for the weights themselves, where both stand together."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""One word of a name such as model_ema, modelEma or EMACallback."""


def holds_average(file: WeightFile, prefix: str) -> bool:
    """Say whether the weights behind a prefix are a moving average."""
    for start, is_average in _swapped_prefixes(file).items():
        if prefix.startswith(start):
            return is_average
    segments = prefix.rstrip(".").split(".")
    if segments[-1] == "module" and prefix.removesuffix("module.") + "n_averaged" in file.tensors:
        return True  # torch.optim.swa_utils
    for segment in reversed(segments):
        words = {word.lower() for word in WORD.findall(segment)}
        if words & CURRENT_WORDS:
            return False
        if words & AVERAGE_WORDS:
            return True
    return False


def _swapped_prefixes(file: WeightFile) -> dict[str, bool]:
    """Return whether averages are behind which prefixes, for programs that swap them with the weights on saving."""
    entries = file.entries.keys()
    is_of_mmengine = {"meta", "message_hub"} & entries or "ema_state_dict.steps" in file.tensors
    if {"state_dict", "ema_state_dict"} <= entries and is_of_mmengine:
        return {"state_dict.": True, "ema_state_dict.": False}
    if {"state_dict", "current_model_state", "averaging_state"} <= entries:
        return {"state_dict.": True, "current_model_state.": False}  # Lightning
    if file.swapped_out is not None:  # Composer
        above = file.swapped_out.partition("algorithms.")[0]
        return {file.swapped_out: False, f"{above}model.": True}
    return {}


def pair_mmcv_names(names: list[str]) -> dict[str, str]:
    """Return the other name of each weight that mmcv keeps twice in one place.

    That is `ema_` and the weight's own name, with underscores for its dots.
    """
    others = {name for name in names if name.rpartition(".")[2].startswith("ema_")}
    pairs = {}
    for place in {name[: name.rfind(".") + 1] for name in others}:
        for name in names:
            other = f"{place}ema_{name.removeprefix(place).replace('.', '_')}"
            if name.startswith(place) and other in others:
                pairs[name] = other
    return pairs


def group_dotless_names(names: list[str]) -> dict[str, dict[str, str]]:
    """Return the names that LitEma of latent diffusion keeps in each place, by themselves without dots and place.

    LitEma always has two numbers, `num_updates` and `decay`, beside the names.
    """
    known = {*names}
    groups = {}
    for name in names:
        place = name.removesuffix(".num_updates")
        if place != name and f"{place}.decay" in known:
            members = [member for member in names if member.startswith(f"{place}.")]
            groups[place] = {member.removeprefix(f"{place}."): member for member in members}
    return groups
