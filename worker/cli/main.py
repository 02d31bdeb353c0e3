"""The `copysieve` command and its subcommands."""

from typing import Annotated

import typer

import worker
from worker.cli import (
    banks,
    bench,
    calibrate,
    calibrations,
    check,
    demo,
    embed,
    evaluate,
    hotset,
    models,
    refs,
    replay,
    run,
    screen,
)

app = typer.Typer(
    name="copysieve",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Screens image uploads from Kafka against known-bad references, and says so on a topic.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"copysieve {worker.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version


app.command()(run.run)
app.command()(demo.demo)
app.command()(check.check)
app.command()(screen.screen)
app.command()(embed.embed)
app.command()(calibrate.calibrate)
app.command()(evaluate.evaluate)
app.add_typer(refs.app)
app.add_typer(banks.app)
app.add_typer(hotset.app)
app.add_typer(calibrations.app)
app.add_typer(replay.app)
app.add_typer(models.app)
app.add_typer(bench.app)
