"""Structured logs to stderr: JSON lines in a pod or a pipe, readable text on a terminal. Event names are fixed phrases, data are keys."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

from itool.visible import visible

LogFormat = Literal["auto", "json", "console"]


def configure_logging(log_format: LogFormat = "auto", *, level: int = logging.INFO) -> None:
    """Set structlog up for this process. `auto` is `console` on a terminal, else `json`."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderers: list[structlog.typing.Processor] = (
        [_make_visible, structlog.dev.ConsoleRenderer()] if console else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _name_logger,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module; `name` stands in every line as `logger`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(logger_name=name)  # `logger` is taken; bound on first use
    return logger


def _name_logger(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if "logger_name" in event:
        event["logger"] = event.pop("logger_name")
    return event


def _make_visible(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For a terminal; JSON escapes by itself."""
    return {key: visible(value) if isinstance(value, str) else value for key, value in event.items()}
