"""All linked images on their way: who is fetched next, tried again, left waiting, given up.

    submit -> [line of its host] -> an attempt -> done(bytes)
                 ^                      |
                 |  backoff             +-> fails transiently: again, while its deadline has room
                 +----------------------+-> fails for good: done(FetchError)

Each host has one line. A thread takes one upload from a line for one attempt; an upload that waits,
for its turn, a retry or the end of an outage, holds no thread. No host holds more than half of the
threads, and neither do all hosts in doubt together, so that dead links leave room for live ones.

A host whose breaker is open is sent probes only. What waits for it ends as `host_unavailable`; in
an outage it waits instead, as if it had never been tried. Probes hold an eighth of the threads,
beside that half: a flood of links to hosts in doubt does not keep a host away that is back.
"""

import contextlib
import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worker.errors import FetchError, UnscreenedReason
from worker.image.breakers import Breakers, Rule
from worker.image.fetch import Fetcher, Origin
from worker.image.threads import started_pool
from worker.settings import Fetch
from worker.telemetry import log, metrics

TICK_SECONDS = 0.1
SWEEP_SECONDS = 1.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 8.0
ASLEEP_SECONDS = 2.0
"""Who has not looked at the clock for so long was stopped itself, or starved."""
WAITING_IN_DOUBT = 4
"""How many uploads of hosts in doubt, for each thread, may wait in a flood of dead links."""

type Result = bytes | FetchError | None

logger = log.get(__name__)


@dataclass(slots=True)
class _Line:
    """The uploads of one host. It lives as long as there are any."""

    origin: Origin
    waiting: "deque[_Upload]" = field(default_factory=deque)
    sent: int = 0
    backing_off: int = 0

    @property
    def uploads(self) -> int:
        return len(self.waiting) + self.sent + self.backing_off


@dataclass(slots=True, eq=False)
class _Upload:
    url: str
    wanted: Callable[[], bool]
    done: Callable[[Result], None]
    line: _Line
    arrived: float
    attempts: int = 0
    began: float = 0.0
    deadline: float = 0.0
    failure: FetchError | None = None

    def begin_anew(self, now: float) -> None:
        self.arrived = now
        self.attempts = 0
        self.failure = None


