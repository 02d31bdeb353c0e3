"""Encoded bytes in, canonical 8-bit RGB out.

The signature chooses one of the readers of `formats.py`, which is then called directly: no other
plugin ever runs, and Pillow's own dispatch (with its multi-picture JPEG and its global pixel limit)
stays out of it. The header is judged before a pixel is decoded. docs/images.md tells all rules.

- Of an animation frames are chosen (`chosen`): its first, its last, and evenly spaced ones
  between, as a browser shows them, composited. A PNG's default image is its frame 0, in the
  animation or not. A frame that is not there whole is none: the file is `truncated` then. Pages of
  a TIFF are frames; of a HEIC there is the primary picture.
- It is turned upright, converted to sRGB, and put on white; 16 bits keep their high byte. CMYK is
  read as Adobe writes it (inverted), as browsers do whether or not the file says so.
- A JPEG that ends early is closed with an end marker and decoded once more: what there is gets
  screened, as `truncated`. Unless 99% of what comes out is filler: then it is undecodable, like
  every other picture that ends early. No global switch of Pillow is touched for it, so threads
  cannot disturb each other.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from worker.errors import DecodeError, UnscreenedReason
from worker.image import headers
from worker.image.color import apply_gamma, is_foreign, to_srgb
from worker.image.formats import FORMATS
from worker.image.headers import Header
from worker.records import DecodedImage, ImageInfo, Pixels

if TYPE_CHECKING:  # a sandboxed child decodes without it, in half the memory
    from worker.settings import Limits

MOST_PASSES = 1_000_000_000
"""Scans of a JPEG times its pixels. Each scan goes over the picture, though it may hold nothing."""
FREE_SCANS = 20
"""No encoder makes more, so as many are fine at any size."""
_MORE_FRAMES_BYTES = 16
"""A pixel, more than for one: what is put back before the next frame, and the caller's one."""
_PROFILE_BYTES = 4
"""A pixel, more where a colour profile is applied."""
_END_OF_JPEG = b"\xff\xd9"
_FILLER = (127, 128)
_LEAST_VISIBLE = 0.01
_PNG_BIT_DEPTH, _DEEP = 24, 16

_ACCEPTED = ", ".join(FORMATS)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = {_UPRIGHT[tag] for tag in (5, 6, 7, 8)}

type Reserve = Callable[[int], AbstractContextManager[object]]


def decode(
    data: bytes, limits: "Limits", target: int | None = None, reserve: Reserve | None = None
) -> DecodedImage:
    """Decode one picture: the first frame of `frames`, with the same arguments and errors."""
    with closing(frames(data, limits, target, reserve)) as shown:
        return next(shown)


def frames(
    data: bytes,
    limits: "Limits",
    target: int | None = None,
    reserve: Reserve | None = None,
    most: int = 1,
) -> Generator[DecodedImage, None, None]:
    """Decode the chosen frames of a picture, at most `most`, in order; at least one.

    `pixels` is read-only. With `target`, the side in pixels that it will be resized to, a JPEG may
    be decoded at 1/2, 1/4 or 1/8 of its size, never below twice the target; `info` always tells the
    picture's own size, upright, and is the same for all frames. `reserve(bytes)` is entered once
    the header was judged, with the most that decoding holds in memory, and left at the end, or when
    the generator is closed. That is with one frame at the caller's: let go of each before the next.

    Raises DecodeError, whose text never holds anything out of the bytes.
    """
    if len(data) > limits.image_bytes:
        raise DecodeError(UnscreenedReason.TOO_LARGE, f"{len(data)} bytes encoded")
    kind = kind_of(data)
    with _as_undecodable(kind):
        header = _header(kind, data, limits, most)
        if not (header.width and header.height):
            raise headers.Malformed("no size")
    numbers = chosen(header.frames, most)
    _judge_work(header, numbers[-1] + 1, limits)
    with (reserve or nullcontext)(_peak(kind, header, target, len(numbers))):
        shown = _shown(kind, header, target, numbers)
        width, height = header.width, header.height
        if _UPRIGHT.get(header.orientation) in _SWAPS_SIDES:
            width, height = height, width
        digest = hashlib.sha256(data).hexdigest()
        for number in numbers:
            with _as_undecodable(kind):
                pixels, truncated = next(shown)
            info = ImageInfo(kind, width, height, header.frames, len(data), digest, truncated)
            yield DecodedImage(info, pixels, number)
            del pixels


