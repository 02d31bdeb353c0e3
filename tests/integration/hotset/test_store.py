import threading

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.fixtures.hot_set import (
    CALIBRATIONS,
    MODEL,
    OTHER_MODEL,
    add_all,
    bank,
    calibrate,
    descriptors,
    reference,
)
from worker.embedded import redis
from worker.errors import StoreError
from worker.hotset import commits, layout
from worker.hotset import store as stores
from worker.hotset.hot_set import Sizes
from worker.hotset.layout import Keys, Unusable
from worker.hotset.mirror import Mirror
from worker.hotset.reader import BrokenHistory
from worker.hotset.store import CHUNK, Added, open_store
from worker.records import Version
from worker.scoring import artefact
from worker.settings import Redis
from worker.telemetry import metrics

pytestmark = pytest.mark.redis
KEYS = Keys("copysieve")


def add(store, *reference_ids, model=MODEL, **changes):
    described = [
        (reference(name, **changes), descriptors(n, model=model))
        for n, name in enumerate(reference_ids)
    ]
    return store.add_references(described, model)


def described(store, model=MODEL):
    """The descriptors of all references that have some by the model, as stored."""
    found: dict[str, bytes] = {}
    for stored in store.of_model(model, artefact.read_for).snapshot(store.head()).buckets:
        for one, blob in zip(stored.references, stored.blobs, strict=True):
            found |= {one.reference_id: blob} if blob else {}
    return found


@pytest.fixture
def raw(redis_server):
    with redis_server.client() as client:
        yield client


def test_the_first_bank_creates_the_epoch(store):
    assert store.head() is None
    version = store.set_bank(bank())
    assert version.seq == 1
    assert store.head().version == version
    assert store.set_bank(bank()) == version
    assert store.set_bank(bank(threshold=0.7)) == Version(version.epoch, 2)
    assert store.banks() == {"known-bad": bank(threshold=0.7)}


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.accept(),
        lambda store: calibrate(store, "c1"),
        lambda store: store.set_enabled(["r1"], enabled=False),
        lambda store: store.remove_references(["r1"]),
        lambda store: store.purge_references(["r1"]),
        lambda store: store.remove_bank("known-bad"),
        lambda store: add(store, "r1"),
    ],
)
def test_nothing_else_creates_it(store, act):
    with pytest.raises(StoreError):
        act(store)
    assert store.head() is None


def test_adding_again_changes_nothing(store):
    epoch = store.set_bank(bank()).epoch
    assert add(store, "r1", "r2") == Added(Version(epoch, 3), 2, 0, 0)
    assert add(store, "r1", "r2", added_by="eve") == Added(Version(epoch, 3), 0, 0, 2)
    assert add(store, "r1", "r2", "r3") == Added(Version(epoch, 4), 1, 0, 2)
    assert add(store, "r1", note="new") == Added(Version(epoch, 5), 0, 1, 0)
    assert store.reference("r1").note == "new"
    assert [one.reference_id for one in store.references()] == ["r1", "r2", "r3"]
    assert add(store, "r1", note="new", model=OTHER_MODEL) == Added(Version(epoch, 6), 0, 1, 0)
    assert set(described(store, OTHER_MODEL)) == {"r1"}


def test_many_references_go_in_chunks(store):
    store.set_bank(bank())
    names = [f"r{n}" for n in range(200)]
    assert add(store, *names).added == 200
    stored = described(store)
    assert set(stored) == set(names)
    for number, name in enumerate(names):
        assert stored[name] == layout.write_descriptors(descriptors(number))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bank": "none"}, "no bank none"),
        ({"bank": "other"}, "is in bank known-bad already"),
        ({"sha256": "b" * 64}, "another image"),
        ({"canary": True}, "r1 is no canary; remove it first"),
    ],
)
def test_an_id_is_one_image_in_one_bank(store, changes, message):
    store.set_bank(bank())
    store.set_bank(bank("other"))
    version = add(store, "r1", sha256="a" * 64).version
    with pytest.raises(StoreError, match=message):
        add(store, "r1", **changes)
    assert store.head().version == version


