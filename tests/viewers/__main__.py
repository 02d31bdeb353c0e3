"""`python -m tests.viewers`: what viewers show beside what the worker screens.

Three comparisons with headless Chromium. Each writes its results as JSON to build/viewers/ and ends
with exit code 1 if something fails.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.viewers import table as document
from tests.viewers.browser import Browser
from tests.viewers.corpus.all import ALL
from tests.viewers.corpus.case import Case
from tests.viewers.measuring import Outcome, made

WIDTH = 140
OUT = Path("build/viewers")
app = typer.Typer(no_args_is_help=True, add_completion=False)
Out = Annotated[Path, typer.Option(help="Folder for the results.")]


@app.callback()
def main() -> None:
    """Compare what viewers show with what the worker screens."""


def console() -> Console:
    shown = Console()
    return shown if shown.is_terminal else Console(width=WIDTH)


def require_browser() -> None:
    if not Browser.is_available():
        console().print("[red]chromium is not installed[/] (Debian: apt-get install chromium)")
        raise typer.Exit(2)


@app.command()
def corpus(
    only: Annotated[str, typer.Option(help="Cases whose name holds this text.")] = "",
    save: Annotated[  # noqa: FBT002 - typer options are booleans with defaults
        bool, typer.Option(help="Keep the files of the cases that fail.")
    ] = False,
    out: Out = OUT,
) -> None:
    """Measure the corpus of disguised files and write the table in docs/viewers.md."""
    require_browser()
    cases = [case for case in ALL if only.lower() in f"{case.kind} {case.name}".lower()]
    for case in cases:
        if not case.is_makeable:
            console().print(f"left out, {case.tool} is not installed: {case.name}")
    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task("corpus", total=len(cases))
        measured = document.outcomes(lambda: progress.advance(task), cases)
    out.mkdir(parents=True, exist_ok=True)
    told = [document.as_json(outcome) for outcome in measured]
    (out / "corpus.json").write_text(json.dumps(told, indent=1) + "\n")
    failed = [outcome for outcome in measured if outcome.problem]
    if save:
        _save(out / "failed", [outcome.case for outcome in failed])
    if not only:
        document.write(measured)
    console().print(_failures(failed))
    console().print(_summary(measured))
    if failed:
        raise typer.Exit(1)


def _save(folder: Path, cases: list[Case]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases):
        name = "".join(letter if letter.isalnum() else "-" for letter in case.name)
        suffix = case.content_type.partition("/")[2]
        (folder / f"{number:03}-{name[:80]}.{suffix}").write_bytes(made(case))


def _failures(failed: list[Outcome]) -> Table:
    rows = Table("kind", "format", "quirk", "what fails", title=f"{len(failed)} cases fail")
    for outcome in failed:
        case = outcome.case
        rows.add_row(case.kind, case.format, case.quirk, outcome.problem)
    return rows


def _summary(measured: list[Outcome]) -> Table:
    rows = Table("kind", "cases", "screened", "unscreened", "fail", "renditions on average")
    for kind in dict.fromkeys(outcome.case.kind for outcome in measured):
        part = [outcome for outcome in measured if outcome.case.kind == kind]
        screened = [outcome for outcome in part if outcome.reason is None]
        mean = sum(outcome.renditions for outcome in screened) / max(1, len(screened))
        failed = sum(outcome.problem is not None for outcome in part)
        rows.add_row(
            kind,
            *map(str, (len(part), len(screened), len(part) - len(screened), failed)),
            f"{mean:.2f}",
        )
    return rows


if __name__ == "__main__":
    app()
