"""Any number of classes an image: the numbers, the losses, and a model trained, evaluated and used from end to end."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_recall_fscore_support, roc_auc_score
from timm.loss import AsymmetricLossMultiLabel
from torch.nn.functional import binary_cross_entropy_with_logits

from support.forked import TORCHRUN, python
from support.pages import check_page
from support.runs import TINY, Notebook, Signals, assert_same_run, rows
from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.config.sections import DataSection
from vitrail.config.training_sections import MultiLabelSection
from vitrail.data.pack import pack
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError, Stopped
from vitrail.evaluation.evaluate import evaluate, report_folder, sweep
from vitrail.evaluation.multi_label_metrics import Decisions, compute_multi_label_metrics, label_scores, tuned
from vitrail.inference.decision import probabilities
from vitrail.training.losses import MultiLabelLoss, asymmetric_loss
from vitrail.training.train import TrainResult, train
from vitrail.weights.checkpoint import parse_record
from vitrail.weights.convert import convert
from vitrail.weights.hub import model_card
from vitrail.weights.loading import load_model, open_model

# Numbers


@st.composite
def answered(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits, of which some are equal, and labels of up to 30 images and 2 to 4 classes."""
    n, k = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    logits = draw(st.lists(st.integers(-6, 6), min_size=n * k, max_size=n * k))
    labels = draw(st.lists(st.booleans(), min_size=n * k, max_size=n * k))
    return np.array(logits, np.float32).reshape(n, k) / 2, np.array(labels).reshape(n, k)


def percent_or_nan(values: Sequence[float]) -> float:
    return 100 * float(np.mean(values)) if len(values) else float("nan")


@given(answered())
def test_every_number_is_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, truth = case
    shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = compute_multi_label_metrics(logits, truth)
    has_images = truth.any(0)
    ap = average_precision_score(truth[:, has_images], logits[:, has_images], average=None) if has_images.any() else []
    assert found.map == pytest.approx(percent_or_nan(np.atleast_1d(ap)), nan_ok=True)
    assert found.loss == pytest.approx(log_loss(truth.ravel(), shares.ravel(), labels=[False, True]))
    for answers, macro, micro in (
        (shares >= found.thresholds, found.macro_f1, found.micro_f1),
        (shares >= 0.5, found.macro_f1_at_half, found.micro_f1_at_half),
    ):
        each = f1_score(truth, answers, average=None, zero_division=np.nan)
        assert macro == pytest.approx(percent_or_nan(each[~np.isnan(each)]), nan_ok=True)
        assert micro == pytest.approx(
            100 * f1_score(truth, answers, average="micro", zero_division=np.nan), nan_ok=True
        )
    scores = label_scores(logits, truth, found.thresholds)
    expected = precision_recall_fscore_support(truth, shares >= found.thresholds, zero_division=np.nan)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.n), expected, strict=True):
        assert ours == pytest.approx(theirs, nan_ok=True)
    for label in np.flatnonzero(has_images & ~truth.all(0)):
        assert scores.auroc[label] == pytest.approx(roc_auc_score(truth[:, label], logits[:, label]))


