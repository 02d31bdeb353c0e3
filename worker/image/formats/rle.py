"""The run lengths of bitmaps (RLE4, RLE8, RLE24), in time linear in the file and the picture.

All codes are a whole number of words of two bytes. Where each begins is found one after the other;
everything else is done for many of them at a time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

type Bytes = npt.NDArray[np.uint8]
type Numbers = npt.NDArray[np.int64]

_END_OF_ROW, _END, _JUMP = 0, 1, 2
_WINDOW = 1 << 16
"""Words that are looked at together."""
_TRUE_COLOR = 24


def unpack_runs(
    data: bytes, height: int, width: int, bits: int
) -> tuple[Bytes, npt.NDArray[np.bool_], bool]:
    """Unpack the runs of a bitmap, as Chromium does: what lies beyond a row's end is dropped.

    Returns the rows in the order of the file, numbers in the palette [height, width] or levels of
    red, green and blue [height, width, 3]; which pixels were painted [height, width]; and whether
    the data ended as they should. A row that is not complete when they do not is not painted.
    """
    words = np.frombuffer(data, np.uint8, len(data) & ~1).reshape(-1, 2)
    canvas = _Canvas(height, width, bits)
    at = 0
    while at < len(words) and not canvas.ended:
        following = _following(words, at, bits)
        starts, i, end = list[int](), 0, len(following)
        while i < end:
            starts.append(i)
            i = following[i]
        canvas.paint(words, np.array(starts, np.int64) + at)
        at += i
    pixels, painted = canvas.pixels, canvas.painted
    if not canvas.ended:  # in the middle of a row
        pixels[canvas.y], painted[canvas.y] = 0, False
    return pixels, painted, canvas.ended


def _following(words: Bytes, at: int, bits: int) -> memoryview:
    """Of each word of a window the number of the one behind the code that would begin there."""
    first, second = words[at : at + _WINDOW].T
    ahead = np.arange(1, len(first) + 1, dtype=np.int64)
    if bits == _TRUE_COLOR:
        ahead[first > 0] += 1
    jump = (first == 0) & (second == _JUMP)
    single = (first == 0) & (second > _JUMP)
    ahead[jump] += 1
    ahead[single] += _words(second[single].astype(np.int64), bits)
    return memoryview(ahead)


def _words(pixels: Numbers, bits: int) -> Numbers:
    """Words that hold so many single pixels."""
    return (pixels * bits + 15) // 16


@dataclass(slots=True)
class _Codes:
    """Codes in their order. `x` and `y` are where each begins; `length` is in pixels."""

    at: Numbers
    x: Numbers
    y: Numbers
    length: Numbers
    single: npt.NDArray[np.bool_]
    second: Bytes


class _Canvas:
    """The picture as it is painted, and where the next code begins: `x` may lie beyond the row."""

    def __init__(self, height: int, width: int, bits: int) -> None:
        shape = (height, width, 3) if bits == _TRUE_COLOR else (height, width)
        self.pixels = np.zeros(shape, np.uint8)
        self.painted = np.zeros((height, width), bool)
        self.x = self.y = 0
        self.ended = False
        """Whether an end mark was met, or the last row's end."""
        self._height, self._width, self._bits = height, width, bits
        self._at = 0  # the next pixel, row after row

    def paint(self, words: Bytes, at: Numbers) -> None:
        """Follow the codes that begin at these words."""
        first, second = words[at].T
        # A code that is cut short, and an end mark, end it.
        length, down = first.astype(np.int64), np.zeros(len(at), np.int64)
        right, need = length.copy(), np.full(len(at), 1 + (self._bits == _TRUE_COLOR))
        escape = first == 0
        need[escape] = 1
        row_end, end = escape & (second == _END_OF_ROW), escape & (second == _END)
        jump, single = escape & (second == _JUMP), escape & (second > _JUMP)
        length[single] = right[single] = second[single]
        need[jump] += 1
        need[single] += _words(length[single], self._bits)
        whole = at + need <= len(words)
        there = jump & whole
        right[there], down[there] = words[at[there] + 1].T
        down[row_end] = 1
        x, y = self._places(right, down, row_end)
        beyond = np.flatnonzero(end | ~whole | (y >= self._height))
        stop = int(beyond[0]) if len(beyond) else len(at)
        if len(beyond):
            self.ended = bool(end[stop] or y[stop] >= self._height)
        run = np.flatnonzero((~escape | single)[:stop])
        self._fill(words, _Codes(at[run], x[run], y[run], length[run], single[run], second[run]))
        if len(beyond):
            self.x, self.y = int(x[stop]), int(y[stop])
        else:
            self.x = 0 if row_end[-1] else int(x[-1] + right[-1])
            self.y = int(y[-1] + down[-1])
            self.ended = self.y >= self._height

    def _places(
        self, right: Numbers, down: Numbers, row_end: npt.NDArray[np.bool_]
    ) -> tuple[Numbers, Numbers]:
        """Column and row in which each code begins."""
        moved = right.cumsum()
        row_begins = np.maximum.accumulate(np.where(row_end, moved, -self.x))
        x, y = moved - right, self.y + down.cumsum() - down
        x[0] += self.x
        x[1:] -= row_begins[:-1]
        return x, y

    def _fill(self, words: Bytes, codes: _Codes) -> None:
        """Paint runs and single pixels. They do not overlap, and come row after row."""
        length = (self._width - codes.x).clip(0, codes.length)
        parts = np.where(codes.single, length, length > 0)
        code = np.repeat(np.arange(len(parts)), parts)
        if not len(code):
            return
        number = np.arange(len(code)) - np.repeat(parts.cumsum() - parts, parts)
        single = codes.single[code]
        start = (codes.y * self._width + codes.x)[code] + np.where(single, number, 0)
        pixels = np.where(single, 1, length[code])
        values = self._values(words, codes, code, number)
        gaps = start - np.concatenate(([self._at], (start + pixels)[:-1]))
        lengths = np.stack([gaps, pixels], axis=1).ravel()
        begin, self._at = self._at, int(start[-1] + pixels[-1])

        def spread(each: npt.NDArray[np.generic]) -> Bytes:
            """Of each part a value, for all its pixels; 0 between them."""
            both = np.zeros((len(each), 2, *each.shape[1:]), np.uint8)
            both[:, 1] = each
            spread_out: Bytes = np.repeat(both.reshape(-1, *each.shape[1:]), lengths, axis=0)
            return spread_out

        painted = spread(np.ones(len(code), np.uint8)).view(bool)
        found = spread(values)
        if self._bits == 4:  # noqa: PLR2004 - two colours in turns
            turn = spread((start - begin) & 1) ^ (np.arange(len(found)) & 1).astype(np.uint8)
            found = np.where(turn, found & 15, found >> 4)
        self.painted.reshape(-1)[begin : self._at] = painted
        flat = self.pixels.reshape(-1, *self.pixels.shape[2:])
        flat[begin : self._at] = found

    def _values(self, words: Bytes, codes: _Codes, code: Numbers, number: Numbers) -> Bytes:
        """Numbers in the palette, or red, green and blue, of each part."""
        flat, single = words.reshape(-1), codes.single[code]
        at = 2 * (codes.at[code] + 1)
        if self._bits == _TRUE_COLOR:
            at = np.where(single, at + 3 * number, at - 1)
            levels: Bytes = flat[at[:, None] + (2, 1, 0)]
            return levels
        if self._bits == 8:  # noqa: PLR2004
            return np.where(single, flat[np.where(single, at + number, 0)], codes.second[code])
        pair = flat[np.where(single, at + number // 2, 0)]
        one = np.where(number & 1, pair & 15, pair >> 4)
        return np.where(single, one * 17, codes.second[code]).astype(np.uint8)
