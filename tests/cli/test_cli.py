import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import vitrail.cli.app
from support.commands import refused, run
from support.forked import Python, python, wait_until
from support.runs import TINY
from vitrail.cli.app import main
from vitrail.config.recipes import list_recipes
from vitrail.errors import command


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["model.name=tnt_smal"], "unknown model 'tnt_smal'; did you mean 'tnt_small'?"),
        (["model.options.dept=3"], "tnt_ti_patch16_224 has no setting 'dept'; did you mean 'depth'?"),
        (["model.options.depth=two"], "tnt_ti_patch16_224: "),
        (["model.image_size=50"], "image_size 50x50 is not a multiple of 16; the nearest sizes are 48x48 or 64x64"),
        (["optim.lrr=1"], "command line: optim.lrr: unknown key; did you mean 'lr'? Known keys: name, lr"),
        (["optm.lr=1"], "command line: optm: unknown section; did you mean 'optim'?"),
        (["optim.lr=-1"], "optim.lr is -1.0; it must be above 0"),
        (["optim.lr=fast"], "command line: optim.lr is 'fast'; it must be a number"),
        (["augment.auto_augment=rnd-m9"], "augment.auto_augment 'rnd-m9': not a policy of timm"),
        (["train.precision=float16"], "train.precision is float16, which needs a CUDA device"),
        (["data.root=/nowhere"], "data.root /nowhere: no such folder"),
        (["train.batch_size=9999"], "train.batch_size 9999 is more than the 24 training images"),
        (["output.root=/dev/null/runs"], "output.root: /dev/null/runs cannot be written"),
        (["digits"], "two recipes are given"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_input_to_train_is_one_line_and_writes_nothing(
    tokens: list[str],
    message: str,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(capsys, "train", TINY, f"data.root={image_folder}", *tokens)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["train", "digts"], "unknown recipe 'digts'; did you mean 'digits'?"),
        (["train", "--config", "gone.yaml"], "unknown recipe 'gone.yaml'"),
        (["train", "optim.lr=5e-6"], "schedule.min_lr 1e-05 is above the peak rate 5e-06 of optim.lr; lower it"),
        (["train", "--resume", "gone"], "--resume gone: holds no config.yaml"),
        (["train", "--extend", "gone"], "--extend gone: holds no config.yaml"),
        (["train", "--fork", "gone"], "--fork gone: holds no config.yaml"),
        (["train", "--fork", "gone", "--resume", "gone"], "--resume and --fork are both given; choose one"),
        (["evaluate", "gone.safetensors"], "gone.safetensors: is missing, not a weight file"),
        (["evaluate", "gone.safetensors", "nonsense"], "command line: 'nonsense' is not a setting"),
        (["predict", "gone.safetensors"], "predict needs images"),
        (["predict", "gone.safetensors", "a.jpg", "--topk", "0"], "--topk is 0; it must be at least 1"),
        (["predict", "gone.safetensors", "a.jpg", "--topk", "2.5"], "--topk is '2.5'; it must be a whole number"),
        (["predict", "gone.safetensors", "a.jpg", "--batch-size", "x"], "--batch-size is 'x'; it must be a whole"),
        (["train", "x" * 5000], "File name too long; choose another path"),
        (["evaluate", "x" * 5000], "File name too long; choose another path"),
        (["evaluate", "gone.safetensors", "--json", "/"], "--json /: cannot be written (is a folder); choose"),
        (
            ["train", "model.options.in_channels=1"],
            "model.options.in_channels: is not an option; it follows",
        ),
        (["predict", "gone.safetensors", "a.jpg", "preprocess.crop=7"], "preprocess.crop is 7.0"),
        (["predict", "gone.safetensors", "a.jpg", "--format", "xml"], "xml"),
        (["models", "resnet*"], "no model matches 'resnet*'"),
        (["config", "digts"], "unknown recipe 'digts'; did you mean 'digits'?"),
        (["config", "digits", "train.epochs=0"], "train.epochs is 0; it must be at least 1"),
        (["trian"], "trian"),
    ],
)
def test_bad_input_to_the_other_commands_is_one_line(
    tokens: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *tokens)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_checkpoint_is_refused_by_evaluate_and_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04 this is no checkpoint")
    for tokens in (["evaluate", path], ["predict", path, "a.jpg"]):
        assert "weights.pth: is cut off: its end, with the list of its contents, is missing" in refused(capsys, *tokens)


def test_commands_to_type_next_are_quoted_and_start_as_this_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("predict", Path("my runs/a"), 3) == "vitrail predict 'my runs/a' 3"
    monkeypatch.setenv("UV", "/usr/bin/uv")
    assert command("train") == "uv run vitrail train"


