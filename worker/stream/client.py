"""How kafka-python's clients are configured, and which of their errors end the process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from worker.errors import StreamError
from worker.settings import Kafka
from worker.stream import unpacking
from worker.stream.ledger import Commit, Partition
from worker.telemetry import log

logger = log.get(__name__)

FATAL: tuple[type[Exception], ...] = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.InvalidTopicError,
    kafka_errors.KafkaConfigurationError,
    kafka_errors.OffsetMetadataTooLargeError,
    kafka_errors.ProducerFencedError,
    kafka_errors.UnsupportedVersionError,
)
"""Trying again cannot help: the process ends and says so."""

REFUSED: tuple[type[Exception], ...] = (
    kafka_errors.InvalidRecordError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)
"""Kafka will never take this record, or one that shared its batch; others it takes."""

UNREADABLE: tuple[type[Exception], ...] = (
    kafka_errors.CorruptRecordError,
    kafka_errors.UnsupportedCodecError,
)
"""Fatal to a consumer: after records that it cannot read, kafka-python's spins for ever."""


READER_RECORD_BYTES = 64 * 1024 * 1024
READER_POLL_BYTES = 16 * 1024 * 1024
"""Of readers without a group, which have no `limits`: see `unpacking.bound`."""


@contextmanager
def tolerating(event: str) -> Iterator[None]:
    """Go on, and log `event`, where Kafka does not answer now; fatal errors are raised."""
    try:
        yield
    except FATAL:
        raise
    except kafka_errors.KafkaError as error:
        logger.warning(event, error=type(error).__name__)


def commit_transaction(
    producer: KafkaProducer,
    offsets: dict[TopicPartition, OffsetAndMetadata],
    group: Any,
    seconds: float,
) -> None:
    """Commit the open transaction with these offsets.

    Raises KafkaTimeoutError after `seconds`: kafka-python's own methods wait for ever, and when its
    coordinator was restarted they do.
    """
    manager = producer._transaction_manager  # noqa: SLF001
    until = time.monotonic() + seconds
    sending = [lambda: manager.send_offsets_to_transaction(offsets, group)] if offsets else []
    for begin in (*sending, manager.begin_commit):
        result = begin()
        producer._sender.wakeup()  # noqa: SLF001
        if not result.wait(timeout_ms=max(1.0, 1000 * (until - time.monotonic()))):
            raise kafka_errors.KafkaTimeoutError(f"a transaction did not end in {seconds:.0f} s")


def give_up(producer: KafkaProducer) -> None:
    """Close a producer without another try to deliver; what it still holds fails.

    Its own `close` begins with a flush that raises where Kafka is away, and then stops nothing.
    """
    producer._sender.force_close()  # noqa: SLF001 - there is no public way to give up
    with suppress(kafka_errors.KafkaError):
        producer.close(timeout=5)


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


def offsets(commits: dict[Partition, Commit]) -> dict[TopicPartition, OffsetAndMetadata]:
    """What the ledger wants committed, as kafka-python takes it."""
    return {
        TopicPartition(*partition): OffsetAndMetadata(*commit)
        for partition, commit in commits.items()
    }


def output_servers(settings: Kafka) -> tuple[str, ...]:
    """Where results go: the input's cluster unless another is set."""
    return settings.output.bootstrap_servers or settings.bootstrap_servers


def unreachable(servers: tuple[str, ...], why: Exception | str) -> NoReturn:
    """Raise the one line for a cluster that does not answer."""
    reason = " ".join(str(why).split()) or type(why).__name__
    cause = why if isinstance(why, Exception) else None
    raise StreamError(f"Kafka at {','.join(servers)} cannot be used: {reason}") from cause


def reader(settings: Kafka, servers: tuple[str, ...], **config: Any) -> KafkaConsumer:
    """A consumer of committed records without a group. Raises StreamError as `unreachable` does."""
    try:
        consumer = KafkaConsumer(
            **connection(settings, servers),
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            **config,
        )
    except (*FATAL, kafka_errors.KafkaError) as error:
        unreachable(servers, error)
    unpacking.bound(consumer, READER_RECORD_BYTES, READER_POLL_BYTES)
    return consumer


_LAST_MILLISECOND = 253_402_300_799_999


def moment(timestamp: int | None) -> datetime:
    """A record's timestamp in milliseconds, aware UTC; a producer may send any 64 bits."""
    return datetime.fromtimestamp(min(max(timestamp or 0, 0), _LAST_MILLISECOND) / 1000, UTC)
