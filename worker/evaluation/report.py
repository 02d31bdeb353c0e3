"""The page of an evaluation, which stands alone."""

from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from worker.evaluation import plots
from worker.evaluation.experiment import Findings
from worker.evaluation.trials import FIGURES, RECALLS

TITLES = {
    "recall_at_fpr_1e-2": "recall at 1e-2",
    "recall_at_fpr_1e-3": "recall at 1e-3",
    "recall_at_zero": "recall at none",
    "recall_at_precision_90": "recall at P90",
    "uap": "uAP",
}


def write(found: Findings, path: Path) -> None:
    """Write the page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = _share
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        found=found,
        document=found.document(),
        figures=FIGURES,
        recalls=RECALLS,
        titles=TITLES,
        made_at=datetime.now(UTC),
        recall_by_edit=recall_by_edit(found),
        plots={
            # Drawn by matplotlib from numbers and our own words: safe as they are.
            "curves": Markup(plots.curves(found)),  # noqa: S704
            "scores": Markup(plots.scores(found)),  # noqa: S704
            "differences": Markup(plots.differences(found)) if found.differences else None,  # noqa: S704
        },
    )
    path.write_text(page, encoding="utf-8")


def recall_by_edit(found: Findings) -> list[tuple[str, list[float]]]:
    """Recall at 1e-3 of each edit, a value for each system; the hardest edit last."""
    rows = [
        (name, [float(one.estimate.value["edits"][place, 1]) for one in found.outcomes])
        for place, name in enumerate(found.forms[1:])
    ]
    return sorted(rows, key=lambda row: -float(np.nan_to_num(row[1]).mean()))


def _share(value: float | None) -> str:
    """As .834."""
    if value is None or np.isnan(value):
        return ""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and text[-5:] != "1.000" else text


def interval(row: dict[str, Any], figure: str) -> tuple[str, str]:
    """The figure, and the ends of its interval."""
    return _share(row[figure]), f"{_share(row[f'{figure}_low'])}-{_share(row[f'{figure}_high'])}"
