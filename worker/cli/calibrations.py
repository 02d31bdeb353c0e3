"""`copysieve calibrations`: what scores and budgets go by."""

import hashlib
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from worker.cli import waiting
from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr, stdout
from worker.cli.mirroring import model_sha256
from worker.cli.waiting import ByOption, TimeoutOption, WaitOption
from worker.errors import StartupError, StoreError
from worker.hotset.store import NO_CALIBRATION, Store, open_store
from worker.records import Version
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.scoring.calibration import Calibration

app = typer.Typer(
    name="calibrations", no_args_is_help=True, help="Calibrations: what scores and budgets go by."
)

Which = Annotated[str, typer.Argument(metavar="ID|FILE", help="Of `list`, or of `calibrate`.")]
_NONE = NO_CALIBRATION.decode()


@app.command("list")
def list_calibrations(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell all calibrations that the store keeps, oldest first, and which are applied."""
    with closing(open_store(load_settings(config).redis)) as store:
        current, models = store.current_calibrations(), store.models()
        kept = store.calibrations()
    rows = [
        one.model_dump(mode="json")
        | {"model": models.get(one.model_sha256), "applied": one.calibration_id in current.values()}
        for one in kept
    ]
    if as_json:
        emit(rows)
        return
    table = Table("calibration", "applied", "model", "MB", "added", "by", box=None)
    for row, one in zip(rows, kept, strict=True):
        table.add_row(
            one.calibration_id,
            "yes" if row["applied"] else "",
            row["model"] or one.model_sha256[:12],
            f"{one.size / 1e6:.1f}",
            f"{one.added_at:%Y-%m-%d %H:%M}",
            one.added_by,
        )
    stdout.print(table)


@app.command()
def show(which: Which, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell what a calibration was made of, and which budgets it can support."""
    with closing(open_store(load_settings(config).redis)) as store:
        found = _document(_read(which, store))
    if as_json:
        emit(found)
        return
    for name, value in found.items():
        listed = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        stdout.print(f"{name.replace('_', ' '):28} {listed}", markup=False, highlight=False)


@app.command()
def apply(
    which: Annotated[
        str, typer.Argument(metavar="ID|FILE|none", help="Of `list`, or of `calibrate`.")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Even if banks have thresholds for another one.")
    ] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score by a calibration from now on, in all replicas at once.

    Tells first what each bank will match at. Its images that are copies of references, by their
    bytes or by PDQ, are set aside with it. A bank's plain threshold holds for the calibration that
    it was set for: where one would match nothing from then on, this is refused.
    """
    settings = load_settings(config)

    def change(store: Store) -> Version:
        return _apply(store, settings, None if which == _NONE else which, force=force)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def rollback(
    force: Annotated[
        bool, typer.Option("--force", help="Even if banks have thresholds for another one.")
    ] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply again what was applied before the current calibration."""
    settings = load_settings(config)

    def change(store: Store) -> Version:
        previous = store.previous_calibration_of(model_sha256(settings.model))
        if previous is None:
            raise StoreError("no calibration was applied yet: there is nothing to go back to")
        return _apply(store, settings, None if previous == _NONE else previous, force=force)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


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
    what is set aside for its score is what the budget is measured by.
    """
    digests = {_digest(image) for image in images}

    def change(store: Store) -> Version:
        reference = store.reference(reference_id)
        if reference is None:
            raise StoreError(f"there is no reference {reference_id}")
        known = set(reference.copies)
        copies = known - digests if remove else known | digests
        return store.set_copies({reference_id: sorted(copies)})

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


def _apply(store: Store, settings: Settings, which: str | None, *, force: bool) -> Version:
    from worker.cli import applying  # noqa: PLC0415 - imports torch
    from worker.descriptor import embedders  # noqa: PLC0415
    from worker.scoring import artefact  # noqa: PLC0415

    with stderr.status("comparing with the hot set ..."):
        embedder = embedders.load(settings.model)
        calibration = None
        if which is not None:
            calibration = artefact.read_for(_read(which, store).artefact, embedder.model)
        found = applying.preview(store, settings, embedder, calibration)
    if found is None:
        raise StoreError("there is no hot set yet: `copysieve banks set`, then `refs add`")
    applying.tell(found)
    if found.pinned and not force:
        raise StoreError(
            f"{', '.join(found.pinned)} would match nothing, for the threshold is of another "
            "calibration: give a budget instead, or --force and set it anew"
        )
    sha256 = embedder.model.sha256
    at = found.applied.against.version
    if calibration is None:
        return store.apply_calibration(None, sha256, at=at)
    store.keep_calibration(calibration.artefact, sha256)
    return store.apply_calibration(calibration.id, sha256, found.copies, at)


def _read(which: str, store: Store) -> "Calibration":
    """A calibration of a file, or one that the store keeps."""
    from worker.scoring import artefact  # noqa: PLC0415 - imports torch

    path = Path(which)
    if path.is_file():
        try:
            return artefact.read(path.read_bytes())
        except StoreError as error:
            raise StartupError(f"{path}: {error}") from None
    return artefact.read(store.artefact(which))


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
        "lowest_budget_per_million": round(3e6 / groups, 1),
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
