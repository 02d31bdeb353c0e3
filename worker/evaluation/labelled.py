"""A set that somebody else labelled: folders of pictures, and a file that says what is a copy.

The file is that of the Image Similarity Challenge (DISC2021): CSV, `query_id,reference_id`, an id
is a file's name without its ending. A query without a reference is a negative; one that is not
listed does not count.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.descriptor.embedders import Embedder
from worker.errors import StartupError
from worker.evaluation.describing import Advance, LeftOut, Reader, describe
from worker.evaluation.gallery import (
    UNEDITED,
    Comparing,
    Described,
    Gallery,
    System,
    banks,
    compare,
    scores,
)
from worker.evaluation.splits import Split
from worker.evaluation.trials import Numbers, Queries, Trial
from worker.settings import Settings

HEADER = ["query_id", "reference_id"]
AS_GIVEN = "as given"
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Truth:
    """The queries that the file lists, by number, ascending; and what they are copies of.

    `pairs`: a place in `queries` and a reference's number, [m, 2] ascending.
    """

    queries: Sequence[int]
    pairs: Numbers


def ids(files: Sequence[Path]) -> dict[str, int]:
    """Number files by their ids. Raises StartupError where two have the same."""
    numbers: dict[str, int] = {}
    for number, file in enumerate(files):
        if file.stem in numbers:
            known = files[numbers[file.stem]]
            raise StartupError(f"{file} and {known} have the same id, {file.stem}")
        numbers[file.stem] = number
    return numbers


def read_truth(file: Path, queries: Mapping[str, int], references: Mapping[str, int]) -> Truth:
    """Read which queries there are, and of what. Raises StartupError, which names the line."""
    listed: set[int] = set()
    pairs: set[tuple[int, int]] = set()
    for where, query, reference in _lines(file):
        if query not in queries:
            raise StartupError(f"{where}: there is no query {query!r}")
        if reference and reference not in references:
            raise StartupError(f"{where}: there is no reference {reference!r}")
        listed.add(queries[query])
        if reference:
            pairs.add((queries[query], references[reference]))
    if not pairs:
        raise StartupError(f"{file}: no query has a reference")
    chosen = sorted(listed)
    places = {number: place for place, number in enumerate(chosen)}
    true = sorted((places[query], reference) for query, reference in pairs)
    return Truth(chosen, np.array(true, np.int64))


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Where each line is, its query and its reference; a header may be there."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.reader(opened, strict=True)
            for row in rows:
                if row == HEADER and rows.line_num == 1:
                    continue
                where = f"{file}: line {rows.line_num}"
                if len(row) != len(HEADER) or not row[0]:
                    raise StartupError(f"{where}: expected {','.join(HEADER)}")
                yield where, row[0], row[1]
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror or 'unreadable'}") from None
    except (UnicodeDecodeError, csv.Error):
        raise StartupError(f"{file}: not CSV in UTF-8") from None


def describe_all(
    files: Sequence[Path],
    groups: Numbers,
    embedders: Sequence[Embedder],
    settings: Settings,
    advance: Advance,
) -> Gallery:
    """Describe all files as they are; only descriptors and hashes stay in memory.

    Raises StartupError for a file that cannot be read: the set is labelled as a whole.
    """
    parts = []
    with closing(Reader(settings, aligning=False, smallest=1)) as reader:
        for some in batched(files, _AT_ONCE):
            pictures = []
            for one in reader.read(some, lambda _: None):
                if isinstance(one, LeftOut):
                    raise StartupError(f"{one.file}: {one.reason}")
                pictures.append(one)
            alone = np.arange(len(pictures))
            parts.append(describe(pictures, alone, (), (), embedders, settings, 0, advance))
    return Gallery(
        names=[file.name for file in files],
        groups=groups,
        forms=(UNEDITED, AS_GIVEN),
        upright=np.ones(2, np.bool_),
        models={
            name: Described(
                _as_given([one.models[name].descriptors for one in parts]),
                np.concatenate([one.models[name].inverted for one in parts]),
            )
            for name in parts[0].models
        },
        hashes={name: _as_given([one.hashes[name] for one in parts]) for name in parts[0].hashes},
        versions=np.concatenate([one.versions for one in parts]),
    )


def _as_given[T: np.generic](parts: Sequence[npt.NDArray[T]]) -> npt.NDArray[T]:
    """Rows of one form [n, 1, d] for two, unedited and as given: the same, and no more memory."""
    rows = np.concatenate(parts)
    return np.broadcast_to(rows, (len(rows), 2, rows.shape[2]))


def groups_of(references: int, queries: int, background: int) -> Numbers:
    """Only queries are resampled, each for itself: the references are the ones that there are."""
    return np.concatenate(
        [np.full(references, -1), np.arange(queries), np.full(background, -1)]
    ).astype(np.int64)


def trials(
    gallery: Gallery,
    systems: Sequence[System],
    true: Numbers,
    comparing: Comparing,
    advance: Advance,
) -> dict[System, list[Trial]]:
    """Compare all queries; pictures come as references, queries, background in the gallery."""
    of_queries = np.flatnonzero(gallery.groups >= 0)
    copied = np.unique(true[:, 0])
    split = Split(
        references=np.arange(of_queries[0]),
        negatives=np.delete(of_queries, copied),
        background=np.arange(of_queries[-1] + 1, len(gallery.groups)),
        null=np.empty(0, np.int64),
    )
    copies = Queries(of_queries[copied], np.ones(len(copied), np.int64))
    pairs = np.stack([np.searchsorted(copied, true[:, 0]), true[:, 1]], axis=1)
    known = banks(gallery, split)
    found = {}
    for system in systems:
        score = scores(gallery, system, split, known, comparing.normalisation)
        as_given = np.zeros(1, np.int64)
        found[system] = [compare(gallery, score, split, copies, pairs, as_given, comparing)]
        advance(1)
    return found
