"""TIFF: directories, of which each is a page; see `container.py`.

Directories may hold anything and point anywhere. Each page is decoded from a file of its own, which
holds its pixels and the tags that they need.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Literal

from PIL import Image

from worker.errors import DecodeError, UnscreenedReason
from worker.image.formats import tiff_tags as tags
from worker.image.formats.container import Frame, Header, Malformed, bounded
from worker.image.formats.tiff_page import KNOWN, Page, read_page
from worker.image.formats.tiff_tags import BYTE, UNDEFINED, Directory, Reader

_NEW_KIND, _OLD_KIND, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 259, 262
_SUBDIRECTORIES, _ICC = 330, 34675
_REDUCED_BIT, _OLD_REDUCED = 1, 2
_RAW_TAGS = (33421, 33422, 50706, 50740, 50752)
"""The pattern of a sensor's colours, DNG's version and private data, Canon's slices."""
_RAW_PHOTOMETRICS = (32803, 34892)
_RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 34892, 52546, 65000, 65535)
_RAW_MARKS = (b"CR", b"IIII", b"MMMM")
"""Behind the header: Canon, Phase One."""
_MOST_PROFILES = 2

type Alpha = Literal["straight", "premultiplied", "ignored"]


def tiff(data: bytes, most_frames: int) -> Header:
    """Walk the directories up to one page beyond `most_frames`.

    Pages of which programs disagree how their alpha is meant come once more behind the others, with
    the other meaning. Raises Malformed, struct.error, and DecodeError for a camera's raw file.
    """
    order = "<" if data[:2] == b"II" else ">"
    reader = Reader(data, order, KNOWN | {_NEW_KIND, _OLD_KIND, _SUBDIRECTORIES, _ICC, *_RAW_TAGS})
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    chain, seen = list[Directory](), set[int]()
    while at and at not in seen and len(chain) <= most_frames:
        seen.add(at)
        directory, at = reader.directory(at)
        chain.append(directory)
    if not chain:
        raise Malformed("no page")
    _refuse_raw(reader, chain, seen)
    profiles = _profiles(chain)
    full = [one for one in chain if not _is_reduced(one)]
    if full and full[0] is not chain[0]:  # the picture itself before its thumbnail
        largest = max(full, key=_area)
        chain.sort(key=lambda one: one is not largest)
    pages = [read_page(one) for one in chain]
    stored = sum(page.stored_bytes for page in pages)
    if stored > 2 * len(data) + tags.MOST_SHARED_BYTES:
        raise Malformed("pages that share their pixels")
    frames: list[tuple[Page, Alpha]] = [(page, _meanings(page)[0]) for page in pages]
    frames += [(page, other) for page in pages for other in _meanings(page)[1:]]

    def decoded(_target: int | None) -> Iterator[Frame]:
        for number, (page, alpha) in enumerate(frames):
            try:
                image, whole = page.decode()
            except Exception:
                if not number:
                    raise
                continue  # the pages behind it can be seen
            yield Frame(_with_alpha(image, alpha), truncated=not whole)

    width, height = pages[0].upright
    area = max(page.width * page.height for page in pages)
    return Header(width, height, decoded, len(frames), area=area, profiles=profiles)


def _refuse_raw(reader: Reader, chain: Sequence[Directory], seen: set[int]) -> None:
    """Refuse files of which programs show something else than the pages, by their directories.

    Those are raw files of cameras, and pictures that lie in a directory below a page's. Smaller
    ones there are copies of the page for faster zooming. Raises DecodeError, Malformed.
    """
    largest = max(_area(one) for one in chain)
    waiting, left = list(chain), tags.MOST_DIRECTORIES
    raw = reader.data.startswith(_RAW_MARKS, 8)
    while waiting and not raw:
        directory = waiting.pop()
        raw = (
            any(tag in directory.entries for tag in _RAW_TAGS)
            or directory.number(_PHOTOMETRIC, 0) in _RAW_PHOTOMETRICS
            or directory.number(_COMPRESSION, 1) in _RAW_COMPRESSIONS
            or _area(directory) > largest
        )
        for at in directory.numbers(_SUBDIRECTORIES).tolist():
            if not at or at in seen:
                continue
            seen.add(at)
            left -= 1
            if left < 0:
                raise Malformed("too many directories")
            waiting.append(reader.directory(at)[0])
    if raw:
        raise DecodeError(
            UnscreenedReason.UNSUPPORTED_FORMAT, "a raw file, or a picture below its pages"
        )


def _area(directory: Directory) -> int:
    return directory.number(_WIDTH, 0) * directory.number(_HEIGHT, 0)


def _is_reduced(directory: Directory) -> bool:
    """Whether a page says that it is a smaller copy of another one."""
    new, old = directory.number(_NEW_KIND, 0), directory.number(_OLD_KIND, 0)
    return bool(new & _REDUCED_BIT) or old == _OLD_REDUCED


def _profiles(chain: Sequence[Directory]) -> tuple[bytes, ...]:
    """The colour profiles of the pages, the first page's first. Raises Malformed for too many."""
    found = dict[tuple[int, int], bytes]()
    for directory in chain:
        place = directory.place(_ICC)
        if directory.entries.get(_ICC, (0, 0, b""))[0] not in (BYTE, UNDEFINED):
            place = 0, 0
        if place not in found:
            found[place] = bounded(directory.reader.data[place[0] : sum(place)])
    profiles = tuple(dict.fromkeys(found.values()))
    if len(set(profiles) - {b""}) > _MOST_PROFILES:
        raise Malformed("pages of more than two colour profiles")
    return profiles if len(profiles) <= _MOST_PROFILES else tuple(filter(None, profiles))


def _meanings(page: Page) -> Sequence[Alpha]:
    """What a page's further sample may be, the likely meaning first."""
    if not page.has_alpha:
        return ("straight",)
    if page.alpha == "premultiplied":
        return ("premultiplied", "ignored")
    return ("straight",) if page.alpha == "straight" else ("straight", "premultiplied")


def _with_alpha(image: Image.Image, alpha: Alpha) -> Image.Image:
    if image.mode not in ("LA", "RGBA") or alpha == "straight":
        return image
    if alpha == "ignored":
        return image.convert(image.mode[:-1])
    stored = Image.frombytes(image.mode[:-1] + "a", image.size, image.tobytes())
    return stored.convert(image.mode)
