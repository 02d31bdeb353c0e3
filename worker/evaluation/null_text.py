"""What a null says, in sentences that an operator can act on."""

import math

from worker.evaluation.words import counted
from worker.scoring.forecast import Forecast
from worker.scoring.null import Null, Rate, Threshold, Unsupported

MILLION = 1_000_000
_LEAST = 0.001
"""Per million; what a tail says below that is not to be taken by its digits."""


def of_threshold(rate: float, found: Threshold | Unsupported) -> str:
    """Which threshold is taken for a rate, and why that one; or what is missing."""
    budget = f"At most {_per_million(rate)} false matches per million"
    if isinstance(found, Unsupported):
        return (
            f"{budget}: not supported by the data. It takes {_groups(found.needed)}, and there are "
            f"{found.distinct:,}."
        )
    reached = "no benign image reaches it"
    if found.exceedances:
        images, groups = counted(found.exceedances, "benign image"), counted(found.groups, "group")
        reached = f"{images} of {groups} {'reaches' if found.exceedances == 1 else 'reach'} it"
    elif found.by == "tail":
        reached += ", so it rests on a tail that is fitted to the best of them"
    return (
        f"{budget}: the threshold is {found.score:.4f}; {reached}. The best guess would be "
        f"{found.estimate:.4f}, but a guess lets too many through every other time: so the upper "
        f"95% limit is taken, which keeps the budget in 95 of 100 calibrations."
    )


def of_rate(rate: Rate | None) -> str:
    """How often benign images reach a score."""
    if rate is None:
        return "The data do not tell how often benign images score as high."
    source = "counted" if rate.by == "count" else "from the fitted tail"
    return (
        f"Of a million benign images {_about(rate.estimate)} score as high ({source}): "
        f"not under {_per_million(rate.low)} and not over {_per_million(rate.high)}, each with 95% "
        f"confidence."
    )


def of_support(null: Null) -> str:
    """How far the data go."""
    groups = counted(null.distinct, "group")
    there = f"The null has {counted(len(null.scores), 'benign image')} in {groups}"
    if math.isinf(null.supported_rate):
        return f"{there}: too few for any budget."
    least = _per_million(null.supported_rate)
    return (
        f"{there}, which supports budgets from {least} false matches per million up: 3,000,000 "
        f"divided by the number of groups."
    )


def of_forecast(forecast: Forecast, rate: float) -> str:
    """What a larger bank is expected to do."""
    kept = (
        f"to keep the budget, the threshold would be about {forecast.threshold.score:.4f}"
        if isinstance(forecast.threshold, Threshold)
        else f"the data would not support the budget: it takes {_groups(forecast.threshold.needed)}"
    )
    return (
        f"Forecast, not measured: with {forecast.factor:g} times as many references of the same "
        f"kind, today's threshold has about {forecast.estimate:.2g} times the false matches "
        f"({forecast.low:.2g} to {forecast.high:.2g} times); at {_per_million(rate)} per million, "
        f"{kept}."
    )


def _per_million(rate: float) -> str:
    """Three digits, without an exponent."""
    number = float(f"{MILLION * rate:.3g}")
    return f"{number:,.10g}" if number == 0 or number >= _LEAST else f"under {_LEAST:g}"


def _about(rate: float) -> str:
    told = _per_million(rate)
    return told if told.startswith("under") else f"about {told}"


def _groups(number: int) -> str:
    return counted(number, "group of benign images", "groups of benign images")
