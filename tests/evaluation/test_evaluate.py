import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import vitrail
from support.displays import Notebook
from support.forked import TORCHRUN, python
from support.runs import TINY
from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.data.opening import open_split
from vitrail.errors import CheckpointError, ConfigError, DataError
from vitrail.evaluation.evaluate import evaluate, report_folder, report_name, sweep
from vitrail.evaluation.settings import inherited_data, resolve_for
from vitrail.models.registry import create_model
from vitrail.training.train import train
from vitrail.weights.checkpoint import save_model
from vitrail.weights.convert import convert
from vitrail.weights.loading import load_model, open_model


def layers(root: Path, *settings: str) -> list:
    return [parse_command_line([f"data.root={root}", "data.workers=0", "evaluate.device=cpu", *settings])]


def test_accuracy_equals_that_of_the_images_one_by_one(tiny_checkpoint: Path, image_folder: Path) -> None:
    model = load_model(tiny_checkpoint)
    right, n = 0, 0
    with torch.inference_mode():
        for label, name in enumerate(model.classes):
            for path in (image_folder / "val" / name).iterdir():
                right += int(model(model.preprocess(path).unsqueeze(0)).argmax() == label)
                n += 1
    found = evaluate(tiny_checkpoint, layers(image_folder)).accuracy
    assert found.n == n
    assert found.top1 == 100 * right / n


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_does_not_change_the_counts(tiny_checkpoint: Path, image_folder: Path, batch_size: int) -> None:
    whole = evaluate(tiny_checkpoint, layers(image_folder, "evaluate.batch_size=12")).accuracy
    found = evaluate(tiny_checkpoint, layers(image_folder, f"evaluate.batch_size={batch_size}")).accuracy
    assert (found.n, found.top1, found.top5) == (whole.n, whole.top1, whole.top5)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)


def test_unreadable_images_are_reported_beside_the_accuracy_and_not_replaced(
    tiny_checkpoint: Path, image_folder: Path
) -> None:
    before = evaluate(tiny_checkpoint, layers(image_folder))
    victim = sorted((image_folder / "val" / "blue").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:150])
    after = evaluate(tiny_checkpoint, layers(image_folder))
    assert after.accuracy.n == before.accuracy.n - 1
    assert [name for name, _ in after.bad_files] == [str(victim)]
    numbers = after.to_dict()
    assert (numbers["n_ok"], numbers["n_bad"]) == (before.accuracy.n - 1, 1)
    assert json.loads(json.dumps(numbers)) == numbers


def reported(checkpoint: Path, root: Path, folder: Path, *settings: str) -> dict:
    """The numbers of a report, without how many loaders were asked for, and which batches."""
    evaluate(checkpoint, layers(root, *settings), report=report_folder(folder))
    found = json.loads((folder / "report.json").read_text())
    del found["settings"]
    return found


