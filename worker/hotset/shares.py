"""Shares of a budget: what is taken of a crowd, so that no group of it hides another."""

import numpy as np
import numpy.typing as npt

from worker.hotset.found import Numbers


def ranks(groups: npt.NDArray[np.integer], values: npt.NDArray[np.floating]) -> Numbers:
    """Return the rank of each value in its group, int64 [n]: 0 for the highest, ties by position.

    `groups` is an integer [n] that names the group of each value.
    """
    order = np.lexsort((-values, groups))
    ordered = groups[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    lengths = np.diff(begins, append=len(order))
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order)) - np.repeat(begins, lengths)
    return found


def share(
    groups: npt.NDArray[np.integer], values: npt.NDArray[np.floating], budget: int
) -> tuple[Numbers, npt.NDArray[np.integer]]:
    """Take `budget` values by turns: the best of each group, then the second best of each, ...

    Every group keeps its best, even if there are more groups than the budget has values. Returns
    the positions of the values that were taken, and the groups of which some were left out.
    """
    if len(values) <= budget:
        return np.arange(len(values)), groups[:0]
    rank = ranks(groups, values)
    order = np.lexsort((-values, rank))
    taken = order[: max(budget, int(np.count_nonzero(rank == 0)))]
    left = np.delete(np.arange(len(values)), taken)
    return taken, np.unique(groups[left])