def test_descriptors_must_fit_the_model(store):
    store.set_bank(bank())
    with pytest.raises(Unusable, match="length"):
        store.add_references([(reference(), descriptors(model=OTHER_MODEL))], MODEL)
    assert store.references() == []


def test_removing_leaves_a_tombstone_and_purging_nothing(store, raw):
    store.set_bank(bank())
    add(store, "r1", "r2")
    add(store, "r1", model=OTHER_MODEL)
    version = store.remove_references(["r1"])
    assert store.reference("r1") is None
    stone = store.tombstone("r1")
    assert (stone.reference, stone.removed_by) == (reference(), "bob")
    for model in (MODEL, OTHER_MODEL):
        assert not raw.hexists(KEYS.descriptors(model.sha256, layout.bucket_of("r1")), "r1")
    with pytest.raises(StoreError, match="no reference r1"):
        store.remove_references(["r1"])
    assert store.purge_references(["r1", "r2"]) == Version(version.epoch, version.seq + 2)
    assert store.tombstone("r1") is store.tombstone("r2") is store.reference("r2") is None
    leftovers = [key for key in raw.keys("*") if raw.type(key) == b"hash"]
    assert not [key for key in leftovers if raw.hexists(key, "r1") or raw.hexists(key, "r2")]
    assert raw.xlen(KEYS.changes) == 1  # no descriptors are left in the stream


def test_a_bank_with_references_stays(store):
    store.set_bank(bank())
    add(store, "r1")
    with pytest.raises(StoreError, match="has 1 references"):
        store.remove_bank("known-bad")
    store.remove_references(["r1"])
    store.remove_bank("known-bad")
    assert store.banks() == {}


def test_a_calibration_is_set_and_taken_back(store):
    store.set_bank(bank())
    one = CALIBRATIONS["c1"]
    version = calibrate(store, "c1")
    assert calibrate(store, "c1") == version
    assert store.calibration_of(MODEL.sha256) == one.id
    assert store.calibration_of(OTHER_MODEL.sha256) is None
    assert store.artefact(one.id) == one.artefact
    (kept,) = store.calibrations()
    assert (kept.calibration_id, kept.model_sha256, kept.size) == (
        one.id,
        MODEL.sha256,
        len(one.artefact),
    )
    assert store.previous_calibration_of(MODEL.sha256) == "none"
    calibrate(store, "c2")
    assert store.previous_calibration_of(MODEL.sha256) == one.id
    calibrate(store, None)
    assert store.calibration_of(MODEL.sha256) is None
    assert store.previous_calibration_of(MODEL.sha256) == CALIBRATIONS["c2"].id


def test_a_large_artefact_is_kept_in_parts(store, monkeypatch):
    monkeypatch.setattr(stores, "PART", 1000)
    store.set_bank(bank())
    calibrate(store, "c1")
    assert store.artefact(CALIBRATIONS["c1"].id) == CALIBRATIONS["c1"].artefact


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_an_artefact_that_is_not_whole_is_refused(store, raw, damage):
    store.set_bank(bank())
    with pytest.raises(StoreError, match="is not kept in the store"):
        store.apply_calibration("c9", MODEL.sha256)
    calibrate(store, "c1")
    key = KEYS.artefact(CALIBRATIONS["c1"].id)
    raw.delete(key) if damage == "missing" else raw.hset(key, "0", b"x")
    with pytest.raises(StoreError, match=r"not kept|cannot be used: artefact"):
        store.artefact(CALIBRATIONS["c1"].id)


def test_a_calibration_and_the_copies_that_it_holds_are_one_change(store):
    store.set_bank(bank())
    add(store, "r1", "r2")
    version = store.version()
    kept = store.keep_calibration(CALIBRATIONS["c1"].artefact, MODEL.sha256)
    copies = {"r1": ("a" * 64,), "r2": ()}
    after = store.apply_calibration(kept, MODEL.sha256, copies)
    assert after.seq == version.seq + 2
    assert store.reference("r1").copies == ("a" * 64,)
    with pytest.raises(StoreError, match="no reference r9"):
        store.apply_calibration(None, MODEL.sha256, {"r9": ("a" * 64,)})
    store.set_copies({"r1": ("a" * 64, "b" * 64)})
    assert store.reference("r1").copies == ("a" * 64, "b" * 64)


