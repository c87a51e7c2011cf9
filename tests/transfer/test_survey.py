"""What is counted of a data set before it is trained on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vitrail.config.sections import DataSection
from vitrail.data.audit.scan import check_images
from vitrail.data.opening import open_data
from vitrail.display import Quiet
from vitrail.transfer.survey import Survey, survey_data


def survey(root: Path) -> Survey:
    section = DataSection(root=str(root), workers=0)
    return survey_data(open_data(section, lambda manifest, place: check_images(manifest, place, Quiet(), 0)), section)


def test_images_classes_sizes_and_copies_are_counted(image_folder: Path) -> None:
    plain = survey(image_folder)
    assert plain.classes == 3
    assert sum(plain.counts) == plain.train_images
    assert plain.short_side is not None
    assert plain.imbalance == 1.0

    # a picture of the training images among those to validate with, in another format
    original = next((image_folder / "train" / "red").glob("*"))
    Image.new("RGB", (64, 64)).save(image_folder / "train" / "red" / "new.png")
    gradient = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    gradient.save(image_folder / "train" / "red" / "gradient.png")
    gradient.save(image_folder / "val" / "red" / "gradient.jpg", quality=95)
    (image_folder / "train" / "red" / "broken.jpg").write_bytes(original.read_bytes()[:40])
    found = survey(image_folder)
    assert found.copies_across >= 1
    assert found.unreadable == 1
    text = "\n".join(found.lines())
    assert "images that cannot be read and are left out: 1;" in text
    assert "one on each side of the split: " in text


def test_a_set_in_memory_has_no_sizes() -> None:
    section = DataSection(name="digits")
    facts = survey_data(open_data(section), section)
    assert facts.classes == 10
    assert facts.short_side is None
    assert facts.lines() == [
        f"images to train on: {facts.train_images:,}, to validate with: {facts.val_images:,}; "
        f"10 classes, with {min(facts.counts)} to {max(facts.counts)} images to train on each"
    ]
