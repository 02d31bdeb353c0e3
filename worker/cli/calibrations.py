"""`copysieve calibrations`: what scores and budgets go by."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from worker.cli import admissible, waiting
from worker.cli import banks as banks_of
from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr, stdout
from worker.cli.mirroring import model_sha256
from worker.cli.waiting import ByOption, TimeoutOption, WaitOption
from worker.errors import StartupError, StoreError
from worker.hotset.store import NO_CALIBRATION, Store, open_store
from worker.hotset.types import Bank
from worker.records import Version
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.scoring.calibration import Calibration

app = typer.Typer(
    name="calibrations", no_args_is_help=True, help="Calibrations: what scores and budgets go by."
)

Which = Annotated[
    str,
    typer.Argument(
        metavar="ID|FILE", help="Of `list`, where its first letters do, or of `calibrate`."
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Even if a bank then matches less than now.")
]
_NONE = NO_CALIBRATION.decode()
_LEAST_GROUPS = 3
"""With so many the lowest budget would be every image."""
_COPIES_AT_ONCE = 1000
"""References whose copies are noted in the same change; of more they are noted before."""

type Policy = Mapping[str, float]


@app.command("list")
def list_calibrations(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell all calibrations that the store keeps, oldest first, and which are applied.

    `rollback` applies the previous one.
    """
    with closing(open_store(load_settings(config).redis)) as store:
        current, models = store.current_calibrations(), store.models()
        kept = store.calibrations()
        previous = _previous(store)
    rows = [
        one.model_dump(mode="json")
        | {
            "model": models.get(one.model_sha256),
            "applied": one.calibration_id in current.values(),
            "previous": one.calibration_id in previous,
        }
        for one in kept
    ]
    if as_json:
        emit(rows)
        return
    table = Table("calibration", "applied", "model", "MB", "added", "by", box=None)
    for row, one in zip(rows, kept, strict=True):
        table.add_row(
            one.calibration_id,
            "yes" if row["applied"] else "previous" if row["previous"] else "",
            row["model"] or one.model_sha256[:12],
            f"{one.size / 1e6:.1f}",
            f"{one.added_at:%Y-%m-%d %H:%M}",
            one.added_by,
        )
    stdout.print(table)
    if _NONE in previous:
        stdout.print("rollback goes back to none")


def _previous(store: Store) -> set[str | None]:
    """What `rollback` goes back to, of every model that has a calibration."""
    return {store.previous_calibration_of(of) for of in store.current_calibrations()}


