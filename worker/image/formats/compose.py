"""The canvas onto which the frames of a GIF or an APNG are put, one after the other."""

from typing import Literal

from PIL import Image

from worker.image.formats.container import Box

type Disposal = Literal["keep", "clear", "restore"]
"""What happens to a frame before the next frame: it stays, its box is cleared to transparent, or
the canvas is restored to its state before the frame."""


class Canvas:
    """A canvas that is transparent at first.

    A returned image is never changed: the next frame is painted onto a copy. The canvas holds 4
    bytes a pixel, and 4 more while a frame is shown whose disposal is "restore".
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
        """Paint a frame and return the canvas, in mode RGB if it is opaque, else in mode RGBA.

        Args:
            image: The frame in mode L, LA, RGB or RGBA, of the size of `box`. None paints nothing.
            box: The frame's position. Pixels beyond the canvas are cut off.
            over: Blend the frame with the canvas. Otherwise the frame replaces the canvas, with
                its alpha.
            disposal: What happens to the frame before the next frame.
            whole: Whether all pixels were decoded. Missing pixels, which are transparent, leave
                the canvas as it is. If the frame covers the canvas, they clear it.

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
        """The canvas. It is allocated late, because most first frames replace all of it."""
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
        is_blended = over and has_alpha and self._painted is not None
        if self._box == self._whole and not is_blended:
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
            self._painted = below.convert("RGBA")  # this always copies
            self._painted.paste(image, self._box)

    def _dispose(self) -> None:
        """Apply the disposal of the previous frame."""
        if self._disposal == "restore":
            self._painted = self._before
        elif self._disposal == "clear" and self._box == self._whole:
            self._painted = None
        elif self._disposal == "clear":
            self._painted = self._image.convert("RGBA")  # this always copies
            self._painted.paste((0, 0, 0, 0), self._box)
