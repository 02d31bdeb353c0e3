"""However the changes came, a mirror that followed them equals one that loaded a snapshot."""

from datetime import timedelta

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.hot_set import (
    CALIBRATIONS,
    MODEL,
    NOW,
    OTHER_MODEL,
    add_all,
    bank,
    calibrate,
    descriptors,
    reference,
    told,
    unit_rows,
)
from worker.errors import StoreError
from worker.hotset.mirror import Mirror
from worker.scoring import artefact

pytestmark = pytest.mark.redis

IDS = st.sampled_from([f"r{n}" for n in range(6)])
BANKS = st.sampled_from(["bank-a", "bank-b"])
VIEWS = st.sampled_from([("plain",), ("inverted",), ("plain", "inverted")])
TENANTS = st.sampled_from([None, ("t1",), ("t1", "t2")])
TIMES = st.sampled_from([None, NOW - timedelta(days=1), NOW + timedelta(days=1)])

CHANGES = st.one_of(
    st.tuples(st.just("set_bank"), BANKS, VIEWS, TENANTS, st.booleans()),
    st.tuples(st.just("add"), IDS, BANKS, VIEWS, TIMES, st.integers(0, 3)),
    st.tuples(st.just("add_by_other_model"), IDS, BANKS),
    st.tuples(st.just("enable"), IDS, st.booleans()),
    st.tuples(st.just("remove"), IDS),
    st.tuples(st.just("purge"), IDS),
    st.tuples(st.just("remove_bank"), BANKS),
    st.tuples(st.just("calibrate"), st.sampled_from([None, *CALIBRATIONS])),
    st.tuples(st.just("accept")),
)


def change(store, kind, *arguments):
    """Make one change; what the store refuses changes nothing."""
    try:
        match kind, *arguments:
            case "set_bank", name, views, tenants, enabled:
                store.set_bank(bank(name, views=views, tenants=tenants, enabled=enabled))
            case "add", name, bank_name, views, expires_at, seed:
                one = reference(name, bank_name, expires_at=expires_at)
                add_all(store, [(one, descriptors(seed, views))], MODEL)
            case "add_by_other_model", name, bank_name:
                rows = descriptors(0, model=OTHER_MODEL)
                add_all(store, [(reference(name, bank_name), rows)], OTHER_MODEL)
            case "enable", name, enabled:
                store.set_enabled([name], enabled=enabled)
            case "remove", name:
                store.remove_references([name])
            case "purge", name:
                store.purge_references([name])
            case "remove_bank", name:
                store.remove_bank(name)
            case "calibrate", name:
                calibrate(store, name)
            case _:
                store.accept()
    except StoreError:
        pass


def loaded(reader):
    mirror = Mirror(MODEL, "cpu", clock=lambda: NOW)
    mirror.load(reader.snapshot(reader.head()))
    return mirror


def seen(mirror):
    """All that a mirror shows: every row it finds for some queries and tenants, in order."""
    queries = torch.from_numpy(unit_rows(42, 3).astype(np.float32))
    result = mirror.search(queries, [None, "t1", "t3"], 100)
    return result.hits, told(result.against), mirror.sizes(), mirror.head, mirror.tallies()


@pytest.fixture
def emptied(redis_server):
    def flush():
        with redis_server.client() as client:
            client.flushall()

    return flush


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(CHANGES, min_size=1, max_size=4), max_size=10))
def test_following_equals_loading(store, emptied, rounds):
    emptied()
    store.set_bank(bank("bank-a"))
    reader = store.of_model(MODEL, artefact.read_for)
    follower = loaded(reader)
    noted = reader.head()
    for changes in rounds:
        before = store.head().version
        for one in changes:
            change(store, *one)
        if any(kind == "purge" for kind, *_ in changes):
            follower = loaded(reader)  # the stream was cut, as `purge` says
        else:
            head = follower.head
            for entry in reader.changes(head.version, head.mark, wait=False):
                follower.apply(entry)
            assert store.head().version >= before
        assert seen(follower) == seen(loaded(reader))
        assert follower.tallies() == store.head().tallies.of_model(MODEL.sha256)

    # What was noted before a snapshot was read is replayed on top of it, and changes nothing.
    if not any(kind == "purge" for changes in rounds for kind, *_ in changes):
        replayed = Mirror(MODEL, "cpu", clock=lambda: NOW)
        entries = reader.changes(noted.version, noted.mark, wait=False)
        replayed.load(reader.snapshot(noted), entries)
        assert seen(replayed) == seen(follower)
