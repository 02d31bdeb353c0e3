import random

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import unit_rows
from worker.hotset import index as indexes
from worker.hotset.index import NOBODYS, Index
from worker.scoring.projection import centering, whitening

DIMS = 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Rows:
    """An index with the rows it was given, as stored."""

    def __init__(self, dtype=torch.bfloat16, projection=None):
        self.index = Index(DIMS, "cpu", dtype, projection)
        self.stored = np.zeros((0, DIMS), dtype=np.float16)
        self.columns = np.zeros(0, dtype=np.int32)

    def add(self, descriptors, columns):
        first = len(self.stored)
        self.stored = np.concatenate([self.stored, descriptors])
        self.columns = np.concatenate([self.columns, columns]).astype(np.int32)
        self.index.put(first, descriptors)
        self.assign(np.arange(first, len(self.stored)), columns)

    def assign(self, numbers, columns):
        self.columns[numbers] = columns
        self.index.assign(numbers, np.asarray(columns, dtype=np.int32))

    def search(self, queries, allowed, k):
        read = self.stored.__getitem__
        return self.index.search(torch.from_numpy(queries), torch.from_numpy(allowed), k, read)

    def brute_force(self, queries, allowed, k):
        """The k best numbers with their cosines for each query, and ties of the last, in fp64."""
        project = self.index.projection or (lambda rows: rows)
        wide, queries = (
            project(torch.from_numpy(rows.astype(np.float64))).numpy()
            for rows in (self.stored, queries)
        )
        for query, own in zip(queries, allowed, strict=True):
            cosines = np.clip((wide * query).sum(1), -1, 1).astype(np.float32)
            numbers = np.flatnonzero(own[self.columns])
            best = sorted(numbers.tolist(), key=lambda number: (-cosines[number], number))
            bar = cosines[best[min(k, len(best)) - 1]] if best else np.inf
            yield {number: cosines[number] for number in best if cosines[number] >= bar}

    def check(self, k=7, allowed=None, queries=None):
        queries = queries_of(99, 9) if queries is None else queries
        if allowed is None:
            allowed = np.tile([False, True, True, True], (len(queries), 1))
        found = self.search(queries, allowed, k)
        for hits, best in zip(found, self.brute_force(queries, allowed, k), strict=True):
            similar = zip(hits.numbers.tolist(), hits.similarities.tolist(), strict=True)
            assert dict(similar) == pytest.approx(best)
            assert (np.diff(hits.similarities) <= 0).all()


