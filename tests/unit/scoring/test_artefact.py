import contextlib
import io
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from tests.fixtures.hot_set import MODEL, OTHER_MODEL, calibration
from worker.errors import StoreError
from worker.hotset import layout
from worker.scoring import artefact
from worker.scoring.calibration import Benign

LOOKS = ("plain", "centre_crop")
BENIGN = Benign(
    np.arange(50 * 32, dtype=np.int64).astype(np.uint8).reshape(50, 32),
    np.ones((50, 32), dtype=np.uint8),
    np.arange(50) % 2 == 0,
)
WHOLE = calibration(
    looks=LOOKS,
    way="whiten",
    k=5,
    beta=1.0,
    benign=BENIGN,
    checked=("sha256", "pdq"),
)


def plain(value):
    """Numbers of whatever has some, to compare."""
    match value:
        case torch.Tensor():
            return value.numpy().round(3).tolist()
        case np.ndarray():
            return value.tolist()
        case Benign():
            return [plain(getattr(value, one.name)) for one in fields(value)]
    return value


@pytest.mark.parametrize("one", [WHOLE, calibration(), calibration(way="centre")])
def test_what_is_stored_is_read_back(one):
    read = artefact.read(one.artefact)
    for field in fields(one):
        if field.name != "projection":
            assert plain(getattr(read, field.name)) == plain(getattr(one, field.name)), field.name
    queries = one.probes
    torch.testing.assert_close(read.project(queries), one.project(queries))


def test_the_id_is_the_digest_of_the_artefact_which_is_the_same_for_the_same():
    assert calibration(3).artefact == calibration(3).artefact
    assert calibration(3).id == layout.calibration_id(calibration(3).artefact)
    assert calibration(3).id != calibration(3, beta=0.25).id


@pytest.mark.parametrize("stored", [b"", b"PK\x03\x04", b"\x93NUMPY", b"text" * 100])
def test_another_file_is_one_clear_line(stored):
    with pytest.raises(StoreError, match="calibration cannot be used"):
        artefact.read(stored)


def stored(save=np.savez, drop=(), **changes):
    """An artefact with some arrays other than they should be."""
    arrays = dict(np.load(io.BytesIO(WHOLE.artefact))) | changes
    buffer = io.BytesIO()
    save(buffer, **{name: array for name, array in arrays.items() if name not in drop})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "harmful",
    [
        stored(save=np.savez_compressed),
        stored(form=np.array(99)),
        stored(k=np.array(0)),
        stored(k=np.array(-3)),
        stored(k=np.array(np.inf)),
        stored(k=np.array("three")),
        stored(beta=np.array(np.nan)),
        stored(beta=np.array(-1.0)),
        stored(background=np.full((20, 8), np.nan)),
        stored(background=np.zeros((0, 8))),
        stored(background=np.zeros(8)),
        stored(background=np.array([{}], dtype=object)),
        stored(null=np.zeros((0, 2, 8))),
        stored(null=np.ones((30, 1, 8))),
        stored(null=np.full((30, 2, 8), np.inf)),
        stored(groups=np.zeros(29, dtype=np.int64)),
        stored(groups=np.zeros(30)),
        stored(nearest=np.full((60, 13), 2.0, dtype=np.float32)),
        stored(nearest=np.full((60, 13), np.nan, dtype=np.float32)),
        stored(nearest=np.zeros((60, 1), dtype=np.float32)),
        stored(nearest_images=np.full((60, 13), 20, dtype=np.int32)),
        stored(nearest_images=np.full((60, 13), -1, dtype=np.int32)),
        stored(mean=np.zeros(7, dtype=np.float32)),
        stored(matrix=np.full((8, 8), np.nan, dtype=np.float32)),
        stored(sha256=np.zeros((49, 32), dtype=np.uint8)),
        stored(pdq=np.zeros((50, 31), dtype=np.uint8)),
        stored(drop=["groups"]),
        stored(drop=["has_pdq"]),
        stored().replace(b"'shape': (20, 8)", b"'shape': (2**99,)"),
        stored()[:-200],
    ],
)
def test_an_artefact_that_would_do_harm_is_refused(harmful):
    with pytest.raises(StoreError, match="calibration cannot be used"):
        artefact.read(harmful)


@pytest.mark.parametrize("at", range(0, len(stored()), 97))
def test_a_damaged_artefact_is_refused_or_harmless(at):
    damaged = stored()[:at] + b"\xff\xff" + stored()[at + 2 :]
    with contextlib.suppress(StoreError):
        masked = artefact.read(damaged).without(())
        assert masked.offsets(WHOLE.probes).isfinite().all()


def test_a_calibration_is_of_its_model():
    assert artefact.read_for(WHOLE.artefact, MODEL).id == WHOLE.id
    for other in (OTHER_MODEL, replace(MODEL, dims=16)):
        with pytest.raises(StoreError, match="of another model"):
            artefact.read_for(WHOLE.artefact, other)
