"""`copysieve refs import` and `refs export`: whole hot sets, with their descriptors, as files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import batched, chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from worker.cli import waiting
from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr, stdout
from worker.cli.progress import counts
from worker.cli.waiting import ByOption, TimeoutOption, WaitOption, user
from worker.errors import StoreError
from worker.hotset import exchange
from worker.hotset.exchange import Archive
from worker.hotset.store import Added, Store, open_store
from worker.hotset.types import Descriptors, Reference
from worker.records import Model, Version

if TYPE_CHECKING:
    from worker.scoring.calibration import Calibration

FORMATS = ".jsonl, .jsonl.gz, .npz, .parquet"

type Banks = Literal["keep", "replace"]


def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=f"One of {FORMATS}.")],
    banks: Annotated[
        Banks, typer.Option(help="Where a bank is there with another policy.")
    ] = "keep",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read it all, and tell what would be done.")
    ] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the references of a file that `refs export` wrote, with their descriptors and banks.

    The whole file is read, and compared with the store, before anything is written: one with a bad
    record, or an id that another bank or image has, adds nothing. References that are there already
    with the same content are left as they are, so an import that was interrupted is simply run
    again.
    """
    archive = Archive(file)
    with counts("reading") as advance:
        total = sum(1 for _ in _counted(archive.references(), advance))
    with closing(open_store(load_settings(config).redis, by or user())) as store:
        _warn_of_model(store, archive.model)
        _warn_of_thresholds(store, archive, banks)
        planned = _compare(store, archive, total)
        if dry_run:
            _tell_plan(store, archive, banks, planned, as_json=as_json)
            return
        _set_banks(store, archive, banks)
        done = _import(store, archive, total)
        stdout.print(
            f"added {done.added}, replaced {done.replaced}, unchanged {done.unchanged}"
            f"; version {done.version}",
            highlight=False,
        )
        waited = waiting.wait_for(store, done.version, timeout) if wait else None
    if waited:
        waiting.tell(waited)
    if as_json:
        told = waited.document() if waited else None
        emit(asdict(done) | {"version": str(done.version), "waited": told})
    if waited and waited.late:
        raise typer.Exit(1)


def _import(store: Store, archive: Archive, total: int) -> Added:
    done = Added(Version(0, 0), 0, 0, 0)
    calibration = _calibration(store, archive.model)
    calibration_id = calibration.id if calibration else None
    with counts("importing", total) as advance:
        try:
            for some in _described(archive, calibration):
                one = store.add_references(some, archive.model, calibration_id)
                done = Added(
                    one.version,
                    done.added + one.added,
                    done.replaced + one.replaced,
                    done.unchanged + one.unchanged,
                )
                advance(len(some))
        except KeyboardInterrupt:
            came = done.added + done.replaced + done.unchanged
            line = f"interrupted after {came} of {total} references: run it again to go on"
            raise StoreError(line) from None
    return done if total else Added(store.version(), 0, 0, 0)


def _calibration(store: Store, model: Model) -> "Calibration | None":
    """The current one of the file's model."""
    if (current := store.calibration_of(model.sha256)) is None:
        return None
    from worker.scoring import artefact  # noqa: PLC0415 - imports torch

    return artefact.read_for(store.artefact(current), model)


def _described(
    archive: Archive, calibration: "Calibration | None"
) -> Iterator[list[tuple[Reference, Descriptors]]]:
    """What a file has, in parts, each reference with the benign images that are copies of it."""
    for some in batched(archive.references(), exchange.AT_ONCE):
        if calibration is None:
            yield list(some)
            continue
        from worker.evaluation.copies import with_copies  # noqa: PLC0415 - imports torch

        noted = with_copies([one for one, _ in some], calibration.benign)
        yield [(one, rows) for one, (_, rows) in zip(noted, some, strict=True)]


def _compare(store: Store, archive: Archive, total: int) -> tuple[int, int, int]:
    """How many would be added, replaced, left unchanged. Raises StoreError as the import would."""
    banks, sums = {bank.name for bank in archive.header.banks}, (0, 0, 0)
    calibration = _calibration(store, archive.model)
    with counts("comparing", total) as advance:
        for some in _described(archive, calibration):
            new, changed, same = store.would_add(some, archive.model, banks)
            sums = sums[0] + new, sums[1] + changed, sums[2] + same
            advance(len(some))
    return sums


