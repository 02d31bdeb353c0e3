"""The decoder of JPEG XL: libjxl, called through its C interface.

The interface is the one of version 0.7 and later. The library is the one that imagecodecs ships;
imagecodecs itself is not imported. It decodes in the calling thread.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.image.formats.container import MOST_PROFILE_BYTES, Malformed
from worker.image.profiles import HLG, PQ, SRGB_TRANSFER, profile_of_cicp

_PATTERNS = ("imagecodecs.libs/libjxl-*.so*", "imagecodecs/.dylibs/libjxl.*.dylib")
_SUCCESS, _ERROR, _IMAGE_BUFFER = 0, 1, 5
_BASIC_INFO, _COLOR_ENCODING, _FRAME, _FULL_IMAGE = 0x40, 0x100, 0x400, 0x1000
_UINT8 = 2
_TARGET_DATA = 1
_GREY, _D65, _SRGB_PRIMARIES = 1, 1, 1
_BT2020 = 9
_PRIMARIES = {1: 1, 9: _BT2020, 11: 12}
"""Of JPEG XL, in H.273. Its P3 has the white of sRGB by default."""
_BLACK_CHANNEL = 4
_MOST_LAYERS = 1000
"""Beyond the frames that are shown."""
_EXTRA_CHANNEL_INFO_BYTES = 512
"""More than any version's `JxlExtraChannelInfo`."""


class _BasicInfo(ctypes.Structure):
    _fields_ = (
        ("have_container", ctypes.c_int),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("bits", ctypes.c_uint32),
        ("exponent_bits", ctypes.c_uint32),
        ("intensity_target", ctypes.c_float),
        ("min_nits", ctypes.c_float),
        ("relative_to_max_display", ctypes.c_int),
        ("linear_below", ctypes.c_float),
        ("uses_original_profile", ctypes.c_int),
        ("have_preview", ctypes.c_int),
        ("have_animation", ctypes.c_int),
        ("orientation", ctypes.c_int),
        ("color_channels", ctypes.c_uint32),
        ("extra_channels", ctypes.c_uint32),
        ("alpha_bits", ctypes.c_uint32),
        ("alpha_exponent_bits", ctypes.c_uint32),
        ("alpha_premultiplied", ctypes.c_int),
        ("preview_size", ctypes.c_uint32 * 2),
        ("ticks_numerator", ctypes.c_uint32),
        ("ticks_denominator", ctypes.c_uint32),
        ("loops", ctypes.c_uint32),
        ("have_timecodes", ctypes.c_int),
        ("intrinsic_size", ctypes.c_uint32 * 2),
        ("padding", ctypes.c_uint8 * 100),
    )


class _PixelFormat(ctypes.Structure):
    _fields_ = (
        ("channels", ctypes.c_uint32),
        ("data_type", ctypes.c_int),
        ("endianness", ctypes.c_int),
        ("align", ctypes.c_size_t),
    )


class _ColorEncoding(ctypes.Structure):
    _fields_ = (
        ("color_space", ctypes.c_int),
        ("white_point", ctypes.c_int),
        ("white", ctypes.c_double * 2),
        ("primaries", ctypes.c_int),
        ("red_green_blue", ctypes.c_double * 6),
        ("transfer", ctypes.c_int),
        ("gamma", ctypes.c_double),
        ("rendering_intent", ctypes.c_int),
    )


class _FrameHeader(ctypes.Structure):
    _fields_ = (
        ("duration", ctypes.c_uint32),
        ("timecode", ctypes.c_uint32),
        ("name_length", ctypes.c_uint32),
        ("is_last", ctypes.c_int),
        ("layer", ctypes.c_uint32 * 16),
    )


@dataclass(slots=True)
class Information:
    """What a codestream says of its pictures.

    `seconds` are those of each frame that is shown, as the file says; `loops` is 0 for ever.
    Frames may have several layers. `channels` are 1 to 4, with alpha at the end of 2 and 4;
    `further_channels` are not shown.
    """

    width: int
    height: int
    channels: int
    further_channels: int
    animated: bool
    loops: int
    profile: bytes
    seconds: list[float]
    layers: int = 0
    truncated: bool = False


