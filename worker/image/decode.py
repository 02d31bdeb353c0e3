"""Encoded bytes to frames.

The signature chooses one of the readers of `formats/`, which is then called directly: no other
plugin ever runs, and Pillow's own dispatch (with its multi-picture JPEG and its global pixel limit)
stays out of it. The header is judged before a pixel is decoded. docs/images.md has all the rules.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from worker.errors import DecodeError, UnscreenedReason
from worker.image.color import is_foreign
from worker.image.formats import FORMATS
from worker.image.formats.container import Frame, Header, Malformed

if TYPE_CHECKING:  # a sandboxed child decodes without it, in half the memory
    from worker.settings import Limits

MOST_PASSES = 1_000_000_000
"""Scans of a JPEG times its pixels. Each scan goes over the picture, though it may hold nothing."""
FREE_SCANS = 20
"""No encoder makes more, so as many are fine at any size."""
LEAST_SIDE = 16
"""Pixels. A narrower strip of an extreme aspect ratio shows nothing that could be described."""
MORE_FRAMES_BYTES = 16
"""A pixel, more than for one: what is put back before the next frame, and the caller's one."""
PROFILE_BYTES = 4
"""A pixel, more where a colour profile is applied."""

_ACCEPTED = ", ".join(FORMATS)


class Cost(NamedTuple):
    """What decoding a picture takes: the most bytes that it holds, and pixels in all frames."""

    nbytes: int
    pixels: int


type Reserve = Callable[[Cost], AbstractContextManager[object]]
"""Is entered with a picture's cost once its header was read, and left when it is decoded."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture's file whose header was judged. `frames` is how many of its frames are decoded."""

    format: str
    header: Header
    frames: int

    def decode(self, target: int | None = None) -> Iterator[Frame]:
        """Decode the frames, in order; `target` as in `Header`.

        Where a later frame is damaged, the one before it is the last. Raises DecodeError.
        """
        decoded = islice(self.header.decode(target), self.frames)
        count, most = 0, self.header.pixels
        while True:
            try:
                with _as_undecodable(self.format):
                    frame = next(decoded, None)
                    if frame is not None and frame.image.width * frame.image.height > most:
                        raise Malformed("a frame larger than all")
            except DecodeError:
                if not count:
                    raise
                return
            if frame is None:
                break
            count += 1
            yield frame
        if not count:
            raise DecodeError(UnscreenedReason.UNDECODABLE, f"{self.format} without a frame")

    def cost(self, target: int | None, more_bytes: int = 0) -> Cost:
        """What decoding takes, and `more_bytes`. All passes of a JPEG are kept at its full size."""
        header = self.header
        scale = 1
        if self.format == "JPEG" and target is not None:  # as `draft` will choose
            possible = min(header.width, header.height) // (2 * target)
            scale = next((s for s in (8, 4, 2) if possible >= s), 1)
        a_pixel = header.bytes_per_pixel or FORMATS[self.format].peak_bytes_per_pixel
        a_pixel += MORE_FRAMES_BYTES if self.frames > 1 else 0
        a_pixel += PROFILE_BYTES * any(map(is_foreign, header.profiles))
        passes = header.width * header.height * header.coefficient_bytes
        nbytes = -(-self.header.pixels // scale**2) * a_pixel + passes + more_bytes
        # Decoding at 1/8 saves the transform, not the reading of the coefficients.
        return Cost(nbytes, self.frames * self.header.pixels // max(1, scale // 2))


def read_header(data: bytes, limits: "Limits") -> Encoded:
    """Read what a file says of its pictures, and hold it to the limits.

    Raises DecodeError, whose text never holds anything out of the bytes.
    """
    if len(data) > limits.image_bytes:
        raise DecodeError(UnscreenedReason.TOO_LARGE, f"{len(data)} bytes encoded")
    kind = kind_of(data)
    with _as_undecodable(kind):
        header = FORMATS[kind].header(data, limits.image_frames)
        if not (header.width and header.height):
            raise Malformed("no size")
    judge(header.width, header.height, limits)
    if header.pixels > limits.image_pixels:
        raise DecodeError(UnscreenedReason.TOO_MANY_PIXELS, "a frame beyond its canvas")
    if header.scans > FREE_SCANS and header.scans * header.width * header.height > MOST_PASSES:
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"{header.scans} scans")
    frames = min(header.frames, limits.image_frames, limits.animation_pixels // header.pixels)
    return Encoded(kind, header, max(1, frames))


def hold_to_memory(cost: Cost, limits: "Limits") -> None:
    """Refuse a picture that needs more memory than large ones may have. Raises DecodeError."""
    if cost.nbytes > limits.in_flight_decoded_bytes // 2:
        detail = f"decoding would hold {cost.nbytes >> 20} MiB"
        raise DecodeError(UnscreenedReason.TOO_MANY_PIXELS, detail)


def kind_of(data: bytes) -> str:
    """The format by its signature; what follows is up to the reader. Raises DecodeError."""
    for kind, known in FORMATS.items():
        if known.signature.match(data):
            return kind
    raise DecodeError(UnscreenedReason.UNSUPPORTED_FORMAT, f"not {_ACCEPTED}")


@contextmanager
def _as_undecodable(kind: str) -> Iterator[None]:
    """Whatever a reader raises on hostile bytes becomes one error; its text may quote the bytes."""
    try:
        yield
    except DecodeError:
        raise
    except Malformed as error:
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"{kind} not decodable ({error})") from None
    except Exception as error:  # noqa: BLE001 - the readers raise nearly everything there is
        name = type(error).__name__
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"{kind} not decodable ({name})") from None


def needs_process(data: bytes, limits: "Limits") -> bool:
    """Whether it is only to be decoded in a process of its own, by its format or colour profile.

    Raises DecodeError for another format. Whatever else is wrong, decoding tells, in a process.
    """
    kind = kind_of(data)
    if FORMATS[kind].sandboxed or len(data) > limits.image_bytes:
        return FORMATS[kind].sandboxed
    try:
        return any(map(is_foreign, FORMATS[kind].header(data, limits.image_frames).profiles))
    except Exception:  # noqa: BLE001 - what cannot be judged here is not to be decoded here
        return True


def judge(width: int, height: int, limits: "Limits") -> None:
    """Hold a picture's size to the limits. Raises DecodeError."""
    if width * height > limits.image_pixels:
        raise DecodeError(UnscreenedReason.TOO_MANY_PIXELS, f"{width}x{height} pixels")
    shorter, longer = sorted((width, height))
    if shorter < LEAST_SIDE and longer > limits.image_aspect_ratio * shorter:
        raise DecodeError(UnscreenedReason.BAD_ASPECT_RATIO, f"{width}x{height} pixels")
