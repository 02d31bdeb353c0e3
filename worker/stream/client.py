"""How kafka-python's clients are configured, and which of their errors end the process."""

from typing import Any, NoReturn

from kafka import errors as kafka_errors

from worker.errors import StreamError
from worker.settings import Kafka

FATAL: tuple[type[Exception], ...] = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.KafkaConfigurationError,
    kafka_errors.ProducerFencedError,
    kafka_errors.UnsupportedVersionError,
)
"""Trying again cannot help: the process ends and says so."""


def connection(settings: Kafka, servers: tuple[str, ...]) -> dict[str, Any]:
    """Address, security and timeouts, the same for consumers, producers and admin clients."""
    config: dict[str, Any] = {
        "bootstrap_servers": list(servers),
        "security_protocol": settings.security_protocol,
        "bootstrap_timeout_ms": int(settings.start_timeout_seconds * 1000),
        "reconnect_backoff_max_ms": 2000,
    }
    if settings.security_protocol.endswith("SSL"):
        tls = settings.ssl
        config |= {
            "ssl_check_hostname": tls.check_hostname,
            "ssl_cafile": str(tls.cafile) if tls.cafile else None,
            "ssl_certfile": str(tls.certfile) if tls.certfile else None,
            "ssl_keyfile": str(tls.keyfile) if tls.keyfile else None,
            "ssl_password": tls.password.get_secret_value() if tls.password else None,
        }
    if settings.security_protocol.startswith("SASL"):
        sasl = settings.sasl
        config |= {
            "sasl_mechanism": sasl.mechanism,
            "sasl_plain_username": sasl.username,
            "sasl_plain_password": sasl.password.get_secret_value() if sasl.password else None,
        }
    return config


def output_servers(settings: Kafka) -> tuple[str, ...]:
    """Where results go: the input's cluster unless another is set."""
    return settings.output.bootstrap_servers or settings.bootstrap_servers


def unreachable(servers: tuple[str, ...], error: Exception) -> NoReturn:
    """Raise the one line for a cluster that does not answer."""
    reason = " ".join(str(error).split()) or type(error).__name__
    raise StreamError(f"Kafka at {','.join(servers)} cannot be used: {reason}") from error