def test_a_report_has_the_numbers_of_its_evaluation_for_any_loaders_and_batches(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    alone = evaluate(tiny_checkpoint, layers(image_folder)).to_dict()
    found = reported(tiny_checkpoint, image_folder, tmp_path / "a")
    for name in ("top1", "top5", "loss", "n_ok", "n_bad", "top1_all_images", "warnings"):
        assert found[name] == alone[name], name
    assert reported(tiny_checkpoint, image_folder, tmp_path / "b", "data.workers=2") == found
    other = reported(tiny_checkpoint, image_folder, tmp_path / "c", "evaluate.batch_size=5")
    for name in ("n_ok", "n_right", "n_right5"):
        assert other[name] == found[name], name
    assert (tmp_path / "c" / "confusion.csv").read_bytes() == (tmp_path / "a" / "confusion.csv").read_bytes()
    assert other["loss"] == pytest.approx(found["loss"], rel=1e-6)
    assert other["macro_auroc"] == pytest.approx(found["macro_auroc"], abs=1e-6)


@pytest.mark.thorough
def test_two_and_three_processes_find_what_one_does_to_the_last_bit(tiny_checkpoint: Path, image_folder: Path) -> None:
    folder = image_folder.parent
    victim = sorted((image_folder / "val" / "green").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:150])
    program = folder / "program.py"
    program.write_text("""
import sys
from vitrail.cli.app import main
for batch_size in (1, 5):
    try:
        named = ["--json", f"{batch_size}.json", "--report", f"report-{batch_size}"]
        main([*sys.argv[1:], f"evaluate.batch_size={batch_size}", *named])
    except SystemExit as error:
        assert error.code == 0
""")
    words = ["evaluate", str(tiny_checkpoint), f"data.root={image_folder}", "data.workers=0", "evaluate.device=cpu"]
    for world in (2, 3):
        launch = [*TORCHRUN, "--standalone", "--nproc-per-node", world]
        done = python(*launch, program, *words, cwd=folder)
        assert done.returncode == 0, done.stderr
        for batch_size in (1, 5):
            alone = evaluate(tiny_checkpoint, layers(image_folder, f"evaluate.batch_size={batch_size}")).to_dict()
            found = json.loads((folder / f"{batch_size}.json").read_text())
            del found["checkpoint"]
            assert found == json.loads(json.dumps(alone))
            assert found["n_bad"] == 1
            of_one, of_many = folder / "alone", folder / f"report-{batch_size}"
            settings = layers(image_folder, f"evaluate.batch_size={batch_size}")
            evaluate(tiny_checkpoint, settings, report=report_folder(of_one))
            for file in of_one.iterdir():
                assert file.read_bytes() == (of_many / file.name).read_bytes(), file.name


def test_classes_of_other_data_are_refused_with_the_first_rows(tiny_checkpoint: Path, image_folder: Path) -> None:
    (image_folder / "val" / "red").rename(image_folder / "val" / "crimson")
    (image_folder / "train" / "red").rename(image_folder / "train" / "crimson")
    rows = "differences, as index: model / data = 1: green / crimson; 2: red / green; rename the classes of the data"
    with pytest.raises(DataError, match=rf"{rows}, .*, data\.match_classes=by-name"):
        evaluate(tiny_checkpoint, layers(image_folder))
    with pytest.raises(DataError, match=r"lacks 1 of the 3 classes of the data: crimson; rename or remove"):
        evaluate(tiny_checkpoint, layers(image_folder, "data.match_classes=by-name"))


def test_an_override_of_preprocessing_says_what_it_changes(tiny_checkpoint: Path, image_folder: Path) -> None:
    display = Notebook()
    result = evaluate(tiny_checkpoint, layers(image_folder, "preprocess.crop=0.5"), display=display)
    assert result.preprocess.crop == 0.5
    assert any("preprocess.crop is 0.5 instead of" in text for text in display.warnings)


def test_images_are_framed_by_every_program_that_reads_what_was_trained_so(image_folder: Path, tmp_path: Path) -> None:
    for path in image_folder.rglob("*.jpg"):
        image = Image.open(path)
        image.resize((3 * image.width, image.height)).save(path)
    settings = [f"data.root={image_folder}", f"output.root={tmp_path}", "train.epochs=1"]
    config = resolve(TrainConfig, [read_yaml(TINY), parse_command_line([*settings, "preprocess.resize=letterbox"])])
    trained = train(config.config, name="framed")
    weights = trained.folder / "best.safetensors"
    assert load_model(weights).preprocess.resize == "letterbox"
    display = Notebook()
    framed = evaluate(weights, layers(image_folder), display=display)
    assert (framed.preprocess.resize, display.warnings) == ("letterbox", [])
    assert framed.accuracy.loss == pytest.approx(trained.best["val_loss"], rel=1e-5)
    cut = evaluate(weights, layers(image_folder, "preprocess.resize=crop"), display=display)
    assert cut.accuracy.loss != framed.accuracy.loss
    told = "preprocess.resize is crop instead of letterbox, which the weights were validated with"
    assert display.warnings == [told]
    assert len(sweep(weights, layers(image_folder))) == 3 * 2, "no crop changes what is framed whole"

    # a training that begins with these weights reads as they do
    notes = Notebook()
    more = resolve(TrainConfig, [read_yaml(TINY), parse_command_line([*settings, f"model.weights={weights}"])])
    again = train(more.config, name="again", display=notes)
    assert load_model(again.folder / "best.safetensors").preprocess.resize == "letterbox"
    assert any("decides preprocess.resize=letterbox" in note for note in notes.notes)


