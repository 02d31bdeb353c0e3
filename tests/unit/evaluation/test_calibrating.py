import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StartupError
from worker.evaluation.calibrating import Options, deal


@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(1, 150))
def test_no_group_is_dealt_to_both_and_the_background_is_no_larger_than_asked(groups, wanted):
    numbers = np.array(groups)
    options = Options(background=wanted)
    try:
        background, null = deal(numbers, options)
    except StartupError:
        smallest = np.unique(numbers, return_counts=True)[1].min()
        assert wanted >= len(groups) or smallest > wanted
        return
    assert not set(numbers[background]) & set(numbers[null])
    assert sorted([*background, *null]) == list(range(len(groups)))
    assert 0 < len(background) <= wanted
    again = deal(numbers, options)
    assert all((a == b).all() for a, b in zip((background, null), again, strict=True))


def test_a_quarter_is_background_and_chance_is_the_seeds():
    groups = np.arange(400)
    background, null = deal(groups, Options())
    assert (len(background), len(null)) == (100, 300)
    assert (deal(groups, Options(seed=2))[0] != background).any()


def test_one_group_has_nothing_to_deal():
    with pytest.raises(StartupError, match="none for the background"):
        deal(np.zeros(100, dtype=np.int64), Options())
