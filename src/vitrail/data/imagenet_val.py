"""Sort ImageNet's validation images into class folders, by the labels in its development kit."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import DataError

TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
"""File of the kit with the class number of each validation image."""
SYNSETS = "data/meta.mat"
"""File of the kit with the WNID of each class number."""


@dataclass(frozen=True)
class Prepared:
    """Numbers of images in a prepared validation folder."""

    moved: int
    """Images that were moved into their class folder."""
    there: int
    """Images that were in their class folder already."""
    absent: int
    """Images that the text file names and the folder lacks."""


def prepare_imagenet_val(folder: Path, devkit: Path) -> Prepared:
    """Move each ILSVRC2012_val_*.JPEG of a folder into one named by its WNID; an interrupted call can be repeated.

    Args:
        folder: Folder of the images, which lie flat in it.
        devkit: The development kit ILSVRC2012_devkit_t12, as the .tar.gz or unpacked.

    Raises:
        DataError: One of them is not what it should be, or an image cannot be moved.
    """
    numbers, wnids = read_devkit(devkit)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give the one with ILSVRC2012_val_00000001.JPEG and so on"
        )
    moved = there = 0
    for index, number in enumerate(numbers, 1):
        name = f"ILSVRC2012_val_{index:08d}.JPEG"
        target = folder / wnids[number] / name
        if (folder / name).is_file():
            try:
                target.parent.mkdir(exist_ok=True)
                (folder / name).rename(target)
            except OSError as error:
                raise DataError(f"{target}: cannot be moved there ({error.strerror})") from error
            moved += 1
        elif target.is_file():
            there += 1
    if not moved + there:
        raise DataError(
            f"{folder}: holds no ILSVRC2012_val_00000001.JPEG and so on, neither flat nor by class"
        )
    return Prepared(moved, there, len(numbers) - moved - there)


def read_devkit(devkit: Path) -> tuple[list[int], dict[int, str]]:
    """Return the class number of each validation image, and the WNID of each number.

    Raises:
        DataError: The file or folder is no development kit.
    """
    from scipy.io import loadmat  # takes a second to import, and only this needs it

    try:
        truth = _read_member(devkit, TRUTH)
        synsets = _read_member(devkit, SYNSETS)
        numbers = list(map(int, truth.decode().split()))
        rows = loadmat(io.BytesIO(synsets), squeeze_me=True)["synsets"]
        # inner nodes of WordNet's tree are no classes
        wnids = {}
        for row in rows:
            if int(row["num_children"]) == 0:
                wnids[int(row["ILSVRC2012_ID"])] = str(row["WNID"])
        unknown = sorted(set(numbers) - wnids.keys())
        wrong = [wnid for wnid in wnids.values() if re.fullmatch(r"n\d{8}", wnid) is None]
        if unknown or wrong or not numbers:
            raise ValueError(f"its two files disagree about {[*unknown, *wrong][:1]}")
    except (OSError, KeyError, ValueError, TypeError, IndexError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{devkit}: is not ImageNet's development kit ({reason}); give "
            "ILSVRC2012_devkit_t12.tar.gz, or its folder"
        ) from error
    return numbers, wnids


def _read_member(devkit: Path, name: str) -> bytes:
    if devkit.is_dir():
        return (devkit / name).read_bytes()
    with tarfile.open(devkit) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(f"/{name}"):
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise KeyError(f"there is no {name}")
