"""The canary thread: knows the key, and where it is this replica's duty, publishes and watches.

    key       read from Redis every two seconds, on every replica, canaries or not: what anybody
              publishes under their ids must be told from the real ones
    lease     the replica that holds it publishes, edited and signed, one picture after another
    watch     and reads the shadow topic, and counts what comes back, until nothing is awaited

The key is there before the first upload is taken. Who learns another one (Redis had lost it) waits
until the other replicas have it too, before anything that is signed with it is published. What
fails here is counted, told and tried again: it never ends the process, nor delays an upload.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from worker.canary.pictures import Canary, Paired, copy_of, pair, scan
from worker.canary.seal import Seal
from worker.canary.watch import Watch
from worker.errors import StartupError, StoreError, StreamError, Unscreenable
from worker.events import CANARY_PREFIX
from worker.hotset.duty import Duty
from worker.hotset.layout import Unusable
from worker.hotset.types import Reference
from worker.settings import Settings
from worker.stream.admission import CANARY_HEADER, Signer
from worker.stream.tools import Tail, UploadProducer
from worker.telemetry import log, metrics

TURN_SECONDS = 2.0
"""Between looks at the key and the lease."""
SETTLE_SECONDS = 5.0
"""Until all replicas have a new key."""
REST_SECONDS = 15.0
"""After a failure, longer than a lease: so another replica has its try."""
SCAN_SECONDS = 60.0
_POLL_MS = 50
_FLUSH_SECONDS = 10.0

logger = log.get(__name__)


class Failure(StrEnum):
    """Why canaries could not be published. Closed."""

    REDIS = "redis"
    KAFKA = "kafka"
    FOLDER = "folder"
    PICTURE = "picture"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class _Line:
    """Out to the uploads, and back from the shadow topic; `open` for whoever publishes."""

    producer: UploadProducer
    tail: Tail
    open: ExitStack


class CanaryPublisher:
    """Runs the thread. `references` tells the mirror's canaries."""

    def __init__(
        self, settings: Settings, duty: Duty, references: Callable[[], Iterable[Reference]]
    ) -> None:
        self._settings = settings
        self._duty = duty
        self._references = references
        self._seal = Seal()
        self._watch = Watch()
        self._line: _Line | None = None
        self._files: Mapping[str, Sequence[Path]] = {}
        self._unpaired: tuple[Sequence[Path], Sequence[Reference]] = ((), ())
        self._published = 0
        self._next = self._next_scan = self._next_try = 0.0
        self._told: str | None = None  # the failure that the log has, while it lasts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        metrics.CANARIES_PER_MINUTE.set(settings.canaries.per_minute)

    def signer_of(self, upload_id: str, value: bytes, signature: bytes) -> Signer:
        """Who published this canary."""
        return self._seal.signer_of(upload_id, value, signature)

    def start(self, should_stop: Callable[[], bool]) -> bool:
        """Read the key, waiting for Redis if it is away, and start the thread; False: told to stop.

        A key that is not usable is none: nothing is genuine until Redis has a good one.
        """
        while not should_stop():
            try:
                self._learn()
            except Unusable as error:
                self._failed(Failure.REDIS, error)
            except StoreError as error:
                self._failed(Failure.REDIS, error)
                self._stop.wait(TURN_SECONDS)
                continue
            self._thread.start()
            return True
        return False

    def stop(self) -> None:
        """Publish nothing more, and let another replica have the lease."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread after `stop`, but not for a broker or a Redis that is away."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, screening goes on
                self._failed(_kind(error), error)
                self._rest()
        self._rest()

    def _turn(self) -> None:
        held = self._holds()
        metrics.CANARY_LEASE.set(held)
        if not held:
            self._tell(Paired((), (), ()))
        if held and self._line is None:
            self._line = self._opened()
        if self._line is None:
            self._watch.expire(_now())
            self._stop.wait(TURN_SECONDS)
            return
        self._work(self._line, held=held)
        if not held and not len(self._watch):
            self._close()

    def _holds(self) -> bool:
        """Whether this replica is to publish; without Redis nobody knows, so no."""
        try:
            self._learn()
            resting = time.monotonic() < self._next_try
            return self._settings.canaries.per_minute > 0 and not resting and self._duty.hold()
        except StoreError as error:
            self._failed(Failure.REDIS, error)
            return False

    def _learn(self) -> None:
        if self._seal.learn(self._duty.key()):
            self._next = time.monotonic() + SETTLE_SECONDS

    def _work(self, line: _Line, *, held: bool) -> None:
        """Publish and watch for one turn."""
        until = time.monotonic() + TURN_SECONDS
        while time.monotonic() < until and not self._stop.is_set():
            if held and time.monotonic() >= self._next:
                period = 60 / self._settings.canaries.per_minute
                self._next = max(self._next, time.monotonic() - period) + period
                self._publish(line)
            for result in line.tail.poll(_POLL_MS):
                self._watch.take(result)
            self._watch.expire(_now())

    def _publish(self, line: _Line) -> None:
        canary = self._choose()
        if canary is None:
            return
        upload_id = CANARY_PREFIX + uuid.uuid4().hex
        try:
            value = copy_of(canary.picture, upload_id, self._settings.limits)
        except (OSError, ValueError, Unscreenable) as error:
            self._failed(Failure.PICTURE, error, picture=canary.picture.name)
            return
        headers = (
            ("content-type", b"image/jpeg"),
            ("upload-id", upload_id.encode()),
            (CANARY_HEADER, self._seal.sign(upload_id, value)),
        )
        self._watch.expect(upload_id, canary.reference.reference_id, _now())
        try:
            line.producer.send(value, upload_id.encode(), headers)
            line.producer.flush(_FLUSH_SECONDS)
        except StreamError:
            self._watch.forget(upload_id)
            raise
        metrics.CANARIES_PUBLISHED.inc()
        self._told = None

    def _choose(self) -> Canary | None:
        """The next picture, in turn."""
        folder = self._settings.canaries.folder
        if folder is not None and time.monotonic() >= self._next_scan:
            self._files = scan(folder)
            self._next_scan = time.monotonic() + SCAN_SECONDS
        paired = pair(self._files, self._references())
        self._tell(paired)
        if not paired.canaries:
            return None
        self._published += 1
        return paired.canaries[self._published % len(paired.canaries)]

    def _tell(self, paired: Paired) -> None:
        """Say what cannot be published, once, and again when it is something else."""
        metrics.CANARIES_UNPAIRED.labels("picture").set(len(paired.pictures))
        metrics.CANARIES_UNPAIRED.labels("reference").set(len(paired.references))
        unpaired = paired.pictures, paired.references
        if unpaired != self._unpaired and any(unpaired):
            logger.warning(
                "canaries_unpaired",
                pictures=[path.name for path in paired.pictures[:10]],
                references=[one.reference_id for one in paired.references[:10]],
                detail="pictures that are no reference, canary references without a picture",
            )
        self._unpaired = unpaired

    def _opened(self) -> _Line:
        """Both ways; the way back first, so that nothing comes back unseen."""
        kafka = self._settings.kafka
        with ExitStack() as stack:
            tail = stack.enter_context(closing(Tail(kafka, [kafka.topics.shadow], from_end=True)))
            producer = stack.enter_context(UploadProducer(kafka))
            return _Line(producer, tail, stack.pop_all())

    def _close(self) -> None:
        if self._line is not None:
            line, self._line = self._line, None
            line.open.close()

    def _rest(self) -> None:
        """Let another replica try."""
        self._next_try = time.monotonic() + REST_SECONDS
        metrics.CANARY_LEASE.set(0)
        try:
            self._duty.release()
            self._close()
        except Exception as error:  # noqa: BLE001 - it expires, and so do they
            self._failed(_kind(error), error)

    def _failed(self, failure: Failure, error: Exception, **about: str) -> None:
        """Count every failure; tell the log of the first of a kind."""
        metrics.CANARY_FAILURES.labels(failure.value).inc()
        if self._told != failure.value:
            self._told = failure.value
            detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
            logger.warning("canary_failed", reason=failure.value, detail=detail, **about)


def _kind(error: Exception) -> Failure:
    if isinstance(error, StoreError):
        return Failure.REDIS
    if isinstance(error, StreamError):
        return Failure.KAFKA
    if isinstance(error, StartupError):
        return Failure.FOLDER
    return Failure.UNEXPECTED


def _now() -> datetime:
    return datetime.now(UTC)
