"""JPEG XL, read without a decoder as far as its size; see `container.py`.

The codestream lies bare in the file, or in boxes beside metadata, of which nothing is read.
"""

from collections.abc import Iterator
from fractions import Fraction

from PIL import Image

from worker.image.color import is_foreign
from worker.image.formats import libjxl
from worker.image.formats.bits import Bits
from worker.image.formats.boxes import Parts, boxes
from worker.image.formats.container import Frame, Header, Malformed, shown_seconds

_BARE = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_HEADER_BYTES = 64
"""The size and the orientation lie in the first bytes of a codestream."""
_RATIOS = {
    1: Fraction(1),
    2: Fraction(12, 10),
    3: Fraction(4, 3),
    4: Fraction(3, 2),
    5: Fraction(16, 9),
    6: Fraction(5, 4),
    7: Fraction(2),
}
"""Width to height."""
_SIZE_BITS = (9, 13, 18, 30)
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_LAYERED = 3
"""Times the memory of one picture: the decoder keeps up to four for later frames and layers."""
_MOST_FURTHER_CHANNELS = 2
_MOST_PIXELS = 1 << 30
"""Of a picture whose frames are counted. No limit of ours is larger."""


def jxl(data: bytes, most_frames: int) -> Header:
    """Read size and orientation, then count the frames. Raises Malformed."""
    codestream = _codestream(data)
    width, height, orientation = _size(Bits(codestream[2 : 2 + _HEADER_BYTES], least_first=True))
    if width * height > _MOST_PIXELS:  # it is refused, whatever else it says
        return Header(width, height, lambda _: iter(()))
    info = libjxl.information(codestream, most_frames + 1)
    if (info.width, info.height) != (width, height):
        raise Malformed("of two sizes")
    if info.further_channels > _MOST_FURTHER_CHANNELS:
        raise Malformed("too many channels")
    seconds = _seconds(info)

    def decoded(_target: int | None) -> Iterator[Frame]:
        shown = libjxl.frames(codestream, info)
        for one, duration in zip(shown, seconds, strict=False):
            mode = _MODES[one.channels]
            image = Image.frombuffer(mode, (width, height), one.pixels, "raw", mode, 0, 1)
            yield Frame(image, duration, truncated=not one.whole)

    return Header(
        width,
        height,
        decoded,
        len(seconds),
        area=width * height * (_LAYERED if info.layers > 1 else 1),
        orientation=orientation,
        truncated=info.truncated,
        profiles=(info.profile,) if is_foreign(info.profile) else (),
    )


def _seconds(info: libjxl.Information) -> list[float]:
    """How long each frame is shown."""
    if not info.animated:
        return [0.0]
    seconds = [*map(shown_seconds, info.seconds)]
    if info.loops:
        seconds[-1] = float("inf")
    return seconds


def _codestream(data: bytes) -> bytes:
    """The codestream, out of its boxes. Raises Malformed where there is none."""
    if data.startswith(_BARE):
        return data
    whole = list[bytes]()
    end = len(_CONTAINER)
    for one in boxes(data, end, len(data), Parts()):
        end = max(end, one.end)
        if one.name == b"jxlc":
            whole = [data[one.at : one.end]]
            break
        if one.name == b"jxlp":
            number = int.from_bytes(data[one.at : one.at + 4])
            whole.append(data[one.at + 4 : one.end])
            if number >> 31:  # the last part
                break
    codestream = b"".join(whole)
    if not codestream.startswith(_BARE):
        raise Malformed("no picture")
    return codestream


def _size(bits: Bits) -> tuple[int, int, int]:
    """Width, height and orientation."""
    width, height = _dimensions(bits)
    if bits.take(1) or not bits.take(1):  # all as usual, or no extra fields
        return width, height, 1
    return width, height, bits.take(3) + 1


def _dimensions(bits: Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        if small:
            return 8 * (bits.take(5) + 1)
        return bits.take(_SIZE_BITS[bits.take(2)]) + 1

    height = side()
    ratio = _RATIOS.get(bits.take(3))
    return (side() if ratio is None else int(height * ratio)), height
