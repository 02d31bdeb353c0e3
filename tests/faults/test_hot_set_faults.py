"""All that may go wrong with a hot set: replicas equal the store again, or say why not.

While it goes wrong a thread searches each mirror all the time: half a set, or an emptied one, is
never served.
"""

import gc
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.fixtures.hot_set import (
    MODEL,
    OTHER_MODEL,
    VIEWS,
    bank,
    descriptors,
    reference,
)
from tests.fixtures.tcp_proxy import TcpProxy
from worker.embedded import redis
from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset import sync as syncs
from worker.hotset.entries import pack, unpack
from worker.hotset.layout import Keys
from worker.hotset.mirror import Mirror
from worker.hotset.store import open_store
from worker.hotset.sync import HotSetSync
from worker.scoring import artefact
from worker.settings import HotSetSettings, Redis

pytestmark = pytest.mark.redis
KEYS = Keys("copysieve")
PATIENCE = 20.0
NAMES = [f"r{n}" for n in range(10)]


class Replica:
    """A mirror with its thread, and one that searches it all the time and notes what it finds."""

    def __init__(self, url, name, folder=None, **options):
        self.store = open_store(Redis(url=SecretStr(url), timeout_seconds=0.4))
        self.mirror = Mirror(MODEL, "cpu", folder)
        self.failures: list[BaseException] = []
        settings = HotSetSettings(**{"stale_after_seconds": 0.5} | options)
        reader = self.store.of_model(MODEL, artefact.read_for)
        self.sync = HotSetSync(reader, self.mirror, settings, name, self.failures.append)
        self.seen: set[frozenset[tuple[str, str]] | None] = set()
        self._stop = threading.Event()
        self._searching = threading.Thread(target=self._search, daemon=True)
        self.sync.start()
        self._searching.start()

    def found(self):
        """Every (reference, view) that a search can find; None before there is a mirror."""
        return None if self.mirror.head is None else found(self.mirror)

    def _search(self):
        while not self._stop.wait(0.001):
            if self.sync.ready:
                self.seen.add(self.found())

    def equals(self, store):
        head, mine = store.head(), self.mirror.head
        return (
            mine is not None
            and (mine.version, mine.mark) == (head.version, head.mark)
            and self.mirror.tallies().digest == head.tallies.of_model(MODEL.sha256).digest
            and self.sync.state == "following"
            and not self.sync.is_stale
            and self.found() in self.seen
        )

    def says(self, state):
        """It tells what is wrong; what follows from that is `hotset.on_stale`'s."""
        return self.sync.state == state and self.sync.is_stale

    def stop(self):
        if self._stop.is_set():
            return
        self._stop.set()
        self._searching.join()
        if self.sync._thread.is_alive():
            self.sync.stop()
        self.store.close()
        assert self.failures == []

    def end(self):
        """Stop, and let go of its folder as a process does that ends."""
        self.stop()
        del self.mirror, self.sync
        gc.collect()


def found(mirror):
    query = torch.from_numpy(descriptors(0).rows[:1].astype(np.float32))
    hits = mirror.search(query, [None], 10_000).hits[0]
    return frozenset((hit.reference.reference_id, hit.view) for hit in hits)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come right"
        time.sleep(0.01)


def add(store, *names):
    described = [(reference(name), descriptors(int(name[1:]))) for name in names]
    return store.add_references(described, MODEL).version


def both(names):
    return frozenset((name, view) for name in names for view in VIEWS)


