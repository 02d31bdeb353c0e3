"""Policy: from hits in the hot set to what is enforced, what is only shown, what is suppressed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from worker.hotset.types import Bank, Hit, Reference
from worker.scoring.rules import Rule


@dataclass(frozen=True, slots=True)
class Scored:
    """One hit with its score; `look` counts the upload's looks, as its descriptors do.

    `rule` is the bank's, None before it is applied and for hits of allow banks.
    """

    hit: Hit
    score: float
    look: int = 0
    rule: Rule | None = None

    @property
    def threshold(self) -> float | None:
        """The score from which the bank matches."""
        return self.rule.threshold if self.rule else None

    @property
    def false_matches_per_million(self) -> float | None:
        """Benign uploads in a million that score so much against the bank; None: not known."""
        return self.rule.false_matches_per_million(self.score) if self.rule else None

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
    """All lists best first, each reference once; `best_score` is None without any hit.

    `best_scores` are those of the banks' references that are enforced, by bank; of what scores up
    to `seen_from`, there may be more than was looked at.
    """

    enforced: Sequence[Scored] = ()
    shadow: Sequence[Scored] = ()
    suppressed: Sequence[Overruled] = ()
    best_score: float | None = None
    best_scores: Mapping[str, float] = field(default_factory=dict)
    seen_from: float = -math.inf


def score(hits: Iterable[Hit], offset: float = 0.0, look: int = 0) -> list[Scored]:
    """Score the hits of one look. `offset` is `Applied.offsets` of it; without, similarities."""
    return [Scored(hit, hit.similarity - offset, look) for hit in hits]


def decide(
    scored: Sequence[Scored], rules: Mapping[str, Rule], seen_from: float = -math.inf
) -> Decision:
    """Apply the banks' policies, and `rules` by their names, to all hits of one upload.

    `seen_from`: as in `Decision`.
    """
    ranked = sorted(scored, key=_best_first)
    allow = _best_allowing(ranked)
    matched: dict[str, Scored] = {}
    overruled: dict[str, Overruled] = {}
    best_scores: dict[str, float] = {}
    for one in ranked:
        bank = one.bank
        if _may_enforce(one.reference):
            best_scores.setdefault(bank.name, one.score)
        if bank.kind == "allow":
            continue
        rule = rules[bank.name]
        if rule.threshold is None or one.score < rule.threshold:
            continue
        match = replace(one, rule=rule)
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
        best_scores=best_scores,
        seen_from=seen_from,
    )


def _best_first(one: Scored) -> tuple[float, str, str, int]:
    return -one.score, one.reference.reference_id, one.hit.view, one.look


def _enforced(match: Scored) -> bool:
    rule = match.rule
    may_be = rule is not None and rule.is_enforced and match.bank.mode == "enforce"
    return may_be and _may_enforce(match.reference)


def _may_enforce(reference: Reference) -> bool:
    return not (reference.canary or reference.shadow)


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
