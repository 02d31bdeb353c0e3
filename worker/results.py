"""From what was found to what is published: the verdict, and the match events beside it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from worker.compare import Compared
from worker.errors import BadEvent, DeadLetterReason, Unscreenable
from worker.events import (
    ACTIONS,
    DETAIL_LENGTH,
    MATCHES_SHOWN,
    HotSetStamp,
    ImageStamp,
    Match,
    MatchEvent,
    ModelStamp,
    Outcome,
    RenditionStamp,
    Source,
    Suppressed,
    Verdict,
    match_id,
    verdict_id,
)
from worker.hotset.floods import Flooded, Sightings
from worker.records import ImageInfo, Look, Model, Origin, Record, Upload
from worker.scoring.drift import Drift
from worker.scoring.policy import Decision, Overruled, Scored
from worker.scoring.similarity import euclidean_of
from worker.settings import Settings
from worker.stream.dead_letters import dead_letter, minimal_dead_letter
from worker.stream.publisher import Outgoing
from worker.telemetry import log, metrics

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Screened:
    """An upload that was compared with the hot set."""

    upload: Upload
    info: ImageInfo
    looks: tuple[Look, ...]
    compared: Compared


@dataclass(frozen=True, slots=True)
class Unscreened:
    """An upload that could not be screened, and why. `info` where the picture could be read."""

    upload: Upload
    error: Unscreenable
    info: ImageInfo | None = None


class Results:
    """Makes the events of one replica; counts what it makes."""

    def __init__(
        self, settings: Settings, model: Model, precision: str, sightings: Sightings
    ) -> None:
        self._topics = settings.kafka.topics
        self._all_verdicts = settings.verdicts.publish == "all"
        self._model = ModelStamp(**asdict(model), precision=precision)
        self._views = list(settings.views.uploads)
        self._sightings = sightings
        self._drift = Drift()

    def screened(self, screened: Screened) -> list[Outgoing]:
        """The verdict, and an event for each of the two match topics that has matches."""
        upload, compared = screened.upload, screened.compared
        decision, flooded = compared.decision, self._sightings.flooded
        envelope = self._envelope(upload, screened.info, screened.looks) | {
            "hot_set": HotSetStamp(epoch=compared.version.epoch, seq=compared.version.seq),
            "calibration": compared.calibration,
            "thresholds": dict(compared.thresholds),
            "thresholds_digest": compared.applied.thresholds_digest(upload.tenant),
        }
        overruled = decision.suppressed[:MATCHES_SHOWN]
        suppressed = [_suppressed(screened, one, flooded) for one in overruled]
        if upload.is_canary:
            found = _matches(screened, [*decision.shadow, *decision.enforced], flooded)
            return [self._canary(MatchEvent(**envelope, **found, suppressed=suppressed))]
        outcome: Outcome = "match" if decision.enforced else "no_match"
        _count_matches(decision)
        self._sightings.note(screened.info.sha256, (one.hit for one in decision.enforced))
        self._sightings.sampler.note(
            time.time(), compared.calibration, decision.best_scores, decision.seen_from
        )
        described = {look.rendition for look in screened.looks}
        if len(described) == 1:  # as of calibrations' images
            self._drift.note(screened.info.sha256, upload.tenant, decision, compared.applied)
        metrics.UPLOADS.labels(outcome).inc()
        metrics.RENDITIONS.observe(len(described))
        metrics.RENDITIONS_LEFT_OUT.inc(bool(screened.info.renditions_left_out))
        enforced = _matches(screened, decision.enforced, flooded) | {"suppressed": suppressed}
        shadow = _matches(screened, decision.shadow, flooded) | {"suppressed": suppressed}
        events: list[Outgoing] = []
        if self._all_verdicts or decision.enforced:
            verdict = Verdict(**envelope, **enforced, outcome=outcome)
            events.append(_outgoing("verdict", self._topics.verdicts, verdict))
        if decision.enforced:
            event = MatchEvent(**envelope, **enforced)
            events.append(_outgoing("match", self._topics.matches, event))
        if decision.shadow:
            event = MatchEvent(**envelope, **shadow)
            events.append(_outgoing("shadow", self._topics.shadow, event))
        return events

    def unscreened(self, unscreened: Unscreened) -> list[Outgoing]:
        """The verdict that says why; it is always published."""
        upload, error = unscreened.upload, unscreened.error
        envelope = self._envelope(upload, unscreened.info) | {
            "hot_set": None,
            "calibration": None,
            "thresholds": {},
            "thresholds_digest": None,
            "matches": [],
            "matches_total": 0,
            "suppressed": [],
        }
        if upload.is_canary:
            logger.warning("canary_unscreened", reason=error.reason.value, detail=str(error))
            return [self._canary(MatchEvent(**envelope))]
        metrics.UPLOADS.labels("unscreened").inc()
        metrics.UNSCREENED.labels(error.reason.value).inc()
        verdict = Verdict(
            **envelope, outcome="unscreened", reason=error.reason, detail=str(error)[:DETAIL_LENGTH]
        )
        return [_outgoing("verdict", self._topics.verdicts, verdict)]

    def dead_letter(self, record: Record, error: BadEvent) -> list[Outgoing]:
        """The dead letter of a record that is no upload event."""
        metrics.UPLOADS.labels("dead_letter").inc()
        metrics.DEAD_LETTERS.labels(error.reason.value).inc()
        return [dead_letter(record, error, self._topics.dead_letters)]

    def refused(self, origin: Origin, why: str) -> Outgoing:
        """The dead letter of a record whose results Kafka never takes, and why."""
        metrics.UPLOADS.labels("dead_letter").inc()
        metrics.DEAD_LETTERS.labels(DeadLetterReason.RESULT_REFUSED.value).inc()
        return minimal_dead_letter(origin, why, self._topics.dead_letters)

    def _canary(self, event: MatchEvent) -> Outgoing:
        """The one result of a canary, matches or not: nothing of it is among the users' results."""
        metrics.UPLOADS.labels("canary").inc()
        return _outgoing("canary", self._topics.shadow, event)

    def _envelope(
        self, upload: Upload, info: ImageInfo | None, looks: Sequence[Look] = ()
    ) -> dict[str, Any]:
        at = upload.position
        source = Source(topic=at.topic, partition=at.partition, offset=at.offset)
        return {
            "verdict_id": verdict_id(source, upload.upload_id),
            "upload_id": upload.upload_id,
            "tenant": upload.tenant,
            "model": self._model,
            "views": self._views,
            "image": image_stamp(info, looks) if info else None,
            "source": source,
            "uploaded_at": upload.uploaded_at,
            "received_at": upload.received_at,
            "screened_at": datetime.now(UTC),
            "attributes": dict(upload.attributes),
        }


