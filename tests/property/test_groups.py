"""Groups are the classes of whatever pairs there are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.evaluation import groups
from worker.evaluation.groups import Fingerprints, Grouping
from worker.image import pdq

KEYS = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=12)


def same_group(found):
    return {(i, j) for i in range(len(found)) for j in range(len(found)) if found[i] == found[j]}


def closure(n, related):
    """By repetition, until nothing is added."""
    known = {(i, i) for i in range(n)} | {(j, i) for i, j in related} | set(related)
    while more := {(i, k) for i, j in known for j2, k in known if j == j2} - known:
        known |= more
    return known


def alike(keys):
    return {(i, j) for i, one in enumerate(keys) for j, other in enumerate(keys) if one == other}


@given(KEYS, st.data())
def test_groups_are_the_closure_of_all_means(sha256, data):
    n = len(sha256)
    hashes = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=n, max_size=n))
    sound = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    drawn = np.random.default_rng(1).integers(0, 256, (3, pdq.BYTES), np.uint8)
    pictures = Fingerprints(
        sha256, drawn[np.array(hashes, int)], np.array(sound, np.uint8) * np.uint8(100)
    )
    found = groups.group(pictures).groups
    by_bytes = {(i, j) for i, j in alike(sha256) if sha256[i]}
    by_pdq = {(i, j) for i, j in alike(hashes) if sound[i] and sound[j]}
    assert same_group(found) == closure(n, by_bytes | by_pdq)
    first = list(dict.fromkeys(found.tolist()))
    assert first == list(range(len(first)))


@given(
    st.lists(st.integers(0, 4), max_size=10),
    st.dictionaries(st.integers(0, 9), st.sampled_from("xyz")),
)
def test_a_file_only_joins(before, given_names):
    grouping = Grouping(np.array(before, np.int64), {})
    joined = groups.join(grouping, given_names).groups
    n = len(before)
    named = {
        (i, j)
        for i in range(n)
        for j in range(n)
        if i in given_names and given_names[i] == given_names.get(j)
    }
    assert same_group(joined) == closure(n, alike(before) | named)
