import numpy as np
import pytest
from scipy import stats

from worker.scoring.tails import FEWEST, Tail


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3])
def test_the_shape_of_a_tail_is_found(shape):
    peaks = stats.genpareto.rvs(shape, loc=0.4, scale=0.05, size=20_000, random_state=0)
    tail = Tail.fit(peaks, 0.4)
    assert tail is not None
    assert tail.shape == pytest.approx(shape, abs=0.03)
    assert tail.scale == pytest.approx(0.05, rel=0.05)
    # The same distribution in scipy's words, and back.
    scores = np.linspace(0.42, 0.55, 10)
    ours = stats.genpareto(tail.shape, loc=0.4, scale=tail.scale)
    assert tail.beyond(scores, 0.42) == pytest.approx(ours.sf(scores) / ours.sf(0.42))
    for share in (1.0, 0.1, 1e-4):
        assert tail.beyond(tail.score(share, 0.42), 0.42) == pytest.approx(share)


@pytest.mark.parametrize("shape", [-0.4, 0.0, 0.4])
def test_few_peaks_tell_its_sign_on_average(shape):
    shapes = []
    for seed in range(100):
        peaks = stats.genpareto.rvs(shape, size=100, random_state=seed)
        tail = Tail.fit(peaks, 0.0)
        assert tail is not None
        shapes.append(tail.shape)
    assert np.mean(shapes) == pytest.approx(shape, abs=0.1)


def test_a_bounded_tail_ends_at_or_above_the_highest_score():
    for seed in range(50):
        peaks = stats.genpareto.rvs(-0.9, size=30, random_state=seed)
        tail = Tail.fit(peaks, 0.0)
        assert tail is not None
        assert tail.beyond(peaks.max(), 0.0) > 0
        assert tail.beyond(peaks.max() + 1e3, 0.0) < 1e-3


def test_a_heavier_tail_is_never_bounded():
    tail = Tail(0.4, 0.05, -0.3, 100)
    heavier = tail.heavier(1.645)
    assert heavier.shape == 0
    scores = np.linspace(0.41, 3, 50)
    assert (heavier.beyond(scores, 0.4) > tail.beyond(scores, 0.4)).all()
    assert Tail(0.4, 0.05, 0.1, 100).heavier(2).shape == pytest.approx(0.1 + 2 * 1.1 / 10)


def test_what_tells_no_tail_has_none():
    assert Tail.fit(np.full(1000, 0.4), 0.4) is None, "nothing is above the level"
    assert Tail.fit(np.linspace(0.41, 0.5, FEWEST - 1), 0.4) is None
    assert Tail.fit(np.full(FEWEST, 0.5), 0.4) is not None
