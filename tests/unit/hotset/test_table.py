import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.hotset.table import Ids, Runs, Table, hash_of


def taken(table, names):
    """Slots for these ids, as a mirror takes them."""
    slots = table.take(len(names))
    for slot, name in zip(slots.tolist(), names, strict=True):
        table.rows["hash"][slot] = hash_of(name)
        table.rows["length"][slot] = 1 + len(name)
    return slots.tolist()


def test_the_hash_of_an_id_stays_what_it_is():
    """Copies of earlier versions have it."""
    assert hash_of("bank-0") == hash_of("bank-0") == 0x26360E59_C9249FBD
    assert len({hash_of(f"r{number}") for number in range(10_000)}) == 10_000


def test_slots_are_given_out_again():
    table = Table()
    slots = taken(table, ["a", "b", "c"])
    assert slots == [0, 1, 2]
    table.free(1)
    assert (len(table), table.taken.tolist()) == (2, [0, 2])
    assert taken(table, ["d", "e"]) == [1, 3]
    assert table.rows["offset"][1] == 0
    again = Table(table.rows.copy())
    assert (len(again), again.taken.tolist()) == (4, [0, 1, 2, 3])


def test_ids_are_found_by_their_hash_however_they_came():
    table = Table()
    slots = dict(zip("abcdef", taken(table, "abcdef"), strict=True))
    ids = Ids(table)
    (slots["g"],) = taken(table, ["g"])
    ids.insert(hash_of("g"), slots["g"])
    ids.insert(hash_of("a"), 99)  # another id with the same hash
    assert ids.fresh == 2
    assert ids.find(hash_of("a")) == [slots["a"], 99]
    assert all(ids.find(hash_of(name)) == [slot] for name, slot in slots.items() if name != "a")
    assert ids.find(hash_of("x")) == Ids(Table()).find(hash_of("a")) == []
    assert Ids(table).find(hash_of("g")) == [slots["g"]]


@given(st.lists(st.one_of(st.integers(1, 4), st.just(0)), max_size=60), st.randoms())
def test_runs_never_overlap(steps, random):
    """A step takes a run of so many rows, or gives one back (0); now and then all begins anew."""
    runs, held, owner = Runs(), {}, 0
    for views in steps:
        if views:
            owner += 1
            (first,) = runs.take([owner], views).tolist()
            held[owner] = (first, views)
        elif held:
            first, length = held.pop(random.choice(sorted(held)))
            runs.give_back(first, length)
        if random.random() < 0.1:
            runs = Runs(runs.owners.copy())
        expected = np.full(len(runs.owners), -1)
        for one, (first, length) in held.items():
            assert (expected[first : first + length] == -1).all()
            expected[first : first + length] = one
        np.testing.assert_array_equal(runs.owners, expected)
    for one, (first, _) in held.items():
        assert runs.owner(first) == one


def test_many_take_one_run_after_the_other():
    runs = Runs()
    assert runs.take([7, 8, 9], 2).tolist() == [0, 2, 4]
    runs.give_back(2, 2)
    assert sorted(runs.take([1, 2, 3], 1).tolist()) == [2, 3, 6]
    assert runs.owners.tolist()[:2] == [7, 7]