def test_references_are_not_added_with_copies_of_another_calibration(store):
    store.set_bank(bank())
    calibrate(store, "c1")
    with pytest.raises(StoreError, match="another calibration was applied"):
        store.add_references([(reference("r1"), descriptors())], MODEL)
    assert add_all(store, [(reference("r1"), descriptors())]).added == 1


def test_writers_at_once_lose_nothing_and_the_stream_has_no_gap(store, redis_settings):
    epoch = store.set_bank(bank()).epoch
    reader, failures = store.of_model(MODEL, artefact.read_for), []
    start = reader.head()

    def write(number):
        own = open_store(redis_settings)
        try:
            for name in (f"own-{number}", "shared"):
                add(own, name, note=f"by {number}")
        except StoreError as error:
            failures.append(error)
        own.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    entries = reader.changes(start.version, start.mark, wait=False)
    assert [entry.version for entry in entries] == [Version(epoch, 2 + n) for n in range(8)]
    puts = [change.reference for entry in entries for change in entry.changes]
    last = [one for one in puts if one.reference_id == "shared"][-1]
    assert store.reference("shared") == last
    assert len(store.references()) == 5


def test_unusable_values_are_told_of_and_left_out(store, raw):
    store.set_bank(bank())
    add(store, "r1", "r2", "r3", "r4")
    raw.hset(KEYS.references(layout.bucket_of("r1")), "r1", "secret-content")
    raw.hset(KEYS.descriptors(MODEL.sha256, layout.bucket_of("r2")), "r2", b"plain\nxx")
    raw.hdel(KEYS.descriptors(MODEL.sha256, layout.bucket_of("r3")), "r3")
    raw.hset(KEYS.references(0), b"\xff\n", b"{}")
    before = metrics.REJECTED._value.get()
    with capture_logs() as logs:
        mirror = Mirror(MODEL, "cpu")
        mirror.load(store.of_model(MODEL, artefact.read_for).snapshot(store.head()))
    assert mirror.sizes() == Sizes(references=1, rows=2, unusable=4)
    assert mirror._set is not None
    assert mirror._set.unreadable == {"r1", "\\xff\n"}
    assert metrics.REJECTED._value.get() - before == 3
    assert {(log["what"], log["name"]) for log in logs} == {
        ("reference", "r1"),
        ("descriptors", "r2"),
        ("reference", "\\xff\n"),
    }
    assert "secret" not in str(logs)
    assert [one.reference_id for one in store.references()] == ["r2", "r3", "r4"]
    store.purge_references(["r1"])
    raw.hset(KEYS.banks, "other", "{}")
    with pytest.raises(Unusable, match="bank 'other'"):
        store.of_model(MODEL, artefact.read_for).snapshot(store.head())


def test_history_that_does_not_go_on_is_noticed(store, raw, monkeypatch):
    monkeypatch.setattr(commits, "STREAM_LENGTH", 1)
    store.set_bank(bank())
    reader, start = store.of_model(MODEL, artefact.read_for), store.head()
    assert reader.changes(start.version, start.mark, wait=True) == []
    add(store, "r1")
    assert len(reader.changes(start.version, start.mark, wait=False)) == 1
    with pytest.raises(BrokenHistory, match="gap"):  # a failover has used the number twice
        reader.changes(start.version, "another mark", wait=False)
    raw.xtrim(KEYS.changes, maxlen=0, approximate=False)
    assert reader.changes(start.version, start.mark, wait=False) == []
    add(store, "r2")
    with pytest.raises(BrokenHistory, match="gap"):
        reader.changes(start.version, start.mark, wait=False)
    now = store.head()
    seq = now.version.seq + 1
    raw.xadd(KEYS.changes, {"at": "1"}, id=f"{now.version.epoch}-{seq}")
    with pytest.raises(BrokenHistory, match="unreadable"):
        reader.changes(now.version, now.mark, wait=False)
    raw.flushall()
    store.set_bank(bank())
    with pytest.raises(BrokenHistory, match="epoch"):
        reader.changes(now.version, now.mark, wait=False)


