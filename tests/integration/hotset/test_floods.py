"""The flood alarm of two replicas that count together, on real servers."""

import json
import threading
import time
from contextlib import closing
from hashlib import sha256

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from tests.fixtures.hot_set import MODEL, NOW, bank, descriptors, reference
from worker.compare import Compared
from worker.embedded import redis
from worker.errors import StoreError
from worker.hotset import floods
from worker.hotset.census import SLICE_SECONDS, SLICES, Census, Subject
from worker.hotset.floods import FLOOR, Flooded, Floods, Sightings
from worker.hotset.hot_set import Against
from worker.hotset.layout import Keys
from worker.hotset.store import open_store
from worker.hotset.types import Hit
from worker.records import ImageInfo, Look, Origin, Position, Rendition, Upload, Version
from worker.results import Results, Screened
from worker.scoring.policy import decide, score
from worker.scoring.rules import Applied, rule_of
from worker.settings import Redis, Settings

pytestmark = pytest.mark.redis
KEYS = Keys("copysieve")
BANK, REFERENCE = Subject("known-bad"), Subject("known-bad", "r1")
NONE, BOTH = frozenset[Subject](), frozenset({BANK, REFERENCE})


class Replica:
    """One replica's flood alarm; its clock stands still unless the test moves it."""

    def __init__(self, store, clock):
        self.sightings = Sightings()
        census = Census(store._client, KEYS, "worker", lambda: clock[0])
        self.floods = Floods(census, self.sightings)

    def match(self, images, of, *references):
        for number in images:
            hits = [Hit(one, of, "plain", 0.9, 0.9) for one in references]
            self.sightings.note(sha256(str(number).encode()).hexdigest(), hits)

    def turn(self):
        self.floods.turn()
        return self.sightings.flooded.subjects


@pytest.fixture
def clock():
    return [time.time()]


@pytest.fixture(params=["redis", "valkey"])
def kind(request):
    """What a server of the test's own is."""
    try:
        redis.binary(request.param)
    except StoreError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def replicas(store, clock):
    return Replica(store, clock), Replica(store, clock)


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def filled(store, of, *references):
    """The references with their bank, as they are in the store."""
    store.set_bank(of)
    store.add_references([(one, descriptors()) for one in references], MODEL)
    return of, *references


def floods_of(store):
    return [
        (entry.what, entry.detail.get("reference"))
        for entry in reversed(store.audit(None, 100))
        if entry.what.startswith("flood")
    ]


def begun(scope):
    labels = {"bank": "known-bad", "scope": scope}
    return REGISTRY.get_sample_value("copysieve_floods_begun_total", labels) or 0


def in_flood(scope):
    return REGISTRY.get_sample_value("copysieve_floods", {"bank": "known-bad", "scope": scope})


def test_replicas_count_together_and_one_tells(store, replicas):
    one, two = replicas
    hot = filled(store, bank(flood_per_hour=10), reference())
    before = begun("bank"), begun("reference")
    one.match(range(6), *hot)
    two.match(range(4, 10), *hot)
    assert (one.turn(), two.turn(), one.turn()) == (NONE, NONE, NONE)
    two.match(range(10), *hot)  # none of them is new
    assert two.turn() == NONE
    one.match([10], *hot)
    assert one.turn() == BOTH
    assert two.turn() == BOTH  # which has not seen the last one
    assert one.turn() == BOTH
    assert floods_of(store) == [("flood_began", None), ("flood_began", "r1")]
    entry = store.audit(None, 1)[0]
    assert entry.detail == {"bank": "known-bad", "reference": "r1", "images": 11, "limit": 10}
    assert (entry.by, entry.version) == ("worker", None)
    assert (begun("bank"), begun("reference")) == (before[0] + 1, before[1] + 1)
    assert (in_flood("bank"), in_flood("reference")) == (1, 1)


def test_of_two_that_see_it_at_once_one_tells(store, replicas):
    one, two = (replica.floods._census for replica in replicas)
    assert [one.begin(BANK, 11, 10), two.begin(BANK, 12, 10)] == [True, False]
    assert [two.end(BANK, 3), one.end(BANK, 3)] == [True, False]
    assert floods_of(store) == [("flood_began", None), ("flood_ended", None)]


