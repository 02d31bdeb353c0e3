"""The budget's bound, its fairness, and the request that is larger than all of it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.image.budget import ByteBudget
from worker.telemetry import metrics


class Holder:
    """Reserves in a thread of its own, until told to let go."""

    def __init__(self, budget: ByteBudget, nbytes: int) -> None:
        self.holding, self._release = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(budget, nbytes), daemon=True)
        self._thread.start()

    def _hold(self, budget: ByteBudget, nbytes: int) -> None:
        with budget.reserve(nbytes):
            self.holding.set()
            self._release.wait()

    def release(self) -> None:
        self._release.set()
        self._thread.join()


def queued(budget: ByteBudget, count: int) -> None:
    """Return once so many wait."""
    for _ in range(5000):
        if len(budget._waiting) == count:
            return
        time.sleep(0.001)
    raise AssertionError(f"{len(budget._waiting)} wait, not {count}")


def test_what_fits_passes_and_the_gauge_follows() -> None:
    before = metrics.DECODED_BYTES._value.get()
    budget = ByteBudget(10, metrics.DECODED_BYTES)
    with budget.reserve(6), budget.reserve(4):
        assert metrics.DECODED_BYTES._value.get() == before + 10
    assert metrics.DECODED_BYTES._value.get() == before


def test_first_come_first_served() -> None:
    """A small request that would fit does not overtake a large one that waits."""
    budget = ByteBudget(10, metrics.DECODED_BYTES)
    first = Holder(budget, 6)
    first.holding.wait()
    large = Holder(budget, 10)
    queued(budget, 1)
    small = Holder(budget, 1)
    queued(budget, 2)
    first.release()
    large.holding.wait()
    queued(budget, 1)
    assert not small.holding.is_set()
    large.release()
    small.holding.wait()
    small.release()


def test_one_oversized_request_passes_alone() -> None:
    budget = ByteBudget(10, metrics.DECODED_BYTES)
    first = Holder(budget, 1)
    first.holding.wait()
    oversized = Holder(budget, 1000)
    queued(budget, 1)
    assert not oversized.holding.is_set()
    first.release()
    oversized.holding.wait()
    after = Holder(budget, 1)
    queued(budget, 1)
    assert not after.holding.is_set()
    oversized.release()
    after.holding.wait()
    after.release()


def test_an_error_inside_gives_the_bytes_back() -> None:
    budget = ByteBudget(10, metrics.DECODED_BYTES)

    def fail() -> None:
        with budget.reserve(10):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with budget.reserve(10):
        pass


def test_many_threads_never_exceed_the_limit() -> None:
    budget, lock = ByteBudget(100, metrics.DECODED_BYTES), threading.Lock()
    held, most = 0, 0

    def work(turn: int) -> None:
        nonlocal held, most
        nbytes = 1 + turn * 37 % 60
        with budget.reserve(nbytes):
            with lock:
                held += nbytes
                most = max(most, held)
            time.sleep(0.0002)
            with lock:
                held -= nbytes

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(500)))
    assert 60 < most <= 100
    assert held == 0
