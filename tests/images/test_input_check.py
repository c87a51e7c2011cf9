"""Images that were normalised for other pixels are noticed, and those of usual sets are not."""

import tarfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.decoding import decode
from vitrail.images.input_check import InputCheck
from vitrail.images.pixels import RGB
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.images.synthetic import draw_photo

SHARED = Path(__file__).parents[3] / "shared" / "data"
HALF = ((0.5,) * 3, (0.5,) * 3)
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
USUAL = [(IMAGENET_MEAN, IMAGENET_STD), HALF, CIFAR, ((0.0,) * 3, (1.0,) * 3)]
OF_255 = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def doubt(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> str | None:
    inputs = InputCheck()
    for part in images.split(7):
        inputs.add(normalise(part, tuple(mean), tuple(std)))
    inputs.add(torch.zeros(0, *images.shape[1:]))
    return inputs.doubt(mean, std)


def views(files: Sequence[bytes]) -> torch.Tensor:
    preprocess = Preprocess(size=(64, 64))
    return torch.stack([preprocess.view(decode(data, RGB)) for data in files])


def drawn() -> torch.Tensor:
    preprocess = Preprocess(size=(64, 64))
    return torch.stack([preprocess.view(torch.from_numpy(draw_photo(n)).permute(2, 0, 1)) for n in range(8)])


def from_archive(name: str, number: int) -> torch.Tensor:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not at hand")
    with tarfile.open(path, "r|*") as archive:
        found = (archive.extractfile(member) for member in archive if member.isfile())
        return views([file.read() for file in islice(found, number) if file is not None])


@pytest.mark.parametrize(("mean", "std"), USUAL)
@pytest.mark.parametrize("name", ["digits", "imagenet-sample-400.tar", "cifar10.tar.xz", "drawn", "white", "sparse"])
def test_usual_images_are_not_doubted(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    if name == "digits":
        pixels = torch.from_numpy(load_digits().images[:64] / 16 * 255).to(torch.uint8)
        images = pixels[:, None].expand(-1, 3, -1, -1)
    elif name == "drawn":
        images = drawn()
    elif name in ("white", "sparse"):  # pages of text, and strokes on black, of which a hundredth is ink
        ink = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.01
        images = (255 * (ink if name == "sparse" else ~ink)).to(torch.uint8).expand(-1, 3, -1, -1)
    else:
        images = from_archive(name, 64)
    assert doubt(images, mean, std) is None


def test_images_for_other_pixels_are_doubted() -> None:
    images = drawn()
    said = doubt(images, *OF_255)
    assert said is not None
    assert said.startswith("8 images are nearly constant once they are normalised: their mean is (-2.")
    assert said.endswith(
        "preprocess.mean is (124, 116, 104) and preprocess.std (58.4, 57.1, 57.4), for pixels from 0 to 1; `vitrail "
        "check-data` measures those of your images"
    )
    said = doubt(images, (0.0,) * 3, (1 / 255,) * 3)
    assert said is not None
    assert "8 images are far from mean 0 and standard deviation 1 once they are normalised: their mean is (1" in said
    deep = (images.to(torch.int32) * 16).to(torch.uint16)  # 12 bits of 16
    said = doubt(deep, *HALF)
    assert said is not None
    assert "nearly constant" in said


def test_the_numbers_are_those_of_all_pixels() -> None:
    images = torch.randn(20, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 4 + 9
    inputs = InputCheck()
    assert inputs.doubt((0.5,), (0.5,)) is None  # without an image there is nothing to doubt
    for part in images.split([1, 12, 7]):
        inputs.add(part)
    said = inputs.doubt((0.5,) * 5, (0.5,) * 5)
    assert said is not None
    means = ", ".join(f"{value:.3g}" for value in images.mean((0, 2, 3)).tolist()[:4])
    deviations = ", ".join(f"{value:.3g}" for value in images.std((0, 2, 3), correction=0).tolist()[:4])
    assert f"their mean is ({means}, ...), their standard deviation ({deviations}, ...)" in said
