import numpy as np
import pytest

from worker.errors import Objection
from worker.image import patterns

NOTHING = {Objection.BLANK, Objection.LOW_INFORMATION, Objection.NOISE, Objection.TEST_PATTERN}


@pytest.mark.parametrize("family", patterns.FAMILIES)
def test_a_seed_draws_the_same_patterns_and_another_one_others(family):
    drawn = patterns.draw(family, 64)
    count = patterns.EACH * len(patterns.FAMILIES[family])
    assert drawn.shape == (count, 64, 64, 3)
    assert drawn.dtype == np.dtype(np.uint8)
    assert np.array_equal(drawn, patterns.draw(family, 64))
    assert not np.array_equal(drawn, patterns.draw(family, 64, seed=1))
    assert len(np.unique(drawn.reshape(count, -1), axis=0)) > count / 2


def test_all_but_solid_ones_have_two_colours_that_can_be_told_apart():
    for family in patterns.FAMILIES:
        flat = patterns.draw(family, 64).reshape(-1, 64 * 64, 3)
        spread = np.ptp(flat.astype(int), axis=1).max(axis=1)
        assert (spread == 0).all() if family == "solid" else (spread > 50).all()


def test_every_family_has_its_objection():
    assert patterns.OBJECTIONS.keys() == patterns.FAMILIES.keys()
    assert set(patterns.OBJECTIONS.values()) == NOTHING
