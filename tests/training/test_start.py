"""Which settings each verb takes, and what it says to the others."""

from pathlib import Path

import pytest

from support.runs import TINY
from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import find_recipe, list_recipes
from vitrail.config.resolve import parse_command_line, read_yaml, resolve, to_yaml
from vitrail.errors import ConfigError
from vitrail.training.idle_settings import idle_settings
from vitrail.training.initial_model import refuse_left_options
from vitrail.training.start import begin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder as far as settings go."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    layers = [read_yaml(Path(str(TINY))), parse_command_line([f"output.root={tmp_path / 'runs'}", "output.name=first"])]
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
    with pytest.raises(ConfigError, match=r"resume=\S+new names the run's folder; drop output\.name"):
        begin(str(TINY), ["output.name=x"], resume=tmp_path / "new")


def test_resume_begins_a_run_in_a_folder_that_holds_nothing_of_one(tmp_path: Path) -> None:
    new = tmp_path / "new"
    for leave in (new, new / "last"):
        leave.mkdir()
        assert begin(str(TINY), [], resume=new).resume is None
    for name in (".config.yaml.0123abcd-77.tmp", "last/.lock", "last/.update-00000000.pt.0123abcd-77.tmp"):
        (new / name).write_text("half")
        start = begin(str(TINY), [], resume=new)
        assert (start.resume, start.config.output.name) == (None, "new")
    with pytest.raises(
        ConfigError, match=r"holds no config\.yaml, so .*; with a recipe's name, resume= begins the run$"
    ):
        begin(None, [], resume=new)
    (new / "notes.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"holds no config\.yaml, so it is no run; give the folder that `vitrail train` made$"
    ):
        begin(str(TINY), [], resume=new)


def test_resume_refuses_what_changes_the_numbers_with_the_difference(folder: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"resume=\S+first: goes on with the run's own settings, but optim\.lr is 0\.003 there and 1\.0 here, "
        r"train\.seed is 0 there and 4 here; drop them, or begin a new run from its weights with fork=\S+first$",
    ):
        begin(str(TINY), ["optim.lr=1", "train.seed=4"], resume=folder)
    with pytest.raises(ConfigError, match=r"or lengthen it with extend=\S+first$"):
        begin(None, ["train.epochs=9"], resume=folder)


def test_a_long_difference_is_cut() -> None:
    from vitrail.training.start import describe_differences

    assert describe_differences({f"a.{n}": (1, 2) for n in range(7)}).endswith(
        "a.4 is 1 there and 2 here and 2 more differ"
    )


def test_extend_changes_the_length_only(folder: Path) -> None:
    start = begin(None, ["train.epochs=9", "schedule.cooldown_epochs=1"], extend=folder)
    assert (start.resume, start.config.train.epochs, start.config.schedule.cooldown_epochs) == (folder, 9, 1)
    with pytest.raises(ConfigError, match=r"extend=\S+: changes the length of a run only, but optim\.lr is 0\.003"):
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
    with pytest.raises(ConfigError, match=rf"{verb}={tmp_path}: holds no config\.yaml, so it is no run; give the"):
        begin(None, [], **{verb: tmp_path})


def test_a_missing_run_says_that_a_recipe_would_begin_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with a recipe's name, resume= begins the run$"):
        begin(None, ["optim.lr=1"], resume=tmp_path / "gone")


def test_two_verbs_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^resume and fork are both given; choose one$"):
        begin(None, [], resume=folder, fork=folder)


def test_a_restart_by_torchrun_does_not_silently_begin_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for verb in ({}, {"fork": folder}, {"extend": folder}):
        with pytest.raises(ConfigError, match=r"^torchrun restarted a command that would begin a new run each time"):
            begin(str(TINY), ["train.epochs=9"], **verb)
    assert begin(None, [], resume=folder).resume == folder


def test_a_run_that_goes_on_stays_in_its_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^resume=\S+first names the run's folder; drop output\.name$"):
        begin(None, ["output.name=x"], resume=folder)
    with pytest.raises(ConfigError, match=r"^extend=\S+first names the run's folder; drop output\.root$"):
        begin(None, ["output.root=x", "train.epochs=9"], extend=folder)
    # a script that names the same folder twice means it
    named = [f"output.root={folder.parent}/./", f"output.name={folder.name}"]
    start = begin(None, named, resume=folder)
    assert (Path(start.config.output.root), start.config.output.name) == (folder.parent, folder.name)
    assert begin(None, [*named, "train.epochs=9"], extend=folder).config.train.epochs == 9
    new = folder.with_name("new")
    assert begin(str(TINY), [named[0]], resume=new).config.output.name == "new"


