"""The ways in which a file can be seen.

Viewers disagree about colour profiles, about what lies behind transparent pixels and about crops,
and an animation shows one frame after the other. Each combination is a *rendition* of the file.
The one that Chromium shows on a white page comes first. Others are described as well where they
look noticeably different, so that a file cannot show one picture to the worker and another one to
people (`choice.py`). Nearly all files have one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from worker.events import Background, Colors, Crop
from worker.image.color import is_foreign, to_srgb
from worker.image.formats.container import Frame, Header
from worker.image.formats.orientation import upright

BACKGROUNDS: tuple[Background, ...] = ("white", "black", "none")


@dataclass(frozen=True, slots=True)
class Shown:
    """One frame as a viewer shows it, but for what lies behind: mode RGB, or RGBA where it matters.

    All of it, upright, in sRGB.
    """

    colors: Colors
    crop: Crop
    image: Image.Image

    @property
    def backgrounds(self) -> Sequence[Background]:
        """What may lie behind it; none matters where nothing is transparent."""
        return BACKGROUNDS if self.image.mode == "RGBA" else BACKGROUNDS[:1]


def shown(frame: Frame, header: Header) -> Iterator[Shown]:
    """All ways to show one frame, the usual one first."""
    crops: list[tuple[Crop, Image.Image]] = [("applied", frame.image)]
    if header.crop is not None:
        crops = [("applied", frame.image.crop(header.crop)), ("ignored", frame.image)]
    for crop, image in crops:
        for colors, converted in _colors(image, header):
            yield Shown(colors, crop, upright(_rgb(converted), header.orientation))


def ways_to_show(header: Header) -> int:
    """The most renditions that one frame has."""
    crops = 1 if header.crop is None else 2
    colors = 1 + sum(map(is_foreign, header.profiles))
    return crops * colors * len(BACKGROUNDS)


def picture(frame: Frame, header: Header) -> Image.Image:
    """One frame as Chromium shows it on a white page, in mode RGB."""
    image = next(shown(frame, header)).image
    return image if image.mode == "RGB" else on(image, "white")


def on(image: Image.Image, background: Background) -> Image.Image:
    """An RGBA picture on a background, or without its alpha channel; an RGB picture as it is."""
    if image.mode == "RGB":
        return image
    if background == "none":
        return image.convert("RGB")
    behind = Image.new("RGB", image.size, background)
    behind.paste(image, mask=image)
    return behind


def _colors(image: Image.Image, header: Header) -> Iterator[tuple[Colors, Image.Image]]:
    """In each of the colours that the file may mean, the usual ones first, and as it is."""
    tagged: list[Colors] = ["tagged", "other"]
    foreign = (profile if is_foreign(profile) else b"" for profile in (*header.profiles, b""))
    for profile in dict.fromkeys(foreign):
        if profile:
            yield tagged.pop(0), to_srgb(image, profile)
        else:
            yield "untagged", image


def _rgb(image: Image.Image) -> Image.Image:
    """In mode RGB, or RGBA where a pixel is transparent."""
    if image.mode in ("LA", "RGBA"):
        lowest, _ = image.getchannel("A").getextrema()
        return image.convert("RGB" if lowest == 255 else "RGBA")  # noqa: PLR2004 - opaque
    return image.convert("RGB")
