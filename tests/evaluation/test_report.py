"""The files of a report: what they hold, that nothing else is needed, and that a thousand classes fit."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import top_k_accuracy_score

from support.pages import check_page
from vitrail.data.paths import Paths
from vitrail.data.sources import FileSource, PixelSource, Source
from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.report import FILES, Subject, Training
from vitrail.evaluation.single_label_metrics import SingleLabelMetrics
from vitrail.evaluation.single_label_report import single_label_report_files
from vitrail.images.preprocess import Preprocess
from vitrail.pages.charts import line_chart
from vitrail.weights.checkpoint import Record


def subject(source: Source, path: Path, size: int = 8) -> Subject:
    path.write_bytes(b"weights")
    record = Record(model="tnt_s_patch16_224", options={}, classes=source.classes, preprocess=Preprocess(size=(8, 8)))
    return Subject(
        name="birds", path=path, record=record, source=source, preprocess=Preprocess(size=(size, size)),
        settings={"data": {"root": "images"}}, device=torch.device("cpu"),
    )  # fmt: skip


def counted(n: int, top1: float, top5: float, loss: float) -> SingleLabelMetrics:
    """Return numbers of which the report shows those that it does not compute itself."""
    return SingleLabelMetrics(n, top1, top5, loss, balanced_accuracy=61.25, macro_f1=57.75, tail_top1=12.5)


def noise(n: int, k: int, side: int = 8) -> tuple[PixelSource, Gathered, SingleLabelMetrics]:
    """Images of noise, and answers that are right three times in four."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, k, n).astype(np.int32)
    scores = generator.normal(size=(n, k)).astype(np.float32)
    scores[np.arange(n), labels] += 3 * generator.random(n) ** 0.3 + np.log(k) / 2
    log_probabilities = torch.from_numpy(scores).double().log_softmax(1).float().numpy()
    choices = np.argpartition(-scores, min(5, k) - 1)[:, :5]
    choices = np.take_along_axis(choices, np.argsort(-np.take_along_axis(scores, choices, 1), axis=1), 1)
    images = generator.integers(0, 256, (n if n < 1000 else 50, side, side, 3), dtype=np.uint8)
    images = np.resize(images, (n, side, side, 3)) if side <= 32 else np.broadcast_to(images[:1], (n, side, side, 3))
    names = np.array([f"noise/{index:05d}" for index in range(n)])
    source = PixelSource("noise", images, labels, tuple(f"class {number}" for number in range(k)), names)
    right = 100 * float((choices[:, 0] == labels).mean())
    accuracy = counted(n, right, 100 * float((choices == labels[:, None]).any(1).mean()), 0.5)
    return source, Gathered(np.arange(n), choices, log_probabilities), accuracy


def read(files: dict[str, bytes]) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(files["report.json"], parse_constant=refuse)


def test_the_numbers_equal_those_of_scikit_learn_and_the_files_agree(tmp_path: Path) -> None:
    source, answers, accuracy = noise(300, 7)
    files = single_label_report_files(subject(source, tmp_path / "w"), answers, accuracy, [])
    assert files.keys() == FILES
    found = read(files)
    scores = answers.scores
    assert found["n_right"] == round(top_k_accuracy_score(source.labels, scores, k=1, normalize=False))
    assert found["n_right5"] == round(top_k_accuracy_score(source.labels, scores, k=5, normalize=False))
    assert found["intervals"]["top1"][0] < found["top1"] < found["intervals"]["top1"][1]
    assert sum(row["n"] for row in found["reliability"]) == 300
    assert [found[name] for name in ("balanced_accuracy", "macro_f1", "tail_top1", "head_top1")] == [
        61.25,
        57.75,
        12.5,
        None,
    ]
    assert all(text in files["report.html"].decode() for text in ("61.25 %", "57.75 %", "Tail accuracy", "12.50 %"))
    rows = list(csv.DictReader(io.StringIO(files["per_class.csv"].decode())))
    assert list(rows[0]) == ["class", "n", "accuracy", "precision", "recall", "F1", "AUROC", "AP"]
    assert [float(row["AUROC"]) for row in rows] == [row["auroc"] for row in found["per_class"]]
    assert float(rows[0]["accuracy"]) == pytest.approx(100 * float(rows[0]["recall"]))
    table = list(csv.reader(io.StringIO(files["confusion.csv"].decode())))
    counts = np.array([row[1:] for row in table[1:]], dtype=int)
    assert table[0][1:] == [row[0] for row in table[1:]] == list(source.classes)
    assert (counts.sum(), np.trace(counts)) == (300, found["n_right"])
    assert max(pair["n"] for pair in found["most_confused"]) == (counts - np.diag(np.diag(counts))).max()
    mistakes = found["most_confident_mistakes"]
    assert [row["probability"] for row in mistakes] == sorted((row["probability"] for row in mistakes), reverse=True)
    check_page(files["report.html"].decode())