def test_many_references_are_a_flood_of_their_bank_alone(store, replicas):
    one, _ = replicas
    of, *references = filled(
        store, bank(flood_per_hour=10), *(reference(f"r{number}") for number in range(12))
    )
    for number, each in enumerate(references):
        one.match([number], of, each)
    assert one.turn() == {BANK}


def test_it_ends_when_the_hour_is_over_and_counts_expire(store, replicas, clock, redis_server):
    one, two = replicas
    hot = filled(store, bank(flood_per_hour=10), reference())
    one.match(range(11), *hot)
    assert one.turn() == BOTH
    clock[0] += (SLICES - 1) * SLICE_SECONDS
    assert two.turn() == BOTH
    two.match([10], *hot)
    assert two.turn() == BOTH
    clock[0] += SLICE_SECONDS
    assert two.turn() == one.turn() == NONE
    assert floods_of(store)[2:] in (
        [("flood_ended", None), ("flood_ended", "r1")],
        [("flood_ended", "r1"), ("flood_ended", None)],
    )
    assert (in_flood("bank"), in_flood("reference")) == (0, 0)
    with redis_server.client() as client:
        counts = client.keys("*:flood:*") + client.keys("*:screened:*")
        assert counts
        assert all(0 < client.ttl(key) <= (SLICES + 1) * SLICE_SECONDS for key in counts)


def test_it_does_not_flicker_at_its_limit(store, replicas, clock):
    one, _ = replicas
    hot = filled(store, bank(flood_per_hour=10), reference())
    one.match([0], *hot)
    assert one.turn() == NONE
    clock[0] += SLICE_SECONDS
    one.match(range(1, 11), *hot)
    assert one.turn() == BOTH
    clock[0] += (SLICES - 1) * SLICE_SECONDS  # ten are left: the limit
    assert one.turn() == BOTH
    assert len(floods_of(store)) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.set_confirmed(["r1"], confirmed=True),
        lambda store: store.set_enabled(["r1"], enabled=False),
        lambda store: store.remove_references(["r1"]),
    ],
    ids=["confirmed", "disabled", "removed"],
)
def test_a_reference_that_a_person_has_seen_to_is_in_flood_no_more(store, replicas, change):
    one, two = replicas
    hot = filled(store, bank(flood_per_hour=10), reference())
    one.match(range(11), *hot)
    assert one.turn() == BOTH
    change(store)
    assert one.turn() == {BANK}  # until what it matched is an hour old
    store.set_bank(bank(flood_per_hour=20))
    assert two.turn() == NONE


def test_from_uploads_to_the_action_that_is_published(store, replicas):
    one, two = replicas
    of, flooding, confirmed = filled(
        store,
        bank(flood_per_hour=10, flood_demotes=True, action="block"),
        reference(),
        reference("r2", confirmed=True),
    )

    def screened(replica, number):
        """What the verdict tells of both references."""
        origin = Origin(Position("uploads", 0, number, 1), NOW, NOW, 1, 1, 0)
        upload = Upload(origin, f"u{number}", image=b"x")
        digest = sha256(str(number).encode()).hexdigest()
        info = ImageInfo("PNG", 8, 8, 1, 9, digest, truncated=False)
        hits = [Hit(each, of, "plain", 0.9, 0.9) for each in (flooding, confirmed)]
        rules = {of.name: rule_of(of, None, None)}
        version = Version(1, 1)
        applied = Applied(Against(version, {of.name: of}, None, {}, frozenset()), rules)
        compared = Compared(decide(score(hits), rules), version, None, {}, applied)
        results = Results(Settings(), MODEL, "fp32", replica.sightings)
        verdict, _ = results.screened(
            Screened(upload, info, (Look(Rendition(), "plain"),), compared)
        )
        matches = json.loads(verdict.value)["matches"]
        return [(match["reference_id"], match["flooded"], match["action"]) for match in matches]

    for number in range(11):
        assert screened(one, number) == [("r1", False, "block"), ("r2", False, "block")]
    assert one.turn() == two.turn() == BOTH
    assert screened(two, 12) == [("r1", True, "review"), ("r2", True, "block")]


@pytest.mark.parametrize(
    "changes",
    [{"flood_per_hour": None}, {"mode": "shadow"}, {"severity": "critical"}, {"enabled": False}],
)
def test_a_bank_without_a_limit_is_in_flood_no_more(store, replicas, changes):
    one, _ = replicas
    hot = filled(store, bank(flood_per_hour=10), reference())
    one.match(range(11), *hot)
    assert one.turn() == BOTH
    store.set_bank(bank(**{"flood_per_hour": 10} | changes))
    assert one.turn() == NONE


