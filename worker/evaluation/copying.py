"""How copies of a collection's own images score, to set beside how benign images do."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from itertools import batched
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from worker.descriptor.embedders import Embedder, describe_each
from worker.errors import Unscreenable
from worker.evaluation import describing
from worker.evaluation.calibrating import Calibrated
from worker.evaluation.edits import EDITS, OTHERS, copy_of
from worker.image.decoder import Decoder
from worker.records import Looks
from worker.scoring.calibration import Masked
from worker.settings import Settings, Views

MOST = 30
"""Images that copies are made of, each in all single edits."""


class Copied(NamedTuple):
    """Scores of copies against the images that they are of, float32 [copies]; of how many."""

    scores: npt.NDArray[np.float32]
    images: int


def copy_scores(
    made: Calibrated,
    folder: Path,
    settings: Settings,
    embedder: Embedder,
    advance: Callable[[int], object] = lambda _: None,
    seed: int = 1,
) -> Copied:
    """Make copies of some null images in all single edits, and score them.

    Copies that could not be screened are left out; of too few pictures there are none.
    `advance` is told how many more images are done.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(made.null)[:MOST]
    files = [folder / made.collection.names[number] for number in chosen.tolist()]
    pictures, _ = describing.read(files, settings, lambda _: None)
    if len(pictures) <= OTHERS:
        return Copied(np.empty(0, dtype=np.float32), 0)
    numbers = {folder / name: number for number, name in enumerate(made.collection.names)}
    edits = [edit for edit in EDITS.values() if "+" not in edit.name]
    masked = made.calibration.without(())
    scores: list[float] = []
    decoder = Decoder(settings.decode, settings.limits, embedder.preprocessing, Views(renditions=1))
    with closing(decoder):
        for place, picture in enumerate(pictures):
            others = [one.image for one in (*pictures[:place], *pictures[place + 1 :])]
            copies = [copy_of(picture.image, picture.key, edit, seed, others) for edit in edits]
            original = made.collection.plain[numbers[picture.file]].astype(np.float32)
            row = torch.from_numpy(original)
            scores += _scores(copies, row, masked, decoder, embedder, settings)
            advance(1)
    return Copied(np.array(scores, dtype=np.float32), len(pictures))


def _scores(
    copies: Sequence[bytes],
    original: torch.Tensor,
    masked: Masked,
    decoder: Decoder,
    embedder: Embedder,
    settings: Settings,
) -> list[float]:
    scores: list[float] = []
    for some in batched(copies, settings.batch.max_size):
        looks = [pixels for copy in some if (pixels := _looks(copy, decoder)) is not None]
        described = describe_each(embedder, looks)
        found = [one.cpu() for one in described if not isinstance(one, Unscreenable)]
        if not found:
            continue
        rows = torch.cat(found)
        project = masked.calibration.project
        similar = project(rows) @ project(original[None])[0]
        scores += (similar - masked.offsets(rows)).tolist()
    return scores


def _looks(copy: bytes, decoder: Decoder) -> Looks | None:
    """None: the worker would not screen it, as a copy of a picture at the edge of its limits."""
    try:
        return decoder.prepare(copy, nullcontext).pixels
    except Unscreenable:
        return None
