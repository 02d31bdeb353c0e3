"""A calibration as it is stored: an .npz, uncompressed and without pickles, named by its digest."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from worker.errors import StoreError
from worker.records import Model
from worker.scoring.calibration import Benign, Calibration
from worker.scoring.projection import Projection

FORM = 1
MOST_BETA = 10.0
_DIGEST = 32
_TOLERANCE = 1e-3
"""By which a similarity may be above 1, having been computed in fp32."""

type Arrays = Mapping[str, npt.NDArray[np.generic]]


def write(
    calibration: Calibration,
    background: npt.NDArray[np.float16],
    null: npt.NDArray[np.float16],
) -> Calibration:
    """The same with its artefact and id.

    `background` and `null` are what the calibration has in fp16, as they were before they were
    lengthened to 1: so that they are the same when they are read again.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "form": np.array(FORM),
        "model_sha256": np.array(calibration.model_sha256),
        "made_at": np.array(calibration.made_at),
        "k": np.array(calibration.k),
        "beta": np.array(calibration.beta),
        "looks": np.array(calibration.looks),
        "checked": np.array(calibration.checked, dtype=np.str_),
        "background": background,
        "null": null,
        "groups": calibration.groups,
        "nearest": calibration.nearest,
        "nearest_images": calibration.nearest_images,
    }
    if (projection := calibration.projection) is not None:
        arrays["mean"] = projection.mean.cpu().numpy()
        if projection.matrix is not None:
            arrays["matrix"] = projection.matrix.cpu().numpy()
    if (benign := calibration.benign) is not None:
        arrays |= {"sha256": benign.sha256, "pdq": benign.pdq, "has_pdq": benign.has_pdq}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return read(buffer.getvalue())


@lru_cache(maxsize=2)
def read(artefact: bytes) -> Calibration:
    """Read what `write` made. Raises StoreError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(artefact)) as packed:
            if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
                raise ValueError("it is compressed")  # and may unpack to anything
        with np.load(io.BytesIO(artefact), allow_pickle=False) as stored:
            found = _calibration({name: stored[name] for name in stored.files})
    except zipfile.BadZipFile:
        raise StoreError("the calibration cannot be used: it is no .npz file") from None
    except KeyError as error:
        raise StoreError(f"the calibration cannot be used: it has no {error.args[0]}") from None
    except Exception as error:  # noqa: BLE001 - the readers of npz and zip raise many kinds
        raise StoreError(f"the calibration cannot be used: {error}") from None
    return replace(found, id=hashlib.sha256(artefact).hexdigest()[:16], artefact=artefact)


def read_for(artefact: bytes, model: Model) -> Calibration:
    """Read a calibration of this model. Raises StoreError for another's, and as `read`."""
    calibration = read(artefact)
    if (calibration.model_sha256, calibration.dims) != (model.sha256, model.dims):
        raise StoreError(
            f"the calibration cannot be used: it is of another model than {model.name}"
        )
    return calibration


def _calibration(arrays: Arrays) -> Calibration:
    """Raises ValueError, KeyError or TypeError for what breaks the rules."""
    if "form" not in arrays and "descriptors" in arrays:
        raise ValueError("it is a collection, and `copysieve calibrate --images` makes one of it")
    if int(arrays["form"]) != FORM:
        raise ValueError("it is of another version of copysieve")
    background = _descriptors(arrays["background"], "background", 2)
    null = _descriptors(arrays["null"], "null", 3)
    dims, looks = background.shape[1], tuple(map(str, arrays["looks"].tolist()))
    if null.shape[1:] != (len(looks), dims):
        raise ValueError("its null is of other looks or dims")
    k, beta = int(arrays["k"]), float(arrays["beta"])
    if k < 1 or not 0 <= beta <= MOST_BETA:  # a score that is no number matches nothing
        raise ValueError("its k or beta is out of range")
    groups = arrays["groups"].astype(np.int64, casting="safe")
    if groups.shape != (len(null),):
        raise ValueError("its groups are not the null's")
    nearest = arrays["nearest"].astype(np.float32, casting="equiv")
    images = arrays["nearest_images"].astype(np.int32, casting="equiv")
    count = len(null) * len(looks)
    if (
        nearest.shape != images.shape
        or len(nearest) != count
        or not min(k, len(background)) <= nearest.shape[1] <= len(background)
        or not (np.abs(nearest) <= 1 + _TOLERANCE).all()
        or not ((images >= 0) & (images < len(background))).all()
    ):
        raise ValueError("its nearest images are out of range")
    projection = _projection(arrays, dims)
    if projection is not None and not _is_finite(projection(null.reshape(-1, dims))):
        raise ValueError("its projection gives what is not finite")
    return Calibration(
        model_sha256=str(arrays["model_sha256"]),
        background=background,
        null=null,
        groups=groups,
        looks=looks,
        projection=projection,
        k=k,
        beta=beta,
        nearest=nearest,
        nearest_images=images,
        benign=_benign(arrays, len(background) + len(null)),
        checked=tuple(map(str, arrays["checked"].tolist())),
        made_at=str(arrays["made_at"]),
    )


def _descriptors(stored: npt.NDArray[np.generic], name: str, axes: int) -> Tensor:
    """L2-normalised. Raises ValueError if empty or not finite."""
    found = torch.from_numpy(stored.astype(np.float32))
    if found.ndim != axes or not found.numel() or not found.isfinite().all():
        raise ValueError(f"its {name} is empty or not finite")
    return normalize(found, dim=-1)


def _projection(arrays: Arrays, dims: int) -> Projection | None:
    if "mean" not in arrays:
        return None
    found = [
        torch.from_numpy(arrays[name].astype(np.float32))
        for name in ("mean", "matrix")
        if name in arrays
    ]
    shapes = [tuple(one.shape) for one in found]
    if shapes != [(dims,), (dims, dims)][: len(found)] or not all(map(_is_finite, found)):
        raise ValueError("its projection is of other dims or not finite")
    return Projection(*found)


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _benign(arrays: Arrays, count: int) -> Benign | None:
    if "sha256" not in arrays:
        return None
    sha256, pdq = (arrays[name].astype(np.uint8, casting="equiv") for name in ("sha256", "pdq"))
    has_pdq = arrays["has_pdq"].astype(np.bool_, casting="equiv")
    if sha256.shape != (count, _DIGEST) or pdq.shape != sha256.shape or has_pdq.shape != (count,):
        raise ValueError("its digests are not of its images")
    return Benign(sha256, pdq, has_pdq)
