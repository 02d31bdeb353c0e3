"""Policy: from hits in the hot set to what is enforced, what is only shown, what is suppressed."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from worker.hotset.types import Bank, Hit, Reference
from worker.scoring.rules import Rule

type Resemblance = Callable[[Sequence[Hit], Sequence[Hit]], npt.NDArray[np.float64]]
"""Scores allow references against matched references: [allow, matched].

Each row that an allow reference was hit by is compared with each row that a match was hit by, as
an upload would be. NaN where the score is not known.
"""


def unknown(allow: Sequence[Hit], matched: Sequence[Hit]) -> npt.NDArray[np.float64]:
    """Return NaN for every pair: without the descriptors no resemblance is known."""
    return np.full((len(allow), len(matched)), np.nan)


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
    to `seen_from`, there may be more than was looked at. An infinite one: only of what matches was
    as much looked at as can be.
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
    scored: Sequence[Scored],
    rules: Mapping[str, Rule],
    seen_from: float = -math.inf,
    resemblance: Resemblance = unknown,
    cut: Collection[str] = (),
) -> Decision:
    """Apply the banks' policies, and `rules` by their names, to all hits of one upload.

    `seen_from`: as in `Decision`. Of the banks in `cut` there may be matches that are not among the
    hits. So where allow references overrule all that are, the best of them stands. `resemblance`
    is called only where an allow reference meets a match that it may overrule.
    """
    ranked = sorted(scored, key=_best_first)
    matches: list[Scored] = []
    best_scores: dict[str, float] = {}
    for one in ranked:
        bank = one.bank
        if _may_enforce(one.reference):
            best_scores.setdefault(bank.name, one.score)
        if bank.kind == "allow":
            continue
        rule = rules[bank.name]
        if rule.threshold is not None and one.score >= rule.threshold:
            matches.append(replace(one, rule=rule))
    matched: dict[str, Scored] = {}
    overruled: dict[str, Overruled] = {}
    suppressors = _suppressors(matches, _allowing(ranked), resemblance)
    for name in cut:
        own = [n for n, m in enumerate(matches) if m.bank.name == name and _enforced(m)]
        if own and all(suppressors[number] is not None for number in own):
            suppressors[own[0]] = None
    for match, by in zip(matches, suppressors, strict=True):
        reference = match.reference.reference_id
        if by is None:
            matched.setdefault(reference, match)
        else:
            overruled.setdefault(reference, Overruled(match, by))
    return Decision(
        enforced=[m for m in matched.values() if _enforced(m)],
        shadow=[m for m in matched.values() if not _enforced(m)],
        suppressed=[o for reference, o in overruled.items() if reference not in matched],
        best_score=max((one.score for one in scored), default=None),
        best_scores=best_scores,
        seen_from=seen_from,
    )


def near_thresholds(
    scored: Iterable[Scored], decision: Decision, rules: Mapping[str, Rule], count: int
) -> dict[str, float]:
    """Return the thresholds of the `count` banks that an upload came nearest to.

    `decision` is of the same hits. Banks that matched come first, the enforced ones before the
    others, and then banks by how far below their threshold their best hit is.
    """
    overruled = (one.match for one in decision.suppressed)
    matches = (*decision.enforced, *decision.shadow, *overruled)
    matched = dict.fromkeys(match.bank.name for match in matches)
    below: dict[str, float] = {}
    for one in scored:
        name = one.bank.name
        threshold = rules[name].threshold
        if threshold is not None and name not in matched:
            below[name] = max(below.get(name, -math.inf), one.score - threshold)
    names = [*matched, *sorted(below, key=lambda name: (-below[name], name))]
    thresholds = ((name, rules[name].threshold) for name in names[:count])
    return {name: threshold for name, threshold in thresholds if threshold is not None}


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


def _place(match: Scored) -> _Place:
    return match.bank.name, match.hit.view, match.look


def _allowing(ranked: Sequence[Scored]) -> dict[_Place, list[Scored]]:
    """Return the allow references of each place, best first; `ranked` is best first."""
    found: dict[_Place, list[Scored]] = {}
    for one in ranked:
        if one.bank.kind == "allow":
            for bank in one.bank.suppresses:
                found.setdefault((bank, one.hit.view, one.look), []).append(one)
    return found


def _suppressors(
    matches: Sequence[Scored],
    allowing: Mapping[_Place, Sequence[Scored]],
    resemblance: Resemblance,
) -> list[Scored | None]:
    """Return the allow reference that overrules each match, or None. `matches` are best first."""
    found: list[Scored | None] = [None] * len(matches)
    meetings: dict[_Place, list[int]] = {}
    for number, match in enumerate(matches):
        place = _place(match)
        allow = allowing.get(place)
        if allow and allow[0].score > match.score and not _is_critical(match):
            meetings.setdefault(place, []).append(number)
    for place, numbers in meetings.items():
        met = [matches[number] for number in numbers]
        allow = [one for one in allowing[place] if one.score > met[-1].score]
        for number, by in zip(numbers, _overruling(met, allow, resemblance), strict=True):
            found[number] = by
    return found


def _overruling(
    met: Sequence[Scored], allow: Sequence[Scored], resemblance: Resemblance
) -> list[Scored | None]:
    """Return for each match of one place the best allow reference that may overrule it, or None.

    The allow reference has to explain the match. So it scores higher than the matched reference,
    and would itself match that reference if it were uploaded. A picture that is merely shown beside
    an allowed one is not overruled.
    """
    resembles = resemblance([one.hit for one in allow], [match.hit for match in met])
    scores = np.array([one.score for one in allow])
    found: list[Scored | None] = []
    for match, of_match in zip(met, resembles.T, strict=True):
        threshold = math.inf if match.threshold is None else match.threshold
        # A score that is not known is NaN, which reaches no threshold: the match stands.
        able = np.flatnonzero((scores > match.score) & (of_match >= threshold))
        found.append(allow[int(able[0])] if len(able) else None)
    return found


def _is_critical(match: Scored) -> bool:
    return match.bank.severity == "critical" or match.reference.severity == "critical"
