"""How a change of the hot set is made: compare and write in one script (`commit.lua`).

Read, decide here, write only if nothing has changed in between, else read again. So two writers
never overwrite each other, a repeated call changes nothing, and the stream has an entry for exactly
what was written.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from worker.errors import StoreError
from worker.hotset import audit, entries, layout
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys
from worker.hotset.types import Change
from worker.records import Version

STREAM_LENGTH = 20_000
"""Changes that the stream keeps. Whoever is further behind loads a snapshot."""
NAMED = 100
"""References that one note of the audit log names; it counts them all."""

_ATTEMPTS = 20
_NO_MODEL = ""

type What = Literal[
    "bank_set",
    "bank_removed",
    "references_added",
    "references_changed",
    "references_removed",
    "references_purged",
    "calibration_set",
    "calibration_removed",
    "accepted",
]
"""What the audit log says was done."""


@dataclass(slots=True)
class Step:
    """One atomic step: values compared and written, and the changes, as one, that tell of it.

    `new` counts the references among them that were not there before.
    """

    what: What
    detail: dict[str, Any] = field(default_factory=dict)
    model_sha256: str = _NO_MODEL
    writes: list[tuple[str, bytes, bytes, bytes]] = field(default_factory=list)
    tallies: Counter[str] = field(default_factory=Counter)
    changes: list[Change] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    new: int = 0

    def write(self, key: str, name: str | bytes, old: bytes, new: bytes, kind: str = "") -> None:
        """Write a field of a hash if it is as expected (`*`: whatever it is); empty is no value.

        Values of a `kind` are tallied.
        """
        name = name.encode() if isinstance(name, str) else name
        self.writes.append((key, name, old, new))
        if kind:
            for value, sign in ((old, -1), (new, 1)):
                if value:
                    self.tallies[f"count:{kind}"] += sign
                    self.tallies[f"sum:{kind}"] += sign * layout.checksum(name, value)

    def named(self, reference_ids: Sequence[str]) -> None:
        """Name references in the audit log."""
        self.detail |= {"references": list(reference_ids[:NAMED]), "count": len(reference_ids)}


class Commits:
    """Makes the changes of one namespace in the name of `by`. All raise StoreError (Redis away)."""

    def __init__(self, client: Client, keys: Keys, by: str) -> None:
        self._client = client
        self._keys = keys
        self._by = by
        script = resources.files(__package__).joinpath("commit.lua").read_bytes()
        self._script = client.register_script(script)

    @as_store_errors
    def make(
        self, plan: Callable[[], Step], *, may_begin: bool = False, keep_entries: bool = True
    ) -> tuple[Step, Version]:
        """Plan and write, again while other writers come in between.

        Returns what was planned last, and the version after it. `may_begin` creates the epoch;
        without `keep_entries` the stream loses all entries before. Raises StoreError, also where
        there is no epoch.
        """
        for _ in range(_ATTEMPTS):
            step = plan()
            if not step.changes:
                return step, self.version()
            version = self._script(*self._call(step, may_begin, keep_entries))
            if version is not None:
                return step, Version.parse(layout.text(version))
            if not may_begin:
                self.version()  # which says so if there is no epoch
        raise StoreError("too many writers at once; try again")

    @as_store_errors
    def version(self) -> Version:
        """Where the history stands. Raises StoreError before the first change."""
        head = layout.read_head(self._client.hgetall(self._keys.head))
        if head is None:
            raise StoreError("there is no hot set: set a bank first")
        return head.version

    def note(self, what: What, detail: Mapping[str, Any]) -> None:
        """Note in the audit log what is no change of the hot set."""
        fields = audit.write(self._by, what, detail)
        noted = dict(zip(fields[::2], fields[1::2], strict=True))
        self._client.xadd(self._keys.audit, noted, minid=audit.oldest_kept(time.time()))

    def _call(
        self,
        step: Step,
        may_begin: bool,  # noqa: FBT001
        keep_entries: bool,  # noqa: FBT001
    ) -> tuple[list[str], list[bytes | str | int]]:
        now = time.time()
        now_ms = int(now * 1000)
        told = entries.write_changes(step.changes, now, step.model_sha256)
        noted = audit.write(self._by, step.what, step.detail)
        arguments: list[bytes | str | int] = [
            now_ms,
            int(may_begin),
            STREAM_LENGTH if keep_entries else 0,
            audit.oldest_kept(now),
            len(step.writes),
            len(step.tallies),
            len(noted),
            len(step.changes),
        ]
        for _, *write in step.writes:
            arguments += write
        for tally in step.tallies.items():
            arguments += tally
        arguments += [*noted, "mark", step.mark, *told]
        keys = [self._keys.head, self._keys.changes, self._keys.audit]
        return keys + [write[0] for write in step.writes], arguments