def test_unreadable_images_are_counted_apart_and_as_wrong(tmp_path: Path) -> None:
    source, answers, _ = noise(100, 2)
    kept = Gathered(answers.indices[4:], answers.choices[4:], answers.scores[4:])
    right = int((kept.choices[:, 0] == source.labels[4:]).sum())
    some = counted(96, 100 * right / 96, 100.0, 0.5)
    bad = [(source.name(index), "<cut & short>") for index in range(4)]
    files = single_label_report_files(subject(source, tmp_path / "w"), kept, some, bad)
    found = read(files)
    assert (found["n_ok"], found["n_bad"], found["n_right"]) == (96, 4, right)
    assert found["top1_all_images"] == right
    assert found["top5_all_images"] == 96
    page = files["report.html"].decode()
    assert "&lt;cut &amp; short&gt;" in page
    assert f"{right}.00 %" in page


def test_a_class_without_images_is_null_and_is_named(tmp_path: Path) -> None:
    source, answers, _ = noise(50, 3)
    seen = source.labels[answers.indices] != 2
    kept = Gathered(answers.indices[seen], answers.choices[seen], answers.scores[seen])
    n = int(seen.sum())
    files = single_label_report_files(subject(source, tmp_path / "w"), kept, counted(n, 50.0, 100.0, 0.5), [])
    found = read(files)
    assert found["classes_without_images"] == ["class 2"]
    assert found["per_class"][2]["auroc"] is found["per_class"][2]["recall"] is None
    assert found["macro_auroc"] is not None
    assert "1 of the model's 3 classes have no image here" in " ".join(files["report.html"].decode().split())


def test_answers_that_are_not_numbers_still_make_a_report(tmp_path: Path) -> None:
    source, answers, _ = noise(20, 3)
    nothing = Gathered(answers.indices, answers.choices, np.full_like(answers.scores, np.nan))
    diverged = counted(20, 30.0, 100.0, float("nan"))
    files = single_label_report_files(subject(source, tmp_path / "w"), nothing, diverged, [])
    found = read(files)
    assert found["loss"] is found["ece"] is found["macro_auroc"] is None
    check_page(files["report.html"].decode())


def test_without_a_mistake_the_page_says_so(tmp_path: Path) -> None:
    source, answers, _ = noise(20, 3)
    perfect = source.labels[:, None].astype(np.int64)
    gathered = Gathered(answers.indices, perfect, answers.scores)
    accuracy = counted(20, 100.0, 100.0, 0.1)
    files = single_label_report_files(subject(source, tmp_path / "w"), gathered, accuracy, [])
    assert "every answer is right" in files["report.html"].decode()
    assert read(files)["most_confused"] == []


def test_pictures_are_what_the_model_saw_and_a_file_that_is_gone_leaves_a_gap(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((9, 9, 3), 77, dtype=np.uint8)).save(tmp_path / name / "1.png")
    source = FileSource(tmp_path, Paths.of([b"a/1.png", b"b/1.png"]), np.array([0, 1], dtype=np.int32), ("a", "b"), "x")
    wrong = Gathered(
        np.arange(2), np.array([[1, 0], [0, 1]]), np.log(np.array([[0.2, 0.8], [0.7, 0.3]], dtype=np.float32))
    )
    (tmp_path / "b" / "1.png").unlink()
    page = single_label_report_files(subject(source, tmp_path / "w"), wrong, counted(2, 0.0, 100.0, 1.5), [])[
        "report.html"
    ].decode()
    assert page.count("no longer readable") == 2  # among the pairs, and among the mistakes
    assert page.count("data:image/png") == 2
    assert str(tmp_path / "a" / "1.png").replace("/", "/<wbr>") in page
    check_page(page)


