"""Policy: from hits in the hot set to what is enforced, what is only shown, what is suppressed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from worker.hotset.types import Bank, Hit, Reference
from worker.scoring.calibration import Calibration
from worker.telemetry import metrics


@dataclass(frozen=True, slots=True)
class Scored:
    """One hit with its score; `look` counts the upload's looks, as its descriptors do.

    `threshold` is None for hits of allow banks.
    """

    hit: Hit
    score: float
    look: int = 0
    threshold: float | None = None
    false_matches_per_million: float | None = None

    @property
    def bank(self) -> Bank:
        """The hit's bank."""
        return self.hit.bank

    @property
    def reference(self) -> Reference:
        """The hit's reference."""
        return self.hit.reference


@dataclass(frozen=True, slots=True)
class Overruled:
    """A match that an allow reference overruled, and by which."""

    match: Scored
    by: Scored


@dataclass(frozen=True, slots=True)
class Decision:
    """All lists best first, each reference once; `best_score` is None without any hit."""

    enforced: Sequence[Scored] = ()
    shadow: Sequence[Scored] = ()
    suppressed: Sequence[Overruled] = ()
    best_score: float | None = None


def threshold_of(bank: Bank, calibration: Calibration | None) -> float | None:
    """The bank's threshold in scores. None: it has no rule that can be applied now.

    A threshold is pinned to the calibration that it was set for, a budget needs one whose data
    support it. A bank without a rule matches nothing, not even in shadow, and `check` says so.
    """
    if bank.threshold is not None:
        current = calibration.id if calibration else None
        return bank.threshold if bank.calibration == current else None
    if calibration is None or bank.max_false_matches_per_million is None:
        return None
    return calibration.threshold(bank.name, bank.max_false_matches_per_million)


def lowest_threshold(banks: Iterable[Bank], calibration: Calibration | None) -> float:
    """No hit below it can match; infinite where no bank has a rule that can be applied."""
    rules = [threshold_of(one, calibration) for one in banks if one.kind == "block" and one.enabled]
    metrics.BANKS_WITHOUT_RULE.set(rules.count(None))
    return min((rule for rule in rules if rule is not None), default=math.inf)


def score(hits: Iterable[Hit], offset: float = 0.0, look: int = 0) -> list[Scored]:
    """Score the hits of one look. `offset` is `Calibration.offsets` of it; without, cosines."""
    return [Scored(hit, hit.cosine - offset, look) for hit in hits]


def decide(scored: Sequence[Scored], calibration: Calibration | None = None) -> Decision:
    """Apply the banks' policies to the hits of all looks of one upload."""
    ranked = sorted(scored, key=_best_first)
    allow = _best_allowing(ranked)
    thresholds: dict[str, float | None] = {}
    matched: dict[str, Scored] = {}
    overruled: dict[str, Overruled] = {}
    for one in ranked:
        bank = one.bank
        if bank.kind == "allow":
            continue
        if bank.name not in thresholds:
            thresholds[bank.name] = threshold_of(bank, calibration)
        threshold = thresholds[bank.name]
        if threshold is None or one.score < threshold:
            continue
        rate = _rate(one, calibration)
        match = replace(one, threshold=threshold, false_matches_per_million=rate)
        reference = one.reference.reference_id
        if by := _suppressor(match, allow):
            overruled.setdefault(reference, Overruled(match, by))
        else:
            matched.setdefault(reference, match)
    return Decision(
        enforced=[m for m in matched.values() if _enforced(m)],
        shadow=[m for m in matched.values() if not _enforced(m)],
        suppressed=[o for reference, o in overruled.items() if reference not in matched],
        best_score=max((one.score for one in scored), default=None),
    )


def _best_first(one: Scored) -> tuple[float, str, str, int]:
    return -one.score, one.reference.reference_id, one.hit.view, one.look


def _enforced(match: Scored) -> bool:
    reference = match.reference
    return match.bank.mode == "enforce" and not (reference.canary or reference.shadow)


type _Place = tuple[str, str, int]
"""Bank, view of its reference, and look: where an allow reference and a match can meet."""


def _best_allowing(ranked: Sequence[Scored]) -> dict[_Place, Scored]:
    """The best allow reference for each place; `ranked` is best first. A crowd costs no more."""
    best: dict[_Place, Scored] = {}
    for one in ranked:
        if one.bank.kind == "allow":
            for bank in one.bank.suppresses:
                best.setdefault((bank, one.hit.view, one.look), one)
    return best


def _suppressor(match: Scored, allow: Mapping[_Place, Scored]) -> Scored | None:
    """The best allow reference that names the bank, if it scores higher on the same views."""
    if match.bank.severity == "critical" or match.reference.severity == "critical":
        return None
    best = allow.get((match.bank.name, match.hit.view, match.look))
    return best if best and best.score > match.score else None


def _rate(one: Scored, calibration: Calibration | None) -> float | None:
    if calibration is None:
        return None
    return calibration.false_matches_per_million(one.bank.name, one.score)
