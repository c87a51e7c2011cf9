"""A family that a user's own program adds: trained, found again in a file, and refused where its names are taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import deit
import pytest

import vitrail
from support.forked import python
from support.runs import TINY
from vitrail.models import registry, twins

SMALL = twins.FAMILY.variants["twins_svt_small"]
PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_family.md").read_text()


@pytest.fixture(autouse=True)
def only_our_own() -> Iterator[None]:
    before = list(registry.FAMILIES)
    yield
    registry.FAMILIES[:] = before


def test_its_models_are_known_by_name() -> None:
    assert not vitrail.list_models("deit*")
    vitrail.register_family(deit.FAMILY)
    vitrail.register_family(deit.FAMILY)  # a notebook's cell that is run again
    assert vitrail.list_models("deit*") == list(deit.FAMILY.variants)
    assert [family.name for family in registry.FAMILIES].count("deit") == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "twins"}, "register_family: twins is a family of vitrail itself; name yours differently"),
        ({"name": "mine"}, "register_family: twins_pcpvt_small is a model of Twins; name yours differently"),
        (
            {"name": "mine", "variants": {"mine_s": SMALL}, "aliases": {"tnt_s_patch16_224": "mine_s"}},
            "register_family: tnt_s_patch16_224 is a model of TNT; name yours differently",
        ),
        (
            {"name": "mine", "variants": {"timm:mine": twins.FAMILY.variants["twins_svt_small"]}, "aliases": {}},
            "register_family: timm:mine begins as models of another library do; name it differently",
        ),
    ],
)
def test_names_that_are_taken_are_refused(changes: dict, problem: str) -> None:
    with pytest.raises(vitrail.VitrailError, match=re.escape(problem)):
        vitrail.register_family(replace(twins.FAMILY, **changes))
    assert len(registry.FAMILIES) == len(registry.OWN)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": ""}, "name is ''; it must be small letters, digits, _ and ."),
        ({"variants": {}}, "variants is {}; it must name at least one model"),
        ({"variants": ["a"]}, "variants is ['a']; it must name at least one model"),
        ({"variants": {"../x": SMALL}}, "variants has a model called '../x'; it must be small letters, digits"),
        ({"variants": {3: SMALL}}, "variants has a model called 3; it must be small letters, digits, _ and ."),
        ({"aliases": {"timm:x": "mine_s"}}, "timm:x begins as models of another library do; name it differently"),
        ({"variants": {"mine_s": 3}}, "variants['mine_s'] is 3; it must be a Variant with a configuration"),
        ({"model": None}, "model is None; it must be what builds a model of a configuration"),
        ({"tiny": {"bogus": 3}}, "tiny has 'bogus', which is no field of mine_s's configuration"),
        ({"aliases": {"theirs": "gone"}}, "aliases leads 'theirs' to 'gone', which is none of its models"),
        ({"variants": {"mine_s": replace(SMALL, mean=(0.5, 0.5))}}, "variants['mine_s']: mean has 2 numbers"),
        ({"variants": {"mine_s": replace(SMALL, std=(0.5, 0.5, 0.0))}}, "variants['mine_s']: std is (0.5, 0.5, "),
        ({"variants": {"mine_s": replace(SMALL, crop=1.5)}}, "variants['mine_s']: crop is 1.5; it must be above"),
        ({"variants": {"mine_s": replace(SMALL, top1=200.0)}}, "variants['mine_s']: top1 is 200.0; it must be"),
    ],
)
def test_what_is_wrong_with_a_family_is_one_line(changes: dict, problem: str) -> None:
    family = replace(twins.FAMILY, name="mine", variants={"mine_s": SMALL}, aliases={})
    for field, value in changes.items():
        object.__setattr__(family, field, value)  # past the types that tests check
    with pytest.raises(vitrail.VitrailError, match=f"^{re.escape(f'register_family: {problem}')}"):
        vitrail.register_family(family)
    assert len(registry.FAMILIES) == len(registry.OWN)


def test_a_family_that_takes_one_size_refuses_any_size() -> None:
    vitrail.register_family(deit.FAMILY)
    name = next(iter(deit.FAMILY.variants))
    with pytest.raises(vitrail.VitrailError, match="takes images of its image_size alone, not dynamic_image_size"):
        vitrail.create_model(name, dynamic_image_size=True)


def test_what_is_no_family_is_refused() -> None:
    problem = r"family is of type type; it must be of type vitrail\.models\.family\.Family"
    with pytest.raises(vitrail.VitrailError, match=problem):
        vitrail.register_family(int)  # pyright: ignore[reportArgumentType]


@pytest.mark.thorough
def test_the_program_of_the_page_trains_the_family_of_the_page(tmp_path: Path, image_folder: Path) -> None:
    family, program = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mixer.py").write_text(family)
    (tmp_path / "my_vitrail.py").write_text(program)
    recipe = TINY.read_text().replace("tnt_ti_patch16_224", "mixer_b16_224")
    options = "options: {embed_dim: 24, token_dim: 8, channel_dim: 24, depth: 1}"
    (tmp_path / "mixer.yaml").write_text(re.sub(r"options: .*", options, recipe))
    place = (f"data.root={image_folder}", f"output.root={tmp_path}", "output.name=run", "train.epochs=2")
    done = python(tmp_path / "my_vitrail.py", "train", "mixer.yaml", *place, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "run" / "best.safetensors"
    done = python(tmp_path / "my_vitrail.py", "evaluate", weights, f"data.root={image_folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
    done = python("-m", "vitrail", "evaluate", weights, f"data.root={image_folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert "mixer_b16_224" in done.stderr
    assert "Traceback" not in done.stderr
