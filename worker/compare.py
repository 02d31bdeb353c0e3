"""From descriptors to a decision: search the mirror, score, apply the banks' policies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from worker.hotset.mirror import Mirror
from worker.records import Version
from worker.scoring import calibration as calibrations
from worker.scoring.policy import Decision, Scored, decide, lowest_threshold, score

CANDIDATES = 32
"""Best rows of the hot set that are looked at for one upload."""
CROWD = 4096
"""And where all of those match; `matches_total` is at most this."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing one upload with the hot set at `version`."""

    decision: Decision
    version: Version
    calibration: str | None


def compare(
    mirror: Mirror,
    uploads: Sequence[torch.Tensor],
    tenants: Sequence[str | None],
    canaries: Sequence[bool] | None = None,
) -> Iterator[Compared]:
    """Compare uploads with the hot set, and apply the banks' policies.

    `uploads` are the descriptors of each one's looks, float32 [looks, dims]. A tenant of None is
    screened against all banks. `canaries` tells which uploads are canaries, which alone can match
    references that are (None: none is).
    """
    vectors = torch.cat(list(uploads))
    owners = [number for number, looks in enumerate(uploads) for _ in looks]
    tenants = [tenants[owner] for owner in owners]
    canaries = [canaries is not None and canaries[owner] for owner in owners]
    found = mirror.search(vectors, tenants, CANDIDATES, canaries)
    calibration = calibrations.parse(found.calibration) if found.calibration else None
    offsets = calibration.offsets(vectors).tolist() if calibration else [0.0] * len(vectors)
    floor = lowest_threshold(found.banks.values(), calibration)
    row = 0
    for looks in uploads:
        scored, version = list[Scored](), found.version
        for look in range(len(looks)):
            hits, offset = found.hits[row], offsets[row]
            if len(hits) == CANDIDATES and hits[-1].cosine - offset >= floor:
                # All of them may match, so there may be more: a crowd must not hide another bank.
                one = slice(row, row + 1)
                crowd = mirror.search(vectors[one], tenants[one], CROWD, canaries[one])
                # The version told is the one before: what came in between was not seen by all.
                hits, version = crowd.hits[0], min(version, crowd.version)
            scored += score(hits, offset, look)
            row += 1
        yield Compared(
            decision=decide(scored, calibration),
            version=version,
            calibration=calibration.id if calibration else None,
        )
