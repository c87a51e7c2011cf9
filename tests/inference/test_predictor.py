from pathlib import Path

import pytest
import torch
from PIL import Image

from support.displays import Notebook
from support.tiny_model import save_tiny
from vitrail.config.resolve import parse_command_line
from vitrail.errors import ConfigError
from vitrail.images.decoding import decode
from vitrail.inference.decision import ReachedThresholds, TopClasses
from vitrail.inference.predictor import open_predictor, read_predictor

LOGITS = torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 1.0]])


def test_a_single_label_model_gives_its_most_probable_classes() -> None:
    (first, second) = TopClasses(2).choose(LOGITS)
    assert (first[0], second[0]) == ([1, 0], [0, 2])
    assert first[1] == pytest.approx(LOGITS[0].softmax(0)[[1, 0]].tolist())
    assert len(TopClasses(9).choose(LOGITS)[0][0]) == 3


def test_a_multi_label_model_gives_the_classes_that_reach_their_thresholds() -> None:
    thresholds = (0.5, 0.5, 0.9)
    assert [chosen for chosen, _ in ReachedThresholds(thresholds, 3).choose(LOGITS)] == [[1, 0], [0]]
    assert [chosen for chosen, _ in ReachedThresholds(thresholds, 1).choose(LOGITS)] == [[1], [0]]
    ((chosen, shares), *_) = ReachedThresholds((0.0, 1.0, 0.0), 3).choose(LOGITS)
    assert chosen == [0, 2]
    assert shares == pytest.approx(LOGITS[0].sigmoid()[[0, 2]].tolist())


@pytest.mark.parametrize(
    ("topk", "default", "single", "multi"),
    [(None, 1, 1, 3), (None, 5, 3, 3), (2, 1, 2, 2), (3, 1, 3, 3)],
)
def test_the_number_of_classes_is_asked_for_or_the_default(
    tmp_path: Path, topk: int | None, default: int, single: int, multi: int
) -> None:
    told = Notebook()
    options = {"topk": topk, "default_topk": default, "display": told}
    assert read_predictor(save_tiny(tmp_path), **options).rule == TopClasses(single)
    thresholds = (0.5, 0.4, 0.3)
    path = save_tiny(tmp_path, thresholds=thresholds)
    assert read_predictor(path, **options).rule == ReachedThresholds(thresholds, multi)
    assert told.warnings == []


def test_more_classes_than_there_are_is_warned_of_where_it_is_no_limit(tmp_path: Path) -> None:
    told = Notebook()
    assert open_predictor(save_tiny(tmp_path), topk=9, device="cpu", display=told).topk == 3
    assert told.warnings == ["topk is 9 but the model has 3 classes; all are given"]
    path = save_tiny(tmp_path, thresholds=(0.5, 0.4, 0.3))
    predictor = open_predictor(path, topk=9, device="cpu", display=told)
    assert (predictor.topk, predictor.is_multi_label) == (3, True)
    assert len(told.warnings) == 1
    with pytest.raises(ConfigError, match="topk is 0; it must be at least 1"):
        open_predictor(path, topk=0)


def test_an_image_is_framed_where_the_settings_say_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (400, 40), "red").save(wide)
    for resize in ("crop", "letterbox"):
        settings = [parse_command_line([f"preprocess.resize={resize}"])]
        predictor = open_predictor(tiny_checkpoint, settings, device="cpu", display=Notebook())
        is_red = predictor.preprocess.view(decode(wide.read_bytes()))[0] == 255
        assert is_red.float().mean() == pytest.approx(1 if resize == "crop" else 0.1, abs=0.02)
        with torch.inference_mode():
            expected = predictor.network(predictor.preprocess(wide)[None]).softmax(1)
        (prediction,) = predictor.predict([wide])
        assert prediction.probabilities[0] == pytest.approx(float(expected.max()), abs=1e-5)


def test_settings_change_how_images_are_read_and_are_told(tiny_checkpoint: Path, image_folder: Path) -> None:
    told = Notebook()
    settings = [parse_command_line(["preprocess.crop=0.5"])]
    predictor = open_predictor(tiny_checkpoint, settings, device="cpu", display=told)
    assert predictor.preprocess.crop == 0.5
    assert told.warnings[0].startswith("preprocess.crop is 0.5 instead of")
    (prediction,) = predictor.predict([next(image_folder.rglob("*.jpg"))])
    assert prediction.error is None
    assert predictor.classes == ("blue", "green", "red")
    assert not predictor.is_multi_label
