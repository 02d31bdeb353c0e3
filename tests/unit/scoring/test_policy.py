from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from worker.hotset.types import Bank, Hit, Reference
from worker.scoring import policy
from worker.scoring.policy import score
from worker.scoring.rules import Rule, rule_of


def bank(name="bad", **fields):
    return Bank(**{"name": name, "label": name, "severity": "high", "threshold": 0.5} | fields)


def allow(name="good", suppresses=("bad",)):
    return Bank(name=name, label=name, severity="low", kind="allow", suppresses=suppresses)


def hit(of, cosine, reference_id="r1", view="plain", **fields):
    reference = Reference(
        reference_id=reference_id,
        bank=of.name,
        added_by="test",
        added_at=datetime.now(UTC),
        **fields,
    )
    return Hit(reference, of, view, cosine, cosine)


def rules_of(hits):
    return {one.bank.name: rule_of(one.bank, None, None) for one in hits}


def resembling(scores):
    """Look scores up by the ids of an allow reference and a matched one; NaN for other pairs."""

    def resemblance(allow, matched):
        names = [
            [(a.reference.reference_id, m.reference.reference_id) for m in matched] for a in allow
        ]
        return np.array([[scores.get(pair, np.nan) for pair in row] for row in names])

    return resemblance


def alike(allow, matched):
    """Every allow reference resembles every matched one."""
    return np.ones((len(allow), len(matched)))


def decide(hits, offset=0.0, resemblance=alike):
    return policy.decide(score(hits, offset), rules_of(hits), resemblance=resemblance)


def ids(found):
    return [one.reference.reference_id for one in found]


def test_a_hit_at_the_threshold_matches_and_one_below_does_not():
    decision = decide([hit(bank(), 0.5, "at"), hit(bank(), 0.4999, "below")])
    assert ids(decision.enforced) == ["at"]
    assert not decision.shadow
    assert decision.best_score == 0.5


def test_best_first_and_each_reference_once_by_its_best_view():
    decision = decide(
        [hit(bank(), 0.6, "a"), hit(bank(), 0.9, "a", "inverted"), hit(bank(), 0.7, "b")]
    )
    assert [(one.reference.reference_id, one.hit.view) for one in decision.enforced] == [
        ("a", "inverted"),
        ("b", "plain"),
    ]


def test_the_offset_comes_off_every_score():
    decision = decide([hit(bank(), 0.8)], offset=0.25)
    assert decision.enforced[0].score == pytest.approx(0.55)
    assert not decide([hit(bank(), 0.7)], offset=0.25).enforced


@pytest.mark.parametrize(
    "shadowed",
    [hit(bank(mode="shadow"), 0.9), hit(bank(), 0.9, canary=True)],
    ids=["shadow bank", "canary"],
)
def test_shadow_is_told_and_not_enforced(shadowed):
    decision = decide([shadowed])
    assert not decision.enforced
    assert ids(decision.shadow) == ["r1"]


def test_a_bank_that_nothing_can_be_enforced_of_matches_in_shadow_or_not_at_all():
    one = hit(bank(threshold=None), 0.9)
    silent = policy.decide(score([one]), {"bad": Rule("no_calibration")})
    assert not silent.enforced
    assert not silent.shadow
    shown = policy.decide(score([one]), {"bad": Rule("not_supported", threshold=0.5)})
    assert not shown.enforced
    assert [match.threshold for match in shown.shadow] == [0.5]


def test_scores_are_similarities_less_the_offset():
    one = replace(hit(bank(), 0.9), similarity=0.4)
    decision = policy.decide(score([one], offset=0.25), {"bad": Rule("threshold", 0.1)})
    assert decision.enforced[0].score == pytest.approx(0.15)
    assert decision.enforced[0].hit.cosine == 0.9


def test_an_allow_reference_overrules_by_a_higher_score_on_the_same_view():
    decision = decide([hit(bank(), 0.7, "bad"), hit(allow(), 0.8, "good")])
    assert not decision.enforced
    (one,) = decision.suppressed
    assert (one.match.reference.reference_id, one.by.reference.reference_id) == ("bad", "good")


@pytest.mark.parametrize(
    ("match", "by"),
    [
        (hit(bank(), 0.8, "bad"), hit(allow(), 0.7, "good")),
        (hit(bank(), 0.7, "bad"), hit(allow(), 0.8, "good", "inverted")),
        (hit(bank(), 0.7, "bad"), hit(allow(suppresses=("other",)), 0.8, "good")),
        (hit(bank(severity="critical"), 0.7, "bad"), hit(allow(), 0.8, "good")),
        (hit(bank(), 0.7, "bad", severity="critical"), hit(allow(), 0.8, "good")),
    ],
    ids=["lower score", "other view", "other bank", "critical bank", "critical reference"],
)
def test_an_allow_reference_does_not_overrule(match, by):
    decision = decide([match, by])
    assert ids(decision.enforced) == ["bad"]
    assert not decision.suppressed


