"""Benign images that are copies of references, told by their bytes or by PDQ."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from worker.evaluation.groups import Fingerprints, copies, of_references
from worker.hotset.types import Reference
from worker.image import pdq
from worker.scoring.calibration import Benign


def of_benign(benign: Benign) -> Fingerprints:
    """What a calibration knows of its images."""
    return Fingerprints(benign.names, benign.pdq, (100 * benign.has_pdq).astype(np.uint8))


def copies_of(
    references: Sequence[Reference], benign: Benign | None
) -> Mapping[str, tuple[str, ...]]:
    """Digests of the images that are copies of each reference, by its id, with those it names.

    References without any are left out.
    """
    found = {one.reference_id: set(one.copies) for one in references}
    if benign is not None and references:
        for reference, image in _pairs(benign, references):
            found[references[reference].reference_id].add(benign.names[image])
    return {name: tuple(sorted(digests)) for name, digests in found.items() if digests}


def with_copies(references: Iterable[Reference], benign: Benign | None) -> list[Reference]:
    """The references, each naming the benign images that are copies of it."""
    listed = list(references)
    if benign is None:
        return listed
    found = copies_of(listed, benign)
    return [one.model_copy(update={"copies": found.get(one.reference_id, ())}) for one in listed]


def _pairs(benign: Benign, references: Sequence[Reference]) -> Iterator[tuple[int, int]]:
    """Numbers of references and of images that are copies of them."""
    if pdq.VERSIONS * len(references) < len(benign.names):
        yield from _sorted(benign).pairs(references)
        return
    for pair in copies(of_benign(benign), of_references(references)):
        yield pair.reference, pair.image


class _Sorted:
    """Benign images, sorted once: a few references at a time are looked for among all of them."""

    def __init__(self, benign: Benign) -> None:
        self._by_digest = {name: number for number, name in enumerate(benign.names)}
        self._hashed = np.flatnonzero(benign.has_pdq)
        self._hashes = benign.pdq[self._hashed]
        self._orders = list(pdq.orders(self._hashes))

    def pairs(self, references: Sequence[Reference]) -> Iterator[tuple[int, int]]:
        known = of_references(references)
        for number, digest in enumerate(known.sha256):
            if digest in self._by_digest:
                yield number, self._by_digest[digest]
        versions = pdq.versions(known.pdq[known.hashed]).reshape(-1, pdq.BYTES)
        for version, image in pdq.near(versions, self._hashes, b_orders=self._orders).tolist():
            yield int(known.hashed[version // pdq.VERSIONS]), int(self._hashed[image])


_sorted = lru_cache(maxsize=1)(_Sorted)
