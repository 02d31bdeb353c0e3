"""Large pictures wait beside the small ones."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from worker.errors import DecodeError, StartupError, UnscreenedReason
from worker.image.decode import Cost, Reserve
from worker.image.lanes import LARGE_PIXELS, MOST_WAITING, DecodeLanes
from worker.settings import Decode, Limits
from worker.telemetry import metrics

SMALL, LARGE = Cost(1000, 1000), Cost(1000, LARGE_PIXELS + 1)
LIMITS = Limits(image_pixels=1_000_000, in_flight_decoded_bytes=16_000_000)


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@contextmanager
def running(failures: list[BaseException], **settings: float) -> Iterator[DecodeLanes]:
    made = DecodeLanes(Decode.model_validate({"workers": 1} | settings), LIMITS, failures.append)
    try:
        yield made
    finally:
        made.close()


class Work:
    """A picture of a cost, whose decoding lasts until it is let go."""

    def __init__(self, cost: Cost, go: threading.Event | None = None) -> None:
        self.cost, self.go = cost, go
        self.error: DecodeError | None = None
        self.decoding, self.done = threading.Event(), threading.Event()
        self.thread = ""

    def __call__(self, reserve: Reserve) -> None:
        try:
            with reserve(self.cost):
                self.thread = threading.current_thread().name
                self.decoding.set()
                assert self.go is None or self.go.wait(10)
        except DecodeError as error:
            self.error = error

    def submit(self, lanes: DecodeLanes) -> "Work":
        lanes.submit(self, self.done.set)
        return self


def test_small_pictures_pass_any_number_of_large_ones(failures: list[BaseException]) -> None:
    go = threading.Event()
    with running(failures) as lanes:
        large = [Work(LARGE, go).submit(lanes) for _ in range(20)]
        assert large[0].decoding.wait(10)
        small = [Work(SMALL).submit(lanes) for _ in range(50)]
        assert all(one.done.wait(10) for one in small)
        assert not any(one.done.is_set() for one in large)
        assert metrics.LARGE_WAITING._value.get() == 19
        go.set()
        assert all(one.done.wait(10) for one in large)
        assert metrics.LARGE_WAITING._value.get() == 0
    assert {one.thread.split("_")[0] for one in large} == {"decode-large"}
    assert {one.thread.split("_")[0] for one in small} == {"decode"}
    assert not failures


@pytest.mark.parametrize(
    "cost",
    [
        Cost(1000, LARGE_PIXELS + 1),
        Cost(LIMITS.in_flight_decoded_bytes // 4 + 1, 1000),
    ],
)
def test_a_picture_is_large_by_its_work_or_by_its_memory(
    failures: list[BaseException], cost: Cost
) -> None:
    with running(failures) as lanes:
        just_below = Cost(LIMITS.in_flight_decoded_bytes // 4, LARGE_PIXELS)
        one, other = Work(cost).submit(lanes), Work(just_below).submit(lanes)
        assert one.done.wait(10)
        assert other.done.wait(10)
    assert one.thread.startswith("decode-large")
    assert not other.thread.startswith("decode-large")


def test_one_that_waits_too_long_in_a_long_queue_is_unscreened(
    failures: list[BaseException],
) -> None:
    go = threading.Event()
    with running(failures, large_wait_seconds=0.2) as lanes:
        first = Work(LARGE, go).submit(lanes)
        assert first.decoding.wait(10)
        others = [Work(LARGE).submit(lanes) for _ in range(MOST_WAITING + 5)]
        eventually = time.monotonic() + 10
        while metrics.LARGE_WAITING._value.get() < len(others):
            assert time.monotonic() < eventually
            time.sleep(0.01)
        time.sleep(0.3)
        go.set()
        assert all(one.done.wait(10) for one in others)
    assert first.error is None
    given_up = [one.error for one in others if one.error is not None]
    assert len(given_up) == 5  # the others are few enough
    for error in given_up:
        assert error.reason is UnscreenedReason.DECODE_TIMEOUT
        assert "large pictures" in str(error)


def test_an_error_of_ours_is_reported_and_what_was_held_is_let_go(
    failures: list[BaseException],
) -> None:
    def breaks(_reserve: Reserve) -> None:
        raise ZeroDivisionError

    def breaks_later(reserve: Reserve) -> None:
        with reserve(LARGE):
            raise ZeroDivisionError

    works: list[Callable[[Reserve], None]] = [breaks, breaks_later]
    with running(failures) as lanes:
        for work in works:
            done = threading.Event()
            lanes.submit(work, done.set)
            assert done.wait(10)
    assert [type(error) for error in failures] == [ZeroDivisionError] * 2


def test_after_the_end_nothing_runs(failures: list[BaseException]) -> None:
    with running(failures) as lanes:
        pass
    late = Work(SMALL).submit(lanes)
    assert not late.done.wait(0.2)
    assert not failures


def no_more_threads(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_work_needs_no_thread_that_the_system_may_refuse(
    failures: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(failures, workers=4) as lanes:
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
        works = [Work(cost).submit(lanes) for cost in (SMALL, LARGE)]
        assert all(work.done.wait(10) for work in works)
    assert not failures


def test_too_few_threads_are_an_error_at_the_start(
    failures: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    with (
        pytest.raises(StartupError, match=r"cannot start 1 threads \(decode\)"),
        running(failures),
    ):
        pass


def test_work_that_no_thread_takes_is_reported(failures: list[BaseException]) -> None:
    with running(failures) as lanes:
        lanes._first.shutdown()
        Work(SMALL).submit(lanes)
    assert [type(error) for error in failures] == [RuntimeError]