def queries_of(seed, count):
    rows = np.random.default_rng(seed).normal(size=(count, DIMS))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Growth, and searches over several segments, without a million rows."""
    monkeypatch.setattr(indexes, "SEGMENT_ROWS", 256)


PROJECTIONS = {
    "none": None,
    "centred": centering(torch.from_numpy(unit_rows(50, 40, DIMS)).float() + 0.1),
    "whitened": whitening(torch.from_numpy(unit_rows(50, 40, DIMS)).float() + 0.1),
}


@pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_brute_force_through_growth_and_hiding(dtype, projection):
    rows, rng = Rows(dtype, projection), np.random.default_rng(3)
    for seed in range(5):
        rows.add(unit_rows(seed, 333, DIMS), rng.integers(1, 4, 333))
        rows.check()
        some = rng.choice(len(rows.stored), 60, replace=False)
        rows.assign(some, np.full(60, NOBODYS))
        rows.check()
        assert len(rows.index) == np.count_nonzero(rows.columns)
    rows.check(k=1)
    rows.check(k=5000)
    rows.assign(np.arange(len(rows.stored)), rng.integers(0, 4, len(rows.stored)))
    rows.check(k=40)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_query_has_its_own_columns(dtype):
    rows, rng = Rows(dtype), random.Random(3)
    rows.add(unit_rows(1, 900, DIMS), np.random.default_rng(1).integers(0, 4, 900))
    allowed = np.array([[False, *(rng.random() < 0.4 for _ in range(3))] for _ in range(9)])
    allowed[4] = False
    rows.check(allowed=allowed)
    rows.check(allowed=np.tile(allowed[:1], (9, 1)))
    assert len(rows.search(queries_of(1, 1), allowed[4:5], 5)[0].numbers) == 0


def test_a_row_that_was_written_anew_is_found_as_it_is_now():
    rows = Rows()
    rows.add(unit_rows(1, 300, DIMS), np.ones(300))
    rows.stored[250:270] = unit_rows(2, 20, DIMS)
    rows.index.put(250, rows.stored[250:270])
    rows.check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_that_are_as_good_as_the_last_are_found_in_whatever_company(dtype):
    """Many copies of few pictures, and some that half precision cannot tell from them."""
    pictures = np.repeat(unit_rows(2, 2, DIMS), 500, axis=0)
    nudged = pictures.copy()
    nudged[::3, 0] = np.nextafter(nudged[::3, 0], np.float16(2))
    queries = queries_of(5, 70)
    rows = Rows(dtype)
    rows.add(nudged[np.random.default_rng(1).permutation(1000)], np.ones(1000))
    rows.check(k=30, queries=queries)
    allowed = np.tile([False, True], (70, 1))
    together = rows.search(queries, allowed, 30)
    for number in range(0, 70, 9):  # alone, the product rounds differently
        own = slice(number, number + 1)
        (alone,) = rows.search(queries[own], allowed[own], 30)
        np.testing.assert_array_equal(alone.cosines, together[number].cosines)
        assert set(alone.numbers) == set(together[number].numbers)


def test_identical_vectors_have_cosine_one_at_most():
    rows = Rows()
    rows.add(unit_rows(6, 50, DIMS), np.ones(50))
    found = rows.search(rows.stored.astype(np.float32), np.tile([False, True], (50, 1)), 1)
    assert [hits.numbers[0] for hits in found] == list(range(50))
    assert all(0.998 < hits.cosines[0] <= 1 for hits in found)


def test_an_empty_index_finds_nothing():
    rows = Rows()
    everything = np.ones((2, 2), dtype=bool)
    assert [len(one.numbers) for one in rows.search(queries_of(1, 2), everything, 5)] == [0, 0]
    rows.add(unit_rows(6, 1, DIMS), np.ones(1))
    assert [len(one.numbers) for one in rows.search(queries_of(1, 2), everything, 0)] == [0, 0]
    rows.check()


def test_under_another_projection_the_same_rows_stand_in_the_same_columns():
    rows = Rows()
    rows.add(unit_rows(1, 600, DIMS), np.arange(600) % 4)
    stored = np.concatenate([rows.stored, np.zeros((168, DIMS), dtype=np.float16)])
    rows.index = rows.index.like(
        PROJECTIONS["whitened"], lambda n: stored[n * 256 : (n + 1) * 256].copy()
    )
    assert len(rows.index) == 450
    assert rows.index.members(2).tolist() == list(range(2, 600, 4))
    rows.check()


def test_cosines_are_those_of_the_descriptors():
    rows = Rows(projection=PROJECTIONS["whitened"])
    rows.add(unit_rows(1, 20, DIMS), np.ones(20))
    (found,) = rows.search(queries_of(1, 1), np.array([[False, True]]), 20)
    expected = rows.stored[found.numbers].astype(np.float64) @ queries_of(1, 1)[0]
    assert found.cosines == pytest.approx(expected, abs=1e-6)
    assert found.similarities != pytest.approx(expected, abs=1e-2)


def pairs_of(crowd):
    return set(zip(crowd.queries.tolist(), crowd.numbers.tolist(), strict=True))


@pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_share_a_budget_and_each_has_its_best(dtype, projection):
    rows, rng = Rows(dtype, projection), np.random.default_rng(3)
    rows.add(unit_rows(1, 900, DIMS), rng.integers(1, 4, 900))
    rows.add(unit_rows(2, 3, DIMS), np.full(3, 4))
    queries = queries_of(5, 70)
    floors = np.tile(np.array([np.inf, -0.2, 0.1, 0.3, np.inf], dtype=np.float32), (70, 1))
    floors[::2, 1] = np.inf
    wanted = {
        (query, number): similarity
        for query, own in enumerate(floors)
        for number, similarity in next(
            rows.brute_force(queries[query : query + 1], [own < np.inf], 2000)
        ).items()
        if similarity >= own[rows.columns[number]]
    }

    def search(budget):
        return rows.index.search_columns(
            torch.from_numpy(queries), torch.from_numpy(floors), budget, rows.stored.__getitem__
        )

    everything = search(100_000)
    assert pairs_of(everything) == wanted.keys()
    assert not len(everything.cut)
    for budget in (1, 60, 900):
        found = search(budget)
        assert pairs_of(found) <= wanted.keys()
        assert len(found.numbers) <= max(budget, 3)
        assert set(rows.columns[found.numbers]) == {1, 2, 3} == set(found.cut.tolist())
    best = dict.fromkeys((1, 2, 3), -1.0)
    for (_, number), similarity in wanted.items():
        column = rows.columns[number]
        best[column] = max(best[column], similarity)
    for column, similarity in best.items():
        own = rows.columns[found.numbers] == column
        assert found.similarities[own].max() == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_that_reaches_the_floor_is_found_among_many_just_below(dtype):
    """Half precision cannot tell which of them it is, and all that are looked at are not it."""
    picture = unit_rows(2, 1, DIMS)
    query = picture.astype(np.float32)
    below = np.repeat(picture, 400, axis=0)
    below[:, 0] *= np.float16(0.996)
    best = picture.copy()
    rows = Rows(dtype)
    rows.add(np.concatenate([below, best]), np.ones(401))
    similar = (rows.stored.astype(np.float64) @ query[0]).astype(np.float32)
    assert similar[400] > similar[:400].max()
    floors = torch.tensor([[np.inf, np.nextafter(similar[400], np.float32(0))]])
    found = rows.index.search_columns(torch.from_numpy(query), floors, 5, rows.stored.__getitem__)
    assert pairs_of(found) == {(0, 400)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_of_a_crowd_are_computed_anew_and_how_good_the_others_may_be_is_known(dtype):
    crowd = np.repeat(unit_rows(2, 1, DIMS), 1000, axis=0)
    rows = Rows(dtype)
    rows.add(crowd, np.ones(1000))
    rows.add(unit_rows(3, 500, DIMS), np.ones(500))
    computed = []

    def read(numbers):
        computed.append(len(numbers))
        return rows.stored[numbers]

    queries = torch.from_numpy(np.concatenate([crowd[:9].astype(np.float32), queries_of(1, 9)]))
    allowed = torch.tensor([[False, True]]).expand(18, -1)
    found = rows.index.search(queries, allowed, 8, read, 64)
    assert sum(computed) <= 18 * 64
    all_similar = rows.stored.astype(np.float64) @ queries.double().numpy().T
    for one, similar in zip(found, all_similar.T, strict=True):
        left_out = np.delete(similar, one.numbers)
        assert left_out.max() <= one.unseen + 1e-6
        assert one.similarities[0] == pytest.approx(similar.max(), abs=0.02)
    (few,) = rows.index.search(queries[:1], allowed[:1], 2000, read, 16_000)
    assert few.unseen == -np.inf
