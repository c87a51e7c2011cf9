"""The report's mistakes with maps of what the answers rest on, where `evaluate.explain=true` asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vitrail
from support.chromium import CHROMIUM, Page
from support.commands import refused, run
from support.pages import check_page
from vitrail.errors import MissingExtra
from vitrail.evaluation.mistake_maps import FEW
from vitrail.explanation import perturbation


def report_of(checkpoint: Path, root: Path, folder: Path, *settings: str) -> str:
    assert run("evaluate", checkpoint, f"data.root={root}", "data.workers=0", "--report", folder, *settings) == 0
    return (folder / "report.html").read_text()


def test_each_mistake_has_a_map_of_its_answer_and_of_its_class(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plain = report_of(tiny_checkpoint, image_folder, tmp_path / "plain")
    page = report_of(tiny_checkpoint, image_folder, tmp_path / "maps", "evaluate.explain=true")
    mistakes = json.loads((tmp_path / "maps" / "report.json").read_text())["most_confident_mistakes"]
    assert mistakes
    assert "Map of what speaks for" not in plain
    assert page.count('alt="Map of what speaks for') == 2 * len(mistakes)
    for mistake in mistakes:
        for name in (mistake["answer"], mistake["true"]):
            assert f'alt="Map of what speaks for {name}"' in page
    assert "by <code>gradient-attention</code>" in page
    check_page(page)
    again = report_of(tiny_checkpoint, image_folder, tmp_path / "again", "evaluate.explain=true")
    assert again == page


def test_of_an_exported_file_only_the_first_mistakes_have_maps(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    page = report_of(exported, image_folder, tmp_path / "maps", "evaluate.explain=true")
    assert page.count('alt="Map of what speaks for') == 2 * FEW
    assert "by <code>occlusion</code>" in page
    assert f"Only the first {FEW} have maps" in page


def test_what_cannot_be_explained_is_told_before_the_work(
    image_folder: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [tiny_checkpoint, f"data.root={image_folder}", "data.workers=0"]
    run("predict", tiny_checkpoint, image_folder / "val", "--write-inputs", tmp_path / "inputs")
    (tmp_path / "answers").mkdir()
    for file in (tmp_path / "inputs" / "input").iterdir():
        (tmp_path / "answers" / f"{file.stem}_0.bin").write_bytes(bytes(12))
    line = refused(
        capsys,
        "evaluate",
        *given,
        "--answers",
        tmp_path / "answers",
        "evaluate.explain=true",
        "--report",
        tmp_path / "r",
    )
    assert line == "error: evaluate.explain=true: with --answers there is no model to explain; leave it out"
    with pytest.warns(UserWarning, match="maps are shown in a report; ask for one with report=True"):
        vitrail.evaluate(
            tiny_checkpoint, {"data.root": image_folder, "data.workers": 0, "evaluate.explain": True}, progress=False
        )
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    monkeypatch.setattr(perturbation, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="need captum, which is not installed"):
        vitrail.evaluate(
            exported,
            {"data.root": image_folder, "data.workers": 0, "evaluate.explain": True},
            report=tmp_path / "none",
            progress=False,
        )
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_maps_fit_a_phone(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    report_of(tiny_checkpoint, image_folder, tmp_path / "maps", "evaluate.explain=true")
    with Page() as page:
        for width in (1200, 390):
            page.resize(width, 844, is_phone=width == 390)
            page.open((tmp_path / "maps" / "report.html").as_uri())
            assert page.ask(f"document.documentElement.scrollWidth <= {width}")
            shown = "[...document.querySelectorAll('.maps img')]"
            page.ask(f"{shown}.forEach(one => one.loading = 'eager')")
            page.until(f"{shown}.every(one => one.naturalWidth > 0)")
            assert page.ask(f"{shown}.every(one => one.getBoundingClientRect().right <= innerWidth)")
        assert page.complaints == []
