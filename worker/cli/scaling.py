"""What `copysieve bench hotset` measures: a large hot set in Redis, on disk, and in search."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import batched
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worker.hardware import share_interpreter
from worker.hotset.store import CHUNK
from worker.hotset.types import Bank, Descriptors, Reference
from worker.records import Model
from worker.settings import HotSetSettings, Log, Redis

if TYPE_CHECKING:
    from worker.hotset.mirror import Mirror
    from worker.hotset.store import Store

QUERIES = 32
"""In a batch; half of them are copies of references, half are like nothing."""
BEST = 10
TIE = 1e-6
ADDED = 10_000
ADDED_PER_SECOND = 500
BANK = Bank(name="bench", label="bench", severity="low", threshold=0.9, views=("plain",))

_BLOCK = 4096
_ADDED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_START_SECONDS = 600.0

type Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `references` of a model with `dims`, in a Redis, copied to a folder."""

    url: str
    folder: Path
    references: int
    dims: int
    rounds: int

    @property
    def model(self) -> Model:
        """No model at all: its descriptors are random."""
        return Model(name="random", sha256="0" * 64, dims=self.dims, preprocessing="none")


def descriptors(plan: Plan, begin: int, end: int) -> npt.NDArray[np.float16]:
    """Random unit vectors as stored, [end - begin, dims]; `begin` counts whole blocks."""
    blocks = []
    for block in range(begin // _BLOCK, -(-end // _BLOCK)):
        rng = np.random.default_rng(block)
        rows = rng.standard_normal((_BLOCK, plan.dims), dtype=np.float32)
        blocks.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
    return np.concatenate(blocks)[: end - begin]


def references(plan: Plan, begin: int, end: int) -> Iterator[tuple[Reference, Descriptors]]:
    """References with them, each in one view."""
    for numbers in batched(range(begin, end), _BLOCK):
        rows = descriptors(plan, numbers[0], numbers[-1] + 1)
        for number, row in zip(numbers, rows, strict=True):
            reference = Reference(
                reference_id=f"bench-{number:08}",
                bank=BANK.name,
                added_by="bench",
                added_at=_ADDED_AT,
                sha256=f"{number:064x}",
            )
            yield reference, Descriptors(("plain",), row[None])


def fill(plan: Plan, on_progress: Progress) -> dict[str, float]:
    """Write them as `copysieve refs import` does; how long it took, and Redis' memory for each."""
    with closing(_store(plan)) as store:
        store.set_bank(BANK)
        before, began = _redis_bytes(store), time.monotonic()
        for numbers in batched(range(plan.references), _BLOCK):
            own = references(plan, numbers[0], numbers[-1] + 1)
            store.add_references(own, plan.model)
            on_progress(len(numbers))
        took = time.monotonic() - began
        stored = _redis_bytes(store) - before
    return {
        "import_s": round(took, 2),
        "redis_bytes_per_reference": round(stored / plan.references),
    }


def in_a_process[R](work: Callable[[Plan], R], plan: Plan) -> R:
    """In a process of its own, so that memory and caches are those of a start."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, plan).result()


def start_from_redis(plan: Plan) -> dict[str, float]:
    """A first start: all from Redis, and the copy is written beside it."""
    began_with = _anonymous_bytes()
    with ExitStack() as stack:
        took, mirror = _started(plan, stack)
        held = _anonymous_bytes() - began_with
        rows = mirror.sizes().rows
    return {
        "start_from_redis_s": took,
        "bytes_per_dimension": round(held / (rows * plan.dims), 3),
    }


def start_and_search(plan: Plan) -> dict[str, Any]:
    """A start with the copy of an earlier process; then searches."""
    with ExitStack() as stack:
        took, mirror = _started(plan, stack)
        return {"start_from_local_s": took, **_searched(plan, mirror)}


def start_and_add(plan: Plan) -> dict[str, Any]:
    """The same once more; then searches while references are added."""
    with ExitStack() as stack:
        return _added_to(plan, _started(plan, stack)[1])


def _started(plan: Plan, stack: ExitStack) -> tuple[float, "Mirror"]:
    """Seconds until a mirror follows, as a worker's would."""
    from worker.hotset.mirror import Mirror  # noqa: PLC0415 - imports torch
    from worker.hotset.sync import HotSetSync  # noqa: PLC0415
    from worker.scoring import artefact  # noqa: PLC0415
    from worker.telemetry import log  # noqa: PLC0415

    log.configure(Log(level="error"))
    share_interpreter()
    store = stack.enter_context(closing(_store(plan)))
    began = time.monotonic()
    mirror = Mirror(plan.model, "cpu", plan.folder)
    sync = HotSetSync(
        store.of_model(plan.model, artefact.read_for),
        mirror,
        HotSetSettings(),
        "bench",
        on_failure=_raise,
    )
    sync.start()
    stack.callback(sync.stop)
    while sync.state != "following":
        if time.monotonic() - began > _START_SECONDS:
            raise TimeoutError(f"the mirror is {sync.state}")
        time.sleep(0.005)
    return round(time.monotonic() - began, 2), mirror


def _searched(plan: Plan, mirror: "Mirror") -> dict[str, Any]:
    """Search by the mirror and by faiss, in turns, and whether they find the same."""
    import torch  # noqa: PLC0415 - takes seconds to import

    queries = _queries(plan)
    mine, theirs = torch.from_numpy(queries), _Faiss(plan)
    ours_ms, faiss_ms = list[float](), list[float]()
    for _ in range(1 + plan.rounds):  # the first warms both up
        ours, took = _timed(lambda: mirror.search(mine, [None] * QUERIES, BEST))
        ours_ms.append(took)
        found, took = _timed(lambda: theirs.search(queries))
        faiss_ms.append(took)
    ratios = [slow / fast for slow, fast in zip(faiss_ms[1:], ours_ms[1:], strict=True)]
    same = [
        _same([(hit.reference.reference_id, hit.cosine) for hit in hits], best)
        for hits, best in zip(ours.hits, found, strict=True)
    ]
    return {
        "search_ms": _median(ours_ms[1:]),
        "faiss_ms": _median(faiss_ms[1:]),
        "search_ratio_to_faiss": round(float(np.median(ratios)), 2),
        "search_ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "identical_ids": all(same),
    }


class _Faiss:
    """faiss' exact index of the same rounded descriptors, in fp32."""

    def __init__(self, plan: Plan) -> None:
        import faiss  # noqa: PLC0415 - not a dependency of the worker

        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        self._index = faiss.IndexFlatIP(plan.dims)
        for begin in range(0, plan.references, _BLOCK):
            end = min(begin + _BLOCK, plan.references)
            self._index.add(descriptors(plan, begin, end).astype(np.float32))

    def search(self, queries: npt.NDArray[np.float32]) -> list[list[tuple[str, float]]]:
        """For each query its best and a few more, for ties, by id."""
        scores, numbers = self._index.search(queries, 2 * BEST)
        return [
            [(f"bench-{number:08}", score) for number, score in zip(*row, strict=True)]
            for row in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]


def _same(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> bool:
    """The same best ones, but for those that are as good as the last within `TIE`."""
    bar = theirs[BEST - 1][1]
    sure = {name for name, score in theirs if score > bar + TIE}
    allowed = {name for name, score in theirs if score >= bar - TIE}
    names = {name for name, _ in ours}
    return len(ours) == BEST and sure <= names <= allowed


def _added_to(plan: Plan, mirror: "Mirror") -> dict[str, Any]:
    """Search without a pause, before and while another process adds references."""
    import torch  # noqa: PLC0415

    queries = torch.from_numpy(_queries(plan))
    before = [_timed(lambda: mirror.search(queries, [None] * QUERIES, BEST))[1] for _ in range(100)]
    during = list[float]()
    rows = mirror.sizes().rows
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(os.getpid).result()  # its start is not measured
        began = time.monotonic()
        writing = pool.submit(_add_more, plan)
        while not writing.done() or mirror.sizes().rows < rows + ADDED:
            during.append(_timed(lambda: mirror.search(queries, [None] * QUERIES, BEST))[1])
        writing.result()
        took = time.monotonic() - began
    p99 = [float(np.percentile(times, 99)) for times in (before, during)]
    return {
        "added": ADDED,
        "added_per_second": ADDED_PER_SECOND,
        "added_s": round(took, 2),
        "search_p99_before_ms": round(p99[0], 1),
        "search_p99_during_ms": round(p99[1], 1),
        "search_p99_ratio": round(p99[1] / p99[0], 2),
        "searches_during": len(during),
    }


def _add_more(plan: Plan) -> None:
    """At a steady rate, which is well above what a GPU describes."""
    first = -(-plan.references // _BLOCK) * _BLOCK
    described = list(references(plan, first, first + ADDED))
    with closing(_store(plan)) as store:
        began = time.monotonic()
        for number, some in enumerate(batched(described, CHUNK), 1):
            store.add_references(some, plan.model)
            due = began + number * CHUNK / ADDED_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))


def _queries(plan: Plan) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(1 << 40)
    noise = rng.standard_normal((QUERIES, plan.dims), dtype=np.float32)
    half = QUERIES // 2
    rows = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    rows[:half] = descriptors(plan, 0, half).astype(np.float32) + 0.5 * rows[:half]
    queries: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return queries


def _timed[R](work: Callable[[], R]) -> tuple[R, float]:
    """What it gives, and how many ms it took."""
    began = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - began)


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 1)


def _store(plan: Plan) -> "Store":
    from worker.hotset.store import open_store  # noqa: PLC0415

    return open_store(Redis.model_validate({"url": plan.url, "timeout_seconds": 60}), "bench")


def _redis_bytes(store: "Store") -> int:
    used: int = store._client.info("memory")["used_memory"]  # noqa: SLF001 - not for production
    return used


def _anonymous_bytes() -> int:
    """Resident memory of this process that no file is behind."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def _raise(error: BaseException) -> None:
    raise error
