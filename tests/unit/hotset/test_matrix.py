from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import MODEL, calibration, unit_rows
from worker.hotset import probes as probing
from worker.hotset.index import NOBODYS, Index
from worker.hotset.local_copy import LocalCopy
from worker.hotset.matrix import Matrix
from worker.hotset.probes import Probes
from worker.scoring.projection import Projection

COLUMNS = [1, 4, 7]
WHITENED = calibration(3, way="whiten", looks=("plain", "centre_crop"))
APPLIED = [
    None,
    calibration(1),
    calibration(2, way="centre"),
    WHITENED,
]


@pytest.fixture
def matrix():
    return Matrix(Index(MODEL.dims, "cpu", torch.float32), LocalCopy(None, MODEL.dims))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(probing, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr(probing, "_CELLS_AT_ONCE", 64)


class Wanted:
    """The same by brute force."""

    def __init__(self):
        self.rows = np.zeros((0, MODEL.dims), dtype=np.float16)
        self.columns = np.zeros(0, dtype=np.int32)

    def best(self, applied):
        if applied is None:
            return {}
        probes, rows = applied.probes, torch.from_numpy(self.rows).float()
        similar = (applied.project(probes) @ applied.project(rows).T).numpy()
        return {
            column: similar[:, self.columns == column].max(axis=1, initial=-np.inf)
            for column in COLUMNS
        }


def check(matrix, wanted):
    """A column without rows is left out: what is told is always finite."""
    expected = {
        column: pytest.approx(best, abs=1e-5)
        for column, best in wanted.best(matrix.calibration).items()
        if np.isfinite(best).all()
    }
    assert matrix.best(COLUMNS) == expected


def put(matrix, wanted, seed, columns):
    first = len(wanted.rows)
    rows = unit_rows(seed, len(columns), MODEL.dims)
    wanted.rows = np.concatenate([wanted.rows, rows])
    wanted.columns = np.concatenate([wanted.columns, columns]).astype(np.int32)
    matrix.put(first, rows)
    matrix.assign(np.arange(first, len(wanted.rows)), np.asarray(columns, dtype=np.int32))


@pytest.mark.parametrize("search_costs", [0, 2, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_probes_know_the_best_row_of_each_column_whatever_moves(
    matrix, seed, search_costs, monkeypatch
):
    """Whether the next best row is looked for by a search or among the rows of its column."""
    monkeypatch.setattr(probing, "_SEARCH_COSTS", search_costs)
    rng, wanted = np.random.default_rng(seed), Wanted()
    for step in range(12):
        put(matrix, wanted, 10 * seed + step, rng.choice([NOBODYS, *COLUMNS], 20))
        some = rng.choice(len(wanted.rows), 15, replace=False)
        wanted.columns[some] = rng.choice([NOBODYS, *COLUMNS], 15)
        match rng.integers(4):
            case 0:
                matrix.prepare_move(some, wanted.columns[some], nullcontext)
            case 1:  # and it is another that comes
                matrix.prepare_move(some, wanted.columns[some] * 0, nullcontext)
        matrix.assign(some, wanted.columns[some])
        if step % 3 == 0:
            applied = APPLIED[rng.integers(len(APPLIED))]
            if step % 2:
                matrix.prepare(applied)
            matrix.calibrate(applied)
        check(matrix, wanted)


def test_a_calibration_that_was_prepared_before_rows_moved_knows_of_them(matrix):
    wanted = Wanted()
    put(matrix, wanted, 1, [1, 1, 4])
    matrix.prepare(WHITENED)
    put(matrix, wanted, 2, [1, 4, 4])
    matrix.calibrate(WHITENED)
    check(matrix, wanted)


def test_a_move_that_was_prepared_before_another_came_knows_of_it(matrix):
    wanted = Wanted()
    matrix.calibrate(WHITENED)
    put(matrix, wanted, 1, [1, 1, 4] * 9)
    wanted.columns[:9] = NOBODYS
    matrix.prepare_move(np.arange(9), wanted.columns[:9], nullcontext)
    put(matrix, wanted, 2, [1, 4, 7])
    matrix.assign(np.arange(9), wanted.columns[:9])
    check(matrix, wanted)


def test_a_move_that_is_prepared_while_another_is_made_knows_of_it(matrix, monkeypatch):
    """As when something expires in a search, on another thread."""
    wanted = Wanted()
    matrix.calibrate(WHITENED)
    put(matrix, wanted, 1, [1] * 10 + [4] * 10)
    wanted.columns[:8] = NOBODYS
    move, coming = (
        Probes.move,
        [lambda: matrix.prepare_move(np.arange(3), wanted.columns[:3], nullcontext)],
    )

    def moves(*arguments):
        if coming:
            coming.pop()()
        move(*arguments)

    monkeypatch.setattr(Probes, "move", moves)
    matrix.assign(np.arange(3, 8), wanted.columns[3:8])
    matrix.assign(np.arange(3), wanted.columns[:3])
    check(matrix, wanted)


@pytest.mark.parametrize("after", [[NOBODYS] * 20, [4] * 20, [1, 7] * 10])
def test_a_move_that_was_prepared_leaves_nothing_to_be_compared(matrix, after, monkeypatch):
    wanted, after = Wanted(), np.array(after)
    matrix.calibrate(WHITENED)
    put(matrix, wanted, 1, [1] * 40)
    put(matrix, wanted, 2, [4] * 20)
    wanted.columns[:20] = after
    matrix.prepare_move(np.arange(20), after, nullcontext)
    monkeypatch.setattr(matrix.copy, "read_rows", None)
    matrix.assign(np.arange(20), after)
    check(matrix, wanted)


def test_rows_that_leave_one_by_one_are_looked_for_together(matrix, monkeypatch):
    wanted = Wanted()
    matrix.calibrate(APPLIED[1])
    put(matrix, wanted, 1, [1] * 60)
    read = []
    stored = matrix.copy.read_rows

    def noted(numbers):
        read.extend(numbers.tolist())
        return stored(numbers)

    monkeypatch.setattr(matrix.copy, "read_rows", noted)
    wanted.columns[:50] = NOBODYS
    for number in range(50):
        matrix.assign(np.array([number]), np.array([NOBODYS]))
    assert read == []
    check(matrix, wanted)
    check(matrix, wanted)
    assert read == list(range(50, 60))


def test_what_is_handed_out_is_never_changed(matrix):
    wanted = Wanted()
    matrix.calibrate(APPLIED[1])
    put(matrix, wanted, 1, [1] * 5)
    before = matrix.best(COLUMNS)[1]
    kept = before.copy()
    put(matrix, wanted, 2, [1] * 50)
    matrix.assign(np.arange(30), np.full(30, NOBODYS))
    matrix.best(COLUMNS)
    assert (before == kept).all()


def test_what_probes_found_is_taken_up_again_and_what_left_since_is_missed(matrix):
    wanted = Wanted()
    matrix.calibrate(WHITENED)
    put(matrix, wanted, 1, [1, 4] * 20)
    again = Matrix(Index(MODEL.dims, "cpu", torch.float32), matrix.copy)
    again.calibrate(WHITENED)
    again.restore(len(wanted.rows))
    wanted.columns[:10] = NOBODYS
    again.resume(matrix.kept(), lambda: again.assign(np.arange(40), wanted.columns))
    check(again, wanted)


@pytest.mark.parametrize(
    "damage",
    [
        {"probed_best": np.zeros((1, 3), dtype=np.float32)},
        {"probed_numbers": np.full((2, 60), 10**9)},
        {"probed_columns": np.zeros(2)},
    ],
)
def test_what_is_not_whole_is_not_taken_up(matrix, damage):
    matrix.calibrate(WHITENED)
    put(matrix, Wanted(), 1, [1, 4] * 20)
    with pytest.raises((TypeError, ValueError, IndexError)):
        matrix.resume({**matrix.kept(), **damage}, lambda: None)


def test_what_expires_while_a_calibration_is_prepared_is_not_forgotten(matrix):
    wanted = Wanted()
    put(matrix, wanted, 1, [1] * 20)
    project = WHITENED.project

    def and_a_row_expires(rows):
        wanted.columns[:5] = NOBODYS
        matrix.assign(np.arange(5), wanted.columns[:5])
        return project(rows)

    one = replace(WHITENED, projection=cast("Projection", and_a_row_expires))
    matrix.prepare(one)
    matrix.calibrate(one)
    check(matrix, wanted)
