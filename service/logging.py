"""JSON log lines on standard output, each with the request it belongs to.

Nothing of an upload is ever logged: no image, no metadata value, no file name, no query string. An
unforeseen exception is logged as its type and the places it passed, without its message, which
might repeat a value.
"""

import datetime
import json
import logging
import sys
import traceback
from typing import Any, TextIO

import structlog
from structlog.contextvars import merge_contextvars

Log = Any
OURS = frozenset({"bundle", "index", "service"})


def make_log(level: str, stream: TextIO | None = None) -> Log:
    """Return a logger of its own; nothing global is configured.

    Args:
        level: least severe level that is written: debug, info, warning or error.
        stream: where lines go; None is standard output.
    """
    return structlog.wrap_logger(
        structlog.PrintLogger(stream if stream is not None else sys.stdout),
        processors=[
            merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )


def log_libraries() -> None:
    """Write what libraries warn of as JSON lines too, instead of each in its own way."""
    root = logging.getLogger()
    if not any(isinstance(handler, JsonHandler) for handler in root.handlers):
        root.addHandler(JsonHandler(logging.WARNING))


class JsonHandler(logging.Handler):
    """Writes one JSON line a record; of other people's code only the constant part of a message.

    What a library puts into its message may come from an upload.
    """

    def emit(self, record: logging.LogRecord) -> None:
        is_ours = record.name.partition(".")[0] in OURS
        line = {
            "event": "library",
            "library": record.name,
            "detail": record.getMessage() if is_ours else str(record.msg),
            "level": record.levelname.lower(),
            "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            line |= describe_exception(record.exc_info[1])
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def describe_exception(error: BaseException) -> dict[str, Any]:
    """Return the exception's type and the places it passed, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"exception": type(error).__qualname__, "places": places[-12:]}


def describe_cause(error: BaseException) -> dict[str, Any]:
    """Return what `describe_exception` says of the exception behind this one, if there is one."""
    return {} if error.__cause__ is None else describe_exception(error.__cause__)
