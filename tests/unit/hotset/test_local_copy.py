"""What a process leaves on disk, and what the next one makes of it."""

import stat
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import (
    MODEL,
    NOW,
    OTHER_MODEL,
    bank,
    calibration,
    descriptors,
    put,
    reference,
    snapshot,
    told,
)
from worker.errors import StoreError
from worker.hotset import kept as keeping
from worker.hotset.local_copy import LocalCopies, LocalCopy
from worker.hotset.mirror import Mirror
from worker.hotset.types import Entry, ReferenceRemoved
from worker.records import Version
from worker.scoring import artefact

REFERENCES = [(reference(f"r{n}"), descriptors(n)) for n in range(30)]


class Kept:
    """Mirrors of one folder, one after the other."""

    def __init__(self, folder):
        self.folder = folder
        self.mirror: Any = None
        self.seq = 1

    def mirror_of(self, model=MODEL):
        if self.mirror is not None:
            self.mirror.close()
        self.mirror = Mirror(model, "cpu", self.folder, clock=lambda: NOW)
        return self.mirror

    def loaded(self, described=REFERENCES, **more):
        mirror = self.mirror_of()
        mirror.load(snapshot([bank(), bank("other", tenants=("t1",))], described, **more))
        mirror.save()
        return mirror

    def apply(self, *changes):
        before, self.seq = self.seq, self.seq + len(changes)
        entry = Entry(Version(5, self.seq), f"m{self.seq}", f"m{before}", 0.0, changes)
        self.mirror.apply(entry)

    @property
    def files(self):
        (copy,) = (self.folder / MODEL.sha256[:16]).glob("0/[0-9]*")
        return copy


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path / "copies")


def seen(mirror):
    queries = torch.from_numpy(np.concatenate([descriptors(n).rows for n in (1, 5)])).float()
    found = mirror.search(queries, [None] * len(queries), 1000)
    return found.hits, told(found.against), mirror.sizes(), mirror.head, mirror.tallies()


def test_the_next_process_has_the_same_set(kept):
    soon = reference("soon", expires_at=NOW + timedelta(days=1), copies=("a" * 64,))
    off = reference("off", enabled=False, canary=True)
    described = [
        *REFERENCES,
        (soon, descriptors(40)),
        (off, descriptors(41)),
        (reference("x"), None),
    ]
    before = seen(kept.loaded(described, calibration=calibration()))
    mirror = kept.mirror_of()
    assert mirror.restore(artefact.read) < 60
    assert seen(mirror) == before
    assert [one.reference_id for one in mirror.canaries] == ["off"]
    kept.seq = 1
    kept.apply(
        put(reference("new"), descriptors(50)), put(reference("r3"), descriptors(3, ("plain",)))
    )
    after = seen(mirror)
    mirror.save()
    mirror = kept.mirror_of()
    mirror.restore(artefact.read)
    assert seen(mirror) == after


def test_what_was_not_saved_is_as_it_was_at_the_last_state(kept):
    """As after a kill -9: removed and replaced values are still there for the older state."""
    before = seen(kept.loaded())
    kept.apply(ReferenceRemoved("r1"), put(reference("r2", note="n"), descriptors(77)))
    for number in range(20):
        kept.apply(put(reference(f"later-{number}"), descriptors(100 + number)))
    mirror = kept.mirror_of()
    mirror.restore(artefact.read)
    assert seen(mirror) == before


def test_what_was_removed_is_erased_once_it_is_saved(kept):
    mirror = kept.loaded()
    gone = descriptors(1).rows.tobytes()
    assert gone in (kept.files / "descriptors").read_bytes()
    kept.apply(ReferenceRemoved("r1"))
    assert gone in (kept.files / "descriptors").read_bytes()
    mirror.save()
    assert gone not in (kept.files / "descriptors").read_bytes()
    assert b'"r1"' not in (kept.files / "records-0").read_bytes()
    kept.apply(put(reference("next"), descriptors(90)))
    assert mirror.sizes().rows == 60
    mirror.save()
    mirror = kept.mirror_of()
    mirror.restore(artefact.read)
    assert mirror.sizes().references == 30


