"""`python -m tests.fuzz` (`make fuzz`): mutated events and pictures through a running worker.

Before it, as many pictures through the decoders alone. Exit code 1 if the worker crashed, a record
has no result or more than one, memory grew, metrics got labels from outside, or the log holds what
it must not; or if a decoder ended otherwise than with a picture or a reason.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.fuzz.decoding import DecodingReport, decode_all
from tests.fuzz.run import Report, run

WIDTH = 140
MIB = 1024 * 1024


def main(
    events: Annotated[int, typer.Option(min=100, help="With decoding in threads.")] = 100_000,
    images: Annotated[int, typer.Option(min=100, help="For each isolation.")] = 10_000,
    isolation: Annotated[Literal["threads", "processes", "both"], typer.Option()] = "both",
    seed: Annotated[int, typer.Option(help="Draws what is mutated, and how.")] = 1,
    out: Annotated[Path, typer.Option(help="For fuzz.json and logs.")] = Path("build/fuzz"),
) -> None:
    """Send mutated events and pictures through a running worker."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    out.mkdir(parents=True, exist_ok=True)
    decoded = decode_all(seed, images)
    console.print(_outcomes(decoded))
    chosen = ("threads", "processes") if isolation == "both" else (isolation,)
    reports = []
    for one in chosen:
        event_count = events if one == chosen[0] else events // 10
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"decoding in {one}", total=event_count + images)

            def show(done: int, progress: Progress = progress, task=task) -> None:
                progress.update(task, completed=done)

            reports.append(run(out, seed, event_count, images, one, show))
    told = {"decoding": decoded.told(), "worker": [report.told() for report in reports]}
    (out / "fuzz.json").write_text(json.dumps(told, indent=1) + "\n")
    console.print(_table(reports))
    for failure in decoded.failures:
        console.print(f"[red]decoders alone: {failure}[/]")
    for report in reports:
        for failure in report.failures:
            console.print(f"[red]decoding in {report.isolation}: {failure}[/]")
    console.print(f"seed {seed}: {out}/fuzz.json", highlight=False)
    if decoded.failures or any(report.failures for report in reports):
        raise typer.Exit(1)


def _outcomes(report: DecodingReport) -> Table:
    """Pictures by what was mutated, and what they ended in."""
    names = sorted({name for counts in report.outcomes.values() for name in counts})
    table = Table("decoders alone", *names, caption=f"{report.rss_peak // MIB} MiB at most")
    for kind, counts in report.outcomes.items():
        table.add_row(kind, *(f"{counts.get(name, 0):,}" for name in names))
    for death, count in report.deaths.items():
        table.add_row(f"{count} x {death}")
    return table


def _table(reports: list[Report]) -> Table:
    table = Table("", *(f"decoding in {one.isolation}" for one in reports))
    rows = {
        "events and images": [f"{r.events:,} + {r.images:,}" for r in reports],
        "without a result": [str(r.missing) for r in reports],
        "with more than one": [str(r.repeated) for r in reports],
        "events, images a second": [
            f"{r.events_per_second:.0f}, {r.images_per_second:.0f}" for r in reports
        ],
        "memory warm, peak, end (MiB)": [
            f"{r.rss_warm // MIB}, {r.rss_peak // MIB}, {r.rss_end // MIB}" for r in reports
        ],
        "end over warm": [f"{r.growth:.2f}" for r in reports],
        "new series of metrics": [str(r.new_series) for r in reports],
        "decoders replaced": [f"{r.decoders_replaced:.0f}" for r in reports],
        "results": ["\n".join(f"{n:>7,} {why}" for why, n in r.outcomes.items()) for r in reports],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    typer.run(main)
