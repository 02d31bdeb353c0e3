"""What one way to compare makes of one split of the pictures, and the figures that follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from worker.evaluation.metrics import Ranking, barrier, barrier_place

type Numbers = npt.NDArray[np.int64]
type Scores = npt.NDArray[np.float32]
type Weights = npt.NDArray[np.float64]
type Figures = npt.NDArray[np.void]
"""Of a type that `figures_of` makes."""

RATES = (1e-2, 1e-3, 0.0)
RECALLS = ("recall_at_fpr_1e-2", "recall_at_fpr_1e-3", "recall_at_zero")
FIGURES = (*RECALLS, "recall_at_precision_90", "uap")
CARRIED = RATES[:2]
"""The rates at which a threshold is also set by the null, and carried over to the negatives."""
_TOLD = 1
"""Of `RATES`: at whose threshold the false positives of each form are told."""


def figures_of(edits: int) -> np.dtype[np.void]:
    """All figures of one trial, as one row of numbers.

    `overall` and `upright` (without edits that invert) in the order of `FIGURES`; recall of each of
    the `edits` in the order of `RATES`; the false-positive rate of each form of the negatives, the
    unedited one first, at a rate of 1e-3 over all; and what a threshold that the null set for a
    rate of `CARRIED` gives on the split: its recall, its false-positive rate.
    """
    return np.dtype(
        [
            ("overall", np.float64, len(FIGURES)),
            ("upright", np.float64, len(FIGURES)),
            ("edits", np.float64, (edits, len(RATES))),
            ("forms", np.float64, edits + 1),
            ("carried", np.float64, (len(CARRIED), 2)),
        ]
    )


@dataclass(frozen=True, slots=True)
class Queries:
    """Pictures by their numbers, each in a form: 0 is unedited, the others are edits. Both [n]."""

    pictures: Numbers
    forms: Numbers

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, some: slice) -> "Queries":
        return Queries(self.pictures[some], self.forms[some])


@dataclass(frozen=True, slots=True)
class Nearest:
    """The references nearest to each query, best first, all [n, k].

    `references` are numbers of pictures; `right` says which of them the query is a copy of.
    """

    queries: Queries
    scores: Scores
    references: Numbers
    right: npt.NDArray[np.bool_]

    def best(self, weights: Weights) -> Scores:
        """The best score of each query over the references that have weight, [n].

        The k-th, which is no less than that, where none of the nearest has.
        """
        present = weights[self.references] > 0
        present[:, -1] = True
        first: Scores = self.scores[np.arange(len(present)), present.argmax(axis=1)]
        return first

    def weights(self, weights: Weights) -> Weights:
        """What each prediction counts for, [n, k]."""
        counts: Weights = weights[self.queries.pictures, None] * (weights[self.references] > 0)
        return counts


@dataclass(frozen=True)
class Trial:
    """Scores of one split. The null's pictures are negatives that no figure is measured on.

    `own`: score of each copy with its own reference, [m]; `copied` are those copies. `upright`
    says of each form whether light is light in it.
    """

    own: Scores
    copied: Queries
    upright: npt.NDArray[np.bool_]
    copies: Nearest
    negatives: Nearest
    null: Nearest

    @property
    def kind(self) -> np.dtype[np.void]:
        """The type of its figures."""
        return figures_of(len(self.upright) - 1)

    @cached_property
    def _rankings(self) -> tuple[Ranking, Ranking]:
        """Of all predictions, and of those without edits that invert."""
        rankings = []
        for kept in (slice(None), self.upright[self.copies.queries.forms]):
            scores, right = (
                np.concatenate([getattr(self.copies, what)[kept], getattr(self.negatives, what)])
                for what in ("scores", "right")
            )
            rankings.append(Ranking(scores.ravel(), right.ravel()))
        return rankings[0], rankings[1]

    def measure(self, weights: Weights) -> Figures:
        """All figures, where picture n counts `weights[n]` times; NaN for those of nothing."""
        found = np.full((), np.nan, self.kind)
        counts = weights[self.copied.pictures]
        if counts.any():
            self._rank(found, weights, counts)
            benign = weights[self.negatives.queries.pictures]
            if benign.any():
                best = self.negatives.best(weights)
                self._pass(found, counts, best, benign)
                self._carry(found, weights, counts, best, benign)
        return found

    def _pass(self, found: Figures, counts: Weights, best: Scores, benign: Weights) -> None:
        """Fill in what passes the thresholds that the negatives set."""
        edits = len(self.upright) - 1
        upright = self.upright[self.copied.forms]
        barriers = [barrier(best, rate, benign) for rate in RATES]
        for place, limit in enumerate(barriers):
            passed = self.own > limit
            found["overall"][place] = np.average(passed, weights=counts)
            found["upright"][place] = _share(passed[upright], counts[upright])
            found["edits"][:, place] = _shares(passed, counts, self.copied.forms - 1, edits)
        exceeding = best > barriers[_TOLD]
        forms = self.negatives.queries.forms
        found["forms"] = _shares(exceeding, benign, forms, edits + 1)

    def _rank(self, found: Figures, weights: Weights, counts: Weights) -> None:
        """Fill in what follows from all predictions."""
        copies, negatives = self.copies.weights(weights), self.negatives.weights(weights).ravel()
        upright, kept = self.upright[self.copied.forms], self.upright[self.copies.queries.forms]
        ranked = ((copies, counts, "overall"), (copies[kept], counts[upright], "upright"))
        for ranking, (predicted, owned, name) in zip(self._rankings, ranked, strict=True):
            if total := owned.sum():
                everything = np.concatenate([predicted.ravel(), negatives])
                found[name][len(RATES) :] = ranking.measure(total, everything)

    def _carry(
        self, found: Figures, weights: Weights, counts: Weights, best: Scores, benign: Weights
    ) -> None:
        """Fill in what thresholds that the null sets give."""
        known = weights[self.null.queries.pictures]
        if not known.any():
            return
        null = self.null.best(weights)
        for place, rate in enumerate(CARRIED):
            limit = barrier(null, rate, known)
            found["carried"][place] = (
                np.average(self.own > limit, weights=counts),
                np.average(best > limit, weights=benign),
            )

    def recall_against_rate(self, rates: Sequence[float]) -> Weights:
        """Recall at each false-positive rate."""
        best = self.negatives.scores[:, 0]
        if not len(best):
            return np.full(len(rates), np.nan)
        return np.array([np.mean(self.own > barrier(best, rate)) for rate in rates])

    def point_setter(self, rate: float) -> tuple[int, int, int] | None:
        """Which negative picture, in which form, stands in the way, and what it resembles."""
        if not len(self.negatives.queries):
            return None
        place = barrier_place(self.negatives.scores[:, 0], rate)
        if place is None:
            return None
        queries = self.negatives.queries
        reference = self.negatives.references[place, 0]
        return int(queries.pictures[place]), int(queries.forms[place]), int(reference)


def _share(passed: npt.NDArray[np.bool_], counts: Weights) -> float:
    return float(np.average(passed, weights=counts)) if counts.any() else np.nan


def _shares(passed: npt.NDArray[np.bool_], counts: Weights, kinds: Numbers, most: int) -> Weights:
    """Weighted share of `passed` of each kind, NaN for a kind that there is not."""
    total = np.bincount(kinds, counts, most)
    good = np.bincount(kinds, counts * passed, most)
    shares: Weights = np.divide(good, total, out=np.full(most, np.nan), where=total > 0)
    return shares


# -- search ---------------------------------------------------------------------------------------

type Score = Callable[[Queries], Tensor]
"""Scores of queries with all references, [n, references]."""
_AT_ONCE = 1 << 24


def find(
    queries: Queries, score: Score, references: Numbers, true: Numbers, k: int
) -> tuple[Nearest, Scores]:
    """Find the k nearest references of each query, and score the true pairs.

    `references` are the numbers of the pictures in the order in which `score` has them; `true` are
    the true pairs, [m, 2]: a query's place, sorted, and a reference's place. Returns their scores.
    """
    k = min(k, len(references))
    rows = max(1, _AT_ONCE // len(references))
    scores, places, own = [], [], []
    for begin in range(0, len(queries), rows):
        block = score(queries[begin : begin + rows])
        best = block.topk(k, dim=1)
        scores.append(best.values.numpy())
        places.append(best.indices.numpy())
        low, high = np.searchsorted(true[:, 0], [begin, begin + rows])
        own.append(block.numpy()[true[low:high, 0] - begin, true[low:high, 1]])
    if not scores:
        nothing = np.empty((0, k))
        empty = Nearest(queries, nothing.astype("f4"), nothing.astype("i8"), nothing.astype(bool))
        return empty, np.empty(0, np.float32)
    chosen = np.concatenate(places)
    pairs = true[:, 0] * len(references) + true[:, 1]
    right = np.isin(np.arange(len(queries))[:, None] * len(references) + chosen, pairs)
    return Nearest(queries, np.concatenate(scores), references[chosen], right), np.concatenate(own)
