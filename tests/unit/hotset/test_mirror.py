import threading
from datetime import timedelta

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import (
    MODEL,
    NOW,
    VIEWS,
    bank,
    calibration,
    descriptors,
    put,
    put_bank,
    reference,
    snapshot,
)
from worker.errors import StoreError
from worker.hotset.hot_set import Sizes
from worker.hotset.mirror import Mirror
from worker.hotset.probes import Probes
from worker.hotset.types import (
    Accepted,
    BankRemoved,
    CalibrationPut,
    Entry,
    Head,
    ReferenceRemoved,
)
from worker.records import Version


class Fixture:
    """A mirror with a clock of its own and a store's history to move it along."""

    def __init__(self, banks=(), references=(), **more):
        self.now = NOW
        self.mirror = Mirror(MODEL, "cpu", clock=lambda: self.now)
        self.seq = 1
        described = [(one, descriptors(seed)) for seed, one in enumerate(references)]
        self.mirror.load(snapshot(banks, described, **more))

    def apply(self, change):
        self.seq += 1
        self.mirror.apply(
            Entry(Version(5, self.seq), f"m{self.seq}", f"m{self.seq - 1}", 0.0, [change])
        )

    def search(self, seed=0, tenant=None, k=10, *, canary=False):
        query = torch.from_numpy(descriptors(seed).rows[:1].astype(np.float32))
        return self.mirror.search(query, [tenant], k, [canary]).hits[0]

    def found(self, seed=0, tenant=None, k=10):
        return {(hit.reference.reference_id, hit.view) for hit in self.search(seed, tenant, k)}


def both(*reference_ids):
    return {(name, view) for name in reference_ids for view in VIEWS}


def test_before_it_is_loaded_there_is_nothing_to_search():
    mirror = Mirror(MODEL, "cpu")
    assert (mirror.head, mirror.sizes()) == (None, Sizes(0, 0, 0))
    mirror.expire()
    with pytest.raises(StoreError, match="not loaded"):
        mirror.search(torch.zeros(1, MODEL.dims), [None], 5)


def test_a_search_tells_what_it_compared_with():
    applied = calibration()
    one = Fixture([bank()], [reference(copies=("a" * 64,))], calibration=applied)
    against = one.mirror.search(torch.zeros(1, MODEL.dims), [None], 5).against
    assert (against.version, against.calibration) == (Version(5, 1), applied)
    assert against.banks == {"known-bad": bank()}
    assert against.copies == {"a" * 64}
    assert set(against.best) == {"known-bad"}
    hit = one.search()[0]
    assert (hit.reference.reference_id, hit.bank, hit.view) == ("r1", bank(), "plain")
    assert hit.cosine == pytest.approx(1, abs=2e-3)


def test_banks_of_other_tenants_take_no_place_among_the_best():
    banks = [bank("for-all"), bank("for-t1", tenants=("t1",)), bank("for-t2", tenants=("t2",))]
    references = [reference(f"{b.name}-{n}", b.name) for b in banks for n in range(20)]
    one = Fixture(banks, references)
    for tenant, foreign in [("t1", "for-t2"), ("t2", "for-t1")]:
        hits = one.search(3, tenant, k=80)
        assert len(hits) == 80
        assert foreign not in {hit.bank.name for hit in hits}
    assert {hit.bank.name for hit in one.search(3, "t3", k=80)} == {"for-all"}
    assert len(one.search(3, None, k=200)) == 120


def test_canaries_take_no_place_among_the_best_of_an_ordinary_upload():
    banks = [bank(), bank("for-t1", tenants=("t1",))]
    canaries = [reference(f"c{n}", canary=True) for n in range(20)]
    one = Fixture(banks, [*canaries, reference(), reference("r2", "for-t1")])
    assert one.found(3, k=4) == both("r1", "r2")
    assert one.found(3, "t2", k=4) == both("r1")
    assert one.search(3, k=4, canary=True)[0].reference.reference_id == "c3"
    assert len(one.search(3, k=100, canary=True)) == 44
    query = torch.from_numpy(descriptors(3).rows[:1].astype(np.float32)).repeat(2, 1)
    mixed = one.mirror.search(query, [None, None], 1, [False, True]).hits
    assert [hits[0].reference.canary for hits in mixed] == [False, True]


def test_a_mirror_knows_its_canaries():
    one = Fixture([bank()], [reference(), reference("c1", canary=True)])
    one.apply(put(reference("c2", canary=True, enabled=False), descriptors(5)))
    assert [canary.reference_id for canary in one.mirror.canaries] == ["c1", "c2"]
    one.apply(ReferenceRemoved("c1"))
    assert [canary.reference_id for canary in one.mirror.canaries] == ["c2"]
    assert Mirror(MODEL, "cpu").canaries == []


