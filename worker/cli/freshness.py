"""How soon a new reference is matched by every replica: the work behind `bench freshness`.

Real replicas under a steady load. A heartbeat is written after its change was applied, and read by
polling: so what is measured is an upper bound of the time from the write's return.
"""

import itertools
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from worker import settings as all_settings
from worker.cli import benching
from worker.cli.waiting import wait_for
from worker.demo import replicas
from worker.demo.replicas import Overrides, Replica
from worker.descriptor import embedders
from worker.embedded.kafka import kafka_broker
from worker.embedded.redis import redis_server
from worker.errors import StartupError, StreamError
from worker.hotset.store import Store, open_store
from worker.hotset.types import Bank, Descriptors, Reference
from worker.records import Model
from worker.settings import MIB, Settings
from worker.stream.admin import Admin
from worker.stream.tools import Tail, UploadProducer

REPLICAS = 2
ADDITIONS_PER_SECOND = 5.0
BANK = Bank(name="bench", label="bench", severity="low", threshold=0.99, views=("plain",))
"""Random directions in many dimensions are far from everything: none matches."""
_PICTURES = 50
_AT_ONCE = 1000
_LATE_SECONDS = 60.0
_DRAIN_SECONDS = 60.0

type Progress = Callable[[str, int, int | None], object]
"""Is told what is done, how many, and of how many if that is known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: references added one at a time to a hot set of `hot_set`, under load."""

    references: int
    hot_set: int
    uploads_per_second: float


