"""Recipes found by name and by path."""

import os
from pathlib import Path

import pytest

from vitrail.config.recipes import find_recipe, list_recipes
from vitrail.errors import ConfigError
from vitrail.migrate.recipes import open_recipe, read_part


def test_recipes_are_listed_sorted_and_found_by_name() -> None:
    names = list_recipes()
    assert names == sorted(names)
    assert "tnt_s_imagenet" in names
    for name in names:
        found, path = find_recipe(name)
        assert (found, path.stem, path.is_file()) == (name, name, True)


def test_recipe_is_found_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("{}")
    assert find_recipe(str(tmp_path / "mine.yml")) == ("mine", tmp_path / "mine.yml")


def test_run_folder_and_its_file_are_recipes_named_after_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "tnt-7"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    assert find_recipe(str(run)) == ("tnt-7", run / "config.yaml")
    assert find_recipe(str(run / "config.yaml")) == ("tnt-7", run / "config.yaml")


def test_unknown_recipe_names_the_closest_one_and_how_many_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        find_recipe("tnt_s_imagnet")
    assert str(caught.value) == (
        "unknown recipe 'tnt_s_imagnet'; did you mean 'tnt_s_imagenet'? "
        f"`vitrail config` lists all {len(list_recipes())}; a path to a YAML file works too"
    )


def test_what_is_no_file_is_no_recipe_and_no_unknown_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop").symlink_to("loop")
    for name, kind in (("pipe.yaml", "a pipe"), ("loop", "a broken link")):
        with pytest.raises(ConfigError, match=rf"{name}: is {kind}, no regular file; give a recipe's name or its YAML"):
            find_recipe(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"^'' names no recipe; `vitrail config` lists the recipes$"):
        open_recipe("", {})


def test_a_file_whose_model_is_no_section_is_refused_as_a_part_of_settings(tmp_path: Path) -> None:
    (path := tmp_path / "numbers.yaml").write_text("model: tnt\ndata: {root: x}\n")
    with pytest.raises(ConfigError, match=r"^numbers: model is a section, and is 'tnt' there; give a file of set"):
        read_part(str(path), {}, ["data"])


def test_folder_without_a_configuration_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, not a recipe; to train on its images, write data\.root="):
        find_recipe(str(tmp_path))


def test_configuration_in_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("config.yaml")[0] == tmp_path.name


def test_path_without_its_suffix_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="unknown recipe"):
        find_recipe(str(tmp_path / "mine"))
