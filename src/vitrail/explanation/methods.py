"""Which method explains which family, and the one that is taken where none is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.choices import ExplanationMethod
from vitrail.errors import ConfigError, suggest, write_option
from vitrail.explanation.feature_maps import weigh_channels
from vitrail.explanation.perturbation import STEPS, count_squares, integrate_gradients, occlude
from vitrail.explanation.relevance import Maps, roll_out, weigh_by_gradient
from vitrail.explanation.target import Classes
from vitrail.models.registry import FAMILIES, OWN


@dataclass(frozen=True)
class Method:
    """One way to explain an answer."""

    explain: Callable[..., Maps]
    """Takes a model, normalised images and the class for each; only `occlude` takes an exported
    file in place of a model."""
    is_for_all: bool = False
    """Whether it is for models of every family, and not for those of ours alone."""
    takes_exported: bool = False
    """Whether it needs no more than answers."""
    of_class: bool = True
    """Whether it explains one class, and not the answer as a whole."""
    is_signed: bool = False
    """Whether values below 0 speak against the class."""
    count_answers: Callable[[int, int], int] | None = None
    """How many answers to changed images, of a height and width, it asks for one after the other;
    None is a method of one pass."""


METHODS: Mapping[ExplanationMethod, Method] = {
    "rollout": Method(roll_out, of_class=False),
    "gradient-attention": Method(weigh_by_gradient),
    "grad-cam": Method(weigh_channels, is_signed=True),
    "integrated-gradients": Method(
        integrate_gradients,
        is_for_all=True,
        is_signed=True,
        count_answers=lambda height, width: STEPS,
    ),
    "occlusion": Method(
        occlude, is_for_all=True, takes_exported=True, is_signed=True, count_answers=count_squares
    ),
}


def choose_method(
    path: str, family: str, asked: ExplanationMethod | None, *, is_exported: bool
) -> ExplanationMethod:
    """Return the method that is asked for, or the usual one: gradient-attention where it suits, or else occlusion.

    Args:
        path: Name of the file, for messages.
        family: Name of the model's family.
        asked: The method that is asked for; None is the usual one.
        is_exported: Whether the file is an exported one, which only answers.

    Raises:
        ConfigError: The family, or an exported file, has no such method.
    """
    if asked is None:
        return "occlusion" if is_exported or family not in OWN else "gradient-attention"
    method = METHODS[asked]
    where = write_option("method", asked)
    if is_exported and not method.takes_exported:
        raise ConfigError(
            f"{where}: {path} is an exported file, which has answers and neither gradients nor "
            "attention; take occlusion, or give the weight file"
        )
    if not (method.is_for_all or family in OWN):
        titles = [one.title for one in FAMILIES if one.name in OWN]
        able = list_methods(family, is_exported=is_exported)
        raise ConfigError(
            f"{where}: is for {_in_words(titles)}, and {path} is a {family}, which has "
            f"{_in_words(able)}"
        )
    return asked


def _in_words(names: Sequence[str]) -> str:
    """Return several names as a sentence lists them: a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}"


def list_methods(family: str, *, is_exported: bool) -> list[ExplanationMethod]:
    """Return the methods that suit a family, or an exported file."""
    suitable: list[ExplanationMethod] = []
    for name, method in METHODS.items():
        is_known = method.is_for_all or family in OWN
        if is_known and (method.takes_exported or not is_exported):
            suitable.append(name)
    return suitable


def explain(
    method: ExplanationMethod, model: Callable[[Tensor], Tensor], images: Tensor, classes: Classes
) -> Maps:
    """Return the maps of images in the method's own values, the finest map last.

    Args:
        method: A method that suits the model.
        model: A model; for occlusion anything that answers.
        images: Normalised images (b, c, h, w).
        classes: Index of the class for each image (b), or a function that chooses it from the logits.

    Raises:
        ConfigError: There is no such method or class, the method does not suit the model, or the
            images are no batch that it takes.
        MissingExtra: It needs captum, which is not installed.
    """
    if method not in METHODS:
        near = suggest(method, METHODS) or f"; there are {', '.join(METHODS)}"
        raise ConfigError(f"method={method}: unknown{near}")
    if images.ndim != 4 or not images.is_floating_point():
        raise ConfigError(
            f"images are {images.dtype} of {tuple(images.shape)}; they must be normalised, (b, c, h, w)"
        )
    if isinstance(classes, Tensor):
        if classes.shape != images.shape[:1] or classes.is_floating_point():
            raise ConfigError(
                f"classes are {classes.dtype} of {tuple(classes.shape)}; they must be an index for each "
                f"of {len(images)} images"
            )
    elif not callable(classes):
        raise ConfigError(
            f"classes is {classes!r}; it must be a tensor with an index for each image, or a function "
            "of logits"
        )
    with torch.inference_mode(False):
        # gradients are taken of a copy, as what inference mode made has none
        given = images.clone() if images.is_inference() else images
        return METHODS[method].explain(model, given, classes)
