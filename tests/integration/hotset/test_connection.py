"""How Redis is reached elsewhere: by a user with few rights, by TLS, through Sentinel."""

import shutil
import socket
import subprocess
import time

import numpy as np
import pytest
import torch
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.fixtures.hot_set import MODEL, bank, descriptors, reference
from worker.embedded import redis
from worker.errors import StoreError
from worker.hotset.mirror import Mirror
from worker.hotset.store import open_store
from worker.hotset.sync import HotSetSync
from worker.scoring import artefact
from worker.settings import HotSetSettings, Redis

pytestmark = pytest.mark.redis
PATIENCE = 20.0
RIGHTS = (
    "~{copysieve}:*",
    *("+ping", "+hello", "+client", "+select", "+info", "+command"),
    *(
        "+get",
        "+set",
        "+del",
        "+unlink",
        "+exists",
        "+lpush",
        "+lrange",
        "+ltrim",
        "+hsetnx",
        "+expire",
        "+pexpire",
        "+incrby",
    ),
    *("+hget", "+hset", "+hdel", "+hgetall", "+hkeys", "+hlen", "+hincrby"),
    *("+sadd", "+srem", "+smembers", "+xadd", "+xread", "+xrevrange", "+pfadd", "+pfcount"),
    *("+evalsha", "+eval", "+script|load"),
)
"""All that a worker and the commands need; docs/operations.md names them."""


def works(config):
    """A hot set is written, followed by a replica, and found."""
    with_failures: list[BaseException] = []
    store = open_store(config, "ann")
    store.set_bank(bank())
    mirror = Mirror(MODEL, "cpu")
    reader = store.of_model(MODEL, artefact.read_for)
    sync = HotSetSync(reader, mirror, HotSetSettings(), "replica-1", with_failures.append)
    sync.start()
    assert sync.wait_ready(PATIENCE, lambda: False)
    store.add_references([(reference(), descriptors(1)), (reference("r2"), descriptors(2))], MODEL)
    store.set_enabled(["r2"], enabled=False)
    store.remove_references(["r2"])
    version = store.purge_references(["r2"])
    deadline = time.monotonic() + PATIENCE
    while (head := mirror.head) is None or head.version != version or not store.heartbeats():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    query = torch.from_numpy(descriptors(1).rows[:1].astype(np.float32))
    assert mirror.search(query, [None], 1).hits[0][0].reference == reference()
    there = store.head()
    assert there is not None
    assert there.tallies.of_model(MODEL.sha256) == mirror.tallies()
    census, duty = store.census(), store.duty()
    census.screened(3)
    assert census.floods() == frozenset()
    assert duty.hold()
    assert len(duty.key()) == 32
    duty.release()
    assert len(store.audit(None, 50)) == 5
    assert store.lacking_views() == {}
    assert store.accept().references == 1
    sync.stop()
    store.close()
    assert with_failures == []


@pytest.fixture
def certificate(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(pem)]
    subprocess.run([*new, *names, *files], check=True, capture_output=True)
    return key, pem


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_user_with_few_rights_on_a_server_that_denies_config(kind):
    with _server(kind) as server:
        with server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "worker", "on", ">secret", "resetkeys", *RIGHTS
            )
        url = f"redis://worker:secret@127.0.0.1:{server.port}/0"
        with capture_logs() as logs:
            works(Redis(url=SecretStr(url)))
        assert "redis_policy_unknown" in {log["event"] for log in logs}


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_over_tls(kind, certificate):
    key, pem = certificate
    port = _free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(pem), "--tls-key-file", str(key))
    try:
        server = _server(kind, *options, "--tls-ca-cert-file", str(pem), "--tls-auth-clients", "no")
        with server:
            secure = {"url": f"rediss://localhost:{port}/0", "ssl": {"cafile": str(pem)}}
            works(Redis.model_validate(secure))
            with pytest.raises(StoreError, match="cannot be reached"):
                open_store(Redis.model_validate({"url": secure["url"], "timeout_seconds": 1}))
    except StoreError as error:
        if "did not" in str(error) or "does not start" in str(error):
            pytest.skip(f"{kind} is built without TLS")
        raise


def test_through_sentinel_and_on_after_a_failover(tmp_path):
    sentinel = shutil.which("redis-sentinel") or shutil.which("redis-server")
    if sentinel is None:
        pytest.skip("needs redis-sentinel")
    with _server("redis") as first, _server("redis") as second:
        with second.client() as client:
            client.replicaof("127.0.0.1", first.port)
        port = _free_port()
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
            f"sentinel monitor hot 127.0.0.1 {first.port} 1\n"
            "sentinel down-after-milliseconds hot 500\nsentinel failover-timeout hot 3000\n"
        )
        process = subprocess.Popen([sentinel, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            settings = Redis.model_validate(
                {
                    "sentinel": {"hosts": [f"127.0.0.1:{port}"], "service": "hot"},
                    "timeout_seconds": 1,
                }
            )
            _until(lambda: _opens(settings))
            works(settings)
            store = open_store(settings)
            before = store.head()
            _until(lambda: _offset(second) == _offset(first))
            first.kill()
            _until(lambda: _same_head(settings, before))
            store.set_bank(bank(label="after the failover"))
            store.close()
        finally:
            process.kill()
            process.wait()


def _server(kind, *options):
    try:
        redis.binary(kind)
    except StoreError as error:
        pytest.skip(str(error))
    return redis.redis_server(kind, options=options)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _offset(server):
    with server.client() as client:
        return client.info("replication")["master_repl_offset"]


def _opens(settings):
    try:
        open_store(settings).close()
    except StoreError:
        return False
    return True


def _same_head(settings, head):
    try:
        store = open_store(settings)
        found = store.head()
        store.close()
    except StoreError:
        return False
    return found == head


def _until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