def test_a_reference_that_matches_by_another_view_is_not_suppressed():
    decision = decide(
        [hit(bank(), 0.7, "bad"), hit(bank(), 0.6, "bad", "inverted"), hit(allow(), 0.8, "good")]
    )
    assert [one.hit.view for one in decision.enforced] == ["inverted"]
    assert not decision.suppressed


def test_the_best_look_of_an_upload_makes_the_match_and_the_offsets_are_each_looks_own():
    plain = score([hit(bank(), 0.6), hit(bank(), 0.58, "r2")], offset=0.0, look=0)
    crop = score([hit(bank(), 0.9), hit(bank(), 0.58, "r2")], offset=0.2, look=3)
    decision = policy.decide(plain + crop, rules_of([one.hit for one in plain]))
    assert [(one.reference.reference_id, one.look) for one in decision.enforced] == [
        ("r1", 3),
        ("r2", 0),
    ]
    assert decision.enforced[0].score == pytest.approx(0.7)


def test_of_allow_references_the_best_one_overrules():
    match = score([hit(bank(), 0.7, "bad"), hit(bank("worse"), 0.8, "bad2")])
    fine = score([hit(allow(), 0.75, "good"), hit(allow(), 0.9, "best"), hit(allow(), 0.8, "b")])
    decision = policy.decide(match + fine, rules_of(one.hit for one in match), resemblance=alike)
    assert [
        (o.match.reference.reference_id, o.by.reference.reference_id) for o in decision.suppressed
    ] == [("bad", "best")]
    assert ids(decision.enforced) == ["bad2"]


def test_an_allow_reference_overrules_on_the_same_look_only():
    match = score([hit(bank(), 0.7, "bad")], look=1)
    rules = rules_of([match[0].hit])
    elsewhere = score([hit(allow(), 0.9, "good")], look=0)
    assert ids(policy.decide(match + elsewhere, rules, resemblance=alike).enforced) == ["bad"]
    there = score([hit(allow(), 0.9, "good")], look=1)
    assert not policy.decide(match + there, rules, resemblance=alike).enforced


@pytest.mark.parametrize(
    ("scores", "enforced"),
    [
        ({("good", "bad"): 0.5}, []),
        ({("good", "bad"): 0.4999}, ["bad"]),
        ({}, ["bad"]),
    ],
    ids=["at the threshold", "below the threshold", "not known"],
)
def test_an_allow_reference_overrules_only_what_it_would_match_itself(scores, enforced):
    hits = [hit(bank(), 0.7, "bad"), hit(allow(), 0.8, "good")]
    decision = decide(hits, resemblance=resembling(scores))
    assert ids(decision.enforced) == enforced
    assert len(decision.suppressed) == 1 - len(enforced)


def test_without_the_descriptors_every_match_stands():
    hits = [hit(bank(), 0.7, "bad"), hit(allow(), 0.8, "good")]
    assert ids(policy.decide(score(hits), rules_of(hits)).enforced) == ["bad"]


def test_each_match_is_overruled_by_the_best_allow_reference_that_resembles_it():
    hits = [
        hit(bank(), 0.6, "bad1"),
        hit(bank(), 0.65, "bad2"),
        hit(bank(), 0.7, "bad3"),
        hit(bank("strict", threshold=0.55), 0.6, "bad4"),
        hit(allow(suppresses=("bad", "strict")), 0.95, "best"),
        hit(allow(), 0.9, "second"),
        hit(allow(), 0.68, "third"),
    ]
    scores = {
        ("best", "bad1"): 0.1,
        ("second", "bad1"): 0.5,
        ("third", "bad1"): 0.9,
        ("best", "bad2"): 0.6,
        ("third", "bad3"): 0.9,  # but it scores lower than the match
        ("best", "bad4"): 0.52,  # enough for the bank bad, too little for the bank strict
    }
    decision = decide(hits, resemblance=resembling(scores))
    assert ids(decision.enforced) == ["bad3", "bad4"]
    assert [
        (o.match.reference.reference_id, o.by.reference.reference_id) for o in decision.suppressed
    ] == [("bad2", "best"), ("bad1", "second")]


def test_a_match_without_a_rival_asks_for_no_resemblance():
    def refuse(_allow, _matched):
        raise AssertionError

    hits = [
        hit(bank(), 0.9, "bad"),
        hit(bank(), 0.4, "below"),
        hit(bank("worst", severity="critical"), 0.6, "worst"),
        hit(allow(suppresses=("bad", "worst")), 0.8, "good"),
    ]
    assert ids(decide(hits, resemblance=refuse).enforced) == ["bad", "worst"]
