"""An evaluation from the described pictures on: all systems over all splits, and what is told."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from worker.evaluation.choices import COSINE, MEANINGS, Choice
from worker.evaluation.gallery import Comparing, Gallery, System, banks, trial
from worker.evaluation.intervals import Estimate, Sample, sample
from worker.evaluation.splits import Split
from worker.evaluation.trials import CARRIED, FIGURES, RATES, RECALLS, Trial
from worker.evaluation.words import counted

DIGITS = 4
_RATES, _LEAST = 60, 1e-3
"""Of a curve: how many rates it has, and the lowest that it has at any rate."""
_ENOUGH = 1000
"""Benign pictures of a split, below which a rate of 1e-3 is hardly one."""
TOLD_POINTS = 5
"""Pairs of pictures that are told for each operating point of a system."""

type Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A system's figures less those of another on the same splits."""

    system: System
    less: System
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """A benign picture that stands in the way of a lower threshold, and what it resembles.

    In how many `splits` of how many, and in which form it did so most often.
    """

    figure: str
    negative: str
    form: str
    reference: str
    splits: int
    of: int


@dataclass(frozen=True)
class Outcome:
    """What a system made of all splits."""

    system: System
    estimate: Estimate
    copies: Values
    benign: Values
    curve: Values
    points: Sequence[Point]


class BenignQueries(NamedTuple):
    """How many benign pictures a split has, and how many queries they make."""

    pictures: int
    queries: int


