"""What a null says, in sentences that an operator can act on."""

import math

from worker.scoring.forecast import Forecast
from worker.scoring.null import Null, Rate, Threshold, Unsupported

MILLION = 1_000_000
_LEAST = 0.001
"""Per million; what a tail says below that is not to be taken by its digits."""


def of_threshold(rate: float, found: Threshold | Unsupported) -> str:
    """Where the threshold for a rate lies and what sets it, or what is missing."""
    budget = f"At most {_per_million(rate)} false matches per million"
    if isinstance(found, Unsupported):
        return (
            f"{budget}: not supported by the data. There are {found.distinct:,} distinct benign "
            f"images; it takes {found.needed:,}."
        )
    reached = "no benign image reaches it"
    if found.exceedances:
        images, groups = _count(found.exceedances, "benign image"), _count(found.groups, "group")
        reached = f"it is reached by {images} of {groups}"
    elif found.by == "tail":
        reached += ", so it rests on the fitted tail"
    return (
        f"{budget}: threshold {found.score:.4f}, 95% confident; {reached}. The score with exactly "
        f"that rate is about {found.estimate:.4f} and not below {found.low:.4f}."
    )


def of_rate(rate: Rate | None) -> str:
    """How often benign images reach a score."""
    if rate is None:
        return "The data do not tell how often benign images score as high."
    source = "counted" if rate.by == "count" else "from the fitted tail"
    return (
        f"Of a million benign images, {_per_million(rate.estimate)} score as high by estimate "
        f"({_per_million(rate.low)} to {_per_million(rate.high)}, each with 95% confidence; "
        f"{source})."
    )


def of_support(null: Null) -> str:
    """How far the data go."""
    images = _count(len(null.scores), "benign image")
    groups = _count(null.distinct, "group")
    if math.isinf(null.supported_rate):
        return f"{images} in {groups} are too few for any budget."
    least = _per_million(null.supported_rate)
    return f"{images} in {groups} support budgets from {least} false matches per million up."


def of_forecast(forecast: Forecast, rate: float) -> str:
    """What a larger bank is expected to do."""
    kept = (
        f"to keep the budget, the threshold would be about {forecast.threshold.score:.4f}"
        if isinstance(forecast.threshold, Threshold)
        else f"the data would not support the budget: it takes {forecast.threshold.needed:,} "
        f"distinct benign images"
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


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}" if number == 1 else f"{number:,} {of}s"
