"""What all commands share: options, output, and the way from an error to an exit code."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from worker import settings
from worker.settings import Settings
from worker.telemetry import log

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True, soft_wrap=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Settings file (YAML)."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End stdout with one line of JSON, for machines.")
]


def load_settings(config: Path | None) -> Settings:
    """Read the settings and set up the logs. Raises SettingsError."""
    loaded = settings.load(config)
    log.configure(loaded.log)
    return loaded


def emit(document: Any) -> None:
    """Print the one line of JSON that ends stdout."""
    typer.echo(json.dumps(document, separators=(",", ":"), default=str))


def first_problem(error: ValidationError) -> str:
    """What is wrong first, by its field, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
