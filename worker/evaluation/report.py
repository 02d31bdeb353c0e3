"""The page of an evaluation, which stands alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worker.evaluation import page, plots
from worker.evaluation.experiment import Findings
from worker.evaluation.trials import FIGURES

TITLES = {
    "recall_at_fpr_1e-2": "recall at 1e-2",
    "recall_at_fpr_1e-3": "recall at 1e-3",
    "recall_at_zero": "recall at none",
    "recall_at_precision_90": "recall at P90",
    "uap": "uAP",
}


def write(found: Findings, path: Path) -> None:
    """Write the page. Raises StartupError."""
    told = {
        "found": found,
        "document": found.document(),
        "figures": FIGURES,
        "titles": TITLES,
        "recall_by_edit": recall_by_edit(found),
        "plots": {
            "curves": page.drawn(plots.curves(found)),
            "scores": page.drawn(plots.scores(found)),
            "differences": page.drawn(plots.differences(found)) if found.differences else None,
        },
    }
    page.write(path, "report.html", told, share=_share)


def recall_by_edit(found: Findings) -> list[tuple[str, list[float]]]:
    """Recall at 1e-3 of each edit, a value for each system; the hardest edit last."""
    rows = [
        (name, [float(one.estimate.value["edits"][place, 1]) for one in found.outcomes])
        for place, name in enumerate(found.forms[1:])
    ]
    return sorted(rows, key=lambda row: -float(np.nan_to_num(row[1]).mean()))


def _share(value: float | None) -> str:
    """As .834, and 1.00: both of four characters."""
    if value is None or np.isnan(value):
        return ""
    text = f"{value:.3f}"
    return "1.00" if text == "1.000" else text.replace("0.", ".", 1)


def interval(row: Mapping[str, Any], figure: str) -> tuple[str, str]:
    """The figure, and the ends of its interval."""
    return _share(row[figure]), f"{_share(row[f'{figure}_low'])}-{_share(row[f'{figure}_high'])}"
