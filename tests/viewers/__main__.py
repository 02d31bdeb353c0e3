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

from tests.viewers import animations as frames
from tests.viewers import mutations as search
from tests.viewers import table as document
from tests.viewers.browser import Browser
from tests.viewers.corpus.all import ALL
from tests.viewers.corpus.case import Case
from tests.viewers.measuring import Outcome, made

WIDTH = 140
MOST_ROWS = 40
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
    _write(out / "corpus.json", [document.as_json(outcome) for outcome in measured])
    failed = [outcome for outcome in measured if outcome.problem]
    if save:
        _save(out / "failed", [outcome.case for outcome in failed])
    if not only:
        document.write(measured)
    console().print(_summary(measured))
    if failed:
        console().print(_failures(failed))
    if failed:
        raise typer.Exit(1)


@app.command()
def animations(
    count: Annotated[int, typer.Option(min=1)] = 3000,
    seed: Annotated[int, typer.Option(help="Draws the animations.")] = 1,
    out: Out = OUT,
) -> None:
    """Compare random animations with Chromium, frame by frame; keep those that differ."""
    require_browser()
    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task("animations", total=count)
        folder = out / "animations"
        report = frames.run(seed, count, folder, progress=lambda: progress.advance(task))
    _write(out / "animations.json", report.as_json())
    rows = Table("number", "format", "frame", "levels", "what", title="differences")
    for one in report.differences[:MOST_ROWS]:
        rows.add_row(str(one.number), one.format, _cell(one.frame), _cell(one.levels), one.what)
    compared = ", ".join(f"{number:,} {name}" for name, number in report.compared.items())
    differ = f"{len(report.differences)} differ, otherwise at most {report.worst_levels:.2f} levels"
    if report.differences:
        console().print(rows)
    console().print(
        f"seed {seed}: {compared}; {report.frames:,} frames, {report.not_shown} files not shown by"
        f" Chromium, {differ}",
        highlight=False,
    )
    if report.differences:
        raise typer.Exit(1)


@app.command()
def mutations(
    count: Annotated[int, typer.Option(min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Draws the files and what is changed.")] = 1,
    out: Out = OUT,
) -> None:
    """Search for changed files that show a known picture and that the worker would pass."""
    require_browser()
    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task("mutations", total=count)
        folder = out / "mutations"
        report = search.run(seed, count, folder, progress=lambda: progress.advance(task))
    _write(out / "mutations.json", report.as_json())
    rows = Table("number", "format", "base", "changes", "browser", "worker", title="missed")
    for one in report.findings[:MOST_ROWS]:
        cosines = f"{one.browser:.2f}", f"{one.worker:.2f}"
        rows.add_row(str(one.number), one.format, one.base, ", ".join(one.changes), *cosines)
    if report.findings:
        console().print(rows)
    console().print(_outcomes(report))
    console().print(f"seed {seed}: {len(report.findings)} missed of {count:,}", highlight=False)
    if report.findings:
        raise typer.Exit(1)


def _outcomes(report: search.Report) -> Table:
    names = sorted({name for counts in report.outcomes.values() for name in counts})
    rows = Table("format", *names)
    for name, counts in report.outcomes.items():
        rows.add_row(name, *(f"{counts[outcome]:,}" for outcome in names))
    return rows


def _cell(value: float | None) -> str:
    return "" if value is None else str(value)


def _write(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")


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