def test_an_override_equal_to_what_is_stored_says_nothing(tiny_checkpoint: Path, image_folder: Path) -> None:
    display = Notebook()
    stored = evaluate(tiny_checkpoint, layers(image_folder)).preprocess
    evaluate(tiny_checkpoint, layers(image_folder, f"preprocess.crop={stored.crop}"), display=display)
    assert display.warnings == []


def test_without_data_the_missing_setting_is_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        evaluate(tiny_checkpoint, [parse_command_line(["evaluate.device=cpu"])])


def test_a_folder_that_was_moved_is_divided_as_in_training(tiny_checkpoint: Path, image_folder: Path) -> None:
    stored = {"root": "/gone", "val_split": None, "folds": 5, "fold": 2, "train_split": "Train", "workers": 0}
    record = replace(open_model(tiny_checkpoint).record, recipe={"data": stored})
    (layer,) = inherited_data(record, [parse_command_line(["data.root=/here"])])
    assert layer.values["data"] == {"folds": 5, "fold": 2}
    (layer,) = inherited_data(record, [parse_command_line(["data.root=/gone"])])
    assert layer.values["data"] == {name: value for name, value in stored.items() if name != "workers"}


def test_other_images_than_those_of_the_training_are_told(image_folder: Path, tmp_path: Path) -> None:
    settings = [f"data.root={image_folder}", "train.epochs=1", f"output.root={tmp_path}"]
    done = train(resolve(TrainConfig, [read_yaml(TINY), parse_command_line(settings)]).config)
    display = Notebook()
    evaluate(done.folder / "best.safetensors", layers(image_folder), display=display)
    assert not display.warnings
    added = image_folder / "val" / CLASSES[0] / "added.jpg"
    shutil.copy(image_folder / "val" / CLASSES[0] / f"{CLASSES[0]}_0.jpg", added)
    evaluate(done.folder / "best.safetensors", layers(image_folder), display=display)
    assert display.warnings == [
        f"{image_folder / 'val'}: its images are not those of the training: files were added, removed or renamed"
    ]
    evaluate(done.folder / "best.safetensors", layers(image_folder.rename(tmp_path / "moved")), display=display)
    assert len(display.warnings) == 1


@pytest.fixture
def folded(image_folder: Path, tmp_path: Path) -> Path:
    """Weights trained on two of three folds of a folder."""
    settings = [f"data.root={image_folder / 'train'}", "data.folds=3", "train.epochs=1", f"output.root={tmp_path}"]
    return (
        train(resolve(TrainConfig, [read_yaml(TINY), parse_command_line(settings)]).config).folder / "best.safetensors"
    )


@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ([], 0),
        (["evaluate.split=train"], 0),
        (["data.fold=1"], 1),
        (["data.folds=2", "data.fold=1"], 1),
        (["evaluate.split=all", "data.folds=null"], 2),
    ],
    ids=str,
)
def test_images_that_were_trained_on_are_told(folded: Path, settings: list[str], n: int) -> None:
    display, given = Notebook(), parse_command_line([*settings, "evaluate.device=cpu"])
    evaluate(folded, [given], display=display)
    trained, _ = open_split(resolve_for(open_model(folded).record, []).config.data, "train")
    asked = resolve_for(open_model(folded).record, [given]).config
    source, _ = open_split(asked.data, asked.evaluate.split)
    both = len(set(source.identities()) & set(trained.identities()))
    told = (
        f"{source.description}: {both} of its {len(source)} images were trained on, by name and content, and count as "
        "if they were new; to leave them out, divide as in training"
    )
    assert display.warnings == ([told] if n else [])
    assert (both > 0) == (n > 0) or asked.evaluate.split == "train"
    assert (both == len(trained)) == (n == 2) or asked.evaluate.split == "train"


