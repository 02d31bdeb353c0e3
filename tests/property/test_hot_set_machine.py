"""Writers and replicas in any interleaving, with crashes: no mirror shows what was not the store's.

Hypothesis is the scheduler: it makes changes, lets replicas take a few turns each, kills them,
starts them again from what is left in their folders, cuts the stream. A model in Python says what
the store holds, and held at each version.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import batched
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

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
    unit_rows,
)
from worker.embedded.redis import Server
from worker.errors import StoreError
from worker.hotset import index, kept, layout, local_copy
from worker.hotset import reader as readers
from worker.hotset import store as stores
from worker.hotset import sync as syncs
from worker.hotset.layout import Keys
from worker.hotset.mirror import Mirror
from worker.hotset.store import open_store
from worker.hotset.sync import HotSetSync
from worker.hotset.types import Tallies, Tally
from worker.records import Version
from worker.scoring import artefact
from worker.settings import HotSetSettings, Redis

pytestmark = pytest.mark.redis

CHUNK = 2
KEYS = Keys("copysieve")
NAMES = ("one", "two", "three")
QUERIES = unit_rows(42, 2).astype(np.float32)
TENANTS = (None, "t3")

IDS = st.sampled_from([f"r{n}" for n in range(5)])
BANKS = st.sampled_from(["bank-a", "bank-b"])
VIEWS = st.sampled_from([("plain",), ("inverted",), ("plain", "inverted"), ("inverted", "plain")])
REPLICAS = st.sampled_from(NAMES)
EXPIRY = st.sampled_from([None, *(NOW + timedelta(hours=hours) for hours in (-1, 1, 2))])
ADDED = st.tuples(IDS, BANKS, VIEWS, EXPIRY, st.integers(0, 3))


def changes_of(most):
    """Commands with so many references at most."""
    added, ids = (st.lists(one, min_size=1, max_size=most) for one in (ADDED, IDS))
    tenants = st.sampled_from([None, ("t1",), ("t3",)])
    return st.one_of(
        st.tuples(st.just("add"), added),
        st.tuples(st.just("add"), added),
        st.tuples(st.just("add_by_other_model"), added),
        st.tuples(st.just("enable"), ids, st.booleans()),
        st.tuples(st.just("confirm"), ids, st.booleans()),
        st.tuples(st.just("remove"), ids),
        st.tuples(st.just("purge"), ids),
        st.tuples(st.just("set_bank"), BANKS, VIEWS, tenants, st.booleans()),
        st.tuples(st.just("remove_bank"), BANKS),
        st.tuples(st.just("calibrate"), st.sampled_from([None, *CALIBRATIONS])),
        st.tuples(st.just("accept")),
    )


CHANGES = changes_of(4)


class Crash(BaseException):
    """The process is no more."""


class Refused(Exception):
    """What the store refuses with a StoreError."""


@dataclass
class Model:
    """What the store should hold, and how each command goes through it, chunk by chunk."""

    banks: dict = field(default_factory=dict)
    references: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=lambda: {MODEL: {}, OTHER_MODEL: {}})
    removed: set = field(default_factory=set)
    calibration: str | None = None
    seq: int = 0

    def steps(self, kind, *arguments) -> Iterator[None]:
        """Make one change; yields after each of its atomic steps. Raises Refused."""
        match kind, *arguments:
            case (("add" | "add_by_other_model"), added):
                model = MODEL if kind == "add" else OTHER_MODEL
                for chunk in batched(described(added, model), CHUNK):
                    yield from self._step(self._add(chunk, model))
            case "enable", ids, value:
                yield from self._marked(ids, {"enabled": value})
            case "confirm", ids, value:
                yield from self._marked(ids, {"confirmed": value})
            case "remove", ids:
                for chunk in batched(ids, CHUNK):
                    self._known(chunk, self.references)
                    yield from self._step(self._remove(chunk))
            case "purge", ids:
                for chunk in batched(ids, CHUNK):
                    self._known(chunk, self.references.keys() | self.removed)
                    count = self._remove(chunk)
                    self.removed -= set(chunk)
                    yield from self._step(count)
            case _:
                yield from self._step(self._at_once(kind, *arguments))

    def _at_once(self, kind, *arguments):
        """Make a change of one step; returns how many changes it is."""
        match kind, *arguments:
            case "set_bank", name, views, tenants, enabled:
                one = bank(name, views=views, tenants=tenants, enabled=enabled)
                changed = self.banks.get(name) != one
                self.banks[name] = one
                return int(changed)
            case "remove_bank", name:
                self._known([name], self.banks)
                if any(one.bank == name for one in self.references.values()):
                    raise Refused
                del self.banks[name]
            case "calibrate", name:
                changed, self.calibration = self.calibration != name, name
                return int(changed)
        return 1

    def _step(self, changes):
        self.seq += changes
        if changes:
            yield

    def _known(self, ids, known):
        if set(ids) - set(known):
            raise Refused

    def _add(self, chunk, model):
        latest = {one.reference_id: (one, rows) for one, rows in chunk}
        for name, (one, _) in latest.items():
            old = self.references.get(name)
            if one.bank not in self.banks or (old and old.bank != one.bank):
                raise Refused
        changed = 0
        for name, (one, rows) in latest.items():
            blob = layout.write_descriptors(rows)
            if self.references.get(name) != one or self.blobs[model].get(name) != blob:
                self.references[name], self.blobs[model][name] = one, blob
                changed += 1
        return changed

    def _marked(self, ids, marks):
        for chunk in batched(ids, CHUNK):
            self._known(chunk, self.references)
            new = {n: self.references[n].model_copy(update=marks) for n in chunk}
            changed = sum(self.references[n] != one for n, one in new.items())
            self.references |= new
            yield from self._step(changed)

    def _remove(self, chunk):
        for name in set(chunk):
            if self.references.pop(name, None):
                self.removed.add(name)
            for blobs in self.blobs.values():
                blobs.pop(name, None)
        return len(set(chunk))

    def content(self):
        """What a replica holds of it; the calibration by its name."""
        rows = {
            name: layout.read_descriptors(name, blob, MODEL.dims)
            for name, blob in self.blobs[MODEL].items()
        }
        return dict(self.banks), dict(self.references), rows, self.calibration

    def tallies(self):
        """Counted here, from what the values look like in Redis."""

        def tally(values):
            return Tally(
                len(values), sum(layout.checksum(n.encode(), v) for n, v in values.items())
            )

        return Tallies(
            {
                "banks": tally({n: layout.write_bank(one) for n, one in self.banks.items()}),
                "references": tally(
                    {n: layout.write_reference(one) for n, one in self.references.items()}
                ),
                f"descriptors:{MODEL.sha256}": tally(self.blobs[MODEL]),
                f"calibration:{MODEL.sha256}": tally(
                    {MODEL.sha256: CALIBRATIONS[self.calibration].id.encode()}
                    if self.calibration
                    else {}
                ),
            }
        )


def described(added, model):
    return [
        (reference(name, bank_name, expires_at=expires), descriptors(seed, views, model))
        for name, bank_name, views, expires, seed in added
    ]


def command(store, kind, *arguments):
    match kind, *arguments:
        case "add", added:
            add_all(store, described(added, MODEL), MODEL)
        case "add_by_other_model", added:
            add_all(store, described(added, OTHER_MODEL), OTHER_MODEL)
        case "enable", ids, value:
            store.set_enabled(ids, enabled=value)
        case "confirm", ids, value:
            store.set_confirmed(ids, confirmed=value)
        case "remove", ids:
            store.remove_references(ids)
        case "purge", ids:
            store.purge_references(ids)
        case "set_bank", name, views, tenants, enabled:
            store.set_bank(bank(name, views=views, tenants=tenants, enabled=enabled))
        case "remove_bank", name:
            store.remove_bank(name)
        case "calibrate", name:
            calibrate(store, name)
        case _:
            store.accept()


def expected(content, now):
    """All that a search should find, by query: (reference, view) -> reference, bank, cosine."""
    banks, references, rows, calibration = content
    found = []
    for query, tenant in zip(QUERIES, TENANTS, strict=True):
        hits = {}
        for name, one in references.items():
            policy = banks[one.bank]
            live = one.enabled and (one.expires_at is None or one.expires_at > now)
            of_tenant = tenant is None or policy.tenants is None or tenant in policy.tenants
            if not (live and of_tenant and policy.enabled and name in rows):
                continue
            for view, row in zip(rows[name].views, rows[name].rows, strict=True):
                if view in policy.views:
                    hits[name, view] = one, policy, pytest.approx(float(query @ row), abs=1e-5)
        found.append(hits)
    return found, banks, calibration, dict(_best(content, now))


def _best(content, now):
    """How similar each probe is to each bank at best; a bank without any rows is left out."""
    banks, references, rows, calibration = content
    if calibration is None:
        return
    one = CALIBRATIONS[calibration]
    for name, policy in banks.items():
        live = [
            row
            for reference_id, each in references.items()
            if each.bank == name and each.enabled and reference_id in rows and policy.enabled
            if each.expires_at is None or each.expires_at > now
            for view, row in zip(rows[reference_id].views, rows[reference_id].rows, strict=True)
            if view in policy.views
        ]
        if live:
            there = one.project(torch.from_numpy(np.stack(live)).float())
            similar = (one.project(one.probes) @ there.T).amax(dim=1)
            yield name, pytest.approx(similar.tolist(), abs=1e-5)


def shown(mirror):
    result = mirror.search(torch.from_numpy(QUERIES), list(TENANTS), 100)
    found = []
    for hits in result.hits:
        assert hits == sorted(hits, key=lambda h: (-h.similarity, h.reference.reference_id, h.view))
        own = {(h.reference.reference_id, h.view): (h.reference, h.bank, h.cosine) for h in hits}
        assert len(own) == len(hits)
        found.append(own)
    against = result.against
    names = {one.id: name for name, one in CALIBRATIONS.items()}
    calibration = names[against.calibration.id] if against.calibration else None
    best = {name: one.tolist() for name, one in against.best.items() if np.isfinite(one).all()}
    return found, dict(against.banks), calibration, best


class Replica:
    """A mirror whose thread hypothesis plays."""

    def __init__(self, name, store, folder, clock, max_shrink):
        self.name = name
        self.mirror = Mirror(MODEL, "cpu", folder, clock)
        reader = store.of_model(MODEL, artefact.read_for)
        read = reader.changes
        # A turn of hypothesis waits for nobody.
        reader.changes = lambda version, mark, *, wait: read(version, mark, wait=False)  # noqa: ARG005
        options = HotSetSettings(max_shrink=max_shrink)
        self.sync = HotSetSync(reader, self.mirror, options, name, lambda _: None)
        saved = any(folder.rglob("state.npz"))
        self.sync._restore()
        assert (self.mirror.head is not None) == saved  # no crash spoils a copy


class HotSetMachine(RuleBasedStateMachine):
    server: Server  # set by the test

    def __init__(self):
        super().__init__()
        self._folders = TemporaryDirectory(prefix="copysieve-tests-")
        self.raw = self.server.client()
        self.raw.flushall()
        config = Redis(url=SecretStr(self.server.url))
        self.store, self.rival = open_store(config), open_store(config)
        self.model = Model()
        self.history = {}
        self.now = NOW
        self.running = {}

    def teardown(self):
        try:
            self.finish()
        finally:
            self.running.clear()
            for one in (self.store, self.rival, self.raw):
                one.close()
            gc.collect()
            self._folders.cleanup()

    # -- writers --

    def change(self, change, crash_at=None):
        """Make one change as the model does; stop after `crash_at` steps of it."""
        steps = self.model.steps(*change)
        try:
            for done, _ in enumerate(steps, 1):
                self.note()
                if done == crash_at:
                    break
        except Refused:
            return False
        return True

    def note(self):
        """Remember what the store holds at the version it has now."""
        self.history[self.model.seq] = self.model.content()

    def written(self, change, store=None):
        """Whether the store takes a change."""
        try:
            command(store or self.store, *change)
        except StoreError:
            return False
        return True

    @initialize()
    def begin(self):
        self.store.set_bank(bank("bank-a"))
        self.model.banks["bank-a"] = bank("bank-a")
        self.model.seq = 1
        self.note()
        added = [(f"r{n}", "bank-a", ("plain", "inverted"), None, n) for n in range(3)]
        self.write(("add", added))
        self.start("one", 0.5)
        self.turn("one", 1)

    @rule(change=CHANGES)
    def write(self, change):
        assert self.written(change) == self.change(change)

    @rule(change=CHANGES, steps=st.integers(0, 2), answered=st.booleans())
    def crash_a_writer(self, change, steps, answered):
        """Before its script runs for the last time, or after: `answered` says whether it was."""
        allowed = steps + (not answered)
        with scripted(self.store) as (script, commits):

            def dies(*arguments):
                nonlocal allowed
                if allowed == 0:
                    raise Crash
                allowed -= 1
                version = script(*arguments)
                if allowed == 0 and not answered:
                    raise Crash
                return version

            commits._script = dies
            try:
                taken = self.written(change)
            except Crash:
                if steps + (not answered):
                    self.change(change, steps + (not answered))
                return
        assert taken == self.change(change)

    @rule(change=changes_of(1), other=CHANGES)
    def race(self, change, other):
        """Another writer comes between the reading and the writing of one reference.

        Of several, those that were as wanted when they were read are not compared again.
        """
        came: list[bool] = []
        with scripted(self.store) as (script, commits):

            def late(*arguments):
                if not came:
                    came.append(self.written(other, self.rival))
                return script(*arguments)

            commits._script = late
            taken = self.written(change)
        before = self.model.calibration
        if came:
            assert came == [self.change(other)]
        if change[0] == "add" and self.model.calibration != before:
            assert not taken  # its copies were looked for among another calibration's images
        else:
            assert taken == self.change(change)

    @rule(left=st.integers(0, 3))
    def trim(self, left):
        self.raw.xtrim(KEYS.changes, maxlen=left, approximate=False)

    @rule(hours=st.integers(1, 2))
    def time_passes(self, hours):
        self.now += timedelta(hours=hours)

    # -- replicas --

    @rule(name=REPLICAS, max_shrink=st.sampled_from([0.5, 1.0]))
    def start(self, name, max_shrink):
        if name not in self.running:
            folder = Path(self._folders.name) / name
            self.running[name] = Replica(name, self.store, folder, lambda: self.now, max_shrink)

    @rule(name=REPLICAS, count=st.integers(1, 3))
    def turn(self, name, count):
        if name in self.running:
            for _ in range(count):
                self.running[name].sync._turn()

    @rule(change=CHANGES)
    def write_and_follow(self, change):
        """The usual: all replicas hear of a change before there is another."""
        self.write(change)
        for name in NAMES:
            self.turn(name, 2)

    @rule(name=REPLICAS)
    def stop(self, name):
        if name in self.running:
            self.running[name].sync._save()
            sync = self.running[name].sync
            sync._reader.replicas.leave(sync.identity)
            del sync
            self.kill(name)

    @rule(name=REPLICAS)
    def kill(self, name):
        if (dead := self.running.pop(name, None)) is not None:
            self.raw.delete(KEYS.replica(dead.sync.identity))  # it expires before anything else
        del dead
        gc.collect()  # which closes its files

    @rule(name=REPLICAS, point=st.sampled_from(["replace", "glob"]))
    def kill_while_it_saves(self, name, point):
        """Before the new state is in its place, or right after."""
        if name not in self.running:
            return

        def dies(*_):
            raise Crash

        died = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, point, dies)
            try:
                self.running[name].sync._save()
            except Crash:
                died = True
        if died:  # and the error, which knows of the replica, is gone too
            self.kill(name)

    # -- what holds --

    @invariant()
    def every_mirror_shows_what_the_store_held_at_its_version(self):
        for replica in self.running.values():
            if (head := replica.mirror.head) is not None:
                assert shown(replica.mirror) == expected(self.history[head.version.seq], self.now)

    def finish(self):
        """Given time, and a person where one is asked for, all are equal."""
        head = self.store.head()
        if head is None:
            return
        assert head.version == Version(head.version.epoch, self.model.seq)
        assert head.tallies.of_model(MODEL.sha256) == self.model.tallies()
        for name in NAMES:
            self.start(name, 0.5)
        self.settle()
        if any(replica.sync.state == "shrunk" for replica in self.running.values()):
            self.write(("accept",))
            self.settle()
        fresh = Mirror(MODEL, "cpu", clock=lambda: self.now)
        reader = self.store.of_model(MODEL, artefact.read_for)
        now = reader.head()
        assert now is not None
        fresh.load(reader.snapshot(now))
        for replica in self.running.values():
            if not replica.sync.ready:  # it has nothing, and there is too little to begin with
                assert 2 * len(self.model.blobs[MODEL]) < len(self.model.references)
                continue
            assert replica.sync.state == "following"
            assert replica.mirror.head is not None
            assert replica.mirror.head.version == now.version
            assert replica.mirror.tallies() == now.tallies.of_model(MODEL.sha256)
            (*own, best), (*others, _) = shown(replica.mirror), shown(fresh)
            *wanted, similar = expected(self.model.content(), self.now)
            assert own == others == wanted
            assert best == similar  # but for the last bits, which depend on what else was measured
            assert replica.mirror.sizes() == fresh.sizes()

    def settle(self):
        for _ in range(4 + len(self.history)):
            for replica in self.running.values():
                replica.sync._turn()


@contextmanager
def scripted(store):
    """The script of a store's commits, and where to put another in its place."""
    commits = store._commits
    script = commits._script
    yield script, commits
    commits._script = script


@pytest.fixture
def small(monkeypatch):
    """Everything as small as can be, so that its ends are met often."""
    monkeypatch.setattr(stores, "CHUNK", CHUNK)
    monkeypatch.setattr(readers, "_ENTRIES_AT_ONCE", 2)
    monkeypatch.setattr(layout, "BUCKETS", 4)
    monkeypatch.setattr(kept, "_GARBAGE", 256)
    for module in (index, kept, local_copy):
        monkeypatch.setattr(module, "SEGMENT_ROWS", 256)
    monkeypatch.setattr(syncs, "RETRY_SECONDS", 0)
    monkeypatch.setattr(syncs, "HEARTBEAT_SECONDS", 0)
    monkeypatch.setattr(syncs, "COUNT_SECONDS", 0)
    monkeypatch.setattr(syncs, "SAVE_CHANGES", 3)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small")
def test_no_interleaving_shows_what_was_not_the_stores(redis_server, monkeypatch):
    monkeypatch.setattr(HotSetMachine, "server", redis_server, raising=False)
    run_state_machine_as_test(
        HotSetMachine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
