"""`copysieve embed`: what the model makes of pictures, in a NumPy file."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer

from worker.cli.archive import Archive, Rows
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    ModelOption,
    emit,
    load_settings,
    stderr,
    stdout,
    with_model,
)
from worker.cli.progress import counts
from worker.errors import ModelError, Unscreenable, UnscreenedReason
from worker.image.decoder import Decoder
from worker.image.files import bytes_of, walk
from worker.records import Pixels
from worker.settings import Limits, Settings, Views

if TYPE_CHECKING:
    from torch import Tensor

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

    def skip(self, file: Path, error: Unscreenable) -> None:
        """Leave out a picture."""
        self.skipped.append(Skipped(str(file), error.reason, str(error)))


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
    files are left out. Pictures that cannot be read or described are named, the rest is written,
    and the exit code is 1.
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

    chosen = with_model(settings.model, model)
    if kind is not Kind.DESCRIPTOR:  # only what makes descriptors is ever compiled
        chosen = chosen.model_copy(update={"compile": False})
    embedder = embedders.load(chosen, exact=True)
    compute = _compute(embedder, kind)
    size = settings.batch.max_size
    if kind is Kind.FEATURES:
        size = min(size, _FEATURES_BATCH)
    decoder = Decoder(settings.decode, settings.limits, embedder.preprocessing, Views(renditions=1))
    with closing(decoder), Archive(output) as archive:
        found = _embed_all(files, size, settings, decoder, compute, archive)
        if found.paths:
            archive.finish({"paths": found.paths, **_facts(embedder)})
    _tell(found, output, kind, embedder, as_json=as_json)
    if found.skipped:
        raise typer.Exit(1)


def _tell(
    found: Embedded, output: Path, kind: Kind, embedder: "Embedder", *, as_json: bool
) -> None:
    if found.paths and not as_json:
        line = f"{len(found.paths)} pictures, {kind}, {embedder.precision}: {output}"
        stdout.print(line, markup=False, highlight=False)
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


def _compute(embedder: "Embedder", kind: Kind) -> Compute:
    """What turns a batch of pictures into rows of the file's arrays, by name.

    It raises Unscreenable (`describe_failed`) if one of them is not finite.
    """
    if kind is Kind.DESCRIPTOR:
        return lambda pixels: {"descriptor": embedder.describe(pixels).cpu().numpy()}

    from worker.descriptor.embedders import TorchEmbedder  # noqa: PLC0415 - see above

    if not isinstance(embedder, TorchEmbedder):
        raise ModelError(f"model {embedder.model.name} gives descriptors only, not {kind}")
    if kind is Kind.EMBEDDING:
        return lambda pixels: _finite({"embedding": embedder.embedding(pixels)})
    return lambda pixels: _finite(embedder.feature_maps(pixels))


def _finite(tensors: "dict[str, Tensor]") -> dict[str, Rows]:
    rows = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    for name, values in rows.items():
        if not np.isfinite(values).all():
            raise Unscreenable(UnscreenedReason.DESCRIBE_FAILED, f"{name} is not finite")
    return rows


def _embed_all(
    files: list[Path],
    size: int,
    settings: Settings,
    decoder: Decoder,
    compute: Compute,
    archive: Archive,
) -> Embedded:
    """Batch by batch, so that only one batch is in memory."""
    found = Embedded()
    prepare = partial(read, limits=settings.limits, decoder=decoder)
    with (
        ThreadPoolExecutor(settings.decode.workers) as pool,
        counts("pictures", len(files)) as advance,
    ):
        for batch in batched(files, size):
            pictures: list[tuple[Path, Pixels]] = []
            for file, picture in zip(batch, pool.map(prepare, batch), strict=True):
                if isinstance(picture, Unscreenable):
                    found.skip(file, picture)
                else:
                    pictures.append((file, picture))
            for paths, rows in _described(pictures, compute, found):
                if not found.paths:
                    archive.reserve(rows, len(files) - len(found.skipped))
                archive.append(rows)
                found.paths += paths
            advance(len(batch))
    return found


def _described(
    pictures: Sequence[tuple[Path, Pixels]], compute: Compute, found: Embedded
) -> Iterator[tuple[list[str], dict[str, Rows]]]:
    """Paths and rows of all pictures at once; if that fails, one by one, without the culprits."""
    if not pictures:
        return
    try:
        rows = compute(np.stack([picture for _, picture in pictures]))
    except Unscreenable as error:
        if len(pictures) == 1:
            found.skip(pictures[0][0], error)
            return
        for one in pictures:
            yield from _described([one], compute, found)
    else:
        yield [str(file) for file, _ in pictures], rows


def read(file: Path, limits: Limits, decoder: Decoder) -> Pixels | Unscreenable:
    """The first picture of a file, as `decoder` makes it, or why there is none."""
    try:
        pixels: Pixels = decoder.prepare(bytes_of(file, limits), nullcontext).pixels[0]
    except Unscreenable as error:
        return error
    return pixels


def _facts(embedder: "Embedder") -> dict[str, str]:
    """What made the rows."""
    model = embedder.model
    return {
        "model": model.name,
        "sha256": model.sha256,
        "preprocessing": model.preprocessing,
        "precision": embedder.precision,
    }
