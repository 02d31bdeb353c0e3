"""Rules: what each bank matches at now, from its policy, the calibration, and the bank's null.

A budget is turned into a threshold by the null images' best scores against the bank as it is, so a
rule changes as references come and go.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from worker.events import thresholds_digest
from worker.hotset.hot_set import Against
from worker.hotset.probes import Best
from worker.hotset.types import Bank
from worker.scoring.calibration import Calibration, Masked
from worker.scoring.null import Null, Threshold, images_needed
from worker.telemetry import metrics

MILLION = 1_000_000

type State = Literal[
    "threshold",
    "budget",
    "allow",
    "no_rule",
    "no_calibration",
    "other_calibration",
    "other_looks",
    "no_references",
    "not_supported",
]
"""How a bank comes by its rule, or why it has none: it has neither threshold nor budget; no
calibration is applied; its threshold was set for another one; the calibration does not know what
is described of uploads; it has no references that are enforced; the calibration's null has too few
groups for so low a budget (then it matches in shadow, at the lowest rate that they support)."""
WITHOUT_RULE = (
    "no_rule",
    "no_calibration",
    "other_calibration",
    "other_looks",
    "not_supported",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A bank matches from `threshold` on, in scores; None: nothing, not even in shadow.

    `null` are the benign images' best scores against the bank, where they are known. `needed`
    groups of null images are what it would take, where its budget is not supported.
    """

    state: State
    threshold: float | None = None
    null: Null | None = None
    needed: int | None = None

    @property
    def why(self) -> str:
        """The state in words: why there is nothing to enforce, or what it goes by."""
        there = "there are fewer"
        if self.null is not None and not math.isinf(self.null.supported_rate):
            lowest = math.ceil(MILLION * self.null.supported_rate)
            there = f"there are {self.null.distinct}, which support {lowest} per million at least"
        return {
            "threshold": "its threshold",
            "budget": "its budget",
            "allow": "it allows",
            "no_rule": "it has neither threshold nor budget",
            "no_calibration": "its budget needs a calibration, and none is applied",
            "other_calibration": "its threshold was set for another calibration",
            "other_looks": "the calibration does not know all of views.uploads",
            "no_references": "it has no references that are enforced",
            "not_supported": f"its budget takes {self.needed} groups of null images: {there}",
        }[self.state]

    @property
    def is_enforced(self) -> bool:
        """Whether matches may be enforced; else they are shown in shadow."""
        return self.state in ("threshold", "budget")

    def false_matches_per_million(self, score: float) -> float | None:
        """Benign uploads in a million that score at least so much; None: it cannot be told."""
        rate = self.null.rate(score) if self.null is not None else None
        return None if rate is None else MILLION * rate.estimate


class Digests:
    """Digests of the thresholds of each tenant, for rules and banks as they are.

    Each is made once. Tenants that no bank names are compared with the same banks, so they share
    one, and there are never more digests than named tenants and two.
    """

    def __init__(self, rules: Mapping[str, Rule], banks: Mapping[str, Bank]) -> None:
        """Nothing is computed yet."""
        self._rules = rules
        self._banks = banks
        self._named = frozenset(t for bank in banks.values() for t in bank.tenants or ())
        self._made: dict[str | None, str] = {}

    def of(self, tenant: str | None) -> str:
        """Return `thresholds_digest` of the banks that a tenant's uploads are compared with."""
        key = tenant if tenant is None or tenant in self._named else ""
        if (made := self._made.get(key)) is None:
            made = thresholds_digest(_thresholds(self._rules, self._banks, tenant))
            self._made[key] = made
        return made


@dataclass(frozen=True, slots=True)
class Applied:
    """A hot set with its rules. `masked` is its calibration without copies of references.

    `digests` are of these rules, and kept as long as they are.
    """

    against: Against
    rules: Mapping[str, Rule]
    masked: Masked | None = None
    digests: Digests | None = None

    def offsets(self, queries: torch.Tensor) -> list[float]:
        """What to take off each query's similarities, float32 [n, d]."""
        if self.masked is None:
            return [0.0] * len(queries)
        offsets: list[float] = self.masked.offsets(queries).tolist()
        return offsets

    def scores(self, queries: torch.Tensor, rows: torch.Tensor) -> npt.NDArray[np.float64]:
        """Score queries against rows of the hot set, as a search does: [queries, rows].

        Both are descriptors, float32 [n, d] on one device. NaN in a descriptor gives NaN.
        """
        own, others = queries.double(), rows.double()
        if self.masked is not None:
            own, others = map(self.masked.calibration.project, (own, others))
        similarities = (own @ others.T).clamp(-1, 1).float().cpu().numpy().astype(np.float64)
        scores: npt.NDArray[np.float64] = similarities - np.array(self.offsets(queries))[:, None]
        return scores

    def false_matches_of(
        self, rows: torch.Tensor, threshold: float, looks: Sequence[str], copies: Sequence[str] = ()
    ) -> float:
        """Benign uploads in a million that one reference matches alone, as the null has it.

        `rows` are its views, float32 [views, d]; `copies` of it are not benign.
        """
        if self.masked is None:
            return 0.0
        return MILLION * self.masked.false_matches_of(rows, threshold, looks, copies)

    def thresholds(self, tenant: str | None) -> dict[str, float]:
        """Thresholds of the enabled banks that this tenant's uploads are compared with."""
        return _thresholds(self.rules, self.against.banks, tenant)

    def thresholds_digest(self, tenant: str | None) -> str:
        """Return the digest of these thresholds. Not thread-safe."""
        return (self.digests or Digests(self.rules, self.against.banks)).of(tenant)

    def bars(self) -> dict[str, float]:
        """Scores that matter in each bank: its threshold, or the lowest of those it suppresses.

        Banks in which no score matters are left out.
        """
        found: dict[str, float] = {}
        for name, bank in self.against.banks.items():
            own = [name] if bank.kind == "block" else bank.suppresses
            rules = (self.rules[one] for one in own if one in self.rules)
            bars = [rule.threshold for rule in rules if rule.threshold is not None]
            if bars:
                found[name] = min(bars)
        return found

    @property
    def lowest_threshold(self) -> float:
        """No hit below it can match; infinite where no bank has a rule that can be applied."""
        rules = self.rules.values()
        return min((one.threshold for one in rules if one.threshold is not None), default=math.inf)


