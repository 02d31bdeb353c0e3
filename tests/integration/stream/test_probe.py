"""Each mistake in a login to Kafka is named, on a broker with all kinds of listeners."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.embedded import kafka as embedded
from worker.errors import StreamError
from worker.settings import Kafka
from worker.stream import probe
from worker.stream.admin import Admin

pytestmark = pytest.mark.kafka

LISTENERS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL", "MUTUAL")
PASSWORD = "right password"
JAAS = "org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="


@dataclass
class Secured:
    """A broker: the port of each listener, and its authority's certificate."""

    ports: dict[str, int]
    authority: Path

    def settings(self, listener: str, protocol: str, **changes: Any) -> Kafka:
        fields: dict[str, Any] = {
            "bootstrap_servers": (f"127.0.0.1:{self.ports[listener]}",),
            "security_protocol": protocol,
            "start_timeout_seconds": 5,
        }
        if protocol.endswith("SSL"):
            fields["ssl"] = {"cafile": self.authority}
        if protocol.startswith("SASL"):
            fields["sasl"] = {"mechanism": "PLAIN", "username": "worker", "password": PASSWORD}
        for name, value in changes.items():
            fields[name] = fields.get(name, {}) | value if isinstance(value, dict) else value
        return Kafka(**fields)


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*new, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    store = folder / "store.pem"
    store.write_text(key.read_text() + certificate.read_text())
    ports = {name: embedded._free_port() for name in LISTENERS[1:]}
    secure = {"SSL": "SSL", "SASL_PLAINTEXT": "SASL_PLAINTEXT", "SASL_SSL": "SASL_SSL"}
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    protocols = ",".join(f"{name}:{secure.get(name, 'SSL')}" for name in ports)
    lines = [
        f"listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller}},{listeners}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},{listeners}",
        f"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,{protocols}",
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={store}",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={certificate}",
        "listener.name.mutual.ssl.client.auth=required",
        "sasl.enabled.mechanisms=PLAIN",
        *(
            f'listener.name.{name}.plain.sasl.jaas.config={JAAS}"{PASSWORD}";'
            for name in ("sasl_plaintext", "sasl_ssl")
        ),
    ]
    with embedded.kafka_broker(more="\n".join(lines) + "\n") as broker:
        plain = int(broker.bootstrap_servers.rpartition(":")[2])
        yield Secured(ports | {"PLAINTEXT": plain}, certificate)


@pytest.mark.parametrize(
    ("listener", "protocol", "changes", "says"),
    [
        ("PLAINTEXT", "SSL", {}, "the port does not speak TLS"),
        ("PLAINTEXT", "SASL_SSL", {}, "the port does not speak TLS"),
        ("PLAINTEXT", "SASL_PLAINTEXT", {}, "the port takes no login"),
        ("SSL", "PLAINTEXT", {}, "the port may speak TLS"),
        ("SSL", "SASL_SSL", {}, "the port takes no login"),
        ("SSL", "SSL", {"ssl": {"cafile": None}}, "its certificate is not trusted: self-signed"),
        ("SSL", "SSL", {"ssl": {"cafile": "/no/ca.pem"}}, "kafka.ssl.cafile /no/ca.pem: no such"),
        ("MUTUAL", "SSL", {}, "it may want a certificate"),
        ("SASL_PLAINTEXT", "PLAINTEXT", {}, "it wants a login"),
        ("SASL_SSL", "SSL", {}, "it wants a login"),
        ("SASL_SSL", "SASL_PLAINTEXT", {}, "the port may speak TLS"),
        (
            *("SASL_SSL", "SASL_SSL", {"sasl": {"password": "wrong"}}),
            "it refuses the login of worker: Authentication failed",
        ),
        (
            *("SASL_PLAINTEXT", "SASL_PLAINTEXT", {"sasl": {"mechanism": "SCRAM-SHA-512"}}),
            "it takes logins by PLAIN, and kafka.sasl.mechanism is SCRAM-SHA-512",
        ),
    ],
)
def test_a_mistake_is_named(secured, caplog, listener, protocol, changes, says):
    settings = secured.settings(listener, protocol, **changes)
    with pytest.raises(StreamError) as refused:
        Admin(settings, settings.bootstrap_servers)
    assert says in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not caplog.records


@pytest.mark.parametrize(
    ("listener", "protocol"),
    [(name, name) for name in LISTENERS[:4]] + [("MUTUAL", "SSL")],
)
def test_a_right_login_is_taken(secured, listener, protocol):
    changes = {}
    if listener == "MUTUAL":
        store = secured.authority.with_name("store.pem")
        changes = {"ssl": {"certfile": store, "keyfile": store}}
    settings = secured.settings(listener, protocol, **changes)
    assert probe.why_not(settings, settings.bootstrap_servers) is None
    with Admin(settings, settings.bootstrap_servers) as admin:
        assert admin.topics() is not None


def test_where_one_server_takes_the_login_no_other_is_a_mistake(secured):
    settings = secured.settings("SASL_SSL", "SASL_SSL")
    wrong = secured.settings("PLAINTEXT", "PLAINTEXT").bootstrap_servers
    probe.require_login(settings, (*wrong, *settings.bootstrap_servers))


def test_no_broker_is_waited_for_and_then_named():
    settings = Kafka(bootstrap_servers=("127.0.0.1:1",), start_timeout_seconds=1)
    probe.require_login(settings, settings.bootstrap_servers)
    with pytest.raises(StreamError, match=r"127\.0\.0\.1:1 cannot be used: Connection refused"):
        Admin(settings, settings.bootstrap_servers)
