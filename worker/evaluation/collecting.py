"""From a folder of pictures to a collection, or from a file that holds one.

Pictures are not kept: of each there are its descriptors, its fingerprints, and where it is to be
aligned, its key points.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worker.descriptor.embedders import Embedder, describe_each
from worker.errors import StartupError, Unscreenable
from worker.evaluation import groups
from worker.evaluation.collection import PLAIN, Collection, Descriptors, Failed, load
from worker.evaluation.groups import Fingerprints, OnProgress
from worker.image import pdq
from worker.image.decoder import Decoder
from worker.image.files import bytes_of, walk
from worker.image.preprocess import boxes
from worker.records import Looks, Pixels
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.image.alignment import Features

MOST_ALIGNED = 5000
"""Images of a collection that are aligned, at 50 ms and 80 KB each. Of more, none are."""

type Check = Callable[[int], object]
"""Told how many images there are at most, once they are listed. It may raise."""


def read(
    images: Path,
    settings: Settings,
    embedder: Embedder,
    groups_file: Path | None = None,
    most_aligned: int = MOST_ALIGNED,
    on_progress: OnProgress = lambda _what, _share: None,
    check: Check = lambda _: None,
) -> Collection:
    """Read a folder, describing its images in the looks of the settings, or an .npz file.

    Of an animated image the first frame is described. More than `most_aligned` images are not
    aligned. `groups_file` is as in `groups.read_groups`, of paths in the folder, or of `names`.
    `check` is called before anything is described. Raises StartupError where there is no image, or
    what there is does not fit the model.
    """
    if images.is_dir():
        files = list(walk([images]))
        check(len(files))
        if groups_file is not None:  # a wrong line is told before hours are spent
            names = (file.relative_to(images).as_posix() for file in files)
            groups.read_groups(groups_file, dict.fromkeys(names))
        found = _described(images, files, settings, embedder, most_aligned, on_progress)
    elif images.suffix == ".npz":
        found = load(images, tuple(boxes(settings.views)), embedder.model)
        check(len(found))
    else:
        raise StartupError(f"{images}: expected a folder or an .npz file")
    if groups_file is None:
        return found
    numbers: dict[str, int | None] = {name: number for number, name in enumerate(found.names)}
    numbers |= found.repeated
    numbers |= {one.image: None for one in found.failed}
    given = groups.read_groups(groups_file, numbers)
    return replace(found, grouping=groups.join(found.grouping, given))


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is left of a file once it is decoded; `looks` go when they are described."""

    name: str
    sha256: str
    looks: Looks
    pdq: bytes
    quality: int
    features: "Features | None"


@dataclass(slots=True)
class _Found:
    """What a folder has so far. `fates` are the numbers of images, or why there is none, by digest.

    `kept` are the images with their looks gone; `descriptors` has room for all files.
    """

    descriptors: Descriptors
    kept: list[_Picture] = field(default_factory=list)
    fates: dict[str, int | Unscreenable] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)

    def fail(self, name: str, error: Unscreenable) -> None:
        """Leave out a file."""
        self.failed.append(Failed(name, error.reason, str(error)))


def _described(
    folder: Path,
    files: Sequence[Path],
    settings: Settings,
    embedder: Embedder,
    most_aligned: int,
    on_progress: OnProgress,
) -> Collection:
    views = settings.views.model_copy(update={"renditions": 1})
    names = tuple(boxes(views))
    extract: Callable[[Pixels], Features] | None = None
    if len(files) <= most_aligned:
        from worker.image.alignment import features as extract  # noqa: PLC0415 - needs an extra

    def picture(file: Path) -> _Picture | Failed:
        name = file.relative_to(folder).as_posix()
        try:
            seen = decoder.prepare(bytes_of(file, settings.limits), nullcontext)
        except Unscreenable as error:
            return Failed(name, error.reason, str(error))
        plain = seen.pixels[names.index(PLAIN)]
        features = extract(plain) if extract else None
        return _Picture(name, seen.info.sha256, seen.pixels, *pdq.hash_of(plain), features)

    found = _Found(np.empty((len(files), len(names), embedder.model.dims), np.float16))
    decoder = Decoder(settings.decode, settings.limits, embedder.preprocessing, views)
    size = max(1, settings.batch.max_size // len(names))
    with closing(decoder), ThreadPoolExecutor(settings.decode.workers) as pool:
        done = 0
        for batch in _one_ahead(pool, picture, files, size):
            _take_in(batch, embedder, found)
            done += len(batch)
            on_progress("describe", done / len(files))
    if not found.kept:
        raise StartupError(f"{folder}: there is no image that can be described")
    fingerprints = _fingerprints(found.kept, aligned=extract is not None)
    return Collection(
        model=embedder.model,
        looks=names,
        names=tuple(one.name for one in found.kept),
        descriptors=found.descriptors[: len(found.kept)],
        fingerprints=fingerprints,
        grouping=groups.group(fingerprints, on_progress),
        repeated=found.repeated,
        failed=tuple(found.failed),
    )


def _one_ahead[S, T](
    pool: Executor, work: Callable[[S], T], sources: Sequence[S], size: int
) -> Iterator[list[T]]:
    """What `work` makes of the sources, in batches; the pool has the next one in hand already."""
    batches: deque[list[Future[T]]] = deque()
    for sources_of_batch in batched(sources, size):
        batches.append([pool.submit(work, source) for source in sources_of_batch])
        if len(batches) > 1:
            yield [one.result() for one in batches.popleft()]
    for batch in batches:
        yield [one.result() for one in batch]


def _take_in(batch: Sequence[_Picture | Failed], embedder: Embedder, found: _Found) -> None:
    """Describe what is new; equal bytes share one fate."""
    pictures = [one for one in batch if isinstance(one, _Picture)]
    found.failed += [one for one in batch if isinstance(one, Failed)]
    new = {one.sha256: one for one in reversed(pictures) if one.sha256 not in found.fates}
    fresh = [one for one in pictures if new.get(one.sha256) is one]
    described = describe_each(embedder, [one.looks for one in fresh])
    for one, rows in zip(fresh, described, strict=True):
        if isinstance(rows, Unscreenable):
            found.fates[one.sha256] = rows
        else:
            number = found.fates[one.sha256] = len(found.kept)
            found.descriptors[number] = rows.cpu().numpy()
            found.kept.append(replace(one, looks=one.looks[:0].copy()))
    for one in pictures:
        fate = found.fates[one.sha256]
        if isinstance(fate, Unscreenable):
            found.fail(one.name, fate)
        elif found.kept[fate].name != one.name:
            found.repeated[one.name] = fate


def _fingerprints(pictures: Sequence[_Picture], *, aligned: bool) -> Fingerprints:
    return Fingerprints(
        sha256=tuple(one.sha256 for one in pictures),
        pdq=np.frombuffer(b"".join(one.pdq for one in pictures), np.uint8).reshape(-1, pdq.BYTES),
        quality=np.array([one.quality for one in pictures], np.uint8),
        features=[one.features for one in pictures if one.features] if aligned else None,
    )
