import csv
import json
import os
import select
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from support.forked import Python
from vitrail.api.inference import Choice, Prediction
from vitrail.cli.app import main
from vitrail.cli.inference import line_of
from vitrail.errors import ConfigError, DataError
from vitrail.files import refuse_output
from vitrail.inference.find_images import find_images
from vitrail.inference.prediction_file import format_of
from vitrail.inference.predictor import open_predictor
from vitrail.weights.loading import load_model


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
    shown = [f"{path} (class: {index}, {model.classes[index]})" for path, index in found.items()]
    assert capsys.readouterr().out.splitlines() == shown


def test_a_class_without_a_name_is_shown_by_its_number_alone() -> None:
    named = Prediction("owl.png", (Choice(295, "brown bear", 0.9),), None, multi_label=False)
    assert line_of(named) == "owl.png (class: 295, brown bear)"
    unnamed = Prediction("owl.png", (Choice(295, "295", 0.9),), None, multi_label=False)
    assert line_of(unnamed) == "owl.png (class: 295)"


def test_a_file_that_nobody_named_replaces_nothing(
    tiny_checkpoint: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("predictions.json").write_text("kept")
    for expected in ("predictions-2.json", "predictions-3.json"):
        assert run(tiny_checkpoint, image_folder / "val" / "red", "--device", "cpu") == 0
        assert len(json.loads(Path(expected).read_text())) == 4
        assert f": {expected}\n" in capsys.readouterr().err
    assert Path("predictions.json").read_text() == "kept"
    # one that was named is replaced, and that is said
    named = ("--output", "predictions.json", "--device", "cpu")
    assert run(tiny_checkpoint, image_folder / "val" / "red", *named) == 0
    assert ": predictions.json (replaced)\n" in capsys.readouterr().err


def test_the_ending_of_the_output_is_its_format(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = next(image_folder.rglob("*.jpg"))
    assert run(tiny_checkpoint, image, "--output", tmp_path / "x.txt") == 2
    assert capsys.readouterr().err == (
        f"error: --output {tmp_path / 'x.txt'}: must end in .json, .jsonl, .csv, or in nothing for json; or choose its "
        "format with --format\n"
    )
    assert not (tmp_path / "x.txt").exists()
    assert run(tiny_checkpoint, image, "--output", tmp_path / "x.txt", "--format", "csv") == 0
    assert (tmp_path / "x.txt").read_text().startswith("path,class,")
    assert run(tiny_checkpoint, image, "--output", tmp_path / "x") == 0
    assert list(json.loads((tmp_path / "x").read_text())) == [str(image)]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_rows_keep_their_order_and_values_for_any_batch_size(
    tiny_checkpoint: Path, image_folder: Path, batch_size: int
) -> None:
    predictor, paths = open_predictor(tiny_checkpoint, topk=3, device="cpu"), images_of(image_folder)
    rows = list(predictor.predict(paths, batch_size=batch_size))
    assert [row.path for row in rows] == paths
    alone = [next(predictor.predict([path])) for path in paths]
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
    notes: list[str] = []
    assert list(find_images([str(image_folder / "val")], notes.append)) == expected
    assert notes == [
        f"{image_folder}/val: ignored 1 hidden or system files or folders: .hidden.jpg",
        f"{image_folder}/val: ignored 1 file that is not an image: notes.md",
    ]
    assert list(find_images([str(image_folder / "val" / "**" / "*.jpg")], print)) == expected


def test_names_that_are_no_text_are_shown_escaped(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    photo = (image_folder / "val" / "red" / "red_0.jpg").read_bytes()
    odd = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    odd.write_bytes(photo)
    (tmp_path / "list.txt").write_bytes(os.fsencode(odd) + b"\n")
    assert run(tiny_checkpoint, odd, tmp_path / "list.txt", "--format", "jsonl", "--output", tmp_path / "p") == 0
    names = [json.loads(line)["path"] for line in (tmp_path / "p").read_text().splitlines()]
    assert names == [f"{tmp_path}/caf\\udce9.jpg"] * 2


def test_what_is_no_image_file_is_passed_over_and_noted(image_folder: Path) -> None:
    folder, notes = image_folder / "val", []
    expected = images_of(folder)
    (folder / "loop").symlink_to(image_folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "red" / "@eaDir" / "red_0.jpg").mkdir(parents=True)
    (folder / "red" / "@eaDir" / "red_0.jpg" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"")
    assert list(find_images([str(folder)], notes.append)) == expected
    assert notes == [
        f"{folder}: ignored 1 hidden or system files or folders: red/@eaDir",
        f"{folder}: ignored 2 that are no regular files: loop (a link to a folder that contains it), pipe.jpg (a pipe)",
    ]
    notes.clear()
    pattern = f"{folder}/**/*.jpg"
    assert sorted(find_images([pattern], notes.append)) == expected
    assert any("behind a link to a folder that contains it" in note for note in notes)
    assert any("@eaDir" in note for note in notes)
    notes.clear()
    with pytest.raises(DataError, match="holds no image"):
        list(find_images([f"{folder}/*.jpg"], notes.append))
    assert notes == [f"{folder}/*.jpg: ignored 1 that are no regular files: {folder}/pipe.jpg (a pipe)"]
    thumbs = f"{folder}/red/@eaDir/*/*.jpg"
    assert len(list(find_images([thumbs], print))) == 1  # where they are asked for
    for given, what in ((folder / "pipe.jpg", "is a pipe"), (folder / "gone", "no such file or folder")):
        with pytest.raises(DataError, match=f"{given}: {what}; give an image, a folder"):
            list(find_images([str(given)], print))


def test_inputs_that_are_not_there_or_hold_no_image_are_refused(tmp_path: Path) -> None:
    for given, message in (("gone.jpg", "no such file or folder"), ("*.jpg", "holds no image"), ("", "no such file")):
        with pytest.raises(DataError, match=message):
            list(find_images([str(tmp_path / given) if given else "missing"], print))
    with pytest.raises(DataError, match="holds no image"):
        list(find_images([str(tmp_path)], print))
    with pytest.raises(DataError, match=r"^'' names no image; give an image, .*, or write \. for the folder here$"):
        list(find_images([""], print))


def test_a_failed_prediction_leaves_the_older_file_as_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("older")
    assert run(tiny_checkpoint, tmp_path / "gone", "--output", out) == 2
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_memory_does_not_grow_with_the_number_of_images(tiny_checkpoint: Path, image_folder: Path) -> None:
    predictor, path = open_predictor(tiny_checkpoint, device="cpu"), images_of(image_folder)[0]

    def peak(n: int) -> int:
        tracemalloc.start()
        for _ in predictor.predict((path for _ in range(n)), batch_size=8):
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
    assert list(find_images([str(tmp_path / "list.txt")], print)) == ["a.jpg", "b.jpg"]


# Lists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_paths_is_read_as_any_system_writes_it(tmp_path: Path, encoding: str, end: str) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "list.txt").write_bytes((mark + end.join(("a.jpg", "", "caf\u00e9.jpg", ""))).encode(encoding))
    notes: list[str] = []
    assert list(find_images([str(tmp_path / "list.txt")], notes.append)) == ["a.jpg", "caf\u00e9.jpg"]
    wide = encoding[:6].upper()
    assert notes == ([f"{tmp_path}/list.txt: is written in {wide}"] if "8" not in encoding else [])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_without_the_mark_of_its_writing_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "list.txt").write_bytes("a.jpg\nb.jpg\n".encode(encoding))
    assert run(tiny_checkpoint, tmp_path / "list.txt", "--output", tmp_path / "p.json") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {tmp_path}/list.txt line 1: holds a zero byte, as UTF-16 without its mark does; save the file as UTF-8"
    )
    (tmp_path / "list.txt").write_bytes(b"\xff\xfea\0b")
    with pytest.raises(DataError, match="line 1: is damaged UTF-16; save the file as UTF-8"):
        list(find_images([str(tmp_path / "list.txt")], print))


def test_paths_of_windows_are_read_where_they_match(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder)
    (tmp_path / "list.txt").write_text("val\\red\\red_0.jpg\nval\\red\\gone.jpg\nval/red/red_1.jpg\n")
    notes: list[str] = []
    found = list(find_images([str(tmp_path / "list.txt")], notes.append))
    assert found == ["val/red/red_0.jpg", "val\\red\\gone.jpg", "val/red/red_1.jpg"]
    (note,) = notes
    assert note == (
        f"{tmp_path}/list.txt: 1 paths are not spelt as the files are; val\\red\\red_0.jpg is read as val/red/red_0.jpg"
    )


def test_a_pipe_in_a_list_becomes_a_row_and_is_not_opened(tiny_checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/pipe.jpg\n")
    assert run(tiny_checkpoint, tmp_path / "list.txt", "--output", tmp_path / "p.json") == 1
    assert json.loads((tmp_path / "p.json").read_text()) == {
        f"{tmp_path}/pipe.jpg": {"error": "is a pipe, no image"},
    }


def test_lists_with_columns_are_read_as_data_list_is(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file;label\nred/red_1.jpg;red\nblue\\blue_0.jpg;blue\nred/red_1.jpg;red\n")
    root = image_folder / "val"
    words = (table, f"data.root={root}", "data.path_column=file", "--format", "jsonl", "--output", tmp_path / "p.jsonl")
    assert run(tiny_checkpoint, *words) == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"{root}/{name}" for name in ("red/red_1.jpg", "blue/blue_0.jpg")] + [
        f"{root}/red/red_1.jpg"
    ]
    told = capsys.readouterr().err
    assert f"{table}: has columns that are not read: 'label'" in told
    assert f"{table}: its columns are separated by semicolons" in told
    (root / "own.jsonl").write_text('{"path": "red/red_0.jpg"}\n')  # paths begin in its own folder
    assert list(find_images([str(root / "own.jsonl")], print)) == [f"{root}/red/red_0.jpg"]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("path\nred/gone.jpg\n", ["data.root=ROOT"], "1 of its 1 images are not below ROOT, the first is red/gone.jpg"),
        (
            "red/red_0.jpg\n",
            [],
            "ROOT/l.csv line 1: names an image, red/red_0.jpg, and no columns; put a line above it",
        ),
        ("image\nx\n", [], "ROOT/l.csv: has no column 'path'; its columns are: image; name it with data.path_column"),
        ("path\n", [], "ROOT/l.csv: lists no image"),
        ("", [], "ROOT/l.csv: is empty; its first line must name the columns, such as path,label"),
        ("path\n", ["data.fold=1"], "data.fold is 1; it goes with folds"),
        ("path\n", ["data.val_split=x"], "data.val_split is x: has no meaning here; used are data.root and data.path"),
        ("path\n", ["data.root=gone"], "data.root gone: is no folder; give the one that the paths of ROOT/l.csv begin"),
    ],
)
def test_a_wrong_list_with_columns_is_one_line(
    tiny_checkpoint: Path, image_folder: Path, text: str, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    root = image_folder / "val"
    (root / "l.csv").write_text(text)
    words = [word.replace("ROOT", str(root)) for word in words]
    assert run(tiny_checkpoint, root / "l.csv", *words, "--output", root / "p.json") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert message.replace("ROOT", str(root)) in line
    assert not (root / "p.json").exists()


def test_settings_of_lists_without_a_list_are_refused(
    tiny_checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(tiny_checkpoint, image_folder, "data.root=x") == 2
    assert (
        "data.root=x: beside images it is for lists that end in .csv, .tsv, .jsonl or .ndjson, and none is given"
        in capsys.readouterr().err
    )


# What is written


@pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "folder", "list", "model", "list itself", "glob"])
def test_the_output_never_replaces_an_input(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, way: str, capsys: pytest.CaptureFixture
) -> None:
    photo, out = image_folder / "val" / "red" / "red_0.jpg", tmp_path / "out.json"
    given = {"folder": image_folder, "list": tmp_path / "list.csv", "list itself": tmp_path / "list.csv"}.get(
        way, photo
    )
    (tmp_path / "list.csv").write_text(f"path\n{photo}\n")
    if way == "symlink":
        out.symlink_to(photo)
    elif way == "hard link":
        out.hardlink_to(photo)
    elif way == "model":
        out = tiny_checkpoint
    elif way == "list itself":
        out = given
    else:
        out = photo
    if way == "glob":
        given = image_folder / "**" / "*.jpg"
    before = out.read_bytes()
    assert run(tiny_checkpoint, given, "--output", out) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    also = "" if way not in ("symlink", "hard link") else f" is {photo}, which"
    assert line == f"error: --output {out}:{also} is read, and would be replaced; choose another file"
    assert out.read_bytes() == before