def test_a_bank_that_is_gone_is_in_flood_no_more(store, replicas, redis_server):
    one, _ = replicas
    hot = filled(store, bank(flood_per_hour=10), reference())
    one.match(range(11), *hot)
    assert one.turn() == BOTH
    with redis_server.client() as client:
        client.hset(KEYS.banks, "known-bad", "damaged")
        client.sadd(KEYS.floods, "never-was", "b:also:not", b"\xff")
    assert one.turn() == NONE
    with redis_server.client() as client:
        assert client.smembers(KEYS.floods) <= {b"\xff"}


def test_a_budget_is_a_limit_by_what_all_replicas_screened(store, replicas, clock):
    one, two = replicas
    of = bank(threshold=None, max_false_matches_per_million=100.0)
    hot = filled(store, of, reference())
    one.match(range(FLOOR + 1), *hot)
    assert one.turn() == BOTH
    two.sightings.give_back({}, 25_000)
    assert two.turn() == NONE  # ten times 2.5 are 26
    clock[0] += (SLICES - 1) * SLICE_SECONDS
    one.match([FLOOR + 1], *hot)
    assert one.turn() == NONE
    clock[0] += SLICE_SECONDS
    one.match(range(100, 100 + FLOOR), *hot)
    assert one.turn() == BOTH


def test_more_than_one_call_takes_is_counted(store, replicas):
    one, _ = replicas
    of, *references = filled(
        store, bank(flood_per_hour=900), *(reference(f"r{number}") for number in range(20))
    )
    one.match(range(1000), of, references[0])
    for each in references:
        one.match(range(5), of, each)
    assert one.turn() == {BANK, Subject("known-bad", "r0")}
    assert store.audit(None, 1)[0].detail["images"] == pytest.approx(1000, rel=0.05)


def test_redis_away_changes_nothing_and_nothing_is_lost(kind, clock):
    with redis.redis_server(kind, keep_data=True) as server:
        config = Redis(url=SecretStr(server.url), timeout_seconds=0.5)
        with closing(open_store(config)) as store:
            hot = filled(store, bank(flood_per_hour=10), reference())
            one = Replica(store, clock)
            one.match(range(11), *hot)
            assert one.turn() == BOTH
            server.kill()
            one.match(range(11, 16), *hot)
            for _ in range(2):
                with pytest.raises(StoreError):
                    one.turn()
            assert one.sightings.flooded.subjects == BOTH
            server.start()
            assert one.turn() == BOTH
            assert one.floods._census.matched({BANK: ()}) == {BANK: 16}
            assert len(floods_of(store)) == 2


def test_the_thread_goes_on_when_redis_is_back(monkeypatch, clock):
    monkeypatch.setattr(floods, "TURN_SECONDS", 0.05)
    failures = "copysieve_flood_failures_total"
    before = REGISTRY.get_sample_value(failures) or 0
    with redis.redis_server(keep_data=True) as server:
        config = Redis(url=SecretStr(server.url), timeout_seconds=0.5)
        with closing(open_store(config)) as store:
            hot = filled(store, bank(flood_per_hour=10), reference())
            one = Replica(store, clock)
            server.kill()
            one.floods.start()
            one.match(range(11), *hot)
            until(lambda: (REGISTRY.get_sample_value(failures) or 0) >= before + 2)
            assert one.sightings.flooded == Flooded()
            server.start()
            until(lambda: one.sightings.flooded != Flooded())
            one.floods.stop()
            one.floods.join(30)
            assert "floods" not in [thread.name for thread in threading.enumerate()]
            assert one.sightings.flooded.subjects == BOTH


def test_it_lives_on_a_cluster(kind, clock):
    with redis.redis_server(kind, options=("--cluster-enabled", "yes")) as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        config = Redis(url=SecretStr(server.url), cluster=True)
        with closing(open_store(config)) as store:
            hot = filled(store, bank(flood_per_hour=10), reference())
            one, two = Replica(store, clock), Replica(store, clock)
            one.match(range(11), *hot)
            assert one.turn() == two.turn() == BOTH
            assert len(floods_of(store)) == 2
