"""How a change of the hot set is made: compare and write in one script (`commit.lua`).

Read, decide here, write only if nothing has changed in between, else read again. So two writers
never overwrite each other, a repeated call changes nothing, and the stream has an entry for exactly
what was written.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys
from worker.hotset.types import Change
from worker.records import Version

STREAM_LENGTH = 20_000
"""Changes that the stream keeps, roughly. Whoever is further behind loads a snapshot."""

_ATTEMPTS = 20


@dataclass(slots=True)
class Step:
    """One atomic step: values compared and written, and the changes that tell of it.

    `new` counts the references among them that were not there before.
    """

    writes: list[tuple[str, str, bytes | str, bytes | str]] = field(default_factory=list)
    entries: list[tuple[str, layout.Fields]] = field(default_factory=list)
    new: int = 0

    def write(self, key: str, name: str, expected: bytes | str, value: bytes | str) -> None:
        """Write a field of a hash if it is as expected (`*`: whatever it is); '' is no value."""
        self.writes.append((key, name, expected, value))

    def tell(self, change: Change, model_sha256: str = "") -> str:
        """Add the change to the stream; returns its mark."""
        mark = uuid.uuid4().hex
        self.entries.append((mark, layout.write_change(change, time.time(), model_sha256)))
        return mark


class Commits:
    """Makes the changes of one namespace. All methods raise StoreError where Redis is away."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        script = resources.files(__package__).joinpath("commit.lua").read_bytes()
        self._script = client.register_script(script)

    @as_store_errors
    def make(
        self, step: Callable[[], Step], *, may_begin: bool = False, keep_entries: bool = True
    ) -> tuple[Step, Version]:
        """Plan and write, again while other writers come in between.

        Returns what was planned last, and the version after it. `may_begin` creates the epoch;
        without `keep_entries` the stream loses all entries before. Raises StoreError, also where
        there is no epoch.
        """
        trim = ("~", STREAM_LENGTH) if keep_entries else ("=", 1)
        for _ in range(_ATTEMPTS):
            plan = step()
            if not plan.entries:
                return plan, self.version()
            keys = [self._keys.head, self._keys.changes, *(write[0] for write in plan.writes)]
            arguments: list[bytes | str | int] = [
                time.time_ns() // 1_000_000,
                int(may_begin),
                *trim,
                len(plan.writes),
            ]
            for _, *write in plan.writes:
                arguments += write
            for mark, fields in plan.entries:
                arguments += [mark, len(fields), *fields]
            version = self._script(keys=keys, args=arguments)
            if version is not None:
                return plan, Version.parse(layout.text(version))
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
