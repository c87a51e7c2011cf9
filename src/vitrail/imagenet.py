"""ImageNet-1k: its classes in the order of the published models' logits, and the mean and std of its pixels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

NUM_CLASSES = 1000
"""Number of classes."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel, for pixels from 0 to 1."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel, for pixels from 0 to 1."""


@cache
def list_wordnet_ids() -> tuple[str, ...]:
    """Return the WordNet ids, which are also the folders' names."""
    # importing timm takes seconds, and few files need it
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def index_by_name() -> dict[str, int]:
    """Return the index of every id and English name, less the names that two classes share, such as crane."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    indices: dict[str, int] = {}
    shared = set()
    for index, wnid in enumerate(list_wordnet_ids()):
        synonyms = info.index_to_description(index).split(",")
        for name in {normalise_name(text) for text in (wnid, *synonyms)}:
            if indices.setdefault(name, index) != index:
                shared.add(name)
    return {name: index for name, index in indices.items() if name not in shared}


def find_english_names(names: Iterable[str]) -> dict[str, str]:
    """Return the first English name of each WordNet id that is among some names of classes."""
    ids = {name for name in names if re.fullmatch(r"n\d{8}", name)}
    # most data sets have none, and need not wait for timm
    if not ids:
        return {}
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    english_names = {}
    for index, wnid in enumerate(list_wordnet_ids()):
        if wnid in ids:
            english_names[wnid] = info.index_to_description(index).split(",")[0]
    return english_names


def normalise_name(name: str) -> str:
    """Return a class name without case, and with spaces for the characters between words; marks belong to words."""
    name = unicodedata.normalize("NFC", name).casefold()
    characters = []
    for character in name:
        # L letters, M marks such as accents, N numbers
        is_of_word = unicodedata.category(character)[0] in "LMN"
        characters.append(character if is_of_word else " ")
    return " ".join("".join(characters).split())