def test_a_pipe_without_a_name_of_its_own_is_written_to(tiny_checkpoint: Path, image_folder: Path) -> None:
    photo = image_folder / "val" / "red" / "red_0.jpg"
    reader, writer = os.pipe()
    assert run(tiny_checkpoint, photo, "--output", f"/dev/fd/{writer}") == 0
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert list(json.load(stream)) == [str(photo)]


def test_an_output_that_cannot_be_written_is_known_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "no" / "a.json")
    for out, message in (
        (tmp_path, "cannot be written (is a folder); choose another file"),
        (tmp_path / "no" / "a.json", f"there is no folder {tmp_path}/no; create or choose another"),
        (tmp_path / "link.json", f"there is no folder {tmp_path}/no; create or choose another"),
    ):
        assert run("gone.safetensors", "gone.jpg", "--output", out) == 2
        assert capsys.readouterr().err == f"error: --output {out}: {message}\n"


def test_an_output_without_permission_is_known_before_the_work() -> None:
    with tempfile.TemporaryDirectory() as folder:  # above `tmp_path` others may not look
        Path(folder, "p.json").touch()
        Path(folder).chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            for name in ("p.json", "new.json"):
                with pytest.raises(ConfigError, match=rf"{name}: cannot be written \(Permission denied\); choose"):
                    refuse_output("output", Path(folder, name))
        finally:
            if is_root:
                os.seteuid(0)
            Path(folder).chmod(0o755)


def test_the_format_is_that_of_the_outputs_name() -> None:
    names = {"a.csv": "csv", "A.JSONL": "jsonl", "a.json": "json", "csv": "json", "/dev/stdout": "json"}
    assert {name: format_of(Path(name)) for name in names} == names
    with pytest.raises(
        ConfigError, match=r"^output=a\.txt: must end in \.json, \.jsonl, \.csv, or in nothing for json; or"
    ):
        format_of(Path("a.txt"))
