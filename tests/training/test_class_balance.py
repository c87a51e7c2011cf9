"""Classes with few images: weights, samplers and logit adjustment do what their papers say, exactly, and help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from support.long_tailed import ALL, long_tailed
from support.runs import EVERYTHING, Notebook, Signals, assert_same_run, run, settle
from vitrail.config.training_sections import BalanceSection
from vitrail.data.loader import Batch
from vitrail.distributed.processes import processes
from vitrail.errors import ConfigError, DataError, Stopped
from vitrail.evaluation.evaluate import evaluate
from vitrail.images.batch_augment import make_soft_targets, mix
from vitrail.images.preprocess import Preprocess
from vitrail.training.class_balance import build_balance, check_counts, class_weights, drawn_shares, imbalance_warnings
from vitrail.training.losses import SingleLabelLoss
from vitrail.training.step import StepContext, prepare
from vitrail.weights.hub import model_card
from vitrail.weights.loading import open_model

CPU = torch.device("cpu")
COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=8).map(np.array)


# Weights and offsets


@given(
    counts=COUNTS,
    kind=st.sampled_from([None, "inverse", "sqrt", "effective"]),
    sampler=st.sampled_from(["natural", "sqrt", "balanced"]),
)
def test_weights_are_one_on_average_over_the_images_drawn(counts, kind, sampler) -> None:
    section = BalanceSection(class_weights=kind, sampler=sampler)
    weights = class_weights(section, counts)
    assert (weights * drawn_shares(section, counts)).sum() == pytest.approx(1)
    by_size = weights[np.argsort(counts)]
    assert (np.diff(by_size) <= 1e-12).all()


@given(counts=COUNTS)
def test_weights_are_those_of_the_papers(counts) -> None:
    labels, classes = np.repeat(np.arange(len(counts)), counts), np.arange(len(counts))
    inverse = class_weights(BalanceSection(class_weights="inverse"), counts)
    np.testing.assert_allclose(inverse, compute_class_weight("balanced", classes=classes, y=labels))
    root = class_weights(BalanceSection(class_weights="sqrt"), counts)
    np.testing.assert_allclose(root / root[0], np.sqrt(inverse / inverse[0]))
    effective = class_weights(BalanceSection(class_weights="effective", effective_beta=0.99), counts)
    volumes = np.array([sum(0.99**i for i in range(count)) for count in counts])  # Cui et al. 2019, before it is summed
    np.testing.assert_allclose(effective / effective[0], volumes[0] / volumes)
    nothing = class_weights(BalanceSection(class_weights="effective", effective_beta=0), counts)
    np.testing.assert_allclose(nothing, 1)


def test_logit_adjustment_is_the_loss_of_the_paper() -> None:
    counts = np.array([60, 30, 10])
    offsets = build_balance(BalanceSection(logit_adjust=1.5), counts, CPU).offsets
    logits, label = torch.tensor([0.3, -1.0, 2.0]), 1
    prior = torch.tensor([0.6, 0.3, 0.1])
    others = [((prior[c] / prior[label]) ** 1.5 * (logits[c] - logits[label]).exp()) for c in (0, 2)]
    loss = cross_entropy((logits + offsets)[None], torch.tensor([label]))
    torch.testing.assert_close(loss, torch.log1p(sum(others)))  # as Menon et al. 2021 write it
    # the prior is that of what the sampler shows
    shown = build_balance(BalanceSection(logit_adjust=1, sampler="sqrt"), np.array([900, 100]), CPU).offsets
    torch.testing.assert_close(shown.exp(), torch.tensor([0.75, 0.25]))


def test_without_settings_nothing_changes() -> None:
    balance = build_balance(BalanceSection(), np.array([5, 0, 900]), CPU)
    assert balance.weights.tolist() == [1, 1, 1]
    assert balance.offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_weighted_targets_are_pytorchs_weights_but_for_what_smoothing_gives_away(
    image_folder: Path, smoothing: float, mixup: float
) -> None:
    config = settle(image_folder, f"augment.mixup={mixup}", f"augment.label_smoothing={smoothing}")
    balance = build_balance(BalanceSection(class_weights="inverse"), np.array([60, 30, 10]), CPU)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels, logits = torch.tensor([0, 1, 2, 2, 0, 0]), torch.randn(6, 3, generator=generator)
    batch = Batch(pixels, labels, labels, labels, [])
    with processes("float32", "cpu") as accelerator:
        context = StepContext(
            config=config,
            accelerator=accelerator,
            preprocess=Preprocess(size=(8, 8)),
            objective=SingleLabelLoss(balance, smoothing),
        )
        _, targets = prepare(context, batch, 3)
    one = {"mixup_alpha": mixup, "cutmix_alpha": 0.0, "probability": 1.0, "switch_probability": 0.5, "key": 3}
    _, plain = mix(torch.zeros(6, 3, 8, 8), make_soft_targets(labels, 3), **one)
    weighted = cross_entropy(logits, plain, weight=balance.weights, reduction="sum")
    found = cross_entropy(logits, targets, reduction="sum")
    if not smoothing:
        torch.testing.assert_close(found, weighted)
        return
    # each image's smoothed loss, weighted by its own class
    even = cross_entropy(logits, torch.full((6, 3), 1 / 3), reduction="none")
    _, own = mix(torch.zeros(6, 3, 8, 8), balance.weights[labels][:, None].clone(), **one)
    torch.testing.assert_close(found, 0.9 * weighted + 0.1 * (even * own[:, 0]).sum())


# What is told


@pytest.mark.parametrize(
    ("counts", "settings", "warning"),
    [
        ([30, 10, 4], {}, None),
        (
            [1200, 10, 40],
            {},
            "the training images are imbalanced, 1,200 of 'a' to 10 of 'b', and nothing makes up for it; try "
            "balance.logit_adjust=1, balance.sampler=sqrt or balance.class_weights=sqrt, and "
            "train.monitor=val_balanced_accuracy",
        ),
        ([1200, 10, 40], {"class_weights": "sqrt"}, None),
        ([1200, 10, 40], {"logit_adjust": 2.0}, None),
        ([1200, 10, 40], {"class_weights": "sqrt", "sampler": "sqrt"}, None),
        ([1200, 10, 40], {"logit_adjust": 1.0, "sampler": "sqrt"}, None),
        (
            [1200, 10, 40],
            {"class_weights": "inverse", "sampler": "balanced"},
            "balance.class_weights=inverse and balance.sampler=balanced make up for the imbalance (1,200 of 'a' to 10 "
            "of 'b') more than once: 'b' counts 120 times as much as 'a'; drop one, unless that is meant",
        ),
        (
            [400, 4, 40],
            {"class_weights": "sqrt", "logit_adjust": 1.0},
            "balance.class_weights=sqrt and balance.logit_adjust=1.0 make up for the imbalance (400 of 'a' to 4 of "
            "'b') more than once: 'b' counts 10 times as much as 'a'; drop one, unless that is meant",
        ),
    ],
)
def test_an_imbalance_that_nothing_or_too_much_makes_up_for_is_told(counts, settings, warning) -> None:
    assert imbalance_warnings(BalanceSection(**settings), np.array(counts), ("a", "b", "c")) == (
        [warning] if warning else []
    )


def test_a_class_without_images_cannot_be_made_up_for() -> None:
    counts, classes = np.array([3, 0, 5]), ("a", "b", "c")
    check_counts(BalanceSection(), counts, classes)
    line = r"^balance\.sampler=sqrt: class 'b' has no training image; add some, or remove the class$"
    with pytest.raises(DataError, match=line):
        check_counts(BalanceSection(sampler="sqrt"), counts, classes)


def test_a_monitor_that_the_data_cannot_have_is_refused_before_training(image_folder: Path) -> None:
    line = (
        r"^train\.monitor val_medium_top1: no class with validation images has 20 to 100 training images; they have 8 "
        r"to 8; set train\.monitor=val_balanced_accuracy$"
    )
    with pytest.raises(ConfigError, match=line):
        run(image_folder, "train.monitor=val_medium_top1")
    assert not (image_folder.parent / "runs").exists()


# Runs


@pytest.fixture
def tailed(tmp_path: Path) -> Path:
    return long_tailed(tmp_path / "images", (24, 6, 2))


@pytest.mark.thorough
def test_a_run_with_everything_stopped_at_any_update_goes_on_to_the_last_bit(tailed: Path) -> None:
    settings = (*EVERYTHING, *ALL, "augment.repeats=2", "train.epochs=2", "train.monitor=val_tail_top1")
    whole = run(tailed, *settings, "output.name=whole").folder
    stopped = whole.with_name("stopped")
    with pytest.raises(Stopped, match="after update 1 of 8"):
        run(tailed, *settings, "output.name=stopped", display=Signals(1))
    for update in range(2, 9):
        with pytest.raises(Stopped, match=rf"after update {update} of 8"):
            run(tailed, *settings, "output.name=stopped", resume=stopped, display=Signals(1))
    run(tailed, *settings, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)


def test_accumulated_parts_make_the_update_of_the_whole_batch_with_an_image_left_out(tailed: Path) -> None:
    (tailed / "train" / "b" / "001.png").write_bytes(b"")
    settings = (*ALL, "train.epochs=2")
    whole = run(tailed, *settings, "output.name=whole").rows
    parts = run(tailed, *settings, "train.accumulate=4", "output.name=parts").rows
    assert [row["n_bad"] for row in whole] == [1, 1]
    for a, b in zip(whole, parts, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)


def test_a_run_tells_its_imbalance_once_and_its_best_weights_know_the_counts(tailed: Path) -> None:
    display = Notebook()
    settings = ("train.epochs=2", "train.monitor=val_balanced_accuracy", "schedule.warmup_epochs=0")
    result = run(tailed, *settings, display=display)
    assert [text.split(", and nothing")[0] for text in display.warnings] == [
        "the training images are imbalanced, 24 of 'a' to 2 of 'c'"
    ]
    assert result.best["val_balanced_accuracy"] == max(row["val_balanced_accuracy"] for row in result.rows)
    again = Notebook()
    run(tailed, *settings, "train.epochs=3", resume=result.folder, display=again)
    assert again.warnings == []
    weights = result.folder / "best.safetensors"
    best = open_model(weights).record
    assert best.provenance["training_counts"] == [24, 6, 2]
    assert "training_counts" not in model_card(best)
    found = evaluate(weights).to_dict()
    for name in ("balanced_accuracy", "macro_f1", "head_top1", "medium_top1", "tail_top1"):
        assert found[name] == best.metrics[f"val_{name}"]
    assert found["head_top1"] is None
    assert found["medium_top1"] is not None


@pytest.mark.thorough
def test_rare_classes_are_found_where_a_plain_run_forgets_them(tmp_path: Path) -> None:
    images = long_tailed(tmp_path / "images", (48, 12, 4), validated=24)
    common = ("train.epochs=6", "optim.lr=1e-2", "train.eval_every=6", "output.trackers=[]")
    plain = run(images, *common).rows[-1]
    for setting in ("sampler=balanced", "logit_adjust=1"):
        corrected = run(images, *common, f"balance.{setting}").rows[-1]
        assert corrected["val_balanced_accuracy"] > plain["val_balanced_accuracy"] + 10
        assert corrected["val_tail_top1"] > plain["val_tail_top1"]
