"""The model that the server answers with: network, preprocessing, class names, and the thread that runs it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from vitrail.images.transforms import Preprocess
from vitrail.inference.engines import Network
from vitrail.inference.predict import Choices, classify


@dataclass(frozen=True)
class Served:
    """A model that is ready to answer, and the thread in which it does."""

    network: Network
    preprocess: Preprocess
    classes: list[str]
    topk: int
    """Most classes of each answer."""
    thread: ThreadPoolExecutor
    """The one thread in which the network was started; an engine's number of threads is a matter of its thread."""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has the classes that reach their thresholds, not just the most probable one."""
        return self.network.record.thresholds is not None

    def classify(self, views: list[Tensor]) -> list[Choices]:
        """Return the classes and probabilities of each view of a batch; to be called in the thread."""
        return classify(
            self.network,
            self.preprocess,
            views,
            topk=self.topk,
            device=self.network.device,
            thresholds=self.network.record.thresholds,
        )
