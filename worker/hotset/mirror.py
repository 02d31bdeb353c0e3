"""A replica's copy of the hot set: what the pipeline searches while changes come in."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from worker.errors import StoreError
from worker.hardware import cpu_computes, release_memory
from worker.hotset.found import Bars
from worker.hotset.hot_set import Against, Sizes
from worker.hotset.index import Index
from worker.hotset.kept import KeptHotSet
from worker.hotset.local_copy import LocalCopies, LocalCopy
from worker.hotset.matrix import Matrix
from worker.hotset.types import (
    Calibration,
    Entry,
    Head,
    Hit,
    Reference,
    Snapshot,
    Tallies,
)
from worker.records import Model

_TURN_SECONDS = 0.01
"""A search waits so long, at most, for changes that come in a crowd."""

type Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a batch was compared with, and for each query its hits, best first.

    No other hit of a query is more similar than its `unseen`; -inf where it has all.
    """

    hits: list[list[Hit]]
    unseen: list[float]
    against: Against


@dataclass(frozen=True, slots=True)
class BanksResult:
    """For each look of an upload the best hits of every bank, best first.

    Of the enforced references of the banks in `cut`, some that reach the bar may be missing.
    """

    hits: list[list[Hit]]
    cut: frozenset[str]
    against: Against


class Mirror:
    """The hot set of one model in memory, with its index on the device. Thread-safe.

    One thread makes the changes, any thread may search. Empty of everything, even of a version,
    until the first `load` or `restore`. `folder` keeps a copy for the next process.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device | str,
        folder: Path | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._model = model
        self._device = torch.device(device)
        self._clock = clock
        self._copies = LocalCopies(folder, model.sha256[:16])
        self._turns = _Turns()
        self._set: KeptHotSet | None = None
        self.on_prepared: Callable[[Against], object] | None = None
        """Is called with what decisions will soon go by, by the thread that makes the changes."""

    @property
    def head(self) -> Head | None:
        """Where in the store's history the mirror stands; None before the first `load`."""
        return self._set.head if self._set else None

    def tallies(self) -> Tallies:
        """Of all that it holds. Raises StoreError before `load`."""
        with self._turns.change():
            return self._loaded().tallies()

    def sizes(self) -> Sizes:
        """How much is there now."""
        with self._turns.change():
            return self._set.sizes() if self._set else Sizes(0, 0, 0)

    def load(self, snapshot: Snapshot, entries: Iterable[Entry] = ()) -> None:
        """Build another hot set beside the present one, and swap."""
        self.swap(self.build(snapshot, lambda: entries))

    def build(self, snapshot: Snapshot, since: Callable[[], Iterable[Entry]]) -> KeptHotSet:
        """Another hot set, which nobody searches as yet.

        `since` gives what was written while the snapshot was read. Raises what that raises, and
        StoreError.
        """
        fresh = self._empty(self._copies.fresh(self._model.dims))
        try:
            fresh.fill(snapshot, self._clock())
            for entry in since():
                fresh.apply(entry, self._clock())
            fresh.matrix.look()
        except BaseException:
            fresh.copy.discard()
            raise
        return fresh

    def swap(self, fresh: KeptHotSet) -> None:
        """Search this hot set from now on."""
        if self.on_prepared is not None:
            self.on_prepared(fresh.against())
        with self._turns.change():
            old, self._set = self._set, fresh
        if old is not None:
            old.copy.close()
        del old
        release_memory()

    def restore(self, interpret: Callable[[bytes], Calibration]) -> float | None:
        """Begin with the copy that an earlier process has kept, and tell how old it is in seconds.

        `interpret` reads the artefact of a calibration. None: there is no copy. Raises StoreError
        where it cannot be used.
        """
        copy = self._copies.newest(self._model.dims)
        if copy is None:
            return None
        kept = self._empty(copy)
        kept.restore(self._clock(), interpret)
        self.swap(kept)
        return copy.age

    def close(self) -> None:
        """Leave the folder to another process; nothing can be searched any more."""
        with self._turns.change():
            if self._set is not None:
                self._set.copy.close()
            self._set = None
        self._copies.close()

    def save(self, age: float = 0.0) -> None:
        """Bring the copy up to date; it equalled the store `age` seconds ago. Raises OSError."""
        self._loaded().save(self._turns.change)
        self.set_age(age)
        self._copies.keep_only(self._loaded().copy)

    def set_age(self, age: float) -> None:
        """Say that what is saved equalled the store `age` seconds ago. Raises OSError."""
        self._loaded().copy.set_age(age)

    def apply(self, *entries: Entry) -> None:
        """Go on by entries, oldest first; applying one twice does no more.

        Searches have their turn in between. Raises StoreError before `load`.
        """
        coming = deque(entries)
        while coming:
            self._loaded().prepare(coming[0], self._clock(), self._turns.change)
            self._foresee(coming[0])
            with self._turns.change():
                until = time.monotonic() + _TURN_SECONDS
                while True:
                    self._loaded().apply(coming.popleft(), self._clock())
                    if not coming or time.monotonic() >= until:
                        break
                    if self._loaded().takes_long(coming[0]):
                        break
            if coming:
                self._turns.let_search()

    def _foresee(self, entry: Entry) -> None:
        if self.on_prepared is None:
            return
        with self._turns.change():
            foreseen = self._loaded().foresee(entry)
        if foreseen is not None:
            self.on_prepared(foreseen)

    def expire(self) -> None:
        """Hide the rows of references that have expired. A search does so too, but unprepared."""
        if self._set is not None:
            self._set.prepare_expiry(self._clock(), self._turns.change)
            with self._turns.change():
                self._set.expire(self._clock())

    @property
    def canaries(self) -> list[Reference]:
        """The references that are canaries, by id."""
        with self._turns.change():
            return self._set.canaries() if self._set else []

    def search(
        self,
        queries: Tensor,
        tenants: Sequence[str | None],
        k: int,
        canaries: Sequence[bool] | None = None,
    ) -> SearchResult:
        """Return the `k` best hits of each query among the banks that its tenant is screened by.

        `queries` is fp32 [n, dims] on the device, L2-normalised; `tenants` has n entries, None
        for an upload without one: it is screened against all banks. `canaries` tells which queries
        are canaries (None: none is): references that are do not exist for the others. A reference
        comes once for each of its views. Raises StoreError before `load`.
        """
        with self._turns.search():
            hot_set = self._loaded()
            hot_set.expire(self._clock())
            found = hot_set.search(queries, tenants, k, canaries or [False] * len(tenants))
            hits, unseen = [one.hits for one in found], [one.unseen for one in found]
            return SearchResult(hits, unseen, hot_set.against())

    def search_banks(
        self,
        queries: Tensor,
        tenant: str | None,
        bars: Callable[[Against], Bars],
        budget: int,
        *,
        canary: bool = False,
    ) -> BanksResult:
        """Return the best hits of every bank for the looks of one upload, however many others have.

        `queries` is as in `search`. `bars` says what is wanted of the hot set as it is now; it
        must not search. The banks share `budget` hits; each has its best one in any case. Raises
        StoreError before `load`.
        """
        with self._turns.search():
            hot_set = self._loaded()
            hot_set.expire(self._clock())
            against = hot_set.against()
            hits, cut = hot_set.search_banks(queries, tenant, bars(against), budget, canary=canary)
            return BanksResult(hits, cut, against)

    def rows_of(self, hits: Sequence[Hit]) -> Tensor:
        """Return the descriptors that were hit, as stored: fp32 [n, dims] on the device.

        A row is NaN if its reference was changed or removed after the search that found it.
        Raises StoreError before `load`.
        """
        with self._turns.search():
            rows = self._loaded().rows_of(hits)
        return torch.from_numpy(rows).to(self._device)

    def against(self) -> Against:
        """What a search would be decided by now. Raises StoreError before `load`."""
        with self._turns.search():
            self._loaded().expire(self._clock())
            return self._loaded().against()

    def _empty(self, copy: LocalCopy) -> KeptHotSet:
        index = Index(self._model.dims, self._device, precision(self._device))
        return KeptHotSet(self._model, Matrix(index, copy))

    def _loaded(self) -> KeptHotSet:
        if self._set is None:
            raise StoreError("the hot set is not loaded")
        return self._set


class _Turns:
    """A lock that changes get before the next search: searches come one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Lock()
        self._waiting = threading.Condition()
        self._searches = 0  # that wait for their turn

    @contextmanager
    def search(self) -> Iterator[None]:
        self._expect(1)
        with self._gate:  # a change that waits has it
            self._lock.acquire()
        self._expect(-1)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def change(self) -> Iterator[None]:
        with self._gate, self._lock:
            yield

    def let_search(self) -> None:
        """Wait until no search waits: Python's locks would let this thread in again first."""
        with self._waiting:
            self._waiting.wait_for(lambda: not self._searches, timeout=1.0)

    def _expect(self, more: int) -> None:
        with self._waiting:
            self._searches += more
            self._waiting.notify_all()


def precision(device: torch.device) -> torch.dtype:
    """What the index is kept in: 16 bits where the device computes in them, else fp32."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if cpu_computes("bf16") else torch.float32
