"""JPEG XL: what Chromium shows of it, by the container, by the codestream, and by old tools."""

import struct
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

from PIL import Image

from tests.fixtures import profiles, writers
from tests.viewers.containers import box, iccp, png_with
from tests.viewers.corpus import profile_bytes as icc
from tests.viewers.corpus.animation import apng_of, gif_of, others, times
from tests.viewers.corpus.case import Case, Kind, Make, plainly
from tests.viewers.corpus.geometry import stored, tiff_exif
from tests.viewers.corpus.transparency import in_alpha

TOOL = "cjxl"
_SECONDS = 60
_LOSSY = {"lossless": False, "distance": 1.0}


def jxl(draw=plainly, **options) -> Make:
    return lambda picture: writers.save(draw(picture), "JXL", **options)


def by_tool(make: Make, suffix: str, *options: str) -> Make:
    """A file of another format, converted by libjxl's own encoder."""

    def made(picture: Image.Image) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, f"source{suffix}"), Path(folder, "target.jxl")
            source.write_bytes(make(picture))
            subprocess.run(
                [TOOL, *options, source, target], check=True, capture_output=True, timeout=_SECONDS
            )
            return target.read_bytes()

    return made


def in_container(*added: bytes, **options) -> Make:
    """A codestream in a container, with boxes in front of it."""

    def make(picture: Image.Image) -> bytes:
        stream = writers.save(picture, "JXL", **options)
        return contained(*added, box(b"jxlc", stream))

    return make


def contained(*parts: bytes) -> bytes:
    head = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl " + bytes(4) + b"jxl ")
    return head + b"".join(parts)


def in_parts(picture: Image.Image) -> bytes:
    """The codestream in three partial boxes."""
    stream = writers.save(picture, "JXL")
    cuts = [0, 100, len(stream) // 2, len(stream)]
    parts = []
    for number, (start, end) in enumerate(pairwise(cuts)):
        last = 0x80000000 if end == len(stream) else 0
        parts.append(box(b"jxlp", struct.pack(">I", number | last) + stream[start:end]))
    return contained(*parts)


def two_streams(picture: Image.Image) -> bytes:
    first = box(b"jxlc", writers.save(picture, "JXL"))
    return contained(first, box(b"jxlc", writers.save(writers.other(picture), "JXL")))


def cut(make: Make, share: float) -> Make:
    return writers.cut(make, share)


def foreign_profile(picture: Image.Image) -> bytes:
    return png_with(writers.save(icc.negative(picture), "PNG"), iccp(icc.negating()))


def scrambled_profile(picture: Image.Image) -> bytes:
    return png_with(writers.save(icc.scrambled(picture), "PNG"), iccp(icc.unscrambling()))


def in_p3(picture: Image.Image) -> bytes:
    image = profiles.converted(picture, profiles.DISPLAY_P3)
    return png_with(writers.save(image, "PNG"), iccp(profiles.rgb(profiles.DISPLAY_P3)))


def turned_jpeg(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return writers.save(stored(picture, 6), "JPEG", quality=90, exif=exif)


def moving(at: int) -> Make:
    def make(picture: Image.Image) -> bytes:
        shown = others(picture, 5)
        shown[at] = picture
        return apng_of(shown, times(5, at))

    return make


def moving_gif(picture: Image.Image) -> bytes:
    return gif_of([*others(picture, 3), picture], times(4, 3))


def _c(kind: Kind, quirk: str, make: Make, **more) -> Case:
    return Case(kind, "JPEG XL", quirk, make, **more)


CASES = (
    _c("Damage", "lossy", jxl(**_LOSSY)),
    _c("Damage", "lossless", jxl()),
    _c("Damage", "grey", jxl(lambda p: p.convert("L"))),
    _c("Damage", "in a container", in_container()),
    _c(
        "Damage",
        "in a container behind a box of 100 kB",
        in_container(box(b"junk", bytes(100_000))),
    ),
    _c("Damage", "codestream in three parts", in_parts),
    _c("Damage", "two codestreams in a container", two_streams),
    _c("Damage", "cut at 60%", cut(jxl(**_LOSSY), 0.6), expected="undecodable", known=False),
    _c("Damage", "bytes behind its end", lambda p: jxl()(p) + bytes(1000)),
    _c(
        "Geometry",
        "EXIF that must not turn it",
        in_container(box(b"Exif", bytes(4) + tiff_exif(6))),
    ),
    _c(
        "Transparency",
        "white pixels, the picture in alpha",
        jxl(lambda p: in_alpha(p, 255)),
    ),
    _c(
        "Transparency",
        "black pixels, the picture in alpha",
        jxl(lambda p: in_alpha(p, 0)),
    ),
    _c(
        "Colour",
        "negative, with its profile",
        by_tool(foreign_profile, ".png", "-d", "0"),
        tool=TOOL,
        also=plainly,
    ),
    _c(
        "Colour",
        "scrambled levels, with their profile",
        by_tool(scrambled_profile, ".png", "-d", "0"),
        tool=TOOL,
        also=plainly,
    ),
    _c("Colour", "Display P3", by_tool(in_p3, ".png"), tool=TOOL),
    _c("Geometry", "turned in the codestream", by_tool(turned_jpeg, ".jpg"), tool=TOOL),
    _c(
        "Animation",
        "five frames, the third shown for 60 s",
        by_tool(moving(2), ".png", "-d", "1"),
        tool=TOOL,
        frame=2,
    ),
    _c(
        "Animation",
        "five frames, the first shown for 60 s",
        by_tool(moving(0), ".png", "-d", "1"),
        tool=TOOL,
        frame=0,
    ),
    _c(
        "Animation",
        "four frames of a GIF, the last shown for 60 s",
        by_tool(moving_gif, ".gif", "-d", "1"),
        tool=TOOL,
        frame=3,
    ),
)
