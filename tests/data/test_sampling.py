"""The order of an epoch: shuffled, repeated, drawn by class, and dealt out to processes."""

from __future__ import annotations

import functools
import hashlib
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.sampling import (
    BatchSampler,
    ClassDraw,
    Shuffle,
    compute_class_shares,
    draw_by_class,
    shuffle_epoch,
)
from vitrail.errors import ConfigError


def test_an_epochs_order_is_the_same_for_ever():
    assert shuffle_epoch(8, 0, 0)[:, 0].tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert sorted(shuffle_epoch(1000, 3, 5)[:, 0].tolist()) == list(range(1000))
    orders = {tuple(shuffle_epoch(50, seed, epoch)[:, 0].tolist()) for seed in (-1, 0, 1) for epoch in range(5)}
    assert len(orders) == 15


def test_repeats_put_copies_in_a_row_and_keep_the_epochs_length():
    once, order = shuffle_epoch(10, 1, 2), shuffle_epoch(10, 1, 2, repeats=3)
    assert order[:, 0].tolist() == [i for i in once[:4, 0].tolist() for _ in range(3)][:10]
    assert order[:, 1].tolist() == [0, 1, 2] * 3 + [0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(accumulate, repeats):
    def steps(world: int) -> list[list[tuple[int, int, int]]]:
        ranks = [
            list(BatchSampler(Shuffle(50, 7, repeats), 12, rank=rank, world=world, accumulate=accumulate))
            for rank in range(world)
        ]
        micro = [sorted(functools.reduce(operator.iadd, parts, [])) for parts in zip(*ranks, strict=True)]
        return [
            sorted(functools.reduce(operator.iadd, micro[i : i + accumulate], []))
            for i in range(0, len(micro), accumulate)
        ]

    order = shuffle_epoch(50, 7, 0, repeats).tolist()
    whole = [sorted((0, *sample) for sample in order[i * 12 : (i + 1) * 12]) for i in range(4)]
    assert steps(1) == steps(2) == steps(3) == whole


def test_copies_of_an_image_part():
    for rank in range(3):
        for batch in BatchSampler(Shuffle(90, 1, 3), 30, rank=rank, world=3):
            images = [index for _, index, _ in batch]
            assert len(set(images)) == len(images) == 10


def drawn_by_class(counts, sampler, seed, epoch, repeats=1):
    """Return the labels, and the order of an epoch; the images of a class do not lie together."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    return labels, draw_by_class(labels, compute_class_shares(np.array(counts), sampler), seed, epoch, repeats)


def test_an_epoch_of_fewer_images_draws_others_each_time_the_same_for_any_processes() -> None:
    sampler = BatchSampler(Shuffle(50, seed=7), 12, epoch_samples=25)
    assert sampler.steps == 2
    seen = []
    for epoch in (0, 1):
        sampler.epoch = epoch
        keys = [key for batch in sampler for key in batch]
        assert len({index for _, index, _ in keys}) == len(keys) == 24
        parts = [BatchSampler(Shuffle(50, seed=7), 12, epoch_samples=25, rank=rank, world=3) for rank in range(3)]
        for part in parts:
            part.epoch = epoch
        assert sorted(keys) == sorted(key for part in parts for batch in part for key in batch)
        seen.append({index for _, index, _ in keys})
    assert len(seen[0] & seen[1]) < 24
    for wrong in (11, 51):
        with pytest.raises(
            ConfigError, match=f"train.epoch_images is {wrong}; it must be from train.batch_size 12 to the 50"
        ):
            BatchSampler(Shuffle(50, seed=7), 12, epoch_samples=wrong)


@pytest.mark.parametrize(
    ("sampler", "digest"),
    [("balanced", "d2d7fed348662389"), ("sqrt", "9f424176ecc4ddaf")],
)
def test_the_order_of_drawn_classes_is_the_same_for_ever(sampler, digest):
    orders = [drawn_by_class((700, 90, 8, 1), sampler, seed, epoch, 2)[1] for seed in (0, -1) for epoch in (0, 1, 9)]
    assert hashlib.sha256(np.stack(orders).astype("<i8").tobytes()).hexdigest()[:16] == digest


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=9),
    sampler=st.sampled_from(["balanced", "sqrt"]),
    epoch=st.integers(0, 10**6),
    repeats=st.integers(1, 3),
)
def test_classes_are_drawn_by_their_shares_and_no_draw_twice(counts, sampler, epoch, repeats):
    labels, order = drawn_by_class(counts, sampler, 5, epoch, repeats)
    assert order.shape == (len(labels), 2)
    assert len({tuple(draw) for draw in order.tolist()}) == len(order)
    draws = order[::repeats]
    shares = np.sqrt(counts) if sampler == "sqrt" else np.ones(len(counts))
    expected = len(draws) * shares / shares.sum()
    assert (np.abs(np.bincount(labels[draws[:, 0]], minlength=len(counts)) - expected) < 1 + 1e-3).all()
    for index, label in enumerate(labels.tolist()):  # within an epoch, a whole pass and the two parts at its ends
        seen = (draws[:, 0] == index).sum()
        passes = expected[label] / counts[label]
        assert passes - 2 < seen < passes + 2


def test_over_a_run_the_images_of_a_class_are_drawn_equally_often():
    counts = (61, 9, 5, 3, 2)  # 16 draws of each of the five classes, so that nothing is rounded
    seen = np.zeros(80, dtype=int)
    for epoch in range(23):
        labels, order = drawn_by_class(counts, "balanced", 1, epoch)
        seen += np.bincount(order[:, 0], minlength=80)
    for label in range(5):
        assert np.ptp(seen[labels == label]) <= 1


def test_how_a_share_is_rounded_is_left_to_chance():
    found = sum(
        np.bincount(labels[order[:, 0]], minlength=3)
        for labels, order in (drawn_by_class((7, 2, 1), "balanced", 1, epoch) for epoch in range(300))
    )
    np.testing.assert_allclose(found / 300, 10 / 3, atol=0.1)


def test_drawn_classes_are_dealt_out_and_taken_up_like_any_epoch():
    labels = np.repeat(np.arange(3, dtype=np.int32), (40, 8, 2))
    order = ClassDraw(labels, [1, 1, 1], seed=7, repeats=2)
    alone = BatchSampler(order, 12, accumulate=2)
    ranks = [list(BatchSampler(order, 12, rank=rank, world=3, accumulate=2)) for rank in range(3)]
    dealt = [sorted(key for part in parts for key in part) for parts in zip(*ranks, strict=True)]
    assert dealt == [sorted(batch) for batch in alone]
    rest = BatchSampler(order, 12, accumulate=2)
    rest.first_step = 2
    assert list(rest) == list(alone)[4:]
    rest.epoch, rest.first_step = 1, 0
    assert list(rest) != list(alone)
    rare = [key for batch in rest for key in batch if labels[key[1]] == 2]
    assert len(rare) == len(set(rare)) > 10


def test_an_epoch_goes_on_from_any_step():
    whole = BatchSampler(Shuffle(40, seed=1), 8, accumulate=2)
    whole.epoch = 4
    rest = BatchSampler(Shuffle(40, seed=1), 8, accumulate=2)
    rest.epoch, rest.first_step = 4, 3
    assert len(whole) == len(list(whole)) == 10
    assert len(rest) == 4
    assert whole.steps == rest.steps == 5
    assert list(rest) == list(whole)[6:]
    assert whole.epoch == next(iter(whole))[0][0]


@pytest.mark.parametrize(
    ("images", "batch_size", "world", "accumulate", "said"),
    [
        (37, 64, 2, 2, "train.batch_size 64 is more than the 37 training images; set train.batch_size to at most 36"),
        (3, 8, 4, 1, "train.batch_size 8 is more than the 3 training images, too few for 4 parts"),
        (37, 10, 2, 2, "train.batch_size 10 cannot be split over 2 processes x 2 micro batches; nearest: 8 or 12"),
        (37, 0, 4, 1, "train.batch_size 0 cannot be split over 4 processes x 1 micro batches; nearest: 4"),
    ],
)
def test_batch_sizes_that_do_not_fit(images, batch_size, world, accumulate, said):
    with pytest.raises(ConfigError) as caught:
        BatchSampler(Shuffle(images, seed=0), batch_size, world=world, accumulate=accumulate)
    assert str(caught.value) == said
