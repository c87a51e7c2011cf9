"""The token labels of a run: opened, compared with its images, and what cannot learn from them refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vitrail.config.commands import TrainConfig
from vitrail.data.opening import Data
from vitrail.display import Display
from vitrail.distillation.label_tokens import describe_data, refuse_sets
from vitrail.distillation.token_labels import TokenLabels
from vitrail.distillation.token_maps import (
    MapFiles,
    MapLayout,
    read_about_maps,
    refuse_other_maps,
)
from vitrail.distributed.processes import share
from vitrail.errors import CheckpointError, ConfigError, VitrailError
from vitrail.models.family import VisionModel

MOST_NAMES = 3
"""Images without a map that are named."""


def build_token_labels(
    config: TrainConfig,
    data: Data,
    model: VisionModel,
    accelerator: Accelerator,
    display: Display,
) -> TokenLabels | None:
    """Open the token labels that the settings name, if they do. Collective.

    Raises:
        CheckpointError: There are none, or the file that says what they are is damaged.
        ConfigError: They are of other images, or this model cannot learn from them.
        DataError: A file of them is missing or not whole.
    """
    section = config.token_labels
    if section.folder is None:
        return None
    if not model.embedding:
        raise ConfigError(
            f"token_labels.folder: {config.model.name} has no tokens that are known here; take a "
            "TNT, a T2T-ViT, a Twins or a PyramidTNT"
        )
    refuse_sets(data.train)
    folder = Path(section.folder).expanduser()
    opened: tuple[dict[str, Any], MapFiles, list[int]] | VitrailError | None = None
    if accelerator.is_main_process:
        try:
            opened = _open(folder, config, data)
        except VitrailError as error:
            opened = error
    opened = share(accelerator, opened)
    if isinstance(opened, VitrailError):  # on all ranks alike, so that none waits for another
        raise opened
    assert opened is not None
    about, files, unknown = opened
    _tell(files, about, unknown, data, display)
    return TokenLabels(
        section=section,
        files=files,
        about=about,
        digest=hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest(),
        grid=model.map_size(-1),
        smoothing=config.augment.label_smoothing,
        device=accelerator.device,
    )


def _open(
    folder: Path, config: TrainConfig, data: Data
) -> tuple[dict[str, Any], MapFiles, list[int]]:
    """Return what the labels are of, their files, and the images without a map."""
    about = read_about_maps(folder)
    refuse_other_maps(folder, about, {"data": describe_data(config.data, data.train)})
    try:
        height, width = map(int, about["grid"])
        layout = MapLayout(len(data.classes), int(about["topk"]), (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: does not say what its labels are ({error!r})") from error
    files = MapFiles(folder, layout, len(data.train))
    files.check_sizes()
    unknown = files.list_unknown()
    files.close()
    return about, files, unknown


def _tell(
    files: MapFiles, about: dict[str, Any], unknown: list[int], data: Data, display: Display
) -> None:
    """Say who labelled the tokens, and which images have no labels."""
    teacher, (height, width) = about["teacher"], files.layout.grid
    display.note(
        f"token labels {files.folder}: {height}x{width} tokens an image by {teacher['model']}, "
        f"digest {teacher['digest'][:16]}"
    )
    if unknown:
        names = ", ".join(data.train.name(index) for index in unknown[:MOST_NAMES])
        more = f" and {len(unknown) - MOST_NAMES:,} more" if len(unknown) > MOST_NAMES else ""
        have = (
            "has no token labels, and its" if len(unknown) == 1 else "have no token labels; their"
        )
        display.warn(f"{names}{more}: {have} tokens learn the class of the image")


def origin_of_labels(labels: TokenLabels | None) -> dict[str, Any]:
    """Return the provenance that weights have of token labels, empty where they had none."""
    if labels is None:
        return {}
    teacher = labels.about["teacher"]
    return {
        "token_labels": {
            "folder": str(labels.files.folder),
            "digest": labels.digest,
            "model": teacher["model"],
            "teacher": teacher["digest"],
            "grid": list(labels.files.layout.grid),
            "topk": labels.files.layout.of_token.kept,
        }
    }
