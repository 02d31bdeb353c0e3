"""Accepting a store as it is: what can be read is the set from now on, and is counted anew."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from worker.hotset import layout
from worker.hotset.commits import Step
from worker.hotset.connection import Client
from worker.hotset.layout import Keys, Unusable
from worker.hotset.types import Accepted, Head, Tally


class Recount:
    """Reads all there is. `removed` names what cannot be read, `references` counts what can."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._there = Counter[str]()
        self._unreadable: list[tuple[str, bytes, bytes]] = []
        models = [layout.text(sha256) for sha256 in client.hkeys(keys.models)]
        self._kinds = ["banks", "references", *(f"descriptors:{sha256}" for sha256 in models)]
        self._read(keys.banks, "banks", layout.read_bank)
        for bucket in range(layout.BUCKETS):
            rows = self._read(keys.references(bucket), "references", layout.read_reference)
            for sha256 in models:
                key = keys.descriptors(sha256, bucket)
                read = partial(_read_descriptors, rows)
                self._read(key, f"descriptors:{sha256}", read)
        self._read_calibrations()

    @property
    def references(self) -> int:
        """How many can be read."""
        return self._there["count:references"]

    @property
    def removed(self) -> list[str]:
        """Names of the values that cannot."""
        return [layout.text(name) for _, name, _ in self._unreadable]

    def plan(self, step: Step, head: Head) -> None:
        """Make it the set, for the store as it stands at `head`."""
        for key, name, raw in self._unreadable:
            step.write(key, name, raw, b"")
        for kind in {*self._kinds, *head.tallies}:
            before = head.tallies.get(kind, Tally())
            step.tallies[f"count:{kind}"] = self._there[f"count:{kind}"] - before.number
            step.tallies[f"sum:{kind}"] = self._there[f"sum:{kind}"] - before.checksum
        step.changes.append(Accepted())
        # Nobody writes in between, for every change has a mark of its own.
        mark, accepted = head.mark.encode(), head.accepted.encode()
        step.write(self._keys.head, "mark", mark, mark)
        step.write(self._keys.head, "accepted", accepted, step.mark.encode())

    def _read(self, key: str, kind: str, read: Callable[[str, bytes], object]) -> set[str]:
        """Tally what can be read of a hash; returns its names."""
        names: set[str] = set()
        for field, raw in self._values(key):
            name = layout.text(field)
            try:
                read(name, raw)
            except Unusable:
                self._unreadable.append((key, field, raw))
                continue
            names.add(name)
            self._there[f"count:{kind}"] += 1
            self._there[f"sum:{kind}"] += layout.checksum(field, raw)
        return names

    def _read_calibrations(self) -> None:
        """Tally the current calibrations; one whose artefact is not whole cannot be read."""
        key = self._keys.calibration
        for field, raw in self._values(key):
            if field.startswith(b"previous:"):
                continue
            name, kind = layout.text(raw), f"calibration:{layout.text(field)}"
            self._kinds.append(kind)
            try:
                layout.read_artefact(name, self._client.hgetall(self._keys.artefact(name)))
            except Unusable:
                self._unreadable.append((key, field, raw))
                continue
            self._there[f"count:{kind}"] += 1
            self._there[f"sum:{kind}"] += layout.checksum(field, raw)

    def _values(self, key: str) -> Iterator[tuple[bytes, bytes]]:
        yield from self._client.hgetall(key).items()


def _read_descriptors(rows: set[str], name: str, raw: bytes) -> None:
    """Raises Unusable for descriptors that break the rules, or are nobody's."""
    if name not in rows:
        raise Unusable("descriptors", name, "reference")
    layout.describe(name, raw)
