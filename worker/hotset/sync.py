"""The hot-set thread: keeps a mirror equal to the store, or says why it is not.

    restore     begin with the copy of an earlier process, if there is one
    head        no epoch           wait; if there was one, keep the mirror: `shrunk`
    load        note the head, read the snapshot, replay what was written meanwhile, swap
    follow      read the stream from where the mirror stands, apply, tell the heartbeat
    verify      at every quiet moment compare head and tallies; if anything differs, load again

A mirror never holds half a set: it is either moved on by whole changes or swapped for a complete
one. What is not swapped in, until a person has accepted the store as it is: a load that would lose
more than `max_shrink` of the usable references, or has so much less than the store says there is.
"""

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from worker.errors import StoreError
from worker.hotset.comparing import Difference, Known, difference
from worker.hotset.hot_set import HotSet
from worker.hotset.layout import Unusable
from worker.hotset.mirror import Mirror
from worker.hotset.policies import Lost
from worker.hotset.reader import BrokenHistory, Reader
from worker.hotset.types import Accepted, Entry, Head, Heartbeat, State, Tally
from worker.records import Version
from worker.settings import HotSetSettings
from worker.telemetry import log, metrics

logger = log.get(__name__)

HEARTBEAT_SECONDS = 1.0
RETRY_SECONDS = 0.5
COUNT_SECONDS = 60.0
SAVE_SECONDS = 60.0
SAVE_CHANGES = 5_000
"""After so many changes the copy is saved: well before the stream forgets them."""


