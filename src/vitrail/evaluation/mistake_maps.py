"""Maps of what wrong answers rest on, for the page of a report: few, since each takes passes of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrail.choices import ExplanationMethod
from vitrail.evaluation.report import MISTAKES
from vitrail.explanation.explainer import Explainer, explainer_of
from vitrail.explanation.methods import METHODS, choose_method
from vitrail.explanation.perturbation import require_captum
from vitrail.explanation.sheet import draw_over
from vitrail.images.pixels import Pixels
from vitrail.images.preprocess import Preprocess
from vitrail.inference.decision import TopClasses
from vitrail.inference.network import Network
from vitrail.inference.predictor import Predictor
from vitrail.pages.render import LARGEST, to_data_uri

FEW = 6
"""Mistakes that are explained where each map takes some hundred answers of the model."""


class MistakeMaps:
    """Maps of mistakes by the usual method of a model, as pictures for a page.

    Args:
        network: The model, or exported file, that answered.
        preprocess: How it reads images.
        classes: Names of its classes.

    Raises:
        MissingExtra: The method needs captum, which is not installed.
    """

    def __init__(self, network: Network, preprocess: Preprocess, classes: Sequence[str]) -> None:
        self.method: ExplanationMethod = choose_method(
            network.path, network.record.family.name, None, is_exported=network.model is None
        )
        is_costly = METHODS[self.method].count_answers is not None
        if is_costly:
            require_captum()
        self.most = FEW if is_costly else MISTAKES
        """Mistakes that are explained at most."""
        predictor = Predictor(network, preprocess, tuple(classes), TopClasses(1))
        self._explainer: Explainer = explainer_of(predictor, self.method)

    def draw(self, view: Pixels, label: int) -> str | None:
        """Return the finest map of a class over an image, as a `data:` URI; None where there is nothing to explain.

        Args:
            view: The image (c, h, w) as the model saw it.
            label: Index of the class.
        """
        explained = replace(self._explainer, wanted=(label,)).explain_view(view)
        if explained.maps is None:
            return None
        *_, finest = explained.maps.values()
        is_signed = METHODS[self.method].is_signed
        return to_data_uri(draw_over(view, finest[0], LARGEST, is_signed=is_signed))
