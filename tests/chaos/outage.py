"""The output broker goes away while the input goes on: bounded memory, nothing lost.

Two replicas, each with topics and a group of its own, meet the same outage: one whose deliveries
wait (`kafka.delivery_timeout_ms` is an hour), and one whose deliveries expire meanwhile.
"""

import contextlib
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import psutil

from tests.chaos.phase import Phase, Row, nothing_excused
from tests.chaos.scene import Scene, Servers, scene
from tests.chaos.traffic import Upload
from tests.fixtures.processes import Worker
from worker.embedded import kafka

MIB = 1024 * 1024
IN_FLIGHT_BYTES = 16 * MIB
RECORD_BYTES = 4 * MIB
BOUND_BYTES = 6 * IN_FLIGHT_BYTES
"""What a replica may hold above what it held before.

Records in flight; as much again that the client has fetched and not handed out, for each of the
partitions one fetch; decoded pictures, results, and what the allocator keeps.
"""
PADDING = 96 * 1024
"""Makes the uploads of an outage many times the bound together."""
EXPIRES_MS = 5_000
LIMITS = {
    "COPYSIEVE_LIMITS__IN_FLIGHT_BYTES": str(IN_FLIGHT_BYTES),
    "COPYSIEVE_LIMITS__RECORD_BYTES": str(RECORD_BYTES),
}
EXPIRED = "output_away_expired"
VARIANTS: Mapping[str, dict[str, str]] = {
    "output_away": {},
    EXPIRED: {"COPYSIEVE_KAFKA__DELIVERY_TIMEOUT_MS": str(EXPIRES_MS)},
}


@dataclass
class Watched:
    """Memory and health of the one replica of a scene."""

    scene: Scene
    before: int = 0
    peak: int = 0
    unhealthy: int = 0
    asked: float = 0.0

    def sample(self) -> None:
        for worker in self.scene.members:
            self._sample(worker)

    def _sample(self, worker: Worker) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.peak = max(self.peak, psutil.Process(worker.process.pid).memory_info().rss)
        if time.monotonic() > self.asked + 2:
            self.asked = time.monotonic()
            try:
                self.unhealthy += worker.get("/health/live")[0] != 200
            except (OSError, urllib.error.URLError):
                self.unhealthy += 1

    def mark_before(self) -> None:
        self.before = self.peak
        self.peak = 0


def outages(
    servers: Servers,
    tell: Callable[[str], None],
    show: Callable[[int], None],
    warm: Sequence[Upload],
    uploads: Sequence[Upload],
    seconds: float,
    patience: Callable[[], float],
) -> list[Row]:
    """Stop the output broker for `seconds` while `uploads` come in, in both variants at once.

    `warm` comes before, so that memory is compared with that of a replica that has worked.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(kafka.kafka_broker())
        scenes = {
            variant: stack.enter_context(
                scene(servers, partial(_tell, tell, variant), LIMITS | extra, 1, output)
            )
            for variant, extra in VARIANTS.items()
        }
        watched = {variant: Watched(one) for variant, one in scenes.items()}
        first, second = scenes.values()
        for one in scenes.values():
            one.settle()
        for one in scenes.values():
            before = Phase(one, "warm", warm, seconds=5, padding=PADDING)
            before.begin()
            before.finish("at_least_once", None, nothing_excused, patience())
        phases = {
            variant: Phase(one, variant, uploads, seconds + 10, PADDING)
            for variant, one in scenes.items()
        }

        def watch() -> None:
            second.tend()
            for replica in watched.values():
                replica.sample()
            show(phases["output_away"].answered)

        for phase in phases.values():
            phase.begin()
        first.watch = watch
        first.sleep(5)
        for replica in watched.values():
            replica.mark_before()
        _mark(scenes, "output broker killed")
        output.kill()
        first.sleep(seconds)
        output.restart()
        _mark(scenes, "output broker back")
        rows = []
        for variant, phase in phases.items():
            row = phase.finish("at_least_once", None, nothing_excused, patience())
            _hold_to_bound(row, watched[variant], phase.traffic.bytes)
            rows.append(row)
        return rows


def _tell(tell: Callable[[str], None], variant: str, text: str) -> None:
    tell(f"{variant}: {text}")


def _mark(scenes: Mapping[str, Scene], text: str) -> None:
    for one in scenes.values():
        one.mark(text)


def _hold_to_bound(row: Row, watched: Watched, sent: int) -> None:
    grown = watched.peak - watched.before
    [worker] = watched.scene.members
    failures = worker.metric("copysieve_delivery_failures_total")
    row.notes = {
        "rss_before_mib": round(watched.before / MIB),
        "rss_grown_mib": round(grown / MIB),
        "rss_bound_mib": BOUND_BYTES // MIB,
        "input_mib": round(sent / MIB),
        "delivery_failures": failures,
    }
    if sent < 2 * BOUND_BYTES:
        row.failures.append(f"only {sent / MIB:.0f} MiB came in: too few to show a bound")
    if (failures > 0) != (row.fault == EXPIRED):
        row.failures.append(f"{failures:.0f} deliveries failed")
    if grown > BOUND_BYTES:
        row.failures.append(f"memory grew by {grown / MIB:.0f} MiB")
    if watched.unhealthy:
        row.failures.append(f"not alive {watched.unhealthy} times")
