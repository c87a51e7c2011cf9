"""timm's augmentation policies on arrays instead of Pillow images: the same draws, faster operations.

Shapes
    h rows, w columns
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitrail.images import fast_colour
from vitrail.images.fast_shear import Picture, Shear, Translate, choose_filter
from vitrail.kernels.pictures import find_compiled


def _rotate(
    picture: Picture, degrees: float, *, fillcolor: tuple[int, int, int], resample: Any
) -> Picture:
    """Rotate a picture as timm's function of a Pillow image does, which is called where nothing was compiled."""
    resample, compiled = choose_filter(resample), find_compiled()
    # right angles move pixels to pixels
    if compiled is None or degrees % 90 == 0:
        image = Image.fromarray(picture).rotate(degrees, resample=resample, fillcolor=fillcolor)
        return np.array(image)
    is_cubic = resample == Image.Resampling.BICUBIC
    return compiled.rotate(picture, degrees, fillcolor, is_cubic=is_cubic)


QUICK: dict[str, Callable[..., Picture]] = {
    "auto_contrast": fast_colour.auto_contrast,
    "brightness": fast_colour.brightness,
    "color": fast_colour.color,
    "contrast": fast_colour.contrast,
    "desaturate": fast_colour.desaturate,
    "equalize": fast_colour.equalize,
    "invert": fast_colour.invert,
    "posterize": fast_colour.posterize,
    "rotate": _rotate,
    "sharpness": fast_colour.sharpness,
    "shear_x": Shear(columns=False),
    "shear_y": Shear(columns=True),
    "solarize": fast_colour.solarize,
    "solarize_add": fast_colour.solarize_add,
    "translate_x_abs": Translate(axis=1, is_share=False),
    "translate_x_rel": Translate(axis=1, is_share=True),
    "translate_y_abs": Translate(axis=0, is_share=False),
    "translate_y_rel": Translate(axis=0, is_share=True),
}
"""Operations on arrays (h, w, 3) in place of timm's functions of Pillow images, by their names."""


MOVES = (
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x_abs",
    "translate_x_rel",
    "translate_y_abs",
    "translate_y_rel",
)
"""Names of timm's functions that move pixels, and with them fill what comes from outside."""


class Drawn(NamedTuple):
    """An operation of a policy as it was drawn for an image."""

    name: str
    """Name of timm's function."""
    value: float = 0.0
    """Its strength, in the unit of that function; 0 for one that has none."""
    resample: int = 0
    """Pillow's filter of an operation that moves pixels; 0 for others."""


@dataclass(frozen=True)
class _Recorder:
    """Notes an operation that was drawn, instead of computing it."""

    name: str

    def __call__(
        self, drawn: tuple[Drawn, ...], *values: float, resample: Any, **_: Any
    ) -> tuple[Drawn, ...]:
        chosen = int(choose_filter(resample)) if self.name in MOVES else 0
        return (*drawn, Drawn(self.name, *map(float, values[:1]), resample=chosen))


@dataclass(frozen=True)
class _ByPillow:
    """A function of a Pillow image, such as timm's blur, as an operation on arrays."""

    function: Callable[..., Image.Image]

    def __call__(self, picture: Picture, *values: Any, **options: Any) -> Picture:
        # a copy, which unlike Pillow's own memory may be written to
        return np.array(self.function(Image.fromarray(picture), *values, **options))


@dataclass(frozen=True)
class _OnImage:
    """An operation on arrays as a function of a Pillow image."""

    operation: Callable[..., Picture]

    def __call__(self, image: Image.Image, *values: Any, **options: Any) -> Image.Image:
        return Image.fromarray(self.operation(np.array(image), *values, **options))


@dataclass(frozen=True)
class _RandAugment:
    """timm's RandAugment with a random state of its own: keeping NumPy's global one takes longer than the draws."""

    operations: Sequence[Callable[[Any], Any]]
    layers: int
    """Number of operations that are drawn for a picture."""
    weights: NDArray[np.float64] | None
    """Probability of each operation; None draws all alike, and one may come twice."""
    choices: np.random.RandomState = field(default_factory=np.random.RandomState)

    def __call__(self, picture: Any) -> Any:
        drawn = self.choices.choice(
            len(self.operations), self.layers, replace=self.weights is None, p=self.weights
        )
        for number in drawn:
            picture = self.operations[number](picture)
        return picture


@dataclass(frozen=True)
class ArrayPolicy:
    """One of timm's policies, as an operation on arrays."""

    transform: Callable[[Picture], Picture]

    @property
    def draws_from_numpy(self) -> bool:
        """Whether the draws come from NumPy's global state too, beside that of `random`."""
        return not isinstance(self.transform, _RandAugment)

    def __call__(self, picture: Picture, key: int) -> Picture:
        """Augment a picture by timm's draws, from global states that were seeded with `key` too."""
        if isinstance(self.transform, _RandAugment):
            self.transform.choices.seed(split_key(key))
        return self.transform(picture)


def split_key(key: int) -> tuple[int, int]:
    """Return the seed of NumPy's random states for a sample's key of 63 bits."""
    return key & 0xFFFFFFFF, key >> 32


def speed_up_policy(policy: Any) -> ArrayPolicy:
    """Take over one of timm's policies, as its `create_transform` gives it, with the operations of QUICK."""
    (transform,) = policy.transforms
    # AutoAugment has a list of sequences of operations; RandAugment and AugMix have a list of them,
    # and AugMix blends Pillow images itself
    is_auto_augment, is_aug_mix = hasattr(transform, "policy"), hasattr(transform, "blended")
    lists = transform.policy if is_auto_augment else [transform.ops]
    for operation in (operation for operations in lists for operation in operations):
        quick = QUICK.get(operation.aug_fn.__name__)
        if not is_aug_mix:
            operation.aug_fn = quick or _ByPillow(operation.aug_fn)
        elif quick is not None:
            operation.aug_fn = _OnImage(quick)
    if is_aug_mix:
        return ArrayPolicy(_ByPillow(transform))
    if is_auto_augment:
        return ArrayPolicy(transform)
    return ArrayPolicy(_take_over(transform))


@dataclass(frozen=True)
class RecordedPolicy:
    """One of timm's RandAugment policies, as what it draws for an image."""

    policy: _RandAugment

    def draw(self, key: int) -> tuple[Drawn, ...]:
        """Draw the operations for a sample's key; the global state of `random` is left seeded."""
        # the view was drawn from random.seed(key): the same draws again would tie the two
        random.seed(f"augment {key}")
        self.policy.choices.seed(split_key(key))
        return self.policy(())


def record_policy(policy: Any) -> RecordedPolicy:
    """Take over one of timm's RandAugment policies, and let its operations be drawn only."""
    (transform,) = policy.transforms
    for operation in transform.ops:
        operation.aug_fn = _Recorder(operation.aug_fn.__name__)
    return RecordedPolicy(_take_over(transform))


def _take_over(transform: Any) -> _RandAugment:
    """Return timm's RandAugment with its operations, number of layers and weights."""
    return _RandAugment(transform.ops, transform.num_layers, transform.choice_weights)
