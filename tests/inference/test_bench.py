"""`vitrail bench`: what is measured, in real processes, and what is refused before any is started."""

import json
from pathlib import Path

import pytest

from vitrail.cli.app import main
from vitrail.inference.bench import beside_timm, find_subjects
from vitrail.models.registry import build_config


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.thorough
def test_each_subject_is_measured_at_each_batch_size(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--batch-size", 4, 1, "--rounds", 2, "--threads", 1, "--device", "cpu", "--json", tmp_path / "n.json")
    assert run(tiny_checkpoint, *words) == 0
    first, second = json.loads((tmp_path / "n.json").read_text())
    assert [first["batch_size"], second["batch_size"]] == [1, 4]
    for row in (first, second):
        assert row["name"] == str(tiny_checkpoint)
        assert row["about"].startswith("torch ")
        assert row["about"].endswith(", float32, 1 thread")
        assert row["runs"] == 10
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch_size"] / row["p50_ms"])
        assert row["peak_mib"] > 100
        assert 10_000 < row["params"] < row["macs"]
    assert "10 runs of each, in 2 alternating rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "bench needs models or files; `vitrail models` shows the models"),
        (["tnt_s_patch16_24"], "tnt_s_patch16_24: is no file, and no model; did you mean 'tnt_s_patch16_224'?"),
        (["t2t_vit_7", "--batch-size", "1", "0"], "--batch-size is 0; it must be at least 1"),
        (["t2t_vit_7", "--batch-size", "1.5"], "--batch-size is '1.5'; it must be a whole number"),
        (["t2t_vit_7", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["t2t_vit_7", "--json", "gone/n.json"], "--json gone/n.json: there is no folder gone; create or choose"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_timm_is_measured_where_it_has_the_model(tiny_checkpoint: Path) -> None:
    subjects = find_subjects(["twins_svt_small", "t2t_vit_7", str(tiny_checkpoint)], threads=1)
    assert [one.build is None for one in subjects] == [False, False, True]
    found, lacking = beside_timm(subjects, threads=1)
    assert lacking == ["t2t_vit_7", "tnt_ti_patch16_224"]
    (one,) = found
    assert one.name.startswith("twins_svt_small of timm ")
    assert one.config == build_config("twins_svt_small")


@pytest.mark.thorough
def test_what_cannot_be_opened_is_said_by_the_process_that_tried(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(tiny_checkpoint, "--precision", "float16", "--device", "cpu") == 2
    assert "error: --precision float16: PyTorch computes so on GPUs" in capsys.readouterr().err
