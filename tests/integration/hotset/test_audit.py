"""The audit log: what every change writes, and its reader on entries written by hand."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from tests.fixtures.hot_set import MODEL, bank, descriptors, reference
from worker.errors import StoreError
from worker.hotset import audit
from worker.hotset.layout import Keys
from worker.hotset.store import open_store

pytestmark = pytest.mark.redis
KEY = Keys("copysieve").audit
BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
FIELDS = {"by": "ann", "what": "bank_set", "detail": '{"bank":"b"}', "version": "1700000000000-1"}


@pytest.fixture
def write(redis_server):
    with redis_server.client() as client:

        def written(minutes, part=0, **changes):
            at = BEGAN + timedelta(minutes=minutes)
            given = (FIELDS | changes).items()
            fields = {name: value for name, value in given if value is not None}
            client.xadd(KEY, fields, id=f"{int(at.timestamp() * 1000)}-{part}")

        yield written


def rejected():
    return REGISTRY.get_sample_value("copysieve_hotset_rejected_total") or 0


def test_an_empty_log_has_nothing(store):
    assert store.audit(None, 10) == []


def test_the_newest_come_first_and_are_whole(store, write):
    write(0)
    detail = {"bank": "b", "references": ["r1", "r2"], "count": 2, "note": "\u00e4 [red]"}
    write(1, what="references_added", detail=json.dumps(detail))
    write(1, 1, by="copysieve", what="flood_began", version="")
    later, bank = BEGAN + timedelta(minutes=1), {"bank": "b"}
    assert [tuple(entry.model_dump().values()) for entry in store.audit(None, 10)] == [
        (later, "copysieve", "flood_began", bank, None),
        (later, "ann", "references_added", detail, "1700000000000-1"),
        (BEGAN, "ann", "bank_set", bank, "1700000000000-1"),
    ]


def test_since_and_limit(store, write):
    for minutes in range(5):
        write(minutes)
    assert len(store.audit(None, 3)) == 3
    assert store.audit(None, 3)[0].at == BEGAN + timedelta(minutes=4)
    assert len(store.audit(BEGAN + timedelta(minutes=2), 50)) == 3
    assert len(store.audit(BEGAN + timedelta(minutes=2, milliseconds=1), 50)) == 2
    assert store.audit(BEGAN + timedelta(days=1), 50) == []
    assert len(store.audit(datetime(1960, 1, 1, tzinfo=UTC), 50)) == 5


@pytest.mark.parametrize(
    "damage",
    [
        {"by": ""},
        {"by": None},
        {"what": "Bank Set"},
        {"what": None},
        {"detail": "no JSON"},
        {"detail": "[1]"},
        {"detail": "[" * 100_000},
        {"detail": None},
        {"version": "7"},
        {"colour": "red"},
        {"at": "2026-01-01T00:00:00Z", "by": b"\xff"},
    ],
)
def test_what_is_damaged_is_told_and_skipped(store, write, damage):
    before = rejected()
    write(0)
    write(1, **damage)
    write(2)
    found = store.audit(None, 2)
    if "at" in damage:  # bytes that are no text stay tellable, and the id alone is the time
        assert [entry.by for entry in found] == ["ann", "\\xff"]
        assert found[1].at == BEGAN + timedelta(minutes=1)
    else:
        assert [entry.at for entry in found] == [BEGAN + timedelta(minutes=2), BEGAN]
        assert rejected() == before + 1


def test_an_id_that_is_no_time_is_damage(store, write, redis_server):
    write(0)
    with redis_server.client() as client:
        client.xadd(KEY, FIELDS, id=f"{2**63}-0")
    assert [entry.at for entry in store.audit(None, 5)] == [BEGAN]


def test_a_long_log_is_read_page_by_page(store, write, monkeypatch):
    monkeypatch.setattr(audit, "_PAGE", 3)
    for minutes in range(10):
        write(minutes, by="" if minutes % 2 else "ann")
    assert [entry.at for entry in store.audit(None, 4)] == [
        BEGAN + timedelta(minutes=minutes) for minutes in (8, 6, 4, 2)
    ]
    assert len(store.audit(None, 50)) == 5


def test_every_change_is_noted_in_one_step_with_it(store):
    version = store.set_bank(bank())
    store.set_bank(bank())  # changes nothing
    described = [(reference(name), descriptors()) for name in ("r1", "r2")]
    store.add_references(described, MODEL)
    store.set_enabled(["r1"], enabled=False)
    store.remove_references(["r1"])
    store.purge_references(["r1", "r2"])
    last = store.accept().version
    noted = store.audit(None, 50)[::-1]
    assert [entry.what for entry in noted] == [
        "bank_set",
        "references_added",
        "references_changed",
        "references_removed",
        "references_purged",
        "accepted",
    ]
    assert {entry.by for entry in noted} == {"bob"}
    assert (noted[0].version, noted[-1].version) == (str(version), str(last))
    assert noted[0].detail == bank().model_dump(mode="json")
    assert noted[1].detail == {"references": ["r1", "r2"], "count": 2}
    assert noted[2].detail == {"enabled": False, "references": ["r1"], "count": 1}
    assert noted[-1].detail == {"references": 0, "removed": []}


def test_who_does_it_has_a_name(redis_settings):
    for nobody in ("", "x" * 1001):
        with pytest.raises(StoreError, match="who"):
            open_store(redis_settings, by=nobody)


def test_old_entries_may_go():
    assert audit.oldest_kept(1_000_000_000) == (1_000_000_000 - 400 * 86_400) * 1000
    assert audit.oldest_kept(0) == 0
