"""Features on the disk: equal for any batches of work, continued after a stop, cached by all that decides them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from vitrail.config.sections import DataSection
from vitrail.data.opening import list_files_read, open_split
from vitrail.data.sources import Source
from vitrail.distributed.processes import processes
from vitrail.embedding.extract import Extractor, extract_features
from vitrail.embedding.store import STATE, VALUES, Features, cached_features, embed_source, locate_cache
from vitrail.errors import ConfigError, DataError
from vitrail.weights.loading import load_model, open_model


@pytest.fixture
def alone() -> Iterator[Accelerator]:
    with processes("float32", "cpu") as accelerator:
        yield accelerator


def open_images(folder: Path, split: str = "train") -> tuple[DataSection, Source]:
    section = DataSection(root=str(folder), workers=0)
    return section, open_split(section, split)[0]  # pyright: ignore[reportArgumentType]


def extractor(weights: Path, **options) -> Extractor:
    opened = open_model(weights)
    return Extractor(model=opened.build("cpu"), preprocess=opened.record.preprocess, **options)


def features_of(one: Extractor, source: Source, accelerator: Accelerator, folder: Path) -> Features:
    features = embed_source(one, source, accelerator, folder, one.description, workers=0)
    assert features is not None
    return features


def test_features_are_what_enters_the_head(image_folder: Path, tiny_checkpoint: Path, alone: Accelerator) -> None:
    _, source = open_images(image_folder)
    features = features_of(extractor(tiny_checkpoint, batch_size=5), source, alone, image_folder / "store")
    model = load_model(tiny_checkpoint)
    assert model.preprocess is not None
    images = torch.stack([model.preprocess(source.name(index)) for index in range(len(source))])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    assert np.allclose(features.values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 24, 64])
def test_a_row_does_not_depend_on_the_size_of_batches_beyond_rounding(
    image_folder: Path, tiny_checkpoint: Path, alone: Accelerator, size: int
) -> None:
    _, source = open_images(image_folder)
    usual = features_of(extractor(tiny_checkpoint), source, alone, image_folder / "usual")
    other = features_of(extractor(tiny_checkpoint, batch_size=size), source, alone, image_folder / "other")
    scale = np.abs(usual.values).max()
    assert np.abs(usual.values - other.values).max() <= 2e-6 * scale


def test_an_unreadable_image_is_a_row_without_numbers_and_changes_no_other(
    image_folder: Path, tiny_checkpoint: Path, alone: Accelerator
) -> None:
    _, source = open_images(image_folder)
    one = extractor(tiny_checkpoint, batch_size=5)
    whole = np.array(features_of(one, source, alone, image_folder / "store").values)
    Path(source.name(7)).write_bytes(b"no image")
    features = features_of(one, source, alone, image_folder / "other")
    assert [*features.bad] == [7]
    assert np.isnan(features.values[7]).all()
    assert features.readable.tolist() == [index != 7 for index in range(24)]
    assert (features.values[features.readable] == whole[features.readable]).all()


def test_without_any_readable_image_the_first_is_named(
    image_folder: Path, tiny_checkpoint: Path, alone: Accelerator
) -> None:
    _, source = open_images(image_folder)
    for index in range(len(source)):
        Path(source.name(index)).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 24 images could be read; the first is .*blue_0\.jpg \("):
        features_of(extractor(tiny_checkpoint), source, alone, image_folder / "store")


def test_what_was_stopped_goes_on_with_the_same_bytes(
    image_folder: Path, tiny_checkpoint: Path, alone: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = open_images(image_folder)
    one = extractor(tiny_checkpoint, batch_size=5)
    features_of(one, source, alone, image_folder / "whole")
    monkeypatch.setattr("vitrail.embedding.store.SAVE_EVERY_S", 0)
    folder = image_folder / "stopped"

    def stop_after_ten(images: int) -> None:
        nonlocal done
        done += images
        if done >= 10:
            raise KeyboardInterrupt

    done = 0
    with pytest.raises(KeyboardInterrupt):
        embed_source(one, source, alone, folder, one.description, workers=0, advance=stop_after_ten)
    assert json.loads((folder / STATE).read_text())["done"] == 10
    begun: list[int] = []
    embed_source(one, source, alone, folder, one.description, workers=0, advance=begun.append)
    assert begun == [10, 5, 5, 4]
    assert (folder / VALUES).read_bytes() == (image_folder / "whole" / VALUES).read_bytes()
    # and what is done is done
    begun.clear()
    embed_source(one, source, alone, folder, one.description, workers=0, advance=begun.append)
    assert begun == [24]


def test_a_store_of_something_else_is_begun_anew(image_folder: Path, tiny_checkpoint: Path, alone: Accelerator) -> None:
    _, source = open_images(image_folder)
    folder = image_folder / "store"
    features_of(extractor(tiny_checkpoint), source, alone, folder)
    mean = features_of(extractor(tiny_checkpoint, pooling="mean"), source, alone, folder)
    assert (mean.values == features_of(extractor(tiny_checkpoint, pooling="mean"), source, alone, folder).values).all()
    for damage in (b"", b"{}", b"[1]", b'{"about": 1'):
        (folder / STATE).write_bytes(damage)
        assert (
            features_of(extractor(tiny_checkpoint, pooling="mean"), source, alone, folder).values == mean.values
        ).all()


def test_two_processes_do_not_write_one_store(image_folder: Path, tiny_checkpoint: Path, alone: Accelerator) -> None:
    import fcntl

    _, source = open_images(image_folder)
    folder = image_folder / "store"
    folder.mkdir()
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process brings features there; wait for its end, or end it"):
            features_of(extractor(tiny_checkpoint), source, alone, folder)


def test_the_cache_answers_until_an_image_or_a_setting_changes(
    image_folder: Path, tiny_checkpoint: Path, alone: Accelerator
) -> None:
    section, source = open_images(image_folder)

    def count_computed(one: Extractor) -> int:
        steps: list[int] = []
        files = list_files_read(section, source)
        assert cached_features(one, source, alone, files=files, workers=0, advance=steps.append) is not None
        return sum(steps[1:])

    assert count_computed(extractor(tiny_checkpoint)) == 24
    assert count_computed(extractor(tiny_checkpoint)) == 0
    assert count_computed(extractor(tiny_checkpoint, level=0)) == 24
    path = Path(source.name(3))
    path.write_bytes(path.read_bytes() + b"\0")
    assert count_computed(extractor(tiny_checkpoint)) == 24
    with torch.no_grad():
        other = extractor(tiny_checkpoint)
        other.model.norm.weight.add_(1)  # pyright: ignore[reportCallIssue]
    assert count_computed(other) == 24
    assert locate_cache().is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 2}, "--level 2: the model has levels 0 to 1, or -2 to -1 from the end; give one of them"),
        ({"level": -3}, "--level -3: the model has levels 0 to 1"),
        ({"pooling": "median"}, "--pool median: the model has head, mean, max, cls; give one of them"),
    ],
)
def test_levels_and_poolings_that_a_model_has_not_are_named(tiny_checkpoint: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extractor(tiny_checkpoint, **options)


def test_the_network_is_left_in_its_mode(image_folder: Path, tiny_checkpoint: Path, alone: Accelerator) -> None:
    _, source = open_images(image_folder)
    one = extractor(tiny_checkpoint)
    one.model.train()
    assert sum(len(rows.values) for rows in extract_features(one, source, alone, workers=0)) == 24
    assert one.model.training
