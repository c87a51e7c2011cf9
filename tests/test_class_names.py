"""Class names of a model and of data, in their order or by name."""

import pytest

from vitrail.class_names import check_classes, match_by_name
from vitrail.errors import DataError
from vitrail.imagenet import wnids


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
    assert match_by_name(wnids(), ("goldfish", "Great_White_Shark", "n01440764"), "x") == [1, 2, 0]
    assert match_by_name(("tench", "goldfish"), ("n01443537", "tench"), "x") == [1, 0]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ((), ("a",), "x: names no classes, so none can be matched by name; leave data.match_classes=exact"),
        (("a", "b"), ("a", "d", "c"), "x lacks 2 of the 3 classes of the data: c, d; rename or remove them there"),
        (("tench",), ("tench", "n01440764"), "tench and n01440764 of the data are both tench of x; put their images"),
    ],
)
def test_classes_that_cannot_be_matched_are_named(model: tuple[str, ...], data: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError) as raised:
        match_by_name(model, data, "x")
    assert message in str(raised.value)
