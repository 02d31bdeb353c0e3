import numpy as np

from worker.evaluation import null_text
from worker.scoring.forecast import Growth
from worker.scoring.null import Null, Rate, Threshold, Unsupported


def test_a_threshold_says_what_sets_it():
    told = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "count", 38, 1))
    assert told == (
        "At most 10,000 false matches per million: threshold 0.3760, 95% confident; it is reached "
        "by 38 benign images of 1 group. The score with exactly that rate is about 0.3680 and not "
        "below 0.3600."
    )
    tail = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "tail", 0, 0))
    assert "no benign image reaches it, so it rests on the fitted tail." in tail
    above = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "count", 0, 0))
    assert "; no benign image reaches it." in above


def test_a_budget_without_support_says_what_it_takes():
    assert null_text.of_threshold(5e-6, Unsupported(475, 600_000)) == (
        "At most 5 false matches per million: not supported by the data. There are 475 distinct "
        "benign images; it takes 600,000."
    )


def test_rates_have_three_digits_and_their_source():
    counted = null_text.of_rate(Rate(0.0076123, 0.005734, 0.01, "count"))
    assert "7,610 score as high by estimate (5,730 to 10,000, each with 95%" in counted
    assert counted.endswith("counted).")
    tail = null_text.of_rate(Rate(4e-13, 0.0, 1.12e-5, "tail"))
    assert "under 0.001 score" in tail
    assert "(0 to 11.2," in tail
    assert "do not tell" in null_text.of_rate(None)


def test_support_and_forecast_are_said():
    null = Null(np.linspace(0, 1, 2000, dtype=np.float32), np.arange(2000) // 2)
    assert null_text.of_support(null) == (
        "2,000 benign images in 1,000 groups support budgets from 3,000 false matches per million "
        "up."
    )
    few = Null(null.scores[:1], null.groups[:1])
    assert null_text.of_support(few) == "1 benign image in 1 group are too few for any budget."
    near, far = (Growth(1.0, 0.01).forecast(null, 0.02, factor) for factor in (2, 50))
    assert "the threshold would be about" in null_text.of_forecast(near, 0.02)
    assert "would not support the budget" in null_text.of_forecast(far, 0.02)
    assert null_text.of_forecast(far, 0.02).startswith("Forecast, not measured")
