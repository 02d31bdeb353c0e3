"""`copysieve calibrate`: learn from the platform's own benign images what scores mean."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

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
from worker.errors import StartupError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.evaluation.calibrating import Calibrated
    from worker.evaluation.calibration_report import BankReport, CalibrationReport

_WAYS = ("none", "centre", "whiten")


def calibrate(
    images: Annotated[
        Path,
        typer.Option(metavar="FOLDER|FILE.npz", exists=True,
                     help="Benign images of the platform; or a collection saved before."),
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
                     help="Show in it, small and blurred, the images that set a threshold."),
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
                          help="Centre or whiten descriptors before they are compared.")
    ] = "none",
    shrinkage: Annotated[
        float, typer.Option(min=0, max=1, help="Of the whitening, towards none of it.")
    ] = 0.5,
    k: Annotated[int, typer.Option(min=1, help="Nearest background images of the offset.")] = 3,
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

    Give it images that the platform has and that are nobody's concern, as they come: some hundreds
    tell a rate of one in a hundred, and it takes three million to tell one in a million. They are
    dealt into a *background*, which every upload's score is taken down by, and a *null*, which says
    how often benign images reach a score against each bank. Images of one scene count once; they
    are told by their bytes, by PDQ, by alignment, or by **--groups**.

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

    embedder = embedders.load(settings.model)
    with _shares() as on_progress:
        found = collecting.read(images, settings, embedder, groups, on_progress=on_progress)
    if save is not None:
        try:
            collection.save(found, save)
        except OSError as error:
            raise StartupError(f"{save}: {error.strerror or 'cannot be written'}") from None
    made = calibrating.calibrate(found, calibrating.Options(**options))
    calibrating.write(made, output)
    banks, copies = _banks(made, settings, embedder) if hot_set else ([], 0)
    scores: dict[str, Any] = {}
    if report is not None and banks and images.is_dir():
        with _counts("copies", min(len(made.null), copying.MOST)) as advance:
            scores["copy_scores"] = copying.copy_scores(made, images, settings, embedder, advance)
    told = calibration_report.CalibrationReport(
        made=made,
        about=_about(made),
        banks=banks,
        copies=copies,
        pictures=images if with_images else None,
        **scores,
    )
    if report is not None:
        calibration_report.write(told, report)
    return told


def _banks(
    made: "Calibrated", settings: Settings, embedder: "Embedder"
) -> "tuple[list[BankReport], int]":
    """What the calibration makes of each bank that blocks, and how many images are copies."""
    from worker.cli.applying import preview_calibration  # noqa: PLC0415
    from worker.evaluation.calibration_report import BankReport, halves, setting  # noqa: PLC0415
    from worker.hotset.store import open_store  # noqa: PLC0415

    with closing(open_store(settings.redis)) as store, stderr.status("measuring the banks ..."):
        found = preview_calibration(store, settings, embedder, made.calibration)
        if found is None or found.after.masked is None:
            return [], 0
        described: dict[str, list[Any]] = {}
        for reference, rows in store.described_references(embedder.model.sha256):
            if reference.enabled and not (reference.canary or reference.shadow):
                described.setdefault(reference.bank, []).append(rows)
        masked, looks = found.after.masked, made.calibration.looks
        reports = [
            BankReport(
                bank=found.after.against.banks[name],
                rule=rule,
                unmasked=found.with_copies.rules[name],
                references=len(own := described.get(name, [])),
                halves=halves(masked, own, looks) if rule.null is not None else None,
                setting=setting(made, masked, rule),
            )
            for name, rule in found.after.rules.items()
            if rule.state != "allow"
        ]
    return reports, found.set_aside


def _about(made: "Calibrated") -> dict[str, object]:
    one, collection = made.calibration, made.collection
    projection = one.projection
    way = "none" if projection is None else "centred" if projection.matrix is None else "whitened"
    checked = ", ".join(f"{m} ({n} pairs)" for m, n in collection.grouping.pairs.items())
    repeated, failed = len(collection.repeated), len(collection.failed)
    return {
        "model": f"{collection.model.name} ({collection.model.sha256[:12]})",
        "images": f"{len(collection)}, {repeated} more of the same bytes, {failed} not read",
        "background": f"{len(made.background)} images, k {one.k}, beta {one.beta:g}",
        "null": f"{len(made.null)} images in {len(set(one.groups.tolist()))} groups",
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
    for name, value in told.about.items():
        stdout.print(f"{name:16} {value}", markup=False, highlight=False)
    if told.copies:
        line = f"{told.copies} images are copies of references, and set aside"
        stdout.print(line, highlight=False)
    for one in told.banks:
        stdout.print(f"\n{one.bank.name}", style="bold", markup=False, highlight=False)
        for sentence in one.sentences:
            stdout.print(f"  {sentence}", markup=False, highlight=False)
    stdout.print(
        f"\ncalibration {told.made.calibration.id}: {output}", markup=False, highlight=False
    )
    if report is not None:
        stdout.print(f"report: {report}", markup=False, highlight=False)
    stdout.print(f"next: copysieve calibrations apply {output}", markup=False, highlight=False)


@contextmanager
def _shares() -> Iterator[Callable[[str, float], object]]:
    """A bar for each thing that is done, by the share of it."""
    with _bar() as progress:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        yield on_progress


@contextmanager
def _counts(what: str, total: int) -> Iterator[Callable[[int], object]]:
    with _bar() as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