@functools.cache
def _library() -> ctypes.CDLL:
    """The library. Raises Malformed where it is not installed."""
    spec = importlib.util.find_spec("imagecodecs")
    if spec is None or spec.origin is None:
        raise Malformed("no decoder is installed")
    packages = Path(spec.origin).parent.parent
    found = [path for pattern in _PATTERNS for path in sorted(packages.glob(pattern))]
    if not found:
        raise Malformed("no decoder is installed")
    library = ctypes.CDLL(str(found[0]))
    library.JxlDecoderCreate.restype = ctypes.c_void_p
    library.JxlDecoderReleaseInput.restype = ctypes.c_size_t
    for name, arguments in (
        ("Create", (ctypes.c_void_p,)),
        ("Destroy", (ctypes.c_void_p,)),
        ("SubscribeEvents", (ctypes.c_void_p, ctypes.c_int)),
        ("SetCoalescing", (ctypes.c_void_p, ctypes.c_int)),
        ("SetKeepOrientation", (ctypes.c_void_p, ctypes.c_int)),
        ("SetUnpremultiplyAlpha", (ctypes.c_void_p, ctypes.c_int)),
        ("SetInput", (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
        ("ProcessInput", (ctypes.c_void_p,)),
        ("FlushImage", (ctypes.c_void_p,)),
        ("GetBasicInfo", (ctypes.c_void_p, ctypes.c_void_p)),
        ("GetFrameHeader", (ctypes.c_void_p, ctypes.c_void_p)),
        ("GetExtraChannelInfo", (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)),
        ("GetColorAsEncodedProfile", (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)),
        ("GetICCProfileSize", (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)),
        (
            "GetColorAsICCProfile",
            (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t),
        ),
        (
            "SetImageOutBuffer",
            (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
        ),
    ):
        getattr(library, f"JxlDecoder{name}").argtypes = arguments
    return library


@contextmanager
def _decoder(data: bytes, events: int, *, compose: bool) -> Iterator[tuple[Any, int]]:
    """The library, and a decoder that has all of the codestream."""
    library = _library()
    decoder = library.JxlDecoderCreate(None)
    if not decoder:
        raise MemoryError
    try:
        library.JxlDecoderSubscribeEvents(decoder, events)
        library.JxlDecoderSetCoalescing(decoder, int(compose))
        library.JxlDecoderSetKeepOrientation(decoder, 1)
        library.JxlDecoderSetUnpremultiplyAlpha(decoder, 1)
        library.JxlDecoderSetInput(decoder, data, len(data))
        yield library, decoder
    finally:
        library.JxlDecoderDestroy(decoder)


def information(codestream: bytes, most_frames: int) -> Information:
    """Read the headers, of at most `most_frames` frames. No pixel is decoded. Raises Malformed."""
    events = _BASIC_INFO | _COLOR_ENCODING | _FRAME
    basic = _BasicInfo()
    found: Information | None = None
    with _decoder(codestream, events, compose=False) as (library, decoder):
        while True:
            status = library.JxlDecoderProcessInput(decoder)
            if status == _BASIC_INFO:
                library.JxlDecoderGetBasicInfo(decoder, ctypes.byref(basic))
                _refuse_black(library, decoder, basic.extra_channels)
            elif status == _COLOR_ENCODING:
                found = _information(basic, _profile(library, decoder))
            elif status == _FRAME and found is not None:
                header = _FrameHeader()
                library.JxlDecoderGetFrameHeader(decoder, ctypes.byref(header))
                _add_layer(found, header, basic)
                if len(found.seconds) >= most_frames:
                    return found
            elif found is not None and found.layers:
                found.truncated = status != _SUCCESS
                found.seconds = found.seconds or [0.0]
                return found
            else:
                raise Malformed("no frame")


def _information(basic: _BasicInfo, profile: bytes) -> Information:
    has_alpha = bool(basic.alpha_bits)
    return Information(
        basic.width,
        basic.height,
        basic.color_channels + has_alpha,
        basic.extra_channels - has_alpha,
        bool(basic.have_animation),
        basic.loops,
        profile,
        [],
    )


def _add_layer(found: Information, header: _FrameHeader, basic: _BasicInfo) -> None:
    """A layer without a duration is shown together with the next one. Raises Malformed."""
    found.layers += 1
    if header.duration or header.is_last:
        ticks = basic.ticks_numerator / max(1, basic.ticks_denominator)
        found.seconds.append(header.duration / ticks if ticks else 0.0)
    if found.layers - len(found.seconds) > _MOST_LAYERS:
        raise Malformed("too many layers")


def _refuse_black(library: Any, decoder: int, channels: int) -> None:
    """Four inks are not converted. Raises Malformed."""
    info = ctypes.create_string_buffer(_EXTRA_CHANNEL_INFO_BYTES)
    for number in range(channels):
        library.JxlDecoderGetExtraChannelInfo(decoder, number, info)
        if int.from_bytes(info.raw[:4], "little") == _BLACK_CHANNEL:
            raise Malformed("CMYK")


def _profile(library: Any, decoder: int) -> bytes:
    """Of the pixels that are decoded; none for sRGB, and where it is too large.

    libjxl's profiles of PQ and HLG map to other tones than Chromium does.
    """
    colors = _ColorEncoding()
    encoded = library.JxlDecoderGetColorAsEncodedProfile(
        decoder, _TARGET_DATA, ctypes.byref(colors)
    )
    is_grey = colors.color_space == _GREY
    is_srgb = colors.white_point == _D65 and colors.primaries == _SRGB_PRIMARIES
    if not encoded and colors.transfer == SRGB_TRANSFER and (is_grey or is_srgb):
        return b""
    if not encoded and colors.transfer in (PQ, HLG):
        return profile_of_cicp(_PRIMARIES.get(colors.primaries, _BT2020), colors.transfer)
    size = ctypes.c_size_t()
    failed = library.JxlDecoderGetICCProfileSize(decoder, _TARGET_DATA, ctypes.byref(size))
    if failed or not 0 < size.value <= MOST_PROFILE_BYTES:
        return b""
    profile = ctypes.create_string_buffer(size.value)
    failed = library.JxlDecoderGetColorAsICCProfile(decoder, _TARGET_DATA, profile, size.value)
    return b"" if failed else profile.raw


@dataclass(slots=True)
class Pixels:
    """A decoded frame: rows of `channels` bytes a pixel. `whole`: all of it is there."""

    pixels: bytearray
    channels: int
    whole: bool = True


def frames(codestream: bytes, info: Information) -> Iterator[Pixels]:
    """Decode the frames, composed. Raises Malformed.

    Of a frame that is cut there is what a decoder makes of the beginning, coarse in parts, as
    Chromium shows it. Of a picture that is damaged there are those parts that were decoded before,
    and the rest is transparent, as Chromium leaves it.
    """
    try:
        yield from _frames(codestream, info, info.channels)
    except _DamagedError:
        if info.animated:
            raise
        with_alpha = info.channels + info.channels % 2
        yield _before_damage(codestream, info, with_alpha)


class _DamagedError(Malformed):
    """The pixels of a frame cannot be decoded. `pixels` are those that were."""

    def __init__(self, pixels: bytearray) -> None:
        super().__init__("damaged")
        self.pixels = pixels


def _before_damage(codestream: bytes, info: Information, channels: int) -> Pixels:
    """The parts of a picture that are decoded before the damage. Raises Malformed."""
    try:
        for frame in _frames(codestream, info, channels):
            return frame
    except _DamagedError as error:
        if any(error.pixels[channels - 1 :: channels]):
            return Pixels(error.pixels, channels, whole=False)
    raise Malformed("damaged")


def _frames(codestream: bytes, info: Information, channels: int) -> Iterator[Pixels]:
    layout = _PixelFormat(channels, _UINT8, 0, 0)
    size = info.width * info.height * channels
    pixels: bytearray | None = None
    with _decoder(codestream, _FULL_IMAGE, compose=True) as (library, decoder):
        while True:
            status = library.JxlDecoderProcessInput(decoder)
            if status == _IMAGE_BUFFER:
                pixels = bytearray(size)
                buffer = (ctypes.c_char * size).from_buffer(pixels)
                failed = library.JxlDecoderSetImageOutBuffer(
                    decoder, ctypes.byref(layout), buffer, size
                )
                if failed:
                    raise Malformed("of two sizes")
            elif status == _FULL_IMAGE and pixels is not None:
                yield Pixels(pixels, channels)
                pixels = None
            elif status == _SUCCESS:
                return
            elif status == _ERROR and pixels is not None:
                raise _DamagedError(pixels)
            elif pixels is not None and not library.JxlDecoderFlushImage(decoder):
                if pixels.count(0) == size:  # before its first part: Chromium shows nothing
                    raise Malformed("cut")
                yield Pixels(pixels, channels, whole=False)
                return
            else:
                raise Malformed("cut")
