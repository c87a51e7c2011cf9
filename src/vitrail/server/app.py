"""The HTTP API: predictions, health, readiness, metrics and a page to try it on, as an ASGI application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import re
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from vitrail.images.pixels import UnreadableImage
from vitrail.inference.decision import Choices
from vitrail.inference.predictor import Predictor
from vitrail.pages.render import render
from vitrail.server.batching import Batcher, WorkFailed
from vitrail.server.decoders import Decoders, NotDecoded
from vitrail.server.metrics import CONTENT_TYPE, Metrics
from vitrail.server.middleware import Middleware
from vitrail.server.schema import BODY, FAILURES, Choice, Result, Results, State
from vitrail.server.settings import Serving
from vitrail.server.upload import FULL, Refused, Room, read_files

Done = TypeVar("Done")
Client = tuple[str, str]
"""An address, and the connection from there."""

CLIENT_IS_GONE = 499
"""Status in the log and the counts of a request whose client did not wait; nobody receives it."""
INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
PATHS = ("/", "/predict", "/health", "/ready", "/metrics", "/openapi.json")
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
        Refused: api.answer_refused_upload,
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
        self._room = Room(serving.limits)
        self._batcher: Batcher[Tensor, Choices] = Batcher(
            self._classify_batch,
            served.thread,
            most=serving.max_batch,
            wait_s=serving.max_wait_ms / 1000,
        )
        self._seconds_an_image = 0.0
        """Time of the last batch by its images, from which Retry-After is estimated."""
        self._page = render(
            "serve.html",
            model=self._model,
            classes=len(served.predictor.classes),
            about=served.predictor.network.about,
            key=serving.api_key is not None,
            limits=serving.limits,
        )
        self._page_policy = _write_content_policy(self._page)
        self.metrics = Metrics(lambda: self._room.images)

    @asynccontextmanager
    async def run_batches(self, _: FastAPI) -> AsyncIterator[None]:
        """Work on batches for as long as the application runs."""
        batches = asyncio.create_task(self._batcher.run())
        yield
        batches.cancel()
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
        client = _identify_client(request)
        share = self._room.share(client[0])
        timeout_s = self._limits.timeout_s
        files: list[bytearray] = []
        has_arrived = False
        try:
            with share:
                async with asyncio.timeout(timeout_s) as deadline:
                    share.on_given_up = lambda: deadline.expired() or deadline.reschedule(0)
                    files = await read_files(request.headers, request.stream(), self._limits, share)
                    has_arrived = True
                    work = self._classify_files(files, client)
                    results = await _while_connected(request, work)
        except TimeoutError as error:
            if share.is_given_up:
                raise Refused(429, FULL) from error
            if has_arrived:
                raise HTTPException(
                    503, f"the request could not be answered in {timeout_s:g} s"
                ) from error
            late = f"the request did not arrive in {timeout_s:g} s"
            raise HTTPException(408, late, headers={"Connection": "close"}) from error
        finally:
            files.clear()  # decoders hold the list, and must not decode for nobody
            request.scope["state"] |= {"images": share.images, "bytes": share.bytes}

        if all(result.error is not None for result in results):
            response.status_code = 422
        response.headers["Cache-Control"] = "no-store"
        milliseconds = round(1000 * (time.perf_counter() - began), 3)
        return Results(model=self._model, results=results, ms=milliseconds)

    async def _classify_files(self, files: list[bytearray], client: Client) -> list[Result]:
        results = (self._classify_file(files, number, client) for number in range(len(files)))
        return list(await asyncio.gather(*results))

    async def _classify_file(self, files: list[bytearray], number: int, client: Client) -> Result:
        try:
            with self.metrics.decode_seconds.time():
                # named by number, so that no bytes wait for a decoder on behalf of a client that is
                # gone
                view = await self._decoders.read(client, lambda: files[number])
        except UnreadableImage as error:
            self.metrics.images.labels("unreadable").inc()
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

    async def answer_refused_upload(self, _: Request, error: Any) -> JSONResponse:
        """Answer a request whose images are refused; one that came at a bad time is told when to try again."""
        headers = None
        if error.status == 429:
            seconds = math.ceil(self._room.images * self._seconds_an_image)
            headers = {"Retry-After": str(max(1, seconds))}
        return JSONResponse({"error": error.reason}, error.status, headers)


async def _answer_refused(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


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
