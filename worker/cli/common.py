"""What all commands share: options, output, and the way from an error to an exit code."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from worker import settings
from worker.descriptor import zoo
from worker.errors import StartupError
from worker.settings import ModelSettings, Settings
from worker.telemetry import log

# No terminal, no width: a table in a file or a pipe keeps all that it has.
stdout = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 1000)
stderr = Console(stderr=True, soft_wrap=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Settings file (YAML)."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End stdout with one line of JSON, for machines.")
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="From here on: ISO 8601 (UTC unless it says), or how long ago: 90s, 30m, 2h, 7d.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="FILE|NAME", help="A model file, or a name of `models list`."),
]

_EVALUATE_PACKAGES = {"cv2", "jinja2", "markupsafe", "matplotlib"}
_AGO = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def load_settings(config: Path | None) -> Settings:
    """Read the settings and set up the logs. Raises SettingsError."""
    loaded = settings.load(config)
    log.configure(loaded.log)
    return loaded


def with_model(settings: ModelSettings, model: str | None) -> ModelSettings:
    """The settings with another model: a name of the catalogue, else a file of one's own.

    `model.sha256` goes on to hold for a file. An ONNX file that has the name of one of the
    catalogue's is held to the digest there, so that it needs no setting.
    """
    if model is None:
        return settings
    if model in zoo.CATALOGUE:
        return settings.model_copy(update={"name": model, "path": None, "sha256": None})
    path = Path(model)
    name = path.stem
    if path.suffix == ".onnx" and settings.sha256 is None:
        known = (entry.name for entry in zoo.CATALOGUE.values() if entry.file == path.name)
        name = next(known, name)
    return settings.model_copy(update={"name": name, "path": path})


def parse_time(text: str, now: datetime) -> datetime:
    """Read ISO 8601 (UTC unless it says otherwise), or how long ago: 90s, 30m, 2h, 7d.

    Raises ValueError for anything else.
    """
    if ago := _AGO.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError:
            raise ValueError("too long ago") from None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def time_of(text: str | None, option: str) -> datetime | None:
    """Read a time that an option gives. Raises BadParameter."""
    try:
        return parse_time(text, datetime.now(UTC)) if text else None
    except ValueError:
        raise typer.BadParameter(
            "expected ISO 8601, or 90s, 30m, 2h, 7d", param_hint=option
        ) from None


@contextmanager
def needs_extra(command: str) -> Iterator[None]:
    """Tell what to install where a package of the extra `evaluate` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EVALUATE_PACKAGES:
            raise
        raise StartupError(
            f"{command} needs the package {error.name}: install copysieve[evaluate]"
        ) from None


def emit(document: Any) -> None:
    """Print the one line of JSON that ends stdout."""
    typer.echo(json.dumps(document, separators=(",", ":"), default=str))


def first_problem(error: ValidationError) -> str:
    """What is wrong first, by its field, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
