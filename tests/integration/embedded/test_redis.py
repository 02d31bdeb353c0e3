import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import redis

from worker.embedded.redis import binary
from worker.embedded.redis import redis_server as run
from worker.errors import StoreError

pytestmark = pytest.mark.redis

# What a test run is when somebody kills it: no `finally` runs.
KILLED = """
import os, signal, sys
from pathlib import Path
from worker.embedded.redis import redis_server
with redis_server("any", Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("keep", "left"), [(True, b"1"), (False, None)])
def test_a_killed_server_returns_on_its_port(redis_server, tmp_path, keep, left):
    kind = redis_server.version.partition(" ")[0]
    with run(kind, tmp_path, keep_data=keep) as server:
        assert server.version.startswith(kind)
        first = server.pid
        with server.client() as client:
            client.set("key", "1")
            server.kill()
            with pytest.raises(redis.ConnectionError):
                client.ping()
        with pytest.raises(StoreError, match="not running"):
            _ = server.pid
        server.restart()
        assert server.pid != first
        with server.client() as client:
            assert client.get("key") == left
        pid = server.pid
    assert not psutil.pid_exists(pid)
    assert list(tmp_path.iterdir()) == []


def test_it_goes_with_whom_it_was_started_by(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    server = int(done.stdout)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(server).wait(timeout=30)
    assert not psutil.pid_exists(server) or psutil.Process(server).status() == "zombie"


def test_a_server_that_does_not_start_is_one_line(tmp_path):
    with (
        pytest.raises(StoreError, match=r"did not start: .*nonsense") as caught,
        run("any", tmp_path, options=("--nonsense", "yes")),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_program_there_is_no_redis_but_a_valkey(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StoreError, match="no redis-server on PATH"):
        binary("redis")
    assert os.access(binary("valkey"), os.X_OK)
    assert binary("any") == binary("valkey")
