"""One page of a TIFF: what its tags say, and its pixels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from worker.image.formats.container import Malformed, load, opened, plain
from worker.image.formats.orientation import upright, upright_size
from worker.image.formats.tiff_tags import LONG, SHORT, Directory, Numbers, written

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT = 277, 322, 323, 338, 339
_STRIPS, _ROWS, _STRIP_BYTES, _PLANES, _TILES, _TILE_BYTES = 273, 278, 279, 284, 324, 325
_REWRITTEN = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _TILE_WIDTH),
    *(_TILE_HEIGHT, _EXTRA, _FORMAT, _STRIPS, _ROWS, _STRIP_BYTES, _PLANES, _TILES, _TILE_BYTES),
}
# Fill order, options of fax, predictor, palette, inks, tables of JPEG, and how YCbCr is sampled.
_COPIED = (266, 292, 293, 317, 320, 332, 347, 529, 530, 531, 532)
KNOWN = frozenset(_REWRITTEN).union(_COPIED)
"""The tags that a page needs."""
_UNCOMPRESSED, _APART = 1, 2
_COMPRESSIONS = {_UNCOMPRESSED, 2, 3, 4, 5, 7, 8, 32773, 32946}
"""None, fax, LZW, JPEG, Deflate, PackBits, and Deflate's older number."""
_WHITE_IS_0, _BLACK_IS_0, _RGB, _INDEXED, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE_IS_0: 1, _BLACK_IS_0: 1, _RGB: 3, _INDEXED: 1, _CMYK: 4, _YCBCR: 3}
_UNSIGNED, _DEPTHS, _DEEPEST = 1, (1, 2, 4, 8, 16), 16
_MOST_SAMPLES = 6
_LARGEST_TILE = 1 << 20
"""Pixels, where the picture is smaller."""
_MOST_VALUE_BYTES = 1 << 20
"""Of a tag that is copied."""
_MOST_BLOCK_BYTES = 1 << 40
_MOST_BANDS = 256
"""Parts of a damaged picture that are decoded each for itself."""

type Alpha = Literal["straight", "premultiplied", "unknown"]
_ALPHA: dict[int, Alpha] = {1: "premultiplied", 2: "straight"}


