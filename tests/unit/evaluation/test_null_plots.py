import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from worker.evaluation import null_plots
from worker.scoring.forecast import Growth
from worker.scoring.null import Null, Threshold

BANK = 'bad & "worse" $1$ <b>'
"""A name that would be markup in HTML, or mathematics in matplotlib."""


@pytest.fixture(scope="module")
def null():
    random = np.random.default_rng(0)
    scores = (0.1 * random.standard_normal(4000) + 0.2).astype(np.float32)
    return Null(scores, np.repeat(np.arange(2000), 2))


@pytest.fixture(scope="module")
def threshold(null):
    found = null.threshold(0.01)
    assert isinstance(found, Threshold)
    return found


@pytest.fixture(scope="module")
def plots(null, threshold):
    copies = np.linspace(0.3, 1, 300, dtype=np.float32)
    thresholds = {"10,000": threshold.score, "plain": 0.6}
    return {
        "distributions": null_plots.distributions(BANK, null, copies, thresholds),
        "rates": null_plots.rates(BANK, null, thresholds),
        "stability": null_plots.stability(BANK, null, 0.01),
        "growth": null_plots.growth(BANK, null, Growth(0.9, 0.05), threshold.score, references=40),
    }


def parsed(svg):
    return ET.fromstring(svg)  # noqa: S314 - drawn here


def words(svg):
    return [part.text for part in parsed(svg).iter() if part.tag.endswith("}text")]


def test_each_is_one_element_of_a_page_in_the_pages_colours(plots):
    ids, titles = [], set()
    for svg in plots.values():
        root = parsed(svg)
        assert root.tag.endswith("}svg")
        assert root.get("role") == "img"
        assert BANK in (root.get("aria-label") or "")
        assert "width" not in root.attrib
        assert "var(--copy)" in svg or "var(--limit)" in svg
        assert not re.findall(r"#0[1-5]0[1-5]0[1-5]", svg)
        ids += re.findall(r'id="([^"]*)"', svg)
        titles.add(root.get("aria-label"))
    assert len(ids) == len(set(ids))
    assert len(titles) == len(plots)


def test_they_are_drawn_the_same_again(null, plots):
    assert null_plots.stability(BANK, null, 0.01) == plots["stability"]


def test_scores_stand_with_their_numbers_and_thresholds(plots, threshold):
    told = words(plots["distributions"])
    assert {"4,000 benign images", "300 copies"} <= set(told)
    assert {f"10,000 {threshold.score:.3f}", "plain 0.600"} <= set(told)


def test_rates_say_where_the_data_end(plots):
    told = words(plots["rates"])
    assert {"too few groups", "10,000", "1,000", "95% limits", "estimate"} <= set(told)


def test_a_threshold_is_followed_up_to_all_images(plots):
    told = words(plots["stability"])
    assert "2,000" in told
    assert "groups of images used (threshold for 10,000 per million)" in told
    assert len([word for word in told if re.fullmatch(r"0\.\d+", word)]) > 1  # ticks of the score


@pytest.mark.parametrize(("rate", "needed"), [(1e-5, "300,000"), (0.0015, "2,000")])
def test_a_rate_of_which_nothing_can_be_seen_is_said(null, rate, needed):
    """None of the groups support it, or none but all of them, which would be a single dot."""
    svg = null_plots.stability(BANK, null, rate)
    said = f"{1e6 * rate:,.0f} per million takes {needed} groups, and there are 2,000:"
    assert said in words(svg)
    assert "threshold" not in words(svg)


def test_logarithmic_axes_have_plain_numbers_however_short(plots):
    for name in ("rates", "stability", "growth"):
        assert not [word for word in words(plots[name]) if word and ("{" in word or "$1" in word)]
    assert len([word for word in words(plots["growth"]) if re.fullmatch(r"[\d,]+", word)]) >= 6


def test_a_forecast_is_called_one(plots):
    told = words(plots["growth"])
    assert {"forecast, not measured", "measured", "40", "400"} <= set(told)


def test_equal_scores_are_drawn_too():
    flat = Null(np.full(100, 0.25, np.float32), np.arange(100))
    copies = np.array([], np.float32)
    alone = null_plots.distributions("flat", flat, copies, {})
    assert "100 benign images" in alone
    assert "copies" not in alone
    assert "too few groups" in null_plots.rates("flat", flat, {"here": 0.25})
    assert null_plots.stability("flat", flat, 0.05)
