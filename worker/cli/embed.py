"""`copysieve embed`: what the model makes of images, in a NumPy file."""

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

from worker.cli.common import ConfigOption, JsonOption, emit, load_settings, stderr
from worker.errors import FetchError, ModelError, Unscreenable, UnscreenedReason
from worker.image.decode import decode
from worker.image.preprocess import resize
from worker.records import Model, Pixels, Preprocessing
from worker.settings import Limits, Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder


class What(StrEnum):
    """What to write of each image."""

    DESCRIPTOR = "descriptor"
    EMBEDDING = "embedding"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    STAGE3 = "stage3"
    STAGE4 = "stage4"


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be described. `reason` is one of the verdicts' closed list."""

    image: str
    reason: UnscreenedReason
    detail: str


@dataclass(slots=True)
class Embedded:
    """What came out: the rows batch by batch, the image of each row, and what was left out."""

    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


type Compute = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def embed(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", exists=True, help="Files and folders.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help=".npy or .npz file.")],
    what: Annotated[
        What, typer.Option("--what", help="Descriptor, 2048-d embedding, or a feature map.")
    ] = What.DESCRIPTOR,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what the model makes of images to a NumPy file, one row per image, in order.

    A .npy file holds the array alone; a .npz file holds it as `rows`, with `images` (which row is
    which), and `model`, `sha256` and `preprocessing` (what made it).

    Folders are walked; hidden files are left out. Images that cannot be read are named, the rest is
    written, and the exit code is 1.
    """
    if out.suffix not in (".npy", ".npz") or not out.parent.is_dir():
        raise typer.BadParameter(f"{out}: expected a .npy or .npz file in a folder that exists")
    files = list(walk(images))
    if not files:
        raise typer.BadParameter("no images there", param_hint="IMAGES")
    settings = load_settings(config)

    from worker.descriptor import embedders  # noqa: PLC0415 - torch takes seconds to import

    embedder = embedders.load(settings.model)
    compute = _compute(embedder, what)
    found = _embed_all(files, settings, embedder.preprocessing, compute)
    if found.rows:
        _write(out, found, embedder.model)
    for image in found.skipped:
        line = f"skipped {image.image}: {image.reason}: {image.detail}"
        stderr.print(line, markup=False, highlight=False)
    if as_json:
        emit(
            {
                "out": str(out) if found.rows else None,
                "what": what,
                "model": asdict(embedder.model),
                "images": found.images,
                "skipped": [asdict(image) for image in found.skipped],
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


def _compute(embedder: "Embedder", what: What) -> Compute:
    """What turns a batch of pictures into rows of the file."""
    if what is What.DESCRIPTOR:
        return lambda pixels: embedder.describe(pixels).cpu().numpy()

    from worker.descriptor.embedders import TorchEmbedder  # noqa: PLC0415 - see above

    if not isinstance(embedder, TorchEmbedder):
        raise ModelError(f"model {embedder.model.name} gives descriptors only, not {what}")
    if what is What.EMBEDDING:
        return lambda pixels: embedder.embedding(pixels).cpu().numpy()
    return lambda pixels: embedder.feature_maps(pixels)[what].cpu().numpy()


def _embed_all(
    files: list[Path], settings: Settings, preprocessing: Preprocessing, compute: Compute
) -> Embedded:
    """Batch by batch, so that only one batch of pictures is in memory."""
    found = Embedded()
    prepare = partial(read, limits=settings.limits, preprocessing=preprocessing)
    with (
        ThreadPoolExecutor(settings.decode.workers) as pool,
        Progress(console=stderr, transient=True) as progress,
    ):
        for batch in batched(progress.track(files, description="images"), settings.batch.max_size):
            pictures: list[Pixels] = []
            for file, picture in zip(batch, pool.map(prepare, batch), strict=True):
                if isinstance(picture, Unscreenable):
                    found.skipped.append(Skipped(str(file), picture.reason, str(picture)))
                else:
                    found.images.append(str(file))
                    pictures.append(picture)
            if pictures:
                found.rows.append(compute(np.stack(pictures)))
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


def _write(out: Path, found: Embedded, model: Model) -> None:
    rows = np.concatenate(found.rows)
    if out.suffix == ".npy":
        np.save(out, rows)
        return
    np.savez(
        out,
        rows=rows,
        images=np.array(found.images),
        model=model.name,
        sha256=model.sha256,
        preprocessing=model.preprocessing,
    )
