import numpy as np
import pytest

from worker.evaluation.metrics import (
    Ranking,
    average_precision,
    barrier,
    barrier_place,
    recall_at_precision,
    recall_at_rate,
)

PUBLISHED = {
    (1, 0.5): (0.09416479040936854, 0.0),
    (2, 2.0): (0.5546040485824629, 0.2),
    (3, 4.0): (0.8816557024499264, 0.836),
    (4, 0.0): (0.05813581522033818, 0.0),
    (5, 6.0): (0.8998107556160654, 0.9),
}
"""uAP and recall at precision 0.90 of `predictions(seed, gap)`, by the published evaluation code of
the Image Similarity Challenge; 0 where it says that the precision is not reached."""


def predictions(seed, gap, queries=400, references=300, positives=250, k=10):
    """Random scores of `k` references for each query, higher by `gap` where they are true."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(references, size=positives)
    scores, right = [], []
    for query in range(queries):
        chosen = list(rng.choice(references, k, replace=False))
        true = truth[query] if query < positives else -1
        if query < positives and rng.random() < 0.9 and true not in chosen:
            chosen[0] = true
        for reference in chosen:
            right.append(reference == true)
            scores.append(rng.normal() + gap * right[-1])
    return np.array(scores), np.array(right), positives


@pytest.mark.parametrize(("seed", "gap"), PUBLISHED)
def test_equal_to_the_published_evaluation(seed, gap):
    scores, right, positives = predictions(seed, gap)
    assert len(set(scores)) == len(scores)
    uap, recall = PUBLISHED[seed, gap]
    assert average_precision(scores, right, positives) == pytest.approx(uap, abs=1e-9)
    assert recall_at_precision(scores, right, positives) == pytest.approx(recall, abs=1e-9)


def test_the_worst_comes_first_among_equal_scores():
    scores, right = np.zeros(4), np.array([True, False, True, False])
    assert average_precision(scores, right, 2) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert recall_at_precision(scores, right, 2, precision=0.5) == 1


def test_a_rate_is_not_exceeded():
    negatives = np.array([0.1, 0.9, 0.5, 0.5, 0.2])
    copies = np.array([0.95, 0.9, 0.6, 0.5, 0.3])
    assert recall_at_rate(copies, negatives, 0) == 0.2  # 0.9 itself would let one through
    assert recall_at_rate(copies, negatives, 0.19) == 0.2
    assert recall_at_rate(copies, negatives, 0.2) == 0.6
    assert recall_at_rate(copies, negatives, 0.59) == 0.6  # both of 0.5 would be three
    assert recall_at_rate(copies, negatives, 0.6) == 1.0
    assert barrier(negatives, 1) == -np.inf
    assert barrier_place(negatives, 0.2) == 2
    with pytest.raises(ValueError, match="no negatives"):
        barrier(np.empty(0), 0)


def test_what_weighs_nothing_is_not_there():
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    ranking = Ranking(scores, right)
    assert ranking.measure(2, np.array([1.0, 0.0, 1.0])) == (1.0, 1.0)
    assert ranking.measure(1, np.array([0.0, 1.0, 1.0]))[1] == 0.5
    assert barrier(scores, 0, np.array([0.0, 1.0, 1.0])) == 0.8
