"""From descriptors of benign images to a calibration."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from worker.scoring import artefact
from worker.scoring.calibration import SPARE, Benign, Calibration
from worker.scoring.projection import SHRINKAGE, Projection, centering, whitening

K = 3
MANY_IMAGES, STRONG_BETA, WEAK_BETA = 1000, 1.0, 0.5
"""A small background is taken off by half: it resembles all uploads less than a large one."""
FEWEST_TO_WHITEN = 100
_AT_ONCE = 4096

type Way = Literal["none", "centre", "whiten"]
"""How descriptors are projected before they are compared."""


def usual_beta(images: int) -> float:
    """How much of the background's similarity comes off, for a background of so many images."""
    return STRONG_BETA if images >= MANY_IMAGES else WEAK_BETA


def learn(
    model_sha256: str,
    background: npt.NDArray[np.float16],
    null: npt.NDArray[np.float16],
    groups: npt.NDArray[np.int64],
    *,
    looks: Sequence[str] = ("plain",),
    way: Way = "none",
    shrinkage: float = SHRINKAGE,
    k: int = K,
    beta: float | None = None,
    benign: Benign | None = None,
    checked: Sequence[str] = (),
    made_at: datetime | None = None,
) -> Calibration:
    """Learn a calibration and write its artefact.

    `background` is [m, d], and `null` [n, looks, d] of other images, whose `groups` are [n];
    `benign` goes with both, the background first. Raises StoreError where they do not go together.
    """
    ways: Mapping[Way, Callable[[Tensor], Projection]] = {
        "centre": centering,
        "whiten": partial(whitening, shrinkage=shrinkage),
    }
    # As they will be read, so that what is learnt goes with what is stored.
    rows, images = (
        normalize(torch.from_numpy(each).float(), dim=-1) for each in (background, null)
    )
    projection = ways[way](rows) if way in ways else None
    project = projection or (lambda descriptors: descriptors)
    probes = project(images.reshape(-1, rows.shape[1]))
    similar, numbers = nearest(probes, project(rows), k)
    learnt = Calibration(
        model_sha256=model_sha256,
        background=rows,
        null=images,
        groups=groups,
        looks=tuple(looks),
        projection=projection,
        k=k,
        beta=usual_beta(len(rows)) if beta is None else beta,
        nearest=similar,
        nearest_images=numbers,
        benign=benign,
        checked=tuple(checked),
        made_at=(made_at or datetime.now(UTC)).isoformat(timespec="seconds"),
    )
    return artefact.write(learnt, background, null)


def nearest(
    probes: Tensor, background: Tensor, k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """The highest similarities of probes to the background, and which images have them.

    Both are projected; float32 [p, d] and [m, d] -> [p, min(m, k + SPARE)], highest first.
    """
    count = min(len(background), k + SPARE)
    parts = [(some @ background.T).topk(count, dim=1) for some in torch.split(probes, _AT_ONCE)]
    values = torch.cat([part.values for part in parts]).numpy()
    return values, torch.cat([part.indices for part in parts]).numpy().astype(np.int32)
