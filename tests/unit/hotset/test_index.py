import random

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import unit_rows
from worker.hotset import index as indexes
from worker.hotset.index import Index, Row

DIMS = 16


def rows_of(count, prefix="r"):
    return [Row(f"{prefix}{n:04}", view) for n in range(count) for view in ("inverted", "plain")]


def brute_force(table, queries, allowed, k):
    """The k best of {row: (column, descriptor)} for each query, in plain NumPy."""
    found = []
    for number, query in enumerate(queries.astype(np.float64)):
        hits = [
            (row, np.float32(np.clip(descriptor.astype(np.float64) @ query, -1, 1)))
            for row, (column, descriptor) in table.items()
            if allowed is None or allowed[number, column]
        ]
        found.append(sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k])
    return found


def queries_of(seed, count):
    rows = np.random.default_rng(seed).normal(size=(count, DIMS))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def assert_finds(index, table, k=7, allowed=None):
    queries = queries_of(99, 9)
    mask = None if allowed is None else torch.from_numpy(allowed)
    found = index.search(torch.from_numpy(queries), mask, k)
    expected = brute_force(table, queries, allowed, k)
    assert [[row for row, _ in hits] for hits in found] == [
        [row for row, _ in hits] for hits in expected
    ]
    for hits, best in zip(found, expected, strict=True):
        np.testing.assert_allclose([c for _, c in hits], [c for _, c in best], atol=1e-6)


def test_equals_brute_force_through_growth_removal_and_return():
    index, rng = Index(DIMS, "cpu"), random.Random(3)
    table: dict[Row, tuple[int, np.ndarray]] = {}
    rows = rows_of(900)
    descriptors = unit_rows(1, len(rows), DIMS)
    for begin in range(0, len(rows), 250):
        some = rows[begin : begin + 250]
        columns = [rng.randrange(3) for _ in some]
        values = descriptors[begin : begin + 250]
        index.add(some, columns, torch.from_numpy(values))
        table |= dict(zip(some, zip(columns, values, strict=True), strict=True))
        assert_finds(index, table)
        gone = rng.sample(sorted(table), 60)
        removed = index.remove(gone)
        np.testing.assert_array_equal(removed, np.stack([table.pop(row)[1] for row in gone]))
        assert_finds(index, table)
    allowed = np.array([[rng.random() < 0.4 for _ in range(3)] for _ in range(9)])
    allowed[4] = False
    assert_finds(index, table, allowed=allowed)
    assert len(index) == len(table)
    index.remove(sorted(table))
    assert index.search(torch.from_numpy(queries_of(1, 2)), None, 5) == [[], []]


def test_ties_do_not_depend_on_the_order_of_arrival(monkeypatch):
    """Many copies of few pictures: more equals than places, at any position of the matrix."""
    monkeypatch.setattr(indexes, "_CANDIDATES_AT_ONCE", 37)
    rows = rows_of(1003)
    pictures = unit_rows(2, 2, DIMS)
    values = {row: pictures[number % 2] for number, row in enumerate(rows)}
    queries = torch.from_numpy(queries_of(5, 6))
    results = []
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        index = Index(DIMS, "cpu")
        index.add(rows, [0] * len(rows), torch.from_numpy(np.stack([values[r] for r in rows])))
        many = index.search(queries, None, 30)
        for number, hits in enumerate(many):  # alone, the product rounds differently
            assert index.search(queries[number : number + 1], None, 1) == [hits[:1]]
        results.append(many)
    assert all(result == results[0] for result in results)
    assert [row for row, _ in results[0][0]] == sorted(row for row, _ in results[0][0])


def test_a_large_batch_is_searched_in_blocks(monkeypatch):
    monkeypatch.setattr(indexes, "_CELLS_AT_ONCE", 100)
    rows = rows_of(20)
    values = unit_rows(4, len(rows), DIMS)
    index = Index(DIMS, "cpu")
    index.add(rows, [0] * len(rows), torch.from_numpy(values))
    allowed = np.array([[number % 4 != 1] for number in range(9)])
    table = {row: (0, value) for row, value in zip(rows, values, strict=True)}
    assert_finds(index, table, allowed=allowed)


def test_identical_vectors_have_cosine_one_at_most():
    values = unit_rows(6, 50, DIMS)
    index = Index(DIMS, "cpu")
    index.add(rows_of(25), [0] * 50, torch.from_numpy(values))
    found = index.search(torch.from_numpy(values.astype(np.float32)), None, 1)
    assert all(0.998 < hits[0][1] <= 1 for hits in found)


def test_a_row_is_added_once_and_removed_once():
    index, row = Index(DIMS, "cpu"), Row("r1", "plain")
    index.add([row], [0], torch.from_numpy(unit_rows(7, 1, DIMS)))
    with pytest.raises(ValueError, match="once"):
        index.add([row], [0], torch.from_numpy(unit_rows(7, 1, DIMS)))
    with pytest.raises(ValueError, match="16 dims"):
        index.add([Row("r2", "plain")], [0], torch.zeros(1, DIMS + 1))
    index.remove([row])
    with pytest.raises(KeyError):
        index.remove([row])
