"""The values that flow through the pipeline, in the order in which they arise.

Record -> Upload -> DecodedImage -> Query -> Screened. All are frozen; the heavy parts
(`Record.value`, `Upload.image`, `Query.pixels`) go as soon as the stage that needs them has run.
(`Screened` holds hits of the hot set, so it lives in `results.py`.)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from worker.errors import DeadLetterReason
from worker.events import Background, Colors, Crop

_VERSION = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")

type Headers = tuple[tuple[str, bytes | None], ...]
type Pixels = npt.NDArray[np.uint8]
"""Canonical 8-bit RGB, shape [height, width, 3]."""
type Looks = npt.NDArray[np.uint8]
"""Several of them of one size, shape [looks, height, width, 3]."""


@dataclass(frozen=True, slots=True)
class Position:
    """One record of the input topic as owned in one assignment of its partition.

    `epoch` is the ledger's, a new one at every assignment: what carries an old epoch is dropped.
    """

    topic: str
    partition: int
    offset: int
    epoch: int


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """What a record of Kafka counts for in limits."""
    told = sum(len(name) + len(content or b"") for name, content in headers)
    return len(key or b"") + len(value or b"") + told


class Unreadable(bytes):
    """The value of a record that could not be unpacked: empty, with the reason why."""

    reason: DeadLetterReason
    detail: str

    def __new__(cls, reason: DeadLetterReason, detail: str) -> Self:
        """Make an empty value."""
        value = super().__new__(cls)
        value.reason, value.detail = reason, detail
        return value


@dataclass(frozen=True, slots=True)
class Origin:
    """The record that an upload came in, when its content is gone: coordinates, times and sizes.

    `timestamp` (Kafka's) and `received_at` are aware UTC; `key_bytes` is None without a key;
    `headers` is how many there were.
    """

    position: Position
    timestamp: datetime
    received_at: datetime
    key_bytes: int | None
    value_bytes: int
    headers: int


@dataclass(frozen=True, slots=True)
class Record:
    """What Kafka delivered, untouched. `timestamp` and `received_at` are aware UTC."""

    position: Position
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: datetime
    received_at: datetime

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return record_bytes(self.key, self.value, self.headers)

    @property
    def origin(self) -> Origin:
        """What is kept of it."""
        return Origin(
            self.position,
            self.timestamp,
            self.received_at,
            None if self.key is None else len(self.key),
            len(self.value or b""),
            len(self.headers),
        )


@dataclass(frozen=True, slots=True)
class Upload:
    """One image someone posted: one of `image_url` and `image` is set, until the image is decoded.

    `sha256` is the digest that the image has to have, in lower-case hex; None: any. `is_canary`:
    a replica of this namespace published it, which the signature proves; the id alone proves
    nothing.
    """

    origin: Origin
    upload_id: str
    image_url: str | None = None
    image: bytes | None = None
    tenant: str | None = None
    uploaded_at: datetime | None = None
    sha256: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    is_canary: bool = False

    @property
    def position(self) -> Position:
        """Of its record."""
        return self.origin.position

    @property
    def received_at(self) -> datetime:
        """When its record was taken."""
        return self.origin.received_at

    @property
    def size(self) -> int:
        """Bytes of its image and its texts."""
        texts = (self.upload_id, self.image_url or "", *chain(*self.attributes.items()))
        return len(self.image or b"") + sum(map(len, texts))

    def without_image(self) -> "Upload":
        """What its result needs of it."""
        return replace(self, image=None)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a verdict says about an image. `sha256` is of the encoded bytes, in hex.

    `frames` are those that the file has, `frames_decoded` those that were looked at, from the first
    one. `renditions_left_out` are noticeably different ones that were not described.
    `playing_time_described` is the share of an animation's playing time in which a described
    rendition is seen; None of a still picture.
    """

    format: str
    width: int
    height: int
    frames: int
    bytes: int
    sha256: str
    truncated: bool
    frames_decoded: int = 1
    renditions_left_out: int = 0
    playing_time_described: float | None = None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Bytes in, canonical RGB out: `pixels` has the image's own size after EXIF orientation."""

    info: ImageInfo
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Rendition:
    """One way in which a file can be seen; the defaults are those of nearly all files.

    `frame` counts from 0. `colors`: converted by the file's colour profile (or gamma), by another
    one that the file has, or not at all.
    `background`: what lies behind transparent pixels; `none` is the picture without its alpha
    channel. `crop`: whether the file's crop box is applied.
    """

    frame: int = 0
    colors: Colors = "untagged"
    background: Background = "white"
    crop: Crop = "applied"


@dataclass(frozen=True, slots=True)
class Look:
    """One picture that an image is described by: a rendition, in a view."""

    rendition: Rendition
    view: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image at the model's input size: `pixels` is [looks, size, size, 3], in their order."""

    info: ImageInfo
    looks: tuple[Look, ...]
    pixels: Looks


@dataclass(frozen=True, slots=True)
class Query:
    """One upload ready for the device: `pixels` as in `Prepared`, or descriptors.

    `descriptors`, float32 [looks, dims], are there where the same bytes were described a moment
    ago.
    """

    upload: Upload
    info: ImageInfo
    looks: tuple[Look, ...]
    pixels: Looks | None = None
    descriptors: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How canonical RGB becomes a model's input: an antialiased resize straight to a square.

    `name` stands in every verdict and determines the other two.
    """

    name: str
    size: int
    interpolation: Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class Model:
    """Names the model that made a descriptor; everything needed to make it again."""

    name: str
    sha256: str
    dims: int
    preprocessing: str


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Version of the hot set: `epoch` in Unix milliseconds, `seq` counts its changes from 1."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read `epoch-seq`. Raises ValueError for anything else, and for more than 64 bits."""
        if not (match := _VERSION.fullmatch(text)):
            raise ValueError(f"not a hot-set version: {text[:64]!r} (expected EPOCH-SEQ)")
        return cls(int(match[1]), int(match[2]))
