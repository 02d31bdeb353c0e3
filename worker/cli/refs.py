"""`copysieve refs`: the references of the hot set."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Column, Table

from worker.cli import admissible, exchanging, waiting
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    emit,
    first_problem,
    load_settings,
    stderr,
    stdout,
)
from worker.cli.progress import counts
from worker.cli.waiting import ByOption, TimeoutOption, WaitOption, user
from worker.errors import StoreError
from worker.events import Severity
from worker.hotset.store import Store, open_store
from worker.hotset.types import Reference
from worker.image.files import walk
from worker.records import Version

if TYPE_CHECKING:
    from worker.cli.adding import Despite, Report

app = typer.Typer(name="refs", no_args_is_help=True, help="The references of the hot set.")
exchanging.register(app)

ForceOption = Annotated[
    bool, typer.Option("--force", help="Even if it is a large share of a bank.")
]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Reference ids.")]


@app.command()
def add(
    pictures: Annotated[
        list[str], typer.Argument(metavar="PICTURES...", help="Files, folders, URLs.")
    ],
    bank: Annotated[str, typer.Option(help="The bank they go to.")],
    label: Annotated[str | None, typer.Option(help="If not the bank's.")] = None,
    severity: Annotated[Severity | None, typer.Option(help="If not the bank's.")] = None,
    source: Annotated[str | None, typer.Option(help="Where they are from.")] = None,
    note: Annotated[str | None, typer.Option(help="For people.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="ISO 8601, UTC unless it says otherwise.")
    ] = None,
    canary: Annotated[
        bool, typer.Option("--canary", help="For canaries: no upload of users' matches them.")
    ] = False,
    reference_id: Annotated[
        str | None, typer.Option("--id", help="For one picture; else BANK-SHA256, shortened.")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Add in shadow what there are objections to.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Add it as any other; needs a --note that says why.")
    ] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add pictures to a bank, and wait until every live replica matches them.

    Refused are pictures that many others would match (blank, nearly uniform, noise, test patterns,
    too many false matches), and those that the bank has, or that collide with an allow bank.
    Adding a picture again changes nothing. What cannot be read or is refused is named, the rest is
    added, and the exit code is 1; also if a replica is late.
    """
    despite = _despite(note, shadow=shadow, force=force)
    sources = _sources(pictures)
    if reference_id is not None and len(sources) != 1:
        raise typer.BadParameter("goes with exactly one picture", param_hint="--id")
    settings = load_settings(config)

    from worker.cli.adding import Details, add_references  # noqa: PLC0415 - torch takes seconds

    details = Details(
        added_by=by or user(),
        reference_id=reference_id,
        label=label,
        severity=severity,
        source=source,
        note=note,
        expires_at=_time(expires),
        canary=canary,
    )
    with counts("references", len(sources)) as advance:
        try:
            report = add_references(
                settings,
                bank,
                sources,
                details,
                advance,
                despite,
            )
        except ValidationError as error:
            raise typer.BadParameter(first_problem(error)) from None
    _tell(report)
    waited = None
    if wait and report.version is not None:
        with closing(open_store(settings.redis)) as store:
            waited = waiting.wait_for(store, report.version, timeout)
        waiting.tell(waited)
    if as_json:
        version = str(report.version) if report.version else None
        told = waited.document() if waited else None
        emit(asdict(report) | {"version": version, "waited": told})
    if report.failed or report.refused or (waited and waited.late):
        raise typer.Exit(1)


