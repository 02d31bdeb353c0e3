"""The table at the end, the same as JSON, and verdicts over time as a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from tests.chaos.phase import Row

COLUMNS = {
    "uploads": "uploads",
    "lost": "lost",
    "duplicates": "repeats",
    "torn": "torn",
    "wrong": "wrong",
    "excused": "excused",
    "disordered": "out of order",
}
TIMES = {
    "stall": "longest\nstall, s",
    "partition_stall": "in one\npartition, s",
    "slowest": "slowest\nresult, s",
}


def table(rows: Sequence[Row]) -> Table:
    shown = Table(
        title="uploads by input offset",
        caption="repeats: at least once allows them, with the same verdict id (else: torn)."
        " excused: links of a host that never gave the picture.\n"
        "longest stall: without a new result while one was outstanding; calm is without a fault.",
    )
    for text in ("delivery", "fault"):
        shown.add_column(text)
    for text in [*COLUMNS.values(), *TIMES.values()]:
        shown.add_column(text, justify="right")
    shown.add_column("")
    for number, row in enumerate(rows):
        fields = asdict(row.judged)
        shown.add_row(
            row.delivery,
            row.fault,
            *(f"{fields[name]:,}" for name in COLUMNS),
            *(f"{fields[name]:.1f}" for name in TIMES),
            "[red]failed[/]" if row.failures else "[green]ok[/]",
            end_section=number + 1 < len(rows) and rows[number + 1].delivery != row.delivery,
        )
    return shown


def write(folder: Path, rows: Sequence[Row], facts: dict[str, object]) -> None:
    """`chaos.json` and `chaos.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = facts | {"rows": [_told(row) for row in rows]}
    (folder / "chaos.json").write_text(json.dumps(told, indent=1) + "\n")
    if rows:
        _plot(rows).savefig(folder / "chaos.png", dpi=110)


def _told(row: Row) -> dict[str, object]:
    judged = asdict(row.judged)
    del judged["answers"], judged["blamed"], judged["spans"]
    judged |= {name: round(judged[name], 2) for name in TIMES}
    return {
        "delivery": row.delivery,
        "fault": row.fault,
        **judged,
        **row.notes,
        "seconds": round(row.seconds, 1),
        "failures": row.failures,
        "deaths": row.deaths,
        "marks": [[round(mark.at - row.began, 1), mark.text] for mark in row.marks],
    }


def _plot(rows: Sequence[Row]) -> Figure:
    """First results a second, one strip for each phase, with what was done to it."""
    figure = Figure(figsize=(11, 1.9 * len(rows)), layout="constrained")
    strips = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, row in zip(strips, rows, strict=True):
        bins = np.arange(0, row.seconds + 1, 1.0)
        counts, _ = np.histogram(np.array(row.arrivals) - row.began, bins)
        axes.stairs(counts, bins, fill=True, color="#4477aa")
        for mark in row.marks:
            axes.axvline(mark.at - row.began, color="#cc3311", linewidth=0.8)
            axes.annotate(
                mark.text[:40],
                (mark.at - row.began, 1),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=5,
                ha="right",
                va="top",
            )
        axes.set_title(f"{row.fault}, {row.delivery}", loc="left", fontsize=8)
        axes.set_ylabel("results/s", fontsize=7)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    strips[-1].set_xlabel("seconds", fontsize=7)
    return figure
