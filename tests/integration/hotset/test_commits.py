"""A change is written whole or not at all, however large it is and whatever lies in its way."""

import pytest

from tests.fixtures.hot_set import CALIBRATIONS, MODEL, bank, descriptors, reference
from tests.fixtures.replicas import KEYS, add, until
from worker.errors import StoreError
from worker.hotset.census import Subject

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("quick_hot_set")]
MANY = 4500
"""References whose rows are more values than one call of a script takes."""


def everything(raw):
    """Every value of every key."""
    read = {b"hash": raw.hgetall, b"stream": raw.xrange, b"string": raw.get, b"set": raw.smembers}
    return {key: read[raw.type(key)](key) for key in raw.keys("*")}


def test_a_change_of_thousands_is_one_entry(replicas, store):
    store.set_bank(bank())
    names = [f"r{n}" for n in range(MANY)]
    rows = descriptors(1)
    store.add_references(((reference(name), rows) for name in names), MODEL)
    one = replicas()
    until(lambda: one.at(store.version()))
    kept = store.keep_calibration(CALIBRATIONS["c1"].artefact, MODEL.sha256)
    before = store.version()
    version = store.apply_calibration(kept, MODEL.sha256, {name: ["f" * 64] for name in names})
    assert version.seq == before.seq + MANY + 1
    until(lambda: one.at(version))
    assert one.sync.state == "following"
    assert one.mirror.against().copies == {"f" * 64}


def wrong_type(key):
    def damage(raw):
        raw.delete(key)
        raw.set(key, "x")

    return damage


def stream_ahead(raw):
    raw.xadd(KEYS.changes, {"a": "b"}, id=f"{raw.hget(KEYS.head, 'epoch').decode()}-99")


def no_number(field):
    return lambda raw: raw.hset(KEYS.head, field, "1e3")


@pytest.mark.parametrize(
    "damage",
    [
        wrong_type(KEYS.audit),
        wrong_type(KEYS.changes),
        wrong_type(KEYS.models),
        wrong_type(KEYS.removed),
        stream_ahead,
        no_number("sum:references"),
        no_number("count:descriptors:" + MODEL.sha256),
    ],
)
def test_a_change_that_fails_has_written_nothing(store, raw, damage):
    store.set_bank(bank())
    add(store, "r1")
    damage(raw)
    failed = 0
    for change in (lambda: add(store, "r2"), lambda: store.remove_references(["r1"])):
        before = everything(raw)
        try:
            change()
        except StoreError:
            failed += 1
            assert everything(raw) == before
    assert failed


def test_a_flood_that_cannot_be_noted_has_not_begun(store, raw):
    store.set_bank(bank())
    wrong_type(KEYS.audit)(raw)
    census = store.census()
    with pytest.raises(StoreError):
        census.begin(Subject("known-bad"), 9, 3)
    assert census.floods() == frozenset()
