"""Every error of copysieve, as one tree.

CopysieveError                    one clear line for a person; `exit_code` for the shell
├── SettingsError                 a setting is wrong; nothing was connected yet (exit 2)
├── StartupError                  something the worker needs is not there or not right
│   ├── ModelError                a model file is missing, foreign, or has another digest
│   ├── StoreError                Redis is away, or what it holds cannot be used
│   └── StreamError               Kafka is away, or a topic is missing or too small
├── StageDied                     a thread of the pipeline ended: the process must follow
├── Unscreenable                  one upload ends as `unscreened`, with an `UnscreenedReason`
│   ├── FetchError                its bytes could not be had
│   └── DecodeError               its bytes are no picture that can be screened
└── BadEvent                      one record is no upload event: a dead letter, with its reason

The messages of `Unscreenable` and `BadEvent` are published and logged, so they never hold image
bytes, descriptors, or a URL's path and query.
"""

from enum import StrEnum


class UnscreenedReason(StrEnum):
    """Why an upload could not be screened. Closed: an addition is a change of the schema."""

    FETCH_DENIED = "fetch_denied"
    FETCH_NOT_FOUND = "fetch_not_found"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"
    HOST_UNAVAILABLE = "host_unavailable"
    TOO_LARGE = "too_large"
    DIGEST_MISMATCH = "digest_mismatch"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNDECODABLE = "undecodable"
    TOO_MANY_PIXELS = "too_many_pixels"
    BAD_ASPECT_RATIO = "bad_aspect_ratio"
    DECODE_TIMEOUT = "decode_timeout"
    DECODER_CRASHED = "decoder_crashed"
    DESCRIBE_FAILED = "describe_failed"


class DeadLetterReason(StrEnum):
    """Why a record has no verdict. Closed, like `UnscreenedReason`."""

    NO_VALUE = "no_value"
    NOT_JSON = "not_json"
    INVALID_EVENT = "invalid_event"
    MISSING_ID = "missing_id"
    BAD_BASE64 = "bad_base64"
    TOO_LARGE = "too_large"
    RESERVED_ID = "reserved_id"
    UNREADABLE = "unreadable"
    RESULT_REFUSED = "result_refused"


class Objection(StrEnum):
    """Why a picture should not become a reference. Closed, like `UnscreenedReason`."""

    BLANK = "blank"
    NEAR_UNIFORM = "near_uniform"
    LOW_INFORMATION = "low_information"
    NOISE = "noise"
    TEST_PATTERN = "test_pattern"
    FALSE_MATCHES = "false_matches"
    DUPLICATE = "duplicate"
    ALLOWED = "allowed"


class CopysieveError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one line for a person."""

    exit_code = 1


class SettingsError(CopysieveError):
    """A setting is unknown, missing or wrong."""

    exit_code = 2


class StartupError(CopysieveError):
    """The worker, or a command, cannot start because of something outside it."""


class ModelError(StartupError):
    """A model is unknown, its file is missing or foreign, or its digest is another.

    What files and servers call things is escaped, so that it stays one line of plain text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        )


class StoreError(StartupError):
    """Redis is away, or what it holds cannot be used."""


class StreamError(StartupError):
    """Kafka is away, or a topic is missing or does not fit."""


class StageDied(CopysieveError):
    """A stage of the pipeline ended with an error; names the stage and the cause."""


class Unscreenable(CopysieveError):
    """One upload cannot be screened; it ends as `unscreened` with `reason`."""

    def __init__(self, reason: UnscreenedReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class FetchError(Unscreenable):
    """The bytes of an upload could not be had.

    `transient`: another attempt may succeed, not before `retry_after` seconds if the host says so.
    """

    def __init__(
        self,
        reason: UnscreenedReason,
        detail: str,
        *,
        transient: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(reason, detail)
        self.transient = transient
        self.retry_after = retry_after


class DecodeError(Unscreenable):
    """The bytes of an upload are no picture that can be screened."""


class BadEvent(CopysieveError):
    """One record is no upload event; it ends as a dead letter with `reason`."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
