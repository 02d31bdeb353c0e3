"""Banks and current calibrations, read at one moment with the head that counts them.

A reference that is lost can match nothing. A bank or a calibration that is lost changes what all
other references match, so a set without it is never loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Literal, Self

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.connection import Client
from worker.hotset.layout import Keys, Unusable
from worker.hotset.types import Head, Tally

# A script, not MULTI: a cluster's client leaves the replies of a transaction unread.
_READ = """
local hashes = {}
for number, key in ipairs(KEYS) do
  hashes[number] = redis.call('HGETALL', key)
end
return hashes
"""
_REMEDY = "restore Redis; or put back what is missing, then `copysieve hotset accept`"


class Lost(Unusable):
    """Redis holds fewer banks or calibrations than its head counts, or other ones."""

    def __init__(self, what: Literal["banks", "calibration"], there: Tally, counted: Tally) -> None:
        line = f"Redis has lost {what}: it holds {there.number} of {counted.number}"
        if there.number == counted.number:
            line = f"Redis holds other {what} than were written"
        StoreError.__init__(self, f"{line}; {_REMEDY}")
        self.what, self.name, self.field = what, what, "lost"


@dataclass(frozen=True, slots=True)
class Policies:
    """What decides which references match: as stored, and the head of the same moment.

    `banks` are rows by name, `calibrations` ids by the digest of their model.
    """

    head: Head
    banks: Mapping[bytes, bytes]
    calibrations: Mapping[bytes, bytes]

    @classmethod
    def read(cls, client: Client, keys: Keys) -> Self | None:
        """Read them at one moment; None: there is no hot set. Raises Unusable for a head."""
        replies = client.eval(_READ, 3, keys.head, keys.banks, keys.calibration)
        raw, banks, calibrations = (dict(batched(reply, 2)) for reply in replies)
        head = layout.read_head(raw)
        return None if head is None else cls(head, banks, calibrations)

    def require_banks(self) -> None:
        """Raise Lost unless all banks are there that the head counts."""
        there, counted = _tally(self.banks.items()), self.head.tallies.get("banks", Tally())
        if _is_lost(there, counted):
            raise Lost("banks", there, counted)

    def require_calibration(self, model_sha256: str) -> None:
        """Raise Lost unless the model's current calibration is the one that the head counts."""
        of = model_sha256.encode()
        current = self.calibrations.get(of)
        there = _tally([(of, current)] if current else [])
        counted = self.head.tallies.get(f"calibration:{model_sha256}", Tally())
        if _is_lost(there, counted):
            raise Lost("calibration", there, counted)

    def require_all(self) -> None:
        """Raise Lost unless all banks and calibrations are there, of whatever model."""
        self.require_banks()
        for kind in self.head.tallies:
            what, _, model_sha256 = kind.partition(":")
            if what == "calibration":
                self.require_calibration(model_sha256)


def _tally(values: Iterable[tuple[bytes, bytes]]) -> Tally:
    sums = [layout.checksum(name, value) for name, value in values]
    return Tally(len(sums), sum(sums))


def _is_lost(there: Tally, counted: Tally) -> bool:
    """More than the head counts is nothing lost: the head of an earlier version counts nothing."""
    return there != counted and there.number <= counted.number
