"""The HTTP API: predictions, health, readiness, metrics and a page to try it on, as an ASGI application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from vitrail.explanation.sheet import RISING, SIGNED, to_css
from vitrail.images.pixels import UnreadableImage
from vitrail.inference.decision import Choices
from vitrail.inference.predictor import Predictor
from vitrail.pages.render import render
from vitrail.server.batching import Batcher, WorkFailed
from vitrail.server.decoders import Decoders, NotDecoded
from vitrail.server.explanations import Explanations, Question
from vitrail.server.metrics import CONTENT_TYPE, Metrics
from vitrail.server.middleware import Middleware
from vitrail.server.schema import (
    BODY,
    EXPLAINED_BODY,
    EXPLAINED_FAILURES,
    FAILURES,
    Choice,
    Explanation,
    Result,
    Results,
    State,
)
from vitrail.server.settings import Limits, Serving
from vitrail.server.upload import Refused, Room, read_files

Done = TypeVar("Done")
Client = tuple[str, str]
"""An address, and the connection from there."""

CLIENT_IS_GONE = 499
"""Status in the log and the counts of a request whose client did not wait; nobody receives it."""
INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
PATHS = ("/", "/predict", "/explain", "/health", "/ready", "/metrics", "/openapi.json")
BEARER = HTTPBearer(auto_error=False, description="The server's API key")


@dataclass(frozen=True)
class Served:
    """A model that is ready to answer, and the thread in which it does."""

    predictor: Predictor
    thread: ThreadPoolExecutor
    """The thread in which the predictor was started, and in which it is to be called."""


def build_app(served: Served, serving: Serving, decoders: Decoders) -> Any:
    """Return the ASGI application."""
    api = Api(served, serving, decoders)
    network = served.predictor.network
    app = FastAPI(
        title="vitrail",
        description=f"{network.record.model}, run by {network.about}",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=api.run_batches,
        redirect_slashes=False,
    )
    if serving.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.cors,
            allow_methods=["POST"],
            allow_headers=["Authorization"],
            expose_headers=["Retry-After"],
        )
    _add_routes(app, api, [] if serving.api_key is None else [Depends(api.check_key)])
    for kind, answer in {
        AnyHTTPException: _answer_refused,
        Refused: _answer_refused_upload,
        WorkFailed: _answer_engine_failed,
        NotDecoded: _answer_decoder_failed,
        ClientDisconnect: _answer_nobody,
    }.items():
        app.add_exception_handler(kind, answer)
    return Middleware(app, PATHS, api.metrics, serving)


def _add_routes(app: FastAPI, api: Api, needs_key: list[Any]) -> None:
    app.post(
        "/predict",
        openapi_extra=BODY,
        responses=FAILURES,
        dependencies=needs_key,
        response_model_exclude_none=True,
    )(api.predict)
    if api.explains:
        app.post(
            "/explain",
            openapi_extra=EXPLAINED_BODY,
            responses=EXPLAINED_FAILURES,
            dependencies=needs_key,
            response_model_exclude_none=True,
        )(api.explain)
    unwell: dict[int | str, dict[str, Any]] = {503: {"model": State}}
    app.get("/health", responses=unwell)(api.health)
    app.get("/ready", responses=unwell)(api.ready)
    app.get("/metrics", name="metrics", dependencies=needs_key, response_class=Response)(
        api.show_metrics
    )
    app.get("/", include_in_schema=False)(api.index)

    # load balancers ask with HEAD
    app.head("/health", include_in_schema=False)(api.health)
    app.head("/ready", include_in_schema=False)(api.ready)
    app.head("/metrics", dependencies=needs_key, include_in_schema=False)(api.show_metrics)
    app.head("/", include_in_schema=False)(api.index)


class Api:
    """What each path answers; the docstrings of those in the OpenAPI description are their texts there.

    Args:
        served: The model, and the thread that runs it.
        serving: Settings of the server.
        decoders: Turn image files into what the model sees.
    """

    def __init__(self, served: Served, serving: Serving, decoders: Decoders) -> None:
        self._predictor = served.predictor
        self._thread = served.thread
        self._model = served.predictor.network.record.model
        self._serving = serving
        self._limits = serving.limits
        self._decoders = decoders
        self._seconds_an_image = 0.0
        """Time of the last batch by its images, from which Retry-After is estimated."""
        self._room = Room(serving.limits, seconds_each=lambda: self._seconds_an_image)
        self.metrics = Metrics(lambda: self._room.images, lambda: self._explanations.room.images)
        self._explanations = Explanations(self._predictor, self._thread, serving, self.metrics)
        self.explains = serving.max_explanations > 0
        """Whether explanations are asked for at all."""
        self._batcher: Batcher[Tensor, Choices] = Batcher(
            self._classify_batch,
            served.thread,
            most=serving.max_batch,
            wait_s=serving.max_wait_ms / 1000,
        )
        self._page = render(
            "serve.html",
            model=self._model,
            classes=len(served.predictor.classes),
            about=served.predictor.network.about,
            key=serving.api_key is not None,
            limits=serving.limits,
            methods=self._explanations.methods if self.explains else (),
            rising=to_css(RISING),
            signed=to_css(SIGNED),
        )
        self._page_policy = _write_content_policy(self._page)

    @asynccontextmanager
    async def run_batches(self, _: FastAPI) -> AsyncIterator[None]:
        """Work on batches for as long as the application runs."""
        batches = asyncio.create_task(self._batcher.run())
        explanations = asyncio.create_task(self._explanations.run())
        yield
        batches.cancel()
        explanations.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def check_key(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> None:
        """Refuse a request that does not bring the API key."""
        how = "send it as Authorization: Bearer KEY"
        asks_for_key = {"WWW-Authenticate": "Bearer"}
        if given is None:
            raise HTTPException(401, f"needs the API key; {how}", headers=asks_for_key)
        key = self._serving.api_key or ""
        # compared in the same time wherever they differ, which would tell how much of a guess is
        # right
        if not hmac.compare_digest(given.credentials.encode(), key.encode()):
            raise HTTPException(401, f"the API key is wrong; {how}", headers=asks_for_key)

    async def predict(self, request: Request, response: Response) -> Results:
        """Classify the images of a form, or one image that is the whole body."""
        began = time.perf_counter()
        results = await self._receive(request, self._limits, self._classify_files)
        if all(result.error is not None for result in results):
            response.status_code = 422
        response.headers["Cache-Control"] = "no-store"
        return Results(model=self._model, results=results, ms=_milliseconds_since(began))

    async def explain(self, request: Request, response: Response) -> Explanation:
        """Explain the answer to one image: maps of what it rests on, over the image as the model saw it."""
        began = time.perf_counter()
        question = self._explanations.read_question(request.query_params.multi_items())
        limits = replace(self._limits, max_files=1)
        explanation = await self._receive(
            request, limits, lambda files, client: self._explain_file(files, question, client)
        )
        response.headers["Cache-Control"] = "no-store"
        return explanation.model_copy(update={"ms": _milliseconds_since(began)})

    async def _receive(
        self,
        request: Request,
        limits: Limits,
        work: Callable[[list[bytearray], Client], Coroutine[Any, Any, Done]],
    ) -> Done:
        """Receive the files of a request, and work on them for as long as its client waits."""
        client = _identify_client(request)
        share = self._room.share(client[0])
        timeout_s = limits.timeout_s
        files: list[bytearray] = []
        has_arrived = False
        try:
            async with share.held(timeout_s):
                files = await read_files(request.headers, request.stream(), limits, share)
                has_arrived = True
                return await _while_connected(request, work(files, client))
        except TimeoutError as error:
            if has_arrived:
                raise HTTPException(
                    503, f"the request could not be answered in {timeout_s:g} s"
                ) from error
            late = f"the request did not arrive in {timeout_s:g} s"
            raise HTTPException(408, late, headers={"Connection": "close"}) from error
        finally:
            files.clear()  # decoders hold the list, and must not decode for nobody
            request.scope["state"] |= {"images": share.images, "bytes": share.bytes}

    async def _classify_files(self, files: list[bytearray], client: Client) -> list[Result]:
        results = (self._classify_file(files, number, client) for number in range(len(files)))
        return list(await asyncio.gather(*results))

    async def _classify_file(self, files: list[bytearray], number: int, client: Client) -> Result:
        try:
            view = await self._decode(files, number, client)
        except UnreadableImage as error:
            return Result(error=str(error))
        indices, probabilities = await self._batcher.ask(view, client)
        self.metrics.images.labels("classified").inc()

        choices = []
        for index, probability in zip(indices, probabilities, strict=True):
            name = self._predictor.classes[index]
            choices.append(Choice(index=index, name=name, probability=probability))
        if self._predictor.is_multi_label:
            return Result(labels=choices)
        return Result(topk=choices)

    async def _explain_file(
        self, files: list[bytearray], question: Question, client: Client
    ) -> Explanation:
        try:
            view = await self._decode(files, 0, client)
        except UnreadableImage as error:
            raise Refused(422, str(error)) from error
        explanation = await self._explanations.explain(view, question, client)
        self.metrics.images.labels("explained").inc()
        return explanation

    async def _decode(self, files: list[bytearray], number: int, client: Client) -> Tensor:
        """Return a file as the model sees it.

        Raises:
            UnreadableImage: It cannot be read.
        """
        try:
            with self.metrics.decode_seconds.time():
                # named by number, so that no bytes wait for a decoder on behalf of a client that is
                # gone
                return await self._decoders.read(client, lambda: files[number])
        except UnreadableImage:
            self.metrics.images.labels("unreadable").inc()
            raise

    def _classify_batch(self, views: list[Tensor]) -> list[Choices]:
        """Classify a batch, in the thread of the network, and note how long it took."""
        began = time.perf_counter()
        choices = self._predictor.classify(views)
        seconds = time.perf_counter() - began
        self._seconds_an_image = seconds / len(views)
        self.metrics.batch_seconds.observe(seconds)
        self.metrics.batch_images.observe(len(views))
        return choices

    async def health(self, response: Response) -> State:
        """Say whether the engine and the decoders work; if not, the process is to be started anew."""
        trouble = self._decoders.trouble
        if self._batcher.has_failed:
            trouble = "the engine failed"
        elif self._batcher.busy_s > self._limits.timeout_s:
            trouble = "the engine does not answer"
        if trouble is None:
            return State(status="ok")
        response.status_code = 503
        return State(status=trouble)

    async def ready(self, response: Response) -> State:
        """Say whether more images are welcome."""
        if self._room.images >= self._limits.queue:
            response.status_code = 503
            return State(status="too many images are waiting")
        return await self.health(response)

    async def show_metrics(self) -> Response:
        """Return counts and times for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def index(self) -> Response:
        headers = {"Content-Security-Policy": self._page_policy}
        return Response(self._page, media_type="text/html", headers=headers)


