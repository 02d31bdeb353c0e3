"""The demonstration from top to bottom: real servers, real replicas, real uploads.

`run` starts a Kafka and a Redis or Valkey, registers references, starts two replicas, publishes
uploads as a platform would, reads every result, and holds it against what was expected.
"""

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from worker import settings as all_settings
from worker.demo import findings, links, replicas, uploads
from worker.demo.findings import Collected, Findings, Parts, Timing
from worker.demo.pictures import Picture
from worker.demo.replicas import Overrides, Replica
from worker.demo.uploads import Upload
from worker.embedded import kafka, redis
from worker.hotset.store import Store, open_store
from worker.hotset.types import Bank
from worker.records import Version
from worker.settings import Settings
from worker.stream import tools
from worker.stream.admin import Admin

MODEL = "sscd_disc_mixup_int8"
REPLICAS = 2
PARTITIONS = 4
RECORD_BYTES = 20 * 1024 * 1024
CONFIG = Path("config/worker.yaml")
STEADY_PER_SECOND = 10.0
STEADY_SHARE = 0.25
STEADY_MOST = 100
BREATH_SECONDS = 1.0
"""Between the steady part and the burst, so that the burst delays none of the former."""
QUIET_SECONDS = 1.0
"""So long after the last result one more would be seen, if there were one too many."""
STUCK_SECONDS = 60.0

# Nothing is calibrated here, so a score is a cosine. On photographs this model was measured to keep
# a precision of 0.90 from 0.24-0.45 on: what acts alone asks for more, what asks a person for less.
BANKS = (
    Bank(
        name="terror-propaganda",
        label="terror propaganda",
        severity="critical",
        action="block",
        threshold=0.55,
    ),
    Bank(
        name="leaked-intimate",
        label="leaked intimate image",
        severity="high",
        action="hold",
        threshold=0.45,
    ),
)
OBSERVED = Bank(
    name="observed",
    label="observed",
    severity="low",
    action="log",
    mode="shadow",
    threshold=-1.0,
)
"""All references once more, in shadow and without a bar: so the score of every upload is told."""

type Register = Callable[[Settings, str, Sequence[Path]], Version]
"""Adds pictures to a bank as `copysieve refs add` does, by (settings, bank, files), and
returns the version of the hot set that has them. Raises CopysieveError if it cannot add one."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What to do; `console` is told how it goes, and `register` adds the references."""

    pictures: Sequence[Picture]
    count: int
    out: Path
    console: Console
    register: Register
    began: float = field(default_factory=time.monotonic, init=False)

    @property
    def references(self) -> Sequence[Picture]:
        """Every other picture is known-bad here, the rest is benign."""
        return self.pictures[::2]

    @property
    def benign(self) -> Sequence[Picture]:
        """What must never match."""
        return self.pictures[1::2]


def run(demo: Demo) -> Findings:
    """Do it all. Whatever happens, all that was started is ended, and its data are removed.

    Raises CopysieveError where a part does not start or ends before its time.
    """
    demo.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="copysieve-demo-")))
        host = stack.enter_context(links.image_host())
        pool = stack.enter_context(ThreadPoolExecutor(1, "demo"))
        planned = pool.submit(uploads.plan, demo.references, demo.benign, demo.count, host.address)
        broker = _start_kafka(demo, folder, stack)
        server = stack.enter_context(redis.redis_server(folder=folder))
        _say(demo, f"Kafka {broker.version} and {server.version} run on loopback")

        overrides = _overrides(broker, server)
        config = CONFIG if CONFIG.is_file() else None
        settings = all_settings.load(config, **overrides)
        with Admin(settings.kafka, settings.kafka.bootstrap_servers) as admin:
            names = settings.kafka.topics.model_dump().values()
            admin.create(names, PARTITIONS, {"max.message.bytes": str(RECORD_BYTES)})
        running = stack.enter_context(replicas.replicas(REPLICAS, overrides, config, demo.out))
        _tell_settings(demo, overrides, config)

        store = open_store(settings.redis)
        stack.callback(store.close)
        reference_names, version = _register(demo, settings, store, folder)
        replicas.wait_until_serving(running, version)
        count = len(demo.references)
        _say(demo, f"{REPLICAS} replicas serve {count} references at version {version}")

        planned_uploads = planned.result()
        _say(demo, f"publishing {len(planned_uploads)} uploads")
        host.images.update({one.upload_id: one.image for one in planned_uploads if one.image})
        timing = _timing(planned_uploads)
        collected = _screen(demo, settings, planned_uploads, timing, running)
        parts = Parts(
            kafka=broker.version,
            redis=server.version,
            model=MODEL,
            replicas=REPLICAS,
            references=count,
            thresholds={bank.name: bank.threshold or 0.0 for bank in BANKS},
        )
        _say(demo, "all results are here; ending the replicas and the servers")
    return findings.judge(planned_uploads, collected, reference_names, parts, timing)


