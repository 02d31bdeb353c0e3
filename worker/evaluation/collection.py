"""A collection of a platform's own benign images, and the .npz file that holds one.

The file has one row for each image, and is not compressed (`numpy.savez`):

    descriptors    float [n, looks, dims], or [n, dims] where there is one look; L2-normalised
    looks          names of the looks; may be left out where there is one, `plain`
    model_sha256   digest of the model; may be left out, as may all that follow
    names          [n] strings; the row's number if they are left out
    sha256         [n] strings, the digests of the files in hex
    pdq            uint8 [n, 32], or [n] strings in hex, empty where there is none
    pdq_quality    integers [n], 0 to 100
    group          [n], equal where images belong together
    checked        the means by which groups were found; `file` if they are not told
    checked_pairs  integers, how many pairs each of these means found
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from worker import npz
from worker.errors import StartupError, UnscreenedReason
from worker.evaluation import groups
from worker.evaluation.files import private
from worker.evaluation.groups import Fingerprints, Grouping, Means
from worker.image import pdq
from worker.records import Model

NORM_TOLERANCE = 1e-2
"""How far from 1 the norm of a descriptor may be; fp16 takes less than a tenth of it."""
PLAIN = "plain"
_NAMES = (
    "descriptors", "looks", "model_sha256", "names", "sha256", "pdq", "pdq_quality", "group",
    "checked", "checked_pairs",
)  # fmt: skip
_KINDS = {"U": "text", "f": "float", "u": "uint8", "iu": "integers", "iuU": "integers or text"}
_SHA256, _PDQ = "[0-9a-f]{64}", "([0-9a-f]{64})?"
_AT_ONCE = 1 << 12

type Descriptors = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Failed:
    """A file that is no image of the collection. `reason` is one of the verdicts' closed list."""

    image: str
    reason: UnscreenedReason
    detail: str


@dataclass(frozen=True, eq=False)
class Collection:
    """n distinct images: equal bytes are one. Lists and arrays are in the same order.

    `descriptors` are fp16 [n, looks, dims], L2-normalised, `looks` the names of the views.
    `repeated` gives the number of the image that another file has the bytes of.
    """

    model: Model
    looks: tuple[str, ...]
    names: tuple[str, ...]
    descriptors: Descriptors
    fingerprints: Fingerprints
    grouping: Grouping
    repeated: Mapping[str, int] = field(default_factory=dict)
    failed: tuple[Failed, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def plain(self) -> Descriptors:
        """Those of the images as they are, fp16 [n, dims]."""
        found: Descriptors = self.descriptors[:, self.looks.index(PLAIN)]
        return found


def save(collection: Collection, file: Path) -> None:
    """Write a collection, without key points and failures; only its owner can read the file.

    It is there whole or not at all. Raises StartupError.
    """
    known = collection.fingerprints
    with private(file) as partial:
        np.savez(
            partial,
            allow_pickle=False,
            descriptors=collection.descriptors,
            looks=np.array(collection.looks),
            model_sha256=np.array(collection.model.sha256),
            names=np.array(collection.names),
            sha256=np.array(known.sha256),
            pdq=known.pdq,
            pdq_quality=known.quality,
            group=collection.grouping.groups,
            checked=np.array(list(collection.grouping.pairs), dtype=str),
            checked_pairs=np.array(list(collection.grouping.pairs.values()), dtype=np.int64),
        )


def load(file: Path, looks: Sequence[str], model: Model) -> Collection:
    """Read a collection of this model, in these looks. Raises StartupError in one line."""
    try:
        return _collection(_Arrays(npz.read(file, _NAMES)), looks, model)
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror or 'unreadable'}") from None
    except ValueError as error:
        raise StartupError(f"{file}: {error}") from None


class _Arrays:
    """What a file has, each array of the kind and length that it must be. Raises ValueError."""

    def __init__(self, arrays: npz.Arrays) -> None:
        self._arrays = arrays

    def rows(self, name: str, kinds: str, *shape: int) -> npt.NDArray[Any] | None:
        """An array of one of NumPy's kinds and of that shape (-1: any), if it is there."""
        found = self._arrays.get(name)
        if found is None:
            return None
        fits = len(found.shape) == len(shape) and all(
            wanted in (-1, length) for wanted, length in zip(shape, found.shape, strict=True)
        )
        if found.dtype.kind not in kinds or not fits:
            expected = [length if length >= 0 else "any" for length in shape]
            raise ValueError(
                f"{name}: expected {_KINDS[kinds]} {expected}, found {found.dtype} {found.shape}"
            )
        return found

    def dimensions(self, name: str) -> int | None:
        """How many an array has, if it is there."""
        found = self._arrays.get(name)
        return None if found is None else found.ndim

    def texts(self, name: str, count: int, form: str = ".+") -> list[str] | None:
        """Strings that match `form`, if they are there; as many as that (-1: any number)."""
        found = self.rows(name, "U", count)
        if found is None:
            return None
        texts: list[str] = found.tolist()
        for number, text in enumerate(texts):
            if not re.fullmatch(form, text):
                raise ValueError(f"{name}: row {number} is none")
        return texts


