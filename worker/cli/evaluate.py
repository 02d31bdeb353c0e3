"""`copysieve evaluate`: how well copies are found, on somebody's own images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from worker.cli.common import (
    ConfigOption,
    JsonOption,
    emit,
    load_settings,
    stderr,
    stdout,
    with_model,
)
from worker.errors import StartupError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.evaluation.experiment import Findings
    from worker.evaluation.gallery import System

_PACKAGES = {"cv2", "jinja2", "markupsafe", "matplotlib"}


class Benign(StrEnum):
    """In which form the benign pictures come."""

    EDITED = "edited"
    UNEDITED = "unedited"


@dataclass(frozen=True, slots=True)
class _Plan:
    """The options that both ways to evaluate have."""

    settings: Settings
    models: Sequence[str]
    choices: Sequence[str]
    seed: int
    replicates: int
    nearest: int
    k: int
    beta: float | None


def evaluate(
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False,
                     help="Your own pictures, 20 scenes or more; some hundreds tell something."),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False,
                     help="Of a set that is labelled already: the references,"),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False, help="the queries,"),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False,
                     help="which is a copy of which: CSV, query_id,reference_id,"),
    ] = None,
    background: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False,
                     help="and benign pictures, for choices that learn from them."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="FILE|NAME",
                     help="A model file, or a name of `models list`. Several are compared."),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", metavar="NAME[+NAME...]",
                     help="cosine, centered, whitened, normalised, views, pdq, pdq_dihedral, phash,"
                     " or several with + between. Again for more; a good dozen by default."),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option("--edit", metavar="NAME", help="Only this edit. Again for more."),
    ] = None,
    splits: Annotated[int, typer.Option(min=1, help="How often roles are dealt anew.")] = 20,
    most: Annotated[int, typer.Option(min=20, help="Pictures at most, chosen by --seed.")] = 2000,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False,
                     help="Which pictures show one scene: CSV, image,group."),
    ] = None,
    benign: Annotated[
        Benign, typer.Option(help="Benign pictures in all forms that copies have, or as they are.")
    ] = Benign.EDITED,
    k: Annotated[int, typer.Option(min=1, help="Of the background, for `normalised`.")] = 3,
    beta: Annotated[
        float | None,
        typer.Option(min=0, help="For `normalised`; 0.5, and 1 with a background of 1,000."),
    ] = None,
    nearest: Annotated[
        int, typer.Option(min=1, help="References predicted for a query, for precision and uAP.")
    ] = 5,
    replicates: Annotated[
        int, typer.Option(min=2, help="Resamplings that intervals are made of.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is left to chance.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A page with plots.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure how many copies are found, and at the price of how many false positives.

    With **--images**, your pictures are dealt into references, benign pictures, and those that a
    choice learns from, by scene, over and over. Copies are made of the references: re-encoded,
    cropped, captioned, as screenshots, pasted into another picture. Every picture and every copy is
    described once; a few hundred pictures take some minutes.

    With **--references --queries --truth** (and **--background**) nothing is edited: a set such as
    DISC2021 is measured as it was labelled.

    What the figures mean, and the table of the edits: docs/evaluation.md.

        copysieve evaluate --images uploads/ --model sscd_disc_mixup_int8 --output report.html

        copysieve evaluate --images uploads/ --choice cosine --choice whitened+views --json
    """
    if output is not None and (output.suffix != ".html" or not output.parent.is_dir()):
        raise typer.BadParameter(f"{output}: expected a .html file in a folder that exists")
    labelled = (references, queries, truth)
    if (images is None) == (None in labelled) or (images and any((*labelled, background))):
        raise typer.BadParameter("expected --images, or --references, --queries and --truth")
    settings = load_settings(config)
    plan = _Plan(settings, model or [], choice or [], seed, replicates, nearest, k, beta)
    try:
        if images is not None:
            own = _Own(images, groups, edit or [], splits, most, benign.value)
            found = _of_own(own, plan)
        else:
            assert references and queries and truth  # noqa: PT018, S101 - checked above
            found = _of_labelled(references, queries, background, truth, plan)
        if output is not None:
            from worker.evaluation import report  # noqa: PLC0415 - the extra's packages

            report.write(found, output)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise StartupError(
            f"evaluate needs the package {error.name}: install copysieve[evaluate]"
        ) from None
    _show(found)
    if output is not None:
        stderr.print(f"report: {output}", markup=False, highlight=False)
    if as_json:
        emit(found.document())


