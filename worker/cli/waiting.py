"""Waiting until every live replica has applied a change, and telling how long it took.

Live is whose heartbeat is in Redis: 30 s after the last one a replica is taken for gone. One that
starts tells its heartbeat before it reads the hot set, so it is waited for, or reads the change.
One that falls silent meanwhile is waited for all the same: it may be cut off, and screen with what
it has. Only one that stops in order is not.
"""

import os
import pwd
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.common import emit, load_settings, stderr, stdout
from worker.hotset.store import Store, open_store
from worker.hotset.types import Head, Heartbeat
from worker.records import Version

POLL_SECONDS = 0.005
_UP_TO_DATE = ("following", "damaged")
"""States in which a mirror is at the version that its heartbeat tells."""

WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until every live replica has applied it.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait.")
]
ByOption = Annotated[
    str | None, typer.Option("--by", metavar="WHO", help="Who does it; the system's user if unset.")
]


@dataclass(frozen=True, slots=True)
class Waited:
    """Who has applied a version, who is late after all, and how long it took.

    `unusable` counts, by replica, references that it holds and cannot match. `models` are digests.
    """

    version: Version
    seconds: float
    applied: list[str]
    late: list[str]
    unusable: dict[str, int]
    models: list[str]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "version": str(self.version),
            "seconds": round(self.seconds, 3),
            "applied": self.applied,
            "late": self.late,
            "unusable": self.unusable,
            "models": self.models,
        }


def user() -> str:
    """Name of the system's user; in a container it may have none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def has_applied(beat: Heartbeat, version: Version, head: Head | None) -> bool:
    """Whether a replica searches what the version has.

    `head` was read after the heartbeat: a mirror beyond it is of a history that a failover lost.
    """
    if head is None or beat.version is None or beat.state not in _UP_TO_DATE:
        return False
    own, latest = Version.parse(beat.version), head.version
    return own.epoch == version.epoch == latest.epoch and version.seq <= own.seq <= latest.seq


def name_of(identity: str) -> str:
    """The name of a replica, of its name and process."""
    return identity.partition(":")[0]


def models_of(beats: Sequence[Heartbeat]) -> list[str]:
    """Digests of the models that replicas run."""
    return sorted({beat.model for beat in beats})


def warn_of_models(models: Sequence[str]) -> None:
    """Say that replicas run different models: a reference needs descriptors by each."""
    if len(models) > 1:
        listed = ", ".join(sha256[:12] for sha256 in models)
        line = f"replicas run different models ({listed}): add references by each of them"
        stderr.print(line, style="yellow", markup=False, highlight=False)


def wait_for(store: Store, version: Version, timeout: float) -> Waited:
    """Wait for every live replica, `timeout` seconds at most. Raises StoreError."""
    began, late = time.monotonic(), set[str]()
    while True:
        beats = store.heartbeats()
        head = store.head()
        silent = late - {beat.identity for beat in beats}
        late = {beat.identity for beat in beats if not has_applied(beat, version, head)}
        late |= {one for one in silent if not store.has_left(one)}
        seconds = time.monotonic() - began
        if not late or seconds > timeout:
            applied = [beat.name for beat in beats if beat.identity not in late]
            unusable: dict[str, int] = {}
            for beat in beats:  # several processes may have one name
                if beat.unusable:
                    unusable[beat.name] = max(beat.unusable, unusable.get(beat.name, 0))
            names = sorted(map(name_of, late))
            return Waited(version, seconds, applied, names, unusable, models_of(beats))
        time.sleep(POLL_SECONDS)


def tell(waited: Waited) -> None:
    """Say it in a line, or what is late on stderr."""
    if waited.late:
        late = ", ".join(waited.late)
        stderr.print(f"not applied after {waited.seconds:.1f} s by {late}", markup=False)
    elif waited.applied:
        count = len(waited.applied)
        stdout.print(f"applied by {count} live replica(s) after {waited.seconds:.3f} s")
    else:
        stdout.print("no replica is running")
    warn_of_models(waited.models)
    for name, count in waited.unusable.items():
        line = f"{name} cannot match {count} references: its model does not describe them"
        stderr.print(line, style="yellow", markup=False, highlight=False)


def make(
    change: Callable[[Store], Version],
    config: Path | None,
    *,
    by: str | None = None,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Make a change of the hot set as a command: tell its version, wait, exit 1 if one is late."""
    with closing(open_store(load_settings(config).redis, by or user())) as store:
        version = change(store)
        stdout.print(f"version {version}", highlight=False)
        waited = wait_for(store, version, timeout) if wait else None
    if waited:
        tell(waited)
    if as_json:
        emit({"version": str(version), "waited": waited.document() if waited else None})
    if waited and waited.late:
        raise typer.Exit(1)
