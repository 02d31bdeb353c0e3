import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from worker.canary.watch import DEADLINE_SECONDS, Missed, Watch
from worker.stream.tools import Result

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


def after(seconds):
    return BEGAN + timedelta(seconds=seconds)


def result(upload_id, *reference_ids, at=1.0, hot_set=True, value=None):
    event = {
        "hot_set": {"epoch": 1, "seq": 2} if hot_set else None,
        "matches": [{"reference_id": one} for one in reference_ids],
        "something": "of a later version",
    }
    value = json.dumps(event).encode() if value is None else value
    return Result("shadow", upload_id.encode(), value, after(at), after(at))


def value(name, **labels):
    return REGISTRY.get_sample_value(f"copysieve_{name}", labels) or 0.0


def counted():
    missed = {one.value: value("canaries_missed_total", reason=one.value) for one in Missed}
    return missed | {"recognised": value("canaries_recognised_total")}


@pytest.fixture
def watch():
    one = Watch()
    one.expect("canary:1", "ref-1", BEGAN)
    return one


@pytest.fixture
def changes():
    """How the counters have changed since the test began."""
    before = counted()
    return lambda: {name: n - before[name] for name, n in counted().items() if n != before[name]}


def test_its_own_reference_among_the_matches_is_recognition(watch, changes):
    seconds = value("canary_seconds_sum")
    watch.take(result("canary:1", "ref-2", "ref-1", at=2.5))
    assert changes() == {"recognised": 1}
    assert value("canary_seconds_sum") - seconds == 2.5
    assert value("canary_last_recognised_timestamp_seconds") == after(2.5).timestamp()


@pytest.mark.parametrize(
    ("came", "missed"),
    [
        (result("canary:1"), "not_matched"),
        (result("canary:1", "ref-2"), "not_matched"),
        (result("canary:1", hot_set=False), "unscreened"),
        (result("canary:1", "ref-1", at=DEADLINE_SECONDS + 1), "lost"),
    ],
    ids=["no match", "another reference", "unscreened", "too late"],
)
def test_anything_else_is_missed(watch, changes, came, missed):
    watch.take(came)
    assert changes() == {missed: 1}
    assert not len(watch)


def test_what_another_namespace_finds_in_it_is_no_result(watch, changes):
    """It screens our canaries as uploads, perhaps to the same topics."""
    theirs = result("canary:1", "ref-2")
    watch.take(replace(theirs, headers=(("ce_type", b"copysieve.shadow.v1"),)))
    assert changes() == {}
    ours = result("canary:1", "ref-1")
    watch.take(replace(ours, headers=(("ce_type", b"copysieve.canary.v1"),)))
    assert changes() == {"recognised": 1}


def test_each_canary_counts_once(watch, changes):
    for _ in range(2):
        watch.take(result("canary:1", "ref-1"))
    watch.take(result("canary:1"))
    watch.expire(after(1000))
    assert changes() == {"recognised": 1}


def test_what_never_comes_is_lost_at_the_deadline(watch, changes):
    watch.expire(after(DEADLINE_SECONDS))
    assert changes() == {}
    watch.expire(after(DEADLINE_SECONDS + 1))
    assert changes() == {"lost": 1}


def test_what_kafka_did_not_take_is_not_missed(watch, changes):
    watch.forget("canary:1")
    watch.expire(after(1000))
    assert changes() == {}


@pytest.mark.parametrize(
    "came",
    [
        result("canary:2", "ref-1"),
        result("u1", "ref-1"),
        Result("shadow", None, b"{}", BEGAN, BEGAN),
        result("canary:1", value=b"{"),
        result("canary:1", value=b"\xff"),
        result("canary:1", value=b"[]"),
        result("canary:1", value=b'{"hot_set": {}, "matches": [7]}'),
    ],
)
def test_what_is_nothing_of_ours_changes_nothing(watch, changes, came):
    watch.take(came)
    assert changes() == {}
    assert len(watch) == 1
