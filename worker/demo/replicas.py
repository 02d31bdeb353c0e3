"""Replicas as a platform runs them: `copysieve run` processes, with settings from outside."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from worker.errors import StartupError
from worker.records import Version
from worker.settings import PREFIX

START_SECONDS = 120.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1

type Overrides = Mapping[str, Mapping[str, Any]]
"""Settings by group and name, as `settings.load` takes them."""


def as_environment(overrides: Overrides) -> dict[str, str]:
    """The same settings as environment variables."""
    return {
        f"{PREFIX}{group}__{name}".upper(): str(value).lower() if value is True else str(value)
        for group, values in overrides.items()
        for name, value in values.items()
    }


class Replica:
    """One `copysieve run`. Made by `replicas`, which also ends it."""

    def __init__(self, name: str, overrides: Overrides, config: Path | None, log: Path) -> None:
        self.name = name
        self.log = log
        options = ["--config", str(config)] if config else []
        environment = as_environment({**overrides, "replica": {"name": name}})
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "worker", "run", *options),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the replicas end after the last upload
                env=os.environ | environment,
            )
        # If we are killed ourselves, the guard's stdin closes and it takes the replica with it.
        self._guard = subprocess.Popen(
            ("/bin/sh", "-c", "read -r _; kill -KILL $0", str(self._process.pid)),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def serves(self, version: Version) -> bool:
        """Whether it has the hot set at `version`, and partitions in a stable group.

        Raises StartupError, with the last line of its log, if it has ended.
        """
        self.require_running()
        metrics = self._metrics()
        return (
            metrics.get("copysieve_hotset_epoch") == version.epoch
            and metrics.get("copysieve_hotset_seq", 0) >= version.seq
            and metrics.get("copysieve_partitions_assigned", 0) > 0
            and metrics.get("copysieve_group_stable") == 1
        )

    def require_running(self) -> None:
        """Raise StartupError, with the last line of its log, if it has ended."""
        if self._process.poll() is not None:
            lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
            raise StartupError(f"{self.name} ended: {lines[-1] if lines else 'without a word'}")

    def terminate(self) -> None:
        """Ask it to finish what is in flight, and to end."""
        self._process.terminate()

    def end(self, deadline: float) -> None:
        """Wait for its end until `deadline` (monotonic), then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._guard.kill()
        for process in (self._process, self._guard):
            process.communicate()

    def _metrics(self) -> dict[str, float]:
        """Its metrics without labels; none while it does not serve them."""
        port = self._http_port()
        if port is None:
            return {}
        try:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except (URLError, OSError):
            return {}
        found = re.findall(r"^([a-z_]+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def _http_port(self) -> int | None:
        for line in self.log.read_text("utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                match json.loads(line):
                    case {"event": "started", "http_port": int(port)}:
                        return port
        return None


@contextmanager
def replicas(
    count: int, overrides: Overrides, config: Path | None, logs: Path
) -> Iterator[Sequence[Replica]]:
    """Run `count` replicas until the block is left, whatever happens in it.

    They end as in production: SIGTERM, and after `STOP_SECONDS` SIGKILL. Their logs are
    `replica-N.log` in `logs`.
    """
    running: list[Replica] = []
    try:
        for number in range(1, count + 1):
            name = f"replica-{number}"
            running.append(Replica(name, overrides, config, logs / f"{name}.log"))
        yield running
    finally:
        for replica in running:
            replica.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for replica in running:
            replica.end(deadline)


def wait_until_serving(running: Sequence[Replica], version: Version) -> None:
    """Wait until all serve the hot set at `version`.

    Raises StartupError if one ends, or they do not within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while not all(replica.serves(version) for replica in running):
        if time.monotonic() > deadline:
            logs = ", ".join(str(replica.log) for replica in running)
            raise StartupError(f"the replicas do not serve after {START_SECONDS:.0f} s: see {logs}")
        time.sleep(POLL_SECONDS)