def image_stamp(info: ImageInfo, looks: Iterable[Look]) -> ImageStamp:
    """What results say about an image: how much of it was looked at, and in which renditions."""
    described = dict.fromkeys(look.rendition for look in looks)
    renditions = [RenditionStamp(**asdict(one)) for one in described]
    return ImageStamp(**asdict(info), renditions_described=renditions)


def _matches(screened: Screened, found: Sequence[Scored], flooded: Flooded) -> dict[str, Any]:
    shown = _shown(found, flooded)
    return {
        "matches": [Match(**_fields(screened, one, flooded)) for one in shown],
        "matches_total": len(found),
    }


def _shown(found: Sequence[Scored], flooded: Flooded) -> list[Scored]:
    """The matches that an event shows, best first; `found` is best first.

    The best of each bank comes before others, those with the strongest action first: a reader acts
    on what is shown, so many matches in one bank must not hide what another bank asks for.
    """
    banks: set[str] = set()
    ranked: list[tuple[bool, int, int]] = []
    for place, one in enumerate(found):
        strength = ACTIONS.index(flooded.action(one.hit))
        ranked.append((one.bank.name in banks, -strength, place))
        banks.add(one.bank.name)
    return [found[place] for *_, place in sorted(sorted(ranked)[:MATCHES_SHOWN], key=_place)]


def _place(ranked: tuple[bool, int, int]) -> int:
    return ranked[-1]


def _suppressed(screened: Screened, one: Overruled, flooded: Flooded) -> Suppressed:
    return Suppressed(
        **_fields(screened, one.match, flooded),
        suppressed_by=one.by.reference.reference_id,
        suppressed_by_bank=one.by.bank.name,
        suppressed_by_score=round(one.by.score, 6),
    )


def _fields(screened: Screened, one: Scored, flooded: Flooded) -> dict[str, Any]:
    reference, bank, look = one.reference, one.bank, screened.looks[one.look]
    return {
        "match_id": match_id(screened.upload.upload_id, reference.reference_id),
        "reference_id": reference.reference_id,
        "bank": bank.name,
        "label": reference.label or bank.label,
        "severity": reference.severity or bank.severity,
        "cosine": round(one.hit.cosine, 6),
        "euclidean": round(euclidean_of(one.hit.cosine), 6),
        "score": round(one.score, 6),
        "threshold": one.threshold,
        "false_matches_per_million": one.false_matches_per_million,
        "action": flooded.action(one.hit),
        "view": one.hit.view,
        "upload_view": look.view,
        "rendition": RenditionStamp(**asdict(look.rendition)),
        "flooded": flooded.has(one.hit),
    }


def _count_matches(decision: Decision) -> None:
    for mode, found in (("enforce", decision.enforced), ("shadow", decision.shadow)):
        for one in found:
            metrics.MATCHES.labels(one.bank.name, mode).inc()
    for overruled in decision.suppressed:
        metrics.SUPPRESSED.labels(overruled.by.bank.name).inc()
    if decision.best_score is not None:
        metrics.TOP_SCORE.observe(decision.best_score)


def _outgoing(kind: str, topic: str, event: Verdict | MatchEvent) -> Outgoing:
    """Key is the upload id; the headers make it a CloudEvent in binary mode."""
    source = event.source
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": f"{kind}-{event.verdict_id}",
        "ce_source": f"/copysieve/{source.topic}/{source.partition}",
        "ce_type": f"copysieve.{kind}.v1",
        "ce_time": event.screened_at.isoformat(),
        "content-type": "application/json",
    }
    return Outgoing(
        kind=kind,
        topic=topic,
        key=event.upload_id.encode(),
        value=event.model_dump_json().encode(),
        headers=tuple((name, value.encode()) for name, value in attributes.items()),
    )