@dataclass(frozen=True, slots=True)
class _Own:
    """What there is beside, where the pictures are the user's own."""

    images: Path
    groups: Path | None
    edits: Sequence[str]
    splits: int
    most: int
    benign: Any


def _of_own(own: _Own, plan: _Plan) -> "Findings":
    import numpy as np  # noqa: PLC0415 - so that usage answers at once

    from worker.evaluation import describing, experiment, groups, splits  # noqa: PLC0415
    from worker.evaluation.choices import Normalisation  # noqa: PLC0415
    from worker.evaluation.edits import EDITS  # noqa: PLC0415
    from worker.evaluation.gallery import Comparing  # noqa: PLC0415
    from worker.image.files import walk  # noqa: PLC0415

    unknown = [name for name in own.edits if name not in EDITS]
    if unknown:
        raise typer.BadParameter(f"no such edit: {unknown[0]!r}", param_hint="--edit")
    edits = [EDITS[name] for name in own.edits or EDITS]
    systems, embedders = _systems(plan, background=True)
    files = list(walk([own.images]))
    if len(files) > own.most:
        chosen = np.random.default_rng(plan.seed).choice(len(files), own.most, replace=False)
        files = [files[number] for number in np.sort(chosen)]
    with _progress("reading", len(files)) as advance:
        pictures, left_out = describing.read(files, plan.settings, advance)
    if not pictures:
        raise StartupError(f"{own.images}: there is no picture that can be read")
    with _shares() as on_progress:
        grouping = groups.group(describing.fingerprints(pictures), on_progress)
    if own.groups is not None:
        known: dict[str, int | None] = {
            one.file.relative_to(own.images).as_posix(): None for one in left_out
        }
        for number, picture in enumerate(pictures):
            known[picture.file.relative_to(own.images).as_posix()] = number
        grouping = groups.join(grouping, groups.read_groups(own.groups, known))
    hosts = splits.hosts(grouping.groups, plan.seed)
    with _progress("describing copies", len(pictures)) as advance:
        gallery = describing.describe(
            pictures, grouping.groups, hosts, edits, embedders, plan.settings, plan.seed, advance
        )
    dealt = splits.make(grouping.groups, hosts, own.splits, plan.seed)
    comparing = Comparing(Normalisation(plan.k, plan.beta), plan.nearest, own.benign)
    with _progress("comparing", len(dealt)) as advance:
        trials = experiment.run(gallery, systems, dealt, comparing, advance)
    scenes = int(grouping.groups.max()) + 1
    one = dealt[0]
    facts = _facts(plan, embedders) | {
        "pictures": len(pictures),
        "scenes": scenes,
        "grouped_by": dict(grouping.pairs),
        "splits": own.splits,
        "edits": [edit.name for edit in edits],
        "benign": own.benign,
        "left_out": [{"file": str(out.file), "reason": out.reason} for out in left_out],
    }
    about = _about(facts) | {
        "pictures": f"{len(pictures)} of {scenes} scenes, {len(left_out)} files left out",
        "each of the splits": f"{len(one.references)} references with {len(edits)} copies each, "
        f"{len(one.negatives)} negatives, background of {len(one.background)}, "
        f"null of {len(one.null)}",
        "splits": f"{own.splits}, by scene, seed {plan.seed}",
        "benign queries": {
            "edited": "in all forms, as copies are",
            "unedited": "as they are",
        }[own.benign],
    }
    resampling = experiment.Resampling(plan.replicates, plan.seed)
    with _progress("resampling", plan.replicates) as advance:
        return experiment.told(gallery, trials, resampling, facts, about, advance)


