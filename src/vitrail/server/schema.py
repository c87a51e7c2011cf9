"""The JSON that the server takes and gives, as its OpenAPI description has it."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, Field

from vitrail.choices import ExplanationMethod


class Choice(BaseModel):
    """One class."""

    index: int = Field(serialization_alias="class")
    """Number of the class in the model's order."""
    name: str
    probability: float


class Result(BaseModel):
    """One image: its classes, the most probable first, or why it could not be read."""

    topk: list[Choice] | None = None
    """The most probable classes, of a single-label model."""
    labels: list[Choice] | None = None
    """The classes that reach their thresholds, of a multi-label model."""
    error: str | None = None


class Results(BaseModel):
    """One request: a result for each image, in the order of the request."""

    model: str
    results: list[Result]
    ms: float
    """Milliseconds from the request's header to its answer."""


class LevelMap(BaseModel):
    """One map of an explanation, over the whole image as the model saw it."""

    level: str
    """What its places are, such as sentences, words, tokens or pixels."""
    height: int
    width: int
    least: float
    largest: float
    image: str
    """Base64 of a PNG of height x width, whose colours are those of `vitrail explain`, and the
    opaquer the more a place counts."""
    values: str
    """Base64 of the raw values as a .npy file, float32 of height x width."""


class Explanation(BaseModel):
    """What the answer to one image rests on."""

    model: str
    method: str
    explained: Choice
    """The class that the maps are of."""
    topk: list[Choice] | None = None
    """The most probable classes, of a single-label model."""
    labels: list[Choice] | None = None
    """The classes that reach their thresholds, of a multi-label model."""
    of_class: bool
    """Whether the maps are of the class alone; if not, they are the same for all."""
    is_signed: bool
    """Whether values below 0 speak against the class."""
    view: str
    """Base64 of a PNG: the image as the model saw it, which the maps lie over."""
    maps: list[LevelMap]
    """The finest map is the last."""
    ms: float
    """Milliseconds from the request's header to its answer."""


class Failure(BaseModel):
    """Why a request was not answered."""

    error: str


class State(BaseModel):
    """How the server is."""

    status: str


FILE = {"type": "string", "format": "binary"}
IMAGE = {"schema": FILE}
FORM = {"schema": {"type": "object", "properties": {"files": {"type": "array", "items": FILE}}}}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": FORM,
            "image/*": IMAGE,
            "application/octet-stream": IMAGE,
        },
    }
}
"""What the body of a request for predictions may be."""
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The form is broken, or holds no image"},
    401: {"model": Failure, "description": "The API key is missing or wrong"},
    408: {"model": Failure, "description": "The request took too long to arrive"},
    413: {"model": Failure, "description": "Too many bytes or files"},
    415: {"model": Failure, "description": "Neither a form nor an image"},
    422: {
        "model": Results,
        "description": "No image of the request could be read; each result says why",
    },
    429: {
        "model": Failure,
        "description": "Too many images are waiting; Retry-After says when to try again",
    },
    421: {"model": Failure, "description": "The server was not told that it has the name in Host"},
    503: {
        "model": Failure,
        "description": "The answer took too long, or the engine or the decoder failed",
    },
}
"""The answers to a request for predictions that are no predictions, by their status."""
EXPLAINED_BODY = {
    **BODY,
    "parameters": [
        {
            "name": "class",
            "in": "query",
            "schema": {"type": "string"},
            "description": "The class to explain, by its name or number; by default the most probable one",
        },
        {
            "name": "method",
            "in": "query",
            "schema": {"type": "string", "enum": list(get_args(ExplanationMethod))},
            "description": "How it is explained; by default what suits the model",
        },
    ],
}
"""What a request for an explanation may be."""
EXPLAINED_FAILURES: dict[int | str, dict[str, Any]] = {
    **FAILURES,
    400: {
        "model": Failure,
        "description": "The form is broken, or there is no such class, method or parameter",
    },
    422: {"model": Failure, "description": "The image cannot be read, or its logits overflow"},
    429: {
        "model": Failure,
        "description": "Too many images or explanations wait; Retry-After says when to try again",
    },
    501: {"model": Failure, "description": "The method needs a package that the server lacks"},
}
"""The answers to a request for an explanation that are none, by their status."""