@pytest.mark.parametrize(
    ("off", "on"),
    [
        (put(reference(enabled=False)), put(reference())),
        (put_bank(bank(enabled=False)), put_bank(bank())),
        (BankRemoved("known-bad"), put_bank(bank())),
        (ReferenceRemoved("r1"), put(reference(), descriptors(0))),
    ],
)
def test_what_is_switched_off_is_not_found_until_it_is_on_again(off, on):
    one = Fixture([bank(), bank("other")], [reference(), reference("r2", "other")])
    before = one.search()
    one.apply(off)
    assert one.found() == both("r2")
    assert one.mirror.sizes().rows == 2
    one.apply(on)
    assert one.search() == before


def test_a_bank_is_searched_by_the_views_that_it_wants():
    one = Fixture([bank(views=("inverted",))], [reference()])
    assert one.found() == {("r1", "inverted")}
    one.apply(put_bank(bank(views=("plain",))))
    assert one.found() == {("r1", "plain")}
    one.apply(put_bank(bank()))
    assert one.found() == both("r1")


def test_new_descriptors_replace_the_old():
    one = Fixture([bank()], [reference()])
    one.apply(put(reference(), descriptors(77, views=("plain",))))
    assert one.search(77)[0].cosine == pytest.approx(1, abs=2e-3)
    assert one.found() == {("r1", "plain")}


def test_the_rows_that_were_hit_are_those_that_are_stored():
    one = Fixture([bank(), bank("other")], [reference(), reference("r2", "other")])
    hits = one.search()
    stored = {
        (name, view): descriptors(seed).rows[number]
        for seed, name in enumerate(("r1", "r2"))
        for number, view in enumerate(VIEWS)
    }
    expected = np.stack([stored[hit.reference.reference_id, hit.view] for hit in hits])
    assert np.array_equal(one.mirror.rows_of(hits).numpy(), expected.astype(np.float32))
    assert one.mirror.rows_of([]).shape == (0, MODEL.dims)


@pytest.mark.parametrize(
    "change",
    [
        ReferenceRemoved("r1"),
        put(reference(enabled=False)),
        put(reference(note="another picture"), descriptors(5)),
        put(reference(), descriptors(5, views=("mirrored",))),
    ],
    ids=["removed", "changed", "replaced", "other views"],
)
def test_the_row_of_a_reference_that_changed_after_the_search_is_not_known(change):
    one = Fixture([bank()], [reference(), reference("r2")])
    hits = one.search()
    changed = [hit.reference.reference_id == "r1" for hit in hits]
    one.apply(change)
    one.apply(put(reference("r3"), descriptors(9)))  # it may have the rows that are free now
    unknown = one.mirror.rows_of(hits).isnan()
    assert unknown.all(dim=1).tolist() == unknown.any(dim=1).tolist() == changed
    one.mirror.load(snapshot([bank()]))
    assert one.mirror.rows_of(hits).isnan().all()


def test_expiry_needs_no_redis():
    soon = NOW + timedelta(seconds=10)
    one = Fixture([bank()], [reference(), reference("r2", expires_at=soon)])
    one.apply(put(reference("r3", expires_at=soon), descriptors(9)))
    assert one.found() == both("r1", "r2", "r3")
    one.now = soon
    assert one.found() == both("r1")
    assert one.mirror.sizes() == Sizes(references=3, rows=2, unusable=0)
    one.apply(put(reference("r2", expires_at=soon + timedelta(days=1))))
    assert one.found() == both("r1", "r2")


LATER = NOW + timedelta(seconds=10)


def ahead_in_a_search(one):
    one.found()


def ahead_in_the_thread(one):
    one.mirror.expire()


def ahead_in_a_change(one):
    one.apply(put(reference("r2", expires_at=LATER, note="changed")))


def ahead_in_a_change_of_the_bank(one):
    one.apply(put_bank(bank(views=("inverted", "plain"))))


def ahead_in_a_load(one):
    described = [(one_reference, descriptors(n)) for n, one_reference in enumerate(EXPIRING)]
    one.mirror.load(snapshot([bank()], described, calibration=one.mirror.against().calibration))


EXPIRING = [reference(), reference("r2", expires_at=LATER)]


