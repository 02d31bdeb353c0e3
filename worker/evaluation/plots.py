"""The plots of an evaluation as inline SVG, which takes the page's colours and fonts."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worker.evaluation.experiment import Difference, Findings, Outcome
from worker.evaluation.metrics import barrier
from worker.evaluation.trials import FIGURES, RATES

# Colours that stand for the page's own: each is replaced by a variable of its style sheet.
INK, QUIET, COPY, BENIGN, LIMIT = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = [f"#0a00{number:02x}" for number in range(10)]
VARIABLES = {
    INK: "var(--ink)",
    QUIET: "var(--line)",
    COPY: "var(--copy)",
    BENIGN: "var(--benign)",
    LIMIT: "var(--limit)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 9,
    "grid.color": QUIET,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_DASHES = ("-", "--", ":", "-.")
_BINS = 48
_ACROSS = 3
_SHOWN = {"recall_at_fpr_1e-2": "at 1e-2", "recall_at_fpr_1e-3": "at 1e-3",
          "recall_at_zero": "at none", "uap": "uAP"}  # fmt: skip


def curves(found: Findings) -> str:
    """Recall against the false-positive rate, a line for each system, best first."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _axes(10.5, 4.2)
        ranked = sorted(found.outcomes, key=lambda one: -one.estimate.value["overall"][1])
        for place, one in enumerate(ranked):
            axes.plot(
                found.rates,
                one.curve,
                color=SERIES[place % len(SERIES)],
                linestyle=_DASHES[place // len(SERIES)],
                linewidth=1.6,
                label=found.title(one.system),
            )
        for rate in RATES:
            if found.rates[0] <= rate:
                axes.axvline(rate, color=LIMIT, linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xlim(found.rates[0], 1)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("false-positive rate: share of the benign queries")
        axes.set_ylabel("recall: share of the copies")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), borderpad=0)
        return svg(figure, "Recall against the false-positive rate")


def scores(found: Findings) -> str:
    """Scores of copies with their own references, and best scores of benign queries."""
    with mpl.rc_context(STYLE):
        count = len(found.outcomes)
        rows = -(-count // _ACROSS)
        figure, cells = _axes(10.5, 1.75 * rows + 0.3, rows, _ACROSS)
        for axes, one in zip(cells, found.outcomes, strict=False):
            _histogram(axes, one)
            axes.set_title(found.title(one.system), loc="left")
        for axes in cells[count:]:
            axes.set_visible(False)
        cells[0].legend(loc="upper left", fontsize=8, borderpad=0)
        figure.supylabel("density of queries", fontsize=9)
        figure.supxlabel("score; of hashes the distance in bits, negative", fontsize=9)
        return svg(figure, "Distributions of scores")


def _histogram(axes: Axes, one: Outcome) -> None:
    both = np.concatenate([one.copies, one.benign])
    bins = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), _BINS + 1).tolist()
    for values, colour, label in ((one.benign, BENIGN, "benign"), (one.copies, COPY, "copies")):
        axes.hist(values, bins, density=True, color=colour, alpha=0.75, label=label)
    axes.axvline(barrier(one.benign, RATES[1]), color=LIMIT, linewidth=1.1, linestyle="--")
    axes.set_yticks([])
    axes.grid(visible=False)


def differences(found: Findings) -> str:
    """Paired differences with their intervals, a panel for each figure."""
    with mpl.rc_context(STYLE):
        listed = list(reversed(found.differences))
        figure, panels = _axes(10.5, 0.7 + 0.24 * len(listed), 1, len(_SHOWN), sharey=True)
        for axes, (name, title) in zip(panels, _SHOWN.items(), strict=True):
            _forest(axes, listed, FIGURES.index(name))
            axes.set_title(title, loc="left")
        panels[0].set_yticks(
            range(len(listed)),
            [f"{found.title(one.system)} less {found.title(one.less)}" for one in listed],
        )
        return svg(figure, "Differences with intervals")


def _forest(axes: Axes, listed: Sequence[Difference], figure: int) -> None:
    for place, one in enumerate(listed):
        value, low, high = (
            float(row["overall"][figure])
            for row in (one.estimate.value, one.estimate.low, one.estimate.high)
        )
        clear = low > 0 or high < 0
        colour = COPY if clear else BENIGN
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8)
        axes.plot([value], [place], "o", color=colour, markersize=4)
    axes.axvline(0, color=LIMIT, linewidth=0.9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.2f}" if value else "0")


def _axes(
    width: float, height: float, rows: int = 1, columns: int = 1, *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    cells = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for axes in cells:
        axes.patch.set_alpha(0)
    return figure, cells


def svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element without a size of its own."""
    drawn = io.StringIO()
    # What is referred to has an id made from what is drawn and this salt: unique in the page.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    labelled = rf'\1 role="img" aria-label="{title}"'
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', labelled, text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names of groups, the same in every plot
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
