"""Find labels that look wrong: by the loss of a linear layer on features of pretrained weights, out of fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vitrail.config.sections import DataSection
from vitrail.data.audit.near_duplicates import find_equal, find_near_pairs
from vitrail.data.audit.suspects import Suspect
from vitrail.data.manifest import Manifest
from vitrail.data.opening import list_files_read
from vitrail.data.sources import TRAIN, VAL
from vitrail.display import Display
from vitrail.distributed.processes import processes
from vitrail.embedding.embed import open_weights_for_features
from vitrail.embedding.extract import Extractor
from vitrail.embedding.probe import assign_folds, out_of_fold_losses
from vitrail.embedding.store import cached_features
from vitrail.errors import ConfigError, DataError, write_option
from vitrail.evaluation.match import check_pixels
from vitrail.weights.opened import Opened


def open_judge(weights: Path, section: DataSection, display: Display) -> Opened:
    """Open the weights by whose features labels are judged.

    Raises:
        CheckpointError: The weight file is damaged or of no known kind.
        ConfigError: It is an exported file, or reads images otherwise than the settings say.
    """
    opened = open_weights_for_features(weights, [], display)
    check_pixels(opened.record, section, weights)
    return opened


def find_suspects(
    opened: Opened, weights: Path, section: DataSection, manifest: Manifest, display: Display
) -> list[Suspect]:
    """Return the images whose label another class is likelier than, those with the largest loss first.

    Copies and near copies of an image are in one fold, so that none vouches for another's label.

    Args:
        opened: What `open_judge` returns.
        weights: The file that it was read from.
        section: Settings of the data.
        manifest: The images, inspected.
        display: Shows progress, notes and warnings.

    Raises:
        ConfigError: Images have several classes.
        DataError: All images have one class, or none can be read.
    """
    where = write_option("suspects", weights)
    if manifest.label_sets is not None:
        raise ConfigError(
            f"{where}: is for one class an image, and these have any number; leave it out for them"
        )
    if len(np.unique(manifest.label)) < 2:
        raise DataError(
            f"{where}: all {len(manifest):,} images have the same class, so no label can look "
            "wrong; leave it out"
        )
    values = []
    with processes("float32", "auto") as accelerator:
        extractor = Extractor(
            model=opened.build(accelerator.device), preprocess=opened.record.preprocess
        )
        display.begin("embed", len(manifest))
        for part in (TRAIN, VAL):
            if not (manifest.part == part).any():
                continue
            source = manifest.source(part)
            files = list_files_read(section, source)
            features = cached_features(
                extractor,
                source,
                accelerator,
                files=files,
                workers=section.workers,
                advance=display.advance,
            )
            assert features is not None
            values.append(features.values)
        display.end()
    # the images to train on come first in a manifest too
    return rank_suspects(np.concatenate(values), manifest)


def rank_suspects(features: NDArray[np.float32], manifest: Manifest) -> list[Suspect]:
    """Return the images whose label another class is likelier than, those with the largest loss first.

    Args:
        features: (n, d) of the manifest's images; NaN for one that cannot be read.
        manifest: The images, inspected.
    """
    known = np.flatnonzero(np.isfinite(features).all(axis=1))
    labels = manifest.label[known].astype(np.int64)
    names = list(manifest.names())
    keys = [names[index] for index in known.tolist()]
    folds = assign_folds(
        labels, keys, group_copies(manifest.content[known], manifest.picture[known])
    )
    losses, likelier = out_of_fold_losses(features[known], labels, folds)
    doubtful = np.flatnonzero(likelier != labels)
    order = doubtful[np.argsort(-losses[doubtful], kind="stable")]
    return [Suspect(int(known[at]), int(likelier[at]), float(losses[at])) for at in order]


def group_copies(contents: NDArray[np.uint64], pictures: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return (n,) equal numbers for images that are copies of each other, byte for byte or as pictures.

    Args:
        contents: (n, 2) hashes of the files.
        pictures: (n,) perceptual hashes.
    """
    n = len(pictures)
    pairs = [find_near_pairs(pictures)[0]]
    pairs += [np.stack([group[:-1], group[1:]], axis=1) for group in find_equal(contents)]
    first, second = np.concatenate(pairs).T
    links = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(n, n))
    return connected_components(links, directed=False)[1].astype(np.int64)
