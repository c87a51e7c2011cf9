"""The commands of data sets: check-data, pack and resize-data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vitrail.cli.options import Settings, read_whole_number
from vitrail.cli.tables import show_line, show_result
from vitrail.errors import command

if TYPE_CHECKING:
    from vitrail.api.data import DataCheck

OF_LISTS = ("list", "path_column", "label_column", "labels_column", "train_split", "val_split")
"""Settings of data that are settled once a list is packed."""


def check_data(
    *settings: Settings,
    output: Annotated[Path, Parameter(help="Folder for the page and the same as JSON.")] = Path(
        "data-check"
    ),
    imagenet_devkit: Annotated[
        Path | None,
        Parameter(help="First bring ImageNet's validation images into class folders, by this kit."),
    ] = None,
    suspects: Annotated[
        Path | None,
        Parameter(
            help="Weight file by whose features labels are found that look wrong; suspects.csv has all of them."
        ),
    ] = None,
) -> int:
    """Look at every image of a folder, and say what is wrong with them; status 1 if anything is.

    What was looked at is kept, and only files that have changed are read again.

    ```
    vitrail check-data data.root=/data/pets
    vitrail check-data data.root=/data/pets --suspects best.safetensors
    vitrail check-data data.root=/data/imagenet data.manifest=imagenet.manifest
    vitrail check-data data.root=/data/imagenet --imagenet-devkit ILSVRC2012_devkit_t12.tar.gz
    ```
    """
    from vitrail.api import data as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        check = api.check_data(
            settings,
            output=output,
            imagenet_devkit=imagenet_devkit,
            suspects=suspects,
            display=display,
        )
    show_result(check)
    if check.has_errors:
        print("mend what is wrong first")
    elif suspects is not None:
        # the recipe of ImageNet is for another size than such weights may have
        data = [text.removeprefix("data.root=").removeprefix("data.list=") for text in settings]
        show_line(f"next: {command('finetune', *data, '--weights', suspects)}")
    else:
        fitted = [*_for_labels(check.multi_label), *_for_numbers(check)]
        show_line(f"next: {command('train', 'tnt_s_imagenet', *settings, *fitted)}")
    return int(check.has_errors)


def _for_labels(multi_label: bool) -> list[str]:
    """Return what a recipe for one class an image needs beside it where an image has any number."""
    return ["augment.label_smoothing=0"] if multi_label else []


def _for_numbers(check: DataCheck) -> list[str]:
    """Return what a recipe for photographs needs beside it for other images."""
    if check.is_picture:
        return []
    measured = check.statistics["pixels"]
    fitted = []
    for name in ("mean", "std"):
        values = [round(value, 4) for value in measured[name]]
        fitted.append(f"preprocess.{name}={json.dumps(values, separators=(',', ':'))}")
    return ["augment.auto_augment=null", *fitted]


def pack(
    *settings: Settings,
    output: Annotated[Path, Parameter(help="Folder for the shards and their index.")],
    shard_mb: Annotated[
        int,
        Parameter(
            converter=read_whole_number,
            help="Megabytes that a shard has at most, in millions of bytes.",
        ),
    ] = 512,
) -> int:
    """Pack a folder of images into tar shards, for disks that are slow with many small files.

    The files are copied as they are. Training and evaluation give the same numbers on the shards as
    on the folder.

    ```
    vitrail pack data.root=/data/imagenet --output /fast/imagenet
    vitrail train tnt_s_imagenet data.root=/fast/imagenet
    ```
    """
    from vitrail.api import data as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        packed = api.pack(settings, output=output, shard_mb=shard_mb, display=display)
    show_result(packed)
    is_list = any(text.startswith("data.list=") and text != "data.list=null" for text in settings)
    here = _with_root(settings, packed.folder, OF_LISTS if is_list else ())
    show_line(
        f"next: {command('train', 'tnt_s_imagenet', *here, *_for_labels(packed.multi_label))}"
    )
    show_line(f"      {command('check-data', *here)}  # also verifies the shards")
    return 0


def resize_data(
    *settings: Settings,
    output: Annotated[Path, Parameter(help="Folder to write, of the same structure.")],
    short_side: Annotated[
        int,
        Parameter(
            converter=read_whole_number,
            help="Pixels of the shorter side of the new images; smaller ones are copied.",
        ),
    ],
    quality: Annotated[
        int,
        Parameter(
            converter=read_whole_number, help="Quality of JPEG and lossy WebP, from 1 to 100."
        ),
    ] = 95,
) -> int:
    """Write a folder of images anew with fewer pixels, to be read and decoded in less time.

    The new folder says that its pixels were changed, and so do the weights trained on it. What was
    stopped goes on when it is called again.

    ```
    vitrail resize-data data.root=/data/imagenet --output /data/imagenet-256 --short-side 256
    ```
    """
    from vitrail.api import data as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        resized = api.resize_data(
            settings, output=output, short_side=short_side, quality=quality, display=display
        )
    show_result(resized)
    show_line(f"next: {command('train', 'tnt_s_imagenet', *_with_root(settings, resized.folder))}")
    show_line(f"      {command('pack', f'data.root={resized.folder}', '--output', 'SHARDS')}")
    return 0


def _with_root(settings: Sequence[str], root: Path, settled: Sequence[str] = ()) -> list[str]:
    """Return settings of data for what was made of it elsewhere, where some are settled."""
    dropped = tuple(f"data.{name}=" for name in ("root", "manifest", *settled))
    return [f"data.root={root}", *(text for text in settings if not text.startswith(dropped))]
