"""Whether an exported file answers as its model does in PyTorch, and how fast each is."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.devices import Precision
from vitrail.errors import DataError
from vitrail.images.decoding import decode, read_image
from vitrail.images.pixels import Pixels, UnreadableImage, fit
from vitrail.images.synthetic import draw_photo
from vitrail.images.transforms import Preprocess
from vitrail.inference.engines import Network
from vitrail.inference.find_images import find_images
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import Record

TOLERANCES: Mapping[Precision, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far a logit may be off, as a share of the largest one."""
OF_PROBABILITIES = 0.02
"""How far a probability may be off where the file scales the image itself: levels of colour then differ by 1 or 2."""
BATCHES = (1, 3, 8)
TIMED, ROUNDS = (1, 8), 5
FROM_FOLDER, DRAWN = 64, 16
"""Images that are looked at, of a folder or where there is none."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images to compare answers to."""

    what: str
    sources: Sequence[Path | int]
    """Files, or numbers of pictures to draw."""
    preprocess: Preprocess
    several: bool
    """Whether an image may have several classes."""

    def picture(self, number: int) -> Pixels:
        """Return the pixels of one image, whole.

        Raises:
            DataError: It cannot be read.
        """
        source = self.sources[number]
        if isinstance(source, int):
            return fit(draw_photo(source, self.preprocess.channels), self.preprocess.pixels)
        try:
            return decode(read_image(source), self.preprocess.pixels)
        except (UnreadableImage, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"--images: {source} cannot be read ({reason}); repair or remove it") from error

    @cached_property
    def images(self) -> Float[Tensor, "n c h w"]:
        """Return what the model sees of them all."""
        return torch.stack([self.preprocess(self.picture(number)) for number in range(len(self.sources))])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a file compares with PyTorch in float32, on the same images and in the same run."""

    about: str
    """What ran the file."""
    images: int
    of: Literal["logits", "probabilities"]
    difference: float
    """The largest of any logit, at batches of 1, 3 and 8, or of any probability."""
    relative: float
    """The same, as a share of the largest logit."""
    tolerance: float
    agree: int
    """Images whose likeliest class is the same."""
    seconds: Mapping[int, Sequence[float]]
    """By batch, what the file and PyTorch take; medians of alternating rounds."""

    @property
    def is_good(self) -> bool:
        """Whether the difference is a number, and within the tolerance."""
        return self.relative <= self.tolerance


def gather_sample(record: Record, folder: Path | None, note: Callable[[str], None] = warnings.warn) -> Sample:
    """Choose images evenly spaced from a folder, or draw some.

    Args:
        record: Of the model.
        folder: The folder, or whatever else `find_images` finds images in.
        note: Told of what is passed over there.

    Raises:
        ConfigError: Images of such a size have no place in memory.
        DataError: The folder is missing, or holds no image.
    """
    record.preprocess.check_batch(DRAWN)
    sources: list[Path | int] = list(range(DRAWN))
    what = f"{DRAWN} drawn pictures"
    if folder is not None:
        paths = [Path(path) for path in find_images([str(folder)], note)]
        count = min(FROM_FOLDER, len(paths))
        what = f"{count} of the {len(paths):,} images of {folder}"
        sources = [paths[number * len(paths) // count] for number in range(count)]
    return Sample(what=what, sources=sources, preprocess=record.preprocess, several=record.thresholds is not None)


def compare(network: Network, model: VisionModel, sample: Sample) -> Verdict:
    """Compare a file's logits with those of its model in PyTorch, and time both."""

    def eager(part: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(part)

    images = sample.images
    expected = torch.cat([eager(part) for part in images.split(max(BATCHES))])
    answers = torch.cat([network(part) for part in images.split(max(BATCHES))])
    pairs, repeats = [(answers, expected)], -(-max(BATCHES) // len(images))
    several, known = images.repeat(repeats, 1, 1, 1), expected.repeat(repeats, 1)
    pairs += [(network(several[:size]), known[:size]) for size in BATCHES]
    difference = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())  # NaN where there is one
    return Verdict(
        about=network.about,
        images=len(images),
        of="logits",
        difference=difference,
        relative=difference / max(float(expected.abs().max()), 1e-30),
        tolerance=TOLERANCES[network.precision],
        agree=int((answers.argmax(1) == expected.argmax(1)).sum()),
        seconds={size: _time(*(partial(run, several[:size]) for run in (network, eager))) for size in TIMED},
    )


def compare_whole(network: Network, model: VisionModel, sample: Sample) -> Verdict:
    """Compare the probabilities of a file that preprocesses images itself with those of our preprocessing and model."""

    def theirs(picture: Tensor) -> Tensor:
        return network.run(picture.permute(1, 2, 0)[None].contiguous())

    def ours(picture: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(sample.preprocess(picture)[None])
            return logits.sigmoid() if sample.several else logits.softmax(1)

    pictures = map(sample.picture, range(len(sample.sources)))
    answers, expected = map(torch.cat, zip(*((theirs(picture), ours(picture)) for picture in pictures), strict=True))
    difference = float((answers - expected).abs().max())
    first = sample.picture(0)
    return Verdict(
        about=network.about,
        images=len(expected),
        of="probabilities",
        difference=difference,
        relative=difference,
        tolerance=OF_PROBABILITIES,
        agree=int((answers.argmax(1) == expected.argmax(1)).sum()),
        seconds={1: _time(partial(theirs, first), partial(ours, first))},
    )


def _time(*runs: Callable[[], object]) -> tuple[float, ...]:
    """Return the median seconds of each, taking turns."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, seconds in zip(runs, taken, strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return tuple(map(statistics.median, taken))
