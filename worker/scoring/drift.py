"""Drift: whether uploads still reach high scores as often as the calibration's benign images did.

At two levels of each bank, scores that one benign image in a hundred and in a thousand reach, every
distinct upload is counted. Two control charts for each (cumulative sums of log likelihood ratios;
Page, Biometrika 1954) add up the evidence that the rate is twice the highest, or half the lowest,
that the calibration allows for. So a calibration's own uncertainty is no alarm.

**False alarms.** From one upload that passes to the next the sum changes by the log likelihood
ratio of that gap, so there are on average at least exp(`ALARM`), 1e7, passing uploads to a false
alarm that there are `more`, and half of that for `fewer` (Lorden, Ann. Math. Statist. 1971): 1e9
uploads and 5e8 at the first level. That is for uploads that pass independently of each other. They
do not quite: a picture that goes round in many versions is distinct bytes each time, and about 24
of them that pass one after the other are an alarm, which ends by itself.

**Delay.** With the rate at k times the highest it takes about ALARM / (high (k ln 2 - 1)) uploads:
at one in a hundred 4,200 where it has doubled. With the rate at 1/k of the lowest it is about
ALARM / (low (1/2 - ln 2 / k)): 10,500 where it has halved. Ten times as many at one in a
thousand. What has changed by less than 1.4 times beyond the limits is not seen.

**What is not known** counts for neither: an upload with many hits may have more in a bank than were
looked at. It may have passed, so it has not for `more`, and has for `fewer`.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

from prometheus_client import Counter

from worker.hotset.types import Bank
from worker.scoring.null import Threshold
from worker.scoring.policy import Decision
from worker.scoring.rules import Applied, Rule
from worker.telemetry import metrics

RATES = (1e-2, 1e-3)
"""Of benign uploads, at which a score is a level."""
ALARM = math.log(1e7)
"""The sum at which a chart says that the rate has changed."""
MOST = 2 * ALARM
"""No sum goes beyond, or an alarm would last as long after a drift as that did."""
RECENT = 1 << 16
"""Images that are remembered, to count each once: about 10 MB."""

_LN2 = math.log(2)

type Result = Literal["passed", "below", "hidden"]
"""Of an upload at a level. `hidden`: none that was looked at passes, and not all were."""


@dataclass(frozen=True, slots=True)
class Level:
    """A share of `low` to `high` of benign uploads reach `score` and are not matched (90% sure).

    `rate` names it: about so many reach it.
    """

    rate: float
    score: float
    low: float
    high: float

    def result(self, score: float, seen_from: float) -> Result:
        """Where an upload is that scores so much at best among the hits from `seen_from` on."""
        if score >= self.score:
            return "passed"
        return "hidden" if seen_from >= self.score else "below"


@dataclass(slots=True)
class Chart:
    """The evidence that uploads pass a level more, or less often than the calibration allows for.

    Log likelihood ratios, 0 to `MOST`.
    """

    more: float = 0.0
    fewer: float = 0.0

    def add(self, level: Level, result: Result) -> None:
        """Take in one upload, by Poisson's law: at rates as small as these, as good as exact."""
        surely, perhaps = result == "passed", result != "below"
        self.more = _bounded(self.more + surely * _LN2 - level.high)
        self.fewer = _bounded(self.fewer - perhaps * _LN2 + level.low / 2)


def _bounded(total: float) -> float:
    return min(max(total, 0.0), MOST)


def levels_of(bank: Bank, rule: Rule) -> Iterator[Level]:
    """The levels that the bank's null supports, below the threshold of a bank that enforces it.

    Whatever matches is left out of the count, benign or not, so `low` is without it.
    """
    null = rule.null
    if null is None:
        return
    threshold, matched = math.inf, None
    if rule.is_enforced and rule.threshold is not None and bank.mode == "enforce":
        threshold, matched = rule.threshold, null.rate(rule.threshold)
    for rate in RATES:
        found = null.threshold(rate)
        if not isinstance(found, Threshold) or found.estimate >= threshold:
            continue
        if (reached := null.rate(found.estimate)) is not None:
            low = max(reached.low - (matched.high if matched else 0.0), 0.0)
            yield Level(rate, found.estimate, low, reached.high)


