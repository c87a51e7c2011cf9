"""What the server answers: one route a function, and around all of them the log, the counts and the headers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from vitrail.images.pixels import UnreadableImage
from vitrail.inference.decision import Choices
from vitrail.inference.predictor import Predictor
from vitrail.pages.render import render
from vitrail.server.batching import Batcher, WorkFailed
from vitrail.server.decoders import Decoders, NotDecoded
from vitrail.server.headers import find_fault
from vitrail.server.log import FIELDS
from vitrail.server.metrics import CONTENT_TYPE, Measures
from vitrail.server.settings import Serving
from vitrail.server.upload import Refused, Room, read_files

log = logging.getLogger(__name__)
Done = TypeVar("Done")
Message = MutableMapping[str, Any]

CLIENT_IS_GONE = 499
"""What the log and the counts call a request whose client did not wait; nobody receives it."""
SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
PATHS = ("/", "/predict", "/health", "/ready", "/metrics", "/openapi.json")


class Choice(BaseModel):
    """One class."""

    index: int = Field(serialization_alias="class")
    """In the model's order."""
    name: str
    probability: float


class Result(BaseModel):
    """One image: its classes, the most probable first, or why it could not be read."""

    topk: list[Choice] | None = None
    labels: list[Choice] | None = None
    """Instead, of a model that gives any number of classes: those that reach their thresholds."""
    error: str | None = None


class Results(BaseModel):
    """One request: a result for each image, in the order of the request."""

    model: str
    results: list[Result]
    ms: float
    """From the request's header to its answer."""


class Failure(BaseModel):
    """Why a request was not answered."""

    error: str


class State(BaseModel):
    """How the server is."""

    status: str


BEARER = HTTPBearer(auto_error=False, description="The server's API key")
IMAGE = {"schema": {"type": "string", "format": "binary"}}
FORM = {"type": "object", "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}}}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": FORM}, "image/*": IMAGE, "application/octet-stream": IMAGE},
    }
}
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The form is broken, or holds no image"},
    401: {"model": Failure, "description": "The API key is missing or wrong"},
    408: {"model": Failure, "description": "The request took too long to arrive"},
    413: {"model": Failure, "description": "Too many bytes or files"},
    415: {"model": Failure, "description": "Neither a form nor an image"},
    422: {"model": Results, "description": "No image of the request could be read; each result says why"},
    429: {"model": Failure, "description": "Too many images are waiting; Retry-After says when to try again"},
    421: {"model": Failure, "description": "The server was not told that it has the name in Host"},
    503: {"model": Failure, "description": "The answer took too long, or the engine or the decoder failed"},
}


@dataclass(frozen=True)
class Served:
    """The model, ready to answer, and in what thread."""

    predictor: Predictor
    thread: ThreadPoolExecutor
    """The thread in which the predictor was started, and in which it is to be called."""


