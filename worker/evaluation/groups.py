"""Which pictures belong together: copies, and pictures of one scene, series or artwork.

They are told by their bytes, by PDQ and by alignment, or by a person, never by the descriptor that
is under test: groups found with it would take away the very pictures that it confuses.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from worker.errors import StartupError
from worker.hotset.types import Reference
from worker.image import pdq

if TYPE_CHECKING:
    from worker.image.alignment import Features

type Means = Literal["sha256", "pdq", "alignment", "file"]
"""How two pictures were found to belong together: by equal bytes, by PDQ in any of eight positions,
by alignment, or since a file says so."""
type Pairs = npt.NDArray[np.int64]
"""Two numbers a row."""
HEADER = ["image", "group"]

type OnProgress = Callable[[str, float], object]
"""Is told what is being done, and the share of it that is done."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What n pictures are recognised by without a descriptor.

    `sha256` are hex digests, empty where not known. `pdq` is uint8 [n, 32], `quality` uint8 [n]:
    below `pdq.LEAST_QUALITY` there is no PDQ to go by. `features` are None where the pictures are
    not at hand, or too many to be aligned.
    """

    sha256: Sequence[str]
    pdq: pdq.Hashes
    quality: npt.NDArray[np.uint8]
    features: "Sequence[Features] | None" = None

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def means(self) -> tuple[Means, ...]:
        """What they can be told by."""
        known: dict[Means, bool] = {
            "sha256": any(self.sha256),
            "pdq": bool(len(self.hashed)),
            "alignment": self.features is not None,
        }
        return tuple(means for means, there in known.items() if there)

    @property
    def hashed(self) -> npt.NDArray[np.int64]:
        """The numbers of those that have a PDQ to go by."""
        return np.flatnonzero(self.quality >= pdq.LEAST_QUALITY)


def of_references(references: Iterable[Reference]) -> Fingerprints:
    """What the hot set knows of its references."""
    known = list(references)
    hashes = b"".join(bytes.fromhex(one.pdq or "00" * pdq.BYTES) for one in known)
    return Fingerprints(
        tuple(one.sha256 or "" for one in known),
        np.frombuffer(hashes, np.uint8).reshape(-1, pdq.BYTES),
        np.array([100 * (one.pdq is not None) for one in known], np.uint8),
    )


@dataclass(frozen=True, eq=False)
class Grouping:
    """`groups` is int64 [n], from 0 in the order in which they come; each picture is in one.

    `pairs` is how many pairs each means found; what is not in it was not looked at.
    """

    groups: npt.NDArray[np.int64]
    pairs: Mapping[Means, int]


@dataclass(frozen=True, slots=True)
class Copy:
    """An image that is a copy of a reference, both by number, and the first means that told it."""

    image: int
    reference: int
    means: Means


def group(pictures: Fingerprints, on_progress: OnProgress = lambda _what, _share: None) -> Grouping:
    """Put those in one group that any means finds to belong together, directly or through others.

    `on_progress` is told of each means how much of it is done.
    """
    found = dict(_alike(pictures, None, on_progress))
    return Grouping(
        _joined(len(pictures), found.values()),
        {means: len(pairs) for means, pairs in found.items()},
    )


def join(grouping: Grouping, given: Mapping[int, str]) -> Grouping:
    """Put pictures too in one group that have the same name in `given`, by their numbers."""
    n = len(grouping.groups)
    by_file = _equal([given.get(number, "") for number in range(n)])
    groups = _joined(n, [_equal([str(one) for one in grouping.groups]), by_file])
    return Grouping(groups, {**grouping.pairs, "file": len(by_file)})


def _joined(count: int, found: Iterable[Pairs]) -> npt.NDArray[np.int64]:
    """Numbers of groups, [count], from 0 in the order in which they come."""
    first, second = np.concatenate([_pairs(()), *found]).T
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    groups: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def copies(
    images: Fingerprints,
    references: Fingerprints,
    on_progress: OnProgress = lambda _what, _share: None,
) -> list[Copy]:
    """All pairs of an image and a reference that show the same, sorted."""
    found: dict[tuple[int, int], Means] = {}
    for means, pairs in _alike(images, references, on_progress):
        for image, reference in pairs.tolist():
            found.setdefault((image, reference), means)
    return [Copy(*pair, means) for pair, means in sorted(found.items())]


def _alike(
    pictures: Fingerprints, others: Fingerprints | None, on_progress: OnProgress
) -> Iterator[tuple[Means, Pairs]]:
    """Pairs by each means that both sides have; without `others`, of two of the pictures."""
    for means in pictures.means:
        if others is None or means in others.means:
            yield means, _FINDERS[means](pictures, others, partial(on_progress, means))


def _of_equal_bytes(
    pictures: Fingerprints, others: Fingerprints | None, _: Callable[[float], object]
) -> Pairs:
    if others is None:
        return _equal(pictures.sha256)
    known: dict[str, list[int]] = {}
    for number, digest in enumerate(others.sha256):
        known.setdefault(digest, []).append(number)
    known.pop("", None)
    return _pairs(
        (number, other)
        for number, digest in enumerate(pictures.sha256)
        for other in known.get(digest, ())
    )


def _near_by_pdq(
    pictures: Fingerprints, others: Fingerprints | None, on_progress: Callable[[float], object]
) -> Pairs:
    """PDQ within the bound, of one as it is and the other in any of its eight positions."""
    turned = pictures if others is None else others
    rows, columns = pictures.hashed, turned.hashed
    versions = pdq.versions(turned.pdq[columns]).reshape(-1, pdq.BYTES)
    near = pdq.near(pictures.pdq[rows], versions, on_progress=on_progress)
    found = np.column_stack([rows[near[:, 0]], columns[near[:, 1] // pdq.VERSIONS]])
    if others is None:
        found = found[found[:, 0] < found[:, 1]]
    return np.unique(found, axis=0)


def _aligned(
    pictures: Fingerprints, others: Fingerprints | None, on_progress: Callable[[float], object]
) -> Pairs:
    from worker.image.alignment import aligned_pairs  # noqa: PLC0415 - needs an extra

    return aligned_pairs(
        pictures.features or (), None if others is None else others.features, on_progress
    )


_FINDERS = {"sha256": _of_equal_bytes, "pdq": _near_by_pdq, "alignment": _aligned}


def _equal(keys: Sequence[str]) -> Pairs:
    """Each picture with the first that has the same key; an empty one is none."""
    first: dict[str, int] = {}
    with_first = ((first.setdefault(key, number), number) for number, key in enumerate(keys) if key)
    return _pairs(pair for pair in with_first if pair[0] != pair[1])


def _pairs(found: Iterable[tuple[int, int]]) -> Pairs:
    return np.array(list(found), np.int64).reshape(-1, 2)


# -- given ----------------------------------------------------------------------------------------


def read_groups(file: Path, images: Mapping[str, int | None]) -> dict[int, str]:
    """Read names of groups from a CSV file with the header `image,group`, by number of the image.

    `images` are numbers by path, None for what is no image after all. A line gives an image by its
    path there, or by its file name where only one has it. Raises StartupError, which names the
    line.
    """
    paths: dict[str, list[str]] = {}
    for path in images:
        paths.setdefault(PurePath(path).name, []).append(path)
    groups: dict[int, str] = {}
    for where, image, name in _lines(file):
        match [image] if image in images else paths.get(image, []):
            case [path]:
                number = images[path]
            case []:
                raise StartupError(f"{where}: there is no image {image!r}")
            case _:
                raise StartupError(f"{where}: several images are called {image!r}: give the path")
        if number is not None and (known := groups.setdefault(number, name)) != name:
            raise StartupError(f"{where}: {image!r}, or its equal, is in group {known!r} already")
    return groups


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Where each line is, its image and its group."""
    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.reader(opened, strict=True)
            if next(rows, None) != HEADER:
                raise StartupError(f"{file}: line 1: expected {','.join(HEADER)}")
            for row in rows:
                line = rows.line_num
                if len(row) != len(HEADER) or not all(row):
                    raise StartupError(f"{file}: line {line}: expected an image and a group")
                yield f"{file}: line {line}", row[0], row[1]
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror or 'unreadable'}") from None
    except (UnicodeDecodeError, csv.Error):
        raise StartupError(f"{file}: after line {line}: not CSV in UTF-8") from None
