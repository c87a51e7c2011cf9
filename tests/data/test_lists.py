"""Lists of images: what they may look like, that they read as folders do, and every line that is wrong in one."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.config.resolve import parse_command_line
from vitrail.config.sections import DataSection
from vitrail.data.lists import read_list
from vitrail.data.manifest import load_manifest
from vitrail.data.opening import Data, open_data, open_manifest, open_split
from vitrail.data.paths import Paths
from vitrail.data.sources import FileSource, Source, count_by_class
from vitrail.data.splits import Division, assign_splits
from vitrail.errors import ConfigError, DataError
from vitrail.evaluation.evaluate import evaluate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with the files a.png to f.png, which nothing here decodes."""
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    return tmp_path


def written(root: Path, text: str, name: str = "labels.csv") -> DataSection:
    (root / name).write_text(text, encoding="utf-8")
    return DataSection(list=str(root / name))


def refusal(section: DataSection) -> str:
    with pytest.raises(DataError) as caught:
        open_data(section)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(Path(str(section.list)).parent), "ROOT")


def whole(section: DataSection) -> Source:
    return open_split(section, "all")[0]


def labelled(source: Source) -> dict[str, Any]:
    """Return the classes of each image by its name."""
    names = [Path(source.name(index)).name for index in range(len(source))]
    if source.label_sets is None:
        return dict(zip(names, [source.classes[label] for label in source.labels], strict=True))
    sets = [[source.classes[i] for i in np.flatnonzero(row)] for row in source.label_sets[source.labels]]
    return dict(zip(names, sets, strict=True))


# What a list may look like

ONE = {"a.png": "red", "b.png": "blue", "c.png": "red", "d.png": "blue"}
SEVERAL = {"a.png": ["blue", "red"], "b.png": [], "c.png": ["red"], "d.png": ["blue"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "path,label\na.png,red\nb.png,blue\nc.png,red\nd.png,blue\n"),
        ("labels.csv", '\ufefflabel;path\r\n red ;a.png\r\n"blue";b.png\r\nred;./c.png\r\n\r\nblue;x/../d.png\r\n'),
        ("labels.tsv", "path\tlabel\tauthor\na.png\tred\tme\nb.png\tblue\t\nc.png\tred\t\nd.png\tblue\t\n"),
        ("labels.jsonl", "".join(json.dumps({"path": path, "label": label}) + "\n" for path, label in ONE.items())),
    ],
)
def test_one_class_an_image(root: Path, name: str, text: str) -> None:
    source = whole(written(root, text, name))
    assert source.classes == ("blue", "red")
    assert source.label_sets is None
    assert labelled(source) == ONE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "path,labels\na.png,red|blue\nb.png,\nc.png, red \nd.png,blue\n"),
        ("labels.csv", "path,red,blue\na.png,1,1\nb.png,0,0\nc.png,1,0\nd.png,0,1\n"),
        ("labels.jsonl", "".join(json.dumps({"path": p, "labels": names}) + "\n" for p, names in SEVERAL.items())),
        ("labels.jsonl", "".join(json.dumps({"path": p, "labels": "|".join(n)}) + "\n" for p, n in SEVERAL.items())),
        (
            "labels.ndjson",
            "".join(
                json.dumps({"path": p, "red": "red" in n, "blue": int("blue" in n)}) + "\n" for p, n in SEVERAL.items()
            ),
        ),
    ],
)
def test_several_classes_an_image(root: Path, name: str, text: str) -> None:
    source = whole(written(root, text, name))
    assert source.classes == ("blue", "red")
    assert labelled(source) == SEVERAL
    assert count_by_class(source).tolist() == [2, 2]


def test_other_names_of_the_columns_and_another_root(root: Path, tmp_path: Path) -> None:
    (root / "lists").mkdir()
    table = "file,species,tags\na.png,red,x|y\nb.png,blue,\n"
    (root / "lists" / "birds.csv").write_text(table)
    place = {"list": str(root / "lists" / "birds.csv"), "root": str(root), "path_column": "file"}
    assert labelled(whole(DataSection(**place, label_column="species"))) == {"a.png": "red", "b.png": "blue"}
    assert labelled(whole(DataSection(**place, labels_column="tags"))) == {"a.png": ["x", "y"], "b.png": []}


