"""Inputs for an inference program elsewhere, and its answers evaluated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.cli.app import main
from vitrail.config.resolve import parse_command_line
from vitrail.errors import DataError
from vitrail.evaluation.evaluate import Evaluation, evaluate
from vitrail.inference.bin_files import LogitFiles, unique_names
from vitrail.weights.loading import load_model


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, tokens)))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def answered(checkpoint: Path, inputs: Path, folder: Path) -> Path:
    """Do what an inference program does: read each file, write its logits."""
    model = load_model(checkpoint)
    folder.mkdir()
    for path in sorted((inputs / "input").iterdir()):
        image = np.fromfile(path, "<f4").reshape(1, model.preprocess.channels, *model.preprocess.size)
        with torch.inference_mode():
            model(torch.from_numpy(image)).numpy().astype("<f4").tofile(folder / f"{path.stem}_0.bin")
    return folder


def layers(root: Path, *settings: str) -> list:
    return [parse_command_line([f"data.root={root}", "data.workers=0", "evaluate.device=cpu", *settings])]


@pytest.fixture
def answers(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> Path:
    assert run("predict", tiny_checkpoint, image_folder / "val", "--write-inputs", tmp_path / "inputs") == 0
    return answered(tiny_checkpoint, tmp_path / "inputs", tmp_path / "answers")


def numbers(found: Evaluation) -> dict:
    return {name: value for name, value in found.to_dict().items() if name != "engine"}


def test_answers_from_elsewhere_are_counted_as_those_of_the_model(
    answers: Path, tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    # one image at a time, as there
    whole = evaluate(tiny_checkpoint, layers(image_folder, "evaluate.batch_size=1"))
    found = evaluate(tiny_checkpoint, layers(image_folder), answers=answers, against=tiny_checkpoint)
    assert numbers(found) == {**numbers(whole), "agreement": found.to_dict()["agreement"]}
    assert found.engine == f"answers in {answers}"
    assert found.agreement is not None
    assert (found.agreement.equal, found.agreement.n) == (12, 12)
    assert found.agreement.difference < 1e-5
    for name, more in (("a", ["evaluate.batch_size=1"]), ("b", ["--answers", str(answers)])):
        given = [f"data.root={image_folder}", "data.workers=0", "evaluate.device=cpu", *more]
        assert (
            run("evaluate", tiny_checkpoint, *given, "--report", tmp_path / name, "--acc-log", tmp_path / "acc.log")
            == 0
        )
        assert (tmp_path / "acc.log").read_text() == (
            f"Top1 acc:  {round(whole.accuracy.top1 * 12 / 100) / 12}\nTop5 acc:  1.0\n"
        )
    for file in ("per_class.csv", "confusion.csv", "confusion.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_inputs_are_what_the_model_sees(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = image_folder / "val" / "red" / "red_0.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    assert run("predict", tiny_checkpoint, image_folder / "val", "--write-inputs", tmp_path / "in") == 1
    said = capsys.readouterr()
    assert f"{broken}: " in said.err
    assert "11 images as float32 (3, 32, 32)" in said.out
    names = json.loads((tmp_path / "in" / "names.json").read_text())
    assert sorted(f"{name}.bin" for name in names) == sorted(
        path.name for path in (tmp_path / "in" / "input").iterdir()
    )
    labels = json.loads((tmp_path / "in" / "labels.json").read_text())
    preprocess = load_model(tiny_checkpoint).preprocess
    for name, path in names.items():
        assert name == Path(path).stem
        values = np.fromfile(tmp_path / "in" / "input" / f"{name}.bin", "<f4").reshape(3, 32, 32)
        assert np.array_equal(values, preprocess(path).numpy())
        assert labels[name] == ("blue", "green", "red").index(Path(path).parent.name)

    found = evaluate(
        tiny_checkpoint, layers(image_folder), answers=answered(tiny_checkpoint, tmp_path / "in", tmp_path / "out")
    )
    assert (found.accuracy.n, [name for name, _ in found.bad_files]) == (11, [str(broken)])
    with pytest.raises(DataError, match="cannot be read"):
        evaluate(tiny_checkpoint, layers(image_folder, "data.bad_files=error"), answers=tmp_path / "out")
    # the same folder is written anew, another is not
    (image_folder / "val" / "blue" / "notes.txt").write_text("no image")
    assert run("predict", tiny_checkpoint, image_folder / "val" / "blue", "--write-inputs", tmp_path / "in") == 0
    said = capsys.readouterr()
    assert "(replaced)" in said.out
    assert "blue: ignored 1 file that is not an image: notes.txt" in said.err
    assert run("predict", tiny_checkpoint, image_folder / "val", "--write-inputs", image_folder) == 2
    assert "holds other files, such as train, and is not replaced" in capsys.readouterr().err


def test_labels_are_written_only_where_the_folders_name_classes(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder / "val", tmp_path / "other")
    (tmp_path / "other" / "red").rename(tmp_path / "other" / "pink")
    assert run("predict", tiny_checkpoint, tmp_path / "other", "--write-inputs", tmp_path / "in") == 0
    assert "labels.json: not written, as not all images lie in folders called as classes" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["input", "names.json"]


def test_a_file_of_names_stands_for_the_model(answers: Path, tiny_checkpoint: Path, image_folder: Path) -> None:
    names = answers.parent / "classes.txt"
    names.write_text("blue\ngreen\nred\n")
    whole = evaluate(tiny_checkpoint, layers(image_folder), answers=answers)
    found = evaluate(names, layers(image_folder), answers=answers)
    assert found.accuracy == whole.accuracy
    assert (
        run("evaluate", names, f"data.root={image_folder}", "--answers", answers, "--report", answers.parent / "r") == 0
    )
    assert "blue" in (answers.parent / "r" / "report.html").read_text()


def test_answers_are_files_of_the_size_that_was_found(answers: Path, tiny_checkpoint: Path, image_folder: Path) -> None:
    first = min(answers.iterdir())
    found = LogitFiles(answers, (first.name.removesuffix("_0.bin"),), 3, {})
    assert found.read(torch.tensor([0])).shape == (1, 3)
    for size in (8, 16, 10**6):
        with first.open("wb") as file:
            file.truncate(size)
        with pytest.raises(DataError, match=r"_0\.bin: has changed while the answers were read; begin again when all"):
            found.read(torch.tensor([0]))
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(DataError, match=r"cannot be read \(is a device or a pipe, no regular file\)"):
        found.read(torch.tensor([0]))
    with pytest.raises(DataError, match=rf"cannot be read \({first.name} is no regular file\); give the folder"):
        evaluate(tiny_checkpoint, layers(image_folder), answers=answers)


def test_nothing_is_written_among_the_answers(
    answers: Path, tiny_checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = sorted(answers.iterdir())
    given = ("evaluate", tiny_checkpoint, f"data.root={image_folder}", "--answers", answers)
    (answers.parent / "link").symlink_to(answers)
    for flag, path in (
        ("--acc-log", answers / "acc.log"), ("--json", answers.parent / "link" / "a.json"),
        ("--report", answers / "report"),
    ):  # fmt: skip
        assert run(*given, flag, path) == 2
        assert capsys.readouterr().err.endswith(
            f"error: {flag} {path}: lies in --answers {answers}, which holds answers alone; choose another place\n"
        )
    monkeypatch.chdir(answers)  # where evaluations/ would be
    assert run(*given) == 2
    assert "error: --report evaluations/" in capsys.readouterr().err
    assert sorted(answers.iterdir()) == before


def test_answers_that_do_not_fit_the_images_are_refused(
    answers: Path, tiny_checkpoint: Path, image_folder: Path
) -> None:
    def refusal(folder: Path = answers) -> str:
        with pytest.raises(DataError) as caught:
            evaluate(tiny_checkpoint, layers(image_folder), answers=folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    first = answers / "blue_0_0.bin"
    whole = first.read_bytes()
    first.write_bytes(whole[:6])
    assert refusal() == f"answers={answers}: blue_0_0.bin has 6 bytes; the logits of 3 classes in float32 are 12"
    first.unlink()
    assert refusal() == (
        f"answers={answers}: has no blue_0_0.bin for {image_folder / 'val' / 'blue' / 'blue_0.jpg'}; 1 of 12 answers "
        "are missing"
    )
    first.write_bytes(whole)
    (answers / "blue_0_1.bin").write_bytes(whole)
    assert "1 of its files answer no image of" in refusal()
    assert "the first is blue_0_1.bin" in refusal()
    assert "cannot be read (No such file or directory); give the folder of NAME_0.bin files" in refusal(answers / "no")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["predict", "X", "IMAGES", "--write-inputs", "in", "--topk", "2"], "--topk 2: with --write-inputs nothing is"),
        (
            ["evaluate", "X", "--answers", "a", "--engine", "torch"],
            "--engine torch: with --answers nothing is computed",
        ),
        (["evaluate", "X", "--answers", "a", "--precision", "float16"], "--precision float16: with --answers nothing"),
        (["evaluate", "X", "--answers", "a", "--sweep-preprocess"], "--answers: --sweep-preprocess takes none"),
        (["evaluate", "X", "--acc-log", "no/a"], "--acc-log no/a: there is no folder no"),
    ],
)
def test_options_that_say_nothing_together_are_refused(
    tokens: list[str], message: str, tiny_checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"X": tiny_checkpoint, "IMAGES": image_folder}
    assert run(*(given.get(token, token) for token in tokens)) == 2
    assert message in capsys.readouterr().err


def test_lines_of_the_zoo_are_for_one_class_an_image(tmp_path: Path, image_folder: Path) -> None:
    from vitrail.errors import ConfigError
    from vitrail.evaluation.multi_label_metrics import compute_multi_label_metrics

    found = compute_multi_label_metrics(np.zeros((4, 2), np.float32), np.eye(2, dtype=bool)[[0, 1, 0, 1]], (0.5, 0.5))
    with pytest.raises(ConfigError, match="acc_log: the model zoo's lines are for one class an image"):
        found.acc_log()


def test_names_are_as_short_as_they_can_be() -> None:
    assert unique_names(["/a/x.jpg", "/a/y.jpg"]) == ["x", "y"]
    assert unique_names(["/a/x.jpg", "/a/x.png"]) == ["x.jpg", "x.png"]
    assert unique_names(["/s/a/x.jpg", "/s/b/x.jpg", "/s/b/y.jpg"]) == ["a_x", "b_x", "b_y"]
    assert unique_names(["/s/a/X.jpg", "/s/b/x.jpg"]) == ["a_X", "b_x"]  # one name for some systems
    digests = [unique_names([f"/{top}/a_b/c.jpg", f"/{top}/a/b_c.jpg", f"/{top}/d/c.jpg"]) for top in ("s", "t/u")]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3
    with pytest.raises(DataError, match="is given twice; give each image once"):
        unique_names(["a/x.jpg", "a/../a/x.jpg"])
