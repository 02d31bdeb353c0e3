"""The run lengths of bitmaps (RLE4, RLE8, RLE24)."""

import re

import numpy as np
import numpy.typing as npt

type Bytes = npt.NDArray[np.uint8]

_END_OF_ROW, _END, _JUMP = 0, 1, 2
_RUNS = {
    4: re.compile(rb"(?:[^\0].)+", re.DOTALL),
    8: re.compile(rb"(?:[^\0].)+", re.DOTALL),
    24: re.compile(rb"(?:[^\0]...)+", re.DOTALL),
}


def unpack_runs(
    data: bytes, height: int, width: int, bits: int
) -> tuple[Bytes, npt.NDArray[np.bool_], bool]:
    """Unpack the runs of a bitmap, as Chromium does: what lies beyond a row's end is dropped.

    Returns the rows in the order of the file, numbers in the palette [height, width] or levels of
    red, green and blue [height, width, 3]; which pixels were painted [height, width]; and whether
    the data ended as they should. A row that is not complete when they do not is not painted.
    """
    painted = np.zeros((height, width), bool)
    pixels = np.zeros((height, width, 3) if bits == 24 else (height, width), np.uint8)  # noqa: PLR2004
    runs, at, x, y = _RUNS[bits], 0, 0, 0
    while y < height:
        found = runs.match(data, at)
        if found is not None:  # as many runs as follow each other
            at, line = found.end(), _repeated(found[0], width - x, bits)
        elif at + 2 > len(data) or data[at]:
            break
        elif data[at + 1] == _END_OF_ROW:
            at, x, y = at + 2, 0, y + 1
            continue
        elif data[at + 1] == _END:
            return pixels, painted, True
        elif data[at + 1] == _JUMP:
            if at + 4 > len(data):
                break
            x, y, at = min(width, x + data[at + 2]), y + data[at + 3], at + 4
            continue
        else:  # pixels one by one, filled up to whole words
            count = data[at + 1]
            nbytes = -(-count * bits // 8)
            stored = data[at + 2 : at + 2 + nbytes]
            at += 2 + nbytes + (nbytes & 1)
            if len(stored) < nbytes:
                break
            line = _single(stored, count, bits)[: width - x]
        pixels[y, x : x + len(line)] = line
        painted[y, x : x + len(line)] = True
        x += len(line)
    if y < height:
        painted[y], pixels[y] = False, 0
    return pixels, painted, y >= height


def _repeated(stored: bytes, room: int, bits: int) -> Bytes:
    """Runs of at least one pixel each, cut to `room` pixels."""
    runs = np.frombuffer(stored, np.uint8).reshape(-1, 4 if bits == 24 else 2)[:room]  # noqa: PLR2004
    counts = runs[:, 0].astype(np.intp)
    ends = counts.cumsum()
    used = int(np.searchsorted(ends, room)) + 1  # runs that begin inside
    runs, counts, ends = runs[:used], counts[:used], ends[:used]
    if bits == 24:  # noqa: PLR2004
        return np.repeat(runs[:, :0:-1], counts, axis=0)[:room]
    values: Bytes = np.repeat(runs[:, 1], counts)
    if bits == 4:  # noqa: PLR2004 - two colours in turns
        odd = (np.arange(len(values)) - np.repeat(ends - counts, counts)) & 1
        values = np.where(odd, values & 15, values >> 4).astype(np.uint8)
    return values[:room]


def _single(stored: bytes, count: int, bits: int) -> Bytes:
    values = np.frombuffer(stored, np.uint8)
    if bits == 24:  # noqa: PLR2004
        return values.reshape(count, 3)[:, ::-1]
    if bits == 4:  # noqa: PLR2004
        return np.stack([values >> 4, values & 15], axis=-1).reshape(-1)[:count]
    return values
