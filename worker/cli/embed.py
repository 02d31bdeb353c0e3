"""`copysieve embed`: what the model makes of pictures, in a NumPy file."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.progress import Progress

from worker.cli.archive import Archive, Rows
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    ModelOption,
    emit,
    load_settings,
    stderr,
    with_model,
)
from worker.errors import FetchError, ModelError, Unscreenable, UnscreenedReason
from worker.image.decode import decode
from worker.image.preprocess import resize
from worker.records import Pixels, Preprocessing
from worker.settings import Limits, Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder


class Kind(StrEnum):
    """What to write of each picture."""

    DESCRIPTOR = "descriptor"
    EMBEDDING = "embedding"
    FEATURES = "features"


# Feature maps of one picture take 12 MB, and the network has as much again while it makes them.
_FEATURES_BATCH = 8


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that could not be described. `reason` is one of the verdicts' closed list."""

    path: str
    reason: UnscreenedReason
    detail: str


@dataclass(slots=True)
class Embedded:
    """The path of each row, and what was left out."""

    paths: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


type Compute = Callable[[npt.NDArray[np.uint8]], dict[str, Rows]]


def embed(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURES...", exists=True, help="Files and folders.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=".npz or .npy file.")
    ],
    kind: Annotated[
        Kind, typer.Option("--kind", help="Descriptors, 2048-d embeddings, or feature maps.")
    ] = Kind.DESCRIPTOR,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what the model makes of pictures to a NumPy file, one row per picture, in order.

    A .npz file holds `paths` (which row is which), and `descriptor`, `embedding`, or `stage1` to
    `stage4`, all float32; and `model`, `sha256`, `preprocessing` and `precision` (what made it). A
    .npy file holds the descriptors or embeddings alone.

    The network runs in fp32, unless `model.precision` says otherwise. Folders are walked; hidden
    files are left out. Pictures that cannot be read are named, the rest is written, and the exit
    code is 1.
    """
    if output.suffix not in (".npy", ".npz") or not output.parent.is_dir():
        raise typer.BadParameter(f"{output}: expected a .npz or .npy file in a folder that exists")
    if kind is Kind.FEATURES and output.suffix == ".npy":
        raise typer.BadParameter(f"{output}: features are four arrays, they need a .npz file")
    files = list(walk(pictures))
    if not files:
        raise typer.BadParameter("no pictures there", param_hint="PICTURES")
    settings = load_settings(config)

    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import

    embedder = embedders.load(with_model(settings.model, model), exact=True)
    compute = _compute(embedder, kind)
    size = settings.batch.max_size
    if kind is Kind.FEATURES:
        size = min(size, _FEATURES_BATCH)
    with Archive(output) as archive:
        found = _embed_all(files, size, settings, embedder.preprocessing, compute, archive)
        if found.paths:
            archive.finish({"paths": found.paths, **_facts(embedder)})
    for one in found.skipped:
        line = f"skipped {one.path}: {one.reason}: {one.detail}"
        stderr.print(line, markup=False, highlight=False)
    if as_json:
        emit(
            {
                "output": str(output) if found.paths else None,
                "kind": kind,
                "model": asdict(embedder.model),
                "precision": embedder.precision,
                "paths": found.paths,
                "skipped": [asdict(one) for one in found.skipped],
            }
        )
    if found.skipped:
        raise typer.Exit(1)


def walk(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and all files below the folders but hidden ones, sorted."""
    for path in paths:
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        else:
            yield path


def _compute(embedder: "Embedder", kind: Kind) -> Compute:
    """What turns a batch of pictures into rows of the file's arrays, by name."""
    if kind is Kind.DESCRIPTOR:
        return lambda pixels: {"descriptor": embedder.describe(pixels).cpu().numpy()}

    from worker.descriptor.embedders import TorchEmbedder  # noqa: PLC0415 - see above

    if not isinstance(embedder, TorchEmbedder):
        raise ModelError(f"model {embedder.model.name} gives descriptors only, not {kind}")
    if kind is Kind.EMBEDDING:
        return lambda pixels: {"embedding": embedder.embedding(pixels).cpu().numpy()}
    return lambda pixels: {
        name: stage.cpu().numpy() for name, stage in embedder.feature_maps(pixels).items()
    }


def _embed_all(
    files: list[Path],
    size: int,
    settings: Settings,
    preprocessing: Preprocessing,
    compute: Compute,
    archive: Archive,
) -> Embedded:
    """Batch by batch, so that only one batch is in memory."""
    found = Embedded()
    prepare = partial(read, limits=settings.limits, preprocessing=preprocessing)
    with (
        ThreadPoolExecutor(settings.decode.workers) as pool,
        Progress(console=stderr, transient=True) as progress,
    ):
        task = progress.add_task("pictures", total=len(files))
        for batch in batched(files, size):
            pictures: list[Pixels] = []
            first = not found.paths
            for file, picture in zip(batch, pool.map(prepare, batch), strict=True):
                if isinstance(picture, Unscreenable):
                    found.skipped.append(Skipped(str(file), picture.reason, str(picture)))
                else:
                    found.paths.append(str(file))
                    pictures.append(picture)
            if pictures:
                rows = compute(np.stack(pictures))
                if first:
                    archive.reserve(rows, len(files) - len(found.skipped))
                archive.append(rows)
            progress.advance(task, len(batch))
    return found


def read(file: Path, limits: Limits, preprocessing: Preprocessing) -> Pixels | Unscreenable:
    """One picture at the model's size, or why there is none."""
    try:
        if file.stat().st_size > limits.image_bytes:
            return FetchError(UnscreenedReason.TOO_LARGE, "more than limits.image_bytes")
        return resize(
            decode(file.read_bytes(), limits, target=preprocessing.size).pixels, preprocessing
        )
    except OSError as error:
        return FetchError(UnscreenedReason.FETCH_FAILED, error.strerror or "unreadable")
    except Unscreenable as error:
        return error


def _facts(embedder: "Embedder") -> dict[str, str]:
    """What made the rows."""
    model = embedder.model
    return {
        "model": model.name,
        "sha256": model.sha256,
        "preprocessing": model.preprocessing,
        "precision": embedder.precision,
    }
