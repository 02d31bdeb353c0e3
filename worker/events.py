"""The wire: what is read from and written to Kafka, as pydantic models.

The JSON schemas in `config/schemas/` are exported from these models (`make schemas`), and
`make check` compares them. Changing a field here changes the users' contract.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from worker.errors import DeadLetterReason, UnscreenedReason

ATTRIBUTES_BYTES = 8 * 1024
MATCHES_SHOWN = 20
THRESHOLDS_SHOWN = 16
RENDITIONS_SHOWN = 16
VIEWS_SHOWN = 8
DETAIL_LENGTH = 500
KEPT_BYTES = 64 * 1024
"""A dead letter has the key and the value of its record whole up to this size."""
CANARY_PREFIX = "canary:"
"""Begins the upload ids of the worker's own canaries, and of nobody else's."""

ID_LENGTH = 512
Identifier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=ID_LENGTH, pattern=r"^[^\x00-\x1f\x7f]*$"),
]
"""No control characters: databases downstream refuse NUL, and logs and consoles obey others."""
Name = Annotated[str, StringConstraints(max_length=128)]
"""Of a model, bank, reference and the like: bounded where they are set, and here again."""
TopicName = Annotated[str, StringConstraints(max_length=249)]
"""Kafka takes no longer one."""
Detail = Annotated[str, StringConstraints(max_length=DETAIL_LENGTH)]
Kept = Annotated[
    str,
    StringConstraints(max_length=4 * (KEPT_BYTES // 3 + 1), pattern=r"^[A-Za-z0-9+/]*={0,2}$"),
]
"""Base64 of at most `KEPT_BYTES`."""
Time = Annotated[AwareDatetime, Field(strict=True)]
"""Not a number, of which nobody can tell whether it counts seconds or milliseconds."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_ANY_CASE_SHA256 = r"^[0-9a-fA-F]{64}$"


def _lower_case(digest: str) -> str:
    """Return the hex digits in lower case. Raises ValueError for anything else."""
    if not re.fullmatch(_ANY_CASE_SHA256, digest):
        raise ValueError("expected 64 hex digits")
    return digest.lower()


ImageSha256 = Annotated[
    str, AfterValidator(_lower_case), Field(json_schema_extra={"pattern": _ANY_CASE_SHA256})
]
ImageUrl = Annotated[
    str, StringConstraints(pattern=r"^(https?|s3|gs|az)://[^\s\x00-\x1f]+$", max_length=8192)
]


def _small(attributes: dict[str, str]) -> dict[str, str]:
    size = sum(len(k.encode()) + len(v.encode()) for k, v in attributes.items())
    if size > ATTRIBUTES_BYTES:
        raise ValueError(f"attributes hold {size} bytes, {ATTRIBUTES_BYTES} at most")
    return attributes


Attributes = Annotated[dict[str, str], AfterValidator(_small)]
"""What the platform wants back with the results: at most `ATTRIBUTES_BYTES` in UTF-8."""

Severity = Literal["low", "medium", "high", "critical"]
Action = Literal["log", "review", "hold", "block"]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""From the weakest to the strongest."""
Outcome = Literal["match", "no_match", "unscreened"]
Colors = Literal["untagged", "tagged", "other"]
Background = Literal["white", "black", "none"]
Crop = Literal["applied", "ignored"]


class Event(BaseModel):
    """Base of all wire models: frozen, and unknown fields are an error in what we write."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class UploadEvent(Event):
    """One upload, as a platform publishes it. Fields unknown here are ignored.

    `sha256` is of the bytes that the platform shows. If other bytes arrive here, the upload ends as
    `digest_mismatch`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    upload_id: Identifier
    image_url: ImageUrl | None = None
    image_base64: str | None = None
    tenant: Identifier | None = None
    uploaded_at: Time | None = None
    sha256: ImageSha256 | None = None
    attributes: Attributes = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        if (self.image_url is None) == (self.image_base64 is None):
            raise ValueError("exactly one of image_url and image_base64 is required")
        return self


class Source(Event):
    """Coordinates of the upload's record."""

    topic: TopicName
    partition: int
    offset: int


class ModelStamp(Event):
    """The model that described the upload, and what it was computed in: fp32, bf16, fp16, own."""

    name: Name
    sha256: Name
    dims: int
    preprocessing: Name
    precision: Name


class HotSetStamp(Event):
    """The version of the hot set that the upload was compared with."""

    epoch: int
    seq: int


class RenditionStamp(Event):
    """One way in which a file can be seen: a frame (from 0), in these colours, on this background.

    `tagged` is with the file's own colour profile, `other` with a second one, `untagged` without.
    The background `none` is the picture without its transparency. `crop` is the file's crop box.
    """

    frame: int
    colors: Colors
    background: Background
    crop: Crop


