"""Progress where there is no terminal."""

import pytest

from worker.cli import progress


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 4), (60.0, 0)])
def test_plain_lines_now_and_then(monkeypatch, capsys, seconds, lines):
    monkeypatch.setattr(progress, "SECONDS", seconds)
    with progress.shares() as on_progress:
        for done in range(1, 5):
            on_progress("describe [all]", done / 4)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"describe [all]: {share}%" for share in (25, 50, 75, 100)][:lines]


def test_counts(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.counts("copies", 8) as advance:
        advance(2)
        advance(4)
    assert capsys.readouterr().err.splitlines() == ["copies: 2 of 8", "copies: 6 of 8"]