def test_paths_that_begin_at_the_top_are_taken_where_they_lie_below_the_root(root: Path) -> None:
    source = whole(written(root, f"path,label\n{root}/a.png,red\nb.png,blue\n"))
    assert list(source.identities()) == [b"a.png", b"b.png"]


def test_names_are_sorted_and_whole_numbers_as_numbers(root: Path) -> None:
    source = whole(written(root, "path,label\na.png,10\nb.png,9\nc.png,-1\n"))
    assert source.classes == ("-1", "9", "10")
    assert source.labels.tolist() == [2, 1, 0]
    assert source.notes == (f"{root}/labels.csv: its 3 classes are numbers, and in the order of numbers",)
    assert whole(written(root, "path,label\na.png,10\nb.png,9\nc.png,x\n")).classes == ("10", "9", "x")
    assert whole(written(root, "path,label\na.png,10\nb.png,09\n")).classes == ("09", "10")


def test_what_is_read_past_is_said(root: Path) -> None:
    text = "path;label;id;split\na.png;red;7;train\nb.png;blue;8;train\nc.png;red;9;test\nd.png;red;9;val\n"
    data = open_data(written(root, text))
    assert data.notes == (
        f"{root}/labels.csv: its columns are separated by semicolons",
        f"{root}/labels.csv: has columns that are not read: 'id'",
        f"{root}/labels.csv: leaves out its rows of other parts: 1 of 'test'",
    )
    assert (labelled(data.train), labelled(data.val)) == ({"a.png": "red", "b.png": "blue"}, {"d.png": "red"})
    assert (data.train.description, data.val.description) == (
        f"{root}/labels.csv, split train",
        f"{root}/labels.csv, split val",
    )


