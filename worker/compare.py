"""From descriptors to a decision: search the mirror, score, apply the banks' policies."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import torch

from worker.events import THRESHOLDS_SHOWN
from worker.hotset.found import Bars
from worker.hotset.hot_set import Against
from worker.hotset.mirror import Mirror
from worker.hotset.types import Hit
from worker.records import Version
from worker.scoring.policy import Decision, Scored, decide, near_thresholds, score
from worker.scoring.rules import Applied, Rules

CANDIDATES = 32
"""Best rows of the hot set that are looked at for each look of an upload."""
CROWD = 2048
"""Pairs of looks and rows that the banks share where more than that may match one upload."""


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
    offsets = applied.offsets(vectors)
    looked = zip(found.hits, found.unseen, offsets, strict=True)
    for looks, tenant, canary in zip(uploads, tenants, canaries, strict=True):
        own = list(islice(looked, len(looks)))
        seen_from = max((unseen - offset for _, unseen, offset in own), default=-math.inf)
        if seen_from >= applied.lowest_threshold(tenant):
            yield _compare_banks(mirror, rules, looks, tenant, canary=canary)
            continue
        scored = [score(hits, offset, look) for look, (hits, _, offset) in enumerate(own)]
        yield _decide(mirror, applied, scored, seen_from)


def _compare_banks(
    mirror: Mirror, rules: Rules, looks: torch.Tensor, tenant: str | None, *, canary: bool
) -> Compared:
    """Compare an upload that may have more matches than were found.

    Each bank has its own share of what is looked at, so that no crowd hides another bank's match.
    """
    offsets: list[float] = []

    def bars(against: Against) -> Bars:
        applied = rules.of(against)
        offsets[:] = applied.offsets(looks)
        return Bars(applied.bars(), offsets)

    found = mirror.search_banks(looks, tenant, bars, CROWD, canary=canary)
    looked = enumerate(zip(found.hits, offsets, strict=True))
    scored = [score(hits, offset, look) for look, (hits, offset) in looked]
    applied = rules.of(found.against)
    return _decide(mirror, applied, scored, math.inf, found.cut)


def _decide(
    mirror: Mirror,
    applied: Applied,
    scored: Sequence[Sequence[Scored]],
    seen_from: float,
    cut: Collection[str] = (),
) -> Compared:
    against = applied.against

    def resemblance(allow: Sequence[Hit], matched: Sequence[Hit]) -> npt.NDArray[np.float64]:
        rows = mirror.rows_of([*allow, *matched])
        return applied.scores(rows[: len(allow)], rows[len(allow) :])

    hits = list(chain.from_iterable(scored))
    decision = decide(hits, applied.rules, seen_from, resemblance, cut)
    return Compared(
        decision=decision,
        version=against.version,
        calibration=against.calibration.id if against.calibration else None,
        thresholds=near_thresholds(hits, decision, applied.rules, THRESHOLDS_SHOWN),
        applied=applied,
    )
