"""What a sandboxed child may answer. It may be hostile: every field has a type and bounds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from worker.errors import DecodeError, UnscreenedReason
from worker.events import Background, Colors, Crop


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Ready(_Answer):
    """Once, after the start; `address_space` is in bytes."""

    address_space: Annotated[int, Field(gt=0, lt=1 << 40)]
    confined: bool


class Alive(_Answer):
    """To the question whether it lives."""

    alive: Literal[True]


class Expected(_Answer):
    """What decoding will take; see `decode.Cost`."""

    nbytes: Annotated[int, Field(ge=0, lt=1 << 40)]
    pixels: Annotated[int, Field(ge=0, lt=1 << 50)]


class Picture(_Answer):
    """The facts of a decoded picture; see `records.ImageInfo`."""

    width: Annotated[int, Field(gt=0, lt=1 << 32)]
    height: Annotated[int, Field(gt=0, lt=1 << 32)]
    frames: Annotated[int, Field(gt=0, lt=1 << 32)]
    truncated: bool
    frames_decoded: Annotated[int, Field(gt=0, lt=1 << 32)]
    renditions_left_out: Annotated[int, Field(ge=0, lt=1 << 32)]
    playing_time_described: Annotated[float, Field(ge=0, le=1)] | None
    renditions: Annotated[
        tuple[tuple[Annotated[int, Field(ge=0)], Colors, Background, Crop], ...],
        Field(min_length=1),
    ]
    """Those whose pixels there are."""


class Refusal(_Answer):
    """Why there is no picture."""

    reason: Literal[
        "undecodable", "unsupported_format", "too_many_pixels", "bad_aspect_ratio", "too_large"
    ]
    detail: Annotated[str, Field(pattern=r"^[A-Za-z0-9 (),.-]{1,120}$")]


READY: TypeAdapter[Ready] = TypeAdapter(Ready)
ALIVE_ANSWER: TypeAdapter[Alive] = TypeAdapter(Alive)
FIRST: TypeAdapter[Expected | Refusal] = TypeAdapter(Expected | Refusal)
LAST: TypeAdapter[Picture | Refusal] = TypeAdapter(Picture | Refusal)


def accepted[T](answer: T | Refusal) -> T:
    """The answer. Raises DecodeError where it is a refusal."""
    if isinstance(answer, Refusal):
        raise DecodeError(UnscreenedReason(answer.reason), answer.detail)
    return answer
