"""`copysieve bench pipeline`: what the stream costs on top of decoding and the model."""

import io
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from prometheus_client import REGISTRY
from rich.progress import Progress

from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr, stdout
from worker.records import ImageInfo, Pixels, Record
from worker.settings import MIB, Log, ModelSettings, Redis, Settings
from worker.telemetry import log

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.embedded.kafka import Broker
    from worker.hotset.mirror import Mirror

app = typer.Typer(name="bench", no_args_is_help=True, help="Measure, both sides in one run.")

MODEL = "sscd_disc_mixup_int8"
"""Unless the settings name one: real weights that come with the extra copysieve[demo]."""
REFERENCES = 1000
SIDE = (640, 480)


type Side = Literal["direct", "stream"]


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run. `busy` is each stage's share of the time it could have worked."""

    side: Side
    images_per_second: float
    broker_cpu_share: float
    busy: dict[str, float]


@app.callback()
def _root() -> None:
    """Measure, both sides in one run."""


@app.command()
def pipeline(
    images: Annotated[int, typer.Option(min=20, help="Images in each run.")] = 400,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare topic to topic with decoding and the model alone.

    `direct`: a pool decodes, a batcher collects, the model describes; no Kafka. `stream`: the
    worker's own stages between a real Kafka topic, filled beforehand, and the acknowledgement of
    the last verdict, against 1,000 references. Same images, threads and batches, in one process,
    in alternating pairs. `ratio` is the median of stream over direct.
    """
    settings = load_settings(config)
    log.configure(Log(level="error"))  # the stages start anew in every run

    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import
    from worker.embedded.kafka import kafka_broker  # noqa: PLC0415

    chosen = settings.model if "model" in settings.model_fields_set else ModelSettings(name=MODEL)
    embedder = embedders.load(chosen)
    embedder.warm(settings.batch.max_size)
    encoded = _pictures(images)
    with ExitStack() as stack:
        broker = stack.enter_context(kafka_broker())
        settings = _fill(settings, broker, encoded)
        mirror = stack.enter_context(_hot_set(settings, embedder))
        sides: list[Callable[[], Run]] = [
            partial(_direct, settings, embedder, encoded),
            partial(_stream, settings, embedder, mirror, broker, len(encoded)),
        ]
        for side in sides:  # one of each that is not counted
            side()
        measured: list[dict[Side, Run]] = []
        with Progress(console=stderr, transient=True) as progress:
            for pair in progress.track(range(pairs), description="pairs"):
                both = [side() for side in (sides if pair % 2 == 0 else sides[::-1])]
                measured.append({run.side: run for run in both})
    report = _report(measured, settings, embedder, images)
    if as_json:
        emit(report)
    else:
        _show(report)


def _report(
    measured: list[dict[Side, Run]], settings: Settings, embedder: "Embedder", images: int
) -> dict[str, Any]:
    ratios = [p["stream"].images_per_second / p["direct"].images_per_second for p in measured]
    streams = [p["stream"] for p in measured]
    busy = {
        stage: round(statistics.median(run.busy[stage] for run in streams), 3)
        for stage in streams[0].busy
    }
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "direct_images_per_second": _median(p["direct"].images_per_second for p in measured),
        "stream_images_per_second": _median(run.images_per_second for run in streams),
        "limited_by": max(busy, key=lambda stage: busy[stage]),
        "busy": busy,
        "broker_cpu_share": _median(run.broker_cpu_share for run in streams),
        "model": embedder.model.name,
        "device": str(embedder.device),
        "images": images,
        "pairs": len(measured),
        "references": REFERENCES,
        "batch": settings.batch.model_dump(),
        "decode_workers": settings.decode.workers,
        "runs": [asdict(run) for pair in measured for run in pair.values()],
    }


def _show(report: dict[str, Any]) -> None:
    low, high = report["ratio_spread"]
    stdout.print(
        f"topic to topic {report['stream_images_per_second']} images/s,"
        f" decode and model alone {report['direct_images_per_second']} images/s"
        f" ({report['model']} on {report['device']})\n"
        f"ratio {report['ratio']} ({low} to {high} over {report['pairs']} pairs of"
        f" {report['images']} images), limited by: {report['limited_by']}\n"
        f"busy: {report['busy']}, broker: {report['broker_cpu_share']} of one core",
        highlight=False,
    )


def _pictures(count: int) -> list[bytes]:
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


def _fill(settings: Settings, broker: "Broker", encoded: Sequence[bytes]) -> Settings:
    """Topics on the broker, all uploads in them; returns the settings that point there."""
    from worker.stream.admin import Admin  # noqa: PLC0415
    from worker.stream.tools import UploadProducer  # noqa: PLC0415

    kafka = settings.kafka.model_copy(
        update={"bootstrap_servers": (broker.bootstrap_servers,), "security_protocol": "PLAINTEXT"}
    )
    with Admin(kafka, kafka.bootstrap_servers) as admin:
        names = kafka.topics.model_dump().values()
        admin.create(names, partitions=4, config={"max.message.bytes": str(20 * MIB)})
    with UploadProducer(kafka) as uploads:
        for number, image in enumerate(encoded):
            uploads.send(image, str(number).encode(), (("content-type", b"image/jpeg"),))
        uploads.flush()
    return settings.model_copy(update={"kafka": kafka})


@contextmanager
def _hot_set(settings: Settings, embedder: "Embedder") -> Iterator["Mirror"]:
    """A mirror of random references, none of which matches."""
    from worker.embedded.redis import redis_server  # noqa: PLC0415
    from worker.hotset.mirror import Mirror  # noqa: PLC0415
    from worker.hotset.store import open_store  # noqa: PLC0415
    from worker.hotset.sync import HotSetSync  # noqa: PLC0415

    with redis_server() as server:
        store = open_store(Redis.model_validate({"url": server.url}))
        _random_references(store, embedder.model)
        mirror = Mirror(embedder.model.dims, embedder.device)
        sync = HotSetSync(
            store.of_model(embedder.model), mirror, settings.hotset, "bench", on_failure=_raise
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


def _direct(settings: Settings, embedder: "Embedder", encoded: Sequence[bytes]) -> Run:
    """Decode pool, batcher and model, overlapped, without anything else."""
    from worker.descriptor.batcher import Batcher  # noqa: PLC0415
    from worker.image.decode import decode  # noqa: PLC0415
    from worker.image.preprocess import resize  # noqa: PLC0415

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


def _stream(
    settings: Settings, embedder: "Embedder", mirror: "Mirror", broker: "Broker", count: int
) -> Run:
    """The worker's stages as a member of a new group, from the first record to the last verdict."""
    from worker.pipeline import Pipeline  # noqa: PLC0415
    from worker.stream.consumer import UploadConsumer  # noqa: PLC0415
    from worker.stream.ledger import Ledger  # noqa: PLC0415
    from worker.stream.publisher import Publisher  # noqa: PLC0415

    kafka = settings.kafka.model_copy(update={"group_id": f"bench-{time.monotonic_ns()}"})
    settings = settings.model_copy(update={"kafka": kafka})
    ledger, restart = Ledger(), threading.Event()
    publisher = Publisher(settings.kafka, ledger, restart)
    stages = Pipeline(settings, ledger, publisher, embedder, mirror, lambda _name, e: _raise(e))
    taken: list[float] = []

    def admit(record: Record) -> None:
        taken.append(time.monotonic())
        stages.admit(record)

    consumer = UploadConsumer(settings, ledger, admit, restart)
    threads = [threading.Thread(target=body) for body in (publisher.run, consumer.run)]
    before, cpu = _stage_seconds(), broker.cpu_seconds()
    stages.start()
    for thread in threads:
        thread.start()
    while len(taken) < count or ledger.in_flight_records:
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
    return Run("stream", count / seconds, share, busy)


def _stage_seconds() -> dict[str, float]:
    name = "copysieve_stage_seconds_sum"
    return {
        stage: REGISTRY.get_sample_value(name, {"stage": stage}) or 0.0
        for stage in ("decode", "describe", "match")
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)