def test_the_stream_is_trimmed(store, raw, monkeypatch):
    monkeypatch.setattr(commits, "STREAM_LENGTH", 100)
    store.set_bank(bank())
    add(store, *[f"r{n}" for n in range(600)])
    entries = raw.xrange(KEYS.changes)
    kept = sum(int(fields[b"changes"]) for _, fields in entries)
    assert 100 <= kept < 100 + CHUNK


def test_all_keys_carry_the_tag(store, raw):
    store.set_bank(bank())
    add(store, "r1", "r2")
    store.remove_references(["r2"])
    calibrate(store, "c1")
    keys = raw.keys("*")
    assert len(keys) == 11
    assert all(key.startswith(b"{copysieve}:") for key in keys)


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_it_lives_on_a_cluster(kind):
    try:
        redis.binary(kind)
    except StoreError as error:
        pytest.skip(str(error))
    with redis.redis_server(kind, options=("--cluster-enabled", "yes")) as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                pass
        store = open_store(Redis(url=SecretStr(server.url), cluster=True))
        store.set_bank(bank())
        add(store, "r1", "r2")
        reader = store.of_model(MODEL, artefact.read_for)
        head = reader.head()
        assert head is not None
        store.remove_references(["r2"])
        assert set(described(store)) == {"r1"}
        store.accept()
        assert len(reader.changes(head.version, head.mark, wait=True)) == 2
        store.purge_references(["r2"])
        assert store.heartbeats() == []
        store.close()


def test_a_store_that_cannot_be_reached_is_one_line_without_the_password(redis_server):
    closed = Redis(url=SecretStr("redis://ann:hunter2@127.0.0.1:1/0"), timeout_seconds=0.2)
    wrong = Redis(url=SecretStr(f"redis://ann:hunter2@127.0.0.1:{redis_server.port}/0"))
    foreign = Redis(url=SecretStr("http://ann:hunter2@127.0.0.1"))
    sentinel = Redis.model_validate(
        {"sentinel": {"hosts": ["127.0.0.1:1"]}, "timeout_seconds": 0.2}
    )
    cluster = Redis(url=closed.url, cluster=True, timeout_seconds=0.2)
    for config, message in [
        (closed, r"at 127\.0\.0\.1:1 cannot be reached"),
        (wrong, "refuses the login"),
        (foreign, "expected redis://"),
        (sentinel, "through Sentinel"),
        (cluster, "cannot be reached"),
    ]:
        with pytest.raises(StoreError, match=message) as caught:
            open_store(config)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_server_that_may_evict_is_warned_of(redis_settings, raw):
    raw.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with capture_logs() as logs:
            open_store(redis_settings).close()
    finally:
        raw.config_set("maxmemory-policy", "noeviction")
    assert [log["event"] for log in logs] == ["redis_may_evict"]
    with capture_logs() as logs:
        open_store(redis_settings).close()
    assert logs == []


def test_references_that_lack_a_view_are_counted_by_bank_and_model(store, raw):
    assert store.lacking_views() == {}
    store.set_bank(bank())
    store.set_bank(bank("other", views=("plain",)))
    add(store, *(f"r{number}" for number in range(100)))
    add(store, "r1", "r2", model=OTHER_MODEL)
    add(store, "o1", bank="other")
    assert store.lacking_views() == {}
    store.set_bank(bank(views=("inverted", "mirrored")))
    assert store.lacking_views() == {"known-bad": {"toy": 100, "other": 2}}
    whole = [(reference("r1"), descriptors(1, ("plain", "inverted", "mirrored")))]
    store.add_references(whole, MODEL)
    assert store.lacking_views() == {"known-bad": {"toy": 99, "other": 2}}
    raw.hset(KEYS.references(layout.bucket_of("r2")), "r2", b"[1]")
    raw.hset(KEYS.references(layout.bucket_of("r3")), "r3", b"{")
    raw.hset(KEYS.descriptors(MODEL.sha256, layout.bucket_of("r4")), "r4", b"\xff")
    assert store.lacking_views() == {"known-bad": {"toy": 96, "other": 1}}
