"""A mirror beside the store: what it lacks, and whether a fresh load may take its place."""

from dataclasses import dataclass

from worker.hotset.hot_set import HotSet, Sizes
from worker.hotset.mirror import Mirror
from worker.hotset.types import Head, Tallies, Tally

type Difference = dict[str, Tally]
"""What a mirror lacks of the store, by kind; empty where they are equal."""


def difference(said: Tallies, mirror: Mirror) -> Difference:
    """What the store says there is beyond what the mirror holds."""
    own = mirror.tallies()
    pairs = {kind: (tally, own[kind]) for kind, tally in said.items()}
    return {
        kind: Tally(there.number - here.number, there.checksum - here.checksum)
        for kind, (there, here) in pairs.items()
        if there != here
    }


@dataclass(frozen=True, slots=True)
class Known:
    """What a load is compared with: the mirror's head and sizes, if there is a mirror.

    `first` is where the store stood when it was first looked at.
    """

    head: Head | None
    sizes: Sizes
    first: Head | None

    def objection(self, fresh: HotSet, said: Head, tolerated: float) -> str | None:
        """Why what was loaded is not to be served; None if it is.

        `said` is the store's head; `tolerated` is the share of the references that may be lost.
        """
        sizes, known = fresh.sizes(), self.head or self.first
        if known is not None and fresh.head.accepted not in ("", known.accepted):
            return None
        if self.head is not None:
            if sizes.references < (1 - tolerated) * self.sizes.references:
                return f"{sizes.references} usable references are left"
            return None
        # Nothing to compare with but what the store says, and what it holds.
        counted = said.tallies.get("references", Tally()).number
        there = max(counted, sizes.references + sizes.unusable)
        if sizes.references < (1 - tolerated) * there:
            return f"{sizes.references} of {there} references can be used with this model"
        return None