class ImageStamp(Event):
    """What the worker saw of the image. `sha256` is computed here, never the event's.

    Of its `frames` the first `frames_decoded` were looked at. The renditions described are those
    that are shown longest and differ most; `renditions_left_out` are others that look noticeably
    different. `playing_time_described`: the share of an animation's playing time in which one of
    the described renditions is seen.
    """

    format: Name
    width: int
    height: int
    frames: int
    bytes: int
    sha256: Name
    truncated: bool
    frames_decoded: int
    renditions_described: list[RenditionStamp] = Field(max_length=RENDITIONS_SHOWN)
    renditions_left_out: int
    playing_time_described: float | None


class Match(Event):
    """One reference that the upload is a likeness of.

    `cosine` and `euclidean` are raw, `score` is after calibration; `threshold` is in scores.
    `match_id` is the same over replays: count strikes by it. `view` is the reference's that the
    upload is like; `upload_view` and `rendition` say what of the upload is like it. `flooded`:
    its reference or bank matches more than its limit, and `action` may be demoted to `review`.
    """

    match_id: Name
    reference_id: Name
    bank: Name
    label: Name
    severity: Severity
    cosine: float
    euclidean: float
    score: float
    threshold: float | None
    false_matches_per_million: float | None
    action: Action
    view: Name
    upload_view: Name
    rendition: RenditionStamp
    flooded: bool = False


class Suppressed(Match):
    """A match that an allow reference overruled: the worker says which, and its score."""

    suppressed_by: Name
    suppressed_by_bank: Name
    suppressed_by_score: float


class Envelope(Event):
    """What every result says: whose it is, what it was made with, when.

    `thresholds` are those of the banks that the upload came nearest to, the matched ones first;
    `thresholds_digest` is of all that it was compared with, see `thresholds_digest`.
    """

    verdict_id: Name
    upload_id: Identifier
    tenant: Identifier | None
    model: ModelStamp
    hot_set: HotSetStamp | None
    calibration: Name | None
    thresholds: dict[Name, float] = Field(max_length=THRESHOLDS_SHOWN)
    thresholds_digest: Sha256 | None
    views: list[Name] = Field(max_length=VIEWS_SHOWN)
    image: ImageStamp | None
    source: Source
    uploaded_at: AwareDatetime | None
    received_at: AwareDatetime
    screened_at: AwareDatetime
    attributes: Attributes


class MatchEvent(Envelope):
    """For `image.matches` (enforcing banks) and `image.matches.shadow` (shadow banks, canaries)."""

    matches: list[Match] = Field(max_length=MATCHES_SHOWN)
    matches_total: int
    suppressed: list[Suppressed] = Field(max_length=MATCHES_SHOWN)


class Verdict(Envelope):
    """The one terminal result of an upload. `outcome` comes from enforcing banks only."""

    outcome: Outcome
    reason: UnscreenedReason | None = None
    detail: Detail | None = None
    matches: list[Match] = Field(max_length=MATCHES_SHOWN)
    matches_total: int
    suppressed: list[Suppressed] = Field(max_length=MATCHES_SHOWN)

    @model_validator(mode="after")
    def _reason_goes_with_unscreened(self) -> Self:
        if (self.outcome == "unscreened") != (self.reason is not None):
            raise ValueError("a reason is given for unscreened, and only there")
        return self


class DeadLetter(Event):
    """A record that is no upload event. `value_base64` only where the value is small."""

    reason: DeadLetterReason
    detail: Detail
    source: Source
    timestamp: AwareDatetime
    failed_at: AwareDatetime
    key_base64: Kept | None
    key_bytes: int | None = None
    value_base64: Kept | None
    value_bytes: int
    value_sha256: Sha256 | None


SCHEMAS: dict[str, type[Event]] = {
    "upload": UploadEvent,
    "verdict": Verdict,
    "match": MatchEvent,
    "dead_letter": DeadLetter,
}
"""File name (without `.json`) to model, for `config/schemas/`."""


def schema(model: type[Event]) -> dict[str, Any]:
    """The JSON schema of a wire model: as read for `UploadEvent`, as written for the others."""
    mode: Literal["validation", "serialization"] = (
        "validation" if model is UploadEvent else "serialization"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.model_json_schema(mode=mode),
    }


def _digest(*parts: str | int) -> str:
    """32 hex digits over length-prefixed parts, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:32]


def verdict_id(source: Source, upload_id: str) -> str:
    """The same for every verdict on one record, so that repeats can be told from new uploads."""
    return _digest("verdict", source.topic, source.partition, source.offset, upload_id)


def thresholds_digest(thresholds: Mapping[str, float]) -> str:
    """SHA-256, in hex, of the JSON of thresholds by bank: keys sorted, no spaces, UTF-8."""
    text = json.dumps(thresholds, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def match_id(upload_id: str, reference_id: str) -> str:
    """The same for one upload and one reference, over repeats and replays."""
    return _digest("match", upload_id, reference_id)
