"""One running replica: its stages wired together, run, and ended in order."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from worker.canary.publisher import CanaryPublisher
from worker.descriptor.embedders import Embedder
from worker.errors import StageDied
from worker.hardware import share_interpreter
from worker.hotset.floods import Floods, Sightings
from worker.hotset.mirror import Mirror
from worker.hotset.store import Store
from worker.hotset.sync import HotSetSync
from worker.pipeline import Pipeline
from worker.scoring import artefact
from worker.settings import Settings
from worker.stream.consumer import UploadConsumer
from worker.stream.ledger import Ledger
from worker.stream.membership import UNSTABLE_SLACK_SECONDS
from worker.stream.publisher import Publisher
from worker.telemetry import log, metrics
from worker.telemetry.health import HealthServer

LAST_SECONDS = 8.0
"""For the last commit and for leaving the group, after the deadline of the uploads."""
CANARY_SECONDS = 2.0
"""For giving up the lease; else it expires."""
FLOODS_SECONDS = 2.0
"""For the last look at floods, which Redis may not answer."""

logger = log.get(__name__)


class Replica:
    """One running worker."""

    def __init__(self, settings: Settings, store: Store, embedder: Embedder) -> None:
        self._settings = settings
        self._embedder = embedder
        self._stop = threading.Event()
        self._failure: StageDied | None = None
        self._mirror = Mirror(embedder.model, embedder.device, settings.hotset.folder)
        self._sync = HotSetSync(
            store.of_model(embedder.model, artefact.read_for),
            self._mirror,
            settings.hotset,
            settings.replica.name,
            on_failure=lambda error: self._died("hot set", error),
        )
        self._ledger = Ledger()
        self._canaries = CanaryPublisher(settings, store.duty(), lambda: self._mirror.canaries)
        self._sightings = Sightings()
        self._floods = Floods(store.census(), self._sightings)
        self._consumer: UploadConsumer | None = None
        self._pipeline: Pipeline | None = None
        self._publisher: Publisher | None = None
        self._warm = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT. A stage that died is one last line and exit code 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        share_interpreter()
        health = HealthServer(self._settings.http, self._live, self._ready)
        logger.info("started", http_port=health.port, model=self._embedder.model.name)
        metrics.READY.set_function(lambda: self._ready() is None)
        self._embedder.warm(self._settings.batch.max_size)
        self._warm = True
        self._sync.start()
        try:
            ready = self._sync.wait_ready(None, self._stop.is_set)
            if ready and self._canaries.start(self._stop.is_set):
                self._screen()
        finally:
            self._sync.stop()
        health.close()
        if self._failure is not None:
            _exit_now(str(self._failure))
        logger.info("stopped")

    def _screen(self) -> None:
        settings, ledger = self._settings, self._ledger
        restart = threading.Event()
        publisher = Publisher(settings, ledger, restart)
        pipeline = Pipeline(
            settings,
            ledger,
            publisher,
            self._embedder,
            self._mirror,
            self._sightings,
            on_failure=self._died,
            signer_of=self._canaries.signer_of,
        )
        consumer = UploadConsumer(
            settings, ledger, pipeline.admit, pipeline.load, restart, self._held_back
        )
        publisher.membership = consumer.membership
        self._consumer, self._pipeline, self._publisher = consumer, pipeline, publisher
        threads = [
            threading.Thread(target=self._stage("publisher", publisher.run), name="publisher"),
            threading.Thread(target=self._stage("consumer", consumer.run), name="consumer"),
        ]
        self._floods.start()
        pipeline.start()
        for thread in threads:
            thread.start()
        self._stop.wait()
        self._canaries.stop()
        self._drain(publisher, consumer, pipeline, threads)
        self._floods.stop()
        self._canaries.join(CANARY_SECONDS)
        self._floods.join(FLOODS_SECONDS)

    def _drain(
        self,
        publisher: Publisher,
        consumer: UploadConsumer,
        pipeline: Pipeline,
        threads: list[threading.Thread],
    ) -> None:
        """Finish what is in flight; at the deadline say what is left, and leave it."""
        deadline = time.monotonic() + self._settings.shutdown.deadline_seconds
        logger.info("draining", in_flight=self._ledger.in_flight)
        publisher_thread, consumer_thread = threads
        if self._failure is None:
            consumer.stop()
            consumer_thread.join(deadline - time.monotonic())
        left = self._ledger.in_flight
        consumer.abandon()
        pipeline.close()
        patience = time.monotonic() + LAST_SECONDS
        consumer_thread.join(LAST_SECONDS)  # it commits what the publisher is told until then
        publisher.close(abandon=left > 0)
        publisher_thread.join(max(1.0, patience - time.monotonic()))
        stuck = [thread.name for thread in threads if thread.is_alive()]
        if self._failure is None and (left or stuck):
            also = f", {' and '.join(stuck)} did not end" if stuck else ""
            _exit_now(f"shutdown.deadline_seconds passed with {left} uploads in flight{also}")

    def _held_back(self) -> str | None:
        if self._settings.hotset.on_stale == "pause" and self._sync.is_stale:
            return "hot_set_stale"
        if self._publisher is not None and not self._publisher.working:
            return "output_away"
        if self._pipeline is not None and self._pipeline.hosts_away:
            return "hosts_away"
        return None

    def _stage(self, name: str, body: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - reported, and ends the process
                self._died(name, error)

        return guarded

    def _died(self, stage: str, error: BaseException) -> None:
        """The first stage to die ends the process."""
        if self._failure is None:
            detail = " ".join(str(error).split())
            self._failure = StageDied(f"{stage} died: {type(error).__name__}: {detail}")
            logger.error("stage_died", stage=stage, exc_info=error)
        if self._consumer is not None:
            self._consumer.abandon()
        self._stop.set()

    def _live(self) -> str | None:
        if self._failure is not None:
            return str(self._failure)
        if self._pipeline is not None and not (self._pipeline.alive or self._stop.is_set()):
            return "a stage of the pipeline is gone"
        limit = self._settings.kafka.max_poll_interval_ms / 1000 + UNSTABLE_SLACK_SECONDS
        if self._consumer is not None and self._consumer.seconds_since_poll > limit:
            return f"no poll for {limit:.0f} s"
        return None

    def _ready(self) -> str | None:
        if not self._warm:
            return "the model is not warm"
        return None if self._sync.ready else f"the hot set is {self._sync.state}"


def _exit_now(line: str) -> None:
    """One last line and exit code 1, whatever threads still hang in a socket."""
    sys.stderr.write(f"copysieve: {line}\n")
    sys.stderr.flush()
    os._exit(1)