def _start_kafka(demo: Demo, folder: Path, stack: ExitStack) -> kafka.Broker:
    """The first time its jars are downloaded, which is told."""
    with Progress(
        console=demo.console, transient=True, disable=not demo.console.is_terminal
    ) as progress:
        task = progress.add_task("starting Kafka", total=None)

        def downloaded(done: int, total: int) -> None:
            progress.update(task, description="Kafka's jars", completed=done, total=total)

        return stack.enter_context(kafka.kafka_broker(folder, progress=downloaded))


def _overrides(broker: kafka.Broker, server: redis.Server) -> Overrides:
    """All that differs from a production worker's settings."""
    return {
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "redis": {"url": server.url},
        "model": {"name": MODEL, "threads": 1},
        "fetch": {"allowed_schemes": "https,http", "allow_loopback_addresses": True},
        "http": {"host": "127.0.0.1", "port": 0},
        "log": {"format": "json"},
    }


def _tell_settings(demo: Demo, overrides: Overrides, config: Path | None) -> None:
    """The worker is the ordinary one; only this is set."""
    command = f"copysieve run --config {config}" if config else "copysieve run"
    _say(demo, f"{REPLICAS} replicas: `{command}` with")
    for name, value in replicas.as_environment(overrides).items():
        demo.console.print(f"             {name}={value}", highlight=False, markup=False)


def _register(
    demo: Demo, settings: Settings, store: Store, folder: Path
) -> tuple[dict[str, str], Version]:
    """Add the references, half of them to each bank, and all of them to the one that observes.

    Returns the pictures' names by reference id, and the version of the hot set.
    """
    files: dict[str, Path] = {}
    for picture in demo.references:
        files[picture.name] = folder / f"{picture.name}.png"
        picture.image.save(files[picture.name])
    shares = {bank: demo.references[part :: len(BANKS)] for part, bank in enumerate(BANKS)}
    for bank, pictures in {**shares, OBSERVED: demo.references}.items():
        store.set_bank(bank)
        version = demo.register(settings, bank.name, [files[one.name] for one in pictures])
    digests = {hashlib.sha256(file.read_bytes()).hexdigest(): name for name, file in files.items()}
    added = store.references()
    return {one.reference_id: digests[one.sha256] for one in added if one.sha256}, version


def _timing(planned: Sequence[Upload]) -> Timing:
    """The first part comes at a steady pace, the rest all at once."""
    steady = min(round(len(planned) * STEADY_SHARE), STEADY_MOST)
    ids = [one.upload_id for one in planned]
    return Timing(ids[:steady], ids[steady:], STEADY_PER_SECOND)


def _screen(
    demo: Demo,
    settings: Settings,
    planned: Sequence[Upload],
    timing: Timing,
    running: Sequence[Replica],
) -> Collected:
    """Publish all and read all results, until each upload has one or nothing comes any more."""
    collected, topics = Collected(), settings.kafka.topics
    enough = threading.Event()
    with ThreadPoolExecutor(1, "publish") as pool, ExitStack() as stack:
        stack.callback(enough.set)  # before the pool is waited for
        advance = stack.enter_context(_progress(demo, len(planned)))
        publishing = pool.submit(_publish, settings, planned, timing, collected, enough)

        def finished() -> bool:
            for replica in running:
                replica.require_running()
            if not publishing.done():
                return False
            publishing.result()
            quiet = (datetime.now(UTC) - collected.last_at).total_seconds()
            return quiet > (QUIET_SECONDS if collected.finished == len(planned) else STUCK_SECONDS)

        results = [topics.verdicts, topics.matches, topics.shadow, topics.dead_letters]
        for result in tools.tail(settings.kafka, results, finished):
            collected.take(result, topics)
            advance(collected)
    return collected


def _publish(
    settings: Settings,
    planned: Sequence[Upload],
    timing: Timing,
    collected: Collected,
    enough: threading.Event,
) -> None:
    """As a platform does; ends early once `enough` is set."""
    due = time.monotonic()
    steady = set(timing.steady)
    with tools.UploadProducer(settings.kafka) as producer:
        for upload in planned:
            if upload.upload_id in steady:
                due += 1 / timing.steady_per_second
                enough.wait(due - time.monotonic())
            elif upload.upload_id == timing.burst[0]:
                enough.wait(BREATH_SECONDS)
            if enough.is_set():
                return
            collected.published_at[upload.upload_id] = datetime.now(UTC)
            producer.send(upload.value, upload.upload_id.encode(), upload.headers)
        producer.flush()


@contextmanager
def _progress(demo: Demo, total: int) -> Iterator[Callable[[Collected], None]]:
    """A bar that tells what has come so far."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=demo.console, transient=True, disable=not demo.console.is_terminal
    ) as progress:
        task = progress.add_task("waiting for the first verdict", total=total)

        def advance(collected: Collected) -> None:
            told = " · ".join(f"{count} {what}" for what, count in collected.counted().items())
            progress.update(task, completed=collected.finished, description=told)

        yield advance


def _say(demo: Demo, line: str) -> None:
    elapsed = time.monotonic() - demo.began
    demo.console.print(f"{elapsed:5.1f} s  {line}", highlight=False, markup=False)
