from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import (
    MODEL,
    bank,
    calibration,
    descriptors,
    put,
    put_bank,
    reference,
    snapshot,
)
from worker.hotset.mirror import Mirror
from worker.hotset.types import CalibrationPut, Change, Entry, ReferenceRemoved
from worker.records import Version
from worker.scoring.calibration import Benign
from worker.scoring.rules import MILLION, Rule, Rules, rule_of
from worker.telemetry import metrics

CALIBRATION = calibration(null=1000, looks=("plain", "centre_crop"))
MASKED = CALIBRATION.without(())
BEST = np.random.default_rng(1).uniform(size=2000).astype(np.float32)


BENIGN = Benign(
    np.arange(50 * 32).astype(np.uint8).reshape(50, 32),
    np.zeros((50, 32), np.uint8),
    np.zeros(50, bool),
)
WITH_DIGESTS = calibration(looks=("plain", "centre_crop"), benign=BENIGN)


def threshold(rule: Rule) -> float:
    assert rule.threshold is not None
    return rule.threshold


def budget(per_million, **fields):
    return bank(threshold=None, max_false_matches_per_million=per_million, **fields)


def scores(looks=("plain",)):
    return MASKED.null_scores(BEST, looks)


@pytest.mark.parametrize(
    ("of", "masked", "best", "looks", "state"),
    [
        (bank(threshold=None), MASKED, BEST, ["plain"], "no_rule"),
        (bank(threshold=None), None, None, ["plain"], "no_rule"),
        (bank(threshold=0.5), None, None, ["plain"], "threshold"),
        (bank(threshold=0.5), MASKED, BEST, ["plain"], "other_calibration"),
        (bank(threshold=0.5, calibration="c1"), None, None, ["plain"], "other_calibration"),
        (bank(threshold=0.5, calibration=CALIBRATION.id), MASKED, BEST, ["plain"], "threshold"),
        (bank(threshold=0.5, calibration=CALIBRATION.id), MASKED, None, ["plain"], "threshold"),
        (budget(10_000), None, None, ["plain"], "no_calibration"),
        (budget(10_000), MASKED, None, ["plain"], "no_references"),
        (budget(10_000), MASKED, BEST, ["plain", "top_left_crop"], "other_looks"),
        (budget(10_000), MASKED, BEST, ["plain"], "budget"),
        (budget(10), MASKED, BEST, ["plain"], "not_supported"),
        (bank(threshold=None, kind="allow", suppresses=("b",)), MASKED, BEST, ["plain"], "allow"),
    ],
)
def test_how_a_bank_comes_by_its_rule(of, masked, best, looks, state):
    rule = rule_of(of, masked, best, looks)
    assert rule.state == state
    assert rule.is_enforced == (state in ("threshold", "budget"))
    assert (rule.threshold is not None) == (state in ("threshold", "budget", "not_supported"))
    assert rule.why
    assert (rule.needed is not None) == (state == "not_supported")


def test_a_threshold_is_as_the_bank_has_it():
    assert rule_of(bank(threshold=0.5), None, None) == Rule("threshold", 0.5)


def test_a_budget_is_kept_by_the_null_images_of_the_looks():
    for looks in (["plain"], ["plain", "centre_crop"]):
        rule = rule_of(budget(10_000), MASKED, BEST, looks)
        assert 0 < (scores(looks) >= threshold(rule)).mean() <= 0.01
    more = rule_of(budget(100_000), MASKED, BEST, looks)
    assert threshold(more) < threshold(rule)


def test_a_budget_beyond_the_data_is_shown_at_the_lowest_rate_that_they_support():
    rule = rule_of(budget(1), MASKED, BEST)
    lowest = rule_of(budget(3000.1), MASKED, BEST)
    assert threshold(rule) == pytest.approx(threshold(lowest), abs=1e-3)
    assert rule.needed == 3_000_000
    assert "takes 3000000 groups of null images: there are 1000, which support 3000 per" in rule.why