@given(st.lists(st.lists(st.sampled_from("vwxyz"), unique=True, max_size=5), min_size=1, max_size=40))
def test_every_way_of_writing_the_same_labels_gives_the_same_images(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    names = [f"{number}.png" for number in range(len(rows))]
    for name in names:
        (folder / name).touch()
    classes = sorted({label for labels in rows for label in labels})
    with (folder / "cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["path", "labels"], *([n, "|".join(row)] for n, row in zip(names, rows, strict=True))]
        )
    with (folder / "lines.jsonl").open("w") as file:
        file.writelines(json.dumps({"path": n, "labels": row}) + "\n" for n, row in zip(names, rows, strict=True))
    if not classes:
        for name in ("cells.csv", "lines.jsonl"):
            with pytest.raises(DataError, match=r"none of its [0-9]+ images has a label$"):
                read_list(DataSection(list=str(folder / name)))
        return
    found = [read_list(DataSection(list=str(folder / name))).train for name in ("cells.csv", "lines.jsonl")]
    if len(classes) > 1:
        with (folder / "table.csv").open("w", newline="") as file:
            bits = [[n, *(int(c in row) for c in classes)] for n, row in zip(names, rows, strict=True)]
            csv.writer(file).writerows([["path", *classes], *bits])
        found.append(read_list(DataSection(list=str(folder / "table.csv"))).train)
    for source in found:
        assert source is not None
        assert list(source.classes) == classes
        assert list(labelled(source).values()) == [sorted(row) for row in rows]


# As other programs write them


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_any_writing_and_any_ends_of_lines(root: Path, encoding: str, end: str, name: str) -> None:
    lines = ["path,label", "a.png,caf\u00e9", "", '"b.png","x, y"', "c.png,caf\u00e9", ""]
    if name == "labels.jsonl":
        lines = [json.dumps({"path": f"{p}.png", "label": c}) for p, c in (("a", "caf\u00e9"), ("b", "x, y"))] + [""]
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (root / name).write_bytes((mark + end.join(lines)).encode(encoding))
    source = whole(DataSection(list=str(root / name)))
    expected = {"a.png": "caf\u00e9", "b.png": "x, y", "c.png": "caf\u00e9"}
    assert labelled(source).items() <= expected.items()
    assert len(source) == (2 if name == "labels.jsonl" else 3)
    told = f"{root}/{name}: is written in {encoding[:6].upper()}"
    assert source.notes == ((told,) if "8" not in encoding else ())


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("SEP=;\npath;label\na.png;red\nb.png;blue\n", ["its columns are separated by semicolons"]),
        ('"sep=|"\r\npath|label\r\na.png|red\r\nb.png|blue\r\n', ["its columns are separated by '|'"]),
        ("sep=,\npath,label\na.png,red\nb.png,blue\n", []),
        ("\n \npath,label\na.png,red\n\n   \n,\nb.png,blue\n,,,\n", []),
        ("path,label,,\na.png,red,,\nb.png,blue\n", []),
        (",path,label\n0,a.png,red\n1,b.png,blue\n", ["1 columns without a name are not read"]),
        (
            "path,label\n a.png , red\nb.png,blue \n",
            ["1 paths are not spelt as the files are;  a.png  is read as a.png"],
        ),
        (
            "path,label\nx\\..\\a.png,red\n.\\b.png,blue\n",
            ["2 paths are not spelt as the files are; x\\..\\a.png is read as x/../a.png"],
        ),
    ],
)
def test_tables_of_other_programs(root: Path, text: str, notes: list[str]) -> None:
    (root / "x").mkdir(exist_ok=True)
    source = whole(written(root, text))
    assert labelled(source) == {"a.png": "red", "b.png": "blue"}
    assert source.notes == tuple(f"{root}/labels.csv: {note}" for note in notes)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path,label\na.png,10.0\nb.png,2.0\nc.png,-1.0\n", "labels.csv"),
        ("path,label\na.png,10.0\nb.png,2\nc.png,-1.00\n", "labels.csv"),
        ("path,labels\na.png,10.0\nb.png,2.0|-1.0\nc.png,-1\n", "labels.csv"),
        (
            '{"path": "a.png", "label": 10.0}\n{"path": "b.png", "label": 2.0}\n{"path": "c.png", "label": -1.0}\n',
            "labels.jsonl",
        ),
    ],
)
def test_whole_numbers_with_a_point_are_whole_numbers(root: Path, text: str, name: str) -> None:
    source = whole(written(root, text, name))
    assert source.classes == ("-1", "2", "10")
    found = labelled(source)
    assert (found["a.png"], found["c.png"]) in (("10", "-1"), (["10"], ["-1"]))
    assert source.notes == (
        f"{root}/{name}: its labels are whole numbers written with a point, such as 10.0, which is read as 10",
        f"{root}/{name}: its 3 classes are numbers, and in the order of numbers",
    )


def test_versions_and_other_numbers_stay_text(root: Path) -> None:
    assert whole(written(root, "path,label\na.png,1.0\nb.png,1.5\n")).classes == ("1.0", "1.5")
    assert whole(written(root, "path,label\na.png,1.0\nb.png,x\n")).classes == ("1.0", "x")


def test_numbers_with_a_decimal_comma_are_told(root: Path) -> None:
    source = whole(written(root, "path;label\na.png;1,0\nb.png;2,0\nc.png;2\n"))
    assert source.classes == ("1,0", "2", "2,0")
    assert source.notes == (
        f"{root}/labels.csv: its columns are separated by semicolons",
        f"{root}/labels.csv: its labels are numbers written with a decimal comma, such as '1,0'; each is the name of a "
        "class as it stands; write whole numbers without a fraction if they are meant",
    )
    for text in ("path;label\na.png;1,0\nb.png;red\nc.png;2\n", "path;label\na.png;1\nb.png;2\nc.png;3\n"):
        assert "decimal comma" not in " ".join(whole(written(root, text)).notes)


# Lines that are wrong