class FetchQueue:
    """Fetches with `fetch.workers` threads. `submit` never blocks.

    `on_failure` is told of an error of ours, which ends a thread.
    """

    def __init__(
        self,
        settings: Fetch,
        fetcher: Fetcher,
        on_failure: Callable[[BaseException], None],
        rule: Rule | None = None,
    ) -> None:
        self._seconds = settings.deadline_seconds
        self._threads = settings.workers
        self._half = max(1, settings.workers // 2)
        self._eighth = max(1, settings.workers // 8)
        self._fetcher = fetcher
        self._on_failure = on_failure
        self._breakers: Breakers[Origin] = Breakers(fetcher.is_named, rule or Rule())
        self._lock = threading.Lock()
        self._lines: dict[Origin, _Line] = {}
        self._lanes: tuple[dict[Origin, _Line], dict[Origin, _Line]] = ({}, {})
        """Lines whose turn comes, in order: of hosts that answer, and of hosts in doubt."""
        self._blocked: dict[Origin, _Line] = {}
        self._retries: list[tuple[float, int, _Upload]] = []
        self._numbers = itertools.count()
        self._sent = self._sent_in_doubt = self._probes = 0
        self._doubt_is_next = False
        self._ended: list[tuple[_Upload, Result]] = []
        self._sweep_due = 0.0
        self._looked = time.monotonic()
        self._woke = 0.0
        self._closed = threading.Event()
        self._pool = started_pool(settings.workers, "fetch")
        self._clock = threading.Thread(target=self._run, name="fetch-clock", daemon=True)
        self._clock.start()

    def submit(self, url: str, wanted: Callable[[], bool], done: Callable[[Result], None]) -> None:
        """Fetch an image.

        `done` is called once, on another thread or at once: with the bytes, with why they could not
        be had, or with None if `wanted`, which must be cheap, says that nobody needs them any more.
        Given bytes it may block for room.
        """
        try:
            origin = self._fetcher.origin(url)
        except FetchError as error:
            done(error)
            return
        with self._change() as now:
            self._breakers.arrived(origin, now)
            line = self._lines.setdefault(origin, _Line(origin))
            line.waiting.append(_Upload(url, wanted, done, line, now))
            self._place(line, now)

    def count_inline(self) -> None:
        """Tell of an upload that needs no fetch: it counts where shares of uploads do."""
        with self._lock:
            self._breakers.arrived(None, time.monotonic())

    @property
    def outage(self) -> bool:
        """Whether so much is away, and waited for, that no more uploads should be taken."""
        with self._lock:
            return self._breakers.outage and self._parked(time.monotonic()) > 0

    def close(self) -> None:
        """End the threads as their attempts end; what waits is left to the next owner."""
        self._closed.set()
        self._clock.join()
        with self._lock:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()

    # -- attempts --------------------------------------------------------------------------------

    def _attempt(self, upload: _Upload, *, in_doubt: bool, probe: bool) -> None:
        try:
            with metrics.STAGE_SECONDS.labels("fetch").time():
                result = self._fetch(upload)
            with self._change() as now:
                final = self._settle(upload, result, now)
            if final is not None:
                upload.done(final)
            with self._change() as now:
                upload.line.sent -= 1
                self._sent -= 1
                self._sent_in_doubt -= in_doubt
                self._probes -= probe
                self._place(upload.line, now)
        except BaseException as error:  # noqa: BLE001 - reported, and ends the process
            self._on_failure(error)

    def _fetch(self, upload: _Upload) -> bytes | FetchError:
        try:
            return self._fetcher.fetch(
                upload.url, max(TICK_SECONDS, upload.deadline - time.monotonic())
            )
        except FetchError as error:
            return error

    def _settle(self, upload: _Upload, result: bytes | FetchError, now: float) -> Result:
        """What the upload ends with; None: it goes on."""
        line = upload.line
        failure = result if isinstance(result, FetchError) and result.transient else None
        if failure is not None and upload.began < self._woke:
            upload.begin_anew(now)  # see `_wake`
            line.waiting.append(upload)
            return None
        opened = self._breakers.tell(
            line.origin, now, failed=failure is not None, picture=isinstance(result, bytes)
        )
        for scope in opened:
            metrics.BREAKERS_OPENED.labels(scope).inc()
            host = line.origin.host if scope == "host" else None
            logger.warning("image_host_away", scope=scope, host=host)
        if failure is None:
            return result
        upload.failure = failure
        if self._breakers.blocked(line.origin):
            line.waiting.append(upload)
            return None
        backoff = min(FIRST_BACKOFF_SECONDS * 2 ** (upload.attempts - 1), LONGEST_BACKOFF_SECONDS)
        jittered = backoff * random.uniform(0.5, 1)  # noqa: S311 - no secret
        due = now + max(jittered, failure.retry_after)
        if due >= upload.deadline:
            return _told(upload, failure)
        metrics.RETRIES.inc()
        heapq.heappush(self._retries, (due, next(self._numbers), upload))
        line.backing_off += 1
        return None

    # -- whose turn it is ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _change(self) -> Iterator[float]:
        """Change something now; then send what can be sent, and tell what has ended."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > ASLEEP_SECONDS:
                self._wake(now, now - self._looked)
            self._looked = now
            yield now
            if not self._closed.is_set():
                self._send(now)
            ended, self._ended = self._ended, []
        for upload, result in ended:
            upload.done(result)

    def _wake(self, now: float, slept: float) -> None:
        """While this process slept deadlines passed: that is nobody else's fault."""
        self._woke = now
        backing_off = (upload for _, _, upload in self._retries)
        waiting = (upload for line in self._lines.values() for upload in line.waiting)
        for upload in itertools.chain(backing_off, waiting):
            upload.arrived += slept
            upload.deadline += slept

    def _place(self, line: _Line, now: float) -> None:
        """Put a line where it belongs, behind the others there.

        A blocked one keeps its place until it is probed, or busy hosts would never come to it.
        """
        blocked = self._breakers.blocked(line.origin)
        for place in self._lanes if blocked and line.uploads else (*self._lanes, self._blocked):
            place.pop(line.origin, None)
        if not line.uploads:
            self._lines.pop(line.origin, None)
        elif blocked:
            self._blocked.setdefault(line.origin, line)
        elif line.waiting and line.sent < self._half:
            in_doubt = self._breakers.in_doubt(line.origin, now)
            self._lanes[in_doubt][line.origin] = line

    def _send(self, now: float) -> None:
        while self._sent < self._threads and (line := self._next(now)) is not None:
            self._send_one(line, now)

    def _next(self, now: float) -> _Line | None:
        """Lanes take turns, and the lines in them."""
        self._doubt_is_next = not self._doubt_is_next
        for in_doubt in (self._doubt_is_next, not self._doubt_is_next):
            lane = self._lanes[in_doubt]
            while lane and not (in_doubt and self._sent_in_doubt >= self._half):
                line = next(iter(lane.values()))
                self._trim(line, now)
                self._place(line, now)
                if line.origin in lane:
                    return line
        return None

    def _send_one(self, line: _Line, now: float, *, probe: bool = False) -> None:
        upload = line.waiting.popleft()
        # Told to the attempt, not the upload: of that the next one may begin before this one ends.
        in_doubt = not probe and self._breakers.in_doubt(line.origin, now)
        upload.attempts += 1
        upload.began = now
        if upload.attempts == 1:
            upload.deadline = now + self._seconds
        line.sent += 1
        self._sent += 1
        self._sent_in_doubt += in_doubt
        self._probes += probe
        self._place(line, now)
        self._pool.submit(self._attempt, upload, in_doubt=in_doubt, probe=probe)

    def _trim(self, line: _Line, now: float) -> None:
        """Drop from the head of a line what is not to be fetched any more."""
        while line.waiting:
            upload = line.waiting[0]
            if not upload.wanted():
                self._ended.append((upload, None))
            elif upload.failure is not None and now >= upload.deadline:
                self._ended.append((upload, _told(upload, upload.failure)))
            else:
                return
            line.waiting.popleft()

    # -- as time passes --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed.wait(TICK_SECONDS):
                with self._change() as now:
                    self._tick(now)
        except BaseException as error:  # noqa: BLE001 - reported, and ends the process
            self._on_failure(error)

    def _tick(self, now: float) -> None:
        self._breakers.judge(now)
        while self._retries and self._retries[0][0] <= now:
            upload = heapq.heappop(self._retries)[2]
            upload.line.backing_off -= 1
            upload.line.waiting.append(upload)
            self._place(upload.line, now)
        for line in list(self._blocked.values()):
            self._look_after(line, now)
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP_SECONDS
            for line in list(self._lines.values()):
                self._sweep(line, now)
            if self._breakers.flooded(now):
                self._cut(now)
        metrics.HOSTS_OPEN.set(len(self._breakers.open_hosts))
        metrics.OUTAGE.set(self._breakers.outage)
        metrics.PARKED.set(self._parked(now))

    def _look_after(self, line: _Line, now: float) -> None:
        """Probe a blocked host, with another upload each time; the others wait or end."""
        origin = line.origin
        if not self._breakers.blocked(origin):
            self._place(line, now)
            return
        waits = self._breakers.waits(origin, now)
        for upload in line.waiting if waits else ():
            upload.begin_anew(now)
        self._trim(line, now)
        room = self._sent < self._threads and (
            self._probes < self._eighth or self._fetcher.is_named(origin)
        )
        if line.waiting and not line.sent and room and self._breakers.probe(origin, now):
            line.waiting[0].begin_anew(now)
            self._blocked.pop(origin, None)
            self._send_one(line, now, probe=True)
        if not waits:
            gone = FetchError(UnscreenedReason.HOST_UNAVAILABLE, f"{origin.host}: away")
            self._ended += [(upload, gone) for upload in line.waiting]
            line.waiting.clear()
        self._place(line, now)

    def _sweep(self, line: _Line, now: float) -> None:
        """Drop uploads that nobody wants, and those of a host in doubt that wait for too long."""
        patient = self._breakers.may_wait(line.origin, now)
        kept = deque[_Upload]()
        for upload in line.waiting:
            if not upload.wanted():
                self._ended.append((upload, None))
            elif not (patient or upload.failure) and now - upload.arrived > self._seconds:
                self._ended.append((upload, _too_many(upload)))
            else:
                kept.append(upload)
        line.waiting = kept
        if not line.uploads:
            self._place(line, now)

    def _cut(self, now: float) -> None:
        """End the oldest uploads of hosts in doubt, but for four a thread.

        A flood of dead links would else fill all the room there is for uploads in flight.
        """
        doubtful = {
            name: line
            for name, line in self._lines.items()
            if not self._breakers.may_wait(name, now)
        }
        waiting = [upload for line in doubtful.values() for upload in line.waiting]
        waiting += [one for _, _, one in self._retries if one.line.origin in doubtful]
        waiting.sort(key=lambda upload: upload.arrived)
        cut = set(waiting[: max(0, len(waiting) - WAITING_IN_DOUBT * self._threads)])
        if not cut:
            return
        self._ended += [(upload, _too_many(upload)) for upload in cut]
        for line in doubtful.values():
            line.waiting = deque(upload for upload in line.waiting if upload not in cut)
        kept = [one for one in self._retries if one[2] not in cut]
        for _, _, upload in self._retries:
            upload.line.backing_off -= upload in cut
        self._retries = kept
        heapq.heapify(self._retries)
        for line in doubtful.values():
            self._place(line, now)

    def _parked(self, now: float) -> int:
        """Uploads that wait for the end of an outage, and those that probe for it."""
        if not self._breakers.outage:
            return 0
        away = self._lines if self._breakers.all_open else self._breakers.open_hosts
        return sum(
            self._lines[one].uploads
            for one in away
            if one in self._lines and self._breakers.waits(one, now)
        )


def _too_many(upload: _Upload) -> FetchError:
    host = upload.line.origin.host
    late = f"{host}: no answer so far, and too many others like it"
    return FetchError(UnscreenedReason.HOST_UNAVAILABLE, late)


def _told(upload: _Upload, failure: FetchError) -> FetchError:
    """The last failure, with how often it was tried."""
    if upload.attempts == 1:
        return failure
    return FetchError(failure.reason, f"{failure}, {upload.attempts} attempts")