def test_trained_images_are_told_where_nothing_was_divided(image_folder: Path, tmp_path: Path) -> None:
    settings = [f"data.root={image_folder}", "train.epochs=1", f"output.root={tmp_path / 'runs'}"]
    path = (
        train(resolve(TrainConfig, [read_yaml(TINY), parse_command_line(settings)]).config).folder / "best.safetensors"
    )
    display = Notebook()
    evaluate(path, layers(image_folder / "train", "evaluate.split=all"), display=display)
    (told,) = display.warnings
    assert told.startswith(f"{image_folder / 'train'}: 24 of its 24 images were trained on, by name and content, and")
    evaluate(path, layers(image_folder), display=display)
    evaluate(path, layers(image_folder / "val", "evaluate.split=all"), display=display)
    evaluate(path, layers(image_folder, "evaluate.split=train"), display=display)
    assert display.warnings == [told]


def test_other_images_of_the_same_names_are_not_taken_for_trained_ones(folded: Path, image_folder: Path) -> None:
    display = Notebook()
    evaluate(folded, layers(image_folder), display=display)  # train/red/red_0.jpg was trained on, val/red/red_0.jpg not
    assert display.warnings == []
    assert f"{image_folder / 'val'}: stands as it is, data.folds=3 divides nothing" in display.notes


def timm_file(folder: Path, num_classes: int = len(CLASSES)) -> Path:
    torch.manual_seed(0)
    path = folder / "timm.pth"
    torch.save(timm.create_model("twins_svt_small", num_classes=num_classes).state_dict(), path)
    return path


def test_file_of_another_project_is_evaluated_and_takes_the_names_of_the_data(
    image_folder: Path, tmp_path: Path
) -> None:
    display = Notebook()
    found = evaluate(timm_file(tmp_path), layers(image_folder, "weights.options.image_size=32"), display=display)
    assert found.accuracy.n == 12
    assert found.preprocess.size == (32, 32)
    assert any("names no classes; those of the data are taken, in their order" in text for text in display.warnings)
    with pytest.raises(DataError, match=r"has 5 outputs and names no classes, and the data has 3; name them with wei"):
        evaluate(timm_file(tmp_path, 5), layers(image_folder))
    with pytest.raises(ConfigError, match="did you mean 'dialect'"):
        evaluate(timm_file(tmp_path), layers(image_folder, "weights.dialekt=timm"))