def _collection(arrays: _Arrays, looks: Sequence[str], model: Model) -> Collection:
    told = arrays.rows("model_sha256", "U")
    if told is not None and str(told) != model.sha256:
        raise ValueError("its descriptors are another model's")
    descriptors = _descriptors(arrays, looks, model)
    n = len(descriptors)
    names = arrays.texts("names", n) or [str(number) for number in range(n)]
    if len(set(names)) < n:
        raise ValueError("names: one comes twice")
    fingerprints = _fingerprints(arrays, n)
    kept, repeated = _distinct(names, fingerprints.sha256)
    fingerprints = Fingerprints(
        tuple(fingerprints.sha256[number] for number in kept),
        fingerprints.pdq[kept],
        fingerprints.quality[kept],
    )
    return Collection(
        model=model,
        looks=tuple(looks),
        names=tuple(names[number] for number in kept),
        descriptors=descriptors[kept],
        fingerprints=fingerprints,
        grouping=_grouping(arrays, n, kept) or groups.group(fingerprints),
        repeated=repeated,
    )


def _descriptors(arrays: _Arrays, looks: Sequence[str], model: Model) -> Descriptors:
    """The looks that are asked for, in their order: fp16 [n, looks, dims]."""
    names = arrays.texts("looks", -1) or [PLAIN]
    shape = (-1, len(names), model.dims)
    one_look = len(names) == 1 and arrays.dimensions("descriptors") == len(shape) - 1
    rows = arrays.rows("descriptors", "f", *((-1, model.dims) if one_look else shape))
    if rows is None or not len(rows):
        raise ValueError("it has no descriptors")
    missing = set(looks) - set(names)
    if missing:
        raise ValueError(f"looks: there is no {', '.join(sorted(missing))}")
    rows = rows.reshape(shape)
    chosen = [names.index(look) for look in looks]
    found: Descriptors = np.empty((len(rows), len(chosen), model.dims), np.float16)
    for begin in range(0, len(rows), _AT_ONCE):
        some = rows[begin : begin + _AT_ONCE, chosen].astype(np.float32)
        norms = np.linalg.norm(some, axis=2, keepdims=True)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE).all(axis=(1, 2)))
        if len(wrong):  # what is not finite is among them
            raise ValueError(f"descriptors: row {begin + wrong[0]} is not of norm 1")
        found[begin : begin + _AT_ONCE] = some / norms
    return found


def _fingerprints(arrays: _Arrays, n: int) -> Fingerprints:
    sha256 = arrays.texts("sha256", n, _SHA256) or [""] * n
    hashes = np.zeros((n, pdq.BYTES), np.uint8)
    there = np.zeros(n, bool)
    if arrays.dimensions("pdq") == 1:
        texts = arrays.texts("pdq", n, _PDQ) or []
        there = np.array([bool(text) for text in texts])
        digits = "".join(text or "00" * pdq.BYTES for text in texts)
        hashes = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(n, pdq.BYTES)
    elif (rows := arrays.rows("pdq", "u", n, pdq.BYTES)) is not None:
        hashes, there = rows.astype(np.uint8), np.ones(n, bool)
    quality = arrays.rows("pdq_quality", "iu", n)
    if quality is None:
        quality = np.full(n, 100)
    return Fingerprints(sha256, hashes, np.where(there, quality.clip(0, 100), 0).astype(np.uint8))


def _distinct(names: Sequence[str], sha256: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """The rows that are the first of their bytes; and of the others, which of these they repeat."""
    kept: list[int] = []
    repeated: dict[str, int] = {}
    places: dict[str, int] = {}
    for number, digest in enumerate(sha256):
        if digest and digest in places:
            repeated[names[number]] = places[digest]
        else:
            places[digest] = len(kept)
            kept.append(number)
    return kept, repeated


def _grouping(arrays: _Arrays, n: int, kept: Sequence[int]) -> Grouping | None:
    """As the file has it, if it does."""
    told = arrays.rows("group", "iuU", n)
    if told is None:
        return None
    named = {place: str(told[number]) for place, number in enumerate(kept)}
    joined = groups.join(Grouping(np.arange(len(kept)), {}), named)
    known: tuple[Means, ...] = get_args(Means.__value__)
    checked = arrays.texts("checked", -1, "|".join(known))
    if checked is None:
        return joined
    found = arrays.rows("checked_pairs", "iu", len(checked))
    pairs = dict.fromkeys(checked, 0)
    if found is not None:
        pairs = dict(zip(checked, found.tolist(), strict=True))
    return Grouping(joined.groups, {means: pairs[means] for means in known if means in pairs})
