import math
from datetime import UTC, datetime
from itertools import count
from typing import Any, get_args

import numpy as np
import pytest
from prometheus_client import REGISTRY

from tests.fixtures.hot_set import bank, calibration
from worker.hotset.hot_set import Against
from worker.hotset.types import Hit, Reference
from worker.records import Version
from worker.scoring.drift import ALARM, MOST, RATES, Chart, Drift, Level, Result, levels_of
from worker.scoring.policy import Decision, Scored
from worker.scoring.rules import Applied, rule_of

MASKED = calibration(null=10_000).without(())
OTHER = calibration(null=10_000, seed=1).without(())
BEST = np.random.default_rng(1).uniform(size=10_000).astype(np.float32)
BUDGET = {"threshold": None, "max_false_matches_per_million": 500}
CENT, MILLE = RATES
PLAIN = Level(CENT, 0.99, 0.008, 0.012)
NEVER = -math.inf


def applied(*banks, best=BEST, masked=MASKED):
    of = {one.name: one for one in banks}
    rules = {name: rule_of(one, masked, best) for name, one in of.items()}
    return Applied(Against(Version(1, 1), of, masked.calibration, {}, frozenset()), rules, masked)


def decision(scores=None, enforced=(), seen_from=NEVER):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    found = [
        Scored(
            Hit(Reference(reference_id="r", bank=b.name, added_by="t", added_at=at), b, "", 1, 1), 1
        )
        for b in enforced
    ]
    return Decision(enforced=found, best_scores=scores or {}, seen_from=seen_from)


def counted(name, level=CENT):
    """Uploads of a bank by result, so far in this process."""
    labels = ({"bank": name, "level": f"{level:g}", "result": one} for one in RESULTS)
    found = [REGISTRY.get_sample_value("copysieve_drift_uploads_total", one) for one in labels]
    return [int(value or 0) for value in found]


def shown(name, direction, level=CENT):
    labels = {"bank": name, "level": f"{level:g}", "direction": direction}
    return REGISTRY.get_sample_value("copysieve_drift", labels)


RESULTS = get_args(Result.__value__)


# -- levels --


def test_levels_are_scores_of_the_null_with_the_limits_of_their_rates():
    of = bank(**BUDGET)
    rule: Any = rule_of(of, MASKED, BEST)
    cent, mille = levels_of(of, rule)
    assert (cent.rate, mille.rate) == RATES
    scores = MASKED.null_scores(BEST, ["plain"])
    for level in (cent, mille):
        assert (scores >= level.score).mean() == pytest.approx(level.rate, rel=0.2)
        assert 0 <= level.low < level.rate < level.high < 3 * level.rate
    # What is matched, and so left out, may be all of what the limits allow for.
    matched = rule.null.rate(rule.threshold)
    assert cent.low == pytest.approx(rule.null.rate(cent.score).low - matched.high)


def test_a_bank_that_enforces_nothing_leaves_nothing_out():
    of = bank(**BUDGET, mode="shadow")
    rule: Any = rule_of(of, MASKED, BEST)
    assert [one.low for one in levels_of(of, rule)] == [
        rule.null.rate(rule.null.threshold(rate).estimate).low for rate in RATES
    ]


def test_there_are_no_levels_where_all_is_matched_nor_where_the_null_does_not_tell():
    wide = bank(threshold=None, max_false_matches_per_million=5_000)
    assert [one.rate for one in levels_of(wide, rule_of(wide, MASKED, BEST))] == [CENT]
    plain = bank(threshold=0.5)
    assert not list(levels_of(plain, rule_of(plain, None, None)))
    few = calibration(null=1000).without(())
    of = bank(**BUDGET)
    assert [one.rate for one in levels_of(of, rule_of(of, few, BEST[:1000]))] == [CENT]


def test_what_may_have_passed_is_hidden():
    assert PLAIN.result(0.99, NEVER) == PLAIN.result(1.0, 2.0) == "passed"
    assert PLAIN.result(0.9, 0.98) == PLAIN.result(NEVER, NEVER) == "below"
    assert PLAIN.result(0.9, 0.99) == PLAIN.result(NEVER, 1.0) == "hidden"


# -- charts --


def uploads(rate, seed, n=200_000):
    return np.random.default_rng(seed).uniform(size=n) < rate


def told_after(passing, level, direction):
    """How many uploads it takes to an alarm; None: there is none."""
    chart = Chart()
    for number, passed in enumerate(passing.tolist(), 1):
        chart.add(level, "passed" if passed else "below")
        if getattr(chart, direction) >= ALARM:
            return number
    return None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", ["low", "rate", "high"])
@pytest.mark.parametrize("direction", ["more", "fewer"])
def test_there_is_no_alarm_anywhere_in_what_the_calibration_allows_for(seed, rate, direction):
    passing = uploads(getattr(PLAIN, rate), seed)
    assert told_after(passing, PLAIN, direction) is None


