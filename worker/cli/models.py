"""`copysieve models`: the catalogue, and the files that are here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr, stdout
from worker.descriptor import zoo
from worker.errors import ModelError
from worker.settings import ModelSettings

if TYPE_CHECKING:
    from worker.descriptor.download import Progress as Told
    from worker.descriptor.identify import Identity

_TABLE_WIDTH = 100
_FEW = 3

app = typer.Typer(name="models", no_args_is_help=True, help="The models that are known by name.")


@app.callback()
def _models() -> None:
    pass


@app.command("list")
def list_models(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What models there are, and which of them have their file on this machine.

    `--json` also tells licence, source, digest, mean and std.
    """
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
            ("present" if row["path"] else "absent") + (", in use" if row["in_use"] else ""),
        )
    # Names are to be copied: rather lines that a narrow terminal wraps than names cut short.
    Console(width=max(stdout.width, _TABLE_WIDTH)).print(table)
    for licence, of in groupby(sorted(rows, key=_licence), _licence):
        names = [row["name"] for row in of]
        which = ", ".join(names) if len(names) <= _FEW else "all others"
        stdout.print(f"licence of {which}: {licence}", highlight=False)


def _licence(row: dict[str, Any]) -> str:
    return str(row["licence"])


def _row(entry: zoo.Entry, settings: ModelSettings) -> dict[str, Any]:
    path = zoo.expected_file(entry, settings.cache)
    return asdict(entry) | {
        "preprocessing": entry.preprocessing.name,
        "size": entry.preprocessing.size,
        "path": str(path) if path is not None and path.is_file() else None,
        "in_use": entry.name == settings.name and settings.path is None,
    }


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name that `models list` tells.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL|FILE", help="A mirror, or a file carried here."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it is here, in place of what is.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a model's file into the cache folder, and verify it.

    A download that was cut goes on where it ended. HTTPS_PROXY and NO_PROXY are honoured. Nothing
    is installed that has another digest than the published one; where none is published, the file
    must hold the weights of the model's architecture, and its digest is recorded beside it.
    """
    settings = load_settings(config).model
    entry = _entry(name)
    from worker.descriptor.pull import pull as bring  # noqa: PLC0415 - torch takes seconds

    with _bar(name) as told:
        identity, new = bring(entry, settings, source, told, force=force)
    if as_json:
        emit(asdict(identity) | {"pulled": new})
        return
    stdout.print(f"{name}: {'installed' if new else 'is here, and right'}", highlight=False)
    _print(identity)
    if source is not None and not new:
        stdout.print("--from was not read: --force puts that file in its place", highlight=False)
    if entry.sha256 is None:
        stdout.print(
            "no digest of it is published: compare this one with another source's, and pin it, "
            f"model.sha256: {identity.sha256}",
            highlight=False,
        )


@app.command()
def verify(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|FILE]", help="Default: all that are here."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Digest and content of models' files. The exit code is 1 if anything is wrong."""
    settings = load_settings(config).model
    rows: list[dict[str, Any]] = []
    for target in _targets(what, settings):
        told = target if isinstance(target, str) else target.name
        try:
            identity = _identify(target, settings)
        except ModelError as error:
            path = _place(target, settings)
            rows.append({"name": told, "path": path, "ok": False, "error": str(error)})
            if not as_json:
                stdout.print(f"{told}: {error}", style="red", markup=False, highlight=False)
            continue
        rows.append(asdict(identity) | {"ok": True, "error": None})
        if not as_json:
            stdout.print(f"{told}: right", markup=False, highlight=False)
            _print(identity)
    if as_json:
        emit(rows)
    elif not rows:
        stdout.print("no model's file is here")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def _targets(what: str | None, settings: ModelSettings) -> Iterator[str | Path]:
    """What to verify: names of the catalogue, and files that are to be told by themselves."""
    if what is not None:
        if what not in zoo.CATALOGUE and not Path(what).is_file():
            raise ModelError(f"{what}: neither a model that `models list` tells nor a file")
        yield what if what in zoo.CATALOGUE else Path(what)
        return
    if settings.path is not None:
        yield settings.path
    for name in zoo.CATALOGUE:
        place = _place(name, settings)
        if place is not None and place.is_file():
            yield name


def _place(target: str | Path, settings: ModelSettings) -> Path | None:
    if isinstance(target, Path):
        return target
    return zoo.expected_file(zoo.CATALOGUE[target], settings.cache)


def _identify(target: str | Path, settings: ModelSettings) -> "Identity":
    """The target as it would be loaded. Raises ModelError if it would not, or is not there."""
    from worker.descriptor import identify  # noqa: PLC0415 - torch takes seconds

    if isinstance(target, str):
        own = identify.settings_of_name(target, settings)
    else:
        own = identify.settings_of_file(target, settings)
    return identify.identify(zoo.locate(own), own)


def _entry(name: str) -> zoo.Entry:
    entry = zoo.CATALOGUE.get(name)
    if entry is None:
        raise ModelError(f"model {name}: not one of {', '.join(zoo.CATALOGUE)}")
    return entry


def _print(identity: "Identity") -> None:
    numbers = [
        f"{name} {' '.join(map(str, values))}"
        for name, values in (("mean", identity.mean), ("std", identity.std))
        if values
    ]
    facts = [identity.architecture, f"{identity.dims} dims", identity.preprocessing, *numbers]
    stdout.print(f"  {identity.path}", highlight=False, markup=False)
    stdout.print(f"  {', '.join(facts)}", highlight=False, markup=False)
    stdout.print(f"  sha256 {identity.sha256} ({identity.pinned or 'not pinned'})", highlight=False)


@contextmanager
def _bar(name: str) -> "Iterator[Told]":
    """A progress bar on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
