"""A bank or a calibration that Redis loses, beside references that it keeps."""

import pytest

from tests.fixtures.hot_set import (
    CALIBRATIONS,
    MODEL,
    OTHER_MODEL,
    bank,
    calibrate,
    calibration,
    descriptors,
    reference,
)
from tests.fixtures.replicas import KEYS, PATIENCE, add, away, both, until
from worker.cli import check
from worker.hotset.policies import Lost
from worker.scoring import artefact
from worker.settings import Settings
from worker.telemetry import metrics

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("quick_hot_set")]


@pytest.fixture
def filled(store):
    store.set_bank(bank())
    store.set_bank(bank("other"))
    add(store, "r1", "r2")
    calibrate(store, "c1")
    return store


def all_banks(raw):
    raw.delete(KEYS.banks)


def one_bank(raw):
    raw.hdel(KEYS.banks, "other")


def current_calibrations(raw):
    raw.delete(KEYS.calibration)


def calibration_artefact(raw):
    raw.delete(KEYS.artefact(CALIBRATIONS["c1"].id))


LOSSES = [all_banks, one_bank, current_calibrations, calibration_artefact]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("lose", LOSSES)
def test_a_replica_that_starts_is_not_ready_without_it(replicas, raw, lose):
    lose(raw)
    one = replicas()
    until(lambda: one.sync.state == "shrunk")
    assert not one.sync.ready
    assert one.mirror.head is None


@pytest.mark.parametrize("lose", [all_banks, one_bank, current_calibrations])
def test_a_replica_that_loads_again_keeps_what_it_has(replicas, filled, raw, lose):
    one = replicas()
    until(lambda: one.at(filled.version()))
    before = one.mirror.against()
    with away(one):
        lose(raw)
        filled.set_enabled(["r1"], enabled=False)
        raw.delete(KEYS.changes)
    until(lambda: one.sync.state == "shrunk")
    until(lambda: metrics.SHRUNK._value.get() == 1)
    now = one.mirror.against()
    assert now.banks == before.banks
    assert now.calibration.id == before.calibration.id


@pytest.mark.parametrize("lose", LOSSES)
def test_a_replica_that_follows_raises_the_alarm(replicas, filled, raw, lose):
    one = replicas()
    until(lambda: one.at(filled.version()))
    lose(raw)
    until(lambda: one.sync.state == "damaged")
    until(lambda: metrics.DAMAGED._value.get() == 1)
    assert one.found() == both("r1", "r2")
    assert set(one.mirror.against().banks) == {"known-bad", "other"}


@pytest.mark.usefixtures("filled")
def test_a_row_that_nobody_wrote_is_not_the_policy(replicas, raw):
    row = raw.hget(KEYS.banks, "known-bad")
    raw.hset(KEYS.banks, "known-bad", row.replace(b"0.5", b"0.9"))
    one = replicas()
    until(lambda: one.sync.state == "shrunk")
    assert not one.sync.ready


def test_what_is_put_back_or_accepted_is_served(replicas, filled, raw):
    row = raw.hget(KEYS.banks, "other")
    one_bank(raw)
    one = replicas()
    until(lambda: one.sync.state == "shrunk")
    raw.hset(KEYS.banks, "other", row)  # as a restore does it: nothing tells of it
    assert one.sync.wait_ready(PATIENCE, lambda: False)
    version = filled.set_enabled(["r2"], enabled=False)
    until(lambda: one.at(version))
    assert one.found() == both("r1")
    all_banks(raw)
    current_calibrations(raw)
    late = replicas("late")
    until(lambda: late.sync.state == "shrunk")
    version = filled.accept().version
    until(lambda: one.at(version) and late.at(version))
    assert late.mirror.against().banks == {}


def test_a_lost_head_does_not_make_the_references_few(replicas, filled, raw):
    """The head that a writer makes anew counts one bank and no reference."""
    raw.delete(KEYS.head, KEYS.banks)
    filled.set_bank(bank("another"))
    one = replicas()
    until(lambda: one.sync.state == "shrunk")
    assert not one.sync.ready


def test_another_models_calibration_is_its_own_replicas_alarm(replicas, filled, raw):
    other = calibration(model=OTHER_MODEL)
    kept = filled.keep_calibration(other.artefact, OTHER_MODEL.sha256)
    filled.apply_calibration(kept, OTHER_MODEL.sha256)
    described = [(reference("r1"), descriptors(3, model=OTHER_MODEL))]
    filled.add_references(described, OTHER_MODEL, kept)
    raw.hdel(KEYS.calibration, OTHER_MODEL.sha256)
    one = replicas()
    assert one.sync.wait_ready(PATIENCE, lambda: False)
    with pytest.raises(Lost, match="has lost calibration: it holds 0 of 1"):
        filled.of_model(OTHER_MODEL, artefact.read_for).snapshot(filled.head())
    filled.of_model(MODEL, artefact.read_for).snapshot(filled.head())


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("lose", [all_banks, current_calibrations])
def test_check_says_so(raw, lose, redis_settings):
    lose(raw)
    with pytest.raises(Lost, match="hotset accept"):
        list(check._hot_set(Settings(redis=redis_settings)))


def test_banks_that_come_and_go_after_the_head_was_read_are_no_loss(filled):
    reader = filled.of_model(MODEL, artefact.read_for)
    for number in range(20):
        head = filled.head()
        filled.set_bank(bank(f"b{number}"))
        if number % 2:
            filled.remove_bank(f"b{number - 1}")
        assert len(reader.snapshot(head).banks) == filled.head().tallies["banks"].number
