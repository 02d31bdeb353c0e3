import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreError
from worker.records import Model
from worker.scoring.calibration import MILLION, Calibration, check, parse


def units(rows, dims=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dims, generator=generator), dim=1)


def made(null=(), **fields):
    nulls = {"bad": np.sort(np.asarray(null, np.float32))}
    return Calibration("id", "a" * 64, units(20), nulls=nulls, **fields)


def test_the_offset_is_beta_times_the_mean_of_the_best_background_cosines():
    calibration = made(k=3, beta=0.5)
    queries = units(4, seed=1)
    similar = np.sort(queries.numpy() @ calibration.background.numpy().T, axis=1)
    assert calibration.offsets(queries).numpy() == pytest.approx(0.5 * similar[:, -3:].mean(axis=1))


def test_rate_and_threshold_come_from_the_null_of_the_bank():
    null = np.arange(1000) / 1000
    calibration = made(null)
    assert calibration.false_matches_per_million("bad", 0.99) == pytest.approx(10_000)
    assert calibration.false_matches_per_million("bad", 2.0) is None
    assert calibration.false_matches_per_million("other", 0.5) is None
    threshold = calibration.threshold("bad", 10_000)
    assert (np.asarray(null, np.float32) >= threshold).sum() == 10
    assert calibration.threshold("bad", 2_999) is None, "below 3/m: the data do not support it"
    assert calibration.threshold("other", 10_000) is None


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=300),
    st.floats(1, MILLION),
)
def test_no_threshold_lets_through_more_than_its_budget(null, budget):
    calibration = made(null)
    threshold = calibration.threshold("bad", budget)
    if threshold is not None:
        exceeding = (calibration.nulls["bad"] >= threshold).mean()
        assert exceeding <= budget / MILLION + 1e-9


def test_what_is_stored_is_read_back():
    calibration = made([0.1, 0.3], k=5, beta=1.0)
    read = parse(calibration.dump())
    assert (read.model_sha256, read.k, read.beta) == ("a" * 64, 5, 1.0)
    assert read.background.numpy() == pytest.approx(calibration.background.numpy(), abs=1e-3)
    assert read.nulls["bad"].tolist() == pytest.approx([0.1, 0.3])
    assert read.id == parse(calibration.dump()).id != "id"


def test_null_images_tell_what_one_reference_matches():
    images, rows = units(500, seed=3), units(2, seed=4)
    calibration = made(null_images=images)
    scores = (images @ rows.T).amax(dim=1) - calibration.offsets(images)
    for one in (calibration, parse(calibration.dump())):
        rate = one.false_matches_of(rows, 0.2)
        assert rate == pytest.approx(MILLION * (scores >= 0.2).double().mean(), abs=MILLION / 100)
        assert rate > 0
        assert one.false_matches_of(rows, 2.0) == 0
    assert made().false_matches_of(rows, 0.2) is None


@pytest.mark.parametrize("artefact", [b"", b"PK\x03\x04", b"\x93NUMPY", b"text" * 100])
def test_another_artefact_is_one_clear_line(artefact):
    with pytest.raises(StoreError, match="calibration cannot be used"):
        parse(artefact)


def stored(save=np.savez, **changes):
    """An artefact with some arrays other than they should be."""
    arrays = dict(np.load(io.BytesIO(made([0.1]).dump()))) | changes
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "artefact",
    [
        stored(save=np.savez_compressed),
        stored(k=np.array(0)),
        stored(k=np.array(-3)),
        stored(k=np.array(np.inf)),
        stored(k=np.array("three")),
        stored(beta=np.array(np.nan)),
        stored(beta=np.array(-1.0)),
        stored(background=np.full((3, 8), np.nan)),
        stored(background=np.zeros((0, 8))),
        stored(background=np.zeros(8)),
        stored(background=np.array([{}], dtype=object)),
        stored(**{"null.bad": np.array([np.nan])}),
        stored(null_images=np.ones((3, 4))),
        stored(null_images=np.full((3, 8), np.nan)),
        stored(null_images=np.zeros((0, 8))),
        stored().replace(b"'shape': (20, 8)", b"'shape': (2**99,)"),
        stored()[:-200],
    ],
)
def test_an_artefact_that_would_do_harm_is_refused(artefact):
    with pytest.raises(StoreError, match="calibration cannot be used"):
        parse(artefact)


@pytest.mark.parametrize("at", range(0, len(stored()), 13))
def test_a_damaged_artefact_is_refused_or_harmless(at):
    damaged = stored()[:at] + b"\xff\xff" + stored()[at + 2 :]
    with contextlib.suppress(StoreError):
        assert parse(damaged).offsets(units(2)).isfinite().all()


def test_a_calibration_is_of_its_model():
    model = Model(name="m", sha256="a" * 64, dims=8, preprocessing="none")
    check(made().dump(), model)
    for other in (replace(model, sha256="b" * 64), replace(model, dims=16)):
        with pytest.raises(StoreError, match="another model's"):
            check(made().dump(), other)
