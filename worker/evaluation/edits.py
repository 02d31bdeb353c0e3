"""The edits that copies are made with: what people do to a picture before they post it again.

Those of `worker.image.edits`, as the demonstration uses them, and more of them in several
strengths, at random places, and with other pictures. The same seed, picture and edit make the same
copy, whatever else is made. docs/evaluation.md has the table.
"""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from worker.image import edits as plain

POSTED_QUALITY = 85
"""Every copy is posted as a JPEG of this quality, whatever was done to it."""
OTHERS = 3
"""Pictures of somebody else that an edit may take, none of them of the same group."""

_WORDS = (
    *("when", "you", "see", "it", "nobody", "told", "me", "this"),
    *("was", "so", "good", "look", "at", "that", "thing", "again"),
)
_COLOURS = ("white", "black", (214, 40, 57), (29, 53, 87), (233, 196, 106))
_YELLOW, _DARK, _RED = (255, 205, 60), (70, 45, 10), (226, 60, 70)


@dataclass(frozen=True, slots=True)
class Occasion:
    """What one copy depends on beside the picture: chance, and others' pictures in RGB."""

    luck: random.Random
    others: Sequence[Image.Image]


type Make = Callable[[Image.Image, Occasion], Image.Image]


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit with its strength. `inverts`: light is dark in what comes of it."""

    name: str
    kind: str
    what: str
    make: Make
    inverts: bool = False


def copy_of(
    picture: Image.Image, key: str, edit: Edit, seed: int, others: Sequence[Image.Image]
) -> bytes:
    """Make the JPEG of a copy of `picture` (RGB), which `key` names: its sha256, say."""
    luck = random.Random(f"{seed}:{key}:{edit.name}")  # noqa: S311 - variety, not secrecy
    return posted(edit.make(picture, Occasion(luck, others)))


def posted(picture: Image.Image) -> bytes:
    """The picture as it is posted."""
    saved = io.BytesIO()
    picture.save(saved, "JPEG", quality=POSTED_QUALITY)
    return saved.getvalue()


# -- what is done ---------------------------------------------------------------------------------


def _cropped(share: float, picture: Image.Image, occasion: Occasion) -> Image.Image:
    width, height = (max(1, int(side * share)) for side in picture.size)
    left = occasion.luck.randint(0, picture.width - width)
    upper = occasion.luck.randint(0, picture.height - height)
    return picture.crop((left, upper, left + width, upper + height))


def _framed(share: float, picture: Image.Image, occasion: Occasion) -> Image.Image:
    width = max(1, int(share * max(picture.size)))
    return ImageOps.expand(picture, width, occasion.luck.choice(_COLOURS))


def _squared(picture: Image.Image, occasion: Occasion) -> Image.Image:
    side = int(max(picture.size) * 1.1)
    return ImageOps.pad(picture, (side, side), color=occasion.luck.choice(_COLOURS))


def _captioned_above(picture: Image.Image, occasion: Occasion) -> Image.Image:
    bar = picture.height // 4
    page = Image.new("RGB", (picture.width, picture.height + bar), plain.WHITE)
    page.paste(picture, (0, bar))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(max(10, bar // 3))
    for line in range(2):
        text = " ".join(occasion.luck.sample(_WORDS, 5))
        draw.text((bar // 8, bar * (2 * line + 1) // 4), text, plain.BLACK, font, "lm")
    return page


def _with_emoji(count: int, share: float, picture: Image.Image, occasion: Occasion) -> Image.Image:
    covered = picture.copy()
    side = max(8, int(share * min(picture.size)))
    for _ in range(count):
        left = occasion.luck.randint(0, max(0, picture.width - side))
        upper = occasion.luck.randint(0, max(0, picture.height - side))
        _face(ImageDraw.Draw(covered), left, upper, side)
    return covered


def _face(draw: ImageDraw.ImageDraw, left: int, upper: int, side: int) -> None:
    """A laughing face, `side` pixels wide."""

    def box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        corner = left + x * side, upper + y * side
        return (*corner, corner[0] + width * side, corner[1] + height * side)

    draw.ellipse(box(0, 0, 1, 1), _YELLOW, _DARK, max(1, side // 40))
    for x in (0.24, 0.62):
        draw.ellipse(box(x, 0.26, 0.14, 0.2), _DARK)
    draw.chord(box(0.2, 0.3, 0.6, 0.55), 10, 170, _RED, _DARK, max(1, side // 40))


def _sepia(picture: Image.Image, _: Occasion) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), (40, 22, 8), (255, 240, 205))


def _darkened(picture: Image.Image, _: Occasion) -> Image.Image:
    darker = picture.point([round(255 * (value / 255) ** 2.2) for value in range(256)] * 3)
    return ImageEnhance.Contrast(darker).enhance(1.3)


def _posterised(picture: Image.Image, _: Occasion) -> Image.Image:
    return ImageOps.posterize(picture, 3)


def _noisy(sigma: float, picture: Image.Image, occasion: Occasion) -> Image.Image:
    chance = np.random.default_rng(occasion.luck.getrandbits(64))
    pixels = np.asarray(picture, np.float32)
    added = pixels + chance.normal(0, sigma, pixels.shape).astype(np.float32)
    return Image.fromarray(added.round().clip(0, 255).astype(np.uint8))


def _flipped(picture: Image.Image, _: Occasion) -> Image.Image:
    return ImageOps.flip(picture)


def _in_perspective(share: float, picture: Image.Image, occasion: Occasion) -> Image.Image:
    """Seen from aside: each corner moves outwards by up to `share` of the sides."""
    width, height = picture.size
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    luck = occasion.luck
    moved = [
        (x + luck.uniform(-share, share) * width, y + luck.uniform(-share, share) * height)
        for x, y in corners
    ]
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):  # the result's corners to the picture's
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    found = np.linalg.solve(np.array(rows), np.array(values))
    return picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, found.tolist(), Image.Resampling.BICUBIC
    )


def _in_feed(picture: Image.Image, occasion: Occasion) -> Image.Image:
    """A phone's screen: a post of somebody else, cut, above and below."""
    width = 400
    bar = width // 9
    posts = [
        ImageOps.contain(one, (width, 2 * width))
        for one in (occasion.others[0], picture, occasion.others[1])
    ]
    above, shown, below = posts
    seen = width // 4
    screen = Image.new("RGB", (width, shown.height + 2 * seen + 3 * bar), plain.WHITE)
    left = (width - shown.width) // 2
    screen.paste(above.crop((0, above.height - seen, above.width, above.height)), (0, 0))
    screen.paste(shown, (left, seen + bar))
    screen.paste(below.crop((0, 0, below.width, seen)), (0, seen + shown.height + 3 * bar))
    draw = ImageDraw.Draw(screen)
    font = ImageFont.load_default(bar // 3)
    for upper in (seen, seen + shown.height + 2 * bar):
        draw.ellipse((bar // 4, upper + bar // 5, bar * 17 // 20, upper + bar * 4 // 5), plain.GREY)
        draw.text((bar * 1.1, upper + bar / 2), "somebody  ·  3 h", plain.BLACK, font, "lm")
    likes = f"{occasion.luck.randint(2, 9999):,} likes"
    draw.text((bar / 4, seen + shown.height + bar * 1.5), likes, plain.BLACK, font, "lm")
    return screen


def _pasted(share: float, picture: Image.Image, occasion: Occasion) -> Image.Image:
    """Into another picture, at `share` of its sides."""
    page = ImageOps.contain(occasion.others[0], (512, 512)).copy()
    box = (max(1, int(page.width * share)), max(1, int(page.height * share)))
    small = ImageOps.contain(picture, box)
    left = occasion.luck.randint(0, page.width - small.width)
    upper = occasion.luck.randint(0, page.height - small.height)
    page.paste(small, (left, upper))
    return page


def _in_collage(picture: Image.Image, occasion: Occasion) -> Image.Image:
    """Four in a square, each filling its quarter."""
    side, gap = 256, 6
    parts = [picture, *occasion.others[:3]]
    occasion.luck.shuffle(parts)
    page = Image.new("RGB", (2 * side + gap, 2 * side + gap), plain.WHITE)
    for place, part in enumerate(parts):
        corner = (place % 2 * (side + gap), place // 2 * (side + gap))
        page.paste(ImageOps.fit(part, (side, side)), corner)
    return page


# -- the catalogue --------------------------------------------------------------------------------


def _as(edit: Callable[..., Image.Image], **strength: object) -> Make:
    """An edit without chance."""
    return lambda picture, _: edit(picture, **strength)


_SINGLE = (
    Edit(
        "re-encoded, JPEG q50",
        "recompression",
        "JPEG of quality 50",
        _as(plain.reencoded, quality=50),
    ),
    Edit("re-encoded, JPEG q30", "recompression", "JPEG of quality 30", _as(plain.reencoded)),
    Edit(
        "re-encoded, JPEG q10",
        "recompression",
        "JPEG of quality 10",
        _as(plain.reencoded, quality=10),
    ),
    Edit(
        "re-encoded, WebP q20",
        "recompression",
        "WebP of quality 20",
        _as(plain.reencoded, quality=20, kind="WEBP"),
    ),
    Edit("resized to half", "rescale", "half as wide and high", _as(plain.resized)),
    Edit(
        "resized to a fifth", "rescale", "a fifth as wide and high", _as(plain.resized, share=0.2)
    ),
    Edit(
        "cropped, 80% a side", "crop", "80% of width and height, anywhere", partial(_cropped, 0.8)
    ),
    Edit(
        "cropped, 70% a side",
        "crop",
        "70% of width and height, the upper right",
        _as(plain.cropped),
    ),
    Edit(
        "cropped, 50% a side", "crop", "50% of width and height, anywhere", partial(_cropped, 0.5)
    ),
    Edit(
        "framed, 10%",
        "border",
        "a border of 10% of the longer side, in one of five colours",
        partial(_framed, 0.1),
    ),
    Edit(
        "framed to a square",
        "border",
        "bars that make it a square, and 5% more all around",
        _squared,
    ),
    Edit(
        "captioned",
        "caption",
        "large letters with an outline, above and below, in the picture",
        _as(plain.captioned),
    ),
    Edit(
        "captioned above",
        "caption",
        "two lines of text in a white bar, a quarter of the height",
        _captioned_above,
    ),
    Edit(
        "one emoji, 35%",
        "emoji",
        "a face over 35% of the shorter side, anywhere",
        partial(_with_emoji, 1, 0.35),
    ),
    Edit(
        "six emoji, 20%",
        "emoji",
        "six faces over 20% of the shorter side each",
        partial(_with_emoji, 6, 0.2),
    ),
    Edit(
        "colours changed",
        "filter",
        "brightness 1.35, colour 1.8, contrast 0.8",
        _as(plain.recoloured),
    ),
    Edit("sepia", "filter", "brown and yellow", _sepia),
    Edit("darkened", "filter", "gamma 2.2, contrast 1.3", _darkened),
    Edit("posterised", "filter", "eight levels of each colour", _posterised),
    Edit("noise, sigma 15", "noise", "Gaussian, sigma 15 of 255", partial(_noisy, 15)),
    Edit("noise, sigma 45", "noise", "Gaussian, sigma 45 of 255", partial(_noisy, 45)),
    Edit("blurred", "blur", "Gaussian, sigma 1/128 of the longer side", _as(plain.blurred)),
    Edit(
        "blurred, 1/48",
        "blur",
        "Gaussian, sigma 1/48 of the longer side",
        _as(plain.blurred, share=1 / 48),
    ),
    Edit("greyscale", "greyscale", "without colours", _as(plain.greyscale)),
    Edit("negative", "inversion", "light is dark", _as(plain.inverted), inverts=True),
    Edit("mirrored", "flip", "left for right", _as(plain.mirrored)),
    Edit("upside down", "flip", "up for down", _flipped),
    Edit("rotated by 10 degrees", "rotation", "by 10 degrees, black corners", _as(plain.tilted)),
    Edit(
        "rotated by 30 degrees",
        "rotation",
        "by 30 degrees, black corners",
        _as(plain.tilted, degrees=30),
    ),
    Edit("rotated by 90 degrees", "rotation", "by 90 degrees", _as(plain.turned)),
    Edit(
        "perspective, 8%",
        "perspective",
        "each corner moved by up to 8% of the sides",
        partial(_in_perspective, 0.08),
    ),
    Edit(
        "perspective, 20%",
        "perspective",
        "each corner moved by up to 20% of the sides",
        partial(_in_perspective, 0.2),
    ),
    Edit("screenshot", "screenshot", "bars of a phone above and below", _as(plain.screenshot)),
    Edit(
        "screenshot of a feed",
        "screenshot",
        "between two posts of other pictures, each cut",
        _in_feed,
    ),
    Edit(
        "pasted, 60% a side",
        "paste",
        "into another picture, 60% of its sides",
        partial(_pasted, 0.6),
    ),
    Edit(
        "pasted, 40% a side",
        "paste",
        "into another picture, 40% of its sides",
        partial(_pasted, 0.4),
    ),
    Edit(
        "collage of four",
        "collage",
        "a quarter of a square, with three other pictures",
        _in_collage,
    ),
)


def _pair(first: str, second: str) -> Edit:
    one, other = (next(edit for edit in _SINGLE if edit.name == name) for name in (first, second))
    return Edit(
        name=f"{first} + {second}",
        kind="pair",
        what="the one, then the other",
        make=lambda picture, occasion: other.make(one.make(picture, occasion), occasion),
        inverts=one.inverts != other.inverts,
    )


EDITS: Mapping[str, Edit] = {
    edit.name: edit
    for edit in (
        *_SINGLE,
        _pair("cropped, 80% a side", "re-encoded, JPEG q30"),
        _pair("mirrored", "captioned"),
        _pair("greyscale", "framed, 10%"),
        _pair("rotated by 10 degrees", "colours changed"),
        _pair("one emoji, 35%", "screenshot"),
        _pair("negative", "re-encoded, JPEG q30"),
        _pair("negative", "cropped, 80% a side"),
        _pair("negative", "mirrored"),
    )
}
"""By the name that reports show, in the order of the table."""