@app.command("list")
def list_references(
    bank: Annotated[str | None, typer.Option(help="Of this bank alone.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell all references, or those of one bank."""
    with closing(open_store(load_settings(config).redis)) as store:
        found = store.references(bank)
    if as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    table = Table(
        Column("reference", no_wrap=True),  # a name that is cut is none
        *("bank", "label", "severity"),
        Column("state", no_wrap=True),
        Column("objections", no_wrap=True),
        *("added", "by"),
        box=None,
    )
    for one in found:
        table.add_row(
            one.reference_id,
            one.bank,
            one.label or "",
            one.severity or "",
            _state(one),
            ", ".join(one.objections),
            f"{one.added_at:%Y-%m-%d %H:%M}",
            one.added_by,
        )
    stdout.print(table)
    stdout.print(f"{len(found)} references")


@app.command()
def show(
    reference_id: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell all about one reference, also about one that was removed."""
    with closing(open_store(load_settings(config).redis)) as store:
        reference, tombstone = store.reference(reference_id), store.tombstone(reference_id)
    if reference is None and tombstone is None:
        raise StoreError(f"there is no reference {reference_id}, nor was there")
    told: dict[str, Any] = {
        "reference": reference and reference.model_dump(mode="json"),
        "removed": tombstone and tombstone.model_dump(mode="json"),
    }
    if as_json:
        emit(told)
        return
    for part, fields in told.items():
        for name, value in (fields or {}).items():
            stdout.print(f"{part:10} {name:14} {value}", markup=False, highlight=False)


@app.command()
def remove(
    reference_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Reference ids.")
    ] = None,
    bank: Annotated[
        str | None, typer.Option(help="All references of this bank, instead of ids.")
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Leave no tombstone, and nothing else either.")
    ] = False,
    force: ForceOption = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove references and their descriptors; who and when is kept, unless purged.

    With `--purge` those that were removed before lose their tombstone too. More than ten references
    and a tenth of a bank ask for `--force`.
    """
    if (bank is None) == (not reference_ids):
        raise typer.BadParameter("give ids or --bank")

    def change(store: Store) -> Version:
        chosen = reference_ids or [one.reference_id for one in store.references(bank)]
        if not chosen:
            raise StoreError(f"bank {bank} has no references")
        if not force:
            admissible.refuse_many(store, chosen, "remove")
        return store.purge_references(chosen) if purge else store.remove_references(chosen)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def enable(
    reference_ids: Ids,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let references match again."""
    waiting.make(
        lambda store: store.set_enabled(reference_ids, enabled=True),
        config,
        by=by,
        wait=wait,
        timeout=timeout,
        as_json=as_json,
    )


@app.command()
def disable(
    reference_ids: Ids,
    force: ForceOption = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let references match no more, without removing them.

    More than ten references and a tenth of a bank ask for `--force`.
    """

    def change(store: Store) -> Version:
        if not force:
            admissible.refuse_many(store, reference_ids, "disable")
        return store.set_enabled(reference_ids, enabled=False)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def confirm(
    reference_ids: Ids,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vouch for references: however much they match, it is no flood, and their action stays."""
    change = _confirming(reference_ids, confirmed=True)
    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def unconfirm(
    reference_ids: Ids,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vouch for references no more."""
    change = _confirming(reference_ids, confirmed=False)
    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command("wait")
def wait_for(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="EPOCH-SEQ")],
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until every live replica has applied a version. The exit code is 1 if one is late.

    Live is who has told a heartbeat within 30 s: a replica that was killed is waited for that long,
    and one that cannot reach Redis for longer is not. Late is also who loads, or keeps the mirror
    that it has since the store shrank. A replica with another model applies a change too, but
    matches only what is described by its model.
    """
    try:
        wanted = Version.parse(version)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="VERSION") from None
    waiting.make(lambda _: wanted, config, wait=True, timeout=timeout, as_json=as_json)


def _confirming(reference_ids: list[str], *, confirmed: bool) -> Callable[[Store], Version]:
    return lambda store: store.set_confirmed(reference_ids, confirmed=confirmed)


def _sources(pictures: list[str]) -> list[Path | str]:
    """Files, those of folders, and URLs as they are."""
    sources: list[Path | str] = []
    for picture in pictures:
        if "://" in picture:
            sources.append(picture)
        elif not Path(picture).exists():
            raise typer.BadParameter(f"{picture}: no such file", param_hint="PICTURES")
        else:
            sources += walk([Path(picture)])
    if not sources:
        raise typer.BadParameter("no pictures there", param_hint="PICTURES")
    return sources


def _despite(note: str | None, *, shadow: bool, force: bool) -> "Despite":
    if shadow and force:
        raise typer.BadParameter("goes without --force", param_hint="--shadow")
    if force and not note:
        raise typer.BadParameter("needs a --note", param_hint="--force")
    if shadow:
        return "shadow"
    return "force" if force else "refuse"


def _tell(report: "Report") -> None:
    for failed in report.failed:
        line = f"not added {failed.image}: {failed.reason}: {failed.detail}"
        stderr.print(line, markup=False, highlight=False)
    for one in report.questioned:
        reasons = "; ".join(f"{raised.objection}: {raised.detail}" for raised in one.objections)
        line = f"{one.state} {one.image}: {reasons}"
        stderr.print(line, markup=False, highlight=False)
    if report.animated:
        line = f"{report.animated} have several frames or pages: the first of each is the reference"
        stderr.print(line, highlight=False)
    if report.set_aside:
        line = f"benign images that are copies of them, set aside: {report.set_aside}"
        stdout.print(line, highlight=False)
    for line in report.weakened:
        stderr.print(f"without these images {line}", style="yellow", markup=False, highlight=False)
    not_added = len(report.failed) + len(report.refused)
    stdout.print(
        f"added {report.added}, replaced {report.replaced}, unchanged {report.unchanged}"
        f", not added {not_added}; version {report.version or 'as before'}",
        highlight=False,
    )


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("expected ISO 8601", param_hint="--expires") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _state(reference: Reference) -> str:
    if not reference.enabled:
        state = "disabled"
    elif reference.expires_at is None:
        state = "enabled"
    elif reference.expires_at <= datetime.now(UTC):
        state = "expired"
    else:
        state = f"until {reference.expires_at:%Y-%m-%d %H:%M}"
    marks = [mark for mark in ("canary", "confirmed", "shadow") if getattr(reference, mark)]
    return ", ".join([*marks, state])
