import os

import pytest

from worker import settings
from worker.errors import SettingsError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("COPYSIEVE_"):
            monkeypatch.delenv(name)


def written(tmp_path, text):
    path = tmp_path / "worker.yaml"
    path.write_text(text)
    return path


def test_the_environment_is_stronger_than_the_file(tmp_path, monkeypatch):
    path = written(tmp_path, "kafka: {group_id: file, bootstrap_servers: [a:1]}\n")
    monkeypatch.setenv("COPYSIEVE_KAFKA__GROUP_ID", "environment")
    loaded = settings.load(path)
    assert loaded.kafka.group_id == "environment"
    assert loaded.kafka.bootstrap_servers == ("a:1",)


def test_the_file_may_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COPYSIEVE_CONFIG", str(written(tmp_path, "batch: {max_size: 7}\n")))
    assert settings.load().batch.max_size == 7


@pytest.mark.parametrize("value", ["a:1, b:2", '["a:1", "b:2"]'])
def test_lists_in_the_environment(monkeypatch, value):
    monkeypatch.setenv("COPYSIEVE_KAFKA__BOOTSTRAP_SERVERS", value)
    assert settings.load().kafka.bootstrap_servers == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kafka: {grup: x}", "kafka.grup: there is no such setting"),
        ("colour: red", "colour: there is no such setting"),
        ("batch: {max_size: 0}", "batch.max_size: "),
        ("batch: {max_size: 0, max_delay_ms: -1}", "(and 1 more)"),
        ("model: {device: tpu}", "model.device: "),
        ("redis: {url: 'file:/nowhere'}", "cannot read the secret's file /nowhere"),
        ("kafka: {security_protocol: SASL_SSL}", "needs sasl.username"),
        ("limits: {record_bytes: 999999999}", "at least 2 * record_bytes (1999999998)"),
        ("limits: {image_pixels: 999999999}", "at least 16 * image_pixels (15999999984)"),
        ("shutdown: {deadline_seconds: 1}", "must be above fetch.deadline_seconds"),
        ("kafka: {session_timeout_ms: 36000}", "shutdown.deadline_seconds must be at least 41"),
        ("fetch: {allowed_schemes: [https, s3]}", "allowed_buckets must name the buckets"),
        ("fetch: {allowed_schemes: [az, s3], allowed_buckets: ['s3://a-b']}", "az://uploads"),
        ("fetch: {allowed_buckets: ['gs://uploads']}", "allowed_schemes must have gs"),
        ("fetch: {allowed_buckets: [uploads]}", "fetch.allowed_buckets: must hold whole buckets"),
        ("fetch: {allowed_buckets: ['s3://uploads/a/']}", "fetch.allowed_buckets: "),
        ("fetch: {allowed_buckets: ['s3://*']}", "fetch.allowed_buckets: "),
        ("fetch: {allowed_buckets: ['https://uploads']}", "fetch.allowed_buckets: "),
        ("fetch: {allowed_hosts: ['s3://uploads']}", "belongs in fetch.allowed_buckets"),
        ("fetch: {allowed_hosts: ['https://example.org']}", "fetch.allowed_hosts: must hold hosts"),
        ("fetch: {allowed_hosts: ['example.org:8443']}", "fetch.allowed_hosts: must hold hosts"),
        ("fetch: {allowed_hosts: ['*']}", "fetch.allowed_hosts: must hold hosts"),
        ("fetch: {user_agent: ''}", "fetch.user_agent: "),
        ("fetch: {user_agent: ' x'}", "fetch.user_agent: "),
        ("fetch: {user_agent: 'x '}", "fetch.user_agent: "),
        ('fetch: {user_agent: "x\\r\\nHost: y"}', "fetch.user_agent: "),
        ('fetch: {user_agent: "x\\n"}', "fetch.user_agent: "),
        ('fetch: {user_agent: "x\\ty"}', "fetch.user_agent: "),
        ('fetch: {user_agent: "x\\u007f"}', "fetch.user_agent: "),
        ('fetch: {user_agent: "caf\\u00e9"}', "fetch.user_agent: "),
        (f"fetch: {{user_agent: '{'x' * 257}'}}", "fetch.user_agent: "),
        ("- a\n- b", "not a YAML mapping of settings"),
        ("a: [", "not a YAML mapping of settings"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(tmp_path, text, line):
    with pytest.raises(SettingsError) as caught:
        settings.load(written(tmp_path, text))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["x", "Mozilla/5.0 (X11; Linux x86_64) ~!", "x" * 256])
def test_the_user_agent_is_any_printable_line(monkeypatch, value):
    monkeypatch.setenv("COPYSIEVE_FETCH__USER_AGENT", value)
    assert settings.load().fetch.user_agent == value


@pytest.mark.parametrize("name", ["COPYSIEVE_COLOUR", "COPYSIEVE_KAFKAS__GROUP_ID"])
def test_an_unknown_variable_is_an_error(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match=f"{name}: there is no such setting"):
        settings.load()


def test_secrets_are_read_from_files_and_never_shown(tmp_path):
    secret = tmp_path / "url"
    secret.write_text("redis://:hunter2@host/0\n")
    loaded = settings.load(written(tmp_path, f"redis: {{url: 'file:{secret}'}}"))
    assert loaded.redis.url.get_secret_value() == "redis://:hunter2@host/0"
    assert "hunter2" not in repr(loaded)
    with pytest.raises(SettingsError) as caught:
        settings.load(written(tmp_path, "redis: {url: [hunter2]}"))
    assert "hunter2" not in str(caught.value)