HEAD = "path,label\na.png,red\n"
WRONG = [
    ("", "data.list ROOT/labels.csv: is empty; its first line must name the columns, such as path,label"),
    ("path,label\n", "data.list ROOT/labels.csv: lists no image"),
    (
        "file,label\na.png,red\n",
        "data.list ROOT/labels.csv: has no column 'path'; its columns are: file, label; name it with "
        "data.path_column=COLUMN",
    ),
    (
        "path,lable\na.png,red\n",
        "data.list ROOT/labels.csv: has no column 'label' or 'labels'; did you mean 'lable'? Its columns are: path, "
        "lable; name it with data.label_column=COLUMN (one class an image) or data.labels_column=COLUMN (several); "
        "without it, two or more other columns must hold 0 or 1, each for a class, and 'lable' is 'red' in line 2",
    ),
    (
        "path,label,labels\na.png,red,x\n",
        "data.list ROOT/labels.csv: has a column 'label' and a column 'labels'; choose with data.label_column=label "
        "(one class an image) or data.labels_column=labels (several)",
    ),
    ("path,label,label\n", "ROOT/labels.csv line 1: names the column 'label' twice; rename one"),
    (
        HEAD + "b.png,blue,7\n",
        "ROOT/labels.csv line 3: has 3 cells, the header 2; a cell that holds ',' is quoted",
    ),
    (HEAD + 'b.png,"blue\n', "ROOT/labels.csv line 3: is no CSV (unexpected end of data)"),
    (HEAD + "b.png, \n", "ROOT/labels.csv line 3: has an empty label; it must be text"),
    (HEAD + ",blue\n", "ROOT/labels.csv line 3: its path is ''; it must be that of an image"),
    (
        HEAD + "b.png,red|blue\n",
        "ROOT/labels.csv line 3: the label 'red|blue' holds '|', which stands between classes where an image has "
        "several (data.labels_column=COLUMN)",
    ),
    (
        HEAD + '"b.png","a\nb"\n',
        "ROOT/labels.csv line 4: the label 'a\\nb' holds a character that cannot be printed",
    ),
    (
        HEAD + "../b.png,blue\n",
        "ROOT/labels.csv line 3: ../b.png lies outside ROOT/; set data.root to a folder that holds them all",
    ),
    (
        HEAD + "b.png,blue\n\nx/../a.png,blue\n",
        "ROOT/labels.csv line 5: a.png stands in line 2 already; each image has one row, several classes go into a "
        "column 'labels', with '|' between them",
    ),
    (
        HEAD + "x.png,blue\nb.png,red\ny.png,red\n",
        "ROOT/labels.csv: 2 of its 4 images are not below ROOT, the first is x.png in line 3; set data.root to the "
        "folder that the paths begin in, or correct them",
    ),
    (
        HEAD + "b.png," + 5000 * "9" + "\n",
        "ROOT/labels.csv line 3: has a label of 5,000 characters, '99999999999999999999' and so on; at most 1,000 are "
        "taken",
    ),
    (
        "cat/0.png,cat\ncat/1.png,cat\n",
        "ROOT/labels.csv line 1: names an image, cat/0.png, and no columns; put a line above it that names them, such "
        "as path,label",
    ),
    (
        '"a.png"\tred\nb.png\tblue\n',
        "ROOT/labels.csv line 1: names an image, a.png, and no columns; put a line above it that names them, such as "
        "path,label",
    ),
    (
        HEAD + "C:\\data\\b.png,blue\n",
        "ROOT/labels.csv: 1 of its 2 images are not below ROOT, the first is C:\\data\\b.png in line 3; set data.root "
        "to the folder that the paths begin in, or correct them; they are written as on Windows: write them as they "
        "are below data.root, with /",
    ),
    (
        HEAD + "b\0.png,blue\n",
        "ROOT/labels.csv line 3: holds a zero byte, as UTF-16 without its mark does; save the file as UTF-8",
    ),
    (HEAD + "folder,blue\n", "ROOT/labels.csv line 3: folder is a folder, no image file; remove the row"),
    (HEAD + "pipe.png,blue\n", "ROOT/labels.csv line 3: pipe.png is a pipe, no image file; remove the row"),
    (
        HEAD + "x" * 2**20 + "\n",
        "ROOT/labels.csv line 3: has over 1,048,576 characters; this is no list of images",
    ),
    ("\n\n  \n", "data.list ROOT/labels.csv: is empty; its first line must name the columns, such as path,label"),
    ("sep=;\n", "data.list ROOT/labels.csv: is empty; its first line must name the columns, such as path,label"),
    ("path,labels\na.png,red||blue\n", "ROOT/labels.csv line 2: has an empty label; it must be text"),
    ("path,labels\na.png,red|red\n", "ROOT/labels.csv line 2: names a class twice: red|red"),
    ("path,x,y\na.png,0,1\nb.png,0,2\n", "ROOT/labels.csv line 3: 'y' is '2'; it must be 0 or 1"),
    (
        "path,label,split\na.png,red,tain\n",
        "ROOT/labels.csv line 2: its split is 'tain'; did you mean 'train'? Known are: train, val (data.train_split, "
        "data.val_split), and words such as 'test', whose rows are left out",
    ),
    (
        "path,label,split\na.png,red,test\n",
        "data.list ROOT/labels.csv: has rows of test only; set data.train_split or data.val_split to one of them",
    ),
    (
        "path,label,split\na.png,red,val\n",
        "data.list ROOT/labels.csv: has no row whose split is data.train_split 'train'",
    ),
    (
        "path,label,split\na.png,red,train\nb.png,blue,test\n",
        "data.list ROOT/labels.csv: has no row whose split is data.val_split 'val', only test; set data.val_split to "
        "another, or to null to hold out data.val_fraction of the training rows",
    ),
    (
        "path,label,split\na.png,red,train\nb.png,blue,train\nc.png,green,val\n",
        "data.list ROOT/labels.csv: 1 class has validation rows but no training row: green; add some",
    ),
    (
        HEAD + "b.png,red\n",
        "data.list ROOT/labels.csv: has only one class, 'red'; a classifier needs at least two",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_list_is_refused_in_one_line(root: Path, text: str, message: str) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe.png")
    assert refusal(written(root, text)) == message


WRONG_LINES = [
    (
        "{",
        "ROOT/x.jsonl line 2: is no JSON (Expecting property name enclosed in double quotes: line 2 column 1 (char 2))",
    ),
    ("[1]", 'ROOT/x.jsonl line 2: is no JSON object such as {"path": "a.jpg", "label": "cat"}'),
    ('{"path": "b.png"}', "ROOT/x.jsonl line 2: has no 'label'"),
    ('{"path": 7, "label": "x"}', "ROOT/x.jsonl line 2: its path is 7; it must be that of an image"),
    ('{"path": "b\\u0000.png", "label": "x"}', "ROOT/x.jsonl line 2: its path is 'b\\x00.png'; it must be that of an"),
    ('{"path": "b.png", "path": "a.png", "label": "x"}', "ROOT/x.jsonl line 2: is no JSON (it names 'path' twice)"),
    ('{"path": "b.png", "label": ' + 5000 * "9" + "}", "ROOT/x.jsonl line 2: has a label of 5,000 characters, '9999"),
    ('{"path": "b.png", "label": 1.5}', "ROOT/x.jsonl line 2: has the label 1.5; it must be text"),
    ('{"path": "b.png", "label": NaN}', "ROOT/x.jsonl line 2: has the label nan; it must be text"),
    ('{"path": "\\ud800", "label": "x"}', "ROOT/x.jsonl line 2: its path '\\ud800' is no text"),
    ('{"path": "b.png", "label": null}', "ROOT/x.jsonl line 2: has the label None; it must be text"),
    ('{"path": "b.png", "label": true}', "ROOT/x.jsonl line 2: has the label True; it must be text"),
    (
        '{"path": "b.png", "label": ["x"]}',
        "ROOT/x.jsonl line 2: 'label' is a list; for several classes an image, set data.labels_column=label",
    ),
    (
        '{"path": "b.png", "label": "x", "split": "val"}',
        "ROOT/x.jsonl line 2: has a 'split', which the first line has not; give all lines one, or none",
    ),
]


@pytest.mark.parametrize(("line", "message"), WRONG_LINES)
def test_a_wrong_line_of_json_is_refused_with_its_number(root: Path, line: str, message: str) -> None:
    first = '{"path": "a.png", "label": "red"}\n'
    assert refusal(written(root, first + line + "\n", "x.jsonl")).startswith(message.split(" (Expecting")[0])


def test_json_of_several_classes_must_hold_lists_or_bits_that_the_first_line_names(root: Path) -> None:
    first = '{"path": "a.png", "labels": ["x"]}\n'
    message = "ROOT/x.jsonl line 2: 'labels' is None; it must be a list of classes, which may be empty"
    assert refusal(written(root, first + '{"path": "b.png", "labels": null}', "x.jsonl")) == message
    first = '{"path": "a.png", "x": 1, "y": 0}\n'
    message = "ROOT/x.jsonl line 2: has 'z', which the first line has not; name all classes there"
    assert refusal(written(root, first + '{"path": "b.png", "x": 1, "y": 0, "z": 1}', "x.jsonl")) == message


def test_a_file_that_is_no_list_is_refused(root: Path) -> None:
    (root / "labels.csv").write_bytes(b"path,label\na.png,red\nb.png,caf\xe9\n")
    section = DataSection(list=str(root / "labels.csv"))
    assert refusal(section) == "ROOT/labels.csv line 3: is not UTF-8 (byte 0xe9); save the file as UTF-8"
    for encoding in ("utf-16-le", "utf-16-be"):
        (root / "wide.csv").write_bytes("path,label\na.png,red\n".encode(encoding))
        assert refusal(DataSection(list=str(root / "wide.csv"))) == (
            "ROOT/wide.csv line 1: holds a zero byte, as UTF-16 without its mark does; save the file as UTF-8"
        )
    for begin, what in (
        (b"PK\3\4\x14\0", "a workbook of Excel or LibreOffice, or another ZIP archive"),
        (b"\xd0\xcf\x11\xe0\xa1", "a workbook of an old Excel"), (b"\x1f\x8b\x08", "packed by gzip"),
        (b"PAR1\x15", "Parquet"), (b"SQLite format 3\0", "a database of SQLite"),
    ):  # fmt: skip
        (root / "renamed.csv").write_bytes(begin + bytes(30))
        assert refusal(DataSection(list=str(root / "renamed.csv"))) == (
            f"data.list ROOT/renamed.csv: is {what}, whatever its name ends in; save it as CSV in UTF-8, or unpack it"
        )
    os.mkfifo(root / "pipe.csv")
    assert refusal(DataSection(list=str(root / "pipe.csv"))) == (
        "data.list ROOT/pipe.csv: is a pipe, no regular file; write the list to a file"
    )
    section = DataSection(list=str(root / "none.csv"))
    assert refusal(section) == "data.list ROOT/none.csv: cannot be read (No such file or directory)"
    section = DataSection(list=str(root / "labels.parquet"))
    assert refusal(section) == (
        "data.list ROOT/labels.parquet: must end in .csv, .tsv, .jsonl, .ndjson, by which it is known"
    )
    section = DataSection(list=str(root / "labels.csv"), root=str(root / "nowhere"))
    assert refusal(section) == (
        "data.root ROOT/nowhere: is no folder; give the one that the paths of ROOT/labels.csv begin in, or null for "
        "its own"
    )


def test_settings_at_odds_are_refused(root: Path) -> None:
    section = DataSection(name="digits", list=str(root / "labels.csv"))
    with pytest.raises(
        ConfigError, match=r"labels\.csv: is for images in files; data\.name is digits; add data\.name=null"
    ):
        open_data(section)
    assert DataSection(list="x.csv", label_column="a", labels_column="b").problems() == [
        "label_column and labels_column are both set; an image has one class or several: drop one"
    ]
    assert DataSection(root="x", path_column="a", label_column="b", labels_column="c").problems()[:3] == [
        "label_column is b; it is for data.list and sets whose name begins with hf:",
        "labels_column is c; it is for data.list and sets whose name begins with hf:",
        "path_column is a; it is for data.list",
    ]
    section = written(root, "path,label,split\na.png,x,train\nb.png,y,val\n")
    with pytest.raises(ConfigError, match=r"^evaluate\.split all: \S+ is divided into splits; choose train or val$"):
        open_split(section, "all")


# As a folder


def listed(folder: Path, name: str = "labels.csv") -> Path:
    """Write the list of a folder of splits and classes, in another order."""
    rows = [(str(path.relative_to(folder)), path.parts[-2], path.parts[-3]) for path in sorted(folder.rglob("*.jpg"))]
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows[::-1]])
    return folder / name


