"""One phase: a plan of uploads, a fault meanwhile, and what became of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.host import Host
from tests.chaos.judge import Excuse, Judged, judge, stall_within
from tests.chaos.reader import Result
from tests.chaos.scene import KILL, Mark, Scene
from tests.chaos.traffic import Traffic, Upload

FETCHES_FAIL = {"fetch_timeout", "fetch_failed", "host_unavailable"}
HAD_IT_SECONDS = 0.5


@dataclass
class Row:
    """A line of the table. `failures` says in words why the phase failed; times in seconds."""

    delivery: str
    fault: str
    judged: Judged
    deaths: list[str]
    failures: list[str]
    seconds: float
    began: float
    marks: list[Mark]
    arrivals: list[float]
    notes: dict[str, float] = field(default_factory=dict)


class Phase:
    """`begin`, break something, `finish`. One scene has one phase at a time."""

    def __init__(
        self,
        scene: Scene,
        fault: str,
        uploads: Sequence[Upload],
        seconds: float,
        padding: int = 0,
    ) -> None:
        self.fault = fault
        self._scene, self._uploads = scene, uploads
        broker, stream = scene.broker, scene.screening.stream
        self.traffic = Traffic(
            broker.bootstrap_servers,
            stream.topics.uploads,
            uploads,
            seconds,
            scene.host.url,
            fault,
            padding,
        )
        self._before = 0
        self._began = 0.0

    @property
    def answered(self) -> int:
        return len(self._scene.reader.answered) - self._before

    def begin(self) -> None:
        """Wait for a settled group, and start the uploads."""
        scene = self._scene
        scene.deaths, scene.marks = [], []
        scene.settle()
        scene.marks = []
        self._before = len(scene.reader.answered)
        self._began = time.monotonic()
        self.traffic.start()

    def finish(
        self, delivery: str, calm: Mapping[int, Result] | None, excuse: Excuse, seconds: float
    ) -> Row:
        """Wait until all is answered, `seconds` at most, and judge."""
        scene = self._scene
        scene.wait_for(lambda: not self.traffic.is_alive(), seconds)
        scene.wait_for(lambda: self.answered >= len(self._uploads), seconds)
        scene.sleep(1)  # for repeats that are still on their way
        until = time.monotonic()
        results = scene.reader.results[scene.judged :]
        scene.judged += len(results)
        sent = list(self.traffic.sent)
        judged = judge(sent, results, calm, excuse, until, scene.sent_before)
        scene.sent_before |= {(one.partition, one.offset) for one in sent}
        failures = [f"not published: {error!r}" for error in self.traffic.failed[:3]]
        if not failures and len(sent) < len(self._uploads):
            failures = ["not all uploads were published"]
        failures += [
            f"{count} {word}"
            for word, count in (
                ("lost", judged.lost),
                ("wrong", judged.wrong),
                ("ids out of order", judged.disordered),
                ("with several verdict ids", judged.torn),
                ("duplicates", judged.duplicates if delivery == "exactly_once" else 0),
            )
            if count
        ]
        row = Row(
            delivery=delivery,
            fault=self.fault,
            judged=judged,
            deaths=list(scene.deaths),
            failures=[*failures, *judged.blamed, *scene.deaths],
            seconds=until - self._began,
            began=self._began,
            marks=list(scene.marks),
            arrivals=[r.at for r in judged.answers.values()],
        )
        kills = [mark.at for mark in row.marks if mark.text.startswith(KILL)]
        for number, (kill, end) in enumerate(pairwise([*kills, until]), start=1):
            row.notes[f"stall_after_kill_{number}"] = round(stall_within(judged, kill, end), 2)
        return row


def look_once_more(scene: Scene, row: Row) -> None:
    """What came after the last phase, the replicas' end included: it can only be repeats."""
    late = scene.reader.results[scene.judged :]
    scene.judged += len(late)
    row.judged.duplicates += len(late)
    strays = [one.source for one in late if one.source not in scene.sent_before]
    row.failures += [f"a result of nothing that was sent: {source}" for source in strays]
    if late and row.delivery == "exactly_once":
        row.failures.append(f"{len(late)} duplicates at the end")
    row.failures += [death for death in scene.deaths if death not in row.deaths]


def nothing_excused(_: Upload, __: Result) -> bool:
    return False


def unless_given(host: Host, phase: str) -> Excuse:
    """While the host fails, a link may end `unscreened`, but not if the worker had the picture.

    That is: the host had sent it whole, between the arrival of the upload and half a second before
    its verdict.
    """

    def excused(upload: Upload, answer: Result) -> bool:
        if not upload.linked or answer.reason not in FETCHES_FAIL:
            return False
        if answer.received_at is None or answer.screened_at is None:
            return False
        begin, end = answer.received_at.timestamp(), answer.screened_at.timestamp()
        given = host.given.get((phase, upload.index), [])
        return not any(begin < at < end - HAD_IT_SECONDS for at in given)

    return excused
