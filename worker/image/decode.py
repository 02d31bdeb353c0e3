"""Encoded bytes in, canonical 8-bit RGB out.

The signature chooses one of four Pillow readers, which is then called directly: no other plugin
ever runs, and Pillow's own dispatch (with its multi-picture JPEG and its global pixel limit) stays
out of it. The header is judged before a pixel is decoded.

Rules:
- The first frame of an animation is the picture; of a PNG with a default image that one.
- EXIF orientation is applied, transparency is put on white, 16 bits keep their high byte. CMYK is
  read as Adobe writes it (inverted), as browsers do whether or not the file says so.
- A JPEG that ends early is closed with an end marker and decoded once more: what there is gets
  screened, as `truncated`. Unless 99% of what comes out is filler: then it is undecodable, like
  every other format that ends early. No global switch of Pillow is touched for it, so threads
  cannot disturb each other.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from worker.errors import DecodeError, UnscreenedReason
from worker.records import DecodedImage, ImageInfo
from worker.settings import Limits
from worker.telemetry import metrics

# The limits below are per call and come before decoding; Pillow's would warn, and be in their way.
Image.MAX_IMAGE_PIXELS = None
# Damaged metadata is no news to anyone, and it must not reach stderr once per hostile upload.
warnings.filterwarnings("ignore", module=r"PIL\.")

_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "GIF": GifImageFile,
    "WEBP": WebPImageFile,
}
_END_OF_JPEG = b"\xff\xd9"
_FILLER = (127, 128)
_LEAST_VISIBLE = 0.01
_PNG_BIT_DEPTH, _DEEP = 24, 16
_GIF_HEADER_BYTES, _GIF_IMAGE, _GIF_EXTENSION = 13, 0x2C, 0x21

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

# The most that decoding was measured to hold: Pillow's copies at 4 bytes a pixel (with transparency
# three of them, for WebP two canvases more), or one and what becomes the array, twice 3.
_PEAK_BYTES_PER_PIXEL = {"JPEG": 10, "PNG": 12, "GIF": 12, "WEBP": 20}

type Reserve = Callable[[int], AbstractContextManager[object]]


def decode(
    data: bytes, limits: Limits, target: int | None = None, reserve: Reserve | None = None
) -> DecodedImage:
    """Decode one picture.

    `pixels` is read-only. With `target`, the side in pixels that it will be resized to, a JPEG may
    be decoded at 1/2, 1/4 or 1/8 of its size, never below twice the target; `info` always tells the
    picture's own size, upright. `reserve(bytes)` is entered once the header was judged, with the
    most that decoding holds in memory, and left when decoding ends.

    Raises DecodeError, whose text never holds anything out of the bytes.
    """
    if len(data) > limits.image_bytes:
        raise DecodeError(UnscreenedReason.TOO_LARGE, f"{len(data)} bytes encoded")
    kind = _kind(data)
    with _as_undecodable(kind):
        image = _READERS[kind](BytesIO(data))
        width, height = image.size
        frames = _frames(kind, data, image, limits.image_frames)
        _judge(width, height, frames, limits)
        _scale(image, target)
    peak = image.width * image.height * _PEAK_BYTES_PER_PIXEL[kind]
    with (reserve or nullcontext)(peak), _as_undecodable(kind):
        image, truncated = _load(kind, data, image, target)
        orientation = _orientation(image)
        rgb = _rgb(image)
        del image
        if orientation is not None:
            rgb = rgb.transpose(orientation)
        pixels = np.asarray(rgb)
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    metrics.DECODES.labels(kind).inc()
    digest = hashlib.sha256(data).hexdigest()
    info = ImageInfo(kind, width, height, frames, len(data), digest, truncated)
    return DecodedImage(info, pixels)


def _kind(data: bytes) -> str:
    """The format by its signature; what follows is up to the reader."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    raise DecodeError(UnscreenedReason.UNSUPPORTED_FORMAT, "not a JPEG, PNG, WebP or GIF")


