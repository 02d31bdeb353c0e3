"""From files to a gallery: every picture read once, every copy made and described once."""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker.descriptor.embedders import Embedder
from worker.descriptor.views import REFERENCE_VIEWS
from worker.errors import Unscreenable
from worker.evaluation.edits import OTHERS, Edit, copy_of
from worker.evaluation.gallery import UNEDITED, Described, Gallery
from worker.evaluation.groups import Fingerprints
from worker.evaluation.trials import Numbers
from worker.image import pdq
from worker.image.decoder import Decoder
from worker.image.files import bytes_of
from worker.image.preprocess import decode, resize
from worker.records import Looks, Pixels, Preprocessing
from worker.settings import Limits, Settings, Views

if TYPE_CHECKING:
    from worker.image.alignment import Features

SIDE = 512
"""Pictures are read at this size at most, on the longer side."""
SMALLEST_SIDE = 64
"""On the shorter side, in the file: of less there is nothing left in a thumbnail."""

_SQUARE = Preprocessing("evaluation", SIDE, "bicubic")
_READ_AT_ONCE, _MADE_AHEAD = 64, 4

type Advance = Callable[[int], object]
"""Called with how many pictures are done now."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is copied: RGB, `SIDE` pixels at most. `key` is the sha256 of its file."""

    file: Path
    key: str
    image: Image.Image
    pdq: bytes
    quality: int
    features: "Features | None" = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that no picture came of, and why: the kind of reason, a colon, and what there is."""

    file: Path
    reason: str


class Reader:
    """Reads files as pictures; `close` ends what decodes them."""

    def __init__(
        self, settings: Settings, *, aligning: bool, smallest: int = SMALLEST_SIDE
    ) -> None:
        """With `aligning` it also finds their key points, which needs an extra."""
        self._smallest = smallest
        self._limits = settings.limits
        self._decoder = Decoder(settings.decode, settings.limits, _SQUARE, Views(renditions=1))
        self._pool = ThreadPoolExecutor(settings.decode.workers)
        self._features: Callable[[Pixels], Features] | None = None
        if aligning:
            from worker.image.alignment import features  # noqa: PLC0415 - needs an extra

            self._features = features

    def read(self, files: Iterable[Path], advance: Advance) -> Iterator[Picture | LeftOut]:
        """Read files, in order."""
        for some in batched(files, _READ_AT_ONCE):
            yield from self._pool.map(self._read, some)
            advance(len(some))

    def _read(self, file: Path) -> Picture | LeftOut:
        try:
            prepared = self._decoder.prepare(bytes_of(file, self._limits), nullcontext)
        except Unscreenable as error:
            return LeftOut(file, f"{error.reason}: {error}")
        info = prepared.info
        if min(info.width, info.height) < self._smallest:
            return LeftOut(file, f"too small: {info.width}x{info.height} pixels")
        # Wherever it was decoded, it was laid on a square: back to its shape.
        scale = min(1.0, SIDE / max(info.width, info.height))
        size = (max(1, round(info.width * scale)), max(1, round(info.height * scale)))
        image = Image.fromarray(prepared.pixels[0]).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        found = self._features(pixels) if self._features is not None else None
        return Picture(file, info.sha256, image, *pdq.hash_of(pixels), found)

    def close(self) -> None:
        """End the threads and the children."""
        self._pool.shutdown()
        self._decoder.close()


def read(
    files: Iterable[Path], settings: Settings, advance: Advance
) -> tuple[list[Picture], list[LeftOut]]:
    """Read files for a collection, in order: the same bytes count once."""
    pictures: dict[str, Picture] = {}
    left_out: list[LeftOut] = []
    with closing(Reader(settings, aligning=True)) as reader:
        for one in reader.read(files, advance):
            if isinstance(one, LeftOut):
                left_out.append(one)
            elif one.key in pictures:
                known = pictures[one.key].file
                left_out.append(LeftOut(one.file, f"repeated: the same bytes as {known}"))
            else:
                pictures[one.key] = one
    return list(pictures.values()), left_out


def fingerprints(pictures: Sequence[Picture]) -> Fingerprints:
    """What pictures of one scene are told by."""
    features = [one.features for one in pictures if one.features is not None]
    return Fingerprints(
        sha256=[one.key for one in pictures],
        pdq=np.frombuffer(b"".join(one.pdq for one in pictures), np.uint8).reshape(-1, pdq.BYTES),
        quality=np.array([one.quality for one in pictures], np.uint8),
        features=features if len(features) == len(pictures) else None,
    )


# -- describing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """All forms of one picture: at each model's size, with the inverted view at the end; hashed."""

    looks: Mapping[str, Looks]
    hashes: Mapping[str, pdq.Hashes]
    versions: pdq.Hashes


