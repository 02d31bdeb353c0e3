"""What came of the uploads, held against what was expected of them."""

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from worker.demo.uploads import Upload
from worker.events import DeadLetter, Match, MatchEvent, Verdict
from worker.image.edits import EDITS, UNEDITED
from worker.settings import Topics
from worker.stream.tools import Result

NAMED = 3
"""How many culprits a line names."""


@dataclass(slots=True)
class Collected:
    """All results as they arrived, by upload id, and the uploads' times on this machine's clock."""

    verdicts: dict[str, list[Verdict]] = field(default_factory=lambda: defaultdict(list))
    dead_letters: dict[str, list[DeadLetter]] = field(default_factory=lambda: defaultdict(list))
    matches: dict[str, list[MatchEvent]] = field(default_factory=lambda: defaultdict(list))
    shadows: dict[str, list[MatchEvent]] = field(default_factory=lambda: defaultdict(list))
    published_at: dict[str, datetime] = field(default_factory=dict)
    arrived_at: dict[str, datetime] = field(default_factory=dict)
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def finished(self) -> int:
        """Uploads that have a terminal result."""
        return len(self.arrived_at)

    @property
    def last_at(self) -> datetime:
        """When something last came: the last terminal result, or the first upload."""
        return max([self.began_at, *self.arrived_at.values()])

    def counted(self) -> Counter[str]:
        """Terminal results by outcome."""
        letters = {"dead letters": sum(map(len, self.dead_letters.values()))}
        verdicts = (one for some in self.verdicts.values() for one in some)
        return Counter(letters) + Counter(str(one.outcome) for one in verdicts)

    def take(self, result: Result, topics: Topics) -> None:
        """File one record of an output topic. Raises ValueError if it breaks the schema."""
        match result.topic:
            case topics.verdicts:
                verdict = Verdict.model_validate_json(result.value)
                self.verdicts[verdict.upload_id].append(verdict)
                self.arrived_at.setdefault(verdict.upload_id, result.arrived_at)
            case topics.dead_letters:
                letter = DeadLetter.model_validate_json(result.value)
                upload_id = base64.b64decode(letter.key_base64 or "").decode()
                self.dead_letters[upload_id].append(letter)
                self.arrived_at.setdefault(upload_id, result.arrived_at)
            case topics.matches:
                event = MatchEvent.model_validate_json(result.value)
                self.matches[event.upload_id].append(event)
            case topics.shadow:
                event = MatchEvent.model_validate_json(result.value)
                self.shadows[event.upload_id].append(event)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One upload and what came of it.

    `match` is the best match in an enforcing bank, `score` the best score of all, where known, and
    `closest` the picture of the reference that it is with. `as_expected`: a copy matched its
    reference, a benign upload matched nothing, a broken one was refused for its reason.
    """

    upload: Upload
    verdict: Verdict | None
    dead_letter: DeadLetter | None
    match: Match | None
    closest: str | None
    score: float | None
    as_expected: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """What the demo ran on."""

    kafka: str
    redis: str
    model: str
    replicas: int
    references: int
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Timing:
    """The steady part of the demo gives the latencies, the burst the throughput."""

    steady: Sequence[str]
    burst: Sequence[str]
    steady_per_second: float


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    found: int
    total: int

    def __str__(self) -> str:
        return f"{self.found}/{self.total}"


@dataclass(frozen=True, slots=True)
class Findings:
    """The whole result of a demo."""

    parts: Parts
    outcomes: Sequence[Outcome]
    by_outcome: Mapping[str, int]
    unscreened_reasons: Mapping[str, int]
    dead_letters: Mapping[str, int]
    match_events: int
    missing: Sequence[str]
    duplicates: Sequence[str]
    recall: Mapping[str, Share]
    benign: int
    false_matches: Sequence[Outcome]
    latencies: Sequence[float]
    steady_per_second: float
    images_per_second: float

    @property
    def copies(self) -> Share:
        """All copies, whatever their edit."""
        shares = self.recall.values()
        return Share(sum(s.found for s in shares), sum(s.total for s in shares))

    def latency(self, percent: float) -> float:
        """Percentile of the seconds from publishing an upload to reading its verdict."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")

    def failures(self) -> list[str]:
        """What must not be, one line each; empty where the demo kept its promise."""
        lines = []
        if self.missing:
            lines.append(f"{len(self.missing)} uploads without a result: {_some(self.missing)}")
        if self.duplicates:
            lines.append(
                f"{len(self.duplicates)} uploads with two results: {_some(self.duplicates)}"
            )
        missed = [
            f"{one.upload.upload_id} ({one.upload.expected})"
            for one in self.outcomes
            if one.upload.what == UNEDITED and not one.as_expected
        ]
        if missed:
            lines.append(f"{len(missed)} unedited copies were missed: {_some(missed)}")
        if self.false_matches:
            told = [
                f"{one.upload.upload_id} ({one.closest}, {one.match.score:.2f})"
                for one in self.false_matches
                if one.match
            ]
            lines.append(
                f"{len(told)} uploads that are no copies matched: {_some(told)}; "
                "do the pictures look alike?"
            )
        wrong = [
            f"{one.upload.upload_id} (not {one.upload.expected})"
            for one in self.outcomes
            if one.upload.kind == "broken" and not one.as_expected
        ]
        if wrong:
            lines.append(f"{len(wrong)} broken uploads ended otherwise: {_some(wrong)}")
        return lines

    def document(self) -> dict[str, Any]:
        """What stands in `report.json`."""
        copies = self.copies
        return {
            "uploads": len(self.outcomes),
            "verdicts": dict(self.by_outcome),
            "unscreened_reasons": dict(self.unscreened_reasons),
            "dead_letters": sum(self.dead_letters.values()),
            "dead_letter_reasons": dict(self.dead_letters),
            "match_events": self.match_events,
            "missing": len(self.missing),
            "duplicates": len(self.duplicates),
            "copies": copies.total,
            "copies_found": copies.found,
            "recall_by_edit": {what: asdict(share) for what, share in self.recall.items()},
            "benign": self.benign,
            "benign_matched": len(self.false_matches),
            "latency_seconds": {f"p{p}": round(self.latency(p), 4) for p in (50, 95, 99)},
            "latency_at_uploads_per_second": self.steady_per_second,
            "images_per_second": round(self.images_per_second, 1),
            **asdict(self.parts),
            "failures": self.failures(),
        }


