"""Colour profiles, written tag by tag, so that any part of them may be odd."""

import struct

import numpy as np
from PIL import Image

from tests.fixtures.profiles import SRGB, Columns

LEVELS = 256
_WHITE = (0.9642, 1.0, 0.8249)
_SHUFFLE = np.random.default_rng(7).permutation(LEVELS)
"""What level each level is stored as by `scrambled`."""


def number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(number, values))


def curve(table: np.ndarray | list[int]) -> bytes:
    """A table of 16-bit values; of one value: a gamma in 1/256."""
    values = np.asarray(table, ">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + values.tobytes()


def gamma(value: float) -> bytes:
    return curve([round(value * 256)])


def srgb_curve() -> bytes:
    parameters = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(map(number, parameters))


def light(levels: np.ndarray) -> np.ndarray:
    """sRGB's values, 0 to 1, to linear light."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def profile(
    tags: dict[bytes, bytes],
    space: bytes = b"RGB ",
    *,
    kind: bytes = b"mntr",
    connection: bytes = b"XYZ ",
    version: int = 0x04300000,
    extra: int = 0,
) -> bytes:
    """A profile of these tags; `extra` is added to the length that its header says."""
    text = "test".encode("utf-16-be")
    name = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": name, b"cprt": name, b"wtpt": xyz(_WHITE)} | tags
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        table += struct.pack(">4sII", tag, at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4sI", at + len(body) + extra, bytes(4), version)
    head += kind + space + connection + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    head += bytes(28) + b"".join(map(number, _WHITE))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def columns(of: Columns = SRGB) -> dict[bytes, bytes]:
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    return {name: xyz(column) for name, column in zip(names, of, strict=True)}


def curves(one: bytes) -> dict[bytes, bytes]:
    return dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), one)


def matrix(one: bytes, of: Columns = SRGB, **options) -> bytes:
    """A profile of primaries and one curve for all."""
    return profile(columns(of) | curves(one), **options)


def whitening(**options) -> bytes:
    """All levels are white."""
    return matrix(curve([0xFFFF, 0xFFFF]), **options)


def whitening_short() -> bytes:
    """The same with a wrong length in its header, which browsers refuse and lcms does not."""
    return whitening(version=0x02400000, extra=100)


def whitening_grey(**options) -> bytes:
    return profile({b"kTRC": curve([0xFFFF, 0xFFFF])}, b"GRAY", **options)


def scrambled(image: Image.Image) -> Image.Image:
    """Each level as another one: noise, to who passes over the profile."""
    return image.point(_SHUFFLE.tolist() * len(image.getbands()))


def unscrambling(mode: str = "RGB", **options) -> bytes:
    """The profile that undoes `scrambled`."""
    levels = np.zeros(LEVELS)
    levels[_SHUFFLE] = np.arange(LEVELS) / (LEVELS - 1)
    one = curve(np.round(light(levels) * 65535).astype(int))
    if mode == "L":
        return profile({b"kTRC": one}, b"GRAY", **options)
    return matrix(one, **options)


def sawtooth(step: int, samples: int, points: int = 4096) -> bytes:
    """A curve that is sRGB's at so many samples, and a sawtooth of `step` levels between them."""
    levels = np.linspace(0, LEVELS - 1, points)
    values = np.round(light(np.round(levels) % step / (step - 1)) * 65535)
    for at in np.linspace(0, points - 1, samples):
        near = [int(np.floor(at)), int(np.ceil(at))]
        values[near] = np.round(light(levels[near] / (LEVELS - 1)) * 65535)
    return matrix(curve(values.astype(int)))


def in_low_bits(image: Image.Image, step: int) -> Image.Image:
    """The picture in the low bits of a mid-grey, for `sawtooth`."""
    stored = np.round(np.asarray(image) * ((step - 1) / (LEVELS - 1)))
    return Image.fromarray((128 + stored).astype(np.uint8))


def negative(image: Image.Image) -> Image.Image:
    return image.point([LEVELS - 1 - level for level in range(LEVELS)] * len(image.getbands()))


def negating(mode: str = "RGB", **options) -> bytes:
    """The profile that undoes `negative`, which JPEG's losses do not harm as they do scrambling."""
    one = curve(np.round(light(np.linspace(1, 0, LEVELS)) * 65535).astype(int))
    if mode == "L":
        return profile({b"kTRC": one}, b"GRAY", **options)
    return matrix(one, **options)


def table(value: tuple[int, int, int], name: bytes = b"mft2") -> bytes:
    """A look-up table of two points a side that gives one colour for all, in XYZ or Lab."""
    head = name + bytes(4) + bytes((3, 3, 2, 0))
    head += b"".join(number(one) for one in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    if name == b"mft1":
        ramp = bytes(range(256)) * 3
        return head + ramp + bytes(one >> 8 for one in value) * 8 + ramp
    ramp = struct.pack(">HH", 0, 65535) * 3
    return head + struct.pack(">HH", 2, 2) + ramp + struct.pack(">3H", *value) * 8 + ramp


def constant_d2b0() -> bytes:
    """A `D2B0` table of multiProcessElements that gives one colour for all."""
    elements = (
        b"matf"
        + bytes(4)
        + struct.pack(">HH", 3, 3)
        + struct.pack(">12f", *([0.0] * 9), 0.9642, 1.0, 0.8249)
    )
    head = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, 1) + struct.pack(">II", 24, len(elements))
    return head + elements


def constant_profile() -> bytes:
    """sRGB by its curves, one colour by its `D2B0` table."""
    return profile(columns() | curves(srgb_curve()) | {b"D2B0": constant_d2b0()})