def test_a_score_has_its_rate():
    rule = rule_of(budget(10_000), MASKED, BEST)
    middle = float(np.median(scores()))
    assert rule.false_matches_per_million(middle) == pytest.approx(MILLION / 2, rel=0.1)
    assert (rule.false_matches_per_million(middle - 0.1) or 0) > MILLION / 2
    assert Rule("threshold", 0.5).false_matches_per_million(0.5) is None


# -- of a hot set --


def against(**banks):
    one = CALIBRATION if banks.pop("calibrated", True) else None
    mirror = Mirror(MODEL, "cpu")
    described = [(reference(f"r{n}", name), descriptors(n)) for n, name in enumerate(banks)]
    mirror.load(snapshot(banks.values(), described, calibration=one))
    return mirror.against()


def test_rules_are_made_anew_only_where_something_changed():
    rules = Rules(["plain"])
    there = against(a=budget(10_000, name="a"), b=budget(10_000, name="b"))
    first = rules.of(there)
    assert {name: rule.state for name, rule in first.rules.items()} == {
        "a": "budget",
        "b": "budget",
    }
    again = rules.of(replace(there, version=Version(9, 9)))
    assert again.rules["a"] is first.rules["a"]
    assert again.masked is first.masked
    changed = {**there.banks, "b": budget(20_000, name="b")}
    third = rules.of(replace(there, banks=changed))
    assert third.rules["a"] is first.rules["a"]
    assert threshold(third.rules["b"]) < threshold(first.rules["b"])
    moved = replace(there, best={**there.best, "a": there.best["a"] + 0.1})
    assert threshold(rules.of(moved).rules["a"]) > threshold(first.rules["a"])
    assert rules.of(replace(there, copies=frozenset(["f" * 64]))).masked is not first.masked


def test_offsets_and_false_matches_are_the_calibrations():
    applied = Rules(["plain"]).of(against(a=bank("a")))
    queries = torch.from_numpy(descriptors(3).rows).float()
    assert applied.offsets(queries) == pytest.approx(MASKED.offsets(queries).tolist())
    assert applied.false_matches_of(queries, -2, ["plain"]) == MILLION
    plain = Rules(["plain"]).of(against(a=bank("a"), calibrated=False))
    assert plain.offsets(queries) == [0.0, 0.0]


def test_the_lowest_threshold_and_those_of_a_tenant():
    there = against(
        a=bank("a", threshold=0.4, tenants=("t1",)),
        b=bank("b", threshold=0.6),
        c=bank("c", threshold=0.2, enabled=False),
        d=bank("d", threshold=None),
        calibrated=False,
    )
    applied = Rules(["plain"]).of(there)
    assert applied.thresholds("t1") == {"a": 0.4, "b": 0.6}
    assert applied.thresholds("t2") == {"b": 0.6}
    assert applied.thresholds(None) == {"a": 0.4, "b": 0.6}
    assert applied.lowest_threshold(None) == 0.4
    assert Rules(["plain"]).of(against(d=bank("d", threshold=None))).lowest_threshold(None) == inf


def test_thresholds_and_banks_without_a_rule_are_metrics():
    rules = Rules(["plain"])
    rules.of(
        against(
            metric_a=budget(10_000, name="metric_a"),
            metric_b=budget(1, name="metric_b"),
            metric_c=bank("metric_c", threshold=None),
            metric_d=bank("metric_d", threshold=None, enabled=False),
        )
    )
    assert metrics.BANKS_WITHOUT_RULE._value.get() == 2
    assert metrics.BANK_THRESHOLD.labels("metric_a")._value.get() < inf
    assert metrics.BANK_THRESHOLD.labels("metric_c")._value.get() == inf
    rules.of(against(metric_a=bank("metric_a", threshold=0.25), calibrated=False))
    assert metrics.BANKS_WITHOUT_RULE._value.get() == 0
    (family,) = metrics.BANK_THRESHOLD.collect()
    told = {one.labels["bank"]: one.value for one in family.samples}
    assert {name: at for name, at in told.items() if "metric" in name} == {"metric_a": 0.25}