@pytest.mark.thorough
def test_a_file_without_class_names_is_compared_in_the_order_of_the_other(image_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("tnt_ti_patch16_224", image_size=32, num_classes=3, gelu="tanh", final_norm_eps=1e-7)
    official, ckpt, named = tmp_path / "tnt.pth", tmp_path / "tnt.ckpt", tmp_path / "tnt.safetensors"
    torch.save(model.state_dict(), official)
    convert(official, ckpt, "mindcv")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    vitrail.convert(ckpt, named, {"weights.classes": str(tmp_path / "names.txt")}, to="vitrail", display=Notebook())
    opened = open_model(named)
    record = replace(opened.record, options={**opened.record.options, "drop_path_rate": 0.1})
    save_model(named, load_model(named).state_dict(), record)  # as a run leaves it
    for file, other in ((named, ckpt), (ckpt, named)):
        display = Notebook()
        found = evaluate(file, layers(image_folder), against=other, display=display).agreement
        assert found is not None
        assert (found.equal, found.n) == (12, 12)
        assert found.difference < 1e-5
        assert f"{ckpt}: names no classes; its outputs are taken in the other's order" in display.warnings
    (tmp_path / "names.txt").write_text("a\nb\nc")
    vitrail.convert(
        ckpt,
        tmp_path / "abc.safetensors",
        {"weights.classes": str(tmp_path / "names.txt")},
        to="vitrail",
        display=Notebook(),
    )
    with pytest.raises(ConfigError, match="has other classes than"):
        evaluate(named, layers(image_folder), against=tmp_path / "abc.safetensors")


def test_sweep_finds_the_preprocessing_that_the_weights_were_trained_with(image_folder: Path) -> None:
    recipe = read_yaml(TINY)
    settings = [f"data.root={image_folder}", f"output.root={image_folder.parent}", "train.epochs=12", "optim.lr=1e-2"]
    read = ["preprocess.mean=[0.0,0.0,0.0]", "preprocess.std=[1.0,1.0,1.0]", "preprocess.crop=1.0"]
    config = resolve(TrainConfig, [recipe, parse_command_line([*settings, *read])]).config
    weights = train(config, name="a").folder / "best.safetensors"
    tried = sweep(weights, layers(image_folder))
    assert len(tried) == 3 * 3 * 2
    assert tried[0].preprocess.mean == (0.0, 0.0, 0.0)
    assert tried[0].accuracy.loss == min(found.accuracy.loss for found in tried)
    assert tried[0].accuracy.top1 == evaluate(weights, layers(image_folder)).accuracy.top1
    assert tried == sorted(tried, key=lambda found: (-found.accuracy.top1, found.accuracy.loss))


def test_command_shows_the_sweep_and_the_settings_of_the_best(
    tiny_checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(tiny_checkpoint), f"data.root={image_folder}", "data.workers=0", "--sweep-preprocess"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--json", str(image_folder / "sweep.json")])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "12 images of" in " ".join(out.split())  # the title of a narrow table is broken
    assert "next: vitrail evaluate" in out
    assert "'preprocess.mean=[" in out or "preprocess.mean=" in out
    assert len(json.loads((image_folder / "sweep.json").read_text())) == 18


def test_a_part_of_the_classes_is_evaluated_by_name(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    whole = reported(tiny_checkpoint, image_folder, tmp_path / "whole")
    by_name = reported(tiny_checkpoint, image_folder, tmp_path / "same", "data.match_classes=by-name")
    assert by_name == whole
    for split in ("train", "val"):
        shutil.rmtree(image_folder / split / "green")
    with pytest.raises(DataError, match=r"data\.match_classes=by-name"):
        evaluate(tiny_checkpoint, layers(image_folder))
    part = reported(tiny_checkpoint, image_folder, tmp_path / "part", "data.match_classes=by-name")
    assert part["n_ok"] == 8
    assert part["classes_without_images"] == ["green"]
    for number in (0, 2):  # the images of the other classes are answered as before, green or not
        assert part["per_class"][number]["recall"] == whole["per_class"][number]["recall"]
    assert part["per_class"][1] | {"precision": None, "f1": None} == dict.fromkeys(part["per_class"][1]) | {
        "class": "green",
        "n": 0,
    }


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_command_writes_reports_side_by_side_and_replaces_one_that_is_named(
    tiny_checkpoint: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(image_folder.parent)
    words = ["evaluate", str(tiny_checkpoint), f"data.root={image_folder}", "data.workers=0"]
    for name in ("evaluations/tiny", "evaluations/tiny-2", "named", "named"):
        more = ["--report", name] if name == "named" else []
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines()[-1] == f"report: {name}/report.html"
        assert {path.name for path in Path(name).iterdir()} == {
            "report.html", "report.json", "per_class.csv", "confusion.csv", "confusion.png",
        }  # fmt: skip
    assert "named: held an earlier report, which is replaced" in printed.err
    assert sorted(path.name for path in Path("evaluations").iterdir()) == ["tiny", "tiny-2"]
    Path("named", "notes.txt").write_text("mine")
    said = refused(capsys, *words, "--report", "named")
    assert "named: holds other files, such as notes.txt, and is not replaced; free space or choose another" in said
    said = refused(capsys, *words, "--report", "x", "--sweep-preprocess")
    assert said == "error: --report: --sweep-preprocess writes none; leave one of them out\n"


def test_a_report_that_cannot_be_written_is_refused_before_the_evaluation(
    tiny_checkpoint: Path, image_folder: Path
) -> None:
    (image_folder.parent / "file").write_text("")
    shutil.rmtree(image_folder)
    folder = report_folder(image_folder.parent / "file" / "x")
    with pytest.raises(CheckpointError, match=r"x: cannot be written \(Not a directory\).*report="):
        evaluate(tiny_checkpoint, layers(image_folder), report=folder)


def test_a_disk_that_fills_up_does_not_cost_the_numbers(
    tiny_checkpoint: Path, image_folder: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    alone = evaluate(tiny_checkpoint, layers(image_folder)).accuracy
    folder = report_folder(image_folder.parent / "x")
    numbers = rf"the evaluation itself found loss {alone.loss:.4f}, top-1 {alone.top1:.2f} %, top-5 100.00 %$"
    with (
        pytest.raises(CheckpointError, match=rf"x: cannot be written \(File too large\).*; {numbers}"),
        largest_file(99),
    ):
        evaluate(tiny_checkpoint, layers(image_folder), report=folder)
    assert not (image_folder.parent / "x").exists()


def test_a_report_is_called_as_its_run_or_its_file() -> None:
    assert report_name(Path("runs/digits/best.safetensors")) == "digits"
    assert report_name(Path("runs/digits/best-2.safetensors")) == "digits"
    assert report_name(Path("weights/tnt_s.pth")) == "tnt_s"
    assert report_name(Path("hf-hub:timm/tnt_s_patch16_224")) == "tnt_s_patch16_224"


def test_what_is_evaluated_is_never_replaced(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo = image_folder / "val" / "red" / "red_0.jpg"
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"val/{c}/{c}_0.jpg,{c}\n" for c in CLASSES))
    (tmp_path / "list.csv").rename(image_folder / "list.csv")
    photo.with_name("confusion.png").write_bytes(photo.read_bytes())
    (tmp_path / "link.json").symlink_to(photo)
    folder, listed = [f"data.root={image_folder}"], [f"data.list={image_folder}/list.csv", "evaluate.split=all"]
    for words, flag, output in (
        (folder, "--json", photo),
        (folder, "--json", tmp_path / "link.json"),
        (listed, "--json", photo),
        (listed, "--json", image_folder / "list.csv"),
        (folder, "--json", tiny_checkpoint),
    ):
        before = output.read_bytes()
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", str(tiny_checkpoint), *words, flag, str(output), "--report", str(tmp_path / "report")])
        assert caught.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {flag} {output}:")
        assert line.endswith("is read, and would be replaced; choose another file")
        assert output.read_bytes() == before
    assert not (tmp_path / "report").exists()
    for path in photo.parent.glob("red_*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"report=.*/red/confusion\.png: is read, and would be replaced"):
        evaluate(tiny_checkpoint, layers(image_folder), report=report_folder(photo.parent))


def test_inputs_that_look_odd_are_told(tiny_checkpoint: Path, image_folder: Path) -> None:
    display = Notebook()
    evaluate(tiny_checkpoint, layers(image_folder), display=display)
    sweep(tiny_checkpoint, layers(image_folder), display=display)
    assert not [text for text in display.warnings if "normalised" in text]
    evaluate(tiny_checkpoint, layers(image_folder, "preprocess.std=[0.003,0.003,0.003]"), display=display)
    (told,) = [text for text in display.warnings if "normalised" in text]
    assert told.startswith("12 images are far from mean 0 and standard deviation 1 once they are normalised")