@dataclass(frozen=True, slots=True)
class Blocks:
    """Strips, or rows of tiles: where they lie in the file.

    `offsets` and `counts` are [planes, rows of blocks, blocks in a row]; a block is `width` x
    `height` pixels, and a strip as wide as the picture.
    """

    offsets: Numbers
    counts: Numbers
    width: int
    height: int
    tiled: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What one directory says of its picture. `bits` are those of each sample.

    `alpha` is what the first sample beyond the colours is by the file.
    """

    directory: Directory
    width: int
    height: int
    bits: int
    samples: int
    photometric: int
    compression: int
    orientation: int
    alpha: Alpha
    copied: dict[int, tuple[int, bytes]]
    blocks: Blocks | None

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as it is shown."""
        return upright_size((self.width, self.height), self.orientation)

    @property
    def has_alpha(self) -> bool:
        """Whether there are more samples than colours, and they are decoded."""
        return self.photometric != _CMYK and self.samples > _COLORS[self.photometric]

    @property
    def stored_bytes(self) -> int:
        """Bytes of its pixels that are in the file; those that blocks share are counted again."""
        if self.blocks is None:
            return 0
        there = len(self.directory.reader.data) - self.blocks.offsets
        return int(np.minimum(self.blocks.counts, there.clip(0)).sum())

    @property
    def _is_exact(self) -> bool:
        """Whether a strip is as long as its pixels."""
        return self.compression == _UNCOMPRESSED and self.photometric != _YCBCR

    def decode(self) -> tuple[Image.Image, bool]:
        """The upright picture, in a mode of a `Frame`; whether all of it is there.

        Rows that cannot be decoded are transparent. Raises Malformed and what the decoder raises.
        """
        image, painted = self._decoded()
        if not painted.any():
            raise Malformed("no pixels")
        whole = bool(painted.all())
        if not whole and image.mode != "CMYK":
            image = image.convert("RGBA")
            hidden = Image.fromarray(~painted[:, None]).convert("L").resize(image.size)
            image.paste(0, mask=hidden)
        return upright(image, self.orientation), whole

    def _decoded(self) -> tuple[Image.Image, npt.NDArray[np.bool_]]:
        """The picture as it is stored, and which rows were decoded."""
        if self.blocks is None:
            raise Malformed("strips or tiles are missing")
        planes = [self._plane(self.blocks, n) for n in range(len(self.blocks.offsets))]
        painted = np.logical_and.reduce([rows for _, rows in planes])
        images = [image for image, _ in planes]
        if len(images) == 1:
            return images[0], painted
        colors = _COLORS[self.photometric]
        names = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if colors == 4 else "RGBA"}  # noqa: PLR2004
        mode = names[colors + self.has_alpha]
        return Image.merge(mode, images[: len(mode)]), painted

    def _plane(self, blocks: Blocks, plane: int) -> tuple[Image.Image, npt.NDArray[np.bool_]]:
        """One plane, or the whole picture where there is only one; and which rows were decoded."""
        count = blocks.offsets.shape[1]
        ends = blocks.offsets[plane] + blocks.counts[plane]
        if (ends <= len(self.directory.reader.data)).all():
            image, whole = self._band(blocks, plane, 0, count)
            if whole:
                return image, np.ones(self.height, bool)
        elif self._is_exact and not blocks.tiled:
            blocks, count = _by_rows(blocks, self.height), self.height
        return self._damaged(blocks, plane, -(-count // _MOST_BANDS))

    def _damaged(
        self, blocks: Blocks, plane: int, step: int
    ) -> tuple[Image.Image, npt.NDArray[np.bool_]]:
        """The same of a damaged one: each `step` rows of blocks for themselves."""
        painted = np.zeros(self.height, bool)
        canvas: Image.Image | None = None
        for first in range(0, blocks.offsets.shape[1], step):
            last = min(first + step, blocks.offsets.shape[1])
            try:
                image, whole = self._band(blocks, plane, first, last)
            except (Malformed, OSError, SyntaxError, ValueError):
                continue
            if canvas is None:
                canvas = Image.new(image.mode, (self.width, self.height))
            top = first * blocks.height
            canvas.paste(image, (0, top))
            painted[top : top + (image.height if whole else _rows_painted(image))] = True
        if canvas is None:
            raise Malformed("no pixels")
        return canvas, painted

    def _band(self, blocks: Blocks, plane: int, first: int, last: int) -> tuple[Image.Image, bool]:
        """The rows of blocks `first` to `last`; whether they were decoded to the end."""
        file, size = self._file(blocks, plane, first, last)
        image = opened(TiffImageFile, file, size)
        whole = load(image)
        return self._plain(image), whole

    def _plain(self, image: Image.Image) -> Image.Image:
        """8 bits a sample, white as the highest; the decoder does not turn all kinds around."""
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = plain(image)
        if not self._is_inverted:
            return image
        bands = list(image.split())
        bands[0] = bands[0].point(lambda level: 255 - level)
        return Image.merge(image.mode, bands)

    @property
    def _is_inverted(self) -> bool:
        return self.photometric == _WHITE_IS_0 and (self.samples > 1 or self.bits == _DEEPEST)

    def _file(
        self, blocks: Blocks, plane: int, first: int, last: int
    ) -> tuple[bytes, tuple[int, int]]:
        """A file of these rows of blocks alone, and its size."""
        order, data = self.directory.reader.order, self.directory.reader.data
        offsets, counts = (n[plane, first:last].ravel() for n in (blocks.offsets, blocks.counts))
        picture, places, there = _joined(data, offsets, counts)
        if not there.all() or (self._is_exact and (there < counts).any()):
            raise Malformed("a block that is missing")  # which libtiff would look for elsewhere
        height = min(self.height, last * blocks.height) - first * blocks.height
        together = len(blocks.offsets) == 1
        samples = self.samples if together else 1
        photometric = self.photometric if together else _BLACK_IS_0
        if self._is_inverted:
            photometric = _BLACK_IS_0
        lists, sides = (_STRIPS, _STRIP_BYTES), {_ROWS: blocks.height}
        if blocks.tiled:
            lists = _TILES, _TILE_BYTES
            sides = {_TILE_WIDTH: blocks.width, _TILE_HEIGHT: blocks.height}
        numbers = {
            _WIDTH: self.width,
            _HEIGHT: height,
            _COMPRESSION: self.compression,
            _PHOTOMETRIC: photometric,
            _SAMPLES: samples,
            _PLANES: 1,
            **sides,
        }
        tags = {tag: (LONG, np.array(one, f"{order}u4").tobytes()) for tag, one in numbers.items()}
        tags[_BITS] = SHORT, np.full(samples, self.bits, f"{order}u2").tobytes()
        if together and (more := samples - _COLORS[self.photometric]):
            kinds = [0 if self.photometric == _CMYK else 2, *[0] * (more - 1)]
            tags[_EXTRA] = SHORT, np.array(kinds, f"{order}u2").tobytes()
        tags[lists[0]] = LONG, places.astype(f"{order}u4").tobytes()
        tags[lists[1]] = LONG, there.astype(f"{order}u4").tobytes()
        return written(order, tags | self.copied, picture, lists[0]), (self.width, height)


def read_page(directory: Directory) -> Page:
    """Hold what a page says to what is decoded, and decoded right. Raises Malformed."""
    width, height = directory.number(_WIDTH, 0), directory.number(_HEIGHT, 0)
    compression, photometric = directory.number(_COMPRESSION, 1), directory.number(_PHOTOMETRIC, -1)
    samples, extra = directory.number(_SAMPLES, 1), directory.numbers(_EXTRA)
    bits = set(directory.numbers(_BITS).tolist()) or {1}
    if compression not in _COMPRESSIONS:
        raise Malformed("a compression that is not decoded")
    kinds = directory.numbers(_FORMAT)
    if (kinds != _UNSIGNED).any() or not bits <= set(_DEPTHS) or len(bits) > 1:
        raise Malformed("samples that are not whole numbers of one depth, of up to 16 bits")
    if photometric not in _COLORS or not _COLORS[photometric] <= samples <= _MOST_SAMPLES:
        raise Malformed("a kind of samples that is not decoded")
    apart = directory.number(_PLANES, 1) == _APART and samples > 1
    if apart and photometric not in (_BLACK_IS_0, _RGB, _CMYK):
        raise Malformed("planes that are not decoded")
    tags = [tag for tag in _COPIED if tag in directory.entries]
    copied = {tag: (directory.entries[tag][0], directory.value(tag)) for tag in tags}
    if any(len(value) > _MOST_VALUE_BYTES for _, value in copied.values()):
        raise Malformed("a tag of too many values")
    depth, exact = bits.pop(), compression == _UNCOMPRESSED and photometric != _YCBCR
    alpha = _ALPHA.get(int(extra[0]), "unknown") if len(extra) else "unknown"
    return Page(
        *(directory, width, height, depth, samples, photometric, compression),
        orientation=directory.number(_ORIENTATION, 1),
        alpha=alpha,
        copied=copied,
        blocks=_blocks(directory, (width, height), (samples, depth), apart=apart, exact=exact),
    )


def _blocks(
    directory: Directory,
    size: tuple[int, int],
    sample: tuple[int, int],
    *,
    apart: bool,
    exact: bool,
) -> Blocks | None:
    """Where the pixels lie; None where there are fewer strips or tiles than the picture needs.

    `sample` is how many there are, and their bits. `exact`: without compression, where a block is
    as long as its pixels, whatever the tags say. Raises Malformed.
    """
    (width, height), (samples, bits) = size, sample
    tiled = any(tag in directory.entries for tag in (_TILE_WIDTH, _TILE_HEIGHT, _TILES))
    lists = (_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)
    wide, high = width, max(1, min(directory.number(_ROWS, height), height))
    if tiled:
        if _STRIPS in directory.entries:
            raise Malformed("strips and tiles")
        wide, high = directory.number(_TILE_WIDTH, 0), directory.number(_TILE_HEIGHT, 0)
        if not 0 < wide * high <= max(width * height, _LARGEST_TILE):
            raise Malformed("tiles larger than the picture")
    planes = samples if apart else 1
    shape = planes, -(-height // high), -(-width // max(1, wide))
    needed = shape[0] * shape[1] * shape[2]
    offsets, counts = (directory.numbers(tag)[:needed] for tag in lists)
    if len(offsets) < needed or (len(counts) < needed and not exact):
        return None
    offsets = offsets.astype(np.int64).reshape(shape)
    if exact:
        line = -(-wide * (1 if apart else samples) * bits // 8)
        counts = np.full(shape, min(line * high, _MOST_BLOCK_BYTES))
        if not tiled:
            counts[:, -1] = min(line * (height - (shape[1] - 1) * high), _MOST_BLOCK_BYTES)
    return Blocks(offsets, counts.astype(np.int64).reshape(shape), wide, high, tiled)


def _joined(data: bytes, offsets: Numbers, counts: Numbers) -> tuple[bytes, Numbers, Numbers]:
    """What there is of the blocks, one behind the other, where each begins there, and its bytes."""
    offsets = offsets.clip(0, len(data))
    counts = np.minimum(counts, len(data) - offsets)
    if (offsets[1:] == (offsets + counts)[:-1]).all():  # as in most files
        return data[offsets[0] : offsets[-1] + counts[-1]], offsets - offsets[0], counts
    blocks = zip(offsets.tolist(), counts.tolist(), strict=True)
    joined = b"".join([data[at : at + nbytes] for at, nbytes in blocks])
    return joined, counts.cumsum() - counts, counts


def _by_rows(blocks: Blocks, height: int) -> Blocks:
    """Strips without compression as strips of one row each."""
    line = blocks.counts[:, :1, 0] // min(blocks.height, height)  # [planes, 1]
    rows = np.arange(height)
    strips, within = rows // blocks.height, rows % blocks.height
    offsets = blocks.offsets[:, strips, 0] + within * line
    counts = np.broadcast_to(line, offsets.shape)
    return Blocks(offsets[..., None], counts[..., None], blocks.width, 1, tiled=False)


def _rows_painted(image: Image.Image) -> int:
    """Rows up to the last one in which anything was painted: the decoder does not tell."""
    box = image.getbbox(alpha_only=False)
    return box[3] if box else 0
