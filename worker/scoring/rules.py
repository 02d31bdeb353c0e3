"""Rules: what each bank matches at now, from its policy, the calibration, and the bank's null.

A budget is turned into a threshold by the null images' best scores against the bank as it is, so a
rule changes as references come and go.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

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
    _by_tenant: "list[_ByTenant]" = field(
        default_factory=list, init=False, repr=False, compare=False
    )

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

    def thresholds(self, tenant: str | None) -> Mapping[str, float]:
        """Thresholds of the enabled banks that this tenant's uploads are compared with."""
        if not self._by_tenant:
            self._by_tenant.append(_ByTenant.of(self.against.banks, self.rules))
        return self._by_tenant[0].of_tenant(tenant)

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

    def lowest_threshold(self, tenant: str | None) -> float:
        """No hit of this tenant's uploads below it can match; infinite where no bank has a rule."""
        return min(self.thresholds(tenant).values(), default=math.inf)


@dataclass(frozen=True, slots=True)
class _ByTenant:
    """Thresholds by bank: of all enabled banks, of those for all tenants, of each tenant's own."""

    enabled: Mapping[str, float]
    for_all: Mapping[str, float]
    own: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, banks: Mapping[str, Bank], rules: Mapping[str, Rule]) -> Self:
        """Sort the banks that have a threshold."""
        enabled: dict[str, float] = {}
        for_all: dict[str, float] = {}
        own: dict[str, dict[str, float]] = {}
        for name, rule in rules.items():
            bank = banks[name]
            if rule.threshold is None or not bank.enabled:
                continue
            enabled[name] = rule.threshold
            if bank.tenants is None:
                for_all[name] = rule.threshold
            for tenant in bank.tenants or ():
                own.setdefault(tenant, {})[name] = rule.threshold
        return cls(enabled, for_all, own)

    def of_tenant(self, tenant: str | None) -> Mapping[str, float]:
        """As `Bank.screens`."""
        if tenant is None:
            return self.enabled
        own = self.own.get(tenant)
        return {**self.for_all, **own} if own else self.for_all


@dataclass(slots=True)
class _Known:
    """The rule of a bank, and what it was made of."""

    bank: Bank
    masked: Masked | None
    best: Best | None
    rule: Rule

    def is_of(self, bank: Bank, masked: Masked | None, best: Best | None) -> bool:
        same = self.bank is bank or self.bank == bank
        return same and self.masked is masked and self.best is best


type _MaskedOf = tuple[Calibration, frozenset[str], Masked]
"""A calibration, copies of references, and the calibration without them."""


@dataclass(slots=True)
class Rules:
    """Makes the rules of one replica. `looks` are what is described of each upload.

    What has not changed since the last time is not made anew. `of` is for one thread.
    """

    looks: Sequence[str]
    device: torch.device | str = "cpu"
    _masked: _MaskedOf | None = None
    _known: dict[str, _Known] = field(default_factory=dict)
    _digests: Digests | None = None
    _applied: Applied | None = None
    _spare: dict[str, _Known] = field(default_factory=dict)  # by `prepare`, replaced as a whole
    _spare_masked: _MaskedOf | None = None

    def of(self, against: Against) -> Applied:
        """The rules of a hot set as it is; the same object for the same `against`."""
        if self._applied is not None and self._applied.against is against:
            return self._applied
        known, masked = self._made(against)
        old = self._known
        if old.keys() != known.keys() or any(old[name] is not one for name, one in known.items()):
            _tell(old, known)
            self._digests = None
        self._known, self._masked = known, masked or self._masked
        rules = {name: one.rule for name, one in known.items()}
        self._digests = self._digests or Digests(rules, against.banks)
        self._applied = Applied(against, rules, masked[2] if masked else None, self._digests)
        return self._applied

    def prepare(self, against: Against) -> None:
        """Make the rules of a hot set that `of` will be asked for soon. For any one other thread.

        After a new calibration or a reload all rules are made anew, which takes milliseconds each.
        """
        known, masked = self._made(against)
        self._spare_masked = masked or self._spare_masked
        self._spare = known

    def _made(self, against: Against) -> "tuple[dict[str, _Known], _MaskedOf | None]":
        """What is known of each bank, and the calibration; what has not changed is taken over."""
        masked = self._mask(against)
        own = masked[2] if masked else None
        known: dict[str, _Known] = {}
        for name, bank in against.banks.items():
            best = against.best.get(name)
            old = self._known.get(name)
            if old is None or not old.is_of(bank, own, best):
                old = self._spare.get(name)
            if old is None or not old.is_of(bank, own, best):
                old = _Known(bank, own, best, rule_of(bank, own, best, self.looks))
            known[name] = old
        return known, masked

    def _mask(self, against: Against) -> "_MaskedOf | None":
        calibration = against.calibration
        if calibration is None:
            return None
        if not isinstance(calibration, Calibration):
            raise TypeError("the mirror was not given scoring's calibrations")
        for old in (self._masked, self._spare_masked):
            if old is not None and old[0] is calibration and old[1] == against.copies:
                return old
        return calibration, against.copies, calibration.without(against.copies, self.device)


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
    changed = [name for name, one in now.items() if before.get(name) is not one]
    for name in changed:
        rule = now[name].rule
        metrics.BANK_THRESHOLD.labels(name).set(
            math.inf if rule.threshold is None else rule.threshold
        )
    if not changed and len(now) == len(before):
        return
    states = [one.rule.state for one in now.values() if one.bank.enabled]
    metrics.BANKS_WITHOUT_RULE.set(sum(state in WITHOUT_RULE for state in states))
