"""From descriptors to a decision: search the mirror, score, apply the banks' policies."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import torch

from worker.events import THRESHOLDS_SHOWN
from worker.hotset.mirror import Mirror
from worker.hotset.types import Hit
from worker.records import Version
from worker.scoring.policy import Decision, Scored, decide, near_thresholds, score
from worker.scoring.rules import Applied, Rules

CANDIDATES = 32
"""Best rows of the hot set that are looked at for one upload."""
CROWD = 4096
"""And where all of those match; `matches_total` is at most this."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing one upload with the hot set at `version`.

    `thresholds` are those of the banks that it came nearest to, by name; `applied` has all that it
    was decided by.
    """

    decision: Decision
    version: Version
    calibration: str | None
    thresholds: Mapping[str, float]
    applied: Applied


def compare(
    mirror: Mirror,
    rules: Rules,
    uploads: Sequence[torch.Tensor],
    tenants: Sequence[str | None],
    canaries: Sequence[bool] | None = None,
) -> Iterator[Compared]:
    """Compare uploads with the hot set, and apply the banks' policies.

    `uploads` are the descriptors of each one's looks, float32 [looks, dims]. A tenant of None is
    screened against all banks. `canaries` tells which uploads are canaries, which alone can match
    references that are (None: none is).
    """
    canaries = canaries or [False] * len(uploads)
    owners = [number for number, looks in enumerate(uploads) for _ in looks]
    vectors = torch.cat(list(uploads))
    found = mirror.search(
        vectors,
        [tenants[owner] for owner in owners],
        CANDIDATES,
        [canaries[owner] for owner in owners],
    )
    applied = rules.of(found.against)
    looked = zip(found.hits, applied.offsets(vectors), strict=True)
    for looks, tenant, canary in zip(uploads, tenants, canaries, strict=True):
        scored = _score(islice(looked, len(looks)))
        if any(_is_crowd(own, applied.lowest_threshold) for own in scored):
            # All of them may match, so there may be more: a crowd must not hide another bank.
            crowd = mirror.search(looks, [tenant] * len(looks), CROWD, [canary] * len(looks))
            own = rules.of(crowd.against)
            crowded = _score(zip(crowd.hits, own.offsets(looks), strict=True))
            yield _decide(mirror, own, crowded, CROWD)
        else:
            yield _decide(mirror, applied, scored, CANDIDATES)


def _score(looks: Iterable[tuple[Sequence[Hit], float]]) -> list[list[Scored]]:
    """The hits of each look, with its offset."""
    return [score(hits, offset, look) for look, (hits, offset) in enumerate(looks)]


def _is_crowd(scored: Sequence[Scored], lowest: float) -> bool:
    return len(scored) >= CANDIDATES and scored[-1].score >= lowest


def _seen_from(scored: Sequence[Sequence[Scored]], k: int) -> float:
    """Of what scores up to this, there may be more than the `k` hits of a look."""
    return max((one[-1].score for one in scored if len(one) >= k), default=-math.inf)


def _decide(
    mirror: Mirror,
    applied: Applied,
    scored: Sequence[Sequence[Scored]],
    k: int,
) -> Compared:
    against = applied.against

    def resemblance(allow: Sequence[Hit], matched: Sequence[Hit]) -> npt.NDArray[np.float64]:
        rows = mirror.rows_of([*allow, *matched])
        return applied.scores(rows[: len(allow)], rows[len(allow) :])

    hits = list(chain.from_iterable(scored))
    decision = decide(hits, applied.rules, _seen_from(scored, k), resemblance)
    return Compared(
        decision=decision,
        version=against.version,
        calibration=against.calibration.id if against.calibration else None,
        thresholds=near_thresholds(hits, decision, applied.rules, THRESHOLDS_SHOWN),
        applied=applied,
    )
