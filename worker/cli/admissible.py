"""What a slip of the hand would do: thresholds that match all or nothing, and mass removals."""

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from worker.errors import StoreError
from worker.hotset.store import Store

if TYPE_CHECKING:
    from worker.scoring.rules import Applied

FEW = 10
"""References of a bank that one command may remove or disable, whatever share they are."""
SHARE = 0.1
"""And the share of a bank beyond these."""
COPIES_LOST = 0.01
"""Share of the calibration's images whose exact copy a threshold may miss."""
BENIGN_MATCHED = 0.5
"""Share of the calibration's images that a bank may match."""


def refuse_many(store: Store, reference_ids: Collection[str], verb: str) -> None:
    """Raise StoreError for more than `FEW` references and `SHARE` of a bank; `verb` says what for.

    Counts all references, if there may be too many.
    """
    wanted = set(reference_ids)
    if len(wanted) <= FEW:
        return
    known = store.references()
    of_all = Counter(one.bank for one in known)
    chosen = Counter(one.bank for one in known if one.reference_id in wanted)
    many = [
        f"{count} of the {of_all[bank]} references of bank {bank}"
        for bank, count in sorted(chosen.items())
        if count > max(FEW, SHARE * of_all[bank])
    ]
    if many:
        raise StoreError(f"this would {verb} {' and '.join(many)}: --force does it")


def refuse_useless(applied: "Applied", name: str) -> None:
    """Raise StoreError where a bank would match hardly a copy, or most benign pictures.

    Judged by the calibration's null images: without one nothing is known.
    """
    rule, masked = applied.rules[name], applied.masked
    if masked is None or rule.threshold is None or not rule.is_enforced:
        return
    copies = 1 - masked.null_offsets[masked.in_null, 0]
    if len(copies) and (lost := float((copies < rule.threshold).mean())) > COPIES_LOST:
        highest = np.quantile(copies, COPIES_LOST)
        raise StoreError(
            f"{name}: an exact copy would not match for {lost:.0%} of the calibration's images; "
            f"{highest:.3f} is the highest threshold that nearly all reach. --force sets it"
        )
    rate = rule.false_matches_per_million(rule.threshold)
    if rate is not None and rate > BENIGN_MATCHED * 1_000_000:
        raise StoreError(
            f"{name}: {rate / 1_000_000:.0%} of the calibration's benign images would match at "
            f"score {rule.threshold:.3f}. --force sets it"
        )
