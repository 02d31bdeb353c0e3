"""Mutated events and pictures through one real worker; every record has its one terminal result."""

import functools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice
from pathlib import Path

import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.chaos.scene import PARTITIONS, Scene, scene, servers
from tests.fixtures.processes import Worker, picture
from tests.fixtures.stream import LARGE
from tests.fuzz.mutate import PICTURES, SECRET, Record, events, images
from worker.errors import DeadLetterReason, UnscreenedReason

WARM_EVENTS, WARM_IMAGES = 5_000, 2_000
"""Before memory is looked at for the first time; half of all at most. More images than there may be
in flight, for the pixels that wait for the device are a part of it."""
GROWTH = 1.2
MEMORY_FROM = 20_000
"""Records: in shorter runs memory is still filling."""
QUIET_SECONDS = 3.0
STALL_SECONDS = 90.0
NEW_SERIES = len(UnscreenedReason) + len(DeadLetterReason) + 16
"""Of metrics, that may appear after the warm-up: labels are closed sets."""
LEAKS = {
    "a signed link": SECRET,
    "base64": r"[A-Za-z0-9+/]{80}",
    "an image": r"JFIF|IHDR|IDAT|WEBPVP8|GIF8|\\xff\\xd8|\\u00ff\\u00d8",
    "a descriptor": r"(-?\d\.\d{2,}(e-\d+)?[,\s]+){4}",
}
"""What no line of the log, and no detail of a result, may hold, whatever came in."""

type Show = Callable[[int], None]


@dataclass
class Report:
    """What came of it. Memory in bytes, of the worker and its children."""

    isolation: str
    events: int
    images: int
    records: int = 0
    missing: int = 0
    repeated: int = 0
    strays: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    events_per_second: float = 0.0
    images_per_second: float = 0.0
    rss_warm: int = 0
    rss_peak: int = 0
    rss_end: int = 0
    new_series: int = 0
    decoders_replaced: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        return self.rss_end / self.rss_warm if self.rss_warm else 0.0

    def told(self) -> dict[str, object]:
        return asdict(self) | {"growth": round(self.growth, 3)}