def describe(
    pictures: Sequence[Picture],
    groups: Numbers,
    hosts: Collection[int],
    edits: Sequence[Edit],
    embedders: Sequence[Embedder],
    settings: Settings,
    seed: int,
    advance: Advance,
) -> Gallery:
    """Make and describe all copies of all pictures.

    `hosts` are the pictures that others are pasted into. Raises Unscreenable where a model fails.
    """
    count, forms = len(pictures), 1 + len(edits)
    models = {
        one.model.name: Described(
            np.empty((count, forms, one.model.dims), np.float16),
            np.empty((count, one.model.dims), np.float16),
        )
        for one in embedders
    }
    sizes = {"pdq": pdq.BYTES} | ({"phash": _PHASH_BYTES} if has_phash() else {})
    hashes = {name: np.empty((count, forms, size), np.uint8) for name, size in sizes.items()}
    versions = np.empty((count, pdq.VERSIONS, pdq.BYTES), np.uint8)

    def make(number: int) -> _Made:
        others = _others(pictures, groups, hosts, number, seed)
        return _make(pictures[number], others, edits, embedders, settings.limits, seed)

    with ThreadPoolExecutor(settings.decode.workers) as pool:
        for number, made in enumerate(_ahead(pool, make, range(count))):
            for embedder in embedders:
                rows = _described(embedder, made.looks[embedder.preprocessing.name], settings)
                described = models[embedder.model.name]
                described.descriptors[number], described.inverted[number] = rows[:-1], rows[-1]
            for name, hashed in made.hashes.items():
                hashes[name][number] = hashed
            versions[number] = made.versions
            advance(1)
    return Gallery(
        names=[one.file.name for one in pictures],
        groups=groups,
        forms=(UNEDITED, *(edit.name for edit in edits)),
        upright=np.array([True, *(not edit.inverts for edit in edits)]),
        models=models,
        hashes=hashes,
        versions=versions,
    )


def _ahead[T](
    pool: ThreadPoolExecutor, make: Callable[[int], T], numbers: Iterable[int]
) -> Iterator[T]:
    """Make in order, a few ahead, so that only those are in memory."""
    waiting: deque[Future[T]] = deque()
    for number in numbers:
        waiting.append(pool.submit(make, number))
        if len(waiting) > _MADE_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _others(
    pictures: Sequence[Picture], groups: Numbers, hosts: Collection[int], number: int, seed: int
) -> Sequence[Image.Image]:
    if not len(hosts):
        return ()
    strangers = [host for host in hosts if groups[host] != groups[number]]
    luck = random.Random(f"{seed}:{pictures[number].key}")  # noqa: S311 - variety, not secrecy
    return [pictures[host].image for host in luck.sample(strangers, OTHERS)]


def _make(
    picture: Picture,
    others: Sequence[Image.Image],
    edits: Sequence[Edit],
    embedders: Sequence[Embedder],
    limits: Limits,
    seed: int,
) -> _Made:
    shown = [np.asarray(picture.image)]
    for edit in edits:
        copy = copy_of(picture.image, picture.key, edit, seed, others)
        shown.append(decode(copy, limits).pixels)
    ways = {one.preprocessing.name: one.preprocessing for one in embedders}
    looks = {}
    for name, way in ways.items():
        rows = [resize(pixels, way) for pixels in shown]
        looks[name] = np.stack([*rows, REFERENCE_VIEWS["inverted"](rows[0])])
    hashed = {"pdq": [np.frombuffer(pdq.hash_of(pixels)[0], np.uint8) for pixels in shown]}
    if has_phash():
        hashed["phash"] = [_phash(pixels) for pixels in shown]
    return _Made(
        looks=looks,
        hashes={name: np.stack(rows) for name, rows in hashed.items()},
        versions=pdq.hashes_of(shown[0]),
    )


def _described(embedder: Embedder, looks: Looks, settings: Settings) -> npt.NDArray[np.float16]:
    size = settings.batch.max_size
    parts = [
        embedder.describe(looks[at : at + size]).cpu().numpy() for at in range(0, len(looks), size)
    ]
    return np.concatenate(parts).astype(np.float16)


# -- pHash, where it is installed -----------------------------------------------------------------

_PHASH_BYTES = 8


def has_phash() -> bool:
    """Whether ImageHash is installed."""
    found = find_spec("imagehash")
    return found is not None and found.origin is not None  # and not a folder of that name


def _phash(pixels: Pixels) -> npt.NDArray[np.uint8]:
    import imagehash  # noqa: PLC0415 - no dependency of ours

    return np.packbits(imagehash.phash(Image.fromarray(pixels)).hash)