class HotSetSync:
    """Runs the thread. `on_failure` is called, in it, with an error that ends it."""

    def __init__(
        self,
        reader: Reader,
        mirror: Mirror,
        settings: HotSetSettings,
        replica_name: str,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._reader = reader
        self._mirror = mirror
        self._settings = settings
        self._name, self._process = replica_name, uuid.uuid4().hex
        self._on_failure = on_failure
        self._state: State = "loading"
        self._ready = False
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._guarded, name="hot-set", daemon=True)
        self._equal_at = time.monotonic()
        self._telling = threading.Lock()
        self._heartbeat: Heartbeat | None = None  # the last one that was told
        self._told = -math.inf
        self._shrunk = False
        self._first: Head | None = None  # where the store stood when it was first looked at
        self._refused: Head | None = None  # where the store stood when it was not served
        self._verified: Head | None = None  # where the mirror was found to equal it
        self._missing: Difference = {}  # what could not be read of it
        self._lost = False  # it has fewer values than it says
        self._count_at = 0.0
        self._saved: Version | None = None
        self._saved_at = 0.0

    @property
    def state(self) -> State:
        """What the thread does."""
        return self._state

    @property
    def identity(self) -> str:
        """Of this process, as in its heartbeats."""
        return f"{self._name}:{self._process}"

    @property
    def ready(self) -> bool:
        """There is a mirror to search; it may be kept, not followed.

        The copy of an earlier process is one if it can be followed, or where Redis is away; where
        the store is not what it was, somebody should look first.
        """
        return self._ready

    @property
    def is_stale(self) -> bool:
        """The mirror was not known to equal the store for `hotset.stale_after_seconds`."""
        return time.monotonic() - self._equal_at > self._settings.stale_after_seconds

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and the heartbeat with it."""
        self._stop.set()
        self._thread.join()

    def wait_ready(self, timeout: float | None, should_stop: Callable[[], bool]) -> bool:
        """Wait until there is a mirror; False after `timeout` seconds or when told to stop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self.ready and not should_stop() and self._thread.is_alive():
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self._changed.wait(0.1)
        return self.ready

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - reported, and ends the process
            self._on_failure(error)

    def _run(self) -> None:
        self._restore()
        with self._beating():
            while not self._stop.is_set():
                try:
                    self._turn()
                except StoreError as error:
                    self._enter("away", detail=str(error))
                    self._stop.wait(RETRY_SECONDS)
                self._mirror.expire()
                self._measure()
        self._save()
        try:
            self._reader.replicas.leave(self.identity)
        except StoreError:
            logger.warning("heartbeat_left", detail="Redis is away; it expires by itself")

    def _turn(self) -> None:
        """Do one step, by what the head of the store says; at most a blocking read long."""
        head, mine = self._reader.head(), self._mirror.head
        self._first = self._first or head
        if head is None and mine is None:
            self._enter("waiting", detail="the store has no epoch: set a bank or add references")
            self._rest()
        elif head is None:
            self._keep("the store has lost its epoch")
        elif self._refused == head:
            self._keep("nothing was written since")
        elif mine is None and (keeper := self._keeper()):
            self._keep(f"replica {keeper.name} keeps {keeper.references} references")
        elif mine is None:
            self._load(head, "start")
        elif self._refused is not None:
            self._load(head, "shrunk")
        elif head.version.epoch != mine.version.epoch:
            self._load(head, "epoch")
        elif head.version < mine.version or (
            head.version == mine.version and head.mark != mine.mark
        ):
            self._load(head, "gap")  # a failover lost what we have
        else:
            self._follow(head, mine)

    def _follow(self, head: Head, mine: Head) -> None:
        """Apply what there is; when there is nothing, see that nothing is missing, and wait."""
        behind = head.version > mine.version
        if not behind and not self._equals(head):
            self._load(head, "digest")
            return
        wait = self._state in ("following", "damaged") and not behind
        self._tell_now_and_then()
        try:
            entries = self._reader.changes(mine.version, mine.mark, wait=wait)
        except BrokenHistory as broken:
            self._load(head, broken.reason)
            return
        if behind and not entries:
            self._load(head, "gap")  # trimmed, all of it
            return
        if any(Accepted() in entry.changes for entry in entries):
            self._load(head, "accepted")  # what cannot be read has gone, and no entry tells of it
            return
        self._shrunk = False
        self._mirror.apply(*entries)
        if (now := self._mirror.head) is not None and now.version >= head.version:
            self._go_on()  # it has all that there was when this turn began
        for entry in entries:
            metrics.CHANGE_SECONDS.observe(max(0.0, time.time() - entry.at))
        if entries:
            self._tell()
        self._save_now_and_then()

    def _go_on(self) -> None:
        """Follow; what the store lacks, or has damaged, was told and is waited for."""
        if self._missing or self._lost:
            what = "it lost values" if self._lost else "values of it cannot be read"
            self._enter("damaged", detail=f"the store is not as it should be: {what}")
        else:
            self._equal_at = time.monotonic()
            self._enter("following")

    def _equals(self, head: Head) -> bool:
        """Whether the mirror, which stands at `head`, has all that the store says there is.

        What a fresh load could not read is known to be missing. Now and then also whether the store
        itself still has as many values as it says.
        """
        if head == self._verified and time.monotonic() < self._count_at:
            return True
        missing = difference(head.tallies.of_model(self._reader.model.sha256), self._mirror)
        if missing not in ({}, self._missing):
            return False
        self._missing, self._verified = missing, head
        if time.monotonic() >= self._count_at:
            self._count_at = time.monotonic() + COUNT_SECONDS
            counted, latest = self._reader.counts(), self._reader.head()
            if latest == head:  # nobody wrote in between
                said = {kind: head.tallies.get(kind, Tally()).number for kind in counted}
                self._lost = counted != said
        return True

    def _load(self, head: Head, reason: str) -> None:
        """Read everything beside the mirror; swap if it may be served."""
        if self._mirror.head is None:
            self._enter("loading")
        metrics.RESYNCS.labels(reason).inc()
        began = time.monotonic()
        latest = [head]
        self._tell()  # who writes from here on sees a replica to wait for
        try:
            snapshot = self._reader.snapshot(head)
            fresh = self._mirror.build(snapshot, lambda: self._entries_since(head, latest))
        except BrokenHistory:
            # The next turn begins again with a later head; if there is none, it must not spin.
            self._enter("loading")
            self._rest()
            return
        except Unusable as error:
            # What was lost may be put back without a write that the head tells of.
            self._refused = None if isinstance(error, Lost) else head
            self._keep(str(error))
            return
        if why := self._objection(fresh, latest[-1]):
            fresh.copy.discard()
            self._refused = head
            self._keep(why)
            return
        self._mirror.swap(fresh)
        self._shrunk, self._lost, self._count_at = False, False, 0.0
        self._refused = self._verified = self._saved = None
        standing, said = self._mirror.head, latest[-1]
        self._missing = (
            difference(said.tallies.of_model(self._reader.model.sha256), self._mirror)
            if standing is not None and standing.version == said.version
            else {}
        )
        sizes = self._mirror.sizes()
        logger.info(
            "hot_set_loaded",
            reason=reason,
            version=str(standing and standing.version),
            references=sizes.references,
            unusable=sizes.unusable,
            seconds=round(time.monotonic() - began, 3),
        )
        self._go_on()
        self._save()
        self._tell()

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Where a step takes long, tell the last heartbeat anew: it must not look gone."""
        done = threading.Event()
        beating = threading.Thread(target=self._beat, args=(done,), name="heartbeat", daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            # Of Redis being away the hot-set thread itself will hear.
            with suppress(StoreError), self._telling:
                if self._heartbeat and time.monotonic() - self._told >= HEARTBEAT_SECONDS:
                    now = {"state": self._state, "at": datetime.now(UTC)}
                    self._reader.replicas.tell(self._heartbeat.model_copy(update=now))

    def _entries_since(self, head: Head, latest: list[Head]) -> list[Entry]:
        """All that was written while the snapshot was read. Raises BrokenHistory."""
        entries: list[Entry] = []
        version, mark = head.version, head.mark
        while more := self._reader.changes(version, mark, wait=False):
            entries += more
            version, mark = more[-1].version, more[-1].mark
        now = self._reader.head()
        if now is None or now.version.epoch != version.epoch:
            raise BrokenHistory("epoch")  # emptied while it was read
        latest.append(now)
        return entries

    def _objection(self, fresh: HotSet, said: Head) -> str | None:
        """Why what was loaded is not to be served; None if it is."""
        known = Known(self._mirror.head, self._mirror.sizes(), self._first)
        kept = known.head is not None and self._shrunk
        return known.objection(fresh, said, 0.0 if kept else self._settings.max_shrink)

    def _keeper(self) -> Heartbeat | None:
        """A replica that keeps what it has, for the store has not been accepted yet."""
        beats = self._reader.replicas.live()
        return next((one for one in beats if one.state == "shrunk" and one.references), None)

    def _restore(self) -> None:
        try:
            age = self._mirror.restore(self._reader.interpret)
        except StoreError as error:
            logger.warning("hot_set_copy_unusable", detail=str(error))
            return
        if age is not None:
            self._equal_at = time.monotonic() - max(0.0, age)
            head, sizes = self._mirror.head, self._mirror.sizes()
            self._saved = head.version if head else None
            logger.info(
                "hot_set_restored",
                version=str(head and head.version),
                references=sizes.references,
                age_seconds=round(age),
            )

    def _save_now_and_then(self) -> None:
        mine, saved = self._mirror.head, self._saved
        if mine is None or mine.version == saved:
            return
        many = saved is None or abs(mine.version.seq - saved.seq) >= SAVE_CHANGES
        if many or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        """Bring the copy up to date; without it the next start takes longer, and that is all."""
        head, age = self._mirror.head, time.monotonic() - self._equal_at
        if head is None:
            return
        try:
            if head.version == self._saved:
                self._mirror.set_age(age)
                return
            self._saved_at = time.monotonic()
            self._mirror.save(age)
            self._saved = head.version
        except (OSError, StoreError) as error:
            logger.warning("hot_set_copy_failed", detail=str(error))

    def _keep(self, why: str) -> None:
        """Go on with the mirror, if there is one, and ring, until `copysieve hotset accept`."""
        self._shrunk = True
        serving = self._mirror.sizes().references
        self._enter("shrunk", detail=f"{why}; serving {serving} references")
        self._rest()

    def _rest(self) -> None:
        self._tell_now_and_then()
        self._stop.wait(RETRY_SECONDS)

    def _tell_now_and_then(self) -> None:
        if time.monotonic() - self._told >= HEARTBEAT_SECONDS:
            self._tell()

    def _tell(self) -> None:
        head, sizes = self._mirror.head, self._mirror.sizes()
        heartbeat = Heartbeat(
            name=self._name,
            process=self._process,
            state=self._state,
            version=str(head.version) if head else None,
            digest=self._mirror.tallies().digest if head else None,
            references=sizes.references,
            rows=sizes.rows,
            unusable=sizes.unusable,
            model=self._reader.model.sha256,
            at=datetime.now(UTC),
        )
        with self._telling:  # what is old must not come after it
            self._reader.replicas.tell(heartbeat)
            self._heartbeat, self._told = heartbeat, time.monotonic()

    def _enter(self, state: State, detail: str = "") -> None:
        """Change the state, once, with a line in the log; some are an alarm.

        The next chance to tell the heartbeat is taken: who waits goes by the state.
        """
        if state == self._state:
            return
        alarm = state in ("away", "shrunk", "damaged")
        (logger.error if alarm else logger.info)("hot_set_" + state, detail=detail)
        with self._changed:
            self._state = state
            good = state in ("following", "damaged") or (state == "away" and not self._shrunk)
            self._ready |= good and self._mirror.head is not None
            self._changed.notify_all()
        self._told = -math.inf

    def _measure(self) -> None:
        head, sizes = self._mirror.head, self._mirror.sizes()
        metrics.REFERENCES.set(sizes.references)
        metrics.ROWS.set(sizes.rows)
        metrics.UNUSABLE.set(sizes.unusable)
        metrics.STALE.set(self.is_stale)
        metrics.SHRUNK.set(self._shrunk)
        metrics.DAMAGED.set(self._state == "damaged")
        if head is not None:
            metrics.EPOCH.set(head.version.epoch)
            metrics.SEQ.set(head.version.seq)
        if self._state == "following":
            metrics.SYNCED.set_to_current_time()
