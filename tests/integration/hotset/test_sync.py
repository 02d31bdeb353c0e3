"""The hot-set thread against real servers: what goes wrong, and that it comes right again."""

import threading
import time

import pytest
from pydantic import SecretStr

from tests.fixtures.hot_set import (
    CALIBRATIONS,
    MODEL,
    NOW,
    OTHER_MODEL,
    bank,
    calibrate,
    calibration,
)
from tests.fixtures.replicas import KEYS, PATIENCE, Replica, add, away, both, resyncs, until
from worker.embedded import redis
from worker.hotset import layout
from worker.hotset import sync as syncs
from worker.hotset.reader import Reader
from worker.hotset.store import open_store
from worker.scoring.projection import Projection
from worker.settings import Redis
from worker.telemetry import metrics

pytestmark = pytest.mark.redis


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(syncs, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(syncs, "HEARTBEAT_SECONDS", 0.1)


def test_it_waits_for_an_epoch_and_then_follows(replicas, store):
    one = replicas()
    assert not one.sync.wait_ready(0.2, lambda: False)
    until(lambda: [beat.state for beat in store.heartbeats()] == ["waiting"])
    store.set_bank(bank())
    assert one.sync.wait_ready(PATIENCE, lambda: False)
    assert one.sync.ready
    version = add(store, "r1", "r2")
    until(lambda: one.at(version))
    assert one.found() == both("r1", "r2")
    assert one.sync.state == "following"


def test_waiting_can_be_given_up(replicas):
    assert not replicas().sync.wait_ready(None, lambda: True)


def test_two_mirrors_converge_and_tell(replicas, store):
    store.set_bank(bank())
    add(store, "r1")
    early = replicas("early")
    early.sync.wait_ready(PATIENCE, lambda: False)
    add(store, *[f"r{n}" for n in range(2, 40)])
    store.set_enabled(["r3"], enabled=False)
    late = replicas("late")
    store.remove_references(["r4"])
    version = calibrate(store, "c1")
    until(lambda: early.at(version) and late.at(version))
    expected = both(*{f"r{n}" for n in range(1, 40)} - {"r3", "r4"})
    assert early.found() == late.found() == expected

    def told():
        beats = {beat.name: beat for beat in store.heartbeats()}
        return all(
            name in beats and beats[name].version == str(version) for name in ("early", "late")
        )

    until(told)
    beat = store.heartbeats()[0]
    assert (beat.state, beat.references, beat.rows, beat.unusable) == ("following", 38, 74, 0)
    early.sync.stop()
    assert [beat.name for beat in store.heartbeats()] == ["late"]


def test_a_change_is_told_of_at_once_not_at_the_next_heartbeat(replicas, store, monkeypatch):
    store.set_bank(bank())
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    monkeypatch.setattr(syncs, "HEARTBEAT_SECONDS", 1e9)
    version = add(store, "r1")
    until(lambda: [beat.version for beat in store.heartbeats()] == [str(version)])


def test_a_replica_can_be_waited_for_before_it_reads_and_while_it_does(
    redis_settings, store, raw, monkeypatch
):
    monkeypatch.setattr(syncs, "HEARTBEAT_SECONDS", 0.0)
    store.set_bank(bank())
    one = Replica(redis_settings)
    reader, live = one.sync._reader, []
    snapshot, changes = reader.snapshot, reader.changes

    def read(head):
        live.append([(beat.state, beat.version) for beat in store.heartbeats()])
        raw.delete(KEYS.replica(one.sync.identity))  # a load longer than a heartbeat lasts
        return snapshot(head)

    def follow(*args, **kwargs):
        live.append([(beat.state, beat.version) for beat in store.heartbeats()])
        return changes(*args, **kwargs)

    monkeypatch.setattr(reader, "snapshot", read)
    monkeypatch.setattr(reader, "changes", follow)
    one.sync.start()
    assert one.sync.wait_ready(PATIENCE, lambda: False)
    one.stop()
    assert live[:2] == [[("loading", None)]] * 2


@pytest.mark.parametrize("what", ["load", "apply"])
def test_it_stays_live_however_long_null_images_take(redis_settings, store, raw, monkeypatch, what):
    """Its heartbeat expires, again and again, while they are compared with the bank."""
    store.set_bank(bank())
    add(store, "r1")
    one, project = Replica(redis_settings), Projection.__call__
    seen: list[list[tuple[str, str | None]]] = []

    def slowly(self, rows):
        if threading.current_thread() is one.sync._thread and len(seen) < 3:
            raw.delete(KEYS.replica(one.sync.identity))
            until(store.heartbeats)
            seen.append([(beat.state, beat.version) for beat in store.heartbeats()])
        return project(self, rows)

    monkeypatch.setattr(Projection, "__call__", slowly)
    if what == "load":
        calibrate(store, "c2")
    before = store.version()
    one.sync.start()
    if what == "apply":
        assert one.sync.wait_ready(PATIENCE, lambda: False)
        calibrate(store, "c2")
    try:
        until(lambda: one.at(store.version()) and len(seen) == 3)
    finally:
        one.stop()
    standing = ("loading", None) if what == "load" else ("following", str(before))
    assert seen == [[standing]] * 3


def test_another_state_is_told_of_at_once(replicas, store, raw, monkeypatch):
    store.set_bank(bank())
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    monkeypatch.setattr(syncs, "HEARTBEAT_SECONDS", 1e9)
    with away(one):
        pass
    until(lambda: one.sync.state == "following")
    until(lambda: [beat.state for beat in store.heartbeats()] == ["following"])
    raw.flushall()
    until(lambda: [beat.state for beat in store.heartbeats()] == ["shrunk"])


@pytest.mark.parametrize("keep", [0, 1])
def test_a_trimmed_stream_is_noticed(replicas, store, raw, keep):
    store.set_bank(bank())
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    before = resyncs("gap")
    with away(one):
        version = [add(store, name) for name in ("r1", "r2", "r3")][-1]
        raw.xtrim(KEYS.changes, maxlen=keep, approximate=False)
    until(lambda: one.at(version))
    assert one.found() == both("r1", "r2", "r3")
    assert resyncs("gap") == before + 1
    version = add(store, "r4")
    until(lambda: one.at(version))
    assert resyncs("gap") == before + 1


def test_a_failover_that_lost_changes_is_noticed(replicas, store, raw):
    """The numbers go on as if nothing had happened; the marks do not."""
    store.set_bank(bank())
    add(store, "r1")
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    saved = {key: raw.dump(key) for key in raw.keys("*") if b"replica" not in key}
    lost = add(store, "r2")
    until(lambda: one.at(lost))
    with away(one):
        raw.flushall()
        for key, value in saved.items():
            raw.restore(key, 0, value)
        assert add(store, "r3") == lost
    until(lambda: one.found() == both("r1", "r3"))


def test_an_entry_that_cannot_be_read_leads_to_the_rows(replicas, store, raw):
    store.set_bank(bank())
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    before = resyncs("unreadable")
    with away(one):
        version = add(store, "r1", "r2")
        entries = raw.xrange(KEYS.changes)
        raw.delete(KEYS.changes)
        for entry_id, fields in entries:
            damaged = fields[b"packed"].replace(b'{"reference_id":"r1"', b'["reference_id":"r1"')
            raw.xadd(KEYS.changes, fields | {b"packed": damaged}, id=entry_id)
    until(lambda: one.at(version))
    assert one.found() == both("r1", "r2")
    assert resyncs("unreadable") == before + 1


def test_an_unusable_row_does_not_break_the_rest(replicas, store, raw):
    store.set_bank(bank())
    add(store, "r1", "r2")
    raw.hset(KEYS.references(layout.bucket_of("r1")), "r1", "not json")
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    assert one.found() == both("r2")
    until(lambda: [(b.references, b.unusable) for b in store.heartbeats()] == [(1, 1)])


def rejected():
    return metrics.REJECTED._value.get()


@pytest.mark.parametrize(
    "head",
    [{"epoch": "9" * 400}, {"epoch": "9" * 5000}, {"seq": "-1"}, {"seq": "1e3"}, {"epoch": "\0"}],
)
def test_a_head_of_nonsense_is_told_and_the_mirror_stays(replicas, store, raw, head):
    store.set_bank(bank())
    add(store, "a")
    one = replicas()
    until(lambda: one.found() == both("a"))
    before, good = rejected(), raw.hgetall(KEYS.head)
    raw.hset(KEYS.head, mapping=head)
    until(lambda: rejected() > before and one.sync.state == "away")
    assert one.found() == both("a")
    raw.hset(KEYS.head, mapping=good)
    add(store, "b")
    until(lambda: one.found() == both("a", "b"))


def test_an_entry_beyond_the_head_does_not_make_it_spin(replicas, store, raw, monkeypatch):
    store.set_bank(bank())
    version = add(store, "a")
    one = replicas()
    until(lambda: one.found() == both("a"))
    before = rejected()
    raw.xadd(KEYS.changes, {"kind": "x" * 1_000_000}, id=f"{version.epoch}-{version.seq + 9}")
    until(lambda: rejected() > before and one.sync.state == "loading")
    assert one.found() == both("a")
    monkeypatch.setattr(syncs, "RETRY_SECONDS", 4.0)
    loads = resyncs("unreadable")
    time.sleep(1.5)  # for dozens of loads, if it span
    assert resyncs("unreadable") - loads <= 2
    raw.delete(KEYS.changes)
    store.set_bank(bank(label="another"))
    until(lambda: one.sync.state == "following")


def test_a_calibration_that_cannot_be_read_is_told_and_the_last_set_kept(replicas, store, raw):
    store.set_bank(bank())
    add(store, "a")
    calibrate(store, "c1")
    one = replicas()
    until(lambda: one.found() == both("a"))

    def current():
        return one.mirror.against().calibration.id

    assert current() == CALIBRATIONS["c1"].id
    before = rejected()
    kept = store.keep_calibration(CALIBRATIONS["c2"].artefact, MODEL.sha256)
    raw.hset(KEYS.artefact(kept), "0", b"damaged")
    version = store.apply_calibration(kept, MODEL.sha256)
    until(lambda: one.sync.state == "shrunk")
    assert current() == CALIBRATIONS["c1"].id
    assert rejected() > before
    late = replicas("late")
    until(lambda: late.sync.state == "shrunk")
    assert not late.sync.ready
    version = calibrate(store, "c1")
    until(lambda: one.at(version))
    assert current() == CALIBRATIONS["c1"].id


def test_another_models_calibration_is_nothing_to_a_replica(replicas, store):
    store.set_bank(bank())
    version = add(store, "a")
    one = replicas()
    until(lambda: one.at(version))
    other = calibration(model=OTHER_MODEL)
    kept = store.keep_calibration(other.artefact, OTHER_MODEL.sha256)
    version = store.apply_calibration(kept, OTHER_MODEL.sha256)
    until(lambda: one.at(version))
    assert one.mirror.against().calibration is None


def test_an_emptied_store_is_not_served_until_accepted(replicas, store, raw):
    store.set_bank(bank())
    version = add(store, *[f"r{n}" for n in range(10)])
    one = replicas()
    until(lambda: one.at(version))
    raw.flushall()
    until(lambda: one.sync.state == "shrunk")
    assert len(one.found()) == 20
    until(lambda: metrics.SHRUNK._value.get() == 1)
    store.set_bank(bank())
    add(store, *[f"new-{n}" for n in range(9)])  # even nine of ten are not enough now
    until(lambda: one.sync._refused == store.head())
    assert len(one.found()) == 20
    assert one.sync.ready
    until(lambda: [beat.state for beat in store.heartbeats()] == ["shrunk"])
    accepted = store.accept().version
    until(lambda: one.at(accepted))
    assert one.found() == both(*[f"new-{n}" for n in range(9)])
    until(lambda: metrics.SHRUNK._value.get() == 0)
    assert one.sync.state == "following"


def test_a_refilled_store_needs_no_acceptance(replicas, store, raw):
    store.set_bank(bank())
    add(store, "r1", "r2")
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    raw.flushall()
    until(lambda: one.sync.state == "shrunk")
    store.set_bank(bank())
    version = add(store, "n1", "n2")
    until(lambda: one.at(version))
    assert one.found() == both("n1", "n2")


@pytest.mark.parametrize(("left", "served"), [(5, True), (4, False)])
def test_a_snapshot_may_lose_as_much_as_allowed(replicas, store, raw, left, served):
    store.set_bank(bank())
    names = [f"r{n}" for n in range(10)]
    version = add(store, *names)
    one = replicas(max_shrink=0.5)
    until(lambda: one.at(version))
    with away(one):
        for name in names[left:]:
            raw.hdel(KEYS.references(layout.bucket_of(name)), name)
        raw.delete(KEYS.changes)
        version = calibrate(store, "c1")
        raw.delete(KEYS.changes)
    until(lambda: one.sync.state == ("damaged" if served else "shrunk"))
    assert one.found() == both(*names[: left if served else 10])
    # An old acceptance is none for the next time.
    accepted = store.accept().version
    until(lambda: one.at(accepted))
    assert one.found() == both(*names[:left])
    with away(one):
        raw.delete(*[KEYS.references(layout.bucket_of(name)) for name in names])
        calibrate(store, None)
        raw.delete(KEYS.changes)
    until(lambda: one.sync.state == "shrunk")
    assert one.found() == both(*names[:left])


def test_many_removals_one_by_one_are_no_alarm(replicas, store):
    store.set_bank(bank())
    names = [f"r{n}" for n in range(10)]
    add(store, *names)
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    version = store.remove_references(names[1:])
    until(lambda: one.at(version))
    assert one.found() == both("r0")


def test_a_store_emptied_while_it_is_read_is_not_served(replicas, store, raw, monkeypatch):
    store.set_bank(bank())
    add(store, *[f"r{n}" for n in range(50)])
    original = Reader.snapshot
    flushed: list[bool] = []

    def snapshot_then_flush(self, head):
        found = original(self, head)
        if not flushed:
            flushed.append(raw.flushall())
        return found

    monkeypatch.setattr(Reader, "snapshot", snapshot_then_flush)
    one = replicas()
    until(lambda: flushed and one.sync.state == "waiting")
    assert not one.sync.ready


def test_redis_may_die_and_return(tmp_path, redis_server):
    kind = redis_server.version.partition(" ")[0]
    with redis.redis_server(kind, tmp_path, keep_data=True) as server:
        config = Redis(url=SecretStr(server.url), timeout_seconds=1)
        own = open_store(config)
        own.set_bank(bank())
        add(own, "r1", "r2")
        one = Replica(config, stale_after_seconds=0.3)
        one.sync.start()
        assert one.sync.wait_ready(PATIENCE, lambda: False)
        server.kill()
        until(lambda: one.sync.state == "away")
        assert one.found() == both("r1", "r2")
        until(lambda: one.sync.is_stale)
        until(lambda: metrics.STALE._value.get() == 1)
        server.restart()
        until(lambda: one.sync.state == "following")
        assert not one.sync.is_stale
        version = add(own, "r3")
        until(lambda: one.at(version))
        assert one.found() == both("r1", "r2", "r3")
        one.stop()
        own.close()


def test_a_crash_of_the_thread_is_told(replicas, store):
    store.set_bank(bank())
    one = replicas()
    one.sync.wait_ready(PATIENCE, lambda: False)
    error = RuntimeError("the device is gone")

    def crash(*_):
        raise error

    one.mirror.apply = crash
    add(store, "r1")
    until(lambda: one.failures == [error])
    one.failures.clear()


def test_expired_rows_leave_without_redis(tmp_path):
    with redis.redis_server("any", tmp_path) as server:
        config = Redis(url=SecretStr(server.url), timeout_seconds=1)
        one = Replica(config)
        one.store.set_bank(bank())
        now = [NOW]
        one.mirror._clock = lambda: now[0]
        add(one.store, "r1", expires_at=NOW.replace(year=2030))
        one.sync.start()
        until(lambda: one.mirror.sizes().rows == 2)
        server.kill()
        until(lambda: one.sync.state == "away")
        now[0] = NOW.replace(year=2031)
        until(lambda: one.mirror.sizes().rows == 0)
        one.stop()
