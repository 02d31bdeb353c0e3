"""What is told of trials, with made-up descriptors."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.fixtures.galleries import gallery
from worker.evaluation import plots, report, splits
from worker.evaluation.choices import MEANINGS, PARTS, Choice, Normalisation
from worker.evaluation.experiment import BenignQueries, Resampling, run, told
from worker.evaluation.gallery import Comparing, System
from worker.evaluation.labelled import groups_of, trials
from worker.evaluation.trials import FIGURES

SYSTEMS = [
    *(System(Choice.parse(name), "model") for name in ("cosine", "views", "normalised+views")),
    System(Choice.parse("pdq")),
]
COMPARING = Comparing(Normalisation())


def nothing(_):
    """No progress to be shown."""


def findings(known, made):
    facts = {"left_out": [{"file": "<b>.jpg", "reason": "undecodable"}]}
    return told(known, made, Resampling(4, 1), facts, {"model": "<i>"}, nothing)


@pytest.fixture
def found():
    known = gallery(1)
    dealt = splits.make(known.groups, splits.hosts(known.groups, 1), 3, 1)
    return findings(known, run(known, SYSTEMS, dealt, COMPARING, nothing))


def test_what_is_compared_with_what(found):
    pairs = [(one.system.choice.name, one.less.choice.name) for one in found.differences]
    assert pairs == [
        ("views", "cosine"),
        ("normalised+views", "cosine"),
        ("normalised+views", "views"),
        ("cosine", "pdq"),
    ]


def test_the_document(found):
    document = json.loads(json.dumps(found.document()))
    assert [row["choice"] for row in document["rows"]] == [one.choice.name for one in SYSTEMS]
    assert len(document["edits"]) == len(SYSTEMS) * 6
    first = document["rows"][0]
    assert {f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")} <= set(first)
    mean = np.mean([one["recall_at_zero"] for one in document["edits"][:6]])
    assert first["recall_at_zero"] == pytest.approx(mean, abs=1e-4)
    points = [one for one in document["operating_points"] if one["choice"] == "pdq"]
    assert sum(one["splits"] for one in points if one["at"] == "recall_at_zero") == 3


def test_the_page(found, tmp_path):
    report.write(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "&lt;b&gt;.jpg" in page
    assert "<i>" not in page
    assert all(page.count(f'id="{name}"') == 1 for name in re.findall(r'id="([^"]+)"', page))
    assert not re.search(r"#0[0-9a]0[0-9a]0[0-9a]", page)


def test_a_labelled_set_without_negatives(tmp_path):
    known = gallery(2)
    given = type(known)(**{**vars(known), "groups": groups_of(20, 10, 30),
                           "forms": known.forms[:2], "upright": known.upright[:2]})  # fmt: skip
    true = np.stack([np.arange(10), np.arange(10)], axis=1)
    found = findings(given, trials(given, SYSTEMS, true, COMPARING, nothing))
    row = found.document()["rows"][0]
    assert row["recall_at_zero"] is None
    assert found.warning.startswith("There is no benign query")
    assert 0 <= row["uap_low"] <= row["uap"] <= row["uap_high"] <= 1
    report.write(found, tmp_path / "page.html")
    assert "edit 0" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_curves_have_the_points_that_figures_are_at_in_plain_numbers(found):
    svg = plots.curves(found)
    told = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert [one for one in ("none", "0.001", "0.01", "0.1", "1") if one not in told] == []
    assert not re.search(r"mathdefault|\$", svg)
    for one, row in zip(found.outcomes, found.document()["rows"], strict=True):
        assert found.rates[0] == 0
        assert one.curve[0] == pytest.approx(row["recall_at_zero"], abs=1e-4)


def test_too_few_benign_pictures_are_said(found):
    document = found.document()
    pictures, queries = document["benign_pictures"], document["benign_queries"]
    assert queries == pictures * len(found.forms)
    said = (
        f"Only {pictures} benign pictures in a split, {queries} queries: 1e-3 is the same as none."
    )
    assert found.warning.startswith(said)
    enough = replace(found, fewest=BenignQueries(1000, 1000 * len(found.forms)))
    assert enough.warning is None
    some = replace(found, fewest=BenignQueries(500, 23_000))
    assert "23,000 queries: 23 may pass at 1e-3." in some.warning


def test_only_what_was_chosen_is_explained(found):
    assert list(found.legend) == ["cosine", "normalised", "views", "pdq"]
    assert set(MEANINGS) == set(PARTS)


def test_shares_are_of_one_width():
    """So that a table of all figures fits 80 columns."""
    row = {"uap": 0.0, "uap_low": -0.0214, "uap_high": 0.99951}
    assert report.interval(row, "uap") == (".000", "-.021-1.00")
    assert report.interval({"uap": 1.0, "uap_low": None, "uap_high": 0.9994}, "uap")[0] == "1.00"
    assert report.interval({"uap": None, "uap_low": None, "uap_high": None}, "uap") == ("", "-")
