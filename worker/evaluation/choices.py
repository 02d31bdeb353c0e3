"""The ways to compare that are evaluated, by name, and the scores that each gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from worker.image import pdq
from worker.scoring.projection import Projection, centering, offsets, whitening

COSINE = "cosine"
_OF_DESCRIPTORS = ("centered", "whitened", "normalised", "views")
PHASH = "phash"
LARGE = 1000
"""Images of a background that may be trusted with more."""
HASHES = ("pdq", "pdq_dihedral", PHASH)
PARTS = (COSINE, *_OF_DESCRIPTORS, *HASHES)
MEANINGS = {
    COSINE: "of the descriptors",
    "centered": "the cosine after the background's mean is taken off",
    "whitened": "the cosine after whitening by the background",
    "normalised": "less a share of the mean of the highest cosines with the background",
    "views": "references with their colours inverted, too: the higher of both",
    "pdq": "PDQ of 256 bits: the distance, negative",
    "pdq_dihedral": "the same with references mirrored and turned",
    PHASH: "pHash of 64 bits: the distance, negative",
}
"""What each part makes of a score, in a line."""
ALL = (
    *PARTS,
    "normalised+views",
    "whitened+views",
    "whitened+normalised+views",
)
"""What is evaluated unless something is named; `phash` only where ImageHash is installed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to compare: `parts` in the order of `PARTS`, none for the plain cosine."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read `whitened+views`. Raises ValueError in one line for what is no choice."""
        named = [part.strip() for part in text.split("+")]
        unknown = [part for part in named if part not in PARTS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
        if len(named) > 1 and set(named) & set(HASHES):
            raise ValueError(f"{text!r}: a hash goes with nothing else")
        if {"centered", "whitened"} <= set(named):
            raise ValueError(f"{text!r}: whitening centres already")
        return cls(tuple(part for part in PARTS if part in named and part != COSINE))

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "+".join(self.parts) or COSINE

    @property
    def is_hash(self) -> bool:
        """Whether it does without a model."""
        return self.parts[:1] != () and self.parts[0] in HASHES

    @property
    def needs_background(self) -> bool:
        """Whether it learns from benign pictures."""
        return bool({"centered", "whitened", "normalised"} & set(self.parts))

    def without(self) -> Iterable["Choice"]:
        """The same with each of its parts left out."""
        if not self.is_hash:
            for part in self.parts:
                yield Choice(tuple(one for one in self.parts if one != part))


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How scores are normalised: see `worker.scoring.projection`.

    `beta` None: by the size of the background, 0.5 below `LARGE` images, 1.0 from there on.
    """

    k: int = 3
    beta: float | None = None

    def beta_for(self, background: int) -> float:
        """The factor for a background of so many images."""
        if self.beta is not None:
            return self.beta
        return 1.0 if background >= LARGE else 0.5


@dataclass(frozen=True, eq=False)
class Bank:
    """What uploads are compared with: float32 [n, d] of each, L2-normalised.

    `inverted` has the references' inverted views, row by row.
    """

    references: Tensor
    inverted: Tensor
    background: Tensor

    @cached_property
    def centering(self) -> Projection:
        """What the background's mean gives."""
        return centering(self.background)

    @cached_property
    def whitening(self) -> Projection:
        """What the background's covariance gives."""
        return whitening(self.background)


class Comparison:
    """One choice, made ready for one bank."""

    def __init__(self, choice: Choice, bank: Bank, normalisation: Normalisation) -> None:
        self._project: Projection | None = None
        if "whitened" in choice.parts:
            self._project = bank.whitening
        elif "centered" in choice.parts:
            self._project = bank.centering
        self._normalisation = normalisation if "normalised" in choice.parts else None
        self._background = self._projected(bank.background)
        self._references = self._projected(bank.references)
        self._inverted = self._projected(bank.inverted) if "views" in choice.parts else None

    def scores(self, queries: Tensor) -> Tensor:
        """Scores of queries, float32 [n, d], with all references: [n, references]."""
        queries = self._projected(queries)
        found = queries @ self._references.T
        if self._inverted is not None:
            found = torch.maximum(found, queries @ self._inverted.T)
        if self._normalisation is not None:
            k, beta = self._normalisation.k, self._normalisation.beta_for(len(self._background))
            found -= offsets(queries, self._background, k, beta)[:, None]
        return found

    def _projected(self, descriptors: Tensor) -> Tensor:
        return descriptors if self._project is None else self._project(descriptors)


def hash_scores(queries: pdq.Hashes, references: pdq.Hashes) -> Tensor:
    """Scores of hashes, uint8 [n, bytes], with references of some versions [r, versions, bytes].

    The distance of the nearest version, negated: float32 [n, r].
    """
    versions = references.shape[1]
    apart = pdq.distances(queries, references.reshape(-1, references.shape[2]))
    nearest = apart.reshape(len(queries), -1, versions).min(axis=2)
    return -torch.from_numpy(nearest.astype("float32"))