def test_what_a_kill_left_unerased_is_erased_at_the_next_start(kept, monkeypatch):
    mirror = kept.loaded()
    gone = descriptors(1).rows.tobytes()
    kept.apply(ReferenceRemoved("r1"))
    kept.apply(put(reference("unsaved"), descriptors(90)))
    monkeypatch.setattr(mirror._set, "_erase", lambda: None)  # killed in between
    mirror.save()
    kept.apply(put(reference("later"), descriptors(91)))
    assert gone in (kept.files / "descriptors").read_bytes()
    mirror = kept.mirror_of()
    mirror.restore(artefact.read)
    left = (kept.files / "descriptors").read_bytes()
    assert gone not in left
    assert descriptors(91).rows.tobytes() not in left
    rows = mirror.sizes().rows
    kept.seq = 3
    kept.apply(put(reference("next"), descriptors(92)))
    assert mirror.sizes().rows == rows + 2
    assert len(mirror._set._runs.owners) == 62  # the run of r1 is used again


def test_records_are_written_anew_when_most_of_them_are_old(kept, monkeypatch):
    monkeypatch.setattr(keeping, "_GARBAGE", 100)
    mirror = kept.loaded(REFERENCES[:3])
    for number in range(50):
        kept.apply(put(reference("r1", note=f"note {number}")))
    before = seen(mirror)
    mirror.save()
    assert not (kept.files / "records-0").exists()
    assert (kept.files / "records-1").stat().st_size < 1000
    assert seen(mirror) == before
    kept.apply(put(reference("r9"), descriptors(9)))
    mirror.save()
    after = seen(mirror)
    mirror = kept.mirror_of()
    mirror.restore(artefact.read)
    assert seen(mirror) == after


@pytest.mark.parametrize("name", ["descriptors", "records-0", "state.npz"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_copy_is_refused(kept, name, damage):
    kept.loaded()
    file = kept.files / name
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2 if name == "state.npz" else 10] ^= 0x40
    file.write_bytes({"flip": bytes(raw), "cut": bytes(raw[:20]), "empty": b""}[damage])
    mirror = kept.mirror_of()
    with pytest.raises(StoreError):
        mirror.restore(artefact.read)
    assert mirror.head is None
    mirror.load(snapshot([bank()], REFERENCES))
    assert mirror.sizes().references == 30


def test_a_copy_of_another_form_or_model_is_refused(kept, monkeypatch):
    kept.loaded()
    assert kept.mirror_of(OTHER_MODEL).restore(artefact.read) is None
    monkeypatch.setattr(keeping, "_FORM", 99)
    with pytest.raises(StoreError, match="form"):
        kept.mirror_of().restore(artefact.read)


def test_each_process_has_a_folder_of_its_own_and_the_old_set_goes(kept):
    first = kept.loaded()
    beside = Mirror(MODEL, "cpu", kept.folder)
    assert beside.restore(artefact.read) is None
    beside.load(snapshot([bank()], REFERENCES[:3]))
    beside.save()
    own = kept.folder / MODEL.sha256[:16]
    assert sorted(one.name for one in own.iterdir()) == ["0", "1"]
    first.load(snapshot([bank()], REFERENCES[:5]))
    assert sorted(one.name for one in (own / "0").glob("[0-9]*")) == ["1", "2"]
    first.save()
    assert [one.name for one in (own / "0").glob("[0-9]*")] == ["2"]


def test_nobody_else_can_read_it(kept):
    kept.loaded()
    for path in [kept.folder / MODEL.sha256[:16] / "0", kept.files, *kept.files.iterdir()]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"hotset\.folder .*file: Not a directory"):
        LocalCopies(tmp_path / "file", "model")


def test_a_copy_without_a_folder_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    copy = LocalCopy(None, MODEL.dims)
    copy.write_rows(0, descriptors(1).rows)
    copy.save({})
    assert copy.age == float("inf")
    with pytest.raises(StoreError, match="without a folder"):
        copy.load()
    assert list(tmp_path.iterdir()) == []
