"""All settings, from a file and the environment.

Sources, strongest first: keyword arguments, environment variables (`COPYSIEVE_KAFKA__GROUP_ID`),
the YAML file (`--config`, else `COPYSIEVE_CONFIG`), the defaults below. `config/worker.yaml` shows
every setting with its default and is held to this module by a test.
"""

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from worker.errors import SettingsError
from worker.settings_base import (
    Group,
    Names,
    Port,
    Positive,
    PositiveFloat,
    Secret,
    split,
)
from worker.settings_fetch import Fetch as Fetch  # noqa: PLC0414 - others import it from here

KIB = 1024
MIB = 1024 * KIB
PREFIX = "COPYSIEVE_"
JOIN_SECONDS = 5.0
"""What a group may take to be whole again, and to commit, when a dead member's session ended."""

Delivery = Literal["at_least_once", "exactly_once"]
Isolation = Literal["threads", "processes"]


def _with_plain(uploads: tuple[str, ...]) -> tuple[str, ...]:
    if "plain" not in uploads or len(set(uploads)) < len(uploads):
        raise ValueError("must hold plain, and nothing twice")
    return uploads


class Topics(Group):
    """Names of the topics."""

    uploads: str = "image.uploads"
    matches: str = "image.matches"
    shadow: str = "image.matches.shadow"
    verdicts: str = "image.verdicts"
    dead_letters: str = "image.uploads.dlq"


class Sasl(Group):
    """SASL, where `kafka.security_protocol` says so."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"] = "SCRAM-SHA-512"
    username: str | None = None
    password: Secret | None = None


class Ssl(Group):
    """TLS towards Kafka or Redis. Paths of PEM files; the system's authorities by default."""

    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    password: Secret | None = None
    check_hostname: bool = True


class KafkaOutput(Group):
    """Where results go, if not to the cluster that uploads come from."""

    bootstrap_servers: Names | None = None


class Kafka(Group):
    """The stream of uploads and of results."""

    bootstrap_servers: Names = ("localhost:9092",)
    output: KafkaOutput = KafkaOutput()
    group_id: str = "copysieve"
    session_timeout_ms: Positive = 20_000
    max_poll_interval_ms: Positive = 60_000
    delivery_timeout_ms: Annotated[int, Field(ge=1_000)] = 3_600_000
    topics: Topics = Topics()
    delivery: Delivery = "at_least_once"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl: Sasl = Sasl()
    ssl: Ssl = Ssl()
    start_timeout_seconds: PositiveFloat = 30.0

    @model_validator(mode="after")
    def _transactions_have_one_cluster(self) -> Self:
        if self.delivery == "exactly_once" and self.output.bootstrap_servers is not None:
            raise ValueError("delivery exactly_once needs results on the cluster of the uploads")
        return self

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and self.sasl.mechanism != "GSSAPI":
            missing = [n for n in ("username", "password") if getattr(self.sasl, n) is None]
            if missing:
                raise ValueError(
                    f"security_protocol {self.security_protocol} needs sasl.{missing[0]}"
                )
        return self


class Sentinel(Group):
    """Redis Sentinel: used when `hosts` is set, and then `redis.url` gives database and login."""

    hosts: Names = ()
    service: str = "mymaster"


class Redis(Group):
    """Where the hot set lives."""

    url: Secret = SecretStr("redis://localhost:6379/0")
    cluster: bool = False
    sentinel: Sentinel = Sentinel()
    ssl: Ssl = Ssl()
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = "copysieve"
    timeout_seconds: PositiveFloat = 5.0


class ModelSettings(Group):
    """The descriptor's model. `path` takes a file of your own; `sha256` pins it."""

    name: Annotated[str, Field(max_length=128)] = "sscd_resnext_101_c1"
    path: Path | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    threads: Positive | None = None
    cache: Path | None = None


class Views(Group):
    """What of an upload is described: at most so many `renditions`, each in all `uploads`.

    A rendition is one way in which the file can be seen: a frame, with or without its colour
    profile, on white or on black. Most files have one.
    """

    uploads: Annotated[
        tuple[Literal["plain", "centre_crop", "five_crops"], ...],
        NoDecode,
        BeforeValidator(split),
        AfterValidator(_with_plain),
    ] = ("plain",)
    renditions: Annotated[int, Field(gt=0, le=16)] = 8


class Batch(Group):
    """A batch closes at `max_size`, or when its oldest upload has waited `max_delay_ms`."""

    max_size: Annotated[int, Field(gt=0, le=1024)] = 32
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 5.0


class Limits(Group):
    """Bounds on what is in flight, and on one upload."""

    in_flight_records: Annotated[int, Field(gt=0, le=100_000)] = 1024
    in_flight_bytes: Positive = 256 * MIB
    in_flight_decoded_bytes: Positive = 2048 * MIB
    record_bytes: Positive = 16 * MIB
    image_bytes: Positive = 32 * MIB
    image_pixels: Positive = 100_000_000
    image_frames: Positive = 1000
    animation_pixels: Positive = 250_000_000
    image_aspect_ratio: PositiveFloat = 50.0

    @model_validator(mode="after")
    def _one_upload_fits(self) -> Self:
        if 2 * self.record_bytes > self.in_flight_bytes:
            raise ValueError(
                f"in_flight_bytes ({self.in_flight_bytes}) must be at least"
                f" 2 * record_bytes ({2 * self.record_bytes})"
            )
        if 16 * self.image_pixels > self.in_flight_decoded_bytes:
            raise ValueError(
                f"in_flight_decoded_bytes ({self.in_flight_decoded_bytes}) must be at least"
                f" 16 * image_pixels ({16 * self.image_pixels})"
            )
        return self


