from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from tests.fixtures.hot_set import NOW, bank, reference
from worker.hotset.types import MOST_TENANTS, Bank, Heartbeat, Reference


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_false_matches_per_million": 10.0}, "exclude each other"),
        ({"threshold": None, "calibration": "c1"}, "goes with a threshold"),
        ({"suppresses": ("other",)}, "only an allow bank"),
        ({"kind": "allow", "threshold": None}, "must name the banks"),
        ({"kind": "allow", "suppresses": ("other",)}, "no threshold and no budget"),
        (
            {"kind": "allow", "suppresses": ("other",), "threshold": None, "action": "block"},
            "has no action",
        ),
        ({"kind": "allow", "suppresses": ("known-bad",), "threshold": None}, "suppress itself"),
        ({"threshold": float("nan")}, "finite"),
        ({"max_false_matches_per_million": 0.0, "threshold": None}, "greater than 0"),
        ({"tenants": ()}, "at least 1"),
        ({"views": ("plain", "plain")}, "repeat"),
        ({"views": ("sideways",)}, "plain"),
        ({"name": "Known Bad"}, "pattern"),
        ({"enabled": "yes"}, "boolean"),
        ({"colour": "red"}, "not permitted"),
    ],
)
def test_a_bank_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        bank(**changes)


def test_a_bank_without_a_rule_is_allowed():
    assert bank(threshold=None).threshold is None


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_id": "a/b"},
        {"reference_id": ""},
        {"reference_id": "x" * 129},
        {"reference_id": ".hidden"},
        {"added_at": NOW.replace(tzinfo=None)},
        {"expires_at": "2026-01-01T00:00:00Z"},
        {"sha256": "A" * 64},
        {"severity": "extreme"},
    ],
)
def test_a_reference_that_breaks_a_rule_is_refused(changes):
    with pytest.raises(ValidationError):
        reference(**changes)


def test_both_are_the_same_after_json():
    allow = bank(
        "memes", kind="allow", threshold=None, suppresses=("known-bad",), tenants=("t1", "t2")
    )
    one = reference(expires_at=NOW, pdq="0" * 64, note="seen twice")
    assert Bank.model_validate_json(allow.model_dump_json()) == allow
    assert Reference.model_validate_json(one.model_dump_json()) == one


def test_what_a_bank_has_already_is_no_reason_to_refuse_it():
    many = tuple(f"t{n}" for n in range(MOST_TENANTS + 1))
    assert "1,001 tenants, 1,000 at most" in str(bank(tenants=many).refusal(None))
    old = bank(threshold=0.999, tenants=many)  # as an earlier version let it be written
    assert "no copy matches" in str(old.refusal(None))
    off = old.model_copy(update={"enabled": False})
    assert off.refusal(old) is None
    assert "no copy matches" in str(old.model_copy(update={"threshold": 1.0}).refusal(old))


def test_a_heartbeat_of_an_earlier_version_is_read():
    told = {"name": "r", "state": "following", "version": "1-2", "digest": None, "references": 1}
    beat = Heartbeat.model_validate(told | {"rows": 2, "model": "a" * 64, "at": datetime.now(UTC)})
    assert (beat.identity, beat.unusable) == ("r", 0)


def test_in_shadow_any_threshold_may_be_tried_until_it_is_enforced():
    observed = bank(threshold=-1.0, mode="shadow")
    assert observed.refusal(None) is None
    enforced = observed.model_copy(update={"mode": "enforce"})
    assert "nearly every picture" in str(enforced.refusal(observed))
