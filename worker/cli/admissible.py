"""What a slip of the hand would do: rules that match all or nothing, and mass removals."""

import math
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from worker.cli.common import stderr, stdout
from worker.errors import StoreError
from worker.hotset.store import Store

if TYPE_CHECKING:
    from worker.hotset.types import Bank
    from worker.scoring.rules import Applied, Rule

FEW = 10
"""References of a bank that one command may remove or disable, whatever share they are."""
SHARE = 0.1
"""And the share of a bank beyond these."""
COPIES_LOST = 0.01
"""Share of the calibration's images whose exact copy a threshold may miss."""
RECENT_MATCHED = 0.01
"""Share of the recent uploads that a change may match beyond what is matched now."""
FEW_UPLOADS = 3
"""And so many in any case, since a share of few uploads says little."""
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
    if math.isinf(enforced_threshold(applied.against.banks[name], rule)):
        return  # what is off, or in shadow, does no harm
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


def enforced_threshold(bank: "Bank | None", rule: "Rule | None" = None) -> float:
    """The score from which a bank's matches are enforced; infinite where none is.

    Without a `rule` the bank's own threshold counts.
    """
    if bank is None or bank.kind == "allow" or not bank.enabled or bank.mode == "shadow":
        return math.inf
    threshold = bank.threshold
    if rule is not None:
        threshold = rule.threshold if rule.is_enforced else None
    return math.inf if threshold is None else threshold


def try_on_recent(
    store: Store, name: str, calibration: str | None, before: float, after: float, *, force: bool
) -> None:
    """Say what share of the recent uploads a bank would have matched from a score on.

    `before` is the score from which it matches now. Raises StoreError where it would have matched
    more than `RECENT_MATCHED` of them beyond that, unless forced.
    """
    if after == before or math.isinf(after):
        return
    known = [one for one in store.samples() if one.calibration == calibration]
    if not known:
        stderr.print(f"{name}: no recent uploads to try it on", markup=False, highlight=False)
        return
    scores = [one.scores.get(name, -math.inf) for one in known]
    matched, now = (sum(score >= bar for score in scores) for bar in (after, before))
    unknown = sum(name not in one.scores and one.unseen >= after for one in known)
    since = datetime.fromtimestamp(known[-1].at, UTC)
    line = (
        f"{name}: of {len(known)} uploads sampled since {since:%Y-%m-%d %H:%M} UTC it would have "
        f"matched {matched} ({matched / len(known):.1%}), now {now}"
    )
    line += f"; of {unknown} more it is not known" if unknown else ""
    if not force and matched - now > max(FEW_UPLOADS, RECENT_MATCHED * len(known)):
        raise StoreError(f"{line}. --force sets it")
    stdout.print(line, markup=False, highlight=False)
