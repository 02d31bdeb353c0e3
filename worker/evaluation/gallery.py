"""Everything described once, in every form, and the trials that are made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.evaluation.choices import Bank, Choice, Comparison, Normalisation, hash_scores
from worker.evaluation.splits import Split
from worker.evaluation.trials import Nearest, Numbers, Queries, Score, Trial, find
from worker.image import pdq

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


def trial(gallery: Gallery, system: System, split: Split, normalisation: Normalisation) -> Trial:
    """Compare the copies of a split's references, and its benign pictures, with them."""
    score = _score(gallery, system, split, normalisation)
    everyone, references = np.arange(len(gallery.forms)), split.references
    copies = _in_forms(references, everyone[1:])
    own = np.repeat(np.arange(len(references)), len(everyone) - 1)
    true = np.stack([np.arange(len(copies)), own], axis=1)
    nothing = np.empty((0, 2), np.int64)

    def benign(pictures: Numbers) -> Nearest:
        return find(_in_forms(pictures, everyone), score, references, nothing, NEAREST)[0]

    found, scores = find(copies, score, references, true, NEAREST)
    return Trial(
        own=scores,
        copied=copies,
        upright=gallery.upright,
        copies=found,
        negatives=benign(split.negatives),
        null=benign(split.null),
    )


def _in_forms(pictures: Numbers, forms: Numbers) -> Queries:
    """Each picture in each form."""
    return Queries(np.repeat(pictures, len(forms)), np.tile(forms, len(pictures)))


def _score(gallery: Gallery, system: System, split: Split, normalisation: Normalisation) -> Score:
    if system.model is None:
        (name,) = system.choice.parts
        hashes = gallery.hashes["phash" if name == "phash" else "pdq"]
        known = hashes[split.references, :1]
        if name == "pdq_dihedral":
            known = gallery.versions[split.references]
        return lambda queries: hash_scores(hashes[queries.pictures, queries.forms], known)
    described = gallery.models[system.model]
    bank = Bank(
        references=_floats(described.descriptors[split.references, 0]),
        inverted=_floats(described.inverted[split.references]),
        background=_floats(described.descriptors[split.background, 0]),
    )
    compared = Comparison(system.choice, bank, normalisation)
    return lambda queries: compared.scores(
        _floats(described.descriptors[queries.pictures, queries.forms])
    )


def _floats(rows: npt.NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(rows.astype(np.float32))
