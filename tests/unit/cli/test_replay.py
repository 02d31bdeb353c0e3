from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from worker.cli.common import parse_time
from worker.cli.main import app

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T12:00:00+01:00", datetime(2026, 1, 1, 11, tzinfo=UTC)),
    ],
)
def test_times(text, moment):
    assert parse_time(text, NOW) == moment


@pytest.mark.parametrize("text", ["2", "h", "2w", "-2h", "yesterday", "99999999999d"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"isoformat|too long|out of range"):
        parse_time(text, NOW)


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead-letters", "--reason", "bad_luck"),
        ("dead-letters", "--since", "soon"),
        ("dead-letters", "--since", "1h", "--until", "2h"),
        ("dead-letters", "--limit", "0"),
        ("uploads",),
        ("uploads", "--to", "image.uploads"),
        ("uploads", "--to", "image.verdicts"),
        ("uploads", "--to", "t", "--from-offset", "3"),
        ("uploads", "--to", "t", "--partition", "-1"),
    ],
)
def test_wrong_usage_is_told_before_anything_connects(arguments):
    assert CliRunner().invoke(app, ["replay", *arguments]).exit_code == 2
