"""Everything described once, in every form, and the trials that are made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.evaluation.choices import Bank, Choice, Comparison, Normalisation, hash_scores
from worker.evaluation.splits import Split
from worker.evaluation.trials import Nearest, Numbers, Queries, Score, Scores, Trial, find
from worker.image import pdq

type Benign = Literal["edited", "unedited"]
"""Whether benign pictures come in all forms, as copies do, or only as they are."""

UNEDITED = "unedited"
NEAREST = 5
"""References that are predicted for a query, for what is told of predictions."""


@dataclass(frozen=True, slots=True)
class Described:
    """Descriptors of one model, float16: [n, forms, d], and of the inverted views, [n, d]."""

    descriptors: npt.NDArray[np.float16]
    inverted: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Gallery:
    """All pictures, each in all `forms`: unedited, then every edit.

    `groups` numbers the scene that each picture shows, [n]. `hashes` has `pdq` and, where
    ImageHash is installed, `phash`: uint8 [n, forms, bytes]. `versions` are the PDQ hashes of each
    picture mirrored and turned, [n, 8, 32].
    """

    names: Sequence[str]
    groups: Numbers
    forms: Sequence[str]
    upright: npt.NDArray[np.bool_]
    models: Mapping[str, Described]
    hashes: Mapping[str, pdq.Hashes]
    versions: pdq.Hashes


@dataclass(frozen=True, slots=True)
class System:
    """A choice, with the model whose descriptors it compares; a hash has none."""

    choice: Choice
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Comparing:
    """How all systems compare: `nearest` references are predicted for a query."""

    normalisation: Normalisation
    nearest: int = NEAREST
    benign: Benign = "edited"


def banks(gallery: Gallery, split: Split) -> dict[str, Bank]:
    """What each model's descriptors are compared with."""
    return {
        name: Bank(
            references=_floats(described.descriptors[split.references, 0]),
            inverted=_floats(described.inverted[split.references]),
            background=_floats(described.descriptors[split.background, 0]),
        )
        for name, described in gallery.models.items()
    }


def trial(
    gallery: Gallery,
    system: System,
    split: Split,
    banks: Mapping[str, Bank],
    comparing: Comparing,
) -> Trial:
    """Compare the copies of a split's references, and its benign pictures, with them."""
    everyone = np.arange(len(gallery.forms))
    copies = _in_forms(split.references, everyone[1:])
    own = np.repeat(np.arange(len(split.references)), len(everyone) - 1)
    true = np.stack([np.arange(len(copies)), own], axis=1)
    forms = everyone if comparing.benign == "edited" else everyone[:1]
    score = scores(gallery, system, split, banks, comparing.normalisation)
    return compare(gallery, score, split, copies, true, forms, comparing)


def compare(
    gallery: Gallery,
    score: Score,
    split: Split,
    copies: Queries,
    true: Numbers,
    benign_forms: Numbers,
    comparing: Comparing,
) -> Trial:
    """Compare queries with the references of a split.

    `true` are the pairs that are to be found, [m, 2]: a copy's place, ascending, and a reference's.
    """
    nothing = np.empty((0, 2), np.int64)

    def nearest(queries: Queries, pairs: Numbers) -> tuple[Nearest, Scores]:
        return find(queries, score, split.references, pairs, comparing.nearest)

    found, own = nearest(copies, true)
    return Trial(
        own=own,
        copied=Queries(copies.pictures[true[:, 0]], copies.forms[true[:, 0]]),
        upright=gallery.upright,
        copies=found,
        negatives=nearest(_in_forms(split.negatives, benign_forms), nothing)[0],
        null=nearest(_in_forms(split.null, benign_forms), nothing)[0],
    )


def _in_forms(pictures: Numbers, forms: Numbers) -> Queries:
    """Each picture in each form."""
    return Queries(np.repeat(pictures, len(forms)), np.tile(forms, len(pictures)))


def scores(
    gallery: Gallery,
    system: System,
    split: Split,
    banks: Mapping[str, Bank],
    normalisation: Normalisation,
) -> Score:
    """What scores queries with the references of a split, whose `banks` are given."""
    if system.model is None:
        (name,) = system.choice.parts
        hashes = gallery.hashes["phash" if name == "phash" else "pdq"]
        known = hashes[split.references, :1]
        if name == "pdq_dihedral":
            known = gallery.versions[split.references]
        return lambda queries: hash_scores(hashes[queries.pictures, queries.forms], known)
    descriptors = gallery.models[system.model].descriptors
    compared = Comparison(system.choice, banks[system.model], normalisation)
    return lambda queries: compared.scores(_floats(descriptors[queries.pictures, queries.forms]))


def _floats(rows: npt.NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(rows.astype(np.float32))