def measure(plan: Plan, model: str, config: Path | None, progress: Progress) -> dict[str, Any]:
    """Start servers and replicas, measure, and end them. Raises CopysieveError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="copysieve-bench-")))
        broker = stack.enter_context(kafka_broker(folder))
        server = stack.enter_context(redis_server(folder=folder))
        overrides: Overrides = {
            "kafka": {
                "bootstrap_servers": broker.bootstrap_servers,
                "security_protocol": "PLAINTEXT",
            },
            "redis": {"url": server.url},
            "model": {"name": model, "threads": 1},
            "http": {"host": "127.0.0.1", "port": 0},
            "log": {"format": "json"},
        }
        settings = all_settings.load(config, **overrides)
        progress("hot set", 0, None)
        with Admin(settings.kafka, settings.kafka.bootstrap_servers) as admin:
            names = settings.kafka.topics.model_dump().values()
            admin.create(names, benching.PARTITIONS, {"max.message.bytes": str(20 * MIB)})
        described_by = embedders.load(settings.model).model
        store = stack.enter_context(closing(open_store(settings.redis, "bench")))
        version = store.set_bank(BANK)
        made = made_up(described_by, plan.hot_set + plan.references)
        for done in range(0, plan.hot_set, _AT_ONCE):
            some = itertools.islice(made, min(_AT_ONCE, plan.hot_set - done))
            version = store.add_references(some, described_by).version
            progress("hot set", done, plan.hot_set)
        progress("replicas", 0, None)
        running = stack.enter_context(replicas.replicas(REPLICAS, overrides, config, folder))
        replicas.wait_until_serving(running, version)
        load = stack.enter_context(closing(Load(settings, plan.uploads_per_second)))
        progress("load", 0, None)
        load.wait_until_steady()
        began, published = time.monotonic(), load.published
        seconds = _additions(store, list(made), described_by, running, load, progress)
        reached = (load.published - published) / (time.monotonic() - began)
        load.finish()
        return {
            **_percentiles(seconds),
            "references": len(seconds),
            "hot_set": plan.hot_set,
            "replicas": REPLICAS,
            "uploads_per_second": round(reached, 2),
            "verdicts": load.verdicts,
            "model": model,
            "redis": server.version,
            "kafka": broker.version,
        }


def made_up(model: Model, count: int) -> Iterator[tuple[Reference, Descriptors]]:
    """References with random descriptors, always the same ones."""
    rng = np.random.default_rng(0)
    for number in range(count):
        row = rng.standard_normal((1, model.dims))
        row /= np.linalg.norm(row)
        reference = Reference(
            reference_id=f"r{number}", bank=BANK.name, added_by="bench", added_at=datetime.now(UTC)
        )
        yield reference, Descriptors(("plain",), row.astype(np.float16))


class Load:
    """Uploads at a steady rate, all of them new to the worker, and a reader of their verdicts."""

    def __init__(self, settings: Settings, per_second: float) -> None:
        self.published = self.verdicts = 0
        self._settings = settings
        self._interval = 1 / per_second
        self._pictures = benching.pictures(_PICTURES)
        self._enough = threading.Event()
        self._closed = threading.Event()
        self._tail = Tail(settings.kafka, [settings.kafka.topics.verdicts])
        self._pool = ThreadPoolExecutor(2, "load")
        self._publishing = self._pool.submit(self._publish)
        self._reading = self._pool.submit(self._read)

    def check(self) -> None:
        """Raise what ended one of its threads."""
        for thread in (self._publishing, self._reading):
            if thread.done():
                thread.result()

    def wait_until_steady(self) -> None:
        """Wait until verdicts come. Raises StreamError."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while not self.verdicts:
            self.check()
            if time.monotonic() > deadline:
                raise StreamError(f"no verdict in {_DRAIN_SECONDS:.0f} s")
            time.sleep(0.1)

    def finish(self) -> None:
        """Publish no more, and wait until all that was published has its verdict."""
        self._enough.set()
        for thread in (self._publishing, self._reading):
            thread.result()

    def close(self) -> None:
        """End, finished or not."""
        self._enough.set()
        self._closed.set()
        self._pool.shutdown()

    def _publish(self) -> None:
        due = time.monotonic()
        with UploadProducer(self._settings.kafka) as producer:
            for number, picture in enumerate(itertools.cycle(self._pictures)):
                due += self._interval
                if self._enough.wait(due - time.monotonic()):
                    break
                key = str(number).encode()
                # What follows a JPEG is no part of the picture, and makes it another image.
                producer.send(picture + key, key, (("content-type", b"image/jpeg"),))
                self.published += 1
            producer.flush()

    def _read(self) -> None:
        quiet_since = time.monotonic()
        with closing(self._tail):
            while not (self._closed.is_set() or self._is_complete()):
                for result in self._tail.poll():
                    if (outcome := json.loads(result.value)["outcome"]) != "no_match":
                        raise StreamError(f"a benign upload ended as {outcome}")
                    self.verdicts += 1
                    quiet_since = time.monotonic()
                if time.monotonic() - quiet_since > _DRAIN_SECONDS:
                    raise StreamError(f"no verdict for {_DRAIN_SECONDS:.0f} s")

    def _is_complete(self) -> bool:
        return self._publishing.done() and self.verdicts >= self.published


def _additions(
    store: Store,
    made: Sequence[tuple[Reference, Descriptors]],
    model: Model,
    running: Sequence[Replica],
    load: Load,
    progress: Progress,
) -> list[float]:
    """Add each, at random moments, and return after how many seconds all replicas had it."""
    chance = random.Random(0)  # noqa: S311 - when to add, no secret
    seconds: list[float] = []
    for done, one in enumerate(made, start=1):
        time.sleep(chance.uniform(0, 2 / ADDITIONS_PER_SECOND))
        waited = wait_for(store, store.add_references([one], model).version, _LATE_SECONDS)
        for replica in running:
            replica.require_running()
        load.check()
        if len(waited.applied) < len(running):
            raise StartupError(f"not applied by all replicas after {waited.seconds:.1f} s")
        seconds.append(waited.seconds)
        progress("references", done, len(made))
    return seconds


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Nearest rank from above, in milliseconds."""
    found = np.percentile(seconds, [50, 99, 100], method="higher") * 1000
    return dict(zip(("p50_ms", "p99_ms", "max_ms"), found.round(1).tolist(), strict=True))
