import numpy as np
import pytest

from tests.fixtures.galleries import gallery
from worker.evaluation import splits
from worker.evaluation.choices import Choice, Normalisation
from worker.evaluation.experiment import run
from worker.evaluation.gallery import Comparing, System
from worker.evaluation.intervals import sample

COSINE, NORMALISED = (System(Choice.parse(name), "model") for name in ("cosine", "normalised"))


def made(seed, count=4, replicates=40):
    known = gallery(seed)
    dealt = splits.make(known.groups, splits.hosts(known.groups, seed), count, seed)
    trials = run(known, [COSINE, NORMALISED], dealt, Comparing(Normalisation()), lambda _: None)
    return sample(trials, known.groups, replicates, seed, lambda _: None)


def test_intervals_are_as_wide_as_collections_differ():
    """Over collections of the same kind: none of these has seen the others."""
    found = [made(seed) for seed in range(40)]
    values = np.array([one[COSINE].estimate().value["overall"] for one in found])
    widths = np.array(
        [one[COSINE].replicates.view(one[COSINE].kind)["overall"].std(axis=0) for one in found]
    )
    ratio = np.sqrt((widths**2).mean(axis=0).ravel()) / values.std(axis=0)
    assert (ratio > 0.7).all(), ratio
    assert (ratio < 1.6).all(), ratio


def test_what_both_have_in_common_falls_out():
    found = made(1)
    apart = found[NORMALISED].less(found[COSINE]).estimate(-1)
    one, other = found[NORMALISED].estimate(), found[COSINE].estimate()
    assert apart.value["overall"] == pytest.approx(one.value["overall"] - other.value["overall"])
    together = apart.high["overall"] - apart.low["overall"]
    alone = one.high["overall"] - one.low["overall"]
    assert (together < alone).all()
    assert (one.low["overall"] <= one.value["overall"]).all()
    assert one.high["edits"].max() <= 1
    same = found[COSINE].less(found[COSINE]).estimate(-1)
    assert not np.nan_to_num(same.high["overall"]).any()


def test_the_same_seed_gives_the_same():
    one, other = made(2, replicates=5), made(2, replicates=5)
    assert np.array_equal(one[COSINE].replicates, other[COSINE].replicates, equal_nan=True)


def test_what_is_not_resampled_always_counts():
    known = gallery(3)
    dealt = splits.make(known.groups, splits.hosts(known.groups, 3), 1, 3)
    trials = run(known, [COSINE], dealt, Comparing(Normalisation()), lambda _: None)
    groups = np.full(len(known.names), -1)
    groups[0] = 0
    found = sample(trials, groups, 5, 1, lambda _: None)[COSINE]
    assert found.replicates.std(axis=0)[:5] == pytest.approx(0, abs=1e-12)
