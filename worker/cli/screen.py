"""`copysieve screen`: two files compared with each other, or files with the hot set."""

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from worker.cli.common import (
    ConfigOption,
    JsonOption,
    ModelOption,
    emit,
    load_settings,
    stdout,
    with_model,
)
from worker.cli.mirroring import load_mirror, rules_for
from worker.errors import CopysieveError, Unscreenable
from worker.image.decoder import Decoder
from worker.image.files import bytes_of, walk
from worker.records import Look, Looks
from worker.settings import Settings

_WORDS = {
    ("colors", "tagged"): "with its colour profile",
    ("colors", "other"): "with its other colour profile",
    ("background", "black"): "on black",
    ("background", "none"): "without alpha",
    ("crop", "ignored"): "not cropped",
}
"""What is shown of a rendition where it is unusual."""

if TYPE_CHECKING:
    from torch import Tensor

    from worker.descriptor.embedders import Embedder
    from worker.scoring.policy import Decision


def screen(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", exists=True, help="Files, or folders.")
    ],
    hot_set: Annotated[
        bool, typer.Option("--hot-set", help="Compare with the hot set, as an upload would be.")
    ] = False,
    tenant: Annotated[str | None, typer.Option(help="Screen as this tenant's uploads.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two files (`screen A B`), or files with the hot set (`screen --hot-set IMAGES`).

    Two files are compared by their most similar renditions, described in fp32 unless
    `model.precision` says otherwise. Files that were not looked at whole are listed below the
    table: hold such a `no_match` like an `unscreened` upload. Nothing is published. With `--json`
    each file has what a verdict has of it: `outcome`, `reason`, `detail`, `matches`, `image`. The
    exit code is 1 if a file cannot be screened.
    """
    files = list(walk(images))
    if not hot_set and len(files) != 2:  # noqa: PLR2004 - A and B
        raise typer.BadParameter("expected two files, or --hot-set and any number")
    settings = load_settings(config)

    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import

    chosen = with_model(settings.model, model)
    embedder = embedders.load(chosen, exact=not hot_set)
    if hot_set:
        _screen_files(files, settings, embedder, tenant, as_json=as_json)
    else:
        _compare(files, settings, embedder, as_json=as_json)


def _compare(files: list[Path], settings: Settings, embedder: "Embedder", *, as_json: bool) -> None:
    from worker.scoring.similarity import cosine, euclidean  # noqa: PLC0415 - imports torch

    looks, descriptors = [], []
    with closing(_decoder(settings, embedder)) as decoder:
        for file in files:
            try:
                image = decoder.prepare(bytes_of(file, settings.limits), nullcontext)
                descriptors.append(_describe(image.pixels, embedder, settings.batch.max_size))
            except Unscreenable as error:
                raise CopysieveError(f"{file}: {error.reason}: {error}") from None
            looks.append(image.looks)
    a, b = descriptors
    best = divmod(int(cosine(a, b).argmax()), len(b))
    found: dict[str, Any] = {
        "model": embedder.model.name,
        "cosine": round(float(cosine(a, b)[best]), 6),
        "euclidean": round(float(euclidean(a, b)[best]), 6),
        "compared": [
            {"view": of[number].view, "rendition": asdict(of[number].rendition)}
            for of, number in zip(looks, best, strict=True)
        ],
    }
    if as_json:
        emit(found)
        return
    for name in ("model", "cosine", "euclidean"):
        stdout.print(f"{name:10} {found[name]}", markup=False)
    for file, one in zip(files, found["compared"], strict=True):
        if seen := _seen(one["view"], one["rendition"]):
            stdout.print(f"{file}: {seen}", markup=False, highlight=False)


def _screen_files(
    files: list[Path],
    settings: Settings,
    embedder: "Embedder",
    tenant: str | None,
    *,
    as_json: bool,
) -> None:
    from worker.compare import compare  # noqa: PLC0415
    from worker.hotset.store import open_store  # noqa: PLC0415
    from worker.results import image_stamp  # noqa: PLC0415 - imports torch

    with closing(open_store(settings.redis)) as store:
        mirror = load_mirror(store, embedder)
    rules = rules_for(settings, embedder)
    version = str(mirror.head.version) if mirror.head else None
    screened: list[dict[str, Any]] = []
    with closing(_decoder(settings, embedder)) as decoder:
        for file in files:
            try:
                image = decoder.prepare(bytes_of(file, settings.limits), nullcontext)
                descriptors = _describe(image.pixels, embedder, settings.batch.max_size)
            except Unscreenable as error:
                row: dict[str, Any] = {
                    "outcome": "unscreened",
                    "reason": error.reason.value,
                    "detail": str(error),
                    "matches": [],
                }
            else:
                (compared,) = compare(mirror, rules, [descriptors], [tenant])
                row = _row(compared.decision, image.looks)
                row["image"] = image_stamp(image.info, image.looks).model_dump(mode="json")
            screened.append({"file": str(file)} | row)
    if as_json:
        emit({"model": embedder.model.name, "hot_set": version, "files": screened})
    else:
        _show(screened)
        _show_what_was_not_seen(screened)
    if any(row["outcome"] == "unscreened" for row in screened):
        raise typer.Exit(1)


def _decoder(settings: Settings, embedder: "Embedder") -> Decoder:
    one = settings.decode.model_copy(update={"workers": 1})  # pictures are read in turn
    return Decoder(one, settings.limits, embedder.preprocessing, settings.views)


def _describe(looks: Looks, embedder: "Embedder", size: int) -> "Tensor":
    """Descriptors of all looks, in batches of `size`. Raises Unscreenable."""
    import torch  # noqa: PLC0415 - takes seconds to import

    parts = [embedder.describe(looks[at : at + size]) for at in range(0, len(looks), size)]
    return torch.cat(parts)


def _row(decision: "Decision", looks: Sequence[Look]) -> dict[str, Any]:
    best = decision.best_score
    return {
        "outcome": "match" if decision.enforced else "no_match",
        "matches": [
            {
                "reference_id": one.reference.reference_id,
                "bank": one.bank.name,
                "mode": mode,
                "action": one.bank.action,
                "score": round(one.score, 4),
                "view": one.hit.view,
                "upload_view": looks[one.look].view,
                "rendition": asdict(looks[one.look].rendition),
            }
            for mode, found in (("enforce", decision.enforced), ("shadow", decision.shadow))
            for one in found
        ],
        "best_score": None if best is None else round(best, 4),
    }


def _show(screened: list[dict[str, Any]]) -> None:
    table = Table(
        Column("file", overflow="fold"),
        "outcome",
        Column("reference", overflow="fold"),  # a name that is cut is none
        *("bank", "mode", "action", "view", "score"),
        box=None,
    )
    for row in screened:
        if not row["matches"]:
            best = row.get("best_score")
            note = row.get("reason") or ("" if best is None else f"best {best:.3f}")
            table.add_row(row["file"], row["outcome"], "", "", "", "", "", note)
        for match in row["matches"]:
            table.add_row(
                row["file"],
                row["outcome"],
                match["reference_id"],
                match["bank"],
                match["mode"],
                match["action"],
                _view(match),
                f"{match['score']:.3f}",
            )
    stdout.print(table)


def _show_what_was_not_seen(screened: list[dict[str, Any]]) -> None:
    """A line for each file that was not looked at whole: `no_match` says nothing about the rest."""
    for row in screened:
        missing = [row["detail"]] if row["outcome"] == "unscreened" else _not_seen(row["image"])
        if missing:
            stdout.print(f"{row['file']}: {', '.join(missing)}", markup=False, highlight=False)


def _not_seen(image: dict[str, Any]) -> list[str]:
    """What a viewer may show of this file beside what was described, in words."""
    missing = []
    if image["truncated"]:
        missing.append("damaged or cut short")
    if image["frames_decoded"] < image["frames"]:
        missing.append(f"{image['frames_decoded']} of {image['frames']} frames were looked at")
    if left_out := image["renditions_left_out"]:
        missing.append(f"{left_out} renditions that look different were not described")
        if (share := image["playing_time_described"]) is not None:
            missing.append(f"{share:.0%} of the playing time was")
    return missing


def _view(match: dict[str, Any]) -> str:
    """The view of the reference, and the view and rendition of the upload that match it."""
    seen = _seen(match["upload_view"], match["rendition"])
    return f"{match['view']} ({seen})" if seen else match["view"]


def _seen(view: str, rendition: Mapping[str, Any]) -> str:
    """How a file is seen, in words; empty for all of an ordinary picture."""
    parts = [] if view == "plain" else [view]
    if rendition["frame"]:
        parts.append(f"frame {rendition['frame']}")
    parts += [words for part, words in _WORDS.items() if rendition[part[0]] == part[1]]
    return ", ".join(parts)
