"""The JSON that the server takes and gives, as its OpenAPI description has it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


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
