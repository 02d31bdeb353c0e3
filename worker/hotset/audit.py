"""The audit log: who changed what when, as a stream that is written in one step with the change.

An entry's id is its time, in Unix ms. Entries older than 400 days go as new ones come.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AwareDatetime, Json, JsonValue, StringConstraints

from worker.hotset import layout
from worker.hotset.connection import Client
from worker.hotset.layout import Fields, Unusable, reject
from worker.hotset.types import Strict, Text

KEPT = timedelta(days=400)
_PAGE = 500

What = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,63}$")]


class AuditEntry(Strict):
    """One thing that was done. `version` is the hot set's after it; None: it has no part in it."""

    at: AwareDatetime
    by: Text
    what: What
    detail: Json[dict[str, JsonValue]]
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}-[0-9]{1,18}$")] | None


def write(by: str, what: str, detail: Mapping[str, Any]) -> Fields:
    """Return an entry's fields, without the version of a change."""
    return ["by", by, "what", what, "detail", json.dumps(detail, separators=(",", ":"))]


def oldest_kept(now: float) -> int:
    """The id of the oldest entry to keep at `now`, Unix seconds: for XADD's MINID."""
    return max(0, int((now - KEPT.total_seconds()) * 1000))


def read(client: Client, key: str, since: datetime | None, limit: int) -> list[AuditEntry]:
    """The newest entries, newest first, `limit` at most; damaged ones are told and skipped."""
    oldest = "-" if since is None else max(0, int(since.timestamp() * 1000))
    found: list[AuditEntry] = []
    newest = "+"
    while len(found) < limit:
        page = client.xrevrange(key, newest, oldest, count=min(limit, _PAGE))
        for entry_id, raw in page:
            try:
                found.append(_entry(layout.text(entry_id), raw))
            except Unusable as error:
                reject(error)
        if not page:
            break
        newest = f"({layout.text(page[-1][0])}"
    return found[:limit]


def _entry(entry_id: str, raw: Mapping[bytes, bytes]) -> AuditEntry:
    fields: dict[str, str | None]
    fields = {layout.text(name): layout.text(value) for name, value in raw.items()}
    try:
        at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC)
    except (ValueError, OverflowError):
        raise Unusable("audit", entry_id, "id") from None
    row = fields | {"at": at.isoformat(), "version": fields.get("version") or None}
    return layout.read_row(AuditEntry, entry_id, json.dumps(row).encode())
