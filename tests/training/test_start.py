"""Which settings each verb takes, and what it says to the others."""

from pathlib import Path

import pytest

from support.runs import TINY
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import command_line, read_yaml, resolve, to_yaml
from vitrail.errors import ConfigError
from vitrail.training.start import begin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder as far as settings go."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    layers = [read_yaml(Path(str(TINY))), command_line([f"output.root={tmp_path / 'runs'}", "output.name=first"])]
    (folder / "config.yaml").write_text(to_yaml(resolve(TrainConfig, layers).config))
    return folder


def test_without_a_verb_a_run_is_new() -> None:
    start = begin(str(TINY), ["optim.lr=1"])
    assert (start.name, start.resume, start.fork, start.config.optim.lr) == ("tiny", None, None, 1.0)
    assert begin(None, []).name == "digits"


def test_resume_takes_the_settings_of_the_run_and_what_changes_no_number(folder: Path) -> None:
    start = begin(None, ["data.workers=3", "output.keep_last=9", "train.max_hours=2"], resume=folder)
    assert (start.name, start.resume) == ("first", folder)
    assert (start.config.data.workers, start.config.output.keep_last, start.config.train.max_hours) == (3, 9, 2.0)
    assert start.config.optim.lr == 3e-3


def test_resume_follows_a_run_that_was_moved(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    output = begin(None, [], resume=moved).config.output
    assert (output.root, output.name) == (str(tmp_path), "elsewhere")


def test_resume_begins_a_run_that_is_not_there_when_a_recipe_says_how(tmp_path: Path, folder: Path) -> None:
    start = begin(str(TINY), ["optim.lr=1"], resume=tmp_path / "new")
    assert (start.resume, start.config.output.root, start.config.output.name) == (None, str(tmp_path), "new")
    again = begin(str(TINY), [], resume=folder)
    assert again.resume == folder
    with pytest.raises(ConfigError, match=r"--resume \S+new names the run's folder; drop output\.name"):
        begin(str(TINY), ["output.name=x"], resume=tmp_path / "new")


def test_resume_refuses_what_changes_the_numbers_with_the_difference(folder: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--resume \S+first: goes on with the run's own settings, but optim\.lr is 0\.003 there and 1\.0 here, "
        r"train\.seed is 0 there and 4 here; drop them, or begin a new run from its weights with --fork \S+first$",
    ):
        begin(str(TINY), ["optim.lr=1", "train.seed=4"], resume=folder)
    with pytest.raises(ConfigError, match=r"or lengthen it with --extend \S+first$"):
        begin(None, ["train.epochs=9"], resume=folder)


def test_a_long_difference_is_cut() -> None:
    from vitrail.training.start import listed

    assert listed({f"a.{n}": (1, 2) for n in range(7)}).endswith("a.4 is 1 there and 2 here and 2 more differ")


def test_extend_changes_the_length_only(folder: Path) -> None:
    start = begin(None, ["train.epochs=9", "schedule.cooldown_epochs=1"], extend=folder)
    assert (start.resume, start.config.train.epochs, start.config.schedule.cooldown_epochs) == (folder, 9, 1)
    with pytest.raises(ConfigError, match=r"--extend \S+: changes the length of a run only, but optim\.lr is 0\.003"):
        begin(None, ["train.epochs=9", "optim.lr=1"], extend=folder)
    for tokens in ([], ["train.epochs=4"], ["train.epochs=3"], ["data.workers=1"]):
        with pytest.raises(ConfigError, match=r"has 4 epochs; say how many it shall have in all, such as train"):
            begin(None, tokens, extend=folder)
    with pytest.raises(ConfigError, match=r"goes on with that run's own settings; drop digits"):
        begin("digits", ["train.epochs=9"], extend=folder)


def test_fork_takes_any_settings_for_a_new_run(folder: Path) -> None:
    start = begin(None, ["optim.lr=1"], fork=folder)
    assert (start.name, start.fork, start.resume, start.config.output.name) == ("first", folder, None, None)
    assert start.config.optim.lr == 1.0
    assert begin(str(TINY), [], fork=folder).name == "tiny"
    assert begin(None, ["output.name=mine"], fork=folder).config.output.name == "mine"


@pytest.mark.parametrize("verb", ["resume", "extend", "fork"])
def test_a_folder_that_is_no_run_is_refused(verb: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--{verb} {tmp_path}: holds no config\.yaml, so it is no run; give the"):
        begin(None, [], **{verb: tmp_path})


def test_a_missing_run_says_that_a_recipe_would_begin_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with a recipe's name, --resume begins the run$"):
        begin(None, ["optim.lr=1"], resume=tmp_path / "gone")


def test_two_verbs_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--resume and --fork are both given; choose one$"):
        begin(None, [], resume=folder, fork=folder)


def test_a_restart_by_torchrun_does_not_silently_begin_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for verb in ({}, {"fork": folder}, {"extend": folder}):
        with pytest.raises(ConfigError, match=r"^torchrun restarted a command that would begin a new run each time"):
            begin(str(TINY), ["train.epochs=9"], **verb)
    assert begin(None, [], resume=folder).resume == folder


def test_a_run_that_goes_on_stays_in_its_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--resume \S+first names the run's folder; drop output\.name$"):
        begin(None, ["output.name=x"], resume=folder)
    with pytest.raises(ConfigError, match=r"^--extend \S+first names the run's folder; drop output\.root$"):
        begin(None, ["output.root=x", "train.epochs=9"], extend=folder)


@pytest.mark.parametrize(
    "tokens", [[], ["train.patience=1"], ["train.epochs=3"], ["train.epochs=9", "train.patience=1"]]
)
def test_a_run_is_not_shortened(folder: Path, tokens: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--extend \S+first: has 4 epochs; say how many it shall have in all"):
        begin(None, tokens, extend=folder)