def test_a_bank_that_has_lost_its_references_has_no_null():
    mirror = Mirror(MODEL, "cpu")
    described = [(reference("r1", "a"), descriptors(1)), (reference("r2", "b"), descriptors(2))]
    banks = [budget(10_000, name="a"), budget(10_000, name="b")]
    mirror.load(snapshot(banks, described, calibration=CALIBRATION))
    mirror.apply(Entry(Version(5, 2), "m2", "m1", 0.0, [ReferenceRemoved("r1")]))
    rules = Rules(["plain"]).of(mirror.against()).rules
    assert (rules["a"].state, rules["b"].state) == ("no_references", "budget")


def test_a_calibration_of_which_all_images_are_copies_tells_nothing():
    names = BENIGN.names
    rule = rule_of(budget(10_000), WITH_DIGESTS.without(names), BEST[: 2 * 30])
    assert (rule.state, rule.threshold) == ("not_supported", None)
    queries = torch.from_numpy(descriptors(3).rows).float()
    assert WITH_DIGESTS.without(names).offsets(queries).tolist() == [0.0, 0.0]


def test_rules_are_made_before_the_hot_set_is_searched(monkeypatch):
    """At the load, and before another calibration or another copy changes all of them."""
    names = [f"b{number}" for number in range(5)]
    policies = {name: budget(200_000, name=name, tenants=(name,)) for name in names}
    one, other = calibration(1, null=100), calibration(2, null=100)
    mirror = Mirror(MODEL, "cpu")
    rules = Rules(["plain"])
    mirror.on_prepared = rules.prepare
    described = [(reference(f"r{n}", bank=name), descriptors(n)) for n, name in enumerate(names)]
    mirror.load(snapshot(policies.values(), described, calibration=one))
    made: list[str] = []

    def counted(policy, *arguments):
        made.append(policy.name)
        return rule_of(policy, *arguments)

    monkeypatch.setattr("worker.scoring.rules.rule_of", counted)
    first = rules.of(mirror.against())
    assert made == []
    assert {rule.state for rule in first.rules.values()} == {"budget"}
    assert rules.of(mirror.against()) is first

    def after(seq, *changes: Change, own=()):
        mirror.apply(Entry(Version(5, seq), f"m{seq}", f"m{seq - 1}", 0.0, list(changes)))
        before, applied = list(made), rules.of(mirror.against())
        assert made == [*before, *own]
        return applied

    second = after(2, CalibrationPut(MODEL.sha256, other.id, other))
    assert sorted(made) == names
    assert second.masked is not None
    assert second.masked.calibration is other
    made.clear()
    copied = put(reference("r0", bank="b0", copies=("f" * 64,)))
    assert after(3, copied).against.copies == {"f" * 64}
    assert sorted(made) == names
    made.clear()
    # The bank that loses its reference has other best scores: one rule more.
    assert after(4, ReferenceRemoved("r0"), own=["b0"]).against.copies == frozenset()
    made.clear()
    renamed = put_bank(policies["b1"].model_copy(update={"label": "x"}))
    mirror.apply(Entry(Version(5, 5), "m5", "m4", 0.0, [renamed]))
    rules.of(mirror.against())
    assert made == ["b1"]


def test_thresholds_of_tenants_are_those_of_the_banks_that_screen_them():
    rng = np.random.default_rng(5)
    banks = {
        f"b{number}": bank(
            f"b{number}",
            threshold=float(rng.random()) or 0.5,
            enabled=bool(rng.random() < 0.8),
            tenants=None if rng.random() < 0.3 else tuple(f"t{n}" for n in range(1 + number % 4)),
        )
        for number in range(40)
    }
    applied = Rules(["plain"]).of(against(calibrated=False, **banks))
    for tenant in (None, "t0", "t1", "t2", "t3", "t9"):
        expected = {name: one.threshold for name, one in banks.items() if one.screens(tenant)}
        assert applied.thresholds(tenant) == expected
        assert applied.lowest_threshold(tenant) == min(applied.thresholds(tenant).values())