async def _answer_refused_upload(_: Request, error: Any) -> JSONResponse:
    """Answer a request that is refused; one that came at a bad time is told when to try again."""
    headers = None
    if error.retry_s is not None:
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_s)))}
    return JSONResponse({"error": error.reason}, error.status, headers)


async def _answer_refused(request: Request, error: Any) -> JSONResponse:
    reason = error.detail
    if error.status_code == 405:
        reason = f"{request.method} is not answered here; this path takes {error.headers['Allow']}"
    elif error.status_code == 404:
        reason = "nothing is here; /openapi.json says what there is"
    return JSONResponse({"error": reason}, error.status_code, error.headers)


async def _answer_engine_failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the engine failed; the server's log has the reason"}, 503)


async def _answer_decoder_failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "no decoder works; the server's log has the reason"}, 503)


async def _answer_nobody(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": ""}, CLIENT_IS_GONE)


def _identify_client(request: Request) -> Client:
    """Return whose turn a request takes; all clients of a proxy have its address."""
    host, port = request.client or ("", 0)
    return host, f"{host}:{port}"


def _milliseconds_since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 3)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """Work for as long as the client waits for it.

    Raises:
        ClientDisconnect: The client has closed the connection.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body, nothing else can come
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _write_content_policy(page: bytes) -> str:
    """Return the Content-Security-Policy that lets a browser do what this page does, and nothing else."""
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, content in INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    scripts = " ".join(hashes[b"script"])
    styles = " ".join(hashes[b"style"])
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src blob:; connect-src "
        "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
