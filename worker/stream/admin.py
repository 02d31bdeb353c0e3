"""Topics: what must be there before the worker takes its first record, and who makes them."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from worker.errors import StreamError
from worker.settings import Kafka, Settings
from worker.stream import client, probe
from worker.stream.metadata import METADATA_BYTES
from worker.stream.publisher import RESULT_BYTES

_LIMIT = "max.message.bytes"
_POLICY = "cleanup.policy"
_METADATA_LIMIT = "offset.metadata.max.bytes"


class TopicSettings(NamedTuple):
    """What of a topic's settings matters to us: its largest record, in bytes, and compaction."""

    record_bytes: int
    compacted: bool


class Admin:
    """A connection for questions about topics. Raises StreamError where Kafka does not answer."""

    def __init__(self, settings: Kafka, servers: tuple[str, ...]) -> None:
        self._servers = servers
        probe.require_login(settings, servers)
        try:
            self._client = KafkaAdminClient(**client.connection(settings, servers))
        except (*client.FATAL, kafka_errors.KafkaError) as error:
            client.unreachable(servers, probe.why_not(settings, servers) or error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def topics(self) -> set[str]:
        """Names of all topics that this login may see."""
        try:
            return set(self._client.list_topics())
        except kafka_errors.KafkaError as error:
            client.unreachable(self._servers, error)

    def settings(self, topics: Iterable[str]) -> dict[str, TopicSettings]:
        """The settings of each topic; a topic whose settings may not be read is absent."""
        wanted = {_LIMIT: None, _POLICY: None}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in topics]
        try:
            described = self._client.describe_configs(resources, config_filter="all")
        except kafka_errors.KafkaError:
            return {}
        by_name: dict[str, Any] = described.get("topic", {})
        return {
            name: TopicSettings(
                int(config[_LIMIT]["value"]), "compact" in config[_POLICY]["value"].split(",")
            )
            for name, config in by_name.items()
            if _LIMIT in config and _POLICY in config  # without the right to read them: neither
        }

    def metadata_limit(self) -> int | None:
        """The lowest `offset.metadata.max.bytes` of all brokers; None where none may be read."""
        try:
            brokers = [str(one["broker_id"]) for one in self._client.describe_cluster()["brokers"]]
            wanted = {_METADATA_LIMIT: None}
            resources = [ConfigResource(ConfigResourceType.BROKER, one, wanted) for one in brokers]
            described = self._client.describe_configs(resources, config_filter="all")
        except kafka_errors.KafkaError:
            return None
        by_id: dict[str, Any] = described.get("broker", {})
        values = (config.get(_METADATA_LIMIT, {}).get("value") for config in by_id.values())
        return min((int(value) for value in values if value), default=None)

    def create(self, names: Iterable[str], partitions: int, config: dict[str, str]) -> None:
        """Create the topics that are not there. Replication is the cluster's default."""
        missing = set(names) - self.topics()
        if missing:
            self._client.create_topics(
                {name: {"num_partitions": partitions, "configs": config} for name in missing},
                wait_for_metadata=True,
            )


def require_topics(settings: Settings) -> list[str]:
    """Check the topics before any upload is taken; returns warnings.

    Raises StreamError for a cluster that does not answer, a topic that is missing, an output topic
    that is compacted or too small for a result, and brokers that would refuse the metadata of
    commits. A group on a missing topic would look stable, and empty, for ever.
    """
    kafka, topics = settings.kafka, settings.kafka.topics
    outputs = [topics.matches, topics.shadow, topics.verdicts, topics.dead_letters]
    with Admin(kafka, kafka.bootstrap_servers) as admin:
        _require(admin, [topics.uploads], kafka.bootstrap_servers)
        _require_metadata(admin)
        uploads = admin.settings([topics.uploads]).get(topics.uploads)
    with Admin(kafka, client.output_servers(kafka)) as admin:
        _require(admin, outputs, client.output_servers(kafka))
        _require_room_for_results(admin.settings(outputs))
    warnings = []
    if uploads is not None and uploads.record_bytes > settings.limits.record_bytes:
        above = f"those above limits.record_bytes ({settings.limits.record_bytes})"
        size = uploads.record_bytes
        warnings.append(f"topic {topics.uploads} takes {size} bytes; {above} become dead letters")
    if uploads is not None and uploads.compacted:
        warnings.append(
            f"topic {topics.uploads} is compacted: Kafka may remove an upload before it is screened"
            " when another record has its key; set its cleanup.policy to delete"
        )
    return warnings


def _require_room_for_results(outputs: dict[str, TopicSettings]) -> None:
    """Raise StreamError for an output topic that would refuse results, or remove them."""
    for name, topic in sorted(outputs.items()):
        if topic.record_bytes < RESULT_BYTES:
            raise StreamError(
                f"topic {name} takes records of {topic.record_bytes} bytes, results may have"
                f" {RESULT_BYTES}: raise its max.message.bytes"
            )
        if topic.compacted:
            raise StreamError(
                f"topic {name} is compacted: Kafka would remove results that share a key and refuse"
                " dead letters that have none; set its cleanup.policy to delete"
            )


def _require_metadata(admin: Admin) -> None:
    limit = admin.metadata_limit()
    if limit is not None and limit < METADATA_BYTES:
        raise StreamError(
            f"the brokers keep {limit} bytes of metadata with a commit, copysieve writes up to"
            f" {METADATA_BYTES}: raise their {_METADATA_LIMIT}"
        )


def _require(admin: Admin, names: list[str], servers: tuple[str, ...]) -> None:
    if missing := sorted(set(names) - admin.topics()):
        raise StreamError(f"there is no topic {', '.join(missing)} at {','.join(servers)}")
