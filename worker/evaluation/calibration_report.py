"""The report of a calibration: what each bank's budget comes to, as text and as a page."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup
from PIL import Image, ImageFilter

from worker.evaluation import null_plots, null_text, page
from worker.evaluation.calibrating import Calibrated, Numbers
from worker.evaluation.copying import Copied
from worker.evaluation.words import counted
from worker.hotset.types import Bank, Descriptors, Reference
from worker.scoring.calibration import Calibration, Masked
from worker.scoring.forecast import Growth
from worker.scoring.null import Null, Threshold
from worker.scoring.rules import MILLION, Applied, Rule

USUAL_BUDGETS = (10.0, 100.0, 1000.0, 10_000.0)
"""Per million: what is told of a bank beside its own budget."""
HALVES = 10
MOST_FORECAST = 5000
"""References of a bank, above which its growth is not forecast: it takes all pairs."""
_SHOWN, _SHOWN_BELOW = 12, 6
"""Groups that are shown: of those that reach the threshold, and of those that do not."""
_STABLE, _USUAL_RATE = 3, 0.01
"""Stability is of a rate that a third of the groups support, or there would be nothing to see."""
_THUMBNAIL, _BLUR = 72, 2.5


@dataclass(frozen=True, slots=True)
class NearGroup:
    """A group of benign images whose score against a bank is high.

    `names` are of its images, best first: those that reach the threshold if it does, else all.
    `reference_id` is what the best of them resembles most, and `source` where that is from.
    """

    score: float
    names: tuple[str, ...]
    reaches: bool
    reference_id: str
    source: str | None = None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "score": self.score,
            "reaches_threshold": self.reaches,
            "images": list(self.names),
            "reference_id": self.reference_id,
            "source": self.source,
        }


@dataclass(frozen=True, eq=False)
class BankReport:
    """What the calibration makes of one bank.

    `rule` is what it matches at, `unmasked` what it would if copies of references were taken for
    benign. `null` is what benign images score against it, also where it has no rule; None: it has
    no references. `halves` are best scores against random halves of its references, float32
    [halves, n]. `near` are the groups that reach its threshold, highest first, then those below.
    """

    bank: Bank
    rule: Rule
    unmasked: Rule
    null: Null | None = None
    references: int = 0
    halves: npt.NDArray[np.float32] | None = None
    near: Sequence[NearGroup] = ()

    @property
    def sentences(self) -> list[str]:
        """What an operator should know."""
        if self.null is None:
            return [f"Nothing can be told: {self.rule.why}."]
        return [*self._of_threshold(self.null), null_text.of_support(self.null), *self._forecast()]

    def _of_threshold(self, null: Null) -> Iterator[str]:
        own, threshold = self.bank.max_false_matches_per_million, self.rule.threshold
        if own is not None:
            yield null_text.of_threshold(own / MILLION, null.threshold(own / MILLION))
            if not self.rule.is_enforced and threshold is not None:
                yield f"Until then it matches in shadow, from score {threshold:.4f}."
            both = threshold, self.unmasked.threshold
            if None not in both and both[0] != both[1]:
                yield f"If copies of references were taken for benign it would be {both[1]:.4f}."
        elif threshold is not None:
            yield f"Its threshold is {threshold:.4f}."
            yield null_text.of_rate(null.rate(threshold))
        else:
            yield (
                f"Under this calibration it would match nothing: {self.rule.why}. Here is what"
                " benign images score."
            )

    def _forecast(self) -> Iterator[str]:
        own = self.bank.max_false_matches_per_million
        if self.null is not None and own is not None and self.growth is not None:
            forecast = self.growth.forecast(self.null, own / MILLION, 10.0)
            yield null_text.of_forecast(forecast, own / MILLION)

    @property
    def reaching(self) -> int:
        """How many groups reach its threshold, shown or not."""
        if self.null is None or self.rule.threshold is None:
            return 0
        return len(self.null.groups_reaching(self.rule.threshold))

    @property
    def growth(self) -> Growth | None:
        """How its rates grow with it, where that can be told."""
        null = self.null
        if null is None or self.halves is None or len(self.halves) < 2 or not null.distinct:  # noqa: PLR2004
            return None
        return Growth.measure(null, np.minimum(self.halves, null.scores))

    def thresholds(self) -> dict[str, float]:
        """Its own, and those of the usual budgets that the data support, by budget."""
        null, found = self.null, dict[str, float]()
        for budget in USUAL_BUDGETS if null is not None else ():
            threshold = null.threshold(budget / MILLION) if null is not None else None
            if isinstance(threshold, Threshold):
                found[f"{budget:,.0f}"] = threshold.score
        return found

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        null = self.null
        return {
            "bank": self.bank.name,
            "references": self.references,
            "state": self.rule.state,
            "why": self.rule.why,
            "threshold": self.rule.threshold,
            "threshold_with_copies": self.unmasked.threshold,
            "groups_needed": self.rule.needed,
            "null_images": None if null is None else len(null.scores),
            "null_groups": None if null is None else null.distinct,
            "lowest_supported_per_million": None if null is None else MILLION * null.supported_rate,
            "thresholds": self.thresholds(),
            "near": [one.document() for one in self.near],
            "sentences": self.sentences,
        }


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """All that is told of a calibration.

    `copies` counts images that are copies of references. `copied` are copies that were made for
    the report; None: there were no pictures to make them of. `pictures` are shown in it.
    """

    made: Calibrated
    about: Mapping[str, object]
    banks: Sequence[BankReport] = ()
    copies: int = 0
    copied: Copied | None = None
    pictures: Path | None = None


def null_of(applied: Applied, bank: str, looks: Sequence[str]) -> Null | None:
    """What benign images score against a bank, whether it has a rule or not."""
    masked, best = applied.masked, applied.against.best.get(bank)
    if masked is None or best is None or not masked.knows(looks):
        return None
    return Null(masked.null_scores(best, looks), masked.groups)


def near(
    made: Calibrated,
    masked: Masked,
    null: Null,
    threshold: float | None,
    described: Sequence[tuple[Reference, Descriptors]],
) -> list[NearGroup]:
    """The groups that reach the threshold, and the next below; the highest where there is none.

    `described` are the bank's enforced references.
    """
    numbers, groups = np.unique(null.groups, return_inverse=True)
    best = np.full(len(numbers), -np.inf, dtype=np.float32)
    np.maximum.at(best, groups, null.scores)
    order = np.argsort(-best, kind="stable")
    least = np.inf if threshold is None else threshold
    reach = int((best >= least).sum())
    listed = []
    for group in [*order[: min(reach, _SHOWN)], *order[reach : reach + _SHOWN_BELOW]]:
        reaches = bool(best[group] >= least)
        own = np.flatnonzero((groups == group) & (null.scores >= (least if reaches else -np.inf)))
        listed.append((own[np.argsort(-null.scores[own], kind="stable")], reaches))
    first = np.array([own[0] for own, _ in listed], dtype=np.int64)
    resembled = _resembled(masked, first, [rows for _, rows in described])
    images = made.null[masked.in_null]
    return [
        NearGroup(
            score=float(null.scores[own[0]]),
            names=tuple(made.collection.names[images[number]] for number in own.tolist()),
            reaches=reaches,
            reference_id=(reference := described[place][0]).reference_id,
            source=reference.source,
        )
        for (own, reaches), place in zip(listed, resembled, strict=True)
    ]


def _resembled(masked: Masked, images: Numbers, described: Sequence[Descriptors]) -> list[int]:
    """Which reference each of some null images scores highest with, in any of its looks.

    `images` are numbers among those that are left, [n].
    """
    known = masked.calibration
    chosen = np.flatnonzero(masked.in_null)[images]
    probes = known.projected_probes.reshape(*known.null.shape)[torch.from_numpy(chosen)]
    offsets = torch.from_numpy(masked.null_offsets[chosen])
    scores = torch.full((len(images), len(described)), -torch.inf)
    for number, one in enumerate(described):
        rows = known.project(torch.from_numpy(one.rows.astype(np.float32)))
        scores[:, number] = ((probes @ rows.T).amax(dim=2) - offsets).amax(dim=1)
    return scores.argmax(dim=1).tolist() if len(described) else []


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
    """Write the page, which stands alone. Raises StartupError."""
    told = {
        "report": report,
        "plots": {one.bank.name: list(_plots(report, one)) for one in report.banks},
    }
    page.write(path, "calibration.html", told, thumbnails=partial(_thumbnails, report.pictures))


def _plots(report: CalibrationReport, one: BankReport) -> Iterator[tuple[Markup, str]]:
    """Plots, each with what it shows."""
    name, null, threshold = one.bank.name, one.null, one.rule.threshold
    if null is None or not null.distinct:
        return
    marked = {} if threshold is None else {"threshold": threshold}
    copies = report.copied.scores if report.copied else np.empty(0, dtype=np.float32)
    drawn = null_plots.distributions(name, null, copies, marked)
    yield page.drawn(drawn), _of_distributions(report.copied)
    if not np.isfinite(null.supported_rate):
        return
    drawn = null_plots.rates(name, null, marked)
    told = "How many of a million benign images would match, by the threshold. "
    yield page.drawn(drawn), f"{told}Rates in the grey are too low for so few groups to tell."
    own = one.bank.max_false_matches_per_million
    wanted = own / MILLION if own is not None else _USUAL_RATE
    rate = max(_STABLE * null.supported_rate, wanted)
    told = (
        "A threshold from fewer groups and from all: where it still moves, more would move it on."
    )
    if rate > wanted and own is not None:
        told += " It is for a higher rate than the budget, for which there are too few to see that."
    yield page.drawn(null_plots.stability(name, null, rate)), told
    if one.growth is not None and threshold is not None:
        drawn = null_plots.growth(name, null, one.growth, threshold, one.references)
        yield page.drawn(drawn), "What today's threshold would let through if the bank were larger."


def _of_distributions(copied: Copied | None) -> str:
    told = "Grey: the best score of each benign image against the bank."
    if copied is None:
        return (
            f"{told} What copies score is not shown: they are made of pictures, and a collection "
            f"(.npz) has none. Calibrate from the folder to see them."
        )
    if not copied.images:
        return f"{told} What copies score is not shown: too few images are large enough to edit."
    return (
        f"{told} Blue: what uploads that are copies score. Copies of "
        f"{counted(copied.images, 'benign image')} were made for this plot, re-encoded, cropped, "
        f"captioned and so on, and are scored as if the image itself were the reference."
    )


def _thumbnails(folder: Path | None, one: NearGroup) -> list[str]:
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