def run(
    folder: Path, seed: int, event_count: int, image_count: int, isolation: str, show: Show
) -> Report:
    """`folder` is for the worker's log; `show` is told how many records have their result."""
    report = Report(isolation, event_count, image_count)
    setting = {
        "COPYSIEVE_DECODE__ISOLATION": isolation,
        "COPYSIEVE_FETCH__ALLOWED_HOSTS": "127.0.0.1",
        "COPYSIEVE_FETCH__DEADLINE_SECONDS": "3",
        "COPYSIEVE_LOG__LEVEL": "debug",
    }
    with (
        _host() as host,
        servers(folder) as shared,
        scene(shared, lambda _: None, setting, replicas=1) as stage,
    ):
        stage.settle()
        [worker] = stage.members
        watch = _Watch(stage, worker, show)
        warm = [min(WARM_EVENTS, event_count // 2), min(WARM_IMAGES, image_count // 2)]
        mutated = events(seed, event_count, host), images(seed, image_count)
        watch.pass_through(chain(*map(islice, mutated, warm)))
        report.rss_warm, before = watch.rest(), _series(worker)
        report.events_per_second = watch.pass_through(mutated[0])
        report.images_per_second = watch.pass_through(mutated[1])
        report.rss_end, report.rss_peak = watch.rest(), watch.peak
        report.new_series = len(_series(worker) - before)
        report.decoders_replaced = worker.total("copysieve_decoders_replaced_total")
        code = worker.terminate()
        _judge(report, stage, code, worker.log.read_text())
    return report


class _Watch:
    """Publishes, waits for the results, and looks at the worker meanwhile."""

    def __init__(self, stage: Scene, worker: Worker, show: Show) -> None:
        self.peak = 0
        self._stage, self._process, self._show = stage, psutil.Process(worker.process.pid), show
        self._sent = 0

    def pass_through(self, records: Iterable[Record]) -> float:
        """Until each has a result, or none came for long. Returns results a second."""
        began, before = time.monotonic(), self._sent
        stage = self._stage
        producer = KafkaProducer(
            bootstrap_servers=[stage.broker.bootstrap_servers],
            max_request_size=LARGE,
            linger_ms=20,
        )
        with closing(producer):
            for record in records:
                key, value, headers = record
                # kafka-python wants one of the two
                producer.send(
                    stage.screening.stream.topics.uploads,
                    value,
                    b"" if key is None and value is None else key,
                    headers,
                )
                self._sent += 1
                while self._sent - self._answered > 5_000:  # or it would lie in our own memory
                    self._look()
        last, since = -1, time.monotonic()
        while self._answered < self._sent and time.monotonic() - since < STALL_SECONDS:
            self._look()
            if self._answered != last:
                last, since = self._answered, time.monotonic()
        return (self._sent - before) / (time.monotonic() - began)

    def rest(self) -> int:
        """Resident memory when there is nothing to do."""
        self._stage.sleep(QUIET_SECONDS)
        return self._resident()

    @property
    def _answered(self) -> int:
        return len(self._stage.reader.answered)

    def _look(self) -> None:
        self._stage.tend()
        self._show(self._answered)
        self.peak = max(self.peak, self._resident())
        time.sleep(0.2)

    def _resident(self) -> int:
        try:
            family = [self._process, *self._process.children(recursive=True)]
            return sum(process.memory_info().rss for process in family)
        except psutil.NoSuchProcess:
            return 0


def _judge(report: Report, stage: Scene, code: int, log: str) -> None:
    at = [TopicPartition(stage.screening.stream.topics.uploads, n) for n in range(PARTITIONS)]
    with closing(KafkaConsumer(bootstrap_servers=[stage.broker.bootstrap_servers])) as consumer:
        ends = consumer.end_offsets(at)
    sources = {(p.partition, offset) for p, end in ends.items() for offset in range(end)}
    results = [one for one in stage.reader.results if one.kind != "match"]
    counts = Counter(one.source for one in results)
    report.records = len(sources)
    report.missing = len(sources - counts.keys())
    report.strays = len(counts.keys() - sources)
    report.repeated = sum(count - 1 for count in counts.values())
    report.outcomes = dict(Counter(one.reason or one.outcome for one in results).most_common())
    report.failures += stage.deaths
    for what in ("missing", "strays", "repeated"):
        if count := getattr(report, what):
            report.failures.append(f"{count} {what}")
    if report.records < report.events + report.images:
        report.failures.append("not all records were published")
    if code:
        report.failures.append(f"the worker ended with {code}")
    if report.records >= MEMORY_FROM and report.growth > GROWTH:
        report.failures.append(f"memory at the end is {report.growth:.2f} of that after warm-up")
    if report.new_series > NEW_SERIES:
        report.failures.append(f"{report.new_series} new series of metrics")
    report.failures += [f"the log holds {what}" for what in leaks(log)]
    details = "\n".join(filter(None, (one.detail for one in results)))
    if not details:
        report.failures.append("no result has a detail")
    report.failures += [f"a detail holds {what}" for what in leaks(details)]


def leaks(text: str) -> list[str]:
    """What the text holds that it must not."""
    return [what for what, pattern in LEAKS.items() if re.search(pattern, text)]


def _series(worker: Worker) -> set[str]:
    lines = worker.get("/metrics")[1].splitlines()
    return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}


class _Handler(BaseHTTPRequestHandler):
    """Half of the links are dead."""

    def do_GET(self) -> None:
        name = self.path[1:].split("?")[0]
        if not name.isdecimal() or int(name) >= PICTURES:
            self.send_error(404)
            return
        body = _body(int(name))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@functools.cache
def _body(number: int) -> bytes:
    return picture(number, size=64)


@contextmanager
def _host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