@given(answered())
def test_a_tuned_threshold_has_the_largest_f1_with_the_fewest_answers(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, truth = case
    shares, is_positive = probabilities(logits)[:, 0], truth[:, 0]
    if not is_positive.any():
        assert tuned(shares, is_positive) == 0.5
        return

    def f1(threshold: float) -> float:
        answers = shares >= threshold
        return 2 * (answers & is_positive).sum() / (answers.sum() + is_positive.sum())

    threshold = tuned(shares, is_positive)
    candidates = np.unique(shares)
    assert f1(threshold) == max(map(f1, candidates))
    assert (shares >= threshold).sum() == min((shares >= t).sum() for t in candidates if f1(t) == f1(threshold))
    below = shares[shares < threshold]
    assert threshold == pytest.approx((shares[shares >= threshold].min() + below.max(initial=0)) / 2)


def test_thresholds_at_the_ends() -> None:
    everyone = np.array([True, True])
    assert tuned(np.array([0.2, 0.6]), everyone) == 0.1
    assert tuned(np.array([0.0, 0.0]), everyone) == 0.0
    assert tuned(np.array([1.0, 1.0 - 2**-53]), np.array([True, False])) == 1.0  # there is nothing between them
    assert tuned(np.array([np.nan, 0.6]), everyone) == 0.5


def test_numbers_that_are_none() -> None:
    found = compute_multi_label_metrics(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.bool_))
    assert np.isnan(found.map)
    assert found.warnings == ("no image has any class, so nothing can be ranked",)
    assert found.thresholds == (0.5, 0.5, 0.5)
    assert np.isnan(compute_multi_label_metrics(np.full((2, 1), np.nan, np.float32), np.ones((2, 1), np.bool_)).map)
    assert probabilities(np.array([[-200, 0, 200]], np.float32)).tolist() == [[pytest.approx(0), 0.5, 1]]
    assert Decisions.of(np.eye(2, dtype=bool), np.eye(2, dtype=bool)).rates(micro=True)[2].tolist() == [1]


# Losses


@pytest.mark.parametrize(
    ("negative", "positive", "clip"), [(4, 1, 0.05), (4, 0, 0.05), (2, 2, 0), (0, 0, 0), (1, 1, 0.2)]
)
def test_the_asymmetric_loss_and_its_gradient_are_timms(negative: float, positive: float, clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(16, 5, generator=generator)).requires_grad_()
    targets = (torch.rand(16, 5, generator=generator) < 0.3).float()
    ours = asymmetric_loss(logits, targets, negative, positive, clip).sum()
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = 16 * AsymmetricLossMultiLabel(negative, positive, clip)(logits, targets)  # its mean over the images
    # without a clip, timm takes the logarithm of a difference from 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, logits)[0], rtol=1e-5, atol=1e-5)