def _tell_plan(
    store: Store, archive: Archive, banks: Banks, planned: tuple[int, int, int], *, as_json: bool
) -> None:
    """What an import would do."""
    there = store.banks()
    for bank in archive.header.banks:
        if bank != (old := there.get(bank.name)) and (old is None or banks == "replace"):
            what = "new" if old is None else "its policy would be replaced"
            stdout.print(f"bank {bank.name}: {what}", markup=False, highlight=False)
    added, replaced, unchanged = planned
    stdout.print(
        f"would add {added}, replace {replaced}, leave {unchanged} unchanged", highlight=False
    )
    if as_json:
        emit({"dry_run": True, "added": added, "replaced": replaced, "unchanged": unchanged})


def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help=f"One of {FORMATS}.")],
    bank: Annotated[str | None, typer.Option(help="Of this bank alone.")] = None,
    model: Annotated[
        str | None, typer.Option(help="By which model: name or digest. Needed if there are some.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write references, with their banks and descriptors by one model, to a file.

    `refs import` reads it back to the same set. Descriptors are sensitive: only the file's owner
    can read it. References that the model has not described are left out and counted; then the
    exit code is 1. Changes meanwhile may be in it or not.
    """
    with closing(open_store(load_settings(config).redis)) as store:
        sha256, name = _chosen(store.models(), model)
        banks = [one for one in store.banks().values() if bank in (None, one.name)]
        if not banks:
            raise StoreError(f"there is no bank {bank}" if bank else "there is no bank")
        total = len(store.references(bank))
        described = (
            one for one in store.described_references(sha256) if bank in (None, one[0].bank)
        )
        first = next(described, None)
        if first is None:
            raise StoreError(f"no reference is described by {name}")
        told = Model(name, sha256, first[1].rows.shape[1], preprocessing="")
        try:
            with counts("exporting", total) as advance:
                everything = _counted(chain([first], described), advance)
                written = exchange.write(file, told, banks, everything)
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror or error}") from None
    left_out = max(0, total - written)
    stdout.print(f"{written} references, {len(banks)} banks to {file}", highlight=False)
    if left_out:
        stderr.print(f"{left_out} left out: {name} has not described them", markup=False)
    if as_json:
        emit({"references": written, "banks": len(banks), "left_out": left_out, "model": sha256})
    if left_out:
        raise typer.Exit(1)


def _counted[T](values: Iterable[T], advance: Callable[[int], object]) -> Iterator[T]:
    for value in values:
        yield value
        advance(1)


def _chosen(models: dict[str, str], wanted: str | None) -> tuple[str, str]:
    """Digest and name of the model that is meant."""
    found = {
        sha256: name
        for sha256, name in models.items()
        if wanted is None or name == wanted or sha256.startswith(wanted)
    }
    if len(found) != 1:
        there = ", ".join(f"{name} ({sha256[:12]})" for sha256, name in models.items()) or "none"
        raise StoreError(f"--model: which one? Descriptors here are by: {there}")
    return next(iter(found.items()))


def _warn_of_model(store: Store, model: Model) -> None:
    foreign = [beat.name for beat in store.heartbeats() if beat.model != model.sha256]
    if foreign:
        line = f"these are by {model.name}; another model runs on {', '.join(foreign)}"
        stderr.print(line, style="yellow", markup=False, highlight=False)


def _warn_of_thresholds(store: Store, archive: Archive, banks: Banks) -> None:
    current, there = store.calibration_of(archive.model.sha256), store.banks()
    for bank in archive.header.banks:
        if bank.name in there and banks == "keep":
            continue
        if bank.threshold is not None and bank.calibration != current:
            of = "cosines" if bank.calibration is None else f"calibration {bank.calibration}"
            line = f"bank {bank.name}: its threshold is of {of}, not of what is applied here"
            stderr.print(line, style="yellow", markup=False, highlight=False)


def _set_banks(store: Store, archive: Archive, banks: Banks) -> None:
    there = store.banks()
    for bank in archive.header.banks:
        old = there.get(bank.name)
        if old is not None and old != bank and banks == "keep":
            line = f"bank {bank.name} keeps its policy, which is not the file's"
            stderr.print(line, style="yellow", markup=False, highlight=False)
        elif old != bank:
            store.set_bank(bank)


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("import")(import_)
    app.command()(export)
