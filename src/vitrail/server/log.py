"""The server's log: one JSON object a line on standard error, which never holds images or the names of their files."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from vitrail.display import Quiet

FIELDS = "fields"
"""Key of `extra` under which a log call gives the fields of its line, beside time, level and
event."""


class JsonLines(logging.Formatter):
    """A log record as a line of JSON: time, level, event, its own fields and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def write_json_lines() -> None:
    """Let everything that logs or warns in this process do so as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    # it logs what it refuses of a form, up to once a chunk; the answer says so, and the request has
    # a line of its own
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


class LogDisplay(Quiet):
    """A display that writes the notes and warnings of opening a model as lines of the log."""

    def note(self, text: str) -> None:
        logging.getLogger(__name__).info(text)

    def warn(self, text: str) -> None:
        logging.getLogger(__name__).warning(text)
