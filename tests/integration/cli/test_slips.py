"""Slips of the hand at the command line: what would match all or nothing, or remove a bank."""

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.fixtures.hot_set import MODEL, add_all, bank, descriptors, reference
from worker.cli.main import app
from worker.descriptor import embedders
from worker.errors import StoreError
from worker.records import Model
from worker.scoring.learning import learn
from worker.settings import ModelSettings

pytestmark = pytest.mark.redis


@pytest.fixture
def run(monkeypatch, redis_server):
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", "sscd_distilled")
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", redis_server.url)
    monkeypatch.setattr("worker.telemetry.log.configure", lambda _: None)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [*arguments, "--no-wait"])
        if isinstance(result.exception, StoreError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.mark.parametrize("threshold", ["-5", "-1", "0", "0.999", "1", "50"])
def test_a_threshold_that_all_pictures_or_none_reach_is_refused(run, store, threshold):
    run("banks", "set", "bad", "--threshold", "0.6")
    result = run("banks", "set", "bad", "--threshold", threshold, "--force", code=2)
    effect = "nearly every picture" if float(threshold) <= 0 else "no copy"
    assert f"{effect} matches" in " ".join(result.stderr.split())
    assert store.banks()["bad"].threshold == 0.6
    with pytest.raises(StoreError, match=f"{effect} matches"):
        store.set_bank(bank("bad", threshold=float(threshold)))
    run("banks", "set", "bad", "--threshold", "0.995")
    run("banks", "set", "bad", "--threshold", "0.05")


@pytest.fixture(scope="module")
def model() -> Model:
    return embedders.load(ModelSettings(name="sscd_distilled")).model


def calibrated(store, model):
    """A calibration whose images are all alike, so that offsets are large."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=model.dims)
    rows = common + 0.3 * rng.normal(size=(400, model.dims))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    one = learn(
        model.sha256,
        rows[:100].astype(np.float16),
        rows[100:, None].astype(np.float16),
        np.arange(300),
        looks=("plain",),
    )
    store.apply_calibration(store.keep_calibration(one.artefact, model.sha256), model.sha256)
    return one


def test_under_a_calibration_copies_reach_the_threshold_and_most_images_do_not(run, store, model):
    run("banks", "set", "bad")
    add_all(store, [(reference("r1", bank="bad"), descriptors(1, model=model))], model)
    known = calibrated(store, model)
    highest = 1 - float(known.without(()).null_offsets.max())
    with pytest.raises(StoreError, match="an exact copy would not match for 100%"):
        run("banks", "set", "bad", "--threshold", "0.99")
    with pytest.raises(StoreError, match="benign images would match"):
        run("banks", "set", "bad", "--threshold", "-0.9")
    assert store.banks()["bad"].threshold is None
    run("banks", "set", "bad", "--threshold", f"{highest - 0.01}")
    with pytest.raises(StoreError, match="an exact copy would not match"):
        run("calibrations", "apply", known.id, "--threshold", "bad=0.99")
    result = run("banks", "set", "bad", "--threshold", "2", code=2)
    assert "no copy matches" in " ".join(result.stderr.split())
    run("banks", "set", "bad", "--threshold", "0.99", "--force")


def fill(store, name, count, model=MODEL):
    ids = [f"{name}-{number}" for number in range(count)]
    described = [(reference(one, bank=name), descriptors(n)) for n, one in enumerate(ids)]
    add_all(store, described, model)
    return ids


@pytest.mark.parametrize("command", [("remove",), ("remove", "--purge"), ("disable",)])
def test_a_large_share_of_a_bank_is_removed_or_disabled_only_by_force(run, store, command):
    for name in ("large", "small"):
        store.set_bank(bank(name))
    large, small = fill(store, "large", 120), fill(store, "small", 8)
    run("refs", *command, *large[:12], *small)
    verb = command[0]
    some = large[-13:] if verb == "disable" else large[12:24]
    total = 120 if verb == "disable" else 108
    with pytest.raises(StoreError, match=rf"{verb} {len(some)} of the {total} references of"):
        run("refs", *command, *some)
    before = store.references("large")
    run("refs", *command, "--force", *some)
    assert len([one for one in before if one not in store.references("large")]) == len(some)


def test_all_references_of_a_bank_are_removed_by_its_name(run, store):
    for name in ("large", "small"):
        store.set_bank(bank(name))
    fill(store, "large", 70)
    fill(store, "small", 3)
    run("refs", "remove", "--bank", "small")
    assert not store.references("small")
    with pytest.raises(StoreError, match="remove 70 of the 70 references of bank large"):
        run("refs", "remove", "--bank", "large")
    run("refs", "remove", "--bank", "large", "--force")
    assert not store.references()
    with pytest.raises(StoreError, match="bank small has no references"):
        run("refs", "remove", "--bank", "small")
    run("refs", "remove", code=2)
    run("refs", "remove", "r1", "--bank", "small", code=2)


def test_a_bank_in_use_is_removed_only_by_force(run, store):
    for name in ("on", "off"):
        store.set_bank(bank(name, enabled=name == "on"))
    with pytest.raises(StoreError, match="bank on is enabled: --disable it first, or --force"):
        run("banks", "remove", "on")
    run("banks", "remove", "off")
    run("banks", "remove", "on", "--force")
    assert store.banks() == {}
