"""Calibration: what is learnt from the platform's own benign images.

It turns a cosine into a score (see projection.py), and a bank's budget of false matches into a
threshold: by its null images, which are benign, and how the best of a bank scores for each of them.
How that is for a bank is not in here, for it changes with the bank: the mirror keeps it up to date.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.scoring.projection import Projection, offsets

SPARE = 8
"""Nearest background images that are noted of each null image beyond k: so many may be masked."""


@dataclass(frozen=True, eq=False)
class Benign:
    """What is kept of every image: first of the background, then of the null, in their order.

    `sha256` is uint8 [n, 32]. `pdq` is uint8 [n, 32], and `has_pdq` bool [n] tells where there is
    one: a hash of a picture with little to see says nothing.
    """

    sha256: npt.NDArray[np.uint8]
    pdq: npt.NDArray[np.uint8]
    has_pdq: npt.NDArray[np.bool_]

    @cached_property
    def names(self) -> list[str]:
        """The digests in hex."""
        return [row.tobytes().hex() for row in self.sha256]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Background and null of one model. `id` is the digest of the stored `artefact`.

    `background` is float32 [m, d], L2-normalised, and `null` float32 [n, looks, d] of other images,
    each in the upload's `looks`; `groups` int64 [n] has one number for null images of one scene,
    series or artwork. `nearest` are the highest similarities of each of the null's looks to the
    background, float32 [n * looks, k + SPARE] at most, and `nearest_images` which images those are.
    `checked` tells how copies and groups were looked for; `made_at` is ISO 8601.
    """

    model_sha256: str
    background: Tensor
    null: Tensor
    groups: npt.NDArray[np.int64]
    nearest: npt.NDArray[np.float32]
    nearest_images: npt.NDArray[np.int32]
    looks: tuple[str, ...] = ("plain",)
    projection: Projection | None = None
    k: int = 3
    beta: float = 0.5
    benign: Benign | None = None
    checked: tuple[str, ...] = ()
    made_at: str = ""
    id: str = ""
    artefact: bytes = b""

    @property
    def dims(self) -> int:
        """Of a descriptor."""
        return self.background.shape[1]

    @property
    def probes(self) -> Tensor:
        """The null's looks, one image's after the other: float32 [n * looks, d]."""
        return self.null.reshape(-1, self.dims)

    @cached_property
    def projected_probes(self) -> Tensor:
        """The probes where they are compared."""
        return self.project(self.probes)

    def project(self, descriptors: Tensor) -> Tensor:
        """Descriptors, float32 [n, d], to where they are compared."""
        return descriptors if self.projection is None else self.projection(descriptors)

    def without(self, copies: Iterable[str], device: torch.device | str = "cpu") -> "Masked":
        """The calibration without the images that are copies of references."""
        masked = frozenset(copies)
        kept = np.ones(len(self.background) + len(self.null), dtype=bool)
        if masked and self.benign is not None:
            kept &= [name not in masked for name in self.benign.names]
        in_background, in_null = np.split(kept, [len(self.background)])
        background = self.project(self.background.to(device))
        if not in_background.all():
            background = background[torch.from_numpy(in_background).to(device)]
        return Masked(self, masked, background, self._null_offsets(in_background), in_null)

    def _null_offsets(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Offsets of the null's looks by the images of the background that are kept, [n, looks]."""
        if not len(self.probes) or self.beta == 0 or not kept.any():
            return np.zeros(self.null.shape[:2], dtype=np.float32)
        k = min(self.k, int(kept.sum()))
        there = kept[self.nearest_images]
        # Of each row the first k that are left; they come in order.
        first = there & (np.cumsum(there, axis=1) <= k)
        means = np.where(first, self.nearest, 0).sum(axis=1) / k
        short = first.sum(axis=1) < k
        if short.any():
            background = self.project(self.background)[torch.from_numpy(kept)]
            probes = self.project(self.probes[torch.from_numpy(short)])
            means[short] = offsets(probes, background, k, 1.0).numpy()
        return (self.beta * means).astype(np.float32).reshape(self.null.shape[:2])


@dataclass(frozen=True, eq=False)
class Masked:
    """A calibration less the images that are copies of references.

    `background` is float32 [m, d], projected, on the device; `null_offsets` float32 [n, looks];
    `in_null` bool [n] tells which null images are left, `copies` the digests of those that are not.
    """

    calibration: Calibration
    copies: frozenset[str]
    background: Tensor
    null_offsets: npt.NDArray[np.float32]
    in_null: npt.NDArray[np.bool_]

    def offsets(self, queries: Tensor) -> Tensor:
        """What to take off each query's similarities: float32 [n, d] on the device -> [n]."""
        known = self.calibration
        return offsets(known.project(queries), self.background, known.k, known.beta)

    def knows(self, looks: Sequence[str]) -> bool:
        """Whether the null images were described in all of these looks."""
        return set(looks) <= set(self.calibration.looks)

    def null_scores(
        self, best: npt.NDArray[np.float32], looks: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """Scores of the null images that are left, of each the best of these looks.

        `best` are similarities of the probes, float32 [n * looks].
        """
        columns = [self.calibration.looks.index(look) for look in looks]
        scores = best.reshape(self.null_offsets.shape) - self.null_offsets
        found: npt.NDArray[np.float32] = scores[self.in_null][:, columns].max(axis=1)
        return found

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Of the null images that are left."""
        return self.calibration.groups[self.in_null]

    def false_matches_of(
        self, rows: Tensor, threshold: float, looks: Sequence[str], copies: Iterable[str] = ()
    ) -> float:
        """Share of the null images that one reference matches alone.

        `rows` are its views, float32 [views, d]; an image matches with a score of at least
        `threshold` of any of its looks to any of them. `copies` of it are not benign.
        """
        if copies := {*copies}:
            return self.calibration.without(self.copies | copies).false_matches_of(
                rows, threshold, looks
            )
        known = self.calibration
        similar = known.projected_probes @ known.project(rows.cpu().float()).T
        scores = self.null_scores(similar.amax(dim=1).numpy(), looks)
        return float((scores >= threshold).mean()) if len(scores) else 0.0
