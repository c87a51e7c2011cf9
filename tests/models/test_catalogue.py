"""The table of models shows what the cards say."""

from vitrail.models.catalogue import COLUMNS, catalogue
from vitrail.models.registry import find_variant, list_models


def test_every_model_has_a_whole_row() -> None:
    rows = catalogue()
    assert [row[0] for row in rows] == list_models()
    assert {len(row) for row in rows} == {len(COLUMNS)}


def test_a_row_shows_the_card() -> None:
    (row,) = catalogue("t2t_vit_19")
    _, card = find_variant("t2t_vit_19")
    shown = dict(zip(COLUMNS, row, strict=True))
    assert float(shown["params, M"]) == round(card.params / 1e6, 2)
    assert float(shown["trainable, M"]) == round(card.trainable / 1e6, 2) < float(shown["params, M"])
    assert float(shown["MACs, G"]) == round(card.macs / 1e9, 3)
    assert float(shown["published top-1"]) == card.top1
    assert shown["preprocessing"] == "224 px of 0.9, bicubic, ImageNet mean and std"
    assert catalogue("tnt_s_patch16_224")[0][-1] == "224 px of 0.9, bicubic, mean and std 0.5"


def test_a_pattern_selects() -> None:
    assert [row[0] for row in catalogue("*svt*")] == ["twins_svt_small", "twins_svt_base", "twins_svt_large"]
    assert catalogue("nothing") == []
