"""Who is waited for, and who counts as late, by heartbeats in a real Redis."""

import threading
from datetime import UTC, datetime

import pytest

from tests.fixtures.hot_set import MODEL, OTHER_MODEL, bank, descriptors, reference
from tests.fixtures.replicas import PATIENCE, away, until
from worker.cli import waiting
from worker.cli.waiting import wait_for
from worker.hotset.layout import Keys
from worker.hotset.types import Heartbeat
from worker.records import Version
from worker.scoring import artefact
from worker.telemetry import metrics

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("quick_hot_set")]
KEYS = Keys("copysieve")
PROCESS = "0" * 32


def identity(name):
    return f"{name}:{PROCESS}"


@pytest.fixture
def head(store):
    store.set_bank(bank())
    return store.set_bank(bank("other"))


@pytest.fixture
def tell(store, head):
    def told(name, seq, state="following", epoch=head.epoch, process=PROCESS, **more):
        beat = Heartbeat(
            name=name,
            process=process,
            state=state,
            version=None if seq is None else f"{epoch}-{seq}",
            digest=None,
            references=0,
            rows=0,
            unusable=0,
            model=MODEL.sha256,
            at=datetime.now(UTC),
        ).model_copy(update=more)
        store.of_model(MODEL, artefact.read_for).replicas.tell(beat)

    return told


def test_only_a_replica_that_follows_this_history_has_applied(store, head, tell):
    assert wait_for(store, head, 0).applied == []
    tell("equal", head.seq)
    tell("damaged", head.seq, "damaged")
    assert wait_for(store, head, 0).late == []
    tell("behind", head.seq - 1)
    tell("beyond", head.seq + 5)  # what a failover lost
    tell("elsewhere", head.seq, epoch=head.epoch + 1)
    tell("empty", None, "waiting")
    for state in ("loading", "away", "shrunk"):
        tell(state, head.seq, state)
    waited = wait_for(store, head, 0)
    assert waited.applied == ["damaged", "equal"]
    assert waited.late == ["away", "behind", "beyond", "elsewhere", "empty", "loading", "shrunk"]
    first = wait_for(store, Version(head.epoch, head.seq - 1), 0)
    assert first.applied == ["behind", "damaged", "equal"]


def test_who_expired_is_forgotten_but_not_who_tells_again(store, head, tell, redis_server):
    with redis_server.client() as raw:
        for name in ("gone", "back"):
            tell(name, head.seq)
            raw.delete(KEYS.replica(identity(name)))
        replicas = store._replicas
        forget = replicas._forget

        def meanwhile(keys, args):
            if args == [identity("back")]:
                tell("back", head.seq - 1)
            forget(keys=keys, args=args)

        replicas._forget = meanwhile
        assert store.heartbeats() == []
        assert raw.smembers(KEYS.replicas) == {identity("back").encode()}
    assert wait_for(store, head, 0).late == ["back"]


@pytest.mark.parametrize(
    ("silenced", "late"), [("killed", ["r"]), ("left", []), ("left after it applied", [])]
)
def test_who_falls_silent_while_it_is_waited_for_is_late_unless_it_left(
    store, head, tell, redis_server, silenced, late, monkeypatch
):
    tell("r", head.seq - 1)
    tell("done", head.seq)
    waited, polled = [], threading.Event()
    heartbeats = store.heartbeats

    def told():
        beats = heartbeats()
        polled.set()
        return beats

    monkeypatch.setattr(store, "heartbeats", told)
    waiting = threading.Thread(target=lambda: waited.append(wait_for(store, head, 1.0)))
    waiting.start()
    assert polled.wait(10)
    with redis_server.client() as raw:
        raw.delete(KEYS.replica(identity("done")))
        if silenced == "killed":
            raw.delete(KEYS.replica(identity("r")))
        else:
            if silenced == "left after it applied":
                tell("r", head.seq)
            store._replicas.leave(identity("r"))
    waiting.join()
    assert waited[0].late == late
    assert (waited[0].seconds > 1.0) == bool(late)
    tell("r", head.seq - 1)  # it has started again
    assert not store.has_left(identity("r"))


def test_an_emptied_store_is_applied_by_nobody(store, head, tell, redis_server):
    with redis_server.client() as raw:
        raw.flushall()
    tell("keeps", head.seq)
    assert wait_for(store, head, 0).late == ["keeps"]


def test_two_replicas_of_one_name_are_two(store, head, tell):
    tell("r", head.seq, process="1" * 32)
    tell("r", head.seq - 1, process="2" * 32)
    tell("r", head.seq, process="1" * 32)  # the last word is of the one that has it
    waited = wait_for(store, head, 0)
    assert (waited.applied, waited.late) == (["r"], ["r"])
    store._replicas.leave("r:" + "2" * 32)
    waited = wait_for(store, head, 0)
    assert (waited.applied, waited.late) == (["r"], [])


def test_a_replica_that_lags_behind_its_namesake_is_late(replicas, store, head):
    ahead, behind = replicas("shared"), replicas("shared")
    until(lambda: ahead.at(head) and behind.at(head))
    with away(behind):
        version = store.set_bank(bank("third"))
        until(lambda: ahead.at(version))
        assert wait_for(store, version, 0.5).late == ["shared"]
    assert wait_for(store, version, PATIENCE).late == []


def test_what_a_replica_cannot_match_is_said(store, head, tell, capsys):
    tell("a", head.seq)
    waiting.tell(wait_for(store, head, 0))
    assert capsys.readouterr().err == ""
    tell("b", head.seq, model=OTHER_MODEL.sha256, unusable=3)
    waited = wait_for(store, head, 0)
    assert waited.applied == ["a", "b"]
    assert waited.document()["unusable"] == {"b": 3}
    assert waited.document()["models"] == [MODEL.sha256, OTHER_MODEL.sha256]
    waiting.tell(waited)
    told = " ".join(capsys.readouterr().err.split())
    assert "b cannot match 3 references" in told
    assert "different models (aaaaaaaaaaaa, bbbbbbbbbbbb)" in told


def test_references_of_another_model_are_counted(replicas, store):
    store.set_bank(bank())
    described = [(reference("r1"), descriptors(1, model=OTHER_MODEL))]
    store.add_references([(reference("r2"), descriptors(2))], MODEL)
    one = replicas()
    until(lambda: one.at(store.version()))
    until(lambda: metrics.UNUSABLE._value.get() == 0)
    store.add_references(described, OTHER_MODEL)
    until(lambda: metrics.UNUSABLE._value.get() == 1)
    store.add_references([(reference("r1"), descriptors(1))], MODEL)
    until(lambda: metrics.UNUSABLE._value.get() == 0)
