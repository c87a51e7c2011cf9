"""Loaders: batches of real files from real worker processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from support.image_folders import open_data, open_split, opened, write_images
from vitrail.data.loader import (
    HELD_BYTES,
    build_eval_loader,
    build_train_loader,
    choose_workers,
    group_by_size,
)
from vitrail.data.sampling import (
    BatchSampler,
    Shuffle,
)
from vitrail.errors import DataError
from vitrail.images.pixels import RGB
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import TrainView, sample_key

VIEW = TrainView(size=(16, 16), auto_augment="rand-m9-mstd0.5-inc1")

PREPROCESS = Preprocess(size=(16, 16))


def train_batches(source, workers: int, epochs: int = 2, **options) -> list:
    sampler = BatchSampler(Shuffle(len(source), seed=3), 6, **options)
    loader = build_train_loader(source, VIEW, RGB, sampler, seed=3, workers=workers)
    batches = []
    for epoch in range(epochs):
        sampler.epoch = epoch
        batches += list(loader)
    return batches


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        a.bad == b.bad and all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_training_batches_are_the_same_for_any_number_of_workers(folder):
    source = opened(folder).train
    state = torch.get_rng_state()
    alone = train_batches(source, 0)
    assert len(alone) == 8
    first = alone[0]
    assert first.images.shape == (6, 3, 16, 16)
    assert first.images.dtype == torch.uint8
    assert first.bad == []
    assert [first.labels.dtype, first.indices.dtype, first.keys.dtype] == [torch.int64] * 3
    assert first.labels.tolist() == source.labels[first.indices].tolist()
    assert first.keys.tolist() == [sample_key(3, 0, index) for index in first.indices.tolist()]
    assert torch.equal(first.images[0], VIEW.view(source.image(int(first.indices[0]), RGB), int(first.keys[0])))
    for workers in (1, 2):
        assert same(train_batches(source, workers), alone)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_see_the_samples_of_one(folder):
    source = opened(folder).train
    alone = train_batches(source, 0)
    ranks = [train_batches(source, 0, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(torch.cat([part.keys for part in parts]).tolist()) == sorted(whole.keys.tolist())


def test_a_stopped_epoch_can_be_taken_up_and_the_next_one_is_whole(folder):
    source = opened(folder).train
    alone = train_batches(source, 0)
    sampler = BatchSampler(Shuffle(len(source), seed=3), 6)
    loader = build_train_loader(source, VIEW, RGB, sampler, seed=3, workers=2)
    batches = iter(loader)
    begun = [next(batches), next(batches)]
    sampler.first_step = 2
    rest = list(loader)
    sampler.epoch, sampler.first_step = 1, 0
    assert same(begun + rest + list(loader), alone)


def test_evaluation_reads_every_image_once(folder):
    source = opened(folder).train
    for world in (1, 2, 5):
        for workers in (0, 2) if world == 2 else (0,):
            loaders = [
                build_eval_loader(source, PREPROCESS, batch_size=4, rank=r, world=world, workers=workers)
                for r in range(world)
            ]
            indices = [torch.cat([batch.indices for batch in loader]).tolist() for loader in loaders]
            batches = torch.arange(24).split(4)
            assert indices == [torch.cat(batches[rank::world]).tolist() for rank in range(world)]
    batch = next(iter(build_eval_loader(source, PREPROCESS, batch_size=24, workers=0)))
    assert torch.equal(batch.images[7], PREPROCESS.view(source.image(7, RGB)))
    assert batch.labels.tolist() == source.labels.tolist()
    assert batch.keys.sum() == 0


@pytest.fixture
def broken(folder: Path) -> Path:
    """Return the folder with a truncated file, an empty one and one that the system refuses to read."""
    whole = (folder / "train/ant/3.jpg").read_bytes()
    (folder / "train/ant/3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "train/bee/1.jpg").write_bytes(b"")
    (folder / "train/cat/0.jpg").unlink()
    (folder / "train/cat/0.jpg").symlink_to("/proc/self/mem")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_left_out_and_named(broken, workers):
    source = opened(broken).train
    batches = train_batches(source, workers, epochs=1)
    bad = dict(pair for batch in batches for pair in batch.bad)
    assert "truncated" in bad.pop(f"{broken}/train/ant/3.jpg").lower()
    assert bad == {
        f"{broken}/train/bee/1.jpg": "the file is empty",
        f"{broken}/train/cat/0.jpg": "Input/output error",
    }
    assert sum(len(batch.labels) for batch in batches) == 21
    assert all(len(batch.labels) + len(batch.bad) == 6 for batch in batches)
    assert same(batches, train_batches(source, 0, epochs=1))
    evaluated = list(build_eval_loader(source, PREPROCESS, batch_size=4, workers=workers))
    assert torch.cat([batch.indices for batch in evaluated]).tolist() == [i for i in range(24) if i not in (3, 9, 16)]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_can_stop_the_run_with_one_line(broken, workers):
    source = opened(broken).train
    sampler = BatchSampler(Shuffle(24, seed=0), 24)
    loaders = [
        build_train_loader(source, VIEW, RGB, sampler, seed=0, workers=workers, bad_files="error"),
        build_eval_loader(source, PREPROCESS, batch_size=24, workers=workers, bad_files="error"),
    ]
    line = (
        rf"^{re.escape(str(broken))}/train/[^\n]*: cannot be read, [^\n]* \(and 2 more in this batch\); repair "
        rf"or remove it, "
        r"or set data\.bad_files=skip to leave such images out$"
    )
    for loader in loaders:
        with pytest.raises(DataError, match=line):
            list(loader)


def test_a_batch_may_be_empty(tmp_path):
    root = write_images(tmp_path, "a/1.png", "b/1.png")
    for name in ("a", "b"):
        (root / name / "1.png").write_bytes(b"?")
    batch = next(iter(build_eval_loader(open_split(None, root, "all")[0], PREPROCESS, batch_size=2, workers=0)))
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == batch.indices.shape == batch.keys.shape == (0,)
    assert len(batch.bad) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs a CUDA device")
def test_batches_can_be_pinned(folder):
    loader = build_eval_loader(opened(folder).val, PREPROCESS, batch_size=4, workers=1, pin_memory=True)
    assert all(batch.images.is_pinned() and batch.keys.is_pinned() for batch in loader)


def test_small_sets_in_memory_are_read_without_workers_others_by_the_cores(folder, monkeypatch):
    assert choose_workers(open_data("digits", None).train) == 0
    source = opened(folder).train
    cores = len(os.sched_getaffinity(0))
    assert choose_workers(source) == max(1, min(8, cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert choose_workers(source) == max(1, cores // 64)
    assert build_eval_loader(source, PREPROCESS, batch_size=4).num_workers == max(1, cores // 64)


def test_images_are_decoded_in_groups_of_bounded_size_and_none_is_lost() -> None:
    small, large = torch.zeros(3, 10, 10, dtype=torch.uint8), torch.zeros(3, 2000, 3000, dtype=torch.uint8)
    assert large.nbytes > HELD_BYTES
    images = [small, "broken", small, large, small, large, "broken"]
    taken = []
    for group in group_by_size(taken.append(number) or image for number, image in enumerate(images)):
        # what comes after a group is not decoded before its views are made
        assert len(taken) == len(images) or taken[-1] in (3, 5)
        assert group[-1] is images[taken[-1]]
        assert sum(image is large for image in group) <= 1
    assert taken == list(range(len(images)))
    assert [len(group) for group in group_by_size(images)] == [4, 2, 1]
    assert list(group_by_size([])) == [[]]
