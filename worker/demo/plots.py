"""The report's plots."""

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np

from worker.demo.findings import Findings, Share
from worker.evaluation.svg import BENIGN, COPY, LIMIT, QUIET, plot

BIN = 0.04


def scores(found: Findings) -> str:
    """Best scores of copies against those of benign uploads, with the banks' thresholds."""
    by_kind = {
        kind: [
            one.score for one in found.outcomes if one.upload.kind == kind and one.score is not None
        ]
        for kind in ("copy", "benign")
    }
    with plot("Histogram of scores") as drawn:
        axes = drawn.axes
        lowest = min([0.0, *by_kind["copy"], *by_kind["benign"]])
        bins = np.arange(np.floor(lowest / BIN) * BIN, 1 + BIN, BIN).tolist()
        for kind, colour, label in (
            ("benign", BENIGN, "benign uploads"),
            ("copy", COPY, "copies"),
        ):
            axes.hist(by_kind[kind], bins, color=colour, alpha=0.8, label=label)
        axes.margins(y=0.15)
        top = axes.get_ylim()[1]
        aside = -5, "right"
        for bank, threshold in sorted(found.parts.thresholds.items(), key=itemgetter(1)):
            axes.axvline(threshold, color=LIMIT, linewidth=1.2, linestyle="--")
            label, (gap, alignment) = f"{bank} {threshold:.2f}", aside
            axes.annotate(
                label,
                (threshold, top),
                (gap, -4),
                textcoords="offset points",
                color=LIMIT,
                va="top",
                ha=alignment,
            )
            aside = 5, "left"
        axes.set_xlabel("best score against any reference (cosine)")
        axes.set_ylabel("uploads")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
    return drawn.svg


def recall(shares: Mapping[str, Share]) -> str:
    """Recall of each edit as a bar, best first."""
    listed = reversed(list(shares.items()))  # bars are drawn from below
    ranked = sorted(listed, key=lambda item: item[1].found / item[1].total)
    with plot("Recall of each edit", height=0.55 + 0.26 * len(ranked)) as drawn:
        axes = drawn.axes
        names = [what for what, _ in ranked]
        axes.barh(names, [1.0] * len(ranked), color=QUIET, height=0.62, alpha=0.6)
        axes.barh(names, [s.found / s.total for _, s in ranked], color=COPY, height=0.62)
        for place, (_, share) in enumerate(ranked):
            axes.text(1.015, place, str(share), va="center")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
    return drawn.svg


def latency(seconds: Sequence[float]) -> str:
    """Share of the steady uploads that had their verdict within a time."""
    with plot("Distribution of latencies") as drawn:
        axes = drawn.axes
        milliseconds = np.sort(np.asarray(seconds)) * 1000
        axes.ecdf(milliseconds, color=COPY, linewidth=1.8)
        told = []
        for percent in (50, 95, 99):
            at = float(np.percentile(milliseconds, percent))
            axes.plot([at], [percent / 100], "o", color=COPY, markersize=4)
            told.append(f"p{percent}  {at:.0f} ms")
        axes.text(0.98, 0.06, "\n".join(told), transform=axes.transAxes, ha="right")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("milliseconds from publishing the upload to reading its verdict")
        axes.set_ylabel("uploads")
    return drawn.svg
