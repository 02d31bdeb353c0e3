"""Calibration: what is learnt from the platform's own benign images.

It turns a cosine into a score, and a score into a rate of false matches. The score is normalised on
the query's side, as in SSCD's evaluation (Pizzi et al., arXiv 2202.10261, section 5):

    score(q, r) = cos(q, r) - beta * mean(the k highest cos(q, b) over the background b)

so an upload that resembles everything has to resemble a reference more than that.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from worker.errors import StoreError
from worker.records import Model

MILLION = 1_000_000
SUPPORTED_BY = 3.0
"""With no exceedance in m images the rate is below 3/m with 95% confidence (the rule of three)."""

_NULL = "null."
_NULL_IMAGES = "null_images"
_AT_ONCE = 4096


@dataclass(frozen=True)
class Calibration:
    """Background and null of one model.

    `background`: float32 [m, d], L2-normalised. `nulls`: for each bank the best score of every null
    image against it, float32 [n] ascending. `null_images`: descriptors of null images, float32
    [n, d], L2-normalised; None where they were not kept. `id` is the digest of the stored artefact.
    """

    id: str
    model_sha256: str
    background: torch.Tensor
    k: int = 3
    beta: float = 0.5
    nulls: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    null_images: torch.Tensor | None = None

    def offsets(self, queries: torch.Tensor) -> torch.Tensor:
        """What to take off each query's cosines: float32 [n, d] -> [n], on the queries' device."""
        background = self.background.to(queries.device)
        best = (queries @ background.T).topk(min(self.k, len(background)), dim=1).values
        return self.beta * best.mean(dim=1)

    def false_matches_per_million(self, bank: str, score: float) -> float | None:
        """Benign uploads in a million that score at least `score` against the bank.

        None where the null was not measured on the bank, or holds too few images to tell.
        """
        null = self.nulls.get(bank)
        if null is None or not len(null):
            return None
        exceedances = len(null) - int(np.searchsorted(null, score, side="left"))
        return MILLION * exceedances / len(null) if exceedances else None

    def false_matches_of(self, rows: torch.Tensor, threshold: float) -> float | None:
        """Benign uploads in a million that one reference alone matches, as the null images have it.

        `rows` are the reference's views, float32 [views, d]; an image matches with a score of at
        least `threshold` against any. None without null images.
        """
        if self._null is None:
            return None
        images, offsets = self._null
        scores = (images @ rows.to(images.device).T).amax(dim=1) - offsets
        return MILLION * int((scores >= threshold).sum()) / len(images)

    @cached_property
    def _null(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The null images with their offsets, made in parts: the background is large too."""
        if self.null_images is None:
            return None
        parts = torch.split(self.null_images, _AT_ONCE)
        return self.null_images, torch.cat([self.offsets(part) for part in parts])

    def threshold(self, bank: str, false_matches_per_million: float) -> float | None:
        """The lowest score whose rate is within the budget; None: not supported by the data."""
        null = self.nulls.get(bank)
        rate = false_matches_per_million / MILLION
        if null is None or rate < SUPPORTED_BY / max(1, len(null)):
            return None
        allowed = int(rate * len(null))
        # The (allowed + 1)-th highest must fall below: just above it.
        return float(np.nextafter(null[len(null) - allowed - 1], np.float32(np.inf)))

    def dump(self) -> bytes:
        """The artefact that the store keeps, an .npz without pickles; `id` is not part of it."""
        buffer = io.BytesIO()
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "model_sha256": np.array(self.model_sha256),
            "background": self.background.cpu().numpy().astype(np.float16),
            "k": np.array(self.k),
            "beta": np.array(self.beta),
        }
        arrays |= {f"{_NULL}{bank}": null for bank, null in self.nulls.items()}
        if self.null_images is not None:
            arrays[_NULL_IMAGES] = self.null_images.cpu().numpy().astype(np.float16)
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


@lru_cache(maxsize=2)
def parse(artefact: bytes) -> Calibration:
    """Read what `Calibration.dump` wrote. Raises StoreError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(artefact)) as packed:
            if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
                raise ValueError("it is compressed")  # and may unpack to anything
        with np.load(io.BytesIO(artefact), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        background = _descriptors(arrays, "background")
        null_images = None
        if _NULL_IMAGES in arrays:
            null_images = _descriptors(arrays, _NULL_IMAGES)
            if null_images.shape[1] != background.shape[1]:
                raise ValueError(f"its {_NULL_IMAGES} have other dims than its background")
        k, beta = int(arrays["k"]), float(arrays["beta"])
        if k < 1 or not 0 <= beta < math.inf:  # a score that is no number matches nothing
            raise ValueError("its k or beta is out of range")
        nulls = {
            name.removeprefix(_NULL): np.sort(values.astype(np.float32).ravel())
            for name, values in arrays.items()
            if name.startswith(_NULL)
        }
        if not all(np.isfinite(null).all() for null in nulls.values()):
            raise ValueError("its null is not finite")
        return Calibration(
            id=hashlib.sha256(artefact).hexdigest()[:16],
            model_sha256=str(arrays["model_sha256"]),
            background=background,
            k=k,
            beta=beta,
            nulls=nulls,
            null_images=null_images,
        )
    except Exception as error:  # noqa: BLE001 - the readers of npz and zip raise many kinds
        raise StoreError(f"the store's calibration cannot be used: {error}") from None


def _descriptors(arrays: Mapping[str, npt.NDArray[np.generic]], name: str) -> torch.Tensor:
    """A matrix of the artefact, L2-normalised. Raises ValueError if empty or not finite."""
    matrix = torch.from_numpy(arrays[name].astype(np.float32))
    rows, dims = matrix.shape
    if not (rows and dims and matrix.isfinite().all()):
        raise ValueError(f"its {name} is empty or not finite")
    return torch.nn.functional.normalize(matrix, dim=1)


def check(artefact: bytes, model: Model) -> None:
    """Raise StoreError for what is no calibration of this model."""
    calibration = parse(artefact)
    dims = calibration.background.shape[1]
    if (calibration.model_sha256, dims) != (model.sha256, model.dims):
        raise StoreError("the store's calibration cannot be used: it is another model's")
