"""`copysieve models`: the catalogue."""

from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stdout
from worker.descriptor import zoo
from worker.settings import ModelSettings

app = typer.Typer(name="models", no_args_is_help=True, help="The models that are known by name.")


@app.callback()
def _models() -> None:
    pass


@app.command("list")
def list_models(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What models there are, and which of them have their file on this machine."""
    settings = load_settings(config).model
    rows = [_row(entry, settings) for entry in zoo.CATALOGUE.values()]
    if as_json:
        emit(rows)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "architecture", "dims", "preprocessing", "file"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            row["architecture"],
            str(row["dims"]),
            row["preprocessing"],
            "present" if row["path"] else "absent",
        )
    stdout.print(table)
    for row in rows:
        origin = row["path"] or row["source"]
        use = " (in use)" if row["in_use"] else ""
        stdout.print(f"\n{row['name']}{use}: {row['licence']}\n  {origin}", highlight=False)


def _row(entry: zoo.Entry, settings: ModelSettings) -> dict[str, Any]:
    path = zoo.expected_file(entry, settings.cache)
    return asdict(entry) | {
        "preprocessing": entry.preprocessing.name,
        "path": str(path) if path is not None and path.is_file() else None,
        "in_use": entry.name == settings.name,
    }
