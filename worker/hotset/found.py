"""What a search is asked for, and what it finds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.hotset.types import Hit

type Numbers = npt.NDArray[np.int64]


class Found(NamedTuple):
    """A query's best rows, best first: int64 [n], and float32 [n] each.

    All that are as good as the k-th, so maybe more than k. `cosines` are of the descriptors,
    `similarities` of their projections, and the order is theirs. No allowed row that is not here
    is more similar than `unseen`; -inf where all are here.
    """

    numbers: Numbers
    similarities: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    unseen: float = -math.inf


class Crowd(NamedTuple):
    """Pairs of queries and rows that reach the floor of the row's column: [n] each, in no order.

    `queries` and `numbers` are int64, the rest as in `Found`. `cut` are the columns of which some
    pairs may have been left out.
    """

    queries: Numbers
    numbers: Numbers
    similarities: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    cut: npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Nearest:
    """A query's best hits, best first; no other is more similar than `unseen` (-inf: none is)."""

    hits: list[Hit]
    unseen: float


@dataclass(frozen=True, slots=True)
class Bars:
    """What rows have to reach to be looked at: scores by bank, which leave out the other banks.

    `offsets` is what is taken off the similarities of each query to make scores of them.
    """

    banks: Mapping[str, float]
    offsets: Sequence[float]


NOTHING = Found(np.empty(0, dtype=np.int64), *np.empty((2, 0), dtype=np.float32))


def best_of(found: Found, k: int, beyond: float) -> Found:
    """The `k` best, and all that are as good.

    Rows that are not in `found` are `beyond` at most.
    """
    order = np.argsort(-found.similarities, kind="stable")
    if len(order) >= k:
        ranked = -found.similarities[order]
        order = order[: np.searchsorted(ranked, ranked[k - 1], side="right")]
        beyond = max(beyond, -float(ranked[k - 1]))
    return some_of(found, order)._replace(unseen=beyond)


def some_of(found: Found, which: npt.NDArray[np.generic]) -> Found:
    """Some of the rows, by position or mask."""
    return Found(found.numbers[which], found.similarities[which], found.cosines[which])