@contextmanager
def _as_undecodable(kind: str) -> Iterator[None]:
    """Whatever a reader raises on hostile bytes becomes one error; its text may quote the bytes."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - the readers raise nearly everything there is
        name = type(error).__name__
        raise DecodeError(UnscreenedReason.UNDECODABLE, f"broken {kind} ({name})") from None


def _judge(width: int, height: int, frames: int, limits: Limits) -> None:
    if width * height > limits.image_pixels:
        raise DecodeError(UnscreenedReason.TOO_MANY_PIXELS, f"{width}x{height} pixels")
    if max(width, height) > limits.image_aspect_ratio * min(width, height):
        raise DecodeError(UnscreenedReason.BAD_ASPECT_RATIO, f"{width}x{height} pixels")
    if frames > limits.image_frames:
        raise DecodeError(
            UnscreenedReason.TOO_MANY_FRAMES, f"more than {limits.image_frames} frames"
        )


def _frames(kind: str, data: bytes, image: ImageFile, limit: int) -> int:
    """Frames of an animation, else 1. A GIF's are counted up to one beyond `limit`."""
    if kind == "GIF":
        return _gif_frames(data, limit)
    return int(getattr(image, "n_frames", 1))


def _gif_frames(data: bytes, limit: int) -> int:
    """Count the image blocks without decoding one; Pillow would walk through millions of them."""
    frames = 0
    at = _GIF_HEADER_BYTES + _color_table_bytes(data[10])
    while at < len(data) and frames <= limit:
        block = data[at]
        if block == _GIF_IMAGE:  # descriptor, colour table, code size, data
            frames += 1
            if at + 9 >= len(data):
                break
            at = _after_sub_blocks(data, at + 11 + _color_table_bytes(data[at + 9]))
        elif block == _GIF_EXTENSION:  # label, data
            at = _after_sub_blocks(data, at + 2)
        else:  # the trailer, or nothing that a reader would go on from
            break
    return max(frames, 1)


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, at: int) -> int:
    """Each block is led by its length; a length of 0 ends them."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def _scale(image: ImageFile, target: int | None) -> None:
    if target is not None:
        image.draft(None, (2 * target, 2 * target))


def _load(kind: str, data: bytes, image: ImageFile, target: int | None) -> tuple[ImageFile, bool]:
    """Decode the pixels; returns the image, and whether it ended early."""
    try:
        image.load()
    except OSError:
        if kind != "JPEG":
            raise
    else:
        if kind == "PNG" and data[_PNG_BIT_DEPTH] == _DEEP and image.mode == "RGB":
            # Pixels cut to 8 bits cannot be told from a transparent colour of 16: hide none.
            image.info.pop("transparency", None)
        return image, False
    stream = BytesIO(data + _END_OF_JPEG)
    image = JpegImageFile(stream)
    first_scan = stream.tell()  # the reader stops where its data begin
    _scale(image, target)
    image.load()
    if len(data) <= first_scan or _visible(image) < _LEAST_VISIBLE:
        raise DecodeError(UnscreenedReason.UNDECODABLE, "the JPEG ends before there is a picture")
    return image, True


def _visible(image: ImageFile) -> float:
    """The fraction of a JPEG that is not filler, which is mid-grey in all bands."""
    levels = np.asarray(image)[::4, ::4]  # a sample, for the sake of memory
    painted = (levels < _FILLER[0]) | (levels > _FILLER[1])
    return float(painted.reshape(*painted.shape[:2], -1).any(axis=-1).mean())


def _orientation(image: ImageFile) -> Image.Transpose | None:
    """How to turn the picture upright. Damaged metadata turn nothing, as in a browser."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a TIFF reader on hostile bytes
        return None


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, on white."""
    if image.mode.startswith("I"):
        image = _high_bytes(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    picture = Image.new("RGB", layer.size, "white")
    picture.paste(layer, mask=layer)
    return picture


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit grey; Pillow's own conversion clips at 255 and leaves a white page."""
    deep = np.asarray(image)
    grey = Image.fromarray((deep >> 8).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return grey
