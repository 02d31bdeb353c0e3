"""The report of a calibration: what each bank's budget comes to, as text and as a page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageFilter

from worker.evaluation import null_plots, null_text
from worker.evaluation.calibrating import Calibrated, write_private
from worker.hotset.types import Bank, Descriptors
from worker.scoring.calibration import Calibration, Masked
from worker.scoring.forecast import Growth
from worker.scoring.null import Threshold
from worker.scoring.rules import MILLION, Rule

USUAL_BUDGETS = (10.0, 100.0, 1000.0, 10_000.0)
"""Per million: what is told of a bank beside its own budget."""
HALVES = 10
MOST_FORECAST = 5000
"""References of a bank, above which its growth is not forecast: it takes all pairs."""
_SETTING_SHOWN = 12
_THUMBNAIL, _BLUR = 72, 2.5


@dataclass(frozen=True, slots=True)
class Setting:
    """A group of benign images that reaches a bank's threshold, by its images' names."""

    score: float
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class BankReport:
    """What the calibration makes of one bank.

    `rule` is what it matches at, `unmasked` what it would if copies of references were taken for
    benign. `halves` are best scores against random halves of its references, float32 [halves, n].
    """

    bank: Bank
    rule: Rule
    unmasked: Rule
    references: int = 0
    halves: npt.NDArray[np.float32] | None = None
    setting: Sequence[Setting] = ()

    @property
    def sentences(self) -> list[str]:
        """What an operator should know."""
        null = self.rule.null
        if null is None:
            return [f"Nothing can be told: {self.rule.why}."]
        told = [null_text.of_support(null)]
        own = self.bank.max_false_matches_per_million
        if own is not None:
            told.append(null_text.of_threshold(own / MILLION, null.threshold(own / MILLION)))
            told += self._with_copies()
        elif self.rule.threshold is not None:
            told.append(f"Its threshold is {self.rule.threshold:.4f}.")
            told.append(null_text.of_rate(null.rate(self.rule.threshold)))
        if own is not None and self.growth is not None:
            forecast = self.growth.forecast(null, own / MILLION, 10.0)
            told.append(null_text.of_forecast(forecast, own / MILLION))
        return told

    def _with_copies(self) -> list[str]:
        both = self.rule.threshold, self.unmasked.threshold
        if None in both or both[0] == both[1]:
            return []
        return [f"If copies of references were taken for benign it would be {both[1]:.4f}."]

    @property
    def growth(self) -> Growth | None:
        """How its rates grow with it, where that can be told."""
        null = self.rule.null
        if null is None or self.halves is None or len(self.halves) < 2 or not null.distinct:  # noqa: PLR2004
            return None
        return Growth.measure(null, np.minimum(self.halves, null.scores))

    def thresholds(self) -> dict[str, float]:
        """Its own, and those of the usual budgets that the data support, by budget."""
        null, found = self.rule.null, dict[str, float]()
        for budget in USUAL_BUDGETS if null is not None else ():
            threshold = null.threshold(budget / MILLION) if null is not None else None
            if isinstance(threshold, Threshold):
                found[f"{budget:,.0f}"] = threshold.score
        return found

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        null = self.rule.null
        return {
            "bank": self.bank.name,
            "references": self.references,
            "state": self.rule.state,
            "why": self.rule.why,
            "threshold": self.rule.threshold,
            "threshold_with_copies": self.unmasked.threshold,
            "images_needed": self.rule.needed,
            "null_images": None if null is None else len(null.scores),
            "null_groups": None if null is None else null.distinct,
            "lowest_supported_per_million": None if null is None else MILLION * null.supported_rate,
            "thresholds": self.thresholds(),
            "sentences": self.sentences,
        }


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """All that is told of a calibration. `copies` counts images that are copies of references."""

    made: Calibrated
    about: Mapping[str, object]
    banks: Sequence[BankReport] = ()
    copies: int = 0
    copy_scores: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, dtype=np.float32)
    )
    pictures: Path | None = None


def setting(made: Calibrated, masked: Masked, rule: Rule) -> list[Setting]:
    """The groups that reach a rule's threshold, highest first."""
    null = rule.null
    if null is None or rule.threshold is None:
        return []
    images = made.null[masked.in_null]
    found = []
    for group, _ in null.groups_reaching(rule.threshold):
        own = np.flatnonzero((null.groups == group) & (null.scores >= rule.threshold))
        names = tuple(made.collection.names[images[number]] for number in own.tolist())
        found.append(Setting(float(null.scores[own].max()), names))
    return sorted(found, key=lambda one: -one.score)[:_SETTING_SHOWN]


