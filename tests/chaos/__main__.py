"""`python -m tests.chaos` (`make chaos`): break everything around real workers, count what is lost.

Real servers, real `copysieve run` processes; the same seed draws the same uploads and faults. Exit
code 1 if anything was lost, wrong or out of order, repeated under exactly_once, if a worker died of
itself, or if the time was over before all was run.
"""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.chaos.report import table, write
from tests.chaos.run import NAMES, OUTAGE, Course, Run

WIDTH = 140
DELIVERIES = ("at_least_once", "exactly_once")
OVERHEAD_SECONDS = 60.0
"""Starting the servers, and adding references."""
RECOVERY_SECONDS = 75.0
"""Of an outage: starting and warming before it, answering after it."""
TRAFFIC_SHARE = 0.55
"""Of a phase; the rest is for settling and answering."""


def main(
    minutes: Annotated[float, typer.Option(min=1, max=20, help="For all of it.")] = 20,
    delivery: Annotated[str, typer.Option(help="both, at_least_once or exactly_once.")] = "both",
    faults: Annotated[str, typer.Option(help=f"Of {','.join(NAMES)}.")] = ",".join(NAMES),
    uploads: Annotated[int, typer.Option(min=200, help="In all phases but the outage.")] = 21_000,
    outage_seconds: Annotated[float, typer.Option(min=10)] = 150,
    seed: Annotated[int, typer.Option(help="Draws the uploads and the faults.")] = 1,
    out: Annotated[Path, typer.Option(help="For chaos.json, chaos.png, logs.")] = Path(
        "build/chaos"
    ),
) -> None:
    """Break everything around real workers, and count what is lost."""
    chosen = faults.split(",")
    if unknown := sorted(set(chosen) - set(NAMES)):
        raise typer.BadParameter(f"there is no fault {', '.join(unknown)}")
    if delivery not in {"both", *DELIVERIES}:
        raise typer.BadParameter(f"there is no delivery {delivery}")
    deliveries = DELIVERIES if delivery == "both" else (delivery,)
    phases = len(deliveries) * (1 + len([name for name in chosen if name != OUTAGE]))
    outage = outage_seconds + RECOVERY_SECONDS if OUTAGE in chosen else 0.0
    course = Course(
        seed=seed,
        deliveries=deliveries,
        faults=chosen,
        uploads=uploads,
        seconds=max(12.0, TRAFFIC_SHARE * (60 * minutes - OVERHEAD_SECONDS - outage) / phases),
        outage_seconds=outage_seconds,
        limit_seconds=60 * minutes,
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    began = time.monotonic()
    logs = out / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    run = Run(course, console, logs)
    try:
        run.go()
    finally:
        facts: dict[str, object] = {
            "seed": seed,
            "seconds": round(time.monotonic() - began),
            "uploads": sum(row.judged.uploads for row in run.rows),
            "missing": run.missing,
        }
        write(out, run.rows, facts)
        console.print(table(run.rows))
    for name in run.missing:
        console.print(f"[red]not run, for the time was over: {name}[/]")
    console.print(
        f"{facts['uploads']} uploads in {facts['seconds']} s, seed {seed}: {out}/chaos.json,"
        f" {out}/chaos.png",
        highlight=False,
    )
    if run.missing or any(row.failures for row in run.rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
