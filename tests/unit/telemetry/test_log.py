"""What is written of warnings that come again and again."""

import json
import logging

import pytest
import structlog

from worker.settings import Log
from worker.telemetry import log


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_warning_that_comes_again_is_written_once_and_counted(monkeypatch, capsys):
    log.configure(Log(format="json"), replica="r")
    logger = log.get("here")
    for _ in range(5):
        logger.warning("commit_failed", error="RebalanceInProgressError")
    logger.warning("commit_failed", error="NotCoordinatorError")  # another one
    logger.info("told")
    logger.info("told")
    logger.error("lost")
    logger.error("lost")
    monkeypatch.setattr(log, "QUIET_SECONDS", 0.0)
    logger.warning("commit_failed", error="RebalanceInProgressError")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["event"], one.get("error"), one.get("repeated")) for one in lines] == [
        ("commit_failed", "RebalanceInProgressError", None),
        ("commit_failed", "NotCoordinatorError", None),
        ("told", None, None),
        ("told", None, None),
        ("lost", None, None),
        ("lost", None, None),
        ("commit_failed", "RebalanceInProgressError", 4),
    ]
