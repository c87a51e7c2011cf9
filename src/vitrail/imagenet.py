"""The classes of ImageNet-1k, in the order of the published models' logits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

COUNT = 1000


@cache
def wnids() -> tuple[str, ...]:
    """Return the WordNet ids, which are also the folders' names."""
    from timm.data.imagenet_info import ImageNetInfo  # importing timm takes seconds, and few files need it

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def by_name() -> dict[str, int]:
    """Return the index of every id and English name, less the names that two classes share, such as crane."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    found: dict[str, int] = {}
    shared = set()
    for index, wnid in enumerate(wnids()):
        for name in {plain(text) for text in (wnid, *info.index_to_description(index).split(","))}:
            if found.setdefault(name, index) != index:
                shared.add(name)
    return {name: index for name, index in found.items() if name not in shared}


def english(names: Iterable[str]) -> dict[str, str]:
    """Return the first English name of each id that is among some names of classes."""
    ids = {name for name in names if re.fullmatch(r"n\d{8}", name)}
    if not ids:
        return {}
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {wnid: info.index_to_description(index).split(",")[0] for index, wnid in enumerate(wnids()) if wnid in ids}


def plain(name: str) -> str:
    """Return a class name without case, and with spaces for whatever stands between words; marks belong to words."""
    name = unicodedata.normalize("NFC", name).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in name).split())


IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)
