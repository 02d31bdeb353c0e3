"""Benign images that are copies of references, told by their bytes or by PDQ."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from worker.evaluation.groups import Fingerprints, copies, of_references
from worker.hotset.types import Reference
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
        for pair in copies(of_benign(benign), of_references(references)):
            reference = references[pair.reference].reference_id
            found[reference].add(benign.names[pair.image])
    return {name: tuple(sorted(digests)) for name, digests in found.items() if digests}


def with_copies(references: Iterable[Reference], benign: Benign | None) -> list[Reference]:
    """The references, each naming the benign images that are copies of it."""
    listed = list(references)
    if benign is None:
        return listed
    found = copies_of(listed, benign)
    return [one.model_copy(update={"copies": found.get(one.reference_id, ())}) for one in listed]