def halves(
    masked: Masked, described: Sequence[Descriptors], looks: Sequence[str], seed: int = 1
) -> npt.NDArray[np.float32] | None:
    """Best scores of the null against random halves of a bank's references, [HALVES, n]."""
    if not 2 <= len(described) <= MOST_FORECAST:  # noqa: PLR2004 - one has no half
        return None
    known: Calibration = masked.calibration
    probes = known.project(known.probes)
    rng, count = np.random.default_rng(seed), len(described)
    chosen = np.stack([rng.permutation(count) < count // 2 for _ in range(HALVES)])
    best = np.full((HALVES, len(probes)), -np.inf, dtype=np.float32)
    for number, one in enumerate(described):
        rows = known.project(torch.from_numpy(one.rows.astype(np.float32)))
        similar = (probes @ rows.T).amax(dim=1).numpy()
        for half in np.flatnonzero(chosen[:, number]):
            np.maximum(best[half], similar, out=best[half])
    return np.stack([masked.null_scores(half, looks) for half in best])


def write(report: CalibrationReport, path: Path) -> None:
    """Write the page, which stands alone."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["thumbnails"] = lambda one: _thumbnails(report.pictures, one)
    folder = resources.files(__package__)
    template = folder.joinpath("calibration.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        report=report,
        # Our own words and numbers: safe as they are.
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),  # noqa: S704
        made_at=datetime.now(UTC),
        plots={one.bank.name: [Markup(svg) for svg in _plots(report, one)] for one in report.banks},  # noqa: S704
    )
    write_private(path, page.encode())


def _plots(report: CalibrationReport, one: BankReport) -> list[str]:
    name, null = one.bank.name, one.rule.null
    if null is None or not null.distinct:
        return []
    marked = {} if one.rule.threshold is None else {"threshold": one.rule.threshold}
    drawn = [null_plots.distributions(name, null, report.copy_scores, marked)]
    if not np.isfinite(null.supported_rate):
        return drawn
    own = one.bank.max_false_matches_per_million
    rate = max(null.supported_rate, own / MILLION if own is not None else 0.01)
    drawn += [null_plots.rates(name, null, marked), null_plots.stability(name, null, rate)]
    threshold = null.threshold(rate)
    if one.growth is not None and isinstance(threshold, Threshold):
        drawn.append(null_plots.growth(name, null, one.growth, threshold, one.references))
    return drawn


def _thumbnails(folder: Path | None, one: Setting) -> list[str]:
    """Small and blurred: enough to know a picture by that one has seen, as `data:` URLs."""
    if folder is None:
        return []
    found = []
    for name in one.names[:4]:
        try:
            with Image.open(folder / name) as picture:
                picture.draft("RGB", (4 * _THUMBNAIL, 4 * _THUMBNAIL))
                small = picture.convert("RGB")
        except Exception:  # noqa: BLE001, S112 - what the worker reads and Pillow does not
            continue
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        saved = io.BytesIO()
        small.filter(ImageFilter.GaussianBlur(_BLUR)).save(saved, "JPEG", quality=70)
        found.append(f"data:image/jpeg;base64,{base64.b64encode(saved.getvalue()).decode()}")
    return found