@dataclass(slots=True)
class _Known:
    """The rule of a bank, and what it was made of."""

    bank: Bank
    masked: Masked | None
    best: Best | None
    rule: Rule

    def is_of(self, bank: Bank, masked: Masked | None, best: Best | None) -> bool:
        return self.bank == bank and self.masked is masked and self.best is best


@dataclass(slots=True)
class Rules:
    """Makes the rules of one replica. `looks` are what is described of each upload.

    What has not changed since the last time is not made anew. Not thread-safe.
    """

    looks: Sequence[str]
    device: torch.device | str = "cpu"
    _masked: tuple[Calibration, frozenset[str], Masked] | None = None
    _known: dict[str, _Known] = field(default_factory=dict)
    _digests: Digests | None = None

    def of(self, against: Against) -> Applied:
        """The rules of a hot set as it is."""
        masked = self._mask(against)
        known: dict[str, _Known] = {}
        for name, bank in against.banks.items():
            best = against.best.get(name)
            old = self._known.get(name)
            if old is None or not old.is_of(bank, masked, best):
                old = _Known(bank, masked, best, rule_of(bank, masked, best, self.looks))
            known[name] = old
        if any(self._known.get(name) is not one for name, one in known.items()) or (
            len(known) != len(self._known)
        ):
            _tell(self._known, known)
            self._digests = None
        self._known = known
        rules = {name: one.rule for name, one in known.items()}
        if self._digests is None:
            self._digests = Digests(rules, against.banks)
        return Applied(against, rules, masked, self._digests)

    def _mask(self, against: Against) -> Masked | None:
        calibration = against.calibration
        if calibration is None:
            return None
        if not isinstance(calibration, Calibration):
            raise TypeError("the mirror was not given scoring's calibrations")
        old = self._masked
        if old is None or old[0] is not calibration or old[1] != against.copies:
            masked = calibration.without(against.copies, self.device)
            self._masked = old = (calibration, against.copies, masked)
        return old[2]


def rule_of(
    bank: Bank, masked: Masked | None, best: Best | None, looks: Sequence[str] = ("plain",)
) -> Rule:
    """What the bank matches at. `best` are similarities of the null's looks to it at best."""
    if bank.kind == "allow":
        return Rule("allow")
    knows = masked is not None and masked.knows(looks)
    null = None
    if masked is not None and knows and best is not None:
        null = Null(masked.null_scores(best, looks), masked.groups)
    if bank.threshold is not None:
        pinned = bank.calibration == (masked.calibration.id if masked else None)
        return Rule("threshold", bank.threshold, null) if pinned else Rule("other_calibration")
    if bank.max_false_matches_per_million is None:
        return Rule("no_rule")
    rate = bank.max_false_matches_per_million / MILLION
    if null is not None:
        return _of_budget(null, rate)
    if masked is None:
        return Rule("no_calibration")
    return _unmeasured(masked, rate) if knows else Rule("other_looks")


def _unmeasured(masked: Masked, rate: float) -> Rule:
    """Of a bank that has nothing to be measured on."""
    needed = images_needed(rate)
    if needed > len(np.unique(masked.groups)):
        return Rule("not_supported", needed=needed)
    return Rule("no_references")


def _of_budget(null: Null, rate: float) -> Rule:
    found = null.threshold(rate)
    if isinstance(found, Threshold):
        return Rule("budget", found.score, null)
    lowest = null.threshold(null.supported_rate)
    threshold = lowest.score if isinstance(lowest, Threshold) else None
    return Rule("not_supported", threshold, null, found.needed)


def _thresholds(
    rules: Mapping[str, Rule], banks: Mapping[str, Bank], tenant: str | None
) -> dict[str, float]:
    return {
        name: rule.threshold
        for name, rule in rules.items()
        if rule.threshold is not None and banks[name].screens(tenant)
    }


def _tell(before: Mapping[str, _Known], now: Mapping[str, _Known]) -> None:
    for name in before.keys() - now.keys():
        metrics.BANK_THRESHOLD.remove(name)
    for name, one in now.items():
        rule = one.rule
        metrics.BANK_THRESHOLD.labels(name).set(
            math.inf if rule.threshold is None else rule.threshold
        )
    states = [one.rule.state for one in now.values() if one.bank.enabled]
    metrics.BANKS_WITHOUT_RULE.set(sum(state in WITHOUT_RULE for state in states))
