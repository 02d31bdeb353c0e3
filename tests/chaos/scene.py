"""What a run of chaos is made of: real servers, real replicas that are tended, a reader."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.chaos.host import Host
from tests.chaos.reader import Reader
from tests.chaos.traffic import REFERENCES, reference_picture
from tests.fixtures.processes import Screening, Worker
from tests.fixtures.stream import LARGE, make_stream
from worker.embedded import kafka, redis
from worker.hotset.store import open_store
from worker.hotset.types import Bank
from worker.settings import Redis
from worker.stream.admin import Admin

PARTITIONS = 4
SETTLE_SECONDS = 90.0
QUIET_SECONDS = 2.0
BANK = "known-bad"
KILL = "kill -9"
OUTPUT_SERVERS = "COPYSIEVE_KAFKA__OUTPUT__BOOTSTRAP_SERVERS"
REPLICA = {
    "COPYSIEVE_FETCH__DEADLINE_SECONDS": "8",
    "COPYSIEVE_DECODE__WORKERS": "2",
}


class Mark(NamedTuple):
    """Something that was done, or happened, `at` by the monotonic clock."""

    at: float
    text: str


@dataclass
class Scene:
    """Replicas of one group, what they stand on, and what came out."""

    broker: kafka.Broker
    redis: redis.Server
    host: Host
    screening: Screening
    reader: Reader
    environment: dict[str, str]
    replicas: int
    tell: Callable[[str], None]
    marks: list[Mark] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    """Ends of replicas that nobody asked for, with their last line."""
    watch: Callable[[], None] = lambda: None
    """Called several times a second: progress, samples."""
    sent_before: set[tuple[int, int]] = field(default_factory=set)
    """Partition and offset of the uploads of phases that are over."""
    judged: int = 0
    """How many of the reader's results were judged: none is left out between two phases."""
    _leaving: list[Worker] = field(default_factory=list)

    def mark(self, text: str) -> None:
        self.marks.append(Mark(time.monotonic(), text))
        self.tell(text)

    @property
    def members(self) -> list[Worker]:
        """Replicas that run, and were not asked to leave."""
        return [w for w in self._running() if w not in self._leaving]

    @property
    def joined(self) -> list[Worker]:
        """Of those, the ones that are past their start."""
        return [w for w in self.members if any(e["event"] == "started" for e in w.events())]

    def start(self) -> Worker:
        worker = self.screening.start(**self.environment)
        self.mark(f"start {name(worker)}")
        return worker

    def kill(self, worker: Worker) -> None:
        self.mark(f"{KILL} {name(worker)}")
        worker.killed = True
        worker.kill()

    def dismiss(self, worker: Worker) -> None:
        """SIGTERM, without waiting; to end otherwise than with 0 is a death."""
        self.mark(f"SIGTERM {name(worker)}")
        self._leaving.append(worker)
        worker.process.terminate()

    def sleep(self, seconds: float) -> None:
        self.wait_for(lambda: False, seconds)

    def wait_for(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Tend the replicas until `reached` (True), or until the time is over (False)."""
        until = time.monotonic() + seconds
        while not reached():
            if time.monotonic() >= until:
                return False
            self.tend()
            time.sleep(0.2)
        return True

    def tend(self) -> None:
        """What an orchestrator does: start again what died. And remember that it did."""
        self.watch()
        if self.reader.failure is not None:
            raise self.reader.failure
        for worker in self.screening.workers:
            code = worker.process.poll()
            left = worker in self._leaving
            if code is None or worker.killed or (code == 0 and left):
                continue
            worker.killed = True
            lines = worker.log.read_text().splitlines() or ["(said nothing)"]
            self.deaths.append(f"{name(worker)} ended with code {code}: {lines[-1]}")
            self.mark(self.deaths[-1])
            if not left:
                self.start()

    def settle(self) -> None:
        """Exactly the replicas that there should be, stable, with all partitions between them."""
        while len(self.members) < self.replicas:
            self.start()
        for one in self.members[self.replicas :]:
            self.wait_for(functools.partial(self._has_joined, one), SETTLE_SECONDS)
            self.dismiss(one)
        if not self.wait_for(self._settled, SETTLE_SECONDS):
            self.deaths.append(f"the group was not stable after {SETTLE_SECONDS:.0f} s")
            self.mark(self.deaths[-1])

    def dismiss_all(self) -> None:
        """Let every replica end in order; what comes after that is seen by the reader still."""
        for worker in self.members:
            self.dismiss(worker)
        if not self.wait_for(lambda: not self._running(), SETTLE_SECONDS):
            self.deaths.append("a replica did not end")
        self.tend()
        time.sleep(QUIET_SECONDS)

    def _has_joined(self, worker: Worker) -> bool:
        return worker in self.joined

    def _running(self) -> list[Worker]:
        return [w for w in self.screening.workers if w.process.poll() is None]

    def _settled(self) -> bool:
        if len(self._running()) != self.replicas or len(self.joined) != self.replicas:
            return False
        try:
            owned = [w.metric("copysieve_partitions_assigned") for w in self.members]
            stable = all(w.metric("copysieve_group_stable") for w in self.members)
        except (OSError, AssertionError):  # on its way to its port, or to its end
            return False
        return stable and sum(owned) == PARTITIONS and min(owned) > 0


def name(worker: Worker) -> str:
    return worker.log.stem


@dataclass(frozen=True)
class Servers:
    """What scenes share. `folder` has the logs of the replicas."""

    broker: kafka.Broker
    redis: redis.Server
    host: Host
    folder: Path


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Kafka, Redis or Valkey that keeps its data, an image host, a frozen hot set."""
    with (
        kafka.kafka_broker() as broker,
        redis.redis_server("any", keep_data=True) as store,
        contextlib.closing(Host()) as host,
    ):
        yield Servers(broker, store, host, folder)


@contextlib.contextmanager
def scene(
    shared: Servers,
    tell: Callable[[str], None],
    environment: Mapping[str, str],
    replicas: int,
    output: kafka.Broker | None = None,
) -> Iterator[Scene]:
    """Topics, a group, a reader; the replicas come with `settle`. Results go to `output`."""
    results = (output or shared.broker).bootstrap_servers
    stream = make_stream(shared.broker, PARTITIONS)
    if output is not None:
        with Admin(stream.settings.kafka, (results,)) as admin:
            limit = {"max.message.bytes": str(LARGE)}
            admin.create(stream.topics.model_dump().values(), PARTITIONS, limit)
        environment = {OUTPUT_SERVERS: results, **environment}
    folder = Path(tempfile.mkdtemp(dir=shared.folder))
    with (
        contextlib.closing(open_store(Redis.model_validate({"url": shared.redis.url}))) as store,
        contextlib.ExitStack() as stack,
    ):
        screening = Screening(stream, store, shared.redis.url, folder)
        fill(screening)
        reader = Reader(results, stream.topics)
        reader.start()
        stack.callback(reader.stop)
        made = Scene(
            shared.broker,
            shared.redis,
            shared.host,
            screening,
            reader,
            {**REPLICA, **environment},
            replicas,
            tell,
        )
        stack.callback(_end, screening)
        yield made


def fill(screening: Screening) -> None:
    """Add the bank and its references, unless they are there."""
    bank = Bank(name=BANK, label="known bad", severity="high", action="block", threshold=0.9)
    screening.store.set_bank(bank)
    for number in range(REFERENCES):
        screening.add_reference(f"ref-{number}", reference_picture(number), BANK)


def _end(screening: Screening) -> None:
    for worker in screening.workers:
        if worker.process.poll() is None:
            worker.kill()