@pytest.mark.parametrize(
    "ahead",
    [
        ahead_in_a_search,
        ahead_in_the_thread,
        ahead_in_a_change,
        ahead_in_a_change_of_the_bank,
        ahead_in_a_load,
    ],
)
@pytest.mark.parametrize("calibrated", [None, calibration(1)])
def test_what_a_clock_that_was_ahead_has_hidden_comes_back(ahead, calibrated):
    one = Fixture([bank()], EXPIRING, calibration=calibrated)
    assert one.found() == both("r1", "r2")
    before = one.mirror.against().best
    one.now = NOW + timedelta(days=365)
    ahead(one)
    assert one.found() == both("r1")
    one.now = NOW + timedelta(seconds=1)
    assert one.found() == both("r1", "r2")
    after = one.mirror.against().best
    assert all((after[name] == before[name]).all() for name in before)
    one.now = LATER
    assert one.found() == both("r1")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (ReferenceRemoved("r1"), both("r2", "r3")),
        (put(reference("r1", enabled=False)), both("r2", "r3")),
        (put(reference("off")), both("r1", "r2", "r3", "off")),
        (put_bank(bank(views=("plain",))), {(name, "plain") for name in ("r1", "r2", "r3")}),
        (put_bank(bank("other")), both("r1", "r2", "r3", "r4")),
        (None, both("r1", "r3")),
    ],
)
def test_searches_do_not_wait_while_null_images_are_compared(change, found, monkeypatch):
    """Without a change a reference expires."""
    references = [reference("r1"), reference("r2", expires_at=LATER), reference("r3")]
    references += [reference("off", enabled=False), reference("r4", "other")]
    banks = [bank(), bank("other", enabled=False)]
    one = Fixture(banks, references, calibration=calibration(1))
    one.mirror.against()
    assert one.mirror._set is not None
    waited, copy = [], one.mirror._set.copy
    stored = copy.read_rows

    def noted(numbers):
        waited.append(one.mirror._turns._lock.locked())
        return stored(numbers)

    monkeypatch.setattr(copy, "read_rows", noted)
    if change is None:
        one.mirror.expire()
        one.now = LATER
    else:
        one.apply(change)
    one.mirror.against()
    assert waited
    assert not any(waited)
    assert one.found() == found


def test_what_is_saved_of_the_null_is_of_one_moment(tmp_path, monkeypatch):
    mirror, locked = Mirror(MODEL, "cpu", tmp_path, clock=lambda: NOW), []
    mirror.load(snapshot([bank()], [(reference(), descriptors(0))], calibration=calibration(1)))
    kept = Probes.kept

    def noted(probes):
        locked.append(mirror._turns._lock.locked())
        return kept(probes)

    monkeypatch.setattr(Probes, "kept", noted)
    mirror.save()
    mirror.close()
    assert locked == [True]


def test_what_cannot_match_is_counted():
    one = Fixture([bank()], [reference(), reference("r2", "gone")], unreadable=["r9"])
    assert one.mirror.sizes() == Sizes(references=1, rows=2, unusable=2)
    one.apply(put(reference("r3")))  # described by another model only
    assert one.mirror.sizes() == Sizes(references=1, rows=2, unusable=3)
    one.apply(put(reference("r3"), descriptors(3)))
    one.apply(put(reference("r9"), descriptors(4)))
    one.apply(put_bank(bank("gone")))
    assert one.mirror.sizes() == Sizes(references=4, rows=8, unusable=0)


def test_the_head_moves_with_the_changes():
    one = Fixture([bank()])
    one.apply(CalibrationPut(MODEL.sha256, "c2", calibration()))
    assert one.mirror.head == Head(Version(5, 2), "m2", "")
    one.apply(Accepted())
    one.apply(CalibrationPut(MODEL.sha256, None))
    assert one.mirror.head == Head(Version(5, 4), "m4", accepted="m3")


def test_a_snapshot_is_swapped_in_whole_with_what_came_meanwhile():
    one = Fixture([bank()], [reference()])
    another = snapshot([bank()], [(reference("r2"), descriptors(2))], Head(Version(8, 3), "x3", ""))
    entry = Entry(Version(8, 4), "x4", "x3", 0.0, [put(reference("r3"), descriptors(3))])
    one.mirror.load(another, [entry])
    assert one.found() == both("r2", "r3")
    assert one.mirror.head == Head(Version(8, 4), "x4", "")


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_full_disk_hides_no_reference(calibrated, monkeypatch):
    more = {"calibration": calibration()} if calibrated else {}
    one = Fixture([bank()], [reference("r1"), reference("r2")], **more)

    def full(*_):
        raise StoreError("no space left on device")

    assert one.mirror._set is not None
    monkeypatch.setattr(one.mirror._set.copy.records, "append", full)
    with pytest.raises(StoreError, match="no space left"):
        one.apply(put(reference("r1"), descriptors(0)))
    assert one.found() == both("r1", "r2")


def test_what_a_search_looks_for_is_not_in_the_way_of_a_change(monkeypatch):
    """The last reference of one bank and one of another's expire; the search looks for the best."""
    soon = NOW + timedelta(seconds=100)
    one = Fixture(
        [bank("a"), bank("b")],
        [
            reference("a1", bank="a", expires_at=soon),
            reference("b1", bank="b", expires_at=soon),
            *(reference(name, bank="b") for name in ("b2", "b3")),
        ],
        calibration=calibration(),
    )
    one.now = soon + timedelta(seconds=1)
    inside, go = threading.Event(), threading.Event()
    look, columns = Probes._look, []

    def slow(self, column, rows):
        if threading.current_thread() is searcher:
            columns.append(column)
            if len(columns) == 2:
                inside.set()
                assert go.wait(30)
        look(self, column, rows)

    monkeypatch.setattr(Probes, "_look", slow)
    searcher = threading.Thread(target=one.search)
    searcher.start()
    assert inside.wait(30)
    threading.Timer(0.2, go.set).start()
    one.apply(ReferenceRemoved("b2"))
    searcher.join(30)
    assert one.found() == both("b3")
