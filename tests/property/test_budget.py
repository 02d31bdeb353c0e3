"""The benchmark of budgets, small: its roles, its tables, and synthetic images that are alike."""

import numpy as np
import pytest
from rich.table import Table

from tests.benchmarks import bench_budget
from tests.benchmarks.bench_budget import Dealt, deal, fresh, one_a_group, report
from tests.benchmarks.themes import Themes, likeness

DIMS = 64


@pytest.fixture(scope="module")
def descriptors() -> np.ndarray:
    """Of 700 images, many alike: of twelve subjects, each image as close to its own as it likes."""
    random = np.random.default_rng(5)
    subjects = random.standard_normal((12, DIMS))
    closeness = 0.9 * random.random((700, 1)) ** 2
    rows = closeness * subjects[random.integers(12, size=700)]
    rows += np.sqrt(1 - closeness**2) * random.standard_normal((700, DIMS))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    """A third of the images are alone."""
    return np.repeat(np.arange(400), np.where(np.arange(400) < 100, 4, 1))[:700]


def _groups_of(rows: np.ndarray, descriptors: np.ndarray, groups: np.ndarray) -> set[int]:
    numbers = {row.tobytes(): int(group) for row, group in zip(descriptors, groups, strict=True)}
    return {numbers[row.tobytes()] for row in rows}


def test_no_group_has_two_roles(descriptors: np.ndarray, groups: np.ndarray) -> None:
    dealt = deal(descriptors, groups, 50, [3])
    roles = [
        _groups_of(rows, descriptors, groups)
        for rows in (dealt.references, dealt.background, dealt.null, dealt.test)
    ]
    assert sum(map(len, roles)) == len(set.union(*roles)) == groups.max() + 1
    assert len(dealt.references) == len(roles[0]) == 50
    assert len(dealt.null) == len(dealt.groups) > len(dealt.test) > 100


def test_too_few_images_are_refused(descriptors: np.ndarray, groups: np.ndarray) -> None:
    with pytest.raises(ValueError, match="too few for a bank of 350"):
        deal(descriptors, groups, 350, [3])


def test_synthetic_images_are_as_alike(descriptors: np.ndarray, groups: np.ndarray) -> None:
    images = one_a_group(descriptors, groups)
    real, drawn = likeness(images), fresh(Themes.fit(images, seed=1, steps=120), len(images))
    assert (real.pairs > 50).all()
    for ratios in (drawn.rates / real.rates, drawn.hubs / real.hubs):
        assert ((ratios > 1 / 1.5) & (ratios < 1.5)).all()


def test_report(
    descriptors: np.ndarray, groups: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_budget, "SYNTHETIC_NULL", 400)
    monkeypatch.setattr(bench_budget, "SYNTHETIC_TEST", 300)
    shown: list[Table] = []
    report(
        descriptors, groups, 2, 1, shown.append,
        banks=(10, 20), growing=(10, 40), grown_to=(10, 100, 500), steps=10,
    )  # fmt: skip
    choices = len(bench_budget.WAYS) * len(bench_budget.BUDGETS)
    assert [table.row_count for table in shown] == [2 * choices, 2 * choices, 3, 3 * choices]


def test_a_bank_grows_by_its_first_references(descriptors: np.ndarray, groups: np.ndarray) -> None:
    dealt: Dealt = deal(descriptors, groups, 40, [3])
    replica = bench_budget.Replica(dealt, "none")
    small, large = replica.grow((10, 40), (50_000,))
    (alone,) = bench_budget.Replica(dealt, "none").grow((40,), (50_000,))
    assert (large.test >= small.test).all()
    np.testing.assert_allclose(large.test, alone.test, atol=1e-6)
    assert large.rules[50_000].threshold == pytest.approx(alone.rules[50_000].threshold)
