"""The winner beside the recipe: paired differences, their interval, and the page that shows all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from support.chromium import CHROMIUM, Page
from vitrail.tuning.compare import Comparison
from vitrail.tuning.finalists import Finalist, find_winner, rank_trials
from vitrail.tuning.outcome import Tuned
from vitrail.tuning.page import render_study, tell_verdict
from vitrail.tuning.process import Measure
from vitrail.tuning.space import read_space
from vitrail.tuning.study import Run, choose_rungs
from vitrail.tuning.subject import Ground

SPACE = read_space(
    {
        "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "augment.scale": [[0.08, 1.0], [0.5, 1.0]],
        "augment.mixup": {"low": 0.1, "high": 0.8, "when": {"augment.scale": [[0.08, 1.0]]}},
    },
    "space",
)


def test_the_interval_is_students_for_paired_differences() -> None:
    default, best = (90.0, 91.5, 90.5, 89.0), (91.0, 92.0, 91.8, 90.1)
    compared = Comparison("0003", (1, 2, 3, 4), default, best, is_lower_better=False)
    low, high = ttest_rel(best, default).confidence_interval(0.95)
    assert compared.gain - compared.margin == pytest.approx(low)
    assert compared.gain + compared.margin == pytest.approx(high)
    assert compared.is_better
    assert compared.verdict("val_top1").startswith(
        "trial 0003 is better than the recipe as it is: mean gain in val_top1"
    )
    # a lower loss is a gain
    lower = Comparison("0003", (1, 2, 3, 4), best, default, is_lower_better=True)
    assert lower.gains == compared.gains
    doubtful = Comparison("0003", (1, 2), (90.0, 91.0), (92.0, 91.1), is_lower_better=False)
    assert not doubtful.is_better
    assert doubtful.verdict("val_top1").startswith("not shown to be better than the recipe as it is: mean gain")
    equal = Comparison("0003", (1, 2), (90.0, 91.0), (90.0, 91.0), is_lower_better=False)
    assert (equal.gain, equal.margin, equal.is_better) == (0.0, 0.0, False)


def test_rungs_are_a_ninth_a_third_and_all() -> None:
    assert choose_rungs(27) == (3, 9, 27)
    assert choose_rungs(300) == (33, 100, 300)
    assert choose_rungs(3) == (1, 3)
    assert choose_rungs(2) == (1, 2)


def run(number: int, state: Any, values: dict[str, Any], *by_epoch: float, **more: Any) -> Run:
    facts = {"is_default": False, "reason": "", "target": None, **more}
    epochs = {epoch + 1: value for epoch, value in enumerate(by_epoch)}
    return Run(f"{number:04d}", state, values=values, by_epoch=epochs, seconds=60.0, number=number, **facts)


def make_study(folder: Path) -> Tuned:
    runs = [
        run(0, "complete", {"optim.lr": 1e-3, "augment.scale": [0.7, 1.0]}, 50.0, 80.0, is_default=True),
        run(1, "complete", {"optim.lr": 2e-3, "augment.scale": [0.5, 1.0]}, 60.0, 85.0, 84.0),
        run(2, "pruned", {"optim.lr": 1e-4, "augment.scale": [0.08, 1.0], "augment.mixup": 0.3}, 20.0),
        run(3, "failed", {"optim.lr": 9e-3, "augment.scale": [0.5, 1.0]}, reason="killed <b>by</b> hand"),
        run(4, "complete", {"optim.lr": 3e-3, "augment.scale": [0.08, 1.0], "augment.mixup": 0.7}, 60.0, 85.0),
    ]
    measure = Measure("val_top1", is_lower_better=False)
    best = find_winner(runs, measure)
    assert best is not None
    assert best.name == "0001"  # of equal ones the earliest
    return Tuned(
        name="tiny",
        folder=folder,
        space=SPACE,
        ground=Ground("val_top1", "digits, held-out part (359 images)", {}, False, ()),
        runs=tuple(runs),
        measure=measure,
        best=best,
        finalists=(),
        comparison=Comparison("0001", (1, 2, 3), (80.0, 81.0, 79.5), (85.0, 84.0, 84.5), is_lower_better=False),
        final=None,
        importances={"optim.lr": 0.8, "augment.scale": 0.2},
        recipe=folder / "best.yaml",
        page=folder / "study.html",
    )


def test_the_page_says_what_came_of_it(tmp_path: Path) -> None:
    text = render_study(make_study(tmp_path)).decode()
    assert "Trial 0001 is better than the recipe as it is: mean gain in val_top1 +4.33 over 3 seeds" in text
    assert "killed &lt;b&gt;by&lt;/b&gt; hand" in text
    assert "selected by val_top1 on digits, held-out part (359 images)" in text
    assert "80.0 %" in text
    assert "lost with the process" not in text
    assert render_study(make_study(tmp_path)).decode() == text


def test_the_winner_is_the_trial_with_the_best_mean_over_seeds(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    lucky, steady = rank_trials(study.runs, study.measure)[:2]
    assert (lucky.name, steady.name) == ("0001", "0004")
    finalists = (Finalist(steady, (85.0, 84.0, 86.0), ""), Finalist(lucky, (85.0, 70.0, 84.0), ""))
    winner = find_winner(study.runs, study.measure, finalists)
    assert winner is steady
    text = render_study(replace(study, best=winner, finalists=finalists, comparison=None)).decode()
    assert "Trial 0004 is the best with 3 seeds, which does not show yet" in text
    assert "<td>85</td><td>84</td><td>86</td><td>85</td>" in text
    assert "trial 0004, 3 seeds" in text

    # one of which a run failed has no mean
    failed = (Finalist(lucky, (85.0,), "loss is not finite"), Finalist(steady, (85.0,), "killed"))
    assert failed[0].mean is None
    text = render_study(replace(study, finalists=failed, comparison=None)).decode()
    assert "Trial 0001 is the best with one seed" in text
    assert "<td>85</td><td>failed</td>" in text


def test_the_page_of_a_search_without_a_comparison_promises_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    lost = run(5, "lost", {}, 17.0, reason="its process has ended")
    text = render_study(replace(study, runs=(*study.runs, lost), comparison=None)).decode()
    said = "Trial 0001 is the best with one seed, which does not show yet that it is better than the recipe as it is."
    assert said in text
    assert "1 of them lost with the process" in text


def test_where_nothing_came_to_its_end_the_verdict_says_why(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    failed = replace(study, runs=(run(0, "failed", {}, reason="loss is not finite", is_default=True),), best=None)
    said = "No trial has been trained to its end yet; the latest that failed, 0000: loss is not finite."
    assert tell_verdict(replace(failed, comparison=None)) == said
    assert said in render_study(replace(failed, comparison=None)).decode()
    empty = replace(failed, runs=(), comparison=None)
    assert tell_verdict(empty) == "No trial has been trained to its end yet."
    render_study(empty)


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_stands_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    page.write_bytes(render_study(make_study(tmp_path)))
    with Page() as browser:
        browser.open(page.as_uri())
        assert browser.ask("document.querySelectorAll('#trials tbody tr').length") == 5
        assert browser.ask("document.querySelectorAll('#history circle').length") == 4
        assert browser.ask("document.querySelectorAll('#parallel polyline').length") == 4
        # the winner is drawn over the others, through all of its axes
        last = "[...document.querySelectorAll('#parallel polyline')].at(-1)"
        assert browser.ask(f"{last}.classList.contains('best')")
        assert browser.ask(f"{last}.points.length") == 3
        # no line crosses what the ends of an axis are called
        ends = "[...document.querySelectorAll('#parallel text:not(.behind):not(.name)')]"
        assert browser.ask(f"{ends}.length") == 8
        assert browser.ask(f"{ends}.every(text => text.y.baseVal[0].value < 0 || text.y.baseVal[0].value > 225)")
        # remarks are seen without scrolling, however many settings there are
        browser.resize(1200, 800)
        heads = "[...document.querySelectorAll('#trials thead th')]"
        remark = f"{heads}.find(head => head.textContent.startsWith('remark')).getBoundingClientRect().right"
        assert browser.ask(f"{remark} < document.querySelector('#trials .scroll').getBoundingClientRect().right")
        browser.resize(390, 800, is_phone=True)
        assert browser.ask("document.documentElement.scrollWidth <= 390")
        assert not browser.complaints
