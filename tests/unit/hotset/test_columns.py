"""Which columns of the index an upload is compared with."""

import numpy as np
import pytest

from tests.fixtures.hot_set import bank
from worker.hotset.columns import Columns


@pytest.mark.parametrize("canary", [False, True])
def test_uploads_are_compared_with_the_banks_that_screen_their_tenant(canary):
    rng = np.random.default_rng(3)
    columns = Columns()
    banks = {}
    for number in range(30):
        tenants = None if rng.random() < 0.3 else tuple(f"t{n}" for n in range(1 + number % 3))
        one = bank(f"b{number}", tenants=tenants, enabled=bool(rng.random() < 0.8))
        columns.of_bank(one.name)
        if number % 7:
            banks[one.name] = one  # others are named in vain
    asked = [None, "t0", "t1", "t2", "t9", "t1"]
    allowed = columns.allowed(columns.screens(banks), asked, [canary] * len(asked))
    assert not allowed[:, 0].any()
    for name in columns.banks:
        for tenant, own in zip(asked, allowed, strict=True):
            seen = name in banks and banks[name].screens(tenant)
            first = columns.enforced(name)
            assert own[first : first + 3].tolist() == [seen, seen, seen and canary]