def _header(kind: str, data: bytes, limits: "Limits", most: int) -> Header:
    """What the file says of its picture. Only a profile that has to be applied is left in it."""
    header = FORMATS[kind].header(data, limits.image_frames, most)
    return header if is_foreign(header.icc) else replace(header, icc=b"")


def chosen(count: int, most: int) -> Sequence[int]:
    """The numbers of the frames that are looked at: at most `most` of `count`, evenly spaced."""
    if most == 1 or count == 1:
        return (0,)
    most = min(most, count)
    return tuple(round(n * (count - 1) / (most - 1)) for n in range(most))


def _judge_work(header: Header, decoded: int, limits: "Limits") -> None:
    """Hold a picture, and decoding so many frames of it, to the limits. Raises DecodeError."""
    width, height = header.width, header.height
    judge(width, height, header.frames, limits)
    area = header.area
    if area > limits.image_pixels:
        raise DecodeError(UnscreenedReason.TOO_MANY_PIXELS, "a frame beyond its canvas")
    if decoded > 1 and decoded * area > limits.animation_pixels:
        detail = f"{decoded} frames of {area} pixels to decode"
        raise DecodeError(UnscreenedReason.TOO_MANY_FRAMES, detail)
    if header.scans > FREE_SCANS and header.scans * width * height > MOST_PASSES:
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"{header.scans} scans")


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
    except headers.Malformed as error:
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"broken {kind} ({error})") from None
    except Exception as error:  # noqa: BLE001 - the readers raise nearly everything there is
        name = type(error).__name__
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"broken {kind} ({name})") from None


def needs_process(data: bytes, limits: "Limits") -> bool:
    """Whether it is only to be decoded in a process of its own, by its format or colour profile.

    Raises DecodeError for another format. Whatever else is wrong, decoding tells, in a process.
    """
    kind = kind_of(data)
    if FORMATS[kind].sandboxed or len(data) > limits.image_bytes:
        return FORMATS[kind].sandboxed
    try:
        return bool(_header(kind, data, limits, 1).icc)
    except Exception:  # noqa: BLE001 - what cannot be judged here is not to be decoded here
        return True


def judge(width: int, height: int, frames: int, limits: "Limits") -> None:
    """Hold a picture to the limits. Raises DecodeError."""
    if width * height > limits.image_pixels:
        raise DecodeError(UnscreenedReason.TOO_MANY_PIXELS, f"{width}x{height} pixels")
    if max(width, height) > limits.image_aspect_ratio * min(width, height):
        raise DecodeError(UnscreenedReason.BAD_ASPECT_RATIO, f"{width}x{height} pixels")
    if frames > limits.image_frames:
        raise DecodeError(
            UnscreenedReason.TOO_MANY_FRAMES, f"more than {limits.image_frames} frames"
        )


def most_bytes(limits: "Limits") -> int:
    """What decoding may hold at most, whatever the picture."""
    a_pixel = max(known.peak_bytes_per_pixel for known in FORMATS.values())
    more = max(headers.MOST_COEFFICIENT_BYTES, _MORE_FRAMES_BYTES) + _PROFILE_BYTES
    return limits.image_pixels * (a_pixel + more)