@dataclass(frozen=True, slots=True)
class _Counted:
    """A level as it is, its chart, and where the uploads at it are counted."""

    level: Level
    chart: Chart
    counters: Mapping[Result, Counter]

    @classmethod
    def of(cls, bank: str, level: Level, chart: Chart) -> Self:
        """Count at a level of the bank, and show its chart."""
        label = _label(level.rate)
        shown = metrics.DRIFT.labels
        shown(bank, label, "more").set_function(lambda: chart.more / ALARM)
        shown(bank, label, "fewer").set_function(lambda: chart.fewer / ALARM)
        results: tuple[Result, ...] = get_args(Result.__value__)
        return cls(
            level, chart, {one: metrics.DRIFT_UPLOADS.labels(bank, label, one) for one in results}
        )

    def note(self, score: float, seen_from: float) -> None:
        """Take in one upload."""
        result = self.level.result(score, seen_from)
        self.chart.add(self.level, result)
        self.counters[result].inc()


@dataclass(frozen=True, slots=True)
class _Watched:
    """A bank, and what is counted of it by its `rule`, by rate."""

    bank: Bank
    calibration: str | None
    rule: Rule
    counted: Mapping[float, _Counted]

    def goes_on_in(self, bank: Bank, calibration: str | None) -> bool:
        """Whether it still is about the same."""
        return self.bank == bank and self.calibration == calibration


class Drift:
    """Counts the distinct uploads of one replica. Not thread-safe."""

    def __init__(self, recent: int = RECENT) -> None:
        """An image counts once among `recent` others."""
        self._room = recent
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._applied: Applied | None = None
        self._watched: dict[str, _Watched] = {}

    def note(self, image: str, tenant: str | None, decision: Decision, applied: Applied) -> None:
        """Take in an upload that was screened: sha256 of its image, and what came of it.

        A bank that has an enforced match of it does not count it.
        """
        if not self._is_new(image):
            return
        if applied is not self._applied:
            self._take_up(applied)
        matched = {one.bank.name for one in decision.enforced}
        for name, watched in self._watched.items():
            if name not in matched and watched.bank.screens(tenant):
                score = decision.best_scores.get(name, -math.inf)
                for counted in watched.counted.values():
                    counted.note(score, decision.seen_from)

    def _is_new(self, image: str) -> bool:
        known = image in self._recent
        self._recent[image] = None
        self._recent.move_to_end(image)
        if len(self._recent) > self._room:
            self._recent.popitem(last=False)
        return not known

    def _take_up(self, applied: Applied) -> None:
        """Levels follow the rules; a chart begins anew with a calibration or a policy."""
        self._applied = applied
        calibration = applied.masked.calibration.id if applied.masked else None
        before, self._watched = self._watched, {}
        for name, rule in applied.rules.items():
            old = before.get(name)
            if old is None or old.rule is not rule:
                bank = applied.against.banks[name]
                goes_on = old is not None and old.goes_on_in(bank, calibration)
                counted = _counted(bank, rule, old.counted if old and goes_on else {})
                old = _Watched(bank, calibration, rule, counted)
            self._watched[name] = old
        for name, old in before.items():
            now = self._watched.get(name)
            for rate in old.counted.keys() - (now.counted.keys() if now else ()):
                for direction in ("more", "fewer"):
                    metrics.DRIFT.remove(name, _label(rate), direction)


def _counted(bank: Bank, rule: Rule, before: Mapping[float, _Counted]) -> dict[float, _Counted]:
    """What is counted by the rule, in the charts that there are."""
    return {
        level.rate: _Counted.of(
            bank.name, level, before[level.rate].chart if level.rate in before else Chart()
        )
        for level in levels_of(bank, rule)
    }


def _label(rate: float) -> str:
    return f"{rate:g}"