@pytest.mark.parametrize(
    "tokens", [[], ["train.patience=1"], ["train.epochs=3"], ["train.epochs=9", "train.patience=1"]]
)
def test_a_run_is_not_shortened(folder: Path, tokens: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^extend=\S+first: has 4 epochs; say how many it shall have in all"):
        begin(None, tokens, extend=folder)


# Settings that do nothing


IDLE = {
    "augment.mix_off_epoch=3": (
        "augment.mix_off_epoch=3: does nothing, since augment.mixup and augment.cutmix are 0", "augment.mixup=1"
    ),
    "augment.mixup=0.2 augment.mix_off_epoch=4": (
        "augment.mix_off_epoch=4: does nothing, since the run has 4 epochs, all of which mix", "train.epochs=5"
    ),
    "augment.erase_count=3 augment.erase_mode=const": (
        "augment.erase_mode=const and augment.erase_count=3: do nothing, since augment.erase_prob is 0",
        "augment.erase_prob=0.1",
    ),
    "augment.mix_mode=elem augment.mix_prob=0 augment.cutmix=1": (
        "augment.mix_mode=elem and augment.mix_prob=0.0: do nothing, since augment.mix_prob is 0",
        "augment.mix_prob=0.3",
    ),
    "augment.mixup=0.2 augment.mix_switch_prob=0.9": (
        "augment.mix_switch_prob=0.9: does nothing, since only augment.mixup is on", "augment.cutmix_minmax=[0.1,0.3]"
    ),
    "balance.effective_beta=0.9": (
        "balance.effective_beta=0.9: does nothing, since balance.class_weights is not effective",
        "balance.class_weights=effective",
    ),
    "multi_label.clip=0.1": (
        "multi_label.clip=0.1: does nothing, since multi_label.loss is not asymmetric", "multi_label.loss=asymmetric"
    ),
    "optim.momentum=0.8": (
        "optim.momentum=0.8: does nothing, since it is for optim.name=sgd, and that is adamw", "optim.name=sgd"
    ),
    "optim.name=sgd optim.betas=[0.8,0.9]": (
        "optim.betas=[0.8, 0.9]: does nothing, since optim.name is sgd", "optim.name=adamw"
    ),
    "schedule.warmup_epochs=0 schedule.warmup_prefix=true": (
        "schedule.warmup_prefix=true: does nothing, since schedule.warmup_epochs is 0", "schedule.warmup_epochs=1"
    ),
    "schedule.name=step schedule.cosine_epochs=2": (
        "schedule.cosine_epochs=2.0: does nothing, since schedule.name is step", "schedule.name=cosine"
    ),
    "schedule.decay_epochs=2": (
        "schedule.decay_epochs=2.0: does nothing, since schedule.name is cosine", "schedule.name=exponential"
    ),
    "schedule.name=constant schedule.min_lr=1e-6": (
        "schedule.min_lr=1.0e-06: does nothing, since schedule.name is constant", "schedule.clip_to_min_lr=true"
    ),
    "data.cache_gb=2": (
        "data.cache_gb=2.0: does nothing, since data.streaming is false", "data.name=hf:a/b data.streaming=true"
    ),
    "data.folds=3 data.val_fraction=0.1": (
        "data.val_fraction=0.1: does nothing, since data.folds divides the images instead", "data.folds=null"
    ),
    "weights.partial=true": ("weights.partial=true: does nothing, since model.weights is null", "model.weights=x.pth"),
}  # fmt: skip
"""What is said to some settings, and what makes them do something."""


@pytest.mark.parametrize("tokens", IDLE)
def test_a_setting_that_does_nothing_is_told_to_who_wrote_it(tokens: str) -> None:
    said, remedy = IDLE[tokens]
    assert begin(str(TINY), tokens.split()).remarks == (("warning", said),)
    assert begin(str(TINY), [*tokens.split(), *remedy.split()]).remarks == ()


def test_an_idle_setting_is_told_of_ones_own_file_and_not_of_what_is_whole(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(Path(str(TINY)).read_text().replace("augment: {", "augment: {erase_count: 3, mix_mode: batch, "))
    said = "augment.erase_count=3: does nothing, since augment.erase_prob is 0"
    assert begin(str(own), []).remarks == (("warning", said),)
    # cut short for a trial, or taken from a run, where it was said before
    assert begin("tnt_s_imagenet", ["data.root=x", "train.epochs=6"]).remarks == ()
    (folder / "config.yaml").write_text(to_yaml(begin(str(own), []).config))
    assert begin(str(folder), []).remarks == ()
    assert begin(None, [], fork=folder).remarks == ()
    assert begin(None, ["augment.erase_mode=rand"], fork=folder).remarks[0][1].startswith("augment.erase_mode=rand: ")


@pytest.mark.parametrize("recipe", list_recipes())
def test_no_recipe_has_a_setting_that_does_nothing(recipe: str) -> None:
    values = read_yaml(find_recipe(recipe)[1]).values
    written = {f"{section}.{key}": "" for section, content in values.items() for key in content}
    tokens = [f"data.root={Path(__file__).parent}"]
    assert idle_settings(begin(recipe, tokens).config, written) == []


@pytest.mark.parametrize(
    ("tokens", "example"),
    [
        (["model.name=twins_svt_small"], ", such as twins_svt_small_imagenet"),
        (["model.name=tnt_s_patch16_224"], ", such as tnt_s_imagenet, or give these options too"),
        (["model.name=tnt_s", "model.options={depth: 2}"], ", such as tnt_s_imagenet, or give these options too"),
        (["model.name=t2t_vit_14_wide"], ""),
        (["model.name=timm:test_resnet"], ", such as tnt_s_imagenet"),
    ],
)
def test_sizes_of_a_recipes_own_model_are_refused_for_another_model(tokens: list[str], example: str) -> None:
    left = begin(None, tokens).left
    name = tokens[0].removeprefix("model.name=")
    with pytest.raises(
        ConfigError,
        match=rf"^model\.name is {name}, and recipe digits sets model\.options \(\w+, .* more\) for its own model, "
        rf"tnt_ti_patch16_224; name another recipe{example}$",
    ):
        refuse_left_options(left, name)


def test_the_tag_of_weights_leaves_the_sizes_of_a_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("model: {name: timm:test_resnet, options: {layers: [1, 1, 1, 1]}}\ndata: {name: digits}\n")
    left = begin(str(own), ["model.name=timm:test_resnet.r160_in1k"]).left
    assert left is not None
    refuse_left_options(left, "timm:test_resnet.r160_in1k")
    with pytest.raises(ConfigError, match=r"recipe own sets model\.options \(layers\) for its own model, timm:test"):
        refuse_left_options(left, "timm:test_vit")


def test_options_that_any_model_has_go_with_another_model(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("model: {name: tnt_s_patch16_224, options: {gelu: tanh}}\ndata: {name: digits}\n")
    sizes = [f"model.options.{key}=2" for key in read_yaml(find_recipe("digits")[1]).values["model"]["options"]]
    for recipe, tokens in [
        (str(own), ["model.name=twins_svt_small"]),
        ("digits", ["model.name=tnt_ti"]),  # another project's name of the same model
        ("digits", ["model.name=tnt_s_patch16_224", *sizes]),
        ("digits", ["model.name=unknown"]),  # which has an error of its own
        ("digits", []),
    ]:
        start = begin(recipe, tokens)
        refuse_left_options(start.left, start.config.model.name)


def test_parts_that_stay_frozen_to_the_end_of_a_short_run_are_told_whoever_wrote_it() -> None:
    said = (
        "freeze.epochs={}: the run ends after {}, so what comes before freeze.until=head is never trained; "
        "freeze.epochs=null says so, a longer train.epochs trains it"
    )
    frozen = ["freeze.until=head", "freeze.epochs=4"]
    assert begin(str(TINY), frozen).remarks == (("warning", said.format(4, 4)),)
    assert begin(str(TINY), [*frozen, "schedule.cooldown_epochs=1"]).remarks == ()
    assert begin(str(TINY), ["freeze.until=head", "freeze.epochs=null"]).remarks == ()
    assert begin("twins_svt_small_oxford_pets", ["train.epochs=2"]).remarks == (("warning", said.format(2, 2)),)
    assert begin("twins_svt_small_oxford_pets", []).remarks == ()