def test_ids_of_imagenet_are_shown_by_their_english_names(tmp_path: Path) -> None:
    source, answers, accuracy = noise(40, 2)
    named = replace(source, classes=("n01440764", "n01443537"))
    files = single_label_report_files(subject(named, tmp_path / "w"), answers, accuracy, [])
    page = files["report.html"].decode()
    assert '<span title="n01440764">tench</span>' in page
    assert 'n01443537 <span class="muted">goldfish</span>' in page
    assert {row["class"] for row in read(files)["per_class"]} == {"n01440764", "n01443537"}


def test_the_page_of_a_run_shows_its_curves_samples_and_settings(tmp_path: Path) -> None:
    source, answers, accuracy = noise(40, 3)
    chart = line_chart("loss", {"training": [(1, 2.0), (2, 1.0)], "validation": [(1, 2.5), (2, 1.5)]}, 2)
    assert chart is not None
    training = Training(
        rows=[{}, {}], best={"epoch": 2}, charts=[chart], samples=[("data:image/png;base64,xyz", "<class>")],
        config="train: {epochs: 2}", seconds=90, updates=8,
    )  # fmt: skip
    page = single_label_report_files(subject(source, tmp_path / "w"), answers, accuracy, [], training)[
        "report.html"
    ].decode()
    for text in (
        "2 epochs in 1.5 minutes",
        "train: {epochs: 2}",
        "base64,xyz",
        "&lt;class&gt;",
        "polyline",
        "dashed training, dot best",
    ):
        assert text in page, text
    check_page(page)


PROBE = """
<iframe src="report.html" style="width: 390px; height: 800px"></iframe>
<pre id="told"></pre>
<script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, table = page.querySelector("table.sortable"), told = {};
  const column = number => [...table.tBodies[0].rows].map(row => row.cells[number].textContent);
  const click = number => table.tHead.rows[0].cells[number].querySelector("button").click();
  click(0); told.names = column(0);
  click(2); told.rising = column(2);
  click(2); told.falling = column(2);
  told.sorted = [...page.querySelectorAll("[aria-sort]")].map(head => head.getAttribute("aria-sort"));
  const search = page.querySelector("input[type=search]");
  search.value = "class 1"; search.dispatchEvent(new Event("input"));
  told.left = [...table.tBodies[0].rows].filter(row => !row.hidden).length;
  told.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  document.querySelector("#told").textContent = JSON.stringify(told);
};
</script>
"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_a_browser_tables_sort_and_a_narrow_page_does_not_scroll_sideways(tmp_path: Path) -> None:
    source, answers, _ = noise(400, 24)
    seen = source.labels[answers.indices] != 3
    kept = Gathered(answers.indices[seen], answers.choices[seen], answers.scores[seen])
    files = single_label_report_files(
        subject(source, tmp_path / "w"), kept, counted(int(seen.sum()), 75.0, 90.0, 0.5), []
    )
    (tmp_path / "report.html").write_bytes(files["report.html"])
    (tmp_path / "probe.html").write_text(PROBE)
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*browser, *options, f"file://{tmp_path / 'probe.html'}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = json.loads(done.stdout.split('<pre id="told">')[1].split("</pre>")[0])
    assert told["names"] == [f"class {number}" for number in range(24)]
    rising = [float(text) for text in told["rising"][:-1]]
    assert rising == sorted(rising)
    assert [float(text) for text in told["falling"][:-1]] == rising[::-1]
    assert told["rising"][-1] == told["falling"][-1] == "-"
    assert told["sorted"] == ["descending"]
    assert told["left"] == 11
    assert told["overflow"] == 0


def test_a_thousand_classes_make_a_page_of_reasonable_size_in_seconds(
    tmp_path: Path, without_shape_checks: None
) -> None:
    source, answers, accuracy = noise(10_000, 1000, 224)
    began = time.perf_counter()
    files = single_label_report_files(subject(source, tmp_path / "w", 224), answers, accuracy, [])
    assert time.perf_counter() - began < 20
    assert len(files["report.html"]) < 3e6
    check_page(files["report.html"].decode())
