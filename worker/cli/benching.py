"""What the benchmarks measure: the worker's stages, alone and between real topics."""

import io
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import REGISTRY

from worker.records import ImageInfo, Pixels, Record
from worker.settings import MIB, Redis, Settings, Topics

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.embedded.kafka import Broker
    from worker.hotset.mirror import Mirror

REFERENCES = 1000
SIDE = (640, 480)
PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run. `busy` is each stage's share of the time it could have worked."""

    side: str
    images_per_second: float
    broker_cpu_share: float
    busy: dict[str, float]


def pictures(count: int) -> list[bytes]:
    """JPEGs of 640x480, all different: windows of photographs."""
    from worker.demo.pictures import bundled  # noqa: PLC0415 - the extra copysieve[demo]

    chance = random.Random(0)  # noqa: S311 - the same pictures every time
    encoded = []
    for photograph in itertools.islice(itertools.cycle(bundled()), count):
        width, height = photograph.image.size
        left, top = chance.uniform(0, width / 3), chance.uniform(0, height / 3)
        box = (left, top, left + width * 2 / 3, top + height * 2 / 3)
        buffer = io.BytesIO()
        photograph.image.resize(SIDE, box=box).save(buffer, "JPEG", quality=85)
        encoded.append(buffer.getvalue())
    return encoded


def fill(settings: Settings, broker: "Broker", encoded: Sequence[bytes], name: str) -> Settings:
    """Topics on the broker, all uploads in them; returns the settings that point there."""
    from worker.stream.admin import Admin  # noqa: PLC0415
    from worker.stream.tools import UploadProducer  # noqa: PLC0415

    topics = {key: f"{name}.{topic}" for key, topic in settings.kafka.topics}
    kafka = settings.kafka.model_copy(
        update={
            "bootstrap_servers": (broker.bootstrap_servers,),
            "security_protocol": "PLAINTEXT",
            "topics": Topics(**topics),
        }
    )
    with Admin(kafka, kafka.bootstrap_servers) as admin:
        admin.create(topics.values(), PARTITIONS, config={"max.message.bytes": str(20 * MIB)})
    with UploadProducer(kafka) as uploads:
        for number, image in enumerate(encoded):
            uploads.send(image, str(number).encode(), (("content-type", b"image/jpeg"),))
        uploads.flush()
    return settings.model_copy(update={"kafka": kafka})


@contextmanager
def hot_set(settings: Settings, embedder: "Embedder") -> Iterator["Mirror"]:
    """A mirror of random references, none of which matches."""
    from worker.embedded.redis import redis_server  # noqa: PLC0415
    from worker.hotset.mirror import Mirror  # noqa: PLC0415
    from worker.hotset.store import open_store  # noqa: PLC0415
    from worker.hotset.sync import HotSetSync  # noqa: PLC0415
    from worker.scoring import artefact  # noqa: PLC0415

    with redis_server() as server:
        store = open_store(Redis.model_validate({"url": server.url}))
        _random_references(store, embedder.model)
        mirror = Mirror(embedder.model, embedder.device)
        sync = HotSetSync(
            store.of_model(embedder.model, artefact.read_for),
            mirror,
            settings.hotset,
            "bench",
            on_failure=_raise,
        )
        sync.start()
        sync.wait_ready(30, lambda: False)
        yield mirror
        sync.stop()
        store.close()


def _raise(error: BaseException) -> None:
    raise error


def _random_references(store: Any, model: Any) -> None:
    from datetime import UTC, datetime  # noqa: PLC0415

    from worker.hotset.types import Bank, Descriptors, Reference  # noqa: PLC0415

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((REFERENCES, 1, model.dims))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    store.set_bank(
        Bank(name="bench", label="bench", severity="low", threshold=0.99, views=("plain",))
    )
    store.add_references(
        (
            (
                Reference(
                    reference_id=f"r{number}",
                    bank="bench",
                    added_by="bench",
                    added_at=datetime.now(UTC),
                ),
                Descriptors(("plain",), row.astype(np.float16)),
            )
            for number, row in enumerate(rows)
        ),
        model,
    )


def direct(settings: Settings, embedder: "Embedder", encoded: Sequence[bytes]) -> Run:
    """Decode pool, batcher and model, overlapped, without anything else."""
    from worker.descriptor.batcher import Batcher  # noqa: PLC0415
    from worker.image.preprocess import decode, resize  # noqa: PLC0415

    preprocessing = embedder.preprocessing
    batcher: Batcher[tuple[ImageInfo, Pixels]] = Batcher(
        settings.batch.max_size, settings.batch.max_delay_ms / 1000
    )

    def work(data: bytes) -> None:
        image = decode(data, settings.limits, target=preprocessing.size)
        batcher.put((image.info, resize(image.pixels, preprocessing)))

    with ThreadPoolExecutor(settings.decode.workers) as pool:
        started = time.monotonic()
        futures = [pool.submit(work, data) for data in encoded]
        done = 0
        while done < len(encoded):
            batch = batcher.take()
            embedder.describe(np.stack([pixels for _, pixels in batch]))
            done += len(batch)
        seconds = time.monotonic() - started
        for future in futures:
            future.result()
    return Run("direct", len(encoded) / seconds, 0.0, {})


def stream(
    settings: Settings,
    embedder: "Embedder",
    mirror: "Mirror",
    broker: "Broker",
    count: int,
    side: str = "stream",
) -> Run:
    """The worker's stages as a member of a new group, from the first record to the last verdict."""
    from worker.hotset.floods import Sightings  # noqa: PLC0415
    from worker.pipeline import Pipeline  # noqa: PLC0415
    from worker.stream.consumer import UploadConsumer  # noqa: PLC0415
    from worker.stream.ledger import Ledger  # noqa: PLC0415
    from worker.stream.publisher import Publisher  # noqa: PLC0415

    kafka = settings.kafka.model_copy(update={"group_id": f"bench-{time.monotonic_ns()}"})
    settings = settings.model_copy(update={"kafka": kafka})
    ledger, restart = Ledger(), threading.Event()
    publisher = Publisher(settings, ledger, restart)
    taken: list[float] = []
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - raised where it is measured
            failures.append(error)

    stages = Pipeline(
        settings,
        ledger,
        publisher,
        embedder,
        mirror,
        Sightings(),
        on_failure=lambda _name, error: failures.append(error),
    )

    def admit(record: Record) -> None:
        taken.append(time.monotonic())
        stages.admit(record)

    consumer = UploadConsumer(settings, ledger, admit, stages.load, restart)
    publisher.membership = consumer.membership
    threads = [
        threading.Thread(target=guarded, args=(body,), daemon=True)
        for body in (publisher.run, consumer.run)
    ]
    before, cpu = _stage_seconds(), broker.cpu_seconds()
    stages.start()
    for thread in threads:
        thread.start()
    while len(taken) < count or ledger.in_flight:
        if failures:
            raise failures[0]
        time.sleep(0.005)
    seconds = time.monotonic() - taken[0]
    busy = {
        stage: (total - before[stage]) / seconds / workers
        for (stage, total), workers in zip(
            _stage_seconds().items(), (settings.decode.workers, 1, 1), strict=True
        )
    }
    share = (broker.cpu_seconds() - cpu) / seconds
    consumer.stop()
    threads[1].join()
    publisher.close()
    threads[0].join()
    stages.close()
    return Run(side, count / seconds, share, busy)


def _stage_seconds() -> dict[str, float]:
    name = "copysieve_stage_seconds_sum"
    return {
        stage: REGISTRY.get_sample_value(name, {"stage": stage}) or 0.0
        for stage in ("decode", "describe", "match")
    }