def test_losses_stay_finite_and_are_linear_in_mixed_targets() -> None:
    logits = torch.tensor([[-300.0, -20, 0, 20, 300]], requires_grad=True)
    for clip in (0.0, 0.05):
        whole = [asymmetric_loss(logits, torch.full((1, 5), value), 4, 1, clip) for value in (0.0, 1.0, 0.25)]
        torch.testing.assert_close(whole[2], 0.75 * whole[0] + 0.25 * whole[1])
        for loss in whole:
            (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()


def test_the_loss_of_an_image_is_the_mean_over_its_classes() -> None:
    label_sets = np.array([[False, False, False], [True, False, True]])
    objective = MultiLabelLoss(label_sets, MultiLabelSection())
    targets = objective.targets(torch.tensor([1, 0]), torch.device("cpu"))
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    logits = torch.randn(2, 3)
    mean = binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(objective.loss(logits, targets), 2 * mean)
    sharp = MultiLabelLoss(label_sets, MultiLabelSection(loss="asymmetric", gamma_negative=0, clip=0))
    torch.testing.assert_close(sharp.loss(logits, targets), 2 * mean)
    nothing = objective.loss(logits[:0], targets[:0])
    assert nothing.item() == 0


# Settings


def test_settings_out_of_range_are_refused() -> None:
    assert MultiLabelSection(gamma_negative=0.5, gamma_positive=-1, clip=1).problems() == [
        "gamma_negative is 0.5; it must be 0, or at least 1 for its gradient to be finite",
        "gamma_positive is -1; it must be 0, or at least 1 for its gradient to be finite",
        "clip is 1; it must be from 0 to below 1",
    ]


# From end to end


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the list of images with squares of up to three colours."""
    folder = tmp_path_factory.mktemp("squares")
    generator = np.random.default_rng(0)
    colours = dict(zip(CLASSES, ((40, 60, 200), (40, 190, 60), (200, 50, 40)), strict=True))
    table = [("path", "labels", "split")]
    for number in range(240):
        pixels = generator.integers(90, 140, (32, 32, 3), dtype=np.uint8)
        has = [name for name in CLASSES if generator.random() < 0.4]
        for quarter, name in zip(generator.permutation(4), has, strict=False):
            top, left = 16 * (quarter // 2), 16 * (quarter % 2)
            pixels[top + 2 : top + 14, left + 2 : left + 14] = colours[name]
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        table.append((f"{number:03}.png", "|".join(has), "train" if number < 192 else "val"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return folder / "labels.csv"


def settings_of(path: Path, *more: str) -> TrainConfig:
    given = ["data.root=null", f"data.list={path}", f"output.root={path.parent / 'runs'}", "augment.label_smoothing=0"]
    return resolve(TrainConfig, [read_yaml(TINY), parse_command_line([*given, *more])]).config


def run(
    path: Path, *more: str, name: str = "tiny", resume: Path | None = None, display: Quiet | None = None
) -> TrainResult:
    return train(settings_of(path, *more), name=name, resume=resume, display=display)


@pytest.fixture(scope="module")
def trained(squares: Path) -> TrainResult:
    """Return a run of seconds that has learned to see the colours."""
    return run(squares, "train.epochs=5", "train.batch_size=16", "optim.lr=5e-3", name="squares")


def test_training_learns_and_its_rows_have_no_top1(squares: Path, trained: TrainResult) -> None:
    last = trained.rows[-1]
    assert trained.monitor == "val_map"
    assert last["val_map"] > 80  # each class is on two images of five
    assert trained.best["val_map"] == max(row["val_map"] for row in trained.rows)
    assert {"val_macro_f1", "val_micro_f1", "val_macro_f1_at_half", "val_micro_f1_at_half", "val_loss"} <= last.keys()
    assert not [name for name in last if "top" in name or "threshold" in name]
    assert (trained.folder / "curves.png").exists()


def test_the_weight_file_has_thresholds_and_evaluation_keeps_to_them(
    squares: Path, trained: TrainResult, tmp_path: Path
) -> None:
    path = trained.folder / "best.safetensors"
    thresholds = open_model(path).record.thresholds
    assert thresholds is not None
    assert load_model(path).thresholds == thresholds
    settings = [parse_command_line(["data.workers=0", "evaluate.device=cpu"])]
    found = evaluate(path, settings, report=report_folder(tmp_path / "report"))
    for name, value in found.accuracy.numbers().items():
        assert value == pytest.approx(trained.best[f"val_{name}"], rel=1e-6), name
    assert found.accuracy.thresholds == thresholds
    # on other images the same thresholds, not those that would be best there
    others = evaluate(path, [*settings, parse_command_line(["evaluate.split=train"])])
    assert others.accuracy.thresholds == thresholds
    assert others.accuracy.n == 192
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert numbers["map"] == found.to_dict()["map"]
    table = list(csv.DictReader(io.StringIO((tmp_path / "report" / "per_class.csv").read_text())))
    assert list(table[0]) == ["class", "n", "precision", "recall", "F1", "AUROC", "AP", "threshold"]
    assert [row["class"] for row in table] == list(CLASSES)
    assert [float(row["threshold"]) for row in table] == list(thresholds)
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        "per_class.csv",
        "report.html",
        "report.json",
    ]


def test_the_page_shows_classes_and_mistakes_and_no_top1(trained: TrainResult, squares: Path, tmp_path: Path) -> None:
    assert trained.report is not None
    page = trained.report.read_text()
    check_page(page)
    assert all(text in page for text in ("mAP", "Labelled, but not answered", "Training images as the model saw them"))
    assert "op-1" not in page
    assert "onfusion" not in page
    # labels that are wrong are the most confident mistakes
    lines = squares.read_text().splitlines()
    path, labels, split = lines[-1].split(",")
    wrong = "|".join(name for name in CLASSES if name not in labels.split("|"))
    swapped = squares.with_name("swapped.csv")
    swapped.write_text("\n".join([*lines[:-1], f"{path},{wrong},{split}"]))
    settings = [parse_command_line([f"data.list={swapped}", "data.workers=0", "evaluate.device=cpu"])]
    evaluate(trained.folder / "best.safetensors", settings, report=report_folder(tmp_path / "report"))
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    mistakes = found["false_positives"] + found["false_negatives"]
    assert {row["class"] for row in mistakes if row["path"].endswith(path)} == set(CLASSES)
    for kind, sign in (("false_positives", -1), ("false_negatives", 1)):
        shares = [sign * row["probability"] for row in found[kind]]
        assert shares == sorted(shares)
    check_page((tmp_path / "report" / "report.html").read_text())
    explained = [*settings, parse_command_line(["evaluate.explain=true"])]
    evaluate(trained.folder / "best.safetensors", explained, report=report_folder(tmp_path / "explained"))
    page = (tmp_path / "explained" / "report.html").read_text()
    assert page.count('alt="Map of what speaks for') == len(mistakes)
    check_page(page)


def predicted(path: Path, output: Path, *words: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main(
            ["predict", *map(str, [path, *words, "--device", "cpu", "--format", output.suffix[1:], "--output", output])]
        )
    assert caught.value.code in (0, 1)
    return output.read_text()


def test_predictions_are_all_classes_that_reach_their_thresholds(
    squares: Path, trained: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = trained.folder / "best.safetensors"
    images = [str(squares.parent / f"{number:03}.png") for number in range(200, 212)]
    (tmp_path / "broken.png").write_bytes(b"none")
    words = [*images, tmp_path / "broken.png"]
    model = load_model(path)
    expected = {}
    for image in images:
        shares = model(model.preprocess(image).unsqueeze(0)).detach().double().sigmoid()[0].tolist()
        reached = [c for c, share in enumerate(shares) if share >= model.thresholds[c]]
        expected[image] = sorted(reached, key=lambda c: -shares[c])
    assert [] in expected.values()
    assert 2 in map(len, expected.values())
    found = json.loads(predicted(path, tmp_path / "p.json", *words))
    assert {image: found[image] for image in images} == expected
    assert "error" in found[str(tmp_path / "broken.png")]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        f"{images[0]} (classes: {CLASSES[expected[images[0]][0]]} 0." if expected[images[0]] else ""
    )
    assert any(line.endswith("(classes: none)") for line in printed)
    lines = [json.loads(line) for line in predicted(path, tmp_path / "p.jsonl", *words).splitlines()]
    assert [[one["class"] for one in line["labels"]] for line in lines[:-1]] == list(expected.values())
    assert lines[0]["labels"] == [
        {"class": c, "name": CLASSES[c], "probability": one["probability"]}
        for c, one in zip(expected[images[0]], lines[0]["labels"], strict=True)
    ]
    table = list(csv.DictReader(io.StringIO(predicted(path, tmp_path / "p.csv", *words))))
    assert [row["labels"] for row in table[:-1]] == ["|".join(CLASSES[c] for c in row) for row in expected.values()]
    assert list(table[0]) == ["path", "labels", "probabilities", "error"]
    first = json.loads(predicted(path, tmp_path / "p.json", *words, "--topk", 1))
    assert {image: first[image] for image in images} == {image: row[:1] for image, row in expected.items()}


def test_images_of_another_kind_are_refused(
    squares: Path, trained: TrainResult, tiny_checkpoint: Path, image_folder: Path
) -> None:
    path = trained.folder / "best.safetensors"
    with pytest.raises(DataError) as caught:
        evaluate(path, [parse_command_line([f"data.root={image_folder}", "evaluate.device=cpu"])])
    assert str(caught.value) == (
        f"{path}: gives any number of classes an image, and those of {image_folder}/val have one each; give a list "
        "with data.list, see docs/multi_label.md"
    )
    with pytest.raises(DataError) as caught:
        evaluate(tiny_checkpoint, [parse_command_line([f"data.list={squares}", "evaluate.device=cpu"])])
    assert str(caught.value) == (
        f"{tiny_checkpoint}: gives one class an image, and those of {squares}, split val have any number; evaluate a "
        "model that was trained on such images"
    )


def test_settings_that_mean_nothing_are_refused_before_any_image_is_looked_at(
    squares: Path, image_folder: Path
) -> None:
    class Silent(Notebook):
        def begin(self, label: str, total: int | None, done: int = 0) -> None:
            raise AssertionError(label)

    wrong = ("balance.sampler=sqrt", "augment.label_smoothing=0.1", "train.monitor=val_top1", "data.check=true")
    with pytest.raises(ConfigError) as caught:
        run(squares, *wrong, display=Silent())
    assert str(caught.value) == (
        "the images have any number of classes each; balance.sampler=sqrt: makes up for classes of which an image has "
        "one; augment.label_smoothing=0.1: shares an image out over the classes, of which each has a target of its own "
        "here; set it to 0; train.monitor=val_top1: set it to val_map, val_macro_f1, val_micro_f1 or a loss"
    )
    config = resolve(
        TrainConfig,
        [
            read_yaml(TINY),
            parse_command_line([f"data.root={image_folder}", "multi_label.loss=asymmetric", "train.monitor=val_map"]),
        ],
    ).config
    with pytest.raises(ConfigError) as caught:
        train(config, display=Silent())
    assert str(caught.value) == (
        "the images have one class each; multi_label.*: is for images with any number of classes, see "
        "docs/multi_label.md; train.monitor=val_map: set it to val_top1 or val_macro_f1"
    )


def test_a_run_that_is_stopped_and_resumed_ends_the_same(squares: Path) -> None:
    mixed = (
        "multi_label.loss=asymmetric",
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "ema.decay=0.9",
        "train.epochs=3",
        "train.batch_size=24",
    )
    straight = run(squares, *mixed, name="straight").folder
    with pytest.raises(Stopped):
        run(squares, *mixed, name="stopped", display=Signals(11))
    stopped = straight.with_name("stopped")
    assert_same_run(straight, run(squares, *mixed, f"output.name={stopped.name}", resume=stopped).folder)
    assert len(rows(straight)) == 3


def test_patience_watches_the_mean_average_precision(squares: Path) -> None:
    still = ("optim.lr=1e-30", "schedule.warmup_lr=0", "schedule.min_lr=0", "train.batch_size=48")
    result = run(squares, *still, "train.epochs=9", "train.patience=1")
    assert result.best["epoch"] == 1
    assert [row["val_map"] for row in result.rows] == [result.best["val_map"]] * 2


@pytest.mark.thorough
def test_two_and_three_processes_find_what_one_does_to_the_last_bit(
    squares: Path, trained: TrainResult, tmp_path: Path
) -> None:
    words = ["evaluate", trained.folder / "best.safetensors", "data.workers=0", "evaluate.device=cpu"]
    found = []
    for world in (1, 2, 3):
        launch = [*TORCHRUN, "--standalone", "--nproc-per-node", world] if world > 1 else []
        name = tmp_path / f"report-{world}"
        done = python(*launch, "-m", "vitrail", *words, "evaluate.batch_size=7", "--report", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append([(name / file).read_bytes() for file in ("report.json", "per_class.csv", "report.html")])
    assert found[0] == found[1] == found[2]


def test_batch_size_and_unreadable_images(squares: Path, trained: TrainResult) -> None:
    path = trained.folder / "best.safetensors"
    whole = evaluate(path, [parse_command_line(["data.workers=0", "evaluate.device=cpu"])])
    lines = squares.read_text().splitlines()
    (squares.parent / "broken.png").write_bytes(b"none")
    more = squares.with_name("more.csv")
    more.write_text("\n".join([*lines, "broken.png,red,val"]))
    settings = [f"data.list={more}", "data.workers=0", "evaluate.device=cpu", "evaluate.batch_size=5"]
    found = evaluate(path, [parse_command_line(settings)])
    assert [Path(name).name for name, _ in found.bad_files] == ["broken.png"]
    for name, value in found.accuracy.numbers().items():
        assert value == pytest.approx(whole.accuracy.numbers()[name], rel=1e-5), name
    assert len(sweep(path, [parse_command_line(["data.workers=0", "evaluate.device=cpu"])])) > 10
    more.write_text("path,labels,split\nbroken.png,red,val\n")
    with pytest.raises(DataError, match=r"none of the 1 images could be read"):
        evaluate(path, [parse_command_line([*settings, "data.match_classes=by-name"])])


def test_shards_of_a_list_give_the_same_numbers(squares: Path, trained: TrainResult, tmp_path: Path) -> None:
    packed = pack(DataSection(list=str(squares), workers=0), tmp_path / "shards", 10**6, Quiet())
    with tarfile.open(min(packed.folder.glob("train*.tar"))) as file:
        members = file.getmembers()
        label = file.extractfile(members[1])
        assert label is not None
        numbers = json.load(label)
    assert members[1].name.endswith(".json")
    first = squares.read_text().splitlines()[1].split(",")[1]
    assert "|".join(CLASSES[number] for number in numbers) == first
    path, settings = trained.folder / "best.safetensors", ["data.workers=0", "evaluate.device=cpu"]
    found = evaluate(path, [parse_command_line([*settings, f"data.root={packed.folder}"])])
    assert found.accuracy == evaluate(path, [parse_command_line(settings)]).accuracy


def test_a_part_of_the_classes_is_matched_by_name(squares: Path, trained: TrainResult) -> None:
    path = trained.folder / "best.safetensors"
    lines = squares.read_text().splitlines()
    some = squares.with_name("some.csv")
    some.write_text("\n".join([lines[0], *(line for line in lines[193:] if "green" not in line)]))
    settings = [f"data.list={some}", "data.workers=0", "evaluate.device=cpu"]
    with pytest.raises(DataError, match=r"differences, as index: model / data = 1: green / red"):
        evaluate(path, [parse_command_line(settings)])
    display = Notebook()
    found = evaluate(path, [parse_command_line([*settings, "data.match_classes=by-name"])], display=display).accuracy
    assert found.map > 80
    assert (
        f"{some}, split val: has no images of 1 of the 3 classes; where the model gives an image one of these, "
        "that counts as wrong"
    ) in display.warnings


# The weight file


def test_thresholds_of_other_classes_are_a_half(trained: TrainResult) -> None:
    path = trained.folder / "best.safetensors"
    known = open_model(path).record.thresholds
    assert known is not None
    assert load_model(path, classes=["red", "violet"]).thresholds == (known[2], 0.5)
    with pytest.warns(UserWarning, match="its head is dropped"):
        model = load_model(path, num_classes=5)
    assert model.thresholds == (0.5,) * 5
    model.reset_classifier(2)
    assert model.thresholds is None


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 2], [0.5, 0.5, "x"], 7])
def test_thresholds_that_do_not_fit_are_refused(trained: TrainResult, thresholds: Any) -> None:
    from safetensors import safe_open

    with safe_open(trained.folder / "best.safetensors", "pt") as file:
        metadata = dict(file.metadata())
    content = json.loads(metadata["vitrail"]) | {"thresholds": thresholds}
    with pytest.raises(CheckpointError, match="cannot be followed"):
        parse_record({"vitrail": json.dumps(content)}, "best.safetensors")


def test_other_projects_are_told_the_thresholds_and_the_card_has_no_top1(trained: TrainResult, tmp_path: Path) -> None:
    path = trained.folder / "best.safetensors"
    done = convert(path, tmp_path / "timm.safetensors", "timm")
    told = [doubt for doubt in done.doubts if "thresholds" in doubt]
    assert len(told) == 1
    assert "take the sigmoid of each logit" in told[0]
    again = convert(path, tmp_path / "ours.safetensors", "vitrail")
    assert not again.doubts
    assert open_model(tmp_path / "ours.safetensors").record.thresholds == open_model(path).record.thresholds
    card = model_card(open_model(path).record)
    assert "| mAP, % | not published |" in card
    assert "top-1" not in card
