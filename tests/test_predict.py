import csv
import json
import os
import select
import tracemalloc
from pathlib import Path

import pytest

from forked import Python
from vitrail.cli import main
from vitrail.errors import DataError
from vitrail.loading import load_model
from vitrail.predict import find_images, predict


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def images_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.jpg"))


def test_default_output_is_path_to_class_and_one_line_an_image(
    tiny_checkpoint: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(tiny_checkpoint, image_folder / "val", "--device", "cpu") == 0
    found = json.loads(Path("predictions.json").read_text())
    assert list(found) == images_of(image_folder / "val")
    model = load_model(tiny_checkpoint)
    for path, index in found.items():
        assert int(model(model.preprocess(path).unsqueeze(0)).argmax()) == index
    assert capsys.readouterr().out.splitlines() == [f"{path} (class: {index})" for path, index in found.items()]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_rows_keep_their_order_and_values_for_any_batch_size(
    tiny_checkpoint: Path, image_folder: Path, batch_size: int
) -> None:
    model, paths = load_model(tiny_checkpoint), images_of(image_folder)
    rows = list(predict(model, model.preprocess, paths, topk=3, batch_size=batch_size))
    assert [row.path for row in rows] == paths
    alone = [next(predict(model, model.preprocess, [path], topk=3)) for path in paths]
    assert [row.choices for row in rows] == [row.choices for row in alone]
    for row, other in zip(rows, alone, strict=True):
        assert row.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        assert sum(row.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(row.probabilities) == sorted(row.probabilities, reverse=True)


def test_unreadable_images_are_rows_and_the_exit_status_says_so(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = image_folder / "val" / "red"
    good, broken, empty = images_of(folder)[:3]
    Path(broken).write_bytes(Path(broken).read_bytes()[:100])
    Path(empty).write_bytes(b"")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([good, broken, "", str(tmp_path / "gone.jpg"), empty]) + "\n")
    for form in ("json", "jsonl", "csv"):
        out = tmp_path / f"out.{form}"
        assert run(tiny_checkpoint, listed, "--format", form, "--output", out, "--device", "cpu") == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert isinstance(found[good], int)
    assert found[empty] == {"error": "the file is empty"}
    assert found[str(tmp_path / "gone.jpg")] == {"error": "No such file or directory"}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [good, broken, str(tmp_path / "gone.jpg"), empty]
    assert [("error" in line) for line in lines] == [False, True, True, True]
    with (tmp_path / "out.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [bool(row["error"]) for row in table] == [False, True, True, True]
    assert [bool(row["name"]) for row in table] == [True, False, False, False]


def test_csv_and_jsonl_have_names_and_probabilities_of_the_first_k(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    path = images_of(image_folder)[0]
    assert run(tiny_checkpoint, path, "--format", "csv", "--topk", 2, "--output", tmp_path / "a.csv") == 0
    assert run(tiny_checkpoint, path, "--format", "jsonl", "--topk", 2, "--output", tmp_path / "a.jsonl") == 0
    assert run(tiny_checkpoint, path, "--topk", 2, "--output", tmp_path / "a.json") == 0
    with (tmp_path / "a.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert list(row) == ["path", "class", "name", "probability", "class_2", "name_2", "probability_2", "error"]
    assert [row["name"], row["name_2"]] == [choice["name"] for choice in line["topk"]]
    assert float(row["probability"]) == pytest.approx(line["probability"], abs=1e-6)
    assert json.loads((tmp_path / "a.json").read_text())[path] == [choice["class"] for choice in line["topk"]]


def test_more_choices_than_classes_are_cut_with_a_warning(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = images_of(image_folder)[0]
    assert run(tiny_checkpoint, path, "--format", "jsonl", "--topk", 9, "--output", tmp_path / "a.jsonl") == 0
    assert "--topk is 9 but the model has 3 classes" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "a.jsonl").read_text())["topk"]) == 3


def test_globs_and_folders_are_searched_deeply_and_hidden_files_left_out(image_folder: Path) -> None:
    (image_folder / "val" / ".hidden.jpg").write_bytes(b"")
    (image_folder / "val" / "notes.md").write_text("no image")
    expected = images_of(image_folder / "val")[1:]
    assert list(find_images([str(image_folder / "val")])) == expected
    assert sorted(find_images([str(image_folder / "val" / "**" / "*.jpg")])) == expected


def test_names_that_are_no_text_are_shown_escaped(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    photo = (image_folder / "val" / "red" / "red_0.jpg").read_bytes()
    odd = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    odd.write_bytes(photo)
    (tmp_path / "list.txt").write_bytes(os.fsencode(odd) + b"\n")
    assert run(tiny_checkpoint, odd, tmp_path / "list.txt", "--format", "jsonl", "--output", tmp_path / "p") == 0
    names = [json.loads(line)["path"] for line in (tmp_path / "p").read_text().splitlines()]
    assert names == [f"{tmp_path}/caf\\udce9.jpg"] * 2


def test_a_folder_that_links_to_itself_is_refused(image_folder: Path) -> None:
    (image_folder / "val" / "loop").symlink_to(image_folder)
    with pytest.raises(DataError, match=r"val/loop: is a link to a folder that contains it; remove the link"):
        list(find_images([str(image_folder)]))


def test_inputs_that_are_not_there_or_hold_no_image_are_refused(tmp_path: Path) -> None:
    for given, message in (("gone.jpg", "no such file or folder"), ("*.jpg", "holds no image"), ("", "no such file")):
        with pytest.raises(DataError, match=message):
            list(find_images([str(tmp_path / given) if given else "missing"]))
    with pytest.raises(DataError, match="holds no image"):
        list(find_images([str(tmp_path)]))


def test_a_failed_prediction_leaves_the_older_file_as_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("older")
    assert run(tiny_checkpoint, tmp_path / "gone", "--output", out) == 2
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_memory_does_not_grow_with_the_number_of_images(tiny_checkpoint: Path, image_folder: Path) -> None:
    model, path = load_model(tiny_checkpoint), images_of(image_folder)[0]

    def peak(n: int) -> int:
        tracemalloc.start()
        for _ in predict(model, model.preprocess, (path for _ in range(n)), batch_size=8):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(16)
    assert peak(400) < peak(40) + 200_000


def test_what_goes_to_a_file_gets_there_while_the_bar_is_on_the_terminal(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    terminal, inner = os.openpty()
    words = ("predict", tiny_checkpoint, image_folder, "--output", tmp_path / "p.json")
    process = Python("-m", "vitrail", *words, stderr=os.ttyname(inner))
    while process.poll() is None:
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    os.close(inner)
    done = process.wait()
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 36


def test_predictions_go_through_a_device_and_a_link(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("target.json")
    assert run(tiny_checkpoint, image_folder, "--output", tmp_path / "link.json") == 0
    assert len(json.loads((tmp_path / "target.json").read_text())) == 36
    assert run(tiny_checkpoint, image_folder, "--output", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n", encoding="utf-8-sig")
    assert list(find_images([str(tmp_path / "list.txt")])) == ["a.jpg", "b.jpg"]
