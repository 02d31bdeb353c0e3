import pytest
from pydantic import ValidationError

from tests.fixtures.hot_set import NOW, bank, reference
from worker.hotset.types import Bank, Reference


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
        ({"tenants": tuple(f"t{n}" for n in range(1001))}, "at most 1000"),
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
