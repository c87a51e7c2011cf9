"""Explanations over HTTP: one is computed at a time, in the engine's thread, and predictions have their turns between.

A map of attention or gradients is one job of that thread, which takes about as long as four images.
A method that asks for the answers to many changed images is many small jobs.
"""

from __future__ import annotations

import io
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.choices import ExplanationMethod
from vitrail.errors import (
    ConfigError,
    MissingExtra,
    format_choices,
    name_option,
    naming_flags,
    shorten,
)
from vitrail.explanation.explainer import Explained, explainer_of, find_class
from vitrail.explanation.methods import METHODS, choose_method, list_methods
from vitrail.explanation.perturbation import AT_ONCE
from vitrail.explanation.sheet import encode_map, encode_view
from vitrail.inference.predictor import Predictor
from vitrail.server.batching import Batcher
from vitrail.server.metrics import Metrics
from vitrail.server.schema import Choice, Explanation, LevelMap
from vitrail.server.settings import Serving
from vitrail.server.upload import Refused, Room

PARAMETERS = ("class", "method")
"""What a request for an explanation may say beside its image, in its address."""
THIS = "this model"
"""What messages call the file, whose path is nobody's business."""


@dataclass(frozen=True)
class Question:
    """What is to be explained of an image."""

    method: ExplanationMethod
    wanted: tuple[int, ...]
    """Index of the class; nothing is the most probable one."""


@dataclass(frozen=True)
class _Asked:
    """A question about an image, for as long as somebody waits for the answer."""

    question: Question
    view: Tensor
    is_over: threading.Event = field(default_factory=threading.Event)
    """Set as soon as nobody waits any more."""


class Explanations:
    """Explains the answers of a predictor, one after the other, and holds no more questions than it is allowed.

    Args:
        predictor: The model, or exported file, that answers.
        engine: The thread in which it was started, and in which it is to be called.
        serving: Settings of the server.
        metrics: Told how long each explanation took.
    """

    def __init__(
        self, predictor: Predictor, engine: Executor, serving: Serving, metrics: Metrics
    ) -> None:
        network = predictor.network
        self._predictor = predictor
        self._engine = engine
        self._metrics = metrics
        self._timeout_s = serving.limits.timeout_s
        self._family = network.record.family.name
        self._is_exported = network.model is None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explanations")
        self._batcher: Batcher[_Asked, Explanation | Refused] = Batcher(
            self._explain_batch, self._thread, most=1, wait_s=0
        )
        self._seconds = 0.0
        """Time of the last explanation, from which Retry-After is estimated."""
        self.methods = list_methods(self._family, is_exported=self._is_exported)
        self._default: ExplanationMethod = choose_method(
            THIS, self._family, None, is_exported=self._is_exported
        )
        self.room = Room(
            replace(serving.limits, queue=serving.max_explanations),
            held="explanations",
            seconds_each=lambda: self._seconds,
        )

    async def run(self) -> None:
        """Explain until cancelled."""
        try:
            await self._batcher.run()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def read_question(self, parameters: Sequence[tuple[str, str]]) -> Question:
        """Return what the address of a request asks for.

        Raises:
            Refused: There is no such parameter, class or method.
        """
        given = dict(parameters)
        for name in given:
            if name not in PARAMETERS:
                known = format_choices(name, PARAMETERS, "there are")
                raise Refused(400, f"{shorten(name)}: unknown{known}")
        if len(given) < len(parameters):
            raise Refused(400, "class and method are given at most once each")
        try:
            # messages name parameters as an address does: method=rollout
            with naming_flags(False):
                method = self._choose_method(given.get("method"))
                return Question(method, self._find_class(given.get("class")))
        except ConfigError as error:
            raise Refused(400, str(error)) from error

    def _choose_method(self, asked: str | None) -> ExplanationMethod:
        if asked is None:
            return self._default
        for name in METHODS:
            if asked == name:
                return choose_method(THIS, self._family, name, is_exported=self._is_exported)
        known = format_choices(asked, get_args(ExplanationMethod), "there are")
        raise ConfigError(f"method={shorten(asked)}: unknown{known}")

    def _find_class(self, asked: str | None) -> tuple[int, ...]:
        if asked is None:
            return ()
        where = f"class={shorten(asked)}"
        return (find_class(self._predictor.classes, asked, THIS, where),)

    async def explain(
        self, view: Tensor, question: Question, client: tuple[str, str]
    ) -> Explanation:
        """Wait for the explanation of an image, as `Preprocess.view` returns it.

        Args:
            view: The image (c, h, w).
            question: What is to be explained.
            client: Names the asker, as for `Turns`.

        Raises:
            Refused: Too many wait, there is nothing to explain, or it would take too long.
            WorkFailed: It could not be computed; the log has the reason.
        """
        share = self.room.share(client[0])
        asked = _Asked(question, view)
        async with share.held(None):
            share.take(images=1)
            try:
                answer = await self._batcher.ask(asked, client)
            finally:
                asked.is_over.set()
        if isinstance(answer, Refused):
            raise answer
        return answer

    def _explain_batch(self, batch: list[_Asked]) -> list[Explanation | Refused]:
        """Explain a batch, which is a single image, in the thread of explanations."""
        (asked,) = batch
        began = time.perf_counter()
        try:
            explained = self._explain(asked)
        except Refused as refused:
            return [refused]
        except MissingExtra as error:
            return [Refused(501, str(error))]
        self._seconds = time.perf_counter() - began
        self._metrics.explanation_seconds.observe(self._seconds)
        if explained.error is not None:
            return [Refused(422, explained.error)]
        return [self._describe(explained, asked.question.method)]

    def _explain(self, asked: _Asked) -> Explained:
        question = asked.question
        explainer = explainer_of(self._predictor, question.method, question.wanted, topk=1)
        count_answers = METHODS[question.method].count_answers
        if count_answers is None:
            return self._engine.submit(explainer.explain_view, asked.view).result()
        height, width = self._predictor.preprocess.size
        in_turn = _AnswersInTurn(
            explainer.answer, self._engine, asked, count_answers(height, width), self._timeout_s
        )
        return replace(explainer, answer=in_turn).explain_view(asked.view)

    def _describe(self, explained: Explained, method: ExplanationMethod) -> Explanation:
        """Return an explanation as JSON has it, with pictures and values as base64."""
        assert explained.maps is not None
        assert explained.view is not None
        assert explained.logits is not None
        is_signed = METHODS[method].is_signed
        indices, odds = self._predictor.rule.choose(explained.logits)[0]
        choices = self._name_choices(indices, odds)
        maps = []
        for level, (values,) in explained.maps.items():
            maps.append(
                LevelMap(
                    level=level,
                    height=values.shape[0],
                    width=values.shape[1],
                    least=float(values.min()),
                    largest=float(values.max()),
                    image=_to_text(encode_map(values, is_signed=is_signed)),
                    values=_to_text(_to_npy(values)),
                )
            )
        return Explanation(
            model=self._predictor.network.record.model,
            method=method,
            explained=self._name_choices(explained.classes, explained.probabilities)[0],
            topk=None if self._predictor.is_multi_label else choices,
            labels=choices if self._predictor.is_multi_label else None,
            of_class=METHODS[method].of_class,
            is_signed=is_signed,
            view=_to_text(encode_view(explained.view)),
            maps=maps,
            ms=0,
        )

    def _name_choices(self, indices: Sequence[int], odds: Sequence[float]) -> list[Choice]:
        names = self._predictor.classes
        pairs = zip(indices, odds, strict=True)
        return [Choice(index=index, name=names[index], probability=one) for index, one in pairs]


