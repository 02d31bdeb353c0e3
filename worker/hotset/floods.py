"""Floods: a bank, or one of its references, suddenly matches more distinct images than its limit.

    results --note--> Sightings --each second--> Floods --> Census: Redis, all replicas together
       ^---- flooded -----|<------- flooded -------'

A flood is told: in the log, the audit log and the metrics, and by `flooded` on each match. Where
the bank says so its matches are demoted to `review`; never to silence, since a viral atrocity looks
the same. Critical banks and references, and references that a person has confirmed, are exempt:
their matches are not counted, for their bank neither, and keep their action.
"""

import math
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from worker.errors import StoreError
from worker.events import Action
from worker.hotset.census import Census, Policy, Scope, Subject
from worker.hotset.samples import Sampler
from worker.hotset.types import Bank, Hit, Reference
from worker.telemetry import log, metrics

TURN_SECONDS = 1.0
CAPACITY = 10_000
"""Images by subject that wait to be counted. Some MB; thousands of matches a second, or an outage
of Redis, fill it."""
FLOOR = 20
"""The least limit that follows from a budget: below it chance alone would ring."""
MARGIN = 10
"""How many times a budget is exceeded before it rings: copies are meant to match, too."""
_CALM = 0.9
"""A flood ends below this part of its limit, so that it does not flicker."""

logger = log.get(__name__)


def limit_of(bank: Bank, screened: int) -> int | None:
    """How many distinct images the bank, or a reference of it, may match an hour; None: any number.

    `flood_per_hour`, else ten times what the budget lets expect of the uploads that were screened
    in that hour, 20 at least. Matches that are not enforced are not counted.
    """
    if not bank.enabled or bank.mode == "shadow" or bank.severity == "critical":
        return None
    if bank.flood_per_hour is not None:
        return bank.flood_per_hour
    if bank.max_false_matches_per_million is None:
        return None
    expected = bank.max_false_matches_per_million * screened / 1_000_000
    return max(FLOOR, math.ceil(MARGIN * expected))


def is_exempt(bank: Bank, reference: Reference) -> bool:
    """Whether many matches are what one expects of it, or must never be taken less seriously."""
    return "critical" in (bank.severity, reference.severity) or reference.confirmed


@dataclass(frozen=True, slots=True)
class Flooded:
    """What is in flood."""

    subjects: frozenset[Subject] = frozenset()

    def has(self, hit: Hit) -> bool:
        """Whether the hit's bank or reference is."""
        of_bank, of_reference = _subjects(hit)
        return of_bank in self.subjects or of_reference in self.subjects

    def action(self, hit: Hit) -> Action:
        """The bank's action, or `review` instead of a stronger one."""
        bank = hit.bank
        if (
            bank.flood_demotes
            and bank.action in ("hold", "block")
            and self.has(hit)
            and not is_exempt(bank, hit.reference)
        ):
            return "review"
        return bank.action


class Sightings:
    """Matches that are not counted yet, and what is in flood. Thread-safe, waits for nobody.

    `sampler` holds some uploads' best scores for Redis.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.flooded = Flooded()
        self.sampler = Sampler()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._images: dict[Subject, set[str]] = {}
        self._held = self._uploads = 0

    def note(self, image: str, enforced: Iterable[Hit]) -> None:
        """Take in an upload that was screened: sha256 of its image, and its enforced matches."""
        with self._lock:
            self._uploads += 1
            for hit in enforced:
                if limit_of(hit.bank, 0) is not None and not is_exempt(hit.bank, hit.reference):
                    for subject in _subjects(hit):
                        self._add(subject, image)

    def take(self) -> tuple[dict[Subject, set[str]], int]:
        """Hand over what is held: images by subject, and how many uploads were screened."""
        with self._lock:
            taken = self._images, self._uploads
            self._images, self._held, self._uploads = {}, 0, 0
        return taken

    def give_back(self, images: Mapping[Subject, Collection[str]], uploads: int) -> None:
        """Keep for later what could not be counted."""
        with self._lock:
            self._uploads += uploads
            for subject, some in images.items():
                for image in some:
                    self._add(subject, image)

    def _add(self, subject: Subject, image: str) -> None:
        if image in self._images.get(subject, ()):
            return
        if self._held == self._capacity:
            metrics.FLOOD_DROPPED.inc()
            return
        self._images.setdefault(subject, set()).add(image)
        self._held += 1


class Floods:
    """Runs the thread. What fails here is counted, told and tried again; screening goes on."""

    def __init__(self, census: Census, sightings: Sightings) -> None:
        self._census = census
        self._sightings = sightings
        self._measured: set[tuple[str, Scope]] = set()
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="floods", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its turn."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread after `stop`, but not for a Redis that is away."""
        self._thread.join(seconds)

    def turn(self) -> None:
        """Count what was matched since the last turn, and see what is in flood by now.

        Raises StoreError where Redis is away: then all stays as it was.
        """
        images, uploads = self._sightings.take()
        try:
            flooded = self._look(images, uploads)
        except StoreError:
            self._sightings.give_back(images, uploads)
            raise
        self._sightings.flooded = Flooded(flooded)
        self._census.keep(self._sightings.sampler.take())
        self._measure(flooded)

    def _run(self) -> None:
        while not self._stop.wait(TURN_SECONDS):
            try:
                self.turn()
                self._failing = False
            except Exception as error:  # noqa: BLE001 - whatever it is, screening goes on
                metrics.FLOOD_FAILURES.inc()
                if not self._failing:
                    logger.warning("floods_unknown", detail=str(error) or type(error).__name__)
                self._failing = True

    def _look(self, images: Mapping[Subject, Collection[str]], uploads: int) -> frozenset[Subject]:
        screened = self._census.screened(uploads)
        before = self._census.floods()
        seen: dict[Subject, Collection[str]] = {**dict.fromkeys(before, ()), **images}
        counts = self._census.matched(seen)
        policies = self._census.policies(counts)
        return frozenset(
            subject
            for subject, count in counts.items()
            if self._is_flooded(
                subject, count, _limit(policies.get(subject), screened), before=subject in before
            )
        )

    def _is_flooded(self, subject: Subject, count: int, limit: int | None, *, before: bool) -> bool:
        """Judge it, and tell of the change, unless another replica has done so."""
        now = limit is not None and count > (_CALM * limit if before else limit)
        about = {"bank": subject.bank, "reference": subject.reference, "images": count}
        if limit is not None and now > before and self._census.begin(subject, count, limit):
            metrics.FLOODS_BEGUN.labels(subject.bank, subject.scope).inc()
            logger.error("flood_began", **about, limit=limit)
        if now < before and self._census.end(subject, count):
            logger.info("flood_ended", **about)
        return now

    def _measure(self, flooded: Iterable[Subject]) -> None:
        counts = Counter((subject.bank, subject.scope) for subject in flooded)
        self._measured |= counts.keys()
        for labels in self._measured:
            metrics.FLOODS.labels(*labels).set(counts[labels])


def _subjects(hit: Hit) -> tuple[Subject, Subject]:
    return Subject(hit.bank.name), Subject(hit.bank.name, hit.reference.reference_id)


def _limit(policy: Policy | None, screened: int) -> int | None:
    """None also of what is gone, or can match no more."""
    if policy is None:
        return None
    bank, reference = policy
    if reference is not None:
        matches = reference.enabled and not reference.shadow and reference.bank == bank.name
        if not matches or is_exempt(bank, reference):
            return None
    return limit_of(bank, screened)