def test_a_loss_that_is_not_finite_is_one_line(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    wild = ("optim.lr=1e30", "schedule.warmup_epochs=0", "schedule.name=constant")
    line = refused(capsys, "train", TINY, f"data.root={image_folder}", "train.skip_limit=2", *wild)
    assert " and 1 more of this epoch left out, not finite: the output of" in line
    assert (
        "went back 3 times, down to 0.125 of the learning rate; last good save: runs/tiny/last/update-00000000." in line
    )


def test_a_disk_that_fills_while_saving_is_one_line_and_leaves_no_half_file(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    largest_file: Callable[[int], AbstractContextManager[None]],
) -> None:
    monkeypatch.chdir(tmp_path)
    with largest_file(20_000):
        line = refused(capsys, "train", TINY, f"data.root={image_folder}", "train.epochs=2")
    assert "cannot be written (File too large); free space or choose another output.root" in line
    assert not [path for path in Path("runs/tiny").rglob("*") if path.is_file() and path.suffix in (".pt", ".tmp")]


def test_classes_of_other_data_are_one_line(
    tiny_checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    (image_folder / "val" / "red").rename(image_folder / "val" / "crimson")
    line = refused(capsys, "evaluate", tiny_checkpoint, f"data.root={image_folder}")
    assert "data = 1: green / crimson; 2: red / green; rename the classes of the data, or evaluate on the data" in line


def test_numbers_are_not_computed_for_a_file_that_cannot_be_written(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = refused(
        capsys, "evaluate", tiny_checkpoint, f"data.root={image_folder}", "--json", tmp_path / "no" / "a.json"
    )
    assert f"there is no folder {tmp_path / 'no'}; create or choose another" in line


def test_a_prediction_file_that_cannot_be_written_is_named(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = refused(capsys, "predict", tiny_checkpoint, image_folder, "--output", tmp_path / "no" / "a.json")
    assert f"a.json: there is no folder {tmp_path / 'no'}; create or choose another" in line


def test_a_folder_without_naming_a_recipe_is_explained(image_folder: Path, capsys: pytest.CaptureFixture) -> None:
    line = refused(capsys, "train", f"data.root={image_folder}")
    assert "data.name is digits, which comes with scikit-learn and has no folder; for your own images add" in line


def test_train_evaluate_and_predict_follow_one_another_as_their_last_lines_say(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", TINY, f"data.root={image_folder}", "train.epochs=2") == 0
    printed = capsys.readouterr()
    assert "epoch   2" in printed.err
    following = [line.removeprefix("next:").strip() for line in printed.out.splitlines()][-2:]
    for line in following:
        program, *tokens = shlex.split(line)
        assert program == "vitrail"
        assert run(*tokens) == 0
    assert "top-1" in capsys.readouterr().out


def test_the_last_table_has_the_groups_of_a_long_tailed_set_and_the_number_that_chose(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("train", TINY, f"data.root={image_folder}", "train.epochs=1", "schedule.warmup_epochs=0")
    assert run(*common, "train.monitor=val_macro_f1") == 0
    heading = capsys.readouterr().out.splitlines()[1].split()
    assert heading == ["epoch", "train", "loss", "val", "loss", "top-1,", "%", "top-5,", "%", "val_macro_f1"]
    (first,) = (image_folder / "train" / "red").glob("red_0.jpg")
    for number in range(20):
        (first.parent / f"copy_{number}.jpg").write_bytes(first.read_bytes())
    assert run(*common, "train.monitor=val_tail_top1") == 0
    heading = capsys.readouterr().out.splitlines()[1].split("top-5, %")[1]
    assert " ".join(heading.split()) == "balanced, % macro F1, % medium, % tail, %"


def test_an_alias_is_answered_with_the_canonical_name(image_folder: Path, tmp_path: Path) -> None:
    tokens = [str(TINY), f"data.root={image_folder}", "train.epochs=1", "model.name=tnt_ti"]
    done = python("-m", "vitrail", "train", *tokens, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: model 'tnt_ti' is called 'tnt_ti_patch16_224' here" in done.stderr.splitlines()


def test_config_shows_each_setting_and_its_origin(capsys: pytest.CaptureFixture) -> None:
    assert run("config", "digits", "optim.lr=5e-4") == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert lines["optim.lr"] == ["0.0005", "command", "line"]
    assert lines["data.name"] == ['"digits"', "digits"]
    assert lines["optim.momentum"] == ["0.9", "default"]


def test_config_without_a_recipe_lists_all(capsys: pytest.CaptureFixture) -> None:
    assert run("config") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in list_recipes())


def test_models_lists_the_table(capsys: pytest.CaptureFixture) -> None:
    assert run("models", "*svt*") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "svt" in line]
    assert len(lines) == 3
    assert "24.06" in lines[0]
    assert "2.927" in lines[0]


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vitrail", "--help"], capture_output=True, text=True, check=True)
    for name in ("train", "evaluate", "predict", "models", "config"):
        assert name in done.stdout


def test_debug_keeps_the_traceback(capsys: pytest.CaptureFixture) -> None:
    from vitrail.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["config", "digts", "--debug"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_says_how_to_go_on(
    number: signal.Signals, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    process = Python("-m", "vitrail", "train", TINY, "train.epochs=5000", f"data.root={image_folder}", cwd=tmp_path)
    wait_until((tmp_path / "runs" / "tiny" / "metrics.jsonl").exists, process)
    process.send_signal(number)
    done = process.wait()
    printed = done.stderr
    assert done.returncode == 75
    assert f"stopped by {number.name} after update" in printed
    assert "of 15,000, and saved; go on with: vitrail train --resume runs/tiny" in printed
    assert "Traceback" not in printed
    again = ["train", "--resume", str(tmp_path / "runs" / "tiny"), "train.max_hours=1e-9"]
    with pytest.raises(SystemExit) as caught:
        main(again)
    assert caught.value.code == 75
    assert "stopped by train.max_hours=1e-09 after update" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tokens",
    [["train", "{}/x.yaml"], ["train", "--resume", "{}/run"], ["evaluate", "{}/best.safetensors"]],
    ids=" ".join,
)
def test_a_folder_that_may_not_be_entered_is_one_line(
    tokens: list[str], unprivileged: Path, capsys: pytest.CaptureFixture
) -> None:
    line = refused(capsys, *(token.format(unprivileged) for token in tokens))
    assert line.endswith("Permission denied; choose another path, or mend its permissions")


def test_what_libraries_warn_of_stands_in_the_log_too(tmp_path: Path) -> None:
    def work() -> None:
        with vitrail.cli.app._terminal() as display:
            display.keep(tmp_path / "log.txt")
            warnings.warn("theirs", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning, match="theirs"):
        work()
    assert "RuntimeWarning: theirs" in (tmp_path / "log.txt").read_text()