def _of_labelled(
    references: Path, queries: Path, background: Path | None, truth: Path, plan: _Plan
) -> "Findings":
    from worker.evaluation import experiment, labelled  # noqa: PLC0415
    from worker.evaluation.choices import Normalisation  # noqa: PLC0415
    from worker.evaluation.gallery import Comparing  # noqa: PLC0415
    from worker.image.files import walk  # noqa: PLC0415

    systems, embedders = _systems(plan, background=background is not None)
    folders = [list(walk([one])) if one else [] for one in (references, queries, background)]
    for folder, files in zip((references, queries), folders, strict=False):
        if not files:
            raise StartupError(f"{folder}: no pictures there")
    of_references, of_queries, _ = (labelled.ids(files) for files in folders)
    true = labelled.read_truth(truth, of_queries, of_references)
    everything = [file for files in folders for file in files]
    counts = [len(files) for files in folders]
    groups = labelled.groups_of(*counts)
    with _progress("describing", len(everything)) as advance:
        gallery = labelled.describe_all(everything, groups, embedders, plan.settings, advance)
    comparing = Comparing(Normalisation(plan.k, plan.beta), plan.nearest)
    with _progress("comparing", len(systems)) as advance:
        trials = labelled.trials(gallery, systems, true, comparing, advance)
    facts = _facts(plan, embedders) | {
        "references": counts[0],
        "queries": counts[1],
        "background": counts[2],
        "true_pairs": len(true),
        "left_out": [],
    }
    about = _about(facts) | {
        "pictures": f"{counts[0]} references, {counts[1]} queries, background of {counts[2]}",
        "true pairs": f"{len(true)}, of {truth.name}",
        "predictions": f"the {plan.nearest} nearest references of each query",
    }
    resampling = experiment.Resampling(plan.replicates, plan.seed)
    with _progress("resampling", plan.replicates) as advance:
        return experiment.told(gallery, trials, resampling, facts, about, advance)


def _systems(plan: _Plan, *, background: bool) -> "tuple[list[System], list[Embedder]]":
    """What is evaluated, and the models for it. Raises BadParameter for what is no choice."""
    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import
    from worker.evaluation.choices import ALL, PHASH, Choice  # noqa: PLC0415
    from worker.evaluation.describing import has_phash  # noqa: PLC0415
    from worker.evaluation.gallery import System  # noqa: PLC0415

    try:
        choices = list(dict.fromkeys(Choice.parse(name) for name in plan.choices or ALL))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--choice") from None
    if not plan.choices:
        choices = [one for one in choices if background or not one.needs_background]
        choices = [one for one in choices if has_phash() or one.name != PHASH]
    for one in choices:
        if one.needs_background and not background:
            raise typer.BadParameter(f"{one.name} needs --background", param_hint="--choice")
        if one.name == PHASH and not has_phash():
            raise StartupError("phash needs the package ImageHash: pip install ImageHash")
    named = plan.models or [None]
    loaded = [embedders.load(with_model(plan.settings.model, name), exact=True) for name in named]
    if len({one.model.name for one in loaded}) < len(loaded):
        raise typer.BadParameter("two models of one name", param_hint="--model")
    systems = [
        System(one, model.model.name) for model in loaded for one in choices if not one.is_hash
    ]
    return systems + [System(one) for one in choices if one.is_hash], loaded


def _facts(plan: _Plan, embedders: "Sequence[Embedder]") -> dict[str, Any]:
    return {
        "models": [
            {"name": one.model.name, "sha256": one.model.sha256, "precision": one.precision}
            for one in embedders
        ],
        "seed": plan.seed,
        "k": plan.k,
        "beta": plan.beta,
        "nearest": plan.nearest,
        "replicates": plan.replicates,
    }


def _about(facts: dict[str, Any]) -> dict[str, str]:
    models = ", ".join(f"{one['name']} ({one['sha256'][:12]})" for one in facts["models"])
    return {"model": models}


def _show(found: "Findings") -> None:
    from worker.evaluation.report import TITLES, interval  # noqa: PLC0415

    document = found.document()
    for rows, title in (
        ("rows", "All edits"),
        ("rows_without_inversion", "Without edits that invert"),
    ):
        if rows != "rows" and document[rows] == document["rows"]:
            continue
        table = Table(Column("choice", no_wrap=True), title=title, title_justify="left", box=None)
        for name in TITLES.values():
            table.add_column(name, justify="right")
        for one, row in zip(found.outcomes, document[rows], strict=True):
            told = [interval(row, figure) for figure in TITLES]
            table.add_row(found.title(one.system), *(value for value, _ in told))
            table.add_row("", *(ends for _, ends in told), style="dim")
        stdout.print(table)
        stdout.print()


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on the terminal; gives what advances it."""
    with _bar() as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def _shares() -> Iterator[Callable[[str, float], object]]:
    """The same for work that tells the share that is done."""
    with _bar() as progress:
        task = progress.add_task("grouping", total=1.0)
        yield lambda what, share: progress.update(
            task, description=f"grouping by {what}", completed=share
        )


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
