import numpy as np

from worker.evaluation import null_text
from worker.scoring.forecast import Growth
from worker.scoring.null import Null, Rate, Threshold, Unsupported


def test_a_threshold_says_what_reaches_it_and_why_it_is_no_lower():
    told = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "count", 38, 1))
    assert told == (
        "At most 10,000 false matches per million: the threshold is 0.3760; 38 benign images of 1 "
        "group reach it. The best guess would be 0.3680, but a guess lets too many through every "
        "other time: so the upper 95% limit is taken, which keeps the budget in 95 of 100 "
        "calibrations."
    )
    one = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "count", 1, 1))
    assert "; 1 benign image of 1 group reaches it." in one
    tail = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "tail", 0, 0))
    assert "no benign image reaches it, so it rests on a tail that is fitted" in tail
    above = null_text.of_threshold(0.01, Threshold(0.376, 0.368, 0.36, "count", 0, 0))
    assert "; no benign image reaches it." in above


def test_a_budget_without_support_says_what_it_takes():
    assert null_text.of_threshold(5e-6, Unsupported(475, 600_000)) == (
        "At most 5 false matches per million: not supported by the data. It takes 600,000 groups "
        "of benign images, and there are 475."
    )


def test_rates_have_three_digits_and_their_source():
    assert null_text.of_rate(Rate(0.0076123, 0.005734, 0.01, "count")) == (
        "Of a million benign images about 7,610 score as high (counted): not under 5,730 and not "
        "over 10,000, each with 95% confidence."
    )
    tail = null_text.of_rate(Rate(4e-13, 0.0, 1.12e-5, "tail"))
    assert "about under 0.001" not in tail
    assert "not under 0 and not over 11.2," in tail
    assert "do not tell" in null_text.of_rate(None)


def test_support_and_forecast_are_said():
    null = Null(np.linspace(0, 1, 2000, dtype=np.float32), np.arange(2000) // 2)
    assert null_text.of_support(null) == (
        "The null has 2,000 benign images in 1,000 groups, which supports budgets from 3,000 false "
        "matches per million up: 3,000,000 divided by the number of groups."
    )
    few = Null(null.scores[:1], null.groups[:1])
    assert null_text.of_support(few) == (
        "The null has 1 benign image in 1 group: too few for any budget."
    )
    near, far = (Growth(1.0, 0.01).forecast(null, 0.02, factor) for factor in (2, 50))
    assert "the threshold would be about" in null_text.of_forecast(near, 0.02)
    assert "would not support the budget" in null_text.of_forecast(far, 0.02)
    assert null_text.of_forecast(far, 0.02).startswith("Forecast, not measured")