class Decode(Group):
    """The threads, and processes, that decode pictures: `workers`, and half as many for large ones.

    With `processes` each thread has a sandboxed child, replaced after so many pictures.
    """

    workers: Positive = Field(default_factory=lambda: os.cpu_count() or 1)
    isolation: Isolation = "processes"
    deadline_seconds: PositiveFloat = 10.0
    large_wait_seconds: PositiveFloat = 30.0
    pictures_per_process: Positive = 10_000

    @property
    def large_workers(self) -> int:
        """Threads that decode large pictures, beside the others."""
        return max(1, self.workers // 2)

    @property
    def threads(self) -> int:
        """Threads that decode, all together."""
        return self.workers + self.large_workers


class HotSetSettings(Group):
    """The mirror: its copy on disk, what it does when Redis is away, what a reference may cost.

    `folder` keeps the hot set for the next process: descriptors are sensitive, so by default it
    lives in a nameless temporary file.
    """

    folder: Path | None = None
    on_stale: Literal["continue", "pause"] = "continue"
    stale_after_seconds: PositiveFloat = 60.0
    max_shrink: Annotated[float, Field(gt=0, le=1)] = 0.5
    false_match_share: Annotated[float, Field(gt=0, le=1)] = 0.05


class Verdicts(Group):
    """What goes to `image.verdicts`."""

    publish: Literal["all", "matches_and_unscreened"] = "all"


class Canaries(Group):
    """Pictures that are published again and again, to see that screening works. 0: none."""

    folder: Path | None = None
    per_minute: Annotated[int, Field(ge=0, le=600)] = 0

    @model_validator(mode="after")
    def _pictures_are_named(self) -> Self:
        if self.per_minute and self.folder is None:
            raise ValueError("per_minute needs a folder")
        return self


class Replica(Group):
    """This process."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}"
    )


class Shutdown(Group):
    """What SIGTERM may take; the pod's grace period should be 10 s above it."""

    deadline_seconds: PositiveFloat = 40.0


class Http(Group):
    """Metrics and health. Port 0 takes a free one, which the log names.

    Metrics name banks and their thresholds, so by default only this machine can read them.
    """

    host: str = "127.0.0.1"
    port: Port = 9464


class Log(Group):
    """Structured logs on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(BaseSettings):
    """All settings of every command."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        yaml_file_encoding="utf-8",
    )

    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    model: ModelSettings = ModelSettings()
    views: Views = Views()
    batch: Batch = Batch()
    limits: Limits = Limits()
    decode: Decode = Field(default_factory=Decode)
    fetch: Fetch = Fetch()
    hotset: HotSetSettings = HotSetSettings()
    verdicts: Verdicts = Verdicts()
    canaries: Canaries = Canaries()
    replica: Replica = Field(default_factory=Replica)
    shutdown: Shutdown = Shutdown()
    http: Http = Http()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments, then environment, then the file."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _deadlines_fit(self) -> Self:
        if self.shutdown.deadline_seconds <= self.fetch.deadline_seconds:
            raise ValueError("shutdown.deadline_seconds must be above fetch.deadline_seconds")
        session = self.kafka.session_timeout_ms / 1000
        if self.shutdown.deadline_seconds < session + JOIN_SECONDS:
            raise ValueError(
                f"shutdown.deadline_seconds must be at least {session + JOIN_SECONDS:g}:"
                f" {JOIN_SECONDS:g} s above kafka.session_timeout_ms, because beside a replica that"
                " was killed Kafka may take no commits until its session has ended"
            )
        return self


def chosen_file(config: Path | None) -> Path | None:
    """The settings file: the one given, else that of COPYSIEVE_CONFIG, else none."""
    return config or (Path(found) if (found := os.environ.get(f"{PREFIX}CONFIG")) else None)


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings.

    Raises SettingsError, whose one line names the setting, for a value that is wrong, a name that
    is unknown (in the file or the environment), and a file that cannot be read.
    """
    path = chosen_file(config)
    if path is not None and not path.is_file():
        raise SettingsError(f"--config {path}: no such file")
    _refuse_unknown_variables()

    class Loaded(Settings, yaml_file=path):
        """`Settings` that reads this file."""

    try:
        return Loaded(**overrides)
    except ValidationError as error:
        raise SettingsError(_one_line(error, path)) from None
    except SourceError as error:
        raise SettingsError(f"{error} [{PREFIX}*]") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path}: not a YAML mapping of settings: {reason}") from None


def _refuse_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {f"{PREFIX}CONFIG"}
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable.upper().split("__")[0] not in known:
            raise SettingsError(f"{variable}: there is no such setting")


def _one_line(error: ValidationError, path: Path | None) -> str:
    """The first wrong setting by its dotted name; never its value, which may be a secret."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such setting"
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    origin = f" [{path} or {PREFIX}*]" if path else f" [{PREFIX}*]"
    return f"{name}: {message}{tail}{origin}"