@app.command()
def show(which: Which, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell what a calibration was made of, and which budgets it can support.

    As it was made: images that are copies of references are set aside in the hot set, not in it.
    """
    with closing(open_store(load_settings(config).redis)) as store:
        found = _document(_read(which, store))
    if as_json:
        emit(found)
        return
    for name, value in found.items():
        listed = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        listed = "none" if listed is None else listed
        stdout.print(f"{name.replace('_', ' '):28} {listed}", markup=False, highlight=False)


@app.command()
def apply(
    which: Annotated[
        str, typer.Argument(metavar="ID|FILE|none", help="Of `list`, or of `calibrate`.")
    ],
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="BANK=N",
            help="Give a bank this budget of false matches per million with it; repeatable.",
        ),
    ] = None,
    thresholds: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            metavar="BANK=SCORE",
            help="Or this threshold, in its scores; repeatable.",
        ),
    ] = None,
    force: ForceOption = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score by a calibration from now on, in all replicas at once.

    Tells first what each bank will match at. Its images that are copies of references, by their
    bytes or by PDQ, are set aside with it. A threshold holds for the calibration that it was set
    for: give such banks a budget, or a new threshold, in the same change.

    Refused where a bank would then match less than now: nothing at all, or only in shadow.
    """
    settings = load_settings(config)
    rules: dict[str, Policy] = {
        name: {"max_false_matches_per_million": value}
        for name, value in _pairs(budgets, "--budget")
    }
    for name, value in _pairs(thresholds, "--threshold"):
        if name in rules:
            raise typer.BadParameter(f"{name}: a bank has a threshold or a budget, not both")
        rules[name] = {"threshold": value}

    def change(store: Store) -> Version:
        advice = (
            "give it a threshold with it (--threshold BANK=SCORE)"
            if which == _NONE
            else "give it a budget that is supported, or a threshold, with it (--budget BANK=N, "
            "--threshold BANK=SCORE)"
        )
        of = None if which == _NONE else which
        return _apply(store, settings, of, rules, None if force else advice)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def rollback(
    force: ForceOption = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply again what was applied before the current calibration.

    The banks stay as they are. `apply ID --budget BANK=N` changes both.
    """
    settings = load_settings(config)

    def change(store: Store) -> Version:
        previous = store.previous_calibration_of(model_sha256(settings.model))
        if previous is None:
            raise StoreError("no calibration was applied yet: there is nothing to go back to")
        which = None if previous == _NONE else previous
        advice = f"`calibrations apply {previous}` takes thresholds and budgets with it"
        version = _apply(store, settings, which, {}, None if force else advice)
        stdout.print(f"back to {previous}", highlight=False)
        return version

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def remove(
    which: Which,
    force: Annotated[
        bool, typer.Option("--force", help="Even if `rollback` would go back to it.")
    ] = False,
    by: ByOption = None,
    config: ConfigOption = None,
) -> None:
    """Keep a calibration no longer. One that is applied stays."""
    with closing(open_store(load_settings(config).redis, by or waiting.user())) as store:
        calibration_id = _kept(which, store)
        if not force and calibration_id in _previous(store):
            raise StoreError(f"`rollback` would go back to {calibration_id}: --force removes it")
        store.remove_calibration(calibration_id)
    stdout.print(f"removed {calibration_id}", highlight=False)


@app.command()
def mask(
    reference_id: Annotated[str, typer.Argument(metavar="REFERENCE")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Files, or digests (sha256 in hex).")
    ],
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help="They are no copies of it after all. What PDQ takes for one is marked again by the"
            " next apply.",
        ),
    ] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that benign images are copies of a reference: they count as benign no more.

    For those that neither their bytes nor PDQ tell; look at them first. A high score is no reason:
    what is set aside for its score is what the budget is measured by. They count for no bank, and
    `banks list` tells what that has changed.
    """
    digests = {_digest(image): image for image in images}

    def change(store: Store) -> Version:
        reference = store.reference(reference_id)
        if reference is None:
            raise StoreError(f"there is no reference {reference_id}")
        if not remove and (unknown := digests.keys() - _images(store)):
            names = ", ".join(sorted(digests[digest] for digest in unknown))
            raise StoreError(f"not among the images of a calibration that is applied: {names}")
        known = set(reference.copies)
        copies = known - digests.keys() if remove else known | digests.keys()
        told = f"{reference_id}: benign images set aside {len(copies)}, before {len(known)}"
        stdout.print(told, markup=False, highlight=False)
        return store.set_copies({reference_id: sorted(copies)})

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


def _images(store: Store) -> set[str]:
    """Digests of the images of the calibrations that are applied."""
    applied = (_read(one, store).benign for one in store.current_calibrations().values())
    return {name for benign in applied if benign for name in benign.names}


def _pairs(given: list[str] | None, option: str) -> Iterator[tuple[str, float]]:
    """Banks and numbers. Raises BadParameter."""
    for one in given or ():
        name, _, number = one.partition("=")
        try:
            yield name, float(number)
        except ValueError:
            raise typer.BadParameter(f"{one}: expected BANK=NUMBER", param_hint=option) from None


def _apply(
    store: Store,
    settings: Settings,
    which: str | None,
    rules: Mapping[str, Policy],
    advice: str | None,
) -> Version:
    """Look ahead, and apply. Raises StoreError, with the advice, where a bank would match less.

    Without advice nothing is refused.
    """
    from worker.cli import applying  # noqa: PLC0415 - imports torch
    from worker.descriptor import embedders  # noqa: PLC0415
    from worker.scoring import artefact  # noqa: PLC0415

    with stderr.status("comparing with the hot set ..."):
        embedder = embedders.load(settings.model)
        calibration = None
        if which is not None:
            calibration = artefact.read_for(_read(which, store).artefact, embedder.model)
        banks = _changed(store.banks(), rules, calibration.id if calibration else None)
        found = applying.preview_calibration(store, settings, embedder, calibration, banks)
    if found is None:
        raise StoreError("there is no hot set yet: `copysieve banks set`, then `refs add`")
    applying.tell(found)
    if advice is not None:
        found.refuse_less(advice)
        for name in rules:
            admissible.refuse_useless(found.after, name)
    for name in rules:
        before, after = (
            admissible.enforced_threshold(one.against.banks.get(name), one.rules.get(name))
            for one in (found.before, found.after)
        )
        known = calibration.id if calibration else None
        admissible.try_on_recent(store, name, known, before, after, force=advice is None)
    if len(new := _unnoted(store, found.copies)) > _COPIES_AT_ONCE:
        store.set_copies(new)
        return _apply(store, settings, which, rules, advice)
    sha256 = embedder.model.sha256
    at = found.after.against.version
    if calibration is None:
        return store.apply_calibration(None, sha256, at=at, banks=banks)
    store.keep_calibration(calibration.artefact, sha256)
    return store.apply_calibration(calibration.id, sha256, found.copies, at, banks)


def _unnoted(store: Store, copies: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """Those that the references do not name as yet."""
    known = {one.reference_id: one.copies for one in store.references()}
    return {name: found for name, found in copies.items() if known.get(name) != found}


def _changed(
    known: Mapping[str, Bank], rules: Mapping[str, Policy], calibration: str | None
) -> list[Bank]:
    """The banks with other rules. Raises BadParameter."""
    if missing := rules.keys() - known.keys():
        raise typer.BadParameter(f"there is no bank {', '.join(sorted(missing))}")
    return [banks_of.changed(name, known[name], rule, calibration) for name, rule in rules.items()]


def _read(which: str, store: Store) -> "Calibration":
    """A calibration of a file, or one that the store keeps."""
    from worker.scoring import artefact  # noqa: PLC0415 - imports torch

    path = Path(which)
    if path.is_file():
        try:
            return artefact.read(path.read_bytes())
        except StoreError as error:
            raise StartupError(f"{path}: {error}") from None
    return artefact.read(store.artefact(_kept(which, store)))


def _kept(which: str, store: Store) -> str:
    """The id of a calibration that is kept, from its first letters."""
    found = [
        one.calibration_id
        for one in store.calibrations()
        if one.calibration_id.startswith(which or "-")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"{which} may be {' or '.join(found)}")
    raise StoreError(f"{which} is neither a file nor a calibration that the store keeps")


def _document(one: "Calibration") -> dict[str, Any]:
    groups = len(set(one.groups.tolist()))
    projection = one.projection
    way = "none" if projection is None else "centre" if projection.matrix is None else "whiten"
    return {
        "calibration": one.id,
        "model_sha256": one.model_sha256,
        "made_at": one.made_at,
        "looks": one.looks,
        "projection": way,
        "k": one.k,
        "beta": one.beta,
        "background_images": len(one.background),
        "null_images": len(one.null),
        "null_groups": groups,
        "lowest_budget_per_million": ceil(3e6 / groups) if groups > _LEAST_GROUPS else None,
        "copies_can_be_told": one.benign is not None,
        "groups_checked_by": one.checked or ("nothing",),
    }


def _digest(image: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", image):
        return image
    path = Path(image)
    if not path.is_file():
        raise typer.BadParameter(f"{image}: neither a file nor a sha256 in hex")
    return hashlib.sha256(path.read_bytes()).hexdigest()