def _peak(kind: str, header: Header, target: int | None, count: int) -> int:
    """What decoding will hold at most. All passes of a JPEG are kept at its full size."""
    width, height = header.width, header.height
    scale = 1
    if kind == "JPEG" and target is not None:  # as `draft` will choose
        possible = min(width, height) // (2 * target)
        scale = next((s for s in (8, 4, 2) if possible >= s), 1)
    a_pixel = FORMATS[kind].peak_bytes_per_pixel
    a_pixel += (_MORE_FRAMES_BYTES if count > 1 else 0) + _PROFILE_BYTES * bool(header.icc)
    loaded = header.area if scale == 1 else -(-width // scale) * -(-height // scale)
    passes = width * height * header.coefficient_bytes
    return loaded * a_pixel + passes


def _shown(
    kind: str, header: Header, target: int | None, numbers: Sequence[int]
) -> Iterator[tuple[Pixels, bool]]:
    """The frames in RGB, upright, and whether the file is truncated."""
    image, truncated = _load(kind, header, target)
    for number in numbers:
        if number:
            image.seek(number)
            image.load()
            if image.width * image.height > header.area:
                raise headers.Malformed("a frame larger than all")
        rgb = _rgb(image, header)
        if header.painted:
            rgb = _as_painted(rgb, header, header.painted[number])
        if (turn := _UPRIGHT.get(header.orientation)) is not None:
            rgb = rgb.transpose(turn)
        if number == numbers[-1]:
            del image
        pixels = np.asarray(rgb)
        del rgb
        yield pixels, truncated
        del pixels


def _load(kind: str, header: Header, target: int | None) -> tuple[ImageFile, bool]:
    """Decode the pixels; returns the image, and whether it ended early."""
    data = header.data
    image = _open(kind, header, data, target)
    try:
        image.load()
    except OSError:
        if kind != "JPEG":
            raise
    else:
        drafted = kind == "JPEG" and target is not None
        if not drafted and image.size != (header.width, header.height):
            raise headers.Malformed("of two sizes")
        if kind == "PNG" and data[_PNG_BIT_DEPTH] == _DEEP and image.mode == "RGB":
            # Pixels cut to 8 bits cannot be told from a transparent colour of 16: hide none.
            image.info.pop("transparency", None)
        return image, header.truncated
    image = _open(kind, header, data + _END_OF_JPEG, target)
    image.load()
    if len(data) <= header.first_scan or _visible(image) < _LEAST_VISIBLE:
        raise DecodeError(UnscreenedReason.UNDECODABLE, "the JPEG ends before there is a picture")
    return image, True


def _open(kind: str, header: Header, data: bytes, target: int | None) -> ImageFile:
    """The reader, which has to see the picture that was judged."""
    image = FORMATS[kind].reader(BytesIO(data))
    if image.size != (header.width, header.height):
        raise headers.Malformed("of two sizes")
    if target is not None:
        image.draft(None, (2 * target, 2 * target))
    return image


def _visible(image: ImageFile) -> float:
    """The fraction of a JPEG that is not filler, which is mid-grey in all bands."""
    levels = np.asarray(image)[::4, ::4]  # a sample, for the sake of memory
    painted = (levels < _FILLER[0]) | (levels > _FILLER[1])
    return float(painted.reshape(*painted.shape[:2], -1).any(axis=-1).mean())


def _rgb(image: Image.Image, header: Header) -> Image.Image:
    """The picture in sRGB, on white."""
    if image.mode.startswith("I"):
        image = _high_bytes(image)
    if header.icc:
        image = to_srgb(image, header.icc)
    elif header.gamma:
        image = apply_gamma(image, header.gamma)
    if not image.has_transparency_data or _is_unused(image):
        return image.convert("RGB")
    layer = image.convert("RGBA")
    picture = Image.new("RGB", layer.size, "white")
    picture.paste(layer, mask=layer)
    return picture


def _as_painted(image: Image.Image, header: Header, box: headers.Box) -> Image.Image:
    """A GIF as browsers show it: no colour where none was painted, nothing beyond the canvas."""
    canvas = (0, 0, header.width, header.height)
    if image.size == canvas[2:] and box == canvas:
        return image
    picture = Image.new("RGB", canvas[2:], "white")
    picture.paste(image.crop(box), box)
    return picture


def _is_unused(image: Image.Image) -> bool:
    """Whether a bitmap's fourth byte is 0 everywhere: it is no transparency then, in any viewer."""
    bitmap = isinstance(image, ImageFile) and image.format in ("BMP", "ICO")
    return bitmap and image.mode == "RGBA" and not image.getchannel("A").getbbox()


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit grey; Pillow's own conversion clips at 255 and leaves a white page."""
    deep = np.asarray(image)
    grey = Image.fromarray((deep >> 8).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return grey