def build_app(served: Served, serving: Serving, decoders: Decoders) -> Any:
    """Return the ASGI application."""
    limits, predictor, network = serving.limits, served.predictor, served.predictor.network
    room = Room(limits)
    measures = Measures(lambda: room.images)
    seconds_an_image = 0.0

    def work(views: list[Tensor]) -> list[Choices]:
        nonlocal seconds_an_image
        began = time.perf_counter()
        found = predictor.classify(views)
        took = time.perf_counter() - began
        seconds_an_image = took / len(views)
        measures.batch_seconds.observe(took)
        measures.batch_images.observe(len(views))
        return found

    batcher: Batcher[Tensor, Choices] = Batcher(
        work, served.thread, most=serving.max_batch, wait_s=serving.max_wait_ms / 1000
    )

    async def answer(files: list[bytearray], number: int, who: tuple[str, str]) -> Result:
        try:
            with measures.decode_seconds.time():
                # named by number, so that no bytes wait for a decoder on behalf of a client that is gone
                view = await decoders.read(who, lambda: files[number])
        except UnreadableImage as error:
            measures.images.labels("unreadable").inc()
            return Result(error=str(error))
        choices, probabilities = await batcher.ask(view, who)
        measures.images.labels("classified").inc()
        pairs = zip(choices, probabilities, strict=True)
        named = [Choice(index=k, name=predictor.classes[k], probability=p) for k, p in pairs]
        return Result(labels=named) if predictor.is_multi_label else Result(topk=named)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches = asyncio.create_task(batcher.run())
        yield
        batches.cancel()
        served.thread.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="vitrail", description=f"{network.record.model}, run by {network.about}", version="1",
        docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=False,
    )  # fmt: skip
    if serving.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=serving.cors, allow_methods=["POST"], allow_headers=["Authorization"],
            expose_headers=["Retry-After"],
        )  # fmt: skip

    def check_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        key = "" if given is None else given.credentials
        if serving.api_key is not None and not hmac.compare_digest(key.encode(), serving.api_key.encode()):
            what = "needs the API key" if given is None else "the API key is wrong"
            raise HTTPException(
                401, f"{what}; send it as Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )

    needs_key = [Depends(check_key)] if serving.api_key is not None else []

    @app.exception_handler(AnyHTTPException)
    def refuse(_: Request, error: AnyHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.post(
        "/predict", openapi_extra=BODY, responses=FAILURES, dependencies=needs_key, response_model_exclude_none=True
    )
    async def predict(request: Request, response: Response) -> Results:
        """Classify the images of a form, or one image that is the whole body."""
        began, share, who = time.perf_counter(), room.share(), _who(request)
        files: list[bytearray] = []
        late = HTTPException(408, f"the request did not arrive in {limits.timeout_s:g} s")
        try:
            with share:
                async with asyncio.timeout(limits.timeout_s):
                    files = await read_files(request.headers, request.stream(), limits, share)
                    late = HTTPException(503, f"the request could not be answered in {limits.timeout_s:g} s")
                    found = await _while_there(
                        request, _all(answer(files, number, who) for number in range(len(files)))
                    )
        except Refused as error:
            wait = {"Retry-After": str(max(1, math.ceil(room.images * seconds_an_image)))}
            raise HTTPException(error.status, error.reason, wait if error.status == 429 else None) from error
        except TimeoutError as error:
            raise late from error
        except WorkFailed as error:
            raise HTTPException(503, "the engine failed; the server's log has the reason") from error
        except NotDecoded as error:
            raise HTTPException(503, "no decoder works; the server's log has the reason") from error
        except ClientDisconnect:
            raise HTTPException(CLIENT_IS_GONE, "") from None
        finally:
            files.clear()
            request.scope["state"] |= {"images": share.images, "bytes": share.bytes}
        if all(result.error is not None for result in found):
            response.status_code = 422
        response.headers["Cache-Control"] = "no-store"
        return Results(model=network.record.model, results=found, ms=round(1000 * (time.perf_counter() - began), 3))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"model": State}})
    async def health(response: Response) -> State:
        """Say whether the engine and the decoders work; if not, the process is to be started anew."""
        trouble = decoders.trouble
        if batcher.has_failed:
            trouble = "the engine failed"
        elif batcher.busy_s > limits.timeout_s:
            trouble = "the engine does not answer"
        if trouble is not None:
            response.status_code = 503
        return State(status=trouble or "ok")

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"model": State}})
    async def ready(response: Response) -> State:
        """Say whether more images are welcome."""
        if room.images >= limits.queue:
            response.status_code = 503
            return State(status="too many images are waiting")
        return await health(response)

    @app.head("/metrics", dependencies=needs_key, include_in_schema=False)
    @app.get("/metrics", dependencies=needs_key, response_class=Response)
    async def metrics() -> Response:
        """Return counts and times for Prometheus."""
        return Response(measures.text(), media_type=CONTENT_TYPE)

    page = render(
        "serve.html", model=network.record.model, classes=len(predictor.classes), about=network.about,
        key=serving.api_key is not None, limits=limits,
    )  # fmt: skip
    policy = _policy(page)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    return _Watched(app, measures, serving)


def _who(request: Request) -> tuple[str, str]:
    """Return who asks, for turns: the address and the connection; all of a proxy's clients have its address."""
    host, port = request.client or ("", 0)
    return host, f"{host}:{port}"


async def _all(results: Any) -> list[Result]:
    return list(await asyncio.gather(*results))


async def _while_there(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """Work for as long as the client waits for it.

    Raises:
        ClientDisconnect: It does not.
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


def _policy(page: bytes) -> str:
    """Return the policy that lets a browser do what this page does, and nothing else."""
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, content in INLINE.findall(page):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes[b'script'])}; style-src {' '.join(hashes[b'style'])}; "
        "img-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Watched:
    """Logs and counts every request, refuses what is none, and answers those that failed.

    What a request holds or asks for is not logged.
    """

    def __init__(self, app: Any, measures: Measures, serving: Serving) -> None:
        self._app, self._measures, self._serving = app, measures, serving

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, number, status = time.perf_counter(), secrets.token_hex(8), 0
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode()), *SAFE]
            await send(message)

        app, fault = self._app, find_fault(scope["headers"], scope["http_version"], self._serving)
        if fault is not None:
            app = JSONResponse({"error": fault[1]}, fault[0], {"Connection": "close"})
        try:
            await app(scope, receive, send_named)
        except Exception:
            log.exception("a request failed", extra={FIELDS: {"id": number}})
            if not status:
                await JSONResponse({"error": f"an error of the server; its log has {number}"}, 500)(
                    scope, receive, send_named
                )
            status = 500
        took = time.perf_counter() - began
        self._measures.requests.labels(path, str(status)).inc()
        self._measures.request_seconds.labels(path).observe(took)
        told = {"id": number, "method": scope["method"], "path": path, "status": status, "ms": round(1000 * took, 1)}
        log.info("request", extra={FIELDS: {**told, **scope["state"]}})
