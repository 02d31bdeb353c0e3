import pytest

from worker import settings
from worker.demo import replicas
from worker.demo.replicas import Overrides
from worker.errors import StartupError
from worker.records import Version

OVERRIDES: Overrides = {
    "kafka": {"bootstrap_servers": "127.0.0.1:20001"},
    "redis": {"url": "redis://127.0.0.1:20002/0"},
    "model": {"name": "sscd_disc_mixup_int8", "threads": 1},
    "fetch": {"allowed_schemes": "https,http", "allow_loopback_addresses": True},
    "http": {"host": "127.0.0.1", "port": 0},
}


def test_the_environment_says_what_the_overrides_say(monkeypatch):
    expected = settings.load(None, replica={"name": "r"}, **OVERRIDES)
    for name, value in replicas.as_environment(OVERRIDES).items():
        monkeypatch.setenv(name, value)
    assert settings.load(None, replica={"name": "r"}).model_dump() == expected.model_dump()
    assert expected.fetch.allowed_schemes == ("https", "http")
    assert expected.fetch.allow_loopback_addresses


@pytest.mark.processes
def test_a_replica_that_ends_is_told_with_its_last_line(tmp_path):
    wrong = {"model": {"threads": 0}}
    with (
        replicas.replicas(1, wrong, None, tmp_path) as running,
        pytest.raises(StartupError, match=r"replica-1 ended: copysieve: model\.threads"),
    ):
        replicas.wait_until_serving(running, Version(1, 1))


@pytest.mark.processes
def test_replicas_are_gone_after_an_error(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        replicas.replicas(2, OVERRIDES, None, tmp_path) as running,
    ):
        raise KeyboardInterrupt
    for replica in running:
        with pytest.raises(StartupError, match="ended"):
            replica.serves(Version(1, 1))