@dataclass(frozen=True)
class Findings:
    """All that is told. `facts` is what was evaluated, and how; `forms` starts with the unedited.

    `about` is the same for people, a line each. `rates` are the false-positive rates of the
    outcomes' curves, 0 first. `fewest` are the benign queries of the split that has fewest.
    """

    facts: Mapping[str, Any]
    about: Mapping[str, str]
    forms: Sequence[str]
    upright: npt.NDArray[np.bool_]
    rates: Values
    outcomes: Sequence[Outcome]
    differences: Sequence[Difference]
    fewest: BenignQueries
    models: Sequence[str] = field(default=())

    def title(self, system: System) -> str:
        """What a system is called: by its choice, and its model where there are several."""
        several = len(self.models) > 1 and system.model is not None
        return f"{system.choice.name} · {system.model}" if several else system.choice.name

    @property
    def legend(self) -> dict[str, str]:
        """What each part of the choices makes of a score."""
        parts = {part for one in self.outcomes for part in one.system.choice.name.split("+")}
        return {part: told for part, told in MEANINGS.items() if part in parts}

    @property
    def warning(self) -> str | None:
        """Where there are so few benign pictures that a rate of 1e-3 says little."""
        if self.fewest.pictures >= _ENOUGH:
            return None
        if not self.fewest.queries:
            return "There is no benign query: recall at a false-positive rate cannot be told."
        pictures = counted(self.fewest.pictures, "benign picture")
        queries = counted(self.fewest.queries, "query", "queries")
        passing = self.fewest.queries // _ENOUGH
        means = f"{passing:,} may pass at 1e-3" if passing else "1e-3 is the same as none"
        return (
            f"Only {pictures} in a split, {queries}: {means}. To tell 1 in 1,000 from none takes "
            f"{_ENOUGH:,} benign pictures in a split."
        )

    def document(self) -> dict[str, Any]:
        """The findings for machines."""
        return {
            **self.facts,
            "benign_pictures": self.fewest.pictures,
            "benign_queries": self.fewest.queries,
            "rows": [self._row(one, "overall") for one in self.outcomes],
            "rows_without_inversion": [self._row(one, "upright") for one in self.outcomes],
            "edits": [row for one in self.outcomes for row in self._edits(one)],
            "differences": [
                _named(one.system) | {"less": _named(one.less)} | _figures(one.estimate, "overall")
                for one in self.differences
            ],
            "thresholds_from_null": [row for one in self.outcomes for row in _carried(one)],
            "operating_points": [
                _named(one.system)
                | {
                    "at": point.figure,
                    "negative": point.negative,
                    "form": point.form,
                    "reference": point.reference,
                    "splits": point.splits,
                }
                for one in self.outcomes
                for point in one.points
            ],
        }

    def _row(self, outcome: Outcome, which: str) -> dict[str, Any]:
        return _named(outcome.system) | _figures(outcome.estimate, which)

    def _edits(self, outcome: Outcome) -> Iterator[dict[str, Any]]:
        estimate = outcome.estimate
        for place, name in enumerate(self.forms[1:]):
            recalls = {
                what: tuple(row["edits"][place, rate] for row in _ends(estimate))
                for rate, what in enumerate(RECALLS)
            }
            yield (
                _named(outcome.system)
                | {"edit": name, "inverts": not self.upright[place + 1]}
                | _flat(recalls)
                | {"false_positive_rate": _rounded(estimate.value["forms"][place + 1])}
            )


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made; see `intervals.sample`."""

    replicates: int
    seed: int


def run(
    gallery: Gallery,
    systems: Sequence[System],
    splits: Sequence[Split],
    comparing: Comparing,
    advance: Callable[[int], object],
) -> dict[System, list[Trial]]:
    """Compare all systems on all splits; `advance` as each split is done."""
    trials: dict[System, list[Trial]] = {system: [] for system in systems}
    for split in splits:
        known = banks(gallery, split)
        for system, listed in trials.items():
            listed.append(trial(gallery, system, split, known, comparing))
        advance(1)
    return trials


def told(
    gallery: Gallery,
    trials: Mapping[System, Sequence[Trial]],
    resampling: Resampling,
    facts: Mapping[str, Any],
    about: Mapping[str, str],
    advance: Callable[[int], object],
) -> Findings:
    """Draw up the findings; `advance` as each replicate is done."""
    samples = sample(trials, gallery.groups, resampling.replicates, resampling.seed, advance)
    benign = [one.negatives.queries for one in next(iter(trials.values()))]
    queries = max(map(len, benign))
    rates = np.array([0.0, *np.geomspace(min(_LEAST, 1 / max(1, queries)), 1, _RATES)])
    outcomes = [
        Outcome(
            system=system,
            estimate=samples[system].estimate(),
            copies=np.concatenate([one.own for one in listed]),
            benign=np.concatenate([one.negatives.scores[:, 0] for one in listed]),
            curve=np.mean([one.recall_against_rate(rates.tolist()) for one in listed], axis=0),
            points=list(_points(gallery, listed)),
        )
        for system, listed in trials.items()
    ]
    return Findings(
        facts=facts,
        about=about,
        forms=gallery.forms,
        upright=gallery.upright,
        rates=rates,
        outcomes=outcomes,
        differences=list(_differences(samples)),
        fewest=min(BenignQueries(len(np.unique(one.pictures)), len(one)) for one in benign),
        models=list(gallery.models),
    )


def _points(gallery: Gallery, trials: Sequence[Trial]) -> Iterator[Point]:
    """The pairs that set each operating point most often."""
    for rate, figure in zip(RATES, RECALLS, strict=True):
        setters = [found for one in trials if (found := one.point_setter(rate)) is not None]
        pairs = Counter((negative, reference) for negative, _, reference in setters)
        for (negative, reference), splits in pairs.most_common(TOLD_POINTS):
            forms = Counter(form for a, form, b in setters if (a, b) == (negative, reference))
            yield Point(
                figure=figure,
                negative=gallery.names[negative],
                form=gallery.forms[forms.most_common(1)[0][0]],
                reference=gallery.names[reference],
                splits=splits,
                of=len(trials),
            )


def _differences(samples: Mapping[System, Sample]) -> Iterator[Difference]:
    for one, other in dict.fromkeys(_pairs(list(samples))):
        if other in samples:
            yield Difference(one, other, samples[one].less(samples[other]).estimate(-1))


def _pairs(systems: Sequence[System]) -> Iterator[tuple[System, System]]:
    """What is compared with what.

    Each choice with the cosine, and with the same choice without one of its parts; the cosine with
    each hash; each model with the one before.
    """
    models = list(dict.fromkeys(one.model for one in systems if one.model is not None))
    cosine = Choice.parse(COSINE)
    for one in systems:
        if one.model is None:
            yield from ((System(cosine, model), one) for model in models)
        elif one.choice != cosine:
            others = [cosine, *one.choice.without()]
            yield from ((one, System(other, one.model)) for other in others)
    for before, after in pairwise(models):
        yield from ((one, System(one.choice, before)) for one in systems if one.model == after)


# -- rows for machines ----------------------------------------------------------------------------


def _named(system: System) -> dict[str, Any]:
    return {"choice": system.choice.name, "model": system.model}


def _ends(estimate: Estimate) -> tuple[Any, Any, Any]:
    return estimate.value, estimate.low, estimate.high


def _figures(estimate: Estimate, which: str) -> dict[str, float | None]:
    return _flat(
        {
            what: tuple(row[which][place] for row in _ends(estimate))
            for place, what in enumerate(FIGURES)
        }
    )


def _carried(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """What thresholds that the null sets give on the negatives."""
    for place, rate in enumerate(CARRIED):
        figures = {
            what: tuple(row["carried"][place, column] for row in _ends(outcome.estimate))
            for column, what in enumerate(("recall", "false_positive_rate"))
        }
        yield _named(outcome.system) | {"rate": rate} | _flat(figures)


def _flat(figures: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    return {
        f"{what}{suffix}": _rounded(value)
        for what, values in figures.items()
        for suffix, value in zip(("", "_low", "_high"), values, strict=True)
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DIGITS)
