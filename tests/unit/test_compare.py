"""Comparing uploads of several looks with the hot set."""

import math

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import MODEL, bank, calibration, descriptors, reference, snapshot
from worker.compare import CANDIDATES, CROWD, compare
from worker.hotset.mirror import Mirror
from worker.hotset.types import Descriptors, Entry, Head, ReferenceRemoved, View
from worker.records import Version
from worker.scoring.rules import Rules

RULES = Rules(["plain"])


def mirror_of(*references, tenants=None, alike=False):
    mirror = Mirror(MODEL, "cpu")
    policy = bank(threshold=0.99, tenants=tenants)
    described = [
        (one, descriptors(0 if alike else seed, ("plain",))) for seed, one in enumerate(references)
    ]
    mirror.load(snapshot([policy], described))
    return mirror


def looks(*seeds):
    """The descriptors of an upload whose looks are references 0, 1, ... (None: like nothing)."""
    rows = [
        -descriptors(0, ("plain",)).rows[0]
        if seed is None
        else descriptors(seed, ("plain",)).rows[0]
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def told(compared):
    return [(one.reference.reference_id, one.look) for one in compared.decision.enforced]


def test_each_upload_has_the_matches_of_its_own_looks():
    mirror = mirror_of(reference("r0"), reference("r1"), reference("r2"))
    uploads = [looks(None), looks(None, 1, None, 0), looks(2), looks(2, 2)]
    found = list(compare(mirror, RULES, uploads, [None] * 4))
    assert [sorted(told(one)) for one in found] == [
        [],
        [("r0", 3), ("r1", 1)],
        [("r2", 0)],
        [("r2", 0)],
    ]


def test_tenants_and_canaries_are_the_uploads_whatever_their_looks():
    mirror = mirror_of(reference("r0"), reference("r1", canary=True), tenants=("t1",))
    uploads = [looks(0, 1), looks(0, 1), looks(1, 0), looks(1)]
    found = list(
        compare(mirror, RULES, uploads, ["t1", "t2", None, "t1"], [False, False, False, True])
    )
    assert [told(one) for one in found] == [[("r0", 0)], [], [("r0", 1)], []]
    assert [one.reference.reference_id for one in found[3].decision.shadow] == ["r1"]


def test_the_version_told_is_one_that_all_looks_were_compared_with(monkeypatch):
    count = 2 * CANDIDATES
    mirror = mirror_of(*(reference(f"r{number:03}") for number in range(count)), alike=True)
    search = mirror.search

    def and_a_change_comes_in(*arguments):
        found = search(*arguments)
        mirror._set._head = Head(Version(5, found.against.version.seq + 1), "m", "")
        return found

    monkeypatch.setattr(mirror, "search", and_a_change_comes_in)
    uploads = [looks(None), looks(0), looks(None, 0), looks(None)]
    found = list(compare(mirror, RULES, uploads, [None] * 4))
    # An upload that is searched again is compared with the later one, in all its looks.
    assert [one.version.seq for one in found] == [1, 2, 2, 1]


def test_a_crowd_in_one_look_hides_nothing():
    count = 2 * CANDIDATES
    mirror = mirror_of(*(reference(f"r{number:03}") for number in range(count)), alike=True)
    (found,) = compare(mirror, RULES, [looks(None, 0)], [None])
    assert len(found.decision.enforced) == count


def test_what_is_seen_of_each_bank_and_from_which_score_on():
    few = mirror_of(reference("r0"), reference("r1", shadow=True))
    (found,) = compare(few, RULES, [looks(1, 0)], [None])
    own = descriptors(1, ("plain",)).rows[0] @ descriptors(0, ("plain",)).rows[0]
    assert found.decision.best_scores == {"known-bad": pytest.approx(1, abs=1e-2)}
    (found,) = compare(few, RULES, [looks(1)], [None])  # in shadow: the null is without it
    assert found.decision.best_scores == {"known-bad": pytest.approx(float(own), abs=1e-2)}
    assert found.decision.seen_from == -math.inf

    many = mirror_of(*(reference(f"r{number:03}") for number in range(2 * CANDIDATES)))
    (found,) = compare(many, RULES, [looks(0, None)], [None])
    rows = torch.cat([looks(number) for number in range(2 * CANDIDATES)])
    last = (rows @ looks(0, None).T).topk(CANDIDATES, dim=0).values[-1].max()
    assert found.decision.seen_from == pytest.approx(float(last), abs=1e-2)

    crowd = mirror_of(*(reference(f"r{number:03}") for number in range(2 * CANDIDATES)), alike=True)
    (found,) = compare(crowd, RULES, [looks(0)], [None])
    assert found.decision.seen_from == math.inf


@pytest.mark.parametrize("mode", ["shadow", "enforce"])
@pytest.mark.parametrize("looked", [1, 40])
def test_a_crowd_in_other_banks_hides_no_match(mode, looked):
    """However many rows of however many banks are more like the upload than the one that counts."""
    views: tuple[View, ...] = (
        "plain",
        "inverted",
        "mirrored",
        "rotated_90",
        "rotated_180",
        "rotated_270",
    )
    symmetric = Descriptors(views, np.repeat(along(1), 6, axis=0))
    banks = [bank("a", views=views, mode=mode), bank("b", views=views, mode=mode), bank()]
    banks.append(bank("fine", kind="allow", threshold=None, views=views, suppresses=("a",)))
    described = [
        (reference(f"{name}{number}", bank=name), symmetric)
        for name in ("a", "b", "fine")
        for number in range(700)
    ]
    described += [
        (reference(f"s{number}", shadow=True), Descriptors(("plain",), along(1)))
        for number in range(700)
    ]
    described.append((reference("bad"), Descriptors(("plain",), along(1, 1))))
    mirror = Mirror(MODEL, "cpu")
    mirror.load(snapshot(banks, described))
    upload = torch.from_numpy(along(1).astype(np.float32)).expand(looked, -1)
    (found,) = compare(mirror, RULES, [upload], [None])
    decision = found.decision
    assert "bad" in {one.reference.reference_id for one in decision.enforced}
    matched = [*decision.enforced, *decision.shadow]
    assert {one.bank.name for one in matched} == {"a", "b", "known-bad"}
    assert len(matched) <= CROWD


def test_allow_references_do_not_overrule_a_bank_that_was_cut_short(monkeypatch):
    """All that was looked at is overruled, but not what was left out."""
    mirror = Mirror(MODEL, "cpu")
    banks = [bank(), bank("fine", kind="allow", threshold=None, suppresses=("known-bad",))]
    described = [
        (reference(f"r{number:03}"), Descriptors(("plain",), along(1, 0.6)))
        for number in range(200)
    ]
    described.append((reference("good", bank="fine"), Descriptors(("plain",), along(1, 0.5))))
    described.append((reference("bad"), Descriptors(("plain",), along(1, -1))))
    mirror.load(snapshot(banks, described))
    upload = torch.from_numpy(along(1).astype(np.float32))
    monkeypatch.setattr("worker.compare.CROWD", 1000)
    (found,) = compare(mirror, RULES, [upload], [None])
    assert told(found) == [("bad", 0)]
    overruled = {one.match.reference.reference_id for one in found.decision.suppressed}
    assert overruled == {f"r{number:03}" for number in range(200)}
    monkeypatch.setattr("worker.compare.CROWD", 100)
    (found,) = compare(mirror, RULES, [upload], [None])
    assert told(found) == [("r000", 0)]


def test_the_banks_best_scores_are_those_that_its_null_consists_of():
    known = calibration(null=200, way="centre", looks=("plain", "centre_crop"))
    mirror = Mirror(MODEL, "cpu")
    described = [(reference(f"r{one}", shadow=one == 4), descriptors(one)) for one in range(5)]
    policy = bank(threshold=None, max_false_matches_per_million=50_000)
    mirror.load(snapshot([policy], described, calibration=known))
    rules = Rules(known.looks)
    found = list(compare(mirror, rules, list(known.null), [None] * 200))
    null = found[0].applied.rules[policy.name].null
    assert null is not None
    scores = [one.decision.best_scores[policy.name] for one in found]
    assert scores == pytest.approx(null.scores.tolist(), abs=1e-4)


def along(*weights):
    """A unit vector with these weights on the first axes, as stored: fp16 [1, dims]."""
    row = np.zeros((1, MODEL.dims))
    row[0, : len(weights)] = weights
    return (row / np.linalg.norm(row)).astype(np.float16)


def allowing(allowed, known=None):
    """A mirror with a bad reference on the first axis, and an allow reference at `allowed`."""
    mirror = Mirror(MODEL, "cpu")
    banks = [
        bank(threshold=0.5, calibration=known.id if known else None),
        bank("fine", kind="allow", threshold=None, suppresses=("known-bad",)),
    ]
    described = [
        (reference("bad"), Descriptors(("plain",), along(1))),
        (reference("good", bank="fine"), Descriptors(("plain",), allowed)),
    ]
    mirror.load(snapshot(banks, described, calibration=known))
    return mirror


@pytest.mark.parametrize(
    ("allowed", "stands"),
    [(along(0, 1), True), (along(0.45, 1), True), (along(0.7, 1), False)],
    ids=["another picture", "somewhat like it", "a look-alike"],
)
def test_a_picture_beside_an_allowed_one_is_matched_unless_they_look_alike(allowed, stands):
    beside = torch.from_numpy((along(1, 1.6)).astype(np.float32))
    (found,) = compare(allowing(allowed), RULES, [beside], [None])
    overruled = [one.by.reference.reference_id for one in found.decision.suppressed]
    assert told(found) == ([("bad", 0)] if stands else [])
    assert overruled == ([] if stands else ["good"])


@pytest.mark.parametrize("known", [None, calibration(beta=0.5), calibration(way="whiten")])
def test_an_allow_reference_is_scored_as_if_it_were_uploaded(known):
    mirror = allowing(along(0.7, 1, 0.3), known)
    upload = torch.from_numpy(along(0.7, 1, 0.3).astype(np.float32))
    found = mirror.search(upload, [None], 2)
    applied = Rules(["plain"]).of(found.against)
    hits = {hit.reference.reference_id: hit for hit in found.hits[0]}
    expected = hits["bad"].similarity - applied.offsets(upload)[0]
    rows = mirror.rows_of([hits["good"], hits["bad"]])
    assert applied.scores(rows[:1], rows[1:]) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("changed", ["good", "bad"])
def test_the_match_stands_where_a_reference_changed_after_the_search(monkeypatch, changed):
    mirror = allowing(along(0.7, 1))
    search = mirror.search

    def and_a_change_comes_in(*arguments):
        found = search(*arguments)
        mirror.apply(Entry(Version(5, 2), "m2", "m1", 0.0, [ReferenceRemoved(changed)]))
        return found

    upload = torch.from_numpy(along(1, 1.6).astype(np.float32))
    (before,) = compare(mirror, RULES, [upload], [None])
    assert told(before) == []
    monkeypatch.setattr(mirror, "search", and_a_change_comes_in)
    (found,) = compare(mirror, RULES, [upload], [None])
    assert told(found) == [("bad", 0)]
