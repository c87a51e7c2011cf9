"""Class names of a model and of data: in which order, by name, and when two names are one."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.utils.misc import natural_key as natural_key_of_timm

from support.displays import Notebook
from vitrail.classes.matching import check_classes, find_order_doubt, match_by_name, match_by_order, read_class_names
from vitrail.classes.names import (
    explain_look_alikes,
    find_look_alikes,
    find_order_difference,
    natural_key,
    quote_name,
    sort_classes,
    tell_look_alikes,
)
from vitrail.cli.app import main
from vitrail.config.resolve import parse_command_line
from vitrail.config.sections import DataSection
from vitrail.data.audit.findings import find_problems
from vitrail.data.opening import open_data, open_manifest, open_split
from vitrail.data.sources import Source
from vitrail.errors import ConfigError, DataError
from vitrail.evaluation.evaluate import evaluate
from vitrail.imagenet import list_wordnet_ids, normalise_name
from vitrail.images.preprocess import Preprocess
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import save_model
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.request import LoadRequest

NFC, NFD = "caf\u00e9", "cafe\u0301"
TNT = "tnt_ti_patch16_224"
TINY = {key: value for key, value in find_variant(TNT)[0].tiny.items() if key != "num_classes"}
OPTIONS = [f"weights.model={TNT}", *(f"weights.options.{key}={value}" for key, value in TINY.items())]


def write(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number * 37 % 256, number * 11 % 256, 99)).save(root / path)
    return root


def nameless(folder: Path, num_classes: int, always: int = 0) -> Path:
    """Write weights without names that answer every image alike."""
    torch.manual_seed(0)
    model = create_model(TNT, **TINY, num_classes=num_classes)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(10.0 * torch.nn.functional.one_hot(torch.tensor(always), num_classes))
    torch.save(model.state_dict(), folder / "nameless.pth")
    return folder / "nameless.pth"


def evaluated(path: Path, *settings: str, display: Notebook | None = None) -> Any:
    given = ["data.workers=0", "evaluate.device=cpu", "evaluate.split=all", *settings]
    options = OPTIONS if path.suffix == ".pth" else []
    return evaluate(path, [parse_command_line([*options, *given])], display=display)


def labelled(source: Source) -> dict[str, str]:
    return {Path(source.name(i)).name: source.classes[label] for i, label in enumerate(source.labels.tolist())}


def test_the_same_names_in_the_same_order_pass() -> None:
    check_classes(("a", "b"), ["a", "b"], "x.safetensors")
    with pytest.raises(DataError, match=r"^the classes of x.safetensors \(2\) .* = 0: a / b; 1: b / a; do that$"):
        check_classes(("a", "b"), ("b", "a"), "x.safetensors", "do that")


def test_a_shorter_list_of_classes_shows_what_is_missing() -> None:
    with pytest.raises(DataError, match="2: c / -"):
        check_classes(("a", "b", "c"), ("a", "b"), "x.safetensors")


def test_a_part_of_the_classes_in_another_order_is_found_by_name() -> None:
    assert match_by_name(("a", "b", "c"), ("c", "a"), "x") == [2, 0]


def test_imagenet_goes_by_id_or_english_name_on_either_side() -> None:
    assert match_by_name(list_wordnet_ids(), ("goldfish", "Great_White_Shark", "n01440764"), "x") == [1, 2, 0]
    assert match_by_name(("tench", "goldfish"), ("n01443537", "tench"), "x") == [1, 0]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            (),
            ("a",),
            "x: names no classes, so none can be matched by name; name them with weights.classes=FILE, or leave",
        ),
        (("a", "b"), ("a", "d", "c"), "x lacks 2 of the 3 classes of the data: c, d; rename or remove them there"),
        (("tench",), ("tench", "n01440764"), "tench and n01440764 of the data are both tench of x; put their images"),
    ],
)
def test_classes_that_cannot_be_matched_are_named(model: tuple[str, ...], data: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError) as raised:
        match_by_name(model, data, "x")
    assert message in str(raised.value)


# When names are one


def test_names_in_two_forms_of_unicode_are_one_in_folders_and_lists(tmp_path: Path) -> None:
    root = write(tmp_path / "set", f"{NFC}/a.png", f"{NFD}/b.png", "tea/c.png")
    source, notes = open_split(DataSection(root=str(root)), "all")
    assert source.classes == (NFC, "tea")
    assert labelled(source) == {"a.png": NFC, "b.png": NFC, "c.png": "tea"}
    assert all(source.encoded(index) for index in range(3))  # by the bytes on the disk
    assert any(r"2 folders are one class, café" in note and r"'cafe\u0301' and 'café'" in note for note in notes)

    (root / "labels.csv").write_text(f"path,label\n{NFC}/a.png,{NFC}\n{NFD}/b.png,{NFD}\ntea/c.png,tea\n", "utf-8")
    listed = open_split(DataSection(list=str(root / "labels.csv")), "all")[0]
    assert (listed.classes, labelled(listed)) == (source.classes, labelled(source))
    (root / "table.csv").write_text(f"path,{NFC},{NFD}\n{NFC}/a.png,1,0\n", "utf-8")
    with pytest.raises(DataError, match=r"names the column .* twice"):
        open_data(DataSection(list=str(root / "table.csv")))
    (root / "rows.jsonl").write_text(json.dumps({"path": "tea/c.png", NFC: 1, NFD: 0}) + "\n")
    with pytest.raises(DataError, match="has a key twice, in two forms of Unicode"):
        open_data(DataSection(list=str(root / "rows.jsonl")))
    (root / "named.csv").write_text(f"path,{NFD}\n{NFC}/a.png,x\n{NFD}/b.png,y\n", "utf-8")
    by_column = open_split(DataSection(list=str(root / "named.csv"), label_column=NFC), "all")[0]
    assert by_column.classes == ("x", "y")


def test_both_sides_may_write_a_name_in_their_own_form(tmp_path: Path) -> None:
    root = write(tmp_path / "set", f"train/{NFC}/a.png", "train/tea/b.png", f"val/{NFD}/c.png", "val/tea/d.png")
    data = open_data(DataSection(root=str(root)))
    assert (data.train.classes, data.val.classes) == ((NFC, "tea"), (NFC, "tea"))
    check_classes((NFC, "tea"), (NFD, "tea"), "x")
    assert match_by_name((NFD, "tea"), ("tea", NFC), "x") == [1, 0]
    with pytest.raises(DataError, match="two of its classes are café, in two forms of Unicode"):
        match_by_name((NFC, NFD), ("tea",), "x")


def test_names_that_look_alike_are_refused_with_the_reason_where_they_had_to_match(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "train/Cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog\u00a0/d.png")
    with pytest.raises(DataError) as caught:
        open_data(DataSection(root=str(root)))
    assert r"'Cat' and 'cat', 'dog' and 'dog\xa0' look alike, but differ in case, blanks or ch" in str(caught.value)
    with pytest.raises(DataError, match=r"0: Cat / cat; 'Cat' and 'cat' look alike, but .*; do that"):
        check_classes(("Cat", "dog"), ("cat", "dog"), "x", "do that")
    with pytest.raises(DataError, match=r"lacks 1 of the 1 classes of the data: cat ; 'cat' and 'cat ' look alike"):
        match_by_name(("cat", "dog"), ("cat ",), "x")


def test_classes_of_one_side_that_look_alike_are_said(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *(f"{name}/{i}.png" for name in ("Cat", "cat", "dog") for i in "ab"))
    source = open_split(DataSection(root=str(root)), "all")[0]
    told = tell_look_alikes(source.classes)
    assert told == (
        "1 classes have names that look alike, and are different classes all the same: 'Cat' and 'cat'; if they are "
        "meant to be one, give them one name"
    )
    manifest, problems = open_manifest(DataSection(root=str(root)))
    found = find_problems(manifest, manifest.fold == 0, Preprocess(size=(32, 32)), problems, near=False).problems
    assert ("warning", told.split("; ")[0]) in [(problem.severity, problem.what) for problem in found]
    display = Notebook()
    evaluated(nameless(tmp_path, 3), f"data.root={root}", "data.class_order=text", display=display)
    assert f"{root}: {told}" in display.warnings


def test_what_is_easily_overlooked_is_seen() -> None:
    assert [quote_name(name) for name in ("cat ", "a\u00a0b", NFD, "x\u200by", "\uff21", "猫")] == [
        "'cat '", r"'a\xa0b'", r"'cafe\u0301'", r"'x\u200by'", r"'\uff21'", "'猫'",
    ]  # fmt: skip
    names = ["my cat", "My  cat", "mycat", "A\u200b", "\uff21", "b"]
    assert find_look_alikes(names) == [["my cat", "My  cat"], ["A\u200b", "\uff21"]]
    assert explain_look_alikes(["a", "b"], ["a", "c"]) == ""
    assert normalise_name("Great_White-Shark") == "great white shark"
    assert normalise_name("\u0915\u093f") != normalise_name("\u0915\u093e")


def test_what_was_written_in_the_other_form_is_read_in_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    opened = open_model(tiny_checkpoint)
    save_model(tmp_path / "a.safetensors", opened.weights, replace(opened.record, classes=(NFD, "green", "red")))
    assert load_model(tmp_path / "a.safetensors").classes == (NFC, "green", "red")
    kept = open_model(tmp_path / "a.safetensors", LoadRequest(classes=[NFD, "other"]))
    assert kept.record.classes == (NFC, "other")
    assert torch.equal(kept.weights["head.weight"][0], opened.weights["head.weight"][0])
    with pytest.raises(ConfigError, match=r"classes has .* twice"):
        LoadRequest(classes=[NFC, NFD])

    root = write(tmp_path / "set", "a/0.png", "a/1.png", "b/2.png", "b/3.png")
    manifest = open_manifest(DataSection(root=str(root)))[0]
    for number, classes in enumerate([(NFD, "tea"), (NFC, NFD)]):
        replace(manifest, classes=classes).save(tmp_path / f"{number}.manifest")
    assert open_data(DataSection(manifest=str(tmp_path / "0.manifest"))).classes == (NFC, "tea")
    with pytest.raises(DataError, match="names a class twice, in two forms of Unicode"):
        open_data(DataSection(manifest=str(tmp_path / "1.manifest")))


# In which order


@given(st.lists(st.text("aB12\u0663_0", max_size=6), min_size=1, max_size=8, unique=True))
def test_natural_order_is_that_of_timm(names: list[str]) -> None:
    ours = [names[index] for index in sort_classes(names, "natural")]
    assert [natural_key_of_timm(name) for name in ours] == sorted(map(natural_key_of_timm, names))
    assert (natural_key(names[0]) < natural_key(names[-1])) == (
        natural_key_of_timm(names[0]) < natural_key_of_timm(names[-1])
    )


def test_names_of_any_number_of_digits_are_ordered() -> None:
    names = ["x" + "9" * 5000, "x1" + "0" * 5000]
    assert sort_classes(names, "natural").tolist() == [0, 1]


def test_order_is_in_doubt_only_where_it_matters() -> None:
    assert find_order_difference(["class1", "class10", "class2"]) == (1, "class10", "class2")
    assert find_order_difference(["class1", "class2", "class10"]) == (1, "class10", "class2")
    assert find_order_difference(["Zoo", "ant"]) == (0, "Zoo", "ant")
    assert find_order_difference(["ant", "bee"]) is None
    assert find_order_difference([str(number) for number in range(12)]) is None
    assert find_order_difference(["plane", "car10", "car9"]) is None  # in neither order, so declared
    assert find_order_doubt(["class1", "class10", "class2"], "text") == ""


def test_weights_without_names_need_an_order_where_two_differ(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *(f"class{number}/{i}.png" for number in range(1, 13) for i in "ab"))
    path = nameless(tmp_path, 12, always=1)
    with pytest.raises(DataError) as caught:
        evaluated(path, f"data.root={root}")
    assert str(caught.value) == (
        f"{path}: names no classes, and index 1 is class10 in the order of text, which is torchvision's and "
        "MindSpore's, and class2 in timm's natural order; say which it is with data.class_order=text or natural, or "
        "name the classes with weights.classes=FILE"
    )
    manifest, problems = open_manifest(DataSection(root=str(root)))
    said = find_problems(manifest, manifest.fold == 0, Preprocess(size=(32, 32)), problems, near=False).problems
    told = "12 classes are in the order of text: index 1 is class10, and class2 in natural order"
    assert ("warning", told) in [(problem.severity, problem.what) for problem in said]
    confusion = {}
    for kind in ("text", "natural"):
        report = tmp_path / kind
        settings = [f"data.root={root}", f"data.class_order={kind}", "data.workers=0", "evaluate.device=cpu"]
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(path), *settings, "evaluate.split=all", *OPTIONS, "--report", str(report)])
        assert ended.value.code == 0
        rows = (report / "per_class.csv").read_text().splitlines()[1:]
        confusion[kind] = [row.split(",")[0] for row in rows if float(row.split(",")[2]) > 0]
    assert confusion == {"text": ["class10"], "natural": ["class2"]}
    (tmp_path / "names.json").write_text(json.dumps([f"class{number}" for number in range(1, 13)]))
    named = [f"weights.classes={tmp_path / 'names.json'}", f"data.root={root}"]
    with pytest.raises(DataError, match=r"data\.match_classes=by-name"):
        evaluated(path, *named)
    assert evaluated(path, *named, "data.match_classes=by-name").accuracy.top1 == pytest.approx(100 / 12)


def test_an_order_is_kept_in_the_run_and_refused_where_it_cannot_be(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *(f"class{number}/{i}.png" for number in (1, 2, 10) for i in range(5)))
    data = open_data(DataSection(root=str(root), class_order="natural"))
    assert data.classes == ("class1", "class2", "class10")
    assert open_data(DataSection(root=str(root))).classes == ("class1", "class10", "class2")
    (root / "list.csv").write_text("path,label\n" + "".join(f"class{n}/{i}.png,{n}\n" for n in (10, 2) for i in (0, 1)))
    listed = {kind: DataSection(list=str(root / "list.csv"), class_order=kind) for kind in (None, "text", "natural")}
    found = {kind: open_split(section, "all")[0].classes for kind, section in listed.items()}
    assert found == {None: ("2", "10"), "text": ("10", "2"), "natural": ("2", "10")}
    kept = tmp_path / "kept"
    open_manifest(DataSection(root=str(root)))[0].save(kept)
    with pytest.raises(
        ConfigError, match=r"order natural: .* has an order of its own, in which index 1 is class10 and n"
    ):
        open_data(DataSection(manifest=str(kept), class_order="natural"))
    assert open_data(DataSection(manifest=str(kept), class_order="text")).classes == ("class1", "class10", "class2")


def test_order_matches_names_that_are_others() -> None:
    told = match_by_order(("tench", "goldfish"), 2, ("class1", "class2"), "x")
    assert told == (
        "x: its classes are matched with those of the data by their order: 0 is tench there and class1 here, 1 is "
        "goldfish there and class2 here"
    )
    assert match_by_order(("a", "b"), 2, ("a", "b"), "x") == ""
    with pytest.raises(
        DataError, match=r"by-order: a is index 1 of the data and 0 of x; set data\.match_classes=by-name"
    ):
        match_by_order(("a", "b"), 2, ("c", "a"), "x")
    with pytest.raises(DataError, match="x has 3 classes and the data 2; give as many"):
        match_by_order(("a", "b", "c"), 3, ("a", "b"), "x")


def test_a_numbered_tree_is_evaluated_by_order(tmp_path: Path, tiny_checkpoint: Path) -> None:
    root = write(tmp_path / "set", *(f"class{number}/{i}.png" for number in (1, 2, 3) for i in range(2)))
    display = Notebook()
    found = evaluated(tiny_checkpoint, f"data.root={root}", "data.match_classes=by-order", display=display)
    assert found.accuracy.n == 6
    assert any("0 is blue there and class1 here" in text for text in display.warnings)
    (root / "class3").rename(root / "class10")
    with pytest.raises(DataError, match="index 1 is class10 in the order of text"):
        evaluated(tiny_checkpoint, f"data.root={root}", "data.match_classes=by-order")
    evaluated(tiny_checkpoint, f"data.root={root}", "data.match_classes=by-order", "data.class_order=natural")


# Files of names


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("a.txt", "cat\n dog \r\nmy bird\n\n", ("cat", "dog", "my bird")),
        ("a.txt", f"\ufeff{NFD}\ntea\n", (NFC, "tea")),
        ("synsets.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ("n01440764", "n01443537")),
        ("a.json", '["cat", "dog"]', ("cat", "dog")),
        ("a.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
        ("a.json", '{"dog": 1, "cat": 0}', ("cat", "dog")),
        ("a.json", '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', ("n01440764", "n01443537")),
    ],
)
def test_names_are_read_from_the_usual_files(name: str, text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_class_names(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "names no class; write a name a line"),
        ("a.txt", b"cat\n\ndog\n", "class 1 is ''; a name has characters that can be printed"),
        ("a.txt", f"{NFC}\n{NFD}\n".encode(), "classes 0 and 1 are both café; each name stands for one output"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8; save the file as UTF-8"),
        ("a.json", b"[1, 2]", "is neither a list of names nor names by their index from 0 on"),
        ("a.json", b'{"a": 0, "b": 0}', "is neither a list of names nor names by their index from 0 on"),
        ("a.json", b"[", "is no JSON"),
        ("no/a.txt", None, "cannot be read (No such file or directory); give a text file with a name a line"),
    ],
)
def test_a_file_of_names_that_is_none_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_class_names(tmp_path / name)
    assert f"weights.classes {tmp_path / name}: {message}" in str(caught.value)


def test_a_pipe_in_the_place_of_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(ConfigError, match=r"names.txt: is a pipe, no regular file; write the names to a file"):
        read_class_names(tmp_path / "names.txt")


# Heads of odd sizes


def test_one_logit_is_evaluated_as_a_binary_classifier(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *(f"{name}/{i}.png" for name in ("no", "yes") for i in range(3)))
    torch.manual_seed(1)
    model = create_model(TNT, **TINY, num_classes=1).eval()
    path = tmp_path / "one.pth"
    torch.save(model.state_dict(), path)
    source = open_split(DataSection(root=str(root)), "all")[0]
    preprocess = evaluated(path, f"data.root={root}").preprocess
    with torch.inference_mode():
        logits = torch.cat([model(preprocess(root / Path(source.name(i)))[None]) for i in range(6)]).flatten()
    labels = torch.tensor(source.labels)
    found = evaluated(path, f"data.root={root}").accuracy
    assert found.top1 == pytest.approx(100 * float(((logits > 0) == labels.bool()).float().mean()))
    written = ["--format", "csv", "--topk", "2", "--output", str(tmp_path / "p.csv")]
    (tmp_path / "names.txt").write_text("no\nyes\n")
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert found.loss == pytest.approx(float(losses), rel=1e-5)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(path), str(root), *written, *OPTIONS, f"weights.classes={tmp_path / 'names.txt'}"])
    assert ended.value.code == 0
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    shares = [float(row[3] if row[1] == "1" else row[6]) for row in rows]
    assert shares == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)
    assert [int(row[1]) for row in rows] == (logits > 0).int().tolist()
    assert {(row[1], row[2]) for row in rows} <= {("0", "no"), ("1", "yes")}


@pytest.mark.parametrize(
    ("outputs", "message"), [(0, "has no head, so it gives features"), (1, "has one output, whose")]
)
@pytest.mark.parametrize("verb", ["predict", "evaluate", "export", "serve"])
def test_models_that_tell_no_classes_apart_are_refused(
    verb: str, outputs: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create_model(TNT, **TINY, num_classes=outputs)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    write(tmp_path / "set", "a/a.png", "b/b.png")
    more = {"predict": [str(tmp_path / "set")], "evaluate": [f"data.root={tmp_path / 'set'}"], "serve": ["--port", "0"],
            "export": ["--format", "onnx", "--with-preprocess"]}[verb]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([verb, str(tmp_path / "a.pth"), *more, *OPTIONS, f"weights.options.num_classes={outputs}"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_classes_in_the_other_order_are_advised_the_setting_that_gives_it() -> None:
    text, natural = ("a1", "a10", "a2"), ("a1", "a2", "a10")
    for model, data, kind in ((natural, text, "natural"), (text, natural, "text")):
        with pytest.raises(DataError, match=f", or set data.class_order={kind}$"):
            check_classes(model, data, "w.safetensors")
