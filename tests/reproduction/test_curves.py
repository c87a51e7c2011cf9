"""Bands: what follows from curves, and files that hold none."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vitrail.errors import ConfigError
from vitrail.reproduction.curves import Curves, compute_band, read_curves
from vitrail.reproduction.proxies import OF_FAMILIES, SHIPPED, family_of

T_995_OF_4 = 4.604095
"""As tables of Student's t have it."""


def curves_of(by_recipe: Mapping[str, tuple[tuple[float, ...], ...]]) -> Curves:
    return Curves({"train.epochs": 2}, {"train": 1, "val": 1}, {}, by_recipe)


def test_a_band_takes_the_largest_of_three_pooled_deviations() -> None:
    calm = ((29.0, 50.0), (30.0, 50.0), (31.0, 50.0))  # deviations 1 and 0
    wild = ((27.0, 60.0), (30.0, 60.0), (33.0, 60.0))  # 3 and 0
    curves = curves_of({"calm": calm, "wild": wild})
    of_epochs = [math.sqrt((1 + 9) / 2), 0.0]
    over_epochs = {"calm": math.sqrt((1 + 0) / 2), "wild": math.sqrt((9 + 0) / 2)}
    together = math.sqrt((1 + 9 + 0 + 0) / 4)
    for recipe, mean in (("calm", (30.0, 50.0)), ("wild", (30.0, 60.0))):
        band = compute_band(curves, recipe)
        assert band.seeds == 3
        assert band.mean == mean
        for epoch in range(2):
            deviation = max(of_epochs[epoch], over_epochs[recipe], together)
            expected = T_995_OF_4 * deviation * math.sqrt(4 / 3)
            assert band.margin[epoch] == pytest.approx(expected, rel=1e-6)
    # where the seeds agree by chance, the band is as wide as elsewhere
    assert compute_band(curves, "calm").margin[1] > 0


def test_a_run_lies_below_inside_or_above() -> None:
    band = compute_band(curves_of({"one": ((1.0, 98.0), (2.0, 99.0), (3.0, 100.0))}), "one")
    low, high = band.ends(1)
    assert (low, high) == (0.0, band.mean[0] + band.margin[0]), "an accuracy is not below zero"
    assert band.ends(2)[1] == 100.0
    low = band.ends(2)[0]
    places = [band.place(2, value) for value in (low - 0.01, low, 100.0)]
    assert places == ["below", "inside", "inside"]
    assert band.place(1, high + 0.01) == "above"


def whole() -> dict[str, Any]:
    curves = {"digits": {"1": [50.0, 60.0], "2": [51.0, 61.0]}}
    return {"settings": {"train.epochs": 2}, "images": {"train": 5, "val": 5}, "made": {}, "curves": curves}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": []}, "curves is [], no mapping"),
        ({"made": None}, "made is None, no mapping"),
        ({"images": {"train": 5}}, "images.val is None, no number of images"),
        ({"settings": {}}, "settings has train.epochs None, no number of epochs"),
        ({"settings": {"train.epochs": True}}, "settings has train.epochs True, no number of epochs"),
        ({"curves": {"digits": {"1": [5, 6]}}}, "not those of two seeds or more"),
        ({"curves": {"digits": {"1": [5, 6], "2": [5]}}}, "with seed '2' is [5], not 2 accuracies from 0 to 100"),
        ({"curves": {"digits": {"1": [5, 6], "2": [5, 101]}}}, "is [5, 101], not 2 accuracies"),
        ({"curves": {"digits": {"1": [5, 6], "2": [5, "x"]}}}, "is [5, 'x'], not 2 accuracies"),
        ({"curves": {"digits": {"1": [5, 6], "2": [5, float("nan")]}}}, "is [5, nan], not 2 accuracies"),
    ],
)
def test_a_file_of_something_else_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "curves.json"
    file.write_text(json.dumps({**whole(), **change}))
    with pytest.raises(ConfigError) as caught:
        read_curves(file)
    assert str(caught.value).startswith(f"expected={file}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone: No such file or directory; give a file of curves$"):
        read_curves(tmp_path / "gone")
    (tmp_path / "text").write_text("no json")
    with pytest.raises(ConfigError, match=r"text: no file of curves \(.*\); docs/reproduce\.md shows one$"):
        read_curves(tmp_path / "text")
    (tmp_path / "list").write_text("[]")
    with pytest.raises(ConfigError, match=r"list: it holds no mapping; docs/reproduce\.md"):
        read_curves(tmp_path / "list")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "curves.json").write_text(json.dumps(whole()))
    curves = read_curves(tmp_path / "curves.json")
    assert curves.by_recipe == {"digits": ((50.0, 60.0), (51.0, 61.0))}


def test_the_shipped_curves_are_of_the_recipes_of_the_families() -> None:
    curves = read_curves(SHIPPED)
    assert (curves.settings, curves.images) == ({"train.epochs": 5}, {"train": 50_000, "val": 10_000})
    assert set(curves.by_recipe) <= set(OF_FAMILIES)
    assert [family_of(recipe) for recipe in OF_FAMILIES] == ["tnt", "t2t_vit", "twins", "pyramid_tnt"]
    for recipe, runs in curves.by_recipe.items():
        assert len(runs) == 3, recipe
        band = compute_band(curves, recipe)
        assert max(band.margin) < 10, f"{recipe}: a band so wide tells nothing"
    assert bool(curves.by_recipe) == bool(curves.made), "curves come with what they were measured with"