def judge(
    uploads: Sequence[Upload],
    collected: Collected,
    names: Mapping[str, str],
    parts: Parts,
    timing: Timing,
) -> Findings:
    """Hold the results against the plan. `names` are the pictures' names by reference id."""
    outcomes = [_outcome(upload, collected, names) for upload in uploads]
    results = {
        upload.upload_id: len(collected.verdicts[upload.upload_id])
        + len(collected.dead_letters[upload.upload_id])
        for upload in uploads
    }
    verdicts = [one.verdict for one in outcomes if one.verdict]
    counted = Counter(verdict.outcome for verdict in verdicts)
    copies = [one for one in outcomes if one.upload.kind == "copy"]
    by_edit = {what: [one for one in copies if one.upload.what == what] for what in EDITS}
    return Findings(
        parts=parts,
        outcomes=outcomes,
        by_outcome={name: counted[name] for name in ("match", "no_match", "unscreened")},
        unscreened_reasons=Counter(verdict.reason for verdict in verdicts if verdict.reason),
        dead_letters=Counter(one.dead_letter.reason for one in outcomes if one.dead_letter),
        match_events=sum(len(events) for events in collected.matches.values()),
        missing=[upload_id for upload_id, count in results.items() if count == 0],
        duplicates=[upload_id for upload_id, count in results.items() if count > 1],
        recall={
            what: Share(sum(one.as_expected for one in ones), len(ones))
            for what, ones in by_edit.items()
            if ones
        },
        benign=sum(one.upload.kind == "benign" for one in outcomes),
        false_matches=[one for one in outcomes if one.match and one.upload.kind != "copy"],
        latencies=_latencies(collected, timing.steady),
        steady_per_second=timing.steady_per_second,
        images_per_second=_per_second(collected, timing.burst),
    )


def _outcome(upload: Upload, collected: Collected, names: Mapping[str, str]) -> Outcome:
    verdict = next(iter(collected.verdicts[upload.upload_id]), None)
    letter = next(iter(collected.dead_letters[upload.upload_id]), None)
    matches = verdict.matches if verdict else []
    matched = {names.get(one.reference_id) for one in matches}
    told = [*matches, *(m for event in collected.shadows[upload.upload_id] for m in event.matches)]
    closest = max(told, key=lambda one: one.score, default=None)
    reason = verdict.reason if verdict else letter.reason if letter else None
    return Outcome(
        upload=upload,
        verdict=verdict,
        dead_letter=letter,
        match=matches[0] if matches else None,
        closest=names.get(closest.reference_id) if closest else None,
        score=closest.score if closest else None,
        as_expected={
            "copy": upload.expected in matched,
            "benign": verdict is not None and not matched,
            "broken": reason == upload.expected,
        }[upload.kind],
    )


def _latencies(collected: Collected, upload_ids: Iterable[str]) -> list[float]:
    return sorted(
        (collected.arrived_at[one] - collected.published_at[one]).total_seconds()
        for one in upload_ids
        if one in collected.arrived_at
    )


def _per_second(collected: Collected, upload_ids: Sequence[str]) -> float:
    """Uploads of the burst, from publishing the first to reading the last result."""
    arrived = [collected.arrived_at[one] for one in upload_ids if one in collected.arrived_at]
    if not arrived:
        return 0.0
    first = min(collected.published_at[one] for one in upload_ids)
    return len(arrived) / (max(arrived) - first).total_seconds()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