ALL = both(NAMES)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(syncs, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(syncs, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(syncs, "COUNT_SECONDS", 0.2)


@pytest.fixture
def filled(store):
    store.set_bank(bank())
    add(store, *NAMES)
    return store


@pytest.fixture
def replicas(redis_server):
    made = []

    def start(name="one", url=redis_server.url, **options):
        made.append(Replica(url, name, **options))
        return made[-1]

    yield start
    for replica in made:
        replica.stop()


@pytest.fixture
def raw(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def kind(redis_session):
    return redis_session.version.partition(" ")[0]


@contextmanager
def own(kind, folder, **options):
    """A server that may be killed, and a store in it."""
    with redis.redis_server(kind, folder, **options) as server:
        store = open_store(Redis(url=SecretStr(server.url), timeout_seconds=0.4))
        store.set_bank(bank())
        add(store, *NAMES)
        yield server, store
        store.close()


# -- servers and networks --


def test_a_killed_server_that_kept_its_data(replicas, kind, tmp_path):
    with own(kind, tmp_path, keep_data=True) as (server, store):
        one = replicas(url=server.url)
        until(lambda: one.equals(store))
        for number in range(10, 13):
            server.kill()
            until(lambda: one.says("away"))
            server.restart()
            add(store, f"r{number}")
            until(lambda: one.equals(store))
        assert one.seen == {both([f"r{n}" for n in range(upto)]) for upto in range(10, 14)}
        one.stop()


def test_a_killed_server_that_kept_nothing(replicas, kind, tmp_path):
    with own(kind, tmp_path) as (server, store):
        one = replicas(url=server.url)
        until(lambda: one.equals(store))
        server.restart()
        until(lambda: one.says("shrunk"))
        store.set_bank(bank())
        until(lambda: store.heartbeats() and one.sync._refused == store.head())
        for name in NAMES:
            add(store, name)
        until(lambda: one.equals(store))
        assert one.seen == {ALL}
        one.stop()


def test_a_failover_that_loses_the_last_changes(replicas, kind, tmp_path):
    with (
        own(kind, tmp_path, keep_data=True) as (server, store),
        redis.redis_server(kind, tmp_path) as spare,
        spare.client() as promoted,
        TcpProxy(server.port) as proxy,
    ):
        with server.client() as master:
            master.config_set("repl-diskless-sync-delay", 0)
        promoted.replicaof("127.0.0.1", str(server.port))
        until(lambda: promoted.info("replication")["master_link_status"] == "up")
        until(lambda: promoted.exists(KEYS.head))
        one = replicas(url=proxy.url)
        until(lambda: one.equals(store))
        with server.client() as master:
            master.config_set("repl-diskless-sync-delay", 0)
        promoted.replicaof("NO", "ONE")
        lost = add(store, "r10")
        until(lambda: one.equals(store))
        after = open_store(Redis(url=SecretStr(spare.url)))
        assert add(after, "r11") == lost  # the same version, of another history
        proxy.lead_to(spare.port)
        until(lambda: one.equals(after))
        assert one.seen == {ALL, both([*NAMES, "r10"]), both([*NAMES, "r11"])}
        one.stop()
        after.close()


def test_a_network_that_swallows_everything(replicas, redis_server, filled):
    with TcpProxy(redis_server.port) as proxy:
        one = replicas(url=proxy.url)
        until(lambda: one.equals(filled))
        for number in (10, 11):
            with proxy.cut():
                add(filled, f"r{number}")
                until(lambda: one.says("away"))
            until(lambda: one.equals(filled))
        assert one.seen == {ALL, both([*NAMES, "r10"]), both([*NAMES, "r10", "r11"])}
        one.stop()


def test_a_full_server_refuses_changes_as_a_whole(replicas, filled, raw):
    one = replicas()
    until(lambda: one.equals(filled))
    before = filled.head()
    raw.config_set("maxmemory", 1)
    try:
        for change in (
            lambda: add(filled, "r10", "r0"),
            lambda: filled.set_bank(bank(label="another")),
            lambda: filled.set_enabled(NAMES, enabled=False),
            filled.accept,
        ):
            with pytest.raises(StoreError, match=r"^Redis: .*(OOM|memory)"):
                change()
        assert filled.head() == before
    finally:
        raw.config_set("maxmemory", 0)
    add(filled, "r10")
    until(lambda: one.equals(filled))
    assert one.seen == {ALL, both([*NAMES, "r10"])}


# -- what is lost in Redis --


def test_an_emptied_store_and_those_who_come_then(replicas, filled, raw, tmp_path):
    old, late = replicas("old"), replicas("late", folder=tmp_path)
    until(lambda: old.equals(filled) and late.equals(filled))
    late.end()
    raw.flushall()
    until(lambda: old.says("shrunk"))
    bare, kept = replicas("bare"), replicas("kept", folder=tmp_path)
    until(lambda: bare.sync.state == "waiting" and kept.says("shrunk"))
    filled.set_bank(bank())  # by somebody who knows nothing
    until(lambda: bare.sync.state == "shrunk" and kept.sync._refused == filled.head())
    add(filled, *NAMES[:3])
    until(lambda: old.sync._refused == kept.sync._refused == filled.head())
    assert not bare.sync.ready
    assert not kept.sync.ready
    filled.accept()
    until(lambda: all(one.equals(filled) for one in (old, bare, kept)))
    assert old.seen == {ALL, both(NAMES[:3])}
    assert bare.seen == kept.seen == {both(NAMES[:3])}


@pytest.mark.parametrize("lost", ["references", "descriptors"])
@pytest.mark.parametrize("names", [NAMES[:1], NAMES])
def test_an_evicted_bucket(replicas, filled, raw, lost, names):
    one = replicas()
    until(lambda: one.equals(filled))
    for bucket in {layout.bucket_of(name) for name in names}:
        of_kind = {
            "references": KEYS.references(bucket),
            "descriptors": KEYS.descriptors(MODEL.sha256, bucket),
        }
        raw.delete(of_kind[lost])
    until(lambda: one.says("damaged"))
    assert one.found() == ALL
    filled.accept()
    until(lambda: one.equals(filled))
    assert one.seen == {ALL, both(set(NAMES) - set(names))}


def test_a_stream_cut_while_a_replica_was_stopped(replicas, filled, raw, tmp_path):
    one = replicas(folder=tmp_path)
    until(lambda: one.equals(filled))
    one.end()
    filled.remove_references(["r0"])
    add(filled, "r10", "r11")
    raw.xtrim(KEYS.changes, maxlen=1, approximate=False)
    again = replicas(folder=tmp_path)
    until(lambda: again.equals(filled))
    now = both([*NAMES[1:], "r10", "r11"])
    assert again.seen == {now}


# -- what is damaged in Redis --


def damaged_descriptors(raw):
    raw.hset(KEYS.descriptors(MODEL.sha256, layout.bucket_of("r0")), "r0", b"plain\n123")
    return both(NAMES[1:])


def damaged_row(raw):
    raw.hset(KEYS.references(layout.bucket_of("r0")), "r0", b"{}")
    return both(NAMES[1:])


def damaged_bank(raw):
    raw.hset(KEYS.banks, "known-bad", b"{}")
    return both([])


def without_tallies(raw):
    raw.hdel(KEYS.head, *[f for f in raw.hkeys(KEYS.head) if f.startswith((b"count:", b"sum:"))])
    return ALL


@pytest.mark.parametrize("damage", [damaged_descriptors, damaged_row, damaged_bank])
def test_a_damaged_value_is_no_value_until_it_is_accepted(
    replicas, redis_server, filled, raw, damage
):
    with TcpProxy(redis_server.port) as proxy:
        one = replicas(url=proxy.url)
        until(lambda: one.equals(filled))
        with proxy.cut():
            until(lambda: one.sync.state == "away")
            left = damage(raw)
            filled.set_bank(bank("another"))
            raw.delete(KEYS.changes)
        late = replicas("late")
        if damage is damaged_bank:
            until(lambda: one.says("shrunk") and late.sync.state == "shrunk")
            assert one.found() == ALL
            assert not late.sync.ready
        else:
            until(lambda: one.says("damaged") and late.says("damaged"))
            assert one.found() == late.found() == left
        filled.accept()
        until(lambda: one.equals(filled) and late.equals(filled))
        assert one.seen == {ALL, left}
        assert late.seen == {left}
        one.stop()


def test_a_damaged_entry_leads_to_the_rows(replicas, redis_server, filled, raw):
    with TcpProxy(redis_server.port) as proxy:
        one = replicas(url=proxy.url)
        until(lambda: one.equals(filled))
        with proxy.cut():
            until(lambda: one.sync.state == "away")
            add(filled, "r10")
            [(entry_id, fields)] = raw.xrevrange(KEYS.changes, count=1)
            raw.delete(KEYS.changes)
            parts = {name.decode(): part for name, part in unpack(fields[b"packed"]).items()}
            damaged = pack(parts | {"0:descriptors": b"plain\n123"})
            raw.xadd(KEYS.changes, fields | {b"packed": damaged}, id=entry_id)
        until(lambda: one.equals(filled))
        assert one.seen == {ALL, both([*NAMES, "r10"])}
        one.stop()


def test_a_store_of_an_older_version_is_to_be_accepted(replicas, filled, raw):
    without_tallies(raw)
    one = replicas()
    until(lambda: one.says("damaged"))
    filled.accept()
    until(lambda: one.equals(filled))
    assert one.seen == {ALL}


# -- the local copy --


def flipped(path):
    data = bytearray(path.read_bytes())
    used = data.rstrip(b"\0")
    data[len(used) // 2] ^= 0x10
    path.write_bytes(data)


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flipped, halved, emptied, removed])
@pytest.mark.parametrize("name", ["descriptors", "records-0", "state.npz"])
def test_a_damaged_copy_is_refused_and_redis_asked(replicas, filled, tmp_path, name, damage):
    one = replicas(folder=tmp_path)
    until(lambda: one.equals(filled))
    one.end()
    [path] = tmp_path.rglob(name)
    if name == "descriptors" and damage is halved:
        path.write_bytes(path.read_bytes()[:100])  # what is behind was never written
    else:
        damage(path)
    with capture_logs() as logs:
        again = replicas(folder=tmp_path)
        until(lambda: again.equals(filled))
    events = [line["event"] for line in logs]
    assert "hot_set_restored" not in events
    assert ("hot_set_copy_unusable" in events) == ((name, damage) != ("state.npz", removed))
    assert again.seen == {ALL}


def test_a_copy_with_any_byte_wrong_is_refused_or_right(filled, tmp_path):
    reader = filled.of_model(MODEL, artefact.read_for)
    saved = Mirror(MODEL, "cpu", tmp_path / "saved")
    saved.load(reader.snapshot(reader.head()))
    saved.save()
    expected = saved.tallies()
    [path] = (tmp_path / "saved").rglob("state.npz")
    good = path.read_bytes()
    picks = random.Random(1)
    for position in picks.sample(range(len(good)), 150):
        data = bytearray(good)
        data[position] ^= 1 << picks.randrange(8)
        folder = tmp_path / str(position)
        shutil.copytree(tmp_path / "saved", folder)
        next(folder.rglob("state.npz")).write_bytes(data)
        again = Mirror(MODEL, "cpu", folder)
        try:
            again.restore(artefact.read)
        except StoreError:
            continue
        assert again.tallies() == expected
        assert again.head == saved.head


def test_another_models_copy_is_refused(filled, tmp_path):
    reader = filled.of_model(MODEL, artefact.read_for)
    saved = Mirror(MODEL, "cpu", tmp_path)
    saved.load(reader.snapshot(reader.head()))
    saved.save()
    del saved
    gc.collect()
    [folder] = (one for one in tmp_path.iterdir() if one.is_dir())
    folder.rename(tmp_path / OTHER_MODEL.sha256[:16])
    with pytest.raises(StoreError, match="another model"):
        Mirror(OTHER_MODEL, "cpu", tmp_path).restore(artefact.read)


def test_a_copy_is_as_old_as_the_last_look_at_the_store(replicas, kind, tmp_path):
    """Not as its saving: who is away, stops and starts again would never become stale."""
    with own(kind, tmp_path) as (server, store):
        one = replicas(url=server.url, folder=tmp_path / "copy")
        until(lambda: one.equals(store))
        add(store, "r10")  # which is saved when it stops
        until(lambda: one.equals(store))
        server.kill()
        until(lambda: one.says("away"))
        one.sync._equal_at -= 1000  # so long ago
        one.end()
        again = Mirror(MODEL, "cpu", tmp_path / "copy")
        age = again.restore(artefact.read)
        assert age is not None
        assert age > 1000
        assert found(again) == both([*NAMES, "r10"])


def test_what_is_refused_leaves_no_files(replicas, filled, raw, tmp_path):
    one = replicas(folder=tmp_path)
    until(lambda: one.equals(filled))
    raw.flushall()
    filled.set_bank(bank())
    for number in range(3):
        add(filled, f"r{number}")
        until(lambda: one.sync._refused == filled.head() and one.sync.state == "shrunk")
    assert len(list(tmp_path.rglob("descriptors"))) == 1


def test_what_is_loaded_at_the_same_version_is_saved_too(replicas, filled, raw, tmp_path):
    one = replicas(folder=tmp_path)
    until(lambda: one.equals(filled))
    without_tallies(raw)
    until(lambda: one.says("damaged"))
    until(lambda: len(list(tmp_path.rglob("state.npz"))) == 1)


SAVING = """
import sys
from pathlib import Path
from pydantic import SecretStr
from tests.fixtures.hot_set import MODEL
from worker.hotset import hot_set, sync as syncs
from worker.hotset.mirror import Mirror
from worker.hotset.store import open_store
from worker.scoring import artefact
from worker.settings import HotSetSettings, Redis

syncs.SAVE_CHANGES = 1
hot_set._GARBAGE = 1000
store = open_store(Redis(url=SecretStr(sys.argv[1])))
mirror = Mirror(MODEL, "cpu", Path(sys.argv[2]))
reader = store.of_model(MODEL, artefact.read_for)
sync = syncs.HotSetSync(reader, mirror, HotSetSettings(), "child", print)
sync.start()
sync.wait_ready(None, lambda: False)
print("ready", file=sys.stderr, flush=True)
sync._thread.join()
"""


def test_a_process_killed_while_it_saves(tmp_path):
    """It saves after each change; whenever it is killed, its copy is the set of some version."""
    picks, numbers, names = random.Random(2), count(10), list(NAMES)
    with own("any", tmp_path) as (server, store):
        history = {store.head().version: ALL}
        arguments = [sys.executable, "-c", SAVING, server.url, str(tmp_path / "copy")]
        for _ in range(2):
            with subprocess.Popen(
                arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as child:
                assert child.stderr is not None
                assert child.stderr.readline() == b"ready\n"
                until_killed = time.monotonic() + picks.uniform(0.1, 0.4)
                while time.monotonic() < until_killed:
                    names.append(f"r{next(numbers)}")
                    history[add(store, names[-1])] = both(names)
                    gone = names.pop(0)
                    history[store.remove_references([gone])] = both(names)
                child.kill()
            one = Mirror(MODEL, "cpu", tmp_path / "copy")
            assert one.restore(artefact.read) is not None
            assert one.head is not None
            assert found(one) == history[one.head.version]
            del one  # its folder is the next child's
            gc.collect()
