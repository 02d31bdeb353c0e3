"""What became of every upload of a phase, by its offset in the input topic. Pure book-keeping."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from tests.chaos.reader import Result
from tests.chaos.traffic import Sent, Upload

TIE = 1e-3
"""A score this close to its threshold may fall on either side."""

type Span = tuple[float, float | None]
"""When Kafka took an upload, and when its first result was read (None: never)."""

type Excuse = Callable[[Upload, Result], bool]
"""Whether an upload that is `unscreened` could not have been screened by anybody."""


@dataclass(slots=True)
class Judged:
    """Counts of one phase; times in seconds. `blamed` tells the first few wrongs in words."""

    uploads: int
    lost: int = 0
    duplicates: int = 0
    torn: int = 0
    wrong: int = 0
    disordered: int = 0
    excused: int = 0
    stall: float = 0.0
    partition_stall: float = 0.0
    slowest: float = 0.0
    blamed: list[str] = field(default_factory=list)
    answers: dict[int, Result] = field(default_factory=dict)
    spans: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """By partition."""

    def blame(self, text: str) -> None:
        if len(self.blamed) < 10:
            self.blamed.append(text)


def judge(
    sent: Sequence[Sent],
    results: Sequence[Result],
    calm: Mapping[int, Result] | None,
    excuse: Excuse,
    until: float,
    before: Collection[tuple[int, int]] = (),
) -> Judged:
    """Hold the results of a phase, in the order in which each partition has them, to its uploads.

    `results` are all since the end of the phase before. `calm` has the answers of the fault-free
    run by index; None: this is that run, held to how its uploads were made. `lost`: no verdict or
    dead letter, or a match without its match event.
    `duplicates`: more than one of a kind; `torn`: of those, with another verdict id. `disordered`:
    ids whose first appearances are not in the order of the input. `until` is the end of the phase;
    `before` has the sources of earlier phases, of which any result is a repeat.
    """
    found = Judged(len(sent))
    by_source: dict[tuple[int, int], list[Result]] = defaultdict(list)
    for result in results:
        by_source[result.source].append(result)
    for one in sent:
        mine = by_source.pop((one.partition, one.offset), [])
        answers = [r for r in mine if r.kind != "match"]
        found.spans[one.partition].append((one.at, answers[0].at if answers else None))
        at = f"{one.upload.upload_id} at {one.partition}:{one.offset}"
        events = [r for r in mine if r.kind == "match"]
        _count(found, at, answers, events)
        reasons = [_wrong(one.upload, answer, calm) for answer in answers]
        if not any(reasons):
            reasons += [_unsaid(event, answers) for event in events]
        for answer, why in zip_longest(answers, reasons):
            if why and answer and excuse(one.upload, answer):
                found.excused += 1
            elif why:
                found.wrong += 1
                found.blame(f"{why}: {at}")
        if answers:
            found.answers[one.upload.index] = answers[0]
    for stray, late in by_source.items():
        if stray in before:
            found.duplicates += len(late)
        else:
            found.wrong += 1
            found.blame(f"a result of nothing that was sent: {stray}")
    _hold_to_order(found, sent, results)
    _time(found, until)
    return found


def _count(found: Judged, at: str, answers: Sequence[Result], events: Sequence[Result]) -> None:
    """One answer, and one match event if it is a match."""
    if not answers:
        found.lost += 1
        found.blame(f"lost: {at}")
    elif answers[0].outcome == "match" and not events:
        found.lost += 1
        found.blame(f"a match without its event: {at}")
    found.duplicates += max(0, len(answers) - 1) + max(0, len(events) - 1)
    if len({r.verdict_id for r in (*answers, *events)}) > 1:
        found.torn += 1
        found.blame(f"more than one verdict id: {at}")


def _wrong(upload: Upload, answer: Result, calm: Mapping[int, Result] | None) -> str | None:
    """Why the answer is not right, if it is not."""
    if answer.kind == "verdict" and answer.upload_id != upload.upload_id:
        return f"the verdict of {answer.upload_id}"
    if answer.number not in {None, str(upload.index)}:
        return f"the verdict of number {answer.number}"
    if calm is None:
        return _unlike_plan(upload, answer)
    return _unlike_calm(answer, calm[upload.index])


def _unsaid(event: Result, answers: Sequence[Result]) -> str | None:
    """Why an event, which is what is enforced, is not right, if it is not."""
    said = [answer.matches.keys() for answer in answers]
    return None if event.matches.keys() in said else "a match event that is no verdict's"


def _unlike_plan(upload: Upload, answer: Result) -> str | None:
    if answer.outcome != upload.outcome:
        return f"{answer.outcome} ({answer.reason}) instead of {upload.outcome}"
    if upload.reference not in {None, *answer.matches}:
        return f"matches {sorted(answer.matches)} instead of {upload.reference}"
    return None


def _unlike_calm(answer: Result, calm: Result) -> str | None:
    if (answer.kind, answer.reason) != (calm.kind, calm.reason):
        return f"{answer.outcome} ({answer.reason}), was {calm.outcome} ({calm.reason})"
    changed = answer.matches.keys() ^ calm.matches.keys()
    scores = [(answer.matches | calm.matches)[reference] for reference in changed]
    if any(abs(score - threshold) > TIE for score, threshold in scores):
        return f"matches {sorted(answer.matches)}, was {sorted(calm.matches)}"
    return None


def _hold_to_order(found: Judged, sent: Iterable[Sent], results: Iterable[Result]) -> None:
    repeated = {s.upload.upload_id for s in sent if s.upload.repeated}
    appeared: dict[str, list[int]] = defaultdict(list)
    for result in results:
        if result.kind == "verdict" and result.upload_id in repeated:
            offsets = appeared[result.upload_id]
            if result.source[1] not in offsets:
                offsets.append(result.source[1])
    for upload_id, offsets in appeared.items():
        if offsets != sorted(offsets):
            found.disordered += 1
            found.blame(f"out of order: {upload_id} as {offsets}")


def _time(found: Judged, until: float) -> None:
    every = [span for spans in found.spans.values() for span in spans]
    found.stall = longest_stall(every, until)
    found.partition_stall = max((longest_stall(s, until) for s in found.spans.values()), default=0)
    found.slowest = max((max(0.0, (a or until) - s) for s, a in every), default=0.0)


def stall_within(found: Judged, begin: float, end: float) -> float:
    """The longest stall of one partition that a reader sees from `begin` to `end`."""
    longest = 0.0
    for spans in found.spans.values():
        seen = [(max(s, begin), end if a is None else min(a, end)) for s, a in spans]
        longest = max(longest, longest_stall(seen, end))
    return longest


def longest_stall(spans: Iterable[Span], until: float) -> float:
    """The longest time without a new result while one was outstanding."""
    moments = []
    for taken, answered in spans:
        end = until if answered is None else answered
        if end > taken:
            moments += [(taken, 1), (end, -1)]
    longest = since = 0.0
    outstanding = 0
    for at, change in sorted(moments):
        if change < 0:
            longest = max(longest, at - since)
        if change < 0 or outstanding == 0:
            since = at
        outstanding += change
    return longest
