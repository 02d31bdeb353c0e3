"""`copysieve schemas`: the JSON schemas of the wire, written or compared."""

import json
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.common import stdout
from worker.errors import CopysieveError
from worker.events import SCHEMAS, schema


def schemas(
    folder: Annotated[Path, typer.Argument(help="Where the schemas lie.")] = Path("config/schemas"),
    compare: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a file is out of date.")
    ] = False,
) -> None:
    """Write the JSON schemas of all events, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in SCHEMAS.items():
        path = folder / f"{name}.json"
        text = json.dumps(schema(model), indent=2) + "\n"
        if not compare:
            path.write_text(text, encoding="utf-8")
            stdout.print(f"wrote {path}", markup=False, highlight=False)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise CopysieveError(f"{path} is out of date: run `copysieve schemas`")
