"""Plots of a bank's null: what its thresholds rest on, and how far that goes.

Each returns an `<svg>` element (`worker.evaluation.svg`), titled with the bank's name.
"""

from collections.abc import Mapping
from itertools import cycle
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from worker.evaluation.svg import BENIGN, COPY, INK, LIMIT, QUIET, logarithmic, plot
from worker.evaluation.words import counted
from worker.scoring.forecast import Growth
from worker.scoring.limits import Floats, Numbers
from worker.scoring.null import Null, Threshold, images_needed

MILLION = 1_000_000
_BINS = 60
_POINTS = 400
_STEPS = 12
_FACTORS = np.geomspace(1, 10, 40)


def distributions(bank: str, null: Null, copies: Floats, thresholds: Mapping[str, float]) -> str:
    """Best scores of benign images and scores of copies, float32 [k], as shares per bin.

    `thresholds` are drawn as lines with their names. Copies are left out where there are none.
    """
    shown = [(null.scores, BENIGN, counted(len(null.scores), "benign image"))]
    if len(copies):
        shown.append((copies, COPY, counted(len(copies), "copy", "copies")))
    both = np.concatenate([*(scores for scores, *_ in shown), [*thresholds.values()]])
    bins = np.linspace(both.min(), max(both.max(), both.min() + 1e-3), _BINS + 1)
    with plot(f"Distribution of scores: {bank}") as drawn:
        for scores, colour, label in shown:
            shares = np.full(len(scores), 1 / max(1, len(scores)))
            drawn.axes.hist(
                scores, bins.tolist(), weights=shares, color=colour, alpha=0.8, label=label
            )
        _mark_thresholds(drawn.axes, thresholds)
        drawn.axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        drawn.axes.set_xlabel("best score against the bank")
        drawn.axes.set_ylabel("share of the images")
        _legend(drawn.axes)
    return drawn.svg


def rates(bank: str, null: Null, thresholds: Mapping[str, float]) -> str:
    """False matches per million against the threshold, with limits; where the data support them.

    Needs a null that tells rates: `null.supported_rate` is finite.
    """
    start, end = null.score_of_groups(null.distinct // 4), null.score_of_groups(1)
    end += 0.25 * max(end - start, 1e-3)
    scores = np.linspace(start, max(end, *thresholds.values(), start), _POINTS)
    curve = null.curve(scores)
    supported = MILLION * null.supported_rate
    with plot(f"False matches per million against the threshold: {bank}") as drawn:
        axes = drawn.axes
        low, high = (MILLION * np.maximum(limit, 1e-12) for limit in (curve.low, curve.high))
        axes.fill_between(scores, low, high, color=COPY, alpha=0.2, lw=0, label="95% limits")
        axes.plot(scores, MILLION * curve.estimate, color=COPY, linewidth=1.6, label="estimate")
        axes.plot(scores, high, color=COPY, linewidth=0.8)
        axes.axhspan(
            supported / 30, supported, color=QUIET, alpha=0.6, lw=0, label="too few groups"
        )
        _mark_thresholds(axes, thresholds)
        axes.set_xlabel("threshold")
        axes.set_ylabel("false matches per million")
        axes.set_ylim(supported / 30, 1.5 * MILLION * float(curve.high[0]))
        logarithmic(axes, "y")
        _legend(axes)
    return drawn.svg


def stability(bank: str, null: Null, rate: float) -> str:
    """The threshold that keeps a rate, with its interval, against the number of groups used.

    From as few as support the rate up to all of them, in an order that is drawn once. Where the
    line has not come to rest, more images would move it.
    """
    order = np.random.default_rng(0).permutation(null.distinct)
    _, numbers = np.unique(null.groups, return_inverse=True)
    fewest = max(images_needed(rate), null.distinct // 30)
    parts = np.geomspace(min(fewest, null.distinct), null.distinct, _STEPS).round().astype(int)
    used: list[int] = []
    found: list[Threshold] = []
    for part in np.unique(parts):
        some = _of_groups(null, order[numbers] < part)
        threshold = some.threshold(rate)
        if isinstance(threshold, Threshold):
            used.append(some.distinct)
            found.append(threshold)
    with plot(f"Threshold against the groups used: {bank}") as drawn:
        axes = drawn.axes
        axes.set_xlabel(f"groups of images used (threshold for {MILLION * rate:,.0f} per million)")
        axes.set_ylabel("score")
        if len(used) > 1:
            limits, lows = [one.score for one in found], [one.low for one in found]
            axes.fill_between(used, lows, limits, color=COPY, alpha=0.2, lw=0, label="90% interval")
            axes.plot(used, limits, "o-", color=LIMIT, markersize=3, label="threshold")
            estimates = [one.estimate for one in found]
            axes.plot(used, estimates, color=COPY, linewidth=1.2, label="estimate")
            logarithmic(axes, "x", sorted({used[0], used[len(used) // 2], used[-1]}))
            _legend(axes)
        else:
            axes.set_axis_off()
            needed = counted(images_needed(rate), "group")
            told = (
                f"{MILLION * rate:,.0f} per million takes {needed}, and there are "
                f"{null.distinct:,}:\ntoo few to see whether the threshold has come to rest"
            )
            axes.text(0.5, 0.5, told, transform=axes.transAxes, ha="center", va="center")
    return drawn.svg


def growth(bank: str, null: Null, grows: Growth, threshold: float, references: int) -> str:
    """False matches per million at today's threshold, as forecast for a bank of more references."""
    now = null.rate(threshold)
    forecasts = [grows.forecast(null, 1.0, float(factor)) for factor in _FACTORS]
    with plot(f"Forecast of false matches for a larger bank: {bank}") as drawn:
        axes = drawn.axes
        sizes = references * _FACTORS
        present = now.estimate if now else np.nan
        estimate, low, high = MILLION * np.array([one.rates(present) for one in forecasts]).T
        axes.fill_between(sizes, low, high, color=LIMIT, alpha=0.2, lw=0, label="95% limits")
        axes.plot(sizes, estimate, "--", color=LIMIT, label="forecast, not measured")
        axes.plot(references, MILLION * present, "o", color=INK, markersize=5, label="measured")
        axes.set_xlabel("references in the bank")
        axes.set_ylabel("false matches per million")
        logarithmic(axes, "x", [references * factor for factor in (1, 2, 5, 10)])
        logarithmic(axes, "y")
        _legend(axes)
    return drawn.svg


def _of_groups(null: Null, chosen: npt.NDArray[np.bool_]) -> Null:
    groups: Numbers = null.groups[chosen]
    return Null(null.scores[chosen], groups)


def _mark_thresholds(axes: Axes, thresholds: Mapping[str, float]) -> None:
    """A line for each; the legend names it, where no curve crosses the name."""
    listed = sorted(thresholds.items(), key=itemgetter(1))
    for (name, score), dashes in zip(listed, cycle(("--", ":"))):
        label = f"{name} {score:.3f}"
        axes.axvline(score, color=LIMIT, linewidth=1.2, linestyle=dashes, label=label)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, columnspacing=1.2)
