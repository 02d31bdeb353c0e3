"""`copysieve calibrate`: learn from the platform's own benign images what scores mean."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import progress
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    ModelOption,
    emit,
    load_settings,
    needs_extra,
    stderr,
    stdout,
    with_model,
)
from worker.errors import StoreError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.evaluation.calibrating import Calibrated
    from worker.evaluation.calibration_report import BankReport, CalibrationReport
    from worker.hotset.types import Bank, Descriptors, Reference

_WAYS = ("none", "centre", "whiten")
_SHOWN = 5
"""Groups of images that are named for a bank on either side of its threshold."""


def calibrate(
    images: Annotated[
        Path,
        typer.Option(metavar="FOLDER|FILE.npz", exists=True,
                     help="Benign images of the platform, 40 at least; or a collection that was "
                     "saved."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.npz", help="Where the calibration goes.")
    ],
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="A page with plots, for each bank.")
    ] = None,
    with_images: Annotated[
        bool,
        typer.Option("--with-images",
                     help="Show in it, small and blurred, the images that score highest."),
    ] = False,
    hot_set: Annotated[
        bool, typer.Option("--hot-set/--no-hot-set", help="Measure the banks that are there.")
    ] = True,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False,
                     help="Which images show one scene: CSV, image,group."),
    ] = None,
    background: Annotated[
        int | None,
        typer.Option(min=1, help="Images of the background; a quarter, 20,000 at most, if unset."),
    ] = None,
    way: Annotated[
        str, typer.Option("--project", metavar="|".join(_WAYS),
                          help="Centre or whiten descriptors before they are compared: evaluate's "
                          "choices `centered` and `whitened`.")
    ] = "none",
    shrinkage: Annotated[
        float, typer.Option(min=0, max=1, help="Of the whitening, towards none of it.")
    ] = 0.5,
    k: Annotated[
        int,
        typer.Option(min=1, help="Nearest background images of an upload, whose mean similarity"
                     " comes off its score: evaluate's choice `normalised`."),
    ] = 3,
    beta: Annotated[
        float | None,
        typer.Option(min=0, max=10, help="How much of it comes off; 0.5, from 1,000 images on 1."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what goes where.")] = 1,
    save: Annotated[
        Path | None,
        typer.Option("--save-collection", metavar="FILE.npz",
                     help="Keep the descriptors, for --images of the next time."),
    ] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn from benign images what a score means, and what a budget of false matches comes to.

    Give it images that the platform has and that are nobody's concern, as they come: 40 at least.
    A quarter is dealt into a *background*, which every upload's score is taken down by, the others
    into a *null*, which says how often benign images reach a score against each bank. For a budget
    the null takes 3,000,000 divided by it: 3,000 groups for 1,000 false matches per million. Images
    of one scene are one group; they are told by bytes, by PDQ, by alignment, or by **--groups**.

    Nothing is changed: `copysieve calibrations apply FILE.npz` puts it to use.

        copysieve calibrate --images benign/ -o calibration.npz --report calibration.html
    """
    if way not in _WAYS:
        raise typer.BadParameter(f"expected one of {', '.join(_WAYS)}", param_hint="--project")
    for path, suffix in ((output, ".npz"), (save, ".npz"), (report, ".html")):
        if path is not None and (path.suffix != suffix or not path.parent.is_dir()):
            raise typer.BadParameter(f"{path}: expected a {suffix} file in a folder that exists")
    if with_images and not images.is_dir():
        raise typer.BadParameter("--with-images needs a folder of images")
    settings = load_settings(config)
    settings = settings.model_copy(update={"model": with_model(settings.model, model)})

    with needs_extra("calibrate"):
        told = _calibrated(
            images, output, report, groups, save, settings,
            {"background": background, "way": way, "shrinkage": shrinkage, "k": k, "beta": beta,
             "seed": seed},
            hot_set=hot_set, with_images=with_images,
        )  # fmt: skip
    _show(told, output, report)
    if as_json:
        emit(_document(told, output))


def _calibrated(
    images: Path,
    output: Path,
    report: Path | None,
    groups: Path | None,
    save: Path | None,
    settings: Settings,
    options: dict[str, Any],
    *,
    hot_set: bool,
    with_images: bool,
) -> "CalibrationReport":
    """Calibrate, and write all files."""
    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import
    from worker.evaluation import (  # noqa: PLC0415
        calibrating,
        calibration_report,
        collecting,
        collection,
        copying,
    )

    if hot_set:
        _reach(settings)
    embedder, wanted = embedders.load(settings.model), calibrating.Options(**options)
    check = partial(calibrating.check, options=wanted)
    with progress.shares() as on_progress:
        found = collecting.read(
            images, settings, embedder, groups, on_progress=on_progress, check=check
        )
    if save is not None:
        collection.save(found, save)
    made = calibrating.calibrate(found, wanted)
    calibrating.write(made, output)
    banks, copies = _banks(made, settings, embedder) if hot_set else ([], 0)
    copied = None
    if report is not None and banks and images.is_dir():
        with progress.counts("copies", min(len(made.null), copying.MOST)) as advance:
            copied = copying.copy_scores(made, images, settings, embedder, advance)
    told = calibration_report.CalibrationReport(
        made=made,
        about=_about(made),
        banks=banks,
        copies=copies,
        copied=copied,
        pictures=images if with_images else None,
    )
    if report is not None:
        calibration_report.write(told, report)
    return told


def _reach(settings: Settings) -> None:
    """See that Redis is there before hours are spent on images. Raises StoreError."""
    from worker.hotset.store import open_store  # noqa: PLC0415

    try:
        open_store(settings.redis).close()
    except StoreError as error:
        raise StoreError(f"{str(error).rstrip('.')}; --no-hot-set does without") from None