def names_and_labels(data: Data) -> list[set[tuple[str, str]]]:
    return [
        {(source.name(index), source.classes[label]) for index, label in enumerate(source.labels)}
        for source in (data.train, data.val)
    ]


def test_a_list_gives_the_images_of_its_folder(image_folder: Path, tiny_checkpoint: Path) -> None:
    path = listed(image_folder)
    by_list, by_folder = open_data(DataSection(list=str(path))), open_data(DataSection(root=str(image_folder)))
    assert by_list.classes == by_folder.classes == CLASSES
    assert names_and_labels(by_list) == names_and_labels(by_folder)
    settings = ["data.workers=0", "evaluate.device=cpu"]
    found = evaluate(tiny_checkpoint, [parse_command_line([f"data.list={path}", *settings])])
    expected = evaluate(tiny_checkpoint, [parse_command_line([f"data.root={image_folder}", *settings])])
    assert found.accuracy == expected.accuracy
    assert found.data == f"{path}, split val"


def test_images_are_held_out_as_those_of_a_folder_are(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val")
    folder = image_folder / "train"
    rows = [("path", "label"), *((f"{p.parent.name}/{p.name}", p.parent.name) for p in sorted(folder.rglob("*.jpg")))]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for more in ({}, {"folds": 3, "fold": 1}, {"group_regex": "_([0-9]+)"}):
        by_list = open_data(DataSection(list=str(folder / "labels.csv"), **more))
        by_folder = open_data(DataSection(root=str(folder), **more))
        assert names_and_labels(by_list) == names_and_labels(by_folder)


def test_a_list_may_have_only_rows_to_evaluate_on(root: Path) -> None:
    section = written(root, "path,label,split\na.png,red,val\n")
    assert labelled(open_split(section, "val")[0]) == {"a.png": "red"}
    with pytest.raises(DataError, match=r"has no row whose split is data\.train_split 'train'"):
        open_split(section, "train")


def test_a_manifest_keeps_the_label_sets(root: Path) -> None:
    section = written(root, "path,labels\na.png,x\nb.png,x|y\nc.png,\nd.png,y\ne.png,x\nf.png,x|y\n")
    manifest, _ = open_manifest(section)
    manifest.save(root / "kept.manifest")
    again = load_manifest(root / "kept.manifest")
    assert again.hash == manifest.hash
    assert np.array_equal(again.label_sets, manifest.label_sets)
    assert [again.label_name(index) for index in range(3)] == ["x", "x | y", "no class"]
    taken = open_data(DataSection(manifest=str(root / "kept.manifest")))
    assert labelled(taken.train) | labelled(taken.val) == labelled(whole(section))
    other, _ = open_manifest(written(root, "path,labels\na.png,y\nb.png,x|y\nc.png,\nd.png,x\ne.png,y\nf.png,x|y\n"))
    assert other.hash != manifest.hash


def test_check_data_looks_at_a_list(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = sorted(image_folder.rglob("*.jpg"))
    shutil.copy(images[0], images[-1])  # a copy with other classes, on both sides
    rows = [[str(path.relative_to(image_folder)), path.parts[-2], path.parts[-3]] for path in images]
    rows[1][1] = ""
    with (image_folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    with pytest.raises(SystemExit) as caught:
        main(["check-data", f"data.list={image_folder / 'labels.csv'}", "--output", str(tmp_path / "check")])
    assert caught.value.code == 1
    found = json.loads((tmp_path / "check" / "check.json").read_text())
    assert found["statistics"]["training_images_by_class"] == [7, 8, 8]
    assert [problem["what"] for problem in found["problems"] if problem["severity"] == "error"] == [
        "1 group of images on both sides of training and validation are the same file, byte for byte",
        "1 group of images in different classes are the same file, byte for byte",
    ]
    title = f"{image_folder / 'labels.csv'}: 36 images of 3 classes, 24 to train on, 12 to validate with"
    assert title in " ".join(capsys.readouterr().out.split())


def test_commas_that_part_nothing_are_told(root: Path) -> None:
    data = open_data(written(root, "path;labels\na.png;sky,sea\nb.png;sky\nc.png;sea\nd.png;sky\n"))
    assert data.classes == ("sea", "sky", "sky,sea")
    assert (
        f"{root}/labels.csv: 1 of its 3 classes hold a comma or semicolon, such as 'sky,sea'; each is one class, as "
        "'|' stands between classes"
    ) in data.notes


def test_what_pack_names_next_fits_the_shards_of_a_list(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = sorted(image_folder.rglob("*.jpg"))
    rows = [[str(path.relative_to(image_folder)), path.parts[-2], path.parts[-3]] for path in images]
    with (image_folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "kind", "split"), *rows])
    shards = tmp_path / "shards"
    settings = [f"data.list={image_folder / 'labels.csv'}", "data.label_column=kind", "data.workers=0"]
    with pytest.raises(SystemExit) as caught:
        main(["pack", *settings, "--output", str(shards)])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"train tnt_s_imagenet data.root={shards} data.workers=0\n" in out
    assert f"check-data data.root={shards} data.workers=0  #" in out
    data = open_data(DataSection(root=str(shards)))
    assert [len(data.train), len(data.val)] == [24, 12]
    assert data.val.description == f"{shards}, packed from {image_folder / 'labels.csv'}, split val"


def test_what_is_named_next_fits_several_classes_an_image(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = sorted(image_folder.rglob("*.jpg"))
    rows = [[str(path.relative_to(image_folder)), f"{path.parts[-2]}|all", path.parts[-3]] for path in images]
    with (image_folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    listed = f"data.list={image_folder / 'labels.csv'}"
    for verb in ("pack", "check-data"):
        with pytest.raises(SystemExit) as caught:
            main([verb, listed, "data.workers=0", "--output", str(tmp_path / verb)])
        assert caught.value.code == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
        assert line.endswith(" data.workers=0 augment.label_smoothing=0")


# Division of images with several classes


def several(rows: Sequence[Sequence[int]], k: int) -> FileSource:
    sets = {tuple(sorted(row)): None for row in rows}
    numbers = {row: number for number, row in enumerate(sets)}
    label_sets = np.zeros((len(sets), k), np.bool_)
    for row, number in numbers.items():
        label_sets[number, list(row)] = True
    return FileSource(
        Path("images"), Paths.of(b"%05d.png" % i for i in range(len(rows))),
        np.array([numbers[tuple(sorted(row))] for row in rows], np.int32), tuple(map(str, range(k))), "images", (),
        label_sets,
    )  # fmt: skip


def test_images_with_several_classes_are_divided_by_the_rarest() -> None:
    generator = np.random.default_rng(0)
    shares = (0.9, 0.3, 0.1, 0.02)
    source = several([[c for c in range(4) if generator.random() < shares[c]] for _ in range(2000)], 4)
    held_out = assign_splits(source, Division(0.2)) == 0
    everyone, chosen = (count_by_class(s) for s in (source, source.take(held_out, "", ())))
    assert held_out.sum() == pytest.approx(400, abs=3)
    assert (chosen / everyone)[2:] == pytest.approx([0.2, 0.2], abs=0.02)
    assert (chosen / everyone)[:2] == pytest.approx([0.2, 0.2], abs=0.03)
    # an image without any class has its own share
    assert source.label_sets is not None
    none = ~source.label_sets[source.labels].any(1)
    assert held_out[none].mean() == pytest.approx(0.2, abs=0.02)
