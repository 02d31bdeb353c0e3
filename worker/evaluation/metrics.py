"""Recall at a false-positive rate, recall at a precision, and micro-average precision.

Two questions are asked of the same scores.

Of a *query* alone: is its best score, over all references, at or above a threshold? The
**false-positive rate** is the share of negative queries (benign pictures, of none of which there is
a reference) of which that is so; **recall** is the share of copies whose own reference scores at
or above the threshold. No threshold in between two scores is meant: a rate that is not to be
exceeded is not exceeded, ties included.

Of *predictions*, (query, reference, score), in one ranking over all queries: **precision** is the
share of right ones among those down to a place, recall the share of all true pairs that are right
predictions down to there. Micro-average precision (uAP; Douze et al., The 2021 Image Similarity
Dataset and Challenge, arXiv 2106.09672, section 4.2) is the precision at each right prediction,
summed, over the number of true pairs. Predictions of one score are ranked wrong before right.

Everything takes weights, for resampling: a query that weighs 2 counts as two.
"""

import numpy as np
import numpy.typing as npt

type Values = npt.NDArray[np.floating]
type Flags = npt.NDArray[np.bool_]

PRECISION = 0.90
_ROUNDING = 1e-9


def barrier(negatives: Values, rate: float, weights: Values | None = None) -> float:
    """The score that a threshold has to exceed, to keep the false-positive rate within `rate`.

    `negatives` are the best scores of the negative queries, [n] in any order, and `weights` theirs.
    -inf where any threshold keeps it.
    """
    place = barrier_place(negatives, rate, weights)
    return -np.inf if place is None else float(negatives[place])


def barrier_place(negatives: Values, rate: float, weights: Values | None = None) -> int | None:
    """The number of the negative query whose score is the barrier, or None."""
    weights = np.ones(len(negatives)) if weights is None else weights
    order = np.argsort(-negatives, kind="stable")
    exceeding = np.cumsum(weights[order])
    if not len(order) or not exceeding[-1]:
        raise ValueError("no negatives")
    over = exceeding > rate * exceeding[-1] + _ROUNDING
    return int(order[over.argmax()]) if over.any() else None


def recall_at_rate(
    copies: Values,
    negatives: Values,
    rate: float,
    copy_weights: Values | None = None,
    negative_weights: Values | None = None,
) -> float:
    """Share of `copies`, the scores of their own references [m], above the barrier of `rate`."""
    found = copies > barrier(negatives, rate, negative_weights)
    return float(np.average(found, weights=copy_weights))


class Ranking:
    """Predictions of all queries in one order, best first; of one score the wrong ones first."""

    def __init__(self, scores: Values, right: Flags) -> None:
        """`scores` and `right` (whether it is a true pair) of each prediction, both [n]."""
        self._order = np.lexsort((right, -scores))
        self._right = right[self._order]

    def measure(
        self, positives: float, weights: Values | None = None, precision: float = PRECISION
    ) -> tuple[float, float]:
        """Recall at a precision, and uAP, where there are `positives` true pairs.

        The highest recall at any place of the ranking with at least `precision`; 0 without one.
        `weights` are those of the predictions, [n] as they were given.
        """
        counts = np.ones(len(self._order)) if weights is None else weights[self._order]
        right = np.where(self._right, counts, 0.0)
        so_far = np.cumsum(right)
        total = np.cumsum(counts)
        # A prediction of no weight is not there: its place counts for nothing.
        precisions = np.divide(so_far, total, out=np.zeros_like(total), where=total > 0)
        good = so_far[(precisions >= precision) & (counts > 0)]
        recall = float(good.max()) / positives if len(good) else 0.0
        return recall, float(right @ precisions) / positives


def recall_at_precision(
    scores: Values, right: Flags, positives: float, precision: float = PRECISION
) -> float:
    """The highest recall with at least `precision`; see `Ranking`."""
    return Ranking(scores, right).measure(positives, precision=precision)[0]


def average_precision(scores: Values, right: Flags, positives: float) -> float:
    """Micro-average precision (uAP); see `Ranking`."""
    return Ranking(scores, right).measure(positives)[1]