def _banks(
    made: "Calibrated", settings: Settings, embedder: "Embedder"
) -> "tuple[list[BankReport], int]":
    """What the calibration makes of each bank that blocks, and how many images are copies."""
    from worker.cli.applying import preview_calibration  # noqa: PLC0415
    from worker.evaluation.calibration_report import BankReport, halves, near, null_of  # noqa: PLC0415
    from worker.hotset.store import open_store  # noqa: PLC0415

    with closing(open_store(settings.redis)) as store, stderr.status("measuring the banks ..."):
        found = preview_calibration(store, settings, embedder, made.calibration)
        if found is None or found.after.masked is None:
            return [], 0
        described: dict[str, list[Any]] = {}
        banks, now = found.after.against.banks, datetime.now(UTC)
        for reference, rows in store.described_references(embedder.model.sha256):
            if reference.bank in banks:
                seen = _enforced(reference, rows, banks[reference.bank], now)
                if seen is not None:
                    described.setdefault(reference.bank, []).append((reference, seen))
        masked, looks = found.after.masked, made.calibration.looks
        reports = []
        for name, rule in found.after.rules.items():
            if rule.state == "allow":
                continue
            own, null = described.get(name, []), null_of(found.after, name, looks)
            alone = [rows for _, rows in own]
            reports.append(
                BankReport(
                    bank=found.after.against.banks[name],
                    rule=rule,
                    unmasked=found.with_copies.rules[name],
                    null=null,
                    references=len(own),
                    halves=halves(masked, alone, looks) if null else None,
                    near=near(made, masked, null, rule.threshold, own) if null else (),
                )
            )
    return reports, found.set_aside


def _enforced(
    reference: "Reference", described: "Descriptors", bank: "Bank", now: datetime
) -> "Descriptors | None":
    """What uploads are compared with of a reference that is enforced."""
    expired = reference.expires_at is not None and reference.expires_at <= now
    if not reference.enabled or reference.canary or reference.shadow or expired:
        return None
    wanted = [view in bank.views for view in described.views]
    views = tuple(view for view in described.views if view in bank.views)
    return replace(described, views=views, rows=described.rows[wanted]) if views else None


def _about(made: "Calibrated") -> dict[str, object]:
    from worker.evaluation.words import counted  # noqa: PLC0415

    one, collection = made.calibration, made.collection
    projection = one.projection
    way = "none" if projection is None else "centre" if projection.matrix is None else "whiten"
    checked = ", ".join(
        f"{means} ({counted(pairs, 'pair')})" for means, pairs in collection.grouping.pairs.items()
    )
    repeated, failed = len(collection.repeated), len(collection.failed)
    groups = counted(len(set(one.groups.tolist())), "group")
    return {
        "model": f"{collection.model.name} ({collection.model.sha256[:12]})",
        "images": f"{len(collection):,}, {repeated:,} more of the same bytes, {failed:,} not read",
        "background": f"{counted(len(made.background), 'image')}, k {one.k}, beta {one.beta:g}",
        "null": f"{counted(len(made.null), 'image')} in {groups}",
        "looks": ", ".join(one.looks),
        "projection": way,
        "groups found by": checked or "nothing: copies and groups were not checked",
    }


def _document(told: "CalibrationReport", output: Path) -> dict[str, Any]:
    return {
        "calibration": told.made.calibration.id,
        "file": str(output),
        "about": dict(told.about),
        "copies_of_references": told.copies,
        "failed": [
            {"image": one.image, "reason": one.reason.value, "detail": one.detail}
            for one in told.made.collection.failed
        ],
        "banks": [one.document() for one in told.banks],
    }


def _show(told: "CalibrationReport", output: Path, report: Path | None) -> None:
    for line in _lines(told):
        stdout.print(line, markup=False, highlight=False)
    stdout.print(
        f"\ncalibration {told.made.calibration.id}: {output}", markup=False, highlight=False
    )
    if report is not None:
        stdout.print(f"report: {report}", markup=False, highlight=False)
    following = f"next: copysieve calibrations apply {output} --budget BANK=N"
    stdout.print(following, markup=False, highlight=False)


def _lines(told: "CalibrationReport") -> Iterator[str]:
    from worker.evaluation.words import counted  # noqa: PLC0415

    for name, value in told.about.items():
        yield f"{name:16} {value}"
    if told.copies:
        verb = "is a copy of a reference" if told.copies == 1 else "are copies of references"
        yield f"{counted(told.copies, 'image')} {verb}: set aside"
    for one in told.banks:
        yield f"\n{one.bank.name}: {counted(one.references, 'reference')}"
        yield from (f"  {sentence}" for sentence in one.sentences)
        yield from _near(one)


def _near(one: "BankReport") -> Iterator[str]:
    """The benign images that score highest, and what they resemble."""
    above, below = ([group for group in one.near if group.reaches is it] for it in (True, False))
    titles = ("reach the threshold", "just below it")
    if one.rule.threshold is None:
        titles = ("", "highest scores")
    for title, groups in zip(titles, (above[:_SHOWN], below[:_SHOWN]), strict=True):
        if groups:
            yield f"  {title}:"
        for group in groups:
            more = f" and {len(group.names) - 1} more of its group" if group.names[1:] else ""
            source = f" ({group.source})" if group.source else ""
            resembles = f"resembles {group.reference_id}{source}"
            yield f"    {group.score:.4f}  {group.names[0]}{more}, {resembles}"
