"""`copysieve hotset`: what the replicas have of the hot set."""

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from worker.cli import waiting
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    SinceOption,
    emit,
    load_settings,
    stdout,
    time_of,
)
from worker.cli.waiting import ByOption, TimeoutOption, WaitOption
from worker.hotset.store import Store, open_store
from worker.hotset.types import Head, Heartbeat
from worker.records import Version

app = typer.Typer(name="hotset", no_args_is_help=True, help="The hot set, in Redis and replicas.")


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell where the store stands, and what every live replica has of it."""
    with closing(open_store(load_settings(config).redis)) as store:
        beats, head = store.heartbeats(), store.head()
        told: dict[str, Any] = {
            "version": str(head.version) if head else None,
            "banks": len(store.banks()),
            "references": len(store.references()),
            "replicas": [_told(beat, head) for beat in beats],
        }
    if as_json:
        emit(told)
        return
    stdout.print(
        f"store: version {told['version'] or 'none yet'}, {told['banks']} banks"
        f", {told['references']} references",
        highlight=False,
    )
    table = Table(
        Column("replica", no_wrap=True),  # a name that is cut is none
        *("state", Column("version", no_wrap=True), "behind", "references", "unusable", "told"),
        box=None,
    )
    for row in told["replicas"]:
        behind = "all of it" if row["behind"] is None else str(row["behind"] or "")
        table.add_row(
            row["name"],
            row["state"],
            row["version"] or "none",
            behind,
            str(row["references"]),
            str(row["unusable"] or ""),
            f"{row['age_seconds']:.1f} s ago",
        )
    stdout.print(table)


@app.command()
def accept(
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept the store as it is now: replicas that refused it because it shrank will load it."""

    def change(store: Store) -> Version:
        accepted = store.accept()
        stdout.print(f"accepted {accepted.references} references", highlight=False)
        for name in accepted.removed:
            stdout.print(f"removed {name}: it could not be read", markup=False, highlight=False)
        return accepted.version

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command("log")
def audit_log(
    since: SinceOption = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="COUNT", help="The newest, no more than these.")
    ] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell who changed what when, and when floods began and ended; newest first."""
    first = time_of(since, "--since")
    with closing(open_store(load_settings(config).redis)) as store:
        entries = store.audit(first, limit)
    if as_json:
        emit([entry.model_dump(mode="json") for entry in entries])
        return
    table = Table(Column("when", no_wrap=True), "who", "what", "detail", "version", box=None)
    for entry in entries:
        table.add_row(
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            _plain(entry.by),
            entry.what,
            Text(json.dumps(entry.detail, separators=(",", ":"))),
            entry.version or "",
        )
    stdout.print(table)


def _plain(text: str) -> Text:
    """No markup, and nothing that a terminal obeys."""
    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _told(beat: Heartbeat, head: Head | None) -> dict[str, Any]:
    """A heartbeat, with how many changes it is behind the store; None: it cannot be told."""
    told = beat.model_dump(mode="json")
    own = Version.parse(beat.version) if beat.version else None
    comparable = own is not None and head is not None and own.epoch == head.version.epoch
    told["behind"] = max(0, head.version.seq - own.seq) if comparable and head and own else None
    told["age_seconds"] = round((datetime.now(UTC) - beat.at).total_seconds(), 3)
    return told
