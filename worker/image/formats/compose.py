"""The canvas onto which the frames of a GIF or an APNG are put, one after the other."""

from typing import Literal

from PIL import Image

from worker.image.formats.container import Box

type Disposal = Literal["keep", "clear", "restore"]
"""What becomes of a frame before the next one: it stays, it is cleared to transparent, or what was
there before it comes back."""

LEAST_SECONDS, SLOWED_SECONDS = 0.010, 0.100
"""Browsers show a frame of at most 10 ms for 100 ms."""


def shown_seconds(told: float) -> float:
    """How long browsers show a frame that has this delay, both in seconds."""
    return told if told > LEAST_SECONDS else SLOWED_SECONDS


class Canvas:
    """Transparent at first.

    What was returned is never painted upon. So the canvas holds 4 bytes a pixel, as much again
    below a frame whose disposal is "restore", and the caller's picture is not one more.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` is width and height in pixels."""
        self._painted: Image.Image | None = None
        self._whole: Box = (0, 0, *size)
        self._disposal: Disposal = "keep"
        self._box: Box = (0, 0, 0, 0)
        self._before: Image.Image | None = None

    def show(
        self,
        image: Image.Image | None,
        box: Box,
        *,
        over: bool,
        disposal: Disposal,
        whole: bool = True,
    ) -> Image.Image:
        """Put a frame onto the canvas and return that, in mode RGB where it is opaque, or RGBA.

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
        self._before = self._painted if self._disposal == "restore" else None
        if is_seen and image is not None:
            self._paint(image, over=over, whole=whole)
        elif is_seen and not (whole or over) and self._box == self._whole:
            self._painted = None
        return self._image

    @property
    def _image(self) -> Image.Image:
        """What is on the canvas. It is made late: most pictures cover all of it."""
        if self._painted is None:
            self._painted = Image.new("RGBA", self._whole[2:])
        return self._painted

    def _paint(self, image: Image.Image, *, over: bool, whole: bool) -> None:
        left, top, right, bottom = self._box
        if image.size != (right - left, bottom - top):
            image = image.crop((0, 0, right - left, bottom - top))
        if image.mode in ("L", "LA"):
            image = image.convert("RGB" if image.mode == "L" else "RGBA")
        has_alpha = image.mode == "RGBA"
        if self._box == self._whole and not (over and has_alpha):
            self._painted = image
            return
        below = self._image
        if not has_alpha:
            self._painted = below.copy()
            self._painted.paste(image, self._box)
        elif over or not whole:
            self._painted = below.copy()
            if below.mode == "RGBA":
                self._painted.alpha_composite(image, (left, top))
            else:
                self._painted.paste(image, self._box, image)
        else:
            self._painted = below.convert("RGBA")  # which copies, whatever the mode
            self._painted.paste(image, self._box)

    def _dispose(self) -> None:
        """Do what the frame before left to be done."""
        if self._disposal == "restore":
            self._painted = self._before
        elif self._disposal == "clear" and self._box == self._whole:
            self._painted = None
        elif self._disposal == "clear":
            self._painted = self._image.convert("RGBA")  # which copies, whatever the mode
            self._painted.paste((0, 0, 0, 0), self._box)
