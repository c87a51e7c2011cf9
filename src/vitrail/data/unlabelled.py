"""Images without labels: a folder's at any depth, and those of lists, shards and sets whose labels are not read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitrail.data.folders import (
    Ignored,
    Listing,
    describe_changes,
    read_changes,
    visible_folders,
    walk,
)
from vitrail.data.manifest import Manifest
from vitrail.data.paths import Paths
from vitrail.data.sources import UNLABELLED, FileSource, PixelSource, Source
from vitrail.errors import DataError, list_some, printable

PLACE = ("*", "*")
"""What stands for the names of splits where the manifest of a whole folder is kept: no folder is called so."""


def list_unlabelled(root: Path) -> Listing:
    """List all images below a folder, whatever the folders between are called.

    Raises:
        DataError: It is not there, cannot be read, or holds no image.
    """
    folders = visible_folders(root)  # which says what is wrong with the folder
    ignored = Ignored()
    try:
        paths = Paths.of(map(os.fsencode, walk(root, "", ignored)))
        changed = read_changes(root)
    except OSError as error:
        raise DataError(f"data.root {printable(root)}: cannot be read ({error})") from error
    if not len(paths):
        looked = (
            f", there or in its {len(folders)} folders ({list_some(folders)})" if folders else ""
        )
        raise DataError(
            f"data.root {printable(root)}: holds no image{looked}; give the folder of your "
            f"images{ignored.hint()}"
        )
    source = FileSource(
        folder=root,
        paths=paths,
        labels=np.zeros(len(paths), np.int32),
        classes=UNLABELLED,
        description=printable(root),
        notes=((describe_changes(changed),) if changed else ()) + ignored.notes(root),
    )
    return Listing(root, source, None, ())


def drop_labels(source: Source) -> Source:
    """Return the images of a named set without their labels."""
    assert isinstance(source, FileSource | PixelSource)  # which all named sets are
    return replace(source, labels=np.zeros(len(source), np.int32), classes=UNLABELLED)


def drop_labels_of(manifest: Manifest) -> Manifest:
    """Return a manifest without the labels of its images."""
    return replace(
        manifest, label=np.zeros(len(manifest), np.int32), classes=UNLABELLED, label_sets=None
    )