@pytest.mark.parametrize("seed", range(5))
def test_twice_and_half_as_many_are_told_in_time(seed):
    more = ALARM / (PLAIN.high * (2 * math.log(2) - 1))
    fewer = ALARM / (PLAIN.low * (1 - math.log(2)) / 2)
    doubled, halved = uploads(2 * PLAIN.high, seed), uploads(PLAIN.low / 2, seed)
    assert more / 4 < told_after(doubled, PLAIN, "more") < 3 * more
    assert fewer / 4 < told_after(halved, PLAIN, "fewer") < 3 * fewer
    assert told_after(doubled, PLAIN, "fewer") is told_after(halved, PLAIN, "more") is None


@pytest.mark.parametrize(("direction", "share"), [("more", 1), ("fewer", 2)])
def test_uploads_that_pass_between_false_alarms_are_as_many_as_is_promised(direction, share):
    # At a sum of ln 50 instead of ln 1e7, which no test could wait for.
    level = Level(0.05, 0.9, 0.05, 0.05)
    passing = uploads(0.05, 0, 500_000)
    chart, alarms = Chart(), 0
    for passed in passing.tolist():
        chart.add(level, "passed" if passed else "below")
        if getattr(chart, direction) >= math.log(50):
            chart, alarms = Chart(), alarms + 1
    assert alarms
    assert passing.sum() / alarms >= 50 / share


def test_an_alarm_stands_until_the_chart_goes_back():
    chart = Chart()
    for _ in range(1000):
        chart.add(PLAIN, "passed")
    assert chart.more == MOST
    for _ in range(math.floor((MOST - ALARM) / PLAIN.high)):
        chart.add(PLAIN, "below")
        assert chart.more >= ALARM
    chart.add(PLAIN, "below")
    assert chart.more < ALARM


def test_what_is_hidden_counts_for_neither():
    chart = Chart()
    for number in range(100_000):
        chart.add(PLAIN, "hidden" if number % 20 else "below")
        assert chart.more == 0
        assert chart.fewer < ALARM


# -- uploads --


def test_an_image_is_counted_once_among_the_recent_ones():
    drift, rules = Drift(recent=2), applied(bank("once", **BUDGET))
    before = counted("once")
    for image in "aababcb":
        drift.note(image, None, decision({"once": 1.0}), rules)
    assert np.subtract(counted("once"), before).tolist() == [3, 0, 0]
    drift.note("a", None, decision({"once": 0.5}), rules)  # gone, when c came
    drift.note("d", None, decision(seen_from=0.9999), rules)
    assert np.subtract(counted("once"), before).tolist() == [3, 1, 1]
    assert np.subtract(counted("once", MILLE), before).tolist() == [3, 1, 1]


def test_each_bank_counts_what_it_screens_and_did_not_match():
    first, second = bank("one", **BUDGET), bank("two", **BUDGET, tenants=("t1",))
    drift, rules = Drift(), applied(first, second)
    before = [counted("one"), counted("two")]
    drift.note("a", "t1", decision({"one": 1.0, "two": 1.0}, enforced=[first]), rules)
    drift.note("b", "t2", decision({"one": 1.0}), rules)
    drift.note("c", "t1", decision({"two": 1.0}), rules)
    found = np.subtract([counted("one"), counted("two")], before).tolist()
    assert found == [[1, 1, 0], [2, 0, 0]]


def test_charts_go_on_with_new_references_and_begin_anew_with_a_policy_or_calibration():
    of, name = bank("anew", **BUDGET), "anew"
    drift, images = Drift(), map(str, count())

    def note(rules):
        drift.note(next(images), None, decision({name: 2.0}), rules)
        return shown(name, "more") * ALARM

    one = math.log(2)
    assert note(applied(of)) == pytest.approx(one, abs=0.02)
    assert note(applied(of)) == pytest.approx(2 * one, abs=0.04)
    nearer = applied(of, best=BEST + 1)
    assert note(nearer) == pytest.approx(3 * one, abs=0.06)
    drift.note(next(images), None, decision({name: 1.0}), nearer)  # a level that has moved
    assert shown(name, "more") * ALARM < 3 * one - 0.02
    assert note(applied(of, masked=OTHER)) == pytest.approx(one, abs=0.02)
    assert note(applied(of)) == pytest.approx(one, abs=0.02)
    assert note(applied(bank(name, **BUDGET, severity="critical"))) == pytest.approx(one, abs=0.02)


def test_a_bank_that_is_gone_or_has_no_levels_has_no_chart():
    first, second = bank("here", **BUDGET), bank("gone", **BUDGET)
    drift = Drift()
    drift.note("a", None, decision(), applied(first, second))
    assert shown("gone", "fewer") == pytest.approx(0, abs=0.01)
    drift.note("b", None, decision(), applied(first))
    assert shown("gone", "fewer") is None
    assert shown("here", "fewer", MILLE) is not None
    drift.note("c", None, decision(), applied(first, best=None))
    assert shown("here", "fewer", MILLE) is None


def test_a_replica_tells_a_doubling():
    of = bank("doubled", **BUDGET)
    drift, rules = Drift(), applied(of)
    passing = uploads(0.03, 1, 10_000)
    for number, passed in enumerate(passing.tolist()):
        drift.note(f"{number:064x}", None, decision({"doubled": 2.0 if passed else 0.0}), rules)
    assert shown("doubled", "more") > 1
    assert shown("doubled", "fewer") < 1
