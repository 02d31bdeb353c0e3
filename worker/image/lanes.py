"""Threads that decode, in two lanes, so that large pictures wait beside small ones.

Every picture starts in the first lane. When its header says that decoding takes long or much
memory, it moves to the lane of large pictures, which has fewer threads and half of the memory. So
a stream of large pictures delays other large pictures. One that has waited for too long in a long
queue is given up, so that large pictures do not fill all that may be in flight.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from worker.errors import DecodeError, UnscreenedReason
from worker.image.budget import ByteBudget
from worker.image.decode import Cost, Reserve
from worker.image.threads import started_pool
from worker.settings import Decode, Limits
from worker.telemetry import metrics

LARGE_PIXELS = 24_000_000
"""Pixels to decode, in all frames, from which a picture is large: about half a second. Phones take
pictures of 12 megapixels."""
LARGE_SHARE = 1 / 4
"""Share of `limits.in_flight_decoded_bytes` from which a picture is large."""
MOST_WAITING = 64
"""Large pictures that may wait for as long as it takes."""


class _Large(Exception):
    """A picture that does not belong into the first lane."""


class DecodeLanes:
    """Runs the decode stage."""

    def __init__(
        self, decode: Decode, limits: Limits, on_failure: Callable[[BaseException], None]
    ) -> None:
        """`on_failure` gets the error of a work that raised one: it is ours.

        Raises StartupError if there are too few threads.
        """
        self._wait_seconds = decode.large_wait_seconds
        self._large_bytes = LARGE_SHARE * limits.in_flight_decoded_bytes
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._waiting = 0
        half = limits.in_flight_decoded_bytes // 2
        self._memory = ByteBudget(half, metrics.DECODED_BYTES)
        self._large_memory = ByteBudget(half, metrics.DECODED_BYTES)
        self._closed = threading.Event()
        self._first = started_pool(decode.workers, "decode")
        self._large = started_pool(decode.large_workers, "decode-large")

    def hold(self, nbytes: int) -> contextlib.AbstractContextManager[None]:
        """Block until `nbytes` of the first lane's memory are free, hold them inside the `with`."""
        return self._memory.reserve(nbytes)

    def submit(self, work: Callable[[Reserve], None], done: Callable[[], None]) -> None:
        """Run `work` in a thread, then `done`, whatever came of it.

        What `work` gets is to be entered with the cost of a picture before it is decoded; where
        that raises, `work` must let the error pass: it runs once more in the other lane, or raises
        DecodeError where it waited there for too long. After `close` nothing runs any more.
        """
        self._submit(self._first, functools.partial(self._run, work, done, self._reserve))

    def close(self) -> None:
        """Start nothing more."""
        self._closed.set()
        for pool in (self._first, self._large):
            pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, run: Callable[[], None]) -> None:
        try:
            pool.submit(run)
        except RuntimeError as error:
            # After `close` the next owner begins anew. Else the upload would have no result.
            if not self._closed.is_set():
                self._on_failure(error)

    def _submit_large(self, work: Callable[[Reserve], None], done: Callable[[], None]) -> None:
        reserve = self._reserve_large(time.monotonic())

        def run() -> None:
            with self._lock:
                self._waiting -= 1
            metrics.LARGE_WAITING.set(self._waiting)
            self._run(work, done, reserve)

        with self._lock:
            self._waiting += 1
        metrics.LARGE_WAITING.set(self._waiting)
        self._submit(self._large, run)

    def _run(
        self, work: Callable[[Reserve], None], done: Callable[[], None], reserve: Reserve
    ) -> None:
        try:
            work(reserve)
        except _Large:
            self._submit_large(work, done)
            return
        except BaseException as error:  # noqa: BLE001 - reported, and ends the process
            self._on_failure(error)
        done()

    @contextmanager
    def _reserve(self, cost: Cost) -> Iterator[None]:
        """Raises _Large."""
        if cost.pixels > LARGE_PIXELS or cost.nbytes > self._large_bytes:
            raise _Large
        with self._memory.reserve(cost.nbytes):
            yield

    def _reserve_large(self, since: float) -> Reserve:
        @contextmanager
        def reserve(cost: Cost) -> Iterator[None]:
            """Raises DecodeError."""
            waited = time.monotonic() - since
            if waited > self._wait_seconds and self._waiting >= MOST_WAITING:
                detail = f"waited {waited:.0f} s behind other large pictures"
                raise DecodeError(UnscreenedReason.DECODE_TIMEOUT, detail)
            with self._large_memory.reserve(cost.nbytes):
                yield

        return reserve
