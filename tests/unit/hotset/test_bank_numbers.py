"""Banks come and go for years, and no number of one is another's meanwhile."""

from itertools import islice, permutations

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import (
    MODEL,
    NOW,
    bank,
    calibration,
    descriptors,
    put,
    put_bank,
    reference,
    snapshot,
)
from worker.hotset import columns
from worker.hotset.layout import Unusable
from worker.hotset.mirror import Mirror
from worker.hotset.table import FIELDS
from worker.hotset.types import BankRemoved, Entry, ReferenceRemoved
from worker.records import Version


class History:
    """A mirror, and changes that come one by one."""

    def __init__(self, *banks, folder=None, **more):
        self.mirror = Mirror(MODEL, "cpu", folder, clock=lambda: NOW)
        self.mirror.load(snapshot(banks, **more))
        self.seq = 1

    def apply(self, *changes):
        self.seq += len(changes)
        self.mirror.apply(Entry(Version(5, self.seq), f"m{self.seq}", "", 0.0, changes))

    def found(self, tenant):
        query = torch.from_numpy(descriptors(0).rows[:1].astype(np.float32))
        hits = self.mirror.search(query, [tenant], 9).hits[0]
        return {hit.reference.reference_id for hit in hits}


def test_a_number_never_wraps():
    """It did after 65,536 names: then another tenant's references were found."""
    numbers = columns.Columns()
    names = [f"b{number}" for number in range(65_537)]
    with pytest.raises(Unusable, match="more than 4,000 banks"):
        list(map(numbers.of_bank, names))
    assert sorted(numbers.banks.values()) == list(range(columns.MOST_NUMBERS))
    assert np.iinfo(FIELDS["bank"]).max >= columns.MOST_NUMBERS


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(columns, "MOST_NUMBERS", 3)
    monkeypatch.setattr("worker.hotset.holdings.MOST_NUMBERS", 3)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("calibrated", [None, calibration(1)])
def test_a_number_is_used_again_with_nothing_of_the_bank_before(tmp_path, calibrated):
    one = History(bank("b0", tenants=("t0",)), folder=tmp_path, calibration=calibrated)
    for number in range(1, 12):
        one.apply(put_bank(bank(f"b{number}", tenants=(f"t{number}",))))
        one.apply(put(reference(f"r{number}", f"b{number}"), descriptors(number)))
        one.mirror.against()
        one.apply(ReferenceRemoved(f"r{number - 1}"), BankRemoved(f"b{number - 1}"))
        assert one.found(f"t{number}") == {f"r{number}"}
        assert one.found(f"t{number - 1}") == set()
    fresh = History(bank("b11"), calibration=calibrated)
    fresh.apply(put(reference("r11", "b11"), descriptors(11)))
    best, same = one.mirror.against().best, fresh.mirror.against().best
    assert best.keys() == same.keys()
    assert all(np.allclose(best[name], same[name]) for name in best)
    one.mirror.save()
    one.mirror.close()
    again = Mirror(MODEL, "cpu", tmp_path, clock=lambda: NOW)
    assert again.restore(lambda _: calibrated) is not None
    one.mirror = again
    assert one.found("t11") == {"r11"}


@pytest.mark.usefixtures("few")
def test_references_that_name_too_many_banks_refuse_the_load():
    named = [(reference(f"r{n}", f"nobodys-{n}"), descriptors(n)) for n in range(3)]
    with pytest.raises(Unusable, match="more than 3 banks"):
        Mirror(MODEL, "cpu").load(snapshot([bank()], named))


@pytest.mark.usefixtures("few")
def test_a_change_that_names_too_many_banks_is_made_by_no_half():
    one = History(bank("b0"), bank("b1"), bank("b2"))
    one.apply(put(reference("r0", "b0"), descriptors(0)))
    before = one.mirror.tallies(), one.mirror.sizes()
    with pytest.raises(Unusable, match="more than 3 banks"):
        one.apply(put(reference("r1", "b3"), descriptors(1)))
    with pytest.raises(Unusable, match="more than 3 banks"):
        one.apply(put(reference("r0", "b3"), descriptors(1)))
    with pytest.raises(Unusable, match="more than 3 banks"):
        one.apply(put_bank(bank("b3")))
    assert (one.mirror.tallies(), one.mirror.sizes()) == before
    assert one.found(None) == {"r0"}


def test_every_list_of_views_has_a_number_of_its_own():
    """There are more than 255 lists of six views."""
    one = History(bank())
    all_views = ("plain", "inverted", "mirrored", "rotated_90", "rotated_180", "rotated_270")
    lists = list(islice(permutations(all_views), 300))
    for number, views in enumerate(lists):
        one.apply(put(reference(f"r{number}"), descriptors(number, views)))
    for number in (0, 255, 256, 299):
        at = lists[number].index("plain")
        query = torch.from_numpy(descriptors(number, lists[number]).rows[at : at + 1])
        hit = one.mirror.search(query.float(), [None], 1).hits[0][0]
        assert (hit.reference.reference_id, hit.view) == (f"r{number}", "plain")


def test_a_crowd_is_searched_by_bank_where_numbers_have_gaps():
    """As many columns as the highest number asks for, not as there are banks."""
    numbers = columns.Columns()
    for name in ("a", "b", "c"):
        numbers.of_bank(name)
    numbers.keep_only(["a", "c"], [])
    banks = {name: bank(name) for name in ("a", "c")}
    allowed = numbers.allowed(numbers.screens(banks), [None], [False])
    floors = numbers.floors({"c": 0.5})
    assert floors.shape == allowed.shape[1:]
    assert floors[numbers.enforced("c")] == 0.5
    assert np.isfinite(floors).sum() == 3
    assert allowed[0, numbers.enforced("c")]
