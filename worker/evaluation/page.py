"""Pages that stand alone, in the one style that they share (page.css)."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from worker.evaluation.files import private
from worker.evaluation.words import counted


def write(
    path: Path, template: str, told: Mapping[str, Any], **filters: Callable[..., object]
) -> None:
    """Fill in a template of this package, and write it as `files.private` does.

    What is told is escaped unless it is `drawn`. Raises StartupError.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"counted": counted, **filters}
    page = environment.from_string(_read(template)).render(
        style=Markup(_read("page.css")),  # noqa: S704 - our own
        made_at=datetime.now(UTC),
        **told,
    )
    with private(path) as file:
        file.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files


def drawn(svg: str) -> Markup:
    """A plot that stands in a page as it is: drawn by matplotlib from numbers and escaped names."""
    return Markup(svg)  # noqa: S704


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
