"""What people do to a picture before they post it again, each as a small function of a picture.

All take and return RGB and change nothing in place. `quality` and the format in which the result
is sent are the sender's; an edit is about what the picture looks like.
"""

import io
from collections.abc import Callable, Mapping

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

type Edit = Callable[[Image.Image], Image.Image]

WHITE, BLACK, GREY = "white", "black", (188, 190, 196)


def unedited(picture: Image.Image) -> Image.Image:
    """The picture itself: only its encoding may differ."""
    return picture.copy()


def reencoded(picture: Image.Image, quality: int = 30, kind: str = "JPEG") -> Image.Image:
    """Saved as a JPEG of quality 30."""
    saved = io.BytesIO()
    picture.save(saved, kind, quality=quality)
    return Image.open(saved).convert("RGB")


def resized(picture: Image.Image, share: float = 0.5) -> Image.Image:
    """Half as wide and half as high."""
    size = (max(1, int(picture.width * share)), max(1, int(picture.height * share)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def cropped(picture: Image.Image) -> Image.Image:
    """The upper right 70% of width and height, which is half of the picture."""
    width, height = picture.width * 7 // 10, picture.height * 7 // 10
    return picture.crop((picture.width - width, 0, picture.width, height))


def mirrored(picture: Image.Image) -> Image.Image:
    """Left for right."""
    return ImageOps.mirror(picture)


def tilted(picture: Image.Image, degrees: float = 10) -> Image.Image:
    """Rotated by 10 degrees, with black corners."""
    return picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True)


def turned(picture: Image.Image) -> Image.Image:
    """Rotated by 90 degrees."""
    return picture.transpose(Image.Transpose.ROTATE_90)


def recoloured(picture: Image.Image) -> Image.Image:
    """Brighter, with stronger colours and less contrast."""
    brighter = ImageEnhance.Brightness(picture).enhance(1.35)
    return ImageEnhance.Contrast(ImageEnhance.Color(brighter).enhance(1.8)).enhance(0.8)


def greyscale(picture: Image.Image) -> Image.Image:
    """Without colours."""
    return ImageOps.grayscale(picture).convert("RGB")


def captioned(picture: Image.Image) -> Image.Image:
    """A meme: large white letters with a black outline above and below."""
    meme = picture.copy()
    draw = ImageDraw.Draw(meme)
    font = ImageFont.load_default(max(12, picture.width // 10))
    outline = max(1, picture.width // 160)
    centre, margin = picture.width // 2, picture.height // 30
    for text, y, anchor in (
        ("WHEN THE FILTER", margin, "mt"),
        ("LOOKS TWICE", picture.height - margin, "mb"),
    ):
        draw.text((centre, y), text, WHITE, font, anchor, stroke_width=outline, stroke_fill=BLACK)
    return meme


def pasted(picture: Image.Image) -> Image.Image:
    """A part of something else: four ninths of a page of coloured rectangles."""
    page = Image.new("RGB", (picture.width * 3 // 2, picture.height * 3 // 2), (236, 229, 214))
    draw = ImageDraw.Draw(page)
    for step, colour in enumerate(((38, 70, 83), (42, 157, 143), (233, 196, 106), (231, 111, 81))):
        left = page.width * step // 4
        draw.rectangle((left, 0, left + page.width // 4, page.height // 8), colour)
        draw.rectangle((0, page.height * step // 4, page.width // 12, page.height), colour)
    page.paste(picture, (page.width // 4, page.height // 5))
    return page


def blurred(picture: Image.Image, share: float = 1 / 128) -> Image.Image:
    """Out of focus, by a Gaussian of `share` of the longer side."""
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) * share))


def inverted(picture: Image.Image) -> Image.Image:
    """The negative."""
    return ImageChops.invert(picture)


def screenshot(picture: Image.Image) -> Image.Image:
    """As a phone shows it: bars above and below, the picture in between."""
    bar = picture.height // 5
    screen = Image.new("RGB", (picture.width, picture.height + 2 * bar), WHITE)
    screen.paste(picture, (0, bar))
    draw = ImageDraw.Draw(screen)
    font = ImageFont.load_default(max(10, bar // 3))
    draw.ellipse((bar // 4, bar // 4, bar * 3 // 4, bar * 3 // 4), GREY)
    draw.text((bar, bar // 2), "someone  ·  2 h", BLACK, font, "lm")
    draw.text((bar // 4, screen.height - bar // 2), "1,024 likes", BLACK, font, "lm")
    return screen


EDITS: Mapping[str, Edit] = {
    "unedited": unedited,
    "re-encoded, JPEG q30": reencoded,
    "resized to half": resized,
    "cropped, 70% a side": cropped,
    "mirrored": mirrored,
    "rotated by 10 degrees": tilted,
    "rotated by 90 degrees": turned,
    "colours changed": recoloured,
    "greyscale": greyscale,
    "captioned": captioned,
    "pasted into a page": pasted,
    "blurred": blurred,
    "negative": inverted,
    "screenshot": screenshot,
}
"""By the name that the report shows. `unedited` must be found; of the others recall is told."""

UNEDITED = "unedited"
