"""The canvas onto which the frames of a GIF or an APNG are put, one after the other."""

from typing import Literal

from PIL import Image

from worker.image.formats.container import Box

type Disposal = Literal["keep", "clear", "restore"]
"""What becomes of a frame before the next one: it stays, it is cleared to transparent, or what was
there before it comes back."""

LEAST_SECONDS, SLOWED_SECONDS = 0.010, 0.100
"""Browsers show a frame of at most 10 ms for 100 ms."""
_CLEAR = (0, 0, 0, 0)


def shown_seconds(told: float) -> float:
    """How long browsers show a frame that has this delay, both in seconds."""
    return told if told > LEAST_SECONDS else SLOWED_SECONDS


class Canvas:
    """Transparent at first.

    Holds 4 bytes a pixel, and as much again below a frame whose disposal is "restore".
    """

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` is width and height in pixels."""
        self._image = Image.new("RGBA", size)
        self._whole: Box = (0, 0, *size)
        self._is_opaque = False
        self._disposal: Disposal = "keep"
        self._box: Box = (0, 0, 0, 0)
        self._before: Image.Image | None = None
        self._was_opaque = False

    def show(
        self,
        image: Image.Image | None,
        box: Box,
        *,
        over: bool,
        disposal: Disposal,
        whole: bool = True,
    ) -> Image.Image:
        """Put a frame onto the canvas and return a copy of that, in mode RGB where it is opaque.

        Args:
            image: The frame in mode L, LA, RGB or RGBA, of the size of `box`; None paints nothing.
            box: Where it goes. What lies beyond the canvas is not seen.
            over: Blend it with what is there. Otherwise it replaces that, its alpha too.
            disposal: What becomes of it before the next frame.
            whole: Pixels of a frame that is not whole replace nothing where they are transparent;
                but one that would cover the canvas has nothing behind it.

        """
        self._dispose()
        left, top, right, bottom = box
        self._box = (left, top, min(right, self._whole[2]), min(bottom, self._whole[3]))
        is_seen = self._box[2] > left and self._box[3] > top
        self._disposal = disposal if is_seen else "keep"
        if self._disposal == "restore":
            self._before = self._image.crop(self._box)
            self._was_opaque = self._is_opaque
        if not (whole or over) and self._box == self._whole:
            self._clear(self._whole)
        if image is not None and is_seen:
            self._paint(image, over=over or not whole)
        return self._image.convert("RGB") if self._is_opaque else self._image.copy()

    def _paint(self, image: Image.Image, *, over: bool) -> None:
        if self._box[2:] != (self._box[0] + image.width, self._box[1] + image.height):
            width, height = self._box[2] - self._box[0], self._box[3] - self._box[1]
            image = image.crop((0, 0, width, height))
        has_alpha = image.mode in ("LA", "RGBA")
        if over and has_alpha:
            self._image.alpha_composite(image.convert("RGBA"), self._box[:2])
            return
        self._image.paste(image.convert("RGBA") if image.mode == "LA" else image, self._box)
        if has_alpha:
            self._is_opaque = False
        elif self._box == self._whole:
            self._is_opaque = True

    def _dispose(self) -> None:
        """Do what the frame before left to be done."""
        if self._disposal == "clear":
            self._clear(self._box)
        elif self._before is not None:
            self._image.paste(self._before, self._box)
            self._is_opaque, self._before = self._was_opaque, None
        self._disposal = "keep"

    def _clear(self, box: Box) -> None:
        self._image.paste(_CLEAR, box)
        self._is_opaque = False
