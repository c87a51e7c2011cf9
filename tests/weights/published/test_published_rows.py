"""The catalogue: its rows agree with the models and with what is read from files, and words find the right one."""

import re
from pathlib import Path

import pytest

from vitrail.errors import CheckpointError
from vitrail.models.registry import find_variant, list_models
from vitrail.weights.published.catalogue import ROWS, choose_namesake, find_row, is_published, list_rows


def test_names_and_files_are_each_there_once() -> None:
    for names in ([row.name for row in ROWS], [row.file for row in ROWS]):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_of_a_model_and_a_project_that_are_known(row) -> None:
    assert row.model in list_models()
    family, variant = find_variant(row.model)
    assert any(row.dialect in dialect.projects for dialect in family.dialects)
    assert re.fullmatch(r"[\w.-]+", row.file)
    assert row.is_by_hand or re.fullmatch(r"https://[\w./-]+|hf-hub:timm/\w+\.in1k", row.address)
    assert bool(row.hash_prefix) == (row.origin == "mmpretrain")
    assert row.top1 is not None
    assert 70 < row.top1 < 100
    is_usual = row.num_classes == 1000 and row.base == row.model and row.origin in ("timm", "official", "mmpretrain")
    if is_usual and variant.top1 is not None:
        assert row.top1 == pytest.approx(variant.top1, abs=0.25)


def test_every_row_of_the_sources_is_there() -> None:
    assert len(ROWS) == 46
    best = {row.base: row for row in reversed(ROWS)}
    assert best["tnt_s_patch16_224"].address == "hf-hub:timm/tnt_s_patch16_224.in1k"
    assert best["t2t_vit_14_384"].top1 == 83.3
    assert best["t2t_vit_19_cifar100"].num_classes == 100
    assert best["tnt_s_legacy_patch16_224"].model == "tnt_s_legacy_patch16_224"
    assert best["twins_svt_large"].top1 == 83.60
    by_hand = [row for row in ROWS if row.is_by_hand]
    assert {row.origin for row in by_hand} == {"official"}
    assert len(by_hand) == 6


@pytest.mark.parametrize(
    ("word", "model", "name"),
    [
        ("pretrained", "tnt_s_patch16_224", "tnt_s_patch16_224:timm"),
        ("pretrained", "tnt_small", "tnt_s_patch16_224:timm"),
        ("pretrained:mindcv", "tnt_s", "tnt_s_patch16_224:mindcv"),
        ("pretrained:mindcv", "tnt_b_patch16_224", "tnt_b_patch16_224:mindcv-converted"),
        ("pretrained:t2t_vit_14_384", "t2t_vit_14", "t2t_vit_14_384:official"),
        ("tnt_s:mindcv", None, "tnt_s_patch16_224:mindcv"),
        ("pretrained:tnt_s:official", None, "tnt_s_patch16_224:official"),
        ("twins_svt_small", None, "twins_svt_small:timm"),
        ("alt_gvt_small:mmpretrain", None, "twins_svt_small:mmpretrain"),
        ("t2t_vit_t_14:mmpretrain", "t2t_vit_7", "t2t_vit_t_14:mmpretrain"),
    ],
)
def test_a_word_finds_its_row(word: str, model: str | None, name: str) -> None:
    row = find_row(word, model)
    assert row is not None
    assert row.name == name


@pytest.mark.parametrize("word", ["best.safetensors", "runs/digits", "C:/weights", "a:b", "", "x" * 300])
def test_other_words_are_left_to_be_paths(word: str) -> None:
    assert find_row(word) is None
    assert not is_published(word)


@pytest.mark.parametrize(
    ("word", "model", "message"),
    [
        ("pretrained", None, "pretrained: of which model? Write pretrained:NAME, such as pretrained:tnt_s_patch16_224"),
        (
            "pretrained",
            "tnt_ti",
            "pretrained: no weights of tnt_ti_patch16_224 are published; of TNT there are tnt_s_pat",
        ),
        (
            "t2t_vit_14_wide",
            None,
            "t2t_vit_14_wide: no weights of t2t_vit_14_wide are published; of T2T-ViT there are t2t",
        ),
        (
            "tnt_s:zoo",
            None,
            "tnt_s:zoo: tnt_s_patch16_224 is not published by 'zoo'; it is by timm, official, mindcv, mind",
        ),
        (
            "pretrained:mindcv",
            "twins_svt_small",
            "twins_svt_small is not published by 'mindcv'; it is by timm, mmpretrain",
        ),
        ("pretrained:tnt_x", None, "pretrained:tnt_x: no published weights are called so; did you mean '"),
        ("pretrained:mindcv", None, "no published weights are called so"),
    ],
)
def test_what_is_not_published_is_one_line_with_what_is(word: str, model: str | None, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_row(word, model)
    assert message in str(caught.value)
    assert "`vitrail weights` lists all that there are" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "file", "namesake"),
    [
        ("runs/best.safetensors", "runs/best.safetensors", "runs/best.safetensors"),
        ("timm/tnt", "timm/tnt/model.safetensors", "timm/tnt/model.safetensors"),
        ("t2t_vit_7", "/cache/71.7.pth", "t2t_vit_7"),
        ("tnt_s:mindcv", "/cache/tnt.ckpt", "tnt_s-mindcv"),
        ("pretrained:t2t_vit_14_384", "/cache/83.3.pth", "t2t_vit_14_384"),
        ("hf-hub:timm/tnt_s", "/cache/snapshots/0/model.safetensors", "tnt_s"),
    ],
)
def test_files_made_of_weights_are_named_after_them_and_not_into_the_cache(word: str, file: str, namesake: str) -> None:
    assert choose_namesake(word, file) == Path(namesake)


def test_a_pattern_is_of_names_with_or_without_origin() -> None:
    assert [row.name for row in list_rows("t2t_vit_14_*")] == [
        "t2t_vit_14_384:official",
        "t2t_vit_14_cifar10:official",
        "t2t_vit_14_cifar100:official",
    ]
    assert {row.model for row in list_rows("*:mindcv*")} == {"tnt_s_patch16_224", "tnt_b_patch16_224"}
    assert list_rows("resnet*") == []
