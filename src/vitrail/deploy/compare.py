"""Compare an exported file with its model in PyTorch on the same images: answers and latency."""

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

from vitrail.choices import Precision
from vitrail.errors import DataError, name_option
from vitrail.images.decoding import decode, read_image
from vitrail.images.pixels import Pixels, UnreadableImage, to_pixel_format
from vitrail.images.preprocess import Preprocess
from vitrail.images.synthetic import draw_photo
from vitrail.inference.decision import to_probabilities
from vitrail.inference.find_images import find_images
from vitrail.inference.network import Network
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import Record

TOLERANCES: Mapping[Precision, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far a logit may be off, as a share of the largest one, by the precision of the file."""
PROBABILITY_TOLERANCE = 0.02
"""How far a probability may be off where the file scales the image itself: levels of colour then
differ by 1 or 2."""
COMPARED_BATCH_SIZES = (1, 3, 8)
"""Batch sizes at which logits are compared."""
TIMED_BATCH_SIZES = (1, 8)
"""Batch sizes at which latency is measured."""
ROUNDS = 5
"""Runs of each, of which the median latency is taken."""
MOST_FROM_FOLDER = 64
"""Most images that are compared of a folder."""
DRAWN = 16
"""Number of synthetic images that are compared where there is no folder."""


@dataclass(frozen=True, kw_only=True)
class SampleImages:
    """The images on which an exported file is compared with its model."""

    what: str
    """What they are, as shown to the user."""
    sources: Sequence[Path | int]
    """Image files, or the seeds of synthetic images."""
    preprocess: Preprocess
    is_multi_label: bool
    """Whether probabilities are sigmoids, not a softmax."""

    def picture(self, number: int) -> Pixels:
        """Return the pixels of one image, whole.

        Raises:
            DataError: The image cannot be read.
        """
        source = self.sources[number]
        if isinstance(source, int):
            return to_pixel_format(
                draw_photo(source, self.preprocess.channels), self.preprocess.pixels
            )
        try:
            return decode(read_image(source), self.preprocess.pixels)
        except (UnreadableImage, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            where = name_option("images")
            raise DataError(
                f"{where}: {source} cannot be read ({reason}); repair or remove it"
            ) from error

    @cached_property
    def images(self) -> Float[Tensor, "n c h w"]:
        """Return all images as the model sees them."""
        views = [self.preprocess(self.picture(number)) for number in range(len(self.sources))]
        return torch.stack(views)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a file compares with PyTorch in float32, on the same images and in the same run."""

    about: str
    """Engine that ran the file, its precision and device."""
    images: int
    """Number of images compared."""
    of: Literal["logits", "probabilities"]
    difference: float
    """Largest difference of any logit, at batches of 1, 3 and 8, or of any probability; NaN where
    one is NaN."""
    relative: float
    """Largest difference as a share of the largest logit; of probabilities, the difference
    itself."""
    tolerance: float
    """Largest `relative` that passes."""
    agree: int
    """Number of images whose likeliest class is the same."""
    seconds: Mapping[int, Sequence[float]]
    """Latency of the file and of PyTorch by batch size: medians of alternating rounds."""

    @property
    def is_good(self) -> bool:
        """Whether the difference is a number, and within the tolerance."""
        return self.relative <= self.tolerance


def gather_sample(
    record: Record, folder: Path | None, note: Callable[[str], None] = warnings.warn
) -> SampleImages:
    """Choose images evenly spaced from a folder, or synthetic ones where there is no folder.

    Args:
        record: Record of the model.
        folder: The folder, or whatever else `find_images` finds images in.
        note: Told of what is passed over there.

    Raises:
        ConfigError: Images of such a size have no place in memory.
        DataError: The folder is missing, or holds no image.
    """
    record.preprocess.check_batch(DRAWN)
    sources: list[Path | int]
    if folder is None:
        what = f"{DRAWN} drawn pictures"
        sources = list(range(DRAWN))
    else:
        paths = [Path(path) for path in find_images([str(folder)], note)]
        count = min(MOST_FROM_FOLDER, len(paths))
        what = f"{count} of the {len(paths):,} images of {folder}"
        sources = [paths[number * len(paths) // count] for number in range(count)]
    return SampleImages(
        what=what,
        sources=sources,
        preprocess=record.preprocess,
        is_multi_label=record.is_multi_label,
    )


def compare_logits(network: Network, model: VisionModel, sample: SampleImages) -> Verdict:
    """Compare a file's logits with those of its model in PyTorch, and time both."""

    def run_model(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)

    # all images, in large batches
    images = sample.images
    batches = images.split(max(COMPARED_BATCH_SIZES))
    expected = torch.cat([run_model(batch) for batch in batches])
    answers = torch.cat([network(batch) for batch in batches])
    differences = [(answers - expected).abs().max()]

    # the first images again, in batches of each size; the folder may hold fewer than the largest
    # takes
    repeats = -(-max(COMPARED_BATCH_SIZES) // len(images))
    first_images = images.repeat(repeats, 1, 1, 1)
    first_expected = expected.repeat(repeats, 1)
    for size in COMPARED_BATCH_SIZES:
        logits = network(first_images[:size])
        differences.append((logits - first_expected[:size]).abs().max())

    seconds = {}
    for size in TIMED_BATCH_SIZES:
        batch = first_images[:size]
        seconds[size] = _time_in_turns(partial(network, batch), partial(run_model, batch))

    # not max() of Python, which would lose a NaN
    difference = float(torch.stack(differences).max())
    return Verdict(
        about=network.about,
        images=len(images),
        of="logits",
        difference=difference,
        relative=difference / max(float(expected.abs().max()), 1e-30),
        tolerance=TOLERANCES[network.precision],
        agree=_count_agreeing(answers, expected),
        seconds=seconds,
    )


def compare_probabilities(network: Network, model: VisionModel, sample: SampleImages) -> Verdict:
    """Compare the probabilities of a file that preprocesses images itself with those of our preprocessing and model."""

    def run_file(pixels: Tensor) -> Tensor:
        return network.run(pixels.permute(1, 2, 0)[None].contiguous())

    def run_model(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(sample.preprocess(pixels)[None])
            return to_probabilities(logits, is_multi_label=sample.is_multi_label)

    answers = []
    expected = []
    for number in range(len(sample.sources)):
        pixels = sample.picture(number)
        answers.append(run_file(pixels))
        expected.append(run_model(pixels))
    given = torch.cat(answers)
    wanted = torch.cat(expected)

    difference = float((given - wanted).abs().max())
    first = sample.picture(0)
    return Verdict(
        about=network.about,
        images=len(wanted),
        of="probabilities",
        difference=difference,
        relative=difference,
        tolerance=PROBABILITY_TOLERANCE,
        agree=_count_agreeing(given, wanted),
        seconds={1: _time_in_turns(partial(run_file, first), partial(run_model, first))},
    )


def _count_agreeing(answers: Tensor, expected: Tensor) -> int:
    """Count the images whose likeliest class is the same."""
    return int((answers.argmax(1) == expected.argmax(1)).sum())


def _time_in_turns(*runs: Callable[[], object]) -> tuple[float, ...]:
    """Return the median seconds of each run; they take turns, so that a busy machine slows all alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, its_seconds in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            its_seconds.append(time.perf_counter() - started)
    return tuple(map(statistics.median, seconds))
