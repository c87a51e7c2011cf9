"""Settings: read from YAML and the command line, merged in layers, and written back."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from support.settings import problem, settings
from vitrail.config.commands import EvaluateConfig, PredictConfig, TrainConfig
from vitrail.config.recipes import find_recipe, list_recipes
from vitrail.config.resolve import Layer, flatten, parse_command_line, read_yaml, resolve, to_dict, to_yaml
from vitrail.config.sections import DataSection, ModelSection, PreprocessSection
from vitrail.config.training_sections import (
    OptimSection,
    OutputSection,
    TrainSection,
)
from vitrail.errors import ConfigError, VitrailError

# Layers


def test_command_line_wins_over_recipe_and_recipe_over_default() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "optim": {"lr": 0.5, "weight_decay": 0.1}})
    resolved = resolve(TrainConfig, [recipe, parse_command_line(["optim.lr=0.25"])])
    assert resolved.config.optim.lr == 0.25
    assert resolved.config.optim.weight_decay == 0.1
    assert resolved.config.optim.eps == 1e-8


def test_origins_name_the_last_layer_that_wrote_each_key_and_leave_defaults_out() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "optim": {"lr": 0.5, "weight_decay": 0.1}})
    resolved = resolve(TrainConfig, [recipe, parse_command_line(["optim.lr=0.25", "ema.decay=0.9"])])
    assert resolved.origins == {
        "data.name": "recipe",
        "optim.lr": "command line",
        "optim.weight_decay": "recipe",
        "ema.decay": "command line",
    }


def test_no_layer_at_all_gives_the_defaults() -> None:
    resolved = resolve(PredictConfig, [])
    assert resolved.config == PredictConfig()
    assert resolved.origins == {}


def test_a_command_may_null_what_a_recipe_set() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "ema": {"decay": 0.9}})
    assert resolve(TrainConfig, [recipe, parse_command_line(["ema.decay=null"])]).config.ema.decay is None


def test_options_of_two_layers_are_merged() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "model": {"options": {"depth": 2, "gelu": "tanh"}}})
    resolved = resolve(
        TrainConfig, [recipe, parse_command_line(["model.options.depth=3", "model.options.embed_dim=64"])]
    )
    assert resolved.config.model.options == {"depth": 3, "gelu": "tanh", "embed_dim": 64}


def test_merging_options_changes_neither_layer_nor_default() -> None:
    recipe = Layer("recipe", {"data": {"name": "digits"}, "model": {"options": {"depth": 2}}})
    resolve(TrainConfig, [recipe, parse_command_line(["model.options.depth=3"])])
    assert recipe.values["model"]["options"] == {"depth": 2}
    assert ModelSection().options == {}


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    config = settings()
    with pytest.raises(FrozenInstanceError):
        config.optim.lr = 1.0  # type: ignore[misc]


# Command line


@pytest.mark.parametrize(
    ("token", "key", "value"),
    [
        ("optim.lr=0.01", "optim.lr", 0.01),
        ("optim.lr=5e-4", "optim.lr", 5e-4),
        ("optim.eps=1e-8", "optim.eps", 1e-8),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.clip_norm=null", "optim.clip_norm", None),
        ("optim.clip_norm=~", "optim.clip_norm", None),
        ("optim.betas=[0.8, 0.95]", "optim.betas", (0.8, 0.95)),
        ("optim.betas=[8e-1,9.5e-1]", "optim.betas", (0.8, 0.95)),
        ("augment.scale=[0.5, 1]", "augment.scale", (0.5, 1.0)),
        ("optim.nesterov=false", "optim.nesterov", False),
        ("train.compile=true", "train.compile", True),
        ("train.epochs=12", "train.epochs", 12),
        ("model.image_size=384", "model.image_size", 384),
        ("model.image_size=[224, 192]", "model.image_size", (224, 192)),
        ("model.image_size=null", "model.image_size", None),
        ("output.name=3", "output.name", "3"),
        ("output.name=1.5", "output.name", "1.5"),
        ("output.name=", "output.name", ""),
        ("data.root=/data/a=b/images", "data.root", "/data/a=b/images"),
        ("data.root=C:\\images", "data.root", "C:\\images"),
        ("data.root=[broken", "data.root", "[broken"),
        ("data.root=~/images", "data.root", "~/images"),
        ("preprocess.mean=[-0.5, 0, 5e-1]", "preprocess.mean", (-0.5, 0.0, 0.5)),
        ("schedule.name=step", "schedule.name", "step"),
    ],
)
def test_command_line_value_is_read_as_its_field_wants_it(token: str, key: str, value: Any) -> None:
    section, name = key.split(".")
    read = getattr(getattr(settings(token), section), name)
    assert read == value
    assert type(read) is type(value)


def test_a_negative_number_is_a_number() -> None:
    assert "optim.lr is -0.5; it must be above 0" in problem("optim.lr=-0.5")
    assert "optim.lr is -0.0005; it must be above 0" in problem("optim.lr=-5e-4")


def test_lists_become_tuples_inside_options() -> None:
    options = settings("model.options.depths=[1, 2]", "model.options.gelu=tanh").model.options
    assert options == {"depths": (1, 2), "gelu": "tanh"}


def test_the_last_of_two_equal_keys_wins() -> None:
    assert settings("optim.lr=0.1", "optim.lr=0.2").optim.lr == 0.2


@pytest.mark.parametrize(
    "token",
    ["lr=1", "optim.lr", "optim", "", "=", ".lr=1", "optim.=1", "optim..lr=1", "--optim.lr=1", "optim.weight-decay=1"],
)
def test_a_token_that_is_no_setting_is_shown_with_an_example(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_command_line([token])
    expected = f"{token!r} is not a setting; write section.key=value, such as optim.lr=1e-3"
    assert str(caught.value) == f"command line: {expected}"


# Unknown names


def test_unknown_key_names_its_origin_the_closest_key_and_all_keys() -> None:
    message = problem("optim.lrr=1")
    assert message.startswith("command line: optim.lrr: unknown key; did you mean 'lr'? Known keys: name, lr, lr_base")


def test_unknown_section_names_the_closest_section_and_all_sections() -> None:
    message = problem("optimizer.lr=1")
    assert message.startswith("command line: optimizer: unknown section; did you mean 'optim'? Sections: model,")


def test_the_origin_of_a_problem_is_the_layer_that_has_it() -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml: optim\.lrr: unknown key"):
        resolve(TrainConfig, [Layer("my.yaml", {"optim": {"lrr": 1}}), parse_command_line(["data.name=digits"])])


@pytest.mark.parametrize("kind", [EvaluateConfig, PredictConfig])
def test_a_command_knows_only_its_own_sections(kind: type) -> None:
    assert "optim: unknown section" in problem("optim.lr=1", kind=kind)


def test_evaluate_and_predict_take_their_sections() -> None:
    tokens = ["data.root=x", "evaluate.batch_size=8", "preprocess.crop=0.875"]
    evaluated = resolve(EvaluateConfig, [parse_command_line(tokens)]).config
    assert (evaluated.data.root, evaluated.evaluate.batch_size, evaluated.preprocess.crop) == ("x", 8, 0.875)
    assert resolve(PredictConfig, [parse_command_line(["preprocess.exif=apply"])]).config.preprocess.exif == "apply"


def test_a_section_that_is_not_a_mapping_is_told_what_to_write() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, [Layer("my.yaml", {"ema": None, "optim": [1]})])
    expected = "my.yaml: {0} is a section; write {0}.<key>=<value>, or a mapping in YAML"
    assert str(caught.value) == "; ".join(expected.format(name) for name in ("ema", "optim"))


# All at once


def test_unknown_names_and_wrong_types_of_all_layers_come_in_one_line() -> None:
    recipe = Layer("my.yaml", {"optim": {"lrr": 1}, "dota": {}})
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, [recipe, parse_command_line(["train.epochs=many", "ema.decai=1"])])
    message = str(caught.value)
    parts = (
        "my.yaml: optim.lrr: ",
        "my.yaml: dota: ",
        "command line: train.epochs is 'many'",
        "command line: ema.decai: ",
    )
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_values_out_of_range_of_all_sections_come_in_one_line() -> None:
    message = problem(
        "optim.lr=0", "optim.eps=0", "ema.decay=2", "train.epochs=2", "data.name=null", "augment.mixup=-1"
    )
    for part in (
        "optim.lr ",
        "optim.eps ",
        "ema.decay ",
        "data.root ",
        "augment.mixup ",
        "schedule.warmup_epochs 5 is",
    ):
        assert part in message
    assert "\n" not in message


def test_a_configuration_built_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set.*; optim\.lr is -1"):
        TrainConfig(optim=OptimSection(lr=-1))


def test_a_refusal_is_a_value_error_of_ours() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, VitrailError)


# Files


def test_yaml_file_is_a_layer_named_by_its_path_or_as_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  lr: 5e-4\n")
    assert read_yaml(path) == Layer(str(path), {"optim": {"lr": "5e-4"}})
    assert read_yaml(path, "recipe mine").origin == "recipe mine"
    assert resolve(TrainConfig, [Layer("test", {"data": {"root": "x"}}), read_yaml(path)]).config.optim.lr == 5e-4


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}\n", "---\n"])
def test_empty_yaml_file_sets_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.yaml").write_text(text)
    assert read_yaml(tmp_path / "empty.yaml").values == {}


def test_missing_yaml_file_and_folder_say_why_and_where_recipes_are(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert str(caught.value) == f"{path}: cannot be read ({why}); `vitrail config` lists the recipes"


@pytest.mark.parametrize(
    "content",
    [
        b"optim: {lr: 1",
        b"a: b: c\n",
        b"\x89PNG\r\n\x1a\n\x00",
        b"\x00\x01\x02",
        b"\xff\xfe\xfa",
        b"x: !!python/object:os.system {}",
    ],
)
def test_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: is not YAML (")
    assert "\n" not in str(caught.value)


def test_a_key_written_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("optim.lr: [1.0e-3]\noptim.lr: {low: 1e-4, high: 1e-2}\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: is not YAML (the key 'optim.lr' is written twice, line 2, column 1)"


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "list"), ("just text\n", "single value"), ("42\n", "single value")]
)
def test_yaml_that_holds_no_sections_says_what_it_holds(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: holds a {kind}, not sections such as model, data and train"


# Writing


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_survives_being_written_and_read(tmp_path: Path, name: str) -> None:
    config = resolve(TrainConfig, [read_yaml(find_recipe(name)[1])]).config
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    again = resolve(TrainConfig, [read_yaml(path)]).config
    assert again == config
    assert to_yaml(again) == to_yaml(config)


def test_written_yaml_has_the_header_as_comment_and_a_paragraph_for_each_section() -> None:
    text = to_yaml(settings(), header="vitrail 1.0\n\n  indented")
    assert text.startswith("# vitrail 1.0\n#\n#   indented\nmodel:\n  name: ")
    assert [part.split(":")[0] for part in text.split("\n\n")][1:] == [f.name for f in fields(TrainConfig)][1:]
    assert not to_yaml(settings()).startswith("#")


def test_dict_holds_plain_values_only() -> None:
    plain = to_dict(settings("model.image_size=[32, 48]", "model.options.depths=[1, 2]", "model.options.stem={a: [1]}"))
    assert plain["model"]["image_size"] == [32, 48]
    assert plain["model"]["options"] == {"depths": [1, 2], "stem": {"a": [1]}}
    assert plain["optim"]["betas"] == [0.9, 0.999]
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_flat_names_every_field_by_its_dotted_key() -> None:
    config = settings("optim.lr=0.5")
    values = flatten(config)
    assert values["optim.lr"] == 0.5
    assert list(values) == [f"{s.name}.{f.name}" for s in fields(config) for f in fields(getattr(config, s.name))]


finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-12, 1e12)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)  # which no path has
option = st.booleans() | st.integers() | finite | text | st.lists(st.integers(), max_size=3).map(tuple)


@hypothesis.settings(max_examples=50, deadline=None)
@given(
    lr=st.floats(1e-5, 1e12),  # from the default of schedule.min_lr
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    clip=st.none() | positive,
    mean=st.none() | st.tuples(*(st.floats(-1e12, 1),) * 3),
    size=st.none() | st.integers(1, 4096) | st.tuples(st.integers(1, 512), st.integers(1, 512)),
    epochs=st.integers(5, 10**6),
    seed=st.integers(0, 2**63 - 1),
    root=text,
    name=st.none() | text,
    options=st.dictionaries(text, option, max_size=3),
)
def test_any_configuration_survives_dict_and_yaml(
    lr: float, betas: Any, clip: Any, mean: Any, size: Any, epochs: int, seed: int, root: str, name: Any, options: Any
) -> None:
    config = TrainConfig(
        model=ModelSection(image_size=size, options=options),
        data=DataSection(root=root),
        preprocess=PreprocessSection(mean=mean),
        optim=OptimSection(lr=lr, betas=betas, clip_norm=clip),
        train=TrainSection(epochs=epochs, seed=seed),
        output=OutputSection(name=name),
    )
    assert resolve(TrainConfig, [Layer("dict", to_dict(config))]).config == config
    assert resolve(TrainConfig, [Layer("yaml", yaml.safe_load(to_yaml(config, header="run")))]).config == config


def test_unknown_key_and_value_out_of_range_come_in_one_message() -> None:
    message = problem("optim.lrr=1", "optim.eps=0")
    assert "optim.lrr" in message
    assert "optim.eps" in message


@pytest.mark.parametrize("tokens", [("optim.lr=1", "optim.lr.peak=2"), ("model.options=null", "model.options.depth=2")])
def test_key_below_a_plain_value_is_refused(tokens: tuple[str, str]) -> None:
    problem(*tokens)


@pytest.mark.parametrize("section", [1, True, None])
def test_section_that_is_not_text_is_unknown(section: Any) -> None:
    with pytest.raises(ConfigError, match="unknown section"):
        resolve(TrainConfig, [Layer("my.yaml", {section: {}})])


def test_list_of_known_keys_is_set_off_even_without_a_suggestion() -> None:
    assert "unknown key Known keys" not in problem("optim.zzzzzz=1")


def test_key_that_a_file_has_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("optim: {lr: 1}\noptim: {eps: 1}\n")
    with pytest.raises(ConfigError):
        read_yaml(tmp_path / "twice.yaml")


LAUGHS = "a: &a [1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{name}'] * 10)}]\n" for name, after in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A file whose values are named by others ten times each, nine times over."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"train:\n  batch_size: {'9' * 5000}", "is not YAML (Exceeds the limit (4300 digits)"),
        (f"train:\n  batch_size: -0x{'f' * 5000}", "has a whole number of more than 64 bits, which no setting is"),
        ("model:\n  options: &x {a: *x}", "nests values more than 16 deep, which no setting is"),
        ("a: &a [1, *a]", "nests values more than 16 deep, which no setting is"),
        ("[" * 5000, "is not YAML (lists within lists without end)"),
        ("? [a, b]\n: 1", "is not YAML (a key is a list or a mapping, not a word"),
        ("{{ place }}: 1", "is not YAML (a key is a list or a mapping, not a word"),
        (LAUGHS, "holds more than 20,000 values, which no setting is"),
        ("#" * 2_000_000, "cannot be read (has 2,000,000 bytes, and 1,048,576 are the most)"),
    ],
)
def test_a_file_of_settings_without_measure_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
