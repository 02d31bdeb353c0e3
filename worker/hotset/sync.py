"""The hot-set thread: keeps a mirror at the head of the store's history.

    head        no epoch           wait; if there was one, keep the mirror: `shrunk`
    load        note the head, read the snapshot, replay what was written meanwhile, swap
    follow      read the stream from where the mirror stands, apply, tell the heartbeat
    verify      at every quiet moment compare the head; if anything does not fit, load again

A mirror never holds half a set: it is either moved on by whole changes or swapped for a complete
one. A load that would lose more than `max_shrink` of the usable references is not swapped in until
a person has accepted the store as it is, or it holds as many as the mirror again.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from worker.errors import StoreError
from worker.hotset.mirror import Mirror
from worker.hotset.reader import BrokenHistory, Reader
from worker.hotset.types import Entry, Head, Heartbeat, Snapshot, State
from worker.settings import HotSetSettings
from worker.telemetry import log, metrics

logger = log.get(__name__)

HEARTBEAT_SECONDS = 1.0
RETRY_SECONDS = 0.5


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
        self._name = replica_name
        self._on_failure = on_failure
        self._state: State = "loading"
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._guarded, name="hot-set", daemon=True)
        self._in_touch = time.monotonic()
        self._told = -HEARTBEAT_SECONDS
        self._shrunk = False
        self._refused: Head | None = None  # where the store stood when it had shrunk

    @property
    def state(self) -> State:
        """What the thread does."""
        return self._state

    @property
    def ready(self) -> bool:
        """There is a mirror to search; it may be kept, not followed."""
        return self._mirror.head is not None

    @property
    def is_stale(self) -> bool:
        """Redis has been away for longer than `hotset.stale_after_seconds`."""
        return time.monotonic() - self._in_touch > self._settings.stale_after_seconds

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
        while not self._stop.is_set():
            try:
                self._turn()
            except StoreError as error:
                self._enter("away", detail=str(error))
                self._stop.wait(RETRY_SECONDS)
            self._mirror.expire()
            self._measure()
        try:
            self._reader.leave(self._name)
        except StoreError:
            logger.warning("heartbeat_left", detail="Redis is away; it expires by itself")

    def _turn(self) -> None:
        """Do one step, by what the head of the store says; at most a blocking read long."""
        head = self._reader.head()
        self._in_touch = time.monotonic()
        mine = self._mirror.head
        if head is None and mine is None:
            self._enter("waiting", detail="the store has no epoch: set a bank or add references")
            self._rest()
        elif head is None:
            self._keep("the store has lost its epoch")
        elif mine is None:
            self._load(head, "start")
        elif self._refused == head:
            self._keep("nothing was written since")
        elif self._refused is not None:
            self._load(head, "shrunk")
        elif head.version.epoch != mine.version.epoch:
            self._load(head, "epoch")
        elif head.version < mine.version or (head.version == mine.version and head != mine):
            self._load(head, "gap")  # a failover lost what we have
        else:
            self._follow(head, mine)

    def _follow(self, head: Head, mine: Head) -> None:
        """Apply what there is; when there is nothing, wait for it."""
        behind = head.version > mine.version
        wait = self._state == "following" and not behind
        self._tell_now_and_then()
        try:
            entries = self._reader.changes(mine.version, mine.mark, wait=wait)
        except BrokenHistory as broken:
            self._load(head, broken.reason)
            return
        if behind and not entries:
            self._load(head, "gap")  # trimmed, all of it
            return
        self._in_touch = time.monotonic()
        self._shrunk = False
        self._enter("following")
        for entry in entries:
            self._mirror.apply(entry)
            metrics.CHANGE_SECONDS.observe(max(0.0, time.time() - entry.at))
        if entries:
            self._tell()

    def _load(self, head: Head, reason: str) -> None:
        """Read everything beside the mirror; swap if it may be served."""
        if self._mirror.head is None:
            self._enter("loading")
        metrics.RESYNCS.labels(reason).inc()
        began = time.monotonic()
        snapshot = self._reader.snapshot(head)
        try:
            entries = self._entries_since(head)
        except BrokenHistory:
            # The next turn begins again with a later head; if there is none, it must not spin.
            self._enter("loading")
            self._rest()
            return
        if not self._may_serve(snapshot):
            self._refused = head
            self._keep(f"{snapshot.usable} usable references are left")
            return
        self._mirror.load(snapshot, entries)
        self._shrunk, self._refused = False, None
        self._in_touch = time.monotonic()
        logger.info(
            "hot_set_loaded",
            reason=reason,
            version=str(entries[-1].version if entries else head.version),
            references=self._mirror.sizes.references,
            unusable=self._mirror.sizes.unusable,
            seconds=round(time.monotonic() - began, 3),
        )
        self._enter("following")
        self._tell()

    def _entries_since(self, head: Head) -> list[Entry]:
        """All that was written while the snapshot was read. Raises BrokenHistory."""
        entries: list[Entry] = []
        version, mark = head.version, head.mark
        while more := self._reader.changes(version, mark, wait=False):
            entries += more
            version, mark = more[-1].version, more[-1].mark
        latest = self._reader.head()
        if latest is None or latest.version.epoch != version.epoch:
            raise BrokenHistory("epoch")  # emptied while it was read
        return entries

    def _may_serve(self, snapshot: Snapshot) -> bool:
        """Whether this is not a sharply shrunken set that nobody has accepted."""
        mine, have = self._mirror.head, self._mirror.sizes.references
        tolerated = 0.0 if self._shrunk else self._settings.max_shrink
        if mine is None or snapshot.usable >= (1 - tolerated) * have:
            return True
        return snapshot.head.accepted not in ("", mine.accepted)

    def _keep(self, why: str) -> None:
        """Go on with the mirror, and ring, until `copysieve hotset accept`."""
        self._shrunk = True
        self._enter("shrunk", detail=f"{why}; serving {self._mirror.sizes.references} references")
        self._rest()

    def _rest(self) -> None:
        self._tell_now_and_then()
        self._stop.wait(RETRY_SECONDS)

    def _tell_now_and_then(self) -> None:
        if time.monotonic() - self._told >= HEARTBEAT_SECONDS:
            self._tell()

    def _tell(self) -> None:
        head, sizes = self._mirror.head, self._mirror.sizes
        self._reader.tell(
            Heartbeat(
                name=self._name,
                state=self._state,
                version=str(head.version) if head else None,
                references=sizes.references,
                rows=sizes.rows,
                unusable=sizes.unusable,
                model=self._reader.model.sha256,
                at=datetime.now(UTC),
            )
        )
        self._told = time.monotonic()

    def _enter(self, state: State, detail: str = "") -> None:
        """Change the state, once, with a line in the log; `shrunk` is an alarm."""
        if state == self._state:
            return
        alarm = state in ("away", "shrunk")
        (logger.error if alarm else logger.info)("hot_set_" + state, detail=detail)
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _measure(self) -> None:
        head, sizes = self._mirror.head, self._mirror.sizes
        metrics.REFERENCES.set(sizes.references)
        metrics.ROWS.set(sizes.rows)
        metrics.STALE.set(self.is_stale)
        metrics.SHRUNK.set(self._shrunk)
        if head is not None:
            metrics.EPOCH.set(head.version.epoch)
            metrics.SEQ.set(head.version.seq)
        if self._state == "following":
            metrics.SYNCED.set_to_current_time()
