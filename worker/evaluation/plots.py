"""The plots of an evaluation."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from worker.evaluation.experiment import Difference, Findings, Outcome
from worker.evaluation.metrics import barrier
from worker.evaluation.svg import BENIGN, COPY, LIMIT, SERIES, logarithmic, plot
from worker.evaluation.trials import FIGURES, RATES

_WIDTH = 10.5
_DASHES = ("-", "--", ":", "-.")
_BINS = 48
_ACROSS = 3
_NARROW = 1e-6
_GAP, _MARGIN = 3, 1.1
"""Factors of a logarithmic axis: from the lowest rate to none, and from there to the edge."""
_SHOWN = {
    "recall_at_fpr_1e-2": "at 1e-2",
    "recall_at_fpr_1e-3": "at 1e-3",
    "recall_at_zero": "at none",
    "uap": "uAP",
}


def curves(found: Findings) -> str:
    """Recall against the false-positive rate, a line for each system, best first.

    A rate of 0 has its place at the left end, called none.
    """
    least = float(found.rates[found.rates > 0].min())
    rates = np.where(found.rates > 0, found.rates, least / _GAP)
    ticks = {float(rates[0]): "none", **{rate: f"{rate:g}" for rate in (*RATES[:2], 0.1, 1.0)}}
    with plot("Recall against the false-positive rate", _WIDTH, 4.2) as drawn:
        axes = drawn.axes
        ranked = sorted(found.outcomes, key=lambda one: -float(np.nan_to_num(one.curve).mean()))
        for place, one in enumerate(ranked):
            axes.plot(
                rates,
                one.curve,
                color=SERIES[place % len(SERIES)],
                linestyle=_DASHES[place // len(SERIES)],
                linewidth=1.6,
                label=found.title(one.system),
            )
        for rate in (float(rates[0]), *RATES[:2]):
            axes.axvline(rate, color=LIMIT, linewidth=0.8, linestyle="--")
        logarithmic(axes, "x", list(ticks))
        axes.xaxis.set_major_formatter(lambda value, _: ticks[value])
        axes.set_xlim(min(ticks) / _MARGIN, 1)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("false-positive rate: share of the benign queries")
        axes.set_ylabel("recall: share of the copies")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), borderpad=0)
    return drawn.svg


def scores(found: Findings) -> str:
    """Scores of copies with their own references, and best scores of benign queries."""
    count = len(found.outcomes)
    rows = -(-count // _ACROSS)
    with plot("Distributions of scores", _WIDTH, 1.75 * rows + 0.3, rows, _ACROSS) as drawn:
        for axes, one in zip(drawn.cells, found.outcomes, strict=False):
            _histogram(axes, one)
            axes.set_title(found.title(one.system), loc="left")
        for axes in drawn.cells[count:]:
            axes.set_visible(False)
        handles, labels = drawn.axes.get_legend_handles_labels()
        drawn.figure.legend(handles, labels, loc="outside upper right", ncols=2, borderpad=0)
        drawn.figure.supylabel("density of queries", fontsize=9)
        drawn.figure.supxlabel("score; of hashes the distance in bits, negative", fontsize=9)
    return drawn.svg


def _histogram(axes: Axes, one: Outcome) -> None:
    both = np.concatenate([one.copies, one.benign])
    bins = np.linspace(both.min(), max(both.max(), both.min() + _NARROW), _BINS + 1).tolist()
    for values, colour, label in ((one.benign, BENIGN, "benign"), (one.copies, COPY, "copies")):
        if len(values):
            axes.hist(values, bins, density=True, color=colour, alpha=0.75, label=label)
    if len(one.benign):
        axes.axvline(barrier(one.benign, RATES[1]), color=LIMIT, linewidth=1.1, linestyle="--")
    axes.set_yticks([])
    axes.grid(visible=False)


def differences(found: Findings) -> str:
    """Paired differences with their intervals, a panel for each figure."""
    listed = list(reversed(found.differences))
    height = 0.7 + 0.24 * len(listed)
    with plot("Differences", _WIDTH, height, 1, len(_SHOWN), sharey=True) as drawn:
        for axes, (name, title) in zip(drawn.cells, _SHOWN.items(), strict=True):
            _forest(axes, listed, FIGURES.index(name))
            axes.set_title(title, loc="left")
        drawn.axes.set_yticks(
            range(len(listed)),
            [f"{found.title(one.system)} less {found.title(one.less)}" for one in listed],
        )
    return drawn.svg


def _forest(axes: Axes, listed: Sequence[Difference], figure: int) -> None:
    for place, one in enumerate(listed):
        value, low, high = (
            float(row["overall"][figure])
            for row in (one.estimate.value, one.estimate.low, one.estimate.high)
        )
        colour = COPY if low > 0 or high < 0 else BENIGN
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8)
        axes.plot([value], [place], "o", color=colour, markersize=4)
    axes.axvline(0, color=LIMIT, linewidth=0.9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.2f}" if value else "0")
