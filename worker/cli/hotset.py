"""`copysieve hotset`: what the replicas have of the hot set."""

import json
from collections.abc import Sequence
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
from worker.hotset.types import Head, Heartbeat, Tallies, Tally
from worker.records import Version

_COMPARED = {True: " equal", False: " DIFFERS", None: ""}

app = typer.Typer(name="hotset", no_args_is_help=True, help="The hot set, in Redis and replicas.")


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell where the store stands, what every live replica has of it, who is late, and floods.

    A replica's digest is of all that its mirror holds; at the store's version it is compared with
    the store's for that model. Whatever there is to tell, the exit code is 0.
    """
    with closing(open_store(load_settings(config).redis)) as store:
        beats = store.heartbeats()
        head = store.head()  # after the heartbeats, so that none is beyond it
        floods = sorted(str(subject) for subject in store.census().floods())
    counts = head.tallies if head else Tallies()
    told: dict[str, Any] = {
        "version": str(head.version) if head else None,
        "banks": counts.get("banks", Tally()).number,
        "references": counts.get("references", Tally()).number,
        "floods": floods,
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
    _show(told["replicas"])
    waiting.warn_of_models(waiting.models_of(beats))
    if late := [row["name"] for row in told["replicas"] if row["late"]]:
        stdout.print(f"late: {', '.join(late)}", markup=False, highlight=False)
    if unusable := [row for row in told["replicas"] if row["unusable"]]:
        counted = ", ".join(f"{row['name']} {row['unusable']}" for row in unusable)
        stdout.print(f"unusable references: {counted}", markup=False, highlight=False)
    if floods:
        stdout.print(f"in flood: {', '.join(floods)}", markup=False, highlight=False)


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
    """A heartbeat, and what it means beside the store, which was read after it.

    `behind` is in changes; it is None where it cannot be told, and so is `equal` where the replica
    is not at the store's version.
    """
    told = beat.model_dump(mode="json")
    own = Version.parse(beat.version) if beat.version else None
    behind = equal = None
    if own is not None and head is not None and own.epoch == head.version.epoch:
        behind = max(0, head.version.seq - own.seq)
        if own == head.version:
            equal = beat.digest == head.tallies.of_model(beat.model).digest
    told |= {"behind": behind, "equal": equal}
    told["late"] = head is not None and not waiting.has_applied(beat, head.version, head)
    told["age_seconds"] = round((datetime.now(UTC) - beat.at).total_seconds(), 3)
    return told


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each replica, as long as need be: a name or a version that is cut is none."""
    heading = ("replica", "state", "version", "behind", "references", "digest", "ago")
    lines = [heading, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        stdout.print(" ".join(padded).rstrip(), markup=False, highlight=False)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["state"],
        row["version"] or "none",
        "all" if row["behind"] is None else str(row["behind"]),
        str(row["references"]),
        f"{row['digest'] or 'none'}{_COMPARED[row['equal']]}",
        f"{row['age_seconds']:.1f} s",
    )
