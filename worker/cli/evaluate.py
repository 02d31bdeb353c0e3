"""`copysieve evaluate`: how well copies are found, on somebody's own images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from worker.cli.common import (
    ConfigOption,
    JsonOption,
    emit,
    load_settings,
    needs_extra,
    stderr,
    stdout,
)
from worker.errors import StartupError, Unscreenable

if TYPE_CHECKING:
    from worker.evaluation.experiment import Findings

_INTERVAL = len(".834-.871")


class Benign(StrEnum):
    """In which form the benign pictures come."""

    EDITED = "edited"
    UNEDITED = "unedited"


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
                     " or several with + between. Again for more; by default all. Of a calibration"
                     " `centered` is --project centre, `whitened` --project whiten."),
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

    *At 1e-2*, *1e-3* and *none* are shares of the benign pictures that the threshold lets through
    (`recall_at_fpr_1e-2`, `recall_at_fpr_1e-3`, `recall_at_zero` in --json). What all figures mean,
    and the table of the edits: docs/evaluation.md.

        copysieve evaluate --images uploads/ --model sscd_disc_mixup_int8 --output report.html

        copysieve evaluate --images uploads/ --choice cosine --choice whitened+views --json
    """
    if output is not None and (output.suffix != ".html" or not output.parent.is_dir()):
        raise typer.BadParameter(f"{output}: expected a .html file in a folder that exists")
    labelled = (references, queries, truth)
    if (images is None) == (None in labelled) or (images and any((*labelled, background))):
        raise typer.BadParameter("expected --images, or --references, --queries and --truth")
    settings = load_settings(config)
    with needs_extra("evaluate"):
        from worker.cli import evaluating  # noqa: PLC0415 - torch takes seconds to import

        plan = evaluating.Plan(
            settings, model or [], choice or [], seed, replicates, nearest, k, beta
        )
        try:
            if images is not None:
                own = evaluating.Own(images, groups, edit or [], splits, most, benign.value)
                found = evaluating.of_own(own, plan)
            else:
                assert references and queries and truth  # noqa: PT018, S101 - checked above
                given = evaluating.Labelled(references, queries, background, truth)
                found = evaluating.of_labelled(given, plan)
        except Unscreenable as error:
            raise StartupError(f"the model fails on one of the copies: {error}") from None
        if output is not None:
            from worker.evaluation import report  # noqa: PLC0415 - the extra's packages

            report.write(found, output)
        _show(found)
    if output is not None:
        stderr.print(f"report: {output}", markup=False, highlight=False)
    if as_json:
        emit(found.document())


def _show(found: "Findings") -> None:
    _tell(f"{name:16} {value}" for name, value in found.about.items())
    if found.warning:
        stderr.print(found.warning, style="yellow", markup=False, highlight=False)
    document = found.document()
    _table(found, document["rows"], "All edits")
    if document["rows_without_inversion"] != document["rows"]:
        _table(found, document["rows_without_inversion"], "Without edits that invert")
    _tell(f"{name:16} {meaning}" for name, meaning in found.legend.items())
    _tell(_setters(found))


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        stdout.print(line, markup=False, highlight=False)
    stdout.print()


def _table(found: "Findings", rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Figures with their intervals below; 80 columns hold all but the longest names whole."""
    from worker.evaluation.report import TITLES, interval  # noqa: PLC0415

    table = Table(
        Column("choice", overflow="fold"),
        title=title, title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for name in TITLES.values():
        table.add_column(name.replace(" at ", "\nat "), justify="right", min_width=_INTERVAL)
    for one, row in zip(found.outcomes, rows, strict=True):
        told = [interval(row, figure) for figure in TITLES]
        table.add_row(found.title(one.system), *(value for value, _ in told))
        table.add_row("", *(ends for _, ends in told), style="dim")
    stdout.print(table)
    stdout.print()


def _setters(found: "Findings") -> Iterator[str]:
    """The pair of pictures that sets each choice's threshold at 1e-3 most often."""
    yield "What sets the threshold at 1e-3 most often:"
    for one in found.outcomes:
        points = [point for point in one.points if point.figure == "recall_at_fpr_1e-3"]
        for point in points[:1]:
            times = f"{point.splits} of {point.of} splits"
            pair = f"{point.negative} ({point.form}) resembles {point.reference}"
            yield f"  {found.title(one.system)}: {pair}, in {times}"
    yield "Look at them: pictures of one scene or series belong into one group (--groups)."