class _AnswersInTurn:
    """Asks the engine's thread for answers, a few images at a time, so that batches of predictions come between.

    Args:
        answer: Turns normalised images into logits.
        engine: The thread in which it is called.
        asked: The question that the answers are for.
        expected: How many answers the method asks for, about.
        most_s: Seconds that they may take in all.
    """

    def __init__(
        self,
        answer: Callable[[Tensor], Tensor],
        engine: Executor,
        asked: _Asked,
        expected: int,
        most_s: float,
    ) -> None:
        self._answer = answer
        self._engine = engine
        self._asked = asked
        self._expected = expected
        self._most_s = most_s
        self._began = time.monotonic()
        self._answered = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images.

        Raises:
            Refused: Nobody waits any more, or the rest would take too long.
        """
        if self._asked.is_over.is_set():
            raise Refused(503, "nobody waits for the explanation any more")
        self._require_time()
        with_gradients = torch.is_grad_enabled()  # which is the calling thread's own

        def answer() -> Tensor:
            with torch.set_grad_enabled(with_gradients):
                return self._answer(images)

        logits = self._engine.submit(answer).result()
        self._answered += len(images)
        return logits

    def _require_time(self) -> None:
        """Refuse to go on where the pace so far says that the client would not wait for the end."""
        if self._answered <= 2 * AT_ONCE:
            return
        seconds = (time.monotonic() - self._began) / self._answered * self._expected
        if seconds > self._most_s:
            raise Refused(
                503,
                f"the explanation asks the model for {self._expected:,} answers, which takes about "
                f"{seconds:.0f} s here, and this server answers within {self._most_s:g} s; "
                "ask for a method of one pass, which a weight file has, or start it with a longer "
                f"{name_option('timeout_s')}",
            )


def _to_npy(values: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _to_text(data: bytes) -> str:
    return b64encode(data).decode()
