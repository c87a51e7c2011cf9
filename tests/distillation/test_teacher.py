"""A teacher answers a student's views in its own size and classes, the same among any others, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import layer_norm
from torch.testing import assert_close

from support.commands import run
from support.displays import Notebook
from support.tiny_model import save_tiny
from vitrail.distillation.teacher import PLACES, Teacher, open_teacher
from vitrail.errors import CheckpointError, VitrailError
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.weights.loading import load_model

CPU = torch.device("cpu")
CLASSES = ("blue", "green", "red")
SEEN = Preprocess(size=(32, 32))


def opened(path: Path, display: Notebook | None = None, **options: Any) -> Teacher:
    given: dict[str, Any] = {"multi_label": False, "with_features": False, "classes": CLASSES, "seen_by": SEEN}
    given |= options
    classes, seen_by = given.pop("classes"), given.pop("seen_by")
    return open_teacher(str(path), classes, seen_by, CPU, "float32", display or Notebook(), **given)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(VitrailError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_classes_are_matched_by_name_and_views_brought_to_its_size(tmp_path: Path, pixels: torch.Tensor) -> None:
    own = Preprocess(size=(48, 48), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")
    path = save_tiny(tmp_path, own, classes=("red", "gray", "blue", "green"), image_size=48)
    logits, vectors = opened(path).answer(pixels)
    assert vectors is None
    resized = torch.stack([Preprocess(size=(48, 48), crop=1.0, interpolation="bilinear").view(one) for one in pixels])
    with torch.no_grad():
        expected = load_model(path)(normalise(resized, own.mean, own.std))
    # the filter in floats may round a level otherwise than that in whole numbers
    assert_close(logits, expected[:, [2, 3, 0]], rtol=1e-2, atol=1e-2)


def test_an_answer_is_the_same_among_any_others_to_the_last_bit(tmp_path: Path, pixels: torch.Tensor) -> None:
    teacher = opened(save_tiny(tmp_path))
    together = teacher.answer(pixels)[0]
    assert len(pixels) > PLACES
    alone = torch.cat([teacher.answer(one[None])[0] for one in pixels])
    assert torch.equal(alone, together)
    assert torch.equal(teacher.answer(pixels.flip(0))[0].flip(0), together)


def test_vectors_are_those_that_the_head_reads(tmp_path: Path, pixels: torch.Tensor) -> None:
    path = save_tiny(tmp_path)
    logits, vectors = opened(path, with_features=True).answer(pixels)
    model = load_model(path)
    images = normalise(pixels, SEEN.mean, SEEN.std)
    with torch.no_grad():
        assert_close(vectors, model.forward_vectors(images))
        assert_close(logits, model(images))


def test_mixed_images_are_those_that_the_student_sees(tmp_path: Path, pixels: torch.Tensor) -> None:
    own = Preprocess(size=(32, 32), mean=(0.2,) * 3, std=(0.3,) * 3)
    teacher = opened(save_tiny(tmp_path, own))
    student = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    logits, _ = teacher.answer_normalised(normalise(pixels, student.mean, student.std), student)
    assert_close(logits, teacher.answer(pixels)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_an_exported_file_teaches_what_its_weights_do(
    tmp_path: Path, pixels: torch.Tensor, form: Any, without_shape_checks: None
) -> None:
    path = save_tiny(tmp_path)
    assert run("export", path, "--format", form) == 0
    exported, display = path.with_suffix(f".{form}"), Notebook()
    teacher = opened(exported, display)
    assert_close(teacher.answer(pixels)[0], opened(path).answer(pixels)[0], rtol=1e-4, atol=1e-4)
    assert any("is a program" in note for note in display.notes) is (form == "torchscript")
    assert refusal(exported, with_features=True) == (
        f"distill.teacher {exported}: is an exported file, which gives logits alone; give the weight file that it was "
        "made from, or another distill.loss than feature"
    )
    assert refusal(exported, with_features=True, classes=None) == (
        f"distill.teacher {exported}: is an exported file, which gives logits alone; give the weight file that it was "
        "made from"
    )
    both = refusal(exported, with_features=True, size=(2, 2))
    assert both.endswith("made from, or another distill.loss than feature and tokens")


def test_a_teacher_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    assert refusal(path, classes=("blue", "cyan", "red")) == (
        f"distill.teacher {path} lacks 1 of the 3 classes of the data: cyan; rename or remove them there"
    )
    assert refusal(path, multi_label=True) == (
        f"distill.teacher {path}: gives an image one class, and those of the data have any number of classes; give a "
        "teacher that was trained on such images"
    )
    gray = Preprocess(size=(32, 32), channels=1, mean=(0.5,), std=(0.5,))
    assert refusal(path, seen_by=gray) == (
        f"distill.teacher {path}: reads images of 3 channels and 8 bits, and the student of 1 and 8; give a teacher of "
        "such images"
    )
    assert refusal(save_tiny(tmp_path, classes=())) == (
        f"{path}: has no head, so it gives features and no classes; give a file with its head, or take the features in "
        f"Python with vitrail.load_model('{path}')"
    )
    with pytest.raises(CheckpointError, match="is missing"):
        opened(tmp_path / "absent.safetensors")


def test_a_teacher_of_features_needs_no_classes_and_gives_its_map(tmp_path: Path, pixels: torch.Tensor) -> None:
    path = save_tiny(tmp_path, Preprocess(size=(48, 48)), image_size=48)
    teacher = opened(path, classes=None, with_features=True, size=(2, 2))
    logits, features = teacher.answer(pixels)
    assert features is not None
    assert logits.shape == (40, 0)
    assert features.shape == (40, teacher.num_features) == (40, 48 + 4 * 48)
    assert teacher.description["map"] == [2, 2]
    vectors = opened(path, with_features=True).answer(pixels)[1]
    assert vectors is not None
    assert_close(features[:, :48], layer_norm(vectors, (48,)))
    assert opened(path, with_features=True).description.keys() == teacher.description.keys() - {"map"}
