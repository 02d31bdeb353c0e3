"""Structured logs on stderr: JSON for machines, columns for a terminal."""

import logging
import sys
import threading
import time
from collections import OrderedDict
from typing import Any

import structlog

from worker.settings import Log

QUIET_SECONDS = 30.0
"""A warning that says the same again within this time is counted, not written."""
_REMEMBERED = 256

type Logger = structlog.stdlib.BoundLogger


class Quiet:
    """A processor that writes warnings which come again and again once in `QUIET_SECONDS`.

    The next one that is written says in `repeated` how many were not. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __call__(
        self, _logger: Any, method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        """Raises DropEvent for a warning that was written lately."""
        if method != "warning":
            return event
        said, now = repr(sorted(event.items())), time.monotonic()
        with self._lock:
            at, repeated = self._written.get(said, (-QUIET_SECONDS, 0))
            if now - at < QUIET_SECONDS:
                self._written[said] = at, repeated + 1
                raise structlog.DropEvent
            self._written[said] = now, 0
            self._written.move_to_end(said)
            if len(self._written) > _REMEMBERED:
                self._written.popitem(last=False)
        return {**event, "repeated": repeated} if repeated else event


def configure(settings: Log, **fields: str) -> None:
    """Send structlog's and the libraries' logs to stderr in one format, with `fields` in each."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())

    def add_fields(
        _logger: Any, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        return {**fields, **event}

    shared: list[structlog.types.Processor] = [
        add_fields,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[Quiet(), *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The Kafka client tells of every reconnect at warning level, and of its own retries at info.
    logging.getLogger("kafka").setLevel(max(level, logging.WARNING))
    # And at warning level of each batch of records that took it longer than 0.1 s to unpack.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(max(level, logging.WARNING))
    logging.getLogger("urllib3").setLevel(max(level, logging.WARNING))


def get(name: str) -> Logger:
    """The logger of a module."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger
