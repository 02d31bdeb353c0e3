"""What a flood is, and what it does to a match; counting is tested on real servers."""

import threading
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tests.fixtures.hot_set import bank, reference
from worker.events import Action, Severity
from worker.hotset.census import Subject
from worker.hotset.floods import FLOOR, Flooded, Sightings, limit_of
from worker.hotset.types import Hit

SEVERITIES = st.sampled_from(get_args(Severity))
HITS = st.builds(
    lambda of, one: Hit(one, of, "plain", 0.9, 0.9),
    st.builds(
        bank,
        severity=SEVERITIES,
        action=st.sampled_from(get_args(Action)),
        flood_demotes=st.booleans(),
    ),
    st.builds(reference, severity=st.none() | SEVERITIES, confirmed=st.booleans()),
)
IN_FLOOD = st.frozensets(
    st.sampled_from(
        [Subject("known-bad"), Subject("known-bad", "r1"), Subject("b2"), Subject("b2", "r1")]
    )
)


def hit(**changes):
    return Hit(reference(**changes), bank(flood_per_hour=5), "plain", 0.9, 0.9)


@pytest.mark.parametrize(
    ("changes", "screened", "limit"),
    [
        ({"flood_per_hour": 7}, 10**9, 7),
        ({}, 10**9, None),
        ({"flood_per_hour": 7, "mode": "shadow"}, 0, None),
        ({"flood_per_hour": 7, "enabled": False}, 0, None),
        ({"flood_per_hour": 7, "severity": "critical"}, 0, None),
        ({"threshold": None, "max_false_matches_per_million": 5.0}, 0, FLOOR),
        ({"threshold": None, "max_false_matches_per_million": 5.0}, 400_000, FLOOR),
        ({"threshold": None, "max_false_matches_per_million": 5.0}, 1_000_000, 50),
        ({"threshold": None, "max_false_matches_per_million": 5.0}, 1_000_001, 51),
        (
            {"threshold": None, "max_false_matches_per_million": 5.0, "flood_per_hour": 3},
            10**9,
            3,
        ),
    ],
)
def test_the_limit_is_what_was_set_or_follows_from_the_budget(changes, screened, limit):
    assert limit_of(bank(**changes), screened) == limit


@given(HITS, IN_FLOOD)
def test_a_flood_demotes_to_review_or_does_nothing(one, subjects):
    flooded = Flooded(subjects)
    of, action = one.bank, flooded.action(one)
    assert flooded.has(one) == any(subject.bank == "known-bad" for subject in subjects)
    assert action in (of.action, "review")
    if action != of.action:
        assert flooded.has(one)
        assert of.flood_demotes
        assert of.action in ("hold", "block")
        assert "critical" not in (of.severity, one.reference.severity)
        assert not one.reference.confirmed


@given(HITS)
def test_where_nothing_is_in_flood_every_match_keeps_its_action(one):
    assert Flooded().action(one) == one.bank.action
    assert not Flooded().has(one)


@pytest.mark.parametrize("action", ["hold", "block"])
@pytest.mark.parametrize("subject", [Subject("known-bad"), Subject("known-bad", "r1")])
def test_hold_and_block_become_review(action, subject):
    one = Hit(reference(), bank(action=action, flood_demotes=True), "plain", 0.9, 0.9)
    assert Flooded(frozenset({subject})).action(one) == "review"


@given(st.sampled_from(["b", "b-2"]), st.none() | st.sampled_from(["r", "a:b", "1", "a:1"]))
def test_a_subject_is_read_back_as_it_was_written(name, of):
    subject = Subject(name, of)
    assert Subject.parse(str(subject)) == subject
    assert subject.scope == ("reference" if of else "bank")


def test_one_image_is_taken_once_and_counts_for_bank_and_reference():
    sightings = Sightings()
    for image, name in (("i1", "r1"), ("i1", "r1"), ("i2", "r1"), ("i1", "r2")):
        sightings.note(image, [hit(reference_id=name)])
    assert sightings.take() == (
        {
            Subject("known-bad"): {"i1", "i2"},
            Subject("known-bad", "r1"): {"i1", "i2"},
            Subject("known-bad", "r2"): {"i1"},
        },
        4,
    )
    assert sightings.take() == ({}, 0)


def test_exempt_references_and_banks_without_a_limit_are_not_counted():
    sightings = Sightings()
    sightings.note("i1", [hit(confirmed=True), hit(severity="critical")])
    sightings.note("i2", [Hit(reference(), bank(), "plain", 0.9, 0.9)])
    sightings.note("i3", [Hit(reference(), bank(severity="critical"), "plain", 0.9, 0.9)])
    assert sightings.take() == ({}, 3)


def test_what_there_is_no_room_for_is_dropped_and_counted():
    dropped = "copysieve_flood_dropped_total"
    before = REGISTRY.get_sample_value(dropped) or 0
    sightings = Sightings(capacity=5)
    for number in range(4):
        sightings.note(f"i{number}", [hit(reference_id=f"r{number}")])
    images, uploads = sightings.take()
    assert (sum(map(len, images.values())), uploads) == (5, 4)
    assert REGISTRY.get_sample_value(dropped) == before + 3
    sightings.note("new", [hit()])
    sightings.give_back(images, uploads)
    again, uploads = sightings.take()
    assert (sum(map(len, again.values())), uploads) == (5, 5)
    assert REGISTRY.get_sample_value(dropped) == before + 5


def test_nothing_is_lost_between_threads():
    sightings, found, done = Sightings(), set[str](), threading.Event()

    def note(name):
        for number in range(500):
            sightings.note(f"{name}-{number}", [hit()])

    def take():
        while not done.is_set():
            found.update(sightings.take()[0].get(Subject("known-bad"), ()))

    writers = [threading.Thread(target=note, args=(name,)) for name in "ab"]
    reader = threading.Thread(target=take)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    found |= sightings.take()[0].get(Subject("known-bad"), set())
    assert found == {f"{name}-{number}" for name in "ab" for number in range(500)}
