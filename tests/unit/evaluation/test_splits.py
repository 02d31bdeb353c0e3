import numpy as np
import pytest

from worker.errors import StartupError
from worker.evaluation import splits


@pytest.fixture
def groups():
    """A hundred pictures: 60 alone, 10 pairs, and one series of 20."""
    return [*range(60), *np.repeat(np.arange(60, 70), 2).tolist(), *[70] * 20]


def test_a_group_has_one_role_and_one_reference(groups):
    of = np.array(groups)
    hosts = splits.hosts(groups, seed=3)
    for split in splits.make(groups, hosts, 30, seed=3):
        roles = [split.references, split.negatives, split.background, split.null]
        assert all(len(pictures) for pictures in roles)
        assert len(np.concatenate(roles)) == len(np.unique(np.concatenate(roles)))
        shared = [set(of[pictures]) for pictures in roles]
        assert sum(map(len, shared)) == len(set.union(*shared)) == len(set(groups))
        assert len(shared[0]) == len(split.references)
        assert set(hosts) <= set(split.negatives)
        assert [list(pictures) for pictures in roles] == [sorted(pictures) for pictures in roles]


def test_roles_are_dealt_anew_by_the_seed(groups):
    hosts = splits.hosts(groups, seed=3)
    made = [splits.make(groups, hosts, 4, seed) for seed in (3, 3, 4)]
    dealt = [[tuple(split.references) for split in some] for some in made]
    assert dealt[0] == dealt[1]
    assert len(set(dealt[0] + dealt[2])) == 8


def test_shares(groups):
    hosts = splits.hosts(groups, seed=1)
    made = splits.make(groups, hosts, 200, seed=1)
    for role, share in splits.SHARES.items():
        if role != "references":  # of which a series has one
            sizes = [len(getattr(split, role)) for split in made]
            assert np.mean(sizes) == pytest.approx(100 * share, abs=6)


def test_hosts_are_of_different_groups(groups):
    hosts = splits.hosts(groups, seed=5)
    assert len({groups[host] for host in hosts}) == len(hosts) >= 4
    assert len(splits.hosts(list(range(2000)), seed=5)) == 40


def test_too_few_scenes():
    with pytest.raises(StartupError, match="40 pictures of 19 scenes, evaluate needs 20 scenes"):
        splits.hosts([*range(19), *[18] * 21], seed=1)
